"""How this process treats its memory."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""
LARGEST = 48 * 2**20
"""Bytes of a map that is kept; larger ones leave holes in the heap that cost more memory than time is gained."""


def reuse() -> None:
    """Let this process keep the memory that it frees, for the next map of the network; call it once, at the start.

    Else glibc gives every large map back to the system, which has to hand out empty pages for the next one: a third of
    the time of a large photo. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
