"""The claims that came with the published KUnet, measured again at a small stated scale, whatever the outcome.

Usage: python benchmarks/claims.py [--data FOLDER] [--test FOLDER] [--seconds 45] [--seeds 0 1 2] [--only skips]
    [--folder runs/claims] [--out book/results/claims.json]
       python benchmarks/claims.py --plan --data DIV2K [--folder runs/claims_full] [--teraflops 30]
       python benchmarks/claims.py --full --data DIV2K --test KODAK24 --device cuda [--folder runs/claims_full]
    [--out book/results/claims_full.json]

Audits; every row of one has the same data, noise, seconds, seeds, loss and schedule, and differs in what is named:
    skips: a UNet that predicts the image, as the published one does, with skip connections and without. Also the
        steps until the one with them reaches what the other reaches at its end, by validations on the way;
    separable: that UNet of separable convolutions, of dense ones at equal width, and of dense ones at equal parameters
        (so narrower). PSNR is at equal time; "equal_steps" is by the validations on the way, at the last step before
        the shorter run's learning rate begins to fall;
    tokens: KUnet with and without its token branch, in the published fusion ("compat": predicts the image, clamps it,
        the tokens reach only the middle) and in the mended one ("fixed": predicts the noise). A pair differs in the
        tokens alone; compat against fixed differs in the head too. "control" is fixed with as many parameters in two
        dense convolutions in place of attention and KANLinear;
    projections: fixed with KANLinear, and with an MLP of as many parameters or multiply-adds (of the whole network);
    published: seconds an image of the published network with its 138 million parameters, untrained, on one core.

One unit of multiply-adds is one multiplication and addition, of one forward pass at 256 x 256: by torch's counter,
KANLinear in local form, I O (k + 2) + I (k (k + 1) + 1) a token as benchmarks/kan_mlp.py explains. Activations, norms
and the scaling of the spline weights, which does not depend on the image, are left out.
A row's rate is the best of --rates by the held-out photos in one run of TUNING_SEED at a third of the seconds. The
spread is the sample standard deviation over seeds; differences are paired by seed. With the defaults: 33 runs of 45 s
and 22 of 15 s of processor time, two at a time. A run whose files lie in --folder is not run again.

--full measures the same at the published widths: every run has FULL_STEPS steps in place of seconds, and one rate
(with several --rates, a third of the steps chooses). What was stopped goes on where it was when the same command is
given again, so it may take many jobs. --plan only says what that costs, and writes the recipe of every run, for those
who would rather train each by `kunet train`.
"""

import argparse
import bisect
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import trials
import yaml
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kunet import models, recipes
from kunet.benchmark import provenance
from kunet.data import bundled, list_images
from kunet.kan import KANLinear

RESULTS, RUNS = Path("book/results/claims.json"), Path("runs/claims")
FULL_RESULTS, FULL_RUNS = Path("book/results/claims_full.json"), Path("runs/claims_full")
SECONDS, SEEDS, TUNING_SEED, RATES, CURVE, HELD_OUT = 45.0, (0, 1, 2), 100, (0.001, 0.003), 20, 6
SIGMA, SIDE, DEGREE = 50, 256, 3


@dataclasses.dataclass(frozen=True)
class Scale:
    """Sizes of the networks and of a training step: ``unet`` and ``kunet`` are (widths and more, patch, batch)."""

    unet: tuple[dict, int, int]
    kunet: tuple[dict, int, int]


# The small UNet's bottleneck holds 3 numbers a pixel of the image, the published one's 4: without skips, all must pass.
# KUnet's tokens lie at 1/32 of the size, so its crops are larger; 90 % of the parameters lie there (published: 96 %).
SMALL = Scale(
    ({"widths": [24, 48, 96, 192]}, 64, 8),
    ({"widths": [16, 24, 32, 48, 64], "heads": 4, "hidden": 256, "projections": [128, 192, 64]}, 128, 2),
)
FULL = Scale(({"widths": [64, 128, 256, 512, 1024]}, 256, 16), ({}, 256, 16))
FULL_STEPS = 100_000

# audit -> row -> configuration; and which rows are compared, first minus second
AUDITS = {
    "skips": {"with": "unet", "without": "unet_no_skips"},
    "separable": {"separable": "unet", "dense": "unet_dense", "dense_narrow": "unet_dense_narrow"},
    "tokens": {
        "compat_without": "compat_without",
        "compat": "compat",
        "fixed_without": "fixed_without",
        "fixed": "fixed",
        "control": "fixed_conv",
    },
    "projections": {"kan": "fixed", "mlp_parameters": "mlp_parameters", "mlp_multiply_adds": "mlp_multiply_adds"},
}
PAIRS = {
    "skips": [("with", "without")],
    "separable": [("separable", "dense"), ("separable", "dense_narrow")],
    "tokens": [("compat", "compat_without"), ("fixed", "fixed_without"), ("fixed", "control"), ("fixed", "compat")],
    "projections": [("kan", "mlp_parameters"), ("kan", "mlp_multiply_adds")],
}

Config = tuple[str, dict, int, int]  # model, its arguments, patch, batch


def on_meta(config: Config) -> nn.Module:
    """The network without memory for its weights: to count."""
    with torch.device("meta"):
        return models.make(*config[:2])


def parameters(config: Config) -> int:
    """Learnable numbers of a configuration."""
    return sum(p.numel() for p in on_meta(config).parameters())


def multiply_adds(config: Config, side: int = SIDE) -> int:
    """Of one forward pass of a side x side image, counted as this module's docstring says."""
    network, counted = on_meta(config).train(), []  # in evaluation, attention is one opaque call
    for name, layer in [*network.named_modules()]:
        if isinstance(layer, KANLinear):
            plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
            plain.register_forward_hook(lambda layer, args, _: counted.append(kan_minus_linear(layer, args[0].shape)))
            network.set_submodule(name, plain)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, 3, side, side, device="meta"), 0.0)
    return counter.get_total_flops() // 2 + sum(counted)


def kan_minus_linear(layer: nn.Linear, shape: torch.Size) -> int:
    """How many multiply-adds a KANLinear of a linear layer's size has more than that."""
    inputs, outputs = layer.in_features, layer.out_features
    return shape[:-1].numel() * inputs * (outputs * (DEGREE + 1) + DEGREE * (DEGREE + 1) + 1)


def nearest(cost: Callable[[Config], int], target: int, config: Callable[[int], Config]) -> Config:
    """The config(n), n >= 8, whose cost (it grows with n) is nearest to the target."""
    sizes = range(8, 1 << 16)
    above = bisect.bisect_left(sizes, target, key=lambda n: cost(config(n)))
    return min((config(sizes[i]) for i in (max(above - 1, 0), above)), key=lambda c: abs(cost(c) - target))


def configurations(scale: Scale) -> dict[str, Config]:
    """Every network of every audit: model, arguments, patch, batch."""
    arguments, *step = scale.unet
    unet = lambda **changes: ("unet", {**arguments, "residual": False, **changes}, *step)
    halvings = range(len(arguments["widths"]))[::-1]
    narrow = lambda n: unet(separable=False, widths=[max(1, round(n / 2**i)) for i in halvings])
    branch, *crops = scale.kunet
    kunet = lambda **changes: ("kunet", {**branch, **changes}, *crops)
    other = lambda kind: lambda n: kunet(projection=kind, mlp_width=n)
    fixed = kunet()
    return {
        "unet": unet(),
        "unet_no_skips": unet(skips=False),
        "unet_dense": unet(separable=False),
        "unet_dense_narrow": nearest(parameters, parameters(unet()), narrow),
        "compat_without": kunet(fusion="compat", tokens=False),
        "compat": kunet(fusion="compat"),
        "fixed_without": kunet(tokens=False),
        "fixed": fixed,
        "fixed_conv": nearest(parameters, parameters(fixed), other("conv")),
        "mlp_parameters": nearest(parameters, parameters(fixed), other("mlp")),
        "mlp_multiply_adds": nearest(multiply_adds, multiply_adds(fixed), other("mlp")),
    }


def recipe(config: Config, data: str, lr: float, seed: int) -> dict:
    """What a run is trained by; how many steps, the clock says."""
    model, arguments, patch, batch = config
    return {
        "name": "claims",
        "model": model,
        "model_args": arguments,
        "task": "denoise",
        "task_args": {"sigma": [SIGMA, SIGMA], "focus": SIGMA},
        "data": [data],
        "held_out": 0 if data == "bundled" else HELD_OUT,
        "phases": [{"share": 1.0, "patch": patch, "batch": batch}],
        "lr": lr,
        "ema": 0.98,
        "seed": seed,
        "log_every": 20,
    }


def full_recipe(config: Config, data: str, lr: float, seed: int, device: str = "cuda") -> dict:
    """The same at full scale, but for the number of steps."""
    precision = "fp32" if device == "cpu" else "bf16"  # processors emulate bfloat16, slowly
    return recipe(config, data, lr, seed) | {
        "precision": precision, "warmup": FULL_STEPS // 50, "ema": 0.999, "log_every": 100,
    }  # fmt: skip


def spread(values: list[float], digits: int = 3) -> dict:
    """Values over seeds, their mean and sample standard deviation (0 for one value)."""
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": round(statistics.mean(values), digits), "std": round(std, digits)} | {
        "each": [round(v, digits) for v in values]
    }


def inference(config: Config, side: int = 512, repeats: int = 3) -> float:
    """Processor seconds of one thread a megapixel, the median of a few, after one to warm up."""
    network = models.make(*config[:2]).eval().to(memory_format=torch.channels_last)
    noisy = torch.rand(1, 3, side, side).contiguous(memory_format=torch.channels_last)
    taken, threads = [], torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(repeats + 1):
        start = time.process_time()
        with torch.inference_mode():
            network(noisy, SIGMA / 255)
        taken.append((time.process_time() - start) / (side**2 / 1e6))
    torch.set_num_threads(threads)
    return round(statistics.median(taken[1:]), 3)


def row(config: Config, lr: float, results: list[dict], test: str) -> dict:
    """What a page quotes of a configuration: costs, and scores over seeds."""
    model, arguments, patch, batch = config
    tested = [result[Path(test).name] for result in results]
    length = min(len(result["validation"]) for result in results)
    curve = np.array([result["validation"][:length] for result in results]).mean(0)
    return {
        "model": model,
        "arguments": arguments,
        "patch": patch,
        "batch": batch,
        "parameters": parameters(config),
        "multiply_adds": multiply_adds(config),
        "lr": lr,
        "steps": spread([result["steps"] for result in results], 0),
        "train_ms_a_crop": spread([1e3 * result["seconds_a_step"] / batch for result in results], 2),
        "seconds_a_megapixel": inference(config),
        "psnr": spread([t["psnr"] for t in tested]),
        "ssim": spread([t["ssim"] for t in tested], 4),
        "validation": spread([result["validation"][-1][1] for result in results]),
        "curve": {"steps": curve[:, 0].round(1).tolist(), "psnr": curve[:, 1].round(3).tolist()},
    }


def steps_to_same(with_skips: list[dict], without: list[dict]) -> dict:
    """Steps until the one's validation is at or above the other's last, paired by seed.

    ``reached`` counts the seeds in which it ever is; where it is not, all its steps are taken.
    """
    needed, times, reached = [], [], 0
    for fast, slow in zip(with_skips, without):
        there = [step for step, score in fast["validation"] if score >= slow["validation"][-1][1]]
        reached += bool(there)
        needed.append(there[0] if there else fast["steps"])
        times.append(slow["steps"] / needed[-1])
    steps = {"steps_with": spread(needed, 0), "steps_without": spread([s["steps"] for s in without], 0)}
    return steps | {"times_fewer": spread(times, 2), "reached": reached}


def minus(first: list[dict], second: list[dict], test: str, measure: str) -> list[float]:
    """Differences paired by seed."""
    return [a[Path(test).name][measure] - b[Path(test).name][measure] for a, b in zip(first, second)]


def equal_steps(first: list[dict], second: list[dict], decay: float = recipes.Recipe.decay) -> dict:
    """Paired difference of validations after as many steps, while both learning rates are on their plateau."""
    differences, after = [], []
    for a, b in zip(first, second):
        step = (1 - decay) * min(a["steps"], b["steps"])
        at = [np.interp(step, *np.array(result["validation"]).T) for result in (a, b)]
        differences.append(float(at[0] - at[1]))
        after.append(step)
    return {"validation_minus": spread(differences), "steps": spread(after, 0)}


def published() -> dict:
    """The published network on one core of this machine: its costs, and processor seconds an image of each size."""
    config = ("kunet", {"fusion": "compat"}, 0, 0)
    sides = {f"side_{side}": {"seconds": round(inference(config, side) * side**2 / 1e6, 3)} for side in (256, 512)}
    return {"parameters": parameters(config), "multiply_adds": multiply_adds(config), **sides}


def photos(source: str, split: str) -> int:
    """How many a folder holds, or a split of the bundled ones."""
    return len(bundled(split)) if source == "bundled" else len(list_images(source))


def measure(args: argparse.Namespace) -> dict:
    """Tune, train and score whatever the chosen audits need."""
    configs = configurations(FULL if args.full else SMALL)
    names = dict.fromkeys(name for audit in args.only if audit in AUDITS for name in AUDITS[audit].values())
    make = partial(full_recipe, device=args.device) if args.full else recipe

    def trial(name: str, lr: float, seed: int, share: float, test: list[str], curve: int) -> dict:
        """``share`` of the whole time, or at full scale of all steps."""
        content = {"recipe": make(configs[name], args.data, lr, seed), "seconds": args.seconds * share}
        content |= {"curve": curve, "sigma": SIGMA, "test": test}
        steps = {"steps": max(1, round(FULL_STEPS * share)), "device": args.device}
        return content | steps if args.full else content

    key = lambda name, lr: f"{name}-tune-{lr:g}"
    wanted = [(name, lr) for name in names for lr in args.rates if len(args.rates) > 1]
    tuning = {key(n, lr): trial(n, lr, TUNING_SEED, 1 / 3, [], 1) for n, lr in wanted}
    tuned = trials.run_all(tuning, args.folder)
    best = {n: max(args.rates, key=lambda lr: tuned[key(n, lr)]["validation"][-1][1] if tuned else 0) for n in names}
    jobs = {f"{n}-{seed}": trial(n, best[n], seed, 1.0, [args.test], CURVE) for seed in args.seeds for n in names}
    done = trials.run_all(jobs, args.folder)
    runs = {name: [done[f"{name}-{seed}"] for seed in args.seeds] for name in names}
    rows = {name: row(configs[name], best[name], runs[name], args.test) for name in names}
    found = {}
    for audit in args.only:
        if audit not in AUDITS:
            found[audit] = published()
            continue
        found[audit] = {label: rows[name] for label, name in AUDITS[audit].items()}
        for a, b in PAIRS[audit]:
            pair = [runs[AUDITS[audit][label]] for label in (a, b)]
            found[audit][f"{a}_minus_{b}"] = {
                "psnr": spread(minus(*pair, args.test, "psnr")),
                "ssim": spread(minus(*pair, args.test, "ssim"), 4),
                "equal_steps": equal_steps(*pair),
            }
    if "skips" in args.only:
        found["skips"]["steps_to_same"] = steps_to_same(*(runs[name] for name in AUDITS["skips"].values()))
    return found


def show(results: dict) -> None:
    """The table."""
    head = (
        f"{'':34}{'parameters':>12}{'GMAC':>8}{'lr':>8}{'steps':>7}{'ms a crop':>11}{'s a MP':>8}{'PSNR':>9}{'std':>7}"
    )
    print(head)
    for audit in AUDITS:
        for label, found in results.get(audit, {}).items():
            if "parameters" in found:
                print(
                    f"{audit + ' ' + label:34}{found['parameters']:12,}{found['multiply_adds'] / 1e9:8.2f}"
                    f"{found['lr']:8g}{found['steps']['mean']:7.0f}{found['train_ms_a_crop']['mean']:11.1f}"
                    f"{found['seconds_a_megapixel']:8.2f}{found['psnr']['mean']:9.3f}{found['psnr']['std']:7.3f}"
                )
            elif "psnr" in found:
                print(f"{audit + ' ' + label:78}{'':10}{found['psnr']['mean']:+9.3f}{found['psnr']['std']:7.3f}")
            else:
                print(f"{audit + ' ' + label}: {json.dumps(found)}")
    if "published" in results:
        print(f"published: {json.dumps(results['published'])}")


def plan(args: argparse.Namespace) -> None:
    """The full scale: a recipe file a run, and what they cost together."""
    args.folder.mkdir(parents=True, exist_ok=True)
    total = 0.0
    for name, config in configurations(FULL).items():
        crop, batch = config[2:]
        work = 6 * multiply_adds(config, crop) * batch * FULL_STEPS  # 2 a multiply-add; backwards costs twice forwards
        total += work
        for seed in args.seeds:
            content = full_recipe(config, args.data, args.rates[0], seed)
            content |= {"name": f"{name}-{seed}", "steps": FULL_STEPS}
            recipes.build(name, content)
            (args.folder / f"{name}-{seed}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        hours = work / args.teraflops / 3.6e15
        print(f"{name:20}{parameters(config):13,} parameters, {work:.2e} FLOP and {hours:5.1f} h a run")
    hours = total * len(args.seeds) / args.teraflops / 3.6e15
    print(
        f"{len(args.seeds)} seeds: {total * len(args.seeds):.2e} FLOP, {hours:.0f} h of a GPU that sustains"
        f" {args.teraflops:g} TFLOP/s (--teraflops); all of them, and the table: python benchmarks/claims.py --full"
        f" --device cuda; or each: kunet train --recipe {args.folder}/NAME-SEED.yaml --device cuda"
    )


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="bundled", help='folder of photos to train on, or "bundled"')
    parser.add_argument("--test", default="bundled", help='folder of photos to score on, or "bundled"')
    parser.add_argument("--seconds", type=float, default=SECONDS, help="processor time of a training")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--rates", type=float, nargs="+", help=f"learning rates to choose from (default: {RATES[0]:g}"
                        f" {RATES[1]:g}; at full scale the first)")  # fmt: skip
    parser.add_argument("--only", nargs="+", choices=[*AUDITS, "published"], default=[*AUDITS, "published"])
    parser.add_argument("--folder", type=Path, help=f"where the runs lie (default: {RUNS}, or {FULL_RUNS})")
    parser.add_argument("--out", type=Path, help=f"(default: {RESULTS}, or {FULL_RESULTS})")
    parser.add_argument("--full", action="store_true", help="run the full scale, or go on with it")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="of the full scale")
    parser.add_argument("--plan", action="store_true", help="only say what the full scale costs, and write its recipes")
    parser.add_argument("--teraflops", type=float, default=30.0, help="that the GPU of the plan sustains")
    args = parser.parse_args(words)
    large = args.full or args.plan
    args.folder = args.folder or (FULL_RUNS if large else RUNS)
    args.out = args.out or (FULL_RESULTS if large else RESULTS)
    rates = list(RATES[:1] if large else RATES)
    usual = args.rates in (None, rates) and all(
        getattr(args, key) == parser.get_default(key) for key in ("seconds", "seeds", "only")
    )
    args.rates = args.rates or rates
    if args.plan:
        return plan(args)
    if args.device != "cpu" and not args.full:
        parser.error("--device is for --full: the small scale is measured in a processor's time")
    if (args.out in (RESULTS, FULL_RESULTS) and not usual) or args.out == (RESULTS if args.full else FULL_RESULTS):
        parser.error("other seconds, seeds, rates, audits or scale need another --out, so that no page quotes them")
    data, test = (Path(source).name for source in (args.data, args.test))
    length = f"--full --device {args.device}" if args.full else f"--seconds {args.seconds:g}"
    command = f"python benchmarks/claims.py --data {data} --test {test} {length}"
    command += f" --seeds {' '.join(map(str, args.seeds))}" + f" --only {' '.join(args.only)}" * (not usual)
    results = provenance(command) | {
        "sigma": SIGMA,
        "data": data,
        "test": test,
        "photos": photos(args.data, "train") - (HELD_OUT if args.data != "bundled" else 0),
        "held_out": HELD_OUT if args.data != "bundled" else photos("bundled", "heldout"),
        "test_images": photos(args.test, "heldout"),
        **({"steps": FULL_STEPS, "device": args.device} if args.full else {"seconds": args.seconds}),
        "seeds": args.seeds,
        "rates": args.rates,
        "counted": f"multiply-adds of one {SIDE} x {SIDE} image; KANLinear I O (k + 2) + I (k (k + 1) + 1) a token",
    }
    results |= measure(args)
    show(results)
    args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
