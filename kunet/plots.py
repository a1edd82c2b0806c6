"""Figures for the notebooks, in colours that colour-blind readers can tell apart (M. Okabe, K. Ito, 2008)."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from kunet import splines
from kunet.images import to_uint8
from kunet.kan import KANConv2d, KANLinear
from kunet.kan.layer import KANLayer

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MEASURES = {"psnr": "PSNR (dB)", "dice": "Dice (0 to 1)", "lr": "learning rate", "crops_per_s": "crops a second"}
"""Names in a run's log, with units."""


def style() -> None:
    """The book's look: these colours, quiet axes, sharp on dense screens. Call it once in a notebook."""
    plt.rcParams.update(
        {
            "axes.prop_cycle": plt.cycler(color=COLOURS),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "image.interpolation": "nearest",
            "legend.frameon": False,
        }
    )


def basis(knots: Float[Tensor, " knots"], degree: int, ax: Axes | None = None, order: int = 0) -> Axes:
    """Every B-spline of a degree over its knots (or its derivative of an order), knots marked below."""
    ax = ax or plt.subplots(figsize=(7, 2.6))[1]
    x = torch.linspace(float(knots[0]), float(knots[-1]), 801, dtype=torch.float64)
    values = splines.basis_derivative(x, knots.double(), degree, order)
    ax.plot(x, values)
    ax.plot(knots, torch.full_like(knots, float(values.min())), "|", color="black", markersize=12)
    ax.set(xlabel="x", ylabel=f"$B_{{i,{degree}}}(x)$" + ("" if not order else f", derivative {order}"))
    return ax


def images(named: Mapping[str, Float[Tensor, "C H W"]], columns: int | None = None, width: float = 9) -> Figure:
    """Images side by side under their names, pixels in [0, 1] (values outside are clipped, as a screen does)."""
    columns = columns or len(named)
    rows = -(-len(named) // columns)
    height, breadth = next(iter(named.values())).shape[-2:]
    figure, axes = plt.subplots(
        rows, columns, squeeze=False, figsize=(width, rows * (width / columns * height / breadth + 0.3))
    )
    for ax in axes.flat:
        ax.axis("off")
    for ax, (name, image) in zip(axes.flat, named.items()):
        ax.imshow(to_uint8(image), cmap="gray", vmin=0, vmax=255)
        ax.set_title(name, fontsize=9)
    return figure


def edges(
    layer: KANLinear,
    names_in: Sequence[str] = (),
    names_out: Sequence[str] = (),
    data: Float[Tensor, "N I"] | None = None,
    importance: Float[Tensor, "O I"] | None = None,
    limit: tuple[int, int] = (8, 8),
) -> Figure:
    """The learned function of every edge: a column an input, a row an output; each input's grid range is shaded.

    A pruned edge is the faint line 0 with the word "pruned".

    Args:
        names_in, names_out: labels of the inputs and outputs, in place of x_1, ... and y_1, ...
        data: inputs of the layer, (N, I): each column gets their histogram along the bottom, scaled to its tallest
            bar; what lies beyond the figure is left out (``layer.outside_share`` counts it).
        importance: (O, I) in [0, 1]: how opaque each line is.
        limit: draw at most this many (outputs, inputs), the first ones; a title then says what is not shown.
    Raises: ValueError on data or importance that do not fit the layer, or a limit below 1.
    """
    total_out, total_in = layer.out_features, layer.in_features
    if data is not None and data.shape[1] != total_in:
        raise ValueError(f"edges: data are {tuple(data.shape)}; the layer has {total_in} inputs, give (N, {total_in})")
    if importance is not None:
        if importance.shape != (total_out, total_in):
            raise ValueError(
                f"edges: importance is {tuple(importance.shape)}; the layer's edges are {(total_out, total_in)}"
            )
        if not bool(((importance >= 0) & (importance <= 1)).all()):
            raise ValueError("edges: importance must lie in [0, 1]; divide it by its largest value")
    if min(limit) < 1:
        raise ValueError(f"edges: limit is {limit}; show at least one output and one input")
    rows, columns = min(total_out, limit[0]), min(total_in, limit[1])
    figure, axes, x = _edge_axes(layer, rows, columns)
    for o in range(rows):
        for i in range(columns):
            _edge(axes[o, i], layer, x, (o, i), alpha=1.0 if importance is None else float(importance[o, i]))
            if data is not None:
                _histogram(axes[o, i], data[:, i], x)
            if o == rows - 1:
                axes[o, i].set_xlabel(names_in[i] if names_in else f"$x_{{{i + 1}}}$")
            if i == 0:
                axes[o, i].set_ylabel(names_out[o] if names_out else f"to $y_{{{o + 1}}}$")
    hidden = total_out * total_in - rows * columns
    if hidden:
        figure.suptitle(
            f"the first {rows} of {total_out} outputs and {columns} of {total_in} inputs;"
            f" {hidden} of {total_out * total_in} edges are not shown",
            fontsize=9,
        )
    return figure


def conv_edges(layer: KANConv2d, out_channel: int = 0, in_channel: int = 0) -> Figure:
    """The functions of one edge of a KAN convolution, kh x kw panels laid out as its taps; the grid range is shaded.

    Args: out_channel: from 0; in_channel: from 0, counted within the output's group (of C / groups channels).
    Raises: ValueError when there is no such edge.
    """
    outputs, inputs = layer.spline_weight.shape[:2]
    if not (0 <= out_channel < outputs and 0 <= in_channel < inputs):
        raise ValueError(
            f"conv_edges: out_channel {out_channel}, in_channel {in_channel}; the layer has {outputs} outputs of"
            f" {inputs} inputs each, counted from 0"
        )
    rows, columns = layer.kernel_size
    figure, axes, x = _edge_axes(layer, rows, columns)
    for p in range(rows):
        for q in range(columns):
            _edge(axes[p, q], layer, x, (out_channel, in_channel, p, q))
            axes[p, q].set_title(f"tap ({p}, {q})", fontsize=8)
            if p == rows - 1:
                axes[p, q].set_xlabel("pixel $x$")
            if q == 0:
                axes[p, q].set_ylabel(r"$\phi(x)$")
    channel = layer._feature(out_channel, in_channel)
    figure.suptitle(f"input channel {channel} to output channel {out_channel}, counted from 0", fontsize=9)
    return figure


def _edge_axes(layer: KANLayer, rows: int, columns: int) -> tuple[Figure, np.ndarray, Tensor]:
    """Axes (rows, columns) with common scales, and the x, a little past all grids, at which edges are drawn."""
    lower, upper = layer.grid_range
    x = torch.linspace(lower - 0.25 * (upper - lower), upper + 0.25 * (upper - lower), 301).to(layer.knots)
    size = (1.6 * columns + 0.8, 1.2 * rows + 0.6)
    figure, axes = plt.subplots(rows, columns, squeeze=False, sharex=True, sharey=True, figsize=size)
    return figure, axes, x


def _edge(ax: Axes, layer: KANLayer, x: Tensor, at: tuple[int, ...], alpha: float = 1.0) -> None:
    """One edge (output, input, *tap) over its own input's grid range."""
    knots = layer.knots[layer._feature(*at[:2])]
    ax.axvspan(float(knots[layer.degree]), float(knots[-layer.degree - 1]), color="black", alpha=0.06, lw=0)
    pruned = layer.edge_mask is not None and not bool(layer.edge_mask[at])
    with torch.no_grad():
        y = layer.edge(x, *at[:2], tap=at[2:])
    # Even the least important line leaves a trace: a missing one would look like a mistake.
    ax.plot(x.cpu(), y.cpu(), alpha=0.25 if pruned else 0.1 + 0.9 * alpha)
    if pruned:
        ax.text(0.5, 0.6, "pruned", transform=ax.transAxes, ha="center", fontsize=8, color="black", alpha=0.5)


def _histogram(ax: Axes, values: Tensor, x: Tensor) -> None:
    """Where values lie, in the lowest quarter of the axes whatever their scale in y is."""
    counts, bins = np.histogram(values.detach().cpu().double(), bins=40, range=(float(x[0]), float(x[-1])))
    heights = 0.25 * counts / max(counts.max(), 1)
    ax.stairs(heights, bins, fill=True, color=COLOURS[1], alpha=0.35, transform=ax.get_xaxis_transform())


def footprint(influence: Float[Tensor, "H W"], ax: Axes | None = None, title: str = "") -> Axes:
    """Which pixels (row, column) an influence map reaches: dark where it is not zero."""
    ax = ax or plt.subplots(figsize=(3.2, 3.2))[1]
    ax.imshow((influence != 0).numpy(), cmap="Blues", vmin=0, vmax=1.3)
    ax.set(title=title, xlabel="column (pixels)", ylabel="row (pixels)")
    ax.grid(False)
    return ax


def front(points: Mapping[str, tuple[float, float]], ours: Sequence[str], ax: Axes | None = None) -> Axes:
    """Denoisers by name at (time, PSNR in dB), ours as diamonds, and the Pareto front of those that none beats in both.

    Names of ours stand upright, because they lie close together; the best of the others has its name below.
    """
    ax = ax or plt.subplots()[1]
    others = [name for name in points if name not in ours]
    best = max(others, key=lambda name: points[name][1], default=None)
    for name, (time, psnr) in points.items():
        ax.plot(time, psnr, "D" if name in ours else "o", ms=8 if name in ours else 5)
        at = (0, 8) if name in ours else (3, -12) if name == best else (4, 4)
        stand = {"rotation": 90, "ha": "center"} if name in ours else {}
        ax.annotate(name, (time, psnr), at, textcoords="offset points", fontsize=8, **stand)
    unbeaten = [
        (time, psnr)
        for time, psnr in sorted(points.values())
        if not any(t <= time and p > psnr for t, p in points.values())
    ]
    ax.step(*zip(*unbeaten), where="post", color="gray", lw=1, zorder=0)
    ax.margins(y=0.1)
    low = min(psnr for _, psnr in points.values())
    high = max(psnr for _, psnr in points.values())
    ax.set_ylim(top=high + max(1.6, 0.4 * (high - low)))  # room for the names
    ax.set(xscale="log", ylabel=MEASURES["psnr"])
    return ax


def curves(
    rows: Sequence[Mapping[str, Any]], measure: str, ax: Axes | None = None, label: str | None = None, **line: Any
) -> Axes:
    """One measure of a run's log over the step; dotted lines are where the run was stopped and went on.

    Args:
        rows: the log, as ``Run.read_log`` gives it; rows without the measure are passed over.
        measure: a key of the rows, such as "loss", "psnr", "lr", "crops_per_s".
        label: for a legend; line: how matplotlib draws it.
    """
    ax = ax or plt.subplots(figsize=(4.5, 3))[1]
    points = [(row["step"], row[measure]) for row in rows if "step" in row and measure in row and "event" not in row]
    ax.plot([step for step, _ in points], [value for _, value in points], label=label, **{"marker": "."} | line)
    for row in rows:
        if row.get("event") == "started" and row["at"]:
            ax.axvline(row["at"], color="black", lw=0.8, ls=":")
    ax.set(xlabel="step", ylabel=MEASURES.get(measure, measure))
    return ax
