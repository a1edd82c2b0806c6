"""Losses to train with and scores to report.

Notebook: notebooks/05_images.ipynb.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def mse(restored: Float[Tensor, "B C H W"], clean: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
    """Mean squared error of each image over all its values."""
    return (restored - clean).square().flatten(1).mean(1)


def log_mse(restored: Float[Tensor, "B C H W"], clean: Float[Tensor, "B C H W"]) -> Float[Tensor, ""]:
    """Mean over images of ln(MSE): minimising it maximises the mean PSNR, 1 dB being ln(10)/10 = 0.23.

    Each image counts the same in dB, so strong noise does not drown weak noise.
    """
    return (mse(restored, clean) + 1e-8).log().mean()


def floored_log_mse(restored: Float[Tensor, "B C H W"], clean: Float[Tensor, "B C H W"]) -> Float[Tensor, ""]:
    """Mean over images of ln(MSE + 3e-4), for noise of all levels; 3e-4 is about what is left of sigma 10.

    At the output the gradient of ln(MSE) grows as 1 / sqrt(MSE), without bound as images come clean; that of this
    is largest at an MSE of 3e-4, and falls to 0 with the error.
    """
    return (mse(restored, clean) + 3e-4).log().mean()


def l1(restored: Float[Tensor, "B C H W"], clean: Float[Tensor, "B C H W"]) -> Float[Tensor, ""]:
    """Mean absolute error."""
    return (restored - clean).abs().mean()


OBJECTIVES = {"log_mse": log_mse, "floored_log_mse": floored_log_mse, "l1": l1}
"""What restoring networks may be trained to lessen, by name."""


def psnr(restored: Float[Tensor, "B C H W"], clean: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
    """Peak signal-to-noise ratio of each image in dB, peak 1: -10 log10(MSE); inf where they are equal."""
    _check(restored, clean)
    return -10 * torch.log10(mse(restored, clean))


def ssim(restored: Float[Tensor, "B C H W"], clean: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
    """Structural similarity of each image: Gaussian window of sigma 1.5, mean over channels, peak 1.

    Computed by scikit-image with gaussian_weights and population covariance.
    Source: Z. Wang et al., "Image quality assessment", IEEE TIP 13(4), 2004.
    Raises: ValueError for images smaller than the window (11 x 11).
    """
    from skimage.metrics import structural_similarity  # takes a second to import: only those who score pay

    _check(restored, clean)
    if min(clean.shape[-2:]) < 11:
        raise ValueError(f"ssim: images of {tuple(clean.shape[-2:])} pixels; at least 11 x 11, the window's size")
    scores = [
        structural_similarity(
            a.numpy(),
            b.numpy(),
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1,
        )
        for a, b in zip(restored.double().cpu(), clean.double().cpu())
    ]
    return torch.tensor(scores, dtype=torch.float64)


def dice_loss(probabilities: Float[Tensor, "B K H W"], target: Int[Tensor, "B H W"]) -> Float[Tensor, ""]:
    """1 - the soft Dice overlap 2 sum(p g) / sum(p + g), the mean over the classes present in the batch.

    The sums go over all pixels of all images; g is 1 where the target has the class. Background counts as a class.
    Source: F. Milletari et al., "V-Net", arXiv 1606.04797, section 3 (with p, g for p^2, g^2 in the denominator).
    """
    truth = F.one_hot(target, probabilities.shape[1]).movedim(-1, 1).to(probabilities.dtype)
    both, size = ((x.sum((0, 2, 3))) for x in (probabilities * truth, probabilities + truth))
    present = truth.any(0).flatten(1).any(1)
    return 1 - (2 * both[present] / size[present]).mean()


def dice(predicted: Int[Tensor, "B H W"], target: Int[Tensor, "B H W"], classes: int) -> Float[Tensor, "B K"]:
    """Dice overlap 2 |A and B| / (|A| + |B|) of each class in each image; 1 where it is in neither."""
    both, one, other = _overlaps(predicted, target, classes)
    return torch.where(one + other > 0, 2 * both / (one + other), 1.0)


def iou(predicted: Int[Tensor, "B H W"], target: Int[Tensor, "B H W"], classes: int) -> Float[Tensor, "B K"]:
    """Intersection over union |A and B| / |A or B| of each class in each image; 1 where it is in neither."""
    both, one, other = _overlaps(predicted, target, classes)
    return torch.where(one + other > 0, both / (one + other - both), 1.0)


def _overlaps(predicted: Tensor, target: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels of each class in both, in the predicted, in the target; each (B, K)."""
    one, other = (F.one_hot(x.flatten(1), classes).bool() for x in (predicted, target))
    return (one & other).sum(1), one.sum(1), other.sum(1)


def _check(restored: Tensor, clean: Tensor) -> None:
    if restored.shape != clean.shape or restored.ndim != 4:
        raise ValueError(
            f"metrics: restored {tuple(restored.shape)} and clean {tuple(clean.shape)} must both be (B, C, H, W)"
        )
