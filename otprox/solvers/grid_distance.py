"""W2 between two densities on one grid by its geodesic, with an estimate of how far off it is."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..measures import Density, Grid
from ..metrics import Metric
from .dynamic import geodesic

INNER_STEPS = 16
TOL = 3e-4  # of the curve
LEFT = 3e-3  # the relative error that this may leave in the distance


class Estimate(NamedTuple):
    """A distance, not its square, and about how far it may be from the exact one, (*batch,) each."""

    distance: Tensor
    error: Tensor


def grid_distance(mu: Density, nu: Density, metric: Metric | None = None) -> Estimate:
    """W2(μ, ν) between densities on one grid, d = 1, 2, 3, walls or periodic, of second order in the spacing.

    The error is estimated, not bounded: by the difference from the same on cells and steps in time twice as wide, about
    three times the error where that is of second order, and 0.3 per cent for what the iteration leaves. `metric`
    Wasserstein(Q) with a diagonal Q changes the cost to ⟨z, Q⁻¹z⟩.
    """
    if mu.batch != nu.batch and not nu.batch:
        nu = nu.with_state(values=nu.values.expand(mu.values.shape))
    fine = _length(mu, nu, INNER_STEPS, metric)
    grid = mu.grid
    half = Grid(grid.lower, grid.upper, tuple((n + 1) // 2 for n in grid.shape), grid.periodic)
    rough = _length(mu.to_density(half), nu.to_density(half), INNER_STEPS // 2, metric)
    return Estimate(fine, (fine - rough).abs() + LEFT * fine)


def _length(mu: Density, nu: Density, inner_steps: int, metric: Metric | None) -> Tensor:
    curve = geodesic(mu, nu, inner_steps=inner_steps, metric=metric, tol=TOL)
    return curve.stats.distance2.clamp_min(0).sqrt()
