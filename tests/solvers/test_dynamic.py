"""Dynamic transport: geodesics, implicit steps and games against closed forms; batches, metrics, what is declined."""

from __future__ import annotations

import math
import re
import warnings

import pytest
import torch

import otprox as ox
from otprox import KL, Density, Entropy, Gaussian, Grid, Interaction, PorousMedium, Potential, Quadratic, Wasserstein
from otprox.exact import gaussian
from otprox.exact.barenblatt import barenblatt
from otprox.exact.games import LinearQuadraticGame
from otprox.exact.jko_uniform import jko_uniform_porous_medium
from otprox.exact.thin_film import SmythHill
from otprox.functionals import Congestion, Dirichlet
from otprox.measures.distance import w2_squared
from otprox.solvers import (
    Concave,
    ConcaveMobility,
    ConvergenceError,
    ConvergenceWarning,
    Dynamic,
    Saturating,
    benamou_brenier,
    geodesic,
)

W2 = Wasserstein()
LINE = Grid(-5.0, 5.0, 100)


def label(value: object) -> str:
    """A test's name for a value: without addresses of functions, which differ from one worker to another."""
    return re.sub(r" at 0x\w+", "", str(value))


def normal(mean: object, cov: object, grid: Grid = LINE) -> Density:
    return Gaussian(mean, cov).to_density(grid)


def blocks(grid: Grid, seed: int, batch: tuple[int, ...] = ()) -> Density:
    values = torch.rand(*batch, *grid.shape, generator=torch.Generator().manual_seed(seed)) + 0.05
    return Density(values / (values.sum(tuple(range(-grid.dim, 0)), keepdim=True) * grid.volume), grid)


def l1(mu: Density, nu: Density) -> float:
    return (mu.values - nu.values).abs().sum().item() * mu.grid.volume


# ------------------------------------------------------------------------------------------------------------ geodesics


def test_the_geodesic_of_two_gaussians_on_the_line():
    """W2² = |Δm|² + (Δσ)², at constant kinetic energy, through N(mean, (mean of the deviations)²)."""
    mu, nu = normal([-1.0], [[0.25]]), normal([1.5], [[0.64]])
    exact = 2.5**2 + 0.3**2
    curve = geodesic(mu, nu, tol=1e-4)
    assert curve.stats.converged and curve.stats.iterations < 600
    assert curve.distance2.item() == pytest.approx(exact, rel=1e-3)
    torch.testing.assert_close(curve.kinetic, torch.full((16,), exact), rtol=0.03, atol=0)
    half = curve.at(8)
    assert half.mean.item() == pytest.approx(0.25, abs=1e-3) and half.cov.item() == pytest.approx(0.65**2, rel=0.01)
    assert curve.action.item() == pytest.approx(curve.distance2.item() / 2)
    speed = curve.potential[8].diff() / LINE.spacing[0]  # at the middle of the way v is affine: Δm + (x − m)·Δσ/σ
    x = LINE.edges(speed)[0][1:-1]
    inside = (x - 0.25).abs() < 1.0
    assert (speed - (2.5 + 0.3 / 0.65 * (x - 0.25)))[inside].abs().max() < 0.1


def waves(grid: Grid, *amplitudes: float) -> Density:
    """1 + Σ a_k cos(kπx) on [0, 1], its exact cell averages."""
    edges = grid.edges(torch.zeros(()))[0]
    primitive = edges + sum(a * torch.sin(k * math.pi * edges) / (k * math.pi) for k, a in enumerate(amplitudes, 1))
    return Density(primitive.diff() / grid.volume, grid)


def test_the_distance_is_of_second_order_in_cells_and_in_inner_steps():
    """Between smooth positive densities, whose distance the quantile functions give; in cells, and in steps."""
    a, b, fine = (0.5, 0.2), (-0.6, 0.1), Grid(0.0, 1.0, 2000)
    exact = w2_squared(waves(fine, *a), waves(fine, *b)).item()

    def error(n: int, K: int) -> float:
        grid = Grid(0.0, 1.0, n)
        return geodesic(waves(grid, *a), waves(grid, *b), inner_steps=K, tol=1e-5).distance2.item() / exact - 1

    cells = [error(n, 32) for n in (8, 16)]
    steps = [error(64, K) for K in (2, 4)]
    assert 3 < cells[0] / cells[1] < 5 and 3 < steps[0] / steps[1] < 5
    assert abs(error(64, 16)) < 1e-3


def test_the_geodesic_of_gaussians_that_do_not_commute():
    """Σ_½ of the Bures geodesic, and W2², in the plane."""
    grid = Grid((-5, -5), (5, 5), (50, 50))
    a = Gaussian([-0.5, 0.2], [[0.5, 0.2], [0.2, 0.4]])
    b = Gaussian([0.6, -0.3], [[0.3, -0.1], [-0.1, 0.8]])
    curve = geodesic(a.to_density(grid), b.to_density(grid), inner_steps=8, tol=2e-4)
    half, exact = curve.at(4), gaussian.geodesic(a, b, 0.5)
    assert curve.distance2.item() == pytest.approx(gaussian.w2_squared(a, b).item(), rel=0.01)
    torch.testing.assert_close(half.mean, exact.mean, atol=2e-3, rtol=0)
    torch.testing.assert_close(half.cov - grid.spacing[0] ** 2 / 12 * torch.eye(2), exact.cov, atol=0.01, rtol=0)


def test_the_distance_is_that_of_the_quantile_functions():
    """Of the piecewise constant densities, in a batch; and what finishes in it stays as it is."""
    grid = Grid(0.0, 1.0, 40)
    mu = Density(torch.stack([waves(grid, *a).values for a in ((0.5,), (0.0, 0.8), (-0.3, 0.2, 0.4))]), grid)
    nu = waves(grid, -0.4, 0.3)
    curve = geodesic(mu, nu, inner_steps=8, tol=1e-4)
    nu3 = Density(nu.values.expand(3, -1), grid)
    torch.testing.assert_close(curve.distance2, w2_squared(mu, nu3), rtol=0.01, atol=0)
    for i in range(3):
        alone = geodesic(Density(mu.values[i], grid), nu, inner_steps=8, tol=1e-4)
        torch.testing.assert_close(curve.values[i], alone.values)
        assert curve.stats.iterations[i] == alone.stats.iterations


def test_the_distance_agrees_with_a_linear_program_in_the_plane():
    grid = Grid((0, 0), (1, 1), (14, 14))
    x = grid.points(torch.zeros(()))
    a, b = (torch.exp(-((x - torch.tensor(c)) ** 2).sum(-1) / 0.05) + 0.02 for c in ([0.35, 0.4], [0.6, 0.65]))
    mu, nu = (Density((v / v.sum() / grid.volume).reshape(14, 14), grid) for v in (a, b))
    exact = w2_squared(ox.Particles(x, mu.masses), ox.Particles(x, nu.masses)).item()
    assert geodesic(mu, nu, inner_steps=8, tol=2e-4).distance2.item() == pytest.approx(exact, rel=0.03)


def test_on_a_circle_mass_takes_the_short_way():
    grid = Grid(0.0, 1.0, 50, periodic=True)
    x = grid.points(torch.zeros(()))[:, 0]
    bump = lambda c: torch.exp((torch.cos(2 * math.pi * (x - c)) - 1) / 0.1)  # noqa: E731
    mu, nu = (Density(v / v.sum() / grid.volume, grid) for v in (bump(0.1), bump(0.9)))
    curve = geodesic(mu, nu, tol=3e-5)
    assert curve.distance2.item() == pytest.approx(0.2**2, rel=0.01)
    assert curve.at(8).values.argmax().item() in (0, 49)


# ------------------------------------------------------------------------------------------------------- implicit steps


@pytest.mark.parametrize(("dim", "n"), [(1, 80), (2, 40)])
def test_barenblatt_steps_to_barenblatt(dim: int, n: int):
    """The exact step of ∫ρ² from Barenblatt's profile, at two resolutions (its edge costs some of the order 2)."""
    family, errors = barenblatt(2.0, dim), []
    old = family.radius(1.0)
    for cells in (n // 2, n):
        grid = Grid((-3,) * dim, (3,) * dim, (cells,) * dim)
        sample = lambda r: averages(lambda x: family.density(x, radius=r), grid)  # noqa: B023, E731
        mu, exact = sample(old), sample(family.jko(old, 0.1))
        out = Dynamic()(PorousMedium(2.0), W2, mu, 0.1)
        assert out.stats.converged and out.stats.iterations <= 200
        assert (out.mu.values >= 0).all() and abs(out.mu.mass.item() - 1) < 1e-12
        errors.append(l1(out.mu, exact))
        assert out.stats.distance2.item() == pytest.approx(
            family.w2_squared(old, family.jko(old, 0.1)).item(), rel=0.05
        )
    assert errors[1] < 2e-3 and errors[0] / errors[1] > 2.2


def averages(f: object, grid: Grid, order: int = 4) -> Density:
    points = grid.points(torch.zeros(()))
    values = sum(w * f(points + z) for z, w in grid.nodes(order, points)).reshape(grid.shape)  # type: ignore[operator]
    return Density(values / (values.sum() * grid.volume), grid)


@pytest.mark.parametrize("tau", [0.3, 0.02])
@pytest.mark.parametrize("Q", [None, 2.0])
def test_the_kl_step_of_a_gaussian(tau: float, Q: float | None):
    metric = Wasserstein(None if Q is None else torch.tensor([[Q]]))
    start, F = Gaussian([0.7], [[0.5]]), KL(Gaussian([0.0], [[1.3]]))
    exact = ox.solvers.Bures()(F, metric, start, tau)
    grid = Grid(-7.0, 7.0, 160)
    out = Dynamic()(F, metric, start.to_density(grid), tau)
    binning = grid.spacing[0] ** 2 / 12  # the variance of a cell
    assert out.stats.converged
    assert out.mu.mean.item() == pytest.approx(exact.mu.mean.item(), abs=1e-3)
    assert out.mu.cov.item() - binning == pytest.approx(exact.mu.cov.item(), rel=4e-3)
    assert out.stats.distance2.item() == pytest.approx(exact.stats.distance2.item(), rel=5e-3)
    assert l1(out.mu, exact.mu.to_density(grid)) < 2e-3


def test_a_step_far_below_a_cell_does_not_freeze():
    """Steps of 1/100 of a cell or so: the variance of the heat flow grows by 2 a unit of time."""
    grid, step = Grid(-5.0, 5.0, 100), ox.Backward(Entropy(), solver=Dynamic(inner_steps=1))
    mu = normal([0.0], [[0.5]], grid)
    end = ox.record(ox.flow(step, mu, [0.001 * k for k in range(21)])).final
    assert end.cov.item() - mu.cov.item() == pytest.approx(0.04, rel=0.01)


def test_the_step_from_a_uniform_density():
    grid, exact = Grid(-1.0, 2.0, 150), jko_uniform_porous_medium(0.1)
    x = grid.points(torch.zeros(()))[:, 0]
    mu = Density(torch.where((x > 0) & (x < 1), 1.0, 0.0), grid)
    out = Dynamic(inner_steps=8)(PorousMedium(2.0), W2, mu, 0.1)
    assert l1(out.mu, averages(lambda y: exact.density(y[..., 0]), grid)) < 6e-3
    assert out.stats.distance2.item() == pytest.approx(exact.w2_squared, rel=0.02)
    assert out.mu.cov.item() == pytest.approx(exact.variance, rel=0.01)


def test_a_batch_of_steps_is_the_single_steps():
    grid, centres = Grid(0.0, 1.0, 24), (0.3, 0.5, 0.6)
    mu = Density(torch.stack([waves(grid, *a).values for a in ((0.5,), (0.0, 0.8), (-0.3, 0.2, 0.4))]), grid)
    F = PorousMedium(2.0) + Potential(Quadratic(torch.tensor(centres)[:, None]))
    out = Dynamic()(F, W2, mu, 0.02)
    for i, centre in enumerate(centres):
        alone = Dynamic()(PorousMedium(2.0) + Potential(Quadratic([centre])), W2, Density(mu.values[i], grid), 0.02)
        torch.testing.assert_close(out.mu.values[i], alone.mu.values, atol=1e-10, rtol=0)
        assert out.stats.iterations[i] == alone.stats.iterations


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_units_do_not_matter(scale: float):
    unit, other = Grid(0.0, 1.0, 24), Grid(0.0, scale, 24)
    mu = waves(unit, 0.5, 0.2)
    out, same = (
        Dynamic()(F, W2, nu, tau)
        for F, nu, tau in (
            (PorousMedium(2.0), mu, 0.02),
            (scale * PorousMedium(2.0), Density(mu.values / scale, other), 0.02 * scale**2),
        )
    )
    torch.testing.assert_close(same.mu.values * scale, out.mu.values, atol=1e-6, rtol=0)
    assert same.stats.distance2.item() / scale**2 == pytest.approx(out.stats.distance2.item(), rel=1e-4)


@pytest.mark.needs_cuda
def test_it_runs_on_a_gpu():
    grid = Grid((0, 0), (1, 1), (16, 17), periodic=(True, False))
    mu, nu = blocks(grid, 1), blocks(grid, 2)
    there = [Density(rho.values.cuda(), grid) for rho in (mu, nu)]
    curve = geodesic(*there, inner_steps=4, tol=1e-3)
    assert curve.values.is_cuda
    torch.testing.assert_close(curve.values.cpu(), geodesic(mu, nu, inner_steps=4, tol=1e-3).values, atol=1e-6, rtol=0)
    step = Dynamic()(PorousMedium(2.0) + Entropy(), W2, there[0], 0.01)
    torch.testing.assert_close(
        step.mu.values.cpu(), Dynamic()(PorousMedium(2.0) + Entropy(), W2, mu, 0.01).mu.values, atol=1e-6, rtol=0
    )


def test_congestion_bounds_the_density_and_pushes_as_little_as_it_can():
    """The projection on ρ ≤ 1 of twice U[0, ½] spreads it over its neighbours: U[−¼, ¾], at W2² = 1/48."""
    grid = Grid(-1.0, 1.5, 100)
    x = grid.points(torch.zeros(()))[:, 0]
    mu = Density(torch.where((x > 0) & (x < 0.5), 2.0, 0.0), grid)
    out = Dynamic(inner_steps=8)(Congestion(1.0), W2, mu, 1.0)
    assert out.mu.values.max() <= 1 + 1e-6 and out.stats.converged
    assert out.stats.distance2.item() == pytest.approx(1 / 48, rel=0.02)
    assert l1(out.mu, Density(torch.where((x > -0.25) & (x < 0.75), 1.0, 0.0), grid)) < 0.02


def test_energy_falls():
    """F(ν) + d²/2τ ≤ F(μ) at every step, and the objective is what it says."""
    grid, F = Grid((-2, -2), (2, 2), (24, 24)), PorousMedium(3.0) + Potential(Quadratic([0.3, 0.0]))
    mu = averages(lambda x: torch.exp(-2 * x.square().sum(-1)), grid)
    for tau in (0.002, 0.05, 0.2):
        out = Dynamic(inner_steps=2)(F, W2, mu, tau)
        assert out.stats.objective <= F(mu) + 1e-10
        assert out.stats.objective.item() == pytest.approx((F(out.mu) + out.stats.distance2 / (2 * tau)).item())
        mu = out.mu


def test_a_metric_is_a_change_of_coordinates():
    """Wasserstein(diag(q)) on a grid is Wasserstein() on the grid stretched by 1/√q, at any resolution."""
    q, F = torch.tensor([4.0, 0.25]), PorousMedium(2.0)
    grid, flat = Grid((-1, -1), (1, 1), (16, 12)), Grid((-0.5, -2), (0.5, 2), (16, 12))
    mu = blocks(grid, 3)
    solver = Dynamic(tol=1e-7, max_iter=20000)
    out = solver(F, Wasserstein(torch.diag(q)), mu, 0.02)
    same = solver(F, W2, Density(mu.values, flat), 0.02)
    torch.testing.assert_close(out.mu.values, same.mu.values, atol=1e-4, rtol=0)
    curve = solver.curve(mu, F, horizon=0.02, metric=Wasserstein(torch.diag(q)))
    twin = solver.curve(Density(mu.values, flat), F, horizon=0.02, metric=W2)
    for a, (m, w) in enumerate(zip(curve.flux, twin.flux, strict=True)):
        torch.testing.assert_close(m, w * q[a] ** 0.5, atol=1e-3, rtol=0)
    moving = ox.Moving(lambda t: t * torch.diag(q), rate=lambda t: torch.diag(q))
    again = ox.Backward(F, moving, solver)(mu, 0.0, 0.02)
    torch.testing.assert_close(again.mu.values, out.mu.values)


def test_three_dimensions_and_single_precision():
    grid = Grid((-3,) * 3, (3,) * 3, (12, 12, 12), periodic=(False, True, False))
    mu = averages(lambda x: torch.exp(-(x - 0.3).square().sum(-1)), grid, 2)
    out = Dynamic(inner_steps=2)(PorousMedium(2.0), W2, mu, 0.2)
    assert out.stats.converged and out.stats.objective <= PorousMedium(2.0)(mu)
    single = Density(mu.values.float(), grid)
    coarse = Dynamic(inner_steps=2)(PorousMedium(2.0), W2, single, 0.2)
    assert coarse.mu.values.dtype == torch.float32 and coarse.stats.converged
    torch.testing.assert_close(coarse.mu.values.double(), out.mu.values, atol=1e-5, rtol=1e-3)


# -------------------------------------------------------------------------------- running costs, viscosity, mobilities


@pytest.mark.parametrize(("cohesion", "viscosity", "pull"), [(1.5, 0.2, 2.0), (0.5, 0.1, 1.0)])
def test_a_linear_quadratic_game(cohesion: float, viscosity: float, pull: float):
    """Mean, variance, cost and the slope of the value function, against Riccati's equation."""
    game = LinearQuadraticGame(
        mean=1.0, variance=0.5, goal=-1.0, pull=pull, horizon=1.0, cohesion=cohesion, viscosity=viscosity
    )
    running = ox.Varying(lambda t: Potential(lambda x: cohesion / 2 * (x[..., 0] - game.mean_at(t)) ** 2))
    terminal = Potential(lambda x: pull / 2 * (x[..., 0] - game.goal) ** 2)
    grid = Grid(-4.0, 5.0, 128)
    mu = normal([1.0], [[0.5]], grid)
    curve = benamou_brenier(mu, terminal, inner_steps=32, running=running, viscosity=viscosity, tol=1e-4)
    assert curve.stats.converged
    for k in (8, 16, 32):
        assert curve.at(k).mean.item() == pytest.approx(game.mean_at(k / 32), abs=1e-3)
        assert curve.at(k).cov.item() == pytest.approx(game.variance_at(k / 32), rel=0.01)
    assert curve.stats.objective.item() == pytest.approx(game.value, rel=1e-3)
    x, slope = grid.edges(mu.values)[0][1:-1], curve.potential[16].diff() / grid.spacing[0]
    near = (x - game.mean_at(16.5 / 32)).abs() < 0.8  # ∇φ = −P·(x − m) + m′
    fit = torch.linalg.lstsq(torch.stack([x[near], torch.ones_like(x[near])], -1), slope[near, None]).solution
    assert -fit[0].item() == pytest.approx(game.gain(16.5 / 32), rel=0.02)


def test_viscosity_alone_is_the_heat_flow():
    """With nothing to gain no one moves: m = 0, and the Crank–Nicolson steps of the heat equation remain."""
    mu = normal([0.3], [[0.4]])
    curve = benamou_brenier(mu, Potential(lambda x: 0 * x[..., 0]), horizon=0.5, inner_steps=8, viscosity=0.3)
    assert curve.at(-1).cov.item() == pytest.approx(mu.cov.item() + 0.3, rel=1e-3)
    assert curve.action.item() < 1e-6 and curve.continuity.item() < 1e-6


@pytest.mark.parametrize("mobility", [Saturating(2.5), Concave(torch.sqrt), Concave(lambda r: r / (1 + r))], ids=label)
def test_a_small_wave_relaxes_at_the_rate_of_the_mobility(mobility: ConcaveMobility):
    """About ρ = 1 a step of ½∫ρ² takes a mode of −Δ_h with eigenvalue λ from a to a/(1 + τ·m(1)·λ)."""
    grid, tau, amplitude = Grid(0.0, 1.0, 32), 0.01, 1e-3
    wave = torch.cos(2 * math.pi * grid.points(torch.zeros(()))[:, 0])
    out = Dynamic(mobility=mobility, inner_steps=2, tol=1e-6)(
        0.5 * PorousMedium(2.0), W2, Density(1 + amplitude * wave, grid), tau
    )
    rate = mobility(torch.ones(())) * (2 - 2 * math.cos(2 * math.pi / 32)) * 32**2
    found = 2 * (out.mu.values * wave).mean().item() / amplitude
    assert found == pytest.approx(1 / (1 + tau * rate.item()), rel=2e-3)


def test_a_thin_film_steps_to_a_thin_film():
    """½∫|∇ρ|² from Smyth and Hill's profile: the exact step, at two resolutions."""
    family, errors = SmythHill(2), []
    old = family.radius(1.0)
    for n in (20, 40):
        grid = Grid((-3.5, -3.5), (3.5, 3.5), (n, n))
        mu, exact = (averages(lambda x, r=r: family.density(x, radius=r), grid) for r in (old, family.jko(old, 0.1)))
        out = Dynamic()(Dirichlet(), W2, mu, 0.1)
        assert out.stats.converged and out.stats.objective <= Dirichlet()(mu)
        errors.append(l1(out.mu, exact))
    assert errors[1] < 1e-3 and errors[0] / errors[1] > 2.2


def test_mobilities_agree_where_they_are_the_same():
    mu, F = blocks(Grid(0.0, 1.0, 20), 1), PorousMedium(2.0)
    plain = Dynamic(tol=1e-6)(F, W2, mu, 0.01).mu.values
    named = Dynamic(tol=1e-6, mobility=Concave(lambda rho: 1.0 * rho))(F, W2, mu, 0.01).mu.values
    torch.testing.assert_close(named, plain, atol=1e-4, rtol=0)


# ---------------------------------------------------------------------------------------------------- what fails


def test_a_stalled_solve_says_so():
    mu, nu = normal([-1.0], [[0.3]]), normal([1.0], [[0.3]])
    with pytest.warns(ConvergenceWarning, match="Dynamic stopped after 20 iterations with residual"):
        curve = geodesic(mu, nu, max_iter=20)
    assert not curve.stats.converged and torch.isfinite(curve.values).all()
    with pytest.raises(ConvergenceError, match="20 iterations"):
        geodesic(mu, nu, max_iter=20, on_failure="raise")


def test_what_dynamic_declines_and_why():
    mu, solver = normal([0.0], [[1.0]]), Dynamic()
    attraction = Interaction(lambda z: z.square().sum(-1))
    assert "not a function of x and ρ(x) alone" in str(solver.supports(attraction, W2, mu))
    assert "not convex in the density" in str(solver.supports(-1.0 * PorousMedium(2.0), W2, mu))
    assert "works on a Density" in str(solver.supports(Entropy(), W2, Gaussian([0.0], [[1.0]])))
    assert "must be Wasserstein" in str(solver.supports(Entropy(), ox.Entropic(0.1), mu))
    square = normal([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]], Grid((-5, -5), (5, 5), (20, 20)))
    tilted = Wasserstein(torch.tensor([[1.0, 0.2], [0.2, 1.0]]))
    assert "one diagonal matrix" in str(solver.supports(Entropy(), tilted, square))
    assert "running" in str(Dynamic(running=attraction).supports(Entropy(), W2, mu))
    with pytest.raises(TypeError, match="terminal: .*not convex"):
        benamou_brenier(mu, -1.0 * Entropy())


def test_options_and_ends_are_checked():
    mu = normal([0.0], [[1.0]])
    for bad in (0, -1, 1.5):
        with pytest.raises(ValueError, match="inner_steps must be a whole number"):
            Dynamic(inner_steps=bad)
    with pytest.raises(ValueError, match="viscosity"):
        Dynamic(viscosity=-0.1)
    with pytest.raises(TypeError, match="mobility must be concave"):
        Dynamic(mobility=lambda rho: rho)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tol > 0"):
        Dynamic(tol=0.0)
    around = Density(mu.values, Grid(-5.0, 5.0, 100, periodic=True))
    with pytest.raises(ValueError, match="one grid, periodic along the same axes"):
        geodesic(mu, around)
    with pytest.raises(TypeError, match="from a Density to a Gaussian"):
        geodesic(mu, Gaussian([0.0], [[1.0]]))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="inner_steps ≥ 2"):
        geodesic(mu, mu, inner_steps=1)
    with pytest.raises(ValueError, match=r"mu has a density of 0\.39.* above Saturating"):
        benamou_brenier(mu, Entropy(), mobility=Saturating(0.3))
    with pytest.raises(ValueError, match=r"leaves room for only 0\.5 of the mass"):
        Dynamic()(Congestion(0.05), W2, mu, 0.1)
    with pytest.raises(ValueError, match="tau must be positive"):
        Dynamic()(Entropy(), W2, mu, 0.0)


def test_empty_cells_and_equal_ends_are_fine():
    grid = Grid(0.0, 1.0, 40)
    x = grid.points(torch.zeros(()))[:, 0]
    left, right = (Density(torch.where(part, 4.0, 0.0), grid) for part in (x < 0.25, x > 0.75))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert geodesic(left, right, tol=5e-4).distance2.item() == pytest.approx(0.75**2, rel=0.02)
        assert geodesic(left, left).distance2.item() < 1e-10
        stay = Dynamic()(Potential(lambda x: 0 * x[..., 0]), W2, left, 0.1)
    assert l1(stay.mu, left) < 1e-6
