"""The self-similar solution of fast diffusion, m < 1, and its exact JKO steps, in any dimension."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FastDiffusion:
    """The family ρ_R(x) = (1 + |x|²/R²)^{−p}/(Z R^d), p = 1/(1 − m), Z = π^{d/2} Γ(p − d/2)/Γ(p), of mass 1.

    With R = radius(t) it solves ∂t ρ = Δρ^m from a point mass, the W2 flow of −∫ρ^m/(1 − m) (Barenblatt 1952;
    Denzler, McCann 2005). Since δF/δρ = −(m/(1 − m))ρ^{m − 1} is quadratic on the family, JKO steps dilate it. `m` is
    in (1 − 2/(d + 2), 1), where the second moment is finite. Radii and times are numbers or tensors.

    >>> FastDiffusion(0.75, dim=1).jko(1.0, 0.1).item() > 1
    True
    """

    m: float
    dim: int

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ValueError(f"dim must be at least 1, not {self.dim}")
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
    def G(self) -> float:
        """(2m/(1 − m)) Z^{1 − m}, the strength of the expansion: R' = G R^{d(1 − m) − 1} along the flow."""
        return 2 * self.m / (1 - self.m) * self.Z ** (1 - self.m)

    def radius(self, t: float | Tensor) -> Tensor:
        """R(t) = (k G t)^{1/k}, k = 2 − d(1 − m)."""
        k = 2 - self.dim * (1 - self.m)
        return (k * self.G * torch.as_tensor(t, dtype=torch.float64)) ** (1 / k)

    def density(self, x: Tensor, radius: float | Tensor) -> Tensor:
        """ρ_R at points x (*batch, n, d) -> (*batch, n); radius a number or (*batch,)."""
        R = torch.as_tensor(radius, dtype=x.dtype)[..., None]
        return (1 + x.square().sum(-1) / R**2) ** -self.p / (self.Z * R**self.dim)

    def second_moment(self, radius: float | Tensor) -> Tensor:
        """∫|x|²ρ = R² d/(2p − d − 2)."""
        return torch.as_tensor(radius, dtype=torch.float64) ** 2 * self.dim / (2 * self.p - self.dim - 2)

    def rest(self) -> float:
        """The radius at which ρ_R is the steady state under the potential |x|²/2: R^k = G, k = 2 − d(1 − m)."""
        return self.G ** (1 / (2 - self.dim * (1 - self.m)))

    def jko(self, radius: float | Tensor, tau: float) -> Tensor:
        """The radius after a JKO step: R' − R = tau·G·R'^{d(1 − m) − 1}, by Newton's method.

        R' > R increases faster than the right-hand side as long as m > 1 − 1/d, so there is one root; where F is not
        displacement convex, smaller steps have one near R.
        """
        if not tau > 0:
            raise ValueError(f"tau must be positive, not {tau}")
        old = torch.as_tensor(radius, dtype=torch.float64)
        power, strength, new = self.dim * (1 - self.m) - 1, tau * self.G, old
        for _ in range(200):
            push = strength * new**power
            change = (new - old - push) / (1 - power * push / new)
            new = new - change
            if (change.abs() <= 4e-16 * new).all():
                break
        return new
