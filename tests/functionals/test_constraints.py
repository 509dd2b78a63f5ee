"""Obstacles and moments: where they are infinite, what is impossible, and implicit steps under them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from otprox import (
    Backward,
    Congestion,
    Density,
    Entropy,
    Gaussian,
    Grid,
    Moments,
    Obstacle,
    Particles,
    PorousMedium,
    Potential,
    Quadratic,
    Quantiles,
)
from otprox.functionals import NotConvex
from otprox.solvers import Convex

GRID = Grid(-3.0, 3.0, 30)


def normal(grid: Grid = GRID, mean: float = 0.0, var: float = 0.5) -> Density:
    return Density.from_log_prob(Gaussian([mean], [[var]]).log_prob, grid)


def left_half(x: Tensor) -> Tensor:
    return torch.where(x[..., 0] < 0.5, math.inf, 0.0)


def test_an_obstacle_is_infinite_where_it_is_crossed():
    mu = normal()
    peak, low = mu.values.max().item(), mu.values.min().item()
    assert Obstacle()(mu) == 0 and Obstacle(upper=peak * (1 + 1e-7))(mu) == 0
    assert Obstacle(upper=0.99 * peak)(mu) == math.inf and Obstacle(lower=low + 1e-7)(mu) == 0
    assert Obstacle(lower=0.1)(mu) == math.inf and Obstacle(upper=left_half)(mu) == math.inf
    cut = torch.where(GRID.points(mu.values)[:, 0] < 0.5, mu.values, 0.0)
    assert Obstacle(upper=left_half)(Density(cut / (cut.sum() * GRID.volume), GRID)) == 0
    both = Obstacle(upper=0.5)(Density(torch.stack([mu.values, torch.full((30,), 1 / 6)]), GRID))
    assert both.tolist() == [math.inf, 0.0]


def test_moments_are_held():
    mu = normal(mean=0.3)
    second = mu.expect(lambda x: x[..., 0] ** 2).item()
    F = Moments(lambda x: torch.cat([x, x**2], -1), [mu.mean.item(), second])
    assert F(mu) == 0 and F(normal()) == math.inf
    assert F(Particles(torch.zeros(4, 1))) == math.inf
    torch.testing.assert_close(Moments(lambda x: x, [0.0]).violation(Quantiles([1.0, 2.0])).item(), 1.0)


def test_bad_bounds_and_moments_are_named():
    mu = normal()
    with pytest.raises(ValueError, match=r"lower > upper at 30 points.*0.4 and 0.2"):
        Obstacle(lower=0.4, upper=0.2)(mu)
    with pytest.raises(ValueError, match="NaN"):
        Obstacle(lower=math.nan)(mu)
    with pytest.raises(ValueError, match=r"must map points \(30, 1\) to \(30, 2\) for its 2 values"):
        Moments(lambda x: x, [0.0, 1.0])(mu)
    with pytest.raises(NotConvex, match="Quantiles"):
        Obstacle().atom(Quantiles([0.0, 1.0]), 1.0)
    with pytest.raises(TypeError, match="callable"):
        Moments(3.0, [0.0])


@pytest.mark.parametrize(
    ("F", "words"),
    [
        (Congestion(0.1), r"Congestion: bound × volume of the grid is 0.6, less than the mass 1"),
        (Obstacle(upper=0.1), "Obstacle: the upper bound integrates to 0.6"),
        (Obstacle(lower=0.2), "Obstacle: the lower bound integrates to 1.2"),
        (Moments(lambda x: x, [4.0]), r"Moments: the value 4 is outside the range \[-2.9, 2.9\]"),
        (Moments(lambda x: x, [2.0]) + Congestion(0.25), "Moments and Congestion cannot hold together"),
    ],
)
@pytest.mark.parametrize("full", [0, 10**6])
def test_what_no_density_satisfies_is_named(F, words, full):
    with pytest.raises(ValueError, match=rf"no density on this grid satisfy.*infeasible.*{words}"):
        Convex(max_full=full)(Entropy() + F, Backward(Entropy()).metric, normal(), 0.5)


def test_quantiles_that_cannot_be():
    class Mean:
        def __call__(self, x):
            return x

        def atom(self, x):
            return x

    class Twice(Mean):
        def atom(self, x):
            return 2 * x

    mu = Quantiles(torch.linspace(-1, 1, 11))
    out = Backward(Moments(Mean(), [0.5]) + Entropy(), solver=Convex(tol=1e-10))(mu, 0.0, 0.1)
    torch.testing.assert_close(out.mu.mean.item(), 0.5, atol=1e-8, rtol=0)
    free = Backward(Entropy(), solver=Convex(tol=1e-10))(mu, 0.0, 0.1)
    torch.testing.assert_close(out.mu.x, free.mu.x + 0.5, atol=1e-5, rtol=0)  # entropy does not see translations
    with pytest.raises(ValueError, match="no quantiles satisfy.*Moments and Moments cannot hold together"):
        Backward(Moments(Mean(), [0.5]) + Moments(Twice(), [0.5]), solver=Convex())(mu, 0.0, 0.1)
    with pytest.raises(NotConvex, match="affine"):
        Moments(lambda x: x, [0.0]).atom(mu, 1.0)


@pytest.mark.parametrize("full", [0, 10**6])
def test_a_step_against_an_obstacle_from_below(full):
    """ρ ≥ g: complementarity. Where ρ > g, log ρ + V + φ is one constant; where ρ = g it is at least that."""
    mu, tau = normal(var=0.8), 0.8

    def floor(x: Tensor) -> Tensor:
        return 0.3 * (1 - (x[..., 0] - 1.5).square()).clamp_min(0)

    F = Entropy() + Potential(Quadratic([-0.5])) + Obstacle(lower=floor)
    out = Backward(F, solver=Convex(max_full=full, tol=1e-10))(mu, 0.0, tau)
    rho, g = out.mu.values, floor(GRID.points(mu.values))
    assert out.stats.converged and (rho >= g - 1e-8).all()
    touching = (rho < g + 1e-6) & (g > 0)
    assert 4 <= touching.sum() < (g > 0).sum() + 1
    free = Backward(Entropy() + Potential(Quadratic([-0.5])), solver=Convex(max_full=full))(mu, 0.0, tau)
    assert (free.mu.values[touching] < g[touching]).any() and free.stats.objective < out.stats.objective


@pytest.mark.parametrize("full", [0, 10**6])
def test_a_wall_in_the_room(full):
    """With support in x < 0.5, nothing is beyond; the rest is as if V were infinite there."""
    mu, wall = normal(mean=-1.0, var=0.1), Obstacle(upper=left_half)
    V = Potential(Quadratic([2.0], precision=[[4.0]]))
    out = Backward(V + PorousMedium(2.0) + wall, solver=Convex(max_full=full, tol=1e-10))(mu, 0.0, 1.0)
    x = GRID.points(mu.values)[:, 0]
    assert wall(out.mu) == 0 and out.mu.values[x > 0.5].max() < 1e-6
    steep = Potential(lambda p: torch.where(p[..., 0] > 0.5, 1e3, 0.0))
    penalised = Backward(V + PorousMedium(2.0) + steep, solver=Convex(max_full=10**6, tol=1e-10))(mu, 0.0, 1.0)
    torch.testing.assert_close(out.mu.values, penalised.mu.values, atol=2e-4, rtol=0)


def test_a_step_with_the_mean_held():
    """On a fine grid: the drift V = −5x would carry the mean to 5·tau; held at 0, the step is that without V."""
    mu = normal(Grid(-3.0, 3.0, 60))
    F = PorousMedium(2.0) + Moments(lambda x: x, [0.0])
    still = Backward(F, solver=Convex())(mu, 0.0, 0.5)
    pulled = Backward(F + Potential(lambda x: -5 * x[..., 0]), solver=Convex())(mu, 0.0, 0.5)
    assert abs(pulled.mu.mean.item()) < 1e-6
    torch.testing.assert_close(pulled.mu.values, still.mu.values, atol=1e-3, rtol=0)
