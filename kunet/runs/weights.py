"""Weights in and out of safetensors files, which hold numbers and never code."""

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import nn

from kunet.models import make
from kunet.runs.files import write_whole
from kunet.weights import released


def save_weights(path: Path, model: nn.Module, name: str, args: dict[str, Any], card: dict[str, Any]) -> None:
    """Weights as safetensors that say themselves what they are, and a JSON card beside them."""
    spec = {"model": name, "model_args": json.dumps(args)}
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    # written here, not by safetensors, whose error for a full disk is not the system's
    write_whole(path, lambda temporary: temporary.write_bytes(save(state, metadata=spec)))
    write_whole(path.with_suffix(".json"), lambda temporary: temporary.write_text(json.dumps(card, indent=1) + "\n"))


def load_weights(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """(model in evaluation mode, card) from a safetensors file; nothing in the file is ever executed.

    Raises: ValueError when it is missing, is not safetensors (a pickle, say), does not fit its model, or holds values
        that are not finite; and for a card that is none. Without a card the second is empty.
    """
    path = Path(path)
    _check_there(path)
    try:
        with safe_open(path, "pt") as file:
            spec = file.metadata() or {}
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path}: not a safetensors file ({error}); pickled weights (.pt, .pth) can run code and are not read:"
            " save them again with safetensors"
        ) from None
    try:
        args = json.loads(spec.get("model_args", "{}"))
        if not isinstance(args, dict):
            raise ValueError(f"its model_args are {args!r}, no mapping")
        model = make(spec.get("model", "unnamed"), args)
        model.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path}: holds no model of this package ({' '.join(str(error).split())[:300]})") from None
    for name, values in state.items():
        if not bool(values.isfinite().all()):
            raise ValueError(f"{path}: {name} holds values that are not finite (nan or inf); get a whole copy of it")
    return model.eval(), read_card(path) if path.with_suffix(".json").exists() else {}


def read_card(weights: Path) -> dict[str, Any]:
    """The JSON card beside weights. Raises: ValueError when they or it are missing, or it is none."""
    _check_there(weights)
    path = weights.with_suffix(".json")
    try:
        card = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(
            f"{path}: no such card, which says what {weights.name} was trained for; copy it from where they came from"
        ) from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); change its permissions") from None
    except ValueError as error:
        raise ValueError(f"{path}: not a card, which is JSON ({error}); get a whole copy of it") from None
    recipe = card.get("recipe", {}) if isinstance(card, dict) else None
    if not (isinstance(recipe, dict) and isinstance(recipe.get("task_args", {}), dict)):
        raise ValueError(f"{path}: not a card, which holds a recipe with its task_args; get a whole copy of it")
    return card


def _check_there(path: Path) -> None:
    if not path.is_file():
        raise ValueError(
            f"{path}: no such weights file; give a released name ({', '.join(released())}) or a .safetensors file"
        )
    if not os.access(path, os.R_OK):
        raise ValueError(f"{path}: no permission to read these weights; change its permissions")
