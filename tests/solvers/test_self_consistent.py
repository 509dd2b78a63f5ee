"""SelfConsistent: closed forms, virial identities, steady states, other solvers, descent of the energy, bad input."""

from __future__ import annotations

import itertools
import math
import warnings

import pytest
import torch

import otprox as ox
from otprox import Density, Entropy, Gaussian, Grid, Interaction, PorousMedium, Wasserstein
from otprox.exact.diffusion import barenblatt
from otprox.exact.gaussian import prox_kl, w2_squared
from otprox.measures import distance
from otprox.solvers import ConvergenceWarning, Convex, Dynamic, Kantorovich, SelfConsistent, choose, explain

STRICT = SelfConsistent(on_failure="raise")


def spring(z):
    return z.square().sum(-1) / 2


def morse(z):
    """Repulsion near, attraction far."""
    s = z.square().sum(-1)
    return 2 * torch.exp(-2 * s) - torch.exp(-s / 4)


def log(z):
    return z.norm(dim=-1).log()


def gauss(width):
    """exp(−|z|²/2·width²), which does not tell its convexity, so that any step size is tried."""
    return lambda z: torch.exp(-z.square().sum(-1) / (2 * width**2))


def box(reach: float, d: int, n: int) -> Grid:
    return Grid((-reach,) * d, (reach,) * d, (n,) * d)


def bumps(grid: Grid) -> Density:
    return Density.from_log_prob(
        lambda x: torch.logaddexp(-2 * (x - 0.8).square().sum(-1), -3 * (x + 1.2).square().sum(-1)), grid
    )


def l1(mu: Density, nu: Density) -> float:
    return ((mu.values - nu.values).abs().sum() * mu.grid.volume).item()


# ----------------------------------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize(("d", "sizes", "c"), [(1, (32, 64), 0.7), (1, (32, 64), 3.0), (2, (24, 48), 0.7)])
@pytest.mark.parametrize("diagonal", [None, 0.5])
def test_a_spring_takes_gaussians_to_gaussians(d, sizes, c, diagonal):
    """Under W = c|z|²/2 a density feels c|x − mean|²/2, and the mean is kept."""
    Q = None if diagonal is None else torch.diag(torch.tensor([1.0, diagonal][:d]))
    mu0 = Gaussian([0.4, -0.2][:d], torch.diag(torch.tensor([0.5, 0.8][:d])))
    exact, errors = prox_kl(mu0, Gaussian(mu0.mean, torch.eye(d) / c), 0.3, Q), []
    for n in sizes:
        mu = mu0.to_density(box(6.0, d, n))
        out = STRICT(Entropy() + c * Interaction(spring, curvature=1.0), Wasserstein(Q), mu, 0.3)
        errors.append((out.mu.cov - exact.cov).abs().max().item())
        assert (out.mu.mean - mu.mean).abs().max() < 1e-3
    assert errors[1] < 0.3 * errors[0] and errors[1] < 0.02 * exact.cov.max()
    assert out.stats.distance2.item() == pytest.approx(w2_squared(mu0, exact, Q).item(), rel=0.05)


@pytest.mark.parametrize("chi", [2.0, 4 * math.pi, 7 * math.pi])
def test_the_virial_of_chemotaxis(chi: float):
    """W = χ log|z|/2π in the plane: ½(E|x|² − E|y|² + W2²) = τ(2 − χ/4π) for the step y → x, whatever μ is."""
    errors, tau = [], 0.05
    for n in (32, 64):
        mu = Gaussian([0.3, 0.0], [[0.5, 0.0], [0.0, 0.3]]).to_density(box(5.0, 2, n))
        out = STRICT(Entropy() + chi / (2 * math.pi) * Interaction(log), Wasserstein(), mu, tau)
        grown = out.mu.cov.trace() - mu.cov.trace() + (out.mu.mean.square() - mu.mean.square()).sum()
        errors.append(abs((grown + out.stats.distance2).item() / 2 - tau * (2 - chi / (4 * math.pi))) / tau)
    assert errors[1] < max(0.4 * errors[0], 3e-3) and errors[1] < 8e-3


@pytest.mark.parametrize("m", [1.5, 2.0])
def test_a_spring_and_a_porous_medium_rest_at_barenblatt(m: float):
    source = barenblatt(m, 1)
    radius = source.G ** (1 / (m + 1))
    moved = []
    for n in (64, 128):
        grid = box(1.6 * radius, 1, n)
        nodes = grid.nodes(8, torch.zeros(()))
        values = sum(w * source.density(grid.points(torch.zeros(())) + z, radius=radius) for z, w in nodes)
        mu = Density(values / (values.sum() * grid.volume), grid)
        out = STRICT(PorousMedium(m) + Interaction(spring), Wasserstein(), mu, 1.0)
        moved.append(l1(out.mu, mu))
    assert moved[1] < max(0.5 * moved[0], 1e-12) and moved[1] < 2e-3  # at m = 2 the cells rest exactly


def test_long_steps_end_where_attraction_balances_diffusion():
    """Entropy + ½·3|z|²/2: the Gaussian of variance ⅓, at the mean of μ."""
    mu = bumps(box(5.0, 1, 100))
    out = STRICT(Entropy() + 3 * Interaction(spring), Wasserstein(), mu, 1e4)
    assert l1(out.mu, Gaussian(mu.mean, torch.eye(1) / 3).to_density(mu.grid)) < 5e-3


# ---------------------------------------------------------------------------------------------------- other solvers


@pytest.mark.parametrize("F", [Entropy(), 0.5 * PorousMedium(2.0)], ids=["entropy", "porous medium"])
@pytest.mark.parametrize(
    "W",
    [
        morse,
        lambda z: -2 * torch.exp(-z.square().sum(-1) / 2),
        lambda z: z.square().sum(-1).square() / 4 - z.square().sum(-1) / 2,
        lambda z: z.norm(dim=-1),
        lambda z: -log(z),
        ox.kernels.RBF(0.7),
    ],
    ids=["morse", "gauss", "quartic", "abs", "-log", "kernel"],
)
def test_the_line_agrees_with_quantiles(F, W):
    F, tau, n = F + Interaction(W), 0.1, 400
    z = torch.special.ndtri((torch.arange(n) + 0.5) / n)
    quantiles = ox.Backward(F)(ox.Quantiles(0.3 + 0.4**0.5 * z), 0.0, tau)
    mu = Gaussian([0.3], [[0.4]]).to_density(Grid(-5.0, 5.0, 128))
    out = ox.Backward(F, solver=STRICT)(mu, 0.0, tau)
    assert distance.w2_squared(out.mu, quantiles.mu).sqrt() < 0.03
    assert out.mu.cov.item() == pytest.approx(quantiles.mu.cov.item(), abs=8e-3)
    assert out.stats.distance2.sqrt().item() == pytest.approx(quantiles.stats.distance2.sqrt().item(), rel=3e-2)


@pytest.mark.filterwarnings("ignore::otprox.solvers.convex.FrozenWarning")
def test_it_tends_to_the_full_plan():
    F, errors = 0.2 * PorousMedium(2.0) + Interaction(gauss(0.5)), []
    for n in (24, 48):
        mu = Density.from_log_prob(lambda x: -2 * x.square().sum(-1), Grid(-2.0, 2.0, n))
        out, plan = (s(F, Wasserstein(), mu, 1.0) for s in (STRICT, Convex()))
        errors.append(abs(out.stats.objective - plan.stats.objective).item())
    assert errors[1] < 0.4 * errors[0] and errors[1] < 2e-3


def test_through_a_curve():
    """`Dynamic` inside agrees with `Kantorovich` inside, and takes the Dirichlet energies that the latter declines."""
    F, mu = Entropy() + Interaction(morse), bumps(Grid(-4.0, 4.0, 64))
    static = STRICT(F, Wasserstein(), mu, 0.05)
    dynamic = SelfConsistent(inner=Dynamic(), tol=1e-2)(F, Wasserstein(), mu, 0.05)
    assert dynamic.stats.converged
    assert l1(dynamic.mu, static.mu) < 0.03 * l1(mu, static.mu)
    thin = F + 0.05 * ox.Dirichlet()
    out = SelfConsistent(tol=1e-2)(thin, Wasserstein(), mu, 0.05)
    assert out.stats.converged and out.stats.objective < thin(mu)
    assert ox.Dirichlet()(out.mu) < ox.Dirichlet()(static.mu)


# ------------------------------------------------------------------------------------------------------- identities


@pytest.mark.parametrize("tau", [0.02, 0.5])
@pytest.mark.parametrize("strength", [-2.0, 10.0], ids=["attraction", "repulsion"])
@pytest.mark.parametrize("rest", [Entropy(), PorousMedium(2.0), ox.Congestion(1.2)], ids=["S", "PME", "crowd"])
def test_the_energy_falls_and_mean_and_mass_are_kept(rest, strength, tau):
    F, mu = rest + strength * Interaction(gauss(1.0)), bumps(box(8.0, 1, 160))
    out = STRICT(F, Wasserstein(), mu, tau)
    stats = out.stats
    objective = F(out.mu) + stats.distance2 / (2 * tau)
    assert stats.objective.item() == pytest.approx(objective.item(), abs=1e-10)
    assert objective < F(mu) and stats.distance2 > 0
    assert stats.residual <= 1e-4 * stats.distance2.sqrt()
    assert abs(out.mu.mass.item() - 1) < 1e-12 and out.mu.values.min() >= 0
    assert (out.mu.mean - mu.mean).abs() < 1e-3 * stats.distance2.sqrt()


def test_every_accepted_point_lowers_the_energy(monkeypatch):
    """Also without extrapolation, where repulsion is so strong that the plain step overshoots."""
    from otprox.solvers.self_consistent import Problem

    seen, at = [], Problem.at

    def watched(self, field, last):
        point, out = at(self, field, last)
        seen.append((point.energy.item(), point.residual.item()))
        return point, out

    monkeypatch.setattr(Problem, "at", watched)
    F, mu = 0.1 * PorousMedium(2.0) + 4 * Interaction(gauss(0.5)), bumps(box(3.0, 1, 64))
    runs = []
    for memory in (0, 5):
        seen.clear()
        SelfConsistent(memory=memory, on_failure="raise")(F, Wasserstein(), mu, 0.3)
        energies = [energy for energy, _ in seen]
        assert energies[-1] <= min(energies) + 1e-5 and seen[-1][1] < 1e-3 * seen[0][1]
        runs.append(energies)
    assert any(b > a + 1e-4 for a, b in itertools.pairwise(runs[0]))  # the plain step did overshoot, and was taken back
    assert len(runs[1]) < len(runs[0])


def test_a_field_of_its_own_is_what_the_first_order_condition_asks_for():
    """φ/τ + U'(ρ) + V + W∗ρ is constant where ρ is not negligible, −φ the derivative of W2²/2 at ρ."""
    V = ox.Potential(lambda x: 0.3 * x[..., 0].square() + 0.2 * torch.sin(x).sum(-1))
    F, tau, mu = Entropy() + V + Interaction(morse), 0.1, bumps(box(4.0, 2, 40))
    out = STRICT(F, Wasserstein(), mu, tau)
    f, g = out.stats.potentials
    slope = g / (2 * tau) + F.first_variation(out.mu)
    heavy = out.mu.masses > 1e-7
    spread = slope[heavy].max() - slope[heavy].min()
    assert spread < 2e-3 * (g[heavy].max() - g[heavy].min()) / (2 * tau)


# ------------------------------------------------------------------------------- batches, starts, float32, bad input


def test_it_is_the_default_and_says_when_it_is_not():
    grid = box(4.0, 2, 24)
    mu = bumps(grid)
    attraction = Interaction(spring)
    for rest in (Entropy(), PorousMedium(2.0), ox.Congestion(1.0), ox.KL(lambda x: x.square().sum(-1))):
        assert isinstance(choose(rest + attraction, Wasserstein(), mu), SelfConsistent)
    assert isinstance(choose(Entropy(), Wasserstein(), mu), Kantorovich)
    assert "makes no field" in explain(Entropy(), Wasserstein(), mu)
    assert "Entropic" in SelfConsistent().supports(Entropy() + attraction, ox.Entropic(0.1), mu)
    only = SelfConsistent(inner=Kantorovich())
    assert "Kantorovich declines: F has no internal energy" in only.supports(attraction, Wasserstein(), mu)
    oblique = Wasserstein(torch.tensor([[1.0, 0.3], [0.3, 1.0]]))
    assert "diagonal" in SelfConsistent().supports(Entropy() + attraction, oblique, mu)


def test_a_batch_equals_single_runs():
    grid = Grid(-5.0, 5.0, 64)
    parts = [Gaussian([0.2 * k], [[0.5 + 0.3 * k]]).to_density(grid) for k in range(3)]
    F = Entropy() + Interaction(morse)
    out = STRICT(F, Wasserstein(), Density(torch.stack([p.values for p in parts]), grid), 0.1)
    for k, part in enumerate(parts):
        single = STRICT(F, Wasserstein(), part, 0.1)
        torch.testing.assert_close(out.mu.values[k], single.mu.values, atol=1e-4, rtol=0)
        torch.testing.assert_close(out.stats.objective[k], single.stats.objective, atol=1e-7, rtol=0)


def test_the_next_step_starts_from_the_field_of_the_last():
    F, mu, tau = Entropy() + Interaction(morse), bumps(box(4.0, 1, 96)), 0.02
    first = STRICT(F, Wasserstein(), mu, tau)
    cold, warm = (STRICT(F, Wasserstein(), first.mu, tau, last) for last in (None, first.stats))
    assert warm.stats.iterations < cold.stats.iterations
    assert l1(warm.mu, cold.mu) < 2e-4 * l1(warm.mu, first.mu) + 1e-6


@pytest.mark.filterwarnings("error")
def test_float32_is_usable():
    F, mu = Entropy() + Interaction(morse), bumps(box(4.0, 2, 32))
    exact = STRICT(F, Wasserstein(), mu, 0.05)
    out = STRICT(F, Wasserstein(), Density(mu.values.float(), mu.grid), 0.05)
    assert out.mu.values.dtype == torch.float32 and abs(out.mu.mass.item() - 1) < 1e-5
    assert l1(exact.mu, out.mu.to_density(mu.grid)) < 2e-3


def test_periodic_axes_know_no_origin():
    grid = Grid(0.0, 2 * math.pi, 48, periodic=True)
    mu = Density.from_log_prob(lambda x: torch.cos(x[..., 0] - 1.0), grid)
    F = 0.5 * Entropy() + Interaction(ox.kernels.Cosine([-1.5, 0.3]))
    shifted = Density(mu.values.roll(7, -1), grid)
    a, b = (STRICT(F, Wasserstein(), nu, 0.2).mu.values for nu in (mu, shifted))
    torch.testing.assert_close(a.roll(7, -1), b, atol=1e-5, rtol=0)


def test_a_discrepancy_beside_an_entropy():
    """MMD is an interaction and a potential: ½‖ν − π‖² + small entropy moves μ towards π."""
    grid = Grid(-5.0, 5.0, 80)
    target, mu = (Gaussian([m], [[0.5]]).to_density(grid) for m in (1.0, -0.5))
    F = ox.MMD(ox.kernels.RBF(1.0), target) + 0.01 * Entropy()
    out = STRICT(F, Wasserstein(), mu, 0.6)
    assert F(out.mu) + out.stats.distance2 / 1.2 < F(mu)
    assert distance.w2_squared(out.mu, target) < 0.85 * distance.w2_squared(mu, target)


def test_in_space():
    mu0 = Gaussian([0.0, 0.0, 0.0], torch.diag(torch.tensor([0.6, 0.8, 1.0])))
    mu = mu0.to_density(box(5.0, 3, 20))
    out = STRICT(Entropy() + Interaction(spring), Wasserstein(), mu, 0.2)
    exact = prox_kl(mu0, Gaussian(mu0.mean, torch.eye(3)), 0.2)
    assert (out.mu.cov - mu.cov - (exact.cov - mu0.cov)).abs().max() < 0.1 * (exact.cov - mu0.cov).abs().max()


def test_aggregation_alone_goes_through_a_curve():
    """W = |z|²/2 − |z| dilates a uniform density; with nothing beside it `Dynamic` takes the step in its field."""
    mu = Density(torch.where((torch.arange(60) - 29.5).abs() < 5, 1.0, 0.0), Grid(-3.0, 3.0, 60))
    out = STRICT(Interaction(lambda z: spring(z) - z.norm(dim=-1)), Wasserstein(), mu, 1.0)
    exact = ox.exact.aggregation.spread_jko(0.5 * (2 * ox.exact.aggregation.levels(1000) - 1), 1.0)
    assert distance.w2_squared(out.mu, ox.Quantiles(exact)).sqrt() < 0.15 * out.stats.distance2.sqrt()
    assert out.stats.distance2.sqrt().item() == pytest.approx(0.25 / 3**0.5, rel=0.01)


@pytest.mark.needs_cuda
def test_on_a_gpu():
    F, mu = Entropy() + Interaction(morse), bumps(box(4.0, 2, 32))
    out = STRICT(F, Wasserstein(), Density(mu.values.cuda(), mu.grid), 0.1)
    assert out.mu.values.is_cuda and out.stats.converged.all()
    assert l1(STRICT(F, Wasserstein(), mu, 0.1).mu, Density(out.mu.values.cpu(), mu.grid)) < 1e-5


def test_what_it_refuses():
    mu = bumps(box(4.0, 1, 32))
    with pytest.raises(ValueError, match="tau must be positive"):
        STRICT(Entropy() + Interaction(spring), Wasserstein(), mu, -0.1)
    with pytest.raises(ValueError, match="convexity limit 0.5"):
        STRICT(Entropy() + Interaction(lambda z: -spring(2**0.5 * z), curvature=-2.0), Wasserstein(), mu, 0.6)
    with pytest.raises(ValueError, match="NaN or infinite at the displacement"):
        STRICT(Entropy() + Interaction(lambda z: z[..., 0].sqrt()), Wasserstein(), mu, 0.1)
    with pytest.raises(ValueError, match="not finite"):
        V = ox.Potential(lambda x: x[..., 0].log())
        STRICT(Entropy() + V + Interaction(spring), Wasserstein(), mu, 0.1)
    with pytest.raises(ValueError, match="tol > 0"):
        SelfConsistent(tol=0.0)
    with pytest.raises(TypeError, match="inner must be a solver"):
        SelfConsistent(inner=Kantorovich)


def test_a_stalled_solve_says_so():
    F, mu = Entropy() + Interaction(morse), bumps(box(4.0, 1, 64))
    with pytest.warns(ConvergenceWarning, match=r"SelfConsistent stopped .*force .*max_iter"):
        out = SelfConsistent(max_iter=1)(F, Wasserstein(), mu, 0.2)
    assert not out.stats.converged and abs(out.mu.mass.item() - 1) < 1e-12
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what the inner solver says on the way is not passed on
        out = STRICT(F, Wasserstein(), mu, 0.2)
    assert out.stats.converged
