"""Recipes: everything a training run depends on, as typed fields; the released ones are YAML files beside this one."""

import difflib
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

_strict = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)


@dataclass(config=_strict, frozen=True)
class Phase:
    """A stretch of training with one crop size."""

    share: float = Field(gt=0, le=1, description="share of all steps")
    patch: int = Field(ge=8, description="side of the square crops in pixels")
    batch: int = Field(ge=1, description="crops a step")


@dataclass(config=_strict, frozen=True)
class Extension:
    """When, as a share of all steps, every KAN layer's grid becomes how fine."""

    at: float = Field(gt=0, lt=1, description="share of all steps")
    grid_size: int = Field(ge=2, description="cells of the grid from then on")


@dataclass(config=_strict, frozen=True)
class Pruning:
    """When which edges of every KAN layer are switched off for good."""

    at: float = Field(gt=0, lt=1, description="share of all steps")
    share: float = Field(gt=0, lt=1, description="edges below this share of their layer's strongest go")


@dataclass(config=_strict, frozen=True, kw_only=True)
class Recipe:
    """What to train, on what, for how long. Every field can be set by ``kunet train --field VALUE``."""

    name: str = Field(description="the run's name, and the weights'")
    model: str = Field(default="kunet_compact", description="a name in kunet.models.MODELS")
    model_args: dict[str, Any] = Field(default_factory=dict, description="arguments of the model's class")
    task: str = Field(default="denoise", description="a name in kunet.tasks.TASKS")
    task_args: dict[str, Any] = Field(default_factory=dict, description="arguments of the task's class")
    start: str = Field(default="", description="weights to start from: released ones by name, or a .safetensors file")
    data: list[str] = Field(
        default=["bundled"], description='folders, data sets by name (see kunet data list), or "bundled", in []'
    )
    held_out: int = Field(default=0, ge=0, description="photos of the folders kept for validation")
    steps: int = Field(ge=1, description="optimiser steps in all")
    phases: list[Phase] = Field(min_length=1, description="crop sizes in turn; shares add up to 1")
    optimizer: Literal["adamw", "muon"] = Field(
        default="adamw",
        description="muon: for matrices and convolutions, steps as strong in every direction, which take longer; AdamW"
        " for the rest",
    )
    lr: float = Field(default=1e-3, gt=0, description="the learning rate on the plateau")
    warmup: int = Field(default=200, ge=0, description="steps of linear warm-up")
    schedule: Literal["plateau", "cosine"] = Field(default="plateau", description="of lr after the warm-up")
    decay: float = Field(default=0.3, ge=0, le=1, description="last share of a plateau's steps, in which lr falls to 0")
    betas: tuple[float, float] = Field(default=(0.9, 0.95), description="AdamW's moment decay rates, beside muon too")
    weight_decay: float = Field(default=1e-4, ge=0, description="decoupled weight decay")
    clip: float = Field(default=5.0, gt=0, description="largest gradient norm")
    control_l1: float = Field(default=0, ge=0, description="weight of the mean |c| of each KAN layer in the loss")
    control_l2: float = Field(default=0, ge=0, description="weight of the mean c^2 of each KAN layer in the loss")
    extend: list[Extension] = Field(default_factory=list, description="KAN grids to refine: {at: 0.5, grid_size: 10}")
    prune: list[Pruning] = Field(default_factory=list, description="KAN edges to switch off: {at: 0.7, share: 0.05}")
    ema: float = Field(default=0.999, ge=0, lt=1, description="decay a step of the averaged weights")
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="of the forward pass (autocast)")
    compile: bool = Field(default=False, description="torch.compile the model; needs a C++ compiler on CPU")
    micro_batch: int = Field(
        default=0,
        ge=0,
        description="crops a process takes at once, 0 its whole share of the batch; gradients add up, so the training"
        " is the same but for batch normalisation and losses of whole batches (dice, weighted cross-entropy)",
    )
    recompute: bool = Field(default=False, description="compute activations again in backward: less memory, more time")
    seed: int = Field(default=0, ge=0, lt=2**63, description="of weights, crops and noise")
    threads: int = Field(default=0, ge=0, description="CPU threads; 0 leaves torch's choice")
    log_every: int = Field(default=50, ge=1, description="steps between log lines")
    feed: Literal["host", "device"] = Field(
        default="host",
        description="who cuts crops and adds noise: the host, crop by crop, or the device, which then holds all photos;"
        " each has its own crops",
    )
    workers: int = Field(
        default=0, ge=0, description="helper processes of the host that read crops ahead, for each process"
    )
    save_every: int = Field(default=1000, ge=1, description="steps between checkpoints and validations")
    keep: int = Field(default=2, ge=1, description="checkpoints kept, the last ones")

    def __post_init__(self):
        total = sum(phase.share for phase in self.phases)
        if abs(total - 1) > 1e-6:
            raise ValueError(f"phases: their shares add up to {total:g}; they must add up to 1")
        for name in ("extend", "prune"):
            for event in getattr(self, name):
                if not 0 < round(event.at * self.steps) < self.steps:
                    raise ValueError(f"{name}: at {event.at:g} of {self.steps} steps is not between two of them")


RECIPE = TypeAdapter(Recipe)


def describe() -> dict[str, str]:
    """Every field of a recipe and what it is."""
    return {name: info.description for name, info in Recipe.__pydantic_fields__.items()}


def names() -> list[str]:
    """The released recipes, by name."""
    return sorted(path.name[: -len(".yaml")] for path in files(__name__).iterdir() if path.name.endswith(".yaml"))


def load(name: str, changes: dict[str, Any] | None = None) -> Recipe:
    """A released recipe by name, or a YAML file by path, with fields changed.

    Raises: ValueError in one line for an unknown recipe or field (it names the nearest) or a value of the wrong type.
    """
    if name in names():
        text = files(__name__).joinpath(f"{name}.yaml").read_text()
    elif Path(name).suffix in (".yaml", ".yml") and Path(name).is_file():
        text = Path(name).read_text()
    else:
        raise ValueError(
            f"recipe {name!r}: no such recipe{nearest(name, names())}; there are {', '.join(names())}, or give a .yaml"
            " file"
        )
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"recipe {name!r}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise ValueError(f"recipe {name!r}: holds a {type(content).__name__}; it must be a mapping of fields")
    return build(f"recipe {name!r}", content | (changes or {}))


def build(where: str, content: dict[str, Any]) -> Recipe:
    """A Recipe from plain values, or one clear line of ValueError that starts with ``where``."""
    allowed = [field.name for field in fields(Recipe)]
    for key in content:
        if key not in allowed:
            raise ValueError(f"{where}: no field {key!r}{nearest(str(key), allowed)}; fields are {', '.join(allowed)}")
        if isinstance(content[key], bool) and key not in ("compile", "recompute"):
            raise ValueError(f"{where}: {key}: is {content[key]}; only compile and recompute are true or false")
    try:
        return RECIPE.validate_python(content)
    except ValidationError as error:
        raise ValueError(f"{where}: {explain(error)}") from None


def nearest(word: str, allowed: list[str]) -> str:
    """ " (did you mean X?)", or nothing when no allowed word is near."""
    found = difflib.get_close_matches(word, allowed, n=1, cutoff=0.5)
    return f" (did you mean {found[0]!r}?)" if found else ""


def explain(error: ValidationError) -> str:
    """pydantic's first complaint as one line: field, what came, what is allowed."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"])) or "values"
    message = first["msg"].removeprefix("Value error, ")
    came = "" if first["type"] in ("missing", "value_error") else f" (got {first['input']!r})"
    return f"{where}: {message[:1].lower() + message[1:]}{came}"
