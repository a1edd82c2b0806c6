"""The command line, ``kunet COMMAND``: the same as ``python -m kunet COMMAND``."""

import argparse
import errno
import os
import signal
import sys
import warnings
from pathlib import Path

import yaml

from kunet import __version__, memory, recipes
from kunet.cli import data, sweep, verbs
from kunet.cli.verbs import fail
from kunet.weights import DEFAULT


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line and exit 2."""

    def error(self, message: str):
        fail(f"{message}; see {self.prog} --help", self.prog)


def main(argv: list[str] | None = None) -> None:
    """Entry point.

    Exit 0 when all is done, 2 after a mistake in the request or the files, 1 when another process of a training was
    lost, 75 when a training was asked to stop and did, 130 when interrupted.
    """
    parser = _parser()
    args, extra = parser.parse_known_args(argv)
    if extra and args.run not in (verbs.train, sweep.sweep):
        names = ["--" + name.replace("_", "-") for name in vars(args)]
        what = f"unknown argument {extra[0]!r}{recipes.nearest(extra[0], names)}"
        if "inputs" in args and not extra[0].startswith("-"):
            what = f"{extra[0]!r} stands apart from the other photos; give all photos one after the other"
        fail(f"{what}; see kunet {args.command} --help", f"kunet {args.command}")
    args.extra = extra
    heavy = (verbs.denoise, verbs.restore, verbs.segment, verbs.evaluate, verbs.benchmark, verbs.train)
    if argv is None and args.run in heavy:  # a program of its own, not a guest in somebody's Python
        memory.reuse()
        note = lambda what, *_: print(f"kunet {args.command}: note: {str(what).strip()}", file=sys.stderr)
        warnings.showwarning = note
        if args.run != verbs.train:  # which pauses; the others leave nothing half-written
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
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
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except OSError as error:
        what = "; make room, and give the same command again" if error.errno == errno.ENOSPC else ""
        fail(f"{error.filename or 'system'}: {error.strerror or error}{what}", f"kunet {args.command}")
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except RuntimeError as error:
        if type(error).__name__ != "LostProcess":  # named, not imported: that would load torch for every command
            raise
        print(f"kunet {args.command}: {error}", file=sys.stderr)
        verbs.leave(1)


def _parser() -> Parser:
    parser = Parser(prog="kunet", description="Kolmogorov-Arnold networks for real images.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"kunet {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)

    def command(name, run, help, description, **kwargs):
        sub = commands.add_parser(name, help=help, description=description, allow_abbrev=False, **kwargs)
        sub.set_defaults(run=run)
        return sub

    p = command(
        "denoise", verbs.denoise, "remove noise from photos", "Remove noise from photos, one by one or whole folders."
    )
    p.add_argument(
        "--sigma", type=_level, default="auto", help="strength of the noise in 8-bit levels, 0 to 255, or auto (the"
        " default): estimated for each photo, and said",
    )  # fmt: skip
    _add_photos(p, "PHOTO_denoised.png")
    _add_model(p)

    p = command(
        "restore", verbs.restore, "deblur or derain photos", "Mend photos with weights that were trained to deblur, to"
        " derain, on pairs of photos, or to denoise without being told the level.",
    )  # fmt: skip
    _add_photos(p, "PHOTO_restored.png")
    _add_model(p, default=None)

    p = command("segment", verbs.segment, "say what pixels show", "Write the mask of each photo, a class a pixel.")
    _add_photos(p, "PHOTO_mask.png")
    _add_model(p, default=None)

    p = command(
        "train", verbs.train, "train a recipe", "Train a recipe; --FIELD VALUE changes any field of it.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="fields:\n" + "\n".join(f"  --{n.replace('_', '-'):15s} {t}" for n, t in recipes.describe().items()),
    )  # fmt: skip
    p.add_argument("--recipe", required=True, help=f"one of {', '.join(recipes.names())}, or a .yaml file")
    p.add_argument("--out", type=Path, help="the run's folder, continued if it is there (default: runs/NAME)")
    p.add_argument("--device", default="auto", help="cpu, cuda or auto (default)")
    p.add_argument(
        "--track", default="auto", metavar="MODE", help="mirror the log on W&B: auto (where wandb is installed; online"
        " with WANDB_API_KEY, else offline), offline, online, off",
    )  # fmt: skip
    p.add_argument(
        "--timeout", type=_seconds, default=600.0, metavar="S", help="wait so long for another process (default: 600)"
    )
    p.add_argument("--dry-run", action="store_true", help="check everything, print the recipe, train nothing")
    p.add_argument("--quiet", action="store_true", help="no progress bar")

    p = command(
        "evaluate",
        verbs.evaluate,
        "score weights on images",
        "Spoil clean images as the weights' task does, restore them, report PSNR and SSIM; or compare masks.",
    )
    p.add_argument(
        "sources",
        nargs="*",
        default=["bundled"],
        metavar="FOLDER",
        help='folders of images, or data sets by name (default: "bundled", the held-out photos)',
    )
    p.add_argument("--sigma", type=float, default=50, help="in 8-bit levels (default: 50)")
    p.add_argument(
        "--noise",
        default="float",
        help='"float" (the literature\'s, default) or "u8" (clipped and rounded, as files are)',
    )
    p.add_argument(
        "--task",
        help='"pairs": score on the pairs that the sources hold; or the weights\' own task: spoil clean images (default'
        ": the pairs of a data set that has some, for weights that need not be told the noise)",
    )
    p.add_argument(
        "--protocol",
        default="literature",
        help='"literature" (default), or "challenge": sides cut to multiples of 4, a border of 4 pixels not scored',
    )
    p.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    p.add_argument("--json", type=Path, help="also write every image's scores to this file")
    _add_model(p)
    p.add_argument("--quiet", action="store_true", help="no progress bar")

    p = command(
        "benchmark",
        verbs.benchmark,
        "time weights on this machine",
        "Seconds and peak memory for images of given sizes.",
    )
    p.add_argument(
        "--sizes",
        nargs="+",
        default=["512x512", "1024x1024", "2040x1356"],
        metavar="WxH",
        help="image sizes (default: 512x512 1024x1024 2040x1356)",
    )
    p.add_argument("--repeats", type=int, default=3, help="timed runs of each, after one warm-up (default: 3)")
    p.add_argument("--json", type=Path, help="also write the rows to this file")
    _add_model(p)

    p = command(
        "export", verbs.export, "write a network for other programs", "Write a network as ONNX or .pt2, for images of"
        " any height and width, and check that the file gives the same images.",
    )  # fmt: skip
    p.add_argument("--weights", default=DEFAULT, help=f"released ones, or a .safetensors file (default: {DEFAULT})")
    p.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="what to write, .onnx or .pt2")
    p.add_argument("--force", action="store_true", help="overwrite a file that exists")

    p = command(
        "notebook",
        verbs.notebook,
        "run a notebook as a job",
        "Run a notebook with checked parameters through papermill.",
    )
    p.add_argument("path", metavar="NOTEBOOK", help="a chapter's name, number or subject, or an .ipynb file")
    p.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="set a parameter (repeatable)"
    )
    p.add_argument("-f", "--file", type=Path, help="a YAML file of parameters; -p wins over it")
    p.add_argument("-o", "--output", type=Path, help="the executed notebook (default: runs/NOTEBOOK)")
    p.add_argument("--quick", action="store_true", help="start from the notebook's quick parameters")
    p.add_argument("--list", action="store_true", help="print the notebook's parameters and stop")
    p.add_argument("--quiet", action="store_true", help="no progress")
    data.add(commands)
    sweep.add(commands)
    return parser


def _add_photos(p: argparse.ArgumentParser, written: str) -> None:
    p.add_argument("inputs", nargs="+", type=_path, metavar="PHOTO", help="image files, or folders of them")
    p.add_argument(
        "-o",
        "--output",
        type=_path,
        help=f"file or folder to write; default: {written} beside each; for a folder, another beside it, of PNGs",
    )
    existing = p.add_mutually_exclusive_group()
    existing.add_argument(
        "--force", dest="existing", action="store_const", const="overwrite", help="overwrite files that exist"
    )
    existing.add_argument(
        "--skip-existing",
        dest="existing",
        action="store_const",
        const="skip",
        help="leave results that exist, and do the rest: so a folder goes on where it stopped",
    )
    p.set_defaults(existing="refuse")
    p.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_model(p: argparse.ArgumentParser, default: str | None = DEFAULT) -> None:
    if default:
        p.add_argument("--weights", default=default, help=f"released ones, or a .safetensors file (default: {default})")
    else:
        p.add_argument("--weights", required=True, help="a .safetensors file, as kunet train writes it")
    p.add_argument(
        "--memory",
        type=_gigabytes,
        metavar="GB",
        help="working memory; images that need more go in parts, to the same result (default: half of what is free, at"
        " least 2; on a graphics card 2)",
    )
    p.add_argument("--device", default="auto", help="cpu, cuda or auto (default)")
    p.add_argument(
        "--precision", default="fp32", help="fp32 (default), bf16 or fp16: 16 bits where the machine is fast at it"
    )
    p.add_argument(
        "--ensemble",
        type=int,
        default=1,
        choices=(1, 2, 4, 8),
        metavar="N",
        help="mean over N turned and mirrored copies of an image, 1 (default), 2, 4 or 8: a little better, in about N"
        " times the time",
    )


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("an empty path; give a file or a folder")
    return Path(text)


def _level(text: str) -> float | str:
    try:
        return text if text == "auto" else float(text)
    except ValueError:
        what = "give a number from 0 to 255, in 8-bit levels, or auto"
        raise argparse.ArgumentTypeError(f"{text!r} is no noise level; {what}") from None


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no waiting time; give seconds, at least 1")
    return value


def _gigabytes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0.05 <= value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no memory budget; give gigabytes, at least 0.05")
    return value
