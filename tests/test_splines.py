"""Splines against scipy, then the laws."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import BSpline

from kunet import splines


def knot_vectors(degree):
    """Uniform, clamped, irregular, with inner repeats: each non-decreasing, float64."""
    rng = np.random.default_rng(degree)
    uniform = splines.uniform_knots(6, degree, -1.0, 2.0, dtype=torch.float64)
    clamped = splines.clamped_knots(torch.linspace(0, 1, 5, dtype=torch.float64), degree)
    irregular = torch.from_numpy(np.sort(rng.uniform(-2, 2, 2 * degree + 6)))
    doubled = splines.clamped_knots(torch.tensor([0.0, 0.2, 0.3, 1.0], dtype=torch.float64), degree)
    if degree > 1:
        doubled = torch.cat([doubled[: degree + 2], doubled[degree + 1 :]])
    return {"uniform": uniform, "clamped": clamped, "irregular": irregular, "repeated inside": doubled}


CASES = [(k, name) for k in range(6) for name in ("uniform", "clamped", "irregular", "repeated inside")]


@pytest.mark.parametrize("degree,name", CASES)
@pytest.mark.parametrize("order", [0, 1, 2])
def test_equals_scipy(degree, name, order):
    """Values and derivatives of every basis function on the base interval, right end and knots included."""
    knots = knot_vectors(degree)[name]
    t = knots.numpy()
    count = len(t) - degree - 1
    low, high = t[degree], t[count]
    x = np.unique(np.concatenate([np.linspace(low, high, 301), t[degree : count + 1]]))
    if order >= degree and name in ("uniform", "irregular"):
        # The last derivative jumps at every knot. Where the knots go on past the base interval, ours is
        # the one from the right, as at every knot; scipy's, at this one point, is the one from the left.
        x = x[x < high]
    ours = splines.basis_derivative(torch.from_numpy(x), knots, degree, order).numpy()
    for i in range(count):
        theirs = BSpline(t, np.eye(count)[i], degree)(x, nu=order) if order <= degree else np.zeros_like(x)
        scale = max(1.0, np.abs(theirs).max())
        assert np.abs(ours[:, i] - theirs).max() <= 1e-12 * scale


@pytest.mark.parametrize("degree", range(6))
def test_whole_functions_equal_scipy(degree):
    """Outside the base interval too, each function against scipy's single basis element."""
    knots = splines.uniform_knots(4, degree, dtype=torch.float64)
    x = torch.linspace(-3.3, 3.3, 400, dtype=torch.float64)
    ours = splines.basis(x, knots, degree)
    for i in range(4 + degree):
        theirs = BSpline.basis_element(knots[i : i + degree + 2].numpy(), extrapolate=False)(x.numpy())
        np.testing.assert_allclose(ours[:, i], np.nan_to_num(theirs), atol=1e-12)


@pytest.mark.parametrize("degree", range(6))
@pytest.mark.parametrize("grid_size", [1, 2, 5, 32])
def test_closed_form_equals_recursion(degree, grid_size):
    # points away from the knots: at a jump of degree 0, which side counts is a matter of the last bit
    x = torch.linspace(-1.993, 1.991, 777, dtype=torch.float64)
    closed = splines.uniform_basis(x, grid_size, degree)
    recursion = splines.basis(x, splines.uniform_knots(grid_size, degree, dtype=torch.float64), degree)
    assert torch.allclose(closed, recursion, atol=1e-12)


def test_closed_form_is_stable_in_float32():
    x = torch.linspace(-1, 1, 5001)
    for grid_size in (8, 128):
        exact = splines.uniform_basis(x.double(), grid_size, 3)
        assert float((splines.uniform_basis(x, grid_size, 3) - exact).abs().max()) < 1e-4


@settings(max_examples=60, deadline=None)
@given(
    degree=st.integers(0, 5),
    gaps=st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0]), min_size=1, max_size=8).filter(any),
    share=st.floats(0, 1),
)
def test_laws(degree, gaps, share):
    """Positive, one in sum on the base interval, zero outside the support; repeated knots and both ends included."""
    inner = torch.tensor([0.0, *gaps], dtype=torch.float64).cumsum(0)
    knots = torch.cat([inner[:1].expand(degree), inner, inner[-1:].expand(degree)])
    x = inner[-1] * torch.tensor([share, 0.0, 1.0], dtype=torch.float64)
    values = splines.basis(x, knots, degree)
    assert bool((values >= 0).all())
    assert torch.allclose(values.sum(-1), torch.ones(3, dtype=torch.float64), atol=1e-12)
    far = torch.stack([knots[0] - 1, knots[-1] + 1])
    assert not splines.basis(far, knots, degree).any()


@pytest.mark.parametrize("degree", [1, 2, 3, 5])
def test_gradcheck(degree):
    generator = torch.Generator().manual_seed(0)
    knots = splines.uniform_knots(4, degree, dtype=torch.float64)
    x = (torch.rand(7, generator=generator, dtype=torch.float64) * 2 - 1).requires_grad_()
    c = torch.randn(4 + degree, 2, generator=generator, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, c: splines.evaluate(x, c, knots, degree), (x, c))


def test_fit_recovers_a_spline():
    knots = splines.clamped_knots(torch.tensor([0, 0.1, 0.5, 0.8, 1], dtype=torch.float64), 3)
    x = torch.linspace(0, 1, 60, dtype=torch.float64)
    wanted = torch.randn(7, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = splines.fit(x, splines.evaluate(x, wanted, knots, 3), knots, 3)
    assert torch.allclose(found, wanted, atol=1e-10)


def test_fit_with_a_function_that_sees_no_data():
    knots = splines.uniform_knots(5, 3, dtype=torch.float64)
    x = torch.linspace(-1, 0, 50, dtype=torch.float64)
    c = splines.fit(x, x, knots, 3)
    assert bool(c.isfinite().all())
    assert torch.allclose(splines.evaluate(x, c, knots, 3), x, atol=1e-10)


@pytest.mark.parametrize("degree", range(1, 6))
def test_greville_makes_a_line(degree):
    knots = splines.uniform_knots(5, degree, dtype=torch.float64)
    x = torch.linspace(-1, 1, 50, dtype=torch.float64)
    assert torch.allclose(splines.evaluate(x, splines.greville(knots, degree), knots, degree), x, atol=1e-12)


def test_nan_stays_nan_and_empty_stays_empty():
    knots = splines.uniform_knots(5, 3)
    assert bool(splines.basis(torch.tensor([float("nan")]), knots, 3).isnan().all())
    assert splines.basis(torch.empty(0, 2), knots, 3).shape == (0, 2, 8)


@pytest.mark.parametrize(
    "call,words",
    [
        (lambda: splines.uniform_knots(0, 3), "at least 1 cell"),
        (lambda: splines.uniform_knots(5, 3, 1.0, 1.0), "lower < upper"),
        (lambda: splines.clamped_knots(torch.tensor([1.0, 0.0]), 2), "increasing"),
        (lambda: splines.basis(torch.zeros(1), torch.zeros(3), 2), "k \\+ 2 knots"),
        (
            lambda: splines.evaluate(torch.zeros(1), torch.zeros(3), splines.uniform_knots(5, 3), 3),
            "3 coefficients for 8",
        ),
        (lambda: splines.basis_derivative(torch.zeros(1), splines.uniform_knots(5, 3), 3, -1), "order is -1"),
        (lambda: splines.greville(splines.uniform_knots(5, 0), 0), "steps"),
    ],
)
def test_messages(call, words):
    with pytest.raises(ValueError, match=words):
        call()
