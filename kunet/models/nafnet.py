"""NAFNet: a UNet of blocks whose only nonlinearities are products and normalisation; a published baseline."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kunet.blocks import LayerNorm2d, pad_to_multiple


class SimpleGate(nn.Module):
    """One half of the channels times the other: (B, 2C, H, W) -> (B, C, H, W). Source: arXiv 2204.04676, equation 4."""

    def forward(self, x: Float[Tensor, "B C2 H W"]) -> Float[Tensor, "B C H W"]:
        a, b = x.chunk(2, 1)
        return a * b


class NAFBlock(nn.Module):
    """y = x + beta f(x), then y + gamma g(y): f mixes pixels and, by a global mean, channels; g channels alone.

    (B, C, H, W) -> (B, C, H, W). The factors begin at 0.01 where the published code has 0, with which no other
    parameter of the block would get a gradient in the first step. Source: arXiv 2204.04676, figure 3c.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.spatial = nn.Sequential(
            LayerNorm2d(channels, eps=1e-6),
            nn.Conv2d(channels, 2 * channels, 1),
            nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels),
            SimpleGate(),
        )
        self.attention = nn.Conv2d(channels, channels, 1)  # "simplified channel attention", equation 6
        self.mix = nn.Conv2d(channels, channels, 1)
        self.feed = nn.Sequential(
            LayerNorm2d(channels, eps=1e-6),
            nn.Conv2d(channels, 2 * channels, 1),
            SimpleGate(),
            nn.Conv2d(channels, channels, 1),
        )
        self.beta, self.gamma = (nn.Parameter(torch.full((channels, 1, 1), 0.01)) for _ in range(2))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        y = self.spatial(x)
        y = x + self.beta * self.mix(y * self.attention(y.mean((2, 3), keepdim=True)))
        return y + self.gamma * self.feed(y)


class NAFNet(nn.Module):
    """NAFBlocks at every level of a UNet: down by strided convolution, up by pixel shuffle, skips added, residual.

    The global mean in every block lets each output pixel see the whole image, so an image cut into tiles comes out
    a little different from a whole one. ``noise_level`` is ignored.

    Args:
        channels: of the image.
        width: channels at full size; each level down doubles them.
        encoder, middle, decoder: blocks at each level on the way down (full size first), at the bottom, and on the
            way up (deepest first); as many levels up as down.

    The defaults are the published ones for denoising (SIDD): 29,159,715 parameters; width 16 has 7,371,923.
    Raises: ValueError when encoder and decoder have different lengths.
    Source: L. Chen et al., "Simple Baselines for Image Restoration", arXiv 2204.04676.
    """

    classes = None  # it restores
    recomputed = (NAFBlock,)

    def __init__(
        self,
        channels: int = 3,
        width: int = 32,
        encoder: tuple[int, ...] = (2, 2, 4, 8),
        middle: int = 12,
        decoder: tuple[int, ...] = (2, 2, 2, 2),
    ):
        super().__init__()
        if len(encoder) != len(decoder):
            raise ValueError(f"NAFNet: {len(encoder)} encoder and {len(decoder)} decoder levels; give as many of each")
        widths = [width * 2**level for level in range(len(encoder) + 1)]
        stage = lambda dim, blocks: nn.Sequential(*(NAFBlock(dim) for _ in range(blocks)))
        self.multiple = 2 ** len(encoder)
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.encoder = nn.ModuleList(stage(dim, blocks) for dim, blocks in zip(widths, encoder))
        self.down = nn.ModuleList(nn.Conv2d(dim, 2 * dim, 2, stride=2) for dim in widths[:-1])
        self.middle = stage(widths[-1], middle)
        self.up = nn.ModuleList(
            nn.Sequential(nn.Conv2d(dim, 2 * dim, 1, bias=False), nn.PixelShuffle(2)) for dim in widths[:0:-1]
        )
        self.decoder = nn.ModuleList(stage(dim, blocks) for dim, blocks in zip(widths[-2::-1], decoder))
        self.last = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, noisy: Float[Tensor, "B C H W"], noise_level=0.0) -> Float[Tensor, "B C H W"]:
        height, width = noisy.shape[-2:]
        x, kept = self.first(pad_to_multiple(noisy, self.multiple)), []
        for stage, down in zip(self.encoder, self.down):
            kept.append(stage(x))
            x = down(kept[-1])
        x = self.middle(x)
        for up, stage, skip in zip(self.up, self.decoder, reversed(kept)):
            x = stage(up(x) + skip)
        return noisy + self.last(x)[..., :height, :width]
