"""Images in parts: overlapping tiles through any callable, blended where they meet; boxes with margins, for networks
that know how far they look, and give the whole image's result exactly."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise, product

import torch
from jaxtyping import Float
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def tiled(
    restore: Callable[[Tensor], Tensor],
    x: Float[Tensor, "B C H W"],
    tile: int,
    overlap: int,
    progress: Callable[[], None] = lambda: None,
) -> Float[Tensor, "B O H W"]:
    """restore(x), computed on tiles of at most ``tile`` x ``tile`` pixels, so memory does not grow with the image.

    Neighbours share ``overlap`` pixels, across which one fades linearly into the other; the weights add up to one
    everywhere, so a restore that looks at no neighbours is reproduced exactly. Every tile's corner
    lies on a multiple of tile - overlap.

    Args:
        restore: maps (B, C, h, w) to (B, O, h, w).
        progress: called after every tile; ``tile_count`` tells how often.
    Raises: ValueError unless 0 <= 2 overlap <= tile.
    """
    height, width = x.shape[-2:]
    out = None
    for top, bottom in spans(height, tile, overlap):
        for left, right in spans(width, tile, overlap):
            piece = restore(x[..., top:bottom, left:right])
            if out is None:
                out = piece.new_zeros(*piece.shape[:2], height, width)
            rows = _ramp(top, bottom, height, overlap).to(x)
            columns = _ramp(left, right, width, overlap).to(x)
            out[..., top:bottom, left:right] += piece * rows[:, None] * columns
            progress()
    return out


@dataclass(frozen=True)
class Box:
    """A part of a map, [top, bottom) x [left, right), in units of so many pixels."""

    top: int
    bottom: int
    left: int
    right: int

    def of(self, x: Tensor, unit: int) -> Tensor:
        """This part of a map (..., H, W), a view; ``unit`` is in pixels of that map."""
        return x[..., self.top * unit : self.bottom * unit, self.left * unit : self.right * unit]

    def grown(self, margin: int, size: tuple[int, int]) -> "Box":
        """With a margin on all sides, as far as the map of (height, width) goes."""
        height, width = size
        return Box(
            max(self.top - margin, 0),
            min(self.bottom + margin, height),
            max(self.left - margin, 0),
            min(self.right + margin, width),
        )

    def inside(self, other: "Box") -> "Box":
        """The same part, as seen from the corner of a box that contains it."""
        return Box(self.top - other.top, self.bottom - other.top, self.left - other.left, self.right - other.left)


def boxes(size: tuple[int, int], most: float, margin: int) -> list[Box]:
    """A map of (height, width) in boxes that, grown by a margin, have an area of at most ``most``.

    Of all grids of equal boxes the one that computes least; none when no grid's boxes are at least as wide and as high
    as their margin, or the map itself.
    """
    grids = product(*(range(1, max(1, side // margin) + 1) for side in size))
    largest = lambda side, parts: -(-side // parts) + margin * min(parts - 1, 2)  # the outer ones have one margin less
    fitting = [grid for grid in grids if math.prod(map(largest, size, grid)) <= most]
    if not fitting:
        return []
    best = min(fitting, key=lambda grid: math.prod(side + 2 * margin * (n - 1) for side, n in zip(size, grid)))
    rows, columns = ([round(i * side / n) for i in range(n + 1)] for side, n in zip(size, best))
    return [Box(*vertical, *horizontal) for vertical, horizontal in product(pairwise(rows), pairwise(columns))]


class _Live(TorchDispatchMode):
    """Adds up the storages that operations have made and that somebody still holds."""

    def __init__(self):
        super().__init__()
        self.held: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.held.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self.held = {key: value for key, value in self.held.items() if not value[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.held.values()))
        return result


def live_bytes(run: Callable[[], object]) -> int:
    """The most bytes of tensors made by ``run`` that live at once, in inference mode, on any device.

    What libraries take inside an operation is not seen.
    """
    with torch.inference_mode(), _Live() as live:
        run()
    return live.peak


def spans(length: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """[start, end) of the tiles along one side: overlapping by ``overlap``, the last one cut short at the end."""
    if not 0 <= 2 * overlap <= tile or tile < 1:
        raise ValueError(f"tiles of {tile} pixels with an overlap of {overlap}; the overlap must be 0 to half a tile")
    starts = range(0, max(length - overlap, 1), tile - overlap)
    return [(start, min(start + tile, length)) for start in starts]


def tile_count(height: int, width: int, tile: int, overlap: int) -> int:
    """How many tiles ``tiled`` makes of an image."""
    return len(spans(height, tile, overlap)) * len(spans(width, tile, overlap))


def _ramp(start: int, end: int, length: int, overlap: int) -> Float[Tensor, " pixels"]:
    """One tile's weight along one side: 1 inside, falling linearly across each edge that has a neighbour."""
    weight = torch.ones(end - start, dtype=torch.float64)
    if not overlap:
        return weight
    rise = (torch.arange(overlap, dtype=torch.float64) + 0.5) / overlap
    if start > 0:
        weight[:overlap] *= rise
    if end < length:
        weight[-overlap:] *= 1 - rise
    return weight
