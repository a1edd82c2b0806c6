"""The estimated level of noise: right within bounds, blind to what does not change it, and said at the command line."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kunet.data import bundled
from kunet.denoise import Denoiser, denoise_paths
from kunet.evaluate import noisy_version
from kunet.images import add_noise, to_tensor, to_uint8
from kunet.noise import LEAST, SIDE, SMOOTH, YCC, _basis, _clipped_variance, _detail, estimate_sigma
from kunet.runs import load_weights, save_weights
from kunet.weights import find


@pytest.fixture(scope="module")
def photos():
    return [to_tensor(bundled("heldout")[name])[:, :256, :320] for name in ("chelsea", "coffee")]


@pytest.mark.parametrize("sigma", [15, 25, 50])
@pytest.mark.parametrize("mode,allowed", [("float", 0.015), ("u8", 0.03)])
def test_photos(photos, sigma, mode, allowed):
    for clean in photos:
        assert estimate_sigma(noisy_version(clean, sigma, 0, mode)) == pytest.approx(sigma, rel=allowed)


def in_file(image: torch.Tensor, **options) -> torch.Tensor:
    file = io.BytesIO()
    Image.fromarray(to_uint8(image)).save(file, **options)
    return to_tensor(Image.open(file).convert("RGB"))


@pytest.mark.parametrize(
    "options",
    [
        {"format": "JPEG", "quality": 95, "subsampling": "4:2:0"},
        {"format": "JPEG", "quality": 95, "subsampling": "4:2:2"},
        {"format": "WEBP", "quality": 95},
    ],
)
@pytest.mark.parametrize("sigma", [8, 15, 30])
def test_colours_that_a_file_has_smoothed_do_not_hide_the_noise(photos, options, sigma):
    """The files that cameras and phones write; and those without noise do not seem to have any."""
    for clean in photos:
        assert estimate_sigma(in_file(noisy_version(clean, sigma, 0), **options)) == pytest.approx(sigma, rel=0.2)
        assert estimate_sigma(in_file(clean, **options)) < 3


def test_the_noise_of_luma_alone(photos):
    """Of a photo whose colours were smoothed by something else; and colours alone say what they always said."""
    clean = photos[0]
    luma = torch.randn(clean.shape[1:], generator=torch.Generator().manual_seed(0))  # the same in R, G and B
    expected = 20 * float(YCC[0].sum() / YCC[0].norm())
    assert estimate_sigma(clean + 20 / 255 * luma) == pytest.approx(expected, rel=0.1)
    for sigma in (1, 3, 60):
        noisy = noisy_version(clean, sigma, 0)
        luma, *colours = _detail(noisy)
        assert min(colours) > 2 * SMOOTH * luma and luma * 255 == pytest.approx(sigma, rel=0.1, abs=1)


def test_gray(photos):
    """In one channel, or the same in three; the noise is then the same in all."""
    clean = photos[0].mean(0, keepdim=True)
    for mode in ("float", "u8"):
        gray = add_noise(clean, 30, torch.Generator().manual_seed(0), mode)
        assert estimate_sigma(gray) == pytest.approx(30, rel=0.03)
        assert estimate_sigma(gray.expand(3, -1, -1)) == estimate_sigma(gray)


@settings(max_examples=10, deadline=None)
@given(
    sigma=st.floats(1, 120),
    scale=st.floats(0.1, 3),
    shift=st.floats(-0.5, 2),
    seed=st.integers(0, 1000),
)
def test_laws(sigma, scale, shift, seed):
    """Scaled with the image; the same for any brightness, turned or mirrored, with the channels in any order."""
    ramp = torch.linspace(0, 1, 96).expand(3, 64, 96)
    noisy = noisy_version(ramp, sigma, seed) + 3  # no value is 0 or 1
    found = estimate_sigma(noisy)
    assert found == pytest.approx(sigma, rel=0.06)
    assert estimate_sigma((noisy - 3) * scale + 3 + shift) == pytest.approx(min(found * scale, 255), rel=1e-3)
    assert estimate_sigma(noisy.transpose(1, 2).flip(1)) == pytest.approx(found, rel=1e-6)
    assert estimate_sigma(noisy.flip(0)) == pytest.approx(found, rel=1e-6)


@pytest.mark.parametrize("value", [0.0, 128 / 255, 1.0, 7.3])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_constant_image_has_none(value, channels):
    assert estimate_sigma(torch.full((channels, 40, 60), value)) == 0


@pytest.mark.parametrize("value,allowed", [(0.0, 0.06), (0.1, 0.03), (0.5, 0.02), (1.0, 0.06)])
def test_dark_and_bright(value, allowed):
    """Where half of the noise was clipped away, too."""
    noisy = noisy_version(torch.full((3, 120, 160), value), 50, 0, "u8")
    assert float(noisy.std()) * 255 < 50 and estimate_sigma(noisy) == pytest.approx(50, rel=allowed)


def test_channels_and_parts_without_noise():
    """A constant channel says nothing; black bars take their share of a clipped photo's variance, and are known."""
    noisy = noisy_version(torch.full((3, 160, 160), 0.5), 20, 0, "u8")
    only_red = noisy * torch.tensor([1.0, 0, 0]).view(3, 1, 1)
    assert estimate_sigma(only_red) == pytest.approx(20, rel=0.03)
    noisy[:, :60] = 0
    assert estimate_sigma(noisy) == pytest.approx(20, rel=0.03)


@pytest.mark.parametrize("dtype,allowed", [(torch.float64, 1e-6), (torch.float16, 0.02)])
def test_any_float_will_do(photos, dtype, allowed):
    noisy = noisy_version(photos[0], 25, 0)
    luma = photos[0] + 0.1 * torch.randn(photos[0].shape[1:], generator=torch.Generator().manual_seed(0))
    for image in (noisy, luma):
        assert estimate_sigma(image.to(dtype)) == pytest.approx(estimate_sigma(image), rel=allowed)


def test_what_no_noise_explains_is_at_most_255():
    assert estimate_sigma((torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) > 0.5).float()) == 255
    luma = 3 * torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    assert estimate_sigma(luma + torch.tensor([0.0, 0.01, 0.02])[:, None, None]) == 255


def test_a_large_image_is_sampled():
    """No more than about 200000 patches, at odd steps; the estimate is as good."""
    noisy = noisy_version(torch.linspace(0.3, 0.7, 1800).expand(3, 1200, 1800), 10, 0)
    assert estimate_sigma(noisy) == pytest.approx(10, rel=0.01)
    assert estimate_sigma(noisy) == estimate_sigma(noisy)


def test_the_basis_is_orthonormal():
    for channels in (1, 2, 3):
        basis = _basis(channels)
        assert torch.allclose(basis @ basis.T, torch.eye(channels * SIDE**2, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("sigma", [0.02, 0.2, 1.0])
def test_clipped_noise_varies_as_sampled(sigma):
    draws = np.random.default_rng(0).standard_normal(400_000) * sigma
    for mean in (-0.1, 0.0, 0.05, 0.5, 0.9):
        clipped = (mean + draws).clip(0, 1)
        if 0 < clipped.mean():
            found = float(_clipped_variance(np.array([clipped.mean()]), sigma)[0])
            assert found == pytest.approx(clipped.var(), rel=0.03, abs=1e-6)


@pytest.mark.parametrize("shape,size", [((3, LEAST - 1, 40), "40 x 15"), ((1, 40, 3), "3 x 40"), ((3, 0, 0), "0 x 0")])
def test_too_small(shape, size):
    with pytest.raises(ValueError, match=f"{size} pixels is too small .* 16 x 16 are needed, or state --sigma"):
        estimate_sigma(torch.zeros(shape))
    assert estimate_sigma(torch.zeros(3, LEAST, LEAST)) == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_not_finite(value):
    image = torch.rand(3, 20, 20)
    image[1, 7, 7] = value
    with pytest.raises(ValueError, match="not finite"):
        estimate_sigma(image)


# Denoising with it


class Told(torch.nn.Module):
    """Returns the level that it is told as the image."""

    def forward(self, x, level):
        return x * 0 + level


def test_a_denoiser_finds_the_level(photos):
    noisy = noisy_version(photos[0], 25, 0)
    level = estimate_sigma(noisy)
    assert torch.allclose(Denoiser(Told())(noisy, "auto"), torch.tensor(level / 255))
    image = Image.fromarray(to_uint8(noisy))
    level = np.asarray(Denoiser(Told()).photo(image, "auto"))
    assert (level == 25).all()
    with pytest.raises(ValueError, match=r"sigma is 'loud'; .* 0 to 255, in 8-bit levels, or .auto"):
        Denoiser(Told())(noisy, "loud")


def test_a_folder_is_told_photo_by_photo(photos, tmp_path):
    """Each photo's own level, also after one that fails; nothing is written for what cannot be estimated."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_text("no picture")
    for name, sigma in (("b", 15), ("c", 40)):
        Image.fromarray(to_uint8(noisy_version(photos[0], sigma, 0))).save(tmp_path / "in" / f"{name}.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "in" / "d.png")
    found = {}
    failures = denoise_paths(
        [tmp_path / "in"], tmp_path / "out", "auto", Denoiser(Told()), progress=False,
        told=lambda source, sigma: found.update({source.name: sigma}),
    )  # fmt: skip
    assert len(failures) == 2 and "a.png" in failures[0] and "d.png: an image of 8 x 8 pixels" in failures[1]
    assert found == {"b.png": pytest.approx(15, rel=0.03), "c.png": pytest.approx(40, rel=0.03)}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["b.png", "c.png"]
    with pytest.raises(ValueError, match="exists already"):
        denoise_paths([tmp_path / "in"], tmp_path / "out", "auto", Denoiser(Told()), progress=False)


def test_the_level_is_said(kunet, photo):
    """Under --quiet, too."""
    result = kunet("denoise", photo, "--sigma", "auto", "--quiet")
    assert result.returncode == 0, result.stderr
    line = result.stderr.strip()
    assert line.startswith(f"{photo}: sigma ") and float(line.split()[-1]) == pytest.approx(50, rel=0.1)
    assert photo.with_name("photo_denoised.png").exists()
    assert f"{photo}: sigma " in kunet("denoise", photo, "--sigma", "auto", "--force").stderr


def test_what_was_not_trained_is_said_once(kunet, tmp_path):
    for name in ("a", "b"):
        Image.new("L", (60, 40), "gray").save(tmp_path / f"{name}.png")
    model, card = load_weights(find("kunet_tiny"))
    card["recipe"]["task_args"]["sigma"] = [3, 60]
    weights, recipe = tmp_path / "w.safetensors", card["recipe"]
    save_weights(weights, model, recipe["model"], recipe["model_args"], card)
    photos = tmp_path / "a.png", tmp_path / "b.png"
    result = kunet("denoise", *photos, "--sigma", "auto", "--quiet", "--weights", weights)
    assert result.returncode == 0, result.stderr
    lines = result.stderr.strip().splitlines()
    assert [line.split(": ", 1)[1] for line in lines if "note" not in line] == ["sigma 0.0", "sigma 0.0"]
    assert len(lines) == 3 and "was trained for sigma 3 to 60" in result.stderr


def test_wrong_requests(refused, photo, tmp_path):
    line = refused("denoise", photo, "--sigma", "loud")
    assert "'loud' is no noise level; give a number from 0 to 255, in 8-bit levels, or auto" in line
    assert "invalid float value: 'auto'" in refused("evaluate", "--sigma", "auto")
    Image.new("RGB", (5, 4)).save(tmp_path / "small.png")
    line = refused("denoise", tmp_path / "small.png", "--sigma", "auto", "--quiet")
    assert "small.png: an image of 5 x 4 pixels is too small" in line and "state --sigma" in line
    assert not (tmp_path / "small_denoised.png").exists()
