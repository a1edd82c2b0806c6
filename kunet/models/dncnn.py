"""DnCNN: a plain chain of 3x3 convolutions with batch normalisation that predicts the noise; a published baseline."""

from jaxtyping import Float
from torch import Tensor, nn


class DnCNN(nn.Module):
    """Convolution and ReLU, then [convolution, batch normalisation, ReLU], then one more convolution, ``last``.

    All at full size with zeros beyond the border: a pixel sees the 2 depth + 1 pixels square around it, and memory
    and time grow with the image alone. The defaults are DnCNN-B's for colour: it is blind, ``noise_level`` is ignored.

    Args:
        channels: of the image.
        width: channels of every hidden layer.
        depth: number of convolutions, 2 at least.
        norm: train with batch normalisation, as published; False leaves it out and gives its convolutions biases,
            which is what a trained network becomes when its normalisations are folded into its convolutions.

    669,379 parameters with normalisation (whose shift is the only bias), 668,227 without, as in the released weights.
    Raises: ValueError for a depth below 2.
    Source: K. Zhang et al., "Beyond a Gaussian Denoiser", arXiv 1608.03981, section III-A.
    """

    classes = None  # it restores

    def __init__(self, channels: int = 3, width: int = 64, depth: int = 20, norm: bool = True):
        super().__init__()
        if depth < 2:
            raise ValueError(f"DnCNN: depth is {depth}; it needs a first and a last convolution, so 2 or more")
        layers = [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
        for _ in range(depth - 2):
            layers.append(nn.Conv2d(width, width, 3, padding=1, bias=not norm))
            layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True)] if norm else [nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*layers)
        self.last = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, noisy: Float[Tensor, "B C H W"], noise_level=0.0) -> Float[Tensor, "B C H W"]:
        return noisy + self.last(self.body(noisy))
