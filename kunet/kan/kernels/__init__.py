"""The sums of a KAN layer, by whichever kernel is fastest for a shape and a device.

sum_i sum_j c_{oij} B_j(x_i), for a linear layer and for a convolution. Every kernel equals ``reference``:

==========  ============================================================================================
reference   Cox-de Boor and one product, differentiable any number of times; slow
traced      closed form and one product, plain tensor operations for torch.compile, export and ONNX
eager       k + 1 values, spread out, one product a few hundred rows at a time; needs nothing but torch
local       compiled C++ for CPUs, float32: k + 2 multiply-adds an edge whatever G is (``compiled.py``)
triton      fused for CUDA, uniform grids: no basis in memory (``fused.py``)
==========  ============================================================================================

Nothing is compiled at import. ``auto`` compiles ``local`` (about two seconds, once a machine) the first time that a
layer is large enough to gain from it; set KUNET_KERNEL to the name of another kernel to overrule ``auto``.
``triton`` is for asking by name: it equals the reference in Triton's interpreter, and until it has been timed on a GPU
``auto`` takes ``eager`` there.
Notebook: notebooks/04_fast_kans.ipynb.
"""

import os
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from kunet.kan.bases import Basis
from kunet.kan.kernels import compiled, eager, fused
from kunet.kan.kernels.grid import Grid, Local, Outside

Kernel = Literal["auto", "reference", "traced", "eager", "local", "triton"]
KERNELS = get_args(Kernel)
# Measured with benchmarks/kan.py on 2 CPU cores: below, packing the weights costs more than is won.
LOCAL_ROWS = 192
LOCAL_WORK = 1 << 22  # rows x edges

__all__ = ["KERNELS", "Grid", "Kernel", "Local", "Outside", "choose", "conv2d", "linear"]


def choose(kernel: Kernel | str, x: Tensor, rows: int, edges: int, grid: Grid | Basis) -> str:
    """The kernel that serves rows of x through a number of edges.

    Raises: ValueError when the one that is asked for by name cannot.
    """
    if kernel == "auto":
        kernel = os.environ.get("KUNET_KERNEL", "auto")
    if kernel not in KERNELS:
        raise ValueError(f"kernel {kernel!r} is not known; choose one of {', '.join(KERNELS)}")
    if not isinstance(grid, Grid):
        return "traced"  # another basis
    tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if kernel == "auto":
        if tracing:
            return "traced"
        large = rows >= LOCAL_ROWS and rows * edges >= LOCAL_WORK
        return "local" if large and compiled.refuses(x, grid) is None else "eager"
    if tracing and kernel != "reference":
        return "traced"
    why = {"local": compiled.refuses, "triton": fused.refuses}.get(kernel, lambda x, grid: None)(x, grid)
    if why:
        raise ValueError(f"kernel {kernel!r}: {why}; choose 'auto' or 'eager'")
    return kernel


def linear(
    x: Float[Tensor, "*batch features"],
    grid: Grid | Basis,
    weight: Float[Tensor, "outputs features functions"],
    kernel: Kernel | str = "auto",
) -> Float[Tensor, "*batch outputs"]:
    """y_o = sum_i sum_j weight[o, i, j] B_j(x_i)."""
    _check("linear", x, x.shape[-1], grid, weight, weight.shape[1])
    rows = x.reshape(-1, x.shape[-1])
    chosen = choose(kernel, x, rows.shape[0], weight.shape[0] * weight.shape[1], grid)
    if chosen in ("reference", "traced"):
        planes = grid.reference(rows) if chosen == "reference" else grid.planes(rows)
        y = F.linear(planes.flatten(1), weight.flatten(1))
    else:
        y = {"eager": eager, "local": compiled, "triton": fused}[chosen].linear(rows, grid, weight)
    return y.reshape(*x.shape[:-1], weight.shape[0])


def conv2d(
    x: Float[Tensor, "B C H W"],
    grid: Grid | Basis,
    weight: Float[Tensor, "O I functions kh kw"],
    kernel: Kernel | str = "auto",
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Float[Tensor, "B O H2 W2"]:
    """y[b, o, h, w] = sum over i, dh, dw, j of weight[o, i, j, dh, dw] B_j(x[b, i, h', w']), as conv2d places h', w'.

    ``padding`` adds zeros to the *basis values*: a pixel outside contributes nothing. Kernels without a convolution of
    their own ("triton", and "local" where there are groups) hand over to "eager".
    """
    _check("conv2d", x, x.shape[1], grid, weight, weight.shape[1] * groups)
    settings = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    chosen = choose(kernel, x, x.shape[0] * x.shape[2] * x.shape[3], weight[:, :, 0].numel(), grid)
    if chosen == "triton" or (chosen == "local" and groups > 1):
        chosen = "eager"  # grouped planes and GPU convolutions are the library's business
    if chosen == "local":
        return compiled.conv2d(x, grid, weight, stride, padding, dilation)
    if chosen == "eager":
        return eager.conv2d(x, grid, weight, **settings)
    columns = x.permute(0, 2, 3, 1)
    planes = grid.reference(columns) if chosen == "reference" else grid.planes(columns)
    return F.conv2d(planes.flatten(3).permute(0, 3, 1, 2), weight.flatten(1, 2), **settings)


def _check(name: str, x: Tensor, features: int, grid: Grid | Basis, weight: Tensor, inputs: int) -> None:
    """Before any pointer goes to a compiled kernel: everything must fit."""
    if features != inputs or weight.shape[2] != grid.functions:
        raise ValueError(
            f"{name}: x has {features} features and the grid {grid.functions} functions; the weights are for {inputs}"
            f" and {weight.shape[2]} (after set_knots with another size, set the weights too, or use kan.grids)"
        )
    if x.device != weight.device or x.dtype != weight.dtype:
        raise ValueError(
            f"{name}: x is {x.dtype} on {x.device}, the weights {weight.dtype} on {weight.device}; they must agree"
        )
