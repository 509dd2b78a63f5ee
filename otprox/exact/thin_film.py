"""The source solution of the thin-film equation with mobility ρ, and its exact JKO steps, in any dimension."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from .self_similar import SelfSimilar, real


@dataclass(frozen=True)
class SmythHill(SelfSimilar):
    """The family ρ_R(x) = M/(Z R^d)·(1 − |x|²/R²)₊², Z = 2π^{d/2}/Γ(3 + d/2).

    With R = radius(t) it solves ∂t ρ = −div(ρ∇Δρ) from a point mass at t = 0 (Smyth and Hill 1988; in R^d Ferreira and
    Bernis 1997), the W2 flow of the Dirichlet energy ½∫|∇ρ|². `dim` = d ≥ 1, `mass` = M. Radii, times and points are
    numbers or tensors; results are float64 for numbers.

    >>> SmythHill(1).radius(1.0).item()
    2.57176039837...
    """

    dim: int
    mass: float = 1.0

    def __post_init__(self) -> None:
        if not (self.dim >= 1 and self.mass > 0):
            raise ValueError(f"SmythHill needs dim ≥ 1 and mass > 0, not {self}")

    @property
    def Z(self) -> float:
        """∫(1 − |x|²)₊² dx."""
        return 2 * math.pi ** (self.dim / 2) / math.gamma(3 + self.dim / 2)

    @property
    def speed(self) -> float:
        """8(d + 2)M/Z, for −∇Δρ_R is linear in x."""
        return 8 * (self.dim + 2) * self.mass / self.Z

    @property
    def power(self) -> float:
        """d + 3."""
        return self.dim + 3

    def shape(self, square: Tensor) -> Tensor:
        """(1 − |x|²/R²)₊²."""
        return (1 - square).clamp_min(0).square()

    def second_moment(self, radius: float | Tensor) -> Tensor:
        """∫|x|²ρ = M R² d/(d + 6)."""
        return self.mass * real(radius) ** 2 * self.dim / (self.dim + 6)

    def energy(self, radius: float | Tensor) -> Tensor:
        """½∫|∇ρ|² = 8d/(d + 6)·Z ρ_R(0)² R^{d − 2}."""
        R = real(radius)
        return 8 * self.dim / (self.dim + 6) * self.Z * self.maximum(R) ** 2 * R ** (self.dim - 2)
