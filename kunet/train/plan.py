"""What a recipe means: its model, task and optimiser, each step's crops and learning rate."""

import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from kunet import models, tasks
from kunet.kan import training as kan
from kunet.models.compact import CompactKUnet
from kunet.models.grow import grow
from kunet.recipes import Phase, Recipe
from kunet.runs import load_weights
from kunet.train.muon import Muon
from kunet.weights import find

MAY_CHANGE = (
    *("steps", "log_every", "save_every", "keep", "threads", "workers", "compile", "micro_batch", "recompute"),
)
"""Fields that a continued run may be given anew: the rest would make it another run."""
DEFAULTS = asdict(Recipe(name="", steps=1, phases=[Phase(share=1, patch=8, batch=1)]))
"""What the fields of a run mean that was started before they existed."""


def build(recipe: Recipe) -> tuple[nn.Module, Any]:
    """(model, task) of a recipe, the model with its ``start`` weights.

    Raises: ValueError for an unknown name or argument, a model that does not return what the task wants, a start that
        is another model, KAN options without KAN layers, a feed that the task cannot have.
    """
    try:
        model, task = models.make(recipe.model, recipe.model_args), tasks.make(recipe.task, recipe.task_args)
        task.fits(model)
    except ValueError as error:
        raise ValueError(f"recipe {recipe.name!r}: {error}") from None
    if not kan.layers(model) and (recipe.extend or recipe.prune or recipe.control_l1 or recipe.control_l2):
        raise ValueError(
            f"recipe {recipe.name!r}: {recipe.model} has no KAN layer; leave out extend, prune, control_l1, control_l2"
        )
    if recipe.feed == "device" and not task.on_device:
        able = ", ".join(name for name, kind in tasks.TASKS.items() if kind.on_device)
        raise ValueError(
            f"recipe {recipe.name!r}: {recipe.task} needs the host for its examples (the device can make those of"
            f" {able}); give --feed host"
        )
    if recipe.start:
        start = load_weights(find(recipe.start))[0]
        try:
            if isinstance(model, CompactKUnet) and isinstance(start, CompactKUnet):
                grow(model, start)
            else:
                model.load_state_dict(start.state_dict())
        except (RuntimeError, ValueError) as error:
            what = " ".join(str(error).split())[:160]
            raise ValueError(f"recipe {recipe.name!r}: start {recipe.start} holds another model ({what})") from None
    return model, task


def check(recipe: Recipe, device: str, size: int) -> None:
    """Raises: ValueError when the recipe cannot run here, on so many processes."""
    if recipe.compile and device == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++"))):
        raise ValueError(
            f"recipe {recipe.name!r}: compile needs a C++ compiler, and there is none; give --compile false"
        )
    for phase in recipe.phases:
        if phase.batch % size:
            raise ValueError(
                f"recipe {recipe.name!r}: a batch of {phase.batch} crops cannot be shared equally by {size} processes;"
                f" give phases with a batch that {size} divides, or start fewer processes"
            )


def optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """What moves the model's weights."""
    args = {"lr": recipe.lr, "betas": recipe.betas, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "muon":
        return Muon(model.parameters(), dtype=torch.bfloat16 if recipe.precision == "bf16" else torch.float32, **args)
    return torch.optim.AdamW(model.parameters(), fused=True, **args)


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up to ``lr``, then as ``schedule`` says.

    "plateau": constant, and a fall to 0 as 1 - sqrt(progress) over the last ``decay`` share of the steps. The plateau
    does not depend on their number, so a run can be made shorter or longer while it is on it. "cosine": a half wave
    from the warm-up's end down to 0.
    Sources: A. Hagele et al., "Scaling Laws and Compute-Optimal Training", arXiv 2405.18392, section 3;
        I. Loshchilov and F. Hutter, "SGDR", arXiv 1608.03983, equation 5, one period.
    """
    rise = min(1.0, (step + 1) / max(1, recipe.warmup))
    if recipe.schedule == "cosine":
        progress = max(0, step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
        return recipe.lr * rise * (1 + math.cos(math.pi * progress)) / 2
    start = recipe.steps * (1 - recipe.decay)
    fall = 1 - math.sqrt(max(0.0, step - start) / max(1e-9, recipe.steps - start))
    return recipe.lr * min(rise, fall)


def schedule(recipe: Recipe) -> Iterator[tuple[int, Phase, int]]:
    """(step, its phase, index of its first crop) for every step."""
    ends, end = [], 0.0
    for phase in recipe.phases:
        end += phase.share
        ends.append(round(end * recipe.steps))
    ends[-1] = recipe.steps
    first = 0
    for step in range(recipe.steps):
        phase = next(p for p, end in zip(recipe.phases, ends) if step < end)
        yield step, phase, first
        first += phase.batch
