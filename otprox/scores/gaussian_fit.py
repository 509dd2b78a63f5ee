"""The linear score of the Gaussian with the particles' mean and covariance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..measures import Gaussian, Measure
from .base import Estimator, Known, nodes_of


@dataclass(frozen=True)
class GaussianFit(Estimator):
    """s(x) = −Σ⁻¹(x − m), with the mean m and covariance Σ of the particles.

    Among linear scores −B(x − a) it is the minimiser of E|s|² + 2E ∇·s, with the value −tr Σ⁻¹. O(n); exact for a
    Gaussian, and under heat and quadratic potentials it gives the mean and covariance of any law. Particles in a
    hyperplane, whose Σ is singular, are refused.

    >>> import torch, otprox as ox
    >>> mu = ox.Particles(torch.tensor([[-2.0], [2.0]]))
    >>> ox.scores.GaussianFit().fit(mu)(torch.tensor([[2.0]]))
    tensor([[-0.5000]])
    """

    def fit(self, mu: Measure, last: Any = None) -> Known:
        nodes_of(mu, self)
        return Known(Gaussian.fit(mu).score)
