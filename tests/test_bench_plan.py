"""benchmarks/plan.py: hours from operations, checked by hand."""

import importlib
import json

import pytest
from conftest import ROOT


def test_hours_by_hand(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    plan = importlib.import_module("plan")
    out = tmp_path / "plan.json"
    plan.main(["dncnn", "--gpus", "2", "--peak", "100", "--share", "0.5", "--out", str(out)])
    results = json.loads(out.read_text())
    row = results["recipes"]["dncnn"]
    width, depth = 64, 20  # DnCNN-B's
    macs = 9 * (2 * 3 * width + (depth - 2) * width**2)
    assert row["gmacs_per_megapixel"] == pytest.approx(macs / 1e3, abs=0.1)
    pixels = row["gigapixels"] * 1e9
    assert row["hours"] == pytest.approx(6 * macs * pixels / (2 * 100e12 * 0.5) / 3600, rel=0.01, abs=0.01)
    with pytest.raises(SystemExit, match="2"):
        plan.main(["dncnn", "--share", "2"])
