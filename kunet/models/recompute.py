"""Less memory for training: what the blocks of a model computed is dropped, and computed again in the backward pass.

A model's class names its blocks in ``recomputed``, a tuple of classes.
Source: T. Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recompute(model: nn.Module) -> None:
    """From now on keep, in training, of each block's tensors the ones that enter it; backward computes the rest again.

    Results and gradients stay the same, bit for bit: dropout draws the same numbers twice, and batch normalisation's
    running statistics see a batch once. Each block runs twice a step, so that a step takes about a third longer.
    Evaluation, passes without gradients, parameters and state dicts are as before; copies of the model recompute too.

    Raises: ValueError for a model without blocks.
    """
    blocks = list(_outermost(model, getattr(model, "recomputed", ())))
    if not blocks:
        raise ValueError(f"{type(model).__name__}: has no blocks to recompute; train it without recompute")
    for block in blocks:
        block.forward = MethodType(_forward, block)  # a method, which a deep copy binds to the copy


def _outermost(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> Iterator[nn.Module]:
    """The blocks of a network that are in no other block: inside those, all is recomputed anyway."""
    for child in module.children():
        if isinstance(child, kinds):
            yield child
        else:
            yield from _outermost(child, kinds)


def _forward(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """A block's forward, as its class has it, recomputed."""
    compute = partial(type(block).forward, block)
    if not (block.training and torch.is_grad_enabled()):
        return compute(*args, **kwargs)
    # compiled graphs update running statistics once, at their end, and take no such contexts
    norms = [] if torch.compiler.is_compiling() else [m for m in block.modules() if isinstance(m, _BatchNorm)]
    if norms:
        kwargs["context_fn"] = lambda: (nullcontext(), _on_copies(norms))
    return checkpoint(compute, *args, use_reentrant=False, preserve_rng_state=True, **kwargs)


@contextmanager
def _on_copies(norms: list[nn.Module]) -> Iterator[None]:
    """Let batch normalisations update copies of their running statistics, which have seen this batch already."""
    kept = [dict(norm.named_buffers(recurse=False)) for norm in norms]
    try:
        for norm, buffers in zip(norms, kept):
            for name, value in buffers.items():
                setattr(norm, name, value.clone())
        yield
    finally:
        for norm, buffers in zip(norms, kept):
            for name, value in buffers.items():
                setattr(norm, name, value)
