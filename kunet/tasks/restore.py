"""Restoring photos: of noise, of blur and JPEG compression, of rain, and of whatever real pairs show."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from kunet import metrics
from kunet.data import degrade, load_pairs, load_photos
from kunet.data.photos import with_reduced
from kunet.images import LEVELS, add_noise, as_file, check_mode, unit
from kunet.tasks.batch import Batch


@dataclass(frozen=True, kw_only=True)
class Restoration:
    """What the restoring tasks share: photos, a loss between images, PSNR.

    Args:
        objective: "log_mse" (the mean of ln MSE), "floored_log_mse" (of ln(MSE + 3e-4), for levels of noise from 0
            on), or "l1" (the mean absolute error of KBNet's and KiT's recipes).
    """

    objective: str = "log_mse"
    measure: ClassVar[str] = "psnr"
    on_device: ClassVar[bool] = True

    def __post_init__(self):
        if self.objective not in metrics.OBJECTIVES:
            raise ValueError(f"objective is {self.objective!r}; it must be one of {', '.join(metrics.OBJECTIVES)}")

    def load(self, sources: list[str], held_out: int, progress: bool = False) -> tuple[Sequence, list]:
        """(train, held out) photos, (H, W, 3) uint8, as ``kunet.data.load_photos`` finds them."""
        return load_photos(sources, held_out, progress)

    def fits(self, model: nn.Module) -> None:
        """Raises: ValueError for a model that returns logits, which are no image even where they are three."""
        if (classes := getattr(model, "classes", None)) is not None:  # a model from elsewhere need not say
            raise ValueError(
                f"{type(self).__name__.lower()}: the model returns {classes} logits a pixel, no image; make it with"
                " classes None (model_args: {classes: null})"
            )

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        return metrics.OBJECTIVES[self.objective](self._restored(model, batch), batch.target)

    def score(self, model: nn.Module, batch: Batch) -> Float[Tensor, " B"]:
        """PSNR of each image in dB, after rounding to 8 bits."""
        return metrics.psnr(as_file(self._restored(model, batch)), batch.target)

    def _restored(self, model: nn.Module, batch: Batch) -> Float[Tensor, "B C H W"]:
        self.fits(model)
        restored = model(batch.input, batch.noise_level).float()
        if restored.shape != batch.target.shape:  # which a loss would broadcast
            raise ValueError(
                f"{type(self).__name__.lower()}: the model returns {tuple(restored.shape)} where the images are"
                f" {tuple(batch.target.shape)}; it must return images of that shape"
            )
        return restored

    def scores(self, output: Float[Tensor, "B C H W"], batch: Batch) -> dict[str, Float[Tensor, " B"]]:
        """PSNR in dB and SSIM of each image, after rounding to 8 bits."""
        restored = as_file(output.float())
        return {"psnr": metrics.psnr(restored, batch.target), "ssim": metrics.ssim(restored, batch.target)}


@dataclass(frozen=True)
class Denoise(Restoration):
    """Remove white Gaussian noise of a known level, or, ``blind``, of an unknown one.

    Args:
        sigma: (lowest, highest) level in 8-bit levels; each training crop draws its own, uniformly. Two equal
            levels train for that one alone.
        focus, focus_share: this share of the crops gets exactly the level ``focus`` instead.
        u8_share: this share of the crops goes through an 8-bit file (clipped, rounded), the rest stays float:
            photos come as files, benchmarks as floats.
        map_share: this share of the crops gets a level that varies smoothly over the crop between the two of
            ``sigma``. The model is then told a map, one value a pixel, of every crop; validation keeps to one level.
        blind: the model is not told the level (it gets 0).
        reduced: whole factors; the photos to train on that are large enough are there once more at 1 / factor of their
            size, as ``kunet.data.photos.with_reduced`` makes them. Crops are drawn from all, equally often.
    Raises: ValueError for levels outside 0..255, shares outside 0..1 or factors below 2.
    """

    sigma: tuple[float, ...] = (0.0, 55.0)
    focus: float = 50.0
    focus_share: float = 0.0
    u8_share: float = 0.0
    map_share: float = 0.0
    blind: bool = False
    reduced: tuple[int, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        if not all(isinstance(factor, int) and factor >= 2 for factor in self.reduced):
            raise ValueError(f"denoise: reduced {self.reduced}; whole factors from 2 on")
        if len(self.sigma) != 2 or not 0 <= self.sigma[0] <= self.sigma[1] <= LEVELS or not 0 <= self.focus <= LEVELS:
            raise ValueError(
                f"denoise: sigma {self.sigma}, focus {self.focus}; two levels in 0..{LEVELS}, lowest first"
            )
        shares = {name: getattr(self, name) for name in ("focus_share", "u8_share", "map_share")}
        if not all(0 <= share <= 1 for share in shares.values()):
            raise ValueError(f"denoise: {', '.join(f'{k} {v}' for k, v in shares.items())}; shares lie in 0..1")

    def load(self, sources: list[str], held_out: int, progress: bool = False) -> tuple[Sequence, list]:
        """(train, held out) photos, (H, W, 3) uint8; those to train on at all sizes that ``reduced`` asks for."""
        train, held = super().load(sources, held_out, progress)
        return with_reduced(train, self.reduced) if self.reduced else train, held

    def batch(self, crops: Float[Tensor, "B C H W"], generator: torch.Generator) -> Batch:
        """A training batch from clean crops; all its randomness comes from the generator."""
        low, high = self.sigma
        draw = torch.rand(3, len(crops), generator=generator, device=crops.device)
        sigma = torch.where(draw[0] < self.focus_share, self.focus, low + (high - low) * draw[1])
        noise = torch.randn(crops.shape, generator=generator, device=crops.device)
        pixels = sigma[:, None, None, None]
        if self.map_share:
            varied = torch.rand(len(crops), 1, 1, 1, generator=generator, device=crops.device) < self.map_share
            pixels = sigma = torch.where(varied, low + (high - low) * smooth_maps(crops, generator), pixels)
        noisy = crops + unit(pixels) * noise
        noisy = torch.where((draw[2] < self.u8_share)[:, None, None, None], as_file(noisy), noisy)
        return Batch(noisy, self._told(unit(sigma)), crops)

    def probe(
        self, crops: Float[Tensor, "B C H W"], seed: int, sigma: float | None = None, mode: str = "float"
    ) -> Batch:
        """A validation batch: one stated level (``focus`` unless told), one seed, the same noise every time."""
        sigma = self.focus if sigma is None else sigma
        noisy = add_noise(crops, sigma, torch.Generator().manual_seed(seed), check_mode(mode))
        return Batch(noisy, self._told(torch.full((len(crops),), unit(sigma))), crops)

    def _told(self, level: Tensor) -> Tensor:
        return torch.zeros_like(level) if self.blind else level


def smooth_maps(crops: Float[Tensor, "B C H W"], generator: torch.Generator) -> Float[Tensor, "B 1 H W"]:
    """A random smooth map of each crop, from 0 to 1: 4 x 4 numbers, interpolated bicubically and cut to that range."""
    coarse = torch.rand(len(crops), 1, 4, 4, generator=generator, device=crops.device)
    return F.interpolate(coarse, crops.shape[-2:], mode="bicubic", align_corners=True).clamp(0, 1)


@dataclass(frozen=True)
class Deblur(Restoration):
    """Undo blur, and the JPEG compression that followed it, made on the fly as REDS-JPEG has them.

    Every image draws a straight motion or an anisotropic Gaussian, uniformly from these ranges, each
    (lowest, highest); then its file. See ``kunet.data.degrade.blur`` for what a crop's border shows.

    Args:
        length: of the motion, in pixels.
        angle: of motion or Gaussian, in degrees, counter-clockwise from the horizontal.
        spread: standard deviations of the Gaussian along its two axes, in pixels.
        motion_share: this share of the images is blurred by motion, the rest by a Gaussian.
        quality: of the JPEG file, 1..100; None writes no JPEG, the image is only rounded to 8 bits. The
            blocks begin anywhere in a training crop, and at the corner of a validation image.
    Raises: ValueError for empty or impossible ranges.
    Source: S. Nah et al., "NTIRE 2021 Challenge on Image Deblurring", arXiv 2104.14854, track 2.
    """

    length: tuple[float, ...] = (1.0, 15.0)
    angle: tuple[float, ...] = (0.0, 180.0)
    spread: tuple[float, ...] = (0.4, 2.4)
    motion_share: float = 0.75
    quality: tuple[float, ...] | None = (25, 25)
    on_device: ClassVar[bool] = False  # the host must know how large the kernels are, and Pillow writes the files

    def __post_init__(self):
        super().__post_init__()
        _check_ranges("deblur", length=(self.length, 0, 200), angle=(self.angle, -360, 360))
        _check_ranges("deblur", spread=(self.spread, 0.1, 50), quality=(self.quality or (1, 1), 1, 100))
        if self.quality is not None and not all(isinstance(q, int) for q in self.quality):
            raise ValueError(f"deblur: quality {self.quality}; two whole numbers, or None for no JPEG")
        if not 0 <= self.motion_share <= 1:
            raise ValueError(f"deblur: motion_share {self.motion_share}; a share lies in 0..1")

    def batch(self, crops: Float[Tensor, "B C H W"], generator: torch.Generator) -> Batch:
        """A training batch from clean crops; all its randomness comes from the generator."""
        return self._degraded(crops, generator, whole=False)

    def probe(self, crops: Float[Tensor, "B C H W"], seed: int) -> Batch:
        """A validation batch of whole images: the same blur and quality of each every time."""
        return self._degraded(crops, torch.Generator().manual_seed(seed), whole=True)

    def _degraded(self, clean: Float[Tensor, "B C H W"], generator: torch.Generator, whole: bool) -> Batch:
        n = len(clean)
        angle = _draw(n, self.angle, generator)
        moved = degrade.blur(clean, degrade.motion_kernel(_draw(n, self.length, generator), angle))
        along, across = (_draw(n, self.spread, generator) for _ in range(2))
        soft = degrade.blur(clean, degrade.gaussian_kernel(along, across, angle))
        by_motion = torch.rand(n, generator=generator) < self.motion_share
        blurred = as_file(torch.where(by_motion[:, None, None, None], moved, soft))
        if self.quality is not None:
            low, high = self.quality
            quality = torch.randint(low, high + 1, (n,), generator=generator).tolist()
            shift = torch.randint(16, (n, 2), generator=generator) * (not whole)
            files = zip(blurred, quality, shift.tolist())
            blurred = torch.stack([degrade.jpeg(x, q, (top, left)) for x, q, (top, left) in files])
        return Batch(blurred, torch.zeros(n), clean)


@dataclass(frozen=True)
class Derain(Restoration):
    """Remove streaks of rain, drawn on the fly; every image draws uniformly from these ranges, (lowest, highest).

    Args:
        density: drops a pixel.
        length, width: of the streaks in pixels.
        angle: of the streaks in degrees, counter-clockwise from the horizontal; 90 falls straight.
        brightness: of a single streak's peak, in 0..1.
    Raises: ValueError for empty or impossible ranges.
    Source: as ``kunet.data.degrade.rain``.
    """

    density: tuple[float, ...] = (0.001, 0.01)
    length: tuple[float, ...] = (8.0, 30.0)
    angle: tuple[float, ...] = (60.0, 120.0)
    width: tuple[float, ...] = (1.0, 2.5)
    brightness: tuple[float, ...] = (0.2, 0.6)
    on_device: ClassVar[bool] = False  # as Deblur

    def __post_init__(self):
        super().__post_init__()
        _check_ranges("derain", density=(self.density, 0, 1), length=(self.length, 0, 200))
        _check_ranges("derain", angle=(self.angle, -360, 360), width=(self.width, 0.5, 20))
        _check_ranges("derain", brightness=(self.brightness, 0, 1))

    def batch(self, crops: Float[Tensor, "B C H W"], generator: torch.Generator) -> Batch:
        """A training batch from clean crops; all its randomness comes from the generator."""
        ranges = (self.density, self.length, self.angle, self.width, self.brightness)
        drawn = [_draw(len(crops), range_, generator) for range_ in ranges]
        return Batch(as_file(degrade.rain(crops, *drawn, generator)), torch.zeros(len(crops)), crops)

    def probe(self, crops: Float[Tensor, "B C H W"], seed: int) -> Batch:
        """A validation batch: the same rain every time."""
        return self.batch(crops, torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Pairs(Restoration):
    """Restore what real pairs show, to fine-tune on them: folders as ``kunet.data.pairs`` reads them.

    The noise level is not known (0), and nothing is random.
    """

    def load(self, sources: list[str], held_out: int, progress: bool = False) -> tuple[Sequence, list]:
        """(train, held out) pairs, (H, W, 6) uint8: degraded, clean."""
        return load_pairs(sources, held_out, progress)

    def batch(self, crops: Float[Tensor, "B 6 H W"], generator: torch.Generator) -> Batch:
        return Batch(crops[:, :3], crops.new_zeros(len(crops)), crops[:, 3:])

    def probe(self, crops: Float[Tensor, "B 6 H W"], seed: int) -> Batch:
        return self.batch(crops, torch.Generator())


def _draw(count: int, bounds: tuple[float, float], generator: torch.Generator) -> Float[Tensor, " B"]:
    low, high = bounds
    return low + (high - low) * torch.rand(count, generator=generator)


def _check_ranges(task: str, **ranges: tuple[tuple[float, ...], float, float]) -> None:
    """Raises: ValueError unless every range, (given, smallest, largest allowed), is two numbers, lowest first."""
    for name, (given, least, most) in ranges.items():
        if len(given) != 2 or not least <= given[0] <= given[1] <= most:
            raise ValueError(f"{task}: {name} {given}; two numbers in {least}..{most}, lowest first")
