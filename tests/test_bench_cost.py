"""The cost benchmark covers every model at a comparable size, counts what its docstring says and writes all of it."""

import importlib
import json

import pytest
import torch
from conftest import ROOT
from torch import nn

from kunet.kan import KANConv2d, KANLinear
from kunet.models import MODELS


@pytest.fixture(scope="module")
def bench():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("cost")


def test_every_model_is_measured_at_a_comparable_size(bench):
    assert {model for model, _ in bench.CONFIGS.values()} == set(MODELS)
    with torch.device("meta"):
        count = {name: sum(p.numel() for p in bench.build(name).parameters()) for name in bench.CONFIGS}
    assert count.pop("kunet_tiny") == 1_012_364
    assert all(50_000 < n < 500_000 for n in count.values()), count


def test_multiply_adds_by_hand(bench, monkeypatch):
    """Convolutions; attention over N tokens, 2 N^2 D of it; KAN layers in their local form."""
    monkeypatch.setitem(bench.CONFIGS, "chain", ("dncnn", {"width": 40, "depth": 20}))
    assert bench.macs("chain", 64) == 64**2 * 9 * (2 * 3 * 40 + 18 * 40**2)
    tokens = {"widths": [4, 4, 64], "hidden": 8, "heads": 4, "projections": [64]}  # patches of 8 x 8 pixels
    monkeypatch.setitem(bench.CONFIGS, "tokens", ("kunet", tokens))
    assert bench.macs("tokens", 32) - 4 * bench.macs("tokens", 16) == 2 * 64 * (16**2 - 4 * 4**2)
    kans = {
        "conv": (lambda: KANConv2d(3, 4, 3, padding=1, grid_size=7), 64 * (4 * 27 * 5 + 3 * 13)),
        "no base": (
            lambda: KANConv2d(3, 3, 3, stride=2, padding=1, groups=3, degree=2, base=None),
            16 * 27 * 3 + 64 * 3 * 7,
        ),
        "linear": (lambda: nn.Sequential(nn.Flatten(2), KANLinear(64, 5, 20)), 3 * 64 * (5 * 5 + 13)),
    }
    for name, (make, by_hand) in kans.items():
        monkeypatch.setattr(bench, "build", lambda _, make=make: make())
        assert bench.macs(name, 8) == by_hand, name


def test_live_bytes_of_a_chain_by_hand(bench):
    """Three 1x1 convolutions: at most a result and what it is computed from, but for the image, are held."""
    chain = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 24, 1), nn.Conv2d(24, 3, 1))
    assert bench.live(chain, bench.image(100)) == pytest.approx((8 + 24) * 4 * 100**2 / 1e6, rel=0.01)


def test_an_exponent_is_that_of_a_power_law(bench):
    assert bench.exponent([10, 100, 1000], [7 * n**1.5 for n in (10, 100, 1000)]) == 1.5


def test_a_small_run_writes_what_is_documented(bench, tmp_path):
    out = tmp_path / "results.json"
    bench.main(["--quick", "--models", "dncnn", "kunet", "--out", str(out)])
    results = json.loads(out.read_text())
    assert {"command", "commit", "machine", "date", "counted"} <= set(results)
    assert results["command"] == "python benchmarks/cost.py --quick --models dncnn kunet"
    assert list(results["models"]) == ["dncnn", "kunet"]
    for name, row in results["models"].items():
        assert row["sizes"] == results["sizes"] == list(bench.QUICK_SIZES)
        assert row["pixels"] == [size**2 for size in row["sizes"]]
        assert (row["model"], row["args"]) == (bench.CONFIGS[name][0], bench.CONFIGS[name][1])
        assert all(low <= middle <= high for (low, high), middle in zip(row["quartiles"], row["seconds"]))
        assert row["seconds"][-1] > row["seconds"][0] > 0
        assert row["memory_mb"] == sorted(row["memory_mb"]) and row["memory_mb"][0] > 0
        # what libraries take inside an operation comes on top; and the kernel counts pages in batches
        assert row["memory_mb"][-1] - 2 <= row["resident_mb"] <= 2 * row["memory_mb"][-1] + 4
        assert row["macs_per_pixel"] == pytest.approx(row["macs"][-1] / row["pixels"][-1], abs=0.1)
        assert row["time_exponent"] == pytest.approx(bench.exponent(row["pixels"], row["seconds"]), abs=2e-3)
    dncnn = results["models"]["dncnn"]
    width = dncnn["args"]["width"]
    assert dncnn["parameters"] == sum(p.numel() for p in bench.build("dncnn").parameters())
    assert dncnn["macs_exponent"] == 1 and dncnn["memory_exponent"] == pytest.approx(1, abs=0.05)
    least = 2 * width * 4 * 128**2 / 1e6  # a layer's input and its result
    assert least - 1e-3 <= dncnn["memory_mb"][-1] < 2 * least  # rounded to kilobytes


@pytest.mark.parametrize(
    "words", [["--quick"], ["--models", "unet"], ["--quick", "--out", str(ROOT / "book" / "results" / "cost.json")]]
)
def test_a_part_does_not_overwrite_the_results(bench, words, capsys):
    with pytest.raises(SystemExit, match="2"):
        bench.main(words)
    assert "another --out" in capsys.readouterr().err
