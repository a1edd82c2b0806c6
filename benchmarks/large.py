"""Large photos: time and memory with size, whole and in boxes; other forms of the network; where its time goes.

Usage:
    python benchmarks/large.py [--weights kunet_tiny] [--most 25] [--quick] [--out book/results/large.json]

Every size is timed in a process of its own by `kunet benchmark`, with all the memory it likes and with 2 GB for the
network, so each row's peak is its own. All sizes take their turns in each of several rounds, so that a slow minute of
the machine is not taken for a slow size; seconds are medians over all passes of all rounds. Exponents are slopes of a
straight line through log(seconds), or log(memory beyond an idle process), over log(pixels). Other forms of the network
are compared on the bundled held-out photos (quality) and on one large picture (time, in turns): 16 bits, tables,
"contiguous" (each channel's values together in memory, not each pixel's as in channels_last) and, but with --quick,
torch.compile, which needs a C++ compiler; "first_seconds" is the pass that warms up or compiles. The profile adds up
the time of the network's parts, a median over passes. The equality is the largest difference between an image in boxes
and as a whole, over 20 random sizes.
"""

import argparse
import copy
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kunet.benchmark import provenance
from kunet.denoise import Denoiser
from kunet.evaluate import evaluate, noisy_version
from kunet.images import unit
from kunet.kan.tables import with_tables
from kunet.memory import reuse
from kunet.restore import Network

RESULTS = Path("book/results/large.json")
SIZES = ((624, 416), (1248, 832), (2040, 1356), (3000, 2000), (4500, 3000), (6120, 4080))
QUICK_SIZES = ((96, 64), (192, 128), (624, 416))
LARGE = 4e6
"""Pixels from which on a round makes one pass, after one to warm up."""
MEMORY = {"whole": 1000.0, "in 2 GB": 2.0}
"""GB for the network, by the name of the row."""


def measure(size: tuple[int, int], memory: float, weights: str, repeats: int) -> dict:
    """One size in a process of its own: seconds of each pass, how it was computed, peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "row.json"
        words = ["benchmark", "--sizes", f"{size[0]}x{size[1]}", "--weights", weights, "--memory", str(memory)]
        command = [sys.executable, "-m", "kunet", *words, "--repeats", str(repeats), "--json", str(file)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (row,) = json.loads(file.read_text())["rows"]
    return row


def summary(size: tuple[int, int], rounds: list[dict]) -> dict:
    """Of one size's rounds: median seconds and their spread over all passes, the highest peak of memory."""
    seconds = [second for row in rounds for second in row["seconds"]]
    highest = max(rounds, key=lambda row: row["peak_mb"])
    return {
        "width": size[0],
        "height": size[1],
        "megapixels": round(size[0] * size[1] / 1e6, 3),
        "how": highest["how"],
        "parts": highest["parts"],
        "seconds": statistics.median(seconds),
        "spread": [min(seconds), max(seconds)],
        "passes": len(seconds),
        "peak_mb": highest["peak_mb"],
        "idle_mb": highest["peak_mb"] - highest["added_mb"],
    }


def exponent(x: list[float], y: list[float]) -> float:
    """The slope of log y over log x."""
    return round(float(np.polyfit(np.log(x), np.log(y), 1)[0]), 3)


def exponents(rows: list[dict]) -> dict:
    """Of time and of memory in pixels."""
    pixels = [row["megapixels"] for row in rows]
    return {
        "time": exponent(pixels, [row["seconds"] for row in rows]),
        "memory": exponent(pixels, [max(row["peak_mb"] - row["idle_mb"], 1) for row in rows]),
    }


def form(model: nn.Module, precision: torch.dtype | None = None, channels_last: bool = True):
    """A form of the network as ``evaluate`` wants it: (image, sigma) -> image."""
    layout = torch.channels_last if channels_last else torch.contiguous_format

    @torch.inference_mode()
    def restore(x: Tensor, sigma: float) -> Tensor:
        with torch.autocast("cpu", precision, enabled=precision is not None):
            return model(x[None].contiguous(memory_format=layout), unit(sigma))[0].float().clamp(0, 1)

    return restore


def forms(weights: str, size: tuple[int, int], turns: int, compiled: bool) -> dict:
    """Seconds on one large picture, and PSNR on the bundled held-out photos, of each form of the network."""
    model = Denoiser.load(weights).model
    found = {
        "fp32": form(model),
        "bf16": form(model, torch.bfloat16),
        "tables": form(with_tables(model)),
        "contiguous": form(copy.deepcopy(model).to(memory_format=torch.contiguous_format), channels_last=False),
    }
    if compiled:
        found["compiled"] = form(torch.compile(model, dynamic=False))
    x = torch.rand(3, size[1], size[0], generator=torch.Generator().manual_seed(0))
    seconds = defaultdict(list)
    for _ in range(turns + 1):
        for name, restore in found.items():
            start = time.perf_counter()
            restore(x, 50)
            seconds[name].append(time.perf_counter() - start)
    middle = {name: statistics.median(taken[1:]) for name, taken in seconds.items()}
    psnr = {name: statistics.mean(s.psnr for s in evaluate(f, "bundled", progress=False)) for name, f in found.items()}
    return {
        name: {
            "seconds": round(middle[name], 3),
            "first_seconds": round(seconds[name][0], 1),
            "of_fp32_time": round(middle[name] / middle["fp32"], 3),
            "psnr": round(psnr[name], 3),
            "loss_db": round(psnr["fp32"] - psnr[name], 4),
        }
        for name in found
    }


def profile(model: nn.Module, size: tuple[int, int], passes: int) -> dict[str, float]:
    """Share of the time of a pass that each part of a CompactKUnet takes, the largest first; "between" is the rest."""
    parts = {"head and tail": [model.head, model.tail], "tokens": [model.tokenizer, model.tokens, model.unpatchify]}
    last = len(model.encoder) - 1
    for level in range(last + 1):
        parts[f"blocks at 1/{model.stem * 2**level}"] = [model.encoder[level], model.decoder[last - level]]
    parts["down and up"] = [*model.down, *model.up]
    names = {id(module): name for name, modules in parts.items() for module in modules}
    began, spent = {}, defaultdict(float)

    def before(module, inputs):
        began[id(module)] = time.perf_counter()

    def after(module, inputs, output):
        spent[names[id(module)]] += time.perf_counter() - began[id(module)]

    hooks = [h for modules in parts.values() for m in modules for h in (
        m.register_forward_pre_hook(before), m.register_forward_hook(after))]  # fmt: skip
    x = torch.rand(1, 3, size[1], size[0]).contiguous(memory_format=torch.channels_last)
    rows = []
    with torch.inference_mode():
        for _ in range(passes + 1):
            spent.clear()
            start = time.perf_counter()
            model(x, 0.2)
            total = time.perf_counter() - start
            rows.append({name: spent[name] / total for name in parts} | {"between": 1 - sum(spent.values()) / total})
    for hook in hooks:
        hook.remove()
    shares = {name: round(statistics.median(row[name] for row in rows[1:]), 3) for name in rows[0]}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def equality(model: nn.Module, count: int, seed: int = 0) -> dict:
    """The largest difference between boxes and whole, over images of random sizes."""
    draw, worst, parts = random.Random(seed), 0.0, []
    whole = Network(model, memory=1e12)
    for i in range(count):
        height, width = draw.randint(400, 1200), draw.randint(400, 1200)
        memory = height * width * whole.bytes_per_pixel * draw.uniform(0.5, 0.9)
        while (network := Network(model, memory=memory)).parts(height, width)[0] == "tiles":
            memory *= 1.05  # to where boxes have room for their margins
        x = noisy_version(torch.rand(3, height, width, generator=torch.Generator().manual_seed(i)), 50, seed=i)
        how, number = network.parts(height, width)
        if how != "boxes":
            raise ValueError(f"{height} x {width} in {memory:.2g} bytes is computed in {how}; it must be in boxes")
        worst = max(worst, float((network.run(x, 0.2) - whole.run(x, 0.2)).abs().max()))
        parts.append(number)
    return {"sizes": count, "largest_difference": worst, "parts": [min(parts), max(parts)]}


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="kunet_tiny")
    parser.add_argument("--most", type=float, default=25, help="megapixels of the largest picture")
    parser.add_argument("--quick", action="store_true", help="small pictures and few turns: a try")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(words)
    if args.quick and args.out.resolve() == RESULTS.resolve():
        parser.error("--quick measures too little to be quoted: give another --out")
    sizes, rounds, repeats = (QUICK_SIZES, 1, 1) if args.quick else (SIZES, 3, 3)
    sizes = [size for size in sizes if size[0] * size[1] <= args.most * 1e6]
    if len(sizes) < 2:
        parser.error(f"--most {args.most:g} leaves {len(sizes)} sizes; two are needed for an exponent")
    model = Denoiser.load(args.weights).model
    command = f"python benchmarks/large.py --weights {args.weights} --most {args.most:g}" + " --quick" * args.quick
    largest = max(width * height for width, height in sizes) / 1e6
    results = provenance(command) | {
        "weights": args.weights,
        "largest_mpx": round(largest, 1),
        "rows": {},
        "exponents": {},
    }
    photo = QUICK_SIZES[1] if args.quick else (2040, 1356)
    measured = defaultdict(list)
    for turn in range(rounds):
        for name, size in product(MEMORY, sizes):
            row = measure(size, MEMORY[name], args.weights, 1 if size[0] * size[1] > LARGE else repeats)
            measured[name, size].append(row)
            words = f"round {turn + 1}, {name}: {size[0]}x{size[1]}"
            print(f"{words} {statistics.median(row['seconds']):.2f} s, {row['how']}", flush=True)
    for name in MEMORY:
        results["rows"][name] = [summary(size, measured[name, size]) for size in sizes]
        results["exponents"][name] = exponents(results["rows"][name])
    results["forms"] = forms(args.weights, photo, repeats, compiled=not args.quick)
    results["profile"] = profile(model, photo, repeats)
    results["equality"] = equality(model, 2 if args.quick else 20)
    args.out.write_text(json.dumps(results, indent=1) + "\n")
    print(results["exponents"], results["equality"], args.out)


if __name__ == "__main__":
    reuse()  # as `kunet denoise` does: else the forms and the profile would be of another program
    main()
