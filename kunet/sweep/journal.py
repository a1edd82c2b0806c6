"""What the workers of a sweep share: Optuna's journal of all trials, and the results for people to read."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kunet.runs import write_whole
from kunet.sweep.space import Space

GRACE = 30
"""Seconds after which a lock is taken from a process that was killed while it held it, for milliseconds as a rule."""


def optuna():
    """The package, which is imported only where a sweep runs; it says nothing but warnings."""
    try:
        import optuna as package
    except ModuleNotFoundError:
        raise ValueError("sweeps need the package optuna; pip install 'kunet[cluster]'") from None
    package.logging.set_verbosity(package.logging.WARNING)
    return package


def results(folder: str | Path) -> dict[str, Any]:
    """What ``results.json`` of a sweep holds: metric, goal, method, and a row a trial. Raises: ValueError without it.

    A row has number, state (running, complete or failed), worker, parameters, score, and the seconds from the trial's
    start to its end, pauses among them; a failed one has a reason.
    """
    try:
        return json.loads((Path(folder) / "results.json").read_text())
    except (OSError, ValueError):
        raise ValueError(f"{folder}: holds no results.json of a sweep; give the folder of one that was begun") from None


def ranked(rows: list[dict[str, Any]], goal: str) -> list[dict[str, Any]]:
    """The rows with the best score first; those without one last."""
    sign = -1 if goal == "maximize" else 1
    return sorted(rows, key=lambda row: math.inf if row["score"] is None else sign * row["score"])


class Journal:
    """The trials of the sweep in a folder.

    Args:
        started: what the sweep depends on beside its space, as plain values by name.
    Raises: ValueError when the folder holds another sweep.
    """

    def __init__(self, folder: Path, search: Space, started: dict[str, Any]):
        self.folder, self.search = folder, search
        started = started | {"method": search.method, "metric": search.metric, "goal": search.goal}
        started |= {f"parameter {name}": repr(given) for name, given in (search.fixed | search.searched).items()}
        now = json.loads(json.dumps(started))
        folder.mkdir(parents=True, exist_ok=True)
        with self._turn():
            storage = optuna().storages.JournalStorage(_backend(folder / "journal.log"))
            self.study = optuna().create_study(
                storage=storage, study_name="sweep", direction=search.goal, load_if_exists=True
            )
            if "sweep" not in self.study.user_attrs:
                self.study.set_user_attr("sweep", now)
            before = self.study.user_attrs["sweep"]
        for key in before | now:
            if before.get(key) != now.get(key):
                raise ValueError(
                    f"{folder}: was started with {key} {before.get(key)!r}, not {now.get(key)!r}; choose another"
                    " --out, or go on with what it was started with"
                )

    def next(self, worker: int, trials: float):
        """The trial that a worker is to train now: its own unfinished one, else a new one; None when there are so many.

        A new trial is one line of the journal, with its worker and all its parameters.
        """
        with self._turn():
            trial = self._unfinished(worker)
            if trial is None and len(known := self.study.get_trials()) < trials:
                drawn = optuna().trial.create_trial(
                    state=optuna().trial.TrialState.RUNNING,
                    params=self._draw(known),
                    distributions=self.search.searched,
                    user_attrs={"worker": worker},
                )
                self.study.add_trial(drawn)
                trial = self._unfinished(worker)
            self._write()
        return trial

    def finish(self, trial, score: float) -> None:
        self.study.tell(trial.number, score)

    def fail(self, trial, reason: str) -> None:
        optuna().trial.Trial(self.study, trial._trial_id).set_user_attr("reason", reason)
        self.study.tell(trial.number, state=optuna().trial.TrialState.FAIL)

    def rows(self) -> list[dict[str, Any]]:
        """Of ``results``, as things stand now."""
        rows = []
        for trial in self.study.get_trials():
            row = {
                "number": trial.number,
                "state": "failed" if trial.state.name == "FAIL" else trial.state.name.lower(),
                "worker": trial.user_attrs["worker"],
                "parameters": self.search.values(trial.params),
                "score": trial.value,
                "seconds": round(trial.duration.total_seconds(), 2) if trial.duration else None,
            }
            rows.append(row | ({"reason": trial.user_attrs["reason"]} if row["state"] == "failed" else {}))
        return rows

    def _unfinished(self, worker: int):
        for trial in self.study.get_trials(states=(optuna().trial.TrialState.RUNNING,)):
            if trial.user_attrs["worker"] == worker:
                return trial
        return None

    def _draw(self, known: list) -> dict[str, Any]:
        """A new trial's parameters: a function of its number and, for "bayes", of the trials so far."""
        number, method = len(known), self.search.method
        if method == "grid":  # Optuna's own grid can give one point to two workers
            return self.search.point(number)
        # TPE takes trials that still run for bad ones, so workers that draw at once keep apart.
        kind = optuna().samplers.TPESampler if method == "bayes" else optuna().samplers.RandomSampler
        # Asked of a copy in memory, so that the trial enters the journal with all its parameters or not at all.
        copy = optuna().create_study(sampler=kind(seed=number), direction=self.search.goal)
        copy.add_trials(known)
        return copy.ask(self.search.searched).params

    def _write(self) -> None:
        content = {"metric": self.search.metric, "goal": self.search.goal, "method": self.search.method}
        text = json.dumps(content | {"trials": self.rows()}, indent=1) + "\n"
        write_whole(self.folder / "results.json", lambda path: path.write_text(text))

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One worker at a time: whoever counts the trials also adds the next, and writes no older results."""
        lock = optuna().storages.journal.JournalFileOpenLock(str(self.folder / "turn"), GRACE)
        lock.acquire()
        try:
            yield
        finally:
            with suppress(RuntimeError):  # this process was held up beyond GRACE, and another took the lock
                lock.release()


def _backend(path: Path):
    """Optuna's journal file, behind a lock that holds on NFS and outlives no killed process.

    Its other lock, a symbolic link, is judged by the age of what it points to, and a link to a relative path points
    nowhere: left by a killed process it would hold up every worker for good. This one is a file created exclusively,
    which is atomic on NFS from version 3 on.
    """

    class Lock(optuna().storages.journal.JournalFileOpenLock):
        def acquire(self) -> bool:
            super().acquire()
            # The start of a line, whose writer was killed: no reader would pass it once another line followed.
            if path.exists() and (content := path.read_bytes()) and not content.endswith(b"\n"):
                os.truncate(path, content.rfind(b"\n") + 1)
            return True

    return optuna().storages.journal.JournalFileBackend(str(path), Lock(str(path), GRACE))
