"""How a program of ours treats its memory."""

import subprocess
import sys
from pathlib import Path

import pytest

from kunet.memory import LEAST, available, working

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


def machine(root: Path, groups: str, files: dict[str, str]) -> Path:
    """A /proc with 8 GB free, and control groups."""
    for name, text in {
        "proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 8000000 kB\n",
        "proc/self/cgroup": groups,
    }.items():
        files = files | {name: text}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    "groups,files,free",
    [
        ("0::/\n", {}, 8_192_000_000),
        (
            "0::/a/b\n",
            {"sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/b/memory.current": "7"},
            8_192_000_000,
        ),
        ("0::/a/b\n", {"sys/fs/cgroup/a/memory.max": "5000", "sys/fs/cgroup/a/memory.current": "2000"}, 3000),
        ("0::/gone\n", {"sys/fs/cgroup/memory.max": "5000", "sys/fs/cgroup/memory.current": "6000"}, 0),
        (
            "9:cpu:/\n4:memory:/x\n0::/\n",
            {
                "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "9000\n",
                "sys/fs/cgroup/memory/x/memory.usage_in_bytes": "1000\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "1000\n",
            },
            8000,
        ),
    ],
)
def test_free_memory_is_the_machines_or_what_a_control_group_leaves(tmp_path, groups, files, free):
    assert available(machine(tmp_path, groups, files)) == free


def test_the_working_memory_is_half_of_what_is_free_and_two_gigabytes_at_least(tmp_path, monkeypatch):
    assert available(tmp_path) == 0 and LEAST == 2e9  # a system without /proc
    for free, room in ((0, 2e9), (3e9, 2e9), (8e9, 4e9)):
        monkeypatch.setattr("kunet.memory.available", lambda free=free: free)
        assert working() == room
