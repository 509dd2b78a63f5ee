"""The score of a kernel density estimate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..kernels import RBF
from ..measures import Measure
from ..measures.covariance import cholesky, logdet, solve_rows, solve_rows_transposed
from ..measures.quadrature import log_normaliser
from ..pairwise import kernel_sum, log_gaussian_sum
from .base import Estimator, Known, nodes_of


@dataclass(frozen=True)
class KDE(Estimator):
    """s = ∇log Σ_j w_j φ(x − x_j) with φ = N(0, width²·I), over all pairs.

    Without a width φ = N(0, h²Σ), with Σ the covariance of the particles and h = (4/((d + 4)n))^{1/(d + 6)}, the best
    for the slope of a Gaussian density from n independent samples (Chacón, Duong, Wand 2011, section 4); for weights w,
    1/Σw² stands for n. This estimate is equivariant under affine maps. What is estimated is the score of φ∗ρ, off that
    of ρ by O(width²) and by sampling noise. Particles that fill a grid have little noise: give them a width a little
    above its spacing.

    >>> import torch, otprox as ox
    >>> mu = ox.Particles(torch.tensor([[0.0], [4.0]]))
    >>> ox.scores.KDE(1.0).fit(mu)(torch.tensor([[2.0], [9.0]]))  # halfway between two bumps, and far from both
    tensor([[ 0.],
            [-5.]])
    """

    width: float | None = None

    def __post_init__(self) -> None:
        if self.width is not None and not 0 < self.width < math.inf:
            raise ValueError(f"KDE needs a width > 0, or None for the one of a Gaussian, not {self.width}")

    def fit(self, mu: Measure, last: Any = None) -> Known:
        points, w = nodes_of(mu, self)
        scale = self._scale(mu)
        y = _unit(points, mu, scale)

        def score(x: Tensor) -> Tensor:
            at = y if x is points else _unit(x, mu, scale)
            return solve_rows_transposed(scale, _slope(at, y, w))

        return Known(score)

    def log_density(self, mu: Measure, x: Tensor | None = None) -> Tensor:
        """log (φ∗μ) at points x (*batch, m, d), or at the particles: (*batch, m)."""
        points, w = nodes_of(mu, self)
        scale = self._scale(mu)
        at = _unit(points if x is None else x, mu, scale)
        norm = log_normaliser(logdet(scale), mu.dim)[..., None]
        return log_gaussian_sum(at, _unit(points, mu, scale), w.log(), 1.0) - norm

    def _scale(self, mu: Measure) -> Tensor:
        """L with φ = N(0, LLᵀ), (*batch, d, d)."""
        if self.width is not None:
            return self.width * mu.identity().expand(*mu.batch, mu.dim, mu.dim)
        effective = mu.weights.square().sum(-1).reciprocal()
        h = (4 / ((mu.dim + 4) * effective)) ** (1 / (mu.dim + 6))
        return h[..., None, None] * cholesky(mu.cov)


def _unit(x: Tensor, mu: Measure, scale: Tensor) -> Tensor:
    """Coordinates about the mean of μ in which φ = N(0, I)."""
    return solve_rows(scale, x - mu.mean[..., None, :])


def _slope(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """∇log Σ_j w_j exp(−|x − y_j|²/2) as a weighted mean of y less x; by logarithms where all terms underflow."""
    sums = kernel_sum(RBF(1.0), x, y, torch.cat([w[..., None] * y, w[..., None]], -1))
    mean, total = sums[..., :-1], sums[..., -1:]
    if (total > torch.finfo(x.dtype).tiny / torch.finfo(x.dtype).eps).all():
        return mean / total - x
    with torch.enable_grad():
        at = x if x.requires_grad else x.detach().requires_grad_()
        logs = log_gaussian_sum(at, y.detach(), w.log(), 1.0)
        return torch.autograd.grad(logs.sum(), at, create_graph=x.requires_grad)[0]
