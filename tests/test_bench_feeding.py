"""The feeding benchmark measures every way to hold photos on the same crops, and its arithmetic is as it says."""

import importlib
import json

import pytest
import torch
from conftest import ROOT


@pytest.fixture
def bench(monkeypatch):
    """The benchmark, on fewer and smaller photos."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    feeding = importlib.import_module("feeding")
    monkeypatch.setattr(feeding, "WIDTH", 500)
    monkeypatch.setattr(feeding, "HEIGHT", 340)
    monkeypatch.setattr(feeding, "PHOTOS", 2)
    monkeypatch.setattr(feeding, "TURN", {name: 3 for name in feeding.TURN})
    threads = torch.get_num_threads()
    yield feeding
    torch.set_num_threads(threads)


def test_all_ways_give_the_same_crops(bench, tmp_path):
    held = bench.sources(tmp_path)
    assert set(held) == set(bench.TURN) and all(len(photos) == 2 for photos in held.values())
    crops = {name: bench.Crops(photos, 64, 5) for name, photos in held.items()}
    for i in range(5):
        assert torch.equal(crops["packed"][i], crops["memory"][i]) and torch.equal(crops["png"][i], crops["memory"][i])
        assert (crops["jpeg"][i] - crops["memory"][i]).abs().mean() < 0.03
    assert bench.mosaic(0).shape == (340, 500, 3) and not (bench.mosaic(0) == bench.mosaic(1)).all()


def test_a_small_run_writes_what_is_documented(bench, tmp_path):
    out = tmp_path / "results.json"
    bench.main(["--repeats", "2", "--images-per-second", "100", "--out", str(out)])
    results = json.loads(out.read_text())
    assert {"command", "commit", "machine", "date"} <= set(results) and ", 1 threads" in results["machine"]
    assert results["command"] == "python benchmarks/feeding.py --repeats 2 --images-per-second 100"
    assert set(results["core"]) == set(bench.TURN)
    for row in results["core"].values():
        low, high = row["quartiles"]
        assert 0 < low <= high and row["crops_per_s"] > 0
    assert set(results["networks"]) == {"kunet_tiny", "kbnet_s_sigma50", "as stated"}
    stated, large = results["networks"]["as stated"], results["networks"]["kbnet_s_sigma50"]
    assert large["macs_a_crop"] == pytest.approx((68.7e9 + 48.6e9) / 4, rel=0.03)  # a quarter of a 256 x 256 image's
    assert large["crops_per_s_a_gpu"] == pytest.approx(0.4 * 312e12 / (6 * large["macs_a_crop"]), abs=0.1)
    for name, row in results["core"].items():
        assert stated["cores"][name] == pytest.approx(4 * 100 / row["crops_per_s"], abs=0.06)


def test_another_run_does_not_overwrite_the_results(bench, capsys):
    for words in (["--repeats", "3"], ["--images-per-second", "9", "--out", str(bench.OUT)]):
        with pytest.raises(SystemExit, match="2"):
            bench.main(words)
        assert "another --out" in capsys.readouterr().err
