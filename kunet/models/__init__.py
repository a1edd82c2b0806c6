"""The models, one file a paper. ``MODELS`` maps the name in a recipe to its class.

The contract of every model here: ``model(x, noise_level=0.0) -> y``, maps (B, C, H, W) in [0, 1] units of any size
of at least 1 x 1. y is the restored image, of x's shape and not clamped: x plus what ``last`` gives. A model that is
made with ``classes=n`` returns logits (B, n, H, W) instead; ``model.classes`` says which, None where it restores.
``noise_level`` is sigma / 255: a number, one value an image (B,), or one value a pixel (B, 1, H, W); 0 where it is not
known. FFDNet and CompactKUnet use it, the others ignore it. The class's ``recomputed`` names the blocks that
``kunet.models.recompute`` may run twice to save memory; a plain chain has none.
"""

from typing import Any

from torch import nn

from kunet.models.compact import CompactKUnet
from kunet.models.dncnn import DnCNN
from kunet.models.ffdnet import FFDNet
from kunet.models.kbnet import KBNetL, KBNetS
from kunet.models.kit import KiT
from kunet.models.kmunet import KMUNet
from kunet.models.kunet import KUnet
from kunet.models.nafnet import NAFNet
from kunet.models.ukan import UKAN
from kunet.models.unet import UNet

MODELS = {
    "unet": UNet,
    "kunet": KUnet,
    "kunet_compact": CompactKUnet,
    "dncnn": DnCNN,
    "ffdnet": FFDNet,
    "nafnet": NAFNet,
    "kbnet_s": KBNetS,
    "kbnet_l": KBNetL,
    "kit": KiT,
    "kmunet": KMUNet,
    "ukan": UKAN,
}


def make(name: str, args: dict[str, Any]) -> nn.Module:
    """A model by name, from arguments as a recipe or a weights file holds them (lists stand for tuples).

    Raises: ValueError for an unknown name or arguments that its class does not take.
    """
    if name not in MODELS:
        raise ValueError(f"no model {name!r}; there are {', '.join(MODELS)}")
    try:
        return MODELS[name](**{key: tuple(value) if isinstance(value, list) else value for key, value in args.items()})
    except (TypeError, IndexError, RuntimeError, ZeroDivisionError) as error:
        raise ValueError(f"model_args {args} do not fit {name} ({error})") from None
