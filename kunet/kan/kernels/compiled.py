"""``local.cpp`` for this machine: compiled on first use, kept in the user's cache, called through ctypes."""

import ctypes
import hashlib
import math
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import warnings
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kunet.kan.kernels.grid import Grid, traced_gradients

FLAGS = ("-O3", "-march=native", "-fno-trapping-math", "-fno-math-errno", "-std=c++17", "-fopenmp", "-shared", "-fPIC")
OUTSIDE = {"zero": 0, "linear": 1, "clamp": 2}
MAX_DEGREE = 5
_LINEAR = ((1, 1), (1, 1), (1, 1), (1, 1), (0, 0), (1, 1))


class _Grid(ctypes.Structure):
    """Grid of local.cpp."""

    _fields_ = [
        ("lower", ctypes.c_float),
        ("inverse_step", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("cells", "outside", "uniform", "pieces")),
        *((name, ctypes.c_void_p) for name in ("breaks", "tables", "ends", "first")),
    ]


class _Problem(ctypes.Structure):
    """Problem of local.cpp."""

    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in (
            *("rows", "features", "functions", "outputs", "convolution", "in_h", "in_w", "out_h", "out_w", "kh", "kw"),
            *("stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w"),
        )
    )


def refuses(x: Tensor, grid: Grid) -> str | None:
    """Why the compiled kernel cannot serve, or None."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return f"x is {x.dtype} on {x.device}; it is for float32 on the CPU"
    if grid.degree > MAX_DEGREE:
        return f"degree {grid.degree}; it goes up to {MAX_DEGREE}"
    return None if library(grid.degree) else "no C++ compiler that understands OpenMP was found (set CXX to name one)"


def library(degree: int) -> ctypes.CDLL | None:
    """``local.cpp`` for a degree; None where it cannot be built."""
    return load("local", f"-DDEGREE={degree}")


@cache
def load(source: str, *options: str) -> ctypes.CDLL | None:
    """A C++ file of this folder as a library, built if need be; None where that is impossible."""
    path = Path(__file__).with_name(f"{source}.cpp")
    named = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if not named:
        return None
    compiler = shlex.split(named)  # CXX may be "ccache g++"
    words = [path.read_text(), *compiler, *FLAGS, *options, _processor()]
    name = f"{source}-{hashlib.sha256(' '.join(words).encode()).hexdigest()[:20]}.so"
    for folder in (_cache(), Path(tempfile.gettempdir()) / f"kunet-{os.getuid() if hasattr(os, 'getuid') else 0}"):
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            about = folder.lstat()
            if hasattr(os, "getuid") and (about.st_uid != os.getuid() or about.st_mode & 0o022 or folder.is_symlink()):
                continue  # never load code from a folder that someone else can write
            return ctypes.CDLL(str(_build([*compiler, *FLAGS, *options, str(path)], folder / name)))
        except (subprocess.CalledProcessError, FileNotFoundError) as error:
            reason = (str(getattr(error, "stderr", error)).strip().splitlines() or ["no message"])[0]
            warnings.warn(f"kunet: {named} could not build the fast KAN kernel ({reason})", stacklevel=3)
            return None
        except OSError:
            continue  # a folder that cannot be written, or one mounted without permission to run code
    return None


def _build(command: list[str], path: Path) -> Path:
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:  # two processes may build at once
            made = Path(scratch) / path.name
            subprocess.run([*command, "-o", str(made)], check=True, capture_output=True, text=True)
            os.replace(made, path)
    return path


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kunet"


def _processor() -> str:
    """What -march=native depends on: a cache may be shared by the different machines of a cluster."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return " ".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    except OSError:
        return platform.processor() + platform.machine()


def _describe(grid: Grid) -> tuple[_Grid, tuple[Tensor, ...]]:
    """The grid as C sees it, and the tensors that must outlive it."""
    c = _Grid(outside=OUTSIDE[grid.outside], uniform=grid.uniform is not None)
    if grid.uniform is not None:
        lower, upper, c.cells = grid.uniform
        c.lower, c.inverse_step = lower, c.cells / (upper - lower)
        return c, ()
    kept = grid.tables
    c.pieces = kept[0].shape[1] - 1
    for name, tensor in zip(("breaks", "tables", "ends", "first"), kept):
        setattr(c, name, tensor.data_ptr())
    return c, kept


class _Sums(torch.autograd.Function):
    """x (rows, I), weight (O, I, J, taps) -> y (rows out, O); keeps x and weight for backward.

    geometry: sizes of input and output, kernel, stride, padding, dilation, six pairs; _LINEAR for a linear layer.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, grid: Grid, geometry: tuple) -> Tensor:
        ctx.save_for_backward(x, weight)
        x, weight = x.contiguous(), weight.contiguous()
        ctx.grid, ctx.geometry = grid, geometry
        per_image = math.prod(geometry[0]), math.prod(geometry[1])
        y = x.new_empty(len(x) // per_image[0] * per_image[1], len(weight))
        if y.numel():
            _call("kan_forward", grid, _problem(x, weight, geometry), x, weight, y)
        return y

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple:
        x, weight = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: gradients that can be differentiated again
            y = _plain(x, weight, ctx.grid, ctx.geometry)
            return *traced_gradients(y, (x, weight), ctx.needs_input_grad[:2], g), None, None
        x, weight = x.contiguous(), weight.contiguous()
        gx = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        gw = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        if g.numel():
            problem = _problem(x, weight, ctx.geometry)
            _call("kan_backward", ctx.grid, problem, x, weight, g.float().contiguous(), gx, gw)
        return gx, gw, None, None


def _plain(x: Tensor, weight: Tensor, grid: Grid, geometry: tuple) -> Tensor:
    """The same sums as tensor operations."""
    (height, width), _, kernel, stride, padding, dilation = geometry
    planes = grid.planes(x).view(-1, height, width, weight.shape[1] * weight.shape[2]).permute(0, 3, 1, 2)
    y = F.conv2d(planes, weight.flatten(1, 2).unflatten(-1, kernel), None, stride, padding, dilation)
    return y.permute(0, 2, 3, 1).flatten(0, 2)


def _problem(x: Tensor, weight: Tensor, geometry: tuple) -> _Problem:
    sizes = (len(x), weight.shape[1], weight.shape[2], weight.shape[0], geometry != _LINEAR)
    return _Problem(*sizes, *(number for pair in geometry for number in pair))


def _call(name: str, grid: Grid, problem: _Problem, *tensors: Tensor | None) -> None:
    described, _kept = _describe(grid)
    pointers = [ctypes.c_void_p(t.data_ptr() if t is not None else None) for t in tensors]
    getattr(library(grid.degree), name)(ctypes.byref(problem), ctypes.byref(described), *pointers)


def linear(
    x: Float[Tensor, "rows features"], grid: Grid, weight: Float[Tensor, "outputs features functions"]
) -> Float[Tensor, "rows outputs"]:
    """y_o = sum_i sum_j weight[o, i, j] B_j(x_i)."""
    return _Sums.apply(x, weight[..., None].float(), grid, _LINEAR)


def conv2d(
    x: Float[Tensor, "B C H W"],
    grid: Grid,
    weight: Float[Tensor, "O C functions kh kw"],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Float[Tensor, "B O H2 W2"]:
    """A convolution without groups: each input pixel sends one sum through each tap, and outputs add them up."""
    batch, channels, *sizes = x.shape
    kernel = tuple(weight.shape[-2:])
    axes = zip(sizes, padding, dilation, kernel, stride)
    out = tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in axes)
    rows = x.permute(0, 2, 3, 1).reshape(-1, channels)
    geometry = (tuple(sizes), out, kernel, stride, padding, dilation)
    y = _Sums.apply(rows, weight.flatten(3).float(), grid, geometry)
    return y.view(batch, *out, len(weight)).permute(0, 3, 1, 2).contiguous()
