"""FFDNet: a chain of 3x3 convolutions at half size, told the noise level by a map; a published baseline."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kunet.blocks import noise_map, pad_to_multiple


class FFDNet(nn.Module):
    """Pixel-unshuffle by 2, the noise level as one more channel, [convolution, ReLU], ``last``, pixel-shuffle by 2.

    At a quarter of the pixels the chain costs a quarter and sees twice as far as DnCNN's of its depth. The level may
    be a number, or vary from pixel to pixel (``kunet.blocks.noise_map``).

    Args:
        channels: of the image.
        width: channels of every hidden layer; 96 for colour, 64 for gray.
        depth: number of convolutions, 2 at least; 12 for colour, 15 for gray.
        residual: predict what is added to the image, as every model here; False returns the output itself, which is
            how it was published, and how it learns much faster.

    852,108 parameters, as in the released colour weights.
    Raises: ValueError for a depth below 2.
    Source: K. Zhang et al., "FFDNet", arXiv 1710.04026, section III; the start is K. He et al.'s, arXiv 1502.01852.
    """

    classes = None  # it restores

    def __init__(self, channels: int = 3, width: int = 96, depth: int = 12, residual: bool = True):
        super().__init__()
        if depth < 2:
            raise ValueError(f"FFDNet: depth is {depth}; it needs a first and a last convolution, so 2 or more")
        widths = (4 * channels + 1, *(depth - 1) * (width,))
        layers = (nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU(inplace=True)) for a, b in pairwise(widths))
        self.residual, self.body = residual, nn.Sequential(*layers)
        self.last = nn.Conv2d(width, 4 * channels, 3, padding=1)
        for layer in self.body.modules():  # torch's own start would shrink the signal at each of so many layers
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, noisy: Float[Tensor, "B C H W"], noise_level=0.0) -> Float[Tensor, "B C H W"]:
        height, width = noisy.shape[-2:]
        x = F.pixel_unshuffle(pad_to_multiple(noisy, 2), 2)
        x = torch.cat([x, noise_map(noise_level, noisy, 2, 2)], 1)
        x = F.pixel_shuffle(self.last(self.body(x)), 2)[..., :height, :width]
        return noisy + x if self.residual else x
