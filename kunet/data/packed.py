"""Packed sets: the pixels of a whole set in one file, which processes map into memory together and never read whole.

    FOLDER/pixels.u8    uint8 pixels (H, W, C) of one example after another, nothing between them
    FOLDER/index.json   format, version, kind, options, bytes, and of each example its name (its file's path below the
                        folder that was packed), height, width, channels, offset in bytes, CRC-32 of its pixels

The system reads a page of the file when it is first touched, holds it once for all processes, and drops it when
memory is short. ``kunet.data.pack`` writes such folders.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex
from zlib import crc32

import numpy as np
from tqdm.auto import tqdm

PIXELS, INDEX = "pixels.u8", "index.json"
FORMAT, VERSION = "kunet packed set", 1
CHANNELS = {"photos": 3, "pairs": 6, "masks": 4}
"""The kinds of examples, and how many channels each has."""


class Packed(Sequence):
    """The examples of a packed set, each (H, W, C) uint8: views of one map of its file, which cannot be written to.

    A pickle holds the folder's path and the index; whoever gets it maps the file for itself.
    """

    def __init__(self, folder: Path, index: dict[str, Any]):
        self.folder, self.kind, self.options, self.bytes = folder, index["kind"], index["options"], index["bytes"]
        rows = index["examples"]
        self.names: list[str] = [row["name"] for row in rows]
        self.shapes = np.array([[row[key] for key in ("height", "width", "channels")] for row in rows])
        self.offsets = np.array([row["offset"] for row in rows])
        self.checksums = np.array([row["crc32"] for row in rows])
        self._map()

    def _map(self) -> None:
        file = self.folder / PIXELS
        found = file.stat().st_size if file.is_file() else 0
        if found != self.bytes:
            raise ValueError(
                f"{file}: holds {found} bytes, and the index beside it says {self.bytes}; it is cut off, or another"
                " set's: copy it again, or pack the set again"
            )
        self._pixels = np.asarray(np.memmap(file, np.uint8, "r"))  # plain arrays: a memmap's pickle holds all of it

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: SupportsIndex) -> np.ndarray:
        shape, start = self.shapes[index], int(self.offsets[index])
        return self._pixels[start : start + math.prod(shape.tolist())].reshape(shape)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_pixels"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()


@dataclass(frozen=True)
class Member:
    """One example of a packed set, where it lies and not its pixels."""

    packed: Packed
    index: int


def is_packed(source: str | Path) -> bool:
    """Whether a source of examples is a packed set's folder (or wants to be one: it may be damaged)."""
    return all((Path(source) / name).is_file() for name in (PIXELS, INDEX))


def open_packed(folder: str | Path) -> Packed:
    """The examples of a packed set; nothing but its index is read.

    Raises: ValueError for a folder that is none, an index that is damaged or of another version, and pixels that are
    fewer or more than it says. Pixels that have changed are found by ``check``.
    """
    folder = Path(folder)
    if not is_packed(folder):
        raise ValueError(f"{folder}: is no packed set, which has {PIXELS} and {INDEX}; make one with: kunet data pack")
    try:
        index = json.loads((folder / INDEX).read_text())
        known = index["format"] == FORMAT
        if known and index["version"] != VERSION:
            raise _Version(f"is of version {index['version']} of the format, and version {VERSION} is read")
        if not known or not _sound(index):
            raise ValueError
    except _Version as error:
        raise ValueError(f"{folder / INDEX}: {error}; pack the set again") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ValueError(f"{folder / INDEX}: is damaged, or no packed set's; pack the set again") from None
    return Packed(folder, index)


class _Version(Exception):
    """Another version of the format."""


def _sound(index: dict[str, Any]) -> bool:
    """Whether an index is of this format: every example begins where the one before it ends, and has what it needs."""
    channels, end = CHANNELS[index["kind"]], 0
    for row in index["examples"]:
        numbers = (row["height"], row["width"], row["channels"], row["offset"], row["crc32"])
        sound = isinstance(row["name"], str) and all(type(n) is int and 0 <= n < 2**63 for n in numbers)
        if not sound or min(numbers[:3]) < 1 or numbers[2] != channels or numbers[3] != end:
            return False
        end += math.prod(numbers[:3])
    return 0 < end == index["bytes"] and isinstance(index["options"], dict)


def check(folder: str | Path, progress: bool = False) -> list[str]:
    """What is wrong with a packed set, one line each, after reading all of it; nothing when every checksum is right."""
    try:
        packed = open_packed(folder)
    except ValueError as error:
        return [str(error)]
    problems = []
    with open(packed.folder / PIXELS, "rb") as file:
        rows = zip(packed.names, packed.shapes.tolist(), packed.checksums.tolist())
        for name, shape, checksum in tqdm(rows, "checking", len(packed), unit="image", disable=not progress):
            if crc32(file.read(math.prod(shape))) != checksum:
                problems.append(f"{name}: its pixels are not those that were packed")
    return problems


def members(folder: str | Path, kind: str, options: dict[str, Any]) -> list[Member]:
    """The examples of a packed set of a kind, for ``kunet.data.pool``.

    Raises: ValueError as ``open_packed``, and for a set of another kind, or packed with other options.
    """
    packed = open_packed(folder)
    if packed.kind != kind:
        raise ValueError(f"{folder}: holds packed {packed.kind}, where {kind} are needed; name another folder, or task")
    for name, value in options.items():
        if packed.options.get(name) != value:
            raise ValueError(
                f"{folder}: was packed with {name} {packed.options.get(name)}, not {value}; pack it again with the"
                f" other --{name}, or change the task's"
            )
    return [Member(packed, i) for i in range(len(packed))]
