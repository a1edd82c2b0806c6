"""The measurement of blind denoising: a small run writes what is documented, and its numbers fit together."""

import importlib
import json
import statistics

import pytest
from conftest import ROOT
from PIL import Image

from kunet.data import bundled


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("blind")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "set").mkdir()
    for name, pixels in list(bundled("heldout").items())[:3]:
        Image.fromarray(pixels[40:136, 60:188]).save(tmp_path / "set" / f"{name}.png")
    return tmp_path / "set"


def test_a_small_run(bench, folder, tmp_path):
    out = tmp_path / "blind.json"
    bench.main([f"some={folder}", "--limit", "2", "--out", str(out)])
    results = json.loads(out.read_text())
    assert {"command", "commit", "machine", "date", "weights", "weights_sha256"} <= set(results)
    assert results["command"] == "python benchmarks/blind.py some=FOLDER --weights kunet_tiny --limit 2"
    assert list(results["sets"]["some"]) == ["15", "25", "50"]
    for sigma, modes in results["sets"]["some"].items():
        assert list(modes) == ["float", "u8", "jpeg"]
        for mode, row in modes.items():
            rows = results["rows"]["some"][sigma][mode]
            assert all(len(column) == 2 for column in rows.values())
            errors = [estimate - float(sigma) for estimate in rows["sigma"]]
            costs = [a - b for a, b in zip(rows["psnr_true"], rows["psnr_blind"])]
            assert row["error"]["mean"] == pytest.approx(statistics.mean(errors), abs=1e-3)
            assert row["error"]["std"] == pytest.approx(statistics.stdev(errors), abs=1e-3)
            assert row["error"]["largest_abs"] == pytest.approx(max(map(abs, errors)), abs=1e-3)
            jpeg = mode == "jpeg"  # a file of which luma alone says something, and strong noise is clipped
            assert row["error"]["largest_abs"] < (0.25 if jpeg else 0.1) * float(sigma)
            assert row["cost_db"]["mean"] == pytest.approx(statistics.mean(costs), abs=1e-3)
            assert row["cost_db"]["error"] == pytest.approx(statistics.stdev(costs) / 2**0.5, abs=1e-3)
            assert abs(row["cost_db"]["mean"]) < (2 if jpeg else 0.3) and row["seconds"] > 0


@pytest.mark.parametrize(
    "words,said",
    [
        (["a=b", "--limit", "2"], "another --out"),
        (["a=b", "--limit", "0", "--out", "x.json"], "must be 1 or more"),
        (["folder"], "give NAME=FOLDER"),
    ],
)
def test_wrong_requests(bench, words, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        bench.main(words)
    assert said in capsys.readouterr().err
