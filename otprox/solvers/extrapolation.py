"""Geodesic extrapolation: where a measure would be if it went on along the geodesic on which it came."""

from __future__ import annotations

import torch

from ..measures import Gaussian, Measure, Particles, Quantiles
from ..measures.covariance import Matrix, factor_inverse, identity
from ..measures.spd import optimal_map, symmetrise
from ..measures.spectral import Spectral
from ..metrics import Wasserstein
from .quantile_free import isotonic

SHORTEST = 0.1  # an extrapolated Gaussian keeps at least this fraction of the standard deviation in every direction


def extrapolate(before: Measure, mu: Measure, beta: float, metric: Wasserstein | None = None) -> Measure:
    """The image of μ under x ↦ x + β(x − Tx), T the optimal map from μ to `before`: the geodesic continued by β ≥ 0.

    Gaussians: T is affine, in the metric's own ground cost, and β is shortened where the map would shrink a direction
    below a tenth. Quantiles: x + β(x − y), and its projection on non-decreasing vectors where it is not one, which is
    the metric extrapolation (Gallouët, Natale, Todeschini 2022, section 3). Particles: index by index, the geodesic of
    the particle system.

    TypeError for other measures.
    """
    if isinstance(mu, Gaussian) and isinstance(before, Gaussian):
        mean = mu.mean + beta * (mu.mean - before.mean)
        return mu.affine(mean, _continued(_map_back(before, mu, metric), mu, beta))
    if isinstance(mu, Quantiles) and isinstance(before, Quantiles):
        x = (mu.x + beta * (mu.x - before.x))[..., 0]
        return mu.with_state(x=isotonic(x, torch.ones_like(x))[..., None])
    if isinstance(mu, Particles) and isinstance(before, Particles):
        return mu.with_state(x=mu.domain.wrap(mu.x + beta * mu.domain.displacement(mu.x, before.x)), log_density=None)
    raise TypeError(
        f"no geodesic extrapolation from {type(before).__name__} to {type(mu).__name__}; there is one for Gaussian, "
        "Quantiles and Particles. Richardson(Backward(F)) is second order on a Density too"
    )


def _map_back(before: Gaussian, mu: Gaussian, metric: Wasserstein | None) -> Matrix:
    """The linear part of the optimal map from μ to `before`."""
    if isinstance(mu.cov, Spectral) and isinstance(before.cov, Spectral):
        return mu.cov.inverse().sqrt() @ before.cov.sqrt()  # translation-invariant matrices commute
    L = None if metric is None else metric.factor(mu)
    if L is None:
        return optimal_map(mu.cov, before.cov)
    back = factor_inverse(L)
    own, old = (symmetrise(back @ g.cov @ back.mT) for g in (mu, before))
    return L @ optimal_map(own, old) @ back


def _continued(T: Matrix, mu: Gaussian, beta: float) -> Matrix:
    """I + β(I − T), β shortened, item by item, so that no direction shrinks below SHORTEST."""
    largest = T.values.amax(-1) if isinstance(T, Spectral) else torch.linalg.eigvals(T).real.amax(-1)
    limit = (1 - SHORTEST) / (largest - 1).clamp_min(torch.finfo(largest.dtype).eps)
    b = limit.clamp_max(beta)
    eye = identity(mu.cov)
    return eye + (eye - T) * (b if isinstance(T, Spectral) else b[..., None, None])
