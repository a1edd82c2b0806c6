"""Networks of every task on photos: bounded memory, their own verbs, scores by the task's measures."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from kunet import recipes
from kunet.data.masks import Labelled, read_labelled
from kunet.images import to_tensor
from kunet.models import make
from kunet.restore import COLOURS, GRID, MARGIN, Network, Restorer, Segmenter, task_of
from kunet.runs import save_weights
from kunet.tiling import live_bytes

UNET = {"widths": [4, 6]}


def trained(path, task, classes=None, **task_args):
    """A weights file of a small untrained network, with a card that names its task."""
    torch.manual_seed(0)
    args = UNET | ({"classes": classes} if classes else {})
    card = {"recipe": {"task": task, "task_args": task_args}}
    save_weights(path, make("unet", args), "unet", args, card)
    return path


class Middle(nn.Module):
    """One logit: above 0 where the picture is brighter than half."""

    def forward(self, x, level=0.0):
        return x.mean(1, keepdim=True) - 0.5


class Chain(nn.Module):
    """Needs three maps of the image's size at once: 36 bytes a pixel."""

    def forward(self, x, level=0.0):
        a = x * 2
        b = x * 3
        return a + b


def test_live_bytes():
    x = torch.zeros(1, 3, 64, 64)
    assert live_bytes(lambda: Chain()(x)) == 3 * 12 * 64**2
    assert live_bytes(lambda: x * 2 * 2 * 2) == 2 * 12 * 64**2  # the first product is gone when the third is made
    assert live_bytes(lambda: x.view(-1)[:5]) <= x.untyped_storage().nbytes()
    assert Network(Chain()).bytes_per_pixel == pytest.approx(MARGIN * 36)


def test_large_images_are_tiled_and_small_ones_are_not():
    network = Network(Chain(), memory=MARGIN * 36 * 400**2)
    assert network.parts(400, 400) == ("whole", 1) and network.tile == 3 * GRID
    x = torch.rand(3, 500, 700)
    calls = []
    y = network.run(x, progress=lambda: calls.append(1))
    assert torch.allclose(y, 5 * x, atol=1e-5) and len(calls) == network.steps(500, 700) > 1


def test_masks(tmp_path):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8))
    mask = Segmenter(Middle()).photo(photo)
    wanted = np.asarray(photo).mean(2) > 127.5
    assert mask.mode == "P" and np.array_equal(np.asarray(mask), wanted)
    mask.save(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as saved:
        colours = np.asarray(saved.convert("RGB"))
    assert np.array_equal(colours[wanted][0], COLOURS[1]) and np.array_equal(colours[~wanted][0], COLOURS[0])


class Where(nn.Module):
    """One logit: above 0 in the right half of whatever it gets, which must be a square of 32 pixels."""

    def forward(self, x, level=0.0):
        assert x.shape[2:] == (32, 32)
        return torch.linspace(-1, 1, 32).expand(len(x), 1, 32, 32)


def test_masks_are_found_at_the_size_of_the_training():
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8))
    segmenter = Segmenter(Where(), size=32)
    mask = np.asarray(segmenter.photo(photo))
    assert mask.shape == (50, 90) and (mask == (np.arange(90) >= 45)).all()
    assert segmenter.steps(5000, 5000) == 1


def test_segmenting_is_what_is_evaluated(kunet, tmp_path):
    """`kunet segment` sees a folder's pictures as trainings and `kunet evaluate` do, and loads that size."""
    weights = trained(tmp_path / "w.safetensors", "segment", classes=3, size=48)
    path = tmp_path / "images" / "a.png"
    path.parent.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 100, 3), dtype=np.uint8)).save(path)
    segmenter = Segmenter.load(str(weights))
    seen = []
    segmenter.model.register_forward_pre_hook(lambda model, inputs: seen.append(inputs[0]))
    segmenter.photo(Image.open(path))
    example = read_labelled(Labelled(path, ()), 3, size=48)
    assert torch.equal(seen[0][0], to_tensor(example)[:3])
    default = trained(tmp_path / "d.safetensors", "segment", classes=3)
    assert Segmenter.load(str(default)).size == 128
    native = trained(tmp_path / "n.safetensors", "segment", classes=3, size=None)
    assert Segmenter.load(str(native)).size is None


def test_gray_stays_gray():
    restored = Restorer(Chain())(torch.full((1, 5, 5), 0.1))
    assert restored.shape == (1, 5, 5) and torch.allclose(restored, torch.tensor(0.5))
    with pytest.raises(ValueError, match="2 channels"):
        Restorer(Chain())(torch.zeros(2, 4, 4))


@pytest.mark.parametrize("task,args", [("deblur", {}), ("derain", {}), ("denoise", {"blind": True, "sigma": [0, 50]})])
def test_kunet_restore(kunet, photo, tmp_path, task, args):
    weights = trained(tmp_path / "w.safetensors", task, **args)
    result = kunet("restore", photo, "--weights", weights, "--quiet")
    assert result.returncode == 0, result
    with Image.open(photo.with_name("photo_restored.png")) as restored, Image.open(photo) as given:
        assert restored.size == given.size and restored.mode == "RGB"


def test_kunet_segment(kunet, photo, tmp_path):
    weights = trained(tmp_path / "w.safetensors", "segment", classes=3)
    assert kunet("segment", photo, "--weights", weights, "--quiet").returncode == 0
    with Image.open(photo.with_name("photo_mask.png")) as mask:
        assert mask.mode == "P" and int(np.asarray(mask).max()) < 3


def test_each_task_has_its_verb(refused, photo, tmp_path):
    told, blurred = (
        trained(tmp_path / f"{t}.safetensors", t, **a) for t, a in (("denoise", {"sigma": [0, 50]}), ("deblur", {}))
    )
    assert "must be told the noise; use kunet denoise --sigma" in refused("restore", photo, "--weights", told)
    usual = trained(tmp_path / "usual.safetensors", "denoise")
    assert "must be told the noise" in refused("restore", photo, "--weights", usual)
    assert "trained for the task deblur; use kunet restore" in refused("denoise", photo, "--weights", blurred)
    assert "trained for the task deblur; use kunet restore" in refused("segment", photo, "--weights", blurred)
    assert "the following arguments are required: --weights" in refused("restore", photo)
    assert "is the photo itself" in refused("restore", photo, "--weights", blurred, "-o", photo)


def test_kunet_evaluate_follows_the_task(kunet, tmp_path):
    weights = trained(tmp_path / "w.safetensors", "deblur")
    assert task_of(str(weights)) == ("deblur", {})
    out = tmp_path / "scores.json"
    result = kunet("evaluate", "--weights", weights, "--quiet", "--json", out)
    assert result.returncode == 0 and "bundled: 3 images, deblur: psnr" in result.stdout and "ssim" in result.stdout
    scores = json.loads(out.read_text())
    row = scores["results"]["bundled"]
    assert scores["task"] == "deblur" and len(row["rows"]) == row["images"] == 3
    assert row["psnr"] == pytest.approx(sum(r["psnr"] for r in row["rows"]) / 3, abs=1e-3)
    segmenting = trained(tmp_path / "s.safetensors", "segment", classes=3, size=64)
    result = kunet("evaluate", "drawn", "--weights", segmenting, "--quiet")
    assert "drawn: 50 images, segment: dice" in result.stdout and "iou" in result.stdout


def test_every_task_trains_evaluates_and_runs(kunet, photo, tmp_path):
    """A network that was trained to deblur by the command line mends a photo by the command line."""
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "name: mine\nmodel: unet\nmodel_args: {widths: [4, 6]}\ntask: deblur\nsteps: 3\n"
        "phases: [{share: 1.0, patch: 32, batch: 2}]\n"
    )
    run = tmp_path / "run"
    assert kunet("train", "--recipe", recipe, "--out", run, "--device", "cpu", "--quiet").returncode == 0
    card = json.loads((run / "weights.json").read_text())
    assert card["held_out_psnr"][-1][0] == 3 and recipes.build("card", card["recipe"]).task == "deblur"
    assert kunet("restore", photo, "--weights", run / "weights.safetensors", "--quiet").returncode == 0
    clean, mended = (to_tensor(Image.open(p)) for p in (photo, photo.with_name("photo_restored.png")))
    assert clean.shape == mended.shape and not torch.equal(clean, mended)
