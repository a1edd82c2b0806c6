"""B-splines: knots, Cox-de Boor, the uniform closed form, derivatives and least-squares fits.

Notation, used all through the project: degree k, knots t_0 <= ... <= t_m, and n = m - k basis
functions B_{i,k}, each zero outside [t_i, t_{i+k+1}). A spline is s(x) = sum_i c_i B_{i,k}(x). On
the *base interval* [t_k, t_n] the basis sums to one.

Source: C. de Boor, "A Practical Guide to Splines", rev. ed., 2001, chapters IX and X.
Notebook: notebooks/01_splines.ipynb.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor


def uniform_knots(
    grid_size: int, degree: int, lower: float = -1.0, upper: float = 1.0, dtype=None
) -> Float[Tensor, " knots"]:
    """Equally spaced knots: ``grid_size`` cells over [lower, upper], extended by ``degree`` each side.

    Returns: grid_size + 2 * degree + 1 knots, so grid_size + degree basis functions.
    Raises: ValueError when grid_size < 1, degree < 0 or lower >= upper.
    """
    _check_grid(grid_size, degree, lower, upper)
    step = (upper - lower) / grid_size
    return torch.arange(-degree, grid_size + degree + 1, dtype=dtype or torch.get_default_dtype()) * step + lower


def clamped_knots(breaks: Float[Tensor, " breaks"], degree: int) -> Float[Tensor, " knots"]:
    """Knots whose end values are repeated ``degree`` more times, so that the curve ends on its end coefficients.

    Args: breaks: at least two increasing values; degree: k >= 0.
    Returns: len(breaks) + 2 * degree knots, so len(breaks) - 1 + degree basis functions.
    """
    if degree < 0:
        raise ValueError(f"clamped_knots: degree is {degree}; it must be 0 or more")
    if breaks.numel() < 2 or not bool((breaks[1:] > breaks[:-1]).all()):
        raise ValueError(f"clamped_knots: breaks are {breaks.tolist()}; give at least two increasing values")
    return torch.cat([breaks[:1].expand(degree), breaks, breaks[-1:].expand(degree)])


def basis(
    x: Float[Tensor, "*batch"], knots: Float[Tensor, "*grids knots"], degree: int
) -> Float[Tensor, "*batch functions"]:
    """All B-spline basis functions at x, by the Cox-de Boor recursion.

    B_{i,0}(x) = 1 on [t_i, t_{i+1}), else 0;
    B_{i,k}(x) = (x - t_i) / (t_{i+k} - t_i) B_{i,k-1}(x)
               + (t_{i+k+1} - x) / (t_{i+k+1} - t_{i+1}) B_{i+1,k-1}(x),
    with 0/0 read as 0 where knots repeat. The last non-empty span is closed on the right, so a
    clamped basis still sums to one at its right end. Outside the knots every function is 0; a NaN
    in x gives NaN (degree >= 1).

    Args:
        x: points, any shape.
        knots: non-decreasing, either one grid for all, (m + 1,), or one a feature, (F, m + 1),
            where x is (..., F).
        degree: k >= 0.
    Returns: values in [0, 1], shape x.shape + (m - k,).
    Raises: ValueError when there are fewer than k + 2 knots.
    Source: de Boor (2001), chapter IX, equations (14) and (15).
    """
    if degree < 0 or knots.shape[-1] < degree + 2:
        raise ValueError(
            f"basis: {knots.shape[-1]} knots of degree {degree}; the degree must be 0 or more and a basis"
            f" function of degree k needs k + 2 knots"
        )
    x = x.unsqueeze(-1)
    held = x.clamp(knots[..., :1], knots[..., -1:])  # infinity times the 0 of an empty indicator is not 0
    left, right = knots[..., :-1], knots[..., 1:]
    at_end = (x == knots[..., -1:]) & (right == knots[..., -1:]) & (left < right)
    values = (((x >= left) & (x < right)) | at_end).to(x.dtype)
    for k in range(1, degree + 1):
        rise = _ratio(held - knots[..., : -k - 1], knots[..., k:-1] - knots[..., : -k - 1])
        fall = _ratio(knots[..., k + 1 :] - held, knots[..., k + 1 :] - knots[..., 1:-k])
        values = rise * values[..., :-1] + fall * values[..., 1:]
    return values


def basis_derivative(
    x: Float[Tensor, "*batch"], knots: Float[Tensor, "*grids knots"], degree: int, order: int = 1
) -> Float[Tensor, "*batch functions"]:
    """The ``order``-th derivative in x of every basis function.

    B'_{i,k} = k / (t_{i+k} - t_i) B_{i,k-1} - k / (t_{i+k+1} - t_{i+1}) B_{i+1,k-1}.
    At a knot it is the derivative from the right (from the left at the right end).

    Returns: shape x.shape + (m - k,); zero when order > degree.
    Source: de Boor (2001), chapter X, equation (12).
    """
    if order < 0:
        raise ValueError(f"basis_derivative: order is {order}; it must be 0 or more")
    if order == 0:
        return basis(x, knots, degree)
    if degree == 0:
        return torch.zeros_like(basis(x, knots, 0))
    lower = basis_derivative(x, knots, degree - 1, order - 1)
    first = _ratio(lower[..., :-1] * degree, knots[..., degree:-1] - knots[..., : -degree - 1])
    second = _ratio(lower[..., 1:] * degree, knots[..., degree + 1 :] - knots[..., 1:-degree])
    return first - second


def cardinal(t: Float[Tensor, "*batch"], degree: int) -> Float[Tensor, "*batch"]:
    """The centred cardinal B-spline beta_k: the basis function of unit knot spacing, centred at 0.

    beta_k(t) = 1/k! sum_i (-1)^i C(k+1, i) ((k+1)/2 - i - |t|)_+^k. Even, and exactly 0 for
    |t| >= (k + 1)/2. Folding t to |t| keeps the terms small: the usual one-sided sum of truncated
    powers loses all its digits in float32 on long grids.

    Source: I. J. Schoenberg, "Cardinal Spline Interpolation", 1973, lecture 2.
    """
    t, half = t.abs(), (degree + 1) / 2
    if degree == 0:
        return (t < half).to(t.dtype)
    terms = (
        (-1) ** i * math.comb(degree + 1, i) / math.factorial(degree) * (half - i - t).clamp(min=0) ** degree
        for i in range(degree // 2 + 1)  # for larger i the bracket is never positive
    )
    return sum(terms)


def cardinal_slope(t: Float[Tensor, "*batch"], degree: int) -> Float[Tensor, "*batch"]:
    """The derivative beta_k'(t) = beta_{k-1}(t + 1/2) - beta_{k-1}(t - 1/2); from the right where it jumps (k = 1).

    Source: Schoenberg (1973), lecture 2.
    """
    if degree == 0:
        return torch.zeros_like(t)
    if degree == 1:
        return ((t >= -1) & (t < 0)).to(t.dtype) - ((t >= 0) & (t < 1)).to(t.dtype)
    return cardinal(t + 0.5, degree - 1) - cardinal(t - 0.5, degree - 1)


def uniform_basis(
    x: Float[Tensor, "*batch"], grid_size: int, degree: int, lower: float = -1.0, upper: float = 1.0
) -> Float[Tensor, "*batch functions"]:
    """``basis`` on ``uniform_knots``, in closed form: B_j(x) = beta_k(s - j + (k - 1)/2), s = (x - lower)/h.

    Returns: shape x.shape + (grid_size + degree,).
    """
    _check_grid(grid_size, degree, lower, upper)
    s = (x - lower) * (grid_size / (upper - lower))
    centres = torch.arange(grid_size + degree, dtype=x.dtype, device=x.device) - (degree - 1) / 2
    if degree == 0:  # half-open cells: the centred form would close the wrong side
        values = (s.unsqueeze(-1).floor() == centres - 0.5).to(x.dtype)
        values[..., -1] = torch.where(x == upper, torch.ones_like(x), values[..., -1])
        return values
    return cardinal(s.unsqueeze(-1) - centres, degree)


def pieces(
    knots: Float[Tensor, "grids knots"], degree: int
) -> tuple[Float[Tensor, "grids spans functions powers"], Int[Tensor, "grids spans"]]:
    """The basis as polynomials: on the span [t_j, t_{j+1}), B_{first+r}(x) = sum_p table[j, r, p] u^p.

    u = (x - t_j) / (t_{j+1} - t_j) runs over [0, 1), r = 0..k, and ``first`` is clipped so that first + k is a
    function: towards the ends some of the k + 1 are zero. Empty spans get zeros.

    Args: knots: one row a grid, (F, m + 1), float64 for exact tables.
    Returns: table (F, m, k + 1, k + 1) and first (F, m).
    Raises: ValueError when there are fewer than k + 1 functions.
    Source: de Boor (2001), chapter X (conversion to the pp form).
    """
    spans = knots.shape[-1] - 1
    if spans < 2 * degree + 1:
        raise ValueError(f"pieces: {spans + 1} knots of degree {degree}; give at least {2 * degree + 2}")
    u = (torch.arange(degree + 1, dtype=knots.dtype, device=knots.device) + 0.5) / (degree + 1)
    x = knots[:, :-1, None] + (knots[:, 1:] - knots[:, :-1])[..., None] * u
    values = basis(x.permute(1, 2, 0), knots, degree).permute(2, 0, 1, 3)  # grid, span, point, function
    values = torch.where((knots[:, 1:] > knots[:, :-1])[..., None, None], values, 0.0)
    span = torch.arange(spans, device=knots.device)
    first = (span - degree).clamp(0, spans - 2 * degree - 1)
    index = first[:, None] + torch.arange(degree + 1, device=knots.device)
    nonzero = values.gather(-1, index[None, :, None].expand(*values.shape[:3], -1))
    table = torch.linalg.solve(torch.vander(u, degree + 1, increasing=True), nonzero).transpose(-1, -2)
    return table, first.expand(len(knots), -1)


def evaluate(
    x: Float[Tensor, "*batch"],
    coefficients: Float[Tensor, "functions *channels"],
    knots: Float[Tensor, " knots"],
    degree: int,
    order: int = 0,
) -> Float[Tensor, "*batch_channels"]:
    """The spline s(x) = sum_i c_i B_{i,k}(x), or its ``order``-th derivative.

    Args: coefficients: (n,) for a function, (n, D) for a curve in D dimensions (its control points).
    Returns: x.shape, or x.shape + (D,).
    """
    values = basis_derivative(x, knots, degree, order)
    if values.shape[-1] != coefficients.shape[0]:
        raise ValueError(
            f"evaluate: {coefficients.shape[0]} coefficients for {values.shape[-1]} basis functions"
            f" ({knots.numel()} knots, degree {degree}); give one coefficient a function"
        )
    return torch.tensordot(values, coefficients, dims=1)


def fit(
    x: Float[Tensor, " points"],
    y: Float[Tensor, "points *channels"],
    knots: Float[Tensor, " knots"],
    degree: int,
) -> Float[Tensor, "functions *channels"]:
    """Least-squares coefficients: the minimiser of sum_p |y_p - s(x_p)|^2, of least norm if there are many.

    Returns: (n,) or (n, D), as y is (P,) or (P, D).
    """
    design = basis(x, knots, degree)
    # gelsd (SVD) also answers when some basis function sees no point, where torch's default does not.
    driver = "gelsd" if x.device.type == "cpu" else None
    flat = torch.linalg.lstsq(design, y.reshape(len(x), -1), driver=driver).solution
    return flat.reshape(design.shape[-1], *y.shape[1:])


def greville(knots: Float[Tensor, "*grids knots"], degree: int) -> Float[Tensor, "*grids functions"]:
    """Greville abscissae: the coefficients for which the spline is s(x) = x on the base interval (k >= 1).

    xi_i = (t_{i+1} + ... + t_{i+k}) / k. Source: de Boor (2001), chapter XI.
    """
    if degree < 1:
        raise ValueError(f"greville: degree is {degree}; steps (degree 0) cannot reproduce a line")
    return knots[..., 1:-1].unfold(-1, degree, 1).mean(-1)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator, with x/0 = 0: a basis function on an empty span does not exist."""
    empty = denominator == 0
    return torch.where(empty, 0.0, numerator / torch.where(empty, 1.0, denominator))


def _check_grid(grid_size: int, degree: int, lower: float, upper: float) -> None:
    if grid_size < 1 or degree < 0 or not lower < upper:
        raise ValueError(
            f"spline grid: {grid_size} cells of degree {degree} over [{lower}, {upper}]; give at least 1 cell,"
            f" a degree of 0 or more, and lower < upper"
        )
