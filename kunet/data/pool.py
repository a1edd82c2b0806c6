"""Examples from here and there: what is packed stays in its file, all else is read into memory, if it fits there."""

import os
from collections.abc import Callable, Sequence
from typing import Any, SupportsIndex

import numpy as np
from tqdm.auto import tqdm

from kunet.data.packed import Member, is_packed, members

SHARE = 0.8
"""How much of the machine's memory the pixels may take."""


class Pool(Sequence):
    """Examples of which some are in memory and some in packed sets. A pickle or a fork copies none of the latter."""

    def __init__(self, entries: list[np.ndarray | Member]):
        self.entries = entries

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: SupportsIndex) -> np.ndarray:
        return _pixels(self.entries[index])


def find(sources: Sequence[str], kind: str, find_plain: Callable[[str], list], **options: Any) -> list:
    """What all the sources hold, in order: Members of packed sets, and what ``find_plain`` finds in other folders."""
    found = []
    for source in sources:
        found += members(source, kind, options) if is_packed(source) else find_plain(source)
    return found


def gather(
    train: list,
    held: list,
    kind: str,
    read: Callable[[Any], np.ndarray],
    size: Callable[[Any], int],
    progress: bool = False,
) -> tuple[Sequence, list]:
    """(train, held-out) examples of what was found: Members, arrays, or what ``read`` makes an array of.

    The examples to train on are a Pool if any of them is packed, else a list.

    Args:
        size: the bytes that ``read`` will make of an item, known without reading its pixels.
    Raises: ValueError when what is to be read would not fit into memory.
    """
    plain = [item for item in train + held if not isinstance(item, Member | np.ndarray)]
    advice = f"pack them and name the packed folder instead: kunet data pack SOURCE -o FOLDER --kind {kind}"
    check_memory(sum(map(size, plain)), f"{len(plain)} {kind}", advice)
    with tqdm(total=len(plain), desc=f"reading {kind}", unit="image", disable=not progress) as bar:

        def entry(item: Any) -> np.ndarray | Member:
            if isinstance(item, Member | np.ndarray):
                return item
            pixels = read(item)
            bar.update()
            return pixels

        train, held = [entry(item) for item in train], [_pixels(entry(item)) for item in held]
    return (Pool(train) if any(isinstance(e, Member) for e in train) else train), held


def check_memory(needed: int, what: str, advice: str) -> None:
    """Raises: ValueError when so many bytes would take more than SHARE of this machine's memory."""
    memory = physical_memory()
    if needed > SHARE * memory:
        raise ValueError(
            f"{what}: take {needed / 1e9:.1f} GB in memory, of which this machine has {memory / 1e9:.1f}; {advice}"
        )


def physical_memory() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _pixels(entry: np.ndarray | Member) -> np.ndarray:
    return entry.packed[entry.index] if isinstance(entry, Member) else entry
