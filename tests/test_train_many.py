"""Training on several processes: they do what one does, and go on where they stopped; over gloo, by torchrun."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_train import FEW, KANS, few, rows, same, weights

from kunet.runs import Run
from kunet.train import train

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
SCRIPT = """
import json, sys
from kunet import distributed, recipes
from kunet.train import train
recipe = recipes.load("quick", json.loads(sys.argv[2]))
with distributed.join():
    for name, stop in json.loads(sys.argv[3]):
        train(recipe, sys.argv[1] + "/" + name, progress=False, stop_after=stop or None)
"""


def torchrun(size: int, *words: str, restarts: int = 0) -> list[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}", f"--max-restarts={restarts}"]
    return [sys.executable, *launch, *words]


@pytest.fixture
def many(tmp_path):
    """Train in folders, one after the other, each up to a step (0: to the end), on so many processes."""

    def run(*trainings: tuple[str, int], size: int = 2, **changes) -> None:
        script = tmp_path / "script.py"
        script.write_text(SCRIPT)
        words = [str(script), str(tmp_path), json.dumps(FEW | changes), json.dumps(trainings)]
        done = subprocess.run(torchrun(size, *words), env=ONE_THREAD, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]

    return run


LONGER = {"steps": 20, "phases": [{"share": 0.5, "patch": 16, "batch": 4}, {"share": 0.5, "patch": 32, "batch": 4}]}


def test_two_processes_equal_one(tmp_path, many):
    """20 steps: every weight that the loss depends on, and every line of the log.

    The bias of the attention's keys is left out: it adds the same to every logit of a softmax, so its gradient is 0
    but for rounding, and Adam makes steps of full length out of that rounding.
    """
    many(("two", 0), **LONGER)
    one, two = train(few(**LONGER), tmp_path / "one", progress=False), Run(tmp_path / "two")
    ours, theirs = weights(one), weights(two)
    for name in ours:
        a, b = ours[name], theirs[name]
        if name.endswith("qkv.bias"):
            a, b = (torch.cat([x.chunk(3)[0], x.chunk(3)[2]]) for x in (a, b))
        assert float((a - b).abs().max()) < 1e-6, name
    for a, b in zip(rows(one), rows(two)):
        assert a == pytest.approx(b, rel=1e-5)
    assert two.status() == ("done", 20)


@pytest.mark.parametrize(
    "changes",
    [{}, KANS | {"micro_batch": 1, "optimizer": "muon", "feed": "device"}],
    ids=["plain", "grids, pieces, muon and the device's feed"],
)
def test_resume_on_two_is_bit_identical(tmp_path, many, changes):
    many(("whole", 0), ("pieces", 1), ("pieces", 7), ("pieces", 0), **changes)
    whole, pieces = Run(tmp_path / "whole"), Run(tmp_path / "pieces")
    assert [row["at"] for row in pieces.read_log() if row.get("event") == "started"] == [0, 1, 7]
    assert same(whole, pieces) and rows(whole) == rows(pieces)


def test_resume_on_four_is_bit_identical(tmp_path, many):
    """With three or more, the order of DDP's sums depends on how it groups gradients, which a restart changes."""
    many(("whole", 0), ("pieces", 5), ("pieces", 0), size=4, **LONGER)
    assert same(Run(tmp_path / "whole"), Run(tmp_path / "pieces"))


def test_batches_that_cannot_be_shared(tmp_path):
    command = torchrun(3, "-m", "kunet", "train", "--recipe", "quick", "--out", str(tmp_path / "run"), "--quiet")
    done = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1  # torchrun's own
    assert "a batch of 8 crops cannot be shared equally by 3 processes" in done.stderr
    assert not (tmp_path / "run").exists()


def start(tmp_path: Path, name: str, *words: str, restarts: int = 0) -> subprocess.Popen:
    fields = ["--phases", json.dumps(LONGER["phases"]), "--steps", "4000", "--save-every", "20", "--log-every", "20"]
    command = torchrun(
        2, "-m", "kunet", "train", "--recipe", "quick", "--out", str(tmp_path / name), "--track", "off", "--threads",
        "1", *fields, "--model-args", json.dumps(FEW["model_args"]), *words, restarts=restarts,
    )  # fmt: skip
    return subprocess.Popen(command, env=ONE_THREAD, stderr=subprocess.PIPE, text=True, start_new_session=True)


def workers(process: subprocess.Popen) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"kunet" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def until(condition, seconds: float = 90, process: subprocess.Popen | None = None) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        assert process is None or process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.05)


@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_starts_a_killed_worker_again(tmp_path, rank):
    process = start(tmp_path, "run", "--steps", "400", restarts=1)
    run = Run(tmp_path / "run")
    until(lambda: run.status()[1] >= 40, process=process)
    os.kill(workers(process)[rank], signal.SIGKILL)
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 0 and run.status() == ("done", 400), errors[-2000:]
    resumed = [row["at"] for row in run.read_log() if row.get("event") == "started"]
    assert len(resumed) == 2 and resumed[1] >= 40 and resumed[1] % 20 == 0
    assert [row["step"] for row in run.read_log() if "loss" in row] == list(range(20, 401, 20))


def test_a_stuck_worker_ends_the_job_in_time(tmp_path):
    process = start(tmp_path, "run", "--timeout", "4")
    run = Run(tmp_path / "run")
    until(lambda: run.status()[1] >= 20, process=process)
    stuck = workers(process)[1]
    os.kill(stuck, signal.SIGSTOP)
    begin = time.monotonic()
    until(lambda: len(workers(process)) < 2 or process.poll() is not None, 15)
    os.kill(stuck, signal.SIGKILL)  # torchrun would wait half a minute for it to take a signal
    errors = process.communicate(timeout=60)[1]
    assert time.monotonic() - begin < 30 and process.returncode == 1
    assert "kunet train: process 0 of 2: lost another one" in errors and run.status()[0] == "running"


def test_sigterm_pauses_all(tmp_path):
    process = start(tmp_path, "run")
    run = Run(tmp_path / "run")
    until(lambda: run.status()[1] >= 20, process=process)
    process.terminate()
    process.communicate(timeout=60)
    word, step = run.status()
    assert word == "paused" and step >= 20 and "SIGTERM" in json.dumps(run.read_log()[-1])
    load_file(run.folder / "best.safetensors")
