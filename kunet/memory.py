"""How this process treats its memory."""

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""
LARGEST = 16 * 2**20
"""Bytes of a map that is kept; larger ones leave holes in the heap that cost more memory than time is gained."""


def reuse() -> None:
    """Let this process keep the memory that it frees, for the next map of the network, and take more in huge pages.

    Call it once, before the first tensor. Else glibc gives every large map back to the system, which has to hand out
    empty pages of 4 KB for the next one, one fault at a time: much of the time of a large photo. The maps above
    ``LARGEST`` still go back and come anew, in pages of 2 MB where Linux allows it, which costs little. Other systems
    and C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # which torch reads when it makes its first tensor
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
