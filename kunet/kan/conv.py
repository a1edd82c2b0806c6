"""KANConv2d: a convolution whose every tap is a learnable one-dimensional function of its pixel."""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from kunet.kan import kernels
from kunet.kan.kernels import Kernel, Outside
from kunet.kan.layer import KANLayer, as_linear_would, exact

Pair = int | tuple[int, int]
Padding = Literal["zeros", "reflect", "replicate", "circular", "bases"]


class KANConv2d(KANLayer):
    """y[b, o, h, w] = sum over channels i of the group and taps (p, q) of phi_{o,i,p,q}(x[b, i, h', w']) [+ bias_o].

    h' = stride h + dilation p - padding, as in torch's conv2d; phi as in ``KANLinear``, whose arguments mean the
    same here. A pixel is expanded into its basis values once, not once a tap.

    **At the border** ``padding_mode`` decides. The first four are torch's: they pad x, and a padded 0 gives
    phi(0), which is not 0 in general. This is the default because it is what "zero padding" means for the formula.
    "bases" pads the basis values (and the base) with zeros: a tap outside contributes nothing. Public KAN
    convolutions do either, seldom saying which; only the border differs.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups: as torch.nn.Conv2d's (ints or
            pairs); groups = in_channels makes it depthwise.
        padding_mode: see above.

    Shapes: x (B, C, H, W) -> y (B, O, H2, W2). Parameters: ``spline_weight`` (O, C / groups, G + k, kh, kw),
    ``base_weight`` and ``spline_scaler`` (O, C / groups, kh, kw). Buffer: ``knots`` (C, G + 2k + 1).
    Raises: ValueError on sizes below 1, groups that do not divide, an unknown choice, or x of the wrong shape.
    Source: A. D. Bodner et al., "Convolutional Kolmogorov-Arnold Networks", arXiv 2406.13155.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        grid_size: int = 5,
        degree: int = 3,
        grid_range: tuple[float, float] = (-1.0, 1.0),
        base: Callable[[Tensor], Tensor] | None = F.silu,
        scaler: bool = False,
        bias: bool = False,
        padding_mode: Padding | str = "zeros",
        basis: str = "bspline",
        outside: Outside | str = "zero",
        kernel: Kernel | str = "auto",
    ):
        pair = lambda value: (value, value) if isinstance(value, int) else tuple(value)
        size, stride, padding, dilation = map(pair, (kernel_size, stride, padding, dilation))
        if min(in_channels, out_channels, groups, *size, *stride, *dilation) < 1 or min(padding) < 0:
            raise ValueError(
                f"KANConv2d: {in_channels} -> {out_channels} channels, kernel {size}, stride {stride}, padding"
                f" {padding}, dilation {dilation}, {groups} groups; padding must be 0 or more, the others 1 or more"
            )
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"KANConv2d: {in_channels} -> {out_channels} channels in {groups} groups; both must be multiples of it"
            )
        if padding_mode not in ("zeros", "reflect", "replicate", "circular", "bases"):
            raise ValueError(
                f"KANConv2d: padding_mode is {padding_mode!r}; choose zeros, reflect, replicate, circular or bases"
            )
        weights = (out_channels, in_channels // groups, size)
        super().__init__(
            in_channels, weights, grid_size, degree, grid_range, base, scaler, bias, basis, outside, kernel
        )
        self.in_channels, self.out_channels, self.groups, self.padding_mode = (
            in_channels, out_channels, groups, padding_mode,
        )  # fmt: skip
        self.kernel_size, self.stride, self.padding, self.dilation = size, stride, padding, dilation

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B O H2 W2"]:
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"KANConv2d: x is {tuple(x.shape)}; it must be (B, {self.in_channels}, H, W)")
        settings = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}
        if self.padding_mode != "bases" and any(self.padding):
            (top, left), mode = self.padding, self.padding_mode.replace("zeros", "constant")
            x, settings["padding"] = F.pad(x, (left, left, top, top), mode=mode), (0, 0)
        reach = [d * (k - 1) + 1 - 2 * p for d, k, p in zip(self.dilation, self.kernel_size, settings["padding"])]
        if x.shape[2] < reach[0] or x.shape[3] < reach[1]:
            raise ValueError(f"KANConv2d: x is {tuple(x.shape)} after padding; the kernel needs {reach[0]}x{reach[1]}")
        y = kernels.conv2d(exact(x), self.grid, exact(self.coefficients()), self.kernel, **settings)
        y = as_linear_would(y, x)
        if self.bias is not None:
            y = y + self.bias[:, None, None]
        return y if self.base_weight is None else y + F.conv2d(self.base(x), self.base_coefficients(), **settings)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "KANConv2d":
        """``to``, as torch has it; memory_format=channels_last is for four axes, and is shown four."""
        four = lambda t: fn(t.flatten(1, 2)).unflatten(1, t.shape[1:3]) if t.dim() == 5 else fn(t)
        return super()._apply(four, recurse)

    def outside_share(self, x: Float[Tensor, "B C H W"]) -> float:
        """Share of the values of x, in [0, 1], that lie outside their channel's grid."""
        return self._outside_share(x.movedim(1, -1))

    def features_of_inputs(self) -> Int[Tensor, "outputs inputs"]:
        """The row of ``knots`` (input channel) that belongs to each edge."""
        members = self.in_channels // self.groups
        group = torch.arange(self.out_channels) // (self.out_channels // self.groups)
        return group[:, None] * members + torch.arange(members)

    def extra_repr(self) -> str:
        shape = f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding} ({self.padding_mode})"
        more = f"dilation={self.dilation}, groups={self.groups}"
        return f"{self.in_channels}, {self.out_channels}, {shape}, {more}, {super().extra_repr()}"
