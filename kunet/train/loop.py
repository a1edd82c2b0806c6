"""The training loop."""

import dataclasses
import math
import time
from contextlib import nullcontext, suppress
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kunet import distributed
from kunet.distributed import Group
from kunet.kan import training as kan
from kunet.models.recompute import recompute
from kunet.recipes import Recipe
from kunet.runs import Run, save_weights, stop, track
from kunet.tasks import Batch, Task
from kunet.train import plan
from kunet.train.feed import Source, Step, feed, mix, source
from kunet.train.memory import room
from kunet.train.progress import Progress
from kunet.train.state import State
from kunet.train.validate import probe, validate

MOST_SKIPPED = 3
"""Steps in a row without a finite gradient after which a training gives up."""


def train(
    recipe: Recipe,
    folder: str | Path,
    device: str = "cpu",
    progress: bool = True,
    stop_after: int | None = None,
    tracking: str = "off",
    timeout: float = 600,
) -> Run:
    """Run a recipe in a folder; a folder that was left unfinished is continued, to the same weights bit for bit.

    Started by torchrun or srun, every process calls this, and they share each step's crops. SIGTERM, SIGUSR1 or
    Ctrl-C end it after the step it is at, with a checkpoint: the run is then paused.

    Args:
        device: of torch, "cpu" or "cuda".
        progress: show loss, score, crops a second and time left.
        stop_after: pause at this step.
        tracking: mirror the log on W&B: a mode of ``kunet.runs.track``.
        timeout: seconds to wait for another process that does not answer.
    Returns: the run; its ``status`` is "done" when its folder holds weights.safetensors, or "paused".
    Raises: ValueError for impossible recipes, folders in use, batches that do not fit into memory;
        FloatingPointError when three steps in a row have no finite gradient; OSError when the disk is full;
        LostProcess when another process is lost. Then the last checkpoint stays, and the run can go on from it.
    """
    with stop.listen() as asked, distributed.join(device, timeout) as group:
        plan.check(recipe, device, group.size)
        torch.manual_seed(recipe.seed)
        if recipe.threads:
            torch.set_num_threads(recipe.threads)
        model, task = plan.build(recipe)
        photos, held = task.load(recipe.data, recipe.held_out, progress and group.first)
        run = Run(folder)
        with group.together():
            if group.first:
                run.check_free()
                run.own(distributed.job())
        training = None
        try:
            examples = source(recipe.feed, photos, task, recipe.seed, group.device)
            del photos  # which the device may hold now
            training = Training(recipe, run, group, model, task, examples, held)
            training.go_on(stop_after or recipe.steps, asked, progress, tracking)
        except (ValueError, FloatingPointError, OSError):
            with suppress(OSError):  # the disk can be full
                if training and group.first and run.owned():  # else nothing was changed
                    run.write_status("failed", run.status()[1])
            raise
        finally:
            run.release()
        return run


class Training:
    """One process's part of a training: the state that a checkpoint holds, and the loop that moves it on."""

    def __init__(
        self, recipe: Recipe, run: Run, group: Group, model: nn.Module, task: Task, examples: Source, held: list
    ):
        self.recipe, self.run, self.group, self.task, self.examples = recipe, run, group, task, examples
        self.layout = torch.channels_last
        self.state = State(model.to(group.device, memory_format=self.layout).train(), recipe)
        self.probe = probe(held, task)
        self.held = len(held)
        self.score = float("nan")
        norms = [module for module in self.state.model.modules() if isinstance(module, _BatchNorm)]
        self.statistics = [buffer for norm in norms for buffer in norm.buffers()]
        self._restore()
        self.saved = self.state.done
        if recipe.recompute:
            recompute(self.state.model)  # after the copy that is averaged was made

    def _restore(self) -> None:
        """Take up the newest checkpoint that is whole; the first process says which that is."""
        run, recipe = self.run, dataclasses.asdict(self.recipe)
        with self.group.together():
            path = run.latest() if self.group.first else None
            if path:
                fixed = {"steps"} if self.recipe.extend or self.recipe.prune else set()  # these happen at shares of it
                run.check_recipe(recipe, tuple(set(plan.MAY_CHANGE) - fixed), plan.DEFAULTS)
        path = self.group.share(path)
        if path:
            self.state.load(run.load(path), self.recipe, run.folder)
        if self.group.first:
            run.write_recipe(recipe)
            again = run.rewind_log(self.state.done)
            run.write_status("running", self.state.done)
            here = {"processes": self.group.size, "device": str(self.group.device)}
            run.log(event="started", at=self.state.done, steps_again=again, **here)

    def go_on(self, last: int, asked: stop.Stop, progress: bool, tracking: str) -> None:
        """Train to step ``last`` or until asked to stop."""
        recipe, group, run, state = self.recipe, self.group, self.run, self.state
        steps = [step for step in plan.schedule(recipe) if state.done <= step[0] < min(last, recipe.steps)]
        bar = Progress(recipe.name, recipe.steps, state.done, self.task.measure, progress and group.first)
        self.tracker = track.open_tracker(
            run.folder, recipe.name, dataclasses.asdict(recipe), tracking if group.first else "off"
        )
        code = 1
        since, counted = time.perf_counter(), 0
        network = None
        try:
            for step, batches in feed(self.examples, steps, group, recipe.micro_batch, recipe.workers):
                with room(step[0], len(batches[0].input), step[1].patch, recipe.feed):
                    if state.change_kans(recipe, step, self.examples, self.layout) or network is None:
                        network = self._network(batches[0])
                    stopping = self._step(step, network, batches, asked)
                counted += step[1].batch
                bar.step()
                if state.done % recipe.log_every == 0 or state.done == recipe.steps:
                    rate = counted / (time.perf_counter() - since)
                    self._log(step, bar, rate)
                    since, counted = time.perf_counter(), 0
                if state.done % recipe.save_every == 0 or state.done == recipe.steps:
                    before = time.perf_counter()
                    self._validate()
                    # after steps without a finite gradient, rather go on from before them
                    if not state.skipped or stopping or state.done in (last, recipe.steps):
                        self._save()
                    since += time.perf_counter() - before
                elif stopping or state.done == last:
                    self._save()
                if stopping:
                    break
            if state.done == recipe.steps:
                self._finish()
            else:
                self._pause(asked.asked or ("another process was asked" if state.done < last else "stop_after"))
            code = 0
        finally:
            bar.close()
            self.tracker.close(code)

    def _network(self, batch: Batch) -> nn.Module:
        """The model as it is trained: compiled (one graph a phase), its gradients averaged over the processes."""
        inner = torch.compile(self.state.model, dynamic=False) if self.recipe.compile else self.state.model
        network = self.group.wrap(inner)
        if self.group.size > 1:
            # DDP groups its gradients anew after the first backward pass, and with them the order of its sums;
            # a pass that counts for nothing puts that behind, so a continued run sums as an unbroken one does
            buffers = [buffer.clone() for buffer in self.state.model.buffers()]
            with self._precision():
                loss = self.task.loss(network, batch.to(self.group.device, self.layout))
            (0 * loss).backward()
            self.state.optimizer.zero_grad()
            for buffer, value in zip(self.state.model.buffers(), buffers):
                buffer.copy_(value)
        return network

    def _precision(self):
        return torch.autocast(self.group.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16")

    def _step(self, step: Step, network: nn.Module, batches: list[Batch], asked: stop.Stop) -> bool:
        """One step of the optimiser; returns whether any process was asked to stop."""
        number, phase, _ = step
        recipe, state, share = self.recipe, self.state, phase.batch // self.group.size
        torch.manual_seed(mix(recipe.seed, number, self.group.rank))  # dropout
        total, statistics = 0.0, [buffer.clone() for buffer in self.statistics]
        for i, batch in enumerate(batches):
            part = len(batch.input) / share
            hold = self.group.size > 1 and i < len(batches) - 1  # gradients add up here before they are averaged
            with network.no_sync() if hold else nullcontext(), self._precision():
                moved = batch.to(self.group.device, self.layout)
                loss = self.task.loss(network, moved)
                loss = loss + kan.penalty(state.model, recipe.control_l1, recipe.control_l2)
                (part * loss).backward()
            total = total + part * loss.detach()
        norm = nn.utils.clip_grad_norm_(state.model.parameters(), recipe.clip)
        loss, stopping = self.group.sum(float(total), bool(asked.asked))
        loss /= self.group.size
        if math.isfinite(loss) and math.isfinite(float(norm)):  # both are the same on all processes
            for group in state.optimizer.param_groups:
                group["lr"] = plan.learning_rate(recipe, number)
            state.optimizer.step()
            state.average.update_parameters(state.model)
            state.losses.append(loss)
            state.skipped = 0
        else:
            for buffer, before in zip(self.statistics, statistics):  # which the pass forward has changed already
                buffer.copy_(before)
            self._skip(number, loss, float(norm))
        state.optimizer.zero_grad()
        state.done = number + 1
        return bool(stopping)

    def _skip(self, step: int, loss: float, norm: float) -> None:
        self.state.skipped += 1
        if self.group.first:
            self.run.log(event="skipped", step=step + 1, loss=repr(loss), gradient_norm=repr(norm))
        if self.state.skipped == MOST_SKIPPED:
            raise FloatingPointError(
                f"{self.run.folder}: loss {loss}, gradient norm {norm} at step {step}, and no finite ones in the"
                f" {MOST_SKIPPED - 1} steps before; go on from the last checkpoint with another --out, a lower lr and"
                " precision fp32, or look for what is wrong in the data"
            )

    def _log(self, step: Step, bar: Progress, rate: float) -> None:
        if self.group.first and self.state.losses:
            row = {
                "loss": sum(self.state.losses) / len(self.state.losses),
                "lr": plan.learning_rate(self.recipe, step[0]),
                "patch": step[1].patch,
                "crops_per_s": round(rate, 1),
            }
            self.run.log(step=self.state.done, **row)
            self.tracker.log(self.state.done, row)
            bar.report(self.state.done, row["loss"], self.score, rate)
        self.state.losses = []

    def _validate(self) -> None:
        """Score the averaged weights, each process its share of the held-out images; keep the best weights."""
        if self.probe is None:
            return
        self.group.align([buffer for buffer in self.state.average.module.buffers() if self.statistics])
        self.score = validate(self.state.average.module, self.task, self.probe, self.group, self.layout)
        better = self.score > self.state.best[1]
        if better:
            self.state.best = [self.state.done, self.score]
        if self.group.first:
            self.run.log(step=self.state.done, **{self.task.measure: self.score})
            self.tracker.log(self.state.done, {self.task.measure: self.score})
            if self.tracker.on:
                self._show()
            if better:
                self._write("best.safetensors")

    def _save(self) -> None:
        with self.group.together():
            if self.group.first:
                self.run.save(self.state.done, self.state.saved(), self.recipe.keep)
                self.run.write_status("running", self.state.done)
        self.saved = self.state.done

    def _pause(self, why: str) -> None:
        with self.group.together():  # what started the processes may end the rest when the first of them is gone
            if self.group.first:
                self.run.write_status("paused", self.saved)
                self.run.log(event="paused", at=self.state.done, why=why)

    def _finish(self) -> None:
        with self.group.together():
            if self.group.first:
                self._write("weights.safetensors")
                self.tracker.weights(self.run.folder / "weights.safetensors", self.recipe.name)
                self.run.write_status("done", self.state.done)

    def _write(self, name: str) -> None:
        measure, rows = self.task.measure, self.run.read_log()
        card = {
            "recipe": dataclasses.asdict(self.recipe),
            "photos": self.examples.count,
            "held_out": self.held,
            "step": self.state.done,
            f"held_out_{measure}": [[row["step"], round(row[measure], 3)] for row in rows if measure in row],
        }
        save_weights(self.run.folder / name, self.state.average.module, self.recipe.model, self.recipe.model_args, card)

    @torch.no_grad()
    def _show(self, count: int = 4) -> None:
        """A few held-out images for the mirror: as they came, restored, clean."""
        batch = self.probe[:count].to(self.group.device, self.layout)
        if batch.target.shape[1] != 3:
            return
        self.state.average.module.eval()
        restored = self.state.average.module(batch.input, batch.noise_level).float()
        self.state.average.module.train()
        self.tracker.images(self.state.done, batch.input, restored, batch.target)
