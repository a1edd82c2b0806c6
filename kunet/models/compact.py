"""CompactKUnet: KUnet's ideas at a size that a laptop runs; the architecture of the released weights.

Notebook: notebooks/09_kunet.ipynb.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kunet.attention import PatchTokens, WindowAttention, to_map
from kunet.blocks import ResidualBlock, Up, noise_map, pad_to_multiple
from kunet.kan import KANLinear


class TokenBlock(nn.Module):
    """Positions by a depthwise convolution, then pre-norm attention, then a pre-norm KANLinear, each added on.

    (B, D, H, W) -> (B, D, H, W). The LayerNorm before the KANLinear and its wide grid keep its
    inputs where splines live: about 1% of unit normals lie outside +-2.5.
    Source: positions as in X. Chu et al., "Conditional Positional Encodings", arXiv 2102.10882.
    """

    def __init__(self, dim: int, heads: int, window: int, grid_size: int, degree: int, grid_range: tuple[float, float]):
        super().__init__()
        self.position = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = WindowAttention(dim, heads, window)
        self.kan = KANLinear(dim, dim, grid_size, degree, grid_range)

    def forward(self, x: Float[Tensor, "B D H W"]) -> Float[Tensor, "B D H W"]:
        x = (x + self.position(x)).permute(0, 2, 3, 1)
        x = x + self.attention(self.norm1(x))
        x = x + self.kan(self.norm2(x))
        return x.permute(0, 3, 1, 2)


class CompactKUnet(nn.Module):
    """Residual separable UNet behind a pixel-unshuffle stem, with a token branch at half its lowest size.

    Dense 3x3 convolutions at the first ``dense_levels`` levels, where they use a CPU or GPU better, depthwise
    separable ones below. Skips are added. Given the noise level as a map beside the image
    (as FFDNet, arXiv 1710.04026, does), it predicts the noise of any sigma it was trained on, also of one that
    varies over the image.

    Args:
        channels: of the image.
        stem: pixel-unshuffle factor s; level l works at 1 / (s 2^l) of the size.
        widths, depths: channels of each level and residual blocks on its way down (and again on its way up;
            at the deepest level, before and after the tokens).
        dense_levels: how many levels, from the top, use dense convolutions.
        token_depth, heads, window: TokenBlocks, of widths[-1] channels, at half the deepest size.
        grid_size, degree, grid_range: of each KANLinear.
        ends: tell the network of every value whether it lies at an end of the range or beyond, where an 8-bit file
            has clipped it: one more channel each, 1 from white on, -1 from black down, else 0.
    """

    classes = None  # it restores
    recomputed = (ResidualBlock, TokenBlock)

    def __init__(
        self,
        channels: int = 3,
        stem: int = 2,
        widths: tuple[int, ...] = (32, 64, 128),
        depths: tuple[int, ...] = (1, 2, 2),
        dense_levels: int = 1,
        token_depth: int = 2,
        heads: int = 4,
        window: int = 8,
        grid_size: int = 5,
        degree: int = 3,
        grid_range: tuple[float, float] = (-2.5, 2.5),
        ends: bool = False,
    ):
        super().__init__()
        if len(widths) != len(depths) or not widths:
            raise ValueError(f"CompactKUnet: {len(widths)} widths and {len(depths)} depths; give one of each a level")
        if min(stem, window, *widths) < 1 or min(depths) < 0:
            raise ValueError(
                f"CompactKUnet: stem {stem}, window {window}, widths {widths}, depths {depths}; all must be 1 or more"
                " (a depth may be 0)"
            )
        self.stem, self.multiple, self.ends = stem, stem * 2 ** len(widths), ends

        def stage(level: int) -> nn.Sequential:
            blocks = (ResidualBlock(widths[level], separable=level >= dense_levels) for _ in range(depths[level]))
            return nn.Sequential(*blocks)

        pairs = list(pairwise(widths))
        self.head = nn.Conv2d((1 + ends) * channels * stem**2 + 1, widths[0], 3, padding=1)
        self.encoder = nn.ModuleList(stage(level) for level in range(len(widths)))
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairs)
        dim = widths[-1]
        self.tokenizer = PatchTokens(dim, dim, patch=2)
        self.tokens = nn.Sequential(
            *(TokenBlock(dim, heads, window, grid_size, degree, grid_range) for _ in range(token_depth))
        )
        self.unpatchify = Up(dim, dim)
        self.decoder = nn.ModuleList(stage(level) for level in reversed(range(len(widths))))
        self.up = nn.ModuleList(Up(b, a) for a, b in reversed(pairs))
        self.tail = nn.Conv2d(widths[0], channels * stem**2, 3, padding=1)

    def forward(self, noisy: Float[Tensor, "B C H W"], noise_level=0.0) -> Float[Tensor, "B C H W"]:
        height, width = noisy.shape[-2:]
        x = F.pixel_unshuffle(pad_to_multiple(noisy, self.multiple), self.stem)
        told = [x, noise_map(noise_level, noisy, self.multiple, self.stem)]
        x = torch.cat([*told, (x >= 1).to(x) - (x <= 0).to(x)] if self.ends else told, 1)
        x = top = self.head(x)
        kept = []
        for i, stage in enumerate(self.encoder):
            x = stage(self.down[i - 1](x) if i else x)
            kept.append(x)
        tokens = to_map(self.tokenizer(x), (x.shape[-2] // 2, x.shape[-1] // 2))
        x = x + self.unpatchify(self.tokens(tokens))
        for i, stage in enumerate(self.decoder):
            x = stage(self.up[i - 1](x) + kept[-1 - i] if i else x)
        x = F.pixel_shuffle(self.tail(x + top), self.stem)
        return noisy + x[..., :height, :width]
