"""A run's folder: its recipe, its log, its checkpoints, its weights; what a stopped run continues from.

run/
  recipe.json      what the run was started with
  log.jsonl        one JSON object a line: step, loss, lr, seconds; validation scores
  checkpoint.pt    the whole state, replaced as a whole (read with weights_only=True)
  weights.safetensors, weights.json    the averaged weights and their card, when the run is done
"""

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from kunet.models import make


class Run:
    """The folder of one training run. Raises: ValueError when it cannot be made."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"{folder}: cannot make the run's folder ({error.strerror}); choose another --out"
            ) from None

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def write_recipe(self, recipe: dict[str, Any]) -> None:
        write_whole(self.folder / "recipe.json", lambda path: path.write_text(json.dumps(recipe, indent=1) + "\n"))

    def check_recipe(self, recipe: dict[str, Any], may_change: tuple[str, ...]) -> None:
        """Raises: ValueError naming the first field in which the run was started with another value."""
        path = self.folder / "recipe.json"
        before, now = json.loads(path.read_text()) if path.exists() else {}, json.loads(json.dumps(recipe))
        for key, value in before.items():
            if key not in may_change and now.get(key) != value:
                raise ValueError(
                    f"{self.folder}: was started with {key} {value!r}, not {now.get(key)!r}; choose another --out, or"
                    " go on with what it was started with"
                )

    def log(self, **values) -> None:
        """Append one line to log.jsonl, stamped with the wall-clock time in seconds."""
        with open(self.folder / "log.jsonl", "a") as file:
            file.write(json.dumps({"time": round(time.time(), 2), **values}) + "\n")

    def read_log(self) -> list[dict[str, Any]]:
        """Every whole line of the log; a line torn by a crash or a full disk is left out."""
        path = self.folder / "log.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def save(self, state: dict[str, Any]) -> None:
        write_whole(self.checkpoint, lambda path: torch.save(state, path))

    def load(self) -> dict[str, Any] | None:
        """The saved state, or None in a new run. Raises: ValueError when the file is damaged."""
        if not self.checkpoint.exists():
            return None
        try:
            return torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds on damaged or unsafe files
            raise ValueError(
                f"{self.checkpoint}: not a readable checkpoint ({type(error).__name__}); delete it to start anew"
            ) from None


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, flush it to disk, then rename it into place."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_weights(path: Path, model: nn.Module, name: str, args: dict[str, Any], card: dict[str, Any]) -> None:
    """Weights as safetensors that say themselves what they are, and a JSON card beside them."""
    spec = {"model": name, "model_args": json.dumps(args)}
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    write_whole(path, lambda temporary: save_file(state, temporary, metadata=spec))
    write_whole(path.with_suffix(".json"), lambda temporary: temporary.write_text(json.dumps(card, indent=1) + "\n"))


def load_weights(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """(model in evaluation mode, card) from a safetensors file; nothing in the file is ever executed.

    Raises: ValueError when it is missing, is not safetensors (a pickle, say) or does not fit its model.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such weights file; give a released name or a .safetensors file")
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
