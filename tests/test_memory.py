"""How a program of ours treats its memory."""

import subprocess
import sys
from pathlib import Path

import pytest

HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
CODE = """
import kunet.cli  # which makes no tensor: it would be too late for the first
from kunet.memory import reuse
if {asked}: reuse()
import torch
maps = [torch.ones(2**24) for _ in range(4)]  # 64 MB each
lines = open("/proc/self/smaps_rollup").read().splitlines()
print(next(int(line.split()[1]) for line in lines if line.startswith("AnonHuge")))
"""


@pytest.mark.skipif(not HUGE.exists() or "[never]" in HUGE.read_text(), reason="a Linux without huge pages")
def test_large_maps_are_of_huge_pages():
    def kilobytes(asked: bool) -> int:
        done = subprocess.run([sys.executable, "-c", CODE.format(asked=asked)], capture_output=True, check=True)
        return int(done.stdout)

    assert kilobytes(True) > 3 * 2**16  # most of four maps
    if "[madvise]" in HUGE.read_text():
        assert kilobytes(False) < 2**16
