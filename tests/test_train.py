"""The training loop: it learns, it resumes bit for bit, it stops honestly."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from kunet import recipes
from kunet.runs import load_weights
from kunet.train import train

FEW = {
    "model_args": {"widths": [4, 8], "depths": [1, 1], "token_depth": 1, "heads": 2},
    "steps": 12,
    "phases": [{"share": 0.5, "patch": 16, "batch": 4}, {"share": 0.5, "patch": 32, "batch": 2}],
    "save_every": 4,
    "log_every": 2,
    "warmup": 2,
    "task_args": {"sigma": [10, 50], "u8_share": 0.5, "focus_share": 0.3},
}


def few(**changes):
    return recipes.load("quick", FEW | changes)


def weights(run):
    return load_file(run.folder / "weights.safetensors")


def test_the_same_twice_and_another_seed(tmp_path):
    one, two, other = (train(few(seed=s), tmp_path / n, progress=False) for s, n in ((1, "a"), (1, "b"), (2, "c")))
    assert all(torch.equal(weights(one)[k], weights(two)[k]) for k in weights(one))
    assert any(not torch.equal(weights(one)[k], weights(other)[k]) for k in weights(one))


@pytest.mark.parametrize("stops", [[4], [5], [1, 6, 11]])
def test_resume_is_bit_identical(tmp_path, stops):
    whole = train(few(), tmp_path / "whole", progress=False)
    for stop in stops:
        pieces = train(few(), tmp_path / "pieces", progress=False, stop_after=stop)
        assert not (pieces.folder / "weights.safetensors").exists()
    pieces = train(few(), tmp_path / "pieces", progress=False)
    assert all(torch.equal(weights(whole)[k], weights(pieces)[k]) for k in weights(whole))


def test_it_learns(tmp_path):
    recipe = few(
        steps=80, lr=0.01, ema=0.9, phases=[{"share": 1.0, "patch": 32, "batch": 4}], task_args={"sigma": [50, 50]}
    )
    log = train(recipe, tmp_path / "run", progress=False).read_log()
    losses = [row["loss"] for row in log if "loss" in row]
    assert losses[-1] < losses[0] - 0.5  # more than 2 dB
    scores = [row["psnr"] for row in log if "psnr" in row]
    assert scores[-1] > scores[0]


def test_the_run_says_what_it_is(tmp_path):
    run = train(few(), tmp_path / "run", progress=False)
    assert json.loads((run.folder / "recipe.json").read_text())["steps"] == 12
    card = json.loads((run.folder / "weights.json").read_text())
    assert card["photos"] == 3 and card["recipe"]["name"] == "quick" and card["held_out_psnr"][-1][0] == 12
    assert [row["step"] for row in run.read_log() if "loss" in row] == [2, 4, 6, 8, 10, 12]


def test_bf16(tmp_path):
    run = train(few(precision="bf16"), tmp_path / "run", progress=False)
    assert all(v.dtype == torch.float32 and bool(v.isfinite().all()) for v in weights(run).values())


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(tmp_path):
    train(few(), tmp_path / "run", progress=False, stop_after=4)
    run_state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    run_state["model"]["tail.weight"].fill_(float("nan"))
    torch.save(run_state, tmp_path / "run" / "checkpoint.pt")
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    with pytest.raises(FloatingPointError, match="at step 4"):
        train(few(), tmp_path / "run", progress=False)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before


def test_another_model_in_the_folder(tmp_path):
    train(few(), tmp_path / "run", progress=False, stop_after=2)
    with pytest.raises(ValueError, match="was started with model 'kunet_compact', not 'unet'"):
        train(few(model="unet", model_args={"widths": [4]}), tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match="was started with seed 0, not 5"):
        train(few(seed=5), tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match="is at step 2 of 1"):
        train(few(steps=1), tmp_path / "run", progress=False)


def test_own_photos(tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    run = train(few(data=[str(tmp_path / "photos")], held_out=1, steps=2), tmp_path / "run", progress=False)
    assert json.loads((run.folder / "weights.json").read_text())["photos"] == 2


KANS = {
    "extend": [{"at": 0.25, "grid_size": 10}, {"at": 0.75, "grid_size": 12}],
    "prune": [{"at": 0.5, "share": 0.3}],
    "control_l1": 1e-3,
    "control_l2": 1e-3,
}


def test_grids_and_masks_change_on_the_way(tmp_path):
    run = train(few(**KANS), tmp_path / "run", progress=False)
    state = torch.load(run.folder / "checkpoint.pt", weights_only=True)
    for weights_of in (state["model"], state["average"]):
        (name,) = (k for k in weights_of if k.endswith("spline_weight"))
        masked = 1 - float(weights_of[name.replace("spline_weight", "edge_mask")].mean())
        assert weights_of[name].shape[2] == 12 + 3 and 0 < masked < 1
    model, _ = load_weights(run.folder / "weights.safetensors")
    assert model.tokens[0].kan.grid_size == 12 and 0 < float(model.tokens[0].kan.edge_mask.mean()) < 1


@pytest.mark.parametrize("stops", [[3], [4, 7], [5, 9]])  # on, before and after the changes
def test_resume_with_changing_grids_is_bit_identical(tmp_path, stops):
    whole = train(few(**KANS), tmp_path / "whole", progress=False)
    for stop in stops:
        train(few(**KANS), tmp_path / "pieces", progress=False, stop_after=stop)
    pieces = train(few(**KANS), tmp_path / "pieces", progress=False)
    assert all(torch.equal(weights(whole)[k], weights(pieces)[k]) for k in weights(whole))
    with pytest.raises(ValueError, match="was started with steps 12, not 13"):
        train(few(**KANS, **{"steps": 13}), tmp_path / "pieces", progress=False)


def test_extension_keeps_the_function(tmp_path):
    """At the step of an extension the loss is the one that the coarse grid would have given."""
    logs = [
        train(few(log_every=1, **changes), tmp_path / str(i), progress=False, stop_after=4).read_log()
        for i, changes in enumerate(({}, {"extend": [{"at": 0.25, "grid_size": 10}]}))
    ]
    losses = [[row["loss"] for row in log if "loss" in row] for log in logs]
    assert losses[0][3] == pytest.approx(losses[1][3], abs=1e-5)


def test_penalties_shrink_control_values(tmp_path):
    sizes = []
    for i, weight in enumerate((0.0, 100.0)):
        run = train(few(control_l2=weight, ema=0.0), tmp_path / str(i), progress=False)
        sizes += [float(v.norm()) for k, v in weights(run).items() if k.endswith("spline_weight")]
    assert sizes[1] < 0.95 * sizes[0]


def test_start_weights(tmp_path):
    first = train(few(), tmp_path / "first", progress=False)
    path = str(first.folder / "weights.safetensors")
    tuned = train(few(start=path, steps=1, warmup=0, lr=1e-12, ema=0.0), tmp_path / "tuned", progress=False)
    assert all(torch.allclose(weights(first)[k], weights(tuned)[k], atol=1e-6) for k in weights(first))
    with pytest.raises(ValueError, match=r"start .*weights\.safetensors holds another model"):
        train(few(start=path, model="unet", model_args={"widths": [4]}), tmp_path / "other", progress=False)
    with pytest.raises(ValueError, match="no such weights file"):
        train(few(start="nowhere"), tmp_path / "other", progress=False)


def test_kan_options_need_kan_layers(tmp_path):
    with pytest.raises(ValueError, match="unet has no KAN layer"):
        train(few(model="unet", model_args={"widths": [4]}, **KANS), tmp_path / "run", progress=False)
