"""The scaling benchmark runs what it says, and its efficiencies are those of its numbers."""

import importlib
import json

import pytest
import yaml
from conftest import ROOT


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("scaling")


@pytest.mark.parametrize("way", ["1x1", "1x2", "2x1 wide"])
@pytest.mark.parametrize("name", ["quick", "kunet_tiny"])
def test_the_trainings(bench, kunet, tmp_path, name, way):
    """Equal but for batch and threads, and as `kunet train` takes them."""
    configuration, way = bench.CONFIGURATIONS[name], bench.WAYS[way]
    shown = kunet("train", *bench.words(configuration, way, tmp_path / "run"), "--dry-run")
    assert shown.returncode == 0, shown.stderr
    recipe = yaml.safe_load(shown.stdout)
    assert recipe["phases"] == [{"share": 1.0, "patch": 64, "batch": configuration.batch * way.wide}]
    assert recipe["threads"] == way.threads and recipe["precision"] == "fp32" and not recipe["compile"]
    assert recipe["steps"] == bench.ROWS * recipe["log_every"] == recipe["save_every"]


def test_a_run_of_two_processes(bench, monkeypatch):
    monkeypatch.setattr(bench, "ROWS", 4)
    monkeypatch.setattr(bench, "SKIPPED", 1)
    assert bench.rate(bench.Configuration("quick", 2, 1), bench.Way(processes=2)) > 0
    with pytest.raises(RuntimeError, match="a batch of 1 crops cannot be shared equally by 2 processes"):
        bench.rate(bench.Configuration("quick", 1, 1), bench.Way(processes=2))


def test_efficiencies(bench, monkeypatch, tmp_path):
    """Each turn is divided by its own 1x1."""
    rates = {"1x1": [100, 50], "1x2": [120, 60], "2x1": [180, 80], "2x1 wide": [190, 95], "apart": [200, 90]}
    turns = {bench.WAYS[way]: iter([v for v in values for _ in range(2)]) for way, values in rates.items()}
    monkeypatch.setattr(bench, "rate", lambda configuration, way: next(turns[way]))
    out = tmp_path / "scaling.json"
    bench.main(["--repeats", "2", "--out", str(out)])
    results = json.loads(out.read_text())
    assert {"command", "commit", "machine", "date", "cores"} <= set(results)
    assert results["command"] == "python benchmarks/scaling.py --repeats 2" and results["repeats"] == 2
    assert set(results["configurations"]) == {"quick", "kunet_tiny"}
    for row in results["configurations"].values():
        assert row["efficiency"]["2x1"] == {"median": 0.85, "quartiles": [0.825, 0.875], "each": [0.9, 0.8]}
        assert set(row["efficiency"]) == set(rates) - {"1x1"} and row["parameters"] > 1e4
        wide = row["ways"]["2x1 wide"]
        assert (wide["processes"], wide["threads"], wide["batch"]) == (2, 1, 2 * row["batch"])
        assert wide["steps_per_s"]["each"] == pytest.approx([190 / wide["batch"], 95 / wide["batch"]], rel=1e-3)


def test_another_run_does_not_overwrite_the_results(bench, capsys):
    for words in (["--repeats", "2"], ["--only", "quick", "--out", str(bench.OUT)], ["--repeats", "1"]):
        with pytest.raises(SystemExit, match="2"):
            bench.main(words)
        assert "--repeats must be" in (said := capsys.readouterr().err) or "another --out" in said
