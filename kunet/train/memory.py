"""What to do when the memory is too small."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kunet.tasks import Batch


@contextmanager
def room(step: int, batch: Batch) -> Iterator[None]:
    """Raises: ValueError, with what to do, when what a step does with its batches does not fit into memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        full = ("can't allocate memory", "ALLOC_FAILED", "out of memory")  # of the processor's, cuDNN's, CUDA's
        if not (isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in full)):
            raise
        count, side = len(batch.input), batch.input.shape[-1]
        raise ValueError(
            f"step {step}: {count} crops of {side} x {side} do not fit into memory at once; go on with --micro-batch"
            f" {max(1, count // 2)} (the same training in smaller pieces) or --recompute true"
        ) from None
