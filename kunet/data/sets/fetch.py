"""Downloads of data sets: resumed where they stopped, checked before anything is unpacked, whole or not at all.

While files arrive they lie in a hidden folder beside the set's: NAME.part is the one under way. When all are there
and right they are unpacked beside it, checked once more and renamed into place.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pooch
import requests
import urllib3
from tqdm.auto import tqdm

from kunet.data.sets import check, root
from kunet.data.sets.records import DataSet, File
from kunet.data.sets.unpack import ArchiveError, unpack

TIMEOUT = (10, 60)
"""Seconds to wait for a connection, and for the next bytes."""


class DownloadError(ValueError):
    """A download that stopped: the message says why, and what is kept."""


class Resume:
    """A downloader for pooch that goes on where the last one stopped, if the server can and its file is the same.

    The bytes so far are in ``part``; the server's name for this version of its file (the strong ETag, else the date)
    is in ``part``.tag. It is sent as If-Range, so that a server whose file has changed sends the whole of the new one,
    and compared with what comes. Source: RFC 9110, sections 13.1.5 and 14.2.

    Raises: DownloadError.
    """

    def __init__(self, part: Path, progress: bool = False):
        self.part, self.tag, self.progress = part, part.with_name(part.name + ".tag"), progress

    def __call__(self, url: str, output_file: str, _) -> None:
        try:
            have, answer = self._ask(url)
            with answer:
                self._receive(have, answer)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise DownloadError(f"{url}: {_reason(error)}; {self._kept()}") from None
        except OSError as error:
            full = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
            raise DownloadError(f"{self.part}: cannot be written ({full}); {self._kept()}") from None
        os.replace(self.part, output_file)
        self.tag.unlink(missing_ok=True)

    def _ask(self, url: str) -> tuple[int, requests.Response]:
        """(bytes that are here already, the response with those that follow)."""
        plain = {"Accept-Encoding": "identity"}  # bytes on the way are bytes of the file
        if self.part.is_file() and self.tag.is_file():
            have, tag = self.part.stat().st_size, self.tag.read_text()
            rest = {"Range": f"bytes={have}-", "If-Range": tag}
            answer = requests.get(url, headers=plain | rest, stream=True, timeout=TIMEOUT)
            if answer.status_code == 200:
                return 0, answer
            starts = answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
            if answer.status_code == 206 and starts and _version(answer) in ("", tag):
                return have, answer
            answer.close()
        return 0, requests.get(url, headers=plain, stream=True, timeout=TIMEOUT)

    def _receive(self, have: int, answer: requests.Response) -> None:
        answer.raise_for_status()
        rest = answer.headers.get("Content-Length")
        total = have + int(rest) if rest else None
        if not have:
            self.tag.unlink(missing_ok=True)
        with (
            open(self.part, "ab" if have else "wb") as file,
            tqdm(
                desc=self.part.stem, initial=have, total=total, unit="B", unit_scale=True, disable=not self.progress
            ) as bar,
        ):
            if _version(answer):
                self.tag.write_text(_version(answer))
            for chunk in answer.raw.stream(1 << 16, decode_content=False):
                file.write(chunk)
                bar.update(len(chunk))
        if total not in (None, self.part.stat().st_size):
            raise requests.ConnectionError("the connection broke")

    def _kept(self) -> str:
        if self.part.is_file() and self.tag.is_file():
            return f"{self.part.stat().st_size / 1e6:.1f} MB are kept, run the same command again to go on"
        return "run the same command again"


def fetch(data_set: DataSet, to: str | Path | None = None, progress: bool = False) -> tuple[Path, str]:
    """The folder of a set, downloaded if it is not there, and one line on what was done.

    A folder that is there is used as it is and never written to. The SHA-256 of every file that came is recorded in
    NAME.json beside the folder; where no checksum is published, later downloads are held to it.

    Raises: ValueError when it cannot be fetched, what came is not what was published, or the folder is not whole.
    """
    folder = root(to) / data_set.name
    if folder.exists():
        if problems := check(data_set, folder, progress):
            raise ValueError(
                f"{folder}: is there already, but not whole ({problems[0]}); nothing was changed, move it away to"
                " download the set"
            )
        return folder, "was here already, and is whole"
    if not data_set.files:
        raise ValueError(
            f"{data_set.name}: has to be fetched by hand: {data_set.by_hand} in {folder}; then: kunet data check"
            f" {data_set.name}"
        )
    staging = folder.with_name(f".{data_set.name}.download")
    ledger = folder.with_name(f"{data_set.name}.json")
    before = _read(ledger)
    staging.mkdir(parents=True, exist_ok=True)
    try:
        seen = {file.name: _download(file, staging, before.get(file.name), progress) for file in data_set.files}
        if data_set.digest and data_set.digest != _digest(seen):
            shutil.rmtree(staging)
            raise ValueError(
                f"{data_set.name}: the images that came are not the published ones (their digest is {_digest(seen)},"
                f" not {data_set.digest}); nothing is kept, ask at {data_set.page}"
            )
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{data_set.name}-") as temporary:
            whole = Path(temporary) / data_set.name
            _assemble(data_set, staging, whole, progress)
            ledger.write_text(json.dumps(before | seen, indent=1) + "\n")
            os.rename(whole, folder)
        shutil.rmtree(staging)
    finally:
        with contextlib.suppress(OSError):  # it is gone, or holds what the next fetch goes on from
            staging.rmdir()
    if data_set.checksums == "published":
        return folder, "is here; every file has the published checksum"
    return folder, f"is here; checksums that nobody published are those of the first download, in {ledger}"


def _assemble(data_set: DataSet, staging: Path, whole: Path, progress: bool) -> None:
    """The set's folder, made of the files in the staging folder. Raises: ValueError when it is not as it should be."""
    whole.mkdir()
    for file in data_set.files:
        if data_set.kind == "images":
            shutil.copy(staging / file.name, whole)
        else:
            _unpack(staging / file.name, whole, data_set.password, progress)
    if problems := check(data_set, whole, progress):
        raise ValueError(
            f"{data_set.name}: what came is not laid out as expected ({problems[0]}); the files are left in {staging},"
            " delete it to download them again"
        )


def _download(file: File, staging: Path, before: dict | None, progress: bool) -> dict:
    """What the ledger is to say of a file that is now in the staging folder, downloaded if it was not."""
    known = file.checksum or (f"sha256:{before['sha256']}" if before else None)
    pooch.get_logger().setLevel("ERROR")
    try:
        path = pooch.retrieve(
            file.url, known, fname=file.name, path=staging, downloader=Resume(staging / f"{file.name}.part", progress)
        )
    except DownloadError:
        raise
    except ValueError:  # pooch's: the checksum
        whose = "published" if file.checksum else "recorded at the first download"
        raise ValueError(
            f"{file.url}: the file that came has not the checksum {whose} ({known}); nothing of it is kept, try again"
            " or ask its publisher"
        ) from None
    digest = known.removeprefix("sha256:") if known and known.startswith("sha256:") else pooch.file_hash(path)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"url": file.url, "bytes": os.path.getsize(path), "sha256": digest, "fetched": now}


def _unpack(archive: Path, into: Path, password: str, progress: bool) -> None:
    try:
        unpack(archive, into, password, progress)
    except ArchiveError as error:
        archive.unlink()  # or the next fetch would take it for what it should be
        raise ValueError(f"{error}; the archive was deleted, nothing is unpacked") from None
    except OSError as error:
        full = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
        raise ValueError(f"{into.parent}: cannot unpack there ({full}); {archive} is kept, try again") from None


def _read(ledger: Path) -> dict[str, dict]:
    try:
        content = json.loads(ledger.read_text()) if ledger.exists() else {}
        {entry["sha256"] for entry in content.values()}  # every entry has one
    except (ValueError, AttributeError, TypeError, KeyError):
        raise ValueError(f"{ledger}: is damaged, so no file can be held to it; delete it to trust anew") from None
    return content


def _digest(seen: dict[str, dict]) -> str:
    """As `sha256sum * | sha256sum` prints it."""
    return hashlib.sha256("".join(f"{seen[name]['sha256']}  {name}\n" for name in sorted(seen)).encode()).hexdigest()


def _version(answer: requests.Response) -> str:
    """What If-Range may carry: the strong ETag, else the date of the last change, else nothing."""
    tag = answer.headers.get("ETag", "")
    return tag if tag.startswith('"') else answer.headers.get("Last-Modified", "")


def _reason(error: Exception) -> str:
    if isinstance(error, requests.HTTPError):
        return f"the server says {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
        return "the server does not answer"
    if isinstance(error, requests.exceptions.SSLError):
        return "the server's certificate is not trusted"
    return "the connection broke" if "broke" in str(error).lower() else "no connection to the server"
