"""Blur against scipy, JPEG against Pillow, rain against laws."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from kunet.data import bundled
from kunet.data.degrade import blur, gaussian_kernel, jpeg, motion_kernel, rain
from kunet.images import to_tensor


def one(*numbers):
    """Each number as a batch of one."""
    return [torch.tensor([float(n)], dtype=torch.float64) for n in numbers]


def moments(kernel, angle):
    """(mean x, mean y, variance along the angle, variance across it) of a kernel as a distribution."""
    half, kernel = kernel.shape[-1] // 2, kernel.numpy()
    steps = np.arange(-half, half + 1)
    x, y = np.meshgrid(steps, -steps)
    c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    mean = lambda f: float((kernel * f).sum())
    return mean(x), mean(y), mean((x * c + y * s) ** 2), mean((y * c - x * s) ** 2)


@pytest.fixture
def cat():
    return to_tensor(bundled("heldout")["chelsea"][60:124, 100:180])


KERNELS = [motion_kernel(*one(9.5, 30)), motion_kernel(*one(0, 0)), gaussian_kernel(*one(2.5, 0.5, 70))]


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_average(kernel):
    assert float(kernel.min()) >= 0 and float(kernel.sum()) == pytest.approx(1)
    flat = torch.full((1, 3, 20, 30), 0.3, dtype=torch.float64)
    assert torch.allclose(blur(flat, kernel), flat)
    assert kernel.shape[1] % 2 == 1 and torch.allclose(kernel, kernel.flip(1, 2))


@pytest.mark.parametrize("length", [1, 4, 9.5, 15, 40])
@pytest.mark.parametrize("angle", [0, 30, 45, 90, 135, 200])
def test_a_motion_is_as_long_as_it_says(length, angle):
    x, y, along, across = moments(motion_kernel(*one(length, angle))[0], angle)
    assert abs(x) < 1e-9 and abs(y) < 1e-9
    # the interpolation between two pixels adds at most 1/4, where a point lies half way
    assert length**2 / 12 * 0.98 <= along <= length**2 / 12 + 0.25
    assert 0 <= across <= 0.25 + 1e-9


def test_a_motion_is_the_mean_along_a_line(cat):
    length, angle = 13, 25
    moved = blur(cat[None].double(), motion_kernel(*one(length, angle)))[0, 0]
    rows, columns = np.mgrid[20:44, 20:60]
    mean = 0
    for t in np.linspace(-length / 2, length / 2, 2001):
        place = rows - t * np.sin(np.radians(angle)), columns + t * np.cos(np.radians(angle))
        mean = mean + ndimage.map_coordinates(cat[0].double().numpy(), place, order=1) / 2001
    assert np.abs(moved[20:44, 20:60].numpy() - mean).max() < 2e-3


@pytest.mark.parametrize("angle", [0, 20, 90, 160])
def test_a_gaussian_has_its_two_widths(angle):
    x, y, along, across = moments(gaussian_kernel(*one(3, 1.2, angle))[0], angle)
    assert abs(x) < 1e-9 and abs(y) < 1e-9
    assert along == pytest.approx(9, rel=0.03) and across == pytest.approx(1.44, rel=0.03)


def test_angles_turn_the_kernel():
    for kernel in (lambda a: motion_kernel(*one(11, a)), lambda a: gaussian_kernel(*one(3, 1, a))):
        assert torch.allclose(kernel(30 + 90), kernel(30).rot90(1, (1, 2)), atol=1e-9)  # rot90 is counter-clockwise
        assert torch.allclose(kernel(30 + 180), kernel(30), atol=1e-9)
        assert torch.allclose(kernel(-30), kernel(30).flip(1), atol=1e-9)


def test_blur_is_scipys_convolution_image_by_image():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 17, 23, dtype=torch.float64, generator=generator)
    kernels = torch.rand(2, 5, 5, dtype=torch.float64, generator=generator)  # not symmetric
    for image, kernel, blurred in zip(x, kernels, blur(x, kernels)):
        for channel, ours in zip(image, blurred):
            reference = ndimage.convolve(channel.numpy(), kernel.numpy(), mode="mirror")
            assert np.abs(ours.numpy() - reference).max() < 1e-12


def test_blur_needs_something_to_reflect():
    kernel = motion_kernel(*one(9, 0))  # reaches 5 pixels
    assert blur(torch.zeros(1, 3, 6, 40, dtype=torch.float64), kernel).shape == (1, 3, 6, 40)
    with pytest.raises(ValueError, match="5 x 40 pixels and kernels of 11; both sides must be 6 or more"):
        blur(torch.zeros(1, 3, 5, 40, dtype=torch.float64), kernel)


def round_trip(pixels, quality):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


@pytest.mark.parametrize("quality", [1, 25, 100])
def test_jpeg_is_pillows_round_trip(cat, quality):
    ours = jpeg(cat, quality) * 255
    assert torch.equal(ours, ours.round()) and ours.shape == cat.shape
    pixels = (cat * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(ours.permute(1, 2, 0).numpy(), round_trip(pixels, quality))


def test_jpeg_of_a_crop_of_a_larger_file(cat):
    pixels = (cat * 255).round().byte().permute(1, 2, 0).numpy()
    larger = np.pad(pixels, ((5, 0), (11, 0), (0, 0)), mode="reflect")
    ours = (jpeg(cat, 25, (5, 11)) * 255).permute(1, 2, 0).numpy()
    assert np.array_equal(ours, round_trip(larger, 25)[5:, 11:])
    assert jpeg(torch.rand(3, 2, 1), 50, (15, 15)).shape == (3, 2, 1)


def rainy(clean, seed=0, **changes):
    given = {"density": 0.004, "length": 20, "angle": 70, "width": 1.5, "brightness": 0.4} | changes
    values = [torch.full((len(clean),), float(v)) for v in given.values()]
    return rain(clean, *values, torch.Generator().manual_seed(seed))


def test_rain_only_brightens(cat):
    wet = rainy(cat[None], density=0.05)
    assert bool((wet >= cat).all()) and float(wet.max()) <= 1 and float((wet - cat).mean()) > 0.05
    assert torch.equal(wet, rainy(cat[None], density=0.05)) and not torch.equal(wet, rainy(cat[None], 1, density=0.05))
    for nothing in ({"density": 0}, {"brightness": 0}):
        assert torch.equal(rainy(cat[None], **nothing), cat[None])


def test_more_drops_more_light():
    means = [float(rainy(torch.zeros(4, 3, 64, 64), density=d).mean()) for d in (0.001, 0.002, 0.004, 0.008)]
    assert means == sorted(means)
    assert means[3] / means[0] == pytest.approx(8, rel=0.35)  # nothing is clipped yet, so it is linear


def test_each_image_has_its_own_rain():
    values = [torch.tensor(v) for v in ([0.0, 0.02], [10.0, 20.0], [90.0, 90.0], [1.0, 2.0], [0.5, 0.5])]
    dry, wet = rain(torch.zeros(2, 3, 40, 40), *values, torch.Generator().manual_seed(0))
    assert not dry.any() and bool(wet.any()) and torch.equal(wet[0], wet[2])


def direction(streaks):
    """The streaks' angle in degrees, from the structure tensor: brightness changes least along them."""
    down, right = torch.gradient(streaks)
    xx, yy, xy = (float((a * b).sum()) for a, b in ((right, right), (down, down), (right, -down)))
    return (np.degrees(np.arctan2(2 * xy, xx - yy)) / 2 + 90) % 180


@pytest.mark.parametrize("angle", [45, 60, 90, 115, 170])
def test_rain_falls_at_its_angle(angle):
    streaks = rainy(torch.zeros(1, 1, 160, 160), angle=angle, length=30, width=4)[0, 0]
    assert abs((direction(streaks) - angle + 90) % 180 - 90) < 2


def test_a_streak_has_its_length_width_and_brightness():
    field = rainy(torch.zeros(1, 1, 200, 200), density=1e-4, length=30, angle=0, width=3, brightness=0.5)[0, 0]
    apart = [
        (rows, columns)
        for rows, columns in ndimage.find_objects(ndimage.label(field.numpy() > 1e-3)[0])
        if min(rows.start, columns.start) > 0 and max(rows.stop, columns.stop) < 200 and rows.stop - rows.start < 10
    ]
    assert apart
    for rows, columns in apart:
        streak = field[rows, columns].numpy()
        peak = streak.max()
        assert 0.25 <= peak <= 0.5
        assert 3 <= (streak.max(1) > 0.499 * peak).sum() <= 4  # half the height is reached 1.5 pixels off the middle
        assert abs((streak.max(0) > 0.499 * peak).sum() - 30) <= 2


def test_rain_comes_from_beyond_the_border():
    field = rainy(torch.zeros(8, 1, 96, 96), density=0.01)
    rows = field.mean((0, 1, 3))
    assert float(rows[:8].mean()) == pytest.approx(float(rows.mean()), rel=0.3)
    assert float(rows[-8:].mean()) == pytest.approx(float(rows.mean()), rel=0.3)
