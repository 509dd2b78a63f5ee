"""The source solution of the thin-film equation with mobility ρ, and its exact JKO steps, in any dimension."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SmythHill:
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
    def G(self) -> float:
        """8(d + 2)M/Z, the strength of the expansion: R' = G R^{−d − 3} along the flow, for −∇Δρ_R is linear in x."""
        return 8 * (self.dim + 2) * self.mass / self.Z

    def radius(self, t: float | Tensor) -> Tensor:
        """R(t) = ((d + 4) G t)^{1/(d + 4)}."""
        return ((self.dim + 4) * self.G * _real(t)) ** (1 / (self.dim + 4))

    def density(self, x: Tensor, radius: float | Tensor) -> Tensor:
        """ρ_R at points x (*batch, n, d) -> (*batch, n); radius a number or (*batch,)."""
        R = _real(radius)[..., None]
        return self.maximum(R) * (1 - x.square().sum(-1) / R**2).clamp_min(0).square()

    def maximum(self, radius: float | Tensor) -> Tensor:
        """ρ_R(0) = M/(Z R^d)."""
        return self.mass / (self.Z * _real(radius) ** self.dim)

    def second_moment(self, radius: float | Tensor) -> Tensor:
        """∫|x|²ρ = M R² d/(d + 6)."""
        return self.mass * _real(radius) ** 2 * self.dim / (self.dim + 6)

    def energy(self, radius: float | Tensor) -> Tensor:
        """½∫|∇ρ|² = 8d/(d + 6)·Z ρ_R(0)² R^{d − 2}."""
        R = _real(radius)
        return 8 * self.dim / (self.dim + 6) * self.Z * self.maximum(R) ** 2 * R ** (self.dim - 2)

    def jko(self, radius: float | Tensor, tau: float, steps: int = 1) -> Tensor:
        """The radius after `steps` JKO steps, which keep the family: R' − R = τ G R'^{−d − 3}, by Newton from R."""
        if not tau > 0:
            raise ValueError(f"tau must be positive, not {tau}")
        new, power = _real(radius), self.dim + 3
        for _ in range(steps):
            old = new
            for _ in range(200):  # the right-hand side of R' = R + … is convex and falls: from R it climbs to the root
                push = tau * self.G * new**-power
                change = (new - old - push) / (1 + power * push / new)
                new = new - change
                if (change.abs() <= 4e-16 * new).all():
                    break
        return new


def _real(value: float | Tensor) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
