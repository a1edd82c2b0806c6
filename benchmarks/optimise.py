"""What the objective and the optimiser of a training are worth: ln(MSE) with and without a floor, AdamW and Muon.

Usage: python benchmarks/optimise.py --data FOLDER ... --test FOLDER [--seconds 20] [--seeds 0 1 2] [--workers 1]
    [--folder runs/optimise] [--out book/results/optimise.json]

The network is the ablations' (ablate.py), trained as the released weights are, for all levels from 0 to 75 and both
kinds of noise, on crops of 64 x 64 in batches of 8, for --seconds of processor time of one core: before, steps of both
optimisers are timed in turns, and AdamW's least and the ratio say how many fit, so Muon's dearer ones are fewer.
("equal_steps" are of Muon with as many as AdamW's.) Each of the four trainings gets the one of --rates with which it
did better on photos held out of --data, with another seed; then --seeds are trained and scored on --test by the
protocol of ``kunet evaluate``, float noise. Differences are to AdamW with plain ln(MSE), paired by seed, in dB;
"standard_error" is that of their mean. "train_seconds", of each seed, are what the steps took in the end.
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
SIGMAS, TUNING_SEED, HELD_OUT = (5, 25, 50), 100, 20
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


def step_seconds(args: argparse.Namespace, rounds: int = 15) -> dict[str, float]:
    """Processor seconds of a training step with each optimiser; kept in the folder, so that trials stay the same.

    The ratio is the median over rounds, in which the two take turns: whatever slows a round slows both.
    """
    path, of = args.folder / "steps.json", {"network": ablate.BASE, "data": args.data}
    if path.exists() and (found := json.loads(path.read_text())).get("of") == of:
        return found["seconds"]
    plain = {name: recipe(f"{name} log_mse", args.data, 1e-3, 0) | {"steps": 1} for name in ("adamw", "muon")}
    made = {name: recipes.build("optimise", content) for name, content in plain.items()}
    photos, _ = build(made["adamw"])[1].load(args.data, 0)
    taken = [[seconds_a_step(one, photos, 0.5) for one in made.values()] for _ in range(rounds)]
    adamw, ratio = min(one for one, _ in taken), statistics.median(other / one for one, other in taken)
    seconds = {"adamw": round(adamw, 5), "muon": round(adamw * ratio, 5)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"of": of, "seconds": seconds}))
    return seconds


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["bundled"])
    parser.add_argument("--test", default="bundled")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rates", nargs="+", type=float, default=[4e-3, 8e-3, 1.6e-2])
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
    own = lambda name: steps[CHOICES[name][0]]
    name_of = lambda name, seed, count: f"{name}-{best[name]:g}-{seed}" + f"-{count}" * (count != own(name))
    counts = {name: sorted({own(name), steps["adamw"]}) for name in CHOICES}
    asked = [(name, seed, count) for seed in args.seeds for name in CHOICES for count in counts[name]]
    trials = {name_of(*one): trial(one[0], args.data, best[one[0]], one[1]) | {"steps": one[2]} for one in asked}
    results = run_all(trials, args.folder, args.workers)
    psnr: dict[tuple, list[dict]] = {}
    for name, seed, count in asked:
        weights = args.folder / name_of(name, seed, count) / f"run-{count}" / "weights.safetensors"
        psnr.setdefault((name, count), []).append(scores(weights, args.test))
    of = lambda name, count, sigma: [each[str(sigma)] for each in psnr[name, count]]

    def compared(name: str, count: int) -> dict:
        """Scores of so many steps, and minus those of the plain training."""
        level = lambda sigma: of(name, count, sigma)
        plain = lambda sigma: of(PLAIN, own(PLAIN), sigma)
        return {
            "steps": count,
            "train_seconds": [results[name_of(name, seed, count)]["train_seconds"] for seed in args.seeds],
            "psnr": {str(sigma): ablate.spread(level(sigma)) for sigma in SIGMAS},
            "minus": {str(sigma): ablate.paired(level(sigma), plain(sigma)) for sigma in SIGMAS},
        }

    rows = {}
    for name, (optimizer, objective) in CHOICES.items():
        rows[name] = {"optimizer": optimizer, "objective": objective, "lr": best[name], "rates": held[name]}
        rows[name] |= compared(name, own(name))
        if own(name) != steps["adamw"]:
            rows[name]["equal_steps"] = compared(name, steps["adamw"])
    data, test = [Path(source).name for source in args.data], Path(args.test).name
    command = f"python benchmarks/optimise.py --data {' '.join(data)} --test {test} --seconds {args.seconds:g}"
    command += f" --seeds {' '.join(map(str, args.seeds))} --rates {' '.join(f'{rate:g}' for rate in args.rates)}"
    settings = {
        "data": data, "test": test, "seconds": args.seconds, "seeds": args.seeds,
        "cores_a_training": 1, "patch": 64, "batch": 8, "against": PLAIN, "rows": rows,
    }  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(provenance(command) | settings, indent=1) + "\n")
    for name, whole in rows.items():
        for row in filter(None, (whole, whole.get("equal_steps"))):
            minus = ", ".join(f"{s} {m['mean']:+.2f} +- {m['standard_error']:.2f}" for s, m in row["minus"].items())
            print(f"{name:24s} lr {whole['lr']:g}, {row['steps']} steps; dB to {PLAIN} at sigma {minus}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
