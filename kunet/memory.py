"""How this process treats its memory."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Of glibc's malloc.h."""


def reuse() -> None:
    """Let this process keep the memory that it frees, for the next map of the network; call it once, at the start.

    Else glibc gives every large map back to the system, which has to hand out empty pages for the next one: a third of
    the time of a large photo. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
