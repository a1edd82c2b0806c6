"""Convolutional building blocks: separable convolutions, LayerNorm2d, double convolutions, residual blocks.

Notebooks: notebooks/06_unet.ipynb, 07_separable.ipynb.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class DepthwiseSeparable(nn.Sequential):
    """A 3x3 convolution on each channel alone, then a 1x1 convolution across channels; both with bias.

    (B, C, H, W) -> (B, C', H, W) with 9 C + C C' multiplications a pixel where a dense one needs 9 C C'.
    Source: A. Howard et al., "MobileNets", arXiv 1704.04861, section 3.1.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(
            nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels),
            nn.Conv2d(in_channels, out_channels, 1),
        )


def conv3x3(in_channels: int, out_channels: int, separable: bool) -> nn.Module:
    """A 3x3 convolution that keeps the size, dense or depthwise separable."""
    if separable:
        return DepthwiseSeparable(in_channels, out_channels)
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of each pixel of a (B, C, H, W) map (eps 1e-5)."""

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class DoubleConv(nn.Sequential):
    """[3x3 convolution, LayerNorm over channels, ReLU] twice: the published KUnet's block."""

    def __init__(self, in_channels: int, out_channels: int, separable: bool = True):
        super().__init__(
            conv3x3(in_channels, out_channels, separable),
            LayerNorm2d(out_channels),
            nn.ReLU(inplace=True),
            conv3x3(out_channels, out_channels, separable),
            LayerNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class ResidualBlock(nn.Module):
    """x + conv(ReLU(conv(x))), without normalisation: the cheapest block that trains deep in a denoiser.

    Source: B. Lim et al., "EDSR", arXiv 1707.02921, figure 2c.
    """

    def __init__(self, channels: int, separable: bool):
        super().__init__()
        self.first, self.second = (conv3x3(channels, channels, separable) for _ in range(2))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        return self.second(F.relu(self.first(x), inplace=True)).add_(x)  # in place: two maps less at once


class Up(nn.Sequential):
    """Twice the size by a 1x1 convolution and a pixel shuffle: (B, C, H, W) -> (B, C', 2H, 2W)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(nn.Conv2d(in_channels, 4 * out_channels, 1), nn.PixelShuffle(2))


def pad_to_multiple(x: Float[Tensor, "B C H W"], multiple: int) -> Float[Tensor, "B C H2 W2"]:
    """Reflect x at its bottom and right edges until both sizes are multiples; any size >= 1 works.

    torch's own reflection needs the padding to be smaller than the image, so small images are
    reflected as often as it takes (a side of 1 pixel is repeated: it has nothing to reflect).
    """
    for axis in (-2, -1):
        target = -(-x.shape[axis] // multiple) * multiple
        while (missing := target - x.shape[axis]) > 0:
            step = min(missing, max(x.shape[axis] - 1, 1))
            mode = "reflect" if x.shape[axis] > 1 else "replicate"
            x = F.pad(x, (0, step, 0, 0) if axis == -1 else (0, 0, 0, step), mode=mode)
    return x


def noise_map(
    noise_level: float | Tensor, image: Float[Tensor, "B C H W"], multiple: int, scale: int
) -> Float[Tensor, "B 1 h w"]:
    """The noise level as one more channel of a network that works at 1 / ``scale`` of the size, from whatever is given.

    Args:
        noise_level: sigma / 255: a number, one value an image (B,), or one value a pixel (B, 1, H, W), of which each
            scale x scale pixels become their mean.
        image: as the network gets it; it and its map are reflected to a ``multiple`` alike.
    Raises: ValueError for a map that is not of the image's size.
    """
    height, width = (-(-side // multiple) * multiple // scale for side in image.shape[-2:])
    level = torch.as_tensor(noise_level, dtype=image.dtype, device=image.device)
    if level.ndim == 4:
        if level.shape[1] != 1 or level.shape[-2:] != image.shape[-2:]:
            raise ValueError(
                f"noise level: a map of {tuple(level.shape)} for images of {tuple(image.shape)}; it must be"
                f" {(len(image), 1, *image.shape[-2:])}"
            )
        level = F.avg_pool2d(pad_to_multiple(level, multiple), scale)
    else:
        level = level.reshape(-1, 1, 1, 1)
    return level.expand(len(image), 1, height, width)
