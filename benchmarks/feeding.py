"""How many training crops a processor core delivers, and how many cores it takes to keep four GPUs busy.

Usage: python benchmarks/feeding.py | python benchmarks/feeding.py [--repeats N] [--images-per-second X] --out FILE
A crop is what a training takes: 128 x 128 pixels at random out of a random 2K photo, turned and mirrored, in float, and
the same with noise of sigma 50. Where the photos are differs: in a packed set whose pages the system holds already
("packed"), in memory ("memory"), or in files that are decoded for every crop ("png", "jpeg" of quality 95); "packed
without noise" is the crop alone. The photos are mosaics of the bundled ones at their own resolution.
One thread. All ways in turns (A B C A B C ...) after a warm-up, so that a slow minute of the machine slows all alike;
medians and quartiles of the turns are written.

The cores are calculated: a GPU that does its arithmetic at SHARE of its peak (an assumption; small networks reach less,
and then need fewer cores) takes SHARE PEAK / (6 MACs) crops a second, since a multiply-add is two operations and
backward costs twice what forward does. Writes book/results/feeding.json.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from cost import macs
from PIL import Image

from kunet.benchmark import provenance
from kunet.data import Crops, bundled
from kunet.data.pack import pack
from kunet.images import load_pixels
from kunet.tasks import Denoise

OUT = Path(__file__).resolve().parent.parent / "book" / "results" / "feeding.json"
WIDTH, HEIGHT, PHOTOS = 2040, 1356, 6
SIDE, SIGMA = 128, 50
TURN = {"packed": 100, "memory": 100, "packed without noise": 100, "png": 4, "jpeg": 6}
"""Crops in a turn of each way to hold the photos."""
GPU, GPUS, PEAK, SHARE = "A100", 4, 312e12, 0.4
"""PEAK: operations a second in bfloat16, as NVIDIA states it, without sparsity."""
NETWORKS = {"kunet_tiny": "kunet_tiny", "kbnet_s_sigma50": ("kbnet_s", {})}
"""The networks of two recipes, as ``cost.macs`` takes them."""


class Decoded(Sequence):
    """Photos that are read from their files whenever they are asked for."""

    def __init__(self, paths: list[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        return load_pixels(self.paths[index])


def mosaic(seed: int) -> np.ndarray:
    """The bundled photos beside and below each other, in an order and with offsets of their own."""
    random, photos = np.random.default_rng(seed), list(bundled().values())
    image = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    top = 0
    while top < HEIGHT:
        row, left = image[top : top + 300], 0
        while left < WIDTH:
            photo = photos[random.integers(len(photos))]
            y, x = (random.integers(a - b + 1) for a, b in zip(photo.shape, (300, 400)))
            piece = photo[y : y + 300, x : x + 400][: row.shape[0], : WIDTH - left]
            row[:, left : left + 400] = piece
            left += 400
        top += 300
    return image


def sources(folder: Path) -> dict[str, Sequence[np.ndarray]]:
    """The same photos, held in each way."""
    for kind in ("png", "jpeg"):
        (folder / kind).mkdir()
    photos = [mosaic(i) for i in range(PHOTOS)]
    for i, photo in enumerate(photos):
        Image.fromarray(photo).save(folder / "png" / f"{i}.png")
        Image.fromarray(photo).save(folder / "jpeg" / f"{i}.jpeg", quality=95)
    packed = pack(folder / "png", folder / "packed")
    files = {kind: Decoded(sorted((folder / kind).iterdir())) for kind in ("png", "jpeg")}
    return {"packed": packed, "memory": photos, "packed without noise": packed, **files}


def turn(photos: Sequence[np.ndarray], noise: bool, first: int, count: int) -> float:
    """Crops a second, of so many."""
    crops, task = Crops(photos, SIDE, first + count), Denoise(sigma=(SIGMA, SIGMA))
    start = time.perf_counter()
    for i in range(first, first + count):
        crop = crops[i][None]
        if noise:
            task.batch(crop, torch.Generator().manual_seed(i))
    return count / (time.perf_counter() - start)


def measure(repeats: int) -> dict[str, dict]:
    """Crops a second of every way: the median of its turns, and quartiles."""
    rates: dict[str, list[float]] = {name: [] for name in TURN}
    with tempfile.TemporaryDirectory() as folder:
        held = sources(Path(folder))
        for repeat in range(repeats + 1):
            for name, count in TURN.items():
                rates[name].append(turn(held[name], "without" not in name, repeat * count, count))
    digits = lambda value: float(f"{value:.4g}")
    return {
        name: {
            "crops_per_s": digits(statistics.median(all_[1:])),  # the first turn warms up
            "quartiles": [digits(q) for q in statistics.quantiles(all_[1:], n=4, method="inclusive")[::2]],
        }
        for name, all_ in rates.items()
    }


def demands(stated: float | None) -> dict[str, dict]:
    """Crops a second that one GPU takes, network by network, and as stated."""
    rows = {}
    for name, network in NETWORKS.items():
        count = macs(network, SIDE)
        rows[name] = {"macs_a_crop": count, "crops_per_s_a_gpu": round(SHARE * PEAK / (6 * count), 1)}
    return rows | ({"as stated": {"crops_per_s_a_gpu": stated}} if stated else {})


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=21, help="turns of each way, 2 or more (default: 21)")
    parser.add_argument("--images-per-second", type=float, metavar="X", help="crops that a GPU was measured to take")
    parser.add_argument("--out", type=Path, help=f"default {OUT.name}; with other options it must be given")
    options = parser.parse_args(words)
    if options.repeats < 2:
        parser.error("--repeats must be 2 or more")
    command = ["python benchmarks/feeding.py"]
    if options.repeats != parser.get_default("repeats"):
        command.append(f"--repeats {options.repeats}")
    if options.images_per_second is not None:
        command.append(f"--images-per-second {options.images_per_second:g}")
    if len(command) > 1 and (options.out is None or options.out.resolve() == OUT):
        parser.error("other options than the book's: give another --out")
    torch.set_num_threads(1)
    results = provenance(" ".join(command)) | {
        "photo": [WIDTH, HEIGHT],
        "side": SIDE,
        "sigma": SIGMA,
        "repeats": options.repeats,
        "core": measure(options.repeats),
        "assumed": {"gpu": GPU, "gpus": GPUS, "peak_flops": PEAK, "share_of_peak": SHARE, "flops": "6 a MAC, a crop"},
        "networks": demands(options.images_per_second),
    }
    for row in results["networks"].values():
        need = GPUS * row["crops_per_s_a_gpu"]
        row["cores"] = {name: round(need / way["crops_per_s"], 1) for name, way in results["core"].items()}
    for name, row in results["core"].items():
        print(f"{name:21} {row['crops_per_s']:8.1f} crops/s a core")
    for name, row in results["networks"].items():
        print(f"{name:21} {row['crops_per_s_a_gpu']:8.1f} crops/s a GPU; cores for {GPUS}: {row['cores']}")
    out = options.out or OUT
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
