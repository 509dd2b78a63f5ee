"""Barenblatt's solution of the porous medium equation, and its exact JKO steps, in any dimension."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from .self_similar import SelfSimilar, real


def barenblatt(m: float, dim: int, mass: float = 1.0, coefficient: float = 1.0) -> Barenblatt:
    """The source solution of ∂t ρ = coefficient·Δρ^m in R^dim with the given mass.

    >>> barenblatt(2.0, dim=1).radius(1.0).item()
    2.08008382305...
    """
    return Barenblatt(m, dim, mass, coefficient)


@dataclass(frozen=True)
class Barenblatt(SelfSimilar):
    """The family ρ_R(x) = M/(Z R^d)·(1 − |x|²/R²)₊^p, p = 1/(m − 1), Z = π^{d/2} Γ(p + 1)/Γ(p + 1 + d/2).

    With R = radius(t) it solves ∂t ρ = c Δρ^m from a point mass at t = 0 (Barenblatt 1952; Vázquez 2007), the W2 flow
    of the energy F = c∫ρ^m/(m − 1). `m` > 1, `dim` = d ≥ 1, `mass` = M, `coefficient` = c. Radii, times and points are
    numbers or tensors; results are float64 for numbers.
    """

    m: float
    dim: int
    mass: float = 1.0
    coefficient: float = 1.0

    def __post_init__(self) -> None:
        if not (self.m > 1 and self.dim >= 1 and self.mass > 0 and self.coefficient > 0):
            raise ValueError(f"Barenblatt needs m > 1, dim ≥ 1, mass > 0 and coefficient > 0, not {self}")

    @property
    def p(self) -> float:
        """1/(m − 1)."""
        return 1 / (self.m - 1)

    @property
    def alpha(self) -> float:
        """d/(d(m − 1) + 2), the rate at which the maximum decays."""
        return self.dim / (self.dim * (self.m - 1) + 2)

    @property
    def beta(self) -> float:
        """alpha/d, the rate at which the radius grows."""
        return self.alpha / self.dim

    @property
    def k(self) -> float:
        """beta(m − 1)/(2m) in ρ = s^−alpha (C − k|x|² s^−2beta)₊^p, s = coefficient·t."""
        return self.beta * (self.m - 1) / (2 * self.m)

    @property
    def C(self) -> float:
        """The constant that gives the mass, (M k^{d/2}/Z)^{1/(p + d/2)}."""
        return (self.mass * self.k ** (self.dim / 2) / self.Z) ** (1 / (self.p + self.dim / 2))

    @property
    def Z(self) -> float:
        """∫(1 − |x|²)₊^p dx."""
        half = self.dim / 2
        return math.exp(half * math.log(math.pi) + math.lgamma(self.p + 1) - math.lgamma(self.p + 1 + half))

    @property
    def G(self) -> float:
        """(2m/(m − 1))(M/Z)^{m − 1}, the strength of the expansion: R' = c G R^{−d(m − 1) − 1} along the flow."""
        return 2 * self.m / (self.m - 1) * (self.mass / self.Z) ** (self.m - 1)

    @property
    def speed(self) -> float:
        """c G."""
        return self.coefficient * self.G

    @property
    def power(self) -> float:
        """d(m − 1) + 1."""
        return self.dim * (self.m - 1) + 1

    def shape(self, square: Tensor) -> Tensor:
        """(1 − |x|²/R²)₊^p."""
        return (1 - square).clamp_min(0) ** self.p

    def second_moment(self, radius: float | Tensor) -> Tensor:
        """∫|x|²ρ = M R² d/(d + 2 + 2p); the covariance is this over M d, times I."""
        return self.mass * real(radius) ** 2 * self.dim / (self.dim + 2 + 2 * self.p)

    def energy(self, radius: float | Tensor) -> Tensor:
        """c∫ρ^m/(m − 1) = c p M ρ_R(0)^{m − 1} (p + 1)/(p + 1 + d/2)."""
        top = self.maximum(radius) ** (self.m - 1)
        return self.coefficient * self.p * self.mass * top * (self.p + 1) / (self.p + 1 + self.dim / 2)
