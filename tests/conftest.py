"""Fixtures shared by the tests: the command line, photos, the built book, a browser."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from cluster import start_cluster  # noqa: F401  (a fixture, of a SLURM)
from PIL import Image

from kunet.cli import main
from kunet.data import bundled

os.environ.setdefault("WANDB_MODE", "disabled")  # its start takes seconds; tests/test_track.py asks for it
ROOT = Path(__file__).resolve().parent.parent
ALONE = (
    "test_bench_scaling test_book test_cluster_runs test_launch test_slurm_local test_sweep test_train_many"
).split()
"""Modules of tests that time something, use both cores or start processes of their own: not beside others."""

if "PYTEST_XDIST_WORKER" in os.environ:  # two tests at a time: a core for each
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.module.__name__ in ALONE:
            item.add_marker("alone")


def trials_in_this_process(bench, monkeypatch) -> list[str]:
    """Have a benchmark train here and not in processes of its own; the list holds the trials that were not read."""
    trials, ran = importlib.import_module("trials"), []

    def run_all(wanted, folder, workers):
        for name, trial in wanted.items():
            if not trials.finished(trial, folder / name):
                ran.append(name)
                (folder / name).mkdir(parents=True, exist_ok=True)
                (folder / name / "trial.json").write_text(trials.text(trial))
                (folder / name / "result.json").write_text(json.dumps(trials.run(folder / name)))
        return {name: json.loads((folder / name / "result.json").read_text()) for name in wanted}

    monkeypatch.setattr(bench, "run_all", run_all)
    return ran


@dataclass
class Result:
    """What a command did: its exit code and what it printed."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def kunet(capsys, monkeypatch):
    """Run a kunet command in this process (starting torch anew for each would take minutes)."""

    def run(*words, cwd=None):
        capsys.readouterr()
        with monkeypatch.context() as patch:
            if cwd:
                patch.chdir(cwd)
            try:
                code = main([str(word) for word in words]) or 0
            except SystemExit as stop:
                code = stop.code or 0
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture
def refused(kunet):
    """Run a command that must be refused: exit 2, one line on stderr; returns that line."""

    def check(*words, **options):
        result = kunet(*words, **options)
        assert result.returncode == 2, result
        assert len(result.stderr.strip().splitlines()) == 1, result.stderr
        assert "Traceback" not in result.stderr
        return result.stderr.strip()

    return check


@pytest.fixture
def photo(tmp_path):
    """A small noisy RGB photo on disk."""
    clean = bundled("heldout")["chelsea"][60:156, 100:244].astype(float)
    noisy = clean + np.random.default_rng(0).normal(0, 50, clean.shape)
    path = tmp_path / "photo.png"
    Image.fromarray(noisy.clip(0, 255).round().astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="session")
def book():
    """The folder of the published book, built by its own command (quick when nothing has changed)."""
    result = subprocess.run(
        [sys.executable, "book/build.py"], cwd=ROOT, capture_output=True, text=True, timeout=1500,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return ROOT / "book" / "_build" / "html"


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium with the network off; skipped where no Chromium is installed."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not found:
        pytest.skip("no Chromium on this machine: install the package chromium to test the published pages")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
        chromium = playwright.chromium.launch(executable_path=found, args=flags)
        yield chromium
        chromium.close()
