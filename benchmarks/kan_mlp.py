"""KAN against MLP at equal parameters and at equal multiply-adds, whatever the outcome.

Usage: python benchmarks/kan_mlp.py [--steps 4000] [--tasks composed rotated patches] [--out book/results/kan_mlp.json]

Tasks, scored in dB, more is better:
    composed: exp((sin(pi (x1^2 + x2^2)) + sin(pi (x3^2 + x4^2))) / 2) on [-1, 1]^4, made of one-dimensional parts
        (Z. Liu et al., "KAN", arXiv 2404.19756, section 3); 10 log10(variance / MSE);
    rotated: g1 + |g2| on [-1, 1]^6, fixed samples of an isotropic random field: no axis is special, nor is any
        direction, and there is a sharp crease along a curved surface; 10 log10(variance / MSE);
    patches: 8 x 8 gray of the bundled photos, sigma 50: from a noisy patch less its mean, the clean one less that mean;
        PSNR, unclipped. Validation: the lowest fifth of each training photo; test: the held-out photos. Noise is fixed.

Models, two equal hidden layers each: "kan" of KANLinear (G = 5, k = 3, SiLU base); "mlp_params" with SiLU, of as many
parameters within 2 %; "mlp_flops", of as many multiply-adds of one forward pass of one sample within 2 %.
Multiply-adds: a linear layer I -> O has I O. A KAN layer in local form has I O (k + 2), for the k + 1 splines that
are not zero and the base, and I (k (k + 1) + 1) for the values of those splines (k + 1 polynomials of degree k by
Horner's rule) and for x in units of cells. SiLU and the sums of biases are left out on both sides.

Training: Adam, cosine to zero, the same number of steps and, for one seed, the same batches. Each model takes that of
its task's rates which is best on the validation split in one run of TUNING_SEED; then SEEDS, which set the start and
the batches but not the data, are run at that rate and scored on the test split. HIDDEN_RANGE, the grid of the KAN's
inner layers, was chosen on validation splits before; the MLPs have no such setting.

Results: "validation" holds a score for each of "learning_rates", "scores" the test scores of SEEDS, "std" their sample
standard deviation, "seconds" the mean of training alone; "kan_minus_..." are paired differences; "equal_time" is
mlp_params anew, its steps multiplied by the KAN's seconds over its own: it alone depends on the machine's speed.
Its rate is the one tuned for the shorter runs; a large one can diverge over so many more steps, so a low score there
says that the rate does not suit, not that more time hurts.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kunet.benchmark import provenance
from kunet.data import bundled
from kunet.images import add_noise, to_tensor, unit
from kunet.kan import KANLinear

RESULTS = Path("book/results/kan_mlp.json")
SEEDS, TUNING_SEED, DATA_SEED = (0, 1, 2), 100, 2024
STEPS, BATCH, POINTS, SIGMA, SIDE = 4000, 256, 32768, 50, 8
GRID_SIZE, DEGREE, HIDDEN_RANGE = 5, 3, (-2.0, 2.0)


@dataclass(frozen=True)
class Task:
    """Splits of inputs (N, I) and targets (N, O), and what suits them. The score is 10 log10(power / MSE)."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    power: float = 1.0
    rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)
    kan_width: int = 16
    grid_range: tuple[float, float] = (-1.0, 1.0)


def composed(x: Tensor) -> Tensor:
    """(N, 4) -> (N, 1): squares, their sums, sines, their sum, an exponential."""
    return torch.exp(0.5 * torch.sin(math.pi * x.square().view(-1, 2, 2).sum(2)).sum(1, keepdim=True))


def rotated(x: Tensor, waves: int = 256) -> Tensor:
    """(N, 6) -> (N, 1): two fields of covariance exp(-|d|^2 / 2), each a sum of random waves; one is folded."""
    generator = torch.Generator().manual_seed(DATA_SEED)
    directions, phases = torch.randn(6, 2 * waves, generator=generator), torch.rand(2 * waves, generator=generator)
    fields = torch.cos(x @ directions + 2 * math.pi * phases).view(-1, 2, waves).sum(2) * math.sqrt(2 / waves)
    return fields[:, :1] + fields[:, 1:].abs()


def function_task(function: Callable[[Tensor], Tensor], variables: int) -> Task:
    """Uniform points; values are standardised by the training split's mean and deviation."""
    x = 2 * torch.rand(2 * POINTS, variables, generator=torch.Generator().manual_seed(DATA_SEED)) - 1
    y, parts = function(x), [POINTS, POINTS // 4, 3 * POINTS // 4]
    y = (y - y[:POINTS].mean()) / y[:POINTS].std()
    return Task(*zip(x.split(parts), y.split(parts)))


def patches_of(images: list[Tensor], stride: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images (1, H, W) -> noisy and clean patches (N, 64), both less the noisy mean, in units of sigma."""
    clean = torch.cat([F.unfold(image[None], SIDE, stride=stride)[0].T for image in images])
    noisy = add_noise(clean[None], SIGMA, torch.Generator().manual_seed(seed))[0]
    mean = noisy.mean(1, keepdim=True)
    return (noisy - mean) / unit(SIGMA), (clean - mean) / unit(SIGMA)


def patches_task() -> Task:
    """Training patches overlap; those of the other splits do not."""
    photos, heldout = ([to_tensor(p).mean(0, keepdim=True) for p in bundled(s).values()] for s in ("train", "heldout"))
    upper, lower = zip(*(photo.split([h := photo.shape[1] * 4 // 5, photo.shape[1] - h], 1) for photo in photos))
    splits = (patches_of(*part, DATA_SEED + i) for i, part in enumerate([(upper, 2), (lower, SIDE), (heldout, SIDE)]))
    return Task(*splits, unit(SIGMA) ** -2, rates=(0.001, 0.003, 0.01, 0.03), kan_width=24, grid_range=(-3.0, 3.0))


TASKS = {"composed": lambda: function_task(composed, 4), "rotated": lambda: function_task(rotated, 6)}
TASKS |= {"patches": patches_task}


def network(name: str, sizes: list[int], task: Task) -> nn.Module:
    """KANLinear layers alone, whose edges are the nonlinearities; or linear layers with SiLU between."""
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        if name == "kan":
            layers += [KANLinear(inputs, outputs, GRID_SIZE, DEGREE, HIDDEN_RANGE if i else task.grid_range)]
        else:
            layers += [nn.SiLU()] * (i > 0) + [nn.Linear(inputs, outputs)]
    return nn.Sequential(*layers)


def parameters(name: str, sizes: list[int], task: Task) -> int:
    """Learnable numbers of a network."""
    return sum(p.numel() for p in network(name, sizes, task).parameters())


def multiply_adds(name: str, sizes: list[int], task: Task) -> int:
    """Of one forward pass of one sample, counted as this module's docstring says."""
    an_edge, an_input = (DEGREE + 2, DEGREE * (DEGREE + 1) + 1) if name == "kan" else (1, 0)
    return sum(i * (o * an_edge + an_input) for i, o in pairwise(sizes))


def all_sizes(task: Task) -> dict[str, list[int]]:
    """Each model's layers: the KAN's are given, the MLPs' are those whose cost is nearest to the KAN's."""
    sizes = lambda width: [task.train[0].shape[1], width, width, task.train[1].shape[1]]
    found = {"kan": sizes(task.kan_width)}
    for name, cost in (("mlp_params", parameters), ("mlp_flops", multiply_adds)):
        target = cost("kan", found["kan"], task)
        found[name] = min(map(sizes, range(1, math.isqrt(target))), key=lambda s: abs(cost(name, s, task) - target))
    return found


def trained(name: str, sizes: list[int], task: Task, lr: float, seed: int, steps: int) -> tuple[nn.Module, float]:
    """The network after its last step, and the seconds that the steps took."""
    torch.manual_seed(seed)
    model, generator = network(name, sizes, task), torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    start = time.perf_counter()
    for _ in range(steps):
        rows = torch.randint(len(task.train[0]), (BATCH,), generator=generator)
        optimiser.zero_grad()
        F.mse_loss(model(task.train[0][rows]), task.train[1][rows]).backward()
        optimiser.step()
        schedule.step()
    return model, time.perf_counter() - start


@torch.no_grad()
def scored(model: nn.Module, task: Task, split: tuple[Tensor, Tensor]) -> float:
    """The score on a split; -100 stands for a run that has diverged."""
    decibels = 10 * torch.log10(task.power / F.mse_loss(model(split[0]), split[1]))
    return round(float(decibels.nan_to_num(nan=-100.0).clamp(min=-100)), 3)


def spread(scores: list[float]) -> dict:
    """Scores over SEEDS, their mean and sample standard deviation."""
    mean, std = statistics.mean(scores), statistics.stdev(scores)
    return {"scores": [round(s, 3) for s in scores], "mean": round(mean, 3), "std": round(std, 3)}


def measured(task: Task, rows: dict[str, dict], steps: int) -> dict[str, dict]:
    """Test scores and seconds over SEEDS; the models take turns, so that the machine's drift is shared."""
    scores, seconds = {name: [] for name in rows}, dict.fromkeys(rows, 0.0)
    for seed in SEEDS:
        for name, row in rows.items():
            model, taken = trained(name, row["sizes"], task, row["lr"], seed, steps)
            scores[name].append(scored(model, task, task.test))
            seconds[name] += taken / len(SEEDS)
    return {name: {**spread(scores[name]), "seconds": round(seconds[name], 3)} for name in rows}


def compare(task: Task, steps: int) -> dict:
    """All models on one task: rates by the validation split, scores on the test split, paired differences."""
    rows: dict[str, dict] = {}
    for name, sizes in all_sizes(task).items():
        tuned = [trained(name, sizes, task, lr, TUNING_SEED, steps)[0] for lr in task.rates]
        validation = [scored(model, task, task.validation) for model in tuned]
        costs = {"parameters": parameters(name, sizes, task), "multiply_adds": multiply_adds(name, sizes, task)}
        rows[name] = {"sizes": sizes, **costs, "lr": task.rates[validation.index(max(validation))]}
        rows[name]["validation"] = validation
    for name, row in measured(task, rows, steps).items():
        rows[name] |= row
    minus = lambda row: spread([a - b for a, b in zip(rows["kan"]["scores"], row["scores"])])
    longer = round(steps * rows["kan"]["seconds"] / rows["mlp_params"]["seconds"])
    again = measured(task, {"mlp_params": rows["mlp_params"]}, longer)["mlp_params"]
    for name in ("mlp_params", "mlp_flops"):
        rows[f"kan_minus_{name}"] = minus(rows[name])
    rows["equal_time"] = {"steps": longer, **again, "kan_minus": minus(again)}
    return {"learning_rates": list(task.rates), **rows}


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(words)
    if args.steps < 1 or (args.out == RESULTS and (args.steps, args.tasks) != (STEPS, list(TASKS))):
        parser.error("--steps must be 1 or more; other steps or tasks need another --out, so that no page quotes them")
    command = f"python benchmarks/kan_mlp.py --steps {args.steps} --tasks {' '.join(args.tasks)}"
    results = provenance(command) | {"steps": args.steps, "batch": BATCH, "seeds": list(SEEDS), "unit": "dB"}
    results["counted"] = "multiply-adds: linear I O; KAN I O (k + 2) + I (k (k + 1) + 1); SiLU and biases left out"
    for name in args.tasks:
        results[name] = compare(TASKS[name](), args.steps)
        means = [f"{key} {row['mean']} +- {row['std']}" for key, row in results[name].items() if "mean" in row]
        print(f"{name} (dB): {', '.join(means)}", flush=True)
    args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
