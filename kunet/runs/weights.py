"""Weights in and out of safetensors files, which hold numbers and never code."""

import json
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

    Raises: ValueError when it is missing, is not safetensors (a pickle, say) or does not fit its model.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(
            f"{path}: no such weights file; give a released name ({', '.join(released())}) or a .safetensors file"
        )
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
        model = make(spec.get("model", "unnamed"), json.loads(spec.get("model_args", "{}")))
        model.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path}: holds no model of this package ({' '.join(str(error).split())[:300]})") from None
    card = path.with_suffix(".json")
    return model.eval(), json.loads(card.read_text()) if card.exists() else {}
