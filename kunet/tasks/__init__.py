"""Tasks: what an example is, what a model is asked, how the answer is scored. The trainer knows no task by name.

An example is a uint8 array (H, W, C), so that one random crop serves every task: a photo has C = 3, a pair
(degraded, clean) 6, a photo with its mask 4. A task gives

    load(sources, held_out, progress)   examples to train on, examples held out
    batch(crops, generator)             a training batch of crops (B, C, H, W) in [0, 1], where they are; on a device
                                        other than the processor if ``on_device``, with a generator of that device
    probe(crops, seed)                  the same for validation: the same every time
    fits(model)                         a ValueError for a model that returns something else than the task wants
    loss(model, batch), score(model, batch)    a scalar; one number an image, whose name is ``measure``
    scores(output, batch)               all its measures, by name, of what a model returned; one number an image
"""

from typing import Any

from kunet.tasks.batch import Batch
from kunet.tasks.restore import Deblur, Denoise, Derain, Pairs, Restoration
from kunet.tasks.segment import Segment

__all__ = ["TASKS", "Batch", "Deblur", "Denoise", "Derain", "Pairs", "Restoration", "Segment", "Task", "make"]

Task = Restoration | Segment
TASKS = {"denoise": Denoise, "deblur": Deblur, "derain": Derain, "pairs": Pairs, "segment": Segment}


def make(name: str, args: dict[str, Any]) -> Task:
    """A task by name, from arguments as a recipe holds them. Raises: ValueError as ``kunet.models.make`` does."""
    if name not in TASKS:
        raise ValueError(f"no task {name!r}; there are {', '.join(TASKS)}")
    try:
        return TASKS[name](**{key: tuple(value) if isinstance(value, list) else value for key, value in args.items()})
    except TypeError as error:
        raise ValueError(f"task_args {args} do not fit {name} ({error})") from None
