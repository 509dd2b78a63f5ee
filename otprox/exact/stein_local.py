"""SVGD with the weighted kernel e^{V−V₀/2}(x) k(x − y) e^{V−V₀/2}(y), and its local limits, in closed form.

As k → δ the mean-field equation becomes ∂t ρ = div(ρ²e^{2V−V₀}∇(log ρ + V)), and without the weight
∂t ρ = div(ρ²∇(log ρ + V)). Z = ∫e^{−V}.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def log_sobolev_constant(alpha: float, Z: float) -> float:
    """λ = 2α/Z with λ·KL ≤ ∫ρ²e^{2V−V₀}|∇(log ρ + V)|² dx, whenever V ≥ V₀ = α|x|² + β, in every dimension.

    With u = ρe^V the right side is ∫e^{−V₀}|∇u|² ≥ 2α·min_c ∫e^{−V₀}(u − c)² by the Poincaré inequality of e^{−V₀}, and
    this is at least 2α·min_c ∫e^{−V}(u − c)² = (2α/Z)χ² ≥ (2α/Z)KL. So KL ≤ e^{−λt}KL₀ along that equation.

    >>> round(log_sobolev_constant(0.5, math.sqrt(2 * math.pi)), 6)
    0.398942
    """
    _check_positive(alpha=alpha, Z=Z)
    return 2 * alpha / Z


def local_rate(alpha: float, Z: float) -> float:
    """4α/Z: the late rate of KL of the weighted local equation for V = V₀ = α|x|² + β and generic data."""
    _check_positive(alpha=alpha, Z=Z)
    return 4 * alpha / Z


def weighted_spectrum(count: int, alpha: float, width: float) -> Tensor:
    """μ_0 … μ_{count−1}, for V = V₀ = αx² + β in 1-D and k̂(ξ) = 1/(1 + ℓ²ξ²), k = e^{−|x|/ℓ}/2ℓ; (count,).

    Near equilibrium h = ρ/ρ_∞ − 1 decays in modes e^{−μ_n t/Z}, with μ_n − α = (2n + 1)α(1 − μ_nℓ²)^½: the positive
    root of a quadratic, μ_0 = α(2 − αℓ²). They accumulate at 1/ℓ², the bottom of the continuum, which is what is left
    when αℓ² ≥ 1.

    >>> weighted_spectrum(3, 0.5, 1.0)
    tensor([0.7500, 0.9212, 0.9654], dtype=torch.float64)
    """
    _check_positive(alpha=alpha, width=width)
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    n = torch.arange(count, dtype=torch.float64)
    if alpha * width**2 >= 1:
        return torch.full_like(n, width**-2)
    c = ((2 * n + 1) * alpha) ** 2
    b = c * width**2 - 2 * alpha  # μ² + bμ + α² − c = 0
    root = (b.square() + 4 * (c - alpha**2)).sqrt()
    return torch.where(b > 0, 2 * (c - alpha**2) / (b + root), (root - b) / 2)


def weighted_rate(alpha: float, width: float, Z: float) -> float:
    """2μ_0/Z, the late rate of KL with that kernel; for N(0, 1) and k = ½e^{−|x|} it is 1.5/√(2π).

    >>> round(weighted_rate(0.5, 1.0, math.sqrt(2 * math.pi)), 9)
    0.598413421
    """
    _check_positive(Z=Z)
    return 2 * weighted_spectrum(1, alpha, width).item() / Z


def weighted_dissipation(mean: float, sigma: float) -> float:
    """D² of N(m, 1) for V = V₀ = x²/2 and k the density of N(0, σ²): 2m²e^{m²}/√(2π(4 + σ²))."""
    return 2 * mean**2 * math.exp(mean**2) / math.sqrt(2 * math.pi * (4 + sigma**2))


@dataclass(frozen=True)
class Wave:
    """ρ(x, t) = (σ/c)(1 − e^{−c(x + σt − x₀)})₊, which solves ∂t ρ = div(ρ²∇(log ρ + cx)).

    A front that starts at x₀ and moves to the left at speed σ."""

    c: float
    sigma: float
    x0: float

    def density(self, x: Tensor, t: float) -> Tensor:
        """ρ at points x of any shape."""
        return self.sigma / self.c * -torch.expm1(-self.c * (x + self.sigma * t - self.x0)).clamp_max(0)

    def mass(self, right: float, t: float) -> float:
        """∫ρ dx up to x = right, ahead of which the density is nearly σ/c."""
        length = right + self.sigma * t - self.x0
        return self.sigma / self.c * (length + math.expm1(-self.c * length) / self.c)


def wave(c: float, sigma: float, x0: float = 0.0) -> Wave:
    """The travelling wave of the unweighted local equation in V = cx, c and σ positive."""
    _check_positive(c=c, sigma=sigma)
    return Wave(c, sigma, x0)


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, not {value}")
