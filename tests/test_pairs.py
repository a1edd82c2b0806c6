"""Real pairs in the layouts of public data sets: tiny ones, written here."""

import numpy as np
import pytest
from PIL import Image

from kunet.data import load_pairs
from kunet.data.pairs import find_pairs

LAYOUTS = [
    ("{s}/{s}_{i}.png", "NOISY", "GT"),
    ("Data/000{i}_001_S6/000{i}_{s}_SRGB_010.PNG", "NOISY", "GT"),
    ("{s}/000{i}_{s}_SRGB_010.PNG", "NOISY", "GT"),
    ("{s}/{i}.png", "noisy", "clean"),
    ("train/{s}/{i}.png", "input", "target"),
    ("{s}/norain-{i}.png", "rain", "norain"),
    ("{s}/{s}-{i}.png", "rain", "norain"),
    ("{s}-{i}.png", "rain", "norain"),
    ("train_{s}/000/{i}.png", "blur", "sharp"),
    ("{s}/coffee_rain_{i}.png", "lq", "hq"),
    ("{s}/{i}.png", "Blur", "GroundTruth"),
]


def write(path, level, size=(10, 12)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), level, np.uint8)).save(path)


@pytest.mark.parametrize("pattern,degraded,clean", LAYOUTS)
def test_layouts(pattern, degraded, clean, tmp_path):
    for i in range(3):
        write(tmp_path / pattern.format(s=degraded, i=i), 100 + i)
        write(tmp_path / pattern.format(s=clean, i=i), i)
    pairs = find_pairs(tmp_path)
    assert len(pairs) == 3 and all(one.name.count(str(i)) for i, (one, _) in enumerate(pairs))
    train, held = load_pairs([str(tmp_path)], held_out=1)
    assert len(train) == 2 and len(held) == 1
    for example in (*train, *held):
        assert example.shape == (10, 12, 6) and example.dtype == np.uint8
        noisy, truth = example[..., :3], example[..., 3:]
        assert len(np.unique(noisy)) == len(np.unique(truth)) == 1 and noisy[0, 0, 0] == truth[0, 0, 0] + 100


def test_names_may_end_differently_and_folders_be_several(tmp_path):
    for root in ("a", "b"):
        write(tmp_path / root / "noisy" / "1.jpg", 9)
        write(tmp_path / root / "clean" / "1.png", 9)
    assert len(load_pairs([str(tmp_path / "a"), str(tmp_path / "b")])[0]) == 2
    assert len(find_pairs(tmp_path)) == 2


@pytest.mark.parametrize(
    "change,words",
    [
        (lambda r: write(r / "noisy" / "3.png", 1), r"noisy.3\.png: has no clean partner under"),
        (lambda r: write(r / "clean" / "3.png", 1), r"clean.3\.png: has no degraded partner under"),
        (lambda r: write(r / "noisy" / "1.jpg", 1), r"1\.png: stands for the same photo as .*1\.jpg"),
        (lambda r: write(r / "clean" / "1.png", 1, (12, 10)), r"1\.png: 12 x 10 pixels, and .*1\.png 10 x 12"),
        (lambda r: write(r / "other" / "4.png", 1), r"4\.png: neither degraded \(noisy, .*\) nor clean \(clean, "),
        (lambda r: [(r / s).rename(r / f"x{s}") for s in ("noisy", "clean")], "neither degraded"),
    ],
)
def test_what_is_wrong_is_named(change, words, tmp_path):
    for side in ("noisy", "clean"):
        for i in range(3):
            write(tmp_path / side / f"{i}.png", i)
    change(tmp_path)
    with pytest.raises(ValueError, match=words):
        load_pairs([str(tmp_path)])
