"""Tasks: what a batch is, what a model is asked, how the answer is scored. The trainer knows no task by name."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kunet import metrics
from kunet.images import LEVELS, add_noise, as_file, check_mode, unit


@dataclass(frozen=True)
class Batch:
    """One training or validation batch: what the model gets and what it should return."""

    noisy: Float[Tensor, "B C H W"]
    noise_level: Float[Tensor, " B"]
    clean: Float[Tensor, "B C H W"]

    def to(self, device: str | torch.device, memory_format: torch.memory_format) -> "Batch":
        move = lambda x: x.to(device, memory_format=memory_format)
        return Batch(move(self.noisy), self.noise_level.to(device), move(self.clean))


@dataclass(frozen=True)
class Denoise:
    """Remove white Gaussian noise of a known level.

    Args:
        sigma: (lowest, highest) level in 8-bit levels; each training crop draws its own, uniformly.
        focus, focus_share: this share of the crops gets exactly the level ``focus`` instead.
        u8_share: this share of the crops goes through an 8-bit file (clipped, rounded), the rest stays float:
            photos come as files, benchmarks as floats.
    Raises: ValueError for levels outside 0..255 or shares outside 0..1.
    """

    sigma: tuple[float, float] = (0.0, 55.0)
    focus: float = 50.0
    focus_share: float = 0.0
    u8_share: float = 0.0

    def __post_init__(self):
        if len(self.sigma) != 2 or not 0 <= self.sigma[0] <= self.sigma[1] <= LEVELS or not 0 <= self.focus <= LEVELS:
            raise ValueError(
                f"denoise: sigma {self.sigma}, focus {self.focus}; two levels in 0..{LEVELS}, lowest first"
            )
        if not (0 <= self.focus_share <= 1 and 0 <= self.u8_share <= 1):
            raise ValueError(f"denoise: focus_share {self.focus_share}, u8_share {self.u8_share}; shares lie in 0..1")

    def batch(self, clean: Float[Tensor, "B C H W"], generator: torch.Generator) -> Batch:
        """A training batch from clean crops; all its randomness comes from the generator."""
        low, high = self.sigma
        draw = torch.rand(3, len(clean), generator=generator)
        sigma = torch.where(draw[0] < self.focus_share, self.focus, low + (high - low) * draw[1])
        noisy = clean + unit(sigma)[:, None, None, None] * torch.randn(clean.shape, generator=generator)
        noisy = torch.where((draw[2] < self.u8_share)[:, None, None, None], as_file(noisy), noisy)
        return Batch(noisy, unit(sigma), clean)

    def probe(
        self, clean: Float[Tensor, "B C H W"], seed: int, sigma: float | None = None, mode: str = "float"
    ) -> Batch:
        """A validation batch: one stated level (``focus`` unless told), one seed, the same noise every time."""
        sigma = self.focus if sigma is None else sigma
        noisy = add_noise(clean, sigma, torch.Generator().manual_seed(seed), check_mode(mode))
        return Batch(noisy, torch.full((len(clean),), unit(sigma)), clean)

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        return metrics.log_mse(model(batch.noisy, batch.noise_level).float(), batch.clean)

    def score(self, model: nn.Module, batch: Batch) -> Float[Tensor, " B"]:
        """PSNR of each image in dB, after rounding to 8 bits."""
        return metrics.psnr(as_file(model(batch.noisy, batch.noise_level).float()), batch.clean)


TASKS = {"denoise": Denoise}


def make(name: str, args: dict[str, Any]) -> Denoise:
    """A task by name, from arguments as a recipe holds them. Raises: ValueError as ``kunet.models.make`` does."""
    if name not in TASKS:
        raise ValueError(f"no task {name!r}; there are {', '.join(TASKS)}")
    try:
        return TASKS[name](**{key: tuple(value) if isinstance(value, list) else value for key, value in args.items()})
    except TypeError as error:
        raise ValueError(f"task_args {args} do not fit {name} ({error})") from None
