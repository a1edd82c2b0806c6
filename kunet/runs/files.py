"""Files that are written whole or not at all."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_whole(path: Path, write: Callable[[Path], Any], name: Callable[[Path], Path] | None = None) -> Path:
    """Let ``write`` fill a temporary file beside ``path``, flush it to disk, then rename it into place.

    Args:
        name: says from the finished temporary file what to call it; else it becomes ``path``.
    Returns: the file's path.
    """
    handle, temporary_name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    os.close(handle)
    temporary = Path(temporary_name)
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        path = name(temporary) if name else path
        os.replace(temporary, path)
        if os.name == "posix":
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)  # the new name, too, outlives a power cut
            os.close(folder)
    except OSError as error:
        error.filename = error.filename or str(path)  # the system does not say which file it could not write on
        raise
    finally:
        temporary.unlink(missing_ok=True)
    return path
