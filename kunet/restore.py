"""Networks on photos: whole or in parts, any size and mode, with alpha, depth and metadata kept; and what they find.

``Network`` bounds the memory. ``Restorer`` mends photos (blur, rain, what pairs of photos taught it), ``Segmenter``
says what they show; noise of a stated level has a room of its own, ``denoise``.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from kunet import metadata
from kunet.ensemble import ORIENTATIONS, turned, turned_back
from kunet.images import direct, to_rgb, to_tensor, to_uint8
from kunet.runs import load_weights, read_card
from kunet.tasks import Denoise, Segment
from kunet.tiling import live_bytes, tile_count, tiled
from kunet.weights import find

OVERLAP = 128
GRID = 128
"""Tiles start on multiples of this, so that windows, patches and halvings of a network fall as in the whole image."""
MARGIN = 1.45
"""Memory that libraries and allocators take on top of the tensors (the shipped model: 330 measured bytes a pixel)."""
ROOMY = 2**20
"""Pixels of a box, margins included, from which on holding the maps of the way down is quicker than computing again."""
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
COLOURS = ((0, 0, 0), (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0))
"""Of classes in a mask, background first, then again from the second on (M. Okabe and K. Ito's palette)."""


@dataclass(frozen=True)
class Network:
    """A model with its weights, ready for images of any size.

    Args:
        model: maps (x, noise level) to y, (B, C, H, W) in [0, 1] units.
        memory: working memory of the network to stay below, in bytes (the image itself, about 40 bytes a pixel,
            comes on top); larger images are computed in parts.
        device: of torch.
        precision: one of PRECISIONS; the halved ones compute convolutions and products in 16 bits.
        ensemble: N = 1, 2, 4 or 8: the output is the mean of what the network makes of N copies of the image, turned
            and mirrored as ``kunet.ensemble`` says; each result is turned back before. That takes about N times as
            long, and some 60 bytes a pixel more.
    Raises: ValueError for another precision or ensemble.
    """

    model: nn.Module
    memory: float = 2e9
    device: str = "cpu"
    precision: str = "fp32"
    ensemble: int = 1

    def __post_init__(self):
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {self.precision!r}; it must be one of {', '.join(PRECISIONS)}")
        if self.ensemble not in (1, 2, 4, 8):
            raise ValueError(f"ensemble is {self.ensemble!r}; it must be 1, 2, 4 or 8 turned and mirrored copies")

    @classmethod
    def open(
        cls,
        weights: str,
        tasks: tuple[str, ...],
        memory: float = 2e9,
        device: str = "cpu",
        precision: str = "fp32",
        ensemble: int = 1,
    ) -> "tuple[Network, dict]":
        """(network, arguments of its task) from weights by name or path. Raises: ValueError, also for another task."""
        model, _ = load_weights(find(weights))
        task, args = task_of(weights)
        if task not in tasks:
            verb = task if task in ("denoise", "segment") else "restore"
            raise ValueError(f"{weights}: was trained for the task {task}; use kunet {verb}")
        return cls(model.to(device, memory_format=torch.channels_last), memory, device, precision, ensemble), args

    @cached_property
    def bytes_per_pixel(self) -> float:
        """Working memory a pixel, from the tensors that live at once in a pass of 256 x 256 pixels."""
        x = torch.zeros(1, 3, 256, 256, device=self.device).contiguous(memory_format=torch.channels_last)
        return MARGIN * live_bytes(lambda: self._apply(x, 0.1)) / 256**2

    def parts(self, height: int, width: int) -> tuple[str, int]:
        """How an image of this size is computed, and in how many parts.

        "whole" where it fits the memory; "boxes", to the same result, where the model can be ``staged``; "tiles",
        which are blended where they meet, else.
        """
        pixels = height * width
        if pixels <= 256**2 or pixels * self.bytes_per_pixel <= self.memory:
            return "whole", 1
        if hasattr(self.model, "staged") and (boxes := self.model.boxes(height, width, *self._room(pixels))):
            return "boxes", 2 * len(boxes)
        return "tiles", tile_count(height, width, self.tile, OVERLAP)

    @property
    def tile(self) -> int:
        """Side of the tiles that the memory holds."""
        side = int((self.memory / self.bytes_per_pixel) ** 0.5) // GRID * GRID
        return max(side, 2 * OVERLAP + GRID)

    def steps(self, height: int, width: int) -> int:
        """How often ``progress`` is called for an image of this size."""
        return sum(
            self.parts(*((width, height) if turns % 2 else (height, width)))[1]
            for turns, _ in ORIENTATIONS[: self.ensemble]
        )

    @torch.inference_mode()
    def run(
        self,
        x: Float[Tensor, "C H W"],
        level: float | Float[Tensor, "H W"] = 0.0,
        progress: Callable[[], None] = lambda: None,
    ) -> Float[Tensor, "O H W"]:
        """The model's own output for one image, in float32 (or the ensemble's).

        Args:
            level: sigma / 255, of all pixels or of each.
        """
        if self.ensemble == 1:
            return self._once(x, level, progress)
        mean = None
        for orientation in ORIENTATIONS[: self.ensemble]:
            its_level = turned(level, *orientation) if isinstance(level, Tensor) else level
            y = self._once(turned(x, *orientation), its_level, progress)
            y = turned_back(y, *orientation)
            mean = y / self.ensemble if mean is None else mean.add_(y, alpha=1 / self.ensemble)
        return mean

    def _once(
        self, x: Float[Tensor, "C H W"], level: float | Float[Tensor, "H W"], progress: Callable[[], None]
    ) -> Float[Tensor, "O H W"]:
        """What the network makes of one copy of the image."""
        (height, width), varies = x.shape[1:], isinstance(level, Tensor)
        x = x[None].to(self.device)
        level = level[None, None].to(self.device) if varies else level
        how, _ = self.parts(height, width)
        if how == "tiles":
            apply = lambda piece: self._apply(piece, level)
            if varies:  # as one more channel, which is cut into tiles with the others
                x = torch.cat([x, level], 1)
                apply = lambda piece: self._apply(piece[:, :-1], piece[:, -1:])
            return tiled(apply, x, self.tile, OVERLAP, progress)[0].cpu()
        if how == "boxes":
            with self._precision():
                most, keep = self._room(height * width)
                return self.model.staged(x, level, most, progress, keep)[0].float().cpu()
        y = self._apply(x, level)
        progress()
        return y[0].cpu()

    def _apply(self, x: Float[Tensor, "B C H W"], level: float | Tensor) -> Float[Tensor, "B O H W"]:
        with self._precision():
            return self.model(x.contiguous(memory_format=torch.channels_last), level).float()

    def _precision(self):
        dtype = PRECISIONS[self.precision]
        return torch.autocast(self.device, dtype) if dtype else nullcontext()

    def _room(self, pixels: int) -> tuple[float, bool]:
        """Pixels of a box that the memory holds beside what the model holds of an image of so many, and whether that is
        every map of its way down: only where boxes stay so large that their margins cost less than computing it again.
        """
        room = lambda held: (self.memory - pixels * held) / self.bytes_per_pixel
        keeping = room(self.model.held + self.model.kept)
        return (keeping, True) if keeping >= ROOMY else (room(self.model.held), False)


class Restorer(Network):
    """Photos mended by a network that needs to be told nothing: of blur, rain, or noise of any level."""

    @classmethod
    def load(
        cls, weights: str, memory: float = 2e9, device: str = "cpu", precision: str = "fp32", ensemble: int = 1
    ) -> "Restorer":
        """From a .safetensors file. Raises: ValueError, also for weights of segmentation or of a stated noise."""
        kinds = ("deblur", "derain", "pairs", "denoise")
        network, args = cls.open(weights, kinds, memory, device, precision, ensemble)
        if task_of(weights)[0] == "denoise" and not args.get("blind", Denoise.blind):
            raise ValueError(f"{weights}: must be told the noise; use kunet denoise --sigma")
        return network

    def __call__(
        self, degraded: Float[Tensor, "C H W"], progress: Callable[[], None] = lambda: None
    ) -> Float[Tensor, "C H W"]:
        """The restored image in [0, 1]; degraded is RGB or gray (C = 3 or 1)."""
        channels = len(degraded)
        if channels not in (1, 3):
            raise ValueError(f"restore: an image of {channels} channels; give 1 (gray) or 3 (RGB)")
        y = self.run(degraded.expand(3, -1, -1), 0.0, progress).clamp(0, 1)
        return y if channels == 3 else y.mean(0, keepdim=True)

    def photo(self, image: Image.Image, progress: Callable[[], None] = lambda: None) -> Image.Image:
        """A Pillow image in, one of the same size, mode and metadata out (see ``through``)."""
        return through(image, lambda x: self(x, progress))


@dataclass(frozen=True)
class Segmenter(Network):
    """What each pixel of a photo shows.

    Args:
        size: side of the square that images are scaled to (and squeezed), as those of the training were; the logits
            are scaled back. None takes images as they are.
    """

    size: int | None = None

    @classmethod
    def load(
        cls, weights: str, memory: float = 2e9, device: str = "cpu", precision: str = "fp32", ensemble: int = 1
    ) -> "Segmenter":
        """From a .safetensors file. Raises: ValueError, also for weights of another task."""
        network, args = cls.open(weights, ("segment",), memory, device, precision, ensemble)
        return replace(network, size=args.get("size", Segment.size))

    def steps(self, height: int, width: int) -> int:
        return super().steps(self.size or height, self.size or width)

    def logits(
        self, image: Float[Tensor, "3 H W"], progress: Callable[[], None] = lambda: None
    ) -> Float[Tensor, "K H W"]:
        """What the network says of each pixel of an image in [0, 1], which is rounded to 8 bits where it is scaled."""
        height, width = image.shape[1:]
        if self.size is None or height == width == self.size:
            return self.run(image, 0.0, progress)
        pixels = Image.fromarray(to_uint8(image)).resize((self.size, self.size), Image.BILINEAR)  # as kunet.data.masks
        logits = self.run(to_tensor(pixels), 0.0, progress)[None]
        return F.interpolate(logits, (height, width), mode="bilinear", antialias=True)[0]

    def __call__(
        self, image: Float[Tensor, "3 H W"], progress: Callable[[], None] = lambda: None
    ) -> Int[Tensor, "H W"]:
        """The class of each pixel, 0 for background; one logit alone is the foreground's."""
        logits = self.logits(image, progress)
        return (logits[0] > 0).long() if len(logits) == 1 else logits.argmax(0)

    def photo(self, image: Image.Image, progress: Callable[[], None] = lambda: None) -> Image.Image:
        """The mask as a palette image: its values are the classes, its colours tell them apart."""
        classes = self(to_tensor(to_rgb(image)), progress)
        mask = Image.fromarray(classes.numpy().astype(np.uint8)).convert("P")
        cycle = [COLOURS[0], *(COLOURS[1 + i % (len(COLOURS) - 1)] for i in range(255))]
        mask.putpalette([value for colour in cycle for value in colour])
        return mask


def task_of(weights: str) -> tuple[str, dict]:
    """(name, arguments) of the task that weights, by name or path, were trained for, as their card says."""
    return _task(read_card(find(weights)))


def _task(card: dict) -> tuple[str, dict]:
    recipe = card.get("recipe", {})
    return recipe.get("task", "denoise"), recipe.get("task_args", {})


def _finite(x: Tensor) -> Tensor:
    if not bool(x.isfinite().all()):
        raise ValueError("the network returned values that are not finite; try --precision fp32")
    return x


def through(image: Image.Image, function: Callable[[Tensor], Tensor]) -> Image.Image:
    """A photo through a function of (C, H, W) tensors in [0, 1], C = 1 or 3: same size, mode and metadata.

    Alpha passes through untouched. Modes: RGB, L, RGBA, LA, 1, P (as ``direct`` makes them) and 16-bit gray.
    Raises: ValueError for others, and where the function returns values that are not finite.
    """
    info = {k: v for k, v in image.info.items() if k in metadata.KEPT}
    image = direct(image)
    if image.mode in ("I", "I;16", "I;16B", "I;16L"):
        pixels = np.array(image)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError(f"gray values from {pixels.min()} to {pixels.max()}; 16-bit gray has 0 to 65535")
        restored = _finite(function(to_tensor(pixels.astype(np.uint16))))
        result = Image.fromarray((restored[0] * 65535).round().numpy().astype(np.uint16))
    elif image.mode in ("RGB", "L", "RGBA", "LA"):
        colour = image.convert("RGB" if "RGB" in image.mode else "L")
        result = Image.fromarray(to_uint8(_finite(function(to_tensor(colour)))))
        if image.mode.endswith("A"):
            result.putalpha(image.getchannel("A"))
    else:
        raise ValueError(f"an image of mode {image.mode}; convert it to RGB or gray first")
    result.info.update(info)
    return result
