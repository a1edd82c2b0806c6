"""What each subcommand does with its arguments."""

import dataclasses
import json
import os
import sys
from pathlib import Path

import yaml

from kunet import memory, recipes

PAUSED = 75
"""Exit code of a training that was asked to stop, and did with a checkpoint (EX_TEMPFAIL: try again later)."""


def fail(message: str, prog: str = "kunet") -> None:
    """One line on stderr, exit 2."""
    print(f"{prog}: error: {' '.join(message.split())}", file=sys.stderr)
    leave(2)


def leave(code: int) -> None:
    """End with an exit code; at once where NCCL still holds this process together with others."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        sys.stderr.flush()
        os._exit(code)
    raise SystemExit(code) from None


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise ValueError(f"--device is {name!r}; it must be cpu, cuda or auto")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device is cuda, and torch sees no CUDA GPU here; use cpu or auto")
    return name


def _denoiser(args):
    from kunet.denoise import Denoiser

    return Denoiser.load(args.weights, *_options(args))


def _options(args) -> tuple[float, str, str, int]:
    """How a network is to run."""
    device = _device(args.device)
    room = memory.working() if device == "cpu" else memory.LEAST
    return args.memory * 1e9 if args.memory else room, device, args.precision, args.ensemble


def denoise(args) -> None:
    from tqdm.auto import tqdm

    from kunet.denoise import AUTO, SUFFIX, check_level, denoise_paths
    from kunet.folders import plan

    check_level(args.sigma)
    if not plan(args.inputs, args.output, args.existing, SUFFIX):  # a wrong request costs no loading of weights
        return
    denoiser = _denoiser(args)
    low, high = denoiser.trained_sigma
    say = lambda line: tqdm.write(line, file=sys.stderr)  # not through a bar
    notes = [f"kunet denoise: note: {args.weights} was trained for sigma {low:g} to {high:g}"]  # said once

    def check_trained(sigma: float) -> None:
        if not low <= sigma <= high and notes:
            say(notes.pop())

    def told(source: Path, sigma: float) -> None:
        say(f"{source}: sigma {sigma:.1f}")
        check_trained(sigma)

    if args.sigma != AUTO:
        check_trained(args.sigma)
    _report(denoise_paths(args.inputs, args.output, args.sigma, denoiser, args.existing, not args.quiet, told), args)


def restore(args) -> None:
    from kunet.restore import Restorer

    _photos(args, Restorer, "_restored")


def segment(args) -> None:
    from kunet.restore import Segmenter

    _photos(args, Segmenter, "_mask", "P")


def _photos(args, kind, suffix: str, mode: str = "") -> None:
    """Files and folders through a network that needs no more than the photo."""
    from kunet import folders

    if not folders.plan(args.inputs, args.output, args.existing, suffix, mode):
        return
    network = kind.load(args.weights, *_options(args))
    photos = (args.inputs, args.output, network.photo, network.steps, suffix)
    _report(folders.run(*photos, args.existing, not args.quiet, mode), args)


def _report(failures: list[str], args) -> None:
    if failures:
        what = failures[0] if len(failures) == 1 else f"{len(failures)} images failed: " + " | ".join(failures)
        fail(what, f"kunet {args.command}")


def train(args) -> None:
    from kunet import distributed
    from kunet import train as training
    from kunet.runs import Run, track

    recipe = recipes.load(args.recipe, _fields(args.extra))
    model, task = training.build(recipe)
    out = args.out or Path("runs") / recipe.name
    device = _device(args.device)
    track.check(args.track)
    if args.dry_run:
        if out.exists():
            Run(out).check_free()
        photos, held = task.load(recipe.data, recipe.held_out)
        print(yaml.safe_dump(json.loads(json.dumps(dataclasses.asdict(recipe))), sort_keys=False), end="")
        count = sum(p.numel() for p in model.parameters())
        print(
            f"# {count:,} parameters; {len(photos)} examples to train on, {len(held)} held out; on {device}, into {out}"
        )
        return
    run = training.train(recipe, out, device, not args.quiet, tracking=args.track, timeout=args.timeout)
    word, step = run.status()
    here = distributed.place()
    if here.rank == 0 and word == "done":
        print(f"{run.folder / 'weights.safetensors'}: done after {recipe.steps} steps")
    if word == "paused":
        if here.rank == 0:
            print(f"{run.folder}: paused at step {step} of {recipe.steps}; the same command goes on", file=sys.stderr)
        if here.size == 1:  # torchrun and srun take it for a fault, and end or restart the other processes
            raise SystemExit(PAUSED)


def _fields(extra: list[str]) -> dict:
    """--batch-size 4 or --batch-size=4 -> {"batch_size": 4}; values are YAML."""
    changes, rest = {}, list(extra)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--"):
            raise ValueError(f"unexpected argument {flag!r}; fields are given as --FIELD VALUE")
        name, given, value = flag[2:].partition("=")
        if not given:
            if not rest:
                raise ValueError(f"{flag} has no value; give --FIELD VALUE")
            value = rest.pop(0)
        try:
            changes[name.replace("-", "_")] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ValueError(f"{flag}: {value!r} is not a YAML value; quote it") from None
    return changes


def evaluate(args) -> None:
    from kunet import evaluate as scoring
    from kunet import tasks
    from kunet.benchmark import provenance
    from kunet.restore import Network, task_of

    _check_json(args.json)
    if not 0 <= args.seed < 2**63:
        raise ValueError(f"--seed is {args.seed}; it must be from 0 to {2**63 - 1}")
    trained, fields = task_of(args.weights)
    asked, protocol = args.task, args.protocol
    told = trained == "denoise" and not fields.get("blind", False)
    chosen = {source: scoring.task_for(source, trained, told, asked) for source in args.sources}
    scoring.protocol_named(protocol)
    if protocol != "literature" and trained == "segment":
        raise ValueError(f"--protocol {protocol}: is for restored images; {args.weights} segment")
    if trained == "denoise":
        network = _denoiser(args)
    else:
        network, _ = Network.open(args.weights, (trained,), *_options(args))
    run = (lambda x, level: network(x, args.sigma)) if told else network.run
    options, how = (args.seed, not args.quiet, protocol), f", {protocol} protocol" * (protocol != "literature")
    results = {}
    for source, task in chosen.items():
        if task == "denoise":
            row = scoring.summary(scoring.evaluate(network, source, args.sigma, args.noise, *options))
            print(
                f"{source}: {row['images']} images, sigma {args.sigma:g} ({args.noise} noise){how}:"
                f" {row['psnr']:.2f} dB, SSIM {row['ssim']:.4f}, {row['seconds']:.3f} s an image"
            )
            if asked is None and scoring.has_pairs(source):
                note = f"{source} has pairs, and noise was added to its clean images; --task pairs takes the pairs"
                print(f"kunet evaluate: note: {note}", file=sys.stderr)
        else:
            rows = scoring.score_source(run, tasks.make(task, fields if task == trained else {}), source, *options)
            row = scoring.means(rows) | {"rows": rows}
            what = task if task == trained else f"its pairs, restored as {trained}"
            what += f", told sigma {args.sigma:g}" * told + how
            measures = ", ".join(f"{name} {row[name]:.4g}" for name in rows[0])
            print(f"{source}: {row['images']} images, {what}: {measures}")
        results[source] = {"task": task} | row
    facts = {"weights": args.weights, "seed": args.seed, "task": trained, "task_args": fields, "protocol": protocol}
    facts |= {"ensemble": args.ensemble}
    facts |= {"sigma": args.sigma, "noise": args.noise} if trained == "denoise" else {}
    _write_json(args.json, provenance() | facts | {"results": results})


def benchmark(args) -> None:
    from kunet import benchmark as timing
    from kunet.images import MAX_PIXELS

    sizes = []
    for text in args.sizes:
        width, _, height = text.partition("x")
        if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
            raise ValueError(f"--sizes: {text!r} is no size; give WIDTHxHEIGHT, such as 2040x1356")
        if int(width) * int(height) > MAX_PIXELS:
            raise ValueError(f"--sizes: {text} is more than the {MAX_PIXELS / 1e6:.0f} million pixels that are read")
        sizes.append((int(width), int(height)))
    _check_json(args.json)
    if args.repeats < 1:
        raise ValueError(f"--repeats is {args.repeats}; it must be 1 or more")
    rows = timing.benchmark(_denoiser(args), sizes, args.repeats)
    print(timing.machine())
    for row in rows:
        median = sorted(row["seconds"])[len(row["seconds"]) // 2]
        how = f"in {row['parts']} {row['how']}" if row["parts"] > 1 else row["how"]
        how += f", {args.ensemble} times" * (args.ensemble > 1)
        print(
            f"{row['width']}x{row['height']}: {median:.3f} s ({min(row['seconds']):.3f} to {max(row['seconds']):.3f}),"
            f" {how}, peak memory {row['peak_mb']} MB (+{row['added_mb']})"
        )
    _write_json(args.json, timing.provenance() | {"weights": args.weights, "ensemble": args.ensemble, "rows": rows})


def export(args) -> None:
    from kunet import export as exporting

    found = exporting.export(args.weights, args.output, args.force)
    size = args.output.stat().st_size / 1e6
    print(f"{args.output}: {size:.1f} MB, at most {found:.1g} from {args.weights} at the sizes tried")


def notebook(args) -> None:
    from kunet import notebook as jobs

    path = jobs.find(args.path)
    if args.list:
        for parameter in jobs.parameters(path):
            print(parameter)
        return
    given = jobs.read_file(args.file) if args.file else {}
    given |= {name: yaml.safe_load(value) for name, value in args.p}
    output = args.output or Path("runs") / path.name
    jobs.run(path, output, given, args.quick, not args.quiet)
    print(output)


def _check_json(path: Path | None) -> None:
    """Before the work whose result it is to hold."""
    from kunet.images import check_writable

    if path is not None:
        if path.suffix.lower() != ".json" or path.is_dir():
            raise ValueError(f"{path}: --json writes one .json file; give such a name")
        if not path.parent.is_dir():
            raise ValueError(f"{path}: its folder {path.parent} does not exist; make it first")
        if path.exists() and not _measured(path):
            raise ValueError(f"{path}: exists, and is no result of an earlier measurement; give another --json")
        check_writable(path)


def _measured(path: Path) -> bool:
    """Whether a file is what ``_write_json`` wrote of a measurement."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"commit", "machine", "date"} <= set(content)


def _write_json(path: Path | None, content: dict) -> None:
    from kunet.runs import write_whole

    if path is not None:
        write_whole(path, lambda temporary: temporary.write_text(json.dumps(content, indent=1) + "\n"))
