"""What KANLinear and KANConv2d share: edges that are splines (or another basis), their grid, and its changes."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kunet import splines
from kunet.kan import bases, kernels
from kunet.kan.kernels import Grid, Kernel, Outside


class KANLayer(nn.Module):
    """phi(x) = w base(x) + a sum_j c_j B_j(x) on every edge; a subclass says how edges are summed.

    Weights are laid out (outputs, inputs, functions, *taps): ``spline_weight`` holds c, ``base_weight`` w and
    ``spline_scaler`` a, the last two without the functions' axis.
    Buffer: ``knots`` (inputs, G + 2k + 1), one row a feature, so that grids may adapt to each.
    """

    def __init__(
        self,
        features: int,
        weights: tuple[int, int, tuple[int, ...]],
        grid_size: int,
        degree: int,
        grid_range: tuple[float, float],
        base: Callable[[Tensor], Tensor] | None,
        scaler: bool,
        bias: bool,
        basis: str,
        outside: Outside | str,
        kernel: Kernel | str,
    ):
        super().__init__()
        name = type(self).__name__
        knots = splines.uniform_knots(grid_size, degree, *grid_range)
        check_choices(name, outside, kernel)
        if basis not in bases.BASES:
            raise ValueError(f"{name}: basis {basis!r} is not known; choose one of {', '.join(bases.BASES)}")
        self.degree, self.base, self.basis, self.outside, self.kernel = degree, base, basis, outside, kernel
        self._uniform: tuple[float, float, int] | None = (*map(float, grid_range), grid_size)
        self._grid: Grid | None = None
        self.register_buffer("knots", knots.repeat(features, 1))
        outputs, inputs, taps = weights
        self.spline_weight = nn.Parameter(torch.empty(outputs, inputs, grid_size + degree, *taps))
        self.base_weight = nn.Parameter(torch.empty(outputs, inputs, *taps)) if base else None
        self.spline_scaler = nn.Parameter(torch.empty(outputs, inputs, *taps)) if scaler else None
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None
        self.register_buffer("edge_mask", None)
        self.reset_parameters()

    @property
    def grid_size(self) -> int:
        """G, cells of the grid."""
        return self.knots.shape[1] - 2 * self.degree - 1

    @property
    def grid_range(self) -> tuple[float, float]:
        """[a, b], the least and the largest value that any feature's grid covers."""
        if self._uniform:
            return self._uniform[:2]
        return float(self.knots[:, self.degree].min()), float(self.knots[:, -self.degree - 1].max())

    @property
    def uniform(self) -> bool:
        """Whether all features share one grid of equal cells (which the closed form needs)."""
        return self._uniform is not None

    @property
    def grid(self) -> Grid | bases.Basis:
        """The grid (or other basis) as the kernels take it."""
        if self.basis != "bspline":
            return bases.BASES[self.basis](self.grid_size, self.degree, self.grid_range)
        if torch.compiler.is_compiling():
            return Grid(self.knots, self.degree, self._uniform, self.outside)
        if self._grid is None or self._grid.knots is not self.knots or self._grid.outside != self.outside:
            self._grid = Grid(self.knots, self.degree, self._uniform, self.outside)
        return self._grid

    def set_knots(self, knots: Float[Tensor, "inputs knots"], uniform: tuple[float, float, int] | None = None) -> None:
        """Replace the grid, weights not: ``kunet.kan.grids`` is what keeps the function.

        Args: uniform: (lower, upper, cells) where the knots are ``splines.uniform_knots`` of these.
        Raises: ValueError on knots that decrease, or too few of them.
        """
        if knots.shape[0] != len(self.knots) or knots.shape[1] < 2 * self.degree + 2:
            raise ValueError(
                f"{type(self).__name__}: knots are {tuple(knots.shape)}; give one row for each of {len(self.knots)}"
                f" features, of {2 * self.degree + 2} or more"
            )
        if not bool((knots[:, 1:] >= knots[:, :-1]).all()) or not bool(
            (knots[:, -self.degree - 1] > knots[:, self.degree]).all()
        ):
            raise ValueError(f"{type(self).__name__}: knots must not decrease, and must span more than a point")
        self.knots = knots.to(self.knots, copy=True)
        self._uniform, self._grid = uniform, None

    def reset_parameters(self) -> None:
        """A linear layer's usual start for the base; a small random spline (or a random slope without a base)."""
        bound = 1 / math.sqrt(self.spline_weight[0, :, 0].numel())
        with torch.no_grad():
            if self.base_weight is None:
                slope = torch.empty_like(self.spline_weight[:, :, :1]).uniform_(-bound, bound)
                line = self._line().view(1, 1, -1, *[1] * (self.spline_weight.dim() - 3))
                self.spline_weight.copy_(slope * line)
            else:
                self.base_weight.uniform_(-bound, bound)
                self.spline_weight.zero_()
            self.spline_weight.add_(torch.randn_like(self.spline_weight) * 0.1 * bound)
            if self.spline_scaler is not None:
                self.spline_scaler.fill_(1.0)
            if self.bias is not None:
                self.bias.zero_()

    def _line(self) -> Tensor:
        """Coefficients of the identity on the grid."""
        if self.basis == "bspline":
            middles = (self.knots[0, 1:] + self.knots[0, :-1]) / 2
            return splines.greville(self.knots[0], self.degree) if self.degree else middles
        x = torch.linspace(*self.grid_range, 8 * self.spline_weight.shape[2], dtype=torch.float64)
        return torch.linalg.lstsq(self.grid.planes(x[:, None])[:, 0], x, driver="gelsd").solution.to(self.knots)

    def bases(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features functions"]:
        """B_j(x_i) for all features i and functions j: (..., I, G + k)."""
        return self.grid.reference(exact(x))

    def coefficients(self) -> Tensor:
        """a c: the control values of every edge, laid out as ``spline_weight``; 0 for pruned edges."""
        c = self.spline_weight
        if self.spline_scaler is not None:
            c = c * self.spline_scaler.unsqueeze(2)
        return c if self.edge_mask is None else c * self.edge_mask.unsqueeze(2)

    def base_coefficients(self) -> Tensor | None:
        """w, laid out as ``base_weight``; 0 for pruned edges."""
        if self.base_weight is None or self.edge_mask is None:
            return self.base_weight
        return self.base_weight * self.edge_mask

    def edge(
        self, x: Float[Tensor, " points"], out_feature: int, in_feature: int, tap: tuple[int, ...] = ()
    ) -> Float[Tensor, " points"]:
        """One learned edge, phi_{o,i}(x), to look at or to check against; ``tap`` (row, column) of a kernel."""
        features = x[:, None].expand(-1, len(self.knots))
        at = (out_feature, in_feature)
        coefficients = self.coefficients()[at][(slice(None), *tap)]
        y = self.bases(features)[:, self._feature(out_feature, in_feature)] @ coefficients
        return y if self.base_weight is None else y + self.base_coefficients()[(*at, *tap)] * self.base(x)

    def features_of_inputs(self) -> Int[Tensor, "outputs inputs"]:
        """The row of ``knots`` that belongs to each edge: its input, counted over all groups."""
        return torch.arange(len(self.knots)).expand(len(self.spline_weight), -1)

    def _feature(self, out_feature: int, in_feature: int) -> int:
        return int(self.features_of_inputs()[out_feature, in_feature])

    def _outside_share(self, x: Float[Tensor, "*batch features"]) -> float:
        lower, upper = self.knots[:, self.degree], self.knots[:, -self.degree - 1]
        return float(((x < lower) | (x > upper)).float().mean())

    def _load_from_state_dict(self, state: dict, prefix: str, *rest) -> None:
        """Take over the grid of the saved layer, whatever its size: load before an optimiser is made."""
        knots = state.get(prefix + "knots")
        if knots is not None and knots.dim() == 2 and len(knots) == len(self.knots):
            size = knots.shape[1] - self.degree - 1
            for name, parameter in self.named_parameters():
                saved = state.get(prefix + name)
                if saved is not None and saved.dim() == parameter.dim() and saved.shape != parameter.shape:
                    if name.endswith(("spline_weight", "spline_weight.original")) and saved.shape[2] == size:
                        parameter.data = parameter.new_empty(*parameter.shape[:2], size, *parameter.shape[3:])
                        parameter.grad = None
            for name, buffer in self.named_buffers():
                if name.endswith("gaps") and prefix + name in state:
                    buffer.data = buffer.new_empty(state[prefix + name].shape)
            fits = any(
                n.endswith(("spline_weight", "spline_weight.original"))
                and p.shape[2] in (size, size - 1)
                and prefix + n in state
                for n, p in self.named_parameters()
            )
            if fits and not torch.equal(knots.to(self.knots), self.knots):
                self.set_knots(knots, uniform_of(knots, self.degree, self.grid_range))
        if prefix + "edge_mask" in state:
            self.edge_mask = torch.empty_like(state[prefix + "edge_mask"], device=self.knots.device)
        super()._load_from_state_dict(state, prefix, *rest)

    def extra_repr(self) -> str:
        lower, upper = (round(v, 4) for v in self.grid_range)
        words = [f"grid_size={self.grid_size}, degree={self.degree}, grid_range=({lower}, {upper})"]
        words += [f"basis={self.basis}"] * (self.basis != "bspline") + ["adaptive grid"] * (not self.uniform)
        words += [f"outside={self.outside}"] * (self.outside != "zero") + ["no base"] * (self.base is None)
        if self.edge_mask is not None:
            words.append(f"{int(self.edge_mask.sum())} of {self.edge_mask.numel()} edges")
        return ", ".join(words)


def check_choices(name: str, outside: str, kernel: str) -> None:
    """Raises: ValueError on an unknown one."""
    if outside not in ("zero", "linear", "clamp"):
        raise ValueError(f"{name}: outside is {outside!r}; choose 'zero', 'linear' or 'clamp'")
    if kernel not in kernels.KERNELS:
        raise ValueError(f"{name}: kernel {kernel!r} is not known; choose one of {', '.join(kernels.KERNELS)}")


def as_linear_would(y: Tensor, x: Tensor) -> Tensor:
    """y, computed in float32 at least, in the type that torch.nn.Linear would return for x."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        return y.to(torch.get_autocast_dtype(kind))
    return y.to(x.dtype)


def exact(x: Tensor) -> Tensor:
    """Splines are computed in float32 at least: a bfloat16 has eight bits to say where in the grid it lies."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def uniform_of(
    knots: Tensor, degree: int, likely: tuple[float, float] = (-1.0, 1.0)
) -> tuple[float, float, int] | None:
    """(lower, upper, cells) when all rows are one uniform grid, as far as the knots' precision can tell.

    Knots are rounded, so several ranges fit: the ``likely`` one, or else one of few digits, if it gives these very
    knots, so that a layer that was saved and loaded computes the same bits.
    """
    row, cells = knots[0].double(), knots.shape[1] - 2 * degree - 1
    lower, upper = float(row[degree]), float(row[-degree - 1])
    if not upper > lower:
        return None
    for a, b in (likely, (float(f"{lower:.6g}"), float(f"{upper:.6g}"))):
        made = [splines.uniform_knots(cells, degree, a, b, dtype).to(knots) for dtype in (None, torch.float64)]
        if b > a and any(torch.equal(row.expand_as(knots), knots) for row in made):
            return a, b, cells
    even = splines.uniform_knots(cells, degree, lower, upper, dtype=torch.float64).to(knots.device)
    close = (knots.double() - even).abs().max() <= 4e-7 * (abs(lower) + abs(upper) + float(even[-1] - even[0]))
    return (lower, upper, cells) if bool(close) else None
