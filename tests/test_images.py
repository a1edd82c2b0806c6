"""Files and pixels: what comes in, what goes out, what is refused and how."""

import os
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kunet import images


@pytest.fixture
def png(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    return path


def test_round_trip_is_exact(png):
    x = images.load_rgb(png)
    assert x.shape == (3, 20, 30) and x.dtype == torch.float32
    assert np.array_equal(images.to_uint8(x), np.asarray(Image.open(png)))


@settings(max_examples=30, deadline=None)
@given(st.floats(-1, 2))
def test_rounding_is_to_the_nearest_level(value):
    level = images.to_uint8(torch.full((1, 1, 1), value)).item()
    assert abs(level - min(max(value, 0), 1) * 255) <= 0.5 + 1e-4
    assert images.as_file(torch.tensor([[[value]]])).item() == pytest.approx(level / 255)


def test_noise():
    clean = torch.full((3, 200, 200), 0.5)
    noisy = images.add_noise(clean, 50, torch.Generator().manual_seed(0))
    assert float((noisy - clean).std()) == pytest.approx(50 / 255, rel=0.01)
    assert abs(float((noisy - clean).mean())) < 0.002
    assert torch.equal(noisy, images.add_noise(clean, 50, torch.Generator().manual_seed(0)))
    file = images.add_noise(clean, 150, torch.Generator().manual_seed(0), "u8")
    assert float(file.min()) == 0 and float(file.max()) == 1
    assert torch.equal(file, images.as_file(file))


def test_sixteen_bit_gray():
    pixels = np.array([[0, 65535], [257 * 100, 257 * 3]], dtype=np.uint16)
    x = images.to_tensor(pixels)
    assert torch.allclose(x * 255, torch.tensor([[[0.0, 255.0], [100.0, 3.0]]]))
    assert np.asarray(images.to_rgb(Image.fromarray(pixels)))[..., 0].tolist() == [[0, 255], [100, 3]]


def test_exif_orientation_is_applied(tmp_path):
    image = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6).repeat(3).reshape(4, 6, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to show
    image.save(tmp_path / "turned.png", exif=exif)
    assert images.open_image(tmp_path / "turned.png").size == (4, 6)


def bomb(path):
    """A tiny PNG that claims to be 60,000 x 60,000 pixels."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "make,words",
    [
        (lambda p, png: None, "no such file"),
        (lambda p, png: p.mkdir(), "is a folder"),
        (lambda p, png: p.write_bytes(b""), "0 bytes"),
        (lambda p, png: p.write_text("hello, I am not an image\n" * 50), "not an image that Pillow can read"),
        (lambda p, png: p.write_bytes(png.read_bytes()[:600]), "damaged"),
        (lambda p, png: bomb(p), "at most 178 million"),
    ],
    ids=["missing", "folder", "empty", "text", "truncated", "bomb"],
)
def test_bad_files(tmp_path, png, make, words):
    path = tmp_path / "bad.png"
    make(path, png)
    with pytest.raises(images.ImageError, match=words) as caught:
        images.load_rgb(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_writes_whole_or_not_at_all(tmp_path, png):
    image = Image.open(png)
    with pytest.raises(images.ImageError, match="does not exist"):
        images.save_image(image, tmp_path / "no" / "a.png")
    with pytest.raises(images.ImageError, match=r"cannot write \.xyz"):
        images.save_image(image, tmp_path / "a.xyz")
    rgba = image.convert("RGBA")
    with pytest.raises(images.ImageError, match="cannot hold an alpha"):
        images.save_image(rgba, tmp_path / "a.jpg")  # JPEG has no alpha
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png"]
    images.save_image(image, tmp_path / "b.png")
    assert (tmp_path / "b.png").stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("sigma", [float("nan"), float("inf"), -1, 256, "50", None])
def test_sigma_is_checked(sigma):
    with pytest.raises(ValueError, match="from 0 to 255"):
        images.check_sigma(sigma)
    assert images.check_sigma(50) == 50.0


def test_mode_is_checked():
    with pytest.raises(ValueError, match='"float" or "u8"'):
        images.add_noise(torch.zeros(1, 2, 2), 5, mode="double")


def test_damaged_notes_are_left_out_and_the_photo_is_upright(tmp_path):
    """An EXIF value of a wrong type: Pillow cannot write the notes again, but it knows which way is up."""
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6).repeat(3).reshape(4, 6, 3)
    entry = lambda tag, kind, count, value: struct.pack("<HHII", tag, kind, count, value)
    tags = [entry(274, 3, 1, 6), entry(282, 2, 4, 0x61616161)]  # an orientation; a resolution that is text
    broken = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(tags) + struct.pack("<I", 0)
    for name, exif in (("type", broken), ("garbage", b"Exif\0\0garbage")):
        path = tmp_path / f"{name}.jpg"
        Image.fromarray(pixels).save(path, exif=exif)
        with pytest.warns(UserWarning, match=f"{path}: its EXIF notes are damaged, and left out"):
            image = images.open_image(path)
        assert image.size == ((4, 6) if name == "type" else (6, 4))
        for suffix in (".png", ".jpg", ".tif", ".webp", ".bmp"):
            images.save_image(image, tmp_path / f"out{suffix}")


def test_notes_of_a_tiff_go_with_it(tmp_path):
    exif = Image.Exif()
    exif[271], exif[306], exif[274] = "Acme", "2020:01:01 00:00:00", 6
    exif.get_ifd(34665)[33434] = 0.5  # the exposure, in seconds
    Image.new("RGB", (6, 4)).save(tmp_path / "a.tif", exif=exif.tobytes(), dpi=(300, 300))
    image = images.open_image(tmp_path / "a.tif")
    assert image.size == (4, 6)
    for suffix in (".png", ".jpg", ".tif", ".webp"):
        images.save_image(image, tmp_path / f"out{suffix}")
        with Image.open(tmp_path / f"out{suffix}") as out:
            found = out.getexif()
            assert found[271] == "Acme" and 274 not in found and out.size == (4, 6)
            assert found.get_ifd(34665)[33434] == 0.5
            assert suffix in (".tif", ".webp") or not {256, 273} & set(found)  # not how the TIFF's pixels lay


def test_metadata_that_a_file_cannot_hold_is_left_out(tmp_path):
    image = Image.new("RGB", (6, 4))
    notes = Image.Exif()
    notes[270] = "x" * 70_000
    image.info |= {"dpi": (4e9, 4e9), "exif": notes.tobytes()}
    with pytest.warns(UserWarning, match="a JPEG cannot hold its EXIF notes, and they are left out"):
        images.save_image(image, tmp_path / "a.jpg")
    images.save_image(image, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as out:
        assert len(out.getexif()[270]) == 70_000 and "dpi" not in out.info
    image.info["dpi"] = (float("nan"), 1)
    images.save_image(image, tmp_path / "a.bmp")


def test_whatever_a_parser_raises_names_the_file(tmp_path, png, monkeypatch):
    def broken(self):
        raise TypeError("Missing dimensions")

    monkeypatch.setattr(Image.Image, "load", broken)
    with pytest.raises(images.ImageError, match=f"{png}: the image is damaged .Missing dimensions"):
        images.open_image(png)


def test_sixteen_bits_of_a_ppm_are_not_flattened(tmp_path):
    path = tmp_path / "a.ppm"
    for most, kind in ((65535, ">u2"), (100, "u1")):
        path.write_bytes(f"P6 3 2 {most}\n".encode() + np.full((2, 3, 3), most, kind).tobytes())
        if most == 100:
            assert images.load_rgb(path).eq(1).all()
        else:
            with pytest.raises(images.ImageError, match="16 bits a channel"):
                images.open_image(path)


@pytest.mark.parametrize("mode,kind", [("RGB", "RGBA"), ("L", "LA")])
def test_a_colour_that_stands_for_transparent_is_alpha(tmp_path, mode, kind):
    pixels = np.array([[[10, 20, 30], [40, 50, 60]]], dtype=np.uint8)
    image = Image.fromarray(pixels if mode == "RGB" else pixels[..., 0])
    image.save(tmp_path / "a.png", transparency=(40, 50, 60) if mode == "RGB" else 40)
    found = images.direct(images.open_image(tmp_path / "a.png"))
    assert found.mode == kind and np.asarray(found.getchannel("A")).tolist() == [[255, 0]]
    with pytest.raises(images.ImageError, match="alpha"):
        images.check_holds(tmp_path / "a.jpg", found.mode)


def test_a_mask_keeps_its_classes(tmp_path):
    for suffix in (".jpg", ".webp"):
        with pytest.raises(images.ImageError, match="cannot hold the classes of a mask"):
            images.save_image(Image.new("P", (3, 2)), tmp_path / f"a{suffix}")
    for suffix in (".png", ".tif", ".bmp"):
        mask = Image.new("L", (3, 2), 2).convert("P")
        mask.putpalette([0, 0, 0, 230, 159, 0, 86, 180, 233] + [0] * 759)
        images.save_image(mask, tmp_path / f"a{suffix}")
        with Image.open(tmp_path / f"a{suffix}") as mask:
            assert np.asarray(mask).tolist() == [[2, 2, 2]] * 2
