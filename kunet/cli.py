"""The command line: ``kunet denoise | train | evaluate | benchmark | notebook``, the same as ``python -m kunet``."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import yaml

from kunet import __version__, recipes
from kunet.weights import DEFAULT


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line and exit 2."""

    def error(self, message: str):
        fail(f"{message}; see {self.prog} --help", self.prog)


def fail(message: str, prog: str = "kunet") -> None:
    """One line on stderr, exit 2."""
    print(f"{prog}: error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


def main(argv: list[str] | None = None) -> None:
    """Entry point. Exit 0 when all is done, 2 after a mistake in the request or the files, 130 when interrupted."""
    parser = _parser()
    args, extra = parser.parse_known_args(argv)
    if extra and args.run is not _train:
        parser.error(f"unknown argument {extra[0]!r}{recipes.nearest(extra[0], list(vars(args)))}")
    args.extra = extra
    try:
        args.run(args)
    except (ValueError, FloatingPointError) as error:
        fail(str(error), f"kunet {args.command}")
    except yaml.YAMLError as error:
        fail(f"not a YAML value ({error})", f"kunet {args.command}")
    except ModuleNotFoundError as error:
        fail(f"the package {error.name} is not installed; pip install 'kunet[book]'", f"kunet {args.command}")
    except MemoryError:
        fail("not enough memory; give a smaller --memory, or a smaller batch", f"kunet {args.command}")
    except OSError as error:
        fail(f"{error.filename or 'system'}: {error.strerror or error}", f"kunet {args.command}")
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _parser() -> Parser:
    parser = Parser(prog="kunet", description="Kolmogorov-Arnold networks for real images.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"kunet {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    def command(name, run, help, description, **kwargs):
        sub = commands.add_parser(name, help=help, description=description, allow_abbrev=False, **kwargs)
        sub.set_defaults(run=run)
        return sub

    p = command(
        "denoise", _denoise, "remove noise from photos", "Remove noise from photos, one by one or whole folders."
    )
    p.add_argument("inputs", nargs="+", type=Path, metavar="PHOTO", help="image files, or folders of them")
    p.add_argument("-o", "--output", type=Path, help="file or folder to write; default: PHOTO_denoised.png beside each")
    p.add_argument(
        "--sigma", type=float, default=50, help="strength of the noise in 8-bit levels, 0 to 255 (default: 50)"
    )
    _add_model(p)
    p.add_argument("--force", action="store_true", help="overwrite files that exist")
    p.add_argument("--quiet", action="store_true", help="no progress bar")

    p = command(
        "train", _train, "train a recipe", "Train a recipe; --FIELD VALUE changes any field of it.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="fields:\n" + "\n".join(f"  --{n.replace('_', '-'):15s} {t}" for n, t in recipes.describe().items()),
    )  # fmt: skip
    p.add_argument("--recipe", required=True, help=f"one of {', '.join(recipes.names())}, or a .yaml file")
    p.add_argument("--out", type=Path, help="the run's folder, continued if it is there (default: runs/NAME)")
    p.add_argument("--device", default="auto", help="cpu, cuda or auto (default)")
    p.add_argument("--dry-run", action="store_true", help="check everything, print the recipe, train nothing")
    p.add_argument("--quiet", action="store_true", help="no progress bar")

    p = command(
        "evaluate",
        _evaluate,
        "score weights on images",
        "Add noise to clean images, denoise them, report PSNR and SSIM.",
    )
    p.add_argument(
        "sources",
        nargs="*",
        default=["bundled"],
        metavar="FOLDER",
        help='folders of clean images (default: "bundled", the held-out photos)',
    )
    p.add_argument("--sigma", type=float, default=50, help="in 8-bit levels (default: 50)")
    p.add_argument(
        "--noise",
        default="float",
        help='"float" (the literature\'s, default) or "u8" (clipped and rounded, as files are)',
    )
    p.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    p.add_argument("--json", type=Path, help="also write every image's scores to this file")
    _add_model(p)
    p.add_argument("--quiet", action="store_true", help="no progress bar")

    p = command(
        "benchmark", _benchmark, "time weights on this machine", "Seconds and peak memory for images of given sizes."
    )
    p.add_argument(
        "--sizes", nargs="+", default=["512x512", "1024x1024", "2040x1356"], metavar="WxH", help="image sizes"
    )
    p.add_argument("--repeats", type=int, default=3, help="timed runs of each, after one warm-up (default: 3)")
    p.add_argument("--json", type=Path, help="also write the rows to this file")
    _add_model(p)

    p = command(
        "notebook", _notebook, "run a notebook as a job", "Run a notebook with checked parameters through papermill."
    )
    p.add_argument("path", type=Path, metavar="NOTEBOOK", help="the .ipynb file")
    p.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="set a parameter (repeatable)"
    )
    p.add_argument("-f", "--file", type=Path, help="a YAML file of parameters; -p wins over it")
    p.add_argument("-o", "--output", type=Path, help="the executed notebook (default: runs/NOTEBOOK)")
    p.add_argument("--quick", action="store_true", help="start from the notebook's quick parameters")
    p.add_argument("--list", action="store_true", help="print the notebook's parameters and stop")
    return parser


def _add_model(p: argparse.ArgumentParser) -> None:
    p.add_argument("--weights", default=DEFAULT, help=f"released weights, or a .safetensors file (default: {DEFAULT})")
    p.add_argument(
        "--memory", type=_gigabytes, default=2.0, metavar="GB", help="tile images that need more (default: 2)"
    )
    p.add_argument("--device", default="auto", help="cpu, cuda or auto (default)")


def _gigabytes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0.05 <= value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no memory budget; give gigabytes, at least 0.05")
    return value


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

    return Denoiser.load(args.weights, args.memory * 1e9, _device(args.device))


def _denoise(args) -> None:
    from kunet.denoise import denoise_paths, plan
    from kunet.images import check_sigma

    check_sigma(args.sigma)
    plan(args.inputs, args.output, args.force)  # a wrong request costs no loading of weights
    denoiser = _denoiser(args)
    low, high = denoiser.trained_sigma
    if not low <= args.sigma <= high:
        print(f"kunet denoise: note: {args.weights} was trained for sigma {low:g} to {high:g}", file=sys.stderr)
    failures = denoise_paths(args.inputs, args.output, args.sigma, denoiser, args.force, not args.quiet)
    if failures:
        fail(
            "; ".join(failures) if len(failures) == 1 else f"{len(failures)} images failed: " + " | ".join(failures),
            "kunet denoise",
        )


def _train(args) -> None:
    from kunet.train import build, train

    recipe = recipes.load(args.recipe, _fields(args.extra))
    model, task = build(recipe)
    out = args.out or Path("runs") / recipe.name
    device = _device(args.device)
    if args.dry_run:
        photos, held = task.load(recipe.data, recipe.held_out)
        print(yaml.safe_dump(json.loads(json.dumps(dataclasses.asdict(recipe))), sort_keys=False), end="")
        count = sum(p.numel() for p in model.parameters())
        print(
            f"# {count:,} parameters; {len(photos)} photos to train on, {len(held)} held out; on {device}, into {out}"
        )
        return
    run = train(recipe, out, device, not args.quiet)
    print(f"{run.folder / 'weights.safetensors'}: done after {recipe.steps} steps")


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


def _evaluate(args) -> None:
    from kunet.benchmark import provenance
    from kunet.evaluate import evaluate, summary

    _check_json(args.json)
    denoiser, results = _denoiser(args), {}
    for source in args.sources:
        results[source] = summary(evaluate(denoiser, source, args.sigma, args.noise, args.seed, not args.quiet))
        row = results[source]
        print(
            f"{source}: {row['images']} images, sigma {args.sigma:g} ({args.noise} noise):"
            f" {row['psnr']:.2f} dB, SSIM {row['ssim']:.4f}, {row['seconds']:.3f} s an image"
        )
    _write_json(
        args.json,
        provenance()
        | {"weights": args.weights, "sigma": args.sigma, "noise": args.noise, "seed": args.seed, "results": results},
    )


def _benchmark(args) -> None:
    from kunet.benchmark import benchmark, machine, provenance

    sizes = []
    for text in args.sizes:
        width, _, height = text.partition("x")
        if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
            raise ValueError(f"--sizes: {text!r} is no size; give WIDTHxHEIGHT, such as 2040x1356")
        sizes.append((int(width), int(height)))
    _check_json(args.json)
    if args.repeats < 1:
        raise ValueError(f"--repeats is {args.repeats}; it must be 1 or more")
    rows = benchmark(_denoiser(args), sizes, args.repeats)
    print(machine())
    for row in rows:
        median = sorted(row["seconds"])[len(row["seconds"]) // 2]
        how = f"tiles of {row['tile']}" if row["tile"] else "whole"
        print(
            f"{row['width']}x{row['height']}: {median:.3f} s ({min(row['seconds']):.3f} to {max(row['seconds']):.3f}),"
            f" {how}, peak memory {row['peak_mb']} MB (+{row['added_mb']})"
        )
    _write_json(args.json, provenance() | {"weights": args.weights, "rows": rows})


def _notebook(args) -> None:
    from kunet import notebook

    if args.list:
        for parameter in notebook.parameters(args.path):
            print(parameter)
        return
    given = notebook.read_file(args.file) if args.file else {}
    given |= {name: yaml.safe_load(value) for name, value in args.p}
    output = args.output or Path("runs") / args.path.name
    notebook.run(args.path, output, given, args.quick)
    print(output)


def _check_json(path: Path | None) -> None:
    """Before the work whose result it is to hold."""
    from kunet.images import check_writable

    if path is not None:
        if not path.parent.is_dir():
            raise ValueError(f"{path}: its folder {path.parent} does not exist; make it first")
        check_writable(path)


def _write_json(path: Path | None, content: dict) -> None:
    from kunet.runs import write_whole

    if path is not None:
        write_whole(path, lambda temporary: temporary.write_text(json.dumps(content, indent=1) + "\n"))
