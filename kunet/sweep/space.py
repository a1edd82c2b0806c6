"""A search space in the sweep file format of Weights & Biases, read into Optuna's distributions.

Of the file's keys ``program``, ``command``, ``run_cap``, ``name`` and the like are for W&B's agent alone. What would
change the search and is W&B's own (early_terminate, normal distributions, nested parameters) is refused.
Source: https://docs.wandb.ai/models/sweeps/sweep-config-keys.
"""

import itertools
import json
import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kunet import recipes

TOP = ("method", "metric", "parameters", "program", "command", "name", "description", "project", "entity", "run_cap")
METHODS = ("random", "bayes", "grid")
GOALS = ("maximize", "minimize")
DISTRIBUTIONS = {
    "constant": ("value",),
    "categorical": ("values",),
    "uniform": ("min", "max"),
    "int_uniform": ("min", "max"),
    "q_uniform": ("min", "max", "q"),
    "log_uniform_values": ("min", "max"),
}
"""What each distribution takes; a q that is not given is 1."""


@dataclass(frozen=True)
class Space:
    """What to search: Optuna's distribution of each field that varies, the value of each that does not."""

    method: str
    metric: str
    goal: str
    searched: dict[str, Any]
    fixed: dict[str, Any]

    def values(self, params: dict[str, Any]) -> dict[str, Any]:
        """A recipe's fields from a trial's parameters as Optuna keeps them."""
        listed = {name for name, distribution in self.searched.items() if hasattr(distribution, "choices")}
        return self.fixed | {name: json.loads(v) if name in listed else v for name, v in params.items()}

    def samples(self) -> Iterable[dict[str, Any]]:
        """Fields to try a recipe with: every listed value, and both ends and an inner point of every range."""
        yield self.fixed
        for name, distribution in self.searched.items():
            for param in _samples(distribution):
                yield self.values({name: param})

    def size(self) -> float:
        """How many trials there are to make: the points of a grid, otherwise without end."""
        return math.prod(len(_points(d)) for d in self.searched.values()) if self.method == "grid" else math.inf

    def point(self, number: int) -> dict[str, Any]:
        """The grid's parameters of this number; the last of the file's fields varies fastest."""
        points = itertools.product(*(_points(d) for d in self.searched.values()))
        return dict(zip(self.searched, next(itertools.islice(points, number, None))))


def read(path: str | Path) -> Space:
    """The space in a file. Raises: ValueError in one line: where, what came, what is allowed."""
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not a text file"
        raise ValueError(f"{path}: cannot be read ({why}); give a sweep file, such as slurm/sweep.yaml") from None
    _mapping(str(path), content, TOP)
    _one_of(f"{path}: method", content.get("method"), METHODS)
    metric, parameters = content.get("metric"), content.get("parameters")
    _mapping(f"{path}: metric", metric, ("name", "goal"))
    _one_of(f"{path}: metric: goal", metric.get("goal"), GOALS)
    if not isinstance(metric.get("name"), str):
        raise ValueError(
            f"{path}: metric: name is {metric.get('name')!r}; it must be a score of the task, such as psnr"
        )
    _mapping(f"{path}: parameters", parameters)
    space = Space(content["method"], metric["name"], metric["goal"], {}, {})
    for name, given in parameters.items():
        where = f"{path}: parameters: {name}"
        kind = _kind(where, given)
        if kind == "constant":
            space.fixed[name] = given["value"]
        else:
            space.searched[name] = _distribution(where, kind, given)
            if space.method == "grid" and not _points(space.searched[name]):
                raise ValueError(f"{where}: is {kind}; a grid needs values, whole numbers (int_uniform) or a q")
    return space


def _mapping(where: str, came: Any, allowed: tuple[str, ...] = ()) -> None:
    if not isinstance(came, dict) or not came:
        raise ValueError(f"{where}: is {came!r}; it must be a mapping" + (f" of {', '.join(allowed)}" * bool(allowed)))
    for key in came if allowed else ():
        if key not in allowed:
            raise ValueError(
                f"{where}: no key {key!r}{recipes.nearest(str(key), list(allowed))}; keys are {', '.join(allowed)}"
            )


def _one_of(where: str, came: Any, allowed: Iterable[str]) -> None:
    if came not in tuple(allowed):
        raise ValueError(f"{where} is {came!r}; it must be one of {', '.join(allowed)}")


def _kind(where: str, given: Any) -> str:
    """The distribution's name, as W&B infers one that is not given; its keys are checked."""
    _mapping(where, given, ("distribution", "value", "values", "min", "max", "q"))
    whole = type(given.get("min")) is int and type(given.get("max")) is int
    inferred = "int_uniform" if whole else "uniform"
    inferred = "constant" if "value" in given else "categorical" if "values" in given else inferred
    kind = given.get("distribution", inferred)
    _one_of(f"{where}: distribution", kind, DISTRIBUTIONS)
    keys, needed = given.keys() - {"distribution"}, DISTRIBUTIONS[kind]
    if not set(needed) - {"q"} <= keys <= set(needed):
        raise ValueError(f"{where}: {kind} takes {', '.join(needed)}; got {', '.join(sorted(keys)) or 'none of them'}")
    return kind


def _distribution(where: str, kind: str, given: dict[str, Any]):
    from optuna import distributions

    if kind == "categorical":
        if not isinstance(given["values"], list) or not given["values"]:
            raise ValueError(f"{where}: values is {given['values']!r}; it must be a list of one or more")
        # As JSON: Optuna keeps no lists or mappings, and takes 1 and true for the same choice.
        return distributions.CategoricalDistribution([json.dumps(value, default=str) for value in given["values"]])
    numbers = {"q": 1} | given
    for key in DISTRIBUTIONS[kind]:
        came = numbers[key]
        if type(came) not in ((int,) if kind == "int_uniform" else (int, float)) or not math.isfinite(came):
            what = "a whole number" if kind == "int_uniform" else "a number (YAML takes 1e-4 for text: write 1.0e-4)"
            raise ValueError(f"{where}: {key} is {came!r}; it must be {what}")
    low, high, step = numbers["min"], numbers["max"], numbers["q"]
    if not low < high:
        raise ValueError(f"{where}: min is {low}, max is {high}; min must be below max")
    if kind == "log_uniform_values" and low <= 0:
        raise ValueError(f"{where}: min is {low}; log_uniform_values needs one above 0")
    if kind == "int_uniform":
        return distributions.IntDistribution(low, high)
    if kind != "q_uniform":
        return distributions.FloatDistribution(low, high, log=kind == "log_uniform_values")
    if step <= 0 or abs(round((high - low) / step) * step - (high - low)) > 1e-9 * (high - low):
        raise ValueError(f"{where}: q is {step}; it must divide {low} to {high} into equal steps")
    with warnings.catch_warnings():  # of a last step that binary fractions miss by their last bit
        warnings.simplefilter("ignore")
        if all(isinstance(number, int) for number in (low, high, step)):
            return distributions.IntDistribution(low, high, step=step)
        return distributions.FloatDistribution(low, high, step=step)


def _points(distribution) -> list:
    """All that a distribution can give, in order; nothing when it is a continuous range."""
    if hasattr(distribution, "choices"):
        return list(distribution.choices)
    low, high, step = distribution.low, distribution.high, distribution.step
    return [min(high, low + i * step) for i in range(round((high - low) / step) + 1)] if step else []


def _samples(distribution) -> list:
    if hasattr(distribution, "choices"):
        return list(distribution.choices)
    low, high = distribution.low, distribution.high
    return [low, high, low + (distribution.step or (high - low) * (math.sqrt(5) - 1) / 2)]
