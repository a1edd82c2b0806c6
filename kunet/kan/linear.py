"""KANLinear: a fully connected layer whose every edge is a learnable one-dimensional function."""

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kunet.kan import kernels
from kunet.kan.kernels import Kernel, Outside
from kunet.kan.layer import KANLayer, as_linear_would, exact


class KANLinear(KANLayer):
    """y_o = sum_i phi_{o,i}(x_i) [+ bias_o], where phi_{o,i}(x) = w_{oi} base(x) + a_{oi} sum_j c_{oij} B_j(x).

    The B_j are the grid_size + degree B-splines of the given degree on a uniform grid over ``grid_range``
    (``kunet.kan.grids`` refines it or adapts it to data). What happens **outside the grid** is a choice:

    - ``outside="zero"``, as in the literature: the spline fades to 0 within ``degree`` cells and only the base is left;
    - ``"linear"``: each spline goes on as its tangent; ``"clamp"``: it keeps its end value.

    Put a LayerNorm before the layer and choose a range that holds its values; ``outside_share`` tells how many are out.

    Args:
        in_features, out_features: I and O.
        grid_size: G, cells over grid_range.
        degree: k of the splines, 0 or more ("spline order" in KAN code).
        grid_range: [a, b] in the units of x.
        base: activation of the base term, or None for splines alone.
        scaler: also learn a_{oi}, one factor an edge on the spline (the common implementations'
            "standalone scale"); without it a_{oi} = 1.
        bias: learn one constant an output.
        basis: "bspline", or for comparison one of ``kunet.kan.bases.BASES`` with as many functions.
        outside: see above; of B-splines only.
        kernel: how it is computed, see ``kunet.kan.kernels``; the result is the same.

    Shapes: x (..., I) -> y (..., O). Parameters: ``spline_weight`` (O, I, G + k) holds c,
    ``base_weight`` (O, I) w, ``spline_scaler`` (O, I) a. Buffer: ``knots`` (I, G + 2k + 1).
    State dicts load into a layer with another grid: it takes the saved one over.
    Precision: the basis is computed in float32 at least, whatever autocast says.
    Raises: ValueError on sizes below 1, an empty range, an unknown choice, or x of the wrong width.
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
        basis: str = "bspline",
        outside: Outside | str = "zero",
        kernel: Kernel | str = "auto",
    ):
        if in_features < 1 or out_features < 1:
            raise ValueError(f"KANLinear: {in_features} -> {out_features} features; both must be 1 or more")
        weights = (out_features, in_features, ())
        super().__init__(
            in_features, weights, grid_size, degree, grid_range, base, scaler, bias, basis, outside, kernel
        )
        self.in_features, self.out_features = in_features, out_features

    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch outputs"]:
        if x.shape[-1] != self.in_features:
            raise ValueError(
                f"KANLinear: x is {tuple(x.shape)}; its last size must be in_features = {self.in_features}"
            )
        y = as_linear_would(kernels.linear(exact(x), self.grid, exact(self.coefficients()), self.kernel), x)
        if self.bias is not None:
            y = y + self.bias
        return y if self.base_weight is None else y + F.linear(self.base(x), self.base_coefficients())

    def outside_share(self, x: Float[Tensor, "*batch features"]) -> float:
        """Share of the values of x, in [0, 1], that lie outside their feature's grid."""
        return self._outside_share(x)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {super().extra_repr()}"
