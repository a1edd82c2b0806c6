"""KM-UNet against UNet at equal parameters, on pictures that the computer draws with their exact masks.

Usage: python benchmarks/segment.py [--seconds 90] [--seeds 0 1 2] [--only NAME ...] [--folder runs/segment]
    [--out book/results/segment.json]

The drawn set (kunet.data.drawn): three classes, 200 pictures of 128 x 128 to train on, 50 others to score. Every
network is trained for ``--seconds`` of processor time on one core (see trials.py) with cross-entropy, on 64 x 64
crops in batches of 8, noise of sigma 10, AdamW, with that of two learning rates which reached the lower training loss
in a run of a third of the time with another seed. "unet_equal_steps" is the UNet stopped after as many steps as
"kmunet" made: the same number of crops seen, in less time.

Results: models -> {dice, iou: {mean, std, each}, parameters, steps, train_seconds, lr, model_args}. Dice and IoU are
means over images of the means over the two classes that are not background; std is the sample deviation over seeds.
"""

import argparse
import json
import statistics
from pathlib import Path

from trials import run_all

from kunet.benchmark import provenance

RESULTS = Path("book/results/segment.json")
RATES, TUNING_SEED, CLASSES = (1e-3, 5e-3), 100, 3

MODELS: dict[str, tuple[str, dict]] = {
    "kmunet": ("kmunet", {"widths": [6, 12, 24], "convs": 1}),
    "unet": ("unet", {"widths": [12, 24, 48], "separable": False}),
    "unet_equal_steps": ("unet", {"widths": [12, 24, 48], "separable": False}),
}


def trial(name: str, lr: float, seed: int, seconds: float, steps: int | None = None) -> dict:
    """A trial: only the network, its rate and the seed differ."""
    model, args = MODELS[name]
    recipe = {
        "name": name, "model": model, "model_args": args | {"classes": CLASSES}, "task": "segment",
        "task_args": {"classes": CLASSES, "sigma": 10}, "data": ["drawn"], "lr": lr, "seed": seed, "ema": 0.95,
        "phases": [{"share": 1.0, "patch": 64, "batch": 8}], "decay": 0.5, "log_every": 10,
    }  # fmt: skip
    return {"recipe": recipe, "seconds": seconds, "test": []} | ({"steps": steps} if steps else {})


def compare(args) -> dict[str, dict]:
    """Tune, train, score: a row a network."""
    learned = [name for name in args.only if name != "unet_equal_steps"]
    tuned = run_all(
        {f"{n}-tune-{lr:g}": trial(n, lr, TUNING_SEED, args.seconds / 3) for n in learned for lr in RATES}, args.folder
    )
    losses = {name: {f"{lr:g}": tuned[f"{name}-tune-{lr:g}"]["last_loss"] for lr in RATES} for name in learned}
    best = {name: min(RATES, key=lambda lr, name=name: losses[name][f"{lr:g}"]) for name in learned}
    results = run_all(
        {f"{n}-{seed}": trial(n, best[n], seed, args.seconds) for seed in args.seeds for n in learned}, args.folder
    )
    if "unet_equal_steps" in args.only:
        best["unet_equal_steps"], losses["unet_equal_steps"] = best["unet"], losses["unet"]
        results |= run_all(
            {
                f"unet_equal_steps-{seed}": trial(
                    "unet_equal_steps", best["unet"], seed, args.seconds, results[f"kmunet-{seed}"]["steps"]
                )
                for seed in args.seeds
            },
            args.folder,
        )
    rows = {}
    for name in args.only:
        each = [results[f"{name}-{seed}"] for seed in args.seeds]
        spread = lambda values: {
            "mean": round(statistics.mean(values), 3), "std": round(statistics.stdev(values), 3), "each": values,
        }  # fmt: skip
        rows[name] = {
            **{measure: spread([row["held_out"][measure] for row in each]) for measure in ("dice", "iou")},
            "parameters": each[0]["parameters"],
            "steps": round(statistics.median(row["steps"] for row in each)),
            "train_seconds": [row["train_seconds"] for row in each],
            "lr": best[name],
            "rates": losses[name],
            "model": MODELS[name][0],
            "model_args": MODELS[name][1],
        }
    return rows


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=90)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--folder", type=Path, default=Path("runs/segment"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(words)
    whole = len(args.seeds) > 2 and args.only == list(MODELS)
    if len(args.seeds) < 2 or args.seconds <= 0 or (args.out == RESULTS and not whole):
        parser.error("give two seeds or more; fewer than three, or some networks only, need another --out")
    content = provenance(f"python benchmarks/segment.py --seconds {args.seconds:g}") | {
        "seconds": args.seconds, "seeds": args.seeds, "cores_a_training": 1, "patch": 64, "batch": 8, "sigma": 10,
        "models": compare(args),
    }  # fmt: skip
    args.out.write_text(json.dumps(content, indent=1) + "\n")
    for name, row in sorted(content["models"].items(), key=lambda item: -item[1]["dice"]["mean"]):
        print(f"{name:18s} Dice {row['dice']['mean']:.3f} +- {row['dice']['std']:.3f}, IoU {row['iou']['mean']:.3f}"
              f" +- {row['iou']['std']:.3f}, {row['steps']} steps, {row['parameters']:,} parameters")  # fmt: skip


if __name__ == "__main__":
    main()
