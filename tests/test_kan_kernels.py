"""Every kernel against the float64 reference: values and gradients, over degrees, grids, shapes and odd inputs."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kunet import splines
from kunet.kan import KANConv2d, KANLinear, kernels
from kunet.kan.kernels import Grid, compiled

COMPILER = compiled.library(3) is not None
FAST = ["traced", "eager", *(["local"] if COMPILER else [])]
needs_compiler = pytest.mark.skipif(not COMPILER, reason="no C++ compiler with OpenMP on this machine")


def grids(degree, features=3, outside="zero"):
    """A uniform grid, an irregular one (each feature its own), a clamped one, one with a double knot."""
    generator = torch.Generator().manual_seed(degree)
    uniform = splines.uniform_knots(6, degree, -1.0, 2.0, dtype=torch.float64).repeat(features, 1)
    gaps = torch.rand(features, 2 * degree + 6, generator=generator, dtype=torch.float64) + 0.1
    clamped = splines.clamped_knots(torch.tensor([-1.0, -0.2, 0.3, 2.0], dtype=torch.float64), degree)
    double = torch.cat([uniform[:, : degree + 2], uniform[:, degree + 1 :]], 1)
    return {
        "uniform": Grid(uniform, degree, (-1.0, 2.0, 6), outside),
        "irregular": Grid(gaps.cumsum(1) - 3, degree, None, outside),
        "clamped": Grid(clamped.repeat(features, 1), degree, None, outside),
        "double knot": Grid(double, degree, None, outside),
    }


def single(grid):
    return Grid(grid.knots.float(), grid.degree, grid.uniform, grid.outside)


def run(kernel, grid, x, weight, g):
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = kernels.linear(x, grid, weight, kernel)
    y.backward(g)
    return y.detach(), x.grad, weight.grad


def distance(a, b):
    return float((a.double() - b).norm() / b.norm().clamp(min=1e-12))


@pytest.mark.parametrize("outside", ["zero", "linear", "clamp"])
@pytest.mark.parametrize("degree", range(6))
@pytest.mark.parametrize("kernel", FAST)
def test_equals_the_reference(kernel, degree, outside):
    """float32 within 1e-5 relative, inputs inside and far out; gradients of x only where the slope does not jump."""
    for name, grid in grids(degree, outside=outside).items():
        generator = torch.Generator().manual_seed(1)
        x = torch.empty(700, 3, dtype=torch.float64).uniform_(-4, 5, generator=generator)
        if degree == 0:  # float32 and float64 must agree on the side of a step
            near = (x[..., None] - grid.knots).abs().amin(-1) < 1e-5
            x = torch.where(near, x + 1e-3, x)
        weight, g = (
            torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((5, 3, grid.functions), (700, 5))
        )
        exact = run("reference", grid, x, weight, g)
        found = run(kernel, single(grid), x.float(), weight.float(), g.float())
        far = [distance(a, b) for a, b in zip(found, exact)]
        assert far[0] < 1e-5 and far[2] < 1e-5, (name, far)
        if degree > 1:  # a slope that jumps at a knot is another number a rounding away
            assert far[1] < 1e-5, (name, far)
        elif degree == 1:
            same = (x[..., None] - grid.knots).abs().amin(-1) > 1e-4
            assert distance(found[1] * same, exact[1] * same) < 1e-5, (name, far)


@pytest.mark.parametrize("degree", range(1, 6))
def test_eager_in_float64_to_rounding(degree):
    for outside in ("zero", "linear", "clamp"):
        for name, grid in grids(degree, outside=outside).items():
            x = torch.linspace(-3.97, 4.93, 90, dtype=torch.float64).view(30, 3)
            weight, g = torch.randn(2, 3, grid.functions).double(), torch.randn(30, 2).double()
            exact = run("reference", grid, x, weight, g)
            for kernel in ("eager", "traced"):
                for a, b in zip(run(kernel, grid, x, weight, g), exact):
                    assert torch.allclose(a, b, rtol=1e-10, atol=1e-10), (name, outside, kernel)


@pytest.mark.parametrize("degree", [1, 2, 3, 5])
@pytest.mark.parametrize("outside", ["zero", "linear", "clamp"])
def test_reference_gradcheck(degree, outside):
    grid = grids(degree, 2, outside)["uniform"]
    x = torch.tensor([[-0.83, 0.21], [1.37, 1.91], [-1.7, 2.6]], dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 2, grid.functions, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *a: kernels.linear(a[0], grid, a[1], "reference"), (x, weight))
    if degree > 1:
        assert torch.autograd.gradgradcheck(lambda *a: kernels.linear(a[0], grid, a[1], "reference"), (x, weight))


@settings(max_examples=120, deadline=None)
@given(
    kernel=st.sampled_from(FAST),
    degree=st.integers(1, 5),
    cells=st.integers(1, 40),
    rows=st.sampled_from([0, 1, 2, 63, 65, 513, 1030]),
    features=st.integers(1, 5),
    outputs=st.sampled_from([1, 3, 16, 17, 33, 100, 129]),
    lower=st.floats(-5, 2),
    span=st.floats(0.1, 20),
    outside=st.sampled_from(["zero", "linear", "clamp"]),
    seed=st.integers(0, 99),
)
@example("traced", 1, 15, 1, 1, 1, 0.0, 1.0, "zero", 27)  # 0.0002, beside control points of 1
def test_any_shape(kernel, degree, cells, rows, features, outputs, lower, span, outside, seed):
    """Any number of rows (none too), inputs on knots, at the ends, far outside, NaN in one row."""
    generator = torch.Generator().manual_seed(seed)
    knots = splines.uniform_knots(cells, degree, lower, lower + span, dtype=torch.float64).repeat(features, 1)
    grid = Grid(knots, degree, (lower, lower + span, cells), outside)
    x = torch.randn(rows, features, generator=generator, dtype=torch.float64) * span + lower + span / 2
    if rows > 60:
        x[3], x[4], x[5], x[6] = knots[0, degree], knots[0, -degree - 1], knots[0, degree + 1], lower + 1000 * span
        x[7] = float("nan")
        if outside != "linear":
            x[8], x[9] = float("inf"), -float("inf")
    weight = torch.randn(outputs, features, grid.functions, generator=generator, dtype=torch.float64)
    exact = kernels.linear(x, grid, weight, "reference")
    found = kernels.linear(x.float(), single(grid), weight.float(), kernel)
    assert found.shape == (rows, outputs)
    assert torch.equal(found.isnan(), exact.isnan())
    # a float32 x or step is off by a rounding of its size, which the slope of the spline (~ cells / span) multiplies
    rounding = 1.2e-7 * (abs(lower) + span) * cells / span * (1000 if outside == "linear" else 1)
    scale = exact.nan_to_num().abs().amax() + 1e-12 if rows else 1.0
    slope = max(scale, weight.abs().amax() / 10)  # a lone output may be nearly zero where it is steep
    assert bool(((found - exact).nan_to_num().abs() <= 1e-5 * scale + 10 * rounding * slope).all())


def test_chunks_agree_with_one_piece():
    """More rows than are expanded at a time change nothing but the order of sums of the weights' gradient."""
    grid = single(grids(3)["uniform"])
    x, weight, g = torch.randn(1500, 3), torch.randn(4, 3, grid.functions), torch.randn(1500, 4)
    exact = run("traced", grid, x, weight, g)
    for kernel in FAST[1:]:
        for a, b in zip(run(kernel, grid, x, weight, g), exact):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


@needs_compiler
def test_threads_change_nothing():
    grid = single(grids(3)["uniform"])
    x, weight, g = torch.randn(1500, 3), torch.randn(40, 3, grid.functions), torch.randn(1500, 40)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run("local", grid, x, weight, g)
        torch.set_num_threads(2)
        two = run("local", grid, x, weight, g)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(one, two))


def test_choice(monkeypatch):
    grid, x = single(grids(3)["uniform"]), torch.zeros(4096, 3)
    monkeypatch.delenv("KUNET_KERNEL", raising=False)
    if COMPILER:
        assert kernels.choose("auto", x, 4096, 256 * 256, grid) == "local"
    assert kernels.choose("auto", x, 64, 1024 * 2048, grid) == "eager"
    assert kernels.choose("auto", x.double(), 4096, 256 * 256, grid) == "eager"
    monkeypatch.setenv("KUNET_KERNEL", "eager")
    assert kernels.choose("auto", x, 4096, 256 * 256, grid) == "eager"
    assert kernels.choose("reference", x, 4096, 256 * 256, grid) == "reference"
    monkeypatch.setenv("KUNET_KERNEL", "fastest")
    with pytest.raises(ValueError, match="'fastest' is not known; choose one of auto"):
        kernels.choose("auto", x, 1, 1, grid)
    with pytest.raises(ValueError, match=r"'local': x is torch.float64 .* choose 'auto' or 'eager'"):
        kernels.choose("local", x.double(), 1, 1, grid)
    with pytest.raises(ValueError, match="'triton': "):
        kernels.choose("triton", x.double(), 1, 1, grid)


def test_without_a_compiler_all_works(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    compiled.load.cache_clear()
    try:
        assert compiled.library(3) is None
        layer = KANLinear(64, 64)
        assert layer(torch.randn(2048, 64)).shape == (2048, 64)
        with pytest.raises(ValueError, match="no C\\+\\+ compiler"):
            KANLinear(64, 64, kernel="local")(torch.randn(8, 64))
    finally:
        compiled.load.cache_clear()


def test_a_compiler_that_fails_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "false")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiled.load.cache_clear()
    try:
        with pytest.warns(UserWarning, match="false could not build the fast KAN kernel"):
            assert compiled.library(3) is None
    finally:
        compiled.load.cache_clear()


def test_nothing_is_compiled_at_import(tmp_path):
    code = "import kunet.kan, kunet.models; kunet.kan.KANLinear(8, 8)"
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("rows", [8, 700])
@pytest.mark.parametrize("kernel", FAST)
def test_gradients_can_be_differentiated_again(kernel, rows):
    """As penalties on gradients and physics losses need: of x and of the weights, weights frozen or not."""
    torch.manual_seed(0)
    layer = KANLinear(4, 3, kernel=kernel)
    with torch.no_grad():
        layer.spline_weight.normal_()
    exact = copy.deepcopy(layer).double()
    exact.kernel = "reference"
    x = torch.empty(rows, 4).uniform_(-1.3, 1.3)

    def second(layer, x):
        x = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), (x, *layer.parameters()))

    for a, b in zip(second(layer, x), second(exact, x.double())):
        assert distance(a, b) < 1e-4
    for model, value in ((layer, x), (exact, x.double())):
        model.requires_grad_(False)
        value.requires_grad_()
    (one,) = torch.autograd.grad(layer(x).sum(), x, create_graph=True)
    xd = x.detach().double().requires_grad_()
    (other,) = torch.autograd.grad(exact(xd).sum(), xd, create_graph=True)
    assert distance(torch.autograd.grad(one.sum(), x)[0], torch.autograd.grad(other.sum(), xd)[0]) < 1e-4


@needs_compiler
def test_what_does_not_fit_never_reaches_the_compiled_kernel():
    layer = KANLinear(16, 16, kernel="local")
    x = torch.randn(300, 16)
    with pytest.raises(ValueError, match=r"the weights torch\.float64 on cpu; they must agree"):
        copy.deepcopy(layer).double()(x)
    with pytest.raises(ValueError, match="on meta; they must agree"):
        copy.deepcopy(layer).to("meta")(x)
    layer.set_knots(splines.uniform_knots(400, 3).repeat(16, 1), (-1.0, 1.0, 400))
    with pytest.raises(ValueError, match="16 features and the grid 403 functions; the weights are for 16 and 8"):
        layer(x)


def test_a_large_image_in_bands(monkeypatch):
    """More rows than fit a chunk or a band, with stride and dilation: the same as in one piece."""
    from kunet.kan.kernels import eager

    torch.manual_seed(0)
    for options in ({"padding": 1}, {"stride": 2, "dilation": 2, "padding": (3, 1)}, {"padding": 6}):
        layer = KANConv2d(3, 5, 3, padding_mode="bases", kernel="traced", **options)
        x, results = torch.empty(2, 3, 37, 41).uniform_(-1.2, 1.2), []
        for kernel in FAST:
            monkeypatch.setattr(eager, "PIXELS", 700)
            layer.kernel = kernel
            value = x.clone().requires_grad_()
            y = layer(value)
            results.append((y.detach(), *torch.autograd.grad(y.square().sum(), (value, *layer.parameters()))))
        for found in results[1:]:
            for a, b in zip(found, results[0]):
                assert distance(a, b.double()) < 1e-5, options


CONVOLUTIONS = {
    "3x3": {"padding": 1},
    "stride": {"stride": 2, "padding": (1, 0)},
    "dilation": {"dilation": (2, 1), "padding": (2, 3)},
    "uneven": {"kernel_size": (1, 3), "stride": (1, 2)},
    "groups": {"groups": 2, "padding": 1},
    "depthwise": {"groups": 4, "padding": 1},
}


def by_definition(layer, x):
    """The sums of KANConv2d's docstring, a tap at a time, by ``edge``; bases padded with zeros, or x."""
    (kh, kw), (sh, sw), (dh, dw), (ph, pw) = layer.kernel_size, layer.stride, layer.dilation, layer.padding
    batch, _, height, width = x.shape
    inside = torch.nn.functional.pad(torch.ones_like(x), (pw, pw, ph, ph))
    mode = {"zeros": "constant", "bases": "constant"}.get(layer.padding_mode, layer.padding_mode)
    padded = torch.nn.functional.pad(x, (pw, pw, ph, ph), mode=mode)
    out = ((height + 2 * ph - dh * (kh - 1) - 1) // sh + 1, (width + 2 * pw - dw * (kw - 1) - 1) // sw + 1)
    y = torch.zeros(batch, layer.out_channels, *out, dtype=x.dtype)
    members = layer.in_channels // layer.groups
    for o in range(layer.out_channels):
        for i in range(members):
            channel = o // (layer.out_channels // layer.groups) * members + i
            for p in range(kh):
                for q in range(kw):
                    rows, columns = slice(p * dh, p * dh + sh * out[0], sh), slice(q * dw, q * dw + sw * out[1], sw)
                    patch = padded[:, channel, rows, columns][:, : out[0], : out[1]]
                    seen = inside[:, channel, rows, columns][:, : out[0], : out[1]]
                    value = layer.edge(patch.reshape(-1), o, i, (p, q)).view_as(patch)
                    y[:, o] += value * (seen if layer.padding_mode == "bases" else 1)
    return y if layer.bias is None else y + layer.bias[:, None, None]


@pytest.mark.parametrize("kernel", ["reference", *FAST])
@pytest.mark.parametrize("padding_mode", ["zeros", "bases", "reflect"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_equals_brute_force(name, padding_mode, kernel):
    torch.manual_seed(0)
    options = {"kernel_size": 3} | CONVOLUTIONS[name]
    if name == "dilation" and padding_mode == "reflect":
        options["padding"] = (2, 2)
    layer = KANConv2d(4, 6 if name != "depthwise" else 8, padding_mode=padding_mode, bias=True, scaler=True, **options)
    layer.kernel = kernel
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    x = torch.empty(2, 4, 7, 6).uniform_(-1.5, 1.5)
    with torch.no_grad():
        assert distance(layer(x), by_definition(layer.double(), x.double())) < 1e-5


@pytest.mark.parametrize("kernel", FAST)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_gradients(name, kernel):
    torch.manual_seed(0)
    layer = KANConv2d(4, 8, **({"kernel_size": 3} | CONVOLUTIONS[name]), padding_mode="bases", kernel=kernel)
    with torch.no_grad():
        layer.spline_weight.normal_()
    exact = KANConv2d(
        4, 8, **({"kernel_size": 3} | CONVOLUTIONS[name]), padding_mode="bases", kernel="reference"
    ).double()
    exact.load_state_dict(layer.state_dict())
    x = torch.empty(3, 4, 23, 19).uniform_(-1.5, 1.5).requires_grad_()
    xd = x.detach().double().requires_grad_()
    y, yd = layer(x), exact(xd)
    g = torch.randn_like(y)
    y.backward(g)
    yd.backward(g.double())
    assert distance(x.grad, xd.grad) < 1e-5
    for (which, p), q in zip(layer.named_parameters(), exact.parameters()):
        assert distance(p.grad, q.grad) < 1e-5, which
