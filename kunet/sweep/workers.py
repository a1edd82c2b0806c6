"""A worker of a sweep: takes trials from the journal and trains them, one after another.

A trial is in the journal from its first moment, with its worker and all its parameters, and its training goes on from
its own checkpoints. So a worker can be killed at any time: started again under its number, it first goes on with the
trial that it was at. Trials of other workers it leaves alone.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch

from kunet import distributed, recipes, tasks
from kunet.recipes import Recipe
from kunet.runs import Run, stop
from kunet.sweep.journal import Journal, optuna, ranked
from kunet.sweep.space import Space, read
from kunet.train import MAY_CHANGE, build, train


def run(
    space: str | Path,
    recipe: str,
    folder: str | Path,
    trials: int,
    worker: int = 0,
    changes: dict[str, Any] | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> dict[str, Any] | None:
    """Train trials until the sweep has so many; ``results.json`` is written whenever one starts or ends.

    A trial's score is the last validation value in its log, that of the weights it leaves: the best value on the way
    would favour trials that validate often, or by luck. A trial whose training fails is kept as failed, with the
    reason. The draws depend on the trial's number (and, for "bayes", on the results so far), not on who draws.

    Args:
        space: a sweep file, as ``read`` takes it.
        recipe, changes: as ``kunet.recipes.load`` takes them; the space's fields are none of the changes.
        folder: the sweep's, shared by its workers.
        trials: how many all workers together make, failed ones among them; a grid has no more than its points.
        worker: this worker's number; no two that run at once may have the same.
        device, progress: as ``kunet.train.train`` takes them.
    Returns: the best row of ``results``; None when no trial has a score, or when this worker was asked to pause.
    Raises: ValueError in one line for a wrong space, for another sweep in the folder, and for what is no trial's
        fault, such as a folder of photos that is missing; the worker started again goes on with the trial it was at.
    """
    if trials < 1 or worker < 0:
        raise ValueError(f"trials is {trials}, worker is {worker}; give 1 or more trials, and a worker from 0 on")
    if distributed.place().size > 1:
        raise ValueError(
            "a worker of a sweep is one process, and torchrun or srun started several; start each worker by itself,"
            " as an array of jobs does"
        )
    optuna()
    search, folder, changes = read(space), Path(folder), changes or {}
    with stop.listen() as asked:  # a training listens by itself; this is for what lies between two of them
        base = _check(search, str(space), recipe, changes)
        started = dataclasses.asdict(base)
        started = {key: value for key, value in started.items() if key not in MAY_CHANGE or key == "steps"}
        journal = Journal(folder, search, started)
        while trial := journal.next(worker, min(trials, search.size())):
            if asked.asked:
                return None
            name = f"trial-{trial.number:05d}"
            values = {"name": f"{base.name}-{name}"} | search.values(trial.params)
            try:
                score = _train(base, values, folder / name, search.metric, device, progress)
            except _FailedTrial as error:
                journal.fail(trial, " ".join(str(error).split()))
            except (ValueError, FloatingPointError) as error:
                raise ValueError(f"worker {worker}: {error}") from None
            else:
                if score is None:
                    return None
                journal.finish(trial, score)
    return next((row for row in ranked(journal.rows(), search.goal) if row["score"] is not None), None)


class _FailedTrial(Exception):
    """A training that failed by its own values; its words are the reason."""


def _train(
    base: Recipe, values: dict[str, Any], folder: Path, metric: str, device: str, progress: bool
) -> float | None:
    """The last validation value, or None when the training was asked to pause."""
    try:
        recipe = recipes.build(folder.name, dataclasses.asdict(base) | values)
        build(dataclasses.replace(recipe, start=""))
    except ValueError as error:  # each value fits the recipe; these do not fit each other
        raise _FailedTrial(str(error)) from None
    try:
        done = train(recipe, folder, device, progress)
    except (ValueError, FloatingPointError, MemoryError, torch.OutOfMemoryError) as error:
        # Only a training that has begun calls itself failed. Photos that are not there, or a folder that another
        # process trains in, are no trial's fault, and would fail one after the other.
        if Run(folder).status()[0] != "failed" and not isinstance(error, MemoryError | torch.OutOfMemoryError):
            raise
        raise _FailedTrial(str(error) or type(error).__name__) from None
    if not (folder / "weights.safetensors").exists():
        return None
    scores = [row[metric] for row in done.read_log() if metric in row]
    if not scores or not math.isfinite(scores[-1]):
        raise _FailedTrial(f"{metric} is {scores[-1] if scores else 'not in its log'}")
    return float(scores[-1])


def _check(search: Space, space: str, recipe: str, changes: dict[str, Any]) -> Recipe:
    """The recipe that the trials change, after every value that the space can give was tried on it."""
    for name in search.fixed | search.searched:
        if name in changes:
            raise ValueError(f"{space}: parameters: {name} is given by --{name.replace('_', '-')} too; leave one out")
    for sample in search.samples():
        try:
            recipes.load(recipe, changes | sample)
        except ValueError as error:
            raise ValueError(f"{space}: {error}") from None
    base = recipes.load(recipe, changes | search.fixed)
    if not search.searched.keys() & {"model", "model_args"}:  # else the recipe's own need not fit
        build(base)
    task = tasks.make(base.task, base.task_args)
    if search.metric != task.measure:
        raise ValueError(f"{space}: metric: name is {search.metric!r}; {base.task} is scored by {task.measure!r}")
    _, held = task.load(base.data, base.held_out)
    if not held:
        raise ValueError(f"recipe {base.name!r}: keeps no images to score trials on; give --held-out 4, or more")
    return base
