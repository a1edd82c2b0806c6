"""Archives from the network, unpacked without trusting them."""

import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from gzip import BadGzipFile
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm.auto import tqdm

RATIO = 20
"""An archive may unpack to this many times its own size: images hardly shrink, decompression bombs do."""


class ArchiveError(ValueError):
    """An archive that is damaged or does what no data set needs to; nothing of it is to be used."""


def unpack(archive: Path, into: Path, password: str = "", progress: bool = False) -> None:
    """Every file of a zip or (compressed) tar archive, below a folder; folders are made as they are needed.

    Raises: ArchiveError for an archive that cannot be read to its end, a path that leads out of the folder or is
    there already, a link or device, more than RATIO times the archive's size. OSError when the disk is full.
    """
    left = RATIO * archive.stat().st_size
    try:
        members = _zip(archive, password) if zipfile.is_zipfile(archive) else _tar(archive)
        with closing(members):
            for name, size, is_file, read in tqdm(members, archive.name, unit="file", disable=not progress):
                parts = PurePosixPath(name).parts
                if not parts or name.startswith("/") or ".." in parts or "\\" in name or ":" in parts[0]:
                    raise ArchiveError(f"{archive}: holds the path {name!r}, which leads out of its folder")
                if not is_file:
                    raise ArchiveError(f"{archive}: holds {name!r}, a link or device")
                left -= size
                if left < 0:
                    raise ArchiveError(f"{archive}: unpacks to more than {RATIO} times its size")
                target = into.joinpath(*parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                with read() as source, open(target, "xb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
    except (FileExistsError, NotADirectoryError) as error:
        raise ArchiveError(f"{archive}: holds {error.filename} twice") from None
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        EOFError,
        BadGzipFile,
        zlib.error,
        LZMAError,
        RuntimeError,  # of zipfile: a wrong password, or a method of compression that it does not know
    ) as error:
        raise ArchiveError(f"{archive}: is damaged, or no archive ({error})") from None


Member = tuple[str, int, bool, Callable[[], IO[bytes]]]
"""Path, size in bytes, whether it is a plain file, how to read it."""


def _zip(archive: Path, password: str) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            if not info.is_dir():
                is_file = stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG)
                yield info.filename, info.file_size, is_file, lambda i=info: file.open(i, pwd=password.encode() or None)


def _tar(archive: Path) -> Iterator[Member]:
    with tarfile.open(archive) as file:
        for info in file:
            if not info.isdir():
                yield info.name, info.size, info.isreg(), lambda i=info: file.extractfile(i)
