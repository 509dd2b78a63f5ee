"""W2 between densities on a grid: Gaussians, the line, the circle, and the estimate of the error."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from otprox import Density, Gaussian, Grid, Wasserstein, observe
from otprox.exact.gaussian import w2_squared
from otprox.flow import Tick
from otprox.measures import distance
from otprox.solvers import ConvergenceWarning, grid_distance


def tick(mu: Density) -> Tick:
    return Tick(0, 0.0, 1.0, mu, mu, None)


def box(n: int) -> Grid:
    return Grid((-6.0, -6.0), (6.0, 6.0), (n, n))


MU = Gaussian([0.4, -0.2], [[0.5, 0.2], [0.2, 0.8]])


@pytest.mark.parametrize(
    "nu",
    [
        Gaussian([-0.5, 0.3], [[1.0, -0.3], [-0.3, 0.6]]),
        Gaussian([0.41, -0.2], [[0.5, 0.2], [0.2, 0.8]]),
        Gaussian([-1.6, 0.8], [[0.5, 0.2], [0.2, 0.8]]),
    ],
    ids=["turned", "a hundredth away", "far"],
)
def test_gaussians_in_the_plane(nu: Gaussian):
    found = grid_distance(MU.to_density(box(40)), nu.to_density(box(40)))
    exact = w2_squared(MU, nu).sqrt().item()
    assert found.distance.item() == pytest.approx(exact, rel=1e-2)
    assert abs(found.distance.item() - exact) <= found.error.item() <= 0.05 * exact


@pytest.mark.parametrize("diagonal", [None, 2.0])
def test_the_line_and_a_metric(diagonal):
    grid = Grid(-6.0, 6.0, 96)
    mu = Density.from_log_prob(
        lambda x: torch.logaddexp(-2 * (x[:, 0] - 2).square(), -3 * (x[:, 0] + 2.5).square()), grid
    )
    nu = Density.from_log_prob(lambda x: torch.where((x[:, 0] - 1).abs() < 1.5, 0.0, -torch.inf), grid)
    metric = None if diagonal is None else Wasserstein(torch.tensor([[diagonal]]))
    exact = distance.w2_squared(mu, nu).sqrt().item() / math.sqrt(diagonal or 1.0)
    found = grid_distance(mu, nu, metric)
    assert abs(found.distance.item() - exact) <= found.error.item() <= 0.03 * exact


def test_a_shift_round_the_circle_takes_the_short_way():
    grid = Grid(0.0, 2 * math.pi, 64, periodic=True)
    mu, nu = (Density.from_log_prob(lambda x, c=c: 4 * torch.cos(x[:, 0] - c), grid) for c in (0.3, 2 * math.pi - 0.3))
    assert observe.w2(nu, within=0.02)(tick(mu)).item() == pytest.approx(0.6, rel=2e-2)


def test_the_observer_is_exact_or_says_how_far_off_it_is():
    nu = Gaussian([-0.5, 0.3], [[1.0, -0.3], [-0.3, 0.6]])
    mu, target = MU.to_density(box(32)), nu.to_density(box(32))
    with pytest.raises(TypeError, match=r"gelbrich.*within=0.02"):
        observe.w2(target)(tick(mu))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        near = observe.w2(target, within=0.02)(tick(mu))
        assert observe.w2(nu, within=0.02)(tick(MU)).item() == w2_squared(MU, nu).sqrt().item()
    assert near.item() == pytest.approx(w2_squared(MU, nu).sqrt().item(), rel=0.02)
    with pytest.warns(ConvergenceWarning, match="finer cells"):
        observe.w2(target, within=1e-3)(tick(mu))
    with pytest.raises(ValueError, match="such as 0.02, not 0"):
        observe.w2(target, within=0)


def test_batches_and_a_density_from_itself():
    target = MU.to_density(box(24))
    other = Gaussian([0.0, 0.0], [[1.0, 0.0], [0.0, 0.6]]).to_density(box(24))
    pair = Density(torch.stack([target.values, other.values]), target.grid)
    found = grid_distance(pair, target)
    assert found.distance[0] < 1e-3 and found.distance[1].item() == pytest.approx(
        grid_distance(other, target).distance.item(), rel=1e-3
    )
