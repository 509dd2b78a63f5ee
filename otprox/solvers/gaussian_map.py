"""Prox steps of particles by the affine optimal map of the Gaussian step."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..domains import Euclidean
from ..functionals import Entropy, Functional
from ..measures import Gaussian, Measure, Particles
from ..metrics import Metric, Wasserstein
from .base import Out, Solver, require
from .bures import Bures


@dataclass(frozen=True, eq=False)
class GaussianMap:
    """Moves particles by x' = m' + T(x − m), T the optimal map of the Gaussian step N(m, Σ) → N(m', Σ') of `inner`.

    N(m, Σ) is `law` when it is given (the law that the particles sample, for this one step), and else has the weighted
    mean and covariance of the particles. For an entropy step, T = (I − tau·Σ'⁻¹)⁻¹: the particle form of the
    proximal gradient for Gaussian laws (Salim, Korba, Luise 2020). Exact for Gaussian laws; for others it is the
    prox of their Gaussian approximation, so it is used only when asked for by solver=. A known log-density is carried
    along by −log|det T|. Stats are those of the Gaussian step; the objective is that of the particles where F has a
    value on them, that is with a log-density, or without Entropy in F.

    Raises ValueError when the covariance of the particles is singular, as it is for fewer than d + 1 of them.
    """

    inner: Solver = field(default_factory=Bures)
    law: Gaussian | None = field(default=None, kw_only=True)

    def supports(self, F: Functional, metric: Metric, mu: Measure) -> str | None:
        if not isinstance(mu, Particles):
            return f"it moves Particles, not a {type(mu).__name__}"
        if not isinstance(mu.domain, Euclidean):
            return f"it works on R^d, not on a {type(mu.domain).__name__}"
        if not isinstance(metric, Wasserstein):
            return f"it needs a metric with an optimal map, Wasserstein(), not {type(metric).__name__}"
        return self.inner.supports(F, metric, self.law or _stand_in(mu))

    def __call__(self, F: Functional, metric: Metric, mu: Measure, tau: float, last: Any = None) -> Out:
        require(self, F, metric, mu)
        assert isinstance(mu, Particles)  # supports has checked
        law = self.law or _fit(mu)
        nu, stats = self.inner(F, metric, law, tau, last)
        if stats.map is None:
            raise TypeError(f"{type(self.inner).__name__} gave no transport map for this step; use inner=Bures()")
        log_det = 0.5 * (_log_det(nu.cov) - _log_det(law.cov))  # TΣTᵀ = Σ'
        moved = mu.push(lambda x: (stats.map(x), log_det[..., None]))
        objective = stats.objective
        if moved.log_density is not None or not any(isinstance(f, Entropy) for _, f in F.terms):
            objective = F(moved) + stats.distance2 / (2 * tau)
        message = f"affine map of a Gaussian step ({stats.message})"
        return Out(moved, dataclasses.replace(stats, objective=objective, message=message))


def _fit(mu: Measure) -> Gaussian:
    """The Gaussian with the moments of the particles, refused when its covariance is singular."""
    n, d = mu.points.shape[-2:]
    advice = "give more particles, or the law that they sample with GaussianMap(law=Gaussian(...))"
    if n < d + 1:
        raise ValueError(
            f"{n} particles in dimension {d} have a singular covariance: it takes at least {d + 1}; {advice}"
        )
    mean, cov = mu.mean, mu.cov
    L, info = torch.linalg.cholesky_ex(cov.detach())
    pivots = L.diagonal(dim1=-2, dim2=-1)
    if info.any() or (pivots.square().amin(-1) <= d * torch.finfo(L.dtype).eps * pivots.square().amax(-1)).any():
        raise ValueError(f"the particles lie in a subspace, so their covariance is singular; {advice}")
    return Gaussian(mean, cov)


def _stand_in(mu: Particles) -> Gaussian:
    """A Gaussian of the right place and size, for asking what the inner solver supports."""
    with torch.no_grad():
        size = mu.expect(lambda x: (x - mu.mean[..., None, :]).square().mean(-1))[..., None, None]
        eye = torch.eye(mu.dim, dtype=mu.x.dtype, device=mu.x.device)
        return Gaussian(mu.mean, torch.where(size > 0, size, torch.ones_like(size)) * eye)


def _log_det(cov: Tensor) -> Tensor:
    return 2 * torch.linalg.cholesky(cov).diagonal(dim1=-2, dim2=-1).log().sum(-1)
