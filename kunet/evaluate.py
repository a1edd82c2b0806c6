"""Score a denoiser on a folder of clean images, by the literature's protocol.

noisy = clean + N(0, (sigma/255)^2), unclipped float, seed + i for the i-th image in path order; the
output is clipped and rounded to 8 bits; PSNR over RGB jointly without a border crop, SSIM as
scikit-image computes it; the mean over images of each.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from kunet import metrics
from kunet.data import bundled, list_images
from kunet.images import add_noise, as_file, check_mode, check_sigma, load_rgb, to_tensor
from kunet.restore import Network
from kunet.tasks import Task


@dataclass(frozen=True)
class Score:
    """One image's result: PSNR in dB, SSIM, seconds of the restoration alone."""

    image: str
    width: int
    height: int
    psnr: float
    ssim: float
    seconds: float


def clean_images(source: str) -> Iterator[tuple[str, Float[Tensor, "3 H W"]]]:
    """(name, image) for every image of a folder, or of "bundled" (its held-out photos)."""
    if source == "bundled":
        for name, pixels in bundled("heldout").items():
            yield name, to_tensor(pixels)
    else:
        for path in list_images(source):
            yield path.stem, load_rgb(path)


def noisy_version(
    clean: Float[Tensor, "3 H W"], sigma: float, seed: int, mode: str = "float"
) -> Float[Tensor, "3 H W"]:
    """The protocol's noisy image; the same for every method that is given the same seed."""
    return add_noise(clean, sigma, torch.Generator().manual_seed(seed), mode)


def score(name: str, clean: Float[Tensor, "3 H W"], restore: Callable[[], Tensor]) -> Score:
    """Run restore(), time it, and score what it returns."""
    start = time.perf_counter()
    restored = restore()
    seconds = time.perf_counter() - start
    rounded = as_file(restored)[None]
    return Score(
        name,
        clean.shape[2],
        clean.shape[1],
        float(metrics.psnr(rounded, clean[None])),
        float(metrics.ssim(rounded, clean[None])),
        seconds,
    )


def evaluate(
    denoiser: Callable[[Tensor, float], Tensor],
    source: str,
    sigma: float = 50,
    mode: str = "float",
    seed: int = 0,
    progress: bool = True,
) -> list[Score]:
    """Scores of denoiser(noisy, sigma) on every image of a source (a folder or "bundled")."""
    check_sigma(sigma)
    check_mode(mode)
    total = len(bundled("heldout")) if source == "bundled" else len(list_images(source))
    scores = []
    bar = tqdm(clean_images(source), total=total, desc=Path(source).name, unit="image", disable=not progress)
    for i, (name, clean) in enumerate(bar):
        noisy = noisy_version(clean, sigma, seed + i, mode)
        scores.append(score(name, clean, lambda noisy=noisy: denoiser(noisy, sigma)))
    return scores


def score_examples(
    run: Callable[[Tensor, float], Tensor],
    task: Task,
    examples: Sequence[np.ndarray],
    seed: int = 0,
    progress: bool = False,
) -> list[dict[str, float]]:
    """Every measure of a task for each whole example (H, W, C), the i-th one spoilt with seed + i.

    Args: run: maps ((C, H, W), noise level) to the model's own output, as ``kunet.restore.Network.run`` does.
    """  # fmt: skip
    rows = []
    for i, example in enumerate(tqdm(examples, unit="image", disable=not progress)):
        batch = task.probe(to_tensor(example)[None], seed=seed + i)
        output = run(batch.input[0], float(batch.noise_level))[None].float()
        rows.append({name: float(value) for name, value in task.scores(output, batch).items()})
    return rows


def score_source(network: Network, task: Task, source: str, seed: int = 0, progress: bool = True) -> list[dict]:
    """``score_examples`` of a whole folder or data set, or of the held-out part of "bundled" or "drawn"."""
    train, held = task.load([source], 0, progress)
    return score_examples(network.run, task, held or train, seed, progress)


def means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean over images of every measure."""
    return {"images": len(rows)} | {name: round(sum(r[name] for r in rows) / len(rows), 4) for name in rows[0]}


def summary(scores: Sequence[Score]) -> dict:
    """Means over images, with the images' own rows beside them."""
    mean = lambda key: sum(getattr(s, key) for s in scores) / len(scores)
    return {
        "images": len(scores),
        "psnr": round(mean("psnr"), 3),
        "ssim": round(mean("ssim"), 4),
        "seconds": round(mean("seconds"), 4),
        "rows": [asdict(s) for s in scores],
    }
