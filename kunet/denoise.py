"""Denoise photos: files and folders of any size, on any machine, with their alpha, depth and metadata kept."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from kunet.data import list_images
from kunet.images import (
    METADATA,
    SUFFIXES,
    ImageError,
    check_holds,
    check_sigma,
    check_writable,
    open_image,
    save_image,
    to_tensor,
    to_uint8,
    unit,
)
from kunet.runs import load_weights
from kunet.tasks import Denoise
from kunet.tiling import tile_count, tiled
from kunet.weights import DEFAULT, find

BYTES_PER_PIXEL = 330
"""Peak working memory of the released model a pixel of its input (measured by ``kunet benchmark``, rounded up)."""
OVERLAP = 128
GRID = 128
"""Tiles start on multiples of the attention windows (8 tokens of 16 pixels), so windows fall as in the whole image."""


@dataclass(frozen=True)
class Denoiser:
    """A model with its weights, ready for photos.

    Args:
        model: maps (noisy, noise level) to restored, (B, C, H, W) in [0, 1] units.
        memory: working memory of the network to stay below, in bytes (the photo itself, about 40 bytes a pixel,
            comes on top); larger images are tiled.
        device: of torch.
        trained_sigma: lowest and highest level that the weights have seen, in 8-bit levels.
    """

    model: nn.Module
    memory: float = 2e9
    device: str = "cpu"
    trained_sigma: tuple[float, float] = (0, 255)

    @classmethod
    def load(cls, weights: str = DEFAULT, memory: float = 2e9, device: str = "cpu") -> "Denoiser":
        """From released weights by name, or a .safetensors file by path. Raises: ValueError."""
        model, card = load_weights(find(weights))
        trained = card.get("recipe", {}).get("task_args", {}).get("sigma", Denoise.sigma)
        return cls(model.to(device, memory_format=torch.channels_last), memory, device, tuple(trained))

    def tile(self, pixels: int) -> int | None:
        """Side of the tiles for an image of that many pixels, or None when it fits the memory whole."""
        if pixels * BYTES_PER_PIXEL <= self.memory:
            return None
        side = int((self.memory / BYTES_PER_PIXEL) ** 0.5) // GRID * GRID
        return max(side, 2 * OVERLAP + GRID)

    @torch.inference_mode()
    def __call__(
        self, noisy: Float[Tensor, "C H W"], sigma: float, progress: Callable[[], None] = lambda: None
    ) -> Float[Tensor, "C H W"]:
        """The restored image in [0, 1]; noisy is RGB or gray (C = 3 or 1), sigma in 8-bit levels."""
        level = unit(check_sigma(sigma))
        channels, height, width = noisy.shape
        if channels not in (1, 3):
            raise ValueError(f"denoise: an image of {channels} channels; give 1 (gray) or 3 (RGB)")
        x = noisy.expand(3, -1, -1)
        gray = torch.equal(x[0], x[1]) and torch.equal(x[0], x[2])
        if gray:
            x, level = as_colour(x, level)
        # Noise stronger than the network has seen: less contrast makes it weaker, and is given back afterwards.
        contrast = min(1.0, unit(self.trained_sigma[1]) / level) if level else 1.0
        if contrast < 1:
            x = (x - 0.5) * contrast + 0.5
        x = x[None].to(self.device)
        restore = lambda piece: self.model(piece.contiguous(memory_format=torch.channels_last), level * contrast)
        tile = self.tile(height * width)
        if tile is None:
            y = restore(x)
            progress()
        else:
            y = tiled(restore, x, tile, OVERLAP, progress)
        y = y[0].cpu()
        if contrast < 1:
            y = (y - 0.5) / contrast + 0.5
        if gray:
            y = y.mean(0, keepdim=True).expand(channels, -1, -1)
        return y.clamp(0, 1)

    def steps(self, height: int, width: int) -> int:
        """How often ``progress`` is called for an image of this size."""
        tile = self.tile(height * width)
        return 1 if tile is None else tile_count(height, width, tile, OVERLAP)

    def photo(self, image: Image.Image, sigma: float, progress: Callable[[], None] = lambda: None) -> Image.Image:
        """A Pillow image in, one of the same size, mode and metadata out; alpha passes through untouched.

        Modes: RGB, L, RGBA, LA, 1, P (as RGB or RGBA) and 16-bit gray. Raises: ValueError for others.
        """
        info = {k: v for k, v in image.info.items() if k in METADATA}
        if image.mode in ("P", "1"):
            image = image.convert("RGBA" if "transparency" in image.info else "RGB" if image.mode == "P" else "L")
        if image.mode in ("I", "I;16", "I;16B", "I;16L"):
            pixels = np.array(image)
            if pixels.min() < 0 or pixels.max() > 65535:
                raise ValueError(f"gray values from {pixels.min()} to {pixels.max()}; 16-bit gray has 0 to 65535")
            restored = self(to_tensor(pixels.astype(np.uint16)), sigma, progress)
            result = Image.fromarray((restored[0] * 65535).round().numpy().astype(np.uint16))
        elif image.mode in ("RGB", "L", "RGBA", "LA"):
            colour = image.convert("RGB" if "RGB" in image.mode else "L")
            result = Image.fromarray(to_uint8(self(to_tensor(colour), sigma, progress)))
            if image.mode.endswith("A"):
                result.putalpha(image.getchannel("A"))
        else:
            raise ValueError(f"an image of mode {image.mode}; convert it to RGB or gray first")
        result.info.update(info)
        return result


def as_colour(gray: Float[Tensor, "3 H W"], level: float) -> tuple[Float[Tensor, "3 H W"], float]:
    """A noisy gray image, in three equal channels, as a colour one with the noise a colour network knows; its level.

    The same noise in all channels is sqrt(3) times as strong along gray as independent noise, and absent along
    colour. Adding what is missing along colour, with a mean of 0 over the channels, makes it independent at
    sqrt(3) times the level: nothing of the photo is touched, and the mean over the channels takes it out again.
    """
    level *= 3**0.5
    noise = torch.randn(gray.shape, generator=torch.Generator().manual_seed(0), dtype=gray.dtype) * level
    return gray + noise - noise.mean(0, keepdim=True), level


def denoise_paths(
    inputs: list[Path],
    output: Path | None,
    sigma: float,
    denoiser: Denoiser,
    force: bool = False,
    progress: bool = True,
) -> list[str]:
    """Denoise files and whole folders.

    Args:
        inputs: image files, or folders whose images are all taken.
        output: a file (for one input file) or a folder; None writes NAME_denoised.png beside each
            file, or into FOLDER_denoised for a folder.
        force: overwrite files that exist.
    Returns: one line an image that failed; the others are written.
    Raises: ValueError for a request that cannot be met as a whole, before any work.
    """
    check_sigma(sigma)
    jobs = plan(inputs, output, force)
    failures = []
    for source, target in jobs:
        try:
            image = open_image(source)
            check_holds(target, image.mode)
            total = denoiser.steps(image.height, image.width)
            with tqdm(total=total, desc=source.name, unit="tile", disable=not progress, leave=len(jobs) < 20) as bar:
                result = denoiser.photo(image, sigma, lambda bar=bar: bar.update() and None)
            target.parent.mkdir(parents=True, exist_ok=True)
            save_image(result, target)
        except ImageError as error:
            failures.append(str(error))
        except ValueError as error:
            failures.append(f"{source}: {error}")
        except (MemoryError, RuntimeError) as error:
            if "memory" not in str(error).lower() and not isinstance(error, MemoryError):
                raise
            failures.append(f"{source}: not enough memory; give a smaller --memory")
        except OSError as error:
            failures.append(f"{target}: cannot write there ({error.strerror}); choose another -o")
    return failures


def plan(inputs: list[Path], output: Path | None, force: bool) -> list[tuple[Path, Path]]:
    """(source, target) of every image. Raises: ValueError where a target is impossible or would be lost."""
    many = len(inputs) > 1 or inputs[0].is_dir()
    if many and output is not None and output.suffix.lower() in SUFFIXES:
        raise ValueError(f"{output}: is one file for several images; give a folder as -o")
    folder = output is not None and (many or output.is_dir() or not output.suffix)
    jobs = []
    for given in inputs:
        if given.is_dir():
            base = output or given.resolve().with_name(given.resolve().name + "_denoised")
            jobs += [(source, base / source.relative_to(given).with_suffix(".png")) for source in list_images(given)]
        elif output is None:
            jobs.append((given, given.with_name(f"{given.stem}_denoised.png")))
        elif folder:
            jobs.append((given, output / f"{given.stem}_denoised.png"))
        else:
            jobs.append((given, output))
    times = Counter(target for _, target in jobs)
    for parent in {target.parent for target in times}:
        check_writable(parent / "photo.png")
    for source, target in jobs:
        if times[target] > 1:
            raise ValueError(f"{target}: two images would be written there ({source} is one); denoise them one by one")
        if target.exists() and target.resolve() == source.resolve():
            raise ValueError(f"{target}: is the photo itself; give another -o")
        if target.exists() and not force:
            raise ValueError(f"{target}: exists already; give another -o, or --force to overwrite it")
        if not target.exists() and target.suffix.lower() not in SUFFIXES:
            raise ValueError(
                f"{target}: cannot write {target.suffix or 'a file without a suffix'}; use {', '.join(SUFFIXES)}"
            )
    return jobs
