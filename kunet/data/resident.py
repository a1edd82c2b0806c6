"""Examples that lie in the memory of the device that trains on them, and crops that are cut there, many at a time."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from kunet.data.pool import SHARE, physical_memory
from kunet.images import LEVELS


class Resident:
    """All examples, (H, W, C) uint8, on one device, and random square crops of them.

    What ``Crops`` draws with a generator a crop on the host, this draws with one for all crops of a call on the device:
    an example, evenly; a place, evenly; one of eight turns and mirrors. An example that is smaller than the crop is
    reflected beyond its lower and right edge, as there. The crops are others: the stream of numbers is the device's.

    Raises: ValueError for no examples, or more than fit into the share ``SHARE`` of the memory that a GPU has left, or
        that the machine has.
    """

    def __init__(self, examples: Sequence[np.ndarray], device: torch.device):
        if not len(examples):
            raise ValueError("Resident: no examples to crop from")
        shapes = [example.shape for example in examples]
        areas = [height * width for height, width, _ in shapes]
        self.pixels = _room_for(sum(areas), shapes[0][2], f"{len(shapes)} examples", device)
        for part, example in zip(self.pixels.split(areas), examples):
            part.copy_(torch.tensor(example).flatten(0, 1))  # one at a time: the host needs no second copy of them all
        self.sides = torch.tensor([shape[:2] for shape in shapes], device=device)  # (N, 2)
        self.first = torch.tensor([0, *areas[:-1]], device=device).cumsum(0)  # of each example's pixels

    def crops(self, count: int, size: int, generator: torch.Generator) -> Float[Tensor, "B C H W"]:
        """So many crops of size x size, in [0, 1], channels last; all randomness comes from the device's generator."""
        chance = torch.rand(4, count, dtype=torch.float64, device=self.pixels.device, generator=generator)
        which = (chance[0] * len(self.sides)).long()
        height, width = self.sides[which].unbind(1)
        turn = (chance[3] * 8).long()
        y = _window(height, size, chance[1], turn & 1)
        x = _window(width, size, chance[2], turn & 2)
        place = y[:, :, None] * width[:, None, None] + x[:, None, :]
        place = torch.where((turn & 4)[:, None, None] > 0, place.mT, place)  # with the two mirrors: all eight
        return self.pixels[self.first[which, None, None] + place].movedim(-1, 1).float() / LEVELS


def _window(side: Tensor, size: int, chance: Tensor, mirror: Tensor) -> Tensor:
    """Coordinates (B, size) of windows along sides (B,), placed by chance in [0, 1), some of them mirrored."""
    start = (chance * (side - size + 1).clamp(min=1)).long()
    steps = torch.arange(size, device=side.device)
    steps = torch.where(mirror[:, None] > 0, size - 1 - steps, steps)
    period = 2 * side[:, None]
    at = (start[:, None] + steps) % period
    return torch.minimum(at, period - 1 - at)  # beyond the edge the example comes back, its last pixel twice


def _room_for(pixels: int, channels: int, what: str, device: torch.device) -> Tensor:
    """Memory for so many pixels, (N, C) uint8, where the device has it left."""
    room = physical_memory()
    if device.type == "cuda":  # what torch keeps there of earlier trainings can be had again
        room = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
        room -= torch.cuda.memory_allocated(device)
    needed, share = pixels * channels, int(SHARE * room)
    if needed <= share:
        try:
            return torch.empty(pixels, channels, dtype=torch.uint8, device=device)
        except torch.OutOfMemoryError:  # another process was quicker
            share = 0
    raise ValueError(
        f"{what}: take {needed / 1e9:.1f} GB on {device}, which has room for {share / 1e9:.1f}; leave them"
        " on the host (--feed host), or train on fewer"
    )
