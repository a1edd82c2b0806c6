"""Tasks: what an example is, what a model is asked, how the answer is scored. The trainer knows no task by name.

An example is a uint8 array (H, W, C), so that one random crop serves every task: a photo has C = 3, a pair
(degraded, clean) 6, a photo with its mask 4. A task gives

    load(sources, held_out, progress)   examples to train on, examples held out
    batch(crops, generator)             a training batch of crops (B, C, H, W) in [0, 1]
    probe(crops, seed)                  the same for validation: the same every time
    loss(model, batch), score(model, batch)    a scalar; one number an image, whose name is ``measure``
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kunet import metrics
from kunet.data import load_photos
from kunet.images import LEVELS, add_noise, as_file, check_mode, unit


@dataclass(frozen=True)
class Batch:
    """What the model gets, image and noise level (sigma / 255; 0 where unknown), and what it should return."""

    input: Float[Tensor, "B C H W"]
    noise_level: Float[Tensor, " B"]
    target: Tensor

    def to(self, device: str | torch.device, memory_format: torch.memory_format) -> "Batch":
        move = lambda x: x.to(device, memory_format=memory_format)
        return Batch(move(self.input), self.noise_level.to(device), move(self.target))


@dataclass(frozen=True, kw_only=True)
class Restoration:
    """What the restoring tasks share: photos, a loss between images, PSNR.

    Args:
        objective: "log_mse" (the mean of ln MSE), or "l1" (the mean absolute error of KBNet's and KiT's recipes).
    """

    objective: str = "log_mse"
    measure: ClassVar[str] = "psnr"

    def __post_init__(self):
        if self.objective not in metrics.OBJECTIVES:
            raise ValueError(f"objective is {self.objective!r}; it must be one of {', '.join(metrics.OBJECTIVES)}")

    def load(self, sources: list[str], held_out: int, progress: bool = False) -> tuple[list, list]:
        """(train, held out) photos, (H, W, 3) uint8, as ``kunet.data.load_photos`` finds them."""
        return load_photos(sources, held_out, progress)

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        return metrics.OBJECTIVES[self.objective](model(batch.input, batch.noise_level).float(), batch.target)

    def score(self, model: nn.Module, batch: Batch) -> Float[Tensor, " B"]:
        """PSNR of each image in dB, after rounding to 8 bits."""
        return metrics.psnr(as_file(model(batch.input, batch.noise_level).float()), batch.target)


@dataclass(frozen=True)
class Denoise(Restoration):
    """Remove white Gaussian noise of a known level, or, ``blind``, of an unknown one.

    Args:
        sigma: (lowest, highest) level in 8-bit levels; each training crop draws its own, uniformly. Two equal
            levels train for that one alone.
        focus, focus_share: this share of the crops gets exactly the level ``focus`` instead.
        u8_share: this share of the crops goes through an 8-bit file (clipped, rounded), the rest stays float:
            photos come as files, benchmarks as floats.
        blind: the model is not told the level (it gets 0).
    Raises: ValueError for levels outside 0..255 or shares outside 0..1.
    """

    sigma: tuple[float, float] = (0.0, 55.0)
    focus: float = 50.0
    focus_share: float = 0.0
    u8_share: float = 0.0
    blind: bool = False

    def __post_init__(self):
        super().__post_init__()
        if len(self.sigma) != 2 or not 0 <= self.sigma[0] <= self.sigma[1] <= LEVELS or not 0 <= self.focus <= LEVELS:
            raise ValueError(
                f"denoise: sigma {self.sigma}, focus {self.focus}; two levels in 0..{LEVELS}, lowest first"
            )
        if not (0 <= self.focus_share <= 1 and 0 <= self.u8_share <= 1):
            raise ValueError(f"denoise: focus_share {self.focus_share}, u8_share {self.u8_share}; shares lie in 0..1")

    def batch(self, crops: Float[Tensor, "B C H W"], generator: torch.Generator) -> Batch:
        """A training batch from clean crops; all its randomness comes from the generator."""
        low, high = self.sigma
        draw = torch.rand(3, len(crops), generator=generator)
        sigma = torch.where(draw[0] < self.focus_share, self.focus, low + (high - low) * draw[1])
        noisy = crops + unit(sigma)[:, None, None, None] * torch.randn(crops.shape, generator=generator)
        noisy = torch.where((draw[2] < self.u8_share)[:, None, None, None], as_file(noisy), noisy)
        return Batch(noisy, self._told(unit(sigma)), crops)

    def probe(
        self, crops: Float[Tensor, "B C H W"], seed: int, sigma: float | None = None, mode: str = "float"
    ) -> Batch:
        """A validation batch: one stated level (``focus`` unless told), one seed, the same noise every time."""
        sigma = self.focus if sigma is None else sigma
        noisy = add_noise(crops, sigma, torch.Generator().manual_seed(seed), check_mode(mode))
        return Batch(noisy, self._told(torch.full((len(crops),), unit(sigma))), crops)

    def _told(self, level: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        return torch.zeros_like(level) if self.blind else level


Task = Restoration
TASKS = {"denoise": Denoise}


def make(name: str, args: dict[str, Any]) -> Task:
    """A task by name, from arguments as a recipe holds them. Raises: ValueError as ``kunet.models.make`` does."""
    if name not in TASKS:
        raise ValueError(f"no task {name!r}; there are {', '.join(TASKS)}")
    try:
        return TASKS[name](**{key: tuple(value) if isinstance(value, list) else value for key, value in args.items()})
    except TypeError as error:
        raise ValueError(f"task_args {args} do not fit {name} ({error})") from None
