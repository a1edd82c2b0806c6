"""Score networks on folders of images and on data sets, by the literature's protocol or the NTIRE challenge's.

noisy = clean + N(0, (sigma/255)^2), unclipped float, seed + i for the i-th image in path order; the
output is clipped and rounded to 8 bits; PSNR over RGB jointly, SSIM as scikit-image computes it; the
mean over images of each. The protocols differ in what they cut off: see ``PROTOCOLS``.
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
from kunet.data import bundled, list_images, sets
from kunet.images import add_noise, as_file, check_mode, check_sigma, load_rgb, to_tensor
from kunet.tasks import Batch, Task


@dataclass(frozen=True)
class Protocol:
    """What is cut off.

    Args:
        multiple: images are cut at the bottom and on the right, before anything else, until it divides their sides.
        border: so many pixels along each edge are not scored.
    """

    multiple: int = 1
    border: int = 0

    def cut(self, image: Float[Tensor, "C H W"]) -> Float[Tensor, "C h w"]:
        """What is left of an image before the work. Raises: ValueError when nothing is left to score."""
        height, width = (side // self.multiple * self.multiple for side in image.shape[1:])
        if min(height, width) <= 2 * self.border:
            raise ValueError(
                f"evaluate: an image of {image.shape[2]} x {image.shape[1]} pixels, of which the protocol keeps"
                f" {width} x {height} and leaves out {self.border} along each edge; give larger ones"
            )
        return image[:, :height, :width]

    def inner(self, x: Tensor) -> Tensor:
        """What of a result (..., H, W), and of what it should be, is compared."""
        return x[..., self.border : x.shape[-2] - self.border, self.border : x.shape[-1] - self.border]


PROTOCOLS = {"literature": Protocol(), "challenge": Protocol(multiple=4, border=4)}
"""By name; the challenge is NTIRE 2025's of image denoising, arXiv 2504.12276 (there with a sigma of 50)."""


def protocol_named(name: str) -> Protocol:
    """One of PROTOCOLS. Raises: ValueError."""
    if name not in PROTOCOLS:
        raise ValueError(f"protocol is {name!r}; it must be {' or '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


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


def score(
    name: str,
    clean: Float[Tensor, "3 H W"],
    restore: Callable[[], Tensor],
    protocol: Protocol = PROTOCOLS["literature"],
) -> Score:
    """Run restore(), time it, and score what it returns. Raises: ValueError for an image too small for a measure."""
    start = time.perf_counter()
    restored = restore()
    seconds = time.perf_counter() - start
    rounded, wanted = protocol.inner(as_file(restored)[None]), protocol.inner(clean[None])
    try:
        psnr, ssim = float(metrics.psnr(rounded, wanted)), float(metrics.ssim(rounded, wanted))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return Score(name, clean.shape[2], clean.shape[1], psnr, ssim, seconds)


def evaluate(
    denoiser: Callable[[Tensor, float], Tensor],
    source: str,
    sigma: float = 50,
    mode: str = "float",
    seed: int = 0,
    progress: bool = True,
    protocol: str = "literature",
) -> list[Score]:
    """Scores of denoiser(noisy, sigma) on every image of a source (a folder or "bundled")."""
    check_sigma(sigma)
    check_mode(mode)
    rules = protocol_named(protocol)
    total = len(bundled("heldout")) if source == "bundled" else len(list_images(source))
    scores = []
    bar = tqdm(clean_images(source), total=total, desc=Path(source).name, unit="image", disable=not progress)
    for i, (name, clean) in enumerate(bar):
        clean = rules.cut(clean)
        noisy = noisy_version(clean, sigma, seed + i, mode)
        scores.append(score(name, clean, lambda noisy=noisy: denoiser(noisy, sigma), rules))
    return scores


def has_pairs(source: str) -> bool:
    """Whether a source is a data set's name, and the set has degraded images beside its clean ones."""
    return sets.named(source) and bool(sets.get(source).degraded)


def task_for(source: str, trained: str, told: bool, asked: str | None = None) -> str:
    """The name of the task by which weights are scored on a source.

    Args:
        trained: what the weights were trained for.
        told: whether they have to be told the noise.
        asked: "pairs", to score restoring weights on the pairs that a source holds, or ``trained``, to score them on
            clean images that are spoilt on the fly. None takes the pairs of a data set that has some, for weights
            that can restore them untold, and else ``trained``.
    Raises: ValueError for another wish.
    """
    restores = trained != "segment"
    if asked not in (None, trained) and not (asked == "pairs" and restores):
        raise ValueError(f"task is {asked!r}; weights for {trained} are scored by {trained}" + " or pairs" * restores)
    return asked or ("pairs" if restores and not told and has_pairs(source) else trained)


def score_examples(
    run: Callable[[Tensor, float], Tensor],
    task: Task,
    examples: Sequence[np.ndarray],
    seed: int = 0,
    progress: bool = False,
    protocol: str = "literature",
) -> list[dict[str, float]]:
    """Every measure of a task for each whole example (H, W, C), the i-th one spoilt with seed + i.

    Args: run: maps ((C, H, W), noise level) to the model's own output, as ``kunet.restore.Network.run`` does.
    """  # fmt: skip
    rows, rules = [], protocol_named(protocol)
    for i, example in enumerate(tqdm(examples, unit="image", disable=not progress)):
        batch = task.probe(rules.cut(to_tensor(example))[None], seed=seed + i)
        output = run(batch.input[0], float(batch.noise_level))[None].float()
        compared = Batch(rules.inner(batch.input), batch.noise_level, rules.inner(batch.target))
        rows.append({name: float(value) for name, value in task.scores(rules.inner(output), compared).items()})
    return rows


def score_source(
    run: Callable[[Tensor, float], Tensor],
    task: Task,
    source: str,
    seed: int = 0,
    progress: bool = True,
    protocol: str = "literature",
) -> list[dict]:
    """``score_examples`` of a whole folder or data set, or of the held-out part of "bundled" or "drawn"."""
    train, held = task.load([source], 0, progress)
    return score_examples(run, task, held or train, seed, progress, protocol)


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
