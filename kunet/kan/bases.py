"""Other bases than B-splines, behind the same layers, to compare with: each has G + k functions over [a, b].

z below is x mapped so that [a, b] becomes [-1, 1]. A basis offers ``functions`` and
``planes(x)``: (..., I) -> (..., I, G + k).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Basis(ABC):
    """A fixed set of functions, the same for every feature.

    Args: grid_size, degree: G and k, so that there are as many functions as B-splines would be; grid_range: [a, b].
    """

    grid_size: int
    degree: int
    grid_range: tuple[float, float]

    @property
    def functions(self) -> int:
        return self.grid_size + self.degree

    def planes(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features functions"]:
        lower, upper = self.grid_range
        return self.of((2 * x - (lower + upper)) / (upper - lower))

    reference = planes

    @abstractmethod
    def of(self, z: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch features functions"]:
        """The functions at z."""

    def _bumps(self, z: Tensor) -> Tensor:
        """(z - centre) / spacing for centres spread evenly over [-1, 1]."""
        n = self.functions
        centres = torch.arange(n, dtype=z.dtype, device=z.device) * (2 / max(n - 1, 1)) - (1 if n > 1 else 0)
        return (z[..., None] - centres) * (max(n - 1, 1) / 2)


class Gaussian(Basis):
    """Radial basis exp(-((z - c_j) / h)^2). Source: Z. Li, FastKAN, arXiv 2405.06721."""

    def of(self, z: Tensor) -> Tensor:
        return torch.exp(-self._bumps(z).square())


class Wavelet(Basis):
    """Mexican hats (1 - t^2) exp(-t^2 / 2), t = (z - c_j) / h, at fixed places and one scale.

    Source: Z. Bozorgasl and H. Chen, Wav-KAN, arXiv 2405.12832, which also learns place and scale of each edge.
    """

    def of(self, z: Tensor) -> Tensor:
        square = self._bumps(z).square()
        return (1 - square) * torch.exp(-square / 2)


class Chebyshev(Basis):
    """T_n(z) for n = 0, ..., G + k - 1, with z held in [-1, 1]: they explode outside.

    Source: S. S. Sidharth et al., arXiv 2405.07200, which maps by tanh instead.
    """

    def of(self, z: Tensor) -> Tensor:
        return _chebyshev(z.clamp(-1, 1), self.functions)


class Rational(Basis):
    """Rational Chebyshev functions T_n(z / sqrt(1 + z^2)), smooth on the whole line.

    Source: J. P. Boyd, "Spectral methods using rational basis functions on an infinite interval",
    J. Comput. Phys. 69, 1987; in KANs, A. A. Aghaei, arXiv 2406.14495.
    """

    def of(self, z: Tensor) -> Tensor:
        return _chebyshev(z / torch.sqrt(1 + z.square()), self.functions)


class Fourier(Basis):
    """1, cos(pi m z / 2), sin(pi m z / 2), m = 1, 2, ...: period 4, twice the grid, so that ends need not meet.

    Source: J. Xu et al., FourierKAN-GCF, arXiv 2406.01034.
    """

    def of(self, z: Tensor) -> Tensor:
        m = torch.arange(1, self.functions // 2 + 1, dtype=z.dtype, device=z.device) * (math.pi / 2)
        angle = z[..., None] * m
        both = torch.stack([torch.sin(angle), torch.cos(angle)], -1).flatten(-2)
        return torch.cat([torch.ones_like(z)[..., None] + 0 * z[..., None], both], -1)[..., : self.functions]


def _chebyshev(z: Tensor, count: int) -> Tensor:
    """T_0, ..., T_{count-1} by T_{n+1} = 2 z T_n - T_{n-1}."""
    values = [torch.ones_like(z) + 0 * z, z]
    while len(values) < count:
        values.append(2 * z * values[-1] - values[-2])
    return torch.stack(values[:count], -1)


BASES: dict[str, Callable | None] = {
    "bspline": None,
    "gaussian": Gaussian,
    "wavelet": Wavelet,
    "chebyshev": Chebyshev,
    "rational": Rational,
    "fourier": Fourier,
}
