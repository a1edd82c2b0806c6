"""Figures for the notebooks, in colours that colour-blind readers can tell apart (M. Okabe, K. Ito, 2008)."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from kunet import splines
from kunet.images import to_uint8
from kunet.kan import KANLinear

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")


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


def edges(layer: KANLinear, names_in: Sequence[str] = (), names_out: Sequence[str] = ()) -> Figure:
    """The learned function of every edge: a column an input, a row an output; the grid's range is shaded."""
    lower, upper = layer.grid_range
    x = torch.linspace(lower - 0.25 * (upper - lower), upper + 0.25 * (upper - lower), 301).to(layer.knots)
    rows, columns = layer.out_features, layer.in_features
    figure, axes = plt.subplots(
        rows, columns, squeeze=False, sharex=True, sharey=True, figsize=(1.6 * columns + 0.8, 1.2 * rows + 0.6)
    )
    for o in range(rows):
        for i in range(columns):
            ax = axes[o, i]
            ax.axvspan(lower, upper, color="black", alpha=0.06, lw=0)
            with torch.no_grad():
                ax.plot(x, layer.edge(x, o, i))
            if o == rows - 1:
                ax.set_xlabel(names_in[i] if names_in else f"$x_{{{i + 1}}}$")
            if i == 0:
                ax.set_ylabel(names_out[o] if names_out else f"to $y_{{{o + 1}}}$")
    return figure


def footprint(influence: Float[Tensor, "H W"], ax: Axes | None = None, title: str = "") -> Axes:
    """Which pixels (row, column) an influence map reaches: dark where it is not zero."""
    ax = ax or plt.subplots(figsize=(3.2, 3.2))[1]
    ax.imshow((influence != 0).numpy(), cmap="Blues", vmin=0, vmax=1.3)
    ax.set(title=title, xlabel="column (pixels)", ylabel="row (pixels)")
    ax.grid(False)
    return ax
