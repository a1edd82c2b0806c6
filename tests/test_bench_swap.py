"""benchmarks/swap.py: only the projections differ, done trainings are read, and what the book says was measured."""

import importlib
import json
from functools import partial

import pytest
import torch
from conftest import ROOT, trials_in_this_process

from kunet.runs import load_weights
from kunet.weights import find


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("swap")


def widths() -> dict:
    return {"mlp_parameters": 573, "mlp_macs": 326, "mlp_time": 800, "mlp_time_ratio": 1.0}


def test_a_start_is_the_released_network_but_for_its_projections(bench, tmp_path):
    released, card = load_weights(find("kunet_tiny"))
    base, old = bench.BASE | card["recipe"]["model_args"], released.state_dict()
    changes = bench.kinds(widths())
    assert list(changes) == ["kept", "kan", "linear", "mlp_parameters", "mlp_macs", "mlp_time"]
    start = lambda name, seed=0: load_weights(
        bench.begin("kunet_tiny", name, base | changes[name], seed, tmp_path)
    )[0].state_dict()  # fmt: skip
    for name in changes:
        new = start(name)
        same = {key for key in old if key in new and torch.equal(old[key], new[key])}
        assert same >= {key for key in old if ".kan." not in key}
        assert (name == "kept") == (same == set(old)) and bool(set(new) - same) == (name != "kept")
    one, other, again = start("kan"), start("kan", 1), start("kan")
    assert any(not torch.equal(one[key], other[key]) for key in one)
    assert all(torch.equal(one[key], again[key]) for key in one)


def test_a_small_run(bench, tmp_path, monkeypatch):
    ran = trials_in_this_process(bench, monkeypatch)
    monkeypatch.setattr(bench, "costs", partial(bench.costs, repeats=1))
    monkeypatch.setattr(bench, "step_seconds", partial(bench.step_seconds, rounds=1))
    monkeypatch.setattr(bench, "mlp_widths", lambda base: {})
    monkeypatch.setattr(bench, "PATCH", 32)
    threads = torch.get_num_threads()
    words = ["--seconds", "0.01", "--seeds", "0", "1", "--images", "1", "--folder", str(tmp_path / "runs")]
    for asked in (
        ["kept-0", "kan-0", "linear-0", "linear-steps-0", "kept-1", "kan-1", "linear-1", "linear-steps-1"],
        [],
    ):
        ran.clear()
        bench.main([*words, "--out", str(tmp_path / "swap.json")])
        assert ran == asked
    torch.set_num_threads(threads)
    rows = json.loads((tmp_path / "swap.json").read_text())["rows"]
    assert list(rows) == ["kept", "kan", "linear"] and "minus" not in rows["kan"]
    assert rows["kept"]["zeroed"]["lost"]["mean"] > 0.3  # dB: the released network asks much of its KAN layers
    assert rows["linear"]["parameters"] < rows["kan"]["parameters"] == rows["kept"]["parameters"]
    assert set(rows["linear"]["equal_steps"]) >= {"steps", "psnr", "minus"} and "equal_steps" not in rows["kept"]


def test_a_start_without_the_branch_or_with_a_convolution_is_the_released_network_elsewhere(bench, tmp_path):
    released, card = load_weights(find("kunet_tiny"))
    base, old = bench.BASE | card["recipe"]["model_args"], released.state_dict()
    branch = ("tokenizer.", "tokens.", "unpatchify.")
    start = {
        name: load_weights(bench.begin("kunet_tiny", name, base | changes, 0, tmp_path))[0]
        for name, changes in bench.PARTS.items()
    }
    none, conv = start["none"].state_dict(), start["conv"].state_dict()
    assert start["none"].tokens is None and set(none) == {key for key in old if not key.startswith(branch)}
    assert all(torch.equal(none[key], old[key]) for key in none)
    assert all(torch.equal(conv[key], old[key]) for key in set(conv) & set(old))
    assert {key.split(".")[2] for key in set(old) ^ set(conv)} == {"attention"}
    assert all(torch.equal(value, old[key]) for key, value in start["kept"].state_dict().items())


def test_a_small_run_of_the_branch(bench, tmp_path, monkeypatch):
    ran = trials_in_this_process(bench, monkeypatch)
    monkeypatch.setattr(bench, "costs", partial(bench.costs, repeats=1))
    monkeypatch.setattr(bench, "step_seconds", partial(bench.step_seconds, rounds=1))
    monkeypatch.setattr(bench, "PATCH", 32)
    threads = torch.get_num_threads()
    words = ["--branch", "--seconds", "0.01", "--seeds", "0", "1", "--images", "1", "--folder", str(tmp_path / "runs")]
    bench.main([*words, "--out", str(tmp_path / "branch.json")])
    torch.set_num_threads(threads)
    assert sorted(ran) == sorted(
        f"{n}-{i}" for i in (0, 1) for n in ("kept", "none", "none-steps", "conv", "conv-steps")
    )
    rows = json.loads((tmp_path / "branch.json").read_text())["rows"]
    assert list(rows) == ["kept", "none", "conv"] and "minus" not in rows["kept"]
    assert -0.3 < rows["none"]["minus"]["mean"] < -0.03  # dB: it is missed at first, and far less than its parts
    assert rows["none"]["zeroed"]["lost"]["mean"] == 0 and rows["none"]["parameters"] < rows["conv"]["parameters"]


def test_a_run_of_one_seed_is_refused(bench):
    with pytest.raises(SystemExit, match="2"):
        bench.main(["--seeds", "0"])
    with pytest.raises(SystemExit, match="2"):
        bench.main(["--seeds", "0", "1"])  # enough, but not to be quoted


def test_what_was_measured_of_the_branch():
    results = json.loads((ROOT / "book" / "results" / "branch.json").read_text())
    rows = results["rows"]
    assert len(results["seeds"]) == 3 and set(rows) == {"kept", "none", "conv"}
    assert rows["conv"]["parameters"] == pytest.approx(rows["kept"]["parameters"], rel=0.01)
    assert rows["none"]["parameters"] < rows["kept"]["parameters"] / 2
    for name in ("none", "conv"):  # what the book says in words
        for found in (rows[name], rows[name]["equal_steps"]):
            assert -0.075 < found["minus"]["mean"] < -0.04 and found["minus"]["standard_error"] < 0.01
    assert rows["kept"]["zeroed"]["lost"]["mean"] > -10 * rows["none"]["minus"]["mean"]


def test_what_was_measured():
    results = json.loads((ROOT / "book" / "results" / "swap.json").read_text())
    rows, seeds = results["rows"], results["seeds"]
    assert len(seeds) == 3 and set(rows) == {"kept", "kan", "linear", "mlp_parameters", "mlp_macs", "mlp_time"}
    assert rows["mlp_parameters"]["parameters"] == pytest.approx(rows["kan"]["parameters"], rel=0.01)
    assert rows["mlp_macs"]["macs_per_pixel"] == pytest.approx(rows["kan"]["macs_per_pixel"], rel=0.01)
    assert results["searched"]["mlp_time_ratio"] == pytest.approx(1, abs=0.1)
    assert rows["kept"]["minus"]["mean"] > 4 * rows["kept"]["minus"]["standard_error"] > 0
    assert rows["kept"]["minus"]["mean"] < 0.1 < rows["kept"]["zeroed"]["lost"]["mean"]
    for name in set(rows) - {"kept", "kan"}:  # what the book says in words
        for found in (rows[name], rows[name]["equal_steps"]):
            assert abs(found["minus"]["mean"]) < 0.01
        assert rows[name]["zeroed"]["lost"]["mean"] < 0.1
    assert all(len(row["psnr"]["each"]) == len(row["train_seconds"]) == len(seeds) for row in rows.values())
