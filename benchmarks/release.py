"""Put a finished run's weights and their card into the package.

Usage: python benchmarks/release.py RUN_FOLDER book/results/denoise.json

The card joins what the run says of itself (recipe, steps, photos, validation curve) with what the
benchmark measured; folders are named by their last part only.
"""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import kunet.weights


def main() -> None:
    run, results = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    card = json.loads((run / "weights.json").read_text())
    if hashlib.sha256((run / "weights.safetensors").read_bytes()).hexdigest() != results["weights_sha256"]:
        sys.exit(f"{sys.argv[2]} measured other weights than those in {run}: run the benchmark on them first")
    card["recipe"]["data"] = [Path(source).name for source in card["recipe"]["data"]]
    card["data"] = "238 photographs downscaled by 2 or more, and BSDS500 without the 68 images of CBSD68; no test image"
    steps, phases = card["recipe"]["steps"], card["recipe"]["phases"]
    card["megapixels"] = round(sum(steps * p["share"] * p["batch"] * p["patch"] ** 2 for p in phases) / 1e6)
    card["measured"] = {
        key: {"psnr": value["ours"]["psnr"], "psnr_u8": value["ours"]["psnr_u8"], "ssim": value["ours"]["ssim"]}
        for key, value in results.items()
        if isinstance(value, dict) and "ours" in value
    } | {key: results[key] for key in ("command", "machine", "date", "sigma")}
    target = Path(kunet.weights.__file__).with_name(f"{card['recipe']['name']}.safetensors")
    shutil.copy(run / "weights.safetensors", target)
    target.with_suffix(".json").write_text(json.dumps(card, indent=1) + "\n")
    print(target)


if __name__ == "__main__":
    main()
