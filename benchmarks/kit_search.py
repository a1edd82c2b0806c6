"""Which network of KiT's kind has the published number of parameters and multiply-adds?

Usage: python benchmarks/kit_search.py [--out book/results/kit.json]

The supplement gives k = 4 (1 in the bottleneck), patches of 4 x 4 pixels and two blocks a stage; the paper 20.6 M
parameters and 43.08 GMACs at 256 x 256. Everything else is scanned, with the supplement's three levels and, as an
alternative, with four: the width (multiples of 16, so that heads of 16 channels fit), the feed-forward network's
ratio, with and without its depthwise convolution, the side of the downsampling convolutions, and skips that are added
or concatenated. Heads cost nothing. Nearest is the smallest |ln(parameters / published)| + |ln(GMACs / published)|.
"chosen", the nearest with three levels, is the default of kunet.models.KiT, and "alternative", the nearest with four,
is kunet.models.kit.FOUR_LEVELS.

Counted are products of convolutions, linear layers, attention and hashing; biases, norms, GELU, softmax and sorting are
not. tests/test_kit.py holds the formula against PyTorch's own counter.
"""

import argparse
import json
from itertools import product
from math import log
from pathlib import Path

from kunet.benchmark import provenance

RESULTS = Path(__file__).resolve().parent.parent / "book" / "results" / "kit.json"
PUBLISHED = {"parameters": 20.6e6, "gmacs": 43.08}
FIXED = {"blocks": 2, "k": 4, "patch": 4, "buckets": 64}
SCAN = {
    "levels": (3, 4),
    "width": tuple(range(16, 129, 16)),
    "ratio": (1.0, 1.5, 2.0, 2.5, 3.0, 4.0),
    "conv": (False, True),
    "down": (2, 3, 4),
    "skip": ("add", "concat"),
}


def cost(args: dict, channels: int = 3) -> tuple[int, float]:
    """(parameters, multiply-adds a pixel) of KiT(**args) on images of whole patches at every level."""
    width, levels, concat = args["width"], args["levels"], args["skip"] == "concat"
    parameters, macs = 0, 0.0

    def layer(weights: int, biases: int, area: float) -> None:
        """Weights that are all used once at each of ``area`` positions a pixel."""
        nonlocal parameters, macs
        parameters += weights + biases
        macs += weights * area

    def stage(dim: int, area: float, k: int) -> None:
        nonlocal parameters, macs
        hidden = int(args["ratio"] * dim)
        for _ in range(args["blocks"]):
            parameters += 4 * dim  # two LayerNorms
            layer(3 * dim * dim, 3 * dim, area)
            layer(dim * dim, dim, area)
            layer(2 * dim * hidden, dim + hidden, area)
            if args["conv"]:
                layer(9 * hidden, hidden, area)
            macs += 2 * k * args["patch"] ** 2 * dim * area  # Q K^T and its product with V
            macs += dim * args["buckets"] / 2 * area / args["patch"] ** 2  # m R

    widths = [width * 2**level for level in range(levels + 1)]
    layer(9 * channels * width, width, 1)
    for level, w in enumerate(widths[:-1]):
        stage(w, 4.0**-level, args["k"])
        layer(args["down"] ** 2 * w * 2 * w, 2 * w, 4.0 ** -(level + 1))
    stage(widths[-1], 4.0**-levels, 1)
    dim = widths[-1]
    for level, w in reversed(list(enumerate(widths[:-1]))):
        layer(4 * dim * w, w, 4.0 ** -(level + 1))  # 2 x 2 transposed: each weight once an input position
        dim = 2 * w if concat else w
        stage(dim, 4.0**-level, args["k"])
    layer(9 * dim * channels, channels, 1)
    return parameters, macs


def row(args: dict) -> dict:
    """A configuration, its counts, and its distance from the published ones."""
    parameters, macs = cost(args)
    gmacs = macs * 256 * 256 / 1e9
    away = abs(log(parameters / PUBLISHED["parameters"])) + abs(log(gmacs / PUBLISHED["gmacs"]))
    return {"args": args, "parameters": parameters, "gmacs": round(gmacs, 3), "distance": round(away, 4)}


def search() -> dict:
    """Every configuration of SCAN, and the nearest of each number of levels."""
    rows = [row(FIXED | dict(zip(SCAN, values))) for values in product(*SCAN.values())]
    near = lambda r: all(abs(r[key] / PUBLISHED[key] - 1) <= 0.2 for key in PUBLISHED)
    best = lambda some: min(some, key=lambda r: r["distance"])
    by_levels = {n: [r for r in rows if r["args"]["levels"] == n] for n in SCAN["levels"]}
    return {
        "published": PUBLISHED,
        "counted": "products of convolutions, linear layers, attention and hashing, at 256 x 256",
        "scanned": SCAN,
        "configurations": {n: len(some) for n, some in by_levels.items()},
        "within_20_percent": {n: sum(map(near, some)) for n, some in by_levels.items()},
        "chosen": best(by_levels[3]),
        "alternative": best(by_levels[4]),
    }


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(words)
    found = search()
    args.out.write_text(json.dumps(provenance("python benchmarks/kit_search.py") | found, indent=1) + "\n")
    for some in (found["chosen"], found["alternative"]):
        levels = some["args"]["levels"]
        print(
            f"{levels} levels: {some['parameters'] / 1e6:.2f} M, {some['gmacs']:.2f} GMACs with {some['args']};"
            f" {found['within_20_percent'][levels]} of {found['configurations'][levels]} within 20 % of both figures"
        )


if __name__ == "__main__":
    main()
