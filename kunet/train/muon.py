"""Muon: steps in the direction of the momentum with all its singular values made equal."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)
"""Polynomial a x + b x^3 + c x^5: five rounds of it bring singular values from 0.002 to 1 to between 0.68 and 1.21."""
ITERATIONS = 5
MOMENTUM = 0.95
MATCH = 0.2
"""Root mean square of a step in units of lr: about that of AdamW's late in a training, so that one lr is of use to
both. Source: J. Liu et al., arXiv 2502.16982, section 2.2."""


class Muon(torch.optim.AdamW):
    """Muon for the weights that mix features, AdamW for the rest: biases, norms, depthwise kernels.

    A weight of two dimensions or more whose first two, outputs and inputs, are both larger than 1, is taken as the
    matrix (outputs, inputs * the rest), so a convolution's kernel too; torch.optim.Muon takes matrices alone. Matrices
    of one shape are orthogonalised together. A step takes longer than AdamW's by the time that takes.

    Args:
        parameters: of the model.
        lr: of both.
        betas: AdamW's.
        weight_decay: decoupled, of both.
        dtype: of the orthogonalisation: torch.bfloat16 is accurate enough, and fast where the hardware has it.
    Sources: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; J. Liu et al., "Muon is
        Scalable for LLM Training", arXiv 2502.16982, section 2.2, for the size of a step.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 1e-4,
        dtype: torch.dtype = torch.float32,
    ):
        matrices, rest = [], []
        for parameter in parameters:
            (matrices if parameter.ndim > 1 and min(parameter.shape[:2]) > 1 else rest).append(parameter)
        groups = [{"params": found, "muon": found is matrices} for found in (rest, matrices) if found]
        super().__init__(groups, lr, betas, weight_decay=weight_decay, fused=True)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure=None):
        """Gradients of what Muon has moved are let go, so that AdamW passes over them."""
        if closure is not None:
            raise ValueError("Muon: takes no closure; compute the gradients before step()")
        for group in self.param_groups:
            if group["muon"]:
                self._move(group)
        super().step()

    def _move(self, group: dict) -> None:
        shapes: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]] = {}
        for weight in group["params"]:
            if weight.grad is None:
                continue
            state = self.state[weight]
            if not state:
                state["step"] = torch.zeros(())  # AdamW looks for it in all states that are loaded
                state["momentum"] = torch.zeros_like(weight)
            momentum = state["momentum"]
            momentum.lerp_(weight.grad, 1 - MOMENTUM)
            direction = weight.grad.lerp(momentum, MOMENTUM).flatten(1)  # Nesterov's
            shapes.setdefault(tuple(direction.shape), []).append((weight, direction))
            weight.grad = None
        for shape, found in shapes.items():
            size = group["lr"] * MATCH * math.sqrt(max(shape))
            steps = orthogonalise(torch.stack([direction for _, direction in found]), self.dtype)
            for (weight, _), step in zip(found, steps):
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.sub_(step.view(weight.shape), alpha=size)


def orthogonalise(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(B, M, N) of the same singular vectors, with singular values about 1, by Newton-Schulz iteration.

    Divided by their root sum of squares first, those that are then below 0.002 do not get there.
    """
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = matrices if wide else matrices.mT
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(dtype)
    a, b, c = NEWTON_SCHULZ
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.mT).to(matrices.dtype)
