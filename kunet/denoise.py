"""Denoise photos: noise of a stated level, files and folders of any size, on any machine."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from kunet import folders, tasks
from kunet.images import check_sigma, check_sigma_map, unit
from kunet.noise import estimate_sigma
from kunet.restore import Network, through
from kunet.weights import DEFAULT

SUFFIX = "_denoised"
OWN_ERROR = 1.5
"""What the released network changes, in 8-bit levels, in a photo without noise (1 to 3: fine texture, and the grain
that most photos have)."""
AUTO = "auto"
"""In place of a level: that of each image is estimated, see ``kunet.noise``."""


def check_level(sigma: object) -> float | str:
    """sigma itself, if it is AUTO or a number from 0 to 255 8-bit levels; else ValueError."""
    if isinstance(sigma, str) and sigma != AUTO:
        raise ValueError(f'sigma is {sigma!r}; it must be a number from 0 to 255, in 8-bit levels, or "{AUTO}"')
    return AUTO if isinstance(sigma, str) else check_sigma(sigma)


@dataclass(frozen=True)
class Denoiser(Network):
    """A network that removes noise of a stated level.

    Args:
        trained_sigma: lowest and highest level that the weights have seen, in 8-bit levels.
        blind: the weights were trained without being told the level, so they get 0 here too. The level still says
            what to do with a gray image, and with more noise than they have seen.
        own_error: in 8-bit levels. Of the network's change a share of sigma^2 / (sigma^2 + own_error^2) is made: what
            is best for the mean square where noise and own error have nothing to do with each other, as in Wiener's
            filter. So a photo without noise stays as it is, and one with much gets nearly all of the change. With 0 the
            whole change is made.
    """

    trained_sigma: tuple[float, float] = (0, 255)
    blind: bool = False
    own_error: float = 0.0

    @classmethod
    def load(
        cls,
        weights: str = DEFAULT,
        memory: float = 2e9,
        device: str = "cpu",
        precision: str = "fp32",
        ensemble: int = 1,
    ) -> "Denoiser":
        """From released weights by name, or a .safetensors file by path. Raises: ValueError."""
        network, args = cls.open(weights, ("denoise",), memory, device, precision, ensemble)
        task = tasks.make("denoise", args)
        return replace(network, trained_sigma=tuple(task.sigma), blind=task.blind, own_error=OWN_ERROR)

    @torch.inference_mode()
    def __call__(
        self,
        noisy: Float[Tensor, "C H W"],
        sigma: float | str | Float[Tensor, "h w"],
        progress: Callable[[], None] = lambda: None,
    ) -> Float[Tensor, "C H W"]:
        """The restored image in [0, 1]; noisy is RGB or gray (C = 3 or 1).

        Args:
            sigma: in 8-bit levels: of the whole image, or of each pixel; or "auto", the image's own estimate.
        Raises: ValueError for levels outside 0..255, a map of another size, or an image too small for an estimate.
        """
        channels = len(noisy)
        if channels not in (1, 3):
            raise ValueError(f"denoise: an image of {channels} channels; give 1 (gray) or 3 (RGB)")
        sigma = check_sigma_map(sigma, noisy) if isinstance(sigma, Tensor) else check_level(sigma)
        level = unit(estimate_sigma(noisy) if sigma is AUTO else sigma)
        x = noisy.expand(3, -1, -1)
        gray = torch.equal(x[0], x[1]) and torch.equal(x[0], x[2])
        if gray:
            x, level = as_colour(x, level)
        # Noise stronger than the network has seen: less contrast makes it weaker, and is given back afterwards.
        highest = float(level.max()) if isinstance(level, Tensor) else level
        contrast = min(1.0, unit(self.trained_sigma[1]) / highest) if highest else 1.0
        seen = (x - 0.5) * contrast + 0.5 if contrast < 1 else x
        y = self.run(seen, 0.0 if self.blind else level * contrast, progress)
        if contrast < 1:
            y = (y - 0.5) / contrast + 0.5
        if self.own_error and not self.blind:
            y = x.lerp(y, level**2 / (level**2 + unit(self.own_error) ** 2))
        if gray:
            y = y.mean(0, keepdim=True).expand(channels, -1, -1)
        return y.clamp(0, 1)

    def photo(
        self,
        image: Image.Image,
        sigma: float | str | Float[Tensor, "h w"],
        progress: Callable[[], None] = lambda: None,
    ) -> Image.Image:
        """A Pillow image in, one of the same size, mode and metadata out (see ``kunet.restore.through``)."""
        return through(image, lambda x: self(x, sigma, progress))


def as_colour(
    gray: Float[Tensor, "3 H W"], level: float | Float[Tensor, "H W"]
) -> tuple[Float[Tensor, "3 H W"], float | Float[Tensor, "H W"]]:
    """A noisy gray image, in three equal channels, as a colour one with the noise a colour network knows; its level.

    The same noise in all channels is sqrt(3) times as strong along gray as independent noise, and absent along
    colour. Adding what is missing along colour, with a mean of 0 over the channels, makes it independent at
    sqrt(3) times the level: nothing of the photo is touched, and the mean over the channels takes it out again.
    """
    level = level * 3**0.5
    noise = torch.randn(gray.shape, generator=torch.Generator().manual_seed(0), dtype=gray.dtype) * level
    return gray + noise - noise.mean(0, keepdim=True), level


def denoise_paths(
    inputs: list[Path],
    output: Path | None,
    sigma: float | str,
    denoiser: Denoiser,
    existing: folders.Existing = "refuse",
    progress: bool = True,
    told: Callable[[Path, float], None] = lambda source, sigma: None,
) -> list[str]:
    """Denoise files and whole folders, as ``kunet.folders.run`` does.

    Args:
        sigma: in 8-bit levels, or "auto": what is estimated of each photo, as it was read.
        told: called with each photo's path and estimate, before the network works on it.
    """
    if check_level(sigma) is not AUTO:
        photo = lambda image, step: denoiser.photo(image, sigma, step)
        return folders.run(inputs, output, photo, denoiser.steps, SUFFIX, existing, progress)

    def estimated(source: Path, image: Image.Image, step: Callable[[], None]) -> Image.Image:
        def restored(x: Tensor) -> Tensor:
            level = estimate_sigma(x)
            told(source, level)
            return denoiser(x, level, step)

        return through(image, restored)

    failures = []
    for source, target in folders.plan(inputs, output, existing, SUFFIX):  # one by one, to know which photo it is
        photo = partial(estimated, source)
        failures += folders.run([source], target, photo, denoiser.steps, SUFFIX, existing, progress)
    return failures
