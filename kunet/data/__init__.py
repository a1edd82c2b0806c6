"""Photos: those bundled in installed packages, folders of your own, and random crops of either."""

from kunet.data.bundled import BUNDLED, bundled
from kunet.data.photos import Crops, list_images, load_photos, split

__all__ = ["BUNDLED", "Crops", "bundled", "list_images", "load_photos", "split"]
