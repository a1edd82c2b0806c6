"""What each part of the compact KUnet is worth: one thing is changed at a time, and the network trained again.

Usage: python benchmarks/ablate.py --data FOLDER ... --test FOLDER [--seconds 8] [--seeds 0 1 2] [--only NAME ...]
    [--images 12] [--workers 1] [--folder runs/ablate] [--out book/results/ablate.json] [--report]

BASE is the released architecture, narrower and with fewer blocks, so that it learns something in seconds. Every row
changes what its "changes" say, and nothing else: same photos, crops, noise, rate and seed, and as much processor time
of one core: before, the steps of all rows are timed in turns, and the least of each says how many fit --seconds. (On a
busy machine they take longer in the end, "train_seconds"; in so short a training the steps matter much, so a slow
moment must not cost one row its steps.) Crops are of 64 x 64 pixels, so 4 x 4 tokens, and windows of 2 x 2: with fewer
tokens than a window holds, "window" and "global" would train alike. Crops, batch and rate were chosen on the base
alone, with another seed, among nine; scores on photos of the training folders and on Kodak24 put the same one first.
One rate serves all rows, so a part may look worse than it is because another rate would suit it. And it is a short
training of a small network, on noise of sigma 50: what takes long to learn shows little.

Scored on the first --images images of --test by the protocol of ``kunet evaluate``, float noise; the base and the rows
of noise on 8-bit noise too. Differences are paired by seed, "standard_error" is that of their mean. "zeroed" is the
PSNR after the token branch's last layer has been set to zero in the trained network: what it loses is what the network
asks of its tokens. Rows of a projection are also trained for as many steps as the base ("equal_steps").

"searched" are sizes found by search: MLPs (of a token's projection alone) with as many parameters, as many
multiply-adds or as much forward time on the tokens of a 512 x 768 image as the base's KANLinear; and the widths of a
dense network with as many multiply-adds. Multiply-adds are counted as cost.py does, on a 256 x 256 image; of another
basis than splines, whose functions are nowhere zero, all count.

Seeds are in the outer loop: from the second on, the results are written after each, of those that are done. What is
finished lies in --folder and is not run again; --report writes the results from there and trains nothing.
"""

import argparse
import bisect
import hashlib
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

import torch
from cost import macs
from torch import Tensor, nn
from trials import finished, run_all, seconds_a_step

from kunet import evaluate, metrics, models, recipes
from kunet.benchmark import provenance
from kunet.images import as_file, unit
from kunet.kan import KANLinear
from kunet.runs import load_weights
from kunet.train import build

RESULTS = Path("book/results/ablate.json")
SIGMA, PATCH, BATCH, RATE, SIDE = 50, 64, 2, 4e-3, 256
BASE = {
    "stem": 2, "widths": [24, 48, 96], "depths": [1, 1, 1], "dense_levels": 1,
    "token_depth": 2, "heads": 4, "window": 2, "grid_size": 5, "degree": 3, "grid_range": [-2.5, 2.5],
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A network of the grid.

    Args:
        changes: of the base's arguments.
        noise: of its training, "float" or "u8".
        against: the row that it is compared with.
        both: whether it is tested on both kinds of noise.
        same_steps: whether it is also trained for as many steps as the base.
    """

    changes: dict
    noise: str = "float"
    against: str = "base"
    both: bool = False
    same_steps: bool = False

    @property
    def args(self) -> dict:
        return BASE | self.changes


def grid(searched: dict) -> dict[str, Row]:
    """All rows by name; ``searched`` holds the sizes that have to be found."""
    mlp = lambda kind: Row({"projection": "mlp", "mlp_width": searched.get(f"mlp_{kind}")}, same_steps=True)
    return {
        "base": Row({}, both=True),
        "skips_none": Row({"skips": "none"}),
        "skips_concat": Row({"skips": "concat"}),
        "residual_off": Row({"residual": False}),
        # an image may pass the lowest map, noise cannot: so the skips once more where the image is predicted
        "skips_none_image": Row({"skips": "none", "residual": False}, against="residual_off"),
        "dense_0": Row({"dense_levels": 0}),
        "dense_3": Row({"dense_levels": 3}),
        "dense_3_macs": Row({"dense_levels": 3, "widths": searched.get("dense_3_macs")}),
        "tokens_none": Row({"tokens": False}),
        "attention_none": Row({"attention": "none"}),
        "attention_conv": Row({"attention": "conv"}),
        "attention_global": Row({"attention": "global"}),
        "attention_channel": Row({"attention": "channel"}),
        "positions_off": Row({"positions": False}),
        "token_residual_off": Row({"token_residual": False}),
        "linear": Row({"projection": "linear"}, same_steps=True),
        "mlp_parameters": mlp("parameters"),
        "mlp_macs": mlp("macs"),
        "mlp_time": mlp("time"),
        "kan_grid_3": Row({"grid_size": 3}),
        "kan_grid_10": Row({"grid_size": 10}),
        "kan_degree_1": Row({"degree": 1}),
        "kan_range_1": Row({"grid_range": [-1.0, 1.0]}),
        "kan_rational": Row({"basis": "rational"}),
        "noise_u8": Row({}, noise="u8", both=True),
        "ends": Row({"ends": True}, both=True),
        "ends_u8": Row({"ends": True}, noise="u8", against="noise_u8", both=True),
    }


NAMES = tuple(grid({}))


def network(args: dict) -> nn.Module:
    """Untrained, to count and to time."""
    torch.manual_seed(0)
    return models.make("kunet_compact", args).eval()


def multiply_adds(args: dict) -> int:
    """Of one pass of a 256 x 256 image."""
    total = macs(("kunet_compact", args), SIDE)
    if args.get("basis", "bspline") != "bspline":  # which cost.py counts as if they were zero in most places
        tokens, dim, k = (SIDE // (args["stem"] * 2 ** len(args["widths"]))) ** 2, args["widths"][-1], args["degree"]
        total += args["token_depth"] * tokens * dim * (dim * (args["grid_size"] - 1) - k * (k + 1) - 1)
    return total


def kan(base: dict) -> KANLinear:
    """Its projection of a token."""
    dim = base["widths"][-1]
    return KANLinear(dim, dim, base["grid_size"], base["degree"], tuple(base["grid_range"]))


def mlp(width: int, base: dict) -> nn.Sequential:
    """What stands in its place."""
    dim = base["widths"][-1]
    return nn.Sequential(nn.Linear(dim, width), nn.SiLU(), nn.Linear(width, dim))


def count(layer: nn.Module) -> int:
    return sum(p.numel() for p in layer.parameters())


def timed(layers: list[nn.Module], x: Tensor, repeats: int) -> list[float]:
    """Processor seconds of a forward pass of each: the least, as other work only adds; in turns, after a warm-up."""
    taken = []
    with torch.inference_mode():
        for _ in range(repeats + 1):
            row = []
            for layer in layers:
                start = time.process_time()
                layer(x)
                row.append(time.process_time() - start)
            taken.append(row)
    return [min(column) for column in zip(*taken[1:])]


def mlp_widths(base: dict, repeats: int = 41) -> dict[str, float]:
    """The widths of MLPs that cost what its KANLinear does, by three measures; and what was meant to be 1."""
    dim, k = base["widths"][-1], base["degree"]
    width = lambda total: round((total - dim) / (2 * dim + 1))  # of 2 D w + w + D parameters
    local = dim * dim * (k + 2) + dim * (k * (k + 1) + 1)  # as cost.py explains
    x = torch.randn(512 * 768 // 16**2, dim, generator=torch.Generator().manual_seed(0))

    def ratio(width: int) -> float:
        """Its time to that of the KANLinear, side by side."""
        one, other = timed([mlp(width, base), kan(base)], x, repeats)
        return one / other

    sizes = range(dim // 4, 12 * dim, dim // 12)
    equal = sizes[bisect.bisect_left(sizes, 1.0, hi=len(sizes) - 1, key=ratio)]
    return {
        "mlp_parameters": width(count(kan(base))),
        "mlp_macs": round(local / (2 * dim)),
        "mlp_time": equal,
        "mlp_time_ratio": round(ratio(equal), 3),
    }


def dense_widths() -> list[int]:
    """Of a network with dense convolutions everywhere that has as many multiply-adds as the base."""
    heads, sizes = BASE["heads"], range(2 * BASE["widths"][-1], 4 * BASE["widths"][-1] + 1)
    scaled = lambda n: [max(1, round(n / 16)), max(1, round(n / 8)), heads * max(1, round(n / 4 / heads))]
    cost = lambda n: multiply_adds(BASE | {"dense_levels": 3, "widths": scaled(n)})
    target = multiply_adds(BASE)
    above = bisect.bisect_left(sizes, target, hi=len(sizes) - 1, key=cost)
    return scaled(min(sizes[max(above - 1, 0) : above + 1], key=lambda n: abs(cost(n) - target)))


def search(names: list[str], folder: Path) -> dict:
    """The sizes that the rows of these names need; what lies in the folder is kept, since times vary."""
    if not {"mlp_parameters", "mlp_macs", "mlp_time", "dense_3_macs"} & set(names):
        return {}
    path = folder / "searched.json"
    if not path.exists() or (found := json.loads(path.read_text()))["base"] != BASE:
        found = {"base": BASE, "sizes": mlp_widths(BASE) | {"dense_3_macs": dense_widths()}}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1))
    return found["sizes"]


def costs(rows: dict[str, Row], repeats: int = 5) -> dict[str, dict]:
    """Parameters, multiply-adds a pixel and processor seconds a megapixel of every row's network."""
    built = {name: network(row.args).to(memory_format=torch.channels_last) for name, row in rows.items()}
    x = torch.rand(1, 3, 2 * SIDE, 2 * SIDE).contiguous(memory_format=torch.channels_last)
    seconds = timed([lambda x, net=net: net(x, unit(SIGMA)) for net in built.values()], x, repeats)
    return {
        name: {
            "parameters": count(built[name]),
            "macs_per_pixel": round(multiply_adds(row.args) / SIDE**2),
            "seconds_a_megapixel": round(took / (4 * SIDE**2 / 1e6), 4),
        }
        for (name, row), took in zip(rows.items(), seconds)
    }


def recipe(name: str, row: Row, data: list[str], seed: int) -> dict:
    """How a row is trained; of how many steps, the clock says."""
    return {
        "name": name, "model": "kunet_compact", "model_args": row.args,
        "task_args": {"sigma": [SIGMA, SIGMA], "u8_share": float(row.noise == "u8")}, "data": data,
        "phases": [{"share": 1.0, "patch": PATCH, "batch": BATCH}], "lr": RATE, "ema": 0.95, "seed": seed, "decay": 0.5,
    }  # fmt: skip


def step_seconds(rows: dict[str, Row], data: list[str], folder: Path, rounds: int = 5) -> dict[str, float]:
    """Processor seconds of a training step of every row, everything in: the least, taken in turns.

    Times that lie in the folder are kept, so that the same command asks for the same steps.
    """
    path, asked = folder / "steps.json", {name: json.dumps(row.args) for name, row in rows.items()}
    found = json.loads(path.read_text()) if path.exists() else {}
    missing = dict.fromkeys(args for args in asked.values() if args not in found)  # each network once
    if missing:
        plain = lambda args: recipe("timed", Row(json.loads(args)), data, 0) | {"steps": 1, "threads": 1}
        made = {args: recipes.build("ablate", plain(args)) for args in missing}
        photos, _ = build(next(iter(made.values())))[1].load(data, 0)
        taken = [[seconds_a_step(one, photos, 0.0) for one in made.values()] for _ in range(rounds)]
        found |= {args: round(min(times), 6) for args, times in zip(missing, zip(*taken))}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1))
    return {name: found[args] for name, args in asked.items()}


@cache
def examples(test: str, images: int, mode: str) -> list[tuple[Tensor, Tensor]]:
    """(noisy, clean), each (1, 3, H, W), of the first images."""
    found = islice(evaluate.clean_images(test), images)
    return [(evaluate.noisy_version(clean, SIGMA, i, mode)[None], clean[None]) for i, (_, clean) in enumerate(found)]


@torch.inference_mode()
def psnr(model: nn.Module, test: str, images: int, mode: str) -> float:
    """The mean over images, in dB."""
    restored = lambda x: model(x.contiguous(memory_format=torch.channels_last), unit(SIGMA))
    each = [float(metrics.psnr(as_file(restored(noisy)), clean)) for noisy, clean in examples(test, images, mode)]
    return round(statistics.mean(each), 4)


def kept_scores(
    weights: Path, test: str, images: int, measure: Callable[[nn.Module], dict[str, float]]
) -> dict[str, float]:
    """What ``measure`` finds of trained weights; kept beside them, for them and these images."""
    place = weights.parent / "scores.json"
    of = {"weights": hashlib.sha256(weights.read_bytes()).hexdigest(), "test": Path(test).name, "images": images}
    if place.exists() and (found := json.loads(place.read_text()))["of"] == of:
        return found["psnr"]
    found = measure(load_weights(weights)[0].eval().to(memory_format=torch.channels_last))
    place.write_text(json.dumps({"of": of, "psnr": found}))
    return found


def scores(weights: Path, row: Row, test: str, images: int) -> dict[str, float]:
    """PSNR on float noise, on 8-bit noise where the row asks for it, and without what the tokens add."""

    def measure(model: nn.Module) -> dict[str, float]:
        found = {mode: psnr(model, test, images, mode) for mode in (("float", "u8") if row.both else ("float",))}
        if model.tokens is not None:
            for parameter in model.unpatchify.parameters():
                parameter.data.zero_()
            found["zeroed"] = psnr(model, test, images, "float")
        return found

    return kept_scores(weights, test, images, measure)


def run_seed(
    args: argparse.Namespace, rows: dict[str, Row], steps: dict[str, int], seed: int
) -> dict[str, dict] | None:
    """name -> result with its scores, of a seed: all rows, then those of the base's steps, which end in "-steps".

    With --report None where some are not done.
    """
    results: dict[str, dict] = {}

    def run(trials: dict[str, dict]) -> bool:
        if args.report and not all(finished(trial, args.folder / name) for name, trial in trials.items()):
            return False
        for name, result in run_all(trials, args.folder, args.workers).items():
            key = name.removesuffix(f"-{seed}")
            weights = args.folder / name / f"run-{result['steps']}" / "weights.safetensors"
            result["scores"] = scores(weights, rows[key.removesuffix("-steps")], args.test, args.images)
            results[key] = result
        return True

    def trial(name: str, count: int) -> dict:
        made = recipe(name, rows[name], args.data, seed)
        return {"recipe": made, "seconds": args.seconds, "steps": count, "test": []}

    again = [name for name, row in rows.items() if row.same_steps and "base" in rows]
    if run({f"{name}-{seed}": trial(name, steps[name]) for name in rows}):
        return results if run({f"{name}-steps-{seed}": trial(name, steps["base"]) for name in again}) else None
    return None


def spread(values: list[float]) -> dict:
    """Over seeds: mean, sample standard deviation, each."""
    return {
        "mean": round(statistics.mean(values), 3),
        "std": round(statistics.stdev(values), 3),
        "each": [round(v, 3) for v in values],
    }


def paired(one: list[float], other: list[float]) -> dict:
    """one - other, paired by seed: mean, its standard error, each."""
    each = [a - b for a, b in zip(one, other)]
    error = statistics.stdev(each) / math.sqrt(len(each))
    return {
        "mean": round(statistics.mean(each), 3),
        "standard_error": round(error, 3),
        "each": [round(v, 3) for v in each],
    }


def table(
    rows: dict[str, Row], seconds: dict[str, float], done: list[dict[str, dict]], cost: dict[str, dict]
) -> dict[str, dict]:
    """What the results say of every row; ``done`` holds one dictionary a seed."""
    of = lambda name, mode: [seed[name]["scores"][mode] for seed in done]
    column = lambda name, key: [seed[name][key] for seed in done]

    def scored(name: str, mode: str, against: str) -> dict:
        minus = {"minus": paired(of(name, mode), of(against, mode))} if against in rows and against != name else {}
        return {"psnr": spread(of(name, mode))} | minus

    found = {}
    for name, row in rows.items():
        found[name] = {"changes": row.changes, "train_noise": row.noise, "against": row.against, **cost[name]}
        found[name] |= {"seconds_a_step": seconds[name], "steps": done[0][name]["steps"]}
        found[name] |= {"train_seconds": column(name, "train_seconds")}
        found[name] |= scored(name, "float", row.against)
        if row.both:
            found[name]["u8"] = scored(name, "u8", row.against)
        if "zeroed" in done[0][name]["scores"]:
            lost = paired(of(name, "float"), of(name, "zeroed"))
            found[name]["zeroed"] = {"psnr": spread(of(name, "zeroed")), "lost": lost}
        if (again := f"{name}-steps") in done[0]:
            found[name]["equal_steps"] = {"steps": done[0][again]["steps"]} | scored(again, "float", row.against)
            found[name]["equal_steps"]["train_seconds"] = column(again, "train_seconds")
    return found


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["bundled"])
    parser.add_argument("--test", default="bundled")
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES), metavar="NAME")
    parser.add_argument("--images", type=int, default=12, help="how many of --test are scored")
    parser.add_argument("--workers", type=int, default=1, help="trainings at a time, each on a core")
    parser.add_argument("--folder", type=Path, default=Path("runs/ablate"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="write the results of what is done, train nothing")
    args = parser.parse_args(words)
    part = args.only != list(NAMES) or len(args.seeds) < 3
    if len(args.seeds) < 2 or args.seconds <= 0 or min(args.images, args.workers) < 1 or (part and args.out == RESULTS):
        parser.error("give two seeds or more; fewer than three, or some rows only, need another --out")
    searched = search(args.only, args.folder)
    rows = {name: row for name, row in grid(searched).items() if name in args.only}
    seconds = step_seconds(rows, args.data, args.folder)
    steps = {name: max(10, round(args.seconds / taken)) for name, taken in seconds.items()}
    done, seeds = [], []
    for seed in args.seeds:
        if (results := run_seed(args, rows, steps, seed)) is None:
            continue
        done.append(results)
        seeds.append(seed)
        if len(done) > 1:
            write(args, rows, searched, seconds, done, seeds)
    if len(done) < 2:
        parser.error(f"{len(done)} seeds are done in {args.folder}; a report needs two")


def write(
    args: argparse.Namespace, rows: dict, searched: dict, seconds: dict, done: list[dict], seeds: list[int]
) -> None:
    """The results of the seeds that are done."""
    data, test = [Path(source).name for source in args.data], Path(args.test).name
    command = f"python benchmarks/ablate.py --data {' '.join(data)} --test {test} --seconds {args.seconds:g}"
    command += f" --only {' '.join(rows)}" if len(rows) < len(NAMES) else ""
    content = provenance(command) | {
        "sigma": SIGMA, "data": data, "test": test, "images": len(examples(args.test, args.images, "float")),
        "seconds": args.seconds, "seeds": seeds, "cores_a_training": 1, "patch": PATCH, "batch": BATCH, "lr": RATE,
        "base": BASE, "searched": searched, "rows": table(rows, seconds, done, costs(rows)),
    }  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(content, indent=1) + "\n")
    for name, row in content["rows"].items():
        minus = row.get("minus", {"mean": 0.0, "standard_error": 0.0})
        print(
            f"{name:20s} {row['psnr']['mean']:.2f} +- {row['psnr']['std']:.2f} dB, {minus['mean']:+.2f} +-"
            f" {minus['standard_error']:.2f} to {row['against']}, steps {row['steps']}",
            flush=True,
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
