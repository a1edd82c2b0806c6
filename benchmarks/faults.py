"""Break trainings in every way that one can think of, go on, and compare the weights with those of a quiet run.

    python benchmarks/faults.py                   200 faults, about 30 minutes on 2 cores
    python benchmarks/faults.py --share 0.1 --out try.json
    python benchmarks/faults.py --kinds 2 3       the third and fourth kind anew

Each fault hits a run of its own kind while it trains or between two starts. A run is `kunet train`, a process of its
own, started again until it is done; then its weights must equal a quiet run's bit for bit. A run that ends in another
way is lost. One that is done with other weights, or without a word on a fault that must be reported, is silently wrong.
Faults of the disk need root, for a small file system to fill; without, they are left out, and the results say so.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from kunet.benchmark import provenance
from kunet.runs import Run, checkpoints

STEPS = 240
RECIPE = {
    "steps": STEPS,
    "model_args": {"widths": [4, 8], "depths": [1, 1], "token_depth": 1, "heads": 2},
    "phases": [{"share": 0.5, "patch": 16, "batch": 4}, {"share": 0.5, "patch": 24, "batch": 4}],
    "save_every": 3,
    "log_every": 1,
    "warmup": 5,
    "threads": 1,
    "held_out": 1,
}
BREAK = """
import itertools, sys
from kunet import cli, tasks
from kunet.runs import Run
run, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
loss, calls = tasks.Denoise.loss, itertools.count(Run(run).status()[1])
bad = range(first, first + count)
tasks.Denoise.loss = lambda self, model, batch: loss(self, model, batch) * (float("nan") if next(calls) in bad else 1)
cli.main(sys.argv[4:])
"""


class Bench:
    """A folder with photos to train on, the quiet run, and trainings to break."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.random = folder, random.Random(seed)
        self.photos = folder / "photos"
        self.photos.mkdir()
        for i in range(4):
            pixels = np.random.default_rng(i).integers(0, 256, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((96, 80), Image.Resampling.BICUBIC).save(self.photos / f"{i}.png")
        self.quiet = {size: self.finish(folder / f"quiet-{size}", size) for size in (1, 2)}

    def command(self, run: Path, size: int = 1) -> list[str]:
        fields = [word for name, value in RECIPE.items() for word in (f"--{name.replace('_', '-')}", json.dumps(value))]
        words = ["train", "--recipe", "quick", "--out", str(run), "--quiet", "--track", "off", "--timeout", "30"]
        words += ["--data", json.dumps([str(self.photos)]), *fields]
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=3"]
        return [sys.executable, *(launch if size == 2 else []), "-m", "kunet", *words]

    def start(self, run: Path, size: int = 1, command: list[str] | None = None) -> subprocess.Popen:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            command or self.command(run, size), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    def attempt(self, run: Path, size: int = 1, command: list[str] | None = None) -> tuple[int, str]:
        """(exit code, what it said) of a start that is left alone."""
        process = self.start(run, size, command)
        said = process.communicate(timeout=300)[1]
        return process.returncode, said

    def finish(self, run: Path, size: int = 1) -> Path:
        code, said = self.attempt(run, size)
        if code:
            raise RuntimeError(f"{run}: ended with {code}: {said[-1000:]}")
        return run

    def same(self, run: Path, size: int = 1) -> bool:
        one, other = (load_file(folder / "weights.safetensors") for folder in (self.quiet[size], run))
        steps = [[row["step"] for row in Run(folder).read_log() if "loss" in row] for folder in (self.quiet[size], run)]
        return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one) and steps[0] == steps[1]

    def at_random(self, process: subprocess.Popen, run: Path) -> bool:
        """Wait until a random moment: in one of eight cases of its start, else of its next steps; whether it runs."""
        if self.random.random() < 1 / 8:
            time.sleep(self.random.uniform(0, 4))
            return process.poll() is None
        step = self.begun(process, run) + self.random.randrange(STEPS // 12)
        while process.poll() is None and Run(run).status()[1] < step:
            time.sleep(0.005)
        time.sleep(self.random.uniform(0, 0.1))
        return process.poll() is None

    def begun(self, process: subprocess.Popen, run: Path) -> int:
        """Wait until a process that was just started trains; the step it goes on from."""
        rows = lambda: (
            [row["at"] for row in Run(run).read_log() if row.get("event") == "started"] if run.exists() else []
        )
        before = len(rows())
        while process.poll() is None and len(rows()) == before:
            time.sleep(0.005)
        return (rows() or [0])[-1]


# Each fault breaks a run once and returns how it was reported ("" where nothing needs to be), or None when it was
# wrong: undetected, or with something lost.


def kill(bench: Bench, run: Path) -> str | None:
    process = bench.start(run)
    if bench.at_random(process, run):
        process.kill()
    process.communicate()
    return ""


def ask(bench: Bench, run: Path) -> str | None:
    process = bench.start(run)
    if bench.at_random(process, run):
        process.send_signal(bench.random.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]))
    said = process.communicate()[1]
    word, step = Run(run).status()
    if process.returncode == 75 and word == "paused" and f"paused at step {step}" in said:
        return "paused"
    # a signal that comes before the first step, or after the last, ends or finds the process as any other would
    return "" if word == "done" or step == 0 or process.returncode in (-15, -10, -2, 130) else None


def damage(bench: Bench, run: Path, change: Callable[[bytes], bytes]) -> str | None:
    kill(bench, run)
    found = checkpoints.saved(run / "checkpoints")
    if len(found) < 2:
        return ""
    newest = found[-1][1]
    newest.write_bytes(change(newest.read_bytes()))
    process = bench.start(run)
    step = bench.begun(process, run)
    while process.poll() is None and Run(run).status()[1] <= step:  # the next fault finds a whole one before the newest
        time.sleep(0.005)
    process.kill()
    said = process.communicate()[1]
    return "named" if f"{newest.name}: damaged" in said else None


def truncate(bench: Bench, run: Path) -> str | None:
    return damage(bench, run, lambda content: content[: bench.random.randrange(len(content))])


def flip(bench: Bench, run: Path) -> str | None:
    def change(content: bytes) -> bytes:
        at = bench.random.randrange(len(content))
        return content[:at] + bytes([content[at] ^ 1 << bench.random.randrange(8)]) + content[at + 1 :]

    return damage(bench, run, change)


def fill(bench: Bench, run: Path) -> str | None:
    """The disk is full for a while; the run's folder is a small file system."""
    run.mkdir(exist_ok=True)
    if not os.path.ismount(run):
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(run)], check=True)
    process = bench.start(run)
    alive = bench.at_random(process, run)
    ballast = run / "ballast"
    if alive:
        try:
            with open(ballast, "wb") as file:
                while process.poll() is None:
                    file.write(bytes(4096))
                    file.flush()
        except OSError:
            pass
    said = process.communicate()[1]
    ballast.unlink(missing_ok=True)
    if not alive:
        return ""
    lines = [line for line in said.splitlines() if "error:" in line]
    told = process.returncode == 2 and len(lines) == 1 and "No space left on device" in lines[0]
    return "reported" if told or Run(run).status()[0] == "done" else None


def spoil(bench: Bench, run: Path) -> str | None:
    """A photo is cut off while the run is stopped, and mended after the start that it fails."""
    kill(bench, run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    photo = bench.random.choice(sorted(bench.photos.iterdir()))
    content = photo.read_bytes()
    try:
        photo.write_bytes(content[: bench.random.randrange(len(content) // 2)])
        code, said = bench.attempt(run)
    finally:
        photo.write_bytes(content)
    untouched = before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    return "reported" if code == 2 and photo.name in said and len(said.splitlines()) == 1 and untouched else None


def nan(bench: Bench, run: Path) -> str | None:
    """The loss is no number in three steps in a row, for a start."""
    step = Run(run).status()[1] + bench.random.randrange(1, 20)
    command = bench.command(run)
    start = [sys.executable, "-c", BREAK, str(run), str(step), "3", *command[3:]]
    code, said = bench.attempt(run, command=start)
    if Run(run).status()[0] == "done":
        return ""
    return "reported" if code == 2 and "no finite ones in the 2 steps before" in said else None


def worker(bench: Bench, run: Path) -> str | None:
    """One of two processes is killed; torchrun starts them again."""
    process = bench.start(run, 2)
    if bench.at_random(process, run):
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if children:
            os.kill(int(bench.random.choice(children)), signal.SIGKILL)
    process.communicate(timeout=300)
    return "restarted" if Run(run).status()[0] == "done" else None


# how many of each; how many of them hit one run; processes of that run
FAULTS: dict[str, tuple[Callable, int, int, int]] = {
    "killed (SIGKILL at a random moment)": (kill, 70, 10, 1),
    "asked to stop (SIGTERM, SIGUSR1, Ctrl-C)": (ask, 30, 10, 1),
    "newest checkpoint truncated": (truncate, 20, 5, 1),
    "a bit of the newest checkpoint flipped": (flip, 20, 5, 1),
    "disk full": (fill, 20, 5, 1),
    "a photo cut off": (spoil, 20, 5, 1),
    "no finite loss in three steps": (nan, 10, 5, 1),
    "one of two processes killed": (worker, 10, 1, 2),
}


def measure(kinds: list[str], share: float, seed: int) -> dict:
    """Rows of these kinds of faults, each with where and when it was measured."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        bench, rows = Bench(Path(place), seed), {}
        for name in kinds:
            fault, count, each, size = FAULTS[name]
            if fault is fill and os.geteuid():
                rows[name] = {"faults": 0, "left_out": "a small file system needs root"}
                continue
            count = max(1, round(count * share))
            row = {"faults": 0, "reported": {}, "lost_runs": 0, "silently_wrong": 0, "runs": 0}
            begin = time.monotonic()
            while row["faults"] < count:
                run = bench.folder / f"run-{len(rows)}-{row['runs']}"
                row["runs"] += 1
                for _ in range(min(each, count - row["faults"])):
                    said = fault(bench, run)
                    row["faults"] += 1
                    row["silently_wrong"] += said is None
                    if said:
                        row["reported"][said] = row["reported"].get(said, 0) + 1
                try:
                    bench.finish(run, size)
                    row["silently_wrong"] += not bench.same(run, size)
                except RuntimeError as error:
                    print(error)
                    row["lost_runs"] += 1
                if os.path.ismount(run):
                    subprocess.run(["umount", str(run)], check=True)
                shutil.rmtree(run, ignore_errors=True)
            row["seconds"] = round(time.monotonic() - begin)
            rows[name] = row | {"commit": provenance()["commit"]}
            print(name, row, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="of the faults (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of when and where they hit (default: 0)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "book" / "results" / "faults.json")
    parser.add_argument("--kinds", type=int, nargs="+", help="only these, by number; the others of --out stay")
    args = parser.parse_args()
    names = list(FAULTS)
    measured = measure([names[i] for i in args.kinds or range(len(names))], args.share, args.seed)
    before = json.loads(args.out.read_text())["kinds"] if args.kinds and args.out.exists() else {}
    rows = {name: row for name in names if (row := measured.get(name) or before.get(name))}
    total = {key: sum(row.get(key, 0) for row in rows.values()) for key in ("faults", "lost_runs", "silently_wrong")}
    results = provenance("python benchmarks/faults.py") | {
        "seed": args.seed,
        "recipe": RECIPE,
        "kinds": rows,
        "total": total,
    }
    args.out.write_text(json.dumps(results, indent=1) + "\n")
    print(total)
    sys.exit(1 if total["lost_runs"] or total["silently_wrong"] else 0)


if __name__ == "__main__":
    main()
