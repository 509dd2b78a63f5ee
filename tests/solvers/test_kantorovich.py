"""Kantorovich: exact JKO steps in closed form, orders in the spacing, steps far below a cell, identities, bad input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import otprox as ox
from otprox import KL, Density, Entropy, Gaussian, Grid, PorousMedium, Wasserstein
from otprox.exact.diffusion import barenblatt, jko_uniform_entropy, jko_uniform_porous_medium
from otprox.exact.gaussian import prox_kl, w2_squared
from otprox.functionals import Congestion
from otprox.solvers import ConvergenceError, ConvergenceWarning, Convex, Kantorovich, choose

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
    mu = density(lambda x: B.density(x - 0.5, radius=R), grid)
    out = STRICT(0.005 * PorousMedium(m), Wasserstein(), mu, tau)
    distance2 = out.stats.distance2.item() / B.w2_squared(R, new).item() - 1
    return l1(out.mu, averages(lambda x: B.density(x - 0.5, radius=new), grid)), distance2


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


# ----------------------------------------------------------------------------------------------- steps far below a cell


def test_many_tiny_steps_of_heat_move_at_the_right_speed():
    """A thousandth of a cell a step: the variance grows by 2t, where the step between fixed cells would freeze."""
    grid, tau, steps = Grid(-5.0, 5.0, 60), 1e-4, 40
    mu = Gaussian([0.3], [[0.8]]).to_density(grid)
    run = ox.flow(ox.Backward(Entropy()), mu, torch.arange(steps + 1) * tau)
    final = ox.record(run).final
    assert (final.cov - mu.cov).item() == pytest.approx(2 * tau * steps, rel=0.01)
    exact = Gaussian([0.3], [[0.8 + 2 * tau * steps]]).to_density(grid)
    assert l1(final, exact.values) < 0.02 * l1(mu, exact.values)


def test_many_tiny_steps_of_barenblatt_reach_the_right_radius():
    grid, B = Grid((0.0, 0.0), (1.0, 1.0), (32, 32)), barenblatt(2.0, 2, coefficient=0.005)
    tau, R = 0.004, B.radius(0.1)
    mu = density(lambda x: B.density(x - 0.5, radius=R), grid)
    final = ox.record(ox.flow(ox.Backward(0.005 * PorousMedium(2.0)), mu, torch.arange(6) * tau)).final
    moved = B.second_moment(B.jko(R, tau, 5)) - B.second_moment(R)
    spread = final.cov.diagonal().sum() - mu.cov.diagonal().sum()
    assert spread.item() == pytest.approx(moved.item(), rel=0.05)


@pytest.mark.parametrize("tau", [1e-5, 1e-3, 0.1, 0.5])
def test_one_constant_bounds_the_error_in_the_spacing_for_every_tau(tau: float):
    """Relative to what the step moves, so that a frozen or first-order step would show."""
    target, mu0 = Gaussian([0.3], [[0.7]]), Gaussian([-0.4], [[1.1]])
    exact = prox_kl(mu0, target, tau)
    for n in (40, 80):
        grid = Grid(-7.0, 7.0, n)
        mu, h2 = mu0.to_density(grid), grid.spacing[0] ** 2
        out = STRICT(KL(target), Wasserstein(), mu, tau)
        moved, exactly = (out.mu.cov - mu.cov).item(), (exact.cov - mu0.cov).item()
        assert abs(moved / exactly - 1) < 0.25 * h2
        assert abs(out.stats.distance2.item() / w2_squared(mu0, exact).item() - 1) < 0.8 * h2


# --------------------------------------------------------------------------------------------- closed forms, identities


@pytest.mark.parametrize("diagonal", [None, (1.5, 0.6)])
def test_correlated_gaussians_and_a_diagonal_metric(diagonal):
    Q = None if diagonal is None else torch.diag(torch.tensor(diagonal))
    target, mu0 = Gaussian([0.3, -0.2], [[1.0, -0.4], [-0.4, 0.8]]), Gaussian([0.5, 0.2], [[0.6, 0.2], [0.2, 0.9]])
    exact, errors = prox_kl(mu0, target, 0.1, Q), []
    for n in (24, 48):
        grid = Grid((-6.0, -6.0), (6.0, 6.0), (n, n))
        mu = mu0.to_density(grid)
        out = STRICT(KL(target), Wasserstein(Q), mu, 0.1)
        errors.append(((out.mu.cov - mu.cov) - (exact.cov - mu0.cov)).abs().max().item())
    assert errors[1] < 0.35 * errors[0] and errors[1] < 5e-3
    assert out.stats.distance2.item() == pytest.approx(w2_squared(mu0, exact, Q).item(), rel=0.02)


def test_a_moving_metric_comes_by_its_rate():
    mu = Gaussian([0.0], [[1.0]]).to_density(Grid(-6.0, 6.0, 48))
    moving = ox.Moving(lambda t: t**2 * torch.eye(1), rate=lambda t: 2 * t * torch.eye(1))
    out = ox.Backward(Entropy(), moving)(mu, 0.5, 0.6)
    same = STRICT(Entropy(), Wasserstein(torch.tensor([[1.2]])), mu, 0.1)
    torch.testing.assert_close(out.mu.values, same.mu.values, atol=1e-7, rtol=0)


@pytest.mark.parametrize("m", [None, 2.0, 1.5])
def test_virial_identity_along_the_map(m):
    """E⟨T(y) − y, T(y)⟩ = τd for entropy, τd(m − 1)F(ν) for porous media, T from μ to ν."""
    grid, tau = Grid((-4.0, -4.0), (4.0, 4.0), (64, 64)), 0.05
    V = lambda x: (x[..., 0].square() - 1).square() / 2 + 2 * x[..., 1].square()  # noqa: E731
    mu = density(lambda x: torch.exp(-V(x)), grid)
    F = Entropy() if m is None else PorousMedium(m)
    out = STRICT(F, Wasserstein(), mu, tau)
    assert out.stats.map is not None
    left = mu.expect(lambda y: ((out.stats.map(y) - y) * out.stats.map(y)).sum(-1))
    right = 2 * tau * (1.0 if m is None else (m - 1) * F(out.mu).item())
    assert left.item() == pytest.approx(right, rel=0.02)


@pytest.mark.parametrize("F", [Entropy(), PorousMedium(2.0), PorousMedium(0.7), PorousMedium(3.0) + 0.2 * Entropy()])
def test_energy_falls_by_at_least_the_distance_and_mass_is_kept(F):
    grid = Grid((-3.0, 0.0), (3.0, 1.0), (48, 12), periodic=(False, True))
    mu = density(lambda x: torch.exp(-x[:, 0].square()) * (1 + 0.8 * torch.cos(2 * torch.pi * x[:, 1])), grid)
    F = F + ox.Potential(lambda x: x[..., 0] + torch.sin(2 * torch.pi * x[..., 1]))
    out = STRICT(F, Wasserstein(), mu, 0.02)
    stats = out.stats
    assert (F(out.mu) + stats.distance2 / 0.04 - stats.objective).abs() < 1e-10
    assert stats.objective <= F(mu) and stats.distance2 > 0 and -1e-10 < stats.residual < 1e-5
    assert abs(out.mu.mass.item() - 1) < 1e-12 and out.mu.values.min() >= 0


def test_potentials_are_dual_feasible_and_give_the_distance():
    grid = Grid(-5.0, 5.0, 80)
    mu = Gaussian([0.5], [[0.7]]).to_density(grid)
    out = STRICT(Entropy(), Wasserstein(), mu, 0.3)
    f, g = out.stats.potentials
    x = grid.points(f)[:, 0]
    assert (f[:, None] + g - (x[:, None] - x).square()).max() < 2 * grid.spacing[0] ** 2
    value = mu.masses @ f + out.mu.masses @ g
    assert value.item() == pytest.approx(out.stats.distance2.item(), rel=1e-4)


def test_the_line_agrees_with_quantiles():
    V = ox.Potential(lambda x: (x[..., 0].square() - 1).square() / 4)
    F, tau = Entropy() + V, 0.1
    grid = Grid(-4.0, 4.0, 256)
    mu = density(lambda x: torch.exp(-(x[..., 0] - 0.3).square()), grid)
    out = STRICT(F, Wasserstein(), mu, tau)
    quantiles = ox.Backward(F)(ox.Quantiles(0.3 + 0.5**0.5 * normal_quantiles(4000)), 0.0, tau).mu
    assert out.mu.mean.item() == pytest.approx(quantiles.mean.item(), abs=2e-3)
    assert out.mu.cov.item() == pytest.approx(quantiles.cov.item(), abs=3e-3)


def normal_quantiles(n: int) -> Tensor:
    return torch.special.ndtri((torch.arange(n) + 0.5) / n)


@pytest.mark.filterwarnings("ignore::otprox.solvers.convex.FrozenWarning")
def test_it_tends_to_the_full_plan():
    errors = []
    for n in (24, 48):
        grid = Grid(-2.0, 2.0, n)
        mu = density(lambda x: torch.exp(-2 * x.square().sum(-1)), grid)
        out, plan = (s(PorousMedium(2.0), Wasserstein(), mu, 1.0) for s in (STRICT, Convex()))
        errors.append((abs(out.stats.objective - plan.stats.objective).item(), l1(out.mu, plan.mu.values)))
    assert errors[1][0] < 0.4 * errors[0][0] and errors[1][0] < 2e-3
    assert errors[1][1] < 0.05


def test_congestion_saturates_at_its_bound_and_agrees_with_the_full_plan():
    F = ox.Potential(lambda x: 0.5 * x.square().sum(-1)) + Congestion(1.0)
    errors = []
    for n in (32, 64):
        grid = Grid(-2.0, 2.0, n)
        mu = density(lambda x: torch.exp(-2 * (x[..., 0] - 1).square()), grid)
        out = STRICT(F, Wasserstein(), mu, 0.5)
        assert out.mu.values.max() <= 1 + 1e-9 and (out.mu.values > 0.999).sum() > n / 8
        plan = Convex()(F, Wasserstein(), mu, 0.5)
        errors.append(abs(out.stats.objective.item() - plan.stats.objective.item()))
    assert errors[1] < 2e-3 and errors[1] < 0.6 * errors[0]


def test_periodic_axes_know_no_origin():
    grid = Grid(0.0, 1.0, 32, periodic=True)
    mu = density(lambda x: 1 + 0.9 * torch.cos(2 * torch.pi * x[:, 0]), grid)
    shifted = Density(mu.values.roll(5, -1), grid)
    a, b = (STRICT(Entropy(), Wasserstein(), nu, 5e-3).mu.values for nu in (mu, shifted))
    torch.testing.assert_close(a.roll(5, -1), b, atol=1e-6, rtol=0)


# ------------------------------------------------------------------------------------- batches, float32, starts, input


def test_a_batch_equals_single_runs():
    grid = Grid((-5.0, -5.0), (5.0, 5.0), (20, 20))
    target = KL(Gaussian([0.0, 0.0], [[1.0, 0.3], [0.3, 0.8]]))
    parts = [Gaussian([0.2 * k, 0.0], [[0.5 + 0.2 * k, 0.0], [0.0, 0.7]]).to_density(grid) for k in range(3)]
    out = STRICT(target, Wasserstein(), Density(torch.stack([p.values for p in parts]), grid), 0.1)
    for k, part in enumerate(parts):
        single = STRICT(target, Wasserstein(), part, 0.1)
        torch.testing.assert_close(out.mu.values[k], single.mu.values, atol=1e-12, rtol=0)
        torch.testing.assert_close(out.stats.distance2[k], single.stats.distance2, atol=1e-12, rtol=1e-9)


def test_float32_is_usable():
    grid = Grid((-5.0, -5.0), (5.0, 5.0), (32, 32))
    mu = Gaussian([0.2, 0.0], [[0.8, 0.2], [0.2, 0.7]]).to_density(grid)
    exact = STRICT(Entropy(), Wasserstein(), mu, 0.05)
    out = STRICT(Entropy(), Wasserstein(), Density(mu.values.float(), grid), 0.05)
    assert out.mu.values.dtype == torch.float32 and abs(out.mu.mass.item() - 1) < 1e-6
    assert l1(exact.mu, out.mu.values.double()) < 1e-3


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("internal", [ox.Congestion(0.5), ox.Entropy()])
@pytest.mark.parametrize("tau", [0.1, 10.0])
def test_float32_agrees_with_float64(internal, tau):
    """It converges to what rounding allows, √eps in L1, without a warning."""
    grid = ox.Grid(-6.0, 6.0, 100)
    mu = ox.Gaussian([0.5], [[1.0]]).to_density(grid)
    F = ox.Potential(lambda x: x.square().sum(-1) / 2) + internal
    single = ox.Backward(F)(ox.Density(mu.values.float(), grid), 0.0, tau)
    double = ox.Backward(F)(mu, 0.0, tau)
    assert single.stats.converged.all()
    assert (single.mu.values - double.mu.values).abs().sum().item() * grid.volume < 2e-3


def test_a_previous_step_is_a_good_start():
    mu = Gaussian([0.0], [[0.8]]).to_density(Grid(-5.0, 5.0, 64))
    first = STRICT(Entropy(), Wasserstein(), mu, 1e-3)
    cold, warm = (STRICT(Entropy(), Wasserstein(), first.mu, 1e-3, last) for last in (None, first.stats))
    assert warm.stats.iterations <= cold.stats.iterations
    torch.testing.assert_close(warm.mu.values, cold.mu.values, atol=1e-5, rtol=0)


def test_what_it_declines_and_refuses():
    grid = Grid((-3.0, -3.0), (3.0, 3.0), (8, 8))
    mu = Density(torch.full((8, 8), 1 / 36), grid)
    oblique = Wasserstein(torch.tensor([[1.0, 0.3], [0.3, 1.0]]))
    attraction = Entropy() + ox.Interaction(lambda z: z.square().sum(-1) / 2)
    assert "diagonal" in Kantorovich().supports(Entropy(), oblique, mu)
    assert "Interaction has no conjugate" in Kantorovich().supports(attraction, Wasserstein(), mu)
    assert "coefficient -1" in Kantorovich().supports(-1.0 * Entropy(), Wasserstein(), mu)
    assert "no internal energy" in Kantorovich().supports(ox.Potential(lambda x: x[..., 0]), Wasserstein(), mu)
    assert "Entropic" in Kantorovich().supports(Entropy(), ox.Entropic(0.1), mu)
    with pytest.raises(ValueError, match="tau must be positive"):
        Kantorovich()(Entropy(), Wasserstein(), mu, -0.1)
    with pytest.raises(ValueError, match="less than the mass 1"):
        Kantorovich()(Entropy() + Congestion(0.01), Wasserstein(), mu, 0.1)
    with pytest.raises(ValueError, match="not finite on"):
        Kantorovich()(Entropy() + ox.Potential(lambda x: x[..., 0].log()), Wasserstein(), mu, 0.1)
    with pytest.raises(ValueError, match="tol > 0"):
        Kantorovich(tol=0.0)


def test_a_stalled_solve_says_so():
    mu = Gaussian([0.5], [[0.3]]).to_density(Grid(-5.0, 5.0, 64))
    with pytest.warns(ConvergenceWarning, match=r"residual .*duality gap.*max_iter"):
        out = Kantorovich(max_iter=1)(Entropy(), Wasserstein(), mu, 0.1)
    assert not out.stats.converged and abs(out.mu.mass.item() - 1) < 1e-12
    with pytest.raises(ConvergenceError):
        Kantorovich(max_iter=1, on_failure="raise")(Entropy(), Wasserstein(), mu, 0.1)
