"""KAN layers: learnable splines on edges."""

from kunet.kan.conv import KANConv2d
from kunet.kan.linear import KANLinear

__all__ = ["KANConv2d", "KANLinear"]
