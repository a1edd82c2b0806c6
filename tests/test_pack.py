"""Packed sets: what comes out of them is what reading the files gives, and a damaged one is never used."""

import errno
import json
import multiprocessing
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from kunet import tasks
from kunet.benchmark import peak_memory
from kunet.data import Crops, load_masks, load_pairs, load_photos, open_packed, pack, packed, pool
from kunet.images import load_pixels, load_rgb, to_uint8

RANDOM = np.random.default_rng(0)


def write(path: Path, height: int = 20, width: int = 30, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path, **options)


@pytest.fixture
def photos(tmp_path):
    """Seven photos of many sizes, one lying on its side."""
    folder = tmp_path / "photos"
    for i in range(5):
        write(folder / ("inner" if i % 2 else ".") / f"{i}.png", 20 + 3 * i, 30 - 2 * i)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    write(folder / "turned.jpg", 16, 40, exif=exif)
    Image.fromarray(RANDOM.integers(0, 2**16, (9, 8), dtype=np.uint16)).save(folder / "gray16.png")
    return folder


@pytest.fixture
def made(photos, tmp_path):
    """The photos, packed."""
    pack.pack(photos, tmp_path / "packed")
    return tmp_path / "packed"


def equal(one, other) -> bool:
    return len(one) == len(other) and all(np.array_equal(a, b) for a, b in zip(one, other))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_packed_is_what_reading_gives(photos, made):
    examples, (read, none) = open_packed(made), load_photos([str(photos)])
    assert equal(examples, read) and not none
    assert equal(read, [to_uint8(load_rgb(photos / name)) for name in examples.names])
    assert examples.names == ["0.png", "2.png", "4.png", "gray16.png", "inner/1.png", "inner/3.png", "turned.jpg"]
    assert examples[-1].shape == (40, 16, 3) and examples.bytes == sum(x.nbytes for x in read)
    assert names(made) == {packed.PIXELS, packed.INDEX} and packed.check(made) == []
    with pytest.raises(IndexError):
        examples[7]
    with pytest.raises(ValueError, match="read-only"):
        examples[0][0] = 0


def test_trainings_are_given_the_same(photos, made):
    for held_out in (0, 2):
        (train, held), (views, kept) = (load_photos([str(f)], held_out) for f in (photos, made))
        assert equal(train, views) and equal(held, kept) and len(kept) == held_out
        one, other = Crops(train, 12, 20, seed=5), Crops(views, 12, 20, seed=5)
        assert all(torch.equal(a, b) for a, b in zip(one, other))
    mixed, held = load_photos([str(photos), "bundled", str(made)], held_out=3)
    twice, also_held = load_photos([str(photos), "bundled", str(photos)], held_out=3)
    assert isinstance(mixed, pool.Pool) and isinstance(twice, list)
    assert equal(mixed, twice) and equal(held, also_held) and len(mixed) == 14
    assert tasks.make("denoise", {}).load([str(made)], 1)[0][5].shape == (40, 16, 3)


def test_pairs_and_masks(tmp_path):
    for i in range(4):
        for side in ("noisy", "clean"):
            write(tmp_path / "pairs" / side / f"{i}.png", 20 + i)
    folders = [str(tmp_path / name) for name in ("pairs", "packed")]
    pack.pack(*folders, "pairs")
    (train, held), (views, kept) = (load_pairs([folder], 1) for folder in folders)
    assert equal(train, views) and equal(held, kept) and views[0].shape == (21, 30, 6)
    for i in range(3):
        write(tmp_path / "shapes" / "images" / f"{i}.png")
        mask = np.uint8(RANDOM.integers(0, 2, (20, 30)) * 255)
        (tmp_path / "shapes" / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(tmp_path / "shapes" / "masks" / f"{i}.png")
    folders = [str(tmp_path / name) for name in ("shapes", "packed_shapes")]
    pack.pack(*folders, "masks", size=16)
    for classes in (1, 2):
        (train, held), (views, kept) = (load_masks([f, "drawn:2"], 1, classes, 16) for f in folders)
        assert equal(train, views) and equal(held, kept) and views[0].shape == (16, 16, 4)
    with pytest.raises(ValueError, match="was packed with size 16, not None; pack it again"):
        load_masks([folders[1]])
    with pytest.raises(ValueError, match="was packed with classes 2, not 3"):
        load_masks([folders[1]], classes=3, size=16)
    with pytest.raises(ValueError, match="holds packed masks, where pairs are needed"):
        load_pairs([folders[1]])


def test_pickles_hold_no_pixels(tmp_path):
    for i in range(4):
        write(tmp_path / "large" / f"{i}.png", 200, 300, compress_level=0)
    pack.pack(tmp_path / "large", tmp_path / "packed")
    train, _ = load_photos([str(tmp_path / "packed")], 1)
    for examples in (open_packed(tmp_path / "packed"), train):
        pickled = pickle.dumps(examples)
        assert len(pickled) < 3000 < examples[0].nbytes and equal(pickle.loads(pickled), examples)
    crops = Crops(train, 32, 8)
    for start in {"fork", "spawn"} & set(multiprocessing.get_all_start_methods()):
        loader = DataLoader(crops, batch_size=4, num_workers=1, multiprocessing_context=start)
        assert torch.equal(torch.cat(list(loader)), torch.stack(list(crops)))


def change(made, **fields):
    path = made / packed.INDEX
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def rows(made, position, **fields):
    examples = json.loads((made / packed.INDEX).read_text())["examples"]
    examples[position] |= fields
    change(made, examples=examples)


def cut(made, file, length):
    (made / file).write_bytes((made / file).read_bytes()[:length])


@pytest.mark.parametrize(
    "damage,words",
    [
        (lambda m: cut(m, packed.PIXELS, -1), r"pixels\.u8: holds \d+ bytes, and the index beside it says \d+"),
        (lambda m: cut(m, packed.PIXELS, 0), r"pixels\.u8: holds 0 bytes"),
        (lambda m: cut(m, packed.INDEX, 200), r"index\.json: is damaged, or no packed set's"),
        (lambda m: (m / packed.INDEX).write_bytes(b"\xff\xfe"), "is damaged"),
        (lambda m: (m / packed.INDEX).write_text("[" * 10**5), "is damaged"),
        (lambda m: (m / packed.INDEX).write_text('{"name": "other"}'), "no packed set's"),
        (lambda m: (m / packed.INDEX).write_text("[1]"), "no packed set's"),
        (lambda m: change(m, format="other"), "no packed set's"),
        (lambda m: change(m, version=2), "is of version 2 of the format, and version 1 is read; pack the set again"),
        (lambda m: change(m, kind="films"), "is damaged"),
        (lambda m: change(m, kind="pairs"), "is damaged"),
        (lambda m: change(m, examples=[]), "is damaged"),
        (lambda m: change(m, bytes=10**12), "is damaged"),
        (lambda m: rows(m, 2, offset=0), "is damaged"),
        (lambda m: rows(m, 6, height=10**9), "is damaged"),
        (lambda m: rows(m, 1, height=-26, width=-22), "is damaged"),
        (lambda m: rows(m, 0, width="30"), "is damaged"),
    ],
)
def test_what_is_not_whole_is_refused(made, damage, words, refused):
    damage(made)
    for use in (open_packed, lambda folder: load_photos([str(folder)])):
        with pytest.raises(ValueError, match=words) as error:
            use(made)
        assert "\n" not in str(error.value)
    (problem,) = packed.check(made)
    assert problem in refused("data", "check", made, "--quiet")


def test_a_folder_that_is_none(made, photos):
    with pytest.raises(ValueError, match="is no packed set"):
        open_packed(photos)
    (made / packed.PIXELS).unlink()
    with pytest.raises(ValueError, match="is no packed set"):
        open_packed(made)
    with pytest.raises(ValueError, match="holds no image"):
        load_photos([str(made)])


def test_changed_pixels_are_found(kunet, refused, made):
    assert "7 packed images, every checksum is right; whole" in kunet("data", "check", made, "--quiet").stdout
    with open(made / packed.PIXELS, "r+b") as file:
        file.seek(open_packed(made).offsets[2] + 5)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    assert packed.check(made) == ["4.png: its pixels are not those that were packed"]
    assert "is not whole: 4.png: its pixels" in refused("data", "check", made, "--quiet")


def test_the_command(kunet, refused, photos, made, tmp_path):
    result = kunet("data", "pack", photos, "-o", tmp_path / "new" / "set")
    assert result.returncode == 0 and "set: 7 photos, " in result.stdout and "packing" in result.stderr
    for file in (packed.PIXELS, packed.INDEX):
        assert (tmp_path / "new" / "set" / file).read_bytes() == (made / file).read_bytes()
    assert "is there already" in refused("data", "pack", photos, "-o", made)
    assert "no such folder" in refused("data", "pack", tmp_path / "none", "-o", tmp_path / "x")
    assert "is a packed set" in refused("data", "pack", made, "-o", tmp_path / "x")
    assert "neither degraded" in refused("data", "pack", photos, "-o", tmp_path / "x", "--kind", "pairs", "--quiet")
    assert "photos, pairs, masks" in refused("data", "pack", photos, "-o", tmp_path / "x", "--kind", "films")
    assert "masks alone" in refused("data", "pack", photos, "-o", tmp_path / "x", "--size", 32)
    assert names(tmp_path) == {"photos", "packed", "new"}


@pytest.mark.parametrize("keep", [10, -400])  # of the header, and of the pixels
def test_an_unreadable_image_is_named(refused, photos, tmp_path, keep):
    broken = photos / "inner" / "3.png"
    broken.write_bytes(broken.read_bytes()[:keep])
    assert f"{broken}: " in refused("data", "pack", photos, "-o", tmp_path / "out", "--quiet")
    assert names(tmp_path) == {"photos"}


def test_a_full_disk(refused, photos, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(pack.shutil, "disk_usage", lambda path: SimpleNamespace(free=4000))
        patch.setattr(pack, "_write", lambda *arguments: pytest.fail("started"))
        line = refused("data", "pack", photos, "-o", out, "--quiet")
        assert "out: needs 0.01 MB, and its disk has 0.00 MB left; make room" in line
    with monkeypatch.context() as patch:  # others may fill it meanwhile
        patch.setattr(pack.os, "fsync", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
        line = refused("data", "pack", photos, "-o", out, "--quiet")
        assert "out: cannot be written (the disk is full); nothing is left of it" in line
    assert names(tmp_path) == {"photos"}


SLOW = """
import sys, time
from kunet.data import pack
real = pack.load_pixels
def slow(path):
    if path.name == "4.png":
        print("here", flush=True)
        time.sleep(100)
    return real(path)
pack.load_pixels = slow
pack.pack(sys.argv[1], sys.argv[2])
"""


def test_a_killed_process_leaves_nothing_that_stays(kunet, refused, photos, tmp_path):
    out = tmp_path / "out"
    words = [sys.executable, "-c", SLOW, str(photos), str(out)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "here\n"
        (left,) = names(tmp_path) - {"photos"}
        assert left.startswith(".out.packing-") and not out.exists()
        assert f"is being packed by another process, in {tmp_path / left}" in refused("data", "pack", photos, "-o", out)
        process.send_signal(signal.SIGKILL)
    assert names(tmp_path) == {"photos", left}
    result = kunet("data", "pack", photos, "-o", out, "--quiet")
    assert result.returncode == 0 and f"removed {tmp_path / left}" in result.stdout
    assert names(tmp_path) == {"photos", "out"} and packed.check(out) == []


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="a peak of memory can be reset on Linux alone")
def test_memory_holds_one_image_at_a_time(tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (1500, 1000)).save(tmp_path / "photos" / "0.png")
    content = (tmp_path / "photos" / "0.png").read_bytes()
    for i in range(1, 40):
        (tmp_path / "photos" / f"{i}.png").write_bytes(content)
    load_pixels(tmp_path / "photos" / "0.png")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = peak_memory()
    examples = pack.pack(tmp_path / "photos", tmp_path / "packed")
    sum(int(example[0, 0, 0]) for example in examples)  # a look at each, as crops take
    assert examples.bytes == 40 * 4_500_000
    assert peak_memory() - before < 40e6


def test_what_does_not_fit_into_memory_is_not_begun(photos, made, monkeypatch):
    need = open_packed(made).bytes
    monkeypatch.setattr(pool, "physical_memory", lambda: need / pool.SHARE - 1)
    monkeypatch.setattr("kunet.data.photos.load_pixels", lambda path: pytest.fail("read"))
    words = r"7 photos: take \S+ GB in memory, of which this machine has \S+; pack them .* kunet data pack SOURCE -o"
    with pytest.raises(ValueError, match=words):
        load_photos([str(photos)])
    assert len(load_photos([str(made)])[0]) == 7  # nothing of it is read
    monkeypatch.undo()
    assert 2**28 < pool.physical_memory() < 2**50
