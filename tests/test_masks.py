"""Drawn pictures, and the folders in which public data sets come: tiny ones, written here."""

import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kunet.data import drawn, load_masks
from kunet.data.drawn import SEEDS, draw
from kunet.data.masks import find_masks, read_labelled

RANDOM = np.random.default_rng(0)
LEFT = np.zeros((10, 12), np.uint8)
LEFT[:, :5] = 255
TOP = np.zeros((10, 12), np.uint8)
TOP[:3] = 255


def write(path: Path, pixels: np.ndarray | None = None) -> None:
    """A file of these pixels, or a random photo of 10 x 12."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RANDOM.integers(0, 256, (10, 12, 3), dtype=np.uint8) if pixels is None else pixels).save(path)


def isic(root):
    for i in range(3):
        write(root / "ISIC2018_Task1-2_Training_Input" / f"ISIC_000{i}.jpg")
        write(root / "ISIC2018_Task1_Training_GroundTruth" / f"ISIC_000{i}_segmentation.png", LEFT)
    write(root / "ISIC2018_Task1-2_Training_Input" / "ISIC_0000_superpixels.png")
    (root / "ISIC2018_Task1-2_Training_Input" / "LICENSE.txt").write_text("CC0")
    return LEFT > 0


def busi(root):
    for i in (1, 2):
        write(root / "benign" / f"benign ({i}).png")
        write(root / "benign" / f"benign ({i})_mask.png", LEFT)
        write(root / "benign" / f"benign ({i})_mask_1.png", TOP)
    write(root / "malignant" / "malignant (1).png")
    write(root / "malignant" / "malignant (1)_mask.png", LEFT | TOP)
    return (LEFT | TOP) > 0


def glas(root):
    instances = np.where(LEFT, 1, 0).astype(np.uint8)
    instances[7:, 9:] = 23
    for name in ("train_1", "testA_2", "testB_1"):
        write(root / f"{name}.bmp")
        write(root / f"{name}_anno.bmp", instances)
    (root / "Grade.csv").write_text("name, grade")
    return instances > 0


def cvc(root):
    for i in range(1, 4):
        write(root / "Original" / f"{i}.tif")
        write(root / "Ground Truth" / f"{i}.tif", np.repeat(LEFT[..., None], 3, 2))
    return LEFT > 0


def simple(root):
    faded = (LEFT * 0.9 + 10).astype(np.uint8)  # neither 0 nor 255
    for name in ("a", "b", "inner/a"):
        write(root / "images" / f"{name}.jpg")
        write(root / "masks" / f"{name}.png", faded)
    return LEFT > 0


def zeros_and_ones(root):
    for name in "abc":
        write(root / "train" / "imgs" / f"{name}.png")
        write(root / "train" / "Labels" / f"{name}.png", (LEFT > 0).astype(np.uint8))
    return LEFT > 0


@pytest.mark.parametrize("layout", [isic, busi, glas, cvc, simple, zeros_and_ones])
def test_layouts(layout, tmp_path):
    wanted = layout(tmp_path)
    found = find_masks(tmp_path)
    assert len(found) == 3 and len({f.image for f in found}) == 3
    train, held = load_masks([str(tmp_path)], held_out=1, classes=1)
    assert len(train) == 2 and len(held) == 1
    for example in (*train, *held):
        assert example.shape == (10, 12, 4) and example.dtype == np.uint8
        assert np.array_equal(example[..., 3], wanted)
    photo = np.asarray(Image.open(found[0].image).convert("RGB"))
    assert np.array_equal(read_labelled(found[0], 2)[..., :3], photo)


def test_busi_unites_its_masks_and_reads_one_class_alone(tmp_path):
    busi(tmp_path)
    found = find_masks(tmp_path / "benign")
    assert [[p.name for p in f.masks] for f in found] == [
        [f"benign ({i})_mask.png", f"benign ({i})_mask_1.png"] for i in (1, 2)
    ]


def test_more_classes_are_numbers(tmp_path):
    labels = np.arange(120).reshape(10, 12).astype(np.uint8) % 4
    palette = Image.fromarray(labels).convert("P")
    palette.putpalette(list(RANDOM.integers(0, 256, 768)))
    write(tmp_path / "images" / "a.png")
    write(tmp_path / "images" / "b.png")
    write(tmp_path / "masks" / "a.png", labels)
    palette.save(tmp_path / "masks" / "b.png")
    for example in load_masks([str(tmp_path)], classes=4)[0]:
        assert np.array_equal(example[..., 3], labels)
    with pytest.raises(ValueError, match=r"masks.a.png: holds the class 3; with 3 they are 0..2"):
        load_masks([str(tmp_path)], classes=3)


def test_scaling_invents_no_class(tmp_path):
    labels = np.where(LEFT, 3, 0).astype(np.uint8)
    write(tmp_path / "images" / "a.png", np.repeat(LEFT[..., None], 3, 2))
    write(tmp_path / "masks" / "a.png", labels)
    (example,) = load_masks([str(tmp_path)], classes=4, size=32)[0]
    assert example.shape == (32, 32, 4) and set(np.unique(example[..., 3])) == {0, 3}
    assert len(np.unique(example[..., 0])) > 2  # the image is interpolated
    assert example[..., 3].mean() == pytest.approx(labels.mean(), rel=0.1)
    assert (np.where(example[..., 3], 255, 0) - example[..., 0].astype(int)).mean() < 5


@pytest.mark.parametrize(
    "change,words",
    [
        (lambda r: (r / "masks" / "b.png").unlink(), r"images.b\.jpg: has no mask under"),
        (lambda r: (r / "images" / "b.jpg").unlink(), r"masks.b\.png: is a mask without an image"),
        (lambda r: write(r / "masks" / "b.png", LEFT[:5]), r"b\.png: 12 x 5 pixels, and .*b\.jpg 12 x 10"),
        (lambda r: write(r / "images" / "b.png"), r"b\.png: has the name of .*b\.jpg"),
        (lambda r: write(r / "notes" / "c.png"), r"c\.png: has no mask"),
        (lambda r: (r / "masks").rename(r / "other"), r"a\.jpg: has no mask under .*_segmentation.*masks.*images"),
    ],
)
def test_what_is_wrong_in_a_folder_is_named(change, words, tmp_path):
    simple(tmp_path)
    change(tmp_path)
    with pytest.raises(ValueError, match=words):
        load_masks([str(tmp_path)])


def test_drawn_pictures_depend_on_seed_and_index():
    assert np.array_equal(draw(0, 7), draw(0, 7))
    assert not np.array_equal(draw(0, 7), draw(0, 8)) and not np.array_equal(draw(0, 7), draw(1, 7))
    assert draw(0, 0).shape == (128, 128, 4) and draw(0, 0, 50).shape == (50, 50, 4) and draw(0, 0).dtype == np.uint8
    assert SEEDS["train"] != SEEDS["heldout"]


def test_drawn_as_a_source():
    start = time.process_time()
    train, held = load_masks(["drawn:30"], classes=3)
    assert time.process_time() - start < 3.2  # so that drawing the 250 of "drawn" takes less than 10 s
    assert len(train) == 30 and len(held) == 50 and np.array_equal(train[3], draw(SEEDS["train"], 3))
    assert np.array_equal(held[3], draw(SEEDS["heldout"], 3))
    share = np.mean([[(x[..., 3] == c).mean() for c in range(3)] for x in held], 0)
    assert all(share > 0.05) and set(np.unique(train[0][..., 3])) == {0, 1, 2}
    few, fifty = load_masks(["drawn:3"], held_out=7, classes=1, size=40)
    assert len(few) == 3 and len(fifty) == 50 and few[0].shape == (40, 40, 4) and few[0].dtype == np.uint8
    assert np.array_equal(few[1][..., 3], draw(SEEDS["train"], 1, 40)[..., 3] > 0)
    assert len(load_masks(["drawn"], size=8)[0]) == 200
    for source in ("drawn:0", "drawn:-1", "drawn:many"):
        with pytest.raises(ValueError, match="is no number of pictures"):
            load_masks([source])


def test_no_threshold_finds_the_shapes():
    """The best threshold that an oracle could choose, for each picture, colour and direction anew."""

    def best(picture):
        shape = picture[..., 3].ravel() > 0
        colours = picture[..., :3].reshape(-1, 3).T.astype(float)
        dice = []
        for values in (*colours, colours.mean(0)):
            for order in (np.argsort(values), np.argsort(-values)):
                hits = np.cumsum(shape[order])
                dice.append((2 * hits / (np.arange(1, shape.size + 1) + shape.sum())).max())
        return max(dice)

    assert np.mean([best(draw(SEEDS["heldout"], i)) for i in range(20)]) < 0.6


@pytest.mark.parametrize("seed", range(4))
def test_coverage_is_that_of_a_finer_grid(seed):
    corner, radius = [], 9.3

    def disc(x, y):
        corner.append((x[0, 0], y[0, 0]))
        return np.hypot(x, y) < radius

    rows, columns, coverage = drawn._cover(np.random.default_rng(seed), 64, radius, disc)
    first = np.array([columns.start, rows.start]) + 0.5 / drawn.FINE
    x, y = first - corner[0]  # the disc's centre
    fine = (np.arange(64 * 20) + 0.5) / 20
    inside = np.hypot(fine[None] - x, fine[:, None] - y) < radius
    share = inside.reshape(64, 20, 64, 20).mean((1, 3))
    assert share[rows, columns].sum() == pytest.approx(share.sum())
    assert np.abs(share[rows, columns] - coverage).max() < 0.2
    assert ((share[rows, columns] > 0.5) != (coverage > 0.5)).mean() < 0.02
    assert coverage.sum() == pytest.approx(share.sum(), rel=0.02)
