"""What is done to a layer: grids, fits, penalties, shapes, pruning, low rank, tables."""

import copy
from itertools import pairwise

import pytest
import torch
from scipy.integrate import quad
from scipy.interpolate import BSpline
from torch import nn

from kunet import splines
from kunet.kan import KANConv2d, KANLinear, grids, prune, regularise, shapes
from kunet.kan.bases import BASES
from kunet.kan.lowrank import LowRankKANLinear, factorise
from kunet.kan.tables import PolynomialKANLinear, TableKANLinear, quantise


def rough(layer, std=1.0, seed=0):
    """The layer with random weights everywhere."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return layer


def inside(layer, count=300, seed=0):
    """Points of the base interval of each feature, its ends too."""
    k = layer.degree
    low, high = layer.knots[:, k], layer.knots[:, -k - 1]
    u = torch.rand(count, len(low), generator=torch.Generator().manual_seed(seed), dtype=low.dtype)
    u[0], u[1] = 0.0, 1.0
    return low + (high - low) * u


LAYERS = {
    "plain": lambda: KANLinear(3, 4, 5),
    "scaler": lambda: KANLinear(3, 4, 5, scaler=True, bias=True),
    "degree 1": lambda: KANLinear(3, 4, 4, 1, base=None),
    "degree 2, linear": lambda: KANLinear(3, 4, 4, 2, (-2.0, 1.0), outside="linear"),
    "degree 5": lambda: KANLinear(3, 4, 3, 5),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("times", [2, 3, 8])
def test_refining_keeps_the_function(name, times):
    layer = rough(LAYERS[name]())
    before, x = copy.deepcopy(layer), inside(layer)
    grids.refine(layer, layer.grid_size * times)
    assert layer.spline_weight.shape[2] == before.grid_size * times + layer.degree
    with torch.no_grad():
        difference = (layer.double()(x.double()) - before.double()(x.double())).abs().max()
        assert float(difference / before(x.double()).abs().max()) < 1e-6


def test_refining_a_convolution_and_an_adapted_grid():
    conv = rough(KANConv2d(4, 6, 3, groups=2, padding=1, padding_mode="replicate"))
    x = torch.empty(2, 4, 6, 5).uniform_(-1, 1)
    before = conv(x).detach()
    grids.refine(conv, 15)
    assert torch.allclose(conv(x), before, atol=1e-5)
    layer = rough(KANLinear(2, 3))
    grids.adapt(layer, torch.randn(500, 2) * 0.3)
    x = inside(layer)
    before = layer(x).detach()
    grids.refine(layer, 2 * layer.grid_size)
    assert not layer.uniform and torch.allclose(layer(x), before, atol=1e-4)


def test_refining_between_steps_of_an_optimiser():
    """The parameter stays the same object; training goes on from the same loss."""
    torch.manual_seed(0)
    layer = KANLinear(2, 1, 4, base=None)
    x = torch.empty(400, 2).uniform_(-1, 1)
    y = torch.sin(6 * x[:, :1]) * 0.5 + x[:, 1:] ** 2
    optimizer = torch.optim.Adam(layer.parameters(), 0.03)
    losses = []
    for size in (4, 8, 16):
        grids.refine(layer, size, optimizer)
        for _ in range(150):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(layer(x), y)
            losses.append(loss.item())
            loss.backward()
            optimizer.step()
    assert layer.spline_weight is optimizer.param_groups[0]["params"][0]
    assert losses[150] < 1.2 * losses[149] and losses[-1] < losses[149] / 3


@pytest.mark.parametrize("scaler", [False, True])
def test_adapting_keeps_what_the_grid_can_hold(scaler):
    """Edges that are polynomials of degree k are the same on every grid, with or without a scaler."""
    layer = rough(KANLinear(3, 4, 8, 3, (-3.0, 3.0), scaler=scaler))
    with torch.no_grad():
        line = splines.greville(layer.knots, 3)
        layer.spline_weight.copy_(torch.randn(4, 3, 1) * line)
    x = torch.randn(2000, 3).clamp(-2.5, 2.5)
    before = layer(x).detach()
    grids.adapt(layer, x)
    assert not layer.uniform
    assert float((layer(x).detach() - before).norm() / before.norm()) < 1e-5
    assert layer.outside_share(x) == 0
    k = layer.degree
    counts = torch.stack([torch.histogram(x[:, i], layer.knots[i, k:-k].contiguous()).hist for i in range(3)])
    assert float(counts.max() / counts.min()) < 8  # equal steps over the range would give hundreds


def test_adapting_to_odd_data():
    layer = KANLinear(2, 3)
    x = torch.stack([torch.zeros(50), torch.tensor([1.0, 2.0]).repeat(25)], 1)
    grids.adapt(layer, x)
    assert bool(layer(x).isfinite().all()) and bool((layer.knots.diff(dim=1) > 0).all())
    fine = KANLinear(1, 1, 32)
    before = fine(torch.ones(1, 1)).detach()
    grids.adapt(fine, torch.ones(20, 1))
    assert bool((fine.knots.diff(dim=1) > 0).all()) and torch.allclose(fine(torch.ones(1, 1)), before, atol=1e-2)
    with pytest.raises(ValueError, match="1 rows"):
        grids.adapt(layer, x[:1])
    with pytest.raises(ValueError, match="finite"):
        grids.adapt(layer, x * torch.nan)


def test_moving_to_a_wider_range_keeps_the_middle():
    layer = rough(KANLinear(2, 3, 4, base=None, outside="linear"))
    x = inside(layer)
    before = layer(x).detach()
    grids.move(layer, -2.0, 2.0, 8)  # the old knots are among the new
    assert layer.grid_range == (-2.0, 2.0)
    assert torch.allclose(layer(x), before, atol=1e-4)
    with pytest.raises(ValueError, match="lower < upper"):
        grids.move(layer, 1.0, 1.0)
    with pytest.raises(ValueError, match="4 cells for a grid of 8"):
        grids.refine(layer, 4)


def test_state_dict_loads_after_a_grid_change():
    changed = rough(KANLinear(3, 2, 5, scaler=True))
    grids.refine(changed, 10)
    other = KANLinear(3, 2, 5, scaler=True)
    other.load_state_dict(changed.state_dict())
    x = torch.randn(50, 3)
    assert torch.equal(other(x), changed(x)) and other.grid_size == 10 and other.uniform
    grids.adapt(changed, x)
    prune.mask(changed, torch.rand(2, 3) > 0.5)
    other.load_state_dict(changed.state_dict())
    assert torch.equal(other(x), changed(x)) and not other.uniform
    conv, twin = rough(KANConv2d(2, 2, 3)), KANConv2d(2, 2, 3)
    grids.refine(conv, 20)
    twin.load_state_dict(conv.state_dict())
    image = torch.randn(1, 2, 5, 5)
    assert torch.equal(twin(image), conv(image))
    with pytest.raises(RuntimeError, match="size mismatch"):
        KANLinear(4, 2).load_state_dict(changed.state_dict())


def test_loading_brings_the_whole_function_along():
    """Another range, a constrained layer on an adapted grid; nothing is shared with the source, nothing half-done."""
    x = torch.empty(50, 3).uniform_(-1, 1)
    source, other = rough(LowRankKANLinear(3, 2, 2, grid_range=(-3.0, 3.0))), LowRankKANLinear(3, 2, 2)
    other.load_state_dict(source.state_dict())
    assert torch.allclose(other(x), source(x))
    layers = []
    for size in (8, 5):
        layer = KANLinear(3, 2, size, base=None, outside="linear")
        if size == 8:
            grids.adapt(layer, torch.randn(300, 3))
        layers.append(shapes.constrain(layer, "convex"))
    layers[1].load_state_dict(layers[0].state_dict())
    assert torch.allclose(layers[1](x), layers[0](x), atol=1e-6)
    source, other = rough(KANLinear(3, 2, 10, grid_range=(-0.1, 0.7))), KANLinear(3, 2, 10, grid_range=(-0.1, 0.7))
    other(x).sum().backward()
    other.load_state_dict(source.state_dict())
    assert other.grid_range == (-0.1, 0.7) and other.knots.data_ptr() != source.knots.data_ptr()
    smaller = KANLinear(3, 2, 4)
    smaller(x).sum().backward()
    smaller.load_state_dict(source.state_dict())
    smaller(x).sum().backward()
    narrow = KANLinear(3, 4, 5)
    with pytest.raises(RuntimeError, match="size mismatch"):
        narrow.load_state_dict(source.state_dict())


def test_adapting_under_ddp(tmp_path):
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        layer = KANLinear(3, 2)
        model = nn.parallel.DistributedDataParallel(layer)
        for step in range(4):
            model(torch.randn(20, 3)).sum().backward()
            if step == 1:
                grids.adapt(layer, torch.randn(100, 3))
    finally:
        torch.distributed.destroy_process_group()


def test_fit_recovers_a_layer():
    target, layer = rough(KANLinear(3, 2, 6, bias=True)), KANLinear(3, 2, 6, bias=True)
    x = torch.empty(2000, 3).uniform_(-1, 1)
    grids.fit(layer, x, target(x).detach())
    new = torch.empty(500, 3).uniform_(-1, 1)
    assert torch.allclose(layer(new), target(new), atol=2e-3)
    with pytest.raises(ValueError, match="do not fit"):
        grids.fit(layer, x, x)


def test_set_edge():
    layer = KANLinear(2, 2, 12, scaler=True)
    x = torch.linspace(-1, 1, 400)
    grids.set_edge(layer, 1, 0, x, torch.sin(3 * x))
    with torch.no_grad():
        assert torch.allclose(layer.edge(x, 1, 0), torch.sin(3 * x), atol=1e-4)


def test_smoothness_is_the_integral():
    layer = rough(KANLinear(2, 3, 4, 3, (-2.0, 1.0), scaler=True))
    total = 0.0
    for o in range(3):
        for i in range(2):
            spline = BSpline(layer.knots[i].double().numpy(), layer.coefficients()[o, i].detach().double().numpy(), 3)
            breaks = layer.knots[i, 3:-3].double().tolist()
            total += sum(quad(lambda x: spline(x, nu=2) ** 2, a, b)[0] for a, b in pairwise(breaks))  # noqa: B023
    assert float(regularise.smoothness(layer)) == pytest.approx(total / 6, rel=1e-5)
    straight = KANLinear(2, 3, base=None).double()
    with torch.no_grad():
        straight.spline_weight.copy_(splines.greville(straight.knots, 3).expand(3, -1, -1))
    assert abs(float(regularise.smoothness(straight))) < 1e-10
    assert regularise.smoothness(KANConv2d(2, 2, 3)).requires_grad
    with pytest.raises(ValueError, match="degree 2 or more"):
        regularise.smoothness(KANLinear(2, 2, degree=1))


def test_edge_values_sum_to_the_layer():
    layer = rough(KANLinear(3, 4, bias=True, scaler=True))
    x = torch.randn(20, 3)
    values = regularise.edge_values(layer, x)
    assert torch.allclose(values.sum(2) + layer.bias, layer(x), atol=1e-4)
    assert torch.allclose(values[:, 2, 1], layer.edge(x[:, 1], 2, 1), atol=1e-5)
    conv = rough(KANConv2d(4, 6, 3, groups=2))
    assert regularise.edge_values(conv, torch.randn(7, 4)).shape == (7, 6, 2, 3, 3)


def test_sparsity():
    layer = rough(KANLinear(3, 4, base=None))
    x = torch.empty(50, 3).uniform_(-1, 1)
    strength = regularise.edge_strength(layer, x)
    assert torch.allclose(strength[1, 2], layer.edge(x[:, 2], 1, 2).abs().mean(), atol=1e-6)
    p = strength / strength.sum()
    expected = strength.sum() - 0.5 * (p * p.log()).sum()
    assert float(regularise.sparsity(layer, x, 0.5)) == pytest.approx(float(expected), rel=1e-5)
    assert float(regularise.control_l1(layer)) == pytest.approx(float(layer.spline_weight.abs().mean()))
    assert float(regularise.control_l2(layer)) == pytest.approx(float(layer.spline_weight.square().mean()))


def train(layer, x, y, steps=200, lr=0.05):
    optimizer = torch.optim.Adam(layer.parameters(), lr)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(layer(x), y)
        loss.backward()
        optimizer.step()
    return loss.item()


@pytest.mark.parametrize("shape", shapes.SHAPES)
@pytest.mark.parametrize("degree", [1, 3])
def test_shapes_hold_at_ten_thousand_points(shape, degree):
    """After training on data that pull the other way, outside the grid too, and on uneven knots."""
    torch.manual_seed(0)
    layer = KANLinear(2, 2, 6, degree, base=None, bias=True, outside="linear")
    grids.adapt(layer, torch.randn(1000, 2) * 0.5)
    shapes.constrain(layer, shape)
    x = torch.empty(500, 2).uniform_(-1, 1)
    y = torch.stack([torch.sin(5 * x[:, 0]), torch.cos(4 * x[:, 1]) - x[:, 0]], 1)
    first = float(nn.functional.mse_loss(layer(x), y))
    assert train(layer, x, y) < first
    points = torch.linspace(-2, 2, 10_000, dtype=torch.float64)
    for o in range(2):
        for i in range(2):
            with torch.no_grad():
                # the shape is a law of the float32 weights: check it in exact arithmetic
                edge = layer.double().edge(points, o, i)
            sign = -1 if shape in ("decreasing", "concave") else 1
            change = edge.diff() if shape in ("increasing", "decreasing") else edge.diff().diff()
            assert float((sign * change).min()) > -1e-12


def test_shapes_start_where_the_layer_was_and_release():
    layer = KANLinear(3, 2, base=None, outside="linear")
    with torch.no_grad():
        layer.spline_weight.copy_(splines.greville(layer.knots, 3) + 0.05 * layer.knots[:, :8] ** 2)
    x = torch.empty(40, 3).uniform_(-1, 1)
    before = layer(x).detach()
    for shape in ("increasing", "convex"):
        shapes.constrain(layer, shape)
        assert torch.allclose(layer(x), before, atol=2e-3)
        saved = {name: value.clone() for name, value in layer.state_dict().items()}
        layer.load_state_dict(saved)
        with pytest.raises(ValueError, match="constrained"):
            grids.refine(layer, 10)
        shapes.release(layer)
    for other, message in (
        (KANLinear(2, 2, outside="linear"), "base=None"),
        (KANLinear(2, 2, base=None), "breaks the shape; choose linear or clamp"),
        (KANLinear(2, 2, base=None, basis="fourier"), "B-splines"),
    ):
        with pytest.raises(ValueError, match=message):
            shapes.constrain(other, "increasing")
    with pytest.raises(ValueError, match="'flat' is not known"):
        shapes.constrain(layer, "flat")


def test_masking_an_edge_changes_the_output_by_exactly_it():
    for kernel in ("eager", "auto"):
        layer = rough(KANLinear(40, 30, kernel=kernel)).double()
        x = torch.randn(300, 40, dtype=torch.float64)
        whole = layer(x)
        keep = torch.ones(30, 40, dtype=torch.bool)
        keep[7, 3] = False
        prune.mask(layer, keep)
        change = whole - layer(x)
        layer.edge_mask = None
        assert torch.allclose(change[:, 7], layer.edge(x[:, 3], 7, 3), atol=1e-12)
        change[:, 7] = 0
        assert not change.any()


def test_a_masked_edge_is_exactly_zero():
    layer = rough(KANLinear(3, 2, scaler=True))
    prune.mask(layer, torch.tensor([[True, False, True], [False, False, True]]))
    x = torch.randn(100, 3)
    assert not layer.edge(x[:, 1], 0, 1).any()
    other = x.clone()
    other[:, 1] = 5 * torch.randn(100)
    assert torch.equal(layer(x), layer(other))
    layer(x).sum().backward()
    assert not layer.spline_weight.grad[0, 1].any() and layer.spline_weight.grad[0, 0].any()
    with pytest.raises(ValueError, match=r"keep is \(2, 2\)"):
        prune.mask(layer, torch.ones(2, 2, dtype=torch.bool))
    conv = rough(KANConv2d(2, 2, 3))
    prune.mask(conv, torch.zeros(2, 2, 3, 3, dtype=torch.bool))
    assert not conv(torch.randn(1, 2, 6, 6)).any()


@pytest.mark.parametrize("bias", [False, True])
def test_shrinking_keeps_the_function(bias):
    torch.manual_seed(0)
    stack = nn.Sequential(*(rough(KANLinear(a, b, bias=bias), seed=a) for a, b in ((4, 9), (9, 7), (7, 2))))
    for layer in stack:
        prune.mask(layer, torch.rand(layer.out_features, layer.in_features) > 0.6)
    with torch.no_grad():
        stack[0].edge_mask[2] = 0  # a node that nothing reaches: a constant
        stack[1].edge_mask[:, 5] = 0  # one that nothing leaves
    x = torch.randn(60, 4)
    small = prune.shrink(stack)
    assert torch.allclose(small(x), stack(x), atol=1e-4)
    assert [layer.in_features for layer in small][1] <= 7 and stack[0].out_features == 9
    count = lambda model: sum(p.numel() for p in model.parameters())
    assert count(small) < 0.8 * count(stack)
    sparse = nn.Sequential(*(prune.SparseKANLinear(layer) for layer in small))
    assert torch.allclose(sparse(x), stack(x), atol=1e-4) and count(sparse) < 0.6 * count(small)
    assert sparse(x[:0]).shape == (0, 2)
    sparse(x).sum().backward()
    assert all(p.grad is not None for p in sparse.parameters())


def test_shrinking_to_nothing_still_runs():
    stack = nn.Sequential(KANLinear(2, 3), KANLinear(3, 1, bias=True))
    prune.mask(stack[0], torch.zeros(3, 2, dtype=torch.bool))
    small = prune.shrink(stack)
    assert torch.allclose(small(torch.randn(5, 2)), stack(torch.randn(5, 2)), atol=1e-6)


def test_importance_and_sensitivity_find_the_input_that_matters():
    torch.manual_seed(0)
    x = torch.empty(400, 3).uniform_(-1, 1)
    stack = nn.Sequential(KANLinear(3, 4, base=None), KANLinear(4, 1, grid_range=(-2.0, 2.0)))
    train(stack, x, torch.sin(3 * x[:, 1:2]) + 0.2 * x[:, 2:], 300, 0.03)
    importance = prune.feature_importance(stack, x)
    assert float(importance.sum()) == pytest.approx(1, abs=1e-5) and int(importance.argmax()) == 1
    slopes = prune.sensitivity(stack, x)
    assert slopes.shape == (1, 3) and slopes[0, 1] > slopes[0, 2] > slopes[0, 0]
    layer = stack[0]
    prune.mask_weakest(layer, x, 0.2)
    assert 0 < float(layer.edge_mask.mean()) < 1
    with pytest.raises(ValueError, match="share is 2"):
        prune.mask_weakest(layer, x, 2)
    with pytest.raises(ValueError, match="Sequential of KANLinear"):
        prune.feature_importance(nn.Sequential(nn.Linear(2, 2)), x)


@pytest.mark.parametrize("base", [None, torch.nn.functional.silu])
def test_low_rank(base):
    torch.manual_seed(0)
    low = rough(LowRankKANLinear(5, 6, 2, base=base, bias=True))
    x = torch.empty(50, 5).uniform_(-1.5, 1.5)
    full = low.full()
    assert torch.allclose(low(x), full(x), rtol=1e-4, atol=1e-4)
    back = factorise(full, 2)
    assert float((back(x) - full(x)).norm() / full(x).norm()) < 1e-3
    assert sum(p.numel() for p in low.parameters()) == 2 * (6 + 5 + 8 + (base is not None)) + 6
    with pytest.raises(ValueError, match="rank 0"):
        LowRankKANLinear(2, 2, 0)


def test_more_rank_is_nearer():
    full = rough(KANLinear(6, 5))
    x = torch.empty(100, 6).uniform_(-1, 1)
    errors = [float((factorise(full, rank)(x) - full(x)).norm() / full(x).norm()) for rank in (1, 8, 40)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.02


@pytest.mark.parametrize("name", [n for n in BASES if n != "bspline"])
def test_other_bases_are_layers(name):
    torch.manual_seed(0)
    layer = KANLinear(3, 2, 5, 3, (-2.0, 1.0), basis=name, bias=True)
    assert layer.spline_weight.shape == (2, 3, 8)
    x = torch.empty(300, 3).uniform_(-2, 1)
    assert layer.bases(x).shape == (300, 3, 8)
    y = sum(layer.edge(x[:, i], 1, i) for i in range(3)) + layer.bias[1]
    assert torch.allclose(layer(x)[:, 1], y, atol=1e-5)
    assert train(layer, x, torch.sin(2 * x[:, :2]), 300, 0.02) < 0.05
    line = KANLinear(1, 1, basis=name, base=None)
    with torch.no_grad():  # without its noise, a layer without base starts with straight edges, as splines do
        line.spline_weight.copy_(line._line())
    points = torch.linspace(-1, 1, 50)[:, None]
    assert torch.allclose(line(points), points, atol=0.15)  # bumps bend at the ends
    conv = KANConv2d(2, 3, 3, padding=1, basis=name)
    assert conv(torch.randn(1, 2, 6, 6)).shape == (1, 3, 6, 6)
    assert bool(layer(torch.full((1, 3), torch.nan)).isnan().all())
    with pytest.raises(ValueError, match="only B-splines have a grid"):
        grids.refine(layer, 10)


def test_table_is_near_and_its_two_ways_agree():
    torch.manual_seed(0)
    for layer in (
        KANLinear(70, 90, 8, bias=True),
        rough(KANLinear(70, 90, 8), 0.1),
        KANLinear(70, 90, basis="gaussian"),
    ):
        x = torch.empty(600, 70).uniform_(-1, 1)
        table = TableKANLinear(layer, 8, x)
        with torch.no_grad():
            exact = layer(x)
        assert float((table(x) - exact).norm() / exact.norm()) < 0.01
        assert torch.allclose(table._gathered(x), table(x), rtol=1e-4, atol=1e-4 * float(exact.abs().max()))
        whole = TableKANLinear(layer, 8)
        assert float((whole(x) - exact).norm() / exact.norm()) < 0.02
    assert table(x[:0]).shape == (0, 90)
    x[3, 5] = torch.nan
    assert bool(table(x)[3].isnan().all()) and not table(x)[4].isnan().any()
    assert bool(table._gathered(x)[3].isnan().all())
    held = x.nan_to_num().clamp(x[x == x].min(), x[x == x].max())
    assert torch.equal(table(held * 100).isfinite(), torch.ones(600, 90, dtype=torch.bool))
    assert torch.allclose(copy.deepcopy(table).double()(x[5:9]), table(x[5:9]), rtol=1e-4, atol=1e-3)
    for wrong in (x[:, :5], x):
        with pytest.raises(ValueError, match="give finite rows of 70 features"):
            TableKANLinear(layer, 8, wrong)
    with pytest.raises(ValueError, match="intervals; at most 4096"):
        TableKANLinear(layer, 8, torch.tensor([[0.0], [1e6]]).expand(2, 70))
    with pytest.raises(ValueError, match="0 samples"):
        TableKANLinear(layer, 0)


@pytest.mark.parametrize("degree", range(6))
def test_polynomials_are_exact(degree):
    layer = rough(KANLinear(3, 4, 5, degree, scaler=True, bias=True)).double()
    x = torch.empty(500, 3, dtype=torch.float64).uniform_(-4, 4)
    with torch.no_grad():
        assert torch.allclose(PolynomialKANLinear(layer)(x), layer(x), atol=1e-10)
        knots = layer.knots[0, :3].repeat(2, 1).T  # the ends and the knots themselves, too
        for at in (knots, -knots, torch.ones(2, 3).double(), torch.full((1, 3), torch.nan).double()):
            at = at.reshape(-1, 1).expand(-1, 3)
            assert torch.allclose(PolynomialKANLinear(layer)(at), layer(at), atol=1e-9, equal_nan=True)
        grids.adapt(layer, x / 3)
        assert torch.allclose(PolynomialKANLinear(layer)(x), layer(x), atol=1e-9)
        breaks = torch.linspace(-1, 1, 6, dtype=torch.float64)
        layer.set_knots(splines.clamped_knots(breaks, degree).repeat(3, 1))
        ends = torch.tensor([[1.0, -1.0, 0.2]], dtype=torch.float64)
        assert torch.allclose(PolynomialKANLinear(layer)(ends), layer(ends), atol=1e-9)
    with pytest.raises(ValueError, match="outside 'linear'"):
        PolynomialKANLinear(KANLinear(2, 2, outside="linear"))


def test_quantising_costs_what_its_bits_say():
    layer = rough(KANLinear(64, 32))
    x = torch.empty(400, 64).uniform_(-1, 1)
    exact, errors = layer(x).detach(), []
    for bits in (8, 6, 4):
        errors.append(float((quantise(copy.deepcopy(layer), bits)(x) - exact).norm() / exact.norm()))
    assert errors[0] < 0.015 and 2.5 < errors[1] / errors[0] < 6 and 2.5 < errors[2] / errors[1] < 6
    with pytest.raises(ValueError, match="1 bits"):
        quantise(layer, 1)
