"""KAN layers of low rank: the weights of O x I x (G + k + 1) as a sum of R outer products (CP decomposition)."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kunet import splines
from kunet.kan import kernels
from kunet.kan.kernels import Grid, Kernel, Outside
from kunet.kan.layer import as_linear_would, check_choices, exact, uniform_of
from kunet.kan.linear import KANLinear


class LowRankKANLinear(nn.Module):
    """A KANLinear with c_{oij} = sum_r A_{or} B_{ir} C_{rj}, and w_{oi} = sum_r A_{or} B_{ir} D_r for the base.

    Read from the right: R shapes of edges (C, D), mixed over inputs (B) into R sums, mixed into outputs (A). It runs
    as a KANLinear of R outputs and a plain linear layer: (k + 2) I R + R O multiply-adds a row instead of
    (k + 2) I O, and has R (O + I + G + k + 1) parameters instead of O I (G + k + 1).

    Args: rank: R; the others as KANLinear's.
    Shapes: x (..., I) -> y (..., O). Parameters: ``outputs`` A (O, R), ``inputs`` B (I, R), ``functions`` C
    (R, G + k), ``base_share`` D (R,) when there is a base, ``bias`` (O,).
    Raises: ValueError on sizes or a rank below 1, an empty range, or x of the wrong width.
    Source: T. G. Kolda and B. W. Bader, "Tensor Decompositions and Applications", 2009, section 3.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        grid_size: int = 5,
        degree: int = 3,
        grid_range: tuple[float, float] = (-1.0, 1.0),
        base: Callable[[Tensor], Tensor] | None = F.silu,
        bias: bool = False,
        outside: Outside | str = "zero",
        kernel: Kernel | str = "auto",
    ):
        super().__init__()
        if min(in_features, out_features, rank) < 1:
            raise ValueError(f"LowRankKANLinear: {in_features} -> {out_features} of rank {rank}; all must be 1 or more")
        check_choices("LowRankKANLinear", outside, kernel)
        knots = splines.uniform_knots(grid_size, degree, *grid_range)
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.grid_size, self.degree, self.grid_range, self.outside = grid_size, degree, tuple(grid_range), outside
        self.base, self.kernel = base, kernel
        self.register_buffer("knots", knots[None])
        # Sums over I inputs and R ranks of unit variance come out with unit variance
        self.outputs = nn.Parameter(torch.randn(out_features, rank) / math.sqrt(rank))
        self.inputs = nn.Parameter(torch.randn(in_features, rank) / math.sqrt(in_features))
        line = splines.greville(knots, degree) if degree else (knots[1:] + knots[:-1]) / 2
        start = torch.zeros_like(line) if base else line
        self.functions = nn.Parameter(start + 0.1 * torch.randn(rank, grid_size + degree))
        self.base_share = nn.Parameter(torch.ones(rank)) if base else None
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch outputs"]:
        if x.shape[-1] != self.in_features:
            raise ValueError(f"LowRankKANLinear: x is {tuple(x.shape)}; its last size must be {self.in_features}")
        weight = torch.einsum("ir,rj->rij", self.inputs, self.functions)
        uniform = (*map(float, self.grid_range), self.grid_size)
        grid = Grid(self.knots.expand(self.in_features, -1), self.degree, uniform, self.outside)
        z = as_linear_would(kernels.linear(exact(x), grid, exact(weight), self.kernel), x)
        if self.base_share is not None:
            z = z + F.linear(self.base(x), (self.inputs * self.base_share).T)
        return F.linear(z, self.outputs, self.bias)

    def full(self) -> KANLinear:
        """The KANLinear that this one equals, with all of its weights."""
        layer = KANLinear(
            self.in_features, self.out_features, self.grid_size, self.degree, self.grid_range, self.base,
            bias=self.bias is not None, outside=self.outside, kernel=self.kernel,
        ).to(self.functions)  # fmt: skip
        with torch.no_grad():
            layer.spline_weight.copy_(torch.einsum("or,ir,rj->oij", self.outputs, self.inputs, self.functions))
            if self.base_share is not None:
                layer.base_weight.copy_(torch.einsum("or,ir,r->oi", self.outputs, self.inputs, self.base_share))
            if self.bias is not None:
                layer.bias.copy_(self.bias)
        return layer

    def _load_from_state_dict(self, state: dict, prefix: str, *rest) -> None:
        knots = state.get(prefix + "knots")
        if knots is not None and knots.shape == self.knots.shape and not torch.equal(knots.to(self.knots), self.knots):
            self.grid_range = uniform_of(knots, self.degree)[:2]
        super()._load_from_state_dict(state, prefix, *rest)

    def extra_repr(self) -> str:
        grid = f"grid_size={self.grid_size}, degree={self.degree}, grid_range={self.grid_range}"
        return f"{self.in_features}, {self.out_features}, rank={self.rank}, {grid}"


@torch.no_grad()
def factorise(layer: KANLinear, rank: int, sweeps: int = 100, seed: int = 0) -> LowRankKANLinear:
    """The layer of rank R nearest to a trained one, by alternating least squares on its weights (float64).

    Raises: ValueError when the grid is adaptive (its functions then differ between features) or no B-spline.
    Source: Kolda and Bader (2009), section 3.4.
    """
    if layer.basis != "bspline" or not layer.uniform:
        raise ValueError(f"factorise: {layer}; it must have B-splines on one uniform grid")
    low = LowRankKANLinear(
        layer.in_features, layer.out_features, rank, layer.grid_size, layer.degree, layer.grid_range, layer.base,
        layer.bias is not None, layer.outside, layer.kernel,
    ).to(layer.knots)  # fmt: skip
    target = layer.coefficients().double()
    base = layer.base_coefficients()
    if base is not None:
        target = torch.cat([target, base.double().unsqueeze(2)], 2)
    generator = torch.Generator().manual_seed(seed)
    factors = [torch.randn(n, rank, generator=generator, dtype=torch.float64).to(target.device) for n in target.shape]
    for _ in range(sweeps):
        for axis, name in enumerate("oij"):
            others = [f for i, f in enumerate(factors) if i != axis]
            gram = (others[0].T @ others[0]) * (others[1].T @ others[1])
            gram.diagonal().add_(1e-12 * gram.diagonal().mean())
            rest = "oij".replace(name, "")
            seen = torch.einsum(f"oij,{rest[0]}r,{rest[1]}r->{name}r", target, *others)
            factors[axis] = torch.linalg.solve(gram, seen.T).T
        for axis in (0, 1):  # scales live in the functions
            size = factors[axis].norm(dim=0).clamp(min=1e-30)
            factors[axis], factors[2] = factors[axis] / size, factors[2] * size
    low.outputs.copy_(factors[0])
    low.inputs.copy_(factors[1])
    low.functions.copy_(factors[2][: low.functions.shape[1]].T)
    if base is not None:
        low.base_share.copy_(factors[2][-1])
    if layer.bias is not None:
        low.bias.copy_(layer.bias)
    return low
