"""Write the README's table of results from book/results/denoise.json. Usage: python benchmarks/readme.py"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def table(results: dict) -> str:
    """The table and its sentence, in Markdown."""
    lines = [f"| σ = {results['sigma']:g} | PSNR (dB) | SSIM | seconds an image |", "|---|---|---|---|"]
    for key, name in (("cbsd68", "CBSD68"), ("kodak24", "Kodak24")):
        for who, label in (("ours", "`kunet_tiny`"), ("cbm3d", "CBM3D")):
            row = results[key][who]
            lines.append(f"| {name}, {label} | {row['psnr']:.2f} | {row['ssim']:.4f} | {row['seconds']:.3f} |")
    photo = results["photo_2040x1356"]
    lines += ["", f"A 2040×1356 photo takes {photo['seconds']} s and {photo['peak_mb']} MB ({results['machine']})."]
    return "\n".join(lines)


def with_table(readme: str, results: dict) -> str:
    """The README with its table replaced."""
    return re.sub(
        r"(<!-- results:.*?-->\n).*?(<!-- /results -->)",
        lambda m: m[1] + table(results) + "\n" + m[2],
        readme,
        flags=re.S,
    )


if __name__ == "__main__":
    results = json.loads((ROOT / "book" / "results" / "denoise.json").read_text())
    (ROOT / "README.md").write_text(with_table((ROOT / "README.md").read_text(), results))
