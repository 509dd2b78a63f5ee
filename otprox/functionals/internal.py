"""Internal energies ∫ U(ρ) dx: entropy and porous medium."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ..measures import Gaussian, Measure
from .base import Functional


class Internal(Functional):
    """∫ U(ρ) dx, given through the energy per unit mass u(ℓ) = U(ρ)/ρ as a function of ℓ = log ρ.

    Everything follows from u and two derivatives: F = ∫ u dμ, δF/δμ = u + u', diffusivity dφ/dℓ = u' + u'',
    pressure ρu'; per specific volume s = 1/ρ, ψ(s) = u(−log s), ψ' = −u'/s, ψ'' = (u' + u'')/s².
    """

    @abstractmethod
    def per_mass(self, log_rho: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """u, u', u'' at ℓ = log ρ."""

    def __call__(self, mu: Measure) -> Tensor:
        return mu.expect_log(lambda log_rho: self.per_mass(log_rho)[0])

    def first_variation(self, mu: Measure, x: Tensor | None = None) -> Tensor:
        u, du, _ = self.per_mass(mu.log_prob(x))
        return u + du

    def gradient(self, mu: Measure, x: Tensor | None = None) -> Tensor:
        return self._slope(mu.log_prob(x))[..., None] * mu.score(x)

    def local(self, log_rho: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        u, du, ddu = self.per_mass(log_rho)
        return u + du, du + ddu

    def diffusivity(self, mu: Measure) -> Tensor:
        return self._slope(mu.log_prob())

    def _slope(self, log_rho: Tensor) -> Tensor:
        _, du, ddu = self.per_mass(log_rho)
        return du + ddu

    def convexity(self, c: float = 1.0) -> float | None:
        return 0.0 if c >= 0 else None


@dataclass(frozen=True)
class Entropy(Internal):
    """∫ ρ log ρ. Its flow is the heat equation ∂t ρ = Δρ (Jordan, Kinderlehrer, Otto 1998)."""

    def per_mass(self, log_rho: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return log_rho, torch.ones_like(log_rho), torch.zeros_like(log_rho)

    def __call__(self, mu: Measure) -> Tensor:
        return mu.entropy()

    def bures_gradient(self, mu: Gaussian) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(mu.mean), -torch.cholesky_inverse(torch.linalg.cholesky(mu.cov))


@dataclass(frozen=True)
class PorousMedium(Internal):
    """∫ ρᵐ/(m − 1). Its flow is ∂t ρ = Δρᵐ (Otto 2001); fast diffusion for m < 1.

    Displacement convex for m ≥ 1 − 1/d (McCann 1997).
    """

    m: float

    def __post_init__(self) -> None:
        if not self.m > 0 or self.m == 1:
            raise ValueError(f"PorousMedium needs an exponent m > 0 other than 1, not {self.m}; m = 1 is Entropy()")

    def per_mass(self, log_rho: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        k = self.m - 1
        power = torch.exp(k * log_rho)
        return power / k, power, k * power

    def convexity(self, c: float = 1.0) -> float | None:
        return 0.0 if c >= 0 and self.m >= 1 else None  # m < 1 is convex only for d ≤ 1/(1 − m)
