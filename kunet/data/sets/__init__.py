"""Data sets by name: what they are (``records``), where they lie, whether they are whole; ``fetch`` downloads them.

A set lies in a folder of its own name below one root: --to at the command line, or the environment's KUNET_DATA, or
kunet/data in the user's cache. Wherever images are read, a folder's path wins over a set's name.
"""

import os
from difflib import get_close_matches
from pathlib import Path

from kunet.data.sets.layout import check, match, probe
from kunet.data.sets.records import SETS, DataSet, File

__all__ = [
    "SETS",
    "DataSet",
    "File",
    "check",
    "clean_images",
    "get",
    "match",
    "named",
    "pairs",
    "probe",
    "root",
    "where",
]


def root(to: str | Path | None = None) -> Path:
    """The folder that holds the sets: ``to``, else KUNET_DATA, else the user's cache (XDG_CACHE_HOME, ~/.cache)."""
    if to or os.environ.get("KUNET_DATA"):
        return Path(to or os.environ["KUNET_DATA"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kunet" / "data"


def named(source: str | Path) -> bool:
    """Whether a source of images is the name of a set, and no folder's path."""
    return str(source).lower() in SETS and not Path(source).is_dir()


def get(name: str) -> DataSet:
    """A set by its name, in any case. Raises: ValueError, with the nearest name."""
    if name.lower() in SETS:
        return SETS[name.lower()]
    near = get_close_matches(name.lower(), SETS, n=1, cutoff=0.5)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(f"no data set {name!r}{hint}; there are {', '.join(SETS)}")


def where(data_set: DataSet, to: str | Path | None = None) -> Path:
    """The folder of a set. Raises: ValueError when it is not there."""
    folder = root(to) / data_set.name
    if not folder.is_dir():
        raise ValueError(
            f"{data_set.name}: is not here (no folder {folder}); get it with: kunet data fetch {data_set.name}, or give"
            " the folder that has it"
        )
    return folder


def clean_images(name: str) -> list[Path]:
    """The clean images of a set that is here, sorted by path. Raises: ValueError when it is not here, or not whole."""
    data_set = get(name)
    return sorted(_side(data_set, data_set.clean).values())


def pairs(name: str) -> list[tuple[Path, Path]]:
    """(degraded, clean) paths of a set that is here, sorted by the degraded one's.

    Raises: ValueError when it is not here or not whole, or has no pairs.
    """
    data_set = get(name)
    if not data_set.degraded:
        raise ValueError(
            f"{data_set.name}: has clean images alone, no pairs; use it where noise, blur or rain is added"
        )
    clean, degraded = (_side(data_set, pattern) for pattern in (data_set.clean, data_set.degraded))
    if clean.keys() != degraded.keys():
        raise ValueError(f"{data_set.name}: not every image has its partner; see: kunet data check {data_set.name}")
    return sorted((path, clean[key]) for key, path in degraded.items())


def _side(data_set: DataSet, pattern: str) -> dict[str, Path]:
    folder = where(data_set)
    found = match(folder, pattern)
    if len(found) != data_set.images:
        raise ValueError(
            f"{folder}: holds {len(found)} of {data_set.images} images; see: kunet data check {data_set.name}"
        )
    return found
