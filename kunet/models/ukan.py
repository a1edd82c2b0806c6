"""U-KAN: a convolutional UNet whose two lowest levels are tokens that pass through KAN layers."""

from jaxtyping import Float
from torch import Tensor, nn

from kunet.blocks import LayerNorm2d, pad_to_multiple
from kunet.kan import KANLinear


class ConvNormReLU(nn.Sequential):
    """3x3 convolution with bias, batch norm, ReLU: (B, C, H, W) -> (B, C', H, W); depthwise with groups = C."""

    def __init__(self, in_channels: int, out_channels: int, groups: int = 1):
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, groups=groups),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class TokenBlock(nn.Module):
    """x + f(LayerNorm(x)), f three times [projection of each pixel's channels, depthwise ConvNormReLU].

    (B, D, H, W) -> (B, D, H, W). A pixel is a token. The projection is a KANLinear ("kan") or a linear layer ("mlp").
    """

    def __init__(self, dim: int, projection: str, grid_size: int, degree: int, grid_range: tuple[float, float]):
        super().__init__()

        def project() -> nn.Module:
            if projection == "mlp":
                return nn.Linear(dim, dim)
            return KANLinear(dim, dim, grid_size, degree, grid_range, scaler=True)

        self.norm = LayerNorm2d(dim)
        self.project = nn.ModuleList(project() for _ in range(3))
        self.mix = nn.ModuleList(ConvNormReLU(dim, dim, groups=dim) for _ in range(3))

    def forward(self, x: Float[Tensor, "B D H W"]) -> Float[Tensor, "B D H W"]:
        y = self.norm(x)
        for project, mix in zip(self.project, self.mix):
            y = mix(project(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        return x + y


class UKAN(nn.Module):
    """Three convolutional levels, two of tokens, and back by bilinear interpolation; skips are added.

    Down: two ConvNormReLU and a max-pooling at each of three levels, to dims[0] / 8, dims[0] / 4 and dims[0] channels;
    then twice an overlapping patch embedding (3x3, stride 2, LayerNorm), a TokenBlock and a LayerNorm. Up: two
    ConvNormReLU, then twice the size, five times; after the first two a TokenBlock and a LayerNorm.

    **The control.** ``projection="mlp"`` puts nn.Linear in the place of every KANLinear. The published code has such
    a switch, ``no_kan``, which the network takes and never hands to its blocks (Seg_UKAN/archs.py): there, with and
    without KAN are the same network, and no comparison of the two could fail.

    Args:
        channels: of the image.
        dims: channels of the third convolutional level, a multiple of 8, and of the two token levels.
        projection: "kan" or "mlp".
        grid_size, degree, grid_range: of each KANLinear, which has a SiLU base and a scaler. LayerNorm's outputs
            have variance 1: a third of them lie outside the published range.
        residual: where it restores, add the output to the image; False returns the output itself.
        classes: logits a pixel, as published 1; None restores.

    Batch norm: training needs more than one value a channel at 1/32 of the size; images are independent in eval mode.
    Raises: ValueError for other numbers of dims, dims[0] not a multiple of 8, or an unknown projection.
    Source: C. Li et al., "U-KAN Makes Strong Backbone for Medical Image Segmentation and Generation", arXiv
        2406.02918; its code for the details (github.com/CUHK-AIM-Group/U-KAN). Initial values are torch's.
    Notebook: notebooks/10_kmunet.ipynb.
    """

    recomputed = (ConvNormReLU, TokenBlock)

    def __init__(
        self,
        channels: int = 3,
        dims: tuple[int, ...] = (128, 160, 256),
        projection: str = "kan",
        grid_size: int = 5,
        degree: int = 3,
        grid_range: tuple[float, float] = (-1.0, 1.0),
        residual: bool = True,
        classes: int | None = 1,
    ):
        super().__init__()
        if len(dims) != 3 or min(dims) < 1 or dims[0] % 8:
            raise ValueError(f"UKAN: dims {dims}; give three numbers, the first a multiple of 8")
        if projection not in ("kan", "mlp"):
            raise ValueError(f'UKAN: projection is {projection!r}; choose "kan" or "mlp"')
        self.classes, self.residual = classes, residual and classes is None
        eighth, quarter, first, second, third = dims[0] // 8, dims[0] // 4, *dims

        def double(inputs: int, middle: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(ConvNormReLU(inputs, middle), ConvNormReLU(middle, outputs))

        def tokens(dim: int) -> nn.Sequential:
            return nn.Sequential(TokenBlock(dim, projection, grid_size, degree, grid_range), LayerNorm2d(dim))

        def embed(inputs: int, dim: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(inputs, dim, 3, stride=2, padding=1), LayerNorm2d(dim), *tokens(dim))

        levels = ((channels, eighth), (eighth, quarter), (quarter, first))
        self.encoder = nn.ModuleList(nn.Sequential(*double(a, b, b), nn.MaxPool2d(2)) for a, b in levels)
        self.encoder.extend([embed(first, second), embed(second, third)])
        steps = ((third, second), (second, first), (first, quarter), (quarter, eighth), (eighth, eighth))
        upsample = nn.Upsample(scale_factor=2, mode="bilinear")
        self.decoder = nn.ModuleList(nn.Sequential(*double(a, a, b), upsample) for a, b in steps)
        self.tokens = nn.ModuleList([tokens(second), tokens(first)])
        self.last = nn.Conv2d(eighth, classes or channels, 1)

    def forward(self, noisy: Float[Tensor, "B C H W"], noise_level=0.0) -> Float[Tensor, "B O H W"]:
        height, width = noisy.shape[-2:]
        x, kept = pad_to_multiple(noisy, 32), []
        for level in self.encoder:
            x = level(x)
            kept.append(x)
        for i, level in enumerate(self.decoder):
            x = level(x)
            if i < 4:  # the last step is back at the size of the image, where there is no skip
                x = x + kept[-2 - i]
            if i < 2:
                x = self.tokens[i](x)
        x = self.last(x)[..., :height, :width]
        return noisy + x if self.residual else x
