"""Figures say what they show: axes, units, one line an edge."""

import matplotlib
import pytest
import torch

from kunet import plots, splines
from kunet.kan import KANLinear

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def close():
    yield
    matplotlib.pyplot.close("all")


def test_basis():
    ax = plots.basis(splines.uniform_knots(5, 3), 3)
    assert len(ax.lines) == 9 and ax.get_xlabel() == "x" and "B_{i,3}" in ax.get_ylabel()


def test_edges_draws_every_edge():
    layer = KANLinear(3, 2)
    figure = plots.edges(layer)
    drawn = [ax.lines[0].get_ydata() for ax in figure.axes]
    assert len(drawn) == 6
    x = torch.as_tensor(figure.axes[0].lines[0].get_xdata())
    with torch.no_grad():
        assert torch.allclose(torch.as_tensor(drawn[4]), layer.edge(x, 1, 1))


def test_images_and_footprint():
    figure = plots.images({"a": torch.rand(3, 8, 12), "b": torch.rand(1, 8, 12), "c": torch.rand(3, 8, 12)}, columns=2)
    assert [ax.get_title() for ax in figure.axes] == ["a", "b", "c", ""]
    ax = plots.footprint(torch.eye(4), title="diagonal")
    assert "pixels" in ax.get_xlabel() and ax.images[0].get_array().sum() == 4
