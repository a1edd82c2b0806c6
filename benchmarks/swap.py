"""KAN against MLP in the released network: other projections of its tokens, trained on from the rest of its weights.

Usage: python benchmarks/swap.py --data FOLDER ... --test FOLDER [--weights kunet_tiny] [--seconds 60] [--seeds 0 1 2]
    [--images 24] [--workers 2] [--branch] [--folder runs/swap] [--out book/results/swap.json]

In a training from nothing that lasts seconds a network asks nothing of its tokens (ablate.py's "zeroed"), so what
projects them hardly matters there. Here it does: every row takes the released network, puts a fresh projection of its
kind in the place of each KANLinear (random, by the seed), and trains all of it on, as in its last training but for
crops, batch, rate and noise of sigma 50 alone. "kan" is a fresh KANLinear, "kept" the one that was there; the MLPs have
as many parameters, multiply-adds or as much forward time as the KANLinear, as ablate.py finds them. The rest of the
weights has lived with a KANLinear, which may favour one.

With --branch the whole token branch is asked instead: "kept" as it was released, "none" without it, "conv" with a
fresh convolution of about as many parameters in the place of its attention. The rest of the weights has lived with
the branch, which favours "kept". Writes book/results/branch.json.

Every row trains for as much processor time of one core, by steps timed before in turns, and all but "kept" and "kan"
also for as many steps as "kan", or as "kept" with --branch. (On a busy machine they take longer: "train_seconds".)
Scored on the first --images images of --test, float noise. Differences are paired by seed; "zeroed" is the PSNR with
the projections' outputs set to zero in the trained network. Finished trainings lie in --folder and are not run again.
"""

import argparse
import hashlib
import json
from pathlib import Path

import torch
from ablate import BASE, SIGMA, Row, costs, examples, kept_scores, mlp_widths, paired, psnr, spread
from torch import nn
from trials import run_all, seconds_a_step

from kunet import models, recipes
from kunet.benchmark import provenance
from kunet.runs import load_weights, save_weights
from kunet.train import build
from kunet.weights import find

RESULTS, BRANCH = Path("book/results/swap.json"), Path("book/results/branch.json")
PATCH, BATCH, RATE = 128, 2, 5e-4
PARTS = {"kept": {}, "none": {"tokens": False}, "conv": {"attention": "conv"}}
"""Rows of --branch."""


def kinds(widths: dict) -> dict[str, dict]:
    """Row -> the model arguments that it changes."""
    mlps = {name: {"projection": "mlp", "mlp_width": widths[name]} for name in widths if not name.endswith("ratio")}
    return {"kept": {}, "kan": {}, "linear": {"projection": "linear"}} | mlps


def begin(weights: str, name: str, args: dict, seed: int, folder: Path) -> Path:
    """The released network with projections of a row's kind, as a file to train on from."""
    state = load_weights(find(weights))[0].state_dict()
    torch.manual_seed(seed)
    model = models.make("kunet_compact", args)
    mine = model.state_dict()
    new = lambda key: key not in state or (name not in PARTS and ".kan." in key)  # what stays, stays whole
    model.load_state_dict({key: value if new(key) else state[key] for key, value in mine.items()})
    place = folder / f"start-{name}-{seed}.safetensors"
    place.parent.mkdir(parents=True, exist_ok=True)
    save_weights(place, model, "kunet_compact", args, {})
    return place


def searched(base: dict, folder: Path) -> dict[str, float]:
    """The widths of the MLPs, searched once a folder."""
    found = folder / "searched.json"
    if not found.exists():
        folder.mkdir(parents=True, exist_ok=True)
        found.write_text(json.dumps(mlp_widths(base), indent=1))
    return json.loads(found.read_text())


def recipe(trained: dict, args: dict, start: Path, data: list[str], seed: int) -> dict:
    """How a row is trained; of how many steps, the clock says."""
    mine = {
        "task_args": {"sigma": [SIGMA, SIGMA], "objective": trained["task_args"]["objective"]},
        "model_args": args, "start": str(start), "data": data, "held_out": 0, "seed": seed, "lr": RATE, "ema": 0.95,
        "phases": [{"share": 1.0, "patch": PATCH, "batch": BATCH}], "compile": False,
    }  # fmt: skip
    return {key: trained[key] for key in ("name", "model", "optimizer", "decay", "precision")} | mine


def step_seconds(plans: dict[str, dict], folder: Path, rounds: int = 5) -> dict[str, float]:
    """Processor seconds of a training step of every row: the least, taken in turns; kept in the folder."""
    path = folder / "steps.json"
    if not path.exists() or (found := json.loads(path.read_text())).keys() != plans.keys():
        made = [recipes.build("swap", one | {"steps": 1, "threads": 1}) for one in plans.values()]
        photos, _ = build(made[0])[1].load(made[0].data, 0)
        taken = [[seconds_a_step(one, photos, 0.0) for one in made] for _ in range(rounds)]
        found = {name: round(min(times), 6) for name, times in zip(plans, zip(*taken))}
        path.write_text(json.dumps(found, indent=1))
    return found


def scores(weights: Path, test: str, images: int) -> dict[str, float]:
    """PSNR of a trained network, and without what its projections add."""

    def measure(model: nn.Module) -> dict[str, float]:
        found = {"float": psnr(model, test, images, "float")}
        for block in model.tokens or ():
            block.kan.register_forward_hook(lambda module, inputs, output: output * 0)
        return found | {"zeroed": psnr(model, test, images, "float")}

    return kept_scores(weights, test, images, measure)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["bundled"])
    parser.add_argument("--test", default="bundled")
    parser.add_argument("--weights", default="kunet_tiny")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=24, help="how many of --test are scored")
    parser.add_argument("--workers", type=int, default=2, help="trainings at a time, each on a core")
    parser.add_argument("--folder", type=Path, default=Path("runs/swap"))
    parser.add_argument("--branch", action="store_true", help="change the whole token branch, not its projections")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(words)
    args.out, against = args.out or (BRANCH if args.branch else RESULTS), "kept" if args.branch else "kan"
    if len(args.seeds) < 2 or args.seconds <= 0 or min(args.images, args.workers) < 1:
        parser.error("give two seeds or more, and seconds, images and workers above 0")
    if len(args.seeds) < 3 and args.out in (RESULTS, BRANCH):
        parser.error("fewer than three seeds need another --out, so that no page quotes them")
    args.folder /= hashlib.sha256(find(args.weights).read_bytes()).hexdigest()[:12]  # other weights start anew
    args.folder /= "branch" if args.branch else ""
    card = json.loads(find(args.weights).with_suffix(".json").read_text())
    trained = card["recipe"]
    base = BASE | trained["model_args"]
    widths = {} if args.branch else searched(base, args.folder)
    changes = PARTS if args.branch else kinds(widths)
    rows = {name: base | change for name, change in changes.items()}
    plans = {
        (name, seed): recipe(trained, row, begin(args.weights, name, row, seed, args.folder), args.data, seed)
        for name, row in rows.items()
        for seed in args.seeds
    }
    seconds = step_seconds({name: plans[name, args.seeds[0]] for name in rows}, args.folder)
    steps = {name: max(10, round(args.seconds / taken)) for name, taken in seconds.items()}
    again = [name for name in rows if name not in ("kept", against)]
    trials = {
        f"{name}{ending}-{seed}": {"recipe": plans[name, seed], "seconds": args.seconds, "steps": count, "test": []}
        for seed in args.seeds
        for ending, counts in (("", steps), ("-steps", {name: steps[against] for name in again}))
        for name, count in counts.items()
    }
    results = run_all(trials, args.folder, args.workers)
    found = {
        name: scores(args.folder / name / f"run-{result['steps']}" / "weights.safetensors", args.test, args.images)
        for name, result in results.items()
    }
    of = lambda name, key: [found[f"{name}-{seed}"][key] for seed in args.seeds]

    def scored(name: str) -> dict:
        minus = {} if name == against else {"minus": paired(of(name, "float"), of(against, "float"))}
        lost = paired(of(name, "float"), of(name, "zeroed"))
        return {"psnr": spread(of(name, "float")), "zeroed": {"lost": lost}} | minus

    cost = costs({name: Row(row) for name, row in rows.items()})
    table = {}
    for name in rows:
        table[name] = cost[name] | {"seconds_a_step": seconds[name], "steps": steps[name]} | scored(name)
        table[name]["train_seconds"] = [results[f"{name}-{seed}"]["train_seconds"] for seed in args.seeds]
        if name in again:
            table[name]["equal_steps"] = {"steps": steps[against]} | scored(f"{name}-steps")
    data, test = [Path(source).name for source in args.data], Path(args.test).name
    command = f"python benchmarks/swap.py --data {' '.join(data)} --test {test}"
    command += f" --weights {args.weights} --seconds {args.seconds:g}" + " --branch" * args.branch
    content = provenance(command) | {
        "sigma": SIGMA, "data": data, "test": test, "images": len(examples(args.test, args.images, "float")),
        "weights": args.weights, "before": round(before(args), 4), "seconds": args.seconds, "seeds": args.seeds,
        "cores_a_training": 1, "patch": PATCH, "batch": BATCH, "lr": RATE, "against": against, "searched": widths,
        "rows": table,
    }  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(content, indent=1) + "\n")
    for name, row in table.items():
        print(name, row["psnr"], row.get("minus"), row["zeroed"], row.get("equal_steps", {}).get("minus"), flush=True)


def before(args: argparse.Namespace) -> float:
    """PSNR of the released network, not trained on."""
    model = load_weights(find(args.weights))[0].eval().to(memory_format=torch.channels_last)
    return psnr(model, args.test, args.images, "float")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
