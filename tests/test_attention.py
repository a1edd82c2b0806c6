"""Tokens and attention against the formula and torch's own."""

import pytest
import torch
from torch import nn

from kunet.attention import PatchTokens, SelfAttention, WindowAttention, to_map, to_tokens


def test_tokens_and_back():
    x = torch.randn(2, 3, 4, 5)
    assert torch.equal(to_map(to_tokens(x), (4, 5)), x)
    assert torch.equal(to_tokens(x)[1, 7], x[1, :, 1, 2])
    with pytest.raises(ValueError, match="20 tokens for a map of 4 x 4"):
        to_map(to_tokens(x), (4, 4))


def test_patch_tokens_see_their_patch_only():
    torch.manual_seed(0)
    tokens = PatchTokens(3, 8, patch=2)
    x = torch.randn(1, 3, 6, 8)
    changed = x.clone()
    changed[..., 2:4, 4:6] += 1  # patch (1, 2) of 3 x 4
    difference = (tokens(x) - tokens(changed)).abs().sum(-1)[0]
    assert torch.nonzero(difference).flatten().tolist() == [1 * 4 + 2]


def test_equals_torch_multihead_attention():
    torch.manual_seed(0)
    ours, theirs = SelfAttention(12, 3), nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.qkv.weight)
        theirs.in_proj_bias.copy_(ours.qkv.bias)
        theirs.out_proj.weight.copy_(ours.out.weight)
        theirs.out_proj.bias.copy_(ours.out.bias)
    x = torch.randn(2, 7, 12)
    assert torch.allclose(ours(x), theirs(x, x, x)[0], atol=1e-5)
    valid = torch.ones(2, 7, dtype=torch.bool)
    valid[:, 5:] = False
    assert torch.allclose(ours(x, valid), theirs(x, x, x, key_padding_mask=~valid)[0], atol=1e-5)


def test_attention_is_permutation_equivariant():
    torch.manual_seed(0)
    attention, x, order = SelfAttention(8, 2), torch.randn(1, 6, 8), torch.randperm(6)
    assert torch.allclose(attention(x[:, order]), attention(x)[:, order], atol=1e-6)


@pytest.mark.parametrize("height,width", [(8, 8), (4, 12), (5, 7), (3, 2), (1, 1), (9, 4)])
def test_windows_are_attention_inside_each_window(height, width):
    torch.manual_seed(0)
    attention = WindowAttention(8, 2, window=4)
    x = torch.randn(2, height, width, 8)
    wanted = torch.empty_like(x)
    wh, ww = min(4, height), min(4, width)
    for top in range(0, height, wh):
        for left in range(0, width, ww):
            piece = x[:, top : top + wh, left : left + ww]
            answer = SelfAttention.forward(attention, piece.flatten(1, 2))
            wanted[:, top : top + wh, left : left + ww] = answer.reshape(piece.shape)
    assert torch.allclose(attention(x), wanted, atol=1e-5)


def test_messages():
    with pytest.raises(ValueError, match="3 heads for 8 channels"):
        SelfAttention(8, 3)
