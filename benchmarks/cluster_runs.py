"""Do to a training on a SLURM of two nodes what a cluster does, and compare its weights with those of a quiet run.

    python benchmarks/cluster_runs.py                     all scenarios, about 6 minutes
    python benchmarks/cluster_runs.py requeued killed     some of them

The jobs are slurm/train_multinode.sbatch and slurm/train_4xa100.sbatch as they are, on the cluster of slurm/local
(which says what it needs), with two processes on CPUs in place of GPUs. Run from the repository's root.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file

from kunet.benchmark import provenance
from kunet.runs import Run

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from cluster import ENDED, Cluster  # noqa: E402

RECIPE = {
    "name": "survivor",
    "model": "kunet_compact",
    "model_args": {"widths": [4, 8], "depths": [1, 1], "token_depth": 1, "heads": 2},
    "steps": 500,
    "phases": [{"share": 0.5, "patch": 16, "batch": 4}, {"share": 0.5, "patch": 24, "batch": 4}],
    "save_every": 20,
    "log_every": 1,
    "threads": 1,
}
TWO_NODES = ("train_multinode.sbatch", "--nodes=2", "--ntasks-per-node=1")
ONE_NODE = ("train_4xa100.sbatch", "--nodes=1", "--ntasks-per-node=2")


class Bench:
    """A cluster and a folder of runs."""

    def __init__(self, cluster: Cluster, folder: Path):
        self.cluster, self.folder = cluster, folder
        (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))

    def submit(self, name: str, script: str, *options: str, wait: float = 0, fields: tuple[str, ...] = ()) -> str:
        """Train in a folder of that name; the job's id."""
        small = ["--gres=gpu:a100:1", "--mem=0", "--cpus-per-task=1", "--time=10"]
        where = [f"--export=ALL,RUN={self.folder / name},WANDB_MODE=disabled", f"--output={self.folder}/{name}.out"]
        command = [
            "sbatch",
            "--parsable",
            *small,
            *where,
            *options,
            f"slurm/{script}",
            str(self.folder / "recipe.yaml"),
        ]
        job = self.cluster.run(*command, "--device", "cpu", *fields, cwd=ROOT)
        if wait:
            self.cluster.wait(job, ENDED, wait)
        return job

    def reach(self, name: str, step: int) -> None:
        """Wait until the run has a checkpoint of that step or a later one."""
        run = Run(self.folder / name)
        said = lambda: f"step {step}: {(self.folder / f'{name}.out').read_text()[-2000:]}"
        self.cluster.until(lambda: run.status()[1] >= step, 120, said)

    def trainers(self, name: str) -> list[int]:
        """The processes that train in a folder of that name."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if words[1:2] and words[1].endswith(b"/kunet") and str(self.folder / name).encode() in words:
                found.append(int(process.name))
        return found


# Each takes a bench and the name of its run, and returns the job, which it has disturbed.


def quiet(bench: Bench, name: str) -> str:
    """one process on each of two nodes, left alone"""
    return bench.submit(name, *TWO_NODES)


def together(bench: Bench, name: str) -> str:
    """both processes on one node"""
    return bench.submit(name, *ONE_NODE)


def requeued(bench: Bench, name: str) -> str:
    """sent back to the queue by its owner"""
    job = bench.submit(name, *TWO_NODES)
    bench.reach(name, 60)
    bench.cluster.scontrol("requeue", job)
    return job


def asked(bench: Bench, name: str) -> str:
    """signalled as it is before its time is up"""
    job = bench.submit(name, *TWO_NODES)
    bench.reach(name, 60)
    bench.cluster.run("scancel", "--signal=USR1", job)
    return job


def preempted(bench: Bench, name: str) -> str:
    """pushed off its nodes by a job of a higher partition"""
    job = bench.submit(name, *TWO_NODES)
    bench.reach(name, 60)
    urgent = bench.cluster.sbatch("#!/bin/bash\nsleep 2\n", "--partition=urgent", "--nodes=2", "--exclusive")
    bench.cluster.wait(urgent, ENDED, 120)
    return job


def killed(bench: Bench, name: str) -> str:
    """one of its processes killed"""
    job = bench.submit(name, *TWO_NODES)
    bench.reach(name, 60)
    os.kill(bench.trainers(name)[-1], signal.SIGKILL)
    return job


def lost(bench: Bench, name: str) -> str:
    """its node lost, its processes frozen there, and awake again when others train in their place"""
    job = bench.submit(name, *ONE_NODE)
    bench.reach(name, 60)
    old, node = bench.trainers(name), bench.cluster.job(job)["NodeList"]
    for process in old:
        os.kill(process, signal.SIGSTOP)
    _lose(bench, name, job, node)
    for process in old:
        os.kill(process, signal.SIGCONT)
    bench.cluster.until(lambda: not set(old) & set(bench.trainers(name)), 60, lambda: "the old ones to give up")
    bench.cluster.start_node(node)
    return job


def abandoned(bench: Bench, name: str) -> str:
    """its node lost, where its processes go on while others train in their place"""
    slow = (
        "--steps",
        "3000",
        "--save-every",
        "40",
    )  # so that the old processes are still there when the new ones start
    job = bench.submit(name, *ONE_NODE, fields=slow)
    bench.reach(name, 80)
    node = bench.cluster.job(job)["NodeList"]
    _lose(bench, name, job, node)
    time.sleep(3)  # two trainings at once, of which one may write
    bench.cluster.start_node(node)
    return job


def _lose(bench: Bench, name: str, job: str, node: str) -> None:
    """Kill a node's daemon, and wait until the job trains on the other node."""
    cluster, run = bench.cluster, Run(bench.folder / name)
    cluster.kill_node(node)
    cluster.until(lambda: cluster.job(job)["Restarts"] == "1", 90, lambda: "a requeue")
    starts = lambda: sum(row.get("event") == "started" for row in run.read_log())
    cluster.until(lambda: starts() == 2, 90, lambda: (bench.folder / f"{name}.out").read_text()[-2000:])


def limited(bench: Bench, name: str) -> str:
    """out of time, of one minute, again and again"""
    slow = ("--steps", "3000", "--save-every", "1000")
    return bench.submit(name, *ONE_NODE, "--time=1", "--signal=USR1@30", fields=slow)


SCENARIOS: dict[str, Callable[[Bench, str], str]] = {
    f.__name__: f for f in (quiet, together, requeued, asked, preempted, killed, lost, abandoned, limited)
}
LONGER = ("abandoned", "limited")
"""These take 3000 steps, and are compared with a quiet run of as many."""


def run(bench: Bench, name: str, reference: Run | None) -> dict:
    """Go through a scenario; what came of it."""
    begin = time.monotonic()
    job = SCENARIOS[name](bench, name)
    state = bench.cluster.wait(job, ENDED, 400)
    done = Run(bench.folder / name)
    starts = [row for row in done.read_log() if row.get("event") == "started"]
    steps = [row["step"] for row in done.read_log() if "loss" in row]
    total = json.loads((done.folder / "recipe.json").read_text())["steps"]
    row = {
        "what": SCENARIOS[name].__doc__,
        "completed": state == "COMPLETED" and done.status() == ("done", total),
        "restarts": len(starts) - 1,
        "seconds": round(time.monotonic() - begin, 1),
        "repeated_steps": sum(start["steps_again"] for start in starts),
        "lost_steps": total - len(steps) if steps == sorted(set(steps)) else -1,
    }
    if reference:
        one, other = (load_file(r.folder / "weights.safetensors") for r in (reference, done))
        row["identical"] = one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    if not row["completed"]:
        print((bench.folder / f"{name}.out").read_text()[-3000:], file=sys.stderr)
    return row


def measure(names: list[str]) -> dict:
    rows = {}
    with tempfile.TemporaryDirectory() as place:
        cluster = Cluster(Path(place) / "cluster")
        try:
            bench = Bench(cluster, Path(place))
            short = bench.submit("reference", *TWO_NODES, wait=200)
            assert cluster.state(short) == "COMPLETED", (bench.folder / "reference.out").read_text()
            if set(names) & set(LONGER):
                bench.submit("longer", *ONE_NODE, wait=400, fields=("--steps", "3000"))
            for name in names:
                rows[name] = run(bench, name, Run(bench.folder / ("longer" if name in LONGER else "reference")))
                print(name, rows[name], flush=True)
        finally:
            cluster.stop()
    return provenance("python benchmarks/cluster_runs.py") | {"recipe": RECIPE, "scenarios": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(SCENARIOS)} (default: all)")
    parser.add_argument("--out", type=Path, default=ROOT / "book" / "results" / "cluster.json")
    args = parser.parse_args()
    if unknown := [name for name in args.names if name not in SCENARIOS]:
        parser.error(f"no scenario {unknown[0]!r}; there are {', '.join(SCENARIOS)}")
    results = measure(args.names or list(SCENARIOS))
    args.out.write_text(json.dumps(results, indent=1) + "\n")
    sys.exit(not all(row["completed"] and row["identical"] for row in results["scenarios"].values()))


if __name__ == "__main__":
    main()
