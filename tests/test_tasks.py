"""The tasks: what each makes of crops, the contract they share, their messages."""

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.utils.data import default_collate

from kunet import metrics, recipes, tasks
from kunet.data import Crops, bundled
from kunet.data.drawn import draw
from kunet.denoise import Denoiser
from kunet.images import as_file, to_tensor
from kunet.models import UKAN, FFDNet, UNet
from kunet.tasks import TASKS, Batch, Deblur, Denoise, Derain, Pairs, Segment
from kunet.train import train

RANDOM = {"denoise": {}, "deblur": {}, "derain": {}, "segment": {"sigma": 20}}


@pytest.fixture
def crops():
    """Clean crops by task: photos, pairs of them, drawn pictures with masks."""

    def make(name, count=4, size=48):
        examples = {
            "pairs": [np.concatenate([x[:200, :200], x[:200, 100:300]], 2) for x in bundled("heldout").values()],
            "segment": [draw(5, i) for i in range(4)],
        }
        drawn = Crops(examples.get(name, list(bundled("heldout").values())), size, count)
        return default_collate([drawn[i] for i in range(count)])

    return make


class Answer(nn.Module):
    """A model that returns the same whatever it is shown, and learns nothing."""

    def __init__(self, output):
        super().__init__()
        self.output = nn.Parameter(output)

    def forward(self, x, noise_level):
        return self.output


@pytest.mark.parametrize("name", TASKS)
def test_the_contract(name, crops):
    task, clean = tasks.make(name, {}), crops(name)
    for batch in (task.batch(clean, torch.Generator().manual_seed(0)), task.probe(clean, 0)):
        assert batch.input.shape == (4, 3, 48, 48) and batch.noise_level.shape == (4,)
        assert batch.target.shape == (4, 1 if name == "segment" else 3, 48, 48)
        assert batch.input.dtype == batch.noise_level.dtype == torch.float32
        moved = batch.to("cpu", torch.channels_last)
        assert torch.equal(moved.input, batch.input) and torch.equal(moved.target, batch.target)
    output = torch.rand(4, 3, 48, 48)
    scores = task.scores(output, batch)
    assert all(score.shape == (4,) for score in scores.values())
    model = Answer(output)
    assert torch.allclose(task.score(model, batch), scores[task.measure].float())
    loss = task.loss(model, batch)
    loss.backward()
    assert loss.shape == () and bool(model.output.grad.any())


@pytest.mark.parametrize("name", RANDOM)
def test_randomness_comes_from_the_generator_alone(name, crops):
    task, clean = tasks.make(name, RANDOM[name]), crops(name)
    before = clean.clone()
    draw = lambda seed: task.batch(clean, torch.Generator().manual_seed(seed)).input
    torch.manual_seed(1)
    one = draw(7)
    torch.manual_seed(2)
    assert torch.equal(one, draw(7)) and not torch.equal(one, draw(8))
    assert torch.equal(task.probe(clean, 3).input, task.probe(clean, 3).input)
    assert not torch.equal(task.probe(clean, 3).input, task.probe(clean, 4).input)
    assert torch.equal(clean, before)


@pytest.mark.parametrize("name", ["denoise", "deblur", "derain"])
def test_photos_are_degraded_and_wanted_back(name, crops):
    clean = crops(name)
    batch = tasks.make(name, {}).batch(clean, torch.Generator().manual_seed(0))
    assert torch.equal(batch.target, clean)
    assert bool(((batch.input - clean).abs().flatten(1).mean(1) > 0.003).all())
    if name != "denoise":
        assert torch.allclose(as_file(batch.input), batch.input, atol=1e-6) and not batch.noise_level.any()


@pytest.mark.parametrize("name", ["denoise", "deblur", "derain"])
def test_restored_photos_are_scored_as_files(name, crops):
    task = tasks.make(name, {})
    batch = task.probe(crops(name), 0)
    scores = task.scores(batch.target + 0.3 / 255, batch)  # lost in rounding
    assert set(scores) == {"psnr", "ssim"} and bool(scores["psnr"].isinf().all())
    assert torch.allclose(scores["ssim"], torch.ones(4, dtype=torch.float64))
    assert torch.allclose(task.scores(batch.input, batch)["psnr"], metrics.psnr(as_file(batch.input), batch.target))


@pytest.mark.parametrize("name", RANDOM)
def test_load(name):
    train, held = tasks.make(name, {}).load(["drawn:4" if name == "segment" else "bundled"], 0)
    assert train and held and all(x.dtype == np.uint8 and x.shape[2] == (4 if name == "segment" else 3) for x in held)


def test_levels_are_drawn_from_the_range_and_the_focus():
    task = Denoise(sigma=(10, 20), focus=50, focus_share=0.25)
    clean = torch.full((400, 3, 8, 8), 0.5)
    batch = task.batch(clean, torch.Generator().manual_seed(0))
    levels = batch.noise_level * 255
    at_focus = (levels - 50).abs() < 1e-3
    assert 0.15 < float(at_focus.float().mean()) < 0.35
    assert float(levels[~at_focus].min()) >= 10 and float(levels[~at_focus].max()) <= 20
    measured = (batch.input - clean).flatten(1).std(1)
    assert float((measured / batch.noise_level - 1).abs().mean()) < 0.1
    again = task.batch(clean, torch.Generator().manual_seed(0))
    assert torch.equal(batch.input, again.input)


def test_some_crops_have_a_level_that_varies():
    task = Denoise(sigma=(10, 40), focus=50, focus_share=0.2, map_share=0.5)
    clean = torch.full((200, 3, 48, 48), 0.5)
    batch = task.batch(clean, torch.Generator().manual_seed(0))
    levels = batch.noise_level * 255
    assert levels.shape == (200, 1, 48, 48)
    span = levels.flatten(1).amax(1) - levels.flatten(1).amin(1)
    varied = span > 0
    assert 0.35 < float(varied.float().mean()) < 0.65
    assert 10 <= float(levels[varied].min()) < 11 and 39 < float(levels[varied].max()) <= 40 + 1e-4
    assert float(span[varied].mean()) > 20  # most of the range within a crop
    for axis in (2, 3):
        assert float(levels.diff(dim=axis).abs().max()) < 6  # smooth: a pixel is like its neighbour
    assert 0.1 < float(((levels[~varied] - 50).abs() < 1e-3).float().mean()) < 0.3
    noise = (batch.input - clean) / batch.noise_level
    assert float(noise.std()) == pytest.approx(1, abs=0.01)
    for part in (levels < 20, levels > 30):
        assert float(noise[part.expand_as(noise)].std()) == pytest.approx(1, abs=0.02)


def test_maps_of_the_level_are_of_one_shape():
    """Crop by crop, as trainings make them: with a share of maps all are maps, of a blind task they are 0."""
    generator, crop = torch.Generator().manual_seed(0), torch.rand(1, 3, 16, 16)
    shapes = {Denoise(map_share=0.3).batch(crop, generator).noise_level.shape for _ in range(20)}
    assert shapes == {(1, 1, 16, 16)}
    assert not Denoise(map_share=1.0, blind=True).batch(crop, generator).noise_level.any()
    moved = Denoise(map_share=1.0).batch(crop, generator).to("cpu", torch.channels_last)
    assert moved.noise_level.shape == (1, 1, 16, 16)
    model = FFDNet(width=4, depth=2)
    loss = Denoise(map_share=1.0).loss(model, moved)
    loss.backward()
    assert bool(loss.isfinite()) and bool(model.body[0][0].weight.grad[:, -1].any())


def test_a_training_with_maps(tmp_path):
    """From the recipe to the weights: crops of one step, with maps and without, fit into one batch."""
    args = {"model": "ffdnet", "model_args": {"width": 4, "depth": 2}, "task_args": {"map_share": 0.5}}
    recipe = recipes.load("quick", args | {"steps": 2, "phases": [{"share": 1, "patch": 17, "batch": 6}]})
    run = train(recipe, tmp_path / "run", progress=False)
    assert all(row["loss"] < 0 for row in run.read_log() if "loss" in row)
    denoiser = Denoiser.load(str(run.folder / "weights.safetensors"))
    x, levels = torch.rand(3, 20, 30), torch.linspace(0, 50, 600).view(20, 30)
    assert not torch.equal(denoiser(x, levels), denoiser(x, 25))


def test_no_maps_change_nothing():
    """What older recipes drew is drawn still."""
    crops = torch.rand(4, 3, 8, 8)
    batch = Denoise(sigma=(10, 50), u8_share=0.5).batch(crops, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    draw, noise = torch.rand(3, 4, generator=generator), torch.randn(crops.shape, generator=generator)
    level = (10 + 40 * draw[1]) / 255
    noisy = crops + level[:, None, None, None] * noise
    wanted = torch.where((draw[2] < 0.5)[:, None, None, None], as_file(noisy), noisy)
    assert torch.equal(batch.input, wanted) and torch.equal(batch.noise_level, level)


def test_some_crops_go_through_a_file():
    batch = Denoise(sigma=(50, 50), u8_share=0.5).batch(torch.rand(200, 3, 8, 8), torch.Generator().manual_seed(0))
    through = torch.tensor([torch.allclose(x, as_file(x), atol=1e-6) for x in batch.input])
    assert 0.35 < float(through.float().mean()) < 0.65


def test_probe_is_the_same_every_time():
    clean = torch.rand(2, 3, 16, 16)
    one, other = (Denoise().probe(clean, seed=5) for _ in range(2))
    assert torch.equal(one.input, other.input)
    assert torch.allclose(one.noise_level * 255, torch.full((2,), 50.0))


def test_loss_and_score_agree_on_a_perfect_model():
    class Perfect(nn.Module):
        def forward(self, noisy, level):
            return clean

    clean = as_file(torch.rand(2, 3, 16, 16))
    batch = Denoise().probe(clean, seed=0)
    assert bool(Denoise().score(Perfect(), batch).isinf().all())
    assert float(Denoise().loss(Perfect(), batch)) < -18


def test_deblur_chooses_motion_or_gaussian(crops):
    step = torch.zeros(8, 3, 40, 40)
    step[..., 20:, :] = 1.0  # an edge that a horizontal motion runs along
    given = {"angle": (0, 0), "length": (11, 11), "spread": (2, 2), "quality": None}
    moved = Deblur(motion_share=1, **given).batch(step, torch.Generator().manual_seed(0)).input
    soft = Deblur(motion_share=0, **given).batch(step, torch.Generator().manual_seed(0)).input
    assert torch.allclose(moved, step, atol=1e-6)
    profile = soft[0, 0, :, 20]
    assert 0.05 < float(profile[18]) < 0.45 and torch.allclose(profile + profile.flip(0), torch.ones(40), atol=0.01)
    both = Deblur(motion_share=0.5, **given).batch(step.repeat(20, 1, 1, 1), torch.Generator().manual_seed(0)).input
    sharp = (both - step[:1]).abs().flatten(1).amax(1) < 1e-5
    assert 0.35 < float(sharp.float().mean()) < 0.65


def test_deblur_writes_files(crops):
    clean = crops("deblur", size=64)
    still = {"length": (0, 0), "motion_share": 1}
    batch = Deblur(quality=(25, 25), **still).probe(clean, 0)
    for x, y in zip(clean, batch.input):
        file = io.BytesIO()
        Image.fromarray((x * 255).round().byte().permute(1, 2, 0).numpy()).save(file, "JPEG", quality=25)
        assert torch.equal(y, to_tensor(Image.open(file)))
    cut = Deblur(quality=(25, 25), **still).batch(clean, torch.Generator().manual_seed(0)).input
    assert not torch.equal(cut, batch.input)  # the blocks lie elsewhere
    fine = Deblur(quality=(95, 95), **still).probe(clean, 0)
    assert bool((metrics.psnr(fine.input, clean) > metrics.psnr(batch.input, clean) + 5).all())
    none = Deblur(quality=None, **still).probe(clean, 0)
    assert torch.allclose(none.input, clean, atol=1e-6)


def test_derain_takes_its_ranges():
    black = torch.zeros(200, 3, 24, 24)
    given = {"density": (0.02, 0.02), "length": (9, 9), "width": (1.5, 1.5)}
    rain = lambda b: Derain(brightness=(b, b), **given).batch(black, torch.Generator().manual_seed(0))
    dim, bright = rain(0.1), rain(0.2)
    assert float(bright.input.mean() / dim.input.mean()) == pytest.approx(2, rel=0.02)
    assert torch.equal(Derain(density=(0, 0)).batch(black, torch.Generator()).input, black)


def test_pairs_are_split(crops):
    both = crops("pairs")
    batch = Pairs().batch(both, torch.Generator())
    assert torch.equal(batch.input, both[:, :3]) and torch.equal(batch.target, both[:, 3:])
    assert not batch.noise_level.any()
    assert torch.equal(Pairs().probe(both, 0).input, batch.input)


def test_pairs_load(tmp_path):
    for i in range(3):
        for side, level in (("noisy", 50 + i), ("clean", i)):
            (tmp_path / side).mkdir(exist_ok=True)
            Image.fromarray(np.full((20, 30, 3), level, np.uint8)).save(tmp_path / side / f"{i}.png")
    train, held = Pairs().load([str(tmp_path)], 1)
    assert len(train) == 2 and len(held) == 1 and train[0].shape == (20, 30, 6)


def test_segment_keeps_every_class(crops):
    clean = crops("segment", count=8)
    batch = Segment(sigma=25).batch(clean, torch.Generator().manual_seed(0))
    assert batch.target.dtype == torch.int64 and set(batch.target.unique().tolist()) == {0, 1, 2}
    assert torch.equal(batch.target, (clean[:, 3:] * 255).round().long())
    assert float((batch.input - clean[:, :3]).std() * 255) == pytest.approx(25, rel=0.02)
    assert torch.allclose(batch.noise_level * 255, torch.full((8,), 25.0))
    quiet = Segment().batch(clean, torch.Generator())
    assert torch.equal(quiet.input, clean[:, :3]) and not quiet.noise_level.any()


def example(labels, logits):
    """A batch with these labels (H, W), and the logits (K, H, W) for it."""
    target = torch.tensor(labels)[None, None]
    return Batch(torch.zeros(1, 3, *target.shape[2:]), torch.zeros(1), target), logits[None]


def test_segment_scores_leave_background_out():
    predicted = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [0, 2, 0, 0]])
    batch, logits = example([[0, 0, 1, 1], [0, 0, 0, 0], [0, 2, 2, 2]], F.one_hot(predicted, 3).movedim(-1, 0).float())
    scores = Segment().scores(logits, batch)
    assert float(scores["dice"]) == pytest.approx((2 * 2 / 6 + 2 * 1 / 4) / 2)
    assert float(scores["iou"]) == pytest.approx((2 / 4 + 1 / 3) / 2)


@torch.no_grad()
def test_cross_entropies():
    torch.manual_seed(0)
    labels, logits = torch.randint(0, 3, (2, 1, 6, 5)), torch.randn(2, 3, 6, 5)
    batch, model = Batch(torch.zeros(2, 3, 6, 5), torch.zeros(2), labels), Answer(logits)
    log_p = torch.log_softmax(logits, 1).gather(1, labels)
    assert float(Segment().loss(model, batch)) == pytest.approx(float(-log_p.mean()), rel=1e-5)
    weights = torch.tensor([0.5, 1.0, 4.0])
    weighted = Segment(objective="weighted_cross_entropy", class_weights=tuple(weights.tolist())).loss(model, batch)
    each = weights[labels]
    assert float(weighted) == pytest.approx(float(-(each * log_p).sum() / each.sum()), rel=1e-5)
    dice = Segment(objective="dice").loss(model, batch)
    assert float(dice) == pytest.approx(float(metrics.dice_loss(logits.softmax(1), labels[:, 0])))


def test_weights_are_counted_over_the_training_set():
    task = Segment(objective="weighted_cross_entropy", size=48)
    with pytest.raises(ValueError, match="not counted yet; load examples first"):
        task.loss(Answer(torch.zeros(1, 3, 4, 4)), example([[0] * 4] * 4, torch.zeros(3, 4, 4))[0])
    train, _ = task.load(["drawn:5"], 0)
    labels = np.concatenate([x[..., 3].ravel() for x in train])
    reference = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert task._weights(torch.device("cpu")).tolist() == pytest.approx(reference.tolist())
    with pytest.raises(ValueError, match="class 3 is in no training mask"):
        Segment(classes=4, objective="weighted_cross_entropy", size=48).load(["drawn:5"], 0)


@pytest.mark.parametrize("objective", ["cross_entropy", "weighted_cross_entropy", "dice"])
@torch.no_grad()
def test_one_logit_is_a_sigmoid(objective):
    torch.manual_seed(0)
    labels, z = torch.randint(0, 2, (2, 1, 6, 5)), torch.randn(2, 1, 6, 5)
    batch = Batch(torch.zeros(2, 3, 6, 5), torch.zeros(2), labels)
    task = Segment(classes=1, objective=objective, class_weights=(1, 3))
    truth, p = labels.float(), torch.sigmoid(z)
    wanted = {
        "cross_entropy": F.binary_cross_entropy_with_logits(z, truth),
        "weighted_cross_entropy": F.binary_cross_entropy_with_logits(z, truth, 1 + 2 * truth, reduction="sum")
        / (1 + 2 * truth).sum(),
        "dice": 1 - ((p * truth).sum() / (p + truth).sum() + ((1 - p) * (1 - truth)).sum() / (2 - p - truth).sum()),
    }
    assert float(task.loss(Answer(z), batch)) == pytest.approx(float(wanted[objective]), rel=1e-5)
    hit = ((z > 0) & (labels == 1)).flatten(1).sum(1)
    size = (z > 0).flatten(1).sum(1) + labels.flatten(1).sum(1)
    assert torch.allclose(task.score(Answer(z), batch), 2 * hit / size)


def test_every_objective_of_segment_learns():
    """Logits that are free parameters go to the mask, by steps of the gradient's sign."""
    batch = Segment().probe(to_tensor(draw(3, 0, 32))[None], 0)
    for objective in ("cross_entropy", "weighted_cross_entropy", "dice"):
        task = Segment(objective=objective, class_weights=(1, 5, 5))
        model = Answer(torch.zeros(1, 3, 32, 32))
        before = float(task.score(model, batch))
        for _ in range(5):
            (gradient,) = torch.autograd.grad(task.loss(model, batch), model.output)
            model.output.data -= gradient.sign()
        assert before < 0.3 and float(task.score(model, batch)) > 0.99


@pytest.mark.parametrize(
    "name,args,words",
    [
        ("denoise", {"sigma": [60, 50]}, "lowest first"),
        ("denoise", {"sigma": [0, 300]}, "0..255"),
        ("denoise", {"sigma": [50]}, "sigma"),
        ("denoise", {"focus": 400}, "0..255"),
        ("denoise", {"focus_share": 1.5}, "shares lie in 0..1"),
        ("denoise", {"map_share": -0.1}, "map_share -0.1; shares lie in 0..1"),
        ("denoise", {"reduced": [2, 1]}, r"reduced \(2, 1\); whole factors from 2 on"),
        ("denoise", {"reduced": [2.5]}, "reduced"),
        ("denoise", {"colour": "blue"}, "do not fit denoise"),
        ("denoise", {"objective": "dice"}, "objective is 'dice'; it must be one of log_mse, floored_log_mse, l1"),
        ("deblur", {"length": [9, 3]}, r"deblur: length \(9, 3\); two numbers in 0..200, lowest first"),
        ("deblur", {"spread": [0, 3]}, r"deblur: spread \(0, 3\); two numbers in 0.1..50"),
        ("deblur", {"angle": [0, 90, 180]}, "deblur: angle"),
        ("deblur", {"quality": [0, 100]}, "deblur: quality .* 1..100"),
        ("deblur", {"quality": [25.5, 30]}, "deblur: quality .* whole numbers"),
        ("deblur", {"motion_share": 2}, "motion_share 2; a share lies in 0..1"),
        ("deblur", {"sigma": [0, 50]}, "do not fit deblur"),
        ("derain", {"density": [0.5, 2]}, "derain: density .* 0..1"),
        ("derain", {"width": [0, 1]}, "derain: width .* 0.5..20"),
        ("derain", {"brightness": [0.5, 0.2]}, "derain: brightness .* lowest first"),
        ("derain", {"objective": "l2"}, "objective is 'l2'"),
        ("pairs", {"objective": "l2"}, "objective is 'l2'"),
        ("segment", {"objective": "l1"}, "cross_entropy, weighted_cross_entropy, dice"),
        ("segment", {"classes": 0}, "0 classes; 1 to 256 are possible"),
        ("segment", {"class_weights": [1, 2]}, r"class_weights \(1, 2\); 3 numbers"),
        ("segment", {"classes": 1, "class_weights": [1]}, "2 numbers"),
        ("segment", {"class_weights": [0, 0, 0]}, "not all 0"),
        ("segment", {"sigma": -1}, "sigma is -1"),
        ("segment", {"size": 0}, "size 0; a side of 1 or more"),
    ],
)
def test_messages(name, args, words):
    with pytest.raises(ValueError, match=words):
        tasks.make(name, args)
    with pytest.raises(ValueError, match="no task 'dance'; there are denoise, deblur, derain, pairs, segment"):
        tasks.make("dance", {})


@pytest.mark.parametrize("name", ["denoise", "deblur", "derain", "pairs"])
def test_restoring_takes_images_alone(name, crops):
    """One logit a pixel would be broadcast against three channels, and three logits are no image."""
    task = tasks.make(name, {})
    batch = task.probe(crops(name), 0)
    for call in (task.loss, task.score):
        for classes in (1, 3):
            with pytest.raises(ValueError, match=f"{name}: the model returns {classes} logits.*classes None"):
                call(UNet(widths=(4,), classes=classes), batch)
        with pytest.raises(ValueError, match=rf"{name}: the model returns \(4, 1, 48, 48\) where .* \(4, 3, 48, 48\)"):
            call(Answer(torch.zeros(4, 1, 48, 48)), batch)
    with pytest.raises(ValueError, match="denoise: the model returns 1 logits"):
        Denoise().fits(UKAN(dims=(8, 8, 8)))
    task.fits(UNet(widths=(4,)))


def test_segmenting_takes_logits_alone(crops):
    """A network that restores returns three channels, as many as there are classes: no logits."""
    task = Segment(classes=3)
    batch = task.probe(crops("segment"), 0)
    for model in (UNet(widths=(4,)), UNet(widths=(4,), residual=False), FFDNet(width=4, depth=2)):
        with pytest.raises(ValueError, match="segment: the model restores images, and the task has 3 classes"):
            task.loss(model, batch)
    with pytest.raises(ValueError, match="returns 2 logits a pixel, and the task has 3"):
        task.fits(UNet(widths=(4,), classes=2))
    task.fits(UNet(widths=(4,), classes=3))
    assert bool(task.loss(UNet(widths=(4,), classes=3), batch).isfinite())


def test_a_model_with_another_number_of_classes(crops):
    task = Segment(classes=2)
    with pytest.raises(ValueError, match="returns 3 channels for 2 classes"):
        task.loss(Answer(torch.zeros(4, 3, 48, 48)), task.probe(crops("segment"), 0))
