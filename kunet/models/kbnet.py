"""KBNet: networks around kernel-basis attention, small blocks in a plain UNet (s) or Restormer's skeleton (l).

Source: Y. Zhang et al., "KBNet: Kernel Basis Network for Image Restoration", arXiv 2303.02881, and the authors'
published configurations. One difference: images are reflected to the multiple that the levels need, where the
published s pads with zeros and the published l takes no other size.
Notebook: notebooks/11_kernel_basis.ipynb.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kunet.attention import KernelBasis
from kunet.blocks import LayerNorm2d, pad_to_multiple
from kunet.models.nafnet import NAFNet, SimpleGate

SCALE = 1e-2
"""Where every learned scale of a branch starts: a new block hardly changes what it gets."""


def scale(channels: int) -> nn.Parameter:
    return nn.Parameter(torch.full((1, channels, 1, 1), SCALE))


class MFF(nn.Module):
    """Multi-axis feature fusion: an image-wide, a spatially fixed and a pixel-adaptive branch, multiplied.

    (B, C, H, W) -> (B, C, H, W): out((KBA(u, att) * ga1 + u) * act(x1) * sca), where sca comes from the mean of each
    channel, x1 and u from two fixed convolutions, and att, the pixels' choice among the bases, from a gated one.

    Args:
        hidden: channels inside.
        bases, group_channels: of the KernelBasis.
        gate: channels of the gated convolution that finds att (fewer where there are fewer).
        bias: of the fixed branches and the last convolution.
        local: kernel size and channels a group of x1's convolution.
        act: on x1.
    Raises: ValueError for channels that do not divide into halves and groups.
    Source: arXiv 2303.02881, section 3.3.
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        bases: int,
        group_channels: int,
        gate: int,
        bias: bool,
        local: tuple[int, int] = (3, 1),
        act: nn.Module | None = None,
    ):
        super().__init__()

        def fixed(kernel: int, group: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(channels, hidden, 1, bias=bias),
                nn.Conv2d(hidden, hidden, kernel, padding=kernel // 2, groups=hidden // group, bias=bias),
            )

        if channels % 2 or hidden % local[1]:
            raise ValueError(
                f"MFF: {channels} channels, {hidden} inside; give an even number, and a multiple of {local[1]} inside"
            )
        gate = min(channels, gate)
        self.sca = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, hidden, 1))
        self.x1, self.act = fixed(*local), act or nn.Identity()
        self.uf = fixed(3, 1)
        self.gated = nn.Sequential(
            nn.Conv2d(channels, gate, 3, padding=1, groups=math.gcd(channels, gate)),
            SimpleGate(),
            nn.Conv2d(gate // 2, bases, 1),
        )
        self.linear = nn.Conv2d(channels, bases, 1)
        self.basis = KernelBasis(hidden, bases, group_channels)
        self.attgamma, self.ga1 = scale(bases), scale(hidden)
        self.out = nn.Conv2d(hidden, channels, 1, bias=bias)

    def coefficients(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N H W"]:
        """att: how much of each basis each pixel takes."""
        return self.gated(x) * self.attgamma + self.linear(x)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        u = self.uf(x)
        u = self.basis(u, self.coefficients(x)) * self.ga1 + u
        return self.out(u * self.act(self.x1(x)) * self.sca(x))


class BlockS(nn.Module):
    """x + beta MFF(norm(x)), then y + gamma FFN(norm(y)), an FFN of 1x1 convolutions around a gate: KBNet_s's block."""

    def __init__(self, channels: int, bases: int, group_channels: int, ffn: float, lightweight: bool):
        super().__init__()
        local = (3, 1) if lightweight else (5, 4)
        half = int(ffn * channels) // 2
        self.norm1, self.norm2 = (LayerNorm2d(channels, eps=1e-6) for _ in range(2))
        self.mff = MFF(channels, channels, bases, group_channels, 32, True, local)
        self.ffn = nn.Sequential(nn.Conv2d(channels, 2 * half, 1), SimpleGate(), nn.Conv2d(half, channels, 1))
        self.beta, self.gamma = scale(channels), scale(channels)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        x = x + self.mff(self.norm1(x)) * self.beta
        return x + self.ffn(self.norm2(x)) * self.gamma


class ChannelAttention(nn.Module):
    """Attention among channels, not pixels: softmax(t q k^T) v over (channels, pixels), so linear in the pixels.

    Rows of q and k have length 1; t is learned for each head.
    Raises: ValueError when heads does not divide channels.
    Source: S. Zamir et al., "Restormer", arXiv 2111.09881, section 3.1.
    """

    def __init__(self, channels: int, heads: int):
        super().__init__()
        if heads < 1 or channels % heads:
            raise ValueError(f"ChannelAttention: {heads} heads for {channels} channels; heads must divide the channels")
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Sequential(
            nn.Conv2d(channels, 3 * channels, 1, bias=False),
            nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels, bias=False),
        )
        self.out = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        qkv = self.qkv(x).flatten(2).unflatten(1, (3, len(self.temperature), -1))  # B 3 heads C/heads HW
        q, k, v = qkv.unbind(1)
        weights = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature
        return self.out((weights.softmax(-1) @ v).flatten(1, 2).unflatten(2, x.shape[-2:]))


class BlockL(nn.Module):
    """x + MFF(norm(x)), then y + ChannelAttention(norm(y)): KBNet_l's block."""

    def __init__(self, channels: int, heads: int, bases: int, group_channels: int, ffn: float):
        super().__init__()
        self.norm1, self.norm2 = (LayerNorm2d(channels, eps=1e-6) for _ in range(2))
        self.mff = MFF(channels, int(ffn * channels), bases, group_channels, 24, False, act=nn.GELU())
        self.attention = ChannelAttention(channels, heads)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        x = x + self.mff(self.norm1(x))
        return x + self.attention(self.norm2(x))


class KBNetS(NAFNet):
    """KBNet_s: NAFNet's residual UNet, skips added, of MFF blocks. The defaults are the published Gaussian denoiser.

    141,966,659 parameters; 68.7 GMACs in convolutions at 256 x 256, and 48.6 in the KBA, which the
    published figure leaves out. The published real-noise (SIDD) denoiser has lightweight=True, ffn=1.5: 128,403,395.

    Args:
        channels: of the image.
        width: channels at full size; they double at each of the len(encoder) halvings.
        encoder, middle, decoder: blocks of each level on the way down, at the bottom, on the way up.
        bases, group_channels: of the KernelBasis.
        ffn: channels inside the FFN, as a multiple.
        lightweight: a depthwise 3x3 convolution in place of a 5x5 one in groups of 4 channels.
    Raises: ValueError for widths that no group of channels divides, or another number of levels up than down.
    """

    recomputed = (BlockS,)

    def __init__(
        self,
        channels: int = 3,
        width: int = 64,
        encoder: tuple[int, ...] = (2, 2, 4, 8),
        middle: int = 12,
        decoder: tuple[int, ...] = (2, 2, 2, 2),
        bases: int = 32,
        group_channels: int = 4,
        ffn: float = 2.0,
        lightweight: bool = False,
    ):
        super().__init__(channels, width, (0,) * len(encoder), 0, (0,) * len(decoder))  # the skeleton alone
        stages, depths = [*self.encoder, self.middle, *self.decoder], (*encoder, middle, *decoder)
        for i, (stage, depth) in enumerate(zip(stages, depths)):
            dim = width * 2 ** min(i, 2 * len(encoder) - i)
            stage.extend(BlockS(dim, bases, group_channels, ffn, lightweight) for _ in range(depth))


class KBNetL(nn.Module):
    """KBNet_l: Restormer's UNet with MFF in place of its feed-forward network. The defaults are the published network.

    29,568,100 parameters; 107.7 GMACs in convolutions at 256 x 256, and 88.6 in the KBA, which the published
    figure leaves out. Skips are concatenated; the full-size decoder and what follows it work on twice ``width``.

    Args:
        channels: of the image.
        width: channels at full size; they double at every further level.
        depths, heads: blocks of each level, and heads of its attention.
        refinement: blocks at the end.
        bases, group_channels: of the KernelBasis.
        ffn: channels inside an MFF, as a multiple.
    Raises: ValueError for channels that groups or heads do not divide, or fewer than 2 levels.
    """

    classes = None  # it restores
    recomputed = (BlockL,)

    def __init__(
        self,
        channels: int = 3,
        width: int = 48,
        depths: tuple[int, ...] = (4, 6, 6, 8),
        heads: tuple[int, ...] = (1, 2, 4, 8),
        refinement: int = 4,
        bases: int = 32,
        group_channels: int = 2,
        ffn: float = 1.5,
    ):
        super().__init__()
        if len(depths) != len(heads) or len(depths) < 2:
            raise ValueError(
                f"KBNetL: {len(depths)} depths and {len(heads)} heads; give one of each a level, 2 or more"
            )

        def stage(level: int, channels: int, depth: int) -> nn.Sequential:
            return nn.Sequential(*(BlockL(channels, heads[level], bases, group_channels, ffn) for _ in range(depth)))

        widths = [width * 2**level for level in range(len(depths))]
        above = list(reversed(range(len(depths) - 1)))  # the decoder's levels, deepest first
        joined = [widths[level] * (1 if level else 2) for level in above]
        conv = lambda a, b: nn.Conv2d(a, b, 3, padding=1, bias=False)
        self.multiple = 2 ** (len(depths) - 1)
        self.first = conv(channels, width)
        self.encoder = nn.ModuleList(stage(i, w, depth) for i, (w, depth) in enumerate(zip(widths, depths)))
        self.down = nn.ModuleList(nn.Sequential(conv(w, w // 2), nn.PixelUnshuffle(2)) for w in widths[:-1])
        self.up = nn.ModuleList(nn.Sequential(conv(w, 2 * w), nn.PixelShuffle(2)) for w in widths[:0:-1])
        self.join = nn.ModuleList(
            nn.Conv2d(2 * w, w, 1, bias=False) if level else nn.Identity() for level, w in zip(above, joined)
        )
        self.decoder = nn.ModuleList(stage(level, w, depths[level]) for level, w in zip(above, joined))
        self.refinement = stage(0, 2 * width, refinement)
        self.last = conv(2 * width, channels)

    def forward(self, noisy: Float[Tensor, "B C H W"], noise_level=0.0) -> Float[Tensor, "B C H W"]:
        height, width = noisy.shape[-2:]
        x, kept = self.first(pad_to_multiple(noisy, self.multiple)), []
        for stage, down in zip(self.encoder, self.down):
            kept.append(stage(x))
            x = down(kept[-1])
        x = self.encoder[-1](x)
        for up, join, stage in zip(self.up, self.join, self.decoder):
            x = stage(join(torch.cat([up(x), kept.pop()], 1)))
        return noisy + self.last(self.refinement(x))[..., :height, :width]
