"""What a recipe costs on paper: multiply-adds, pixels, and hours on so many GPUs.

Usage: python benchmarks/plan.py [RECIPE ...] [--gpus 4] [--peak 312] [--share 0.1] [--out book/results/plan.json]

A training step costs three passes (one forward, two backward) of the multiply-adds that benchmarks/cost.py counts, each
of two operations. ``--peak`` is a GPU's bfloat16 speed in TFLOP/s (312 for an A100, its data sheet), ``--share`` the
part of it that a small convolutional network reaches: a guess, written beside the hours; networks with maps this narrow
are bound by memory, not by arithmetic.
"""

import argparse
import json
import sys
from pathlib import Path

from cost import macs

from kunet import recipes
from kunet.benchmark import provenance
from kunet.models import make

RESULTS = Path("book/results/plan.json")
RECIPES = (
    "kunet_tiny",
    "kunet_tiny_further",
    "kunet_tiny_third",
    "kunet_tiny_fourth",
    "kunet_small",
    "kunet_small_further",
    "kunet_base",
    "kunet_base_further",
    "kunet_base_third",
    "kunet_large",
)
SIZE = 256  # a multiple of everything, so nothing is padded


def plan(name: str, gpus: int, peak: float, share: float) -> dict:
    """Pixels, operations and hours of one recipe."""
    recipe = recipes.load(name)
    pixels = sum(round(phase.share * recipe.steps) * phase.batch * phase.patch**2 for phase in recipe.phases)
    per_pixel = macs((recipe.model, recipe.model_args), SIZE) / SIZE**2
    operations = 3 * 2 * per_pixel * pixels
    return {
        "parameters": sum(p.numel() for p in make(recipe.model, recipe.model_args).parameters()),
        "gmacs_per_megapixel": round(per_pixel / 1e3, 1),
        "steps": recipe.steps,
        "gigapixels": round(pixels / 1e9, 2),
        "petaflop": float(f"{operations / 1e15:.2g}"),
        "hours": float(f"{operations / (gpus * peak * 1e12 * share) / 3600:.2g}"),
    }


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=list(RECIPES))
    parser.add_argument("--gpus", type=int, default=4)
    parser.add_argument("--peak", type=float, default=312, help="TFLOP/s of one, bfloat16")
    parser.add_argument("--share", type=float, default=0.1, help="of the peak that is reached")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = sys.argv[1:] if words is None else words
    args = parser.parse_args(given)
    if min(args.gpus, args.peak, args.share) <= 0 or args.share > 1:
        parser.error(
            f"--gpus {args.gpus}, --peak {args.peak:g}, --share {args.share:g}: above 0, and a share is at most 1"
        )
    rows = {name: plan(name, args.gpus, args.peak, args.share) for name in args.recipes}
    settings = {"gpus": args.gpus, "peak_tflops": args.peak, "share_of_peak": args.share}
    results = provenance(" ".join(["python benchmarks/plan.py", *given])) | settings | {"recipes": rows}
    args.out.write_text(json.dumps(results, indent=1) + "\n")
    for name, row in rows.items():
        print(f"{name}: {row['gmacs_per_megapixel']} GMAC/MP, {row['gigapixels']} Gpx, {row['hours']} h")


if __name__ == "__main__":
    main()
