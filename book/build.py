"""Build the book: run every notebook with its quick parameters, then publish to book/_build/html.

A notebook is run again only when something it depends on has changed: its own source, the
locked versions, the results and job scripts it reads, or a file of ``kunet`` that it imports, directly or through
others.
Usage: python book/build.py [--notebooks-only]
"""

import ast
import hashlib
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch
import yaml
from PIL import Image

from kunet import notebook
from kunet.data import bundled
from kunet.denoise import Denoiser
from kunet.evaluate import noisy_version
from kunet.images import save_image, to_tensor, to_uint8
from kunet.metrics import psnr

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "book" / "_build"
STAGE = BUILD / "stage"  # what Sphinx reads: pages, figures and executed notebooks
# Scripts that the theme adds unasked: thebe wants a server (and throws without one), and fonts are preloaded in
# a way that a page opened from disk may not; the icons themselves are drawn by a script.
UNUSED = (
    r"<script>const THEBE_JS_URL.*?</script>",
    r"<script[^>]*sphinx-thebe\.js[^>]*></script>",
    r"<script type=\"text/x-thebe-config\">.*?</script>",
    r"<script>kernelName = .*?</script>",
    r"<link rel=\"preload\" as=\"font\"[^>]*>",
)
EXECUTED = BUILD / "notebooks"  # kept between builds


def imported_files(source: str, package: Path = ROOT / "kunet", seen: set[Path] | None = None) -> set[Path]:
    """Every file of the package that a piece of Python depends on, following imports; with data beside an __init__."""
    seen = set() if seen is None else seen
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.split(".")[0] != package.name:
                continue
            path = package.joinpath(*name.split(".")[1:])
            for found in (path.with_suffix(".py"), path / "__init__.py"):
                if found.is_file() and found not in seen:
                    seen.add(found)
                    if found.name == "__init__.py":
                        seen.update(
                            p for p in found.parent.iterdir() if p.is_file() and p.suffix not in (".py", ".pyc")
                        )
                    imported_files(found.read_text(), package, seen)
    return seen


def fingerprint(path: Path) -> str:
    """A hash of everything the executed notebook depends on."""
    cells = notebook.read(path).cells
    source = "\n".join(c.source for c in cells if c.cell_type == "code")
    files = {path, ROOT / "constraints.txt", *imported_files(source), *imported_files("import kunet.notebook")}
    files |= set((ROOT / "book" / "results").glob("*.json"))
    if "slurm" in source:
        files |= set((ROOT / "slurm").glob("*.*"))
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def run_notebooks() -> None:
    """Execute what has changed; raises ValueError, with the failing cell's name, when one fails."""
    EXECUTED.mkdir(parents=True, exist_ok=True)
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        output, stamp = EXECUTED / path.name, EXECUTED / f"{path.stem}.sha256"
        wanted = fingerprint(path)
        if output.exists() and stamp.exists() and stamp.read_text() == wanted:
            print(f"{path.name}: unchanged")
            continue
        stamp.unlink(missing_ok=True)
        print(f"{path.name}: running", flush=True)
        notebook.run(path, output, quick=True, progress=False)
        stamp.write_text(wanted)


def pair(folder: Path) -> dict[str, str]:
    """The landing page's pictures: a held-out photo with noise and without, by the shipped weights."""
    folder.mkdir(parents=True, exist_ok=True)
    clean = to_tensor(bundled("heldout")["coffee"])
    noisy = noisy_version(clean, 50, seed=0)
    restored = Denoiser.load()(noisy, 50)
    for name, image in (("noisy", noisy), ("restored", restored)):
        save_image(Image.fromarray(to_uint8(image)), folder / f"pair_{name}.png")
    return {
        f"pair_{name}": f"{float(psnr(x[None].clamp(0, 1), clean[None])):.1f}"
        for name, x in (("noisy", noisy), ("restored", restored))
    }


def facts() -> dict[str, str]:
    """Every measured number as text, by its path in the results or a weights card, for {{ name }} in pages.

    A short list is its numbers, separated by commas; a long one is no fact of a page.
    """
    found = {}

    def walk(prefix: str, value) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}_{re.sub(r'[^0-9a-zA-Z]', '_', key)}", inner)
        elif isinstance(value, bool):
            found[prefix] = "yes" if value else "no"
        elif not isinstance(value, list):
            found[prefix] = f"`{value}`" if prefix.endswith("_command") else str(value)
        elif len(value) <= 5 and all(isinstance(v, int | float) for v in value):  # one a seed, say
            found[prefix] = ", ".join(map(str, value))

    for path in [*sorted((ROOT / "book" / "results").glob("*.json")), *(ROOT / "kunet" / "weights").glob("*.json")]:
        walk(path.stem, json.loads(path.read_text()))
    return found


def stage() -> None:
    """Lay out what Sphinx reads, with the measured numbers as substitutions."""
    shutil.rmtree(STAGE, ignore_errors=True)
    shutil.copytree(
        ROOT / "book", STAGE / "book", ignore=shutil.ignore_patterns("_build", "*.py", "__pycache__", "results")
    )
    (STAGE / "notebooks").mkdir()
    for path in EXECUTED.glob("*.ipynb"):
        shutil.copy(path, STAGE / "notebooks")
    shutil.copy(ROOT / "_toc.yml", STAGE)
    static = STAGE / "book" / "_static"
    mathjax = importlib.metadata.distribution("sphinx-mathjax-offline").locate_file(
        "sphinx-mathjax-offline/static/mathjax"
    )
    shutil.copy(Path(str(mathjax)) / "tex-svg.js", static)
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    config["sphinx"]["config"]["myst_substitutions"] = facts() | pair(static)
    (STAGE / "_config.yml").write_text(yaml.safe_dump(config))


def publish() -> None:
    """Sphinx, warnings as errors; then out with scripts that would ask a server for something."""
    options = ["-W", "-n", "--keep-going", "-q", "--path-output", str(ROOT / "book")]
    subprocess.run([str(Path(sys.executable).parent / "jupyter-book"), "build", str(STAGE), *options], check=True)
    for page in (BUILD / "html").rglob("*.html"):
        page.write_text(re.sub("|".join(UNUSED), "", page.read_text(), flags=re.S))


def main() -> None:
    torch.manual_seed(0)
    try:
        run_notebooks()
        if "--notebooks-only" not in sys.argv:
            stage()
            publish()
            print(f"The book is ready. Open {BUILD / 'html' / 'index.html'}")
    except ValueError as error:
        sys.exit(f"book: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"book: jupyter-book failed with exit code {error.returncode}; its messages are above")


if __name__ == "__main__":
    main()
