"""What it costs not to be told the noise: levels as kunet.noise estimates them, and photos denoised with them.

Usage:
    python benchmarks/blind.py cbsd68=FOLDER [NAME=FOLDER ...] [--weights kunet_tiny] [--limit N]
        [--out book/results/blind.json]

Protocol: kunet.evaluate's literature protocol, seed = the image's number in path order; "float" noise; "u8", the same
noise clipped and rounded as a file holds it; and "jpeg", that in a JPEG file of quality 95 with its colours at half
their size, as cameras write and Pillow does. Each noisy image is denoised with the level that its noise had, and
with the estimate. Errors are estimate minus truth in 8-bit levels; cost_db is the paired difference of the PSNRs, with
its standard error; seconds are of the estimate alone, on the threads that torch takes.

Results: sets -> set -> sigma -> mode -> {error, psnr_true, psnr_blind, cost_db, seconds}; rows alike, -> {image, sigma,
psnr_true, psnr_blind, seconds} in lists over images.
"""

import argparse
import hashlib
import io
import json
import statistics
import time
from itertools import islice
from pathlib import Path

from PIL import Image
from torch import Tensor
from tqdm import tqdm

from kunet.benchmark import provenance
from kunet.data import list_images
from kunet.denoise import Denoiser
from kunet.evaluate import clean_images, noisy_version
from kunet.images import as_file, to_tensor, to_uint8
from kunet.metrics import psnr
from kunet.noise import estimate_sigma
from kunet.weights import find

RESULTS = Path("book/results/blind.json")
SIGMAS, MODES = (15, 25, 50), ("float", "u8", "jpeg")


def in_jpeg(image: Tensor) -> Tensor:
    """What an ordinary JPEG file makes of an image (3, H, W) in [0, 1]."""
    file = io.BytesIO()
    Image.fromarray(to_uint8(image)).save(file, "JPEG", quality=95, subsampling="4:2:0")
    return to_tensor(Image.open(file))


def measure(name: str, clean: Tensor, denoiser: Denoiser, sigma: float, seed: int, mode: str) -> dict:
    """The estimate for one noisy image, and the PSNR in dB with the truth and with it."""
    noisy = noisy_version(clean, sigma, seed, "float" if mode == "float" else "u8")
    noisy = in_jpeg(noisy) if mode == "jpeg" else noisy
    start = time.perf_counter()
    estimate = estimate_sigma(noisy)
    seconds = time.perf_counter() - start
    score = lambda level: round(float(psnr(as_file(denoiser(noisy, level))[None], clean[None])), 4)
    return {
        "image": name,
        "sigma": round(estimate, 4),
        "psnr_true": score(sigma),
        "psnr_blind": score(estimate),
        "seconds": round(seconds, 4),
    }


def summary(rows: list[dict], sigma: float) -> dict:
    """Over the images of a set, with one level and kind of noise."""
    errors = [row["sigma"] - sigma for row in rows]
    costs = [row["psnr_true"] - row["psnr_blind"] for row in rows]
    mean = lambda values: round(statistics.mean(values), 4)
    spread = lambda values: statistics.stdev(values) if len(values) > 1 else 0.0
    return {
        "error": {
            "mean": mean(errors),
            "std": round(spread(errors), 4),
            "mean_abs": mean(map(abs, errors)),
            "largest_abs": round(max(map(abs, errors)), 4),
        },
        "psnr_true": mean(row["psnr_true"] for row in rows),
        "psnr_blind": mean(row["psnr_blind"] for row in rows),
        "cost_db": {"mean": mean(costs), "error": round(spread(costs) / len(costs) ** 0.5, 4)},
        "seconds": mean(row["seconds"] for row in rows),
    }


def blind(name: str, source: str, denoiser: Denoiser, limit: int | None) -> tuple[dict, dict]:
    """(summaries, rows) of a set, -> sigma -> mode."""
    rows: dict[str, dict[str, list[dict]]] = {f"{sigma}": {mode: [] for mode in MODES} for sigma in SIGMAS}
    total = min(len(list_images(source)), limit or 10**9)
    for i, (image, clean) in enumerate(tqdm(islice(clean_images(source), limit), desc=name, total=total, unit="image")):
        for sigma in SIGMAS:
            for mode in MODES:
                rows[f"{sigma}"][mode].append(measure(image, clean, denoiser, sigma, i, mode))
    found = {s: {mode: summary(each, float(s)) for mode, each in modes.items()} for s, modes in rows.items()}
    columns = lambda each: {key: [row[key] for row in each] for key in each[0]}
    return found, {s: {mode: columns(each) for mode, each in modes.items()} for s, modes in rows.items()}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--weights", default="kunet_tiny")
    parser.add_argument("--limit", type=int, help="only the first N images of each set")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    if args.limit is not None and args.out == RESULTS:
        parser.error("--limit measures a part of each set: give another --out, so that no page quotes it")
    if args.limit is not None and args.limit < 1:
        parser.error(f"--limit is {args.limit}; it must be 1 or more")
    if wrong := [text for text in args.sets if not all(text.partition("="))]:
        parser.error(f"{wrong[0]!r} is no set; give NAME=FOLDER")
    denoiser, weights = Denoiser.load(args.weights), find(args.weights)
    sets = [f"{text.partition('=')[0]}=FOLDER" for text in args.sets]
    options = [f"--weights {weights.stem}", *([f"--limit {args.limit}"] if args.limit else [])]
    results = provenance(" ".join(["python benchmarks/blind.py", *sets, *options])) | {
        "weights": weights.name,
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "sets": {},
        "rows": {},
    }
    for text in args.sets:
        name, _, folder = text.partition("=")
        results["sets"][name], results["rows"][name] = blind(name, folder, denoiser, args.limit)
        for sigma, modes in results["sets"][name].items():
            for mode, row in modes.items():
                error, cost = row["error"], row["cost_db"]
                print(
                    f"{name} sigma {sigma} {mode}: estimate {error['mean']:+.2f} (std {error['std']:.2f}, at most"
                    f" {error['largest_abs']:.2f}), blind costs {cost['mean']:.3f} dB, {row['seconds']:.3f} s"
                )
    args.out.write_text(json.dumps(results, indent=1) + "\n")
    print(args.out)


if __name__ == "__main__":
    main()
