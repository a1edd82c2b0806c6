"""Kernel-basis attention (KBA): every pixel mixes its own convolution kernel out of a learned basis of kernels.

Notebook: notebooks/11_kernel_basis.ipynb.
"""

from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def kernel_basis_attention(
    x: Float[Tensor, "B C H W"],
    att: Float[Tensor, "B N H W"],
    weight: Float[Tensor, "1 N M"],
    bias: Float[Tensor, "1 N C"],
) -> Float[Tensor, "B C H W"]:
    """sum_n att_n (conv(x; W_n) + b_n): 3x3 convolutions in groups, zeros outside; att is used as it comes, no softmax.

    The published form mixes a kernel for every pixel, 9 gc C numbers each (at gc = 4: 600 MB for 64 channels of
    256 x 256 pixels). This one adds up one convolution after the other and, in training, computes each again in the
    backward pass: a few maps of x's size at a time, however many bases there are.

    Args:
        att: how much of each of the N bases each pixel takes, of any sign and size.
        weight: the N kernels, each of M = 9 gc C numbers, (group, out, in, 3, 3) with gc channels a group.
    Source: Y. Zhang et al., "KBNet", arXiv 2303.02881, section 3.2.
    """
    term = _term
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, att, weight, bias)):
        term = partial(checkpoint, _term, use_reentrant=False, preserve_rng_state=False)
    out = torch.zeros_like(x)
    for share, w, b in zip(att.split(1, 1), weight[0], bias[0]):
        out = out + term(x, share, w, b)
    return out


def _term(x: Tensor, share: Tensor, w: Tensor, b: Tensor) -> Tensor:
    channels = x.shape[1]
    w = w.view(channels, -1, 3, 3)
    return share * F.conv2d(x, w, b, padding=1, groups=channels // w.shape[1])


class KernelBasis(nn.Module):
    """A basis of ``bases`` grouped 3x3 convolutions, mixed at every pixel: (B, C, H, W), (B, N, H, W) -> (B, C, H, W).

    Weights and biases begin uniform in +-(9 gc C N)^-1/2, as published: so small that the basis starts near nothing.

    Args:
        bases: N, how many kernels there are.
        group_channels: gc, how many channels one output looks at.
    Raises: ValueError when group_channels does not divide channels.
    """

    def __init__(self, channels: int, bases: int = 32, group_channels: int = 4):
        super().__init__()
        if group_channels < 1 or channels % group_channels:
            raise ValueError(
                f"KernelBasis: groups of {group_channels} channels out of {channels}; group_channels must divide them"
            )
        count = 9 * group_channels * channels
        bound = (bases * count) ** -0.5
        self.w = nn.Parameter(torch.empty(1, bases, count).uniform_(-bound, bound))
        self.b = nn.Parameter(torch.empty(1, bases, channels).uniform_(-bound, bound))

    def forward(self, x: Float[Tensor, "B C H W"], att: Float[Tensor, "B N H W"]) -> Float[Tensor, "B C H W"]:
        return kernel_basis_attention(x, att, self.w, self.b)
