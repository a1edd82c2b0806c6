"""Scores against scikit-image, then laws."""

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from kunet import metrics


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(2, 3, 24, 31, generator=generator)
    return (clean + 0.1 * torch.randn(clean.shape, generator=generator)).clamp(0, 1), clean


def test_psnr_is_scikit_images(pair):
    for ours, a, b in zip(metrics.psnr(*pair), *pair):
        assert float(ours) == pytest.approx(peak_signal_noise_ratio(b.numpy(), a.numpy(), data_range=1), abs=1e-4)


def test_psnr_of_known_errors():
    clean = torch.zeros(1, 3, 4, 4)
    assert float(metrics.psnr(clean + 0.1, clean)) == pytest.approx(20)
    assert float(metrics.psnr(clean, clean)) == float("inf")


def test_ssim(pair):
    for ours, a, b in zip(metrics.ssim(*pair), *pair):
        options = dict(channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0)
        assert float(ours) == pytest.approx(structural_similarity(a.numpy(), b.numpy(), **options), abs=1e-5)
    assert torch.allclose(metrics.ssim(pair[1], pair[1]), torch.ones(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="at least 11 x 11"):
        metrics.ssim(torch.zeros(1, 3, 10, 20), torch.zeros(1, 3, 10, 20))


def test_log_mse_is_psnr_in_other_words(pair):
    decibels = -10 / torch.log(torch.tensor(10.0)) * metrics.log_mse(*pair)
    assert float(decibels) == pytest.approx(float(metrics.psnr(*pair).mean()), abs=1e-3)


def test_shapes_must_agree(pair):
    with pytest.raises(ValueError, match="must both be"):
        metrics._check(pair[0][:, :, :5], pair[1])  # psnr and ssim begin with it
