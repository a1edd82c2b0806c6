"""The ablation is fair by its own rules: a row differs in what it names, costs are as counted, what is done is kept."""

import importlib
import json
from functools import partial

import pytest
from conftest import ROOT, trials_in_this_process
from PIL import Image

from kunet import models
from kunet.data import bundled

TINY = {"widths": [4, 8, 8], "heads": 2}


@pytest.fixture(scope="module")
def bench():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("ablate")


@pytest.fixture
def small(bench, monkeypatch):
    """The benchmark with a tiny base, which trains in this process; ``ran`` are the trials that were not read."""
    monkeypatch.setattr(bench, "BASE", bench.BASE | TINY)
    monkeypatch.setattr(bench, "costs", partial(bench.costs, repeats=1))
    return trials_in_this_process(bench, monkeypatch)


@pytest.fixture
def photos(tmp_path):
    pixels = next(iter(bundled("heldout").values()))
    (tmp_path / "photos").mkdir()
    for i in range(3):
        Image.fromarray(pixels[: 96 + i, 50 * i : 50 * i + 130]).save(tmp_path / "photos" / f"{i}.png")
    return str(tmp_path / "photos")


SEARCHED = {"mlp_parameters": 429, "mlp_macs": 246, "mlp_time": 600, "dense_3_macs": [17, 35, 68]}
CHANGED = {
    "base": set(),
    "skips_none": {"skips"},
    "skips_concat": {"skips"},
    "residual_off": {"residual"},
    "skips_none_image": {"skips"},
    "dense_0": {"dense_levels"},
    "dense_3": {"dense_levels"},
    "dense_3_macs": {"dense_levels", "widths"},
    "tokens_none": {"tokens"},
    **{f"attention_{kind}": {"attention"} for kind in ("none", "conv", "global", "channel")},
    "positions_off": {"positions"},
    "token_residual_off": {"token_residual"},
    "linear": {"projection"},
    **{f"mlp_{measure}": {"projection", "mlp_width"} for measure in ("parameters", "macs", "time")},
    "kan_grid_3": {"grid_size"},
    "kan_grid_10": {"grid_size"},
    "kan_degree_1": {"degree"},
    "kan_range_1": {"grid_range"},
    "kan_rational": {"basis"},
    "noise_u8": set(),
    "ends": {"ends"},
    "ends_u8": {"ends"},
}


def test_a_row_differs_in_what_it_says_and_in_nothing_else(bench):
    rows = bench.grid(SEARCHED)
    assert set(rows) == set(CHANGED) == set(bench.NAMES)
    for name, row in rows.items():
        against, recipes = rows[row.against], []
        for one in (row, against):
            recipes.append(bench.recipe("one", one, ["photos"], 3))
        changed = {key for key, value in row.args.items() if against.args.get(key) != value}
        assert changed == CHANGED[name] and set(against.args) <= set(row.args), name
        noise = [recipe["task_args"]["u8_share"] for recipe in recipes]
        assert noise == [float(one.noise == "u8") for one in (row, against)]
        assert (noise[0] != noise[1]) == (name == "noise_u8")
        for recipe in recipes:
            recipe.pop("model_args"), recipe["task_args"].pop("u8_share")
        assert recipes[0] == recipes[1]
        assert models.make("kunet_compact", row.args)
    assert [name for name, row in rows.items() if row.same_steps] == ["linear", *(n for n in rows if "mlp" in n)]


def test_equal_costs_are_equal_within_two_percent(bench):
    found = bench.mlp_widths(bench.BASE, 3)
    assert bench.count(bench.mlp(found["mlp_parameters"], bench.BASE)) == pytest.approx(
        bench.count(bench.kan(bench.BASE)), rel=0.02
    )
    rows = bench.grid(found)
    of = {name: bench.multiply_adds(rows[name].args) for name in ("base", "linear", "mlp_macs", "kan_rational")}
    tokens, dim = (bench.SIDE // 16) ** 2 * bench.BASE["token_depth"], bench.BASE["widths"][-1]
    projection = of["base"] - of["linear"] + tokens * dim**2
    assert of["mlp_macs"] - of["linear"] + tokens * dim**2 == pytest.approx(projection, rel=0.02)
    assert of["kan_rational"] - of["linear"] == tokens * dim**2 * 8  # all of G + k = 8 functions, whatever the place
    assert 8 <= found["mlp_time"] < 4096


def test_a_dense_network_of_equal_multiply_adds(bench, monkeypatch):
    dense = bench.BASE | {"dense_levels": 3, "widths": SEARCHED["dense_3_macs"]}
    assert bench.multiply_adds(dense) == pytest.approx(bench.multiply_adds(bench.BASE), rel=0.02)
    counted = lambda args: sum(width**2 for width in args["widths"]) * (1 + 0.8 * (args["dense_levels"] == 3))
    monkeypatch.setattr(bench, "multiply_adds", counted)
    widths = bench.dense_widths()
    assert widths[-1] % bench.BASE["heads"] == 0
    assert counted(dense | {"widths": widths}) == pytest.approx(counted(bench.BASE), rel=0.05)


def test_a_small_run(bench, small, photos, tmp_path, capsys):
    out, folder = tmp_path / "ablate.json", tmp_path / "runs"
    words = ["--data", photos, "--test", photos, "--seconds", "0.2", "--images", "2", "--seeds", "0", "1"]
    words += ["--folder", str(folder), "--out", str(out), "--only", "base", "tokens_none"]
    with pytest.raises(SystemExit):
        bench.main([*words, "--report"])
    assert "0 seeds are done" in capsys.readouterr().err and not small
    bench.main(words)
    assert small == ["base-0", "tokens_none-0", "base-1", "tokens_none-1"]  # an early stop leaves whole seeds
    content = json.loads(out.read_text())
    assert list(content)[:4] == ["command", "commit", "machine", "date"] and list(content)[-1] == "rows"
    assert content["seeds"] == [0, 1] and content["images"] == 2 and content["searched"] == {}
    base, row = (content["rows"][name] for name in ("base", "tokens_none"))
    each = [json.loads((folder / f"tokens_none-{seed}" / "result.json").read_text()) for seed in (0, 1)]
    assert [row["steps"]] * 2 == [result["steps"] for result in each] and row["seconds_a_step"] > 0
    assert row["parameters"] == each[0]["parameters"] < base["parameters"]
    assert row["macs_per_pixel"] < base["macs_per_pixel"] and row["seconds_a_megapixel"] > 0
    minus = [a - b for a, b in zip(row["psnr"]["each"], base["psnr"]["each"])]
    assert row["minus"]["each"] == pytest.approx(minus, abs=2e-3)
    assert row["minus"]["mean"] == pytest.approx(sum(minus) / 2, abs=2e-3)
    assert row["minus"]["standard_error"] == pytest.approx(abs(minus[0] - minus[1]) / 2, abs=2e-3)
    assert "minus" not in base and "u8" in base and "u8" not in row
    assert "zeroed" in base and "zeroed" not in row  # which has nothing to set to zero
    lost = [a - b for a, b in zip(base["psnr"]["each"], base["zeroed"]["psnr"]["each"])]
    assert base["zeroed"]["lost"]["each"] == pytest.approx(lost, abs=2e-3)
    small.clear()
    out.unlink()
    bench.main([*words, "--report"])
    again = json.loads(out.read_text())["rows"]
    assert not small and again["base"]["psnr"] == base["psnr"] and again["base"]["zeroed"] == base["zeroed"]


def test_a_projection_is_also_trained_for_the_steps_of_the_base(bench, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "scores", lambda weights, row, test, images: {"float": 25.0, "u8": 24.0})
    asked = {}

    def run_all(trials, folder, workers):
        asked.update(trials)
        return {name: {"steps": trial["steps"], "train_seconds": 1} for name, trial in trials.items()}

    monkeypatch.setattr(bench, "run_all", run_all)
    monkeypatch.setattr(bench, "costs", lambda rows: {name: {} for name in rows})
    monkeypatch.setattr(bench, "step_seconds", lambda rows, *_: {name: 0.1 + 0.1 * (name != "base") for name in rows})
    out = tmp_path / "ablate.json"
    bench.main(["--seeds", "4", "5", "--only", "base", "linear", "--out", str(out), "--folder", str(tmp_path)])
    assert asked["linear-4"]["steps"] == 40 and asked["base-5"]["steps"] == 80
    assert asked["linear-steps-4"] == asked["linear-4"] | {"steps": 80}
    row = json.loads(out.read_text())["rows"]["linear"]
    assert row["steps"] == 40 and row["equal_steps"]["steps"] == 80
    assert row["equal_steps"]["minus"]["mean"] == 0


def test_a_part_does_not_overwrite_the_results(bench, capsys):
    for words in (["--only", "base"], ["--seeds", "0", "1"], ["--seeds", "0", "--out", "other.json"]):
        with pytest.raises(SystemExit):
            bench.main(words)
        assert "another --out" in capsys.readouterr().err
