"""The spline editor without a browser; test_book.py drags its points in one."""

import pytest
import torch
from scipy.interpolate import BSpline

from kunet.widgets import SplineEditor

KNOTS = [0.0, 0, 0, 0, 0.5, 1, 1, 1, 1]
POINTS = [[0.0, 0.1], [0.2, 0.9], [0.5, 0.1], [0.8, 0.9], [1.0, 0.1]]


def test_curve_is_scipys():
    editor = SplineEditor(POINTS, KNOTS)
    u = torch.linspace(0, 1, 33)
    assert torch.allclose(editor.curve(u), torch.from_numpy(BSpline(KNOTS, POINTS, 3)(u.double().numpy())), atol=1e-12)


def test_it_shows_in_jupyter_and_in_a_page():
    data = SplineEditor(POINTS, KNOTS)._repr_mimebundle_()[0]
    assert "application/vnd.jupyter.widget-view+json" in data
    assert '"degree": 3' in data["text/html"] and "export default" not in data["text/html"]
    assert "http" not in data["text/html"].replace("http://www.w3.org/2000/svg", "")


def test_messages():
    with pytest.raises(ValueError, match="5 points and 8 knots of degree 3"):
        SplineEditor(POINTS, KNOTS[:-1])
