"""Shapes by construction: increasing, decreasing, convex or concave edges, whatever training does.

A spline rises where its coefficients do, and bends upwards where the slopes of its control polygon rise (its
derivative is the spline of those slopes). So the weights are written as sums of positive steps, by torch's own
parametrisations, and optimisers see the free numbers behind.

Sources: de Boor (2001), chapter XI (variation diminishing); J. O. Ramsay, "Monotone Regression Splines in Action",
1988.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kunet import splines
from kunet.kan.layer import KANLayer

Shape = Literal["increasing", "decreasing", "convex", "concave"]
SHAPES = ("increasing", "decreasing", "convex", "concave")
_LEAST = 1e-4  # a step that softplus can still represent, for weights that do not have the shape yet


class _Shaped(nn.Module):
    """Free numbers (O, I, J, ...) <-> coefficients of one shape; gaps (O, I, J - 1) lie between Greville abscissae."""

    def __init__(self, shape: Shape | str, gaps: Tensor):
        super().__init__()
        self.sign = -1.0 if shape in ("decreasing", "concave") else 1.0
        self.curved = shape in ("convex", "concave")
        self.register_buffer("gaps", gaps)  # saved: a state dict brings its grid along

    def forward(self, free: Tensor) -> Tensor:
        gaps = self.gaps.view(*self.gaps.shape, *[1] * (free.dim() - 3))
        first, rest = free[:, :, :1], free[:, :, 1:]
        if self.curved:
            slopes = torch.cat([rest[:, :, :1], F.softplus(rest[:, :, 1:])], 2).cumsum(2)
            return self.sign * torch.cat([first, first + (slopes * gaps).cumsum(2)], 2)
        return self.sign * torch.cat([first, F.softplus(rest)], 2).cumsum(2)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The free numbers of the weights; where these do not have the shape, of near ones that do."""
        weight = self.sign * weight
        gaps = self.gaps.view(*self.gaps.shape, *[1] * (weight.dim() - 3))
        steps = weight.diff(dim=2)
        if self.curved:
            slopes = steps / gaps
            rest = torch.cat([slopes[:, :, :1], _inverse_softplus(slopes.diff(dim=2))], 2)
        else:
            rest = _inverse_softplus(steps)
        return torch.cat([weight[:, :, :1], rest], 2)


def constrain(layer: KANLayer, shape: Shape | str) -> KANLayer:
    """Give every edge of the layer a shape, in place; returns the layer.

    Stacks of increasing layers are increasing in every input. The layer must have B-splines of degree 1 or more, no
    base (SiLU is neither monotone nor convex), no scaler (its sign is free), and must go on as its tangent
    outside (``outside="linear"``; for a monotone one "clamp" does too): fading to zero would break the shape.
    Make the optimiser afterwards: the parameter is now ``layer.parametrizations.spline_weight.original``.

    Raises: ValueError when the layer is not such, or the shape is unknown.
    """
    if shape not in SHAPES:
        raise ValueError(f"constrain: shape {shape!r} is not known; choose one of {', '.join(SHAPES)}")
    if hasattr(layer, "parametrizations"):
        raise ValueError("constrain: the layer is constrained already; shapes.release frees it")
    outside = ("linear", "clamp") if shape in ("increasing", "decreasing") else ("linear",)
    if layer.basis != "bspline" or layer.degree < 1 or layer.base is not None or layer.spline_scaler is not None:
        raise ValueError(f"constrain: {layer}: it must have B-splines of degree 1 or more, base=None and no scaler")
    if layer.outside not in outside:
        raise ValueError(
            f"constrain: outside is {layer.outside!r}, which breaks the shape; choose {' or '.join(outside)}"
        )
    gaps = splines.greville(layer.knots, layer.degree).diff(dim=1)[layer.features_of_inputs()]
    if not bool((gaps > 0).all()):
        raise ValueError(
            f"constrain: a knot repeats more than {layer.degree - 1} times; shapes need continuous splines"
        )
    parametrize.register_parametrization(layer, "spline_weight", _Shaped(shape, gaps))
    return layer


def release(layer: KANLayer) -> KANLayer:
    """Free the weights, in place, at their present values; returns the layer. Needed before a grid changes."""
    if parametrize.is_parametrized(layer, "spline_weight"):
        parametrize.remove_parametrizations(layer, "spline_weight")
    return layer


def _inverse_softplus(step: Tensor) -> Tensor:
    step = step.clamp(min=_LEAST)
    return step + torch.log(-torch.expm1(-step))
