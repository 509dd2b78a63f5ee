"""Kantorovich on densities with sharp edges, and at very large steps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from otprox import Density, Entropy, Grid, PorousMedium, Potential, Wasserstein
from otprox.exact.diffusion import jko_uniform_entropy
from otprox.functionals import Congestion, Functional
from otprox.solvers import Kantorovich
from otprox.solvers.base import Out

STRICT = Kantorovich(on_failure="raise")


def density(f, grid: Grid, order: int = 4) -> Density:
    like = torch.zeros(())
    points = grid.points(like)
    values = sum(w * f(points + z) for z, w in grid.nodes(order, like)).reshape(grid.shape)
    return Density(values / (values.sum() * grid.volume), grid)


def square(half: float, n: int) -> Density:
    """Uniform on the unit square, in a box of half-width `half`."""
    return density(lambda x: (x.abs().amax(-1) < 0.5).double(), Grid((-half, -half), (half, half), (n, n)), 8)


def disc(radius: float, n: int) -> Density:
    """Uniform on a disc in the unit square, whose edge cuts through cells."""
    grid = Grid((0.0, 0.0), (1.0, 1.0), (n, n))
    return density(lambda x: ((x - 0.5).norm(dim=-1) < radius).double(), grid, 8)


QUADRATIC = Potential(lambda x: 0.5 * x.square().sum(-1))


def beside(n: int) -> Density:
    """A Gaussian bump that is centred at (1, 0)."""
    grid = Grid((-2.0, -2.0), (2.0, 2.0), (n, n))
    return density(lambda x: torch.exp(-4 * (x - x.new_tensor([1.0, 0.0])).square().sum(-1)), grid)


def l1(mu: Density, values: Tensor) -> float:
    return ((mu.values - values).abs().sum() * mu.grid.volume).item()


def check_step(F: Functional, mu: Density, tau: float) -> Out:
    """A converged step keeps mass and sign, pays for its distance, and its dual value is its primal value."""
    out = STRICT(F, Wasserstein(), mu, tau)
    assert abs(out.mu.mass.item() - 1) < 1e-12 and out.mu.values.min() >= 0
    assert out.stats.objective <= F(mu) + 1e-9
    assert abs(out.stats.residual.item()) < 1e-5 * max(1.0, abs(out.stats.objective.item()))
    return out


@pytest.mark.parametrize(("tau", "n"), [(1e-3, 24), (0.01, 32), (0.1, 32)])
def test_heat_from_a_square_is_the_product_of_two_steps_on_the_line(tau: float, n: int):
    mu, exact = square(0.8 if tau < 0.05 else 1.5, n), jko_uniform_entropy(tau, -0.5, 0.5)
    out = check_step(Entropy(), mu, tau)
    line = Grid(mu.grid.lower[:1], mu.grid.upper[:1], (n,))
    marginal = density(lambda x: exact.density(x[..., 0]), line, 8).values
    h2 = mu.grid.spacing[0] ** 2
    assert l1(out.mu, marginal[:, None] * marginal) < 0.3 * h2 / tau + 0.03
    value = 2 * (exact.energy + exact.w2_squared / (2 * tau))
    assert out.stats.objective.item() == pytest.approx(value, abs=0.1 * h2 / tau + 0.03)


@pytest.mark.parametrize(
    ("F", "radius", "tau"),
    [(Entropy(), 0.25, 0.1), (Entropy(), 0.25, 0.01), (PorousMedium(0.7), 0.25, 0.01), (PorousMedium(2.0), 0.25, 0.1)],
)
def test_from_a_disc_whose_edge_cuts_through_cells(F: Functional, radius: float, tau: float):
    mu = disc(radius, 24)
    values = check_step(F, mu, tau).mu.values
    for same in (values.flip(0), values.flip(1), values.mT):
        assert l1(Density(same, mu.grid), values) < 0.02


def test_heat_from_two_shapes_of_different_heights():
    grid = Grid((0.0, 0.0), (1.0, 1.0), (32, 32))

    def shapes(x: Tensor) -> Tensor:
        block, round_one = (x - 0.3).abs().amax(-1) < 0.12, (x - x.new_tensor([0.7, 0.6])).norm(dim=-1) < 0.15
        return block.double() + 2 * round_one.double()

    check_step(Entropy(), density(shapes, grid), 0.01)


def test_a_double_well_from_a_wide_start():
    V = Potential(lambda x: (x[..., 0].square() - 1).square() + x[..., 1].square())
    grid = Grid((-3.0, -3.0), (3.0, 3.0), (32, 32))
    check_step(Entropy() + V, density(lambda x: torch.exp(-x.square().sum(-1) / 4), grid), 0.1)


@pytest.mark.parametrize("tau", [10.0, 1e3])
def test_a_crowd_takes_its_place_in_one_large_step(tau: float):
    """As tau → ∞ the step is the block of density 1 where V is least: here the disc of area 1."""
    F = QUADRATIC + Congestion(1.0)
    mu = beside(32)
    out = check_step(F, mu, tau)
    assert out.mu.values.max() <= 1 + 1e-9
    mean = mu.mean[0].item() / (1 + tau)  # it minimises ½|b|² + |b − b₀|²/(2·tau), whatever the shape
    assert out.mu.mean[0].item() == pytest.approx(mean, abs=0.02)
    block = density(lambda x: (math.pi * (x - x.new_tensor([mean, 0.0])).square().sum(-1) < 1).double(), mu.grid, 8)
    assert l1(out.mu, block.values) < 0.15


def test_a_porous_medium_reaches_equilibrium_in_one_huge_step():
    """2ρ = (R²/2 − |x|²/2) on |x| < R, of mass πR⁴/8 = 1."""
    mu, R2 = beside(32), (8 / math.pi) ** 0.5
    out = check_step(QUADRATIC + PorousMedium(2.0), mu, 1e4)
    equilibrium = density(lambda x: (R2 - x.square().sum(-1)).clamp_min(0) / 4, mu.grid)
    assert l1(out.mu, equilibrium.values) < 0.01


def test_a_batch_of_edges_equals_single_runs():
    parts = [disc(radius, 16) for radius in (0.2, 0.3)]
    both = Density(torch.stack([part.values for part in parts]), parts[0].grid)
    out = STRICT(Entropy(), Wasserstein(), both, 0.05)
    for k, part in enumerate(parts):
        single = STRICT(Entropy(), Wasserstein(), part, 0.05)
        torch.testing.assert_close(out.mu.values[k], single.mu.values, atol=1e-10, rtol=0)
