"""A grid of knots as the kernels see it: where the basis is evaluated, and what happens outside."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kunet import splines

Outside = Literal["zero", "linear", "clamp"]


class Local(NamedTuple):
    """The k + 1 basis functions that may not be zero at each value: functions start, ..., start + k."""

    start: Int[Tensor, "*batch features"]
    values: Float[Tensor, "*batch features nonzero"]
    slopes: Float[Tensor, "*batch features nonzero"]


@dataclass(frozen=True, eq=False)
class Grid:
    """Knots of I features and the choice for inputs outside the base interval [t_k, t_n].

    Args:
        knots: (I, m + 1), non-decreasing.
        degree: k.
        uniform: (lower, upper, cells) when all features share ``splines.uniform_knots`` of these, else None.
        outside: "zero", the spline fades to 0 over its outer knots; "linear", it goes on as its tangent; "clamp",
            it keeps its end value.
    """

    knots: Float[Tensor, "features knots"]
    degree: int
    uniform: tuple[float, float, int] | None
    outside: Outside | str = "zero"

    @property
    def functions(self) -> int:
        """Basis functions a feature."""
        return self.knots.shape[-1] - self.degree - 1

    @cached_property
    def _pieces(self) -> tuple[Tensor, Tensor, Tensor]:
        knots = self.exact_knots(self.knots.detach().double()).contiguous()
        return knots, *splines.pieces(knots, self.degree)

    @cached_property
    def tables(self) -> tuple[Tensor, ...]:
        """The basis as polynomials for the compiled kernel: breaks, coefficients, base intervals, first functions."""
        knots, table, first = self._pieces
        ends = torch.stack([knots[:, self.degree], knots[:, -self.degree - 1]], 1)
        return knots.float(), table.float().contiguous(), ends.float(), first.int().contiguous()

    def reference(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features functions"]:
        """Every basis function at x by Cox-de Boor: the definition that all kernels are held to."""
        knots = self.exact_knots(x)
        if self.degree == 0:  # steps: nothing to go on with but the end value, and comparisons lose a NaN
            inside = x if self.outside == "zero" else x.clamp(knots[..., 0], knots[..., -1])
            return splines.basis(inside, knots, 0) + torch.where(x.isnan(), x, 0.0)[..., None]
        if self.outside == "zero":
            return splines.basis(x, knots, self.degree)
        low, high = knots[..., self.degree], knots[..., -self.degree - 1]
        inside = x.clamp(low, high)
        values = splines.basis(inside, knots, self.degree)
        if self.outside == "linear":
            # the last derivative jumps at a knot: at the upper end the one from inside is meant
            just_inside = torch.where(x >= high, high - 1e-3 * (high - knots[..., -self.degree - 2]), inside)
            at = inside if self.degree > 1 else just_inside
            values = values + (x - inside)[..., None] * splines.basis_derivative(at, knots, self.degree)
        return values

    def planes(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features functions"]:
        """The same values in few tensor operations that torch.compile, export and ONNX can follow."""
        if self.uniform is None or self.degree == 0:
            return self.reference(x)
        lower, upper, cells = self.uniform
        s = (x - lower) * (cells / (upper - lower))
        at = s if self.outside == "zero" else s.clamp(0, cells)
        centres = torch.arange(self.functions, dtype=x.dtype, device=x.device) - (self.degree - 1) / 2
        values = splines.cardinal(at[..., None] - centres, self.degree)
        if self.outside == "linear":
            values = values + (s - at)[..., None] * splines.cardinal_slope(
                self._settle(at)[..., None] - centres, self.degree
            )
        return values

    def local(self, x: Float[Tensor, "*batch features"]) -> Local:
        """What is not zero, and its slope in x: a few operations for each of k + 1 functions, whatever G is."""
        if self.uniform is None:
            return self._local_pieces(x)
        lower, upper, cells = self.uniform
        k, inverse_step = self.degree, cells / (upper - lower)
        s = (x - lower) * inverse_step
        at = s if self.outside == "zero" else s.clamp(0, cells)
        cell = at.floor().nan_to_num(0.0).clamp(0, cells - 1)
        t = (at - cell)[..., None] - (torch.arange(k + 1, dtype=x.dtype, device=x.device) - (k - 1) / 2)
        if k == 0:
            inside = (at >= cell) & ((at < cell + 1) | (at == cells))
            values = inside.to(x.dtype)[..., None] + torch.where(x.isnan(), x, 0.0)[..., None]
            return Local(cell.long(), values, torch.zeros_like(values))
        before = 0.5 * (at >= cells)[..., None] if k == 1 and self.outside != "zero" else 0  # see _settle
        values, slopes = splines.cardinal(t, k), splines.cardinal_slope(t - before, k)
        beyond = (s - at)[..., None]
        if self.outside == "linear":
            values = values + beyond * slopes
        elif self.outside == "clamp":
            slopes = torch.where(beyond != 0, 0.0, slopes)
        return Local(cell.long(), values, slopes * inverse_step)

    def _local_pieces(self, x: Tensor) -> Local:
        knots = self.exact_knots(x)
        _, table, first = self._pieces
        table, k = table.to(x.dtype), self.degree
        low, high = knots[:, k], knots[:, -k - 1]
        at = x if self.outside == "zero" else x.clamp(low, high)
        columns = at.reshape(-1, len(knots)).T.contiguous()
        piece = torch.searchsorted(knots, columns, right=True) - 1
        last = last_piece(knots) if self.outside == "zero" else last_piece(knots[:, : len(knots[0]) - k])
        piece = piece.clamp(min=0).minimum(last[:, None])
        row = torch.arange(len(knots), device=x.device)[:, None]
        left, width = knots[row, piece], knots[row, piece + 1] - knots[row, piece]
        u = ((columns - left) / width)[..., None]
        coefficients = table[row, piece]  # (I, N, function, power)
        values = slopes = torch.zeros_like(coefficients[..., 0])
        for power in range(k, -1, -1):
            slopes = slopes * u + values
            values = values * u + coefficients[..., power]
        inside = ((columns >= knots[:, :1]) & (columns <= knots[:, -1:])) | columns.isnan()
        values = torch.where(inside[..., None], values, 0.0)
        slopes = torch.where(inside[..., None], slopes / width[..., None], 0.0)
        shape = lambda t: t.transpose(0, 1).reshape(*x.shape, *t.shape[2:])
        start, values, slopes = shape(first[row, piece]), shape(values), shape(slopes)
        beyond = (x - at)[..., None]
        if self.outside == "linear":
            values = values + beyond * slopes
        elif self.outside == "clamp":
            slopes = torch.where(beyond != 0, 0.0, slopes)
        return Local(start, values, slopes)

    def _settle(self, at: Tensor) -> Tensor:
        """For degree 1, whose slope jumps at a knot: the upper end belongs to the last cell."""
        cells = self.uniform[2]
        return torch.where(at >= cells, cells - 0.5, at) if self.degree == 1 else at

    def exact_knots(self, x: Tensor) -> Float[Tensor, "features knots"]:
        """The knots in x's precision: exact for a uniform grid, even when the buffer was rounded to float32."""
        if self.uniform is None:
            return self.knots.to(x.dtype)
        lower, upper, cells = self.uniform
        knots = splines.uniform_knots(cells, self.degree, lower, upper, dtype=x.dtype).to(x.device)
        return knots.expand(len(self.knots), -1)


def last_piece(knots: Tensor) -> Tensor:
    """Index of each feature's last piece of positive width."""
    positive = knots[:, 1:] > knots[:, :-1]
    index = torch.arange(positive.shape[1], device=knots.device)
    return torch.where(positive, index, -1).amax(1)


def traced_gradients(y: Tensor, inputs: tuple[Tensor, ...], needed: tuple[bool, ...], g: Tensor) -> list[Tensor | None]:
    """Gradients of y that can be differentiated again, None where not needed: for the backward of other kernels."""
    wanted = [tensor for tensor, need in zip(inputs, needed) if need]
    found = iter(torch.autograd.grad(y, wanted, g, create_graph=True))
    return [next(found) if need else None for need in needed]
