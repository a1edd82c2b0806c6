"""What the objective and the optimiser of a training are worth: ln(MSE) with and without a floor, AdamW and Muon.

Usage: python benchmarks/optimise.py --data FOLDER ... --test FOLDER [--seconds 20] [--seeds 0 1 2] [--workers 1]
    [--folder runs/optimise] [--out book/results/optimise.json]

The network is the ablations' (ablate.py), trained as the released weights are, for all levels from 0 to 75 and both
kinds of noise, on crops of 64 x 64 in batches of 8, for --seconds of processor time of one core, so Muon's dearer
steps are fewer. Each of the four trainings gets the one of --rates with which it did better on photos held out of
--data, with another seed; then --seeds are trained and scored on --test by the protocol of ``kunet evaluate``, float
noise. Differences are to AdamW with plain ln(MSE), paired by seed, in dB;
"standard_error" is that of their mean.
"""

import argparse
import json
import statistics
from pathlib import Path

import ablate
import torch
from trials import run_all, seconds_a_step

from kunet import evaluate, recipes
from kunet.benchmark import provenance
from kunet.denoise import Denoiser
from kunet.train import build

RESULTS = Path("book/results/optimise.json")
SIGMAS, TUNING_SEED, HELD_OUT = (5, 15, 25, 50, 75), 100, 20
CHOICES = {
    f"{optimizer} {objective}": (optimizer, objective)
    for optimizer in ("adamw", "muon") for objective in ("log_mse", "floored_log_mse")
}  # fmt: skip
PLAIN = "adamw log_mse"


def recipe(name: str, data: list[str], rate: float, seed: int) -> dict:
    """The recipe of one trial; only optimiser, objective, rate and seed differ."""
    optimizer, objective = CHOICES[name]
    levels = {"sigma": [0, 75], "focus": 50, "focus_share": 0.4, "u8_share": 0.5, "objective": objective}
    return {
        "name": "optimise", "model": "kunet_compact", "model_args": ablate.BASE, "task_args": levels, "data": data,
        "held_out": 0 if data == ["bundled"] else HELD_OUT, "phases": [{"share": 1.0, "patch": 64, "batch": 8}],
        "optimizer": optimizer, "lr": rate, "ema": 0.98, "decay": 0.5, "seed": seed,
    }  # fmt: skip


def scores(weights: Path, test: str) -> dict[str, float]:
    """Mean PSNR at every level."""
    denoiser = Denoiser.load(str(weights), memory=8e9)
    each = {sigma: evaluate.evaluate(denoiser, test, sigma, progress=False) for sigma in SIGMAS}
    return {str(sigma): statistics.mean(row.psnr for row in rows) for sigma, rows in each.items()}


def step_seconds(args: argparse.Namespace, rounds: int = 7) -> dict[str, float]:
    """Processor seconds of a training step with each optimiser; kept in the folder, so that trials stay the same."""
    path = args.folder / "steps.json"
    if not path.exists():
        plain = {name: recipe(f"{name} log_mse", args.data, 1e-3, 0) | {"steps": 1} for name in ("adamw", "muon")}
        made = {name: recipes.build("optimise", content) for name, content in plain.items()}
        photos, _ = build(made["adamw"])[1].load(args.data, 0)
        taken = [[seconds_a_step(one, photos, 0.5) for one in made.values()] for _ in range(rounds)]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({name: round(min(times), 5) for name, times in zip(made, zip(*taken))}))
    return json.loads(path.read_text())


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["bundled"])
    parser.add_argument("--test", default="bundled")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rates", nargs="+", type=float, default=[2e-3, 4e-3])
    parser.add_argument("--workers", type=int, default=1, help="trainings at a time, each on a core")
    parser.add_argument("--folder", type=Path, default=Path("runs/optimise"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(words)
    few = len(args.seeds) < 3 and args.out == RESULTS
    if len(args.seeds) < 2 or few or args.seconds <= 0 or min(args.workers, *args.rates) <= 0:
        parser.error("give two seeds or more (fewer than three need another --out), and numbers above 0")
    steps = {name: round(args.seconds / taken) for name, taken in step_seconds(args).items()}
    trial = lambda name, *rest: {
        "recipe": recipe(name, *rest), "seconds": args.seconds, "steps": steps[CHOICES[name][0]], "test": []
    }  # fmt: skip
    tuning = {f"{n}-{r:g}-tune": trial(n, args.data, r, TUNING_SEED) for n in CHOICES for r in args.rates}
    tuned = run_all(tuning, args.folder, args.workers)
    held = {n: {f"{r:g}": tuned[f"{n}-{r:g}-tune"]["validation"][-1][1] for r in args.rates} for n in CHOICES}
    best = {n: max(args.rates, key=lambda r, n=n: held[n][f"{r:g}"]) for n in CHOICES}
    trials = {f"{n}-{best[n]:g}-{s}": trial(n, args.data, best[n], s) for s in args.seeds for n in CHOICES}
    results = run_all(trials, args.folder, args.workers)
    found = {}
    for name in CHOICES:
        found[name] = []
        for seed in args.seeds:
            key = f"{name}-{best[name]:g}-{seed}"
            weights = args.folder / key / f"run-{results[key]['steps']}" / "weights.safetensors"
            found[name].append(results[key] | {"psnr": scores(weights, args.test)})
    of = lambda name, sigma: [each["psnr"][str(sigma)] for each in found[name]]
    rows = {
        name: {
            "optimizer": optimizer, "objective": objective, "lr": best[name], "rates": held[name],
            "steps": steps[optimizer],
            "train_seconds": [each["train_seconds"] for each in found[name]],
            "psnr": {str(sigma): ablate.spread(of(name, sigma)) for sigma in SIGMAS},
            "minus": {str(sigma): ablate.paired(of(name, sigma), of(PLAIN, sigma)) for sigma in SIGMAS},
        }
        for name, (optimizer, objective) in CHOICES.items()
    }  # fmt: skip
    data, test = [Path(source).name for source in args.data], Path(args.test).name
    command = f"python benchmarks/optimise.py --data {' '.join(data)} --test {test} --seconds {args.seconds:g}"
    settings = {
        "data": data, "test": test, "seconds": args.seconds, "seeds": args.seeds,
        "cores_a_training": 1, "patch": 64, "batch": 8, "against": PLAIN, "rows": rows,
    }  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(provenance(command) | settings, indent=1) + "\n")
    for name, row in rows.items():
        minus = ", ".join(f"{s} {m['mean']:+.2f} +- {m['standard_error']:.2f}" for s, m in row["minus"].items())
        print(f"{name:24s} lr {row['lr']:g}, {row['steps']} steps; dB to {PLAIN} at sigma {minus}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
