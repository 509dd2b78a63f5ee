"""Kantorovich: exact JKO steps in closed form, orders in the spacing, steps far below a cell, identities, bad input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import otprox as ox
from otprox import Density, Entropy, Gaussian, Grid, PorousMedium, Wasserstein
from otprox.exact.diffusion import barenblatt, jko_uniform_entropy, jko_uniform_porous_medium
from otprox.solvers import Kantorovich, choose

STRICT = Kantorovich(on_failure="raise")


def averages(f, grid: Grid, order: int = 4) -> Tensor:
    """Cell averages of f: (n, d) -> (n,) by Gauss–Legendre."""
    like = torch.zeros(())
    points = grid.points(like)
    return sum(w * f(points + z) for z, w in grid.nodes(order, like)).reshape(grid.shape)


def density(f, grid: Grid, order: int = 4) -> Density:
    values = averages(f, grid, order)
    return Density(values / (values.sum() * grid.volume), grid)


def l1(mu: Density, values: Tensor) -> float:
    return ((mu.values - values).abs().sum() * mu.grid.volume).item()


def barenblatt_error(n: int, d: int, m: float, tau: float) -> tuple[float, float]:
    """L1 error of the density and relative error of W2² of one step from a Barenblatt density, c = 0.005."""
    grid, B = Grid((0.0,) * d, (1.0,) * d, (n,) * d), barenblatt(m, d, coefficient=0.005)
    R = B.radius(0.1)
    new = B.jko(R, tau)
    mu = density(lambda x: B.density(x - 0.5, R), grid)
    out = STRICT(0.005 * PorousMedium(m), Wasserstein(), mu, tau)
    distance2 = out.stats.distance2.item() / B.w2_squared(R, new).item() - 1
    return l1(out.mu, averages(lambda x: B.density(x - 0.5, new), grid)), distance2


@pytest.mark.parametrize(("d", "m", "n"), [(1, 2.0, 64), (1, 3.0, 64), (1, 1.5, 64), (2, 2.0, 32), (2, 1.5, 32)])
def test_barenblatt_goes_to_barenblatt(d, m, n):
    coarse, fine = barenblatt_error(n, d, m, 0.1), barenblatt_error(2 * n, d, m, 0.1)
    assert fine[0] < 3e-3 and abs(fine[1]) < 1e-2
    assert fine[0] < 0.55 * coarse[0]


@pytest.mark.parametrize("tau", [0.01, 0.1, 1.0])
def test_entropy_and_porous_medium_from_the_uniform_density(tau: float):
    for F, exact, reach in (
        (Entropy(), jko_uniform_entropy(tau), 6.0),
        (PorousMedium(2.0), jko_uniform_porous_medium(tau), 2.0),
    ):
        grid = Grid(0.5 - reach, 0.5 + reach, round(80 * reach))
        mu = density(lambda x: ((x[..., 0] > 0) & (x[..., 0] < 1)).double(), grid)
        out = STRICT(F, Wasserstein(), mu, tau)
        values = averages(lambda x, e=exact: e.density(x[..., 0]), grid)
        assert l1(out.mu, values) < 2e-3
        assert out.mu.cov.item() == pytest.approx(exact.variance, abs=5e-4)
        assert abs(out.mu.mass.item() - 1) < 1e-12 and out.mu.values.min() >= 0


def test_it_is_the_default_on_a_grid():
    grid = Grid((-6.0, -6.0), (6.0, 6.0), (40, 40))
    mu = Gaussian([0.0, 0.0], [[1.0, 0.0], [0.0, 0.5]]).to_density(grid)
    assert isinstance(choose(Entropy(), Wasserstein(), mu), Kantorovich)
    out = ox.Backward(Entropy())(mu, 0.0, 0.1)
    assert out.stats.converged and out.stats.residual < 1e-6
