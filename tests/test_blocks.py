"""Convolutional blocks against torch's own, and the one place that pads."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kunet.blocks import DepthwiseSeparable, LayerNorm2d, ResidualBlock, Up, pad_to_multiple


def test_separable_is_one_convolution_after_another():
    torch.manual_seed(0)
    block = DepthwiseSeparable(4, 6)
    x = torch.randn(2, 4, 7, 9)
    depth = torch.nn.functional.conv2d(x, block[0].weight, block[0].bias, padding=1, groups=4)
    wanted = torch.einsum("oi,bihw->bohw", block[1].weight[..., 0, 0], depth) + block[1].bias[:, None, None]
    assert torch.allclose(block(x), wanted, atol=1e-6)


def test_layernorm2d():
    x = torch.randn(2, 8, 3, 5)
    y = LayerNorm2d(8)(x)
    assert torch.allclose(y.mean(1), torch.zeros(2, 3, 5), atol=1e-5)
    assert torch.allclose(y.var(1, unbiased=False), torch.ones(2, 3, 5), atol=1e-3)


def test_residual_block_adds():
    block = ResidualBlock(4, separable=True)
    torch.nn.init.zeros_(block.second[1].weight)
    torch.nn.init.zeros_(block.second[1].bias)
    x = torch.randn(1, 4, 5, 5)
    assert torch.equal(block(x), x)


def test_up_doubles():
    assert Up(6, 4)(torch.randn(2, 6, 3, 5)).shape == (2, 4, 6, 10)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 2, 16, 32]))
def test_pad_to_multiple(height, width, multiple):
    x = torch.arange(height * width, dtype=torch.float32).reshape(1, 1, height, width)
    y = pad_to_multiple(x, multiple)
    assert y.shape[-2] % multiple == y.shape[-1] % multiple == 0
    assert y.shape[-2] - height < multiple and y.shape[-1] - width < multiple
    assert torch.equal(y[..., :height, :width], x)
    # reflection: reading on past the edge is reading backwards
    reflect = lambda i, n: 0 if n == 1 else (n - 1) - abs((n - 1) - i % (2 * n - 2))
    rows, columns = ([reflect(i, n) for i in range(m)] for n, m in ((height, y.shape[-2]), (width, y.shape[-1])))
    assert torch.equal(y, x[..., rows, :][..., columns])


def test_messages():
    with pytest.raises(RuntimeError):
        DepthwiseSeparable(4, 6)(torch.randn(1, 5, 8, 8))
