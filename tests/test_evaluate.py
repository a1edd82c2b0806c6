"""The protocols, step by step, and what a source is scored by."""

import dataclasses
import json
import math
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from kunet.benchmark import benchmark, commit, peak_memory, provenance
from kunet.denoise import Denoiser
from kunet.evaluate import evaluate, noisy_version, score, score_examples, summary
from kunet.images import as_file
from kunet.models import DnCNN, make
from kunet.runs import save_weights
from kunet.tasks import Pairs


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


def direct(one, other):
    """PSNR and SSIM of two (H, W, 3) arrays of 8-bit levels, from their formulas, in double precision."""
    one, other = (torch.from_numpy(x.astype(np.float64)).permute(2, 0, 1)[:, None] for x in (one, other))
    psnr = 20 * math.log10(255 / math.sqrt(float((one - other).square().mean())))
    taps = torch.exp(-(torch.arange(-5, 6, dtype=torch.float64) ** 2) / (2 * 1.5**2))
    window = (taps[:, None] * taps / taps.sum() ** 2)[None, None]
    mean = lambda x: torch.nn.functional.conv2d(x, window)  # where the window fits
    a, b = mean(one), mean(other)
    var_a, var_b, both = mean(one**2) - a**2, mean(other**2) - b**2, mean(one * other) - a * b
    c, d = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    ssim = (2 * a * b + c) * (2 * both + d) / ((a**2 + b**2 + c) * (var_a + var_b + d))
    return psnr, float(ssim.mean())


def test_the_challenge_protocol(tmp_path):
    """Cut to multiples of 4, noise, clamp and round, leave a border of 4 pixels out: by hand, on 8-bit levels."""
    for i, size in enumerate([(43, 54), (40, 48)]):
        pixels = np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    half = lambda noisy, sigma: 0.4 + 0.7 * noisy  # some of it beyond 1
    scores = evaluate(half, str(tmp_path), 50, seed=3, progress=False, protocol="challenge")
    assert [(s.width, s.height) for s in scores] == [(52, 40), (48, 40)]
    for i, found in enumerate(scores):
        clean = np.asarray(Image.open(tmp_path / f"{i}.png"))[:40, : 52 if i == 0 else 48]
        noise = (
            torch.randn(3, *clean.shape[:2], generator=torch.Generator().manual_seed(3 + i)).permute(1, 2, 0).numpy()
        )
        restored = (255 * 0.4 + 0.7 * (clean + 50 * noise)).clip(0, 255).round()
        inner = slice(4, -4), slice(4, -4)
        psnr, ssim = direct(restored[inner], clean[inner])
        assert found.psnr == pytest.approx(psnr, abs=2e-3) and found.ssim == pytest.approx(ssim, abs=1e-4)
        assert abs(found.psnr - direct(restored, clean)[0]) > 5e-3  # the border counts


def test_a_protocol_for_what_is_spoilt(tmp_path):
    """Pairs are cut before the work and their border is not scored, too."""
    pixels = np.random.default_rng(0).integers(0, 256, (45, 50, 6), dtype=np.uint8)
    seen = []
    (row,) = score_examples(lambda x, level: seen.append(x) or x, Pairs(), [pixels], protocol="challenge")
    assert seen[0].shape == (3, 44, 48)
    psnr, ssim = direct(pixels[4:40, 4:44, :3], pixels[4:40, 4:44, 3:])
    assert row["psnr"] == pytest.approx(psnr, abs=1e-3) and row["ssim"] == pytest.approx(ssim, abs=1e-4)


def test_protocols_refuse():
    with pytest.raises(ValueError, match="protocol is 'mine'; it must be literature or challenge"):
        evaluate(lambda x, sigma: x, "bundled", progress=False, protocol="mine")
    small = np.zeros((11, 20, 6), np.uint8)
    with pytest.raises(ValueError, match="an image of 20 x 11 pixels, of which the protocol keeps 20 x 8"):
        score_examples(lambda x, level: x, Pairs(), [small], protocol="challenge")


@pytest.fixture
def rain(tmp_path, monkeypatch):
    """A data set of three pairs by the name of rain100l, where the sets lie."""
    from kunet.data.sets import SETS

    root = tmp_path / "sets"
    for i in range(1, 4):
        for side in ("rain", "norain"):
            (root / "rain100l" / side).mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng((i, len(side))).integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "rain100l" / side / f"{'no' * (side != 'rain')}rain-{i}.png")
    monkeypatch.setenv("KUNET_DATA", str(root))
    monkeypatch.setitem(SETS, "rain100l", dataclasses.replace(SETS["rain100l"], images=3))
    return root / "rain100l"


def weights(folder, task, **task_args):
    """A file of a network that returns its input, trained for a task by its card."""
    args = {"width": 2, "depth": 2, "norm": False}
    model = DnCNN(**args)
    for p in model.parameters():
        torch.nn.init.zeros_(p)
    save_weights(
        folder / f"{task}.safetensors", model, "dncnn", args, {"recipe": {"task": task, "task_args": task_args}}
    )
    return folder / f"{task}.safetensors"


def of_pairs(folder):
    """PSNR of the rainy images, as 8-bit files."""
    read = lambda name: np.asarray(Image.open(folder / name))
    return [direct(read(f"rain/rain-{i}.png"), read(f"norain/norain-{i}.png"))[0] for i in range(1, 4)]


def test_an_image_too_small_for_a_measure_is_named():
    with pytest.raises(ValueError, match=r"icon: ssim: images of \(4, 4\) pixels"):
        score("icon", torch.rand(3, 4, 4), lambda: torch.rand(3, 4, 4))


def test_a_set_with_pairs_is_scored_on_them(kunet, rain, tmp_path):
    out = tmp_path / "e.json"
    for task, words in (
        ("derain", []),
        ("pairs", []),
        ("deblur", ["--task", "pairs"]),
        ("derain", ["--task", "pairs"]),
    ):
        result = kunet("evaluate", "rain100l", "--weights", weights(tmp_path, task), "--json", out, "--quiet", *words)
        assert result.returncode == 0, result.stderr
        found = json.loads(out.read_text())["results"]["rain100l"]
        assert found["task"] == "pairs" and "rain100l: 3 images, " in result.stdout and "pairs" in result.stdout
        assert [row["psnr"] for row in found["rows"]] == pytest.approx(of_pairs(rain), abs=1e-3)


def test_a_set_with_pairs_is_spoilt_where_asked(kunet, rain, tmp_path):
    out = tmp_path / "e.json"
    derain = weights(tmp_path, "derain", density=[0, 0])  # no rain is added: every image is perfect
    result = kunet("evaluate", "rain100l", "--weights", derain, "--task", "derain", "--json", out, "--quiet")
    assert result.returncode == 0 and "rain100l: 3 images, derain: psnr inf" in result.stdout
    folder = kunet("evaluate", rain / "norain", "--weights", derain, "--quiet")  # no name: nothing but clean images
    assert "3 images, derain: psnr inf" in folder.stdout
    blind = weights(tmp_path, "denoise", blind=True, sigma=[0, 50])
    assert "its pairs, restored as denoise: psnr" in kunet("evaluate", "rain100l", "--weights", blind, "--quiet").stdout


def test_weights_that_are_told_the_noise_say_what_they_did(kunet, rain, tmp_path):
    told = weights(tmp_path, "denoise", sigma=[0, 50])
    result = kunet("evaluate", "rain100l", "--weights", told, "--sigma", "20", "--quiet")
    assert "3 images, sigma 20 (float noise): " in result.stdout
    assert "rain100l has pairs, and noise was added to its clean images; --task pairs takes" in result.stderr
    result = kunet("evaluate", "rain100l", "--weights", told, "--sigma", "20", "--task", "pairs", "--quiet")
    assert "its pairs, restored as denoise, told sigma 20: psnr" in result.stdout and not result.stderr


def test_the_command_line_takes_a_protocol(kunet, refused, tmp_path):
    out = tmp_path / "e.json"
    result = kunet("evaluate", "--protocol", "challenge", "--json", out, "--quiet")
    assert result.returncode == 0 and "3 images, sigma 50 (float noise), challenge protocol: " in result.stdout
    found = json.loads(out.read_text())
    wanted = evaluate(Denoiser.load(), "bundled", 50, progress=False, protocol="challenge")
    assert found["protocol"] == "challenge"
    assert found["results"]["bundled"]["psnr"] == pytest.approx(summary(wanted)["psnr"], abs=2e-3)
    derain = weights(tmp_path, "derain")
    assert (
        "derain, challenge protocol: psnr"
        in kunet("evaluate", "--weights", derain, "--protocol", "challenge", "--quiet").stdout
    )
    assert "protocol is 'mine'" in refused("evaluate", "--protocol", "mine")
    assert "scored by derain or pairs" in refused("evaluate", "--weights", derain, "--task", "deblur")
    args = {"widths": [4], "classes": 3}
    card = {"recipe": {"task": "segment", "task_args": {"classes": 3}}}
    save_weights(tmp_path / "s.safetensors", make("unet", args), "unet", args, card)
    segment = ("--weights", tmp_path / "s.safetensors")
    assert "--protocol challenge: is for restored images" in refused("evaluate", *segment, "--protocol", "challenge")
    assert "weights for segment are scored by segment" in refused("evaluate", *segment, "--task", "pairs")


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
    assert all(len(r["seconds"]) == 2 and min(r["seconds"]) > 0 and r["how"] == "whole" for r in rows)
    assert peak_memory() > 1e8
    assert set(provenance()) == {"command", "commit", "machine", "date"}


def test_a_commit_says_whether_it_is_all_there_is(tmp_path):
    """Changed and new files are told, but neither results nor what git ignores."""
    assert commit(tmp_path) == "unknown"
    options = [
        "-c",
        "user.name=a",
        "-c",
        "user.email=a@b",
        "-c",
        "commit.gpgsign=false",
        "-c",
        "core.hooksPath=/dev/null",
    ]
    git = lambda *words: subprocess.run(
        ["git", *options, *words], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    write = lambda name, text: (
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True) or (tmp_path / name).write_text(text)
    )
    git("init", "-q")
    for name in ("kunet/a.py", "book/results/a.json"):
        write(name, "1")
    write(".gitignore", "runs/")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    at = git("rev-parse", "--short", "HEAD").stdout.strip()
    inside = tmp_path / "kunet"
    assert commit(inside) == at
    for name in ("book/results/a.json", "book/results/b.json", "runs/c"):
        write(name, "2")
    assert commit(inside) == at
    write("new.py", "")
    assert commit(inside) == f"{at}-dirty"
    (tmp_path / "new.py").unlink()
    write("kunet/a.py", "2")
    assert commit(inside) == f"{at}-dirty"
