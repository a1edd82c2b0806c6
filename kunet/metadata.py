"""What a photo says of itself beside its pixels: read as far as it can be, and written where a file can hold it."""

import math
import warnings
from contextlib import suppress
from pathlib import Path

from PIL import Image, ImageOps

KEPT = ("exif", "icc_profile", "dpi")
"""What a saved image carries over from its ``info``."""
ORIENTATION, CAMERA, GPS = 274, 34665, 34853
NOTES = (270, 271, 272, 305, 306, 315, 33432, CAMERA, GPS)
"""What is kept of a TIFF's tags, which also say how its pixels lie: description, make, model, software, date, artist,
copyright, and the camera's own and GPS notes."""
JPEG_SEGMENT = 65527
"""Bytes of EXIF notes that a JPEG can hold."""


def upright(image: Image.Image, path: Path) -> Image.Image:
    """A decoded image turned as its EXIF orientation says; notes that are damaged are left out, with a warning."""
    try:
        turned = ImageOps.exif_transpose(_only(image, NOTES) if image.format == "TIFF" else image)
        Image.Exif().load(turned.info.get("exif", b""))
        return turned
    except Exception:  # whatever Pillow's parser meets; the pixels are whole
        warnings.warn(f"{path}: its EXIF notes are damaged, and left out", stacklevel=2)
        return ImageOps.exif_transpose(_only(image, ()))


def _only(image: Image.Image, tags: tuple[int, ...]) -> Image.Image:
    """A copy with no other EXIF notes than those tags and the orientation, as far as they can be read."""
    copy, kept = image.copy(), Image.Exif()
    copy.info.pop("exif", None)
    with suppress(Exception):
        found = image.getexif()
        for tag in (ORIENTATION, *tags):
            if tag in found:
                kept[tag] = found.get_ifd(tag) if tag in (CAMERA, GPS) else found[tag]
        if kept:
            copy.info["exif"] = kept.tobytes()
    return copy


def for_file(image: Image.Image, kind: str, path: Path) -> dict:
    """What a file of that kind ("JPEG", ...) can hold of an image's metadata; a warning says what is left out."""
    found = {key: image.info[key] for key in KEPT if key in image.info}
    if not all(math.isfinite(value) and 0 < value < 1e6 for value in found.get("dpi", ())):
        del found["dpi"]  # no resolution, but a broken one
    try:
        if kind == "JPEG" and len(found.get("exif", b"")) > JPEG_SEGMENT:
            raise ValueError
        if kind == "TIFF" and "exif" in found:  # Pillow writes its tags anew
            notes = Image.Exif()
            notes.load(found["exif"])
            notes.tobytes()
    except Exception:
        warnings.warn(f"{path}: a {kind} cannot hold its EXIF notes, and they are left out", stacklevel=3)
        del found["exif"]
    return found
