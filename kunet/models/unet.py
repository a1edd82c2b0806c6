"""UNet: the encoder-decoder with skip connections that KUnet grew from, as a residual denoiser."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kunet.blocks import DoubleConv, pad_to_multiple


class UNet(nn.Module):
    """Down by max-pooling, up by transposed convolution, DoubleConv at every level; predicts the noise.

    Args:
        channels: of the image, in and out.
        widths: channels of each level, full size first; each further level halves the size.
        separable: depthwise-separable 3x3 convolutions, or dense ones.
        skips: concatenate each encoder level's map to the decoder's, or leave it out: the
            experiment of notebook 06.
        residual: add the network's output to its input (it predicts minus the noise), or return the output itself.
        classes: None restores; a number returns that many logits a pixel (which are no residual).

    Source: O. Ronneberger et al., "U-Net", arXiv 1505.04597; the residual form is DnCNN's, arXiv 1608.03981.
    Notebook: notebooks/06_unet.ipynb.
    """

    recomputed = (DoubleConv,)

    def __init__(
        self,
        channels: int = 3,
        widths: tuple[int, ...] = (32, 64, 128),
        separable: bool = True,
        skips: bool = True,
        residual: bool = True,
        classes: int | None = None,
    ):
        super().__init__()
        if not widths:
            raise ValueError("UNet: widths is empty; give the channels of at least one level")
        self.skips, self.residual, self.multiple = skips, residual and classes is None, 2 ** (len(widths) - 1)
        self.classes = classes
        before = (channels, *widths)
        self.encoder = nn.ModuleList(DoubleConv(a, b, separable) for a, b in zip(before, widths))
        self.pool = nn.MaxPool2d(2)
        pairs = list(zip(widths[1:], widths))[::-1]  # (deeper, shallower), deepest first
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in pairs)
        self.decoder = nn.ModuleList(DoubleConv(b * (1 + skips), b, separable) for _, b in pairs)
        self.last = nn.Conv2d(widths[0], classes or channels, 1)

    def forward(self, noisy: Float[Tensor, "B C H W"], noise_level=None) -> Float[Tensor, "B O H W"]:
        height, width = noisy.shape[-2:]
        x, kept = pad_to_multiple(noisy, self.multiple), []
        for level, block in enumerate(self.encoder):
            x = block(self.pool(x) if level else x)
            kept.append(x)
        for up, block, skip in zip(self.up, self.decoder, kept[-2::-1]):
            x = up(x)
            x = block(torch.cat([skip, x], 1) if self.skips else x)
        x = self.last(x)[..., :height, :width]
        return noisy + x if self.residual else x
