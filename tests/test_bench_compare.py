"""The comparison of networks: its rows, and how some are measured anew."""

import importlib
import json

import pytest
from conftest import ROOT


@pytest.fixture
def compare(monkeypatch):
    """The benchmark, with made-up trials in place of trainings; ``asked`` are those that were to be run."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    module = importlib.import_module("compare")
    module.asked = {}

    def run_all(trials, folder):
        module.asked |= trials
        return {
            name: {
                "parameters": 7,
                "steps": 10 + i,
                "train_seconds": 70.0 + i,
                "validation": [[1, 20.0 + (trial["recipe"]["lr"] == 2e-3)]],
                "bundled": {"psnr": 25.0 + i, "ssim": 0.5},
            }
            for i, (name, trial) in enumerate(trials.items())
        }

    monkeypatch.setattr(module, "run_all", run_all)
    monkeypatch.setattr(module, "noisy", lambda test: {"psnr": 14.0})
    return module


def test_some_networks_are_measured_anew(compare, tmp_path):
    out = tmp_path / "compare.json"
    compare.main(["--only", "unet", "ukan", "--seeds", "0", "1", "2", "--out", str(out)])
    before = json.loads(out.read_text())
    assert before["models"]["ukan"]["train_seconds"] == [71.0, 73.0, 75.0]
    assert before["models"]["ukan"]["lr"] == 2e-3 and before["noisy"] == {"psnr": 14.0}
    compare.asked.clear()
    compare.main(["--only", "ukan", "--update", "--out", str(out)])
    after = json.loads(out.read_text())
    assert {trial["recipe"]["model"] for trial in compare.asked.values()} == {"ukan"} and len(compare.asked) == 5
    assert after["models"]["unet"] == before["models"]["unet"] and list(after["models"]) == ["unet", "ukan"]
    assert after["models"]["ukan"]["train_seconds"] == [70.0, 71.0, 72.0]
    measured = after["models"]["ukan"]["measured"]
    assert {"command", "commit", "machine", "date"} <= set(measured) and "--only ukan --update" in measured["command"]
    assert {key: after[key] for key in after if key != "models"} == {k: before[k] for k in before if k != "models"}


def test_rows_of_other_settings_are_not_mixed(compare, tmp_path, capsys):
    out = tmp_path / "compare.json"
    compare.main(["--only", "unet", "--out", str(out)])
    for words in (["--seconds", "10"], ["--seeds", "0", "1", "5"], ["--test", "elsewhere"]):
        with pytest.raises(SystemExit):
            compare.main(["--only", "unet", "--update", "--out", str(out), *words])
        assert "was measured with" in capsys.readouterr().err


def test_published_numbers_need_all_networks_and_seeds(compare, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "RESULTS", tmp_path / "compare.json")
    for words in (["--only", "unet"], ["--seeds", "0", "1"]):
        with pytest.raises(SystemExit):
            compare.main([*words, "--out", str(tmp_path / "compare.json")])


def test_two_networks_return_the_image_itself(monkeypatch):
    """FFDNet as published, and U-KAN, which has no path at full size for what is to be added."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    networks = importlib.import_module("configurations").NETWORKS
    assert [name for name, (_, args) in networks.items() if args.get("residual") is False] == ["ffdnet", "ukan"]


def test_a_trial_of_another_task_is_scored_by_its_own_measures(monkeypatch, tmp_path):
    """Trained for a step or two in this process, on the bundled photos."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    trials = importlib.import_module("trials")
    recipe = {"name": "tiny", "model": "unet", "model_args": {"widths": [4, 6]}, "task": "derain"}
    recipe |= {"phases": [{"share": 1.0, "patch": 16, "batch": 2}]}
    (tmp_path / "trial.json").write_text(json.dumps({"recipe": recipe, "seconds": 0.1, "steps": 2}))
    found = trials.run(tmp_path)
    assert found["steps"] == 2 and found["held_out"]["psnr"] > 0 and found["held_out"]["images"] == 3
