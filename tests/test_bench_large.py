"""benchmarks/large.py: a small run writes what is documented; what the book says of large photos was measured."""

import importlib
import json
import math
import statistics

import pytest
import torch
from conftest import ROOT

from kunet.models import CompactKUnet
from kunet.runs import load_weights
from kunet.weights import find


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("large")


def test_a_small_run_writes_what_is_documented(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "QUICK_SIZES", ((48, 32), (96, 64)))
    monkeypatch.setattr(bench, "equality", lambda model, count: {"sizes": count, "largest_difference": 0.0})
    out = tmp_path / "large.json"
    bench.main(["--quick", "--out", str(out)])
    results = json.loads(out.read_text())
    assert {"command", "commit", "machine", "date"} <= set(results)
    assert set(results["rows"]) == set(results["exponents"]) == {"whole", "in 2 GB"}
    for row in results["rows"]["whole"]:
        assert row["how"] == "whole" and row["seconds"] > 0 and row["peak_mb"] >= row["idle_mb"] > 0
    assert set(results["forms"]) == {"fp32", "bf16", "tables", "contiguous"}  # compiling takes long
    assert results["forms"]["fp32"]["loss_db"] == 0 and abs(results["forms"]["contiguous"]["loss_db"]) < 1e-3
    assert abs(results["forms"]["tables"]["loss_db"]) < 0.05 and abs(results["forms"]["bf16"]["loss_db"]) < 0.1
    assert sum(results["profile"].values()) == pytest.approx(1, abs=0.01)


def test_a_quick_run_does_not_overwrite_the_results(bench):
    with pytest.raises(SystemExit, match="2"):
        bench.main(["--quick", "--out", str(bench.RESULTS)])


def test_a_size_is_summed_up_over_its_rounds(bench):
    rounds = [
        {"seconds": [3.0, 1.0], "peak_mb": 300, "added_mb": 100, "how": "whole", "parts": 1},
        {"seconds": [2.0], "peak_mb": 400, "added_mb": 150, "how": "whole", "parts": 1},
    ]
    found = bench.summary((1000, 500), rounds)
    assert (found["seconds"], found["spread"], found["passes"]) == (2.0, [1.0, 3.0], 3)
    assert (found["megapixels"], found["peak_mb"], found["idle_mb"]) == (0.5, 400, 250)


def test_exponents(bench):
    rows = [
        {"megapixels": n, "seconds": 3 * n**1.25, "peak_mb": 100 + 7 * n**0.5, "idle_mb": 100} for n in (100, 400, 900)
    ]
    assert bench.exponents(rows) == {"time": 1.25, "memory": 0.5}


def test_equality_is_of_boxes(bench):
    torch.manual_seed(0)
    model = CompactKUnet(widths=(4, 6, 8), depths=(1, 1, 1), token_depth=1, heads=2, window=4).eval()
    found = bench.equality(model, 2)
    assert found["largest_difference"] < 1e-5 and found["parts"][0] >= 4


@pytest.mark.parametrize("name", ["kunet_small", "kunet_base"])
def test_the_larger_networks_give_the_same_in_boxes_too(bench, name):
    """What the results have of kunet_tiny at 20 sizes, at two; deeper networks look farther."""
    found = bench.equality(load_weights(find(name))[0].eval(), 2)
    assert found["largest_difference"] <= 1e-5 and found["parts"][0] >= 4


RUNS = "large", "large_amd"
"""The same command on two machines."""


def measured(run: str) -> dict:
    return json.loads((ROOT / "book" / "results" / f"{run}.json").read_text())


@pytest.mark.parametrize("run", RUNS)
def test_what_was_measured(run):
    results = measured(run)
    assert results["equality"]["sizes"] == 20 and results["equality"]["largest_difference"] <= 1e-5
    # the aim for time, 1.05, is missed: the maps of the smallest photo stay in the cache, those of the largest do not
    assert results["exponents"]["whole"]["time"] <= 1.15 and results["exponents"]["whole"]["memory"] <= 1.05
    assert results["exponents"]["in 2 GB"]["memory"] <= 1.05
    assert results["largest_mpx"] >= 24
    forms = results["forms"]
    assert {"contiguous", "compiled"} < set(forms) and abs(forms["compiled"]["loss_db"]) < 1e-3
    assert forms["compiled"]["first_seconds"] > forms["compiled"]["seconds"] > 0
    photo = next(row for row in results["rows"]["in 2 GB"] if row["width"] == 2040)
    assert photo["peak_mb"] <= 1500


def time_exponent(run: str, least: float, how: str = "whole") -> float:
    """Of photos computed in one way, from so many megapixels on."""
    rows = measured(run)["rows"][how]
    points = [(math.log(row["megapixels"]), math.log(row["seconds"])) for row in rows if row["megapixels"] >= least]
    return statistics.linear_regression(*zip(*points)).slope


@pytest.mark.xfail(strict=True, reason="missed so far: small maps stay in the cache, large ones do not")
@pytest.mark.parametrize("how", ["whole", "in 2 GB"])
@pytest.mark.parametrize("run", RUNS)
def test_time_grows_as_the_pixels_do(run, how):
    assert time_exponent(run, 0.25, how) <= 1.05


def test_from_a_megapixel_on_it_nearly_does():
    assert time_exponent("large", 1) <= 1.1


@pytest.mark.xfail(strict=True, reason="missed on the quicker machine, where small photos gained more than large ones")
def test_from_a_megapixel_on_it_nearly_does_on_the_quicker_machine():
    assert time_exponent("large_amd", 1) <= 1.1
