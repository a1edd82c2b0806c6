"""Real pairs of a degraded and a clean photo, found in folders by their names.

A path says which side it is on by one word, in the first of its folders that has one, or else in the file's name:
``DEGRADED`` or ``CLEAN``. What is left of the path without that folder, and without such words in the file's name,
is the same for both. So these are read as they come:

    scene/0001_NOISY_SRGB_010.PNG   scene/0001_GT_SRGB_010.PNG      as in SIDD
    train_blur/000/0001.png         train_sharp/000/0001.png        as in REDS
    rain/001.png                    norain/001.png
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kunet.data import pool, sets
from kunet.data.photos import list_images, photo_bytes, split
from kunet.images import load_pixels

DEGRADED = ("noisy", "input", "rain", "rainy", "blur", "blurred", "lq")
CLEAN = ("clean", "gt", "groundtruth", "target", "norain", "sharp", "hq")
"""The words, in any case, between spaces, hyphens, underscores or dots."""

_WORD = re.compile(rf"(?<![^ _.-])({'|'.join(DEGRADED + CLEAN)})(?![^ _.-])", re.IGNORECASE)


def find_pairs(folder: str | Path) -> list[tuple[Path, Path]]:
    """(degraded, clean) paths under a folder, or of a data set by name, sorted by the degraded one's.

    Raises: ValueError when there is no image, and for the first file without a partner, with two, or on no side.
    """
    if sets.named(folder):
        return sets.pairs(str(folder))
    folder = Path(folder)
    sides: tuple[dict, dict] = {}, {}
    for path in list_images(folder):
        side, key = _side_and_key(path.relative_to(folder))
        if side is None:
            raise ValueError(
                f"{path}: neither degraded ({', '.join(DEGRADED)}) nor clean ({', '.join(CLEAN)}) by its name or a"
                " folder's; rename it"
            )
        if key in sides[side]:
            raise ValueError(f"{path}: stands for the same photo as {sides[side][key]}; keep one of them")
        sides[side][key] = path
    degraded, clean = sides
    for one, other, name in ((degraded, clean, "clean"), (clean, degraded, "degraded")):
        for key, path in one.items():
            if key not in other:
                raise ValueError(f"{path}: has no {name} partner under {folder}; its name must be the same")
    return [(path, clean[key]) for key, path in degraded.items()]


def read_pair(degraded: Path, clean: Path) -> np.ndarray:
    """A pair as one example (H, W, 6) uint8: RGB degraded, RGB clean. Raises: ValueError where sizes differ."""
    one, other = (load_pixels(path) for path in (degraded, clean))
    if one.shape != other.shape:
        sizes = [f"{image.shape[1]} x {image.shape[0]}" for image in (one, other)]
        raise ValueError(f"{degraded}: {sizes[0]} pixels, and {clean} {sizes[1]}; a pair must be of one size")
    return np.concatenate([one, other], 2)


def pair_bytes(pair: tuple[Path, Path]) -> int:
    """What a pair takes in memory, by its headers."""
    return sum(map(photo_bytes, pair))


def load_pairs(sources: Sequence[str], held_out: int = 0, progress: bool = False) -> tuple[Sequence, list]:
    """(train, held-out) examples (H, W, 6) uint8 of folders: in memory, but for those of packed sets.

    Raises: ValueError as ``find_pairs`` and ``split``, for a damaged image or packed set, and for more pairs than fit
        into memory.
    """
    train, held = split(pool.find(sources, "pairs", find_pairs), held_out)
    return pool.gather(train, held, "pairs", lambda pair: read_pair(*pair), pair_bytes, progress)


def _side_and_key(path: Path) -> tuple[int | None, tuple[str, ...]]:
    """(0 degraded, 1 clean, None unknown; the path's folders and name, without suffix and the word)."""
    parts = [*path.parts[:-1], path.stem]
    for i, part in enumerate(parts):
        if found := _WORD.search(part):
            parts[i] = "*" if i < len(parts) - 1 else part
            return int(found[0].lower() in CLEAN), (*parts[:-1], _WORD.sub("*", parts[-1]))
    return None, tuple(parts)
