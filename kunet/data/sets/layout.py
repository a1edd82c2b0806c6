"""Whether a folder holds a data set whole: how many images, what the files say of themselves, sizes, partners."""

import re
from pathlib import Path

from PIL import Image
from tqdm.auto import tqdm

from kunet.data.sets.records import DataSet


def match(folder: Path, pattern: str) -> dict[str, Path]:
    """The files below a folder whose whole relative path fits a pattern, by the pattern's first group.

    Raises: ValueError for two files with the same group.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if fit := re.fullmatch(pattern, path.relative_to(folder).as_posix()):
            if fit[1] in found:
                raise ValueError(f"{path}: is the same image as {found[fit[1]]} by its name; keep one of them")
            found[fit[1]] = path
    return found


def probe(path: Path) -> tuple[int, int]:
    """(width, height) of an image file whose headers Pillow finds sound (in a PNG every checksum); no pixel is decoded.

    Raises: ValueError.
    """
    try:
        with Image.open(path) as image:
            size = image.size
            image.verify()
            return size
    except (OSError, SyntaxError, EOFError, ValueError, Image.DecompressionBombError) as error:
        reason = "it is damaged, or no image" if isinstance(error, Image.UnidentifiedImageError) else error
        raise ValueError(f"{path}: cannot be read as an image ({reason}); get a whole copy of it") from None


def check(data_set: DataSet, folder: Path, progress: bool = False) -> list[str]:
    """What is wrong with the set in a folder, one line each; nothing when it is whole."""
    try:
        sides = [match(folder, pattern) for pattern in (data_set.clean, data_set.degraded) if pattern]
    except ValueError as error:
        return [str(error)]
    problems = []
    for side, found in zip(("clean", "degraded"), sides):
        if len(found) != data_set.images:
            problems.append(f"{len(found)} {side} images, not {data_set.images}")
    lonely = sorted(set().union(*sides).difference(set(sides[0]).intersection(*sides)))
    problems += [f"{key}: has no partner" for key in lonely]
    bar = tqdm(sides[0], desc=f"checking {data_set.name}", unit="image", disable=not progress)
    for key in bar:
        try:
            sizes = [probe(found[key]) for found in sides if key in found]
        except ValueError as error:
            problems.append(str(error))
            continue
        if len(set(sizes)) > 1:
            problems.append(f"{sides[0][key]}: is {_text(sizes[0])} pixels, its partner {_text(sizes[1])}")
        elif data_set.sizes and not any(all(b in (0, a) for a, b in zip(sizes[0], size)) for size in data_set.sizes):
            problems.append(f"{sides[0][key]}: is {_text(sizes[0])} pixels, not {data_set.size}")
    return problems


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
