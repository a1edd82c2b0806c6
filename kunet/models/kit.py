"""KiT, the k-NN image transformer, as its supplement describes it; what that leaves open is chosen here.

Source: H. Lee, H. Choi, K. Sohn, D. Min, "KNN Local Attention for Image Restoration", CVPR 2022.
Notebook: notebooks/12_knn_attention.ipynb.
"""

from itertools import count

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kunet.attention import KNNAttention
from kunet.blocks import pad_to_multiple

SKIPS = ("concat", "add")
FOUR_LEVELS = {"width": 32, "levels": 4, "ratio": 4.0, "conv": True, "down": 4, "skip": "concat"}
"""The alternative to KiT's defaults: one level more than the supplement has, and near both of the published counts."""


class FeedForward(nn.Module):
    """Linear, GELU, a depthwise 3x3 convolution with GELU where asked for, Linear: (B, H, W, D) -> (B, H, W, D).

    The convolution is the block's only view across the border of a patch that does not depend on hashes.
    Source: Z. Wang et al., "Uformer", arXiv 2106.03106, section 3.2.
    """

    def __init__(self, dim: int, hidden: int, conv: bool):
        super().__init__()
        self.first, self.second = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden) if conv else None

    def forward(self, x: Float[Tensor, "B H W D"]) -> Float[Tensor, "B H W D"]:
        x = F.gelu(self.first(x))
        if self.conv is not None:
            x = F.gelu(self.conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        return self.second(x)


class KNNBlock(nn.Module):
    """x + KLA(LN(x)), then x + FFN(LN(x)): (B, H, W, D) -> (B, H, W, D)."""

    def __init__(self, attention: KNNAttention, dim: int, hidden: int, conv: bool):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention, self.feedforward = attention, FeedForward(dim, hidden, conv)

    def forward(self, x: Float[Tensor, "B H W D"]) -> Float[Tensor, "B H W D"]:
        x = x + self.attention(self.norm1(x))
        return x + self.feedforward(self.norm2(x))


class KiT(nn.Module):
    """A U of k-NN transformer blocks between 3x3 convolutions, which predicts what to add to the image.

    From the supplement: a 3x3 convolution to C channels; encoder stages of C, 2C, 4C channels (``levels`` = 3), a
    bottleneck of 8C with N / 64 patches, a mirrored decoder; in a stage, patches of r = 4 pixels a side and b = 2
    blocks (LN - KLA - LN - FFN); k = 4, in the bottleneck k = 1; two-dimensional down- and upsampling.

    Published nowhere, and so chosen here:

    - width: C = 96;
    - heads: one for every 32 channels;
    - feed-forward network: Linear, GELU, Linear, as wide inside as outside (``ratio`` 1), without a convolution;
    - resampling: 4x4 convolutions of stride 2 down, 2x2 transposed ones up;
    - fusion of skips: added;
    - hashing: one round, of patch means after the LayerNorm, not centred, in 64 buckets, each block with random
      rotations of its own;
    - aggregation: the mean over the neighbours' softmaxes;
    - position: not encoded;
    - the end: a 3x3 convolution, whose output is added to the image; the noise level is not used;
    - loss: the mean absolute error; optimiser: AdamW at 2e-4, with this package's schedule (recipes kit_*.yaml).

    Width, feed-forward network, resampling and fusion are those, of all that benchmarks/kit_search.py counts with three
    levels, which come nearest to the published 20.6 M parameters and 43.08 GMACs at 256x256: 19.5 M and 75.0
    (book/results/kit.json). None is near both figures. ``FOUR_LEVELS`` is: 20.6 M and 41.0, with the choices of
    Uformer-S, arXiv 2106.03106, and one level more than the supplement has. ``KiT(**FOUR_LEVELS)`` is that network. No
    published score has been reproduced with either.

    Args:
        channels: of the image.
        width: C.
        levels: stages of the encoder, and so halvings of the size.
        blocks: b, in each stage.
        heads: at C channels, and in proportion to the channels elsewhere; None has one for every 32 channels.
        k, patch, buckets, centre: KNNAttention's.
        ratio, conv: FeedForward's hidden channels over its own, and whether it has the convolution.
        down: side of the downsampling convolutions: 2, 3 or 4.
        skip: "concat", or "add" (decoder stages are then as wide as the encoder's).
        classes: None restores; a number returns that many logits a pixel (which are no residual).
    Raises: ValueError for numbers below 1, or another ``down`` or ``skip``.
    """

    recomputed = (KNNBlock,)

    def __init__(
        self,
        channels: int = 3,
        width: int = 96,
        levels: int = 3,
        blocks: int = 2,
        heads: int | None = None,
        k: int = 4,
        patch: int = 4,
        buckets: int = 64,
        centre: bool = False,
        ratio: float = 1.0,
        conv: bool = False,
        down: int = 4,
        skip: str = "add",
        classes: int | None = None,
    ):
        super().__init__()
        heads = max(1, width // 32) if heads is None else heads
        if min(width, levels, blocks, heads, k) < 1 or down not in (2, 3, 4) or skip not in SKIPS:
            raise ValueError(
                f"KiT: width {width}, levels {levels}, blocks {blocks}, heads {heads}, k {k}, down {down}, skip"
                f" {skip!r}; numbers are 1 or more, down 2, 3 or 4, skip {' or '.join(SKIPS)}"
            )
        self.skip, self.multiple = skip, patch * 2**levels
        self.classes, self.residual = classes, classes is None
        widths, seeds = [width * 2**level for level in range(levels + 1)], count()

        def stage(dim: int, k: int = k) -> nn.Sequential:
            attention = lambda: KNNAttention(dim, heads * dim // width, k, patch, buckets, centre, next(seeds))
            return nn.Sequential(*(KNNBlock(attention(), dim, int(ratio * dim), conv) for _ in range(blocks)))

        grow = 2 if skip == "concat" else 1
        inner = [*(grow * w for w in widths[:-1]), widths[-1]]  # channels that each level sends up
        self.head = nn.Conv2d(channels, width, 3, padding=1)
        self.encoder = nn.ModuleList(stage(w) for w in widths[:-1])
        self.down = nn.ModuleList(nn.Conv2d(w, 2 * w, down, stride=2, padding=(down - 1) // 2) for w in widths[:-1])
        self.bottleneck = stage(widths[-1], k=1)
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(inner[level + 1], widths[level], 2, stride=2) for level in reversed(range(levels))
        )
        self.decoder = nn.ModuleList(stage(w) for w in reversed(inner[:-1]))
        self.last = nn.Conv2d(inner[0], classes or channels, 3, padding=1)

    def forward(self, degraded: Float[Tensor, "B C H W"], noise_level=None) -> Float[Tensor, "B O H W"]:
        height, width = degraded.shape[-2:]
        x, kept = self.head(pad_to_multiple(degraded, self.multiple)), []
        for stage, down in zip(self.encoder, self.down):
            kept.append(_on_map(stage, x))
            x = down(kept[-1])
        x = _on_map(self.bottleneck, x)
        for up, stage, skip in zip(self.up, self.decoder, reversed(kept)):
            x = _on_map(stage, torch.cat([up(x), skip], 1) if self.skip == "concat" else up(x) + skip)
        x = self.last(x)[..., :height, :width]
        return degraded + x if self.residual else x


def _on_map(stage: nn.Module, x: Float[Tensor, "B D H W"]) -> Float[Tensor, "B D H W"]:
    """Blocks work on (B, H, W, D), convolutions on (B, D, H, W)."""
    return stage(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
