"""The sums in plain torch: any device, any floating type, no compiler; memory for a few hundred rows at a time."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kunet.kan.kernels.grid import Grid

ROWS = 512  # tokens expanded at a time; larger buffers leave the cache and pay page faults
PIXELS = 1 << 18  # values (images x channels x pixels) that a convolution expands at a time: small images, or a band


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
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        if torch.is_grad_enabled():  # create_graph: a gradient that can be differentiated again
            (x,) = ctx.saved_tensors
            return torch.autograd.grad(ctx.grid.planes(x), x, gradient, create_graph=True)[0], None
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
    x: Float[Tensor, "B C H W"],
    grid: Grid,
    weight: Float[Tensor, "O I functions kh kw"],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Float[Tensor, "B O H2 W2"]:
    """One conv2d over C (G + k) planes of basis values, a band of an image at a time, expanded again in backward."""
    channels, height, width = x.shape[1:]
    reach = dilation[0] * (weight.shape[-2] - 1) + 1
    rows = (height + 2 * padding[0] - reach) // stride[0] + 1
    step = max(1, PIXELS // (channels * width * stride[0]))
    options = {"stride": stride, "padding": (0, padding[1]), "dilation": dilation, "groups": groups}

    def part(band: Tensor, weight: Tensor, above: int, below: int) -> Tensor:
        planes = _Expand.apply(band.permute(0, 2, 3, 1).contiguous(), grid).flatten(3).permute(0, 3, 1, 2)
        # padding first, as a band that lies in the padding altogether keeps no row of its own
        planes = F.pad(planes, (0, 0, max(above, 0), max(below, 0)))
        planes = planes[:, :, max(-above, 0) : planes.shape[2] - max(-below, 0)]
        return F.conv2d(planes, weight, **options)

    flat, again = weight.flatten(1, 2), torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    images = []
    for image in x.split(max(1, PIXELS // (channels * height * width))):
        bands = []
        for first in range(0, rows, step):
            top = first * stride[0] - padding[0]
            bottom = (min(rows, first + step) - 1) * stride[0] - padding[0] + reach
            # at least one row of the image, even where the kernel sees only padding
            low, high = min(max(top, 0), height - 1), max(min(bottom, height), 1)
            low = min(low, high - 1)
            arguments = (image[:, :, low:high], flat, low - top, bottom - high)
            bands.append(checkpoint(part, *arguments, use_reentrant=False) if again else part(*arguments))
        images.append(torch.cat(bands, 2))
    return torch.cat(images) if images else part(x, flat, padding[0], padding[0])
