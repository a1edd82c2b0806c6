"""Many short trainings under one budget of time, two at a time, each on one core: what the comparisons here share.

A trial is a recipe, seconds of processor time to train for (or "steps"), and folders to score on; with "curve": N it
validates N times on the way, and with "device": "cuda" it runs on the GPU, one trial at a time, by the clock's time.
How many steps fit is measured before: the trial's own steps are timed for a few seconds, and the learning rate then
runs its whole course over that many. Processor time of one thread, not the clock's, so that other work on the machine
costs a trial little. Finished trials lie in a folder and are not run again, so a comparison may be stopped and
continued.

Usage (by the other benchmarks): python benchmarks/trials.py TRIAL_FOLDER
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils.data import default_collate

from kunet import evaluate, recipes
from kunet.data import Crops
from kunet.denoise import Denoiser
from kunet.restore import Network
from kunet.train import build, plan, train

WORKERS, CALIBRATION = 2, 0.06  # trials at a time; share of the budget spent on timing steps


def text(trial: dict) -> str:
    """A trial as its folder holds it."""
    return json.dumps(trial, indent=1, sort_keys=True)


def finished(trial: dict, place: Path) -> bool:
    """Whether the result of just this trial lies in its folder."""
    return (place / "result.json").exists() and (place / "trial.json").read_text() == text(trial)


def run_all(trials: dict[str, dict], folder: Path, workers: int = WORKERS) -> dict[str, dict]:
    """name -> result of every trial {"recipe": ..., "seconds": ..., "test": [...]}; those that are done are read.

    A trial of a stated number of steps that was stopped goes on from its last checkpoint.
    """
    workers = 1 if any(trial.get("device", "cpu") != "cpu" for trial in trials.values()) else workers

    def one(name: str) -> dict:
        place, done = folder / name, folder / name / "result.json"
        place.mkdir(parents=True, exist_ok=True)
        if not finished(trials[name], place):
            (place / "trial.json").write_text(text(trials[name]))
            done.unlink(missing_ok=True)
            words = [sys.executable, __file__, str(place)]
            result = subprocess.run(words, capture_output=True, text=True)
            if result.returncode:
                raise RuntimeError(f"trial {name} failed:\n{result.stderr[-2000:]}")
        print(f"{name}: {done.read_text()[:200]}".replace("\n", " "), flush=True)
        return json.loads(done.read_text())

    with ThreadPoolExecutor(workers) as pool:
        return dict(zip(trials, pool.map(one, trials)))


def now(device: str) -> float:
    """Processor seconds of this process; of a GPU the clock's, once it is done."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def seconds_a_step(recipe: recipes.Recipe, examples: Sequence, budget: float, device: str = "cpu") -> float:
    """Seconds that a training step takes, everything in: the median of as many as fit the budget."""
    torch.manual_seed(recipe.seed)
    model, task = build(recipe)
    model = model.to(device, memory_format=torch.channels_last).train()
    optimizer = plan.optimizer(model, recipe)
    phase, taken = recipe.phases[0], []
    while len(taken) < 4 or sum(taken) < budget:
        start, first = now(device), len(taken) * phase.batch
        crops = Crops(examples, phase.patch, first + phase.batch, recipe.seed)
        drawn = default_collate([crops[first + i] for i in range(phase.batch)])
        batch = task.batch(drawn, torch.Generator().manual_seed(len(taken))).to(device, torch.channels_last)
        with torch.autocast(device, torch.bfloat16, enabled=recipe.precision == "bf16"):
            loss = task.loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad()
        taken.append(now(device) - start)
    return statistics.median(taken[1:])  # the first one warms up


def run(folder: Path) -> dict:
    """Train and score the trial of a folder."""
    trial = json.loads((folder / "trial.json").read_text())
    device = trial.get("device", "cpu")
    threads = 1 if device == "cpu" else 0
    if threads:
        torch.set_num_threads(threads)
    recipe = recipes.build(str(folder), trial["recipe"] | {"steps": 1, "threads": threads})
    model, task = build(recipe)
    start = now(device)
    examples, held = task.load(recipe.data, recipe.held_out)
    loading = now(device) - start
    step = seconds_a_step(recipe, examples, CALIBRATION * trial["seconds"], device)
    steps = trial.get("steps") or max(10, round(trial["seconds"] / step))
    recipe = recipes.build(
        str(folder),
        {"warmup": max(1, steps // 20)}
        | trial["recipe"]
        | {"steps": steps, "threads": threads, "save_every": -(-steps // trial.get("curve", 1))},
    )
    start = now(device)
    run = train(recipe, folder / f"run-{steps}", device, progress=False)
    taken = now(device) - start - loading
    if run.status()[0] != "done":
        raise SystemExit(f"{run.folder}: was stopped; the same command goes on")
    weights = run.folder / "weights.safetensors"
    log = run.read_log()
    losses = [row["loss"] for row in log if "loss" in row]
    validation = [[row["step"], round(row[task.measure], 3)] for row in log if task.measure in row]
    result = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": steps,
        "train_seconds": round(taken, 1),
        "seconds_a_step": round(step, 5),
        "last_loss": round(losses[-1], 4),
        "validation": validation,
    }
    if recipe.task != "denoise":
        network, _ = Network.open(str(weights), (recipe.task,), 8e9, device)
        return result | {"held_out": evaluate.means(evaluate.score_examples(network.run, task, held))}
    denoiser = Denoiser.load(str(weights), memory=8e9, device=device)
    for source in trial["test"]:
        scores = evaluate.evaluate(denoiser, source, trial.get("sigma", 50), progress=False)
        result[Path(source).name] = {k: v for k, v in evaluate.summary(scores).items() if k != "rows"} | {
            "seconds_a_megapixel": round(statistics.median(s.seconds / (s.width * s.height / 1e6) for s in scores), 3),
            "psnr_each": [round(s.psnr, 3) for s in scores],
        }
    return result


if __name__ == "__main__":
    place = Path(sys.argv[1])
    (place / "result.json").write_text(json.dumps(run(place), indent=1) + "\n")
