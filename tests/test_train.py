"""The training loop: it learns, it resumes bit for bit, it stops honestly."""

import errno
import itertools
import json
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from kunet import recipes, tasks
from kunet.runs import Run, checkpoints, load_weights
from kunet.train import learning_rate, train

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


def same(one, other):
    one, other = weights(one), weights(other)
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def rows(run):
    """The log without what clocks say."""
    return [{k: v for k, v in row.items() if k not in ("time", "crops_per_s")} for row in run.read_log()
            if "event" not in row]  # fmt: skip


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
        assert pieces.status() == ("paused", stop)
    pieces = train(few(), tmp_path / "pieces", progress=False)
    assert same(whole, pieces) and rows(whole) == rows(pieces) and pieces.status() == ("done", 12)


def test_helpers_and_smaller_pieces_change_nothing(tmp_path):
    whole = train(few(), tmp_path / "whole", progress=False)
    assert same(whole, train(few(workers=2), tmp_path / "helped", progress=False))
    parts = train(few(micro_batch=1), tmp_path / "parts", progress=False)
    for one, other in zip(rows(whole), rows(parts)):
        assert one == pytest.approx(other, rel=1e-5)
    assert same(parts, train(few(micro_batch=1, workers=1), tmp_path / "again", progress=False))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_pauses_after_the_step(tmp_path, monkeypatch, name):
    whole = train(few(), tmp_path / "whole", progress=False)
    loss, calls = tasks.Denoise.loss, itertools.count()

    def signalled(self, model, batch):
        if next(calls) == 2:
            os.kill(os.getpid(), getattr(signal, name))
        return loss(self, model, batch)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(tasks.Denoise, "loss", signalled)
        run = train(few(workers=int(name == "SIGTERM")), tmp_path / "run", progress=False)
    assert run.status() == ("paused", 3) and signal.getsignal(signal.SIGTERM) == before
    assert run.read_log()[-1]["why"] == name
    assert same(whole, train(few(), tmp_path / "run", progress=False))


def test_the_best_weights_are_kept(tmp_path):
    run = train(few(), tmp_path / "run", progress=False)
    scores = {row["step"]: row["psnr"] for row in run.read_log() if "psnr" in row}
    best = max(scores, key=scores.get)
    card = json.loads((run.folder / "best.json").read_text())
    assert card["step"] == best and load_weights(run.folder / "best.safetensors")
    assert len(list((run.folder / "checkpoints").iterdir())) == 2
    assert len(list((train(few(keep=1), tmp_path / "one", progress=False).folder / "checkpoints").iterdir())) == 1


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(tmp_path, capsys):
    whole = train(few(), tmp_path / "whole", progress=False)
    train(few(), tmp_path / "run", progress=False, stop_after=9)
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    run = train(few(), tmp_path / "run", progress=False)
    assert f"{newest}: damaged" in capsys.readouterr().err and same(whole, run)
    assert [row["event"] for row in run.read_log() if "event" in row] == ["started", "paused", "damaged", "started"]
    assert run.read_log()[-1]["step"] == 12 and rows(whole) == rows(run)


def test_a_full_disk_stops_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    whole = train(few(), tmp_path / "whole", progress=False)
    train(few(), tmp_path / "run", progress=False, stop_after=6)
    with monkeypatch.context() as patch:
        full = OSError(errno.ENOSPC, "No space left on device", "x")
        patch.setattr(checkpoints._File, "write", lambda self, data: (_ for _ in ()).throw(full))
        with pytest.raises(OSError, match="No space left"):
            train(few(), tmp_path / "run", progress=False)
    assert Run(tmp_path / "run").status() == ("failed", 6)
    assert not [p for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.startswith(".")]
    assert same(whole, train(few(), tmp_path / "run", progress=False))


def test_cosine():
    recipe = few(schedule="cosine", warmup=2)
    rates = [learning_rate(recipe, step) for step in range(12)]
    assert rates[0] == recipe.lr / 2 and rates[2] == recipe.lr and rates[7] == pytest.approx(recipe.lr / 2)
    assert all(a > b for a, b in itertools.pairwise(rates[2:]))


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


def spoil(monkeypatch, steps):
    """The loss is not a number at these calls of it (a step each)."""
    loss, calls = tasks.Denoise.loss, itertools.count()
    broken = lambda self, model, batch: loss(self, model, batch) * (float("nan") if next(calls) in steps else 1)
    monkeypatch.setattr(tasks.Denoise, "loss", broken)


def test_a_step_without_a_finite_loss_is_skipped_and_logged(tmp_path, monkeypatch):
    spoil(monkeypatch, {2, 3})
    run = train(few(log_every=1), tmp_path / "run", progress=False)
    rows = run.read_log()
    assert [row["step"] for row in rows if row.get("event") == "skipped"] == [3, 4]
    assert [row["step"] for row in rows if "loss" in row and "event" not in row] == [1, 2, *range(5, 13)]
    assert all(bool(value.isfinite().all()) for value in weights(run).values()) and run.status() == ("done", 12)


def test_three_in_a_row_stop_and_keep_the_checkpoint(tmp_path, monkeypatch):
    whole = train(few(), tmp_path / "whole", progress=False)
    with monkeypatch.context() as patch:
        spoil(patch, {4, 5, 6})
        with pytest.raises(FloatingPointError, match="at step 6, and no finite ones in the 2 steps before"):
            train(few(), tmp_path / "run", progress=False)
    assert Run(tmp_path / "run").status() == ("failed", 4)
    mended = train(few(), tmp_path / "run", progress=False)
    assert same(whole, mended)


def test_a_skip_counts_across_a_stop(tmp_path, monkeypatch):
    spoil(monkeypatch, {4, 5, 6})
    train(few(), tmp_path / "run", progress=False, stop_after=6)
    with pytest.raises(FloatingPointError, match="at step 6"):
        train(few(), tmp_path / "run", progress=False)


def test_too_little_memory(tmp_path, monkeypatch):
    def full(self, model, batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(tasks.Denoise, "loss", full)
    with pytest.raises(ValueError, match=r"step 0: 4 crops of 16 x 16 do not fit .* --micro-batch 2 .*--recompute"):
        train(few(), tmp_path / "run", progress=False)
    assert Run(tmp_path / "run").status() == ("failed", 0)


def test_another_model_in_the_folder(tmp_path):
    train(few(), tmp_path / "run", progress=False, stop_after=2)
    with pytest.raises(ValueError, match="was started with model 'kunet_compact', not 'unet'"):
        train(few(model="unet", model_args={"widths": [4]}), tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match="was started with seed 0, not 5"):
        train(few(seed=5), tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match="was started with optimizer 'adamw', not 'muon'"):
        train(few(optimizer="muon"), tmp_path / "run", progress=False)
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
    state = run.load()
    for weights_of in (state["model"], state["average"]):
        (name,) = (k for k in weights_of if k.endswith("spline_weight"))
        masked = 1 - float(weights_of[name.replace("spline_weight", "edge_mask")].mean())
        assert weights_of[name].shape[2] == 12 + 3 and 0 < masked < 1
    model, _ = load_weights(run.folder / "weights.safetensors")
    assert model.tokens[0].kan.grid_size == 12 and 0 < float(model.tokens[0].kan.edge_mask.mean()) < 1


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("stops", [[3], [4, 7], [5, 9]])  # on, before and after the changes
def test_resume_with_changing_grids_is_bit_identical(tmp_path, stops, optimizer):
    changes = KANS | {"optimizer": optimizer}
    whole = train(few(**changes), tmp_path / "whole", progress=False)
    for stop in stops:
        train(few(**changes), tmp_path / "pieces", progress=False, stop_after=stop)
    pieces = train(few(**changes), tmp_path / "pieces", progress=False)
    assert all(torch.equal(weights(whole)[k], weights(pieces)[k]) for k in weights(whole))
    with pytest.raises(ValueError, match="was started with steps 12, not 13"):
        train(few(**changes, **{"steps": 13}), tmp_path / "pieces", progress=False)


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


def test_a_bad_batch_leaves_running_statistics_alone(tmp_path, monkeypatch):
    fields = {
        "model": "dncnn",
        "model_args": {"width": 8, "depth": 4},
        "phases": [{"share": 1, "patch": 16, "batch": 2}],
    }
    batch, calls = tasks.Denoise.batch, itertools.count()

    def spoiled(self, crops, generator):
        made = batch(self, crops, generator)
        return type(made)(made.input * (float("nan") if next(calls) == 5 else 1), made.noise_level, made.target)

    monkeypatch.setattr(tasks.Denoise, "batch", spoiled)
    run = train(few(**fields), tmp_path / "run", progress=False)
    assert all(bool(value.isfinite().all()) for value in weights(run).values())
    assert [row["step"] for row in run.read_log() if row.get("event") == "skipped"] == [3]


def test_a_mistyped_command_changes_nothing(tmp_path):
    train(few(), tmp_path / "run", progress=False)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    before.pop(tmp_path / "run" / "owner.json")
    with pytest.raises(ValueError, match=r"was started with lr 0\.002, not 1\.0"):
        train(few(lr=1.0), tmp_path / "run", progress=False)
    assert before == {path: path.read_bytes() for path in before} and Run(tmp_path / "run").status() == ("done", 12)


def test_pruning_does_not_depend_on_dropout(tmp_path):
    args = {"widths": [4, 8], "hidden": 8, "projections": [12, 8], "heads": 2, "dropout": 0.3}
    fields = {"model": "kunet", "model_args": args, "prune": [{"at": 0.5, "share": 0.3}]}
    whole = train(few(**fields), tmp_path / "whole", progress=False)
    train(few(**fields), tmp_path / "pieces", progress=False, stop_after=6)
    assert same(whole, train(few(**fields), tmp_path / "pieces", progress=False))


def test_a_stop_after_skipped_steps_says_where_it_goes_on(tmp_path, monkeypatch):
    spoil(monkeypatch, {6, 7})
    run = train(few(), tmp_path / "run", progress=False, stop_after=8)
    assert run.status() == ("paused", checkpoints.saved(run.folder / "checkpoints")[-1][0]) == ("paused", 8)


def test_a_helper_that_fails_says_so_in_a_line(tmp_path, monkeypatch):
    def broken(self, crops, generator):
        raise OSError(errno.EIO, "Input/output error", "photo.png")

    monkeypatch.setattr(tasks.Denoise, "batch", broken)
    with pytest.raises(ValueError, match=r"a helper that prepares crops failed: .*photo\.png") as caught:
        train(few(workers=1, data=["bundled"]), tmp_path / "run", progress=False)
    assert "\n" not in str(caught.value)
