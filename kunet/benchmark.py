"""Time and memory of a denoiser on this machine, and the facts that any measurement must carry."""

import platform
import resource
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import torch

from kunet.denoise import Denoiser


def machine() -> str:
    """The processor's name, the threads torch uses, and torch's version, in words."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        name = next(
            (line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), name
        )
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {torch.get_num_threads()} threads{gpu}, torch {torch.__version__}"


def commit(folder: Path) -> str:
    """The commit that a folder is at, with "-dirty" where files are changed or new, as "abc1234-dirty"; or "unknown".

    Results do not count: one benchmark writes them before the next begins.
    """
    words = (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--", ":/", ":(top,exclude)book/results"])
    try:
        at, changes = (
            subprocess.run(["git", *w], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
            for w in words
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return at + "-dirty" * bool(changes)


def provenance(command: str | None = None) -> dict[str, str]:
    """Command, commit, machine and date: what every results file starts with."""
    return {
        "command": command or " ".join(["python", *(Path(a).name if i == 0 else a for i, a in enumerate(sys.argv))]),
        "commit": commit(Path(__file__).parent),
        "machine": machine(),
        "date": date.today().isoformat(),
    }


def peak_memory() -> float:
    """The largest resident size of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss starts at the peak of the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def benchmark(denoiser: Denoiser, sizes: list[tuple[int, int]], repeats: int = 3) -> list[dict]:
    """Seconds (each repeat, after one warm-up) and growth of peak memory for each (width, height), smallest first."""
    rows = []
    for width, height in sorted(sizes, key=lambda size: size[0] * size[1]):
        noisy = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))
        before = peak_memory()
        seconds = []
        for repeat in range(repeats + 1):
            start = time.perf_counter()
            denoiser(noisy, 50)
            if repeat:
                seconds.append(round(time.perf_counter() - start, 4))
        how, parts = denoiser.parts(height, width)
        rows.append(
            {
                "width": width,
                "height": height,
                "how": how,
                "parts": parts,
                "seconds": seconds,
                "peak_mb": round(peak_memory() / 1e6),
                "added_mb": round((peak_memory() - before) / 1e6),
            }
        )
    return rows
