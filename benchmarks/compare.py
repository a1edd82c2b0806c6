"""Every network as a denoiser after equal training time: the same photos, noise, cores and seconds.

Usage: python benchmarks/compare.py --data FOLDER --test FOLDER [--seconds 75] [--seeds 0 1 2] [--only NAME ...]
    [--folder runs/compare] [--out book/results/compare.json] [--update]

Each network has its small configuration of configurations.py, not its published size. It is trained for ``--seconds``
of processor time on one core (see trials.py), on 64 x 64 crops in batches of 8, sigma 50, log-MSE, AdamW, with that
of two learning rates which did better on photos held out of ``--data`` in a run of a third of the time with another
seed. Then ``--seeds`` are trained and scored on ``--test`` by the protocol of ``kunet evaluate`` (float noise, sigma
50). Slow networks see fewer crops: that is the point of the comparison, and also its limit, since it says nothing
about who would win after days. With --update the networks of --only are measured, and take the place of their rows in
--out, which must have been measured with the same settings; such a row has a "measured" of its own.

Results: models -> {psnr: {mean, std, each}, ssim, parameters, steps, train_seconds, lr, rates, model,
model_args}; "noisy" is the score of the input. std is the sample deviation over seeds; train_seconds, of each seed, are
what the steps that were timed to fit --seconds took in the end, with validation and files.
"""

import argparse
import json
import statistics
from pathlib import Path

from configurations import NETWORKS
from trials import run_all

from kunet import evaluate
from kunet.benchmark import provenance

RESULTS = Path("book/results/compare.json")
RATES, TUNING_SEED, HELD_OUT, SIGMA = (5e-4, 2e-3), 100, 12, 50


def recipe(name: str, data: str, lr: float, seed: int, held_out: int) -> dict:
    """The recipe of one trial; only the model, its rate and the seed differ."""
    model, args = NETWORKS[name]
    return {
        "name": name, "model": model, "model_args": args, "task_args": {"sigma": [SIGMA, SIGMA]}, "data": [data],
        "held_out": held_out, "phases": [{"share": 1.0, "patch": 64, "batch": 8}], "lr": lr, "ema": 0.95, "seed": seed,
        "decay": 0.5,
    }  # fmt: skip


def compare(args) -> dict[str, dict]:
    """Tune, train, score: a row a network."""
    trial = lambda *rest, seconds, test: {"recipe": recipe(*rest), "seconds": seconds, "test": test}
    held = HELD_OUT if args.data != "bundled" else 0  # bundled photos have held-out ones of their own
    tuning = {
        f"{name}-tune-{lr:g}": trial(name, args.data, lr, TUNING_SEED, held, seconds=args.seconds / 3, test=[])
        for name in args.only for lr in RATES
    }  # fmt: skip
    tuned = run_all(tuning, args.folder)
    best, scores = {}, {}
    for name in args.only:
        scores[name] = {f"{lr:g}": tuned[f"{name}-tune-{lr:g}"]["validation"][-1][1] for lr in RATES}
        best[name] = max(RATES, key=lambda lr, name=name: scores[name][f"{lr:g}"])
    trials = {  # seed by seed, so that the machine's drift is shared
        f"{name}-{seed}": trial(name, args.data, best[name], seed, held, seconds=args.seconds, test=[args.test])
        for seed in args.seeds for name in args.only
    }  # fmt: skip
    results, rows = run_all(trials, args.folder), {}
    for name in args.only:
        each = [results[f"{name}-{seed}"] for seed in args.seeds]
        tested = [row[Path(args.test).name] for row in each]
        psnr = [row["psnr"] for row in tested]
        median = lambda key, rows: statistics.median(row[key] for row in rows)
        rows[name] = {
            "psnr": {"mean": round(statistics.mean(psnr), 2), "std": round(statistics.stdev(psnr), 2), "each": psnr},
            "ssim": round(statistics.mean(row["ssim"] for row in tested), 4),
            "parameters": each[0]["parameters"],
            "steps": median("steps", each),
            "train_seconds": [row["train_seconds"] for row in each],
            "lr": best[name],
            "rates": scores[name],
            "model": NETWORKS[name][0],
            "model_args": NETWORKS[name][1],
        }
    return rows


def noisy(test: str) -> dict[str, float]:
    """The score of doing nothing."""
    scores = evaluate.evaluate(lambda x, sigma: x, test, SIGMA, progress=False)
    return {key: value for key, value in evaluate.summary(scores).items() if key in ("psnr", "ssim", "images")}


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="bundled")
    parser.add_argument("--test", default="bundled")
    parser.add_argument("--seconds", type=float, default=75)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--folder", type=Path, default=Path("runs/compare"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--update", action="store_true", help="measure --only anew, keep the other rows of --out")
    args = parser.parse_args(words)
    whole = len(args.seeds) > 2 and (args.only == list(NETWORKS) or args.update)
    if len(args.seeds) < 2 or args.seconds <= 0 or (args.out == RESULTS and not whole):
        parser.error("give two seeds or more; fewer than three, or some networks only, need another --out or --update")
    data, test = Path(args.data).name, Path(args.test).name
    command = f"python benchmarks/compare.py --data {data} --test {test} --seconds {args.seconds:g}"
    settings = {
        "sigma": SIGMA, "data": data, "test": test, "seconds": args.seconds, "seeds": args.seeds,
        "cores_a_training": 1, "patch": 64, "batch": 8,
    }  # fmt: skip
    if args.update:
        content = json.loads(args.out.read_text())
        for key, value in settings.items():
            if content[key] != value:
                parser.error(f"{args.out} was measured with {key} {content[key]}, not {value}; --update needs the same")
        measured = provenance(f"{command} --only {' '.join(args.only)} --update")
        rows = {name: row | {"measured": measured} for name, row in compare(args).items()}
        content["models"] |= rows
    else:
        content = provenance(command) | settings | {"noisy": noisy(args.test), "models": compare(args)}
    args.out.write_text(json.dumps(content, indent=1) + "\n")
    for name, row in sorted(content["models"].items(), key=lambda item: -item[1]["psnr"]["mean"]):
        print(f"{name:15s} {row['psnr']['mean']:.2f} +- {row['psnr']['std']:.2f} dB, {row['steps']} steps,"
              f" {row['parameters']:,} parameters")  # fmt: skip


if __name__ == "__main__":
    main()
