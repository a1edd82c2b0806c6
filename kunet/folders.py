"""Photos and whole folders of them, through any function of one photo: planned first, written whole, nothing lost."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

from PIL import Image
from tqdm.auto import tqdm

from kunet.data import list_images
from kunet.images import SUFFIXES, ImageError, check_holds, check_writable, direct, open_image, save_image

Existing = Literal["refuse", "overwrite", "skip"]
"""What becomes of a result that is there already."""


def run(
    inputs: list[Path],
    output: Path | None,
    photo: Callable[[Image.Image, Callable[[], None]], Image.Image],
    steps: Callable[[int, int], int],
    suffix: str,
    existing: Existing = "refuse",
    progress: bool = True,
    mode: str = "",
) -> list[str]:
    """Every image of files and folders through ``photo``.

    Args:
        inputs: image files, or folders whose images are all taken.
        output: a file (for one input file) or a folder; None writes NAME + suffix + ".png" beside each
            file, or into FOLDER + suffix for a folder.
        photo: image, progress -> image; calls progress after each of ``steps(height, width)`` parts of its work.
        existing: of results that are there: "refuse" the request, "overwrite" them, or "skip" their images. Results
            appear when they are whole, so those that are there need no second look.
        mode: Pillow's, of what ``photo`` returns, where it is not the image's own.
    Returns: one line an image that failed; the others are written.
    Raises: ValueError for a request that cannot be met as a whole, before any work.
    """
    jobs, failures = plan(inputs, output, existing, suffix, mode), []
    for source, target in jobs:
        try:
            image = direct(open_image(source))
            check_holds(target, mode or image.mode)
            total = steps(image.height, image.width)
            with tqdm(total=total, desc=source.name, unit="tile", disable=not progress, leave=len(jobs) < 20) as bar:
                result = photo(image, lambda bar=bar: bar.update() and None)
            target.parent.mkdir(parents=True, exist_ok=True)
            save_image(result, target)
        except ImageError as error:
            failures.append(str(error))
        except ValueError as error:
            failures.append(f"{source}: {error}")
        except (MemoryError, RuntimeError) as error:
            if "memory" not in str(error).lower() and not isinstance(error, MemoryError):
                raise
            failures.append(f"{source}: not enough memory; give a smaller --memory")
        except OSError as error:
            failures.append(f"{target}: cannot write there ({error.strerror}); choose another -o")
    return failures


def plan(
    inputs: list[Path], output: Path | None, existing: Existing, suffix: str, mode: str = ""
) -> list[tuple[Path, Path]]:
    """(source, target) of every image, as in ``run``. Raises: ValueError where one is impossible or would be lost."""
    if existing not in get_args(Existing):
        raise ValueError(f"existing is {existing!r}; it must be one of {', '.join(get_args(Existing))}")
    many = len(inputs) > 1 or inputs[0].is_dir()
    if many and output is not None and output.suffix.lower() in SUFFIXES:
        raise ValueError(f"{output}: is one file for several images; give a folder as -o")
    folder = output is not None and (many or output.is_dir() or not output.suffix)
    jobs = []
    for given in inputs:
        if given.is_dir():
            base = output or given.resolve().with_name(given.resolve().name + suffix)
            inside = base.resolve() != given.resolve()  # what an earlier run wrote into a folder in there is no photo
            for source in list_images(given):
                if not (inside and source.resolve().is_relative_to(base.resolve())):
                    jobs.append((source, base / source.relative_to(given).with_suffix(".png")))
        elif output is None:
            jobs.append((given, given.with_name(f"{given.stem}{suffix}.png")))
        elif folder:
            jobs.append((given, output / f"{given.stem}{suffix}.png"))
        else:
            jobs.append((given, output))
    if not jobs:
        raise ValueError(f"{inputs[0]}: holds no image beside those in {output}, where results go; give another -o")
    times = Counter(target for _, target in jobs)
    for target in {target.parent: target for target in times}.values():  # one of each folder
        check_writable(target)
    for source, target in jobs:
        check_holds(target, mode)
        if times[target] > 1:
            raise ValueError(f"{target}: two images would be written there ({source} is one); give each its own -o")
        if target.exists() and target.resolve() == source.resolve():
            raise ValueError(f"{target}: is the photo itself; give another -o")
        if target.exists() and existing == "refuse":
            raise ValueError(
                f"{target}: exists already; give another -o, --force to overwrite it, or --skip-existing to leave it"
            )
    return [job for job in jobs if existing != "skip" or not job[1].exists()]
