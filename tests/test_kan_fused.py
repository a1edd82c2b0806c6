"""The fused CUDA kernel: interpreted on the CPU, compiled for GPUs that need not be there, run on one that is.

Its standard is the float64 reference. Triton interprets only if told so before it is imported: this file runs itself
as a script, once, and the tests read the errors that it prints.
"""

import importlib.util
import itertools
import json
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from kunet import splines
from kunet.kan import KANLinear, kernels
from kunet.kan.kernels import Grid, fused

TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not TRITON, reason="Triton is not installed (pip install triton)")
needs_gpu = pytest.mark.skipif(not (TRITON and torch.cuda.is_available()), reason="needs Triton and a CUDA device")
MODES = ("zero", "linear", "clamp")
SHAPES = ((1, 1, 1), (33, 7, 17), (7, 33, 5), (40, 3, 33), (32, 16, 16))  # N, I, O
TOLERANCE = 1e-5
# Every degree meets every grid, and so does every mode; the shapes go round.
CASES = [
    (degree, mode, (1, 5, 8)[(degree + m) % 3], SHAPES[(degree + 2 * m) % 5])
    for degree, (m, mode) in itertools.product(range(1, 6), enumerate(MODES))
]


def make(degree, mode, cells, features, device="cpu"):
    """A grid of steps of 1/4, on which knots are exact in float32."""
    lower, upper = -1.0, -1.0 + cells / 4
    knots = splines.uniform_knots(cells, degree, lower, upper).expand(features, -1)
    return Grid(knots.to(device), degree, (lower, upper, cells), mode)


def points(grid, rows, features):
    """Values in and around the grid, far from it, and on its knots (not where degree 1 has a kink at an end)."""
    lower, upper, _ = grid.uniform
    x = torch.empty(rows * features).uniform_(lower - 1, upper + 1)
    odd = torch.cat([torch.tensor([100.0, -100.0]), grid.knots[0, : -2 if grid.degree == 1 else None].cpu()])
    put = torch.randperm(len(x))[: len(odd)]
    x[put] = odd[: len(put)] if len(x) > 1 else lower + 0.3 * (upper - lower)
    return x.view(rows, features)


def relative(value, exact):
    return float((value - exact).detach().norm() / exact.detach().norm().clamp(min=1e-3))


def errors(degree, mode, cells, shape, device="cpu"):
    """Relative errors of y, of the gradient for x and of that for W."""
    torch.manual_seed(degree)
    rows, features, outputs = shape
    grid = make(degree, mode, cells, features, device)
    inputs = [points(grid, rows, features), torch.randn(outputs, features, cells + degree)]
    x, weight = (t.to(device).requires_grad_() for t in inputs)
    g = torch.randn(rows, outputs).to(device)
    y = kernels.linear(x, grid, weight, "triton")
    ours = y, *torch.autograd.grad(y, (x, weight), g)
    x, weight = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    y = F.linear(grid.reference(x).flatten(1), weight.flatten(1))
    exact = y, *torch.autograd.grad(y, (x, weight), g.double())
    return [relative(a, b) for a, b in zip(ours, exact)]


def with_nan(degree, mode):
    """Whether a NaN makes its row NaN and leaves the others as they are."""
    grid, weight = make(degree, mode, 5, 3), torch.randn(4, 3, 5 + degree)
    x = torch.randn(5, 3)
    clean = kernels.linear(x, grid, weight, "triton")
    x[2, 1] = float("nan")
    y = kernels.linear(x, grid, weight, "triton")
    rest = torch.arange(5) != 2
    return bool(y[2].isnan().all()) and torch.equal(y[rest], clean[rest])


def layers():
    """KANLinear by this kernel and by the eager one: the largest difference of values and gradients."""
    torch.manual_seed(0)
    fast, slow = (KANLinear(7, 5, scaler=True, bias=True, kernel=kernel) for kernel in ("triton", "eager"))
    slow.load_state_dict(fast.state_dict())
    x = torch.empty(2, 9, 7).uniform_(-1.5, 1.5)
    ys = [layer(x) for layer in (fast, slow)]
    for y in ys:
        y.square().sum().backward()
    pairs = [ys, *((p.grad, q.grad) for p, q in zip(fast.parameters(), slow.parameters()))]
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def autocast(dtype, device="cpu"):
    """Types of y and the gradients under autocast, and the relative error of y."""
    grid, weight = make(3, "linear", 8, 16, device), torch.randn(24, 16, 11, device=device, requires_grad=True)
    x = points(grid, 50, 16).clamp(-2, 2).to(device).requires_grad_()  # float16 ends at 65504
    with torch.autocast(device, dtype):
        y = kernels.linear(x, grid, weight, "triton")
    y.float().sum().backward()
    exact = kernels.linear(x, grid, weight, "reference")
    return [str(t.dtype) for t in (y, x.grad, weight.grad)], relative(y, exact)


def odds():
    """No rows; only one gradient asked for; the layout of x."""
    grid, weight = make(3, "zero", 5, 4), torch.randn(6, 4, 8, requires_grad=True)
    none = kernels.linear(torch.empty(0, 4), grid, weight, "triton")
    none.sum().backward()
    x = torch.randn(4, 9).T.requires_grad_()
    y = kernels.linear(x, grid, weight.detach(), "triton")
    y.sum().backward()
    laid_out = kernels.linear(x.detach().contiguous(), grid, weight.detach(), "triton")
    return list(none.shape), bool(weight.grad.any()), x.grad is not None, torch.equal(y.detach(), laid_out)


def many_rows():
    """The gradient for W summed in slices of rows: its relative error."""
    fused.SLICE = 16
    return errors(3, "zero", 5, (70, 3, 5))[2]


@pytest.fixture(scope="module")
def interpreted():
    """What this file prints as a script."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, __file__], capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout)


@needs_triton
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_the_reference(interpreted, case):
    assert max(interpreted["errors"][str(case)]) < TOLERANCE


@needs_triton
def test_interpreted(interpreted):
    assert interpreted["nan"] == [True] * 6
    assert interpreted["layers"] < TOLERANCE
    assert interpreted["many rows"] < TOLERANCE
    assert interpreted["odds"] == [[0, 6], False, True, True]
    types, error = interpreted["float16"]
    assert types == ["torch.float16", "torch.float32", "torch.float32"] and error < 2e-3
    assert not interpreted["imported too early"]


@needs_triton
@pytest.mark.skipif(fused.INTERPRETED, reason="Triton interprets, so it does not compile")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kernel", ["forward", "backward_x", "backward_w"])
def test_compiles_without_a_gpu(kernel, capability, monkeypatch, tmp_path):
    """To tensor-core products for bfloat16, and without TF32 for float32."""
    triton = pytest.importorskip("triton", minversion="3.4", reason="the compiler is called as Triton 3.4 has it")
    from triton.backends.compiler import GPUTarget

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = fused._kernels()[0][kernel].fn
    for kind, degree, mode in (("bf16", 5, "linear"), ("fp32", 1, "clamp")):
        fixed = {"DEGREE": degree, "OUTSIDE": mode} | dict(zip(fused.BLOCKS, fused.TILES[-1]))
        types = {"x_ptr": "*fp32", "gx_ptr": "*fp32", "parts_ptr": "*fp32", "lower": "fp32", "scale": "fp32"}
        types |= dict.fromkeys(("weight_ptr", "g_ptr", "y_ptr"), f"*{kind}") | dict.fromkeys(fixed, "constexpr")
        signature = {name: types.get(name, "i32") for name in function.arg_names}
        source = triton.compiler.ASTSource(function, signature, constexprs=fixed)
        compiled = triton.compile(source, GPUTarget("cuda", capability, 32), {"enable_fp_fusion": True})
        assert compiled.asm["cubin"]
        assert ("mma" in compiled.asm["ptx"]) == (kind == "bf16") and "tf32" not in compiled.asm["ptx"]


@pytest.mark.parametrize(
    "change,reason",
    [
        ({}, "Triton is not installed"),
        ({"interpreted": False}, "on cpu; it is for float32 on CUDA"),
        ({"dtype": torch.float64}, "x is torch.float64"),
        ({"dtype": torch.bfloat16}, "x is torch.bfloat16"),
        ({"degree": 0}, "degree 0; it is for 1 to 5"),
        ({"degree": 6}, "degree 6; it is for 1 to 5"),
        ({"uniform": None}, "not uniform"),
        ({"autocast": True}, "interpreter multiplies the bits of bfloat16"),
        ({"capability": (7, 5)}, "older than compute capability 8.0"),
    ],
)
def test_refuses(change, reason, monkeypatch):
    monkeypatch.setattr(fused, "INTERPRETED", change.get("interpreted", True))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: change["capability"])
    x, grid = torch.zeros(2, 3, dtype=change.get("dtype")), make(change.get("degree", 3), "zero", 5, 3)
    if "uniform" in change:
        grid = Grid(grid.knots, 3, None)
    if "capability" in change:
        x = x.as_subclass(type("OnGPU", (torch.Tensor,), {"device": torch.device("cuda")}))
    with torch.autocast("cpu", torch.bfloat16, enabled="autocast" in change):
        assert reason in fused.refuses(x, grid)


def test_on_a_cpu_it_is_not_chosen():
    x, grid = torch.zeros(4, 3), make(3, "zero", 5, 3)
    if not fused.INTERPRETED:
        assert kernels.choose("auto", x, 4, 6, grid) != "triton"
        with pytest.raises(ValueError, match=r"kernel 'triton': .* it is for float32 on CUDA; choose 'auto'"):
            kernels.linear(x, grid, torch.zeros(2, 3, 8), "triton")


@needs_gpu
@pytest.mark.parametrize("case", [*CASES, (3, "zero", 8, (5000, 70, 130)), (2, "linear", 5, (9001, 64, 64))], ids=str)
def test_equals_the_reference_on_a_gpu(case):
    assert max(errors(*case, device="cuda")) < TOLERANCE


@needs_gpu
def test_bfloat16_autocast_on_a_gpu():
    types, error = autocast(torch.bfloat16, "cuda")
    assert types == ["torch.bfloat16", "torch.float32", "torch.float32"] and error < 1e-2


@needs_gpu
def test_the_same_bits_again_on_a_gpu():
    x, weight = torch.randn(9000, 32, device="cuda"), torch.randn(32, 32, 8, device="cuda", requires_grad=True)
    grid, gradients = make(3, "zero", 5, 32, "cuda"), []
    for _ in range(2):
        y = kernels.linear(x, grid, weight, "triton")
        gradients += torch.autograd.grad(y.square().sum(), weight)
    assert torch.equal(*gradients)


if __name__ == "__main__":
    report = {"imported too early": "triton" in sys.modules}
    report["errors"] = {str(case): errors(*case) for case in CASES}
    report["nan"] = [with_nan(degree, mode) for degree in (1, 4) for mode in MODES]
    report |= {"layers": layers(), "float16": autocast(torch.float16), "odds": odds(), "many rows": many_rows()}
    print(json.dumps(report))
