"""The self-similar solution of fast diffusion, m < 1, and its exact JKO steps, in any dimension."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from .self_similar import SelfSimilar, real


@dataclass(frozen=True)
class FastDiffusion(SelfSimilar):
    """The family ρ_R(x) = M/(Z R^d)·(1 + |x|²/R²)^{−p}, p = 1/(1 − m), Z = π^{d/2} Γ(p − d/2)/Γ(p).

    With R = radius(t) it solves ∂t ρ = Δρ^m from a point mass, the W2 flow of −∫ρ^m/(1 − m) (Barenblatt 1952;
    Denzler, McCann 2005). Since δF/δρ = −(m/(1 − m))ρ^{m − 1} is quadratic on the family, JKO steps dilate it. `m` is
    in (1 − 2/(d + 2), 1), where the second moment is finite. Radii and times are numbers or tensors.

    >>> FastDiffusion(0.75, dim=1).jko(1.0, 0.1).item() > 1
    True
    """

    m: float
    dim: int
    mass: float = 1.0

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ValueError(f"dim must be at least 1, not {self.dim}")
        if not self.mass > 0:
            raise ValueError(f"mass must be positive, not {self.mass}")
        least = 1 - 2 / (self.dim + 2)
        if not least < self.m < 1:
            raise ValueError(f"for finite second moments in {self.dim}-D, m must be in ({least:.6g}, 1), not {self.m}")

    @property
    def p(self) -> float:
        """1/(1 − m)."""
        return 1 / (1 - self.m)

    @property
    def Z(self) -> float:
        """∫(1 + |x|²)^{−p} dx."""
        half = self.dim / 2
        return math.exp(half * math.log(math.pi) + math.lgamma(self.p - half) - math.lgamma(self.p))

    @property
    def speed(self) -> float:
        """(2m/(1 − m))(Z/M)^{1 − m}."""
        return 2 * self.m / (1 - self.m) * (self.Z / self.mass) ** (1 - self.m)

    @property
    def power(self) -> float:
        """1 − d(1 − m); the root of a JKO step is the only one while this is positive, beyond it that near R."""
        return 1 - self.dim * (1 - self.m)

    def shape(self, square: Tensor) -> Tensor:
        """(1 + |x|²/R²)^{−p}."""
        return (1 + square) ** -self.p

    def second_moment(self, radius: float | Tensor) -> Tensor:
        """∫|x|²ρ = M R² d/(2p − d − 2)."""
        return self.mass * real(radius) ** 2 * self.dim / (2 * self.p - self.dim - 2)
