"""What a second process buys a training, beside a second thread and beside what the machine itself allows.

Usage: python benchmarks/scaling.py | python benchmarks/scaling.py [--repeats N] [--only NAME ...] --out FILE
`kunet train` on CPU over gloo, each run in a new folder with nothing held out on the way. Two configurations: the
recipe "quick", and the network of "kunet_tiny", both on bundled photos, 64 x 64 crops, float32. Ways to train each:

    1x1      one process with one thread
    1x2      one process with two threads
    2x1      two processes with one thread each, which share the batch ("the global batch is fixed")
    2x1 wide two processes with one thread each, and as many crops for each as 1x1 takes ("fixed for each process")
    apart    two trainings like 1x1 at once that know nothing of each other: what two processes could reach at best

A run's speed is the median of the log's crops_per_s after its first SKIPPED rows: starting, reading photos, validating
and saving are not in it. All ways in turns (A B C A B C ...), so that a slow minute of the machine slows all alike.
An efficiency is the crops a second of a way, divided by twice those of 1x1 in the same turn; medians and quartiles
over the turns are written. Writes book/results/scaling.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from kunet import launch, models, recipes
from kunet.benchmark import provenance
from kunet.runs import Run

OUT = Path(__file__).resolve().parent.parent / "book" / "results" / "scaling.json"
PATCH, ROWS, SKIPPED = 64, 15, 3
"""PATCH: side of the crops; ROWS: lines that a run logs, of which the first SKIPPED do not count."""


@dataclass(frozen=True)
class Configuration:
    """What is trained: a recipe's network, crops a step, steps between lines of the log."""

    recipe: str
    batch: int
    log_every: int


CONFIGURATIONS = {"quick": Configuration("quick", 8, 10), "kunet_tiny": Configuration("kunet_tiny", 16, 2)}


@dataclass(frozen=True)
class Way:
    """Trainings at once, processes of each, threads of each process, and its batch as a multiple of 1x1's."""

    processes: int = 1
    threads: int = 1
    wide: int = 1
    at_once: int = 1


WAYS = {
    "1x1": Way(),
    "1x2": Way(threads=2),
    "2x1": Way(processes=2),
    "2x1 wide": Way(processes=2, wide=2),
    "apart": Way(at_once=2),
}


def words(configuration: Configuration, way: Way, folder: Path) -> list[str]:
    """Options of `kunet train`."""
    steps = ROWS * configuration.log_every
    fields = {
        "data": ["bundled"],
        "held_out": 0,
        "phases": [{"share": 1.0, "patch": PATCH, "batch": configuration.batch * way.wide}],
        "steps": steps,
        "save_every": steps,
        "log_every": configuration.log_every,
        "threads": way.threads,
        "precision": "fp32",
        "compile": False,
    }
    given = [word for name, value in fields.items() for word in (f"--{name.replace('_', '-')}", json.dumps(value))]
    options = ["--device", "cpu", "--track", "off", "--quiet", "--out", str(folder)]
    return ["--recipe", configuration.recipe, *given, *options]


def rate(configuration: Configuration, way: Way) -> float:
    """Crops a second of one run, or of those at once together. Raises: RuntimeError when one fails."""
    with tempfile.TemporaryDirectory() as place:
        folders = [Path(place) / str(i) for i in range(way.at_once)]
        running = [
            subprocess.Popen(
                launch.command(words(configuration, way, folder), way.processes),
                env={**os.environ, "OMP_NUM_THREADS": str(way.threads)},
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            )
            for folder in folders
        ]  # fmt: skip
        said = [process.communicate()[1] for process in running]
        for process, errors in zip(running, said):
            if process.returncode:
                why = next((line for line in errors.splitlines() if "error:" in line), errors[-2000:])
                raise RuntimeError(f"{configuration.recipe}, {way}: {why}")
        logs = [[row["crops_per_s"] for row in Run(folder).read_log() if "crops_per_s" in row] for folder in folders]
    return sum(statistics.median(log[SKIPPED:]) for log in logs)


def spread(values: list[float]) -> dict:
    """Median, quartiles and all values, to four digits."""
    digits = lambda value: float(f"{value:.4g}")
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    each = [digits(value) for value in values]
    return {"median": digits(statistics.median(values)), "quartiles": [digits(low), digits(high)], "each": each}


def measure(names: list[str], repeats: int) -> dict[str, dict]:
    """All ways of the configurations, in turns."""
    rates: dict[str, dict[str, list[float]]] = {name: {way: [] for way in WAYS} for name in names}
    for turn in range(repeats):
        for name in names:
            for way in WAYS:
                rates[name][way].append(rate(CONFIGURATIONS[name], WAYS[way]))
                print(f"turn {turn + 1} of {repeats}: {name:11}{way:9}{rates[name][way][-1]:8.1f} crops/s", flush=True)
    return {name: describe(CONFIGURATIONS[name], rates[name]) for name in names}


def describe(configuration: Configuration, rates: dict[str, list[float]]) -> dict:
    recipe = recipes.load(configuration.recipe)
    model = models.make(recipe.model, recipe.model_args)
    rows = {}
    for name, way in WAYS.items():
        batch = configuration.batch * way.wide
        rows[name] = {
            "processes": way.processes * way.at_once,
            "threads": way.threads,
            "batch": batch * way.at_once,
            "crops_per_s": spread(rates[name]),
            "steps_per_s": spread([value / (batch * way.at_once) for value in rates[name]]),
        }
    efficiency = {
        name: spread([value / (2 * alone) for value, alone in zip(rates[name], rates["1x1"])])
        for name in WAYS if name != "1x1"
    }  # fmt: skip
    return {
        "recipe": configuration.recipe,
        "parameters": sum(p.numel() for p in model.parameters()),
        "patch": PATCH,
        "batch": configuration.batch,
        "steps": ROWS * configuration.log_every,
        "ways": rows,
        "efficiency": efficiency,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="turns, 2 or more (default: 5)")
    parser.add_argument("--only", nargs="+", choices=CONFIGURATIONS, default=list(CONFIGURATIONS))
    parser.add_argument("--out", type=Path, help=f"default {OUT.name}; with --only or fewer turns it must be given")
    options = parser.parse_args(arguments)
    if options.repeats < 2:
        parser.error("--repeats must be 2 or more")
    whole = options.only == list(CONFIGURATIONS) and options.repeats >= parser.get_default("repeats")
    if not whole and (options.out is None or options.out.resolve() == OUT):
        parser.error("fewer turns or configurations than the book's: give another --out")
    command = ["python benchmarks/scaling.py"]
    if options.repeats != parser.get_default("repeats"):
        command.append(f"--repeats {options.repeats}")
    if options.only != list(CONFIGURATIONS):
        command.append(f"--only {' '.join(options.only)}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = {"cores": cores, "repeats": options.repeats}
    results = provenance(" ".join(command)) | facts | {"configurations": measure(options.only, options.repeats)}
    out = options.out or OUT
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n")
    for name, row in results["configurations"].items():
        print(f"{name}: " + ", ".join(f"{way} {found['median']:.2f}" for way, found in row["efficiency"].items()))


if __name__ == "__main__":
    main()
