"""Figures to take hold of: ipywidgets in a notebook, and the same figure alive on a published page.

A published page has no kernel, so each widget's script is complete in itself: Jupyter runs it through anywidget
with a Python model behind it, a page runs the same script with a small stand-in for the model.
"""

import json
import math
import uuid
from importlib.resources import files

import anywidget
import torch
import traitlets
from jaxtyping import Float
from torch import Tensor

from kunet import splines


class _Figure(anywidget.AnyWidget):
    """What the figures share: Jupyter gets the widget, and beside it HTML for pages that have no kernel."""

    _state: tuple[str, ...] = ()  # the traits that the script reads

    def html(self) -> str:
        """The figure as HTML that works without Jupyter and without a network."""
        name = f"kunet-{uuid.uuid4().hex[:12]}"
        values = json.dumps({key: getattr(self, key) for key in self._state})
        script = self._esm.replace("export default { render };", "")
        return (
            f'<div id="{name}" class="kunet-widget"></div><script>(() => {{ {script}\n'
            f"const values = {values}; render({{ el: document.getElementById('{name}'), model: {{"
            " get: (key) => values[key], set: (key, value) => { values[key] = value; },"
            " save_changes: () => {}, on: () => {} } }); })();</script>"
        )

    def _repr_mimebundle_(self, **kwargs):
        bundle = super()._repr_mimebundle_(**kwargs)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle or {}, {})
        return {**data, "text/html": self.html()}, metadata


class SplineEditor(_Figure):
    """A planar B-spline curve with control points to drag, above its basis functions.

    Args:
        points: control points (x, y), each in [0, 1] x [0, 1]; as many as there are basis functions.
        knots: non-decreasing, len(points) + degree + 1 of them.
        degree: k >= 1.
    Traits: ``points`` follows the mouse and can be set; ``knots`` and ``degree`` are fixed.
    Raises: ValueError when the numbers of points and knots do not fit the degree.
    """

    _esm = files(__package__).joinpath("spline_editor.js").read_text()
    _state = ("points", "knots", "degree")
    points = traitlets.List().tag(sync=True)
    knots = traitlets.List().tag(sync=True)
    degree = traitlets.Int().tag(sync=True)

    def __init__(self, points: list[list[float]], knots: list[float], degree: int = 3):
        if degree < 1 or len(knots) != len(points) + degree + 1:
            raise ValueError(
                f"SplineEditor: {len(points)} points and {len(knots)} knots of degree {degree}; the degree must be 1 or"
                f" more and the knots len(points) + degree + 1"
            )
        super().__init__(points=[list(map(float, p)) for p in points], knots=list(map(float, knots)), degree=degree)

    def curve(self, parameters: torch.Tensor) -> torch.Tensor:
        """Points of the curve at the given parameters, (P,) -> (P, 2), by ``kunet.splines``."""
        as_double = lambda values: torch.tensor(values, dtype=torch.float64)
        return splines.evaluate(parameters.double(), as_double(self.points), as_double(self.knots), self.degree)


class Refused(traitlets.TraitError, ValueError):
    """A ValueError after which traitlets keeps the old value, also when the new one came from the browser."""


class EdgeEditor(_Figure):
    """One learned edge of a KANLinear, phi(x) = w base(x) + sum_j c_j B_j(x), with its control values to drag.

    A control point stands at (Greville abscissa, c_j); of degree 0 at the middle of its cell. A change is written into
    ``layer.spline_weight`` at once, so the next forward uses it. The base term and its weight w stay as they were
    when the editor was made: after training or a change of the grid, make a new one.

    Args:
        layer: a ``kunet.kan.KANLinear`` of B-splines.
        out_feature, in_feature: o and i of the edge, from 0.
        samples: inputs of the edge, (S,), at most 1000, to show which control points any data touch.
    Traits: ``values`` (G + k floats) follows the mouse and can be set (assign a list; changing one in place goes
        unnoticed); ``start``, ``knots``, ``abscissae`` and the others are fixed.
    Raises: ValueError on another layer or basis, an edge that is not there, samples that are too many or not finite;
        on setting ``values`` to another number of them or to something not finite. Also, and on every change, for a
        pruned edge, one whose scaler is 0, and a parametrised ``spline_weight`` (``kunet.kan.shapes``): the function
        would not follow, and a silent editor would lie.
    """

    _esm = files(__package__).joinpath("edge_editor.js").read_text()
    _state = ("values", "start", "knots", "degree", "outside", "abscissae", "x", "base", "samples", "edge")
    values = traitlets.List(traitlets.Float()).tag(sync=True)
    start = traitlets.List().tag(sync=True)
    knots = traitlets.List().tag(sync=True)
    degree = traitlets.Int().tag(sync=True)
    outside = traitlets.Unicode().tag(sync=True)
    abscissae = traitlets.List().tag(sync=True)
    x = traitlets.List().tag(sync=True)  # where the figure samples its curves,
    base = traitlets.List().tag(sync=True)  # ... w base(x) there; empty without a base, None where it is not finite
    samples = traitlets.List().tag(sync=True)
    edge = traitlets.List().tag(sync=True)  # [in_feature, out_feature]

    def __init__(
        self,
        layer: torch.nn.Module,
        out_feature: int = 0,
        in_feature: int = 0,
        samples: Float[Tensor, " samples"] | None = None,
    ):
        if not hasattr(layer, "spline_weight") or layer.spline_weight.dim() != 3:
            raise ValueError(f"EdgeEditor: the layer is a {type(layer).__name__}; give a KANLinear")
        if layer.basis != "bspline":
            raise ValueError(f"EdgeEditor: the layer's basis is {layer.basis!r}; control points need 'bspline'")
        outputs, inputs, _ = layer.spline_weight.shape
        if not (0 <= out_feature < outputs and 0 <= in_feature < inputs):
            raise ValueError(
                f"EdgeEditor: out_feature {out_feature}, in_feature {in_feature}; the layer has {outputs} outputs and"
                f" {inputs} inputs, counted from 0"
            )
        if samples is not None and (len(samples) > 1000 or not bool(samples.isfinite().all())):
            raise ValueError(f"EdgeEditor: {len(samples)} samples; give finite numbers, at most 1000 (samples[:1000])")
        self.layer, self._at = layer, (out_feature, in_feature)
        knots, degree = _knots(layer, in_feature), layer.degree
        abscissae = splines.greville(knots, degree) if degree else (knots[1:] + knots[:-1]) / 2
        values = (layer.spline_weight[self._at].detach().double().cpu() * self._scale()).tolist()
        x = _positions(knots, degree)
        base = self._base(x).tolist() if layer.base_weight is not None else []
        super().__init__(
            values=values, start=values, knots=knots.tolist(), degree=degree, outside=layer.outside,
            abscissae=abscissae.tolist(), x=x.tolist(), base=[v if math.isfinite(v) else None for v in base],
            samples=[] if samples is None else samples.double().tolist(), edge=[in_feature, out_feature],
        )  # fmt: skip
        self.observe(self._write, "values")  # only now: making an editor changes nothing

    def curve(self, x: Float[Tensor, " points"]) -> Float[Tensor, " points"]:
        """phi(x) for the present ``values``, (P,) -> (P,), in float64 by the layer's ``kunet.splines`` basis."""
        self._check_layer()
        x = x.to(self.layer.knots.device, torch.float64)
        basis = self.layer.bases(x[:, None].expand(-1, len(self.layer.knots)))[:, self._at[1]].cpu()
        spline = basis @ torch.tensor(self.values, dtype=torch.float64)
        return spline if self.layer.base_weight is None else spline + self._base(x)

    def _base(self, x: Tensor) -> Tensor:
        """w base(x), computed as the layer does: a base may be a module with a precision of its own."""
        with torch.no_grad():
            return (self.layer.base_weight[self._at] * self.layer.base(x.to(self.layer.knots))).double().cpu()

    def _scale(self) -> float:
        """a, the factor between the layer's weights and the control values. Refuses an edge that nothing can change."""
        if not isinstance(self.layer.spline_weight, torch.nn.Parameter):  # what is written would be lost
            raise Refused("EdgeEditor: the layer's spline_weight is computed from a parametrisation; remove it first")
        layer, edge = self.layer, f"EdgeEditor: the edge from input {self._at[1]} to output {self._at[0]}"
        if layer.edge_mask is not None and not bool(layer.edge_mask[self._at]):
            raise Refused(f"{edge} is pruned: it is 0 whatever its control points are; choose another edge")
        scale = 1.0 if layer.spline_scaler is None else float(layer.spline_scaler[self._at].detach())
        if scale == 0:
            raise Refused(f"{edge} has a scaler of 0: its spline is 0 whatever its weights are; choose another edge")
        return scale

    def _check_layer(self) -> None:
        if _knots(self.layer, self._at[1]).tolist() != self.knots:
            raise Refused("EdgeEditor: the layer's grid has changed since; make a new editor")

    @traitlets.validate("values")
    def _check(self, proposal):
        values = proposal["value"]
        if len(values) != len(self.start) or not all(map(math.isfinite, values)):
            raise Refused(f"EdgeEditor: values are {values}; give {len(self.start)} finite numbers")
        self._check_layer()
        self._scale()
        return values

    def _write(self, change) -> None:
        weight = torch.tensor(self.values, dtype=torch.float64) / self._scale()
        with torch.no_grad():
            self.layer.spline_weight[self._at].copy_(weight)


def _knots(layer: torch.nn.Module, feature: int) -> Tensor:
    """A feature's knots in float64, as the layer computes with them: a uniform grid is exact."""
    if layer.uniform:
        return splines.uniform_knots(layer.grid_size, layer.degree, *layer.grid_range, dtype=torch.float64)
    return layer.knots[feature].double().cpu()


def _positions(knots: Tensor, degree: int) -> Tensor:
    """Where to sample curves: evenly past all knots and the grid's range, and on both sides of every knot, so that
    jumps (degree 0) and corners (degree 1) are drawn where they are."""
    lower, upper = float(knots[degree]), float(knots[-degree - 1])
    margin = 0.15 * (upper - lower)
    ends = min(float(knots[0]), lower - margin), max(float(knots[-1]), upper + margin)
    sides = [torch.nextafter(knots, torch.full_like(knots, side)) for side in (-math.inf, math.inf)]
    return torch.cat([torch.linspace(*ends, 301, dtype=torch.float64), knots, *sides]).unique()
