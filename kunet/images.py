"""Image files to tensors in [0, 1] and back: the one door for pixels, rounding and noise units.

Notebook: notebooks/05_images.ipynb.
"""

import math
import os
import struct
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from kunet import metadata

LEVELS = 255
"""Levels of an 8-bit channel: sigma is given in them and divided by them in ``unit`` alone."""

SUFFIXES = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
MAX_PIXELS = 178_000_000  # a little below the bound at which Pillow itself refuses
"""Larger files are refused: a small file can claim to be a huge image (a decompression bomb)."""


class ImageError(ValueError):
    """A file that cannot be read as, or written from, an image: the message names it and says what to do."""


def unit(levels):
    """A noise level in 8-bit levels (sigma = 50, say) in the units of tensors in [0, 1]."""
    return levels / LEVELS


def check_sigma(sigma: object) -> float:
    """sigma itself, if it is a finite number from 0 to 255 8-bit levels; else ValueError."""
    if not (isinstance(sigma, int | float) and math.isfinite(sigma) and 0 <= sigma <= LEVELS):
        raise ValueError(f"sigma is {sigma}; it must be a number from 0 to {LEVELS}, in 8-bit levels")
    return float(sigma)


def check_sigma_map(sigma: Tensor, image: Float[Tensor, "C H W"]) -> Float[Tensor, "H W"]:
    """sigma itself, if it holds a finite level from 0 to 255 for each pixel of the image; else ValueError."""
    if sigma.shape != image.shape[1:]:
        raise ValueError(
            f"sigma is a map of {tuple(sigma.shape)} for an image of {tuple(image.shape)}; it must be one level a"
            f" pixel, {tuple(image.shape[1:])}"
        )
    if not bool(((sigma >= 0) & (sigma <= LEVELS)).all()):  # false for nan too
        raise ValueError(
            f"sigma is a map from {float(sigma.min()):g} to {float(sigma.max()):g}; its levels must be numbers from 0"
            f" to {LEVELS}, in 8-bit levels"
        )
    return sigma.to(image.dtype)


def to_tensor(image: Image.Image | np.ndarray) -> Float[Tensor, "C H W"]:
    """8- or 16-bit pixels, (H, W) or (H, W, C), to float32 (C, H, W) in [0, 1]."""
    pixels = np.array(image)
    full = 65535 if pixels.dtype in (np.uint16, np.int32) else LEVELS
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    return torch.from_numpy(pixels.astype(np.float32) / full).permute(2, 0, 1).contiguous()


def to_uint8(x: Float[Tensor, "C H W"]) -> np.ndarray:
    """(C, H, W) in [0, 1], clipped and rounded to the nearest level: (H, W, C) uint8, or (H, W) when C = 1."""
    pixels = (x.clamp(0, 1) * LEVELS).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


def open_image(path: str | Path) -> Image.Image:
    """A decoded Pillow image, turned upright by its EXIF orientation, all of it read.

    Raises: ImageError when the path is no readable image, is truncated, or is larger than MAX_PIXELS.
    """
    with _opened(Path(path)) as image:
        image.load()
        return metadata.upright(image, path)


def image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) that a file's header states, before it is turned upright: no pixel is decoded.

    Raises: ImageError as ``open_image``, but for damage behind the header.
    """
    with _opened(Path(path)) as image:
        return image.size


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """A Pillow image whose header is read and allowed; whatever goes wrong with it becomes an ImageError."""
    if not path.exists():
        raise ImageError(f"{path}: no such file; give the path of an image")
    if path.is_dir():
        raise ImageError(f"{path}: is a folder; give the path of an image")
    if path.stat().st_size == 0:
        raise ImageError(f"{path}: the file is empty (0 bytes); give an image, such as a PNG or JPEG")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own bound follows
            with Image.open(path) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ImageError(
                        f"{path}: claims {image.width} x {image.height} pixels; at most {MAX_PIXELS / 1e6:.0f} million"
                        " are read, cut or scale it first"
                    )
                if image.mode in ("RGB", "RGBA", "LA") and any(_deep(tile) for tile in image.tile):
                    raise ImageError(
                        f"{path}: has 16 bits a channel in {image.mode}, of which Pillow would keep 8; convert it to"
                        " 8 bits, or to 16-bit gray"
                    )
                if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # MPO: a camera's JPEG with a preview
                    raise ImageError(
                        f"{path}: holds {image.n_frames} pictures; save the one you want as a file of its own"
                    )
                yield image
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path}: {error}; at most {MAX_PIXELS / 1e6:.0f} million pixels are read") from None
    except UnidentifiedImageError:
        raise ImageError(f"{path}: not an image that Pillow can read; give a PNG, JPEG, WebP, BMP or TIFF") from None
    except PermissionError:
        raise ImageError(f"{path}: no permission to read it; change its permissions") from None
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # Pillow's parsers raise whatever they meet in a damaged file
        raise ImageError(f"{path}: the image is damaged ({error}); get a whole copy of it") from None


def _deep(tile: tuple) -> bool:
    """Whether a part of a colour file, as Pillow is about to decode it, has 16 bits a channel."""
    name, arguments = tile[0], tile[3]
    return ";16" in str(arguments) or (name.startswith("ppm") and arguments[-1] > LEVELS)


def load_rgb(path: str | Path) -> Float[Tensor, "3 H W"]:
    """A file as RGB in [0, 1], upright; alpha is dropped, gray repeated. Raises: ImageError."""
    return to_tensor(to_rgb(open_image(path)))


def load_pixels(path: str | Path) -> np.ndarray:
    """A file as RGB, upright, (H, W, 3) uint8: the pixels of ``load_rgb``. Raises: ImageError."""
    return np.asarray(to_rgb(open_image(path)))


def direct(image: Image.Image) -> Image.Image:
    """An image whose pixels are colours themselves, with an alpha channel where something is transparent: palettes,
    black and white, and a colour that stands for "transparent" become RGB, L, RGBA or LA. Other modes stay."""
    clear = "transparency" in image.info
    kind = {"P": "RGB", "1": "L"}.get(image.mode, image.mode)
    if kind in ("RGB", "L") and (clear or kind != image.mode):
        return image.convert({"RGB": "RGBA", "L": "LA"}[kind] if clear else kind)
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image as 8-bit RGB; 16-bit gray is scaled (Pillow's own conversion would clip it)."""
    if image.mode in ("I", "I;16", "I;16B", "I;16L"):
        image = Image.fromarray((np.array(image).astype(np.float64) / 257).round().clip(0, LEVELS).astype(np.uint8))
    return image.convert("RGB")


def check_writable(path: Path) -> None:
    """Raises: ImageError when no file can be made at path, or in the nearest folder above it that exists."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ImageError(f"{path}: cannot write there ({error.strerror or error}); choose another place") from None


def check_holds(path: Path, mode: str) -> None:
    """Raises: ImageError when the file format of path cannot hold a Pillow image of that mode as it is."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ImageError(f"{path}: cannot write {suffix or 'a file without a suffix'}; use {', '.join(SUFFIXES)}")
    if mode == "P" and SUFFIXES[suffix] in ("JPEG", "WEBP"):
        raise ImageError(f"{path}: {suffix} cannot hold the classes of a mask as they are; write .png, .tif or .bmp")
    if mode.startswith("I") and SUFFIXES[suffix] not in ("PNG", "TIFF"):
        raise ImageError(f"{path}: {suffix} cannot hold 16-bit gray; write .png or .tif")
    if mode.endswith("A") and SUFFIXES[suffix] in ("JPEG", "BMP"):
        raise ImageError(f"{path}: {suffix} cannot hold an alpha channel; write .png, .webp or .tif")


def save_image(image: Image.Image, path: str | Path) -> None:
    """Write a file, with the image's metadata, whole or not at all: a temporary file, renamed when complete.

    Raises: ImageError for an unknown suffix, a missing folder, or one that cannot be written to.
    """
    path = Path(path)
    check_holds(path, image.mode)
    if not path.parent.is_dir():
        raise ImageError(f"{path}: its folder {path.parent} does not exist; make it first")
    kind = SUFFIXES[path.suffix.lower()]
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"quality": 95}}.get(kind, {})
    options |= metadata.for_file(image, kind, path)
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
        with os.fdopen(handle, "wb") as file:
            image.save(file, kind, **options)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's files are private; a saved picture is not
        os.replace(temporary, path)
    except OSError as error:
        raise ImageError(f"{path}: cannot write there ({error.strerror or error}); choose another -o") from None
    except (ValueError, TypeError, OverflowError, SyntaxError, struct.error) as error:  # metadata, as a rule
        raise ImageError(f"{path}: Pillow cannot write that ({error}); choose another format by -o") from None
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)


def add_noise(
    clean: Float[Tensor, "*batch C H W"], sigma: float, generator: torch.Generator | None = None, mode: str = "float"
) -> Float[Tensor, "*batch C H W"]:
    """clean + N(0, (sigma/255)^2), white.

    Args:
        sigma: in 8-bit levels.
        generator: of any device, whose stream the noise is.
        mode: "float" leaves the sum as it is (the literature's protocol, values outside [0, 1]
            included); "u8" clips it to [0, 1] and rounds it to 8 bits, as a file holds it.
    """
    where = generator.device if generator else None
    noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype, device=where)
    noisy = clean + unit(sigma) * noise.to(clean.device)
    return as_file(noisy) if check_mode(mode) == "u8" else noisy


def as_file(x: Float[Tensor, "*batch C H W"]) -> Float[Tensor, "*batch C H W"]:
    """What is left of x after a trip through an 8-bit file: clipped to [0, 1], rounded to 1/255."""
    return (x.clamp(0, 1) * LEVELS).round() / LEVELS


def check_mode(mode: str) -> str:
    """mode itself, if it is a noise mode; else ValueError."""
    if mode not in ("float", "u8"):
        raise ValueError(f'noise mode is {mode!r}; it must be "float" or "u8"')
    return mode
