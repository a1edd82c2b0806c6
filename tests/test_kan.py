"""KANLinear against its definition, edge by edge."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import BSpline

from kunet import splines
from kunet.kan import KANConv2d, KANLinear, grids


def by_definition(layer, x):
    """sum_i [w_oi base(x_i) + a_oi sum_j c_oij B_j(x_i)] + bias_o, splines by scipy, one edge at a time."""
    y = torch.zeros(len(x), layer.out_features, dtype=torch.float64)
    for o in range(layer.out_features):
        for i in range(layer.in_features):
            c = layer.coefficients()[o, i].detach().numpy()
            t = layer.knots[i].numpy()
            for j in range(len(c)):
                element = BSpline.basis_element(t[j : j + layer.degree + 2], extrapolate=False)(x[:, i].numpy())
                y[:, o] += c[j] * torch.from_numpy(element).nan_to_num()
            if layer.base is not None:
                y[:, o] += layer.base_weight[o, i].detach() * layer.base(x[:, i])
        if layer.bias is not None:
            y[:, o] += layer.bias[o].detach()
    return y


@pytest.mark.parametrize("degree", [1, 2, 3, 5])
@pytest.mark.parametrize("base", [None, torch.nn.functional.silu, torch.tanh])
@pytest.mark.parametrize("scaler,bias", [(False, False), (True, True)])
def test_equals_definition(degree, base, scaler, bias):
    torch.manual_seed(0)
    layer = KANLinear(3, 4, 5, degree, (-1.5, 1.0), base, scaler, bias).double()
    with torch.no_grad():
        for p in layer.parameters():
            p.normal_()
    x = torch.empty(40, 3, dtype=torch.float64).uniform_(-4, 4)
    assert torch.allclose(layer(x), by_definition(layer, x), atol=1e-12)
    for o, i in ((0, 0), (3, 2)):
        rest = layer(x)[:, o] - sum(layer.edge(x[:, n], o, n) for n in range(3) if n != i)
        assert torch.allclose(rest - (layer.bias[o] if bias else 0), layer.edge(x[:, i], o, i), atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.integers(0, 3), min_size=0, max_size=3),
    degree=st.integers(0, 4),
    grid_size=st.integers(1, 9),
    widths=st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
def test_shapes(shape, degree, grid_size, widths):
    layer = KANLinear(*widths, grid_size, degree)
    y = layer(torch.randn(*shape, widths[0]))
    assert y.shape == (*shape, widths[1]) and bool(y.isfinite().all())


def test_gradcheck_and_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    layer = KANLinear(2, 3, scaler=True, bias=True).double()
    x = torch.empty(5, 2, dtype=torch.float64).uniform_(-1.2, 1.2).requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,))
    layer(x).sum().backward()
    assert all(bool(p.grad.any()) for p in layer.parameters())


def test_linear_without_base_at_greville():
    """With coefficients w xi_j the layer is a linear layer inside its grid."""
    layer = KANLinear(3, 2, 6, 3, base=None).double()
    w = torch.randn(2, 3, dtype=torch.float64)
    with torch.no_grad():
        layer.spline_weight.copy_(w[..., None] * splines.greville(layer.knots, 3))
    x = torch.empty(20, 3, dtype=torch.float64).uniform_(-1, 1)
    assert torch.allclose(layer(x), x @ w.T, atol=1e-12)


def test_outside_the_grid_only_the_base_is_left():
    layer = KANLinear(2, 2)
    x = torch.tensor([[10.0, -10.0]])
    assert torch.allclose(layer(x), torch.nn.functional.silu(x) @ layer.base_weight.T)
    assert layer.outside_share(torch.tensor([[0.5, 1.5], [-2.0, 0.0]])) == 0.5
    assert not KANLinear(2, 2, base=None)(x).any()


def test_a_bfloat16_layer_returns_bfloat16():
    torch.manual_seed(0)
    layer = KANLinear(8, 6, bias=True)
    for rows in (5, 900):
        x = torch.empty(rows, 8).uniform_(-1, 1)
        low = copy.deepcopy(layer).bfloat16()(x.bfloat16()).detach()
        assert (
            low.dtype == torch.bfloat16
            and float((low.float() - layer(x).detach()).norm() / layer(x).detach().norm()) < 0.02
        )
        with torch.autocast("cpu", torch.bfloat16):
            assert KANLinear(256, 256)(torch.randn(rows, 256)).dtype == torch.bfloat16


def test_nan_in_nan_out():
    x = torch.tensor([[0.1, float("nan")]])
    for base in (None, torch.nn.functional.silu):
        assert bool(KANLinear(2, 3, base=base)(x).isnan().all())


def test_bfloat16_autocast_keeps_the_basis_exact():
    torch.manual_seed(0)
    layer = KANLinear(16, 16)
    x = torch.empty(64, 16).uniform_(-1, 1)
    assert layer.bases(x.bfloat16()).dtype == torch.float32
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            low = layer(x)
        assert float((low.float() - layer(x)).norm() / layer(x).norm()) < 0.01


def test_state_dict_round_trip():
    one, other = KANLinear(3, 2, scaler=True), KANLinear(3, 2, scaler=True)
    other.load_state_dict(one.state_dict())
    x = torch.randn(4, 3)
    assert torch.equal(one(x), other(x))


def test_parameters_an_edge():
    assert sum(p.numel() for p in KANLinear(7, 5, 5, 3, scaler=True).parameters()) == 10 * 35
    assert sum(p.numel() for p in KANLinear(7, 5, 5, 3, base=None).parameters()) == 8 * 35


def test_messages():
    with pytest.raises(ValueError, match="both must be 1 or more"):
        KANLinear(0, 3)
    with pytest.raises(ValueError, match="in_features = 3"):
        KANLinear(3, 2)(torch.zeros(5, 4))
    with pytest.raises(ValueError, match="lower < upper"):
        KANLinear(3, 2, grid_range=(1.0, -1.0))


def test_choices_are_checked_by_name():
    for options, message in (
        ({"outside": "wrap"}, "outside is 'wrap'; choose 'zero', 'linear' or 'clamp'"),
        ({"kernel": "fast"}, "kernel 'fast' is not known; choose one of auto"),
        ({"basis": "sinc"}, "basis 'sinc' is not known; choose one of bspline"),
    ):
        with pytest.raises(ValueError, match=message):
            KANLinear(2, 2, **options)
    for arguments, message in (
        ({"groups": 3}, r"4 -> 6 channels in 3 groups; both must be multiples"),
        ({"padding_mode": "mirror"}, "padding_mode is 'mirror'; choose zeros"),
        ({"stride": 0}, "the others 1 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            KANConv2d(4, 6, 3, **arguments)
    with pytest.raises(ValueError, match=r"x is \(1, 3, 5, 5\); it must be \(B, 4, H, W\)"):
        KANConv2d(4, 6, 3)(torch.zeros(1, 3, 5, 5))
    with pytest.raises(ValueError, match="the kernel needs 3x3"):
        KANConv2d(4, 6, 3)(torch.zeros(1, 4, 5, 2))


def test_convolution_of_linear_splines_is_conv2d():
    """Coefficients w xi_j at the Greville abscissae make every tap the line w x: the layer is conv2d on its grid."""
    torch.manual_seed(0)
    layer = KANConv2d(3, 5, 3, padding=1, grid_size=4, base=None).double()
    w = torch.randn(5, 3, 3, 3, dtype=torch.float64)
    with torch.no_grad():
        line = splines.greville(layer.knots[0], 3)
        layer.spline_weight.copy_(w[:, :, None] * line[:, None, None])
    x = torch.empty(2, 3, 8, 7, dtype=torch.float64).uniform_(-1, 1)
    assert torch.allclose(layer(x), torch.nn.functional.conv2d(x, w, padding=1), atol=1e-12)


def test_copies_and_moves_keep_the_grid_in_step():
    layer = KANLinear(3, 2)
    x = torch.randn(5, 3)
    layer(x)
    twin = copy.deepcopy(layer)
    grids.refine(twin, 10)
    assert layer.grid_size == 5 and layer(x).shape == (5, 2) and twin(x).shape == (5, 2)
    double = copy.deepcopy(twin).double()
    assert torch.allclose(double(x.double()), twin(x).double(), atol=1e-6)
    again = pickle.loads(pickle.dumps(twin))
    assert torch.equal(again(x), twin(x))


@pytest.mark.parametrize("outside", ["linear", "clamp"])
def test_outside_is_what_was_chosen(outside):
    layer = KANLinear(1, 1, base=None, outside=outside).double()
    end = torch.tensor([[1.0]], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(layer(end - 1e-9).sum(), end)
    far = layer(torch.tensor([[4.0]], dtype=torch.float64))
    expected = layer(end) + (3 * slope if outside == "linear" else 0)
    assert torch.allclose(far, expected, atol=1e-6)
