"""Congestion: a bound on the density, the hard limit of crowds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..measures import Density, Gaussian, Measure, Quantiles
from .atom import Atom, NotConvex, nonnegative
from .constraint import TOLERANCE, Constraint


@dataclass(frozen=True)
class Congestion(Constraint):
    """0 where ρ ≤ bound, +∞ where ρ > bound·(1 + 1e-6) somewhere: the limit m → ∞ of PorousMedium at bound 1.

    A crowd that wants to follow −∇V and cannot exceed the density `bound` is the flow of Potential(V) + Congestion
    (Maury, Roudneff-Chupin, Santambrogio 2010). Displacement convex. Where ρ < bound its first variation is 0; where
    ρ = bound it is a pressure p ≥ 0 that an implicit step finds (`Constraint`).

    >>> from otprox import Density, Grid
    >>> mu = Density(torch.tensor([0.5, 1.5]), Grid(0.0, 1.0, 2))
    >>> Congestion(2.0)(mu).item(), Congestion(1.0)(mu).item()
    (0.0, inf)
    """

    bound: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.bound < math.inf:
            raise ValueError(f"Congestion needs a positive, finite bound on the density, not {self.bound}")

    def violation(self, mu: Measure) -> Tensor:
        """max ρ/bound − 1, over cells, gaps between quantiles, particles with a log-density; a Gaussian at its mean."""
        if isinstance(mu, Quantiles):
            log_peak = -(mu.n * mu.gaps.amin(-1)).log()
        else:
            log_peak = mu.log_prob(mu.mean[..., None, :] if isinstance(mu, Gaussian) else None).amax(-1)
        return log_peak.exp() / self.bound - 1

    def impossible(self, mu: Measure) -> str | None:
        if isinstance(mu, Density) and self.bound * mu.grid.n * mu.grid.volume < 1 - TOLERANCE:
            most = self.bound * mu.grid.n * mu.grid.volume
            return f"bound × volume of the grid is {most:.6g}, less than the mass 1"
        return None

    def bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The least and the largest density at points (…, n, d), (…, n) each: the KL prox of a sum is cut off there."""
        return torch.zeros_like(x[..., 0]), torch.full_like(x[..., 0], self.bound)

    def convexity(self, c: float = 1.0) -> float | None:
        return 0.0 if c >= 0 else None

    def atom(self, mu: Measure, c: float) -> Atom:
        """ρ_i ≤ bound on cells; gaps ≥ 1/(n·bound) between quantiles."""
        nonnegative(c, "Congestion")
        if isinstance(mu, Density):
            return Atom((Congestion, Density), lambda rho, bound: [rho <= bound], (self.bound,))
        if isinstance(mu, Quantiles):
            least = 1 / (mu.n * self.bound)
            return Atom((Congestion, Quantiles), lambda x, least: [x[1:] - x[:-1] >= least], (least,), ordered=True)
        raise NotConvex(f"Congestion has no convex form on {type(mu).__name__}: it needs a Density or Quantiles")
