"""Write the README's table of results, and its plot book/_static/front.svg, from book/results/denoise.json.

Usage: python benchmarks/readme.py
"""

import json
import re
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
from contenders import parted

from kunet import plots

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
    between = lambda values: " to ".join(f"{value:.1f}" for value in values)
    heads = [f"σ = {sigma}" for sigma in sigmas]
    lines = [f"| PSNR (dB) | {' | '.join(heads)} | time / FFDNet's |", "|---" * (len(sigmas) + 2) + "|"]
    labels = {name: label(name) for name, row in results["contenders"].items() if row["ours"]} | PEERS
    for key, title in SETS.items():
        for who, words in labels.items():
            rows = results["sets"][key].get(who, {})
            psnr = [f"{rows[sigma]['psnr']:.2f}" if sigma in rows else "–" for sigma in sigmas]
            time = ratio(results["contenders"][who]["of_ffdnet_time"][key])
            lines.append(f"| {title}, {words} | {' | '.join(psnr)} | {time} |")
    lines += ["", "| a photo of 2040×1356 pixels | seconds (range) | peak memory (MB) |", "|---|---|---|"]
    for name, row in results["photo_2040x1356"].items():
        lines.append(f"| {label(name)} | {row['seconds']} ({between(row['range'])}) | {row['peak_mb']} |")
    lines += ["", f"Times are of one run ({results['machine']}); seconds are medians."]
    return "\n".join(lines)


def with_table(readme: str, results: dict) -> str:
    """The README with its table replaced."""
    return re.sub(
        r"(<!-- results:.*?-->\n).*?(<!-- /results -->)",
        lambda m: m[1] + table(results) + "\n" + m[2],
        readme,
        flags=re.S,
    )


def draw(results: dict, file: Path) -> None:
    """The Pareto front of each set at the weakest and the strongest noise: an SVG, the same wherever it is drawn."""
    ours = [name for name, row in results["contenders"].items() if row["ours"]]
    plots.style()
    fixed = {"svg.hashsalt": "front", "svg.fonttype": "none", "figure.constrained_layout.use": False}
    with plt.rc_context(fixed):
        figure, axes = plt.subplots(2, len(SETS), figsize=(10, 8.8))
        figure.subplots_adjust(left=0.06, right=0.97, bottom=0.06, top=0.965, wspace=0.18, hspace=0.28)
        levels = [f"{choose(results['sigmas']):g}" for choose in (min, max)]
        for ax, (sigma, (key, title)) in zip(axes.flat, product(levels, SETS.items())):
            plots.front(
                {
                    name: (results["contenders"][name]["of_ffdnet_time"][key], rows[sigma]["psnr"])
                    for name, rows in results["sets"][key].items()
                    if sigma in rows
                },
                ours,
                ax,
            )
            ax.set(title=f"{title}, σ = {sigma}", xlabel="time (FFDNet's is 1)")
        figure.savefig(file, metadata={"Date": None})
        plt.close(figure)


def write(results: dict) -> None:
    """Both, in this repository."""
    draw(results, ROOT / "book" / "_static" / "front.svg")
    (ROOT / "README.md").write_text(with_table((ROOT / "README.md").read_text(), results))


if __name__ == "__main__":
    write(json.loads((ROOT / "book" / "results" / "denoise.json").read_text()))
