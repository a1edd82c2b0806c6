"""Packing: a folder of images, or a data set by name, as one file that trainings map into memory (``packed``).

The folder appears when it is whole or not at all. While it is made it lies in a hidden folder beside it, named
.NAME.packing-*, which a killed process leaves behind and the next one that packs to the same name removes.
"""

import contextlib
import errno
import fcntl
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from tqdm.auto import tqdm

from kunet.data import sets
from kunet.data.masks import find_masks, labelled_bytes, read_labelled
from kunet.data.packed import CHANNELS, FORMAT, INDEX, PIXELS, VERSION, Packed, open_packed
from kunet.data.pairs import find_pairs, pair_bytes, read_pair
from kunet.data.photos import list_images, photo_bytes
from kunet.images import load_pixels

ROW = 300
"""Bytes of the index that an example takes, more or less: paths differ."""


@dataclass(frozen=True)
class Reader:
    """How examples of a kind are found and read: as those who load them without packing do."""

    find: Callable[[str], list]
    read: Callable[[Any], np.ndarray]
    size: Callable[[Any], int]
    path: Callable[[Any], Path]
    options: dict[str, Any]


def reader(kind: str, classes: int = 2, size: int | None = None) -> Reader:
    """Raises: ValueError for an unknown kind, or impossible numbers."""
    if kind in ("photos", "pairs") and (classes, size) != (2, None):
        raise ValueError(f"pack: classes {classes}, size {size} with {kind}; they are of masks alone")
    if kind == "photos":
        return Reader(list_images, load_pixels, photo_bytes, lambda path: path, {})
    if kind == "pairs":
        return Reader(find_pairs, lambda pair: read_pair(*pair), pair_bytes, lambda pair: pair[0], {})
    if kind != "masks":
        raise ValueError(f"pack: kind is {kind!r}; it must be one of {', '.join(CHANNELS)}")
    if not 1 <= classes <= 256 or (size is not None and size < 1):
        raise ValueError(f"pack: {classes} classes, size {size}; give 1 to 256 classes, a side of 1 or more pixels")
    return Reader(
        find_masks,
        lambda found: read_labelled(found, classes, size),
        lambda found: labelled_bytes(found, size),
        lambda found: found.image,
        {"classes": max(2, classes), "size": size},
    )


def pack(
    source: str | Path,
    folder: str | Path,
    kind: str = "photos",
    progress: bool = False,
    classes: int = 2,
    size: int | None = None,
) -> Packed:
    """Write the images of a source as a packed set, one after the other: memory holds a single one.

    Args:
        source: a folder of images, or the name of a data set.
        folder: the packed set's, which must not exist.
        kind: "photos"; "pairs", as ``kunet.data.load_pairs`` finds them; or "masks", as ``kunet.data.load_masks``.
        classes, size: of masks, as there.
    Raises: ValueError when the folder exists or is being made, an image cannot be read, or the disk has, or turns out
        to have, too little room; nothing is left then.
    """
    source, folder, kinds = str(source), Path(folder), reader(kind, classes, size)
    if folder.exists():
        raise ValueError(f"{folder}: is there already; give another folder, or delete it")
    clean(folder)
    found = kinds.find(source)
    total = sum(kinds.size(item) for item in tqdm(found, "reading sizes", unit="image", disable=not progress))
    check_room(folder, total + ROW * len(found))
    base = sets.where(sets.get(source)) if sets.named(source) else Path(source)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=_prefix(folder)) as temporary, _lock(temporary):
            whole = Path(temporary) / folder.name
            whole.mkdir()
            rows = _write(whole / PIXELS, found, kinds, base, progress)
            index = {"format": FORMAT, "version": VERSION, "kind": kind, "options": kinds.options}
            index |= {"bytes": rows[-1]["offset"] + _bytes(rows[-1]), "examples": rows}
            with _synced(whole / INDEX) as file:
                file.write(json.dumps(index).encode())
            _sync(whole)
            os.rename(whole, folder)
            _sync(folder.parent)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if full else error.strerror or error
        raise ValueError(f"{folder}: cannot be written ({reason}); nothing is left of it") from None
    return open_packed(folder)


def clean(folder: str | Path) -> list[Path]:
    """Remove what processes that were killed while they packed to this folder have left beside it: these folders.

    Raises: ValueError when a process is packing to it now.
    """
    folder = Path(folder)
    beside = folder.parent.iterdir() if folder.parent.is_dir() else ()
    left = sorted(path for path in beside if path.name.startswith(_prefix(folder)))
    removed = []
    for path in left:
        with contextlib.suppress(OSError), _lock(path) as mine:  # gone meanwhile, or another user's
            if mine is False:
                raise ValueError(f"{folder}: is being packed by another process, in {path}; wait for it, or stop it")
            if mine:
                removed.append(path)
    for path in removed:  # nobody else can want it: each process has a name of its own
        shutil.rmtree(path, ignore_errors=True)
    return removed


def check_room(folder: Path, needed: int) -> None:
    """Raises: ValueError when the disk that the folder is to lie on has not so many bytes left."""
    there = next(parent for parent in folder.absolute().parents if parent.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise ValueError(
            f"{folder}: needs {needed / 1e6:,.2f} MB, and its disk has {free / 1e6:,.2f} MB left; make room, or give a"
            " folder on another disk"
        )


def _write(path: Path, found: list, kinds: Reader, base: Path, progress: bool) -> list[dict[str, Any]]:
    """Every example's pixels, one after the other, and what the index says of them."""
    rows, offset = [], 0
    with _synced(path) as file:
        for item in tqdm(found, "packing", unit="image", disable=not progress):
            pixels = np.ascontiguousarray(kinds.read(item))
            height, width, channels = pixels.shape
            rows.append(
                {
                    "name": kinds.path(item).relative_to(base).as_posix(),
                    "height": height,
                    "width": width,
                    "channels": channels,
                    "offset": offset,
                    "crc32": crc32(pixels),
                }
            )
            file.write(pixels)
            offset += pixels.nbytes
    return rows


def _bytes(row: dict[str, Any]) -> int:
    return math.prod(row[key] for key in ("height", "width", "channels"))


def _prefix(folder: Path) -> str:
    return f".{folder.name}.packing-"


@contextlib.contextmanager
def _lock(folder: str | Path) -> Iterator[bool | None]:
    """Hold a folder for this process, or say that another one does (False), or that its disk has no locks (None).

    The system lets go of it when the process ends, however that happens.
    """
    with open(Path(folder) / "lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        except OSError:
            yield None
        else:
            yield True


@contextlib.contextmanager
def _synced(path: Path) -> Iterator[Any]:
    """A file to write, which is on the disk, not only on its way there, when it is closed."""
    with open(path, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Bring to the disk which files a folder has."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
