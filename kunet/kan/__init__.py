"""KAN layers: learnable splines on edges."""

from kunet.kan.linear import KANLinear

__all__ = ["KANLinear"]
