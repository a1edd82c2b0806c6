"""Validation: the averaged weights on the held-out photos, the same images and noise every time."""

from typing import Any

import torch
from torch import nn

from kunet.distributed import Group
from kunet.images import to_tensor
from kunet.tasks import Batch, Task


@torch.no_grad()
def validate(
    model: nn.Module, task: Task, batch: Batch, group: Group | None = None, layout: Any = torch.channels_last
) -> float:
    """Mean score over a batch, one image at a time, in evaluation mode; the images are shared among the processes."""
    group = group or Group(0, 1, next(model.parameters()).device)
    training = model.training
    model.eval()
    scores = [0.0] * len(batch.input)
    for i in range(group.rank, len(scores), group.size):
        scores[i] = float(task.score(model, batch[i : i + 1].to(group.device, layout)).mean())
    model.train(training)
    return sum(group.sum(*scores)) / len(scores)  # each score has one owner, so any number of processes sums the same


def probe(held: list, task: Task, size: int = 256) -> Batch | None:
    """The validation batch: the centre of each held-out photo, with fixed noise; None without such photos."""
    if not held:
        return None
    side = min(size, *(min(photo.shape[:2]) for photo in held))
    corner = lambda photo: tuple((length - side) // 2 for length in photo.shape[:2])
    crops = [to_tensor(photo[y : y + side, x : x + side]) for photo in held for y, x in [corner(photo)]]
    return task.probe(torch.stack(crops), seed=0)
