"""How strong the white Gaussian noise in a photo is, from the photo alone."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kunet.images import LEVELS

SIDE = 6
"""Of the patches, in pixels."""
LEAST = 16
"""Sides of the smallest image whose noise is estimated: 121 patches."""
PATCHES = 200_000
"""About how many are looked at: all of a small photo, every n-th in both directions of a large one."""
LOCAL = 4
"""Side of the squares whose means stand for the clean values in them, where noise was clipped: with smaller ones noise
passes for contrast, with larger ones contrast is lost. Chosen on training photos."""
TILE, TILES, QUIET = 34, 1000, 0.3
"""Side and about the number of the squares whose detail is measured, and the share of them that count as quiet: with a
larger share texture passes for noise, with a smaller one noise is underestimated. Chosen on training photos."""
SMOOTH = 1 / 4
"""The colours' level of detail over luma's below which they say nothing of the noise: near 1 where noise is white, and
below 0.15 where there is noise in files whose colours are stored at half their size."""
YCC = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
"""R, G, B -> luma and JPEG's two colours (ITU-R BT.601)."""


def estimate_sigma(image: Float[Tensor, "C H W"]) -> float:
    """The level of white Gaussian noise in an image in [0, 1] units, in 8-bit levels (0 to 255).

    The covariance of the image's patches is that of the clean patches plus sigma^2 I. Along most directions clean
    patches hardly vary, so that the smallest of the variances are sigma^2: the largest number of them whose mean is
    not above their median, as one mean of Gaussian values is. The paper takes the eigenvalues; those of a sample
    spread by percents even where all is noise. Variances along the cosine basis of space and colour do not, and the
    estimate scatters half as much.

    Noise that a file has clipped to [0, 1] is weaker where a channel is dark or bright. If an image has such values
    (all in [0, 1], some 0 or 1), sigma is solved for: with it, and with local means, each channel's mean variance is
    known, and the patches are divided by its root; what is left must have a variance of 1.

    Most JPEG files store colours at half their size, and cameras smooth them: then the smallest variances are those of
    colours without any noise. Where the colours have so much less fine detail than luma, the level is luma's alone: of
    second differences in both directions, which are blind to slopes, the median in each of many squares, and of these
    a low quantile. Fine texture everywhere, or luma that was smoothed too, is not told apart from noise.

    Args:
        image: of at least 16 x 16 pixels; gray in three equal channels counts once.
    Raises: ValueError for a smaller image, or values that are not finite.
    Source: G. Chen, F. Zhu, P. A. Heng, "An Efficient Statistical Method for Image Noise Level Estimation", ICCV 2015;
        for clipped noise, A. Foi, "Clipped noisy images", Signal Processing 89(12), 2009; the second differences are
        those of J. Immerkaer, "Fast Noise Variance Estimation", CVIU 64(2), 1996, the median is Donoho's.
    """
    height, width = image.shape[1:]
    if min(height, width) < LEAST:
        raise ValueError(
            f"an image of {width} x {height} pixels is too small to estimate its noise; at least {LEAST} x {LEAST} are"
            " needed, or state --sigma"
        )
    low, high = (float(value) for value in image.aminmax())  # nan if any value is
    if not math.isfinite(high - low):
        raise ValueError("the image has values that are not finite (nan or inf); an image in [0, 1] is needed")
    clipped = low >= 0 and high <= 1 and (low == 0 or high == 1)
    x = image[:1] if all(torch.equal(image[0], channel) for channel in image[1:]) else image
    varied = [channel for channel in x if channel.min() < channel.max()]  # constant ones say nothing of the others
    if not varied:
        return 0.0
    x = x if len(varied) == len(x) else torch.stack(varied)
    if len(x) == 3:
        luma, *colours = _detail(x)
        if max(colours) < SMOOTH * luma:
            return min(luma, 1.0) * LEVELS
    step = math.ceil(((height - SIDE + 1) * (width - SIDE + 1) / PATCHES) ** 0.5) | 1  # odd: not on JPEG's grid of 8
    covariance, basis = _covariance(x, step), _basis(len(x))
    sigma = min(_smallest(covariance, basis) ** 0.5, 1.0)
    if clipped and sigma:
        sigma = _unclipped(sigma, x, step, covariance, basis)
    return sigma * LEVELS


def _detail(x: Float[Tensor, "3 H W"]) -> list[float]:
    """The noise of luma and of the two colours, were each white: (3,), in the image's units."""
    height, width = x.shape[1:]
    side = min(TILE, height, width)
    stride = max(side, math.ceil((height * width / TILES) ** 0.5))
    tiles = x.unfold(1, side, stride).unfold(2, side, stride).flatten(1, 2).float()  # (3, N, side, side)
    means = tiles.mean((0, 2, 3))
    y = torch.einsum("dc,cnij->dnij", YCC / YCC.norm(dim=1, keepdim=True), tiles)
    for _ in range(2):
        y = ((y[..., 2:] - 2 * y[..., 1:-1] + y[..., :-2]) / 6**0.5).mT
    levels = y.flatten(2).abs().median(-1).values / 0.6745  # the median of |z|, z standard normal
    found = levels.quantile(QUIET, 1)
    for _ in range(3):  # once more where less noise is clipped, if there are such squares
        margin = max(0.1, 2 * float(found[0]))
        inside = (means > margin) & (means < 1 - margin)
        if not inside.any():
            break
        found = levels[:, inside].quantile(QUIET, 1)
    return found.tolist()


def _covariance(x: Float[Tensor, "C H W"], step: int) -> Float[Tensor, "D D"]:
    """Of the patches (C, SIDE, SIDE) at every step-th place, D = C SIDE^2; a row of patches at a time."""
    patches = x.unfold(1, SIDE, step).unfold(2, SIDE, step).movedim(0, 2)  # (rows, columns, C, SIDE, SIDE)
    rows, columns = patches.shape[:2]
    square, total = 0.0, 0.0
    for row in patches:
        flat = row.reshape(columns, -1).double() - 0.5  # near 0: no digits are lost below
        square, total = square + flat.T @ flat, total + flat.sum(0)
    mean = total / (rows * columns)
    return square / (rows * columns) - torch.outer(mean, mean)


def _basis(channels: int) -> Float[Tensor, "D D"]:
    """Orthonormal rows: the product of the cosine transforms of C channels, SIDE rows and SIDE columns."""

    def dct(n: int) -> Tensor:
        i = torch.arange(n, dtype=torch.float64)
        rows = torch.cos(math.pi / n * torch.outer(i, i + 0.5)) * (2 / n) ** 0.5
        rows[0] /= 2**0.5
        return rows

    return torch.kron(dct(channels), torch.kron(dct(SIDE), dct(SIDE)))


def _smallest(covariance: Float[Tensor, "D D"], basis: Float[Tensor, "D D"]) -> float:
    """The mean of the most smallest variances along the basis whose mean is at most their median."""
    variances = ((basis @ covariance) * basis).sum(1).clamp(min=0).sort().values
    last = torch.arange(len(variances))
    means = variances.cumsum(0) / (last + 1)
    medians = (variances[last // 2] + variances[(last + 1) // 2]) / 2
    return float(means[means <= medians][-1])


def _unclipped(
    sigma: float, x: Float[Tensor, "C H W"], step: int, covariance: Float[Tensor, "D D"], basis: Float[Tensor, "D D"]
) -> float:
    """sigma (divided by 255, as is the start) of the noise before it was clipped: 1 is the variance of what is left."""
    means = F.avg_pool2d(x, LOCAL, stride=max(2, step)).clamp(0, 1)
    counts = np.stack([np.bincount((m * 1024).round().long().flatten(), minlength=1025) for m in means])
    shares = counts / counts.sum(1, keepdims=True)
    for _ in range(100):
        variance = torch.from_numpy(shares @ _clipped_variance(np.linspace(0, 1, 1025), sigma))
        scale = variance.clamp(min=1e-12).rsqrt().repeat_interleave(SIDE**2)
        change = _smallest(covariance * torch.outer(scale, scale), basis) ** 0.5
        sigma = min(sigma * change, 1.0)
        if abs(change - 1) < 1e-5 or sigma == 1:
            break
    return sigma


def _clipped_variance(means: np.ndarray, sigma: float) -> np.ndarray:
    """Of N(m, sigma^2) clipped to [0, 1], for the m (also outside [0, 1]) that has the given mean once clipped."""
    m = torch.linspace(-5 * sigma, 1 + 5 * sigma, 2000, dtype=torch.float64)
    a, b = -m / sigma, (1 - m) / sigma
    density = lambda z: torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    inside, above = torch.special.ndtr(b) - torch.special.ndtr(a), torch.special.ndtr(-b)
    slope = density(a) - density(b)
    first = m * inside + sigma * slope + above
    second = (m**2 + sigma**2) * inside + 2 * m * sigma * slope + sigma**2 * (a * density(a) - b * density(b)) + above
    return np.interp(means, first.numpy(), (second - first**2).clamp(min=0).numpy())
