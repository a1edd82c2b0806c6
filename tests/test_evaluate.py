"""The protocol, step by step."""

import numpy as np
import pytest
import torch
from PIL import Image

from kunet.benchmark import benchmark, peak_memory, provenance
from kunet.denoise import Denoiser
from kunet.evaluate import evaluate, noisy_version, summary
from kunet.images import as_file


def test_the_protocol(tmp_path):
    """Identity as denoiser: PSNR over RGB of the clipped, rounded noisy image, noise by seed + index in path order."""
    for i in (1, 0):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    seen = []
    scores = evaluate(
        lambda noisy, sigma: seen.append((noisy, sigma)) or noisy, str(tmp_path), 50, seed=7, progress=False
    )
    assert [s.image for s in scores] == ["0", "1"]
    for i, (noisy, sigma) in enumerate(seen):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        clean = torch.from_numpy(pixels.astype(np.float32) / 255).permute(2, 0, 1)
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(7 + i)) * 50 / 255
        assert sigma == 50 and torch.allclose(noisy, clean + noise, atol=1e-6)
        assert float(noisy.min()) < 0 and float(noisy.max()) > 1  # float noise is not clipped
        error = (as_file(noisy).double() - clean.double()).square().mean()
        assert scores[i].psnr == pytest.approx(float(-10 * torch.log10(error)), abs=1e-4)
    mean = summary(scores)
    assert mean["psnr"] == pytest.approx((scores[0].psnr + scores[1].psnr) / 2, abs=1e-3) and mean["images"] == 2


def test_uniform_random_images_measure_what_is_known():
    """A known check: on uniform random images, sigma 50, 14.16 dB unclipped and 15.17 dB clipped."""
    clean = torch.rand(3, 600, 600, generator=torch.Generator().manual_seed(0))
    decibels = lambda mode: float(-10 * torch.log10((noisy_version(clean, 50, 1, mode) - clean).square().mean()))
    assert decibels("float") == pytest.approx(14.16, abs=0.03)
    assert decibels("u8") == pytest.approx(15.17, abs=0.03)


def test_shipped_weights_on_the_bundled_photos():
    scores = evaluate(Denoiser.load(), "bundled", 50, progress=False)
    assert {s.image for s in scores} == {"chelsea", "coffee", "china"}
    assert all(s.psnr > 23 for s in scores) and summary(scores)["psnr"] > 27


def test_benchmark():
    rows = benchmark(Denoiser.load(), [(96, 64), (64, 32)], repeats=2)
    assert [(r["width"], r["height"]) for r in rows] == [(64, 32), (96, 64)]
    assert all(len(r["seconds"]) == 2 and min(r["seconds"]) > 0 and r["tile"] is None for r in rows)
    assert peak_memory() > 1e8
    assert set(provenance()) == {"command", "commit", "machine", "date"}
