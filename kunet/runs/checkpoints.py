"""Checkpoints: the whole state of a training, a file a time, each named after its step and what it holds.

step-00000120-0123456789abcdef.pt: the step, and the first digits of the file's SHA-256. A file is renamed into place
when it is complete and on disk, so a killed process leaves the ones before it as they were, and a file that was
damaged later no longer has the digest in its name.
"""

import hashlib
import io
import re
from pathlib import Path
from typing import Any

import torch

from kunet.runs.files import write_whole

_NAME = re.compile(r"step-(\d{8,})-([0-9a-f]{16})\.pt")


def saved(folder: Path) -> list[tuple[int, Path]]:
    """(step, file) of every checkpoint, oldest first, damaged ones too."""
    found = [(match, path) for path in folder.glob("step-*.pt") if (match := _NAME.fullmatch(path.name))]
    return sorted((int(match[1]), path) for match, path in found)


def save(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write a state and delete all but the last ``keep`` ones. Raises: OSError, with everything before left whole."""
    folder.mkdir(exist_ok=True)
    named = lambda temporary: folder / f"step-{step:08d}-{_digest(temporary)}.pt"
    path = write_whole(folder / f"step-{step:08d}", lambda temporary: _write(state, temporary), named)
    for _, old in [entry for entry in saved(folder) if entry[1] != path][: -(keep - 1) or None]:
        old.unlink(missing_ok=True)
    return path


class _File(io.FileIO):
    """A file that remembers what the system said of a write (a full disk, say), which torch does not pass on."""

    failure: OSError | None = None

    def write(self, data) -> int:
        view, done = memoryview(data).cast("B"), 0
        try:
            while done < len(view):  # a nearly full disk takes a part of it, and torch would not notice
                done += super().write(view[done:]) or 0
            return done
        except OSError as error:
            error.filename = str(self.name)
            self.failure = error
            raise


def _write(state: dict[str, Any], path: Path) -> None:
    with _File(path, "wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError:
            if file.failure:
                raise file.failure from None
            raise


def sweep(folder: Path) -> None:
    """Delete what processes that were killed while they wrote left unfinished."""
    for path in folder.glob(".step-*"):
        path.unlink(missing_ok=True)


def check(path: Path) -> None:
    """Raises: ValueError when the file is not what was written."""
    match = _NAME.fullmatch(path.name)
    if match is None or not path.is_file() or _digest(path) != match[2]:
        raise ValueError(f"{path}: damaged (its content does not have the checksum in its name)")


def load(path: Path) -> dict[str, Any]:
    """A saved state, on the CPU; nothing in the file is ever executed. Raises: ValueError when it cannot be read."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):  # says nothing of the file
        raise
    except Exception as error:  # torch raises many kinds on damaged or unsafe files
        raise ValueError(f"{path}: not a readable checkpoint ({type(error).__name__}); delete it") from None


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
