"""Photos in, photos out: every mode, every size, nothing lost."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from kunet.data import bundled, list_images
from kunet.denoise import SUFFIX, Denoiser, denoise_paths
from kunet.evaluate import evaluate, noisy_version
from kunet.folders import plan
from kunet.images import add_noise, to_tensor
from kunet.metrics import psnr
from kunet.models import FFDNet
from kunet.restore import GRID, through
from kunet.runs import save_weights


class Halve(nn.Module):
    """A model one can predict: half of everything."""

    def forward(self, x, level):
        return x / 2


@pytest.fixture(scope="module")
def shipped():
    return Denoiser.load()


@pytest.fixture
def halve():
    return Denoiser(Halve())


def test_it_denoises(shipped):
    clean = to_tensor(bundled("heldout")["coffee"])[:, :200, :300]
    for sigma in (15, 25, 50):
        noisy = noisy_version(clean, sigma, seed=0)
        restored = shipped(noisy, sigma)
        assert float(psnr(restored[None], clean[None]) - psnr(noisy[None], clean[None])) > {15: 4, 25: 6, 50: 9}[sigma]
        assert 0 <= float(restored.min()) and float(restored.max()) <= 1


def test_it_denoises_gray(shipped):
    """A gray photo, as one channel or as three equal ones, is no harder than the colour network makes it."""
    clean = to_tensor(bundled("heldout")["chelsea"]).mean(0, keepdim=True)
    for sigma in (25, 50):
        noisy = add_noise(clean, sigma, torch.Generator().manual_seed(0))
        restored = shipped(noisy, sigma)
        assert restored.shape == clean.shape
        assert float(psnr(restored[None], clean[None]) - psnr(noisy[None], clean[None])) > {25: 10, 50: 13}[sigma]
        assert torch.allclose(shipped(noisy.expand(3, -1, -1), sigma).mean(0, keepdim=True), restored, atol=1e-5)


def test_noise_stronger_than_it_was_trained_for(shipped):
    clean = to_tensor(bundled("heldout")["coffee"])[:, :200, :300]
    noisy = noisy_version(clean, 120, seed=0)
    assert float(psnr(shipped(noisy, 120)[None], clean[None]) - psnr(noisy[None], clean[None])) > 14


class Told(nn.Module):
    """Returns the level that it is told, of all pixels or of each, as the image."""

    def forward(self, x, level):
        return torch.as_tensor(level, dtype=x.dtype).expand_as(x)


def untrained(folder, **task_args):
    """A weights file of a small untrained network that uses the level."""
    args = {"width": 4, "depth": 2}
    card = {"recipe": {"task": "denoise", "task_args": {"sigma": [0, 50], **task_args}}}
    torch.manual_seed(0)
    save_weights(folder / "w.safetensors", FFDNet(**args), "ffdnet", args, card)
    return str(folder / "w.safetensors")


@pytest.mark.parametrize("sigma", [0.5, 1, 2, 3, 5])
def test_hardly_any_noise_is_not_made_worse(shipped, sigma):
    """Nor is the rest of a photo's own grain taken for a fault, which all but one of these have."""
    whole = replace(shipped, own_error=0)
    for name, pixels in bundled("heldout").items():
        clean = to_tensor(pixels)[:, :384, :384]
        noisy = noisy_version(clean, sigma, seed=0)
        error = lambda x, clean=clean: float((x - clean).square().mean())
        found = error(shipped(noisy, sigma))
        assert found < error(whole(noisy, sigma))
        assert found < error(noisy) or name != "chelsea"


def test_a_photo_without_noise_stays_as_it_is(shipped):
    clean = to_tensor(bundled("heldout").popitem()[1])[:, :70, :90]
    assert torch.equal(shipped(clean, 0), clean)
    level = torch.zeros(70, 90)
    level[:, 45:] = 30
    restored = shipped(clean, level)
    assert torch.equal(restored[..., :45], clean[..., :45]) and not torch.equal(restored, clean)


def test_of_the_change_a_share_is_made():
    x = torch.rand(3, 40, 40)
    for sigma in (0, 1, 2, 50):
        share = sigma**2 / (sigma**2 + 2**2)
        assert torch.allclose(Denoiser(Halve(), own_error=2)(x, sigma), x - share * x / 2, atol=1e-6)
    assert torch.equal(Denoiser(Halve(), own_error=2, blind=True)(x, 1), x / 2)  # which nobody tells the level
    high = Denoiser(Halve(), trained_sigma=(0, 25), own_error=50)(x, 50)  # half of the contrast, and back
    assert torch.allclose(high, ((x + x / 2 - 0.25) / 2).clamp(min=0), atol=1e-6)


def test_untrained_are_not_told_the_level(tmp_path):
    """Training gave them 0, so every use does."""
    x = torch.rand(3, 40, 40)
    assert torch.allclose(Denoiser(Told())(x, 25), torch.tensor(25 / 255))
    assert not Denoiser(Told(), blind=True)(x, 25).any()
    blind = Denoiser.load(untrained(tmp_path, blind=True))
    assert blind.blind and blind.trained_sigma == (0, 50)
    with torch.no_grad():
        assert torch.allclose(blind(x, 25), blind.model(x[None], 0.0)[0].clamp(0, 1), atol=1e-6)
    told = Denoiser.load(untrained(tmp_path))
    assert not told.blind and not torch.allclose(told(x, 25), blind(x, 25), atol=1e-3)


def test_untrained_are_evaluated_blind(kunet, tmp_path):
    weights = untrained(tmp_path, blind=True)
    result = kunet("evaluate", "--weights", weights, "--sigma", "25", "--json", tmp_path / "e.json", "--quiet")
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "e.json").read_text())["results"]["bundled"]
    model = Denoiser.load(weights).model
    with torch.no_grad():
        wanted = evaluate(lambda x, sigma: model(x[None], 0.0)[0], "bundled", 25, progress=False)
    assert [row["psnr"] for row in found["rows"]] == pytest.approx([score.psnr for score in wanted], abs=1e-3)


def test_a_map_of_levels():
    """One level a pixel: told as it is, cut into the tiles of its image, weakened with the contrast."""
    levels = torch.linspace(0, 40, 300 * 500).view(300, 500)
    x = torch.rand(3, 300, 500)
    for denoiser in (Denoiser(Told()), Denoiser(Told(), memory=1)):  # whole, and in the smallest tiles
        assert torch.allclose(denoiser(x, levels), levels.expand(3, -1, -1) / 255, atol=1e-6)
        gray = denoiser(x[:1], levels)
        assert gray.shape == (1, 300, 500) and torch.allclose(gray[0], levels * 3**0.5 / 255, atol=1e-6)
    assert denoiser.tile == 3 * GRID
    assert not Denoiser(Told(), blind=True)(x, levels).any()
    weaker = Denoiser(Told(), trained_sigma=(0, 20))(x, levels)  # half the contrast: half the noise, and back
    assert torch.allclose(weaker, ((levels / 2 / 255 - 0.5) * 2 + 0.5).clamp(0, 1).expand(3, -1, -1), atol=1e-6)


def test_a_network_with_a_map_in_tiles():
    """Away from the seams, which nothing of the neighbours' footprint crosses, tiled is whole."""
    torch.manual_seed(0)
    model = FFDNet(width=8, depth=3).eval()
    x, levels = torch.rand(3, 301, 517), 50 * torch.rand(301, 517)
    whole, tiles = Denoiser(model)(x, levels), Denoiser(model, memory=1)(x, levels)
    assert float((whole - tiles).abs().max()) < 0.02 and float((whole - tiles).abs().mean()) < 1e-4
    constant = torch.full((301, 517), 20.0)
    assert torch.equal(Denoiser(model)(x, constant), Denoiser(model)(x, 20))


class Ramp(nn.Module):
    """Its change depends on where a pixel lies and on the level there, in no symmetric way."""

    def forward(self, x, level=0.0):
        rows, columns = (torch.arange(side) / 100 for side in x.shape[-2:])
        return x + (2 * rows[:, None] + columns) * level


@pytest.mark.parametrize("memory", [2e9, 1])
def test_an_ensemble_is_the_mean_over_turned_and_mirrored_copies(memory):
    """Of each copy's own result, brought back; that of 8 turns with the image, where a single one does not."""
    x, levels = torch.rand(3, 300, 450) / 2 + 0.2, torch.rand(300, 450)
    many, calls = Denoiser(Ramp(), memory, ensemble=8), []
    y = many(x, levels, lambda: calls.append(1))
    assert len(calls) == many.steps(300, 450) == 8 * Denoiser(Ramp(), memory).steps(300, 450)
    for turns in range(1, 4):
        assert torch.allclose(many(x.rot90(turns, (1, 2)), levels.rot90(turns)).rot90(-turns, (1, 2)), y, atol=1e-6)
    assert torch.allclose(many(x.flip(2), levels.flip(1)).flip(2), y, atol=1e-6)
    assert not torch.allclose(Denoiser(Ramp(), memory)(x.flip(2), levels.flip(1)).flip(2), y, atol=1e-3)
    assert torch.allclose(many(x, 0), x, atol=1e-6)  # Ramp leaves it as it is, and each copy comes back to its place
    one, flips = lambda z: Denoiser(Ramp(), memory)(z, 5), ((), (2,), (1, 2), (1,))
    upright = [one(x.flip(axes)).flip(axes) for axes in flips]
    sideways = [one(x.flip(axes).mT).mT.flip(axes) for axes in flips]
    for count in (2, 4, 8):
        wanted = torch.stack([*upright, *sideways][:count]).mean(0)
        assert torch.allclose(Denoiser(Ramp(), memory, ensemble=count)(x, 5), wanted, atol=1e-6)
    with pytest.raises(ValueError, match="ensemble is 3; it must be 1, 2, 4 or 8"):
        Denoiser(Ramp(), ensemble=3)


def test_an_ensemble_is_better():
    """By the released weights, on a photo that they were not trained on."""
    clean = to_tensor(bundled("heldout")["coffee"])[:, :200, :300]
    noisy = noisy_version(clean, 50, seed=0)
    one, two, eight = (float(psnr(Denoiser.load(ensemble=count)(noisy, 50)[None], clean[None])) for count in (1, 2, 8))
    assert one + 0.02 < two and two + 0.02 < eight


def test_a_map_tells_where_the_noise_is(shipped):
    """Of an image that is half noisy, a map leaves the other half nearly alone."""
    clean = to_tensor(bundled("heldout")["coffee"])[:, :200, :300]
    levels = torch.full(clean.shape[1:], 5.0)
    levels[:, 150:] = 50
    noisy = clean + levels / 255 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    score = lambda sigma: float(psnr(shipped(noisy, sigma)[None], clean[None]))
    assert score(levels) > max(score(5), score(27), score(50)) + 0.5


@pytest.mark.parametrize(
    "levels,words",
    [
        (torch.zeros(4, 5), r"a map of \(4, 5\) for an image of \(3, 4, 4\); .* \(4, 4\)"),
        (torch.full((4, 4), 300.0), "from 300 to 300; .* 0 to 255"),
        (torch.full((4, 4), float("nan")), "from nan to nan"),
    ],
)
def test_wrong_maps(halve, levels, words):
    with pytest.raises(ValueError, match=words):
        halve(torch.zeros(3, 4, 4), levels)


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (31, 33), (65, 128)])
def test_any_size(shipped, size):
    assert shipped(torch.rand(3, *size), 50).shape == (3, *size)


def test_tiles_do_not_show(shipped):
    """Tiled against whole: below a level of 8 bits on average, no seam to see."""
    clean = to_tensor(bundled("heldout")["china"])
    noisy = noisy_version(clean, 50, seed=0)
    small = Denoiser(shipped.model, memory=6e7)
    assert small.tile == 3 * GRID and small.parts(*clean.shape[1:])[0] == "tiles"
    calls = []
    tiled, whole = small(noisy, 50, lambda: calls.append(1)), shipped(noisy, 50)
    assert len(calls) == small.steps(*clean.shape[1:]) > 1
    assert float((tiled - whole).abs().mean()) < 0.5 / 255
    gap = abs(float(psnr(tiled[None], clean[None]) - psnr(whole[None], clean[None])))
    assert gap < 0.05


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "1", "I;16"])
def test_modes(halve, mode):
    rng = np.random.default_rng(0)
    image = {
        "I;16": lambda: Image.fromarray(rng.integers(0, 65536, (9, 7), dtype=np.uint16)),
        "RGBA": lambda: Image.fromarray(rng.integers(0, 256, (9, 7, 4), dtype=np.uint8)),
        "LA": lambda: Image.fromarray(rng.integers(0, 256, (9, 7, 2), dtype=np.uint8)),
    }.get(mode, lambda: Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)).convert(mode))()
    assert image.mode == mode
    result = halve.photo(image, 50)
    assert result.size == image.size
    assert result.mode == {"P": "RGB", "1": "L"}.get(mode, mode)
    if mode in ("RGB", "L", "I;16"):
        assert np.abs(np.asarray(result).astype(float) * 2 - np.asarray(image)).max() <= 1
    if mode.endswith("A"):
        assert np.array_equal(np.asarray(result)[..., -1], np.asarray(image)[..., -1])


def test_other_modes_are_refused(halve):
    with pytest.raises(ValueError, match="mode CMYK; convert it"):
        halve.photo(Image.new("CMYK", (4, 4)), 50)


def test_sixteen_bit_colour_is_refused_not_flattened(tmp_path, halve):
    import struct
    import zlib

    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = b"".join(b"\0" + bytes(range(24)) for _ in range(4))
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0))
    (tmp_path / "deep.png").write_bytes(data + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    failures = denoise_paths([tmp_path / "deep.png"], None, 50, halve, progress=False)
    assert len(failures) == 1 and "16 bits a channel" in failures[0]
    assert [p.name for p in tmp_path.iterdir()] == ["deep.png"]


def test_metadata_and_orientation(tmp_path, halve):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    Image.new("RGB", (6, 4), "red").save(tmp_path / "a.jpg", exif=exif, dpi=(300, 300))
    assert denoise_paths([tmp_path / "a.jpg"], tmp_path / "b.png", 50, halve, progress=False) == []
    with Image.open(tmp_path / "b.png") as result:
        assert result.size == (4, 6)  # upright
        assert result.getexif().get(0x0112, 1) == 1 and result.getexif()[0x010F] == "a camera"
        assert round(result.info["dpi"][0]) == 300


def test_a_folder(tmp_path, halve):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.jpg"):
        Image.new("RGB", (5, 5), "white").save(tmp_path / "in" / name)
    (tmp_path / "in" / "broken.png").write_text("text")
    failures = denoise_paths([tmp_path / "in"], None, 50, halve, progress=False)
    assert len(failures) == 1 and "broken.png" in failures[0]
    out = tmp_path / "in_denoised"
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()) == ["a.png", "sub/b.png"]


def test_results_inside_a_folder_are_no_photos_of_it(tmp_path, halve):
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    for _ in range(2):
        assert not denoise_paths([tmp_path], tmp_path / "clean", 25, halve, "overwrite", progress=False)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.png")) == ["a.png", "clean/a.png"]
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match=r"holds no image beside those in .*clean"):
        plan([tmp_path], tmp_path / "clean", "overwrite", SUFFIX)


@pytest.mark.parametrize("sigma", [25, "auto"])
def test_a_folder_goes_on_where_it_stopped(tmp_path, halve, sigma):
    for name in "abc":
        Image.new("RGB", (20, 20), "white").save(tmp_path / f"{name}.png")
    (tmp_path / "clean").mkdir()
    done, seen = tmp_path / "clean" / "b.png", []
    done.write_text("of an earlier run")
    told = lambda source, level: seen.append(source.name)
    with pytest.raises(ValueError, match=r"exists already; .* --skip-existing to leave it"):
        denoise_paths([tmp_path], tmp_path / "clean", sigma, halve, progress=False)
    assert not denoise_paths([tmp_path], tmp_path / "clean", sigma, halve, "skip", False, told)
    assert done.read_text() == "of an earlier run" and seen == ["a.png", "c.png"] * (sigma == "auto")
    assert sorted(path.name for path in (tmp_path / "clean").iterdir()) == ["a.png", "b.png", "c.png"]
    assert plan([tmp_path], tmp_path / "clean", "skip", SUFFIX) == []
    for unknown in (False, True, "overwirte"):
        with pytest.raises(Exception, match="overwrite"):  # by the types too, where they are checked
            plan([tmp_path], tmp_path / "clean", unknown, SUFFIX)


def test_a_folder_that_cannot_be_read_is_said(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root may read everything
    with pytest.raises(ValueError, match=r"sub: the folder cannot be read .Permission denied"):
        list_images(tmp_path)


def test_values_that_are_not_finite_are_no_photo(tmp_path):
    for image in (Image.new("RGB", (4, 4)), Image.fromarray(np.zeros((4, 4), np.uint16))):
        with pytest.raises(ValueError, match="not finite; try --precision fp32"):
            through(image, lambda x: x * float("nan"))


def test_nothing_is_lost(tmp_path):
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    Image.new("RGB", (5, 5)).save(a)
    assert plan([a], None, "refuse", SUFFIX) == [(a, tmp_path / "a_denoised.png")]
    Image.new("RGB", (5, 5)).save(b)
    for inputs, output, words in (
        ([a], b, "exists already"),
        ([a], a, "is the photo itself"),
        ([a, b], tmp_path / "c.png", "one file for several"),
        ([a], tmp_path / "c.txt", "cannot write .txt"),
        ([tmp_path / "a.png", tmp_path / "." / "a.png"], tmp_path / "out", "two images would be written"),
    ):
        with pytest.raises(ValueError, match=words):
            plan(inputs, output, "refuse", SUFFIX)
    assert plan([a], b, "overwrite", SUFFIX) == [(a, b)]


def test_messages(halve):
    with pytest.raises(ValueError, match="2 channels"):
        halve(torch.zeros(2, 4, 4), 50)
    with pytest.raises(ValueError, match="sigma is nan"):
        halve(torch.zeros(3, 4, 4), float("nan"))
