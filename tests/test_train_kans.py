"""KM-UNet learns to segment, grids extended and edges pruned on the way, and a stop anywhere changes nothing."""

import pytest
import torch
from safetensors.torch import load_file

from kunet import recipes
from kunet.kan import KANConv2d
from kunet.runs import load_weights
from kunet.train import train

FEW = {
    "model_args": {"widths": [3, 4], "convs": 1, "normalise": "batch", "grid_range": [-2.5, 2.5], "classes": 3},
    "task_args": {"classes": 3, "objective": "dice", "sigma": 10, "size": 32},
    "data": ["drawn:4"],
    "steps": 12,
    "phases": [{"share": 0.5, "patch": 16, "batch": 4}, {"share": 0.5, "patch": 32, "batch": 2}],
    "warmup": 2,
    "extend": [{"at": 0.25, "grid_size": 8}, {"at": 0.75, "grid_size": 10}],
    "prune": [{"at": 0.5, "share": 0.3}],
    "control_l1": 1e-4,
    "save_every": 5,
    "log_every": 1,
}


def few(**changes):
    """The released recipe, in small: what it does to its network on the way happens at steps 3, 6 and 9."""
    return recipes.load("kmunet_drawn", FEW | changes)


def weights(run):
    return load_file(run.folder / "weights.safetensors")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Layers so small are fastest on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train(few(), tmp_path_factory.mktemp("whole"), progress=False)


def test_it_ends_as_the_recipe_says(whole):
    model, card = load_weights(whole.folder / "weights.safetensors")
    layers = [module for module in model.modules() if isinstance(module, KANConv2d)]
    masked = [1 - float(layer.edge_mask.mean()) for layer in layers]
    assert {layer.grid_size for layer in layers} == {10} and max(masked) > 0 and min(masked) < 1
    norms = [value for key, value in model.state_dict().items() if key.endswith("running_mean")]
    assert norms and all(bool(value.any()) for value in norms)
    assert card["held_out_dice"][-1][0] == 12


@pytest.mark.parametrize("stops", [[2], [3], [4, 6], [7, 9, 10], [5, 11]])
def test_a_stop_anywhere_changes_nothing(whole, tmp_path, stops):
    """Before, at and after every change: weights, masks, grids and the statistics of the norms, to the bit."""
    for stop in stops:
        pieces = train(few(), tmp_path / "run", progress=False, stop_after=stop)
        assert not (pieces.folder / "weights.safetensors").exists()
    pieces = train(few(), tmp_path / "run", progress=False)
    one, other = weights(whole), weights(pieces)
    assert one.keys() == other.keys() and any("running_var" in key for key in one)
    assert [key for key in one if not torch.equal(one[key], other[key])] == []
    losses = [[(row["step"], row["loss"]) for row in run.read_log() if "loss" in row] for run in (whole, pieces)]
    assert losses[0] == losses[1] and len(losses[0]) == 12


@pytest.mark.parametrize("objective", ["cross_entropy", "weighted_cross_entropy"])
def test_every_loss_survives_a_stop(tmp_path, objective):
    recipe = few(task_args=FEW["task_args"] | {"objective": objective})
    one = train(recipe, tmp_path / "whole", progress=False)
    train(recipe, tmp_path / "pieces", progress=False, stop_after=7)
    other = train(recipe, tmp_path / "pieces", progress=False)
    assert all(torch.equal(weights(one)[key], value) for key, value in weights(other).items())


@pytest.mark.parametrize("event", [{"extend": [{"at": 0.97, "grid_size": 8}]}, {"prune": [{"at": 0.03, "share": 0.1}]}])
def test_a_change_that_no_step_would_make_is_refused(event):
    """Shares that round to the end, or to before the first step, would be dropped without a word."""
    with pytest.raises(ValueError, match=f"{next(iter(event))}: at .* of 12 steps"):
        few(**event)
