"""Our weights beside CBM3D: the same noisy images, the same cores, one run.

Usage:
    python benchmarks/denoise.py cbsd68=FOLDER kodak24=FOLDER [--weights kunet_tiny] [--sigma 50]
        [--limit N] [--out book/results/denoise.json]

Protocol: kunet.evaluate's (float noise, unclipped, seed = the image's number in path order; output clipped
and rounded to 8 bits; PSNR over RGB, no border crop; SSIM as scikit-image computes it; means over images).
Each image is restored by ours, by CBM3D (package bm3d, given the true sigma), and by ours again, so that a drifting
machine speed shows; seconds are of the restoration alone, reading and scoring left out. CBM3D runs on one core,
which is all it uses; ours on the threads that torch takes.
"""

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from kunet.benchmark import provenance
from kunet.data import list_images
from kunet.denoise import Denoiser
from kunet.evaluate import clean_images, noisy_version, score, summary
from kunet.images import as_file, check_sigma, unit
from kunet.metrics import psnr
from kunet.weights import find

RESULTS = Path("book/results/denoise.json")


def cbm3d(noisy: torch.Tensor, sigma: float) -> torch.Tensor:
    """CBM3D (Dabov et al., 2007) with its default profile; (3, H, W) in [0, 1] units."""
    from bm3d import bm3d_rgb

    restored = bm3d_rgb(noisy.permute(1, 2, 0).numpy().astype(np.float64), unit(sigma))
    return torch.from_numpy(np.asarray(restored)).permute(2, 0, 1).float()


def compare(source: str, denoiser: Denoiser, sigma: float, limit: int | None) -> dict:
    """Scores of both on every image of a folder."""
    ours, theirs, again, file_psnr = [], [], [], []
    images = islice(clean_images(source), limit)
    for i, (name, clean) in enumerate(
        tqdm(images, desc=source.split("/")[-1], total=limit or len(list_images(source)))
    ):
        noisy = noisy_version(clean, sigma, seed=i)
        if not i:
            denoiser(noisy, sigma)  # warm-up
        ours.append(score(name, clean, lambda noisy=noisy: denoiser(noisy, sigma)))
        theirs.append(score(name, clean, lambda noisy=noisy: cbm3d(noisy, sigma)))
        again.append(score(name, clean, lambda noisy=noisy: denoiser(noisy, sigma)))
        in_file = noisy_version(clean, sigma, seed=i, mode="u8")
        file_psnr.append(float(psnr(as_file(denoiser(in_file, sigma))[None], clean[None])))
    ratios = [b.seconds / max(a.seconds, c.seconds) for a, b, c in zip(ours, theirs, again)]
    gains = [a.psnr - b.psnr for a, b in zip(ours, theirs)]
    return {
        "ours": summary(ours) | {"psnr_u8": round(statistics.mean(file_psnr), 3)},
        "cbm3d": summary(theirs),
        "times_faster": {"median": round(statistics.median(ratios), 1), "least": round(min(ratios), 1)},
        "gain_db": {
            "mean": round(statistics.mean(gains), 3),
            "least": round(min(gains), 3),
            "most": round(max(gains), 3),
        },
        "repeat_seconds": round(statistics.mean(s.seconds for s in again), 4),
    }


def photo(weights: str) -> dict:
    """A 2040x1356 image: median seconds and largest peak memory of three processes, which differ by a tenth."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(3):
            file = Path(folder) / f"{i}.json"
            command = ["benchmark", "--sizes", "2040x1356", "--weights", weights, "--json", str(file)]
            subprocess.run([sys.executable, "-m", "kunet", *command], check=True)
            rows += json.loads(file.read_text())["rows"]
    spread = [seconds for row in rows for seconds in row["seconds"]]
    peaks = [row["peak_mb"] for row in rows]
    return {"seconds": round(statistics.median(spread), 2), "peak_mb": max(peaks), "spread": spread, "peaks": peaks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="NAME=FOLDER", help="none: measure the 2040x1356 image anew")
    parser.add_argument("--weights", default="kunet_tiny")
    parser.add_argument("--sigma", type=float, default=50)
    parser.add_argument("--limit", type=int, help="only the first N images of each set")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    check_sigma(args.sigma)
    if args.limit and args.out == RESULTS:
        parser.error("--limit measures a part of each set: give another --out, so that no page quotes it")
    if not args.sets:
        results = json.loads(args.out.read_text())
        results["photo_2040x1356"] = photo(args.weights) | provenance("python benchmarks/denoise.py")
        args.out.write_text(json.dumps(results, indent=1) + "\n")
        return
    denoiser = Denoiser.load(args.weights)
    sets = [f"{text.partition('=')[0]}=FOLDER" for text in args.sets]
    options = [f"--sigma {args.sigma:g}", *([f"--limit {args.limit}"] if args.limit else [])]
    results = provenance(" ".join(["python benchmarks/denoise.py", *sets, *options])) | {
        "sigma": args.sigma,
        "weights": find(args.weights).name,
        "weights_sha256": hashlib.sha256(find(args.weights).read_bytes()).hexdigest(),
        "parameters": sum(p.numel() for p in denoiser.model.parameters()),
    }
    for text in args.sets:
        name, _, folder = text.partition("=")
        results[name] = compare(folder, denoiser, args.sigma, args.limit)
        rows = {who: results[name][who] for who in ("ours", "cbm3d")}
        for who, row in rows.items():
            print(f"{name} {who}: {row['psnr']:.2f} dB, SSIM {row['ssim']:.4f}, {row['seconds']:.3f} s an image")
        print(f"{name}: {results[name]['times_faster']['median']} times faster")
    results["photo_2040x1356"] = photo(args.weights)
    args.out.write_text(json.dumps(results, indent=1) + "\n")
    print(args.out)


if __name__ == "__main__":
    main()
