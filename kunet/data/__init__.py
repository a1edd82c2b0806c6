"""Photos: those bundled in installed packages, folders of your own, packed sets, and random crops of them all."""

from kunet.data.bundled import BUNDLED, bundled
from kunet.data.masks import load_masks
from kunet.data.packed import open_packed
from kunet.data.pairs import load_pairs
from kunet.data.photos import Crops, list_images, load_photos, split
from kunet.data.sets import SETS

__all__ = [
    "BUNDLED",
    "SETS",
    "Crops",
    "bundled",
    "list_images",
    "load_masks",
    "load_pairs",
    "load_photos",
    "open_packed",
    "split",
]
