"""What to do when the memory is too small."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def room(step: int, count: int, side: int, feed: str = "host") -> Iterator[None]:
    """Raises: ValueError, with what to do, when what a step does with so many crops does not fit into memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        full = ("can't allocate memory", "ALLOC_FAILED", "out of memory")  # of the processor's, cuDNN's, CUDA's
        if not (isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in full)):
            raise
        raise ValueError(
            f"step {step}: {count} crops of {side} x {side} do not fit into memory at once; go on with --micro-batch"
            f" {max(1, count // 2)} (the same training in smaller pieces) or --recompute true"
            + (", or begin anew with --feed host" if feed == "device" else "")
        ) from None
