"""Bundled photos, folders, crops."""

import csv
import re
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from kunet import data
from kunet.data import pool
from kunet.data.pack import pack
from kunet.data.packed import Member
from kunet.data.photos import with_reduced
from kunet.tasks import Denoise


def test_bundled_photos():
    photos = data.bundled()
    assert set(photos) == {p.name for p in data.BUNDLED} and len(photos) == 6
    for pixels in photos.values():
        assert pixels.dtype == np.uint8 and pixels.shape[2] == 3 and min(pixels.shape[:2]) >= 256
    train, held = data.bundled("train"), data.bundled("heldout")
    assert train and held and not set(train) & set(held)
    for a in train.values():
        assert not any(a.shape == b.shape and (a == b).all() for b in held.values())
    with pytest.raises(ValueError, match="heldout"):
        data.bundled("test")


def test_the_page_lists_them():
    page = (ROOT / "book" / "data.md").read_text()
    for photo in data.BUNDLED:
        split = {"train": "training", "heldout": "held out"}[photo.split]
        package = {"skimage": "scikit-image", "sklearn": "scikit-learn"}[photo.package.split(".")[0]]
        assert f"| {photo.name} | {package} | {split} | {photo.licence} | {photo.source} |" in page


def test_the_page_counts_the_photos_of_the_weights_as_their_list_does():
    page = (ROOT / "book" / "data.md").read_text()
    rows = list(csv.DictReader((ROOT / "book" / "_static" / "training_photos.csv").open()))
    assert f"{len(rows)} photographs" in page
    said = re.findall(r"\b(\d+) from (?:the Debian package ([^,;]+)|\[([^]]+)\]\(https://github.com/\3\))", page)
    named = {debian or repository: int(count) for count, debian, repository in said}
    packages = {row["source"]: row["source"][4:].replace("_", " ") for row in rows if row["source"].startswith("deb:")}
    assert named == Counter(packages.get(row["source"], row["source"]) for row in rows)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "inner").mkdir()
    for i in range(6):
        where = tmp_path / "inner" if i % 2 else tmp_path
        Image.fromarray(np.full((40, 50, 3), 10 * i, dtype=np.uint8)).save(where / f"{i}.png")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_text("no image either")
    return tmp_path


def test_folders(folder):
    assert [p.name for p in data.list_images(folder)] == ["0.png", "2.png", "4.png", "1.png", "3.png", "5.png"]
    train, held = data.load_photos([str(folder)], held_out=2)
    assert len(train) == 4 and len(held) == 2
    levels = lambda photos: {int(p[0, 0, 0]) for p in photos}
    assert levels(train) | levels(held) == {0, 10, 20, 30, 40, 50} and not levels(train) & levels(held)
    assert len(data.load_photos([str(folder), "bundled"])[0]) == 9
    with pytest.raises(ValueError, match="no such folder"):
        data.load_photos([str(folder / "none")])
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no image"):
        data.load_photos([str(folder / "empty")])
    with pytest.raises(ValueError, match="6 of 6 photos held out"):
        data.load_photos([str(folder)], held_out=6)


def test_photos_made_smaller_join_the_rest():
    """A pixel is the mean of those it stands for, and a photo that would be too small is left out."""
    rng = np.random.default_rng(0)
    large, small = (rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((90, 120), (40, 200)))
    joined = with_reduced([large, small], (2, 3), shortest=30)
    assert [photo.shape[:2] for photo in joined] == [(90, 120), (40, 200), (45, 60), (30, 40)]
    assert joined[0] is large and joined[1] is small
    for factor, photo in ((2, joined[2]), (3, joined[3])):
        means = large.reshape(90 // factor, factor, 120 // factor, factor, 3).mean((1, 3))
        assert np.abs(photo - means).max() <= 0.6  # Pillow divides in fixed-point numbers
    assert len(with_reduced([large, small], (), shortest=30)) == 2


def test_photos_made_smaller_leave_packed_ones_in_their_file(tmp_path):
    """Of a packed set only the smaller photos are in memory, which must hold them."""
    pixels = np.arange(600 * 520 * 3, dtype=np.uint8).reshape(600, 520, 3)
    (tmp_path / "photos").mkdir()
    Image.fromarray(pixels).save(tmp_path / "photos" / "a.png")
    pack(tmp_path / "photos", tmp_path / "packed", "photos")
    train, _ = Denoise(reduced=(2,)).load([str(tmp_path / "packed")], 0)
    assert isinstance(train.entries[0], Member) and np.array_equal(train[0], pixels)
    assert train[1].shape == (300, 260, 3) and len(train) == 2
    assert len(Denoise().load([str(tmp_path / "packed")], 0)[0]) == 1


def test_smaller_photos_must_fit_into_memory(monkeypatch):
    monkeypatch.setattr(pool, "physical_memory", lambda: 1000)
    with pytest.raises(
        ValueError, match=r"1 photos, 1 smaller ones with them: take 0\.0 GB .*; leave out some of the factors"
    ):
        with_reduced([np.zeros((600, 600, 3), np.uint8)], (2,))


def test_crops_are_a_function_of_seed_and_index():
    photos = list(data.bundled("train").values())
    one, other = data.Crops(photos, 32, 100, seed=3), data.Crops(photos, 32, 50, seed=3)
    assert torch.equal(one[17], other[17]) and not torch.equal(one[17], one[18])
    assert not torch.equal(one[17], data.Crops(photos, 32, 100, seed=4)[17])
    assert one[0].shape == (3, 32, 32) and 0 <= float(one[0].min()) and float(one[0].max()) <= 1
    with pytest.raises(IndexError):
        other[50]


def test_crops_come_from_the_photo_in_all_eight_ways():
    photo = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    crops = data.Crops([photo], 4, 200)
    seen = {tuple((c[0] * 255).round().int().flatten().tolist()) for c in crops}
    first = photo[..., 0].astype(int)
    wanted = {tuple(np.rot90(m, k).flatten().tolist()) for m in (first, first[:, ::-1]) for k in range(4)}
    assert seen == wanted


def test_small_photos_are_reflected():
    crop = data.Crops([np.zeros((5, 60, 3), np.uint8)], 16, 1)[0]
    assert crop.shape == (3, 16, 16)
    with pytest.raises(ValueError, match="no photos"):
        data.Crops([], 16, 1)
