"""KUnet as published for the NTIRE 2025 denoising challenge, with the published token fusion and a mended one.

Facts of the published system: github.com/dbasina/KUnet_Dn50_Competition (models/team03_KUnet.py).
Our own small models are in ``compact``. Notebook: notebooks/09_kunet.ipynb.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kunet.attention import PatchTokens, to_map, to_tokens
from kunet.blocks import DoubleConv, conv3x3, pad_to_multiple
from kunet.kan import KANLinear

# Published parameter names, by prefix, and ours. Everything after the prefix maps by RENAMED_LEAVES.
REFERENCE_PREFIXES = {
    **{f"down{i}.conv.conv": f"down.{i - 1}" for i in range(1, 5)},
    "bottleneck.conv": "bottleneck",
    "tokenizer.proj": "tokenizer.project",
    "tokenizer.norm": "tokenizer.norm",
    "self_attention.attention": "attention.self_attn",
    "self_attention.norm1": "attention.norm1",
    "self_attention.norm2": "attention.norm2",
    "self_attention.ff.0": "attention.linear1",
    "self_attention.ff.2": "attention.linear2",
    **{f"token_projection{i}": f"projections.{i - 1}" for i in range(1, 4)},
    **{f"up{i}.up.up_scale": f"up.{i - 1}" for i in range(1, 5)},
    **{f"up{i}.conv.conv": f"decoder.{i - 1}" for i in range(1, 5)},
    "last_conv": "last",
}
RENAMED_LEAVES = {"depthwise": "0", "pointwise": "1", "layer_norm.": "", "grid": "knots"}


class KUnet(nn.Module):
    """Separable UNet whose bottleneck goes through patch tokens, self-attention and three KANLinear layers.

    ``fusion="compat"`` computes what the published code computes, faults included: the patch-2
    tokenizer halves the bottleneck and nothing undoes it, so the decoder pads a half-size map with zeros and
    the token branch reaches the middle of the image only; the output is clamped to [0, 1] inside the network; sizes
    below 32 fail. It exists to load published weights and to measure those faults.

    ``fusion="fixed"`` (the default) learns its way back to the bottleneck's size (a transposed
    convolution as wide as the tokenizer's patch), adds the branch to the bottleneck's own map, predicts the noise,
    does not clamp, and takes any size from 1 x 1 by reflection.

    Args:
        channels: of the image.
        widths: encoder levels at full size, 1/2, 1/4, ...; the last entry is the bottleneck's.
        patch, heads, hidden, dropout: of the tokens, the attention and its feed-forward layer.
        projections: output widths of the KANLinear chain; the last one must equal the bottleneck's.
        grid_size, degree, grid_range: of the KANLinear layers.
        tokens: False leaves the token branch out: the bottleneck's map goes straight to the decoder.
        projection: what follows the attention: "kan", that chain; "mlp", for comparison, two hidden layers of
            ``mlp_width`` with SiLU; or "conv", a control that replaces the attention too, by two dense 3x3
            convolutions of the token map with ``mlp_width`` channels and a ReLU between.

    With its defaults, compat has 138,137,057 parameters in 143 tensors.
    Raises: ValueError for an unknown fusion or projection, or a compat input below the smallest size.
    """

    classes = None  # it restores
    recomputed = (DoubleConv, nn.TransformerEncoderLayer)

    def __init__(
        self,
        fusion: str = "fixed",
        channels: int = 3,
        widths: tuple[int, ...] = (64, 128, 256, 512, 1024),
        patch: int = 2,
        heads: int = 8,
        hidden: int = 4096,
        projections: tuple[int, ...] = (2048, 3072, 1024),
        dropout: float = 0.1,
        grid_size: int = 5,
        degree: int = 3,
        grid_range: tuple[float, float] = (-1.0, 1.0),
        tokens: bool = True,
        projection: str = "kan",
        mlp_width: int = 2048,
    ):
        super().__init__()
        if fusion not in ("compat", "fixed"):
            raise ValueError(f'KUnet: fusion is {fusion!r}; it must be "compat" or "fixed"')
        if projection not in ("kan", "mlp", "conv"):
            raise ValueError(f'KUnet: projection is {projection!r}; it must be "kan", "mlp" or "conv"')
        *levels, deepest = widths
        if projections[-1] != deepest:
            raise ValueError(
                f"KUnet: projections end at {projections[-1]}; they must end at the bottleneck's {deepest}"
            )
        self.fusion, self.patch, self.tokens, self.projection = fusion, patch, tokens, projection
        self.multiple = 2 ** len(levels) * patch
        self.down = nn.ModuleList(DoubleConv(a, b) for a, b in zip((channels, *levels), levels))
        self.pool = nn.MaxPool2d(2)
        self.bottleneck = DoubleConv(levels[-1], deepest)
        if tokens:
            self.tokenizer = PatchTokens(deepest, deepest, patch)
            if projection != "conv":
                self.attention = nn.TransformerEncoderLayer(deepest, heads, hidden, dropout, batch_first=True)
            chain = (deepest, *projections)
            if projection == "kan":
                layers = [KANLinear(a, b, grid_size, degree, grid_range, scaler=True) for a, b in pairwise(chain)]
            elif projection == "mlp":
                wide = (nn.Linear(mlp_width, mlp_width), nn.SiLU())
                layers = [nn.Linear(deepest, mlp_width), nn.SiLU(), *wide, nn.Linear(mlp_width, deepest)]
            else:
                layers = [conv3x3(deepest, mlp_width, False), nn.ReLU(), conv3x3(mlp_width, deepest, False)]
            self.projections = nn.Sequential(*layers)
            if fusion == "fixed":
                self.unpatchify = nn.ConvTranspose2d(deepest, deepest, patch, stride=patch)
        pairs = list(zip(widths[1:], levels))[::-1]
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in pairs)
        self.decoder = nn.ModuleList(DoubleConv(2 * b, b) for _, b in pairs)
        self.last = nn.Conv2d(levels[0], channels, 1)

    def forward(self, noisy: Float[Tensor, "B C H W"], noise_level=None) -> Float[Tensor, "B C H W"]:
        height, width = noisy.shape[-2:]
        if self.fusion == "fixed":
            x = self.network(pad_to_multiple(noisy, self.multiple) * 2 - 1)
            return noisy + x[..., :height, :width]
        if min(height, width) < self.multiple:
            raise ValueError(
                f'KUnet: a {height} x {width} image with fusion="compat", which needs {self.multiple} x'
                f' {self.multiple} at least; use fusion="fixed"'
            )
        return (self.network(noisy * 2 - 1) * 0.5 + 0.5).clamp(0, 1)

    def network(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The network proper, on images in [-1, 1]."""
        kept = []
        for block in self.down:
            kept.append(block(x))
            x = self.pool(kept[-1])
        x = self.bottleneck(x)
        if self.tokens:
            tokens = to_map(self.token_branch(x), self.token_size(x))
            x = x + self.unpatchify(tokens) if self.fusion == "fixed" else tokens
        for up, block, skip in zip(self.up, self.decoder, kept[::-1]):
            x = up(x)
            rows, columns = (a - b for a, b in zip(skip.shape[-2:], x.shape[-2:]))
            x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
            x = block(torch.cat([skip, x], 1))
        return self.last(x)

    def token_branch(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N C"]:
        tokens = self.tokenizer(x)
        if self.projection == "conv":
            return to_tokens(self.projections(to_map(tokens, self.token_size(x))))
        return self.projections(self.attention(tokens))

    def token_size(self, x: Float[Tensor, "B C H W"]) -> tuple[int, int]:
        """Rows and columns of the token map of a bottleneck's map."""
        return x.shape[-2] // self.patch, x.shape[-1] // self.patch


def from_reference(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A published state dict under our names, ready for ``KUnet(fusion="compat").load_state_dict``.

    Raises: ValueError naming the first key that the published network does not have.
    """
    renamed = {}
    for key, value in state.items():
        prefix = next((p for p in REFERENCE_PREFIXES if key.startswith(p + ".")), None)
        if prefix is None:
            raise ValueError(f"KUnet: {key!r} is no parameter of the published network; see REFERENCE_PREFIXES")
        leaf = key[len(prefix) + 1 :]
        for theirs, ours in RENAMED_LEAVES.items():
            leaf = leaf.replace(theirs, ours)
        renamed[f"{REFERENCE_PREFIXES[prefix]}.{leaf}"] = value
    return renamed
