"""The comparison of objectives and optimisers is fair by its own rules, and says what it was."""

import importlib
import json

import pytest
from conftest import ROOT

from kunet import recipes

RATES = (0.002, 0.004)


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("optimise")


@pytest.fixture
def asked(bench, monkeypatch):
    """The trials that the benchmark asks for; their results are made up: AdamW is better at the higher rate."""
    found = {}

    def run_all(trials, folder, workers):
        found.update(trials)
        better = lambda trial: (trial["recipe"]["lr"] == RATES[1]) == (trial["recipe"]["optimizer"] == "adamw")
        return {
            name: {"steps": trial["steps"], "train_seconds": 1.5, "validation": [[9, 20.0 + better(trial)]]}
            for name, trial in trials.items()
        }

    def scores(weights, test):
        worth = weights.parent.name == "run-200", "floored" in weights.parts[-3], "-1" in weights.parts[-3]
        return {str(sigma): 30 - sigma / 10 + sum(w * v for w, v in zip(worth, (1, 0.5, 0.25)))
                for sigma in bench.SIGMAS}  # fmt: skip

    monkeypatch.setattr(bench, "run_all", run_all)
    monkeypatch.setattr(bench, "scores", scores)
    monkeypatch.setattr(bench, "step_seconds", lambda args: {"adamw": 0.1, "muon": 0.2})
    return found


def test_recipes_differ_in_optimiser_objective_and_rate_alone(bench):
    plain = bench.recipe(bench.PLAIN, ["photos"], 1e-3, 0)
    for name, (optimizer, objective) in bench.CHOICES.items():
        made = bench.recipe(name, ["photos"], 1e-3, 0)
        assert recipes.build("optimise", made | {"steps": 9}).optimizer == optimizer
        assert made["task_args"]["objective"] == objective
        same = plain | {"optimizer": optimizer, "task_args": plain["task_args"] | {"objective": objective}}
        assert made == same


def test_equal_time_equal_steps_and_the_better_rate(bench, asked, tmp_path):
    out = tmp_path / "optimise.json"
    words = ["--data", "a/photos", "--test", "b/set", "--seeds", "0", "1", "--out", str(out), "--folder", str(tmp_path)]
    bench.main([*words, "--rates", *map(str, RATES)])
    content = json.loads(out.read_text())
    assert list(content)[:4] == ["command", "commit", "machine", "date"]
    assert content["data"] == ["photos"] and content["test"] == "set" and content["seeds"] == [0, 1]
    rows = content["rows"]
    assert [row["lr"] for row in rows.values()] == [RATES[1], RATES[1], RATES[0], RATES[0]]
    assert [row["steps"] for row in rows.values()] == [200, 200, 100, 100]
    assert [row.get("equal_steps", {}).get("steps") for row in rows.values()] == [None, None, 200, 200]
    tuned = {name for name in asked if name.endswith("-tune")}
    assert len(tuned) == 8 and all(asked[name]["recipe"]["seed"] == bench.TUNING_SEED for name in tuned)
    gain = lambda found: (found["minus"]["50"]["mean"], found["minus"]["5"]["standard_error"])
    assert gain(rows["adamw floored_log_mse"]) == (0.5, 0)
    assert gain(rows["muon log_mse"]) == (-1, 0) and gain(rows["muon log_mse"]["equal_steps"]) == (0, 0)
    assert gain(rows["muon floored_log_mse"]["equal_steps"]) == (0.5, 0)
    assert rows[bench.PLAIN]["psnr"]["50"]["each"] == [26, 26.25]


def test_too_few_seeds_do_not_overwrite_the_results(bench, asked, capsys):
    for words in (["--seeds", "0"], ["--seeds", "0", "1"], ["--seconds", "0"], ["--rates", "0"]):
        with pytest.raises(SystemExit):
            bench.main(words)
        assert "give two seeds or more" in capsys.readouterr().err
    assert not asked
