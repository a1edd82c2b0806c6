"""Folders of photos, splits by photo, and random crops that depend on nothing but a seed and an index."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from kunet.data import pool, sets
from kunet.data.bundled import bundled
from kunet.data.packed import is_packed
from kunet.images import SUFFIXES, image_size, load_pixels, to_tensor


def list_images(folder: str | Path) -> list[Path]:
    """All image files under a folder, or the clean ones of a data set by name, sorted by path; no hidden files.

    Raises: ValueError when the folder does not exist or holds no image, or the data set is not here.
    """
    if sets.named(folder):
        return sets.clean_images(str(folder))
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; give a folder of images, bundled, or a set of `kunet data list`")
    if is_packed(folder):
        raise ValueError(f"{folder}: is a packed set, for trainings alone; give the folder that it was packed from")
    found = []
    for place, _, names in os.walk(folder, onerror=_refuse):
        paths = (Path(place) / name for name in names if not name.startswith("."))
        found += [path for path in paths if path.suffix.lower() in SUFFIXES]
    found.sort()
    if not found:
        raise ValueError(f"{folder}: holds no image; {', '.join(SUFFIXES)} are read")
    return found


def _refuse(error: OSError) -> None:
    raise ValueError(f"{error.filename}: the folder cannot be read ({error.strerror}); change its permissions")


def split(names: Sequence, held_out: int) -> tuple[list, list]:
    """(train, held out): ``held_out`` of the names, evenly spread over their order, are kept apart.

    Raises: ValueError when that would leave nothing to train on.
    """
    if not 0 <= held_out < len(names):
        raise ValueError(f"split: {held_out} of {len(names)} photos held out; hold out fewer than there are")
    kept = {len(names) * i // held_out for i in range(held_out)} if held_out else set()
    return [n for i, n in enumerate(names) if i not in kept], [n for i, n in enumerate(names) if i in kept]


def photo_bytes(path: Path) -> int:
    """What a photo takes in memory, by its header."""
    return 3 * math.prod(image_size(path))


def load_photos(sources: Sequence[str], held_out: int = 0, progress: bool = False) -> tuple[Sequence, list]:
    """(train, held-out) photos, each (H, W, 3) uint8: in memory, but for those of packed sets.

    Args:
        sources: folders of images, packed sets' folders (``kunet.data.packed``), names of data sets
            (``kunet.data.sets``), or "bundled" (split as ``BUNDLED`` says).
        held_out: how many photos of the folders, all together, to keep apart.
    Raises: ValueError as ``list_images`` and ``split``, for a damaged image or packed set, and for more photos than fit
        into memory.
    """
    found = pool.find([source for source in sources if source != "bundled"], "photos", list_images)
    train, held = split(found, held_out) if found else ([], [])
    if "bundled" in sources:
        train.extend(bundled("train").values())
        held.extend(bundled("heldout").values())
    return pool.gather(train, held, "photos", load_pixels, photo_bytes, progress)


def with_reduced(photos: Sequence[np.ndarray], factors: Sequence[int], shortest: int = 256) -> Sequence[np.ndarray]:
    """The photos, (H, W, 3) uint8, and after them the same at 1 / factor of their size, for every whole factor.

    Each pixel of a smaller one is the mean of factor x factor pixels (at the far edges of those that there are), so
    the noise and the JPEG marks that the photo came with are fainter. One whose short side would be below ``shortest``
    pixels is left out. Smaller ones are in memory, also those of packed photos.

    Raises: ValueError when they would not fit there, beside the photos that are there already.
    """
    chosen = [(photo, factor) for factor in factors for photo in photos if min(photo.shape[:2]) // factor >= shortest]
    entries = photos.entries if isinstance(photos, pool.Pool) else photos
    held = sum(entry.size for entry in entries if isinstance(entry, np.ndarray))
    needed = sum(photo.size // factor**2 for photo, factor in chosen)
    what = f"{len(photos)} photos, {len(chosen)} smaller ones with them"
    pool.check_memory(held + needed, what, "leave out some of the factors in reduced")
    smaller = [np.asarray(Image.fromarray(photo).reduce(factor)) for photo, factor in chosen]
    return pool.Pool([*entries, *smaller])


class Crops(Dataset):
    """Random square crops, turned and mirrored at random: item i is a function of (seed, i) alone.

    So a stopped run continues with the very crops it would have seen, and any number of workers or ranks
    sees the same ones. Each item is (C, size, size) in [0, 1], of examples (H, W, C) uint8, chosen evenly;
    smaller ones than the crop are reflected.
    """

    def __init__(self, photos: Sequence[np.ndarray], size: int, length: int, seed: int = 0):
        if not len(photos):
            raise ValueError("Crops: no photos to crop from")
        self.photos, self.size, self.length, self.seed = photos, size, length, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Float[Tensor, "C H W"]:
        if not 0 <= index < self.length:
            raise IndexError(index)
        random = np.random.default_rng((self.seed, index))
        photo = self.photos[random.integers(len(self.photos))]
        short = [max(0, self.size - side) for side in photo.shape[:2]]
        if any(short):
            photo = np.pad(photo, ((0, short[0]), (0, short[1]), (0, 0)), mode="symmetric")
        top, left = (random.integers(side - self.size + 1) for side in photo.shape[:2])
        crop = photo[top : top + self.size, left : left + self.size]
        turns, mirror = random.integers(4), random.integers(2)
        crop = np.rot90(crop[:, ::-1] if mirror else crop, turns)
        return to_tensor(crop)
