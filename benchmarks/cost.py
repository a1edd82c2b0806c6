"""What a forward pass costs as the image grows: every network, small, on images of 64 x 64 to 512 x 512.

Usage: python benchmarks/cost.py | python benchmarks/cost.py --quick|--models NAME ... --out FILE
Each network has its small configuration of configurations.py; beside them, kunet_tiny is that of the released weights.
Seconds are of one image without gradients, in turns (A B C A B C ...) after a warm-up, so that a slow minute of the
machine slows all alike; medians and quartiles are written. Memory is that of all tensors which a pass holds at its
peak, without weights and image; beside it, for the largest image, by how much the pass raises the peak of a process.
Multiply-adds are those of convolutions and matrix products; what an element is multiplied by, added to or passed
through is left out. The splines of a KAN layer count in their local form, as the compiled kernel computes them: of the
G + k functions of an edge the k + 1 that are not zero, and k (k + 1) + 1 for their values at an input.
An exponent e is the slope of a line fitted to log cost over log pixels: cost ~ pixels^e.
Needs Linux (a process's memory is read from /proc); writes book/results/cost.json.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import yaml
from configurations import NETWORKS
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kunet import models, recipes
from kunet.benchmark import peak_memory, provenance
from kunet.kan.layer import KANLayer
from kunet.tiling import live_bytes

OUT = Path(__file__).resolve().parent.parent / "book" / "results" / "cost.json"
SIZES = (64, 96, 128, 192, 256, 384, 512)
QUICK_SIZES = (64, 96, 128)
TINY = yaml.safe_load((Path(recipes.__file__).parent / "kunet_tiny.yaml").read_text())  # the released weights'
CONFIGS = NETWORKS | {"kunet_tiny": (TINY["model"], TINY["model_args"])}
"""name -> (model, arguments): what is measured under a name."""


def build(name: str | tuple[str, dict]) -> nn.Module:
    """The model of a configuration, or of (model, arguments), ready for inference, with random weights."""
    torch.manual_seed(0)
    return models.make(*(CONFIGS[name] if isinstance(name, str) else name)).eval()


def image(size: int) -> Tensor:
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))


def macs(name: str | tuple[str, dict], size: int) -> int:
    """Multiply-adds of one pass on a size x size image; nothing is computed, shapes alone are followed."""
    with FakeTensorMode():
        model, extra = build(name), []

        def local_form(layer: KANLayer, inputs: tuple[Tensor], y: Tensor) -> None:
            k, edges = layer.degree, layer.spline_weight[0, :, 0].numel()  # into one output
            unused = layer.grid_size - 1  # of the G + k functions that the dense form multiplies
            extra.append(inputs[0].numel() * (k * (k + 1) + 1) - y.numel() * edges * unused)

        for layer in model.modules():
            if isinstance(layer, KANLayer):
                layer.kernel = "eager"  # plain tensor operations, which are counted
                layer.register_forward_hook(local_form)
        # with the fused forms of attention and of a transformer's layer switched off, their products are counted
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                model(torch.rand(1, 3, size, size))
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops() // 2 + sum(extra)


def seconds(names: list[str], size: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each model's passes on a size x size image: all models in turns, after a warm-up of each."""
    x, built = image(size), {name: build(name) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    with torch.no_grad():
        for model in built.values():
            model(x)
        for _ in range(rounds):
            for name, model in built.items():
                start = time.perf_counter()
                model(x)
                times[name].append(time.perf_counter() - start)
    return times


def live(model: nn.Module, x: Tensor) -> float:
    """MB of tensors that a pass holds at its peak, above what it is given."""
    return round(live_bytes(lambda: model(x)) / 1e6, 3)


def resident(name: str, size: int) -> float:
    """MB by which a pass raises the peak of a process of its own, one that gives back what is freed."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    words = [sys.executable, __file__, "--resident", name, str(size)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"cost: measuring the memory of {name} failed: {done.stderr.strip()[-300:]}")
    return float(done.stdout.split()[-1])


def measure_resident(name: str, size: int) -> None:
    model, x = build(name), image(size)
    with torch.no_grad():
        model(x)  # loads code and compiles kernels, whose memory is not the pass's
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        status = Path("/proc/self/status").read_text().splitlines()
        before = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))
        model(x)
    print(round((peak_memory() - before) / 1e6, 1))


def exponent(pixels: list[int], cost: list[float]) -> float:
    """e of cost ~ pixels^e, by least squares in the logarithms."""
    x, y = ([math.log(v) for v in values] for values in (pixels, cost))
    return round(statistics.linear_regression(x, y).slope, 3)


def measure(names: list[str], sizes: tuple[int, ...], fewest: int) -> dict[str, dict]:
    """Every figure of every model; images below 384 x 384 are timed more often, as they take less and vary more."""
    times = []
    for size in sizes:
        print(f"{size} x {size}", flush=True)
        times.append(seconds(names, size, max(fewest, fewest * 384 // size)))
    rows = {}
    for name in names:
        print(name, flush=True)
        pixels, counts = [size**2 for size in sizes], [macs(name, size) for size in sizes]
        middle = [statistics.median(t[name]) for t in times]
        network = build(name)
        memory = [live(network, image(size)) for size in sizes]
        model, args = CONFIGS[name]
        rows[name] = {
            "model": model,
            "args": args,
            "parameters": sum(p.numel() for p in network.parameters()),
            "sizes": list(sizes),
            "pixels": pixels,
            "seconds": [float(f"{s:.4g}") for s in middle],
            "seconds_a_megapixel": float(f"{1e6 * middle[-1] / pixels[-1]:.3g}"),  # at the largest size
            "quartiles": [[float(f"{q:.4g}") for q in statistics.quantiles(t[name], n=4)[::2]] for t in times],
            "memory_mb": memory,
            "resident_mb": resident(name, sizes[-1]),
            "macs": counts,
            "macs_per_pixel": round(counts[-1] / pixels[-1], 1),
            "time_exponent": exponent(pixels, middle),
            "memory_exponent": exponent(pixels, memory),
            "macs_exponent": exponent(pixels, counts),
        }
    return rows


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three small sizes, three rounds")
    parser.add_argument("--models", nargs="+", choices=CONFIGS, default=list(CONFIGS), metavar="NAME")
    parser.add_argument("--out", type=Path, help=f"default {OUT.name}; with another option it must be given")
    parser.add_argument("--resident", nargs=2, metavar=("NAME", "SIZE"), help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if options.resident:
        return measure_resident(options.resident[0], int(options.resident[1]))
    part = options.quick or options.models != list(CONFIGS)
    if part and (options.out is None or options.out.resolve() == OUT):
        parser.error("--quick and --models measure less than the book shows: give another --out")
    out = options.out or OUT
    command = ["python benchmarks/cost.py", *["--quick"] * options.quick]
    command += ["--models", *options.models] if options.models != list(CONFIGS) else []
    results = provenance(" ".join(command)) | {
        "counted": "multiply-adds of convolutions and matrix products; KAN layers in their local form",
        "sizes": list(QUICK_SIZES if options.quick else SIZES),
    }
    results["models"] = measure(options.models, tuple(results["sizes"]), 3 if options.quick else 11)
    for name, row in results["models"].items():
        print(
            f"{name:14} {row['parameters']:>9,} parameters  {row['seconds'][-1]:.3f} s ~ pixels^{row['time_exponent']}"
            f"  {row['memory_mb'][-1]:.0f} MB ~ pixels^{row['memory_exponent']}  {row['macs_per_pixel']:,.0f} MAC/pixel"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
