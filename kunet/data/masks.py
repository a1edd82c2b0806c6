"""Pictures with masks to segment: folders as the public data sets come, or drawn ones.

What ``find_masks`` recognises, by the names of the masks:

    ISIC_0000000.jpg     ISIC_0000000_segmentation.png     in two folders, or one (ISIC)
    benign (1).png       benign (1)_mask.png, _mask_1.png  beside each other, united (BUSI)
    train_1.bmp          train_1_anno.bmp                  instances beside the image, united (GlaS)
    Original/1.tif       Ground Truth/1.tif                two folders, equal names (CVC-ClinicDB);
    images/a.jpg         masks/a.png                       their names are any of IMAGES and MASKS
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from kunet.data import pool
from kunet.data.drawn import SEEDS, draw
from kunet.data.photos import list_images, split
from kunet.images import image_size, open_image, to_rgb

IMAGES = ("images", "image", "imgs", "original", "input")
MASKS = ("masks", "mask", "groundtruth", "gt", "labels", "annotations")
"""Names of folders, small letters, without spaces, hyphens and underscores."""
ENDINGS = re.compile(r"_(segmentation|anno|mask)(_\d+)?$", re.IGNORECASE)
NOT_READ = "_superpixels"  # ISIC 2017 has such a file beside each image


@dataclass(frozen=True)
class Labelled:
    """An image, the masks that together are its own, and whether these number instances."""

    image: Path
    masks: tuple[Path, ...]
    instances: bool = False


def find_masks(folder: str | Path) -> list[Labelled]:
    """The images under a folder with their masks, sorted by the image's path.

    Raises: ValueError when no mask is recognised, and for the first image without a mask or mask without an image.
    """
    folder = Path(folder)
    images: dict[tuple, Path] = {}
    masks: dict[tuple, list[Path]] = {}
    paths = [path for path in list_images(folder) if not path.stem.endswith(NOT_READ)]
    by_ending = any(ENDINGS.search(path.stem) for path in paths)
    for path in paths:
        is_mask, key = _by_ending(path, folder) if by_ending else _by_folder(path, folder)
        if is_mask:
            masks.setdefault(key, []).append(path)
        elif key in images:
            raise ValueError(f"{path}: has the name of {images[key]}, so its mask is not known; rename one of them")
        else:
            images[key] = path
    for key, path in images.items():
        if key not in masks:
            raise ValueError(
                f"{path}: has no mask under {folder}; known are *_segmentation.*, *_mask.* and *_anno.* files, and a"
                f" folder {', '.join(MASKS)} beside {', '.join(IMAGES)}, with equal names"
            )
    for key, found in masks.items():
        if key not in images:
            raise ValueError(f"{found[0]}: is a mask without an image under {folder}; remove it or add the image")
    return [
        Labelled(image, tuple(masks[key]), by_ending and masks[key][0].stem.lower().endswith("_anno"))
        for key, image in images.items()
    ]


def read_labelled(found: Labelled, classes: int, size: int | None = None) -> np.ndarray:
    """An example (H, W, 4) uint8: RGB, then the class of each pixel.

    With up to two classes a mask says foreground by any value above 127, or above 0 where it numbers instances
    or has only values 0 and 1; several masks are united. With more, its values are the classes.

    Args:
        size: side of a square that image (bilinear) and mask (nearest) are scaled to; None keeps theirs.
    Raises: ValueError where sizes differ, or a class is not below ``classes``.
    """
    image = to_rgb(open_image(found.image))
    label = np.zeros((image.height, image.width), np.uint8)
    for path in found.masks:
        mask = open_image(path)
        numbered = found.instances or classes > 2
        # a palette's numbers are the labels, its colours only show them
        values = np.asarray(mask if numbered and mask.mode in ("1", "L", "P", "I;16", "I") else mask.convert("L"))
        if values.shape != label.shape:
            raise ValueError(
                f"{path}: {values.shape[1]} x {values.shape[0]} pixels, and {found.image} {image.width} x"
                f" {image.height}; a mask must be of its image's size"
            )
        if classes > 2 and not found.instances:
            if values.max() >= classes:
                raise ValueError(f"{path}: holds the class {values.max()}; with {classes} they are 0..{classes - 1}")
        else:
            values = values > (0 if found.instances or values.max() <= 1 else 127)
        label = np.maximum(label, values.astype(np.uint8))
    label = Image.fromarray(label)
    if size is not None:
        image, label = image.resize((size, size), Image.BILINEAR), label.resize((size, size), Image.NEAREST)
    return np.concatenate([np.asarray(image), np.asarray(label)[..., None]], 2)


def labelled_bytes(found: Labelled, size: int | None = None) -> int:
    """What an example takes in memory, by its image's header."""
    return 4 * (size**2 if size else math.prod(image_size(found.image)))


def load_masks(
    sources: Sequence[str], held_out: int = 0, classes: int = 2, size: int | None = None, progress: bool = False
) -> tuple[Sequence, list]:
    """(train, held-out) examples (H, W, 4) uint8: in memory, but for those of packed sets.

    Args:
        sources: folders, also of packed sets of the same classes and size; "drawn" or "drawn:N", N drawn pictures
            (200) to train on and 50 held out.
        held_out: how many images of the folders, all together, to keep apart.
        classes: background among them; with one or two the drawn shapes are all of class 1.
        size: side of the images; None keeps the folders' own, and draws 128.
    Raises: ValueError as ``find_masks``, ``read_labelled`` and ``split``, for a damaged image or packed set, and for
        more images than fit into memory.
    """
    counts = [_drawn_count(source) for source in sources]
    folders = [source for source, count in zip(sources, counts) if not count]
    found = pool.find(folders, "masks", find_masks, classes=max(2, classes), size=size)
    train, held = split(found, held_out) if found else ([], [])
    highest = np.uint8([255, 255, 255, 1 if classes <= 2 else 2])
    for count in filter(None, counts):
        for examples, part, number in zip((train, held), ("train", "heldout"), (count, 50)):
            examples.extend(np.minimum(draw(SEEDS[part], i, size or 128), highest) for i in range(number))
    read = lambda item: read_labelled(item, classes, size)
    return pool.gather(train, held, "masks", read, lambda item: labelled_bytes(item, size), progress)


def _drawn_count(source: str) -> int:
    """How many drawn pictures a source asks for; 0 for a folder."""
    name, _, count = source.partition(":")
    if name != "drawn":
        return 0
    if count and not (count.isdigit() and int(count)):
        raise ValueError(f"{source!r}: {count!r} is no number of pictures; give drawn, or drawn:200")
    return int(count or 200)


def _by_ending(path: Path, folder: Path) -> tuple[bool, tuple]:
    ending = ENDINGS.search(path.stem)
    return bool(ending), (path.stem[: ending.start()] if ending else path.stem,)


def _by_folder(path: Path, folder: Path) -> tuple[bool, tuple]:
    parts = path.relative_to(folder).parts[:-1]
    for i, part in enumerate(parts):
        name = re.sub(r"[ _-]", "", part.lower())
        if name in IMAGES + MASKS:
            return name in MASKS, (*parts[:i], *parts[i + 1 :], path.stem)
    return False, (*parts, path.stem)
