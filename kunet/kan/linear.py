"""KANLinear: a fully connected layer whose every edge is a learnable one-dimensional function."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kunet import splines


class KANLinear(nn.Module):
    """y_o = sum_i phi_{o,i}(x_i) [+ bias_o], where phi_{o,i}(x) = w_{oi} base(x) + a_{oi} sum_j c_{oij} B_j(x).

    The B_j are the grid_size + degree B-splines of the given degree on a uniform grid over
    ``grid_range``. **Outside the grid the spline fades to 0 within ``degree`` cells** and only the base term is
    left: put a LayerNorm before the layer and choose a range that holds its values
    (``outside_share`` tells how many are out).

    Args:
        in_features, out_features: I and O.
        grid_size: G, cells over grid_range.
        degree: k of the splines ("spline order" in KAN code).
        grid_range: [a, b] in the units of x.
        base: activation of the base term, or None for splines alone.
        scaler: also learn a_{oi}, one factor an edge on the spline (the common implementations'
            "standalone scale"); without it a_{oi} = 1.
        bias: learn one constant an output.

    Shapes: x (..., I) -> y (..., O). Parameters: ``spline_weight`` (O, I, G + k) holds c,
    ``base_weight`` (O, I) w, ``spline_scaler`` (O, I) a. Buffer: ``knots`` (I, G + 2k + 1).
    Precision: the basis is computed in float32 at least, whatever autocast says.
    Raises: ValueError on sizes below 1, an empty range, or x of the wrong width.
    Source: Z. Liu et al., "KAN: Kolmogorov-Arnold Networks", arXiv 2404.19756, equations 2.10-2.12.
    Notebook: notebooks/02_kan.ipynb.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        grid_size: int = 5,
        degree: int = 3,
        grid_range: tuple[float, float] = (-1.0, 1.0),
        base: Callable[[Tensor], Tensor] | None = F.silu,
        scaler: bool = False,
        bias: bool = False,
    ):
        super().__init__()
        if in_features < 1 or out_features < 1:
            raise ValueError(f"KANLinear: {in_features} -> {out_features} features; both must be 1 or more")
        knots = splines.uniform_knots(grid_size, degree, *grid_range)
        self.in_features, self.out_features, self.grid_size, self.degree = in_features, out_features, grid_size, degree
        self.grid_range, self.base = tuple(grid_range), base
        self.register_buffer("knots", knots.repeat(in_features, 1))
        self.spline_weight = nn.Parameter(torch.empty(out_features, in_features, grid_size + degree))
        self.base_weight = nn.Parameter(torch.empty(out_features, in_features)) if base else None
        self.spline_scaler = nn.Parameter(torch.empty(out_features, in_features)) if scaler else None
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A linear layer's usual start for the base; a small random spline (or a random slope without a base)."""
        bound = 1 / math.sqrt(self.in_features)
        with torch.no_grad():
            if self.base_weight is None:
                slope = torch.empty(self.out_features, self.in_features, 1).uniform_(-bound, bound)
                lines = splines.greville(self.knots, self.degree) if self.degree else 0.0
                self.spline_weight.copy_(slope * lines)
            else:
                self.base_weight.uniform_(-bound, bound)
                self.spline_weight.zero_()
            self.spline_weight.add_(torch.randn_like(self.spline_weight) * 0.1 * bound)
            if self.spline_scaler is not None:
                self.spline_scaler.fill_(1.0)
            if self.bias is not None:
                self.bias.zero_()

    def bases(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features functions"]:
        """B_j(x_i) for all features i and functions j: (..., I, G + k)."""
        x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        return splines.basis(x, self.knots.to(x.dtype), self.degree)

    def coefficients(self) -> Float[Tensor, "outputs features functions"]:
        """a_{oi} c_{oij}: the control values of every edge's spline, (O, I, G + k)."""
        return self.spline_weight if self.spline_scaler is None else self.spline_weight * self.spline_scaler[..., None]

    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch outputs"]:
        if x.shape[-1] != self.in_features:
            raise ValueError(
                f"KANLinear: x is {tuple(x.shape)}; its last size must be in_features = {self.in_features}"
            )
        y = F.linear(self.bases(x).flatten(-2), self.coefficients().flatten(1), self.bias)
        return y if self.base_weight is None else y + F.linear(self.base(x), self.base_weight)

    def edge(self, x: Float[Tensor, " points"], out_feature: int, in_feature: int) -> Float[Tensor, " points"]:
        """One learned edge, phi_{o,i}(x), to look at or to check the layer against."""
        y = splines.evaluate(x, self.coefficients()[out_feature, in_feature], self.knots[in_feature], self.degree)
        return y if self.base_weight is None else y + self.base_weight[out_feature, in_feature] * self.base(x)

    def outside_share(self, x: Float[Tensor, "*batch features"]) -> float:
        """Share of the values of x, in [0, 1], that lie outside grid_range."""
        lower, upper = self.grid_range
        return float(((x < lower) | (x > upper)).float().mean())

    def extra_repr(self) -> str:
        grid = f"grid_size={self.grid_size}, degree={self.degree}, grid_range={self.grid_range}"
        return f"{self.in_features}, {self.out_features}, {grid}"
