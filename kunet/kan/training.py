"""What a trainer does to all KAN layers of a network at once: penalties, grid extension, pruning.

Notebook: notebooks/10_kmunet.ipynb.
"""

from collections.abc import Callable
from contextlib import ExitStack

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kunet.kan import grids, prune, regularise
from kunet.kan.layer import KANLayer


def layers(model: nn.Module) -> list[KANLayer]:
    """The KAN layers of a network, in the order of its modules."""
    return [module for module in model.modules() if isinstance(module, KANLayer)]


def penalty(model: nn.Module, l1: float, l2: float) -> Float[Tensor, ""] | float:
    """l1 times the mean |c| plus l2 times the mean c^2 of each layer's control values c, summed over layers."""
    total = 0.0
    for layer in layers(model) if l1 or l2 else ():
        total = total + l1 * regularise.control_l1(layer) + l2 * regularise.control_l2(layer)
    return total


def extend(model: nn.Module, grid_size: int, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Refine every layer's grid that has fewer cells to ``grid_size``, in place (``kunet.kan.grids.refine``)."""
    for layer in layers(model):
        if layer.grid_size < grid_size:
            grids.refine(layer, grid_size, optimizer)


def mask_weakest(model: nn.Module, copy: nn.Module, share: float, run: Callable[[], object]) -> None:
    """Switch off, in every layer, the edges below ``share`` of that layer's strongest, on the inputs of one pass.

    Args:
        copy: a network of the same layers (the averaged weights) that gets the same masks.
        run: passes a batch through ``model``; its mode is left as it is, gradients are not computed.
    """
    seen: dict[KANLayer, Tensor] = {}
    with ExitStack() as hooks, torch.no_grad():
        for layer in layers(model):
            keep = lambda module, inputs: seen.__setitem__(module, inputs[0].detach())
            hooks.callback(layer.register_forward_pre_hook(keep).remove)
        run()
    for layer, twin in zip(layers(model), layers(copy)):
        x = seen[layer]
        x = x.movedim(1, -1) if layer.spline_weight.dim() > 3 else x  # a map's features are its channels
        prune.mask_weakest(layer, x, share)
        twin.edge_mask = layer.edge_mask.clone()
