"""The audit of the published claims is fair by its own rules: a pair differs in what it names, costs are as counted."""

import importlib
import json
import shutil
from functools import partial

import pytest
import torch
from conftest import ROOT
from PIL import Image

from kunet import recipes
from kunet.data import bundled
from kunet.kan import KANLinear
from kunet.models import KUnet
from kunet.train import train


@pytest.fixture(scope="module")
def claims():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("claims")


SCALES = ("SMALL", "FULL")
KUNET = {"widths": (4, 6, 8, 8, 16), "hidden": 24, "heads": 2, "projections": (20, 16)}


@pytest.fixture(scope="module")
def configs(claims):
    return {scale: claims.configurations(getattr(claims, scale)) for scale in SCALES}


@pytest.mark.parametrize("scale", SCALES)
def test_equal_costs_are_equal_within_two_percent(claims, configs, scale):
    of = configs[scale]
    for peer, to in (("unet_dense_narrow", "unet"), ("fixed_conv", "fixed"), ("mlp_parameters", "fixed")):
        assert claims.parameters(of[peer]) == pytest.approx(claims.parameters(of[to]), rel=0.02)
    kan, mlp = (claims.multiply_adds(of[name]) for name in ("fixed", "mlp_multiply_adds"))
    projections = claims.multiply_adds(of["fixed"]) - claims.multiply_adds(without_projections(of["fixed"]))
    assert abs(kan - mlp) < 0.02 * projections < 0.02 * kan  # even of the layers that differ, alone


def without_projections(config):
    """The same network with the cheapest of chains."""
    model, arguments, *step = config
    return (model, {**arguments, "projection": "mlp", "mlp_width": 1}, *step)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    "audit,pair,named",
    [
        ("skips", ("with", "without"), {"skips"}),
        ("separable", ("separable", "dense"), {"separable"}),
        ("separable", ("separable", "dense_narrow"), {"separable", "widths"}),
        ("tokens", ("compat", "compat_without"), {"tokens"}),
        ("tokens", ("fixed", "fixed_without"), {"tokens"}),
        ("tokens", ("fixed", "control"), {"projection", "mlp_width"}),
        ("tokens", ("fixed", "compat"), {"fusion"}),
        ("projections", ("kan", "mlp_parameters"), {"projection", "mlp_width"}),
        ("projections", ("kan", "mlp_multiply_adds"), {"projection", "mlp_width"}),
    ],
)
def test_a_pair_differs_in_what_it_names_alone(claims, configs, scale, audit, pair, named):
    assert pair in claims.PAIRS[audit]
    one, other = (claims.recipe(configs[scale][claims.AUDITS[audit][row]], "bundled", 1e-3, 7) for row in pair)
    arguments = [recipe.pop("model_args") for recipe in (one, other)]
    assert one == other
    assert {key for key in {*arguments[0], *arguments[1]} if arguments[0].get(key) != arguments[1].get(key)} == named


def test_every_pair_and_every_configuration_is_used(claims, configs):
    assert {name for rows in claims.AUDITS.values() for name in rows.values()} == set(configs["SMALL"])
    assert {row for audit in claims.PAIRS for pair in claims.PAIRS[audit] for row in pair} == {
        row for rows in claims.AUDITS.values() for row in rows
    }


def test_multiply_adds_by_hand(claims, configs):
    """Of a UNet of one dense level, and of the token branch (the one difference between two rows)."""
    unet = ("unet", {"widths": [4], "separable": False}, 64, 8)
    assert claims.multiply_adds(unet, 32) == 32**2 * (9 * 3 * 4 + 9 * 4 * 4 + 4 * 3)
    side, d, f = 128, 64, 256
    n = (side // 32) ** 2
    kan = sum(i * (o * 5 + 13) for i, o in ((64, 128), (128, 192), (192, 64)))
    attention = 4 * d * d + 2 * n * d + 2 * d * f
    expected = n * (4 * d * d + attention + kan + 4 * d * d)
    fixed, without = (claims.multiply_adds(configs["SMALL"][name], side) for name in ("fixed", "fixed_without"))
    assert fixed - without == expected


def test_summaries_on_made_up_runs(claims):
    fast = [{"steps": 100, "validation": [[50, 20.0], [100, 30.0]]}] * 2
    slow = [{"steps": 200, "validation": [[100, 15.0], [200, v]]} for v in (19.0, 25.0)]
    same = claims.steps_to_same(fast, slow)
    assert same["steps_with"]["each"] == [50, 100] and same["steps_without"]["mean"] == 200
    assert same["times_fewer"]["each"] == [4.0, 2.0] and same["reached"] == 2
    assert claims.steps_to_same(slow[:1], fast[:1])["reached"] == 0
    equal = claims.equal_steps(fast, slow, decay=0.0)
    assert equal["steps"]["each"] == [100, 100] and equal["validation_minus"]["each"] == [15.0, 15.0]
    assert claims.equal_steps(fast, slow)["steps"]["mean"] == 70  # before the rate falls
    assert claims.spread([1.0, 2.0, 3.0]) == {"mean": 2.0, "std": 1.0, "each": [1.0, 2.0, 3.0]}


def test_published_numbers_need_the_published_settings(claims, tmp_path, monkeypatch):
    out = tmp_path / "claims.json"
    monkeypatch.setattr(claims, "RESULTS", out)
    for words in (["--seconds", "1"], ["--seeds", "0"], ["--only", "skips"], ["--rates", "0.1"]):
        with pytest.raises(SystemExit):
            claims.main([*words, "--out", str(out)])
    assert not out.exists()


def test_full_scale_is_planned(claims, tmp_path, capsys):
    claims.main(["--plan", "--data", "DIV2K", "--folder", str(tmp_path), "--teraflops", "10"])
    printed = capsys.readouterr().out
    made = {path.stem: recipes.load(str(path)) for path in tmp_path.glob("*.yaml")}
    assert len(made) == 11 * 3 and made["fixed-2"].seed == 2 and made["compat-0"].data == ["DIV2K"]
    assert {(r.steps, r.warmup, r.precision) for r in made.values()} == {(100_000, 2000, "bf16")}
    work = {n: 6 * claims.multiply_adds(c, c[2]) * c[3] for n, c in claims.configurations(claims.FULL).items()}
    hours = 3 * sum(work.values()) * claims.FULL_STEPS / 10e12 / 3600
    assert f"{hours:.0f} h" in printed and "138,137,057 parameters" in printed


def test_one_pair_from_training_to_table(claims, tmp_path, capsys, monkeypatch):
    """Ten steps of either, much smaller still: what comes out has the right shape, and is not computed twice."""
    monkeypatch.setattr(claims, "SMALL", claims.Scale(({"widths": [4, 8]}, 32, 2), claims.SMALL.kunet))
    monkeypatch.setattr(claims, "inference", partial(claims.inference, side=64, repeats=1))
    monkeypatch.setattr(claims, "CURVE", 5)
    (photos := tmp_path / "photos").mkdir()
    for i in range(8):
        Image.fromarray(bundled("heldout")["chelsea"][: 48 + i, 40 * i : 40 * i + 64]).save(photos / f"{i}.png")
    out = tmp_path / "out.json"
    words = ["--seconds", "0.1", "--seeds", "0", "--rates", "0.002", "--only", "skips", "--folder", str(tmp_path / "r")]
    words += ["--data", str(photos), "--test", str(photos), "--out", str(out)]
    claims.main(words)
    found = json.loads(out.read_text())
    rows = found["skips"]
    assert (found["photos"], found["held_out"], found["test_images"]) == (2, 6, 8) and str(tmp_path) not in found[
        "command"
    ]
    assert rows["with_minus_without"]["psnr"]["mean"] == pytest.approx(
        rows["with"]["psnr"]["mean"] - rows["without"]["psnr"]["mean"], abs=2e-3
    )
    assert rows["with"]["curve"]["steps"][-1] == rows["with"]["steps"]["mean"] >= 10
    assert len(rows["with"]["curve"]["psnr"]) == len(rows["with"]["curve"]["steps"]) <= 5
    assert "skips without" in capsys.readouterr().out
    before = [path.stat().st_mtime_ns for path in sorted((tmp_path / "r").rglob("result.json"))]
    claims.main(words)
    assert len(before) == 2
    assert before == [path.stat().st_mtime_ns for path in sorted((tmp_path / "r").rglob("result.json"))]


def test_the_full_scale_is_run_and_goes_on(claims, tmp_path, capsys, monkeypatch):
    """Of a made-up full scale of a few steps: by steps, through the same path; one that was stopped is continued."""
    monkeypatch.setattr(claims, "FULL", claims.Scale(({"widths": [4, 8]}, 32, 2), claims.SMALL.kunet))
    monkeypatch.setattr(claims, "inference", partial(claims.inference, side=64, repeats=1))
    monkeypatch.setattr(claims, "CURVE", 2)
    monkeypatch.setattr(claims, "FULL_STEPS", 6)
    (photos := tmp_path / "photos").mkdir()
    for i in range(8):
        Image.fromarray(bundled("heldout")["chelsea"][: 48 + i, 40 * i : 40 * i + 64]).save(photos / f"{i}.png")
    runs, out = tmp_path / "runs", tmp_path / "out.json"
    words = ["--full", "--device", "cpu", "--seeds", "0", "--only", "skips", "--seconds", "0.01"]
    words += ["--folder", str(runs), "--data", str(photos), "--test", str(photos), "--out", str(out)]
    claims.main(words)
    first = json.loads(out.read_text())
    assert first["steps"] == 6 and first["device"] == "cpu" and "seconds" not in first
    assert "--full --device cpu" in first["command"]
    row = first["skips"]["without"]
    assert row["steps"]["mean"] == 6 and row["curve"]["steps"] == [3, 6] and row["arguments"]["widths"] == [4, 8]
    assert {path.name for path in runs.iterdir()} == {"unet-0", "unet_no_skips-0"}  # one rate: nothing to choose

    trial = json.loads((runs / "unet-0" / "trial.json").read_text())
    asked = trial["recipe"] | {"steps": 6, "threads": 1, "save_every": 3}
    assert trial["steps"] == 6 and trial["recipe"]["precision"] == "fp32" and asked["warmup"] == 0
    for name in ("result.json", "run-6"):
        path = runs / "unet-0" / name
        path.unlink() if path.is_file() else shutil.rmtree(path)
    stopped = train(recipes.build("trial", asked), runs / "unet-0" / "run-6", progress=False, stop_after=3)
    assert stopped.status() == ("paused", 3)
    claims.main(words)
    again = json.loads(out.read_text())
    assert again["skips"]["with"]["psnr"] == first["skips"]["with"]["psnr"]
    starts = [row["at"] for row in stopped.read_log() if row.get("event") == "started"]
    assert starts == [0, 3]


def test_the_scales_do_not_mix(claims, tmp_path):
    for words in (["--full", "--out", str(claims.RESULTS)], ["--full", "--seeds", "0"], ["--device", "cuda"]):
        with pytest.raises(SystemExit):
            claims.main(["--folder", str(tmp_path), *words])


@pytest.mark.parametrize("fusion", ["compat", "fixed"])
def test_kunet_without_tokens_is_the_rest_of_kunet(fusion):
    whole, rest = KUnet(fusion, **KUNET), KUnet(fusion, **KUNET, tokens=False)
    missing = set(whole.state_dict()) - set(rest.state_dict())
    assert set(rest.state_dict()) < set(whole.state_dict())
    assert {key.split(".")[0] for key in missing} == {"tokenizer", "attention", "projections"} | (
        {"unpatchify"} if fusion == "fixed" else set()
    )
    x = torch.rand(2, 3, 64, 64)
    rest(x).sum().backward()
    assert all(float(p.grad.abs().max()) > 0 for p in rest.parameters())


def test_kunet_without_tokens_is_fixed_whose_branch_adds_nothing():
    whole = KUnet(**KUNET).eval()
    torch.nn.init.zeros_(whole.unpatchify.weight)
    torch.nn.init.zeros_(whole.unpatchify.bias)
    rest = KUnet(**KUNET, tokens=False).eval()
    rest.load_state_dict({k: v for k, v in whole.state_dict().items() if k in rest.state_dict()})
    x = torch.rand(1, 3, 33, 47)
    with torch.no_grad():
        assert torch.equal(whole(x), rest(x))


@pytest.mark.parametrize("fusion", ["compat", "fixed"])
@pytest.mark.parametrize("projection", ["mlp", "conv"])
def test_kunet_with_another_projection(fusion, projection):
    model = KUnet(fusion, **KUNET, projection=projection, mlp_width=12)
    assert not any(isinstance(m, KANLinear) for m in model.modules())
    assert hasattr(model, "attention") == (projection == "mlp")
    x = torch.rand(2, 3, 64, 96)
    y = model(x)
    assert y.shape == x.shape
    y.square().sum().backward()
    assert all(float(p.grad.abs().max()) > 0 for p in model.parameters())


def test_kunet_refuses_an_unknown_projection():
    with pytest.raises(ValueError, match='projection is \'spline\'; it must be "kan", "mlp" or "conv"'):
        KUnet(projection="spline")
