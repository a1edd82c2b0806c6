"""Figures say what they show: axes, units, one line an edge."""

import matplotlib
import pytest
import torch

from kunet import plots, splines
from kunet.kan import KANConv2d, KANLinear

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


def test_pruned_edges_are_faint_and_say_so():
    layer = KANLinear(2, 2)
    layer.edge_mask = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    axes = plots.edges(layer).axes
    assert [[t.get_text() for t in ax.texts] for ax in axes] == [[], ["pruned"], [], []]
    assert axes[1].lines[0].get_alpha() < 0.5 < axes[0].lines[0].get_alpha()
    assert not axes[1].lines[0].get_ydata().any()


def test_each_input_shades_its_own_grid():
    layer = KANLinear(2, 1)
    layer.set_knots(torch.stack([layer.knots[0], layer.knots[0] * 0.5]))
    spans = [ax.patches[0].get_extents().transformed(ax.transData.inverted()) for ax in plots.edges(layer).axes]
    assert [[span.x0, span.x1] for span in spans] == [pytest.approx([-1, 1]), pytest.approx([-0.5, 0.5])]


def test_data_become_a_histogram_below_and_change_no_scale():
    layer = KANLinear(2, 1)
    plain = plots.edges(layer).axes[0].get_ylim()
    axes = plots.edges(layer, data=torch.tensor([[0.1, -0.9], [0.1, -0.9], [0.5, -0.9], [9.0, -0.9]])).axes
    heights, bins, _ = axes[0].patches[-1].get_data()
    assert sorted(heights[heights > 0]) == [0.125, 0.25]  # two at 0.1, one at 0.5, and 9 lies beyond the figure
    assert bins[heights.argmax()] <= 0.1 <= bins[heights.argmax() + 1]
    assert axes[0].get_ylim() == plain
    with pytest.raises(ValueError, match=r"data are \(5, 3\); the layer has 2 inputs"):
        plots.edges(layer, data=torch.rand(5, 3))


def test_importance_is_opacity():
    layer = KANLinear(3, 1)
    alphas = [ax.lines[0].get_alpha() for ax in plots.edges(layer, importance=torch.tensor([[0.0, 0.5, 1.0]])).axes]
    assert alphas == pytest.approx([0.1, 0.55, 1.0])
    with pytest.raises(ValueError, match=r"importance is \(3, 1\)"):
        plots.edges(layer, importance=torch.rand(3, 1))
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        plots.edges(layer, importance=torch.tensor([[0.0, 0.5, 2.0]]))


def test_many_edges_are_cut_with_a_word_on_it():
    figure = plots.edges(KANLinear(20, 9))
    assert len(figure.axes) == 64
    assert "8 of 9 outputs and 8 of 20 inputs; 116 of 180 edges are not shown" in figure.get_suptitle()
    figure = plots.edges(KANLinear(3, 2), limit=(2, 3))
    assert len(figure.axes) == 6 and not figure.get_suptitle()
    with pytest.raises(ValueError, match="limit"):
        plots.edges(KANLinear(3, 2), limit=(0, 3))


def test_conv_edges_draws_every_tap():
    layer = KANConv2d(4, 4, (2, 3), groups=2)
    layer.edge_mask = torch.ones(4, 2, 2, 3)
    layer.edge_mask[3, 1, 0, 2] = 0
    figure = plots.conv_edges(layer, 3, 1)
    assert [ax.get_title() for ax in figure.axes][4] == "tap (1, 1)" and len(figure.axes) == 6
    assert figure.get_suptitle().startswith("input channel 3 to output channel 3")  # the second of the second group
    x = torch.as_tensor(figure.axes[4].lines[0].get_xdata())
    with torch.no_grad():
        drawn = torch.as_tensor(figure.axes[4].lines[0].get_ydata())
        assert torch.allclose(drawn, layer.edge(x, 3, 1, tap=(1, 1)))
    assert [len(ax.texts) for ax in figure.axes] == [0, 0, 1, 0, 0, 0]
    with pytest.raises(ValueError, match=r"in_channel 2; the layer has 4 outputs of 2 inputs each"):
        plots.conv_edges(layer, 0, 2)


def test_images_and_footprint():
    figure = plots.images({"a": torch.rand(3, 8, 12), "b": torch.rand(1, 8, 12), "c": torch.rand(3, 8, 12)}, columns=2)
    assert [ax.get_title() for ax in figure.axes] == ["a", "b", "c", ""]
    ax = plots.footprint(torch.eye(4), title="diagonal")
    assert "pixels" in ax.get_xlabel() and ax.images[0].get_array().sum() == 4


def test_front_passes_through_those_that_none_beats():
    points = {"quick": (0.1, 20.0), "ours": (0.2, 28.0), "peer": (1.0, 27.9), "best": (3.0, 28.1), "poor": (0.5, 22.0)}
    ax = plots.front(points, ["ours", "best"])
    line = ax.lines[-1]
    assert list(zip(*line.get_data())) == [points[name] for name in ("quick", "ours", "best")]
    assert [text.get_text() for text in ax.texts] == list(points)
    assert ax.get_ylabel() == "PSNR (dB)" and ax.get_ylim()[1] > 28.1 and ax.get_xscale() == "log"


def test_curves_of_a_log():
    """Rows of both kinds, a skipped step, a resumption; an empty log, as of a run that has only begun."""
    rows = [
        {"event": "started", "at": 0},
        {"step": 2, "loss": -1.0, "lr": 0.1},
        {"step": 4, "loss": -2.0, "lr": 0.1},
        {"step": 4, "psnr": 20.0},
        {"event": "started", "at": 4},
        {"event": "skipped", "step": 5, "loss": "nan"},
        {"step": 6, "loss": -2.5, "lr": 0.0},
    ]
    ax = plots.curves(rows, "loss", label="a run", color="black")
    line, resumed = ax.lines
    assert line.get_xydata().tolist() == [[2, -1], [4, -2], [6, -2.5]] and line.get_label() == "a run"
    assert set(resumed.get_xdata()) == {4} and resumed.get_linestyle() == ":"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "loss")
    assert plots.curves(rows, "psnr", ax) is ax and ax.get_ylabel() == "PSNR (dB)"
    assert not len(plots.curves([], "loss").lines[0].get_xdata())
