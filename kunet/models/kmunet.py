"""KM-UNet: a UNet in which every convolution is a KAN convolution, and nothing else bends the signal."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kunet.blocks import pad_to_multiple
from kunet.kan import KANConv2d

BASE = {"none": None, "silu": F.silu}
NORM = {
    "none": lambda channels: nn.Identity(),
    "layer": lambda channels: ChannelNorm(),
    "batch": lambda channels: nn.BatchNorm2d(channels, affine=False),
}


class ChannelNorm(nn.Module):
    """Mean 0 and variance 1 over the channels of each pixel of a (B, C, H, W) map; no parameters."""

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        return F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2]).permute(0, 3, 1, 2)


class Level(nn.Sequential):
    """The convolutions of one level on its way down, or up, each behind what comes before it."""


class KMUNet(nn.Module):
    """y[b, o, h, w] = sum over channels i and taps (p, q) of F_{o,i,p,q}(x[b, i, h + p, w + q]), level after level.

    Every F is a B-spline of its own: no activations on the nodes, no biases. Max-pooling down, ``up`` back, the skips
    concatenated, a 1x1 KAN convolution last. x enters as 2x - 1: [0, 1] is the grid [-1, 1].

    **Staying on the grid.** Nothing but the weights keeps a map within ``grid_range``, and training drives it out. With
    ``outside="zero"`` a pixel far out gives 0 and gets no gradient; with "linear", the default, each spline goes on
    as its tangent, and the network trains faster. ``normalise`` puts a norm without parameters before every
    convolution but the first; "batch" with a grid_range of (-2.5, 2.5) keeps all but a few values on the grid.

    **The control.** ``convolution="relu"`` has ReLU and a plain convolution with bias where a KAN convolution would
    be (none before the first): a UNet that differs in nothing else. sqrt(grid_size + degree) times as wide it has as
    many parameters.

    Args:
        channels: of the image, in and out.
        widths: channels of each level, full size first; each further level halves the size.
        convs: 3x3 KAN convolutions of a level on its way down, and again on its way up.
        grid_size, degree, grid_range, padding_mode, outside: of every KANConv2d.
        base: "none", splines alone; or "silu", with w silu(x) on every edge, as most KANs have it.
        up: "bilinear" interpolation, or "transposed": a KAN convolution of 2x2 taps and stride 2, transposed.
        normalise: "none"; "layer", over the channels of each pixel; "batch", each channel over the batch.
        convolution: "kan", or "relu": see above; grids and base then do not matter, and "bases" pads as "zeros".
        classes: None restores, as a residual; a number returns that many logits a pixel.

    Parameters: (grid_size + degree) I O K^2 of I -> O channels with K x K taps; one more on each edge with a base.
    Raises: ValueError for no widths, sizes below 1, or an unknown choice.
    Source: KM-UNet as its authors' slides give it. The paper of the same name, arXiv 2501.02559, is another network.
    Notebook: notebooks/10_kmunet.ipynb.
    """

    recomputed = (Level,)

    def __init__(
        self,
        channels: int = 3,
        widths: tuple[int, ...] = (8, 16, 32),
        convs: int = 2,
        grid_size: int = 5,
        degree: int = 3,
        grid_range: tuple[float, float] = (-1.0, 1.0),
        base: str = "none",
        up: str = "bilinear",
        padding_mode: str = "zeros",
        outside: str = "linear",
        normalise: str = "none",
        convolution: str = "kan",
        classes: int | None = None,
    ):
        super().__init__()
        if not widths or min(convs, *widths) < 1:
            raise ValueError(f"KMUNet: widths {widths}, {convs} convs; give one width or more, and 1 or more of all")
        for name, value, known in (
            ("convolution", convolution, ("kan", "relu")),
            ("base", base, BASE),
            ("up", up, ("bilinear", "transposed")),
            ("normalise", normalise, NORM),
        ):
            if value not in known:
                raise ValueError(f"KMUNet: {name} is {value!r}; choose one of {', '.join(known)}")
        self.classes, self.residual = classes, classes is None
        # a map of one pixel has nothing to reflect: the deepest gets two
        self.multiple = 2 ** (len(widths) - 1 + (padding_mode == "reflect"))

        def before(channels: int) -> nn.Module:
            norm = NORM[normalise](channels)
            return norm if convolution == "kan" else nn.Sequential(norm, nn.ReLU())

        def conv(inputs: int, outputs: int, size: int = 3) -> KANConv2d | nn.Conv2d:
            if convolution == "relu":
                mode = padding_mode.replace("bases", "zeros")
                return nn.Conv2d(inputs, outputs, size, padding=size // 2, padding_mode=mode)
            return KANConv2d(
                inputs,
                outputs,
                size,
                padding=size // 2,
                grid_size=grid_size,
                degree=degree,
                grid_range=grid_range,
                base=BASE[base],
                padding_mode=padding_mode,
                outside=outside,
            )

        def block(inputs: int, outputs: int, image: bool = False) -> Level:
            steps = Level()
            for i in range(convs):
                into = outputs if i else inputs
                steps.append(nn.Identity() if image and not i else before(into))
                steps.append(conv(into, outputs))
            return steps

        def upsample(inputs: int, outputs: int) -> nn.Module:
            if up == "bilinear":
                return nn.Upsample(scale_factor=2, mode="bilinear")
            # Patches of a 2x2, stride-2 transposed convolution do not overlap: it is a 1x1 one to 4 times the channels
            return nn.Sequential(before(inputs), conv(inputs, 4 * outputs, 1), nn.PixelShuffle(2))

        pairs = list(zip(widths[1:], widths))[::-1]  # (deeper, shallower), deepest first
        levels = enumerate(zip((channels, *widths), widths))
        self.encoder = nn.ModuleList(block(a, b, image=i == 0) for i, (a, b) in levels)
        self.pool = nn.MaxPool2d(2)
        self.up = nn.ModuleList(upsample(a, b) for a, b in pairs)
        self.decoder = nn.ModuleList(block((a if up == "bilinear" else b) + b, b) for a, b in pairs)
        self.before = before(widths[0])
        self.last = conv(widths[0], classes or channels, 1)

    def forward(self, noisy: Float[Tensor, "B C H W"], noise_level=0.0) -> Float[Tensor, "B O H W"]:
        height, width = noisy.shape[-2:]
        x, kept = pad_to_multiple(2 * noisy - 1, self.multiple), []
        for level, block in enumerate(self.encoder):
            x = block(self.pool(x) if level else x)
            kept.append(x)
        for up, block, skip in zip(self.up, self.decoder, kept[-2::-1]):
            x = block(torch.cat([skip, up(x)], 1))
        x = self.last(self.before(x))[..., :height, :width]
        return noisy + x if self.residual else x
