"""Change a layer's grid and keep its functions: refine, extend, move, adapt to data; fit edges to data.

Coefficients on a new grid are R c, with one small matrix R a feature, solved once: the least-squares match of
the new basis to the old one, at many points, in float64. No data are needed, and where the new space holds the old
one (a refined grid) the match is exact. Because R acts on c alone, factors on top of c (``spline_scaler``) stay
what they are.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from kunet import distributed, splines
from kunet.kan.kernels import Grid
from kunet.kan.layer import KANLayer


def refine(layer: KANLayer, grid_size: int, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Cut the cells of the grid into smaller ones, in place ("grid extension"); the same functions on the same range.

    Exact when grid_size is a multiple of the old one, else the nearest splines on the new grid. The parameter stays
    the same object with another shape, so the optimiser keeps it; its moments no longer fit and are dropped. Wrap a
    DistributedDataParallel model anew.

    Args: grid_size: the new G; optimizer: the one that trains the layer, if any.
    Raises: ValueError when grid_size is below the layer's, or the layer has another basis than B-splines.
    Source: Z. Liu et al., arXiv 2404.19756, section 2.4 (there by least squares on data); W. Boehm, "Inserting new
        knots into B-spline curves", 1980.
    """
    if grid_size < layer.grid_size:
        raise ValueError(f"refine: {grid_size} cells for a grid of {layer.grid_size}; give as many or more")
    if layer.uniform:
        lower, upper = layer.grid_range
        move(layer, lower, upper, grid_size, optimizer)
        return
    k = layer.degree
    breaks = layer.knots[:, k : layer.knots.shape[1] - k].double()
    old = torch.linspace(0, 1, breaks.shape[1], dtype=torch.float64)
    regrid(
        layer, _with_ends(_interpolate(torch.linspace(0, 1, grid_size + 1).double(), old, breaks), k), None, optimizer
    )


def move(
    layer: KANLayer,
    lower: float,
    upper: float,
    grid_size: int | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """A uniform grid over another range, in place: where the ranges meet, the nearest splines to the old ones.

    Raises: ValueError on an empty range or grid.
    """
    cells = layer.grid_size if grid_size is None else grid_size
    knots = splines.uniform_knots(cells, layer.degree, lower, upper, dtype=torch.float64)
    regrid(layer, knots.repeat(len(layer.knots), 1), (float(lower), float(upper), cells), optimizer)


@torch.no_grad()
def adapt(
    layer: KANLayer,
    x: Float[Tensor, "*batch features"],
    uniform_share: float = 0.1,
    margin: float = 0.01,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Put knots where the data are, in place: each feature's breaks at quantiles of x, mixed with equal steps.

    Call it seldom, early, and not in the last part of training: the functions change where the new grid is coarser.
    Under torch.distributed every rank must call it; their quantiles are averaged, so that all get the same grid.

    Args:
        x: inputs as the layer sees them (features last), 2 rows or more.
        uniform_share: 1 for equal steps over the range of x, 0 for quantiles alone.
        margin: how far to go beyond the data, as a share of their range.
    Raises: ValueError on shares outside [0, 1], too few rows, or another basis than B-splines.
    Source: Z. Liu et al., arXiv 2404.19756, section 2.2 (grid update).
    """
    rows = x.detach().reshape(-1, x.shape[-1]).double()
    if len(rows) < 2 or not 0 <= uniform_share <= 1 or margin < 0 or not bool(rows.isfinite().all()):
        raise ValueError(
            f"adapt: {len(rows)} rows, uniform_share {uniform_share}, margin {margin}; give two finite rows or more,"
            f" a share in [0, 1], a margin of 0 or more"
        )
    steps = torch.linspace(0, 1, layer.grid_size + 1, dtype=torch.float64, device=rows.device)
    quantiles = torch.quantile(rows[:: -(-len(rows) // 100_000)], steps, dim=0).T.contiguous()
    quantiles = distributed.mean(quantiles)
    low, high = quantiles[:, :1], quantiles[:, -1:]
    span = torch.maximum(high - low, 1e-3 * (1 + high.abs()))  # a constant feature has none
    low, span = low - margin * span, (1 + 2 * margin) * span
    even = low + span * steps
    quantiles[:, :1], quantiles[:, -1:] = low, low + span
    breaks = uniform_share * even + (1 - uniform_share) * quantiles
    # Quantiles of repeated values coincide: keep a little of the even steps in every cell
    breaks = 0.999 * breaks + 0.001 * even
    regrid(layer, _with_ends(breaks, layer.degree), None, optimizer)


@torch.no_grad()
def regrid(
    layer: KANLayer,
    knots: Float[Tensor, "features knots"],
    uniform: tuple[float, float, int] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Replace the knots, in place, with the nearest splines to the old ones over the new base interval.

    Raises: ValueError for knots that decrease, or a layer of another basis or of constrained weights.
    """
    _check(layer, "regrid")
    knots = knots.to(layer.knots)  # what the layer will hold, not what was asked for
    change = transfer(layer.grid, Grid(knots.double(), layer.degree, uniform, layer.outside)).to(layer.spline_weight)
    weight, groups = layer.spline_weight.data, len(layer.knots) // layer.spline_weight.shape[1]
    layer.set_knots(knots, uniform)
    grouped, change = weight.unflatten(0, (groups, -1)), change.unflatten(0, (groups, -1))
    # The same parameter in another shape. A loss that is still held keeps the old shape's gradient node alive; data
    # of another type in between make torch forget it. Contiguous, as a loaded layer is: fused optimisers pair a
    # parameter with its moments by place in memory.
    changed = torch.einsum("goij...,ginj->goin...", grouped, change).flatten(0, 1).contiguous()
    if changed.shape == weight.shape:  # nothing to forget, and DDP's hooks stay
        weight.copy_(changed)
    else:
        layer.spline_weight.data = weight.new_empty(0, dtype=torch.float16)
        layer.spline_weight.data = changed
    layer.spline_weight.grad = None
    if optimizer is not None:
        optimizer.state.pop(layer.spline_weight, None)


def transfer(old: Grid, new: Grid) -> Float[Tensor, "features new_functions old_functions"]:
    """R with c_new = R c_old: the new basis nearest to the old one on the new base interval, float64.

    Both of one degree. Where the new interval is larger, the old one counts first.
    """
    k, features = new.degree, len(new.knots)
    knots, before = new.exact_knots(new.knots.double()), old.exact_knots(old.knots.double())
    if old.uniform and new.uniform:  # one grid for all features
        knots, before = knots[:1], before[:1]
        old, new = (Grid(t, g.degree, g.uniform, g.outside) for t, g in ((before, old), (knots, new)))
    marks = torch.cat([knots[:, k : knots.shape[1] - k], before], 1)
    marks = marks.clamp(knots[:, k, None], knots[:, -k - 1, None]).sort(1).values
    u = torch.linspace(0, 1, 2 * k + 4, dtype=torch.float64, device=knots.device)[1:-1]
    points = (marks[:, :-1, None] + (marks[:, 1:] - marks[:, :-1])[..., None] * u).flatten(1).T
    # Where the old grid reaches, its functions come first; beyond, what it did outside is only continued.
    known = (points >= before[:, k]) & (points <= before[:, -k - 1])
    weight = (marks[:, 1:] - marks[:, :-1]).sqrt()[..., None].expand(-1, -1, len(u)).flatten(1)
    weight = torch.where(known.T, weight, 1e-4 * weight)[..., None]
    design = new.reference(points).transpose(0, 1) * weight
    target = old.reference(points).transpose(0, 1) * weight
    # The SVD driver: a cell that all points miss (repeated knots) leaves a function free, which stays 0
    change = torch.linalg.lstsq(design.cpu(), target.cpu(), driver="gelsd").solution.to(knots.device)
    return change.expand(features, -1, -1)


@torch.no_grad()
def fit(
    layer: KANLayer,
    x: Float[Tensor, "rows features"],
    y: Float[Tensor, "rows outputs"],
    ridge: float = 1e-8,
) -> None:
    """Coefficients of a KANLinear by least squares, in place: the minimiser of |layer(x) - y|^2 + ridge N |c|^2.

    Only ``spline_weight`` moves; base, scaler and bias stay and are taken into account. Sums of edges do not say
    which edge holds a constant: the ridge term shares it out evenly.

    Raises: ValueError when shapes do not fit, or the layer has scalers or pruned edges.
    """
    _check(layer, "fit")
    if layer.spline_scaler is not None or layer.edge_mask is not None:
        raise ValueError("fit: the layer has a scaler or pruned edges; fit one without")
    if x.dim() != 2 or x.shape[1] != len(layer.knots) or y.shape != (len(x), len(layer.spline_weight)):
        raise ValueError(f"fit: x {tuple(x.shape)} and y {tuple(y.shape)} do not fit {layer}")
    rest = y.double() - layer(x).double()
    design = layer.bases(x).double().flatten(1)
    rest = rest + design @ layer.spline_weight.double().flatten(1).T
    gram = design.T @ design
    gram.diagonal().add_(ridge * len(x))
    layer.spline_weight.copy_(torch.linalg.solve(gram, design.T @ rest).T.view_as(layer.spline_weight))


@torch.no_grad()
def set_edge(layer: KANLayer, out_feature: int, in_feature: int, x: Tensor, y: Tensor) -> None:
    """One edge of a KANLinear by least squares on points (x, y) of its own, in place: base off, spline fitted.

    Raises: ValueError for another basis than B-splines.
    """
    _check(layer, "set_edge")
    if layer.base_weight is not None:
        layer.base_weight[out_feature, in_feature] = 0.0
    if layer.spline_scaler is not None:
        layer.spline_scaler[out_feature, in_feature] = 1.0
    knots = layer.knots[in_feature].double()
    layer.spline_weight[out_feature, in_feature] = splines.fit(x.double(), y.double(), knots, layer.degree).to(
        knots.dtype
    )


def _check(layer: KANLayer, name: str) -> None:
    if layer.basis != "bspline":
        raise ValueError(f"{name}: the layer's basis is {layer.basis!r}; only B-splines have a grid to change")
    if hasattr(layer, "parametrizations"):
        raise ValueError(f"{name}: the layer's weights are constrained; remove that first with shapes.release")


def _interpolate(at: Tensor, x: Tensor, y: Float[Tensor, "features points"]) -> Tensor:
    """Straight lines through (x, y) of each feature, at new places."""
    index = (torch.searchsorted(x, at, right=True) - 1).clamp(0, len(x) - 2)
    share = (at - x[index]) / (x[index + 1] - x[index])
    return y[:, index] + (y[:, index + 1] - y[:, index]) * share


def _with_ends(breaks: Float[Tensor, "features breaks"], degree: int) -> Tensor:
    """Knots from the breaks of each feature: the outer ones repeat the first and last cell."""
    steps = torch.arange(1, degree + 1, dtype=breaks.dtype, device=breaks.device)
    left = breaks[:, :1] - (breaks[:, 1:2] - breaks[:, :1]) * steps.flip(0)
    right = breaks[:, -1:] + (breaks[:, -1:] - breaks[:, -2:-1]) * steps
    return torch.cat([left, breaks, right], 1)
