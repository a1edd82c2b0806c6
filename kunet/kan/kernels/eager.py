"""The sums in plain torch: any device, any floating type, no compiler; memory for a few hundred rows at a time."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from kunet.kan.kernels.grid import Grid

ROWS = 512  # tokens expanded at a time; larger buffers leave the cache and pay page faults


class _Expand(torch.autograd.Function):
    """x (..., I) -> all basis functions (..., I, G + k), of which k + 1 are computed; keeps x alone for backward."""

    @staticmethod
    def forward(ctx, x: Tensor, grid: Grid) -> Tensor:
        ctx.save_for_backward(x)
        ctx.grid = grid
        start, values, _ = grid.local(x)
        planes = torch.zeros(*x.shape, grid.functions, dtype=x.dtype, device=x.device)
        return planes.scatter_(-1, _indices(start, grid.degree), values)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        start, _, slopes = ctx.grid.local(ctx.saved_tensors[0])
        return (gradient.gather(-1, _indices(start, ctx.grid.degree)) * slopes).sum(-1), None


def _indices(start: Tensor, degree: int) -> Tensor:
    return start[..., None] + torch.arange(degree + 1, device=start.device)


def linear(
    x: Float[Tensor, "rows features"], grid: Grid, weight: Float[Tensor, "outputs features functions"]
) -> Float[Tensor, "rows outputs"]:
    """y = planes(x) W^T as one matrix product a chunk of rows, expanded again in backward (dense form)."""

    def part(rows: Tensor, weight: Tensor) -> Tensor:
        return F.linear(_Expand.apply(rows, grid).flatten(1), weight)

    flat, again = weight.flatten(1), torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if len(x) <= ROWS:
        return part(x, flat)
    chunks = x.split(ROWS)
    return torch.cat([checkpoint(part, c, flat, use_reentrant=False) if again else part(c, flat) for c in chunks])


def conv2d(
    x: Float[Tensor, "B C H W"], grid: Grid, weight: Float[Tensor, "O I functions kh kw"], **convolution
) -> Float[Tensor, "B O H2 W2"]:
    """One conv2d over C (G + k) planes of basis values, an image at a time, expanded again in backward."""

    def part(images: Tensor, weight: Tensor) -> Tensor:
        planes = _Expand.apply(images.permute(0, 2, 3, 1).contiguous(), grid).flatten(3).permute(0, 3, 1, 2)
        return F.conv2d(planes, weight, **convolution)

    flat, again = weight.flatten(1, 2), torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if len(x) <= 1:
        return part(x, flat)
    chunks = x.split(1)
    return torch.cat([checkpoint(part, c, flat, use_reentrant=False) if again else part(c, flat) for c in chunks])
