"""How this process treats its memory."""

import ctypes
import os
import sys
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""
LARGEST = 16 * 2**20
"""Bytes of a map that is kept; larger ones leave holes in the heap that cost more memory than time is gained."""


LEAST = 2e9
"""Bytes that a network may work in wherever it runs, unless it is told."""
GROUPS = {
    "": ("", "memory.max", "memory.current"),
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
}
"""Of Linux's control groups, both versions: controller -> where they lie, limit, usage."""


def working() -> float:
    """Bytes that a network may work in unless it is told: half of what is free, at least ``LEAST``."""
    return max(LEAST, available() / 2)


def available(root: Path = Path("/")) -> int:
    """Bytes that are free on this machine, or in the control groups of this process if they leave less; 0: unknown."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        free = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
        groups = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
    except (OSError, StopIteration):
        return 0
    for _, controllers, path in groups:
        for place, limit, usage in (GROUPS[name] for name in controllers.split(",") if name in GROUPS):
            folder = root / "sys/fs/cgroup" / place / path.lstrip("/")
            for level in (folder, *folder.parents):  # each may have a limit; a container sees the upper ones alone
                try:
                    free = min(free, int((level / limit).read_text()) - int((level / usage).read_text()))
                except (OSError, ValueError):  # none there, or "max"
                    continue
    return max(free, 0)


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
