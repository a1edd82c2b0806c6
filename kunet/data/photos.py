"""Folders of photos, splits by photo, and random crops that depend on nothing but a seed and an index."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from kunet.data import sets
from kunet.data.bundled import bundled
from kunet.images import SUFFIXES, load_rgb, to_tensor, to_uint8


def list_images(folder: str | Path) -> list[Path]:
    """All image files under a folder, or the clean ones of a data set by name, sorted by path; no hidden files.

    Raises: ValueError when the folder does not exist or holds no image, or the data set is not here.
    """
    if sets.named(folder):
        return sets.clean_images(str(folder))
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; give a folder of images, bundled, or a set of `kunet data list`")
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not found:
        raise ValueError(f"{folder}: holds no image; {', '.join(SUFFIXES)} are read")
    return found


def split(names: Sequence, held_out: int) -> tuple[list, list]:
    """(train, held out): ``held_out`` of the names, evenly spread over their order, are kept apart.

    Raises: ValueError when that would leave nothing to train on.
    """
    if not 0 <= held_out < len(names):
        raise ValueError(f"split: {held_out} of {len(names)} photos held out; hold out fewer than there are")
    kept = {len(names) * i // held_out for i in range(held_out)} if held_out else set()
    return [n for i, n in enumerate(names) if i not in kept], [n for i, n in enumerate(names) if i in kept]


def load_photos(sources: Sequence[str], held_out: int = 0, progress: bool = False) -> tuple[list, list]:
    """(train, held-out) photos, each (H, W, 3) uint8, in memory.

    Args:
        sources: folders of images, names of data sets (``kunet.data.sets``), or "bundled" (split as ``BUNDLED`` says).
        held_out: how many photos of the folders, all together, to keep apart.
    """
    paths = [path for source in sources if source != "bundled" for path in list_images(source)]
    train, held = split(paths, held_out) if paths else ([], [])
    bar = tqdm(train + held, desc="reading photos", unit="photo", disable=not progress)
    pixels = [to_uint8(load_rgb(path)) for path in bar]
    pools = pixels[: len(train)], pixels[len(train) :]
    if "bundled" in sources:
        pools[0].extend(bundled("train").values())
        pools[1].extend(bundled("heldout").values())
    return pools


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
