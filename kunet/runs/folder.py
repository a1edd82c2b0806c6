"""The folder of one run."""

import json
import os
import secrets
import socket
import sys
import time
from pathlib import Path
from typing import IO, Any

from kunet.runs import checkpoints
from kunet.runs.files import write_whole

_HELD: set[IO[str]] = set()
"""The locks that this process holds, or has from the process that it is a fork of."""


def forget_locks() -> None:
    """For helper processes: a lock is free when the process that took it has ended, whoever of them outlives it."""
    while _HELD:
        _HELD.pop().close()


def _row(line: str) -> dict[str, Any] | None:
    """A line of the log; None for one that a crash has torn."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


class Run:
    """The folder of one training run. Raises: ValueError when it cannot be made."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._token = self._lock = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"{folder}: cannot make the run's folder ({error.strerror}); choose another --out"
            ) from None

    # who writes

    def own(self, job: str = "") -> None:
        """Become the one process that writes into this folder.

        A process of the same ``job`` (of a scheduler) may be left on a node that was lost: it is shut out, and
        fails at its next write. Any other process that is still alive keeps the folder.
        Raises: ValueError when the folder cannot be written, or belongs to such a process.
        """
        path = self.folder / "owner.json"
        try:
            self._lock = open(path, "a+")
            _HELD.add(self._lock)
        except OSError as error:
            raise ValueError(f"{path}: cannot write ({error.strerror}); choose another --out") from None
        try:
            import fcntl  # not on Windows

            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = self._owner()
            if not job or owner.get("job") != job:
                raise ValueError(
                    f"{self.folder}: process {owner.get('pid')} on {owner.get('host')} is training here; wait for it,"
                    " or choose another --out"
                ) from None
        except (ImportError, OSError):
            pass  # a system without such locks: the token below still tells
        self._token = secrets.token_hex(8)
        owner = {"token": self._token, "job": job, "host": socket.gethostname(), "pid": os.getpid()}
        self._lock.truncate(0)  # the file itself stays, since the lock is on it
        self._lock.write(json.dumps(owner) + "\n")
        self._lock.flush()
        checkpoints.sweep(self.folder / "checkpoints")

    def release(self) -> None:
        """Let others write."""
        if self._lock is not None:
            self._lock.close()
            _HELD.discard(self._lock)
        self._token = self._lock = None

    def _owner(self) -> dict[str, Any]:
        try:
            return json.loads((self.folder / "owner.json").read_text())
        except (OSError, ValueError):
            return {}

    def owned(self) -> bool:
        """Whether this process has become the owner, and no other one since."""
        return self._token is not None and self._owner().get("token") == self._token

    def check_owner(self) -> None:
        """Raises: ValueError when another process has become the owner since."""
        if self._token is not None and not self.owned():
            raise ValueError(f"{self.folder}: another process goes on with this run; this one wrote nothing more")

    def check_free(self) -> None:
        """Raises: ValueError when there are files here that a run would write over, and no run."""
        results = ("weights.safetensors", "weights.json", "best.safetensors", "best.json", "log.jsonl")
        found = [name for name in results if (self.folder / name).exists()]
        if found and not (self.folder / "recipe.json").exists():
            raise ValueError(
                f"{self.folder}: holds {', '.join(found)} of something else (there is no recipe.json); choose another"
                " --out"
            )

    # what the run is

    def write_recipe(self, recipe: dict[str, Any]) -> None:
        write_whole(self.folder / "recipe.json", lambda path: path.write_text(json.dumps(recipe, indent=1) + "\n"))

    def check_recipe(self, recipe: dict[str, Any], may_change: tuple[str, ...], defaults: dict[str, Any]) -> None:
        """Raises: ValueError naming the first field in which the run was started with another value.

        Fields that did not exist then had their defaults.
        """
        path = self.folder / "recipe.json"
        if not path.exists():
            return
        known, now = (json.loads(json.dumps(fields)) for fields in (defaults, recipe))
        before = known | json.loads(path.read_text())
        for key, value in before.items():
            if key not in may_change and now.get(key) != value:
                raise ValueError(
                    f"{self.folder}: was started with {key} {value!r}, not {now.get(key)!r}; choose another --out, or"
                    " go on with what it was started with"
                )

    # how far it is

    def write_status(self, word: str, step: int) -> None:
        """One line for scripts: running, paused, failed or done, and the step of the last checkpoint."""
        self.check_owner()
        write_whole(self.folder / "status", lambda path: path.write_text(f"{word} {step}\n"))

    def status(self) -> tuple[str, int]:
        """(word, step); ("new", 0) before the first."""
        try:
            word, step = (self.folder / "status").read_text().split()
            return word, int(step)
        except (OSError, ValueError):
            return "new", 0

    def log(self, **values) -> None:
        """Append one line to log.jsonl, stamped with the wall-clock time in seconds."""
        self.check_owner()
        path = self.folder / "log.jsonl"
        try:
            with open(path, "a") as file:
                file.write(json.dumps({"time": round(time.time(), 2), **values}) + "\n")
        except OSError as error:
            error.filename = str(path)
            raise

    def read_log(self) -> list[dict[str, Any]]:
        """Every whole line of the log; a line torn by a crash or a full disk is left out."""
        path = self.folder / "log.jsonl"
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        return [row for line in lines if (row := _row(line)) is not None]

    def rewind_log(self, step: int) -> int:
        """Forget the lines of later steps, which a run that goes on from there writes again; how many those are."""
        rows = self.read_log()
        text = "".join(json.dumps(row) + "\n" for row in rows if row.get("step", 0) <= step)
        write_whole(self.folder / "log.jsonl", lambda path: path.write_text(text))
        return max(0, *(row.get("step", 0) - step for row in rows), 0)

    # what it goes on from

    def save(self, step: int, state: dict[str, Any], keep: int = 2) -> None:
        """Add a checkpoint; the last ``keep`` stay."""
        self.check_owner()
        checkpoints.save(self.folder / "checkpoints", step, state, keep)

    def latest(self) -> Path | None:
        """The newest checkpoint that is whole, or None in a new run; every damaged one is named on stderr and logged.

        Raises: ValueError when there are checkpoints and all of them are damaged, or an old form of them.
        """
        if (self.folder / "checkpoint.pt").exists():
            raise ValueError(
                f"{self.folder / 'checkpoint.pt'}: of an earlier version, which drew its noise otherwise; choose"
                " another --out"
            )
        found, damaged = checkpoints.saved(self.folder / "checkpoints"), []
        for _, path in reversed(found):
            try:
                checkpoints.check(path)
            except ValueError as error:
                damaged.append(path)
                print(f"{error}; going back to the one before", file=sys.stderr)
                self.log(event="damaged", file=path.name)
            else:
                for file in damaged:  # they are no checkpoints any more, and take the place of none
                    file.rename(file.with_name(f"damaged-{file.name}"))
                return path
        if found:
            raise ValueError(
                f"{self.folder / 'checkpoints'}: all {len(found)} checkpoints are damaged; choose another --out to"
                " start anew"
            )
        return None

    def load(self, path: Path | None = None) -> dict[str, Any] | None:
        """The state of a checkpoint, the newest whole one unless told; None in a new run."""
        path = path or self.latest()
        return checkpoints.load(path) if path else None
