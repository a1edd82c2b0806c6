"""Put a finished run's weights and their card into the package.

Usage: python benchmarks/release.py RUN_FOLDER [book/results/denoise.json]

With the measurement, the weights go into the package. Without it, they go to RUN_FOLDER/released.safetensors in
float16, which takes half the room (networks compute in float32 with them); it is then these that are measured, and
released.

The card joins what the run says of itself (recipe, steps, photos, validation curve; hours, from its log) with what the
benchmark measured; folders are named by their last part only. Weights that another training started from
have that one's card under "before", and so on back to the first; what that one measured is in it where the file of
this name was that one's until now.
"""

import hashlib
import json
import shutil
import statistics
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import kunet.weights
from kunet.runs import load_weights, save_weights

PHOTOS = "238 photographs downscaled by 2 or more{smaller}, and BSDS500 without the 68 images of CBSD68; no test image"


def tidy(card: dict) -> dict:
    """A run's card as it is released: no paths, the megapixels seen, and the trainings before it."""
    card = json.loads(json.dumps(card))
    if "before" in card:  # it was released once, and says it all
        return card
    recipe = card["recipe"]
    recipe["data"] = [Path(source).name for source in recipe["data"]]
    steps, phases = recipe["steps"], recipe["phases"]
    card["megapixels"] = round(sum(steps * p["share"] * p["batch"] * p["patch"] ** 2 for p in phases) / 1e6)
    if start := recipe.get("start"):
        path = kunet.weights.find(start)
        path = path.resolve()
        recipe["start"] = start if start in kunet.weights.released() else f"{path.parent.name}/{path.name}"
        if (before := path.with_suffix(".json")).exists():
            card["before"] = hours(path.parent) | tidy(json.loads(before.read_text()))
            card["before"].pop("measured", None)
    return card


def hours(run: Path) -> dict:
    """{"hours": of the clock, in which a run trained}, from its log, without pauses; {} where there is no log."""
    try:
        rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    except FileNotFoundError:
        return {}
    taken = [b["time"] - a["time"] for a, b in pairwise(rows) if "loss" in b]
    usual = statistics.median(taken)
    return {"hours": round(sum(seconds for seconds in taken if seconds < 10 * usual) / 3600, 2)}


def photos(reduced: Sequence[int]) -> str:
    """What was trained on, in words."""
    sizes = " and ".join(f"1/{factor}" for factor in reduced)
    return PHOTOS.format(smaller=f" (those large enough at {sizes} of that size too, each counted)" if reduced else "")


def remember(card: dict, replaced: dict | None) -> None:
    """Into what a card says of the training before goes what the replaced card had measured of it."""
    before = card.get("before", {})
    while replaced:
        if "measured" in replaced and before.get("held_out_psnr") == replaced["held_out_psnr"]:
            before["measured"] = replaced["measured"]
        replaced = replaced.get("before")


def measured(results: dict, name: str) -> dict:
    """Set -> sigma -> {psnr, psnr_u8, ssim} of weights, and how they were measured."""
    keys = ("psnr", "psnr_u8", "ssim")
    sets = {
        key: {sigma: {k: row[k] for k in keys} for sigma, row in means[name].items()}
        for key, means in results["sets"].items()
    }
    return sets | {key: results[key] for key in ("command", "machine", "date", "sigmas")}


def main(words: list[str]) -> None:
    run = Path(words[0])
    card, packed = json.loads((run / "weights.json").read_text()), run / "released.safetensors"
    recipe = card["recipe"]
    if len(words) == 1:
        model, _ = load_weights(run / "weights.safetensors")
        save_weights(packed, model.half(), recipe["model"], recipe["model_args"], card)
        print(packed)
        return
    results, name = json.loads(Path(words[1]).read_text()), recipe["name"]
    packed = packed if packed.exists() else run / "weights.safetensors"
    if hashlib.sha256(packed.read_bytes()).hexdigest() != results["weights"].get(name):
        sys.exit(f"{words[1]} measured other weights than {packed}: run the benchmark on them first")
    card = (
        hours(run)
        | tidy(card)
        | {
            "data": photos(recipe.get("task_args", {}).get("reduced", ())),
            "measured": measured(results, name),
        }
    )
    target = Path(kunet.weights.__file__).with_name(f"{name}.safetensors")
    place = target.with_suffix(".json")
    remember(card, json.loads(place.read_text()) if place.exists() else None)
    shutil.copy(packed, target)
    place.write_text(json.dumps(card, indent=1) + "\n")
    print(target)


if __name__ == "__main__":
    main(sys.argv[1:])
