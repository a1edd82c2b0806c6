"""What each step of each process is fed: its share of the step's crops, in batches that fit its memory."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kunet.data import Crops
from kunet.data.resident import Resident
from kunet.distributed import Group
from kunet.recipes import Phase
from kunet.runs import stop
from kunet.runs.folder import forget_locks
from kunet.tasks import Batch, Task
from kunet.train.memory import room

Step = tuple[int, Phase, int]


def mix(*numbers: int) -> int:
    """One seed for torch's generators, which use 32 bits, out of several numbers of which each counts."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


class Examples(Dataset):
    """A task's training examples, degraded crops and what they should become, by (side of the crop, index).

    An example is a function of (seed, side, index) alone: no number of processes or helpers changes it.
    """

    def __init__(self, photos: Sequence[np.ndarray], task: Task, seed: int):
        self.photos, self.task, self.seed, self.count = photos, task, seed, len(photos)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """(input, noise level, target) of one crop, without the batch's dimension."""
        side, index = key
        crop = Crops(self.photos, side, index + 1, self.seed)[index]
        batch = self.task.batch(crop[None], torch.Generator().manual_seed(mix(self.seed, index)))
        return batch.input[0], batch.noise_level[0], batch.target[0]

    def batch(self, keys: Sequence[tuple[int, int]]) -> Batch:
        """Several of them."""
        return collate([self[key] for key in keys])

    def whole(self, step: Step) -> Batch:
        """All of a step's."""
        return self.batch(keys(step))


class OnDevice:
    """The same, made where the network is trained: the device holds all photos and makes a whole step at once.

    Every process makes all of a step's examples and keeps its share: so no number of processes changes them here
    either. They depend on seed, step and batch, and on the kind and model of the device, whose generator draws them.
    Raises: ValueError as ``kunet.data.resident.Resident``.
    """

    def __init__(self, photos: Sequence[np.ndarray], task: Task, seed: int, device: torch.device):
        self.task, self.seed, self.count = task, seed, len(photos)
        self.resident = Resident(photos, device)
        self.generator = torch.Generator(device)

    def whole(self, step: Step) -> Batch:
        """All of a step's."""
        _, phase, first = step
        self.generator.manual_seed(mix(self.seed, first, 0, 1))  # dropout's seeds are of three numbers
        return self.task.batch(self.resident.crops(phase.batch, phase.patch, self.generator), self.generator)


Source = Examples | OnDevice


def source(who: str, photos: Sequence[np.ndarray], task: Task, seed: int, device: torch.device) -> Source:
    """A training's examples, made by whom a recipe's ``feed`` says."""
    return OnDevice(photos, task, seed, device) if who == "device" else Examples(photos, task, seed)


def collate(examples: list[tuple[Tensor, Tensor, Tensor]]) -> Batch:
    return Batch(*(torch.stack(parts) for parts in zip(*examples)))


def keys(step: Step, rank: int = 0, size: int = 1) -> list[tuple[int, int]]:
    """The crops of a step that a process of so many trains on: equal shares, in order."""
    _, phase, first = step
    share = phase.batch // size
    return [(phase.patch, first + rank * share + i) for i in range(share)]


def feed(
    examples: Source, steps: Sequence[Step], group: Group, micro: int, workers: int
) -> Iterator[tuple[Step, list[Batch]]]:
    """Each step with this process's batches of it, of at most ``micro`` crops (0: all at once).

    Those of the host are read ahead by ``workers`` helper processes, or with 0 when they are asked for.
    """
    if isinstance(examples, OnDevice):
        return _made(examples, steps, group, micro)
    return _read(examples, steps, group, micro, workers)


def _made(examples: OnDevice, steps: Sequence[Step], group: Group, micro: int) -> Iterator[tuple[Step, list[Batch]]]:
    for step in steps:
        share = step[1].batch // group.size
        with room(step[0], step[1].batch, step[1].patch, "device"):
            mine = examples.whole(step)[group.rank * share : (group.rank + 1) * share]
        size = micro or share
        yield step, [mine[i : i + size] for i in range(0, share, size)]


def _read(
    examples: Examples, steps: Sequence[Step], group: Group, micro: int, workers: int
) -> Iterator[tuple[Step, list[Batch]]]:
    """From helper processes, where there are any.

    Helpers ignore the signals that stop a training, which would otherwise lose them before its last step; those that
    are left when the iterator is closed are killed.
    """
    cut = lambda step: _cut(keys(step, group.rank, group.size), micro)
    loader = DataLoader(
        examples,
        batch_sampler=_Lazy(lambda: (piece for step in steps for piece in cut(step))),
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=_helper,
        pin_memory=group.device.type == "cuda",
    )
    batches = iter(loader)
    try:
        for step in steps:
            yield step, [_next(batches) for _ in cut(step)]
    finally:
        helpers = list(getattr(batches, "_workers", ()))
        if helpers:
            batches._shutdown_workers()  # as its end does, which an error that holds its frames can put off
        for helper in helpers:
            if helper.is_alive():
                helper.kill()


class _Lazy:
    """An iterable from a function that makes its iterator: millions of crops are not listed beforehand."""

    def __init__(self, make: Callable[[], Iterator]):
        self.make = make

    def __iter__(self) -> Iterator:
        return self.make()


def _next(batches: Iterator[Batch]) -> Batch:
    """The next batch. Raises: ValueError, in one line, for what went wrong in a helper process."""
    try:
        return next(batches)
    except Exception as error:
        lines = str(error).strip().splitlines()
        if "DataLoader worker" not in str(error):
            raise
        said = lines[-1] if "Traceback" in str(error) else f"{lines[0]}: out of memory? Give fewer --workers"
        raise ValueError(f"a helper that prepares crops failed: {said}") from None


def _cut(share: list, micro: int) -> list[list]:
    micro = micro or len(share)
    return [share[i : i + micro] for i in range(0, len(share), micro)]


def _helper(number: int) -> None:
    stop.ignore()
    forget_locks()
