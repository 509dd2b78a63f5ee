"""The Gibbs measure of the double well V = h(x² − w²)² on the line: moments, quantiles, spectrum of Langevin."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .jko_uniform import bisect, gauss_legendre


def double_well(height: float = 1.0, width: float = 1.0) -> DoubleWell:
    """The Gibbs measure of V = height·(x² − width²)².

    >>> round(double_well().Z, 12)
    1.97373215009
    """
    return DoubleWell(height, width)


@dataclass(frozen=True)
class DoubleWell:
    """π = e^{−V}/Z with V(x) = height·(x² − width²)²; all in float64.

    Integrals over the line use the trapezoidal rule, which converges faster than geometrically for this density.
    """

    height: float = 1.0
    width: float = 1.0

    def __post_init__(self) -> None:
        if not (self.height > 0 and self.width > 0):
            raise ValueError(f"height and width must be positive, not {self.height} and {self.width}")

    def V(self, x: Tensor) -> Tensor:
        """height·(x² − width²)² at x, any shape."""
        return self.height * (x * x - self.width**2) ** 2

    @property
    def reach(self) -> float:
        """|x| beyond which e^{−V} < e^{−750} vanishes in float64."""
        return math.sqrt(self.width**2 + math.sqrt(750 / self.height))

    @cached_property
    def _nodes(self) -> tuple[Tensor, float]:
        x = torch.linspace(-self.reach, self.reach, 4001, dtype=torch.float64)
        return x, (x[1] - x[0]).item()

    @cached_property
    def Z(self) -> float:
        """∫e^{−V}."""
        x, h = self._nodes
        return h * torch.exp(-self.V(x)).sum().item()

    def density(self, x: Tensor) -> Tensor:
        """e^{−V}/Z at x, any shape."""
        return torch.exp(-self.V(x)) / self.Z

    def expect(self, f: Callable[[Tensor], Tensor]) -> Tensor:
        """∫ f dπ for a smooth f: (n, 1) -> (n,)."""
        x, h = self._nodes
        return h * (f(x[:, None]) * self.density(x)).sum()

    def moment(self, k: int) -> float:
        """∫x^k dπ."""
        return self.expect(lambda x: x[:, 0] ** k).item()

    @property
    def x2(self) -> float:
        """∫x² dπ."""
        return self.moment(2)

    @property
    def x4(self) -> float:
        """∫x⁴ dπ."""
        return self.moment(4)

    @property
    def barrier(self) -> float:
        """P(|X| < width/2), the mass on the barrier between the wells."""
        return self.probability(-0.5 * self.width, 0.5 * self.width)

    @property
    def mean_potential(self) -> float:
        """∫V dπ."""
        return self.expect(lambda x: self.V(x[:, 0])).item()

    def cdf(self, x: Tensor) -> Tensor:
        """P(X ≤ x), any shape: ½ + ∫₀^x π by Gauss–Legendre."""
        node, weight = gauss_legendre(128)
        end = x[..., None].clamp(-self.reach, self.reach)
        return 0.5 + 0.5 * end[..., 0] * (self.density(0.5 * end * (1 + node)) * weight).sum(-1)

    def quantile(self, q: Tensor) -> Tensor:
        """The inverse of `cdf`, 0 < q < 1, by bisection."""
        reach = torch.full_like(q, self.reach)
        return bisect(self.cdf, q, -reach, reach)

    def probability(self, lower: float, upper: float) -> float:
        """P(lower < X < upper)."""
        ends = self.cdf(torch.tensor([lower, upper], dtype=torch.float64))
        return (ends[1] - ends[0]).item()

    def spectrum(self, count: int, nodes: int = 240) -> Tensor:
        """The `count` smallest eigenvalues of −L, L = ∂xx − V'∂x, the generator of dX = −V'dt + 2^½dB; (count,).

        In L²(dx) −L is −∂xx + ¼V'² − ½V'', discretised by sinc collocation; geometric convergence in `nodes`, and
        absolute rounding near 1e-12 of the largest eigenvalue kept on the grid.
        """
        end = math.sqrt(self.width**2 + math.sqrt(110 / self.height))  # e^{−V/2} = e^{−55} there
        x = torch.linspace(-end, end, nodes, dtype=torch.float64)
        h = (x[1] - x[0]).item()
        k = torch.arange(nodes, dtype=torch.float64)
        gap = k[:, None] - k[None, :]
        kinetic = torch.where(gap == 0, math.pi**2 / 3, 2 * torch.cos(math.pi * gap) / gap.square().clamp_min(1)) / h**2
        slope = 4 * self.height * x * (x * x - self.width**2)
        curvature = 4 * self.height * (3 * x * x - self.width**2)
        return torch.linalg.eigvalsh(kinetic + torch.diag(slope**2 / 4 - curvature / 2))[:count]
