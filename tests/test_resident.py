"""Crops that are cut on the device: which they are, that they are drawn evenly, and what is fed to a training."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_train import few, rows, same, weights

from kunet import tasks
from kunet.data import bundled, load_photos
from kunet.data import resident as module
from kunet.data.pack import pack
from kunet.data.resident import Resident
from kunet.distributed import Group
from kunet.recipes import Phase
from kunet.runs import Run
from kunet.train import schedule, train
from kunet.train.feed import OnDevice, feed

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))]
SHAPES = [(20, 30), (9, 40), (33, 12)]


def numbered() -> list[np.ndarray]:
    """Photos whose pixels say where they are: (photo, row, column)."""
    grid = lambda i, h, w: np.stack([np.full((h, w), i), *np.mgrid[:h, :w]], -1).astype(np.uint8)
    return [grid(i, *shape) for i, shape in enumerate(SHAPES)]


def seeded(seed: int, device: str) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


@pytest.mark.parametrize("device", DEVICES)
def test_every_crop_is_a_turned_window_of_an_example(device):
    photos, size = numbered(), 12
    crops = (Resident(photos, torch.device(device)).crops(2000, size, seeded(0, device)).cpu() * 255).round().byte()
    assert crops.shape == (2000, 3, size, size)
    seen, corners = set(), {i: set() for i in range(len(SHAPES))}
    for crop in crops.movedim(1, -1).numpy():
        which = int(crop[0, 0, 0])
        top, left = crop[..., 1].min(), crop[..., 2].min()
        short = [max(0, size - side) for side in SHAPES[which]]
        padded = np.pad(photos[which], ((0, short[0]), (0, short[1]), (0, 0)), mode="symmetric")
        window = padded[top : top + size, left : left + size]
        turns = [np.rot90(window[:, ::-1] if m else window, k) for m in (False, True) for k in range(4)]
        found = [i for i, turned in enumerate(turns) if np.array_equal(turned, crop)]
        assert len(found) == 1 and (crop[..., 0] == which).all()
        seen.add(found[0])
        corners[which].add((int(top), int(left)))
    assert seen == set(range(8))
    assert {top for top, _ in corners[0]} == set(range(9)) and {left for _, left in corners[0]} == set(range(19))
    assert {top for top, _ in corners[1]} == {0} and {left for _, left in corners[1]} == set(range(29))
    assert {left for _, left in corners[2]} == {0} and {top for top, _ in corners[2]} == set(range(22))


@pytest.mark.parametrize("device", DEVICES)
def test_examples_places_and_turns_are_drawn_evenly(device):
    """Each count is within five standard deviations of a binomial's mean."""
    count, resident = 20_000, Resident(numbered(), torch.device(device))
    crops = (resident.crops(count, 8, seeded(1, device)).cpu() * 255).round().long()
    near = lambda found, of, share: abs(found - of * share) < 5 * (of * share * (1 - share)) ** 0.5
    which = crops[:, 0, 0, 0]
    assert all(near(int((which == i).sum()), count, 1 / 3) for i in range(3))
    first = crops[which == 0]
    tops = first[:, 1].amin((1, 2))
    assert all(near(int((tops == top).sum()), len(first), 1 / 13) for top in range(13))
    down, right = (first[:, 1, 1, 0] - first[:, 1, 0, 0]), (first[:, 2, 0, 1] - first[:, 2, 0, 0])
    upright = right != 0  # columns run along columns: no quarter turn
    assert near(int(upright.sum()), len(first), 1 / 2)
    for d in (-1, 1):
        for r in (-1, 1):
            assert near(int(((down == d) & (right == r)).sum()), len(first), 1 / 8)


def test_crops_much_larger_than_an_example_repeat_it():
    tiny = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    resident = Resident([tiny], torch.device("cpu"))
    padded = np.pad(tiny, ((0, 14), (0, 13), (0, 0)), mode="symmetric")
    turns = [np.rot90(padded[:, ::-1] if m else padded, k) for m in (False, True) for k in range(4)]
    for crop in (resident.crops(20, 16, seeded(0, "cpu")) * 255).round().byte().movedim(1, -1).numpy():
        assert any(np.array_equal(crop, turned) for turned in turns)


def test_more_than_fits(monkeypatch):
    monkeypatch.setattr(module, "physical_memory", lambda: 1000)
    with pytest.raises(ValueError, match=r"3 examples: take 0.0 GB on cpu, .* \(--feed host\)"):
        Resident(numbered(), torch.device("cpu"))
    with pytest.raises(ValueError, match="no examples"):
        Resident([], torch.device("cpu"))


def test_memory_that_is_gone_by_then(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(ValueError, match=r"3 examples: take 0.0 GB on cpu, .* \(--feed host\)"):
        Resident(numbered(), torch.device("cpu"))


def test_packed_photos_are_taken_too(tmp_path):
    for i, pixels in enumerate(numbered()):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    pack(tmp_path, tmp_path / "packed")
    photos, _ = load_photos([str(tmp_path / "packed")])
    ours, theirs = (
        Resident(source, torch.device("cpu")).crops(50, 12, seeded(0, "cpu")) for source in (photos, numbered())
    )
    assert torch.equal(ours, theirs)


# what a training gets


@pytest.mark.parametrize("device", DEVICES)
def test_the_noise_is_the_tasks(device):
    """Per level and kind of noise what Denoise says: told, as strong as told, clipped where a file holds it."""
    task = tasks.make("denoise", {"sigma": [0, 75], "focus": 50, "focus_share": 0.5, "u8_share": 0.5})
    source = OnDevice(list(bundled("train").values()), task, 0, torch.device(device))
    batch = source.whole((0, Phase(share=1, patch=64, batch=200), 0))
    assert batch.input.device.type == batch.noise_level.device.type == batch.target.device.type == device
    level, noise = batch.noise_level.cpu(), (batch.input - batch.target).cpu()
    whole = ((batch.input * 255).round() / 255 == batch.input).flatten(1).all(1).cpu()
    assert 70 <= int(whole.sum()) <= 130 and 70 <= int((level * 255).round().eq(50).sum()) <= 130
    assert bool((batch.input[whole.to(device)] >= 0).all()) and bool((batch.input[whole.to(device)] <= 1).all())
    free = ~whole & (level > 0.01)
    assert torch.allclose(noise[free].flatten(1).std(1), level[free], rtol=0.05)


EVERY = [
    ("denoise", {}),
    ("denoise", {"focus_share": 0.5, "u8_share": 0.5, "map_share": 0.5}),
    ("denoise", {"blind": True, "map_share": 0.5}),
    ("pairs", {}),
    ("segment", {}),
    ("segment", {"sigma": 25}),
]
CHANNELS = {"pairs": 6, "segment": 4}


def test_every_task_is_tried():
    assert {name for name, _ in EVERY} == {name for name, task in tasks.TASKS.items() if task.on_device}


@pytest.mark.parametrize("name,args", EVERY)
def test_no_task_mixes_devices(name, args):
    """Crops without values, on the device "meta": what is made on the processor beside them raises, as on a GPU."""
    crops = torch.rand(4, CHANNELS.get(name, 3), 32, 32, device="meta")
    batch = tasks.make(name, args).batch(crops, torch.Generator())
    assert {part.device.type for part in (batch.input, batch.noise_level, batch.target)} == {"meta"}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name,args", EVERY)
def test_a_step_is_made_again_to_the_bit(name, args, device):
    examples = [np.random.default_rng(0).integers(0, 3, (40, 40, CHANNELS.get(name, 3)), np.uint8)]
    source = OnDevice(examples, tasks.make(name, args), 3, torch.device(device))
    steps = [(0, Phase(share=1, patch=32, batch=4), 0), (1, Phase(share=1, patch=32, batch=4), 4)]
    one, other, again = (source.whole(step) for step in (*steps, steps[0]))
    assert one.input.shape == (4, 3, 32, 32) and one.input.device.type == device
    assert torch.equal(one.input, again.input) and torch.equal(one.target, again.target)
    assert not torch.equal(one.input, other.input)


@pytest.mark.parametrize("micro", [0, 1, 3])
def test_shares_and_pieces_make_up_the_step(micro):
    recipe = few(phases=[{"share": 1.0, "patch": 16, "batch": 8}], steps=3)
    task = tasks.make(recipe.task, recipe.task_args)
    source = OnDevice(numbered(), task, 5, torch.device("cpu"))
    steps = list(schedule(recipe))
    whole = [batches for _, batches in feed(source, steps, Group(0, 1, torch.device("cpu")), 0, 0)]
    assert all(len(batches) == 1 for batches in whole)
    assert not torch.equal(whole[0][0].input, whole[1][0].input)
    shares = [list(feed(source, steps, Group(rank, 2, torch.device("cpu")), micro, 0)) for rank in range(2)]
    for i, (batch,) in enumerate(whole):
        pieces = [piece for share in shares for piece in share[i][1]]
        assert all(len(piece.input) <= (micro or 4) for piece in pieces)
        for part in ("input", "noise_level", "target"):
            assert torch.equal(torch.cat([getattr(piece, part) for piece in pieces]), getattr(batch, part))


def test_a_training_stops_and_goes_on_to_the_same_bits(tmp_path):
    whole = train(few(feed="device"), tmp_path / "whole", progress=False)
    for stop in (1, 7, None):
        pieces = train(few(feed="device"), tmp_path / "pieces", progress=False, stop_after=stop)
    assert same(whole, pieces) and rows(whole) == rows(pieces)
    other = train(few(), tmp_path / "other", progress=False)
    assert any(not torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(other).values()))


@pytest.mark.parametrize("task", ["deblur", "derain"])
def test_what_cannot_be_made_there_is_refused(tmp_path, task, kunet):
    with pytest.raises(
        ValueError, match=rf"{task} needs the host .* \(the device can make those of denoise, pairs, seg"
    ):
        train(few(task=task, task_args={}, feed="device"), tmp_path / "run", progress=False)
    assert Run(tmp_path / "run").status()[0] == "new"
    words = ["--recipe", "quick", "--task", task, "--task-args", "{}", "--feed", "device", "--dry-run"]
    done = kunet("train", *words, "--out", str(tmp_path / "dry"))
    assert done.returncode == 2 and "give --feed host" in done.stderr


def test_names_that_are_none(tmp_path, kunet):
    with pytest.raises(ValueError, match="no task 'denoize'"):
        train(few(task="denoize", feed="device"), tmp_path / "run", progress=False)
    done = kunet("train", "--recipe", "quick", "--feed", "gpu", "--out", str(tmp_path / "cli"))
    assert done.returncode == 2 and "feed" in done.stderr and "'host' or 'device'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_folder_goes_on_with_its_own_feed(tmp_path):
    """Also one that was started before a recipe had that field."""
    run = train(few(), tmp_path, progress=False, stop_after=2)
    for _ in range(2):
        with pytest.raises(ValueError, match="was started with feed 'host', not 'device'"):
            train(few(feed="device"), tmp_path, progress=False)
        old = json.loads((run.folder / "recipe.json").read_text())
        old.pop("feed", None)
        (run.folder / "recipe.json").write_text(json.dumps(old))
    assert train(few(), tmp_path, progress=False, stop_after=4).status() == ("paused", 4)


def test_a_device_that_is_full_says_what_to_do(tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Resident, "crops", full)
    with pytest.raises(ValueError, match=r"step 0: 4 crops of 16 x 16 .* or begin anew with --feed host"):
        train(few(feed="device"), tmp_path, progress=False)
    assert Run(tmp_path).status()[0] == "failed"
