"""What cameras and weather do to photos: blur by motion and by lenses, JPEG compression, rain.

Each image of a batch has its own parameters, tensors of (B,). Angles are in degrees, counter-clockwise from the
horizontal as a picture is looked at, so 90 is upright. Images are in [0, 1].
"""

import io
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from kunet.images import to_tensor, to_uint8

FULL_WIDTH = 2 * math.sqrt(2 * math.log(2))
"""Full width at half maximum of a Gaussian of standard deviation 1."""


def motion_kernel(length: Float[Tensor, " B"], angle: Float[Tensor, " B"]) -> Float[Tensor, "B K K"]:
    """What a straight, even motion during the exposure blurs with: a line of ``length`` pixels.

    The mean of the image, bilinearly interpolated, along the line; so the kernel's second moment along the
    line is that of the line, L^2 / 12, and at most 1/4 more for the interpolation. Every kernel is as large
    as the longest line needs, K = 2 ceil(L / 2) + 1.
    """
    return _along(length, angle, 0, lambda distance: (1 - distance.abs()).clamp(min=0))


def gaussian_kernel(
    along: Float[Tensor, " B"], across: Float[Tensor, " B"], angle: Float[Tensor, " B"]
) -> Float[Tensor, "B K K"]:
    """An anisotropic Gaussian: standard deviations, in pixels, along and across the direction ``angle``.

    Sampled at the pixels, cut at 3 standard deviations of the widest, normalised.
    """
    half = math.ceil(3 * float(torch.maximum(along, across).max()))
    steps = torch.arange(-half, half + 1, dtype=along.dtype)
    x, y = steps[None, None, :], -steps[None, :, None]  # rows go down, angles up
    cos, sin = (f(torch.deg2rad(angle))[:, None, None] for f in (torch.cos, torch.sin))
    u, v = (x * cos + y * sin) / along[:, None, None], (y * cos - x * sin) / across[:, None, None]
    return _normalised(torch.exp(-(u.square() + v.square()) / 2))


def blur(x: Float[Tensor, "B C H W"], kernels: Float[Tensor, "B K K"]) -> Float[Tensor, "B C H W"]:
    """Each image convolved with its own kernel (K odd), the image reflected at its borders.

    So up to half a kernel from the border of a *crop*, the blur mixes in the crop's own reflection where a
    blurred photo has what lies beyond; crops should be several times as large as the kernel.
    Raises: ValueError for images that are too small to be reflected that far.
    """
    half = kernels.shape[-1] // 2
    if min(x.shape[-2:]) <= half:
        raise ValueError(
            f"blur: images of {x.shape[-2]} x {x.shape[-1]} pixels and kernels of {kernels.shape[-1]}; both sides must"
            f" be {half + 1} or more: give larger crops or less blur"
        )
    padded = F.pad(x, (half,) * 4, mode="reflect").flatten(0, 1)[None]
    weight = kernels.flip(1, 2).repeat_interleave(x.shape[1], 0)[:, None]  # conv2d correlates
    return F.conv2d(padded, weight, groups=len(weight))[0].unflatten(0, x.shape[:2])


def jpeg(x: Float[Tensor, "C H W"], quality: int, shift: tuple[int, int] = (0, 0)) -> Float[Tensor, "C H W"]:
    """What is left of an image after a JPEG file of that quality (1..100; Pillow's tables, chroma at half size).

    ``shift`` moves the file's grid of blocks up and to the left by as many pixels, 0..15, as in a crop of a
    larger file; the image is reflected there (repeated, where it is too small for that).
    """
    top, left = shift
    mode = "reflect" if min(x.shape[1:]) > max(shift) else "replicate"
    file = io.BytesIO()
    Image.fromarray(to_uint8(F.pad(x[None], (left, 0, top, 0), mode=mode)[0])).save(file, "JPEG", quality=quality)
    return to_tensor(Image.open(file))[:, top:, left:]


def rain(
    clean: Float[Tensor, "B C H W"],
    density: Float[Tensor, " B"],
    length: Float[Tensor, " B"],
    angle: Float[Tensor, " B"],
    width: Float[Tensor, " B"],
    brightness: Float[Tensor, " B"],
    generator: torch.Generator,
) -> Float[Tensor, "B C H W"]:
    """Streaks of rain, white and added: min(clean + streaks, 1). Sparse noise, filtered along one direction.

    Args:
        density: drops a pixel. Each is as bright as chance has it, from half to all of ``brightness``.
        length, width: of a streak in pixels; its width is the full one at half its height.
        brightness: the peak of a single streak.
    Source: the additive model of W. Yang et al., "Deep Joint Rain Detection and Removal from a Single Image",
        arXiv 1609.07769, equation 1, with the streaks that such data are commonly drawn with.
    """
    deviation = width[:, None, None] / FULL_WIDTH
    reach = math.ceil(3 * float(deviation.max()))
    kernels = _along(length, angle, reach, lambda distance: torch.exp(-(distance / deviation).square() / 2))
    kernels = kernels / kernels.amax((1, 2), keepdim=True)
    # drops beyond the border too, whose streaks reach inside: no side of a crop looks special
    size = [side + kernels.shape[-1] - 1 for side in clean.shape[-2:]]
    chance, bright = torch.rand(2, len(clean), *size, generator=generator)
    drops = torch.where(chance < density[:, None, None], (1 + bright) / 2, 0)
    streaks = F.conv2d(drops[None], kernels.flip(1, 2)[:, None], groups=len(kernels)).transpose(0, 1)
    return (clean + brightness[:, None, None, None] * streaks).clamp(max=1)


def _along(length: Tensor, angle: Tensor, reach: int, profile) -> Float[Tensor, "B K K"]:
    """The mean of profile(x) profile(y) moved along centred lines, normalised; ``reach`` is the profile's."""
    half = math.ceil(float(length.max()) / 2) + reach
    count = 8 * half + 1  # points, in the middles of equal pieces: four a pixel or more
    steps = torch.arange(-half, half + 1, dtype=length.dtype)
    along = length[:, None] * ((torch.arange(count, dtype=length.dtype) + 0.5) / count - 0.5)
    angle = torch.deg2rad(angle)[:, None]
    x, y = along * torch.cos(angle), -along * torch.sin(angle)  # rows go down, angles up
    return _normalised(profile(steps - y[..., None]).mT @ profile(steps - x[..., None]))


def _normalised(kernels: Float[Tensor, "B K K"]) -> Float[Tensor, "B K K"]:
    return kernels / kernels.sum((1, 2), keepdim=True)
