"""The copies of an image over which an ensemble of one network is the mean.

Source: R. Timofte et al., "Seven Ways to Improve Example-Based Single Image Super Resolution", arXiv 1511.02228, who
call it enhanced prediction; B. Lim et al., arXiv 1707.02921, call it geometric self-ensemble.
"""

from jaxtyping import Float
from torch import Tensor

ORIENTATIONS = ((0, False), (0, True), (2, False), (2, True), (1, False), (1, True), (3, False), (3, True))
"""(quarter turns, mirrored left to right) of each copy: 2 are the image and its mirror image, 4 also both upside down,
8 also both on their sides."""


def turned(x: Float[Tensor, "*C H W"], turns: int, mirror: bool) -> Float[Tensor, "*C h w"]:
    """An image, mirrored left to right, then turned by quarters counter-clockwise."""
    return (x.flip(-1) if mirror else x).rot90(turns, (-2, -1))


def turned_back(y: Float[Tensor, "*C h w"], turns: int, mirror: bool) -> Float[Tensor, "*C H W"]:
    """What ``turned`` made, as it was."""
    y = y.rot90(-turns, (-2, -1))
    return y.flip(-1) if mirror else y
