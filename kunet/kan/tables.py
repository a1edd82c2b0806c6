"""Deployment: a trained layer as tables, polynomials or few bits. Inference only.

A trained edge is one function of one variable. Sampled, base and spline together, it needs no basis at run time.
"""

import copy
import ctypes

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kunet import splines
from kunet.kan.kernels import compiled
from kunet.kan.kernels.grid import last_piece
from kunet.kan.layer import exact
from kunet.kan.linear import KANLinear

_ROWS = 64  # that the uncompiled path gathers at a time
_MOST = 4096  # intervals of a table
_TILE = 64  # outputs side by side, as table.cpp reads them


class TableKANLinear(nn.Module):
    """A KANLinear as int8 samples of its edges, joined by straight lines.

    x beyond its feature's table is held at the table's end. Memory: 2 bytes a sample, an edge. No gradients.

    Args:
        layer: trained; any basis, grid and base. It is not kept.
        samples: intervals a grid cell. The error of straight lines falls with its square.
        x: (N, I), values as the layer will see them: each feature's table covers their range. Without them it
            covers all of its knots, the outer ones too, at the price of coarser levels.

    Shapes: x (..., I) -> y (..., O), float32. Raises: ValueError when samples < 1 or x has the wrong width.
    """

    def __init__(self, layer: KANLinear, samples: int = 8, x: Float[Tensor, "rows features"] | None = None):
        super().__init__()
        if samples < 1:
            raise ValueError(f"TableKANLinear: {samples} samples a cell; give 1 or more")
        self.in_features, self.out_features = layer.in_features, layer.out_features
        knots = layer.knots.detach().double()
        lower, upper = knots[:, 0], knots[:, -1]
        cell = (knots[:, -layer.degree - 1] - knots[:, layer.degree]) / layer.grid_size
        if x is not None and (x.dim() != 2 or x.shape[1] != layer.in_features or not bool(x.isfinite().all())):
            raise ValueError(f"TableKANLinear: x is {tuple(x.shape)}; give finite rows of {layer.in_features} features")
        if x is not None and len(x):
            seen = x.detach().double()
            lower, upper = seen.amin(0), torch.maximum(seen.amax(0), seen.amin(0) + cell)
        self.intervals = max(1, round(float((samples * (upper - lower) / cell).max())))
        if self.intervals > _MOST:
            raise ValueError(
                f"TableKANLinear: {self.intervals} intervals; at most {_MOST}: x reaches far beyond the"
                f" grid, or there are too many samples"
            )
        points = (
            lower
            + (upper - lower)
            * torch.linspace(0, 1, self.intervals + 1, dtype=torch.float64, device=knots.device)[:, None]
        )
        edges = _edges(layer, points.to(layer.knots.dtype)).double()  # samples, inputs, outputs
        # A constant of an edge costs nothing in the offset. A scale each output and each input: weak ones keep digits.
        centre = (edges.amax(0) + edges.amin(0)) / 2
        edges = edges - centre
        scale = edges.square().mean((0, 1)).sqrt().clamp(min=1e-30)
        strength = (edges / scale).abs().amax((0, 2)).clamp(min=1e-30) / 127
        levels = (edges / (scale * strength[:, None])).round().to(torch.int8).permute(1, 0, 2)
        pairs = torch.stack([levels[:, :-1], levels[:, 1:]], -1)
        tiles = F.pad(pairs, (0, 0, 0, -self.out_features % _TILE)).unflatten(2, (-1, _TILE))
        self.register_buffer("table", tiles.permute(2, 0, 1, 3, 4).contiguous())  # tile, input, interval, output, 2
        # Integer weights as large as int32 sums allow
        largest = min(2**14, (2**31 - 1) // (127 * self.in_features))
        whole = (strength * (largest / strength.max())).round().clamp(min=1)
        bias = layer.bias.detach().double() if layer.bias is not None else 0.0
        self.register_buffer("strength", whole.float())
        self.register_buffer("scale", (scale * strength.max() / largest).float())
        self.register_buffer("offset", (centre.sum(0) + bias).float())
        self.register_buffer("lower", lower.float())
        self.register_buffer("inverse_step", (self.intervals / (upper - lower)).float())

    @torch.no_grad()
    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch outputs"]:
        if x.shape[-1] != self.in_features:
            raise ValueError(f"TableKANLinear: x is {tuple(x.shape)}; its last size must be {self.in_features}")
        rows = x.reshape(-1, self.in_features).float().contiguous()
        # a cast module has other bytes than the compiled kernel reads
        plain = all(t.device.type == "cpu" for t in (rows, self.table)) and self.lower.dtype == torch.float32
        library = compiled.load("table") if plain else None
        y = self._compiled(library, rows) if library else self._gathered(rows)
        return y.reshape(*x.shape[:-1], self.out_features)

    def _compiled(self, library: ctypes.CDLL, rows: Tensor) -> Tensor:
        y = rows.new_empty(len(rows), self.out_features)
        sizes = map(ctypes.c_int64, (len(rows), self.in_features, self.out_features, self.intervals))
        tensors = (self.lower, self.inverse_step, self.strength, self.table, self.scale, self.offset, y)
        library.kan_table(_pointer(rows), *sizes, *map(_pointer, tensors))
        return y

    def _gathered(self, rows: Tensor) -> Tensor:
        """The same sums in plain torch, for other devices and for machines without a compiler."""
        s = ((rows - self.lower.float()) * self.inverse_step.float()).clamp(0, self.intervals)
        at = s.nan_to_num().long().clamp(max=self.intervals - 1)
        second = ((s - at) * self.strength.float() + 0.5).floor()
        weights = torch.stack([self.strength.float() - second, second], -1)
        feature, y = torch.arange(self.in_features, device=rows.device), []
        for part, chunk in zip(at.split(_ROWS), weights.split(_ROWS)):
            pairs = self.table[:, feature, part].float()  # tiles, rows, inputs, outputs of the tile, 2
            y.append(torch.einsum("tniop,nip->nto", pairs, chunk).flatten(1))
        sums = torch.cat(y)[:, : self.out_features] if y else rows.new_zeros(0, self.out_features)
        return sums * self.scale.float() + self.offset.float()

    def extra_repr(self) -> str:
        megabytes = self.table.numel() / 1e6
        return f"{self.in_features}, {self.out_features}, {self.intervals} intervals, {megabytes:.1f} MB"


class PolynomialKANLinear(nn.Module):
    """A KANLinear whose splines are polynomials, one a knot span: exact, and a lookup instead of a basis.

    On the span [t_c, t_{c+1}) edge (o, i) is sum_p a_{oicp} u^p, u the share of the span, so y is
    k + 1 weighted rows a feature. Outside the knots the spline is 0. The layer must extend by "zero".

    Shapes: x (..., I) -> y (..., O). Buffer: ``polynomials`` (I * spans * (k + 1), O).
    Raises: ValueError for another basis than B-splines, or another choice for outside.
    """

    def __init__(self, layer: KANLinear):
        super().__init__()
        if layer.basis != "bspline" or layer.outside != "zero":
            raise ValueError(
                f"PolynomialKANLinear: the layer has basis {layer.basis!r} and outside {layer.outside!r};"
                f" it must have 'bspline' and 'zero'"
            )
        self.in_features, self.out_features, self.degree = layer.in_features, layer.out_features, layer.degree
        self.base, self.spans = layer.base, layer.knots.shape[1] - 1
        knots = layer.grid.exact_knots(layer.knots.double())
        table, first = splines.pieces(knots, layer.degree)
        index = first[..., None] + torch.arange(layer.degree + 1, device=first.device)  # input, span, function
        coefficients = layer.coefficients().detach().double()
        taken = torch.stack([coefficients[:, i, index[i]] for i in range(layer.in_features)], 1)
        polynomials = torch.einsum("oisr,isrp->ispo", taken, table)
        self.register_buffer("polynomials", polynomials.reshape(-1, self.out_features).to(layer.knots.dtype))
        self.register_buffer("knots", knots.to(layer.knots.dtype).contiguous())
        self.register_buffer("bias", layer.bias.detach().clone() if layer.bias is not None else None)
        weight = layer.base_coefficients()
        self.register_buffer("base_weight", weight.detach().clone() if weight is not None else None)

    @torch.no_grad()
    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch outputs"]:
        rows = exact(x).reshape(-1, self.in_features)
        columns = rows.T.contiguous()
        feature = torch.arange(self.in_features, device=x.device)[:, None]
        span = (torch.searchsorted(self.knots, columns, right=True) - 1).clamp(min=0)
        span = span.minimum(last_piece(self.knots)[:, None])  # the last one that is not empty is closed on the right
        left, right = self.knots[feature, span], self.knots[feature, span + 1]
        u = torch.where(right > left, (columns - left) / (right - left), 0.0)
        inside = (columns >= self.knots[:, :1]) & (columns <= self.knots[:, -1:]) | columns.isnan()
        power = torch.arange(self.degree + 1, device=x.device)
        u = torch.where(inside[..., None], u[..., None] ** power, 0.0)
        values = (u + torch.where(columns.isnan(), columns, 0.0)[..., None]).transpose(0, 1)
        index = ((feature * self.spans + span)[..., None] * (self.degree + 1) + power).transpose(0, 1)
        y = F.embedding_bag(index.flatten(1), self.polynomials, mode="sum", per_sample_weights=values.flatten(1))
        if self.bias is not None:
            y = y + self.bias
        y = y.reshape(*x.shape[:-1], self.out_features)
        return y if self.base_weight is None else y + F.linear(self.base(x), self.base_weight)


def with_tables(model: nn.Module, samples: int = 8) -> nn.Module:
    """A copy of a model in evaluation mode, each KANLinear in it a TableKANLinear over all of its knots; no gradients.

    Inputs beyond a layer's outer knots, where its base alone is left, are held at the table's end. On kunet_tiny, where
    a few channels do lie there, a photo's PSNR changes by less than 0.02 dB (tests/test_export.py).

    Args:
        model: trained; it may be a KANLinear itself. It is left as it is.
        samples: intervals a grid cell, as TableKANLinear's.
    Raises: ValueError for a model without a KANLinear, or samples < 1.
    """
    if not any(isinstance(module, KANLinear) for module in model.modules()):
        raise ValueError(f"with_tables: {type(model).__name__} holds no KANLinear, so there is nothing to replace")
    if isinstance(model, KANLinear):
        return TableKANLinear(model, samples).eval()
    model = copy.deepcopy(model)
    tables = {layer: TableKANLinear(layer, samples) for layer in model.modules() if isinstance(layer, KANLinear)}
    for name, layer in list(model.named_modules(remove_duplicate=False)):  # a shared layer has several names
        if layer in tables:
            model.set_submodule(name, tables[layer])
    return model.eval()


@torch.no_grad()
def quantise(layer: KANLinear, bits: int = 8) -> KANLinear:
    """Round the control values (and base weights) to 2^bits - 1 levels, a scale each output; in place, returned.

    Raises: ValueError unless 2 <= bits <= 16.
    """
    if not 2 <= bits <= 16:
        raise ValueError(f"quantise: {bits} bits; choose 2 to 16")
    levels = 2 ** (bits - 1) - 1
    for weight in (layer.spline_weight, layer.base_weight):
        if weight is not None:
            scale = weight.flatten(1).abs().amax(1).clamp(min=1e-30).view(-1, *[1] * (weight.dim() - 1)) / levels
            weight.copy_((weight / scale).round() * scale)
    return layer


@torch.no_grad()
def _edges(layer: KANLinear, x: Float[Tensor, "samples inputs"]) -> Float[Tensor, "samples inputs outputs"]:
    """Every edge at its feature's points."""
    y = torch.einsum("sij,oij->sio", layer.bases(x), layer.coefficients())
    if layer.base_weight is None:
        return y
    return y + layer.base(x)[..., None] * layer.base_coefficients().T


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
