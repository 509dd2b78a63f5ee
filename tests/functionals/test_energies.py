"""Energies on grids against what is known of their flows: steady states, implicit steps, and empty cells."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor

from otprox import (
    Backward,
    Congestion,
    Density,
    Dirichlet,
    Entropy,
    Forward,
    Gaussian,
    Grid,
    Interaction,
    PorousMedium,
    Potential,
    Quadratic,
    Quantiles,
)
from otprox.exact import diffusion
from otprox.kernels import RBF, Energy
from otprox.solvers import Convex, Quantile

CONVEX = Convex(on_failure="raise")


def log_gas(z: Tensor) -> Tensor:
    return -z.norm(dim=-1).log()


def normal(grid: Grid, mean: float = 0.3, var: float = 0.3) -> Density:
    return Density.from_log_prob(Gaussian([mean], [[var]]).log_prob, grid)


def test_the_log_gas_comes_to_rest_on_the_semicircle():
    """One long step on a grid, V = x²/2 and W = −log|x|: the density √(2 − x²)/π."""
    errors = []
    for n in (40, 80):
        mu = normal(Grid(-2.0, 2.0, n))
        out = CONVEX(Potential(Quadratic([0.0])) + Interaction(log_gas), Backward(Entropy()).metric, mu, 1e6)
        expected = diffusion.semicircle_density(mu.points[:, 0], math.sqrt(2))
        errors.append((out.mu.values - expected).abs().mean().item())
    assert errors[1] < 0.6 * errors[0] and errors[1] < 5e-3


def test_attraction_and_repulsion_come_to_rest_on_the_uniform():
    """V = x²/2 and W = −|x|: the uniform on [−1, 1], on a grid and on quantiles."""
    F = Potential(Quadratic([0.0])) + Interaction(Energy())
    mu = normal(Grid(-2.0, 2.0, 80))
    out = Convex(tol=1e-11)(F, Backward(F).metric, mu, 1e6)
    torch.testing.assert_close(out.mu.values, torch.where(mu.points[:, 0].abs() < 1, 0.5, 0.0), rtol=0, atol=1e-4)
    points = Quantile()(F, Backward(F).metric, Quantiles.of(Gaussian([0.3], [[0.3]]), 200), 1e6).mu.x[:, 0]
    torch.testing.assert_close(points, 2 * (torch.arange(200) + 0.5) / 200 - 1, rtol=0, atol=1e-5)


def test_the_thin_film_step_keeps_its_family():
    """Smyth and Hill's solution under an implicit step of the Dirichlet energy, on a fixed grid."""
    film, tau, errors = diffusion.SmythHill(1), 8.0, []
    R = film.radius(1.0)
    for n in (60, 120):
        grid = Grid(-5.0, 5.0, n)
        p = film.density(grid.points(torch.zeros(1)), radius=R)
        out = CONVEX(Dirichlet(), Backward(Dirichlet()).metric, Density(p / (p.sum() * grid.volume), grid), tau)
        errors.append((out.mu.values - film.density(out.mu.points, radius=film.jko(R, tau))).abs().mean().item())
    assert errors[1] < 0.5 * errors[0] and errors[1] < 1e-3


@pytest.mark.parametrize("m", [0.3, 0.7, 1.5, 3.0])
def test_the_virial_identity_of_a_step_on_a_grid(m):
    """E⟨x − T(x), x⟩ = τ(m − 1)F on quantiles, where nothing freezes; and the same minimum on a grid."""
    mu, tau, F = Quantiles.of(Gaussian([0.3], [[0.6]]), 400), 0.2, PorousMedium(m)
    new = Convex(tol=1e-10)(F, Backward(F).metric, mu, tau).mu
    torch.testing.assert_close(((new.x - mu.x) * new.x).mean(), tau * (m - 1) * F(new), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("m", [0.3, 0.9, 1.0001, 2.0, 7.0])
def test_empty_cells(m):
    """The energy counts them as 0, the first variation is finite, and an implicit step of fast diffusion fills them."""
    grid = Grid(-1.0, 1.0, 20)
    mu = Density(torch.where(grid.points(torch.zeros(1))[:, 0].abs() < 0.5, 1.0, 0.0), grid)
    F = PorousMedium(m)
    torch.testing.assert_close(F(mu).item(), 1 / (m - 1))
    assert torch.isfinite(F.first_variation(mu)).all()
    new = Convex(tol=1e-9)(F, Backward(F).metric, mu, 0.5).mu
    assert torch.isfinite(new.values).all() and new.values[0] > (1e-5 if m < 1 else -1)
    if m < 0.5:
        with pytest.raises(ValueError, match="stable step"):
            Forward(F)(mu, 0.0, 1e-3)


def test_displacement_convexity_by_dimension():
    for m, dims in ((0.4, 1), (0.5, 2), (2 / 3, 3), (0.75, 4)):
        assert PorousMedium(m).displacement_convex(dims) and not PorousMedium(m - 0.1).displacement_convex(max(dims, 2))
    assert PorousMedium(2.0).displacement_convex(100) and PorousMedium(2.0).convexity() == 0.0
    assert PorousMedium(0.9).convexity() is None


def test_everything_at_once():
    """Seven energies in one sum: the objective of the step is below that of any mixture with the start."""
    grid = Grid(-2.0, 2.5, 70)
    mu = normal(grid, 0.8, 0.25)
    F = (
        0.1 * Entropy()
        + 0.5 * PorousMedium(2.0)
        + 0.05 * PorousMedium(0.5)
        + Potential(Quadratic([-0.5]))
        + 0.3 * Interaction(RBF(2.0))
        + 0.01 * Dirichlet()
        + Congestion(0.9)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = Convex(max_full=0, on_failure="raise")(F, Backward(F).metric, mu, 0.5)
    assert Congestion(0.9)(out.mu) == 0
    parts = sum(c * f(out.mu) for c, f in F.terms)
    torch.testing.assert_close(out.stats.objective, parts + out.stats.distance2 / 1.0)
    for s in (1e-3, 0.1):  # mixtures: the plans mix too, so that their cost bounds W2²
        mixed = mu.with_state(values=(1 - s) * out.mu.values + s * mu.values)
        smooth = sum(c * f(mixed) for c, f in F.terms if not isinstance(f, Congestion))
        assert smooth + (1 - s) * out.stats.distance2 > out.stats.objective - 1e-7
