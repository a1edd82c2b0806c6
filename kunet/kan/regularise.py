"""Penalties on a layer's edges: sparse, smooth, small. Each is one number to add to the loss."""

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from kunet import splines
from kunet.kan.layer import KANLayer, exact


def edge_values(layer: KANLayer, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "rows outputs inputs *taps"]:
    """phi_{o,i}(x_i) of every edge for every row; for a convolution, features last, of every tap.

    Rows x edges numbers: give a sample of the data, not all of it.
    """
    rows = exact(x.reshape(-1, x.shape[-1]))
    members, weight = layer.spline_weight.shape[1], layer.base_coefficients()
    grouped = lambda t: t.unflatten(0, (len(layer.knots) // members, -1))
    planes = layer.grid.planes(rows).unflatten(1, (-1, members))  # rows, groups, inputs of the group, functions
    y = torch.einsum("pgij,goij...->pgoi...", planes, grouped(layer.coefficients())).flatten(1, 2)
    if weight is None:
        return y
    values = layer.base(rows)[:, layer.features_of_inputs()]
    return y + values.view(*values.shape, *[1] * (weight.dim() - 2)) * weight


def edge_strength(layer: KANLayer, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "outputs inputs *taps"]:
    """The L1 norm of each edge: mean |phi_{o,i}(x_i)| over the rows. Source: arXiv 2404.19756, equation 2.17."""
    return edge_values(layer, x).abs().mean(0)


def sparsity(layer: KANLayer, x: Float[Tensor, "*batch features"], entropy: float = 1.0) -> Float[Tensor, ""]:
    """|Phi|_1 + entropy S(Phi): the sum of all edges' strengths, and how evenly it is spread over them.

    S = -sum_e p_e log p_e, p_e = strength_e / sum. It is least when few edges carry all.
    Source: arXiv 2404.19756, equations 2.18-2.20.
    """
    strength = edge_strength(layer, x).flatten()
    total = strength.sum()
    share = strength / total.clamp(min=1e-12)
    return total - entropy * (share * share.clamp(min=1e-12).log()).sum()


def control_l1(layer: KANLayer) -> Float[Tensor, ""]:
    """Mean |c| of the control values: sparse and cheap, no data needed."""
    return layer.coefficients().abs().mean()


def control_l2(layer: KANLayer) -> Float[Tensor, ""]:
    """Mean c^2 of the control values."""
    return layer.coefficients().square().mean()


def smoothness(layer: KANLayer) -> Float[Tensor, ""]:
    """Mean over edges of the integral of phi''(x)^2 over the grid (the splines' part), in closed form.

    It is c^T Q c with Q_{jl} the integral of B_j'' B_l'', a product of polynomials that Gauss-Legendre quadrature
    with ``degree`` points a cell integrates exactly. Units: those of phi squared over those of x cubed.
    Raises: ValueError for degrees below 2, whose second derivative says nothing, and other bases than B-splines.
    Source: P. H. C. Eilers and B. D. Marx, "Flexible smoothing with B-splines and penalties", 1996, compare there.
    """
    if layer.basis != "bspline" or layer.degree < 2:
        raise ValueError(
            f"smoothness: basis {layer.basis!r} of degree {layer.degree}; give B-splines of degree 2 or more"
        )
    members = layer.spline_weight.shape[1]
    rough = roughness(layer.knots, layer.degree).to(layer.spline_weight).unflatten(0, (-1, members))
    c = layer.coefficients().unflatten(0, (len(rough), -1))
    energy = (c * torch.einsum("gijl,goil...->goij...", rough, c)).sum()
    return energy / layer.spline_weight[:, :, 0].numel()


def roughness(knots: Float[Tensor, "features knots"], degree: int) -> Float[Tensor, "features functions functions"]:
    """Q, the integrals of B_j'' B_l'' over the base interval of each feature's knots, float64."""
    return _roughness(tuple(map(tuple, knots.double().tolist())), degree)


@lru_cache(maxsize=32)
def _roughness(rows: tuple[tuple[float, ...], ...], degree: int) -> Tensor:
    knots = torch.tensor(rows, dtype=torch.float64)
    breaks = knots[:, degree : knots.shape[1] - degree]
    nodes, weights = _gauss_legendre(max(degree, 1))
    width = breaks.diff(dim=1)[..., None]
    points = (breaks[:, :-1, None] + width * nodes).flatten(1).T
    bent = splines.basis_derivative(points, knots, degree, 2)
    return torch.einsum("pfj,pfl,fp->fjl", bent, bent, (width * weights).flatten(1))


def _gauss_legendre(count: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1], as eigenvalues of the Jacobi matrix (Golub and Welsch, 1969)."""
    n = torch.arange(1, count, dtype=torch.float64)
    off = n / (4 * n.square() - 1).sqrt()
    values, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return (values + 1) / 2, vectors[0].square()
