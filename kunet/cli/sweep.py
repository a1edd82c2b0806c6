"""`kunet sweep`: many trainings over a space of a recipe's fields."""

import argparse
import sys
from collections import Counter
from pathlib import Path

from kunet.cli import verbs


def add(commands) -> None:
    """The subcommand."""
    p = commands.add_parser(
        "sweep", help="train a recipe over a space of its fields", allow_abbrev=False,
        description="Train a recipe many times over a space of its fields, a sweep file of Weights & Biases (see"
        " slurm/sweep.yaml); any number of workers share a folder. --FIELD VALUE changes any other field.",
    )  # fmt: skip
    p.set_defaults(run=sweep)
    p.add_argument("space", type=Path, metavar="SPACE", help="the .yaml file of the space")
    p.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="the sweep's folder; workers share it")
    p.add_argument("--show", action="store_true", help="print the trials so far, best first, and stop")
    p.add_argument("--recipe", help="as kunet train takes it")
    p.add_argument("--trials", type=int, metavar="N", help="trials of all workers together")
    p.add_argument(
        "--worker", type=int, default=0, metavar="I",
        help="this worker's own number, the same when it is started again, such as $SLURM_ARRAY_TASK_ID (default: 0)",
    )  # fmt: skip
    p.add_argument("--device", default="auto", help="cpu, cuda or auto (default)")
    p.add_argument("--quiet", action="store_true", help="no progress bars")


def sweep(args: argparse.Namespace) -> None:
    from kunet import sweep as sweeps

    if args.show:
        _show(sweeps.results(args.out))
        return
    for name in ("recipe", "trials"):
        if getattr(args, name) is None:
            raise ValueError(f"--{name} is missing; give it, or --show to see the trials so far")
    changes = verbs._fields(args.extra)
    device = verbs._device(args.device)
    best = sweeps.run(args.space, args.recipe, args.out, args.trials, args.worker, changes, device, not args.quiet)
    found = sweeps.results(args.out)
    own = [r["number"] for r in found["trials"] if r["state"] == "running" and r["worker"] == args.worker]
    if own:
        print(f"{args.out / f'trial-{own[0]:05d}'}: paused; the same command goes on with it", file=sys.stderr)
        raise SystemExit(verbs.PAUSED)
    count = Counter(row["state"] for row in found["trials"])
    print(f"{args.out}: {', '.join(f'{number} {state}' for state, number in sorted(count.items()))}")
    if best:
        parameters = ", ".join(f"{name} {_text(value)}" for name, value in best["parameters"].items())
        print(f"best: trial {best['number']}, {found['metric']} {_text(best['score'])}: {parameters}")


def _show(found: dict) -> None:
    from kunet.sweep import ranked

    names = list(dict.fromkeys(name for row in found["trials"] for name in row["parameters"]))
    table = [("trial", "state", "worker", found["metric"], "seconds", *names, "")]
    for row in ranked(found["trials"], found["goal"]):
        values = [row["number"], row["state"], row["worker"], row["score"], row["seconds"]]
        values += [row["parameters"].get(name) for name in names]
        table.append((*map(_text, values), row.get("reason", "")))
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]) - 1)]
    for row in table:
        print("  ".join([*(text.ljust(width) for text, width in zip(row, widths)), row[-1]]).rstrip())


def _text(value) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
