"""The figures to take hold of; test_book.py drags the spline editor's points on its page, here the edge editor's."""

import re

import numpy as np
import pytest
import torch
import traitlets
from scipy.interpolate import BSpline

from kunet import splines
from kunet.kan import KANConv2d, KANLinear
from kunet.widgets import EdgeEditor, SplineEditor

KNOTS = [0.0, 0, 0, 0, 0.5, 1, 1, 1, 1]
POINTS = [[0.0, 0.1], [0.2, 0.9], [0.5, 0.1], [0.8, 0.9], [1.0, 0.1]]


def test_curve_is_scipys():
    editor = SplineEditor(POINTS, KNOTS)
    u = torch.linspace(0, 1, 33)
    assert torch.allclose(editor.curve(u), torch.from_numpy(BSpline(KNOTS, POINTS, 3)(u.double().numpy())), atol=1e-12)


@pytest.mark.parametrize(
    "widget", [lambda: SplineEditor(POINTS, KNOTS), lambda: EdgeEditor(KANLinear(2, 2), samples=torch.rand(9))]
)
def test_it_shows_in_jupyter_and_in_a_page(widget):
    data = widget()._repr_mimebundle_()[0]
    assert "application/vnd.jupyter.widget-view+json" in data
    assert '"degree": 3' in data["text/html"] and "export default" not in data["text/html"]
    assert "http" not in data["text/html"].replace("http://www.w3.org/2000/svg", "")


def test_messages():
    with pytest.raises(ValueError, match="5 points and 8 knots of degree 3"):
        SplineEditor(POINTS, KNOTS[:-1])


# The edge editor


def a_layer(knots: list[float] | None = None, **options) -> KANLinear:
    """Three inputs, two outputs, lively edges; the last input on knots of its own where they are given."""
    torch.manual_seed(0)
    layer = KANLinear(3, 2, **options)
    with torch.no_grad():
        layer.spline_weight.normal_(0, 0.5)
    if knots:
        layer.set_knots(torch.stack([layer.knots[0], layer.knots[1], torch.tensor(knots)]))
    return layer


UNEVEN = [-2.0, -1.7, -1.5, -1.0, -0.8, -0.7, 0.1, 0.5, 1.0, 1.2, 1.9, 2.0]
CLAMPED = [-1.0, -1, -1, -1, -0.8, -0.7, 0.1, 0.5, 1, 1, 1, 1]
LAYERS = {
    "uniform": {},
    "degree 0": {"degree": 0},
    "degree 1, linear": {"degree": 1, "outside": "linear"},
    "degree 2, linear, no base": {"degree": 2, "outside": "linear", "base": None},
    "degree 0, clamp": {"degree": 0, "outside": "clamp"},
    "degree 4, clamp": {"degree": 4, "outside": "clamp", "base": torch.sin},
    "uneven": {"knots": UNEVEN},
    "uneven, linear": {"knots": UNEVEN, "outside": "linear"},
    "clamped": {"knots": CLAMPED},
    "scaler": {"scaler": True},
    "base with a pole": {"base": torch.log},
}


@pytest.mark.parametrize("knots", [None, UNEVEN, CLAMPED])
@pytest.mark.parametrize("base", [None, torch.nn.functional.silu])
def test_the_edges_curve_is_scipys(knots, base):
    layer = a_layer(knots, base=base).double()
    editor = EdgeEditor(layer, 1, 2)
    x = torch.linspace(-0.99, 0.99, 41, dtype=torch.float64)
    wanted = torch.from_numpy(BSpline(np.array(editor.knots), np.array(editor.values), 3)(x.numpy()))
    if base:
        wanted = wanted + layer.base_weight[1, 2].detach() * base(x)
    assert torch.allclose(editor.curve(x), wanted, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_it_shows_the_layers_edge_and_making_it_changes_nothing(name):
    layer = a_layer(**LAYERS[name])
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    editor = EdgeEditor(layer, 1, 2)
    x = torch.linspace(0.01, 2.5, 83) if "pole" in name else torch.linspace(-2.5, 2.5, 83)
    with torch.no_grad():
        assert torch.allclose(editor.curve(x).float(), layer.edge(x, 1, 2), atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    assert editor.x[0] <= editor.knots[0] and editor.x[-1] >= editor.knots[-1] and editor.x == sorted(editor.x)
    assert len(editor.base) == (0 if layer.base is None else len(editor.x))


def test_control_points_stand_on_greville_abscissae():
    editor = EdgeEditor(a_layer(UNEVEN), 0, 2)
    assert editor.abscissae == pytest.approx(splines.greville(torch.tensor(UNEVEN), 3).tolist())
    assert EdgeEditor(a_layer(degree=0)).abscissae == pytest.approx([-0.8, -0.4, 0.0, 0.4, 0.8])


@pytest.mark.parametrize("name", LAYERS)
def test_values_are_written_into_the_layer(name):
    """Setting control values is setting the edge, in the next forward and in no other edge."""
    layer = a_layer(**LAYERS[name])
    if layer.spline_scaler is not None:
        with torch.no_grad():
            layer.spline_scaler.fill_(-2.5)
    editor = EdgeEditor(layer, 1, 2)
    x = torch.rand(50, 3) * 0.9 + 0.05
    with torch.no_grad():
        before, others = layer(x), layer.spline_weight[:, :2].clone()
        old = layer.edge(x[:, 2], 1, 2)
        editor.values = [v + 0.1 * i for i, v in enumerate(editor.values)]
        assert torch.allclose(layer.coefficients()[1, 2], torch.tensor(editor.values), atol=1e-6)
        assert torch.allclose(layer.edge(x[:, 2], 1, 2).double(), editor.curve(x[:, 2]), atol=1e-5)
        change = layer(x) - before
        assert torch.allclose(change[:, 1], layer.edge(x[:, 2], 1, 2) - old, atol=1e-5) and change[:, 1].abs().max() > 0
        assert not change[:, 0].any() and torch.equal(others, layer.spline_weight[:, :2])
        editor.values = editor.start
        assert torch.allclose(layer(x), before, atol=1e-6)


def test_an_edit_moves_degree_plus_one_cells():
    editor = EdgeEditor(a_layer(UNEVEN), 0, 2)
    x = torch.linspace(-2.2, 2.2, 441, dtype=torch.float64)
    before = editor.curve(x)
    editor.values = [v + (i == 4) for i, v in enumerate(editor.values)]
    moved = x[editor.curve(x) != before]
    assert editor.knots[4] < moved.min() and moved.max() < editor.knots[8]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EdgeEditor(torch.nn.Linear(2, 2)), "the layer is a Linear; give a KANLinear"),
        (lambda: EdgeEditor(KANConv2d(2, 2, 3)), "the layer is a KANConv2d; give a KANLinear"),
        (lambda: EdgeEditor(KANLinear(2, 2, basis="fourier")), "basis is 'fourier'; control points need 'bspline'"),
        (
            lambda: EdgeEditor(KANLinear(2, 3), 3, 0),
            "out_feature 3, in_feature 0; the layer has 3 outputs and 2 inputs",
        ),
        (lambda: EdgeEditor(KANLinear(2, 2), 0, -1), "counted from 0"),
        (lambda: EdgeEditor(KANLinear(2, 2), samples=torch.rand(1001)), "1001 samples; .* at most 1000"),
        (lambda: EdgeEditor(KANLinear(2, 2), samples=torch.tensor([torch.nan])), "finite"),
    ],
)
def test_what_the_edge_editor_refuses(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_values_it_refuses_leave_everything_as_it_was():
    layer = a_layer(scaler=True)
    editor = EdgeEditor(layer)
    values, weight = editor.values, layer.spline_weight.detach().clone()
    for wrong in (values[:-1], [*values[:-1], float("nan")]):
        with pytest.raises(ValueError, match="give 8 finite numbers"):
            editor.values = wrong
    new = [v + 1 for v in values]
    layer.edge_mask = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="from input 0 to output 0 is pruned"):
        editor.values = new
    with pytest.raises(ValueError, match="is pruned"):
        EdgeEditor(layer)
    layer.edge_mask = None
    with torch.no_grad():
        layer.spline_scaler[0, 0] = 0
    with pytest.raises(traitlets.TraitError, match="scaler of 0"):
        editor.set_state({"values": new})  # as it comes from the browser: traitlets then takes the old values back
    assert editor.values == values and torch.equal(layer.spline_weight, weight)
    layer.set_knots(layer.knots * 2)
    with pytest.raises(ValueError, match="grid has changed"):
        editor.values = new


def test_a_parametrised_weight_is_refused():
    """It is computed anew in every forward: what one writes into it is lost."""
    layer = a_layer()
    editor, values = EdgeEditor(layer), layer.spline_weight.detach()[0, 0].tolist()
    torch.nn.utils.parametrize.register_parametrization(layer, "spline_weight", torch.nn.Softplus())
    with pytest.raises(ValueError, match="parametrisation; remove it first"):
        EdgeEditor(layer)
    with pytest.raises(ValueError, match="parametrisation; remove it first"):
        editor.values = [v + 1 for v in values]
    assert editor.values == pytest.approx(values)


def test_half_precision_and_values_that_are_not_finite():
    """Jupyter's messages are JSON, which has no NaN: the figure gets gaps for them."""
    editor = EdgeEditor(a_layer(base=torch.log))
    gaps = [v is None for v in editor.base]
    assert gaps == [x <= 0 for x in editor.x] and "NaN" not in editor.html()
    assert len(EdgeEditor(a_layer().bfloat16()).values) == 8


# ... in a browser


@pytest.fixture
def page(browser, tmp_path):
    """Opens an editor's HTML as a page, offline; a test fails on an error of its script."""
    context = browser.new_context(offline=True, viewport={"width": 800, "height": 700})
    errors = []

    def opened(editor: EdgeEditor):
        (tmp_path / "edge.html").write_text(f"<!doctype html><meta charset=utf-8><body>{editor.html()}")
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto((tmp_path / "edge.html").as_uri())
        return page

    yield opened
    context.close()
    assert not errors


def handles(page) -> tuple[list[float], list[float], list[float]]:
    """The values, and the places x and y in the figure, of all control points."""
    found = page.locator(".kunet-edge-handle")
    found = found.evaluate_all("all => all.map(e => [e.getAttribute('aria-valuenow'), e.getAttribute('transform')])")
    places = [re.findall(r"-?[\d.]+", place) for _, place in found]
    return [float(v) for v, _ in found], [float(x) for x, _ in places], [float(y) for _, y in places]


def drawn(page, name: str = "curve") -> torch.Tensor:
    """A curve's points, (P, 2), in the figure's coordinates."""
    numbers = re.findall(r"-?\d+\.?\d*", page.locator(f".kunet-edge-{name}").get_attribute("d"))
    return torch.tensor([float(v) for v in numbers], dtype=torch.float64).reshape(-1, 2)


def check_drawing(page, editor: EdgeEditor) -> None:
    """The path is ``editor.curve``, in the axes that the control points stand in."""
    values, across, down = handles(page)
    assert editor.values == pytest.approx(values, abs=1e-9)
    line = lambda u, v: np.polyfit(u, v, 1)
    (sx, tx), (sy, ty) = line(editor.abscissae, across), line(values, down)
    x = torch.tensor([x for x, b in zip(editor.x, editor.base or editor.x) if b is not None], dtype=torch.float64)
    y = editor.curve(x)
    wanted = torch.stack([sx * x + tx, sy * y + ty], 1)
    assert (drawn(page) - wanted).abs().max() < 0.1  # of a pixel; paths are written with two digits


def drag(page, i: int, across: float, down: float) -> None:
    box = page.locator(".kunet-edge-handle").nth(i).locator("circle").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + across, y + down, steps=5)
    page.mouse.up()


@pytest.mark.parametrize("name", LAYERS)
def test_the_page_draws_the_layers_edge(page, name):
    editor = EdgeEditor(a_layer(**LAYERS[name]), 1, 2, samples=torch.linspace(-1, 0, 40))
    check_drawing(page(editor), editor)


def test_control_points_follow_mouse_and_keys(page):
    editor = EdgeEditor(a_layer(UNEVEN), 1, 2, samples=torch.linspace(-2.5, -0.75, 40))
    opened = page(editor)
    start, values = drawn(opened), handles(opened)[0]
    drag(opened, 4, 50, -60)  # sideways the mouse may go where it likes
    after = handles(opened)[0]
    assert after[4] > values[4] and after[:4] + after[5:] == values[:4] + values[5:]
    editor.values = after
    check_drawing(opened, editor)
    assert "c₄" in opened.locator(".kunet-widget").inner_text()

    inside = torch.tensor([editor.knots[4] < x < editor.knots[8] for x in editor.x])
    assert (drawn(opened, "start") != drawn(opened)).any(1)[inside].float().mean() > 0.9
    assert torch.equal(drawn(opened, "start")[~inside], drawn(opened)[~inside])

    opened.locator(".kunet-edge-handle").nth(2).focus()
    opened.keyboard.press("ArrowDown")
    lower = handles(opened)[0]
    assert lower[2] < after[2] and lower[3:] == after[3:]
    opened.keyboard.press("ArrowUp")
    assert handles(opened)[0] == pytest.approx(after)
    opened.keyboard.press("PageUp")
    editor.values = handles(opened)[0]
    check_drawing(opened, editor)

    drag(opened, 6, 0, 2000)  # out of the figure: it stops at the edge, then the axis makes room
    editor.values = handles(opened)[0]
    check_drawing(opened, editor)
    assert max(handles(opened)[2]) < 268
    opened.get_by_role("button", name="reset").click()
    assert handles(opened)[0] == values and torch.equal(drawn(opened), drawn(opened, "start"))
    assert torch.allclose(drawn(opened)[:, 0], start[:, 0])


def test_a_finger_drags_a_point(page):
    opened = page(EdgeEditor(a_layer()))
    values = handles(opened)[0]
    box = opened.locator(".kunet-edge-handle").nth(3).locator("circle").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    devtools = opened.context.new_cdp_session(opened)
    for kind, points in (("Start", [y]), ("Move", [y + 20]), ("Move", [y + 40]), ("End", [])):
        touch = {"type": f"touch{kind}", "touchPoints": [{"x": x, "y": place} for place in points]}
        devtools.send("Input.dispatchTouchEvent", touch)
    after = handles(opened)[0]
    assert after[3] < values[3] and after[:3] + after[4:] == values[:3] + values[4:]


def test_the_script_is_a_module_that_follows_its_model(page):
    """As anywidget runs it: a drag sets the model's values, and values set in Python redraw the figure."""
    editor = EdgeEditor(a_layer())
    opened = page(EdgeEditor(a_layer()))
    opened.evaluate(
        """async ([script, values]) => {
            document.body.replaceChildren();
            const url = URL.createObjectURL(new Blob([script], { type: "text/javascript" }));
            const { default: widget } = await import(url);
            const heard = {};
            window.saved = [];
            window.model = { get: (key) => values[key], save_changes: () => saved.push(values.values),
              set: (key, value) => { values[key] = value; heard[`change:${key}`]?.(); },
              on: (event, then) => { heard[event] = then; } };
            widget.render({ model: window.model, el: document.body });
        }""",
        [editor._esm, {key: getattr(editor, key) for key in editor._state}],
    )
    drag(opened, 2, 0, -30)
    editor.set_state({"values": opened.evaluate("saved.at(-1)")})
    assert editor.values != editor.start
    check_drawing(opened, editor)
    editor.values = [0.25 * i for i in range(8)]
    opened.evaluate("values => model.set('values', values)", editor.values)
    check_drawing(opened, editor)


def test_the_page_says_which_points_no_sample_feels(page):
    editor = EdgeEditor(a_layer(), samples=torch.tensor([-0.9, -0.7, -5.0]))
    opened = page(editor)
    opened.locator(".kunet-edge-handle").nth(3).focus()
    text = opened.locator(".kunet-widget").inner_text()
    assert "3 samples, 1 beyond the figure" in text and "that no sample feels" in text
    assert "4 cells, 2 of 3 samples" in text and "−1\u00a0<\u00a0x\u00a0<\u00a00.6" in text
    marks = opened.locator(".kunet-edge-handle circle:nth-child(2)")
    filled = marks.evaluate_all("all => all.map(e => e.getAttribute('fill-opacity') === '1')")
    assert filled == [True] * 4 + [False] * 4  # both samples lie in the first cell
    assert opened.locator(".kunet-edge-rug").get_attribute("d").count("M") == 3


def test_a_point_at_the_end_counts_beyond_the_grid_where_the_spline_goes_on(page):
    opened = page(EdgeEditor(a_layer(outside="clamp", degree=1)))
    opened.locator(".kunet-edge-handle").first.focus()
    text = opened.locator(".kunet-widget").inner_text()
    assert "only for x\u00a0<\u00a0−0.6: 1 cell and beyond the grid" in text
