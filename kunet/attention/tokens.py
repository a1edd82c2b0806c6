"""Tokens and attention: feature maps to patch tokens and back, global or windowed self-attention.

Axes: maps are (B, C, H, W), tokens (B, N, D) with N = H W in row-major order.
Notebook: notebooks/08_tokens.ipynb.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def to_tokens(x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N C"]:
    """(B, C, H, W) -> (B, H W, C), row by row."""
    return x.flatten(2).transpose(1, 2)


def to_map(tokens: Float[Tensor, "B N C"], size: tuple[int, int]) -> Float[Tensor, "B C H W"]:
    """The inverse of ``to_tokens`` for a map of the given (H, W)."""
    if tokens.shape[1] != size[0] * size[1]:
        raise ValueError(f"to_map: {tokens.shape[1]} tokens for a map of {size[0]} x {size[1]}; they must agree")
    return tokens.transpose(1, 2).unflatten(2, size)


class PatchTokens(nn.Module):
    """Non-overlapping patches to normalised tokens: strided convolution, then LayerNorm.

    (B, C, H, W) -> (B, (H // p) (W // p), D). Source: A. Dosovitskiy et al., "ViT", arXiv 2010.11929, equation 1.
    """

    def __init__(self, in_channels: int, dim: int, patch: int = 2):
        super().__init__()
        self.project = nn.Conv2d(in_channels, dim, patch, stride=patch)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:
        return self.norm(to_tokens(self.project(x)))


class SelfAttention(nn.Module):
    """softmax(Q K^T / sqrt(d)) V over all tokens of a sequence, with ``heads`` heads of d = D / heads.

    (B, N, D) -> (B, N, D). ``valid`` (B, N), where given, hides the tokens that are False.
    Raises: ValueError when heads does not divide dim.
    Source: A. Vaswani et al., "Attention Is All You Need", arXiv 1706.03762, equation 1.
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        if heads < 1 or dim % heads:
            raise ValueError(f"SelfAttention: {heads} heads for {dim} channels; heads must divide the channels")
        self.heads = heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "B N D"], valid: Tensor | None = None) -> Float[Tensor, "B N D"]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, heads, N, d)
        mask = None if valid is None else valid[:, None, None, :]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(1, 2).flatten(2))


class WindowAttention(SelfAttention):
    """Self-attention inside windows of ``window`` x ``window`` tokens of a map: cost linear in the map's size.

    (B, H, W, D) -> (B, H, W, D). Maps that the window does not divide are completed with tokens
    that nobody attends to; a map smaller than the window is one window.
    Source: Z. Liu et al., "Swin Transformer", arXiv 2103.14030, section 3.2 (without shifts).
    """

    def __init__(self, dim: int, heads: int, window: int):
        super().__init__(dim, heads)
        self.window = window

    def forward(self, x: Float[Tensor, "B H W D"]) -> Float[Tensor, "B H W D"]:
        batch, height, width, dim = x.shape
        wh, ww = min(self.window, height), min(self.window, width)
        down, right = -height % wh, -width % ww
        valid = None
        if down or right:
            x = F.pad(x, (0, 0, 0, right, 0, down))
            valid = torch.ones(1, height, width, 1, device=x.device, dtype=torch.bool)
            valid = F.pad(valid, (0, 0, 0, right, 0, down)).expand(batch, -1, -1, -1)
            valid = _windows(valid, wh, ww).squeeze(-1)
        y = super().forward(_windows(x, wh, ww), valid)
        y = y.unflatten(1, (wh, ww)).unflatten(0, (batch, (height + down) // wh, (width + right) // ww))
        return y.transpose(2, 3).reshape(batch, height + down, width + right, dim)[:, :height, :width]


class ChannelAttention(SelfAttention):
    """Attention among the channels of a head, not the tokens: softmax(t q k^T) v, q and k of length 1 over the tokens.

    (B, H, W, D) -> (B, H, W, D). Parameters as SelfAttention's, and t, one number a head.
    Source: A. El-Nouby et al., "XCiT", arXiv 2106.09681, equation 3.
    """

    def __init__(self, dim: int, heads: int):
        super().__init__(dim, heads)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))

    def forward(self, x: Float[Tensor, "B H W D"]) -> Float[Tensor, "B H W D"]:
        heads = self.qkv(x.flatten(1, 2)).unflatten(-1, (3, self.heads, -1))
        q, k, v = heads.permute(2, 0, 3, 4, 1)  # each (B, heads, d, N)
        weights = (self.temperature * F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT).softmax(-1)
        return self.out((weights @ v).flatten(1, 2).mT).unflatten(1, x.shape[1:3])


def _windows(x: Tensor, wh: int, ww: int) -> Tensor:
    """(B, H, W, D) -> (B nH nW, wh ww, D)."""
    x = x.unflatten(2, (-1, ww)).unflatten(1, (-1, wh))  # B nH wh nW ww D
    return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)
