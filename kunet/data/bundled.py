"""Photos that ship inside scikit-image and scikit-learn: real data without a download.

Both packages carry these files in their installed wheels; nothing here goes to the network.
Licences as the packages state them (docstrings of skimage.data, README.txt of sklearn/datasets/images).
"""

from dataclasses import dataclass
from importlib.resources import files

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Photo:
    """One bundled photo: where it lies, which split it belongs to, whose it is."""

    name: str
    package: str
    file: str
    split: str
    licence: str
    source: str


BUNDLED = (
    Photo("astronaut", "skimage.data", "astronaut.png", "train", "public domain", "NASA: Eileen Collins"),
    Photo("rocket", "skimage.data", "rocket.jpg", "train", "public domain", "SpaceX: launch of DSCOVR"),
    Photo("flower", "sklearn.datasets.images", "flower.jpg", "train", "CC BY 2.0", "flickr.com/photos/vultilion"),
    Photo("chelsea", "skimage.data", "chelsea.png", "heldout", "CC0", "Stefan van der Walt"),
    Photo("coffee", "skimage.data", "coffee.png", "heldout", "CC0", "Rachel Michetti"),
    Photo("china", "sklearn.datasets.images", "china.jpg", "heldout", "CC BY 2.0", "flickr.com/photos/danielbuechele"),
)


def bundled(split: str | None = None) -> dict[str, np.ndarray]:
    """The bundled photos of a split ("train", "heldout", or None for all): name -> (H, W, 3) uint8."""
    if split not in (None, "train", "heldout"):
        raise ValueError(f'bundled: split is {split!r}; it must be "train", "heldout" or None')
    return {photo.name: _read(photo) for photo in BUNDLED if split in (None, photo.split)}


def _read(photo: Photo) -> np.ndarray:
    # importlib.resources finds the file without importing the package, which takes seconds for scikit-learn
    top, *folders = photo.package.split(".")
    with files(top).joinpath(*folders, photo.file).open("rb") as file:
        return np.asarray(Image.open(file).convert("RGB"))
