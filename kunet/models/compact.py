"""CompactKUnet: KUnet's ideas at a size that a laptop runs; the architecture of the released weights.

Notebook: notebooks/09_kunet.ipynb.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kunet.attention import PatchTokens, to_map
from kunet.blocks import ResidualBlock, Up, noise_map, pad_to_multiple
from kunet.models.token_block import TokenBlock
from kunet.tiling import Box, boxes

ATTENTIONS = ("window", "global", "channel", "conv", "none")
PROJECTIONS = ("kan", "linear", "mlp")
SKIPS = ("add", "concat", "none")


def _empty(like: Tensor, size: tuple[int, int], scale: int) -> Tensor:
    """A map of a whole image of so many units, whose box is given."""
    shape = (*like.shape[:2], size[0] * scale, size[1] * scale)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


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

    What follows takes the network apart, to measure what a part is worth; the defaults are the released one:
        tokens: False leaves out the whole token branch. With token_depth 0 patches still become tokens and come back.
        attention: "window"; "global", among all tokens; "channel", among channels; "conv", a convolution of the token
            map with about as many parameters in its place; or "none".
        projection: "kan"; "linear", one layer; or "mlp", two with ``mlp_width`` SiLU units between.
        basis: of each KANLinear, see ``kunet.kan.bases``.
        positions: the depthwise convolution of each token block.
        token_residual: the branch is added to the lowest map; else it replaces it.
        skips: "add"; "concat", then a 1x1 convolution; or "none", from the head to the tail neither.
        residual: add the image, so that the noise is predicted; else the image is.
    Raises: ValueError for sizes that do not fit together or an unknown choice.
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
        tokens: bool = True,
        attention: str = "window",
        projection: str = "kan",
        mlp_width: int = 256,
        basis: str = "bspline",
        positions: bool = True,
        token_residual: bool = True,
        skips: str = "add",
        residual: bool = True,
    ):
        super().__init__()
        if len(widths) != len(depths) or not widths:
            raise ValueError(f"CompactKUnet: {len(widths)} widths and {len(depths)} depths; give one of each a level")
        if min(stem, window, *widths) < 1 or min(depths) < 0:
            raise ValueError(
                f"CompactKUnet: stem {stem}, window {window}, widths {widths}, depths {depths}; all must be 1 or more"
                " (a depth may be 0)"
            )
        for name, came, allowed in (
            ("attention", attention, ATTENTIONS), ("projection", projection, PROJECTIONS), ("skips", skips, SKIPS)
        ):  # fmt: skip
            if came not in allowed:
                raise ValueError(f"CompactKUnet: {name} is {came!r}; it must be one of {', '.join(allowed)}")
        if mlp_width < 1:
            raise ValueError(f"CompactKUnet: mlp_width is {mlp_width}; it must be 1 or more")
        self.stem, self.multiple, self.ends = stem, stem * 2 ** len(widths), ends
        self.skips, self.residual, self.token_residual = skips, residual, token_residual
        concat = skips == "concat"

        def stage(level: int, joins: bool = False) -> nn.Sequential:
            width = widths[level]
            join = [nn.Conv2d(2 * width, width, 1)] if joins else []
            blocks = (ResidualBlock(width, separable=level >= dense_levels) for _ in range(depths[level]))
            return nn.Sequential(*join, *blocks)

        pairs = list(pairwise(widths))
        self.head = nn.Conv2d((1 + ends) * channels * stem**2 + 1, widths[0], 3, padding=1)
        self.encoder = nn.ModuleList(stage(level) for level in range(len(widths)))
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairs)
        self.widths, dim = tuple(widths), widths[-1]
        self.tokens = None
        if tokens:
            kan = grid_size, degree, grid_range
            block = lambda: TokenBlock(dim, heads, window, *kan, attention, projection, mlp_width, basis, positions)
            self.tokenizer = PatchTokens(dim, dim, patch=2)
            self.tokens = nn.Sequential(*(block() for _ in range(token_depth)))
            self.unpatchify = Up(dim, dim)
        levels = range(len(widths))
        self.decoder = nn.ModuleList(stage(level, concat and level < levels[-1]) for level in reversed(levels))
        self.up = nn.ModuleList(Up(b, a) for a, b in reversed(pairs))
        self.tail = nn.Conv2d((1 + concat) * widths[0], channels * stem**2, 3, padding=1)

    def forward(self, noisy: Float[Tensor, "B C H W"], noise_level=0.0) -> Float[Tensor, "B C H W"]:
        height, width = noisy.shape[-2:]
        padded = pad_to_multiple(noisy, self.multiple)
        top, kept = self._down(padded, noise_map(noise_level, noisy, self.multiple, self.stem))
        y = self._up(self._middle(kept.pop()), kept, top)[..., :height, :width]
        return noisy + y if self.residual else y

    @property
    def reach(self) -> int:
        """How far, in units of ``multiple`` pixels, the way down looks around a pixel, and the way up again."""
        blocks = sum(2 * len(stage) * 2**level for level, stage in enumerate(self.encoder))
        return -(-self.stem * (1 + blocks) // self.multiple)  # the 1: head and tail

    @property
    def held(self) -> float:
        """Bytes a pixel, of float32, that ``staged`` holds on to between its boxes: the lowest maps, in and out."""
        return 3 * 4 * self.widths[-1] * (2 / self.multiple) ** 2

    @property
    def kept(self) -> float:
        """Bytes a pixel, of float32, that it holds on to besides with ``keep``: each higher level's map."""
        return sum(4 * width / (self.stem * 2**level) ** 2 for level, width in enumerate(self.widths[:-1]))

    def staged(
        self,
        noisy: Float[Tensor, "B C H W"],
        noise_level,
        most: float,
        progress: Callable[[], None] = lambda: None,
        keep: bool = False,
    ) -> Float[Tensor, "B C H W"]:
        """The same image as ``forward`` in less memory: down in boxes, the tokens as a whole, up in boxes.

        Each box is computed with as wide a margin as its convolutions look; the tokens, whose windows look far, are
        few enough to be computed together.

        Args:
            most: pixels of a box, margin included.
            progress: called after every box; twice ``len(self.boxes(H, W, most, keep))`` times.
            keep: hold every level's map of the way down for the way up; else that computes the way down again, with
                twice the margin, which takes more time and less memory.
        Raises: ValueError when ``most`` is too few for boxes that hold more than margin.
        """
        (height, width), unit = noisy.shape[-2:], self.multiple
        boxes = self.boxes(height, width, most, keep)
        if not boxes:
            raise ValueError(
                f"CompactKUnet: boxes of {most:.3g} pixels cannot hold margins of {self._margin(keep) * unit} pixels"
            )
        padded = pad_to_multiple(noisy, unit)
        size = padded.shape[-2] // unit, padded.shape[-1] // unit
        level = noise_map(noise_level, noisy, unit, self.stem)
        seen = lambda box: (box.of(padded, unit), box.of(level, unit // self.stem))
        scales = [unit // self.stem >> i for i in range(len(self.widths))]  # pixels of each level's map in a unit
        held = scales if keep else scales[-1:]
        maps: list[Tensor] = []  # of the whole image
        for box in boxes:
            wide = box.grown(self.reach, size)
            found = self._down(*seen(wide))[1][-len(held) :]
            if not maps:
                maps = [_empty(x, size, scale) for x, scale in zip(found, held)]
            for x, whole, scale in zip(found, maps, held):
                box.of(whole, scale).copy_(box.inside(wide).of(x, scale))
            del found, x  # else they would live beside the next box's
            progress()
        middle, out = self._middle(maps.pop()), None
        for box in boxes:
            wide = box.grown(self.reach, size)
            if keep:  # of the head's map only the margin is wrong, further off than the tail looks
                top, kept = self._top(*seen(wide)), [wide.of(x, scale) for x, scale in zip(maps, scales)]
            else:
                wider = box.grown(2 * self.reach, size)
                top, kept = self._down(*seen(wider))
                cut = wide.inside(wider)
                top, kept = cut.of(top, scales[0]), [cut.of(x, scale) for x, scale in zip(kept[:-1], scales)]
            change = box.inside(wide).of(self._up(wide.of(middle, 2), kept, top), unit)
            if out is None:
                out = noisy.new_empty(*change.shape[:2], *padded.shape[-2:])  # of its precision, not of autocast's
            box.of(out, unit).copy_(change)
            progress()
        out = out[..., :height, :width]
        return out.add_(noisy) if self.residual else out

    def boxes(self, height: int, width: int, most: float, keep: bool = False) -> list[Box]:
        """The boxes of ``staged``, in units of ``multiple`` pixels; none where margins would fill most of them."""
        size = -(-height // self.multiple), -(-width // self.multiple)
        return boxes(size, most / self.multiple**2, self._margin(keep))

    def _margin(self, keep: bool) -> int:
        return self.reach if keep else 2 * self.reach

    def _top(self, image: Float[Tensor, "B C H W"], level: Float[Tensor, "B 1 h w"]) -> Float[Tensor, "B D h w"]:
        x = F.pixel_unshuffle(image, self.stem)
        told = [x, level]
        if self.ends:
            told.append((x >= 1).to(x) - (x <= 0).to(x))
        return self.head(torch.cat(told, 1))

    def _down(self, image: Float[Tensor, "B C H W"], level: Float[Tensor, "B 1 h w"]) -> tuple[Tensor, list[Tensor]]:
        """(the head's map, each level's map) of an image whose sides are multiples."""
        x = top = self._top(image, level)
        kept = []
        for i, stage in enumerate(self.encoder):
            x = stage(self.down[i - 1](x) if i else x)
            kept.append(x)
        return top, kept

    def _middle(self, x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]:
        """The lowest map with what the tokens add."""
        if self.tokens is None:
            return x
        tokens = to_map(self.tokenizer(x), (x.shape[-2] // 2, x.shape[-1] // 2))
        y = self.unpatchify(self.tokens(tokens))
        return x + y if self.token_residual else y

    def _up(self, x: Float[Tensor, "B D h w"], kept: list[Tensor], top: Tensor) -> Float[Tensor, "B C H W"]:
        """What to add to the image, or the image; ``kept`` is emptied, so that its maps go as soon as they can."""
        for i, stage in enumerate(self.decoder):
            x = stage(self._joined(self.up[i - 1](x), kept.pop()) if i else x)
        return F.pixel_shuffle(self.tail(self._joined(x, top)), self.stem)

    def _joined(self, x: Float[Tensor, "B C h w"], kept: Float[Tensor, "B C h w"]) -> Float[Tensor, "B E h w"]:
        """A map on its way up with the one of its size on the way down."""
        if self.skips == "concat":
            return torch.cat([x, kept], 1)
        if self.skips == "none":
            return x
        return x.add_(kept) if len(self.widths) > 1 else x + kept  # in place, where x is no part of another map
