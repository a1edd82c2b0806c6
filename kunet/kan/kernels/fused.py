"""The sums fused for CUDA, in Triton: basis values live in registers alone, on their way into a matrix product.

On a uniform grid every basis function is one bump beta_k (``splines.cardinal``) about a centre c_j = j - (k - 1)/2:

    y[n, o]     = sum_j sum_i beta_k(s - c_j) W[o, i, j],   s = (x[n, i] - lower) G / (upper - lower),
    gx[n, i]    = sum_j beta_k'(s - c_j) ds/dx sum_o g[n, o] W[o, i, j],
    gW[o, i, j] = sum_n g[n, o] beta_k(s - c_j).

These are products of 2 N I O (G + k) operations, as in the dense form of ``eager.py``, but each makes one factor from
a tile of x where it needs it and moves N I + I O (G + k) + N O numbers, not N I (G + k) more. Backward keeps x and W.
Sums are in float32 and in a fixed order: no atomics. Products are float32 (no TF32), or under autocast of its type:
values, still made in float32, W and g are rounded to it.

Source: the dense form is efficient-kan's (H. Cao, 2024); to make a factor where it is used, and again in backward, is
how FlashAttention saves memory (T. Dao et al., arXiv 2205.14135).
"""

from __future__ import annotations  # the kernels name tl, which is imported when they are first used

import importlib.util
import inspect
import os
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from kunet.kan.kernels.grid import Grid, traced_gradients

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's own switch: kernels run on the CPU, for tests
MAX_DEGREE = 5
CAPABILITY = (8, 0)  # the first with products of bfloat16 and a maximum that keeps NaN
BLOCKS = ("ROWS", "COLUMNS", "SUMMED")  # of a program's result, and how much of the summed axis it reads at a time
TILES = ((64, 256, 32, 8), (128, 128, 32, 8), (128, 64, 32, 8), (64, 64, 32, 4), (64, 32, 16, 4))  # ..., warps
INTERPRETED_TILE = (32, 16, 16)
SLICE, PROGRAMS = 2048, 256  # gW: rows that are worth a program of their own, and programs that fill a GPU


def refuses(x: Tensor, grid: Grid) -> str | None:
    """Why the fused kernel cannot serve, or None."""
    if x.dtype != torch.float32 or (x.device.type != "cuda" and not INTERPRETED):
        return f"x is {x.dtype} on {x.device}; it is for float32 on CUDA"
    if grid.uniform is None:
        return "the grid is not uniform"
    if not 1 <= grid.degree <= MAX_DEGREE:
        return f"degree {grid.degree}; it is for 1 to {MAX_DEGREE}"
    if x.device.type == "cuda" and torch.cuda.get_device_capability(x.device) < CAPABILITY:
        return "the GPU is older than compute capability {}.{}".format(*CAPABILITY)
    if INTERPRETED and _product_type(x) == torch.bfloat16:
        return "Triton's interpreter multiplies the bits of bfloat16 as integers"
    return None if importlib.util.find_spec("triton") else "Triton is not installed (pip install triton)"


def linear(
    x: Float[Tensor, "rows features"], grid: Grid, weight: Float[Tensor, "outputs features functions"]
) -> Float[Tensor, "rows outputs"]:
    """y_o = sum_i sum_j weight[o, i, j] B_j(x_i) in float32, or in autocast's type, of what ``refuses`` lets pass."""
    return _Sums.apply(x, weight.float(), grid, _product_type(x))


def _product_type(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32


class _Sums(torch.autograd.Function):
    """x (N, I), weight (O, I, J) -> y (N, O), products and y in a given type; keeps x and weight for backward."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, grid: Grid, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x, weight)
        x = x.contiguous()
        ctx.grid, ctx.dtype = grid, dtype
        y = x.new_empty(len(x), len(weight), dtype=dtype)
        _launch("forward", y.shape, grid, weight, x, _planes(weight, dtype), y)
        return y

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple:
        if torch.is_grad_enabled():  # create_graph: gradients that can be differentiated again
            x, weight = ctx.saved_tensors
            y = torch.einsum("nij,oij->no", ctx.grid.planes(x), weight)
            return *traced_gradients(y, (x, weight), ctx.needs_input_grad[:2], g.to(y.dtype)), None, None
        (x, weight), grid, gx, gw = ctx.saved_tensors, ctx.grid, None, None
        x = x.contiguous()
        g, edges = g.to(ctx.dtype).contiguous(), weight[0].numel()
        if ctx.needs_input_grad[0]:
            gx = torch.empty_like(x)
            _launch("backward_x", x.shape, grid, weight, x, _planes(weight, ctx.dtype), g, gx)
        if ctx.needs_input_grad[1]:  # gW has few tiles: where there are many rows, slices of them sum on their own
            tiles = -(-edges // 64) * -(-len(weight) // 64)
            slices = max(1, min(len(x) // SLICE, PROGRAMS // tiles))
            parts = weight.new_zeros(slices, *weight.shape)
            _launch("backward_w", (edges, len(weight), slices), grid, weight, x, g, parts)
            gw = parts.sum(0)
        return gx, gw, None, None


def _planes(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """W as (J, I, O)."""
    # A tile of W_j is then rows of neighbours: 16 bytes a copy to shared memory, for products with W_j and with W_j^T.
    # In (O, I, J) they lie J apart, and each of N / ROWS programs would fetch J times the bytes. The copy reads W once.
    return weight.permute(2, 1, 0).to(dtype).contiguous()


def _launch(name: str, result: tuple[int, ...], grid: Grid, weight: Tensor, x: Tensor, *tensors: Tensor) -> None:
    """Run a kernel, a program for each tile of its result (rows, columns[, slices])."""
    if not x.numel():
        return
    rows, columns, slices = (*result, 1)[:3]
    programs = lambda meta: (-(-rows // meta["ROWS"]), -(-columns // meta["COLUMNS"]), slices)
    lower, upper, cells = grid.uniform
    sizes = (*x.shape, weight.shape[0], weight.shape[2], lower, cells / (upper - lower), len(x).bit_length() // 3)
    kernels, options = _kernels()
    with torch.cuda.device_of(x):
        kernels[name][programs](x, *tensors, *sizes, DEGREE=grid.degree, OUTSIDE=grid.outside, **options)


@cache
def _kernels() -> tuple[dict, dict]:
    """The kernels by name, and options to call them with. The fastest of TILES for a shape is found on first use."""
    global tl
    import triton
    import triton.language as tl

    for function in (_place, _cardinal, _slope, _value, _forward, _backward_x, _backward_w):
        # under its own name, since kernels find what they call among the names of the module
        globals()[function.__name__] = triton.jit(inspect.unwrap(function))
    kernels = {"forward": _forward, "backward_x": _backward_x, "backward_w": _backward_w}
    if INTERPRETED:
        return kernels, dict(zip(BLOCKS, INTERPRETED_TILE))
    configs = [triton.Config(dict(zip(BLOCKS, tile)), num_warps=tile[-1], num_stages=3) for tile in TILES]
    tune = triton.autotune(configs, key=["features", "outputs", "functions", "size", "DEGREE", "OUTSIDE"])
    return {name: tune(kernel) for name, kernel in kernels.items()}, {"enable_fp_fusion": True}


# What follows is Triton's dialect of Python; a tl.constexpr is known when a kernel is compiled.


def _place(x, lower, scale, cells, OUTSIDE: tl.constexpr):
    """s, and where the basis is evaluated: there, or at the nearest end."""
    s = (x - lower) * scale
    return s, s if OUTSIDE == "zero" else tl.clamp(s, 0.0, cells * 1.0, propagate_nan=tl.PropagateNan.ALL)


def _cardinal(t, DEGREE: tl.constexpr, POWER: tl.constexpr):
    """sum_i (-1)^i C(k+1, i) ((k+1)/2 - i - |t|)_+^p / p!: beta_k(t) for p = k, -sign(t) beta_k'(t) for p = k - 1."""
    value, factor = tl.zeros_like(t), 1.0
    for p in tl.static_range(2, POWER + 1):
        factor = factor / p
    for i in tl.static_range(DEGREE // 2 + 1):
        above = tl.maximum((DEGREE + 1) / 2 - i - tl.abs(t), 0.0, propagate_nan=tl.PropagateNan.ALL)
        power = above
        for _ in tl.static_range(1, POWER):
            power = power * above
        value += power * factor
        factor = factor * (i - DEGREE - 1) / (i + 1)
    return value


def _slope(at, cells, centre, DEGREE: tl.constexpr, OUTSIDE: tl.constexpr):
    """beta_k'(at - centre). Where it jumps, for k = 1: from the right; at an upper end that ends it, from inside."""
    t = at - centre
    if DEGREE > 1:
        slope = tl.where(t < 0, 1.0, -1.0) * _cardinal(t, DEGREE, DEGREE - 1)
    else:
        t = t if OUTSIDE == "zero" else tl.where(at >= cells, t - 0.5, t)
        slope = tl.where((t >= -1) & (t < 0), 1.0, 0.0) - tl.where((t >= 0) & (t < 1), 1.0, 0.0)
    return slope


def _value(s, at, cells, centre, DEGREE: tl.constexpr, OUTSIDE: tl.constexpr):
    """beta_k(at - centre), and its tangent beyond the ends if it is to go on."""
    value = _cardinal(at - centre, DEGREE, DEGREE)
    if OUTSIDE == "linear":
        value += (s - at) * _slope(at, cells, centre, DEGREE, OUTSIDE)
    return value


def _forward(
    x_ptr, weight_ptr, y_ptr, rows, features, outputs, functions, lower, scale, size, DEGREE: tl.constexpr,
    OUTSIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SUMMED: tl.constexpr,
):  # fmt: skip
    """A tile of y (N, O) from x (N, I) and W (J, I, O): each tile of x is read once and serves all j."""
    n = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    o = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    y = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, features, SUMMED):
        i = start + tl.arange(0, SUMMED)
        x = tl.load(x_ptr + n * features + i[None, :], mask=(n < rows) & (i[None, :] < features), other=0.0)
        s, at = _place(x, lower, scale, functions - DEGREE, OUTSIDE)
        tile, held = weight_ptr + i[:, None] * outputs + o, (i[:, None] < features) & (o < outputs)
        for j in range(functions):
            weight = tl.load(tile, mask=held, other=0.0)
            value = _value(s, at, functions - DEGREE, j - (DEGREE - 1) / 2, DEGREE, OUTSIDE)
            y = tl.dot(value.to(weight.dtype), weight, y, input_precision="ieee")
            tile += features * outputs
    tl.store(y_ptr + n * outputs + o, y.to(y_ptr.dtype.element_ty), mask=(n < rows) & (o < outputs))


def _backward_x(
    x_ptr, weight_ptr, g_ptr, gx_ptr, rows, features, outputs, functions, lower, scale, size, DEGREE: tl.constexpr,
    OUTSIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SUMMED: tl.constexpr,
):  # fmt: skip
    """A tile of gx (N, I) from x, W (J, I, O) and g (N, O): for each j the product g W_j^T, times a slope."""
    n = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    i = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    place, held = n * features + i[None, :], (n < rows) & (i[None, :] < features)
    s, at = _place(tl.load(x_ptr + place, mask=held, other=0.0), lower, scale, functions - DEGREE, OUTSIDE)
    gx = tl.zeros((ROWS, COLUMNS), tl.float32)
    for j in range(functions):
        product = tl.zeros((ROWS, COLUMNS), tl.float32)
        for start in range(0, outputs, SUMMED):
            o = start + tl.arange(0, SUMMED)[None, :]
            g = tl.load(g_ptr + n * outputs + o, mask=(n < rows) & (o < outputs), other=0.0)
            inside = (i[:, None] < features) & (o < outputs)
            weight = tl.load(weight_ptr + i[:, None] * outputs + o, mask=inside, other=0.0)
            product = tl.dot(g, tl.trans(weight), product, input_precision="ieee")
        gx += product * _slope(at, functions - DEGREE, j - (DEGREE - 1) / 2, DEGREE, OUTSIDE)
        weight_ptr += features * outputs
    if OUTSIDE == "clamp":
        gx = tl.where(s == at, gx, 0.0)
    tl.store(gx_ptr + place, gx * scale, mask=held)


def _backward_w(
    x_ptr, g_ptr, parts_ptr, rows, features, outputs, functions, lower, scale, size, DEGREE: tl.constexpr,
    OUTSIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SUMMED: tl.constexpr,
):  # fmt: skip
    """A tile of gW (O, I J) summed over a slice of n: several (i, j) side by side share a tile of g."""
    c = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    o = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    width, i, centre = features * functions, c // functions, c % functions - (DEGREE - 1) / 2
    share = tl.cdiv(tl.cdiv(rows, tl.num_programs(2)), SUMMED) * SUMMED
    gw = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, share, SUMMED):
        n = tl.program_id(2).to(tl.int64) * share + start + tl.arange(0, SUMMED)
        x = tl.load(x_ptr + n[None, :] * features + i, mask=(n[None, :] < rows) & (c < width), other=0.0)
        g = tl.load(g_ptr + n[:, None] * outputs + o, mask=(n[:, None] < rows) & (o < outputs), other=0.0)
        s, at = _place(x, lower, scale, functions - DEGREE, OUTSIDE)
        value = _value(s, at, functions - DEGREE, centre, DEGREE, OUTSIDE)
        gw = tl.dot(value.to(g.dtype), g, gw, input_precision="ieee")
    place = (tl.program_id(2).to(tl.int64) * outputs + o) * width + c
    tl.store(parts_ptr + place, gw, mask=(c < width) & (o < outputs))
