"""Congestion: where it is infinite, what it declines, and its programs."""

from __future__ import annotations

import math

import pytest
import torch

from otprox import (
    Backward,
    Congestion,
    Density,
    Entropy,
    Forward,
    Gaussian,
    Grid,
    Particles,
    Potential,
    Quadratic,
    Quantiles,
)
from otprox.functionals import NotConvex
from otprox.solvers import Convex, Descent, Features


def block(n: int = 40, half: float = 2.0) -> Density:
    grid = Grid(-half, half, n)
    return Density(torch.where(grid.points(torch.zeros(1))[:, 0].abs() < 0.5, 1.0, 0.0), grid)


def test_zero_up_to_the_bound_and_infinite_above():
    mu = block()
    assert Congestion(1.0)(mu) == 0 and Congestion(1.1)(mu) == 0
    assert Congestion(1 - 5e-7)(mu) == 0 and Congestion(1 - 5e-6)(mu) == math.inf  # the tolerance is 1e-6
    assert (2.0 * Congestion() + Entropy())(mu) == Entropy()(mu)


def test_every_representation_with_a_density():
    line = Quantiles(torch.arange(20) / 10.0)  # uniform of density 1/2 on gaps of 1/10
    normal = Gaussian([3.0, 0.0], torch.diag(torch.tensor([1.0, 0.25])))
    cloud = Particles(torch.zeros(3, 1), log_density=torch.tensor([0.0, 0.3, -2.0]))
    for mu, peak in ((line, 0.5), (normal, 1 / math.pi), (cloud, math.exp(0.3))):
        torch.testing.assert_close(Congestion(2.0).violation(mu).item(), peak / 2 - 1)
        assert Congestion(1.01 * peak)(mu) == 0 and Congestion(0.99 * peak)(mu) == math.inf
    assert Congestion(2.0)(Quantiles([0.0, 0.0, 1.0])) == math.inf  # an atom
    with pytest.raises(TypeError, match="would work"):
        Congestion()(Particles(torch.zeros(3, 1)))
    both = Density(torch.stack([block().values, block().values.roll(3)]), block().grid)
    assert Congestion(0.5)(both).tolist() == [math.inf, math.inf]


@pytest.mark.parametrize("bound", [0.0, -1.0, math.inf, math.nan])
def test_bad_bounds(bound):
    with pytest.raises(ValueError, match="positive, finite bound"):
        Congestion(bound)


def test_explicit_steps_decline():
    F = Potential(Quadratic([0.0])) + Congestion()
    cloud = Particles(torch.randn(5, 1, generator=torch.Generator().manual_seed(0)), log_density=torch.zeros(5))
    for mu in (block(), cloud):
        with pytest.raises(TypeError, match=r"Forward.*declines: Congestion is a constraint.*Backward"):
            Forward(F)(mu, 0.0, 0.1)
    for solver in (Descent(), Features()):
        with pytest.raises(TypeError, match="Congestion is a constraint"):
            Backward(F, solver=solver)(cloud, 0.0, 0.1)
    assert not Congestion().first_variation(block()).any() and Congestion().gradient(block()).shape == (40, 1)
    assert F.convexity() == 1.0 and (-1.0 * Congestion()).convexity() is None


def test_a_step_on_a_grid_saturates():
    """Towards 0 by V = ½·20x²: the minimiser is the block of density 1 about 0 where the bound is active."""
    mu = block(40).with_state(values=block(40).values.roll(6))
    out = Backward(20.0 * Potential(Quadratic([0.0])) + Congestion(1.0), solver=Convex())(mu, 0.0, 1.0)
    assert out.stats.converged and Congestion(1.0)(out.mu) == 0
    free = Backward(20.0 * Potential(Quadratic([0.0])), solver=Convex())(mu, 0.0, 1.0)
    assert free.mu.values.max() > 2  # without the bound
    assert out.mu.mean.abs() < 0.1 and out.mu.values.max() > 1 - 1e-6


def test_a_step_on_quantiles_is_the_projection_of_the_free_one():
    """The step of V + congestion minimises Σ|x_i − y_i|² over gaps ≥ 1/(n·bound): that of y − i/(n·bound), isotonic."""
    from sklearn.isotonic import isotonic_regression

    n, tau, bound = 60, 0.5, 1.5
    x = torch.linspace(-1.0, 2.0, n) + 0.05 * torch.sin(torch.arange(n))
    mu = Quantiles(x.sort().values)
    F = Potential(Quadratic([0.0], precision=[[4.0]])) + Congestion(bound)
    out = Backward(F, solver=Convex(tol=1e-12))(mu, 0.0, tau)
    free = mu.x[:, 0] / (1 + 4 * tau)
    least = torch.arange(n) / (n * bound)
    expected = torch.from_numpy(isotonic_regression((free - least).numpy())) + least
    torch.testing.assert_close(out.mu.x[:, 0], expected, rtol=0, atol=2e-6)
    assert Congestion(bound).violation(out.mu) < 1e-6


def test_atoms():
    with pytest.raises(NotConvex, match="coefficient"):
        Congestion().atom(block(), -1.0)
    with pytest.raises(NotConvex, match="Gaussian"):
        Congestion().atom(Gaussian([0.0], [[1.0]]), 1.0)
