"""What every task hands to the trainer."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """What the model gets, image and noise level (sigma / 255; 0 where unknown), and what it should return.

    The level is one value an image (B,), or one a pixel (B, 1, H, W): the same of both in every batch of a task.
    The target is an image (B, C, H, W), or the class of every pixel (B, 1, H, W) as int64.
    """

    input: Float[Tensor, "B C H W"]
    noise_level: Float[Tensor, " B"] | Float[Tensor, "B 1 H W"]
    target: Tensor

    def __getitem__(self, which: slice) -> "Batch":
        """Some of its images."""
        return Batch(self.input[which], self.noise_level[which], self.target[which])

    def to(self, device: str | torch.device, memory_format: torch.memory_format) -> "Batch":
        move = lambda x: x.to(device, memory_format=memory_format, non_blocking=True)
        return Batch(move(self.input), self.noise_level.to(device, non_blocking=True), move(self.target))

    def pin_memory(self) -> "Batch":
        """In memory from which a GPU copies while the processor goes on; a DataLoader calls it."""
        return Batch(self.input.pin_memory(), self.noise_level.pin_memory(), self.target.pin_memory())
