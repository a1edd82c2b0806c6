"""Training: one readable loop for every model and task, resumable bit for bit.

All randomness is a function of (seed, step): the crops, the noise and (reseeded each step) dropout. So a
checkpoint holds no random state, and more processes would only split each step's crops among them.
Notebook: notebooks/09_kunet.ipynb.
"""

import dataclasses
import math
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import default_collate
from tqdm.auto import tqdm

from kunet import models, tasks
from kunet.data import Crops
from kunet.images import to_tensor
from kunet.kan import training as kan
from kunet.recipes import Phase, Recipe
from kunet.runs import Run, load_weights, save_weights
from kunet.weights import find

MAY_CHANGE = ("steps", "log_every", "save_every", "threads", "compile")
"""Fields that a continued run may be given anew: the rest would make it another run."""


def build(recipe: Recipe) -> tuple[nn.Module, Any]:
    """(model, task) of a recipe, the model with its ``start`` weights.

    Raises: ValueError for an unknown name or argument, a start that is another model, KAN options without KAN layers.
    """
    try:
        model, task = models.make(recipe.model, recipe.model_args), tasks.make(recipe.task, recipe.task_args)
    except ValueError as error:
        raise ValueError(f"recipe {recipe.name!r}: {error}") from None
    if not kan.layers(model) and (recipe.extend or recipe.prune or recipe.control_l1 or recipe.control_l2):
        raise ValueError(
            f"recipe {recipe.name!r}: {recipe.model} has no KAN layer; leave out extend, prune, control_l1, control_l2"
        )
    if recipe.start:
        try:
            model.load_state_dict(load_weights(find(recipe.start))[0].state_dict())
        except RuntimeError as error:
            what = " ".join(str(error).split())[:160]
            raise ValueError(f"recipe {recipe.name!r}: start {recipe.start} holds another model ({what})") from None
    return model, task


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, a plateau, and a fall to 0 as 1 - sqrt(progress) over the last ``decay`` share.

    The plateau does not depend on the number of steps, so a run can be made shorter or longer while it is on it.
    Source: A. Hagele et al., "Scaling Laws and Compute-Optimal Training", arXiv 2405.18392, section 3.
    """
    rise = min(1.0, (step + 1) / max(1, recipe.warmup))
    start = recipe.steps * (1 - recipe.decay)
    fall = 1 - math.sqrt(max(0.0, step - start) / max(1e-9, recipe.steps - start))
    return recipe.lr * min(rise, fall)


def schedule(recipe: Recipe) -> Iterator[tuple[int, Phase, int]]:
    """(step, its phase, index of its first crop) for every step."""
    ends, end = [], 0.0
    for phase in recipe.phases:
        end += phase.share
        ends.append(round(end * recipe.steps))
    ends[-1] = recipe.steps
    first = 0
    for step in range(recipe.steps):
        phase = next(p for p, end in zip(recipe.phases, ends) if step < end)
        yield step, phase, first
        first += phase.batch


def train(
    recipe: Recipe, folder: str | Path, device: str = "cpu", progress: bool = True, stop_after: int | None = None
) -> Run:
    """Run a recipe in a folder; a folder that was left unfinished is continued.

    Args:
        device: of torch, "cpu" or "cuda".
        progress: show a bar with loss, PSNR, crops a second and time left.
        stop_after: stop at this step as if interrupted, with a checkpoint (the run stays unfinished).
    Returns: the run; when it is done its folder holds weights.safetensors.
    Raises: ValueError for impossible recipes; FloatingPointError when the loss is not finite (the
        last checkpoint stays).
    """
    torch.manual_seed(recipe.seed)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    model, task = build(recipe)
    if (
        recipe.compile
        and device == "cpu"
        and not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++")))
    ):
        raise ValueError(
            f"recipe {recipe.name!r}: compile needs a C++ compiler, and there is none; give --compile false"
        )
    examples, held = task.load(recipe.data, recipe.held_out, progress)
    run = Run(folder)
    layout = torch.channels_last
    model = model.to(device, memory_format=layout).train()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema))
    optimizer = torch.optim.AdamW(
        model.parameters(), recipe.lr, recipe.betas, weight_decay=recipe.weight_decay, fused=True
    )
    begin = 0
    if state := run.load():
        fixed = {"steps"} if recipe.extend or recipe.prune else set()  # which happen at shares of the steps
        run.check_recipe(dataclasses.asdict(recipe), may_change=tuple(set(MAY_CHANGE) - fixed))
        begin = _restore(state, model, average, optimizer, recipe, run)
    run.write_recipe(dataclasses.asdict(recipe))
    network = torch.compile(model, dynamic=False) if recipe.compile else model  # one graph a phase
    probe = _probe(held, task)
    bar = tqdm(total=recipe.steps, initial=begin, desc=recipe.name, unit="step", disable=not progress)
    losses, score, since = [], float("nan"), time.perf_counter()
    last = min(recipe.steps, stop_after or recipe.steps)
    for step, phase, first in schedule(recipe):
        if step < begin:
            continue
        if step >= last:
            break
        crops = Crops(examples, phase.patch, first + phase.batch, recipe.seed)
        drawn = default_collate([crops[first + i] for i in range(phase.batch)])
        batch = task.batch(drawn, torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)).to(device, layout)
        torch.manual_seed(recipe.seed * 1_000_003 + step)  # dropout
        _change_kans(recipe, step, model, average.module, optimizer, batch)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            loss = task.loss(network, batch) + kan.penalty(model, recipe.control_l1, recipe.control_l2)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]) or not math.isfinite(float(norm)):
            raise FloatingPointError(
                f"{run.folder}: loss {losses[-1]}, gradient norm {float(norm)} at step {step}; lower lr and continue"
            )
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(model)
        done = step + 1
        bar.update()
        if done % recipe.log_every == 0 or done == last:
            seconds, since = time.perf_counter() - since, time.perf_counter()
            rate = len(losses) * phase.batch / seconds
            run.log(
                step=done,
                loss=sum(losses) / len(losses),
                lr=learning_rate(recipe, step),
                patch=phase.patch,
                crops_per_s=round(rate, 1),
            )
            bar.set_postfix(
                {"loss": f"{sum(losses) / len(losses):.3f}", task.measure: f"{score:.4g}", "crops_s": f"{rate:.0f}"},
                refresh=False,
            )
            losses = []
        if done % recipe.save_every == 0 or done == last:
            if probe is not None:
                score = validate(average.module, task, probe.to(device, layout))
                run.log(step=done, **{task.measure: score})
            run.save(
                {
                    "step": done,
                    "model": model.state_dict(),
                    "average": average.state_dict(),
                    "optimizer": optimizer.state_dict(),
                }
            )
            since = time.perf_counter()
    bar.close()
    if last == recipe.steps:
        history = [[row["step"], round(row[task.measure], 3)] for row in run.read_log() if task.measure in row]
        card = {
            "recipe": dataclasses.asdict(recipe),
            "photos": len(examples),
            "held_out": len(held),
            f"held_out_{task.measure}": history,
        }
        save_weights(run.folder / "weights.safetensors", average.module, recipe.model, recipe.model_args, card)
    return run


@torch.no_grad()
def validate(model: nn.Module, task, batch) -> float:
    """Mean score over a batch, one image at a time, in evaluation mode."""
    training = model.training
    model.eval()
    pairs = zip(batch.input.split(1), batch.noise_level.split(1), batch.target.split(1))
    scores = [float(task.score(model, type(batch)(*pair)).mean()) for pair in pairs]
    model.train(training)
    return sum(scores) / len(scores)


def _probe(held: list, task, size: int = 256):
    """The validation batch: the centre of each held-out photo, with fixed noise; None without such photos."""
    if not held:
        return None
    side = min(size, *(min(photo.shape[:2]) for photo in held))
    corner = lambda photo: tuple((length - side) // 2 for length in photo.shape[:2])
    crops = [to_tensor(photo[y : y + side, x : x + side]) for photo in held for y, x in [corner(photo)]]
    return task.probe(torch.stack(crops), seed=0)


def _change_kans(recipe: Recipe, step: int, model: nn.Module, average: nn.Module, optimizer, batch) -> None:
    """Grid extension and pruning that fall before this step, on the weights and on their average alike.

    A checkpoint holds grids and masks with the weights, and the batch is a function of the step, so a continued run
    does exactly what an unbroken one does.
    """
    for event in recipe.extend:
        if step == round(event.at * recipe.steps):
            kan.extend(model, event.grid_size, optimizer)
            kan.extend(average, event.grid_size)
    for event in recipe.prune:
        if step == round(event.at * recipe.steps):
            kan.mask_weakest(model, average, event.share, lambda: model(batch.input, batch.noise_level))


def _restore(state: dict, model: nn.Module, average: nn.Module, optimizer, recipe: Recipe, run: Run) -> int:
    if state["step"] > recipe.steps:
        raise ValueError(
            f"{run.folder}: is at step {state['step']} of {recipe.steps}; give more --steps, or another --out"
        )
    try:
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError(
            f"{run.folder}: holds another model ({' '.join(str(error).split())[:160]}); choose another --out"
        ) from None
    return state["step"]
