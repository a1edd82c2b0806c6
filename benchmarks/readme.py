"""Write the README's table of results from book/results/denoise.json. Usage: python benchmarks/readme.py"""

import json
import re
from pathlib import Path

from contenders import parted

ROOT = Path(__file__).resolve().parent.parent
SETS, PEERS = {"cbsd68": "CBSD68", "kodak24": "Kodak24"}, {"ffdnet": "FFDNet", "cbm3d": "CBM3D"}


def ratio(value: float) -> str:
    """A time in FFDNet's, with as many digits as are worth reading."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def label(name: str) -> str:
    """A name among the contenders as a reader would type it, of which "_x8" says that 8 copies were averaged."""
    weights, copies = parted(name)
    return f"`{weights}`" + f" `--ensemble {copies}`" * (copies > 1)


def table(results: dict) -> str:
    """The table and its sentences, in Markdown."""
    sigmas = [f"{sigma:g}" for sigma in results["sigmas"]]
    heads = [f"σ = {sigma}" for sigma in sigmas]
    lines = [f"| PSNR (dB) | {' | '.join(heads)} | time / FFDNet's |", "|---" * (len(sigmas) + 2) + "|"]
    labels = {name: label(name) for name, row in results["contenders"].items() if row["ours"]} | PEERS
    for key, title in SETS.items():
        for who, words in labels.items():
            rows = results["sets"][key].get(who, {})
            psnr = [f"{rows[sigma]['psnr']:.2f}" if sigma in rows else "–" for sigma in sigmas]
            time = ratio(results["contenders"][who]["of_ffdnet_time"][key])
            lines.append(f"| {title}, {words} | {' | '.join(psnr)} | {time} |")
    photos = [
        f"in {row['seconds']} s and {row['peak_mb']} MB by {label(name)}"
        for name, row in results["photo_2040x1356"].items()
    ]
    lines += ["", f"A 2040×1356 photo is done {', '.join(photos)} ({results['machine']})."]
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
