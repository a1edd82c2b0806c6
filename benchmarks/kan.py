"""KAN layers side by side: ours, the textbook form, flashkan and pykan from PyPI, and plain layers.

Usage: python benchmarks/kan.py | python benchmarks/kan.py --quick|--device cuda --out FILE
Everything runs in one process, in turns (A B C A B C ...), after a warm-up, so that a slow minute of the machine
slows all alike; medians and quartiles are written. Peak memory is measured in a process of its own for each.
The peers get the weights of ours, and their outputs are checked against ours before anything is timed.
Needs `pip install -e '.[bench]'`; writes book/results/kan.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kunet.benchmark import provenance
from kunet.kan import KANConv2d, KANLinear, tables

OUT = Path(__file__).resolve().parent.parent / "book" / "results" / "kan.json"
DEGREE = 3
HEADLINE = (256, 256, 4096, 8)  # inputs, outputs, tokens, cells
SHAPES = [
    (i, o, n, g) for i, o in ((64, 64), (256, 256), (1024, 2048)) for n in (64, 1024, 4096, 65536) for g in (5, 8, 32)
]
MOST_BYTES = 3e9  # a contender that is expected to need more sits a shape out, which is recorded


class Textbook(nn.Module):
    """The form most KAN code has (efficient-kan): Cox-de Boor for all functions, a product for each term, a scaler.

    Written here from the formulas: B_{i,0} by comparison, the recursion on whole tensors, weights times scaler.
    Source: https://github.com/Blealtan/efficient-kan (MIT); de Boor (2001), chapter IX.
    """

    def __init__(self, ours: nn.Module):
        super().__init__()
        self.register_buffer("knots", ours.knots.clone())
        self.base_weight = nn.Parameter(ours.base_weight.detach().clone())
        self.spline_weight = nn.Parameter(ours.spline_weight.detach().clone())
        self.scaler = nn.Parameter(torch.ones_like(self.base_weight))

    def bases(self, x: Tensor) -> Tensor:
        t, x = self.knots, x.unsqueeze(-1)
        b = ((x >= t[:, :-1]) & (x < t[:, 1:])).to(x.dtype)
        for k in range(1, DEGREE + 1):
            rise = (x - t[:, : -(k + 1)]) / (t[:, k:-1] - t[:, : -(k + 1)])
            fall = (t[:, k + 1 :] - x) / (t[:, k + 1 :] - t[:, 1:-k])
            b = rise * b[..., :-1] + fall * b[..., 1:]
        return b

    def forward(self, x: Tensor) -> Tensor:
        weight = self.spline_weight * self.scaler.unsqueeze(2)
        return F.linear(F.silu(x), self.base_weight) + F.linear(self.bases(x).flatten(-2), weight.flatten(1))


class TextbookConv(Textbook):
    """The same expansion of every pixel, then one convolution over all planes."""

    def __init__(self, ours: KANConv2d):
        super().__init__(ours)
        self.groups = ours.groups

    def forward(self, x: Tensor) -> Tensor:
        planes = self.bases(x.permute(0, 2, 3, 1)).flatten(3).permute(0, 3, 1, 2)
        weight = (self.spline_weight * self.scaler.unsqueeze(2)).flatten(1, 2)
        options = {"padding": 1, "groups": self.groups}
        return F.conv2d(F.silu(x), self.base_weight, **options) + F.conv2d(planes, weight, **options)


def flashkan(ours: KANLinear) -> nn.Module:
    """flashkan's layer with our weights; it compiles its basis itself."""
    import flashkan

    layer = flashkan.KANLayer(ours.in_features, ours.out_features, ours.grid_size, DEGREE, grid_range=ours.grid_range)
    with torch.no_grad():
        layer.spline_weight.copy_(ours.spline_weight)
        layer.base_weight.copy_(ours.base_weight)
    return layer.to(ours.knots.device)


def pykan(ours: KANLinear) -> nn.Module:
    """pykan's layer with our weights; its forward returns more than the output."""
    here = Path(__file__).resolve().parent  # it holds this file, which would hide pykan's package of the same name
    sys.path[:] = [folder for folder in sys.path if Path(folder or ".").resolve() != here]
    from kan.KANLayer import KANLayer

    layer = KANLayer(ours.in_features, ours.out_features, ours.grid_size, DEGREE, save_plot_data=False)
    with torch.no_grad():
        layer.grid.copy_(ours.knots)
        layer.coef.copy_(ours.spline_weight.transpose(0, 1))
        layer.scale_base.copy_(ours.base_weight.T)
        layer.scale_sp.fill_(1.0)
        layer.mask.fill_(1.0)
    forward = layer.forward
    layer.forward = lambda x: forward(x)[0]
    return layer.to(ours.knots.device)


def compiled(ours: nn.Module) -> nn.Module:
    """Ours in the dense form, as torch.compile makes it."""
    return torch.compile(ours, dynamic=False)


def with_kernel(ours: KANLinear, kernel: str) -> KANLinear:
    layer = KANLinear(ours.in_features, ours.out_features, ours.grid_size, DEGREE, kernel=kernel)
    layer.load_state_dict(ours.state_dict())
    return layer.to(ours.knots.device)


# name -> (layer of our layer, bytes it is expected to need for (inputs, outputs, tokens, cells))
LINEAR: dict[str, tuple[Callable, Callable]] = {
    "ours": (lambda ours: ours, lambda i, o, n, g: 40 * n * (i + o)),
    "ours_eager": (lambda ours: with_kernel(ours, "eager"), lambda i, o, n, g: 40 * n * (i + o)),
    "ours_compiled_dense": (compiled, lambda i, o, n, g: 8 * n * i * (g + 4)),
    "flashkan": (flashkan, lambda i, o, n, g: 12 * n * i * (g + 3)),
    "textbook": (Textbook, lambda i, o, n, g: 50 * n * i * (g + 3)),
    "pykan": (pykan, lambda i, o, n, g: 24 * n * i * o + 50 * n * i * (g + 3)),
}
PLAIN = ("linear_same_width", "linear_equal_flops")


def turns(calls: dict[str, Callable], seconds: float, least: int = 3, most: int = 25) -> dict[str, list[float]]:
    """Milliseconds of each call, in turns, after two warm-ups; slow ones sit out the later rounds."""
    times: dict[str, list[float]] = {name: [] for name in calls}

    def once(name: str) -> float:
        start = time.perf_counter()
        calls[name]()
        return time.perf_counter() - start

    for name in calls:
        once(name)
    rounds = {name: int(min(most, max(least, seconds / len(calls) / once(name)))) for name in calls}
    for r in range(max(rounds.values())):
        for name in calls:
            if r < rounds[name]:
                times[name].append(once(name) * 1e3)
    return times


def summary(times: list[float]) -> dict:
    low, middle, high = statistics.quantiles(times, n=4)
    return {"ms": round(middle, 3), "quartiles": [round(low, 3), round(high, 3)], "rounds": len(times)}


def trainer(layer: nn.Module, x: Tensor, g: Tensor) -> Callable:
    """Forward and backward, gradients of x and of all weights."""

    def step() -> None:
        for p in layer.parameters():
            p.grad = None
        x.grad = None
        layer(x).backward(g)
        if x.is_cuda:
            torch.cuda.synchronize()

    return step


def predictor(layer: nn.Module, x: Tensor) -> Callable:
    def step() -> None:
        with torch.no_grad():
            layer(x)
        if x.is_cuda:
            torch.cuda.synchronize()

    return step


def expected_seconds(i: int, o: int, n: int, g: int) -> float:
    """Of one dense forward + backward at 60 GMAC/s, what these benchmarks see on 2 cores."""
    return 3 * n * i * o * (g + DEGREE + 1) / 60e9


def build(i: int, o: int, g: int, device: str) -> KANLinear:
    torch.manual_seed(0)
    layer = KANLinear(i, o, g, DEGREE)
    with torch.no_grad():
        layer.spline_weight.normal_(std=0.1)
    return layer.to(device)


def linear_shape(shape: tuple[int, int, int, int], device: str, seconds: float, most_seconds: float) -> dict:
    """All contenders at one shape: forward and forward + backward, and who sat out and why."""
    i, o, n, g = shape
    row: dict = {"in_features": i, "out_features": o, "tokens": n, "grid_size": g}
    if device == "cpu" and expected_seconds(*shape) > most_seconds:
        return row | {"skipped": f"a dense step would take about {expected_seconds(*shape):.0f} s"}
    torch._dynamo.reset()  # else the compiled ones end in their recompile limit
    ours = build(i, o, g, device)
    x = (torch.rand(n, i, device=device) * 2 - 1).requires_grad_()
    gradient = torch.randn(n, o, device=device)
    with torch.no_grad():
        expected = ours(x)
    layers, out, errors = {}, {}, {}
    for name, (make, needs) in LINEAR.items():
        if name == "ours_compiled_dense" and n != HEADLINE[2]:
            continue  # compiling it for every shape would take most of the run
        # pykan's N x I x O values take seconds a step: beside the others it needs to be seen once
        if needs(*shape) > (1e10 if shape == HEADLINE else 1e9 if name == "pykan" else MOST_BYTES):
            out[name] = f"would need about {needs(*shape) / 1e9:.0f} GB"
            continue
        layers[name] = make(ours)
        with torch.no_grad():
            errors[name] = float(f"{float((layers[name](x) - expected).norm() / expected.norm()):.1e}")
        # one-sided truncated powers (flashkan) lose digits with G; anything above is another function
        assert errors[name] < (0.02 if name == "flashkan" else 1e-4), f"{name} computes something else: {errors[name]}"
    inputs = dict.fromkeys(layers, x)
    for name, width in (("linear_same_width", i), ("linear_equal_flops", i * (g + DEGREE + 1))):
        layers[name] = nn.Linear(width, o, bias=False, device=device)
        inputs[name] = torch.randn(n, width, device=device, requires_grad=True)
    forward = turns({name: predictor(layer, inputs[name]) for name, layer in layers.items()}, seconds / 3)
    both = turns({name: trainer(layer, inputs[name], gradient) for name, layer in layers.items()}, seconds)
    row |= {"forward": {k: summary(v) for k, v in forward.items()}, "train": {k: summary(v) for k, v in both.items()}}
    row["distance_from_ours"] = errors
    return row | ({"out": out} if out else {})


def conv_shape(channels: int, depthwise: bool, device: str, seconds: float, grid_size: int = 8) -> dict:
    """KANConv2d 3x3 on 128 x 128 pixels beside plain convolutions of the same width and of the same FLOPs."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    groups = channels if depthwise else 1
    ours = KANConv2d(channels, channels, 3, padding=1, groups=groups, grid_size=grid_size, padding_mode="bases")
    ours = ours.to(device)
    planes = grid_size + DEGREE + 1
    plain = lambda width: nn.Conv2d(width, channels, 3, padding=1, groups=groups, bias=False, device=device)
    layers = {
        "ours": ours,
        "textbook": TextbookConv(ours),
        "conv_same_width": plain(channels),
        "conv_equal_flops": plain(channels * planes),
    }
    x = (torch.rand(1, channels, 128, 128, device=device) * 2 - 1).requires_grad_()
    wide = torch.randn(1, channels * planes, 128, 128, device=device, requires_grad=True)
    inputs = {name: wide if name == "conv_equal_flops" else x for name in layers}
    with torch.no_grad():
        expected = layers["textbook"](x)
        assert float((ours(x) - expected).norm() / expected.norm()) < 1e-3
    gradient = torch.randn(1, channels, 128, 128, device=device)
    forward = turns({name: predictor(layer, inputs[name]) for name, layer in layers.items()}, seconds / 3)
    both = turns({name: trainer(layer, inputs[name], gradient) for name, layer in layers.items()}, seconds)
    row = {"channels": channels, "depthwise": depthwise, "grid_size": grid_size}
    return row | {
        "forward": {k: summary(v) for k, v in forward.items()},
        "train": {k: summary(v) for k, v in both.items()},
    }


def deployment(seconds: float) -> dict:
    """Inference at the headline shape: tables and polynomials beside the layer and nn.Linear; relative errors.

    Two layers: as initialised (a base and a small random spline) and rough (random control values). x is uniform over
    the grid, and the tables are calibrated on other x of the same kind.
    """
    i, o, n, g = HEADLINE
    x, seen = torch.rand(n, i) * 2 - 1, torch.rand(n, i) * 2 - 1
    found = {}
    for kind in ("initialised", "rough"):
        layer = build(i, o, g, "cpu")
        if kind == "initialised":
            layer.reset_parameters()
        layers = {
            "ours": layer,
            "table_4": tables.TableKANLinear(layer, 4, seen),
            "table_6": tables.TableKANLinear(layer, 6, seen),
            "table_8": tables.TableKANLinear(layer, 8, seen),
            "polynomials": tables.PolynomialKANLinear(layer),
            "linear_same_width": nn.Linear(i, o, bias=False),
        }
        with torch.no_grad():
            exact = layer.double()(x.double()).float()
            layer.float()
            kan = {name: m for name, m in layers.items() if name != "linear_same_width"}
            errors = {name: float((m(x) - exact).norm() / exact.norm()) for name, m in kan.items()}
        times = turns({name: predictor(m, x) for name, m in layers.items()}, seconds, most=60)
        base = statistics.median(times["linear_same_width"])
        found[kind] = {
            name: summary(t)
            | {"times_linear": round(statistics.median(t) / base, 2)}
            | ({"error": float(f"{errors[name]:.2g}")} if name in errors else {})
            for name, t in times.items()
        }
    for bits in (8, 6, 4):
        layer = build(i, o, g, "cpu")
        with torch.no_grad():
            exact = layer(x)
            y = tables.quantise(layer, bits)(x)
            found[f"control_points_{bits}_bits_error"] = float(f"{float((y - exact).norm() / exact.norm()):.2g}")
    return found


def memory_of(name: str, shape: tuple[int, int, int, int]) -> float:
    """MB that forward + backward add at their peak, in a process of its own that gives back what is freed."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    words = [sys.executable, __file__, "--memory", name, *map(str, shape)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def measure_memory(name: str, i: int, o: int, n: int, g: int) -> None:
    ours = build(i, o, g, "cpu")
    width = i * (g + DEGREE + 1) if name == "linear_equal_flops" else i
    layer = nn.Linear(width, o, bias=False) if name in PLAIN else LINEAR[name][0](ours)
    x, gradient = (torch.rand(n, width) * 2 - 1).requires_grad_(), torch.randn(n, o)
    step = trainer(layer, x, gradient)
    step()
    x.grad = None
    for p in layer.parameters():
        p.grad = None
    status = lambda key: next(int(s.split()[1]) for s in open("/proc/self/status") if s.startswith(key))
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the warm-up
    before = status("VmRSS")
    step()
    print((status("VmHWM") - before) * 1024 / 1e6)


def limits() -> dict:
    """What this machine can do: multiply-adds of a large float32 product, and bytes copied, a second."""
    a = torch.randn(2048, 2048)
    big, other = torch.zeros(32 * 2**20), torch.ones(32 * 2**20)
    times = turns({"product": lambda: a @ a, "copy": lambda: big.copy_(other)}, 3.0)
    return {
        "gmacs": round(2048**3 / statistics.median(times["product"]) / 1e6, 1),
        "copy_gb_s": round(2 * 4 * big.numel() / statistics.median(times["copy"]) / 1e6, 1),
    }


def bars(linear: list[dict], conv: list[dict], deploy: dict, memory: dict) -> dict:
    """The ratios that are the bar, each with its two sides in the rows."""
    row = lambda g: next(
        r for r in linear if (r["in_features"], r["out_features"], r["tokens"], r["grid_size"]) == (*HEADLINE[:3], g)
    )
    train = lambda r, name: r["train"][name]["ms"]
    at8, at32 = row(8), row(32)
    table = {kind: deploy[kind]["table_6"] for kind in ("initialised", "rough")}
    ratios = {
        "times_faster_than_textbook": train(at8, "textbook") / train(at8, "ours"),
        "times_faster_than_flashkan": train(at8, "flashkan") / train(at8, "ours"),
        "time_over_linear_of_equal_flops": train(at8, "ours") / train(at8, "linear_equal_flops"),
        "times_faster_than_flashkan_at_32_cells": train(at32, "flashkan") / train(at32, "ours"),
        "table_time_over_linear": max(t["times_linear"] for t in table.values()),
        "table_error": max(t["error"] for t in table.values()),
        "memory_textbook_over_ours": memory["textbook"] / memory["ours"],
    }
    for r in conv:
        name = f"conv{'_depthwise' if r['depthwise'] else ''}_{r['channels']}_time_over_equal_flops"
        ratios[name] = train(r, "ours") / train(r, "conv_equal_flops")
    return {name: round(value, 4 if name == "table_error" else 2) for name, value in ratios.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the headline shapes alone")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--most-seconds",
        type=float,
        default=1.5,
        help="leave out shapes whose dense step takes longer on 2 cores (%(default)s)",
    )
    parser.add_argument("--out", type=Path, help=f"default {OUT.name}; with --quick or --device cuda it must be given")
    parser.add_argument("--memory", nargs=5, metavar=("NAME", "I", "O", "N", "G"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=SyntaxWarning)
    if options.memory:
        return measure_memory(options.memory[0], *map(int, options.memory[1:]))
    if options.out is None and (options.quick or options.device != "cpu"):
        parser.error("--quick and --device cuda measure less than the book shows: give --out, another file")
    out = options.out or OUT
    if options.device == "cuda":
        LINEAR["ours_triton"] = (lambda ours: with_kernel(ours, "triton"), LINEAR["ours"][1])
    headline = [HEADLINE, (*HEADLINE[:3], 32)]
    shapes = headline + ([] if options.quick else [s for s in SHAPES if s not in headline])
    command = " ".join(["python benchmarks/kan.py", *sys.argv[1:]])
    results = provenance(command) | {"machine_limits": limits() if options.device == "cpu" else {}}
    linear = []
    for shape in shapes:
        print("linear", *shape, flush=True)
        linear.append(linear_shape(shape, options.device, 12.0 if shape in headline else 2.0, options.most_seconds))
    conv = [conv_shape(c, d, options.device, 10.0) for c, d in ((32, False), (64, False), (32, True), (64, True))]
    results |= {"linear": linear, "conv": conv}
    if options.device == "cpu":
        results["deployment"] = deployment(4.0)
        names = ["ours", "ours_eager", "ours_compiled_dense", "flashkan", "textbook", "pykan", *PLAIN]
        results["memory_mb"] = {name: round(memory_of(name, HEADLINE), 1) for name in names}
        results["bars"] = bars(linear, conv, results["deployment"], results["memory_mb"])
        print(json.dumps(results["bars"], indent=1))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
