"""`kunet train` on several processes from a program, such as a notebook: by srun in a job of SLURM, else by torchrun.

A notebook's own process must not train on several: what it has loaded does not survive a fork, and its kernel is one
process. So the training runs beside it, into a run's folder, and the notebook reads that.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from kunet.runs import Run


def command(words: list[str], processes: int) -> list[str]:
    """What starts `kunet train` with these words on so many processes: srun, torchrun, or this Python alone.

    Inside a job of SLURM the job's tasks are the processes, whatever ``processes`` says.
    """
    train = ["-m", "kunet", "train", *words]
    if "SLURM_JOB_ID" in os.environ and "SLURM_STEP_ID" not in os.environ:
        return ["srun", "--kill-on-bad-exit=1", sys.executable, *train]
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        stops = ["--signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"]
        return [sys.executable, *launcher, *stops, *train]
    return [sys.executable, *train]


def train(folder: str | Path, words: list[str], processes: int = 1, every: float = 1.0) -> Iterator[Run]:
    """Start a training in a folder, or go on with it, and yield its run every so many seconds until it ends.

    What the processes print goes to console.log in the folder. A generator that is closed, or a program that ends,
    stops the training as SIGTERM does.

    Args:
        words: options of `kunet train`, but for --out.
    Raises: ValueError with the last line of console.log when the training fails.
    """
    run = Run(folder)
    with open(run.folder / "console.log", "ab") as console:
        begin = console.tell()
        process = subprocess.Popen(
            command([*words, "--out", str(run.folder)], processes),
            stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT, preexec_fn=_die_with_parent,
        )  # fmt: skip
    try:
        while process.poll() is None:
            yield run
            until = time.monotonic() + every
            while time.monotonic() < until and process.poll() is None:
                time.sleep(0.05)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if process.returncode and run.status()[0] != "paused":
        lines = (run.folder / "console.log").read_bytes()[begin:].decode(errors="replace").splitlines()
        said = next((line for line in lines[::-1] if "error:" in line), lines[-1] if lines else "nothing")
        raise ValueError(f"{run.folder}: the training ended with code {process.returncode}: {said}")
    yield run


def _die_with_parent() -> None:
    """Ask Linux for SIGTERM when the parent is gone: a kernel that is killed cannot tell its children."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
