"""Which edges and nodes matter, and layers without the others.

``mask`` switches edges off, exactly; ``shrink`` removes the nodes that nothing reaches or leaves; ``SparseKANLinear``
stores the edges that are left, and no others.
"""

import copy
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kunet.kan import regularise
from kunet.kan.kernels import Grid
from kunet.kan.layer import KANLayer, exact
from kunet.kan.linear import KANLinear

_ROWS = 1024


@torch.no_grad()
def edge_importance(layer: KANLayer, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "outputs inputs *taps"]:
    """Standard deviation of each edge's output over the rows: what the layer would miss beyond a constant.

    Source: compare arXiv 2408.10205 (KAN 2.0), section 3.1, whose edge scores are these, propagated backwards.
    """
    rows = x.reshape(-1, x.shape[-1])
    rows = rows[:: -(-len(rows) // _ROWS) or 1]
    edges = layer.spline_weight[:, :, 0].numel()
    centre = regularise.edge_values(layer, rows[:1])[0]  # deviations from it keep their digits
    total = square = torch.zeros_like(centre)
    for part in rows.split(max(1, (1 << 25) // edges)):  # rows x edges numbers at a time
        away = regularise.edge_values(layer, part) - centre
        total, square = total + away.sum(0), square + away.square().sum(0)
    return (square / len(rows) - (total / len(rows)).square()).clamp(min=0).sqrt()


@torch.no_grad()
def mask(layer: KANLayer, keep: Bool[Tensor, "outputs inputs *taps"]) -> None:
    """Switch off the edges that are not kept, in place: they give exactly 0 from now on, in every kernel.

    Edges that were off stay off; ``layer.edge_mask = None`` switches all on again. The mask is saved with the layer.
    Raises: ValueError when keep is not shaped as the layer's edges.
    """
    shape = layer.spline_weight[:, :, 0].shape
    if keep.shape != shape:
        raise ValueError(f"mask: keep is {tuple(keep.shape)}; the layer's edges are {tuple(shape)}")
    keep = keep.to(layer.spline_weight)
    layer.edge_mask = keep if layer.edge_mask is None else layer.edge_mask * keep


def mask_weakest(layer: KANLayer, x: Float[Tensor, "*batch features"], share: float) -> None:
    """Switch off the edges whose importance is below a share of the strongest edge's, in place.

    Raises: ValueError unless 0 <= share <= 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"mask_weakest: share is {share}; give 0 (nothing) to 1 (all but the strongest)")
    importance = edge_importance(layer, x)
    mask(layer, importance >= share * importance.max())


@torch.no_grad()
def sensitivity(model: nn.Module, x: Float[Tensor, "rows features"]) -> Float[Tensor, "outputs features"]:
    """Mean |dy_o / dx_i| over the rows, of any model of rows: which inputs an output listens to."""
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        y = model(x)
        slopes = [torch.autograd.grad(y[:, o].sum(), x, retain_graph=True)[0] for o in range(y.shape[1])]
    return torch.stack(slopes).abs().mean(1)


@torch.no_grad()
def feature_importance(layers: nn.Sequential, x: Float[Tensor, "rows features"]) -> Float[Tensor, " features"]:
    """Share of the output that each input carries, all in [0, 1], summing to 1.

    A node's score goes back along its edges in proportion to their importance, layer by layer.
    Raises: ValueError when the model is not a Sequential of KANLinear layers.
    Source: arXiv 2408.10205, section 3.1.
    """
    layers, inputs = _layers(layers, "feature_importance"), [x]
    for layer in layers[:-1]:
        inputs.append(layer(inputs[-1]))
    score = torch.ones(layers[-1].out_features, dtype=x.dtype, device=x.device)
    for layer, seen in zip(reversed(layers), reversed(inputs)):
        importance = edge_importance(layer, seen)
        score = (score[:, None] * importance / importance.sum(1, keepdim=True).clamp(min=1e-12)).sum(0)
    return score / score.sum().clamp(min=1e-12)


@torch.no_grad()
def shrink(layers: nn.Sequential) -> nn.Sequential:
    """A smaller copy without the hidden nodes that no edge leaves or reaches; the same function.

    A node that no edge reaches is a constant (its bias, or 0): what the next layer makes of it moves into the biases.
    The inputs and outputs of the whole stay. Optimisers must be made anew.
    Raises: ValueError when the model is not a Sequential of KANLinear layers.
    """
    stack = [copy.deepcopy(layer) for layer in _layers(layers, "shrink")]
    changed = True
    while changed:
        changed = False
        for first, second in pairwise(stack):
            reached, left = _alive(first).any(1), _alive(second).any(0)
            constant, keep = left & ~reached, left & reached
            if not bool(keep.any()):
                keep[0] = True  # a layer needs a node; its edges are off
            if bool(keep.all()):
                continue
            changed = True
            if bool(constant.any()):
                _fold(first, second, constant)
            _take(first, outputs=keep)
            _take(second, inputs=keep)
    return nn.Sequential(*stack)


class SparseKANLinear(nn.Module):
    """A pruned KANLinear that stores and computes only the edges that are on: E of O x I.

    y_o = sum over its edges e of w_e base(x_{i(e)}) + sum_j c_{ej} B_j(x_{i(e)}) [+ bias_o]. Worth it when few are
    left: it gathers instead of multiplying matrices.

    Shapes: x (..., I) -> y (..., O). Parameters: ``spline_weight`` (E, G + k), ``base_weight`` (E,), ``bias`` (O,).
    Buffers: ``edges`` (E, 2), output and input of each; ``knots`` (I, G + 2k + 1).
    Raises: ValueError for another basis than B-splines, or x of the wrong width.
    """

    def __init__(self, layer: KANLinear):
        super().__init__()
        if layer.basis != "bspline":
            raise ValueError(f"SparseKANLinear: the layer's basis is {layer.basis!r}; it must be 'bspline'")
        self.in_features, self.out_features, self.base = layer.in_features, layer.out_features, layer.base
        self.grid_settings = (layer.degree, layer._uniform, layer.outside)
        on = _alive(layer)
        self.register_buffer("edges", on.nonzero())
        self.register_buffer("knots", layer.knots.clone())
        self.spline_weight = nn.Parameter(layer.coefficients().detach()[on].clone())
        weight = layer.base_coefficients()
        self.base_weight = nn.Parameter(weight.detach()[on].clone()) if weight is not None else None
        self.bias = nn.Parameter(layer.bias.detach().clone()) if layer.bias is not None else None

    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch outputs"]:
        if x.shape[-1] != self.in_features:
            raise ValueError(f"SparseKANLinear: x is {tuple(x.shape)}; its last size must be {self.in_features}")
        rows = exact(x).reshape(-1, self.in_features)
        y = torch.cat([self._sum(part) for part in rows.split(_ROWS)])  # of no rows: one empty part
        return (y if self.bias is None else y + self.bias).reshape(*x.shape[:-1], self.out_features)

    def _sum(self, rows: Tensor) -> Tensor:
        output, feature = self.edges.unbind(1)
        planes = Grid(self.knots, *self.grid_settings).planes(rows)
        values = torch.einsum("pej,ej->pe", planes[:, feature], self.spline_weight)
        if self.base_weight is not None:
            values = values + self.base(rows)[:, feature] * self.base_weight
        return values.new_zeros(len(rows), self.out_features).index_add(1, output, values)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {len(self.edges)} edges"


def _layers(model: nn.Sequential, name: str) -> list[KANLinear]:
    layers = list(model)
    plain = (isinstance(layer, KANLinear) and not hasattr(layer, "parametrizations") for layer in layers)
    if not layers or not all(plain):
        found = ", ".join(type(layer).__name__ for layer in layers)
        raise ValueError(f"{name}: layers {found}; give a Sequential of KANLinear layers, unconstrained")
    return layers


def _alive(layer: KANLinear) -> Tensor:
    shape = layer.spline_weight.shape[:2]
    return (
        torch.ones(shape, dtype=torch.bool, device=layer.knots.device)
        if layer.edge_mask is None
        else layer.edge_mask.bool()
    )


def _fold(first: KANLinear, second: KANLinear, constant: Tensor) -> None:
    """What the second layer makes of the constant nodes, into its bias; their edges off."""
    value = first.bias if first.bias is not None else first.spline_weight.new_zeros(first.out_features)
    share = regularise.edge_values(second, value[None])[0] * constant
    if second.bias is None:
        second.bias = nn.Parameter(second.spline_weight.new_zeros(second.out_features))
    second.bias += share.sum(1)
    mask(second, (~constant).expand(second.out_features, -1))


def _take(layer: KANLinear, outputs: Tensor | None = None, inputs: Tensor | None = None) -> None:
    """Keep some outputs or inputs of a layer, in place."""
    if outputs is not None:
        layer.out_features = int(outputs.sum())
        rows = ("spline_weight", "base_weight", "spline_scaler", "bias", "edge_mask")
        pick = lambda t: t[outputs]
    else:
        layer.in_features = int(inputs.sum())
        rows = ("spline_weight", "base_weight", "spline_scaler", "edge_mask")
        pick = lambda t: t[:, inputs]
        layer.knots, layer._grid = layer.knots[inputs], None
    for name in rows:
        tensor = getattr(layer, name)
        if isinstance(tensor, nn.Parameter):
            setattr(layer, name, nn.Parameter(pick(tensor.data).clone()))
        elif tensor is not None:
            setattr(layer, name, pick(tensor).clone())
