"""A larger network that begins as the function of a smaller one, already trained.

Source: T. Chen et al., "Net2Net", arXiv 1511.05641; its deeper networks, with the identity that a residual block has
at zero, and denser convolutions in place of its wider ones.
"""

import torch
from torch import Tensor

from kunet.blocks import DepthwiseSeparable, ResidualBlock
from kunet.models.compact import CompactKUnet


@torch.no_grad()
def grow(model: CompactKUnet, start: CompactKUnet) -> None:
    """Give a network the weights of one that it contains: afterwards both return the same images.

    The larger one may have dense convolutions where the smaller has separable ones, more blocks at the end of a
    stage, and inputs (``ends``) that the smaller has not; everything else must be equal.
    Raises: ValueError when it does not contain the smaller.
    """
    old, new = start.state_dict(), model.state_dict()
    for name, module in model.named_modules():
        if not isinstance(module, ResidualBlock):
            continue
        for which, conv in (("first", module.first), ("second", module.second)):
            key = f"{name}.{which}"
            if f"{key}.weight" in new and f"{key}.0.weight" in old:
                old |= _dense(old, key)
            elif which == "second" and not any(k.startswith(f"{name}.") for k in old):
                last = conv[-1] if isinstance(conv, DepthwiseSeparable) else conv
                last.weight.zero_()
                last.bias.zero_()
                old |= {k: v for k, v in model.state_dict().items() if k.startswith(f"{name}.")}
    if (missing := new["head.weight"].shape[1] - old["head.weight"].shape[1]) > 0:
        old["head.weight"] = torch.cat(
            [old["head.weight"], old["head.weight"].new_zeros(len(new["head.weight"]), missing, 3, 3)], 1
        )
    try:
        model.load_state_dict(old)
    except RuntimeError as error:
        raise ValueError(f"the one does not contain the other ({' '.join(str(error).split())[:160]})") from None


def _dense(state: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    """A depthwise separable convolution, taken out of a state, as the dense one that it is."""
    depthwise, shift, pointwise, bias = (
        state.pop(f"{key}.{part}") for part in ("0.weight", "0.bias", "1.weight", "1.bias")
    )
    matrix = pointwise[..., 0, 0]  # (C', C)
    return {f"{key}.weight": matrix[..., None, None] * depthwise[:, 0], f"{key}.bias": bias + matrix @ shift}
