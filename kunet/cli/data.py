"""`kunet data list | fetch | check | pack`: data sets by name, and packed ones."""

import argparse
from pathlib import Path

from kunet.cli.verbs import fail


def add(commands) -> None:
    """The subcommand and its own subcommands."""
    p = commands.add_parser(
        "data",
        help="fetch, check and pack data sets",
        description="Published sets of images, by name.",
        allow_abbrev=False,
    )
    verbs = p.add_subparsers(dest="verb", required=True, metavar="VERB", parser_class=type(p))
    for run, help in (
        (list_sets, "show the sets there are, and which are here"),
        (fetch, "download a set"),
        (check, "say whether a set, or a folder of images, is whole"),
    ):
        name = run.__name__.removesuffix("_sets")
        sub = verbs.add_parser(name, help=help, description=f"{help[:1].upper()}{help[1:]}.", allow_abbrev=False)
        sub.set_defaults(run=run)
        if run is fetch:
            sub.add_argument("name", metavar="NAME", help="as `kunet data list` has it")
        if run is check:
            sub.add_argument(
                "name", metavar="NAME|FOLDER", help="a set's name, or a folder that has one, or any images"
            )
        sub.add_argument(
            "--to", type=Path, metavar="FOLDER",
            help="where the sets lie, each in a folder of its name (default: $KUNET_DATA, or the user's cache)",
        )  # fmt: skip
        if run is not list_sets:
            sub.add_argument("--quiet", action="store_true", help="no progress bar")
    help = "write images as one file, which trainings read as they need it"
    sub = verbs.add_parser("pack", help=help, description=f"{help[:1].upper()}{help[1:]}.", allow_abbrev=False)
    sub.set_defaults(run=pack)
    sub.add_argument("source", metavar="SOURCE", help="a folder of images, or a set's name")
    sub.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="the folder to make")
    sub.add_argument("--kind", default="photos", help='"photos" (default), "pairs" or "masks": what the task reads')
    sub.add_argument("--classes", type=int, default=2, help="of masks, as the task has them (default: 2)")
    sub.add_argument("--size", type=int, help="side to scale images and masks to (default: their own)")
    sub.add_argument("--quiet", action="store_true", help="no progress bar")


def list_sets(args: argparse.Namespace) -> None:
    from kunet.data import sets

    rows = [("name", "task", "use", "images", "size", "download", "licence", "here")]
    for s in sets.SETS.values():
        folder = sets.root(args.to) / s.name
        here = str(folder) if folder.is_dir() else "no" if s.files else "no; by hand"
        rows.append((s.name, s.task, s.use, s.count, s.size, s.download, s.licence, here))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip())


def fetch(args: argparse.Namespace) -> None:
    from kunet.data import sets
    from kunet.data.sets.fetch import fetch

    folder, done = fetch(sets.get(args.name), args.to, not args.quiet)
    print(f"{folder}: {done}")


def pack(args: argparse.Namespace) -> None:
    from kunet.data.pack import clean, pack

    for path in clean(args.output):
        print(f"removed {path}, which was left half-written")
    packed = pack(args.source, args.output, args.kind, not args.quiet, args.classes, args.size)
    print(f"{args.output}: {len(packed)} {packed.kind}, {packed.bytes / 1e6:,.2f} MB")


def check(args: argparse.Namespace) -> None:
    from kunet.data import list_images, open_packed, packed, sets

    if args.to is None and Path(args.name).is_dir():
        folder = Path(args.name)
        data_set = sets.SETS.get(folder.resolve().name.lower())
    else:
        data_set = sets.get(args.name)
        folder = sets.where(data_set, args.to)
    if packed.is_packed(folder):
        problems = packed.check(folder, not args.quiet)
        what = "" if problems else f"{len(open_packed(folder))} packed images, every checksum is right"
    elif data_set:
        problems, what = sets.check(data_set, folder, not args.quiet), f"{data_set.title}, {data_set.count}"
    else:
        problems, paths = [], list_images(folder)
        for path in paths:
            try:
                sets.probe(path)
            except ValueError as error:
                problems.append(str(error))
        what = f"{len(paths)} images (no data set goes by this folder's name)"
    if problems:
        more = f" | and {len(problems) - 3} more" if len(problems) > 3 else ""
        fail(f"{folder}: is not whole: {' | '.join(problems[:3])}{more}", "kunet data")
    print(f"{folder}: {what}; whole")
