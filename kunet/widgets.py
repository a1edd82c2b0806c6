"""Figures to take hold of: ipywidgets in a notebook, and the same figure alive on a published page.

A published page has no kernel, so each widget's script is complete in itself: Jupyter runs it through anywidget
with a Python model behind it, a page runs the same script with a small stand-in for the model.
"""

import json
import uuid
from importlib.resources import files

import anywidget
import torch
import traitlets

from kunet import splines

_SCRIPT = files(__package__).joinpath("spline_editor.js").read_text()


class SplineEditor(anywidget.AnyWidget):
    """A planar B-spline curve with control points to drag, above its basis functions.

    Args:
        points: control points (x, y), each in [0, 1] x [0, 1]; as many as there are basis functions.
        knots: non-decreasing, len(points) + degree + 1 of them.
        degree: k >= 1.
    Traits: ``points`` follows the mouse and can be set; ``knots`` and ``degree`` are fixed.
    Raises: ValueError when the numbers of points and knots do not fit the degree.
    """

    _esm = _SCRIPT
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

    def html(self) -> str:
        """The figure as HTML that works without Jupyter and without a network."""
        name = f"kunet-{uuid.uuid4().hex[:12]}"
        values = json.dumps({"points": self.points, "knots": self.knots, "degree": self.degree})
        script = _SCRIPT.replace("export default { render };", "")
        return (
            f'<div id="{name}" class="kunet-widget"></div><script>(() => {{ {script}\n'
            f"const values = {values}; render({{ el: document.getElementById('{name}'), model: {{"
            " get: (key) => values[key], set: (key, value) => { values[key] = value; },"
            " save_changes: () => {}, on: () => {} } }); })();</script>"
        )

    def _repr_mimebundle_(self, **kwargs):
        """The widget for Jupyter, and beside it HTML for pages that have no kernel."""
        bundle = super()._repr_mimebundle_(**kwargs)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle or {}, {})
        return {**data, "text/html": self.html()}, metadata
