"""Descent on particles: closed-form prox maps, optimality, independence of batch items, honest failures."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import otprox as ox
from otprox import (
    Entropic,
    Entropy,
    Interaction,
    Moving,
    Particles,
    PorousMedium,
    Potential,
    Quadratic,
    Torus,
    Wasserstein,
)
from otprox.functionals import Functional
from otprox.measures import Gaussian, Quantiles
from otprox.metrics import Metric
from otprox.solvers import ConvergenceError, ConvergenceWarning
from otprox.solvers.descent import Descent
from otprox.solvers.lbfgs import minimise

SOLVER = Descent(on_failure="raise")
DOUBLE_WELL = Potential(lambda x: ((x**2 - 1) ** 2).sum(-1), curvature=-4.0)
Q2 = torch.tensor([[1.0, -0.4], [-0.4, 0.8]])


def cloud(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weights(n: int, seed: int = 1) -> Tensor:
    w = torch.rand(n, generator=torch.Generator().manual_seed(seed)) + 0.05
    return w / w.sum()


def coupled(x: Tensor) -> Tensor:
    """A potential that is neither separable nor quadratic, with ∇²V ≥ −1."""
    return (x[..., 0] ** 4) / 4 + torch.cos(x[..., 0] + x[..., 1]) / 2 + x[..., 1] ** 2


def test_the_double_well_has_its_pointwise_prox():
    mu = Particles(torch.tensor([[0.5], [2.0], [-2.0]]))
    out = Descent(tol=1e-10, on_failure="raise")(DOUBLE_WELL, Wasserstein(), mu, 0.05)
    expected = torch.tensor([0.576979988407, 1.556773264394, -1.556773264394])
    torch.testing.assert_close(out.mu.x[:, 0], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("tau", [0.01, 0.1, 3.0])
def test_a_quadratic_interaction_contracts_to_the_mean(tau: float):
    x, w = cloud(50, 2), weights(50)
    mu = Particles(x, w)
    out = SOLVER(Interaction(lambda z: 0.5 * z.square().sum(-1)), Wasserstein(), mu, tau)
    torch.testing.assert_close(out.mu.x, mu.mean + (x - mu.mean) / (1 + tau), rtol=0, atol=1e-8)


@pytest.mark.parametrize("tau", [0.05, 0.7])
def test_a_quadratic_in_a_metric_q_solves_its_linear_system(tau: float):
    P, m, x = torch.tensor([[2.0, 0.3], [0.3, 0.5]]), torch.tensor([0.5, -1.0]), cloud(30, 2)
    out = SOLVER(Potential(Quadratic(m, precision=P)), Wasserstein(Q2), Particles(x, weights(30)), tau)
    expected = m + (x - m) @ torch.linalg.inv(torch.eye(2) + tau * Q2 @ P).mT
    torch.testing.assert_close(out.mu.x, expected, rtol=0, atol=1e-7)


@given(tau=st.floats(0.02, 0.6), seed=st.integers(0, 100), n=st.integers(2, 12))
def test_the_optimality_condition_and_the_energy_inequality(tau: float, seed: int, n: int):
    F = Potential(coupled, curvature=-1.0) + 0.5 * Interaction(lambda z: torch.exp(-z.square().sum(-1)))
    mu, metric = Particles(2 * cloud(n, 2, seed=seed), weights(n, seed)), Wasserstein(Q2)
    new, stats = SOLVER(F, metric, mu, tau)
    condition = F.gradient(new) + (new.x - mu.x) @ torch.linalg.inv(Q2) / tau
    L = torch.linalg.cholesky(Q2)
    rms = (mu.w * (condition @ L).square().sum(-1)).sum().sqrt()
    start = (mu.w * (F.gradient(mu) @ L).square().sum(-1)).sum().sqrt()
    assert rms <= 1.1e-8 * start + 1e-12
    torch.testing.assert_close(stats.residual, rms, rtol=1e-3, atol=1e-12)
    z = new.x - mu.x
    distance2 = (mu.w * (z * (z @ torch.linalg.inv(Q2))).sum(-1)).sum()
    torch.testing.assert_close(stats.distance2, distance2)
    torch.testing.assert_close(stats.objective, F(new) + distance2 / (2 * tau))
    assert stats.objective <= F(mu)


def test_the_objective_is_stationary_by_finite_differences():
    F, tau = Potential(coupled) + ox.Blob(0.8), 0.3
    mu = Particles(cloud(15, 2), weights(15))
    new, stats = Descent(tol=1e-11, on_failure="raise")(F, Wasserstein(), mu, tau)

    def objective(x: Tensor) -> Tensor:
        return F(mu.with_state(x=x)) + (mu.w * (x - mu.x).square().sum(-1)).sum() / (2 * tau)

    h = 1e-5
    for k in range(5):
        direction = h * cloud(15, 2, seed=10 + k)
        slope = (objective(new.x + direction) - objective(new.x - direction)) / (2 * h)
        assert slope.abs() < 1e-9
        assert objective(new.x + 1e3 * direction) > stats.objective


def test_a_batch_equals_single_runs():
    x, w, m = cloud(3, 20, 2), torch.stack([weights(20, s) for s in range(3)]), cloud(3, 2, seed=5)
    x[1] *= 100  # an item that needs many more iterations, or another number of trials, than the others
    Q = torch.stack([Q2, 2 * Q2, torch.eye(2)])

    def F(mean: Tensor) -> Functional:
        V = Quadratic(mean, precision=torch.eye(2).expand(*mean.shape, 2))
        return Potential(coupled) + Potential(V) + Interaction(lambda z: torch.exp(-z.square().sum(-1)))

    together = SOLVER(F(m), Wasserstein(Q), Particles(x, w), 0.2)
    assert together.stats.iterations.unique().numel() > 1
    for i in range(3):
        alone = SOLVER(F(m[i]), Wasserstein(Q[i]), Particles(x[i], w[i]), 0.2)
        torch.testing.assert_close(together.mu.x[i], alone.mu.x, rtol=1e-12, atol=1e-12)
        assert together.stats.iterations[i] == alone.stats.iterations


def test_two_batch_axes_and_one_item_give_the_same_points():
    x = cloud(2, 3, 7, 1)
    out = SOLVER(DOUBLE_WELL, Wasserstein(), Particles(x), 0.1)
    assert out.stats.residual.shape == (2, 3) and out.stats.distance2.shape == (2, 3)
    torch.testing.assert_close(out.mu.x[1, 2], SOLVER(DOUBLE_WELL, Wasserstein(), Particles(x[1, 2]), 0.1).mu.x)


def test_a_particle_of_weight_zero_stays():
    mu = Particles(torch.tensor([[0.5], [2.0]]), torch.tensor([1.0, 0.0]))
    out = SOLVER(DOUBLE_WELL, Wasserstein(), mu, 0.05)
    torch.testing.assert_close(out.mu.x[:, 0], torch.tensor([0.576979988407, 2.0]), rtol=0, atol=1e-9)


def test_particles_on_a_torus_are_wrapped():
    mu = Particles(torch.tensor([[0.1], [3.0], [6.2]]), domain=Torus(2 * math.pi))
    out = SOLVER(Potential(lambda x: torch.sin(x[..., 0]), curvature=-1.0), Wasserstein(), mu, 0.5)
    moved = mu.domain.displacement(out.mu.x, mu.x)
    torch.testing.assert_close(moved, -0.5 * torch.cos(out.mu.x), rtol=0, atol=1e-8)
    assert (out.mu.x >= 0).all() and (out.mu.x < 2 * math.pi).all()
    assert out.mu.x[0, 0] > 5  # it left through 0


@pytest.mark.parametrize("q", [(1.0, 1.0), (0.5, 2.0)])
def test_particles_in_a_box_stop_at_its_walls(q: tuple[float, float]):
    mu = Particles(torch.rand(20, 2, generator=torch.Generator().manual_seed(0)), domain=ox.Box((0.0, 0.0), (1.0, 2.0)))
    out = SOLVER(Potential(lambda x: 3 * x[..., 0] - 9 * x[..., 1]), Wasserstein(torch.diag(torch.tensor(q))), mu, 0.1)
    expected = mu.x + 0.1 * torch.tensor([-3 * q[0], 9 * q[1]])
    expected = torch.stack([expected[:, 0].clamp_min(0), expected[:, 1].clamp_max(2)], -1)
    assert (expected[:, 0] == 0).any() and (expected[:, 0] > 0).any()
    torch.testing.assert_close(out.mu.x, expected, rtol=0, atol=1e-8)


def test_walls_hold_when_the_energy_couples_particles_and_axes():
    """The optimality condition of a constrained minimum: zero inside, pushing outward on the walls."""
    box, tau = ox.Box(0.0, 1.0), 0.4
    mu = Particles(torch.rand(15, 2, generator=torch.Generator().manual_seed(1)), weights(15), domain=box)
    F = Potential(lambda x: 4 * (x.sum(-1) - 2.2) ** 2) + Interaction(lambda z: torch.exp(-8 * z.square().sum(-1)))
    new, stats = SOLVER(F, Wasserstein(), mu, tau)
    condition = F.gradient(new) + (new.x - mu.x) / tau
    upper = new.x > 1 - 1e-12
    assert upper.any() and (condition[upper] < 0).all()
    torch.testing.assert_close(condition[~upper], torch.zeros_like(condition[~upper]), rtol=0, atol=1e-5)
    assert stats.objective <= F(mu)


def test_a_box_needs_a_metric_that_does_not_couple_axes():
    mu = Particles(torch.rand(3, 2), domain=ox.Box(0.0, 1.0))
    assert "diagonal" in str(SOLVER.supports(Potential(coupled), Wasserstein(Q2), mu))
    assert "diagonal" in str(SOLVER.supports(Potential(coupled), Smoothed(), mu))


def test_a_carried_log_density_is_dropped():
    mu = Particles(cloud(5, 1), log_density=torch.zeros(5))
    assert SOLVER(DOUBLE_WELL, Wasserstein(), mu, 0.05).mu.log_density is None


def test_a_warm_start_reaches_the_same_minimiser_sooner():
    F, mu = Potential(coupled, curvature=-1.0), Particles(cloud(40, 2))
    first = SOLVER(F, Wasserstein(), mu, 0.1)
    cold = SOLVER(F, Wasserstein(), first.mu, 0.1)
    again = SOLVER(F, Wasserstein(), first.mu, 0.1, cold.stats)  # the answer is known
    warm = SOLVER(F, Wasserstein(), first.mu, 0.1, first.stats)
    torch.testing.assert_close(warm.mu.x, cold.mu.x, rtol=0, atol=1e-7)
    assert again.stats.iterations < cold.stats.iterations
    other = SOLVER(F, Wasserstein(), Particles(cloud(3, 2)), 0.1, first.stats)  # another shape starts cold
    assert other.stats.converged


def test_a_flow_that_has_arrived_stays_and_converges():
    F, mu, last = Potential(Quadratic([1.0])), Particles(cloud(10, 1)), None
    for _ in range(60):
        mu, last = SOLVER(F, Wasserstein(), mu, 1.0, last)
    torch.testing.assert_close(mu.x, torch.ones(10, 1), rtol=0, atol=1e-12)


@dataclass(frozen=True)
class Smoothed(Metric):
    """K_μ u = k ∗ (u μ), k = 1 + exp(−|x|²/2): a metric known by its Onsager operator alone."""

    def descent(self, F, mu):
        raise TypeError("not needed here")

    def onsager(self, mu, u):
        return self.matrix(mu) @ (mu.w[..., None] * u)

    def matrix(self, mu):
        return 1 + torch.exp(-0.5 * (mu.x[..., :, None, :] - mu.x[..., None, :, :]).square().sum(-1))


@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_another_metric_takes_the_frozen_metric_step(tau: float):
    """For V = ½|x|²: the covector solves u = −(x + tau·K u), a linear system."""
    mu = Particles(cloud(8, 2), weights(8))
    out = Descent(tol=1e-10, on_failure="raise")(Potential(Quadratic([0.0, 0.0])), Smoothed(), mu, tau)
    K = Smoothed().matrix(mu) * mu.w
    u = torch.linalg.solve(torch.eye(8) + tau * K, -mu.x)
    torch.testing.assert_close(out.mu.x, mu.x + tau * K @ u, rtol=0, atol=1e-8)
    torch.testing.assert_close(out.stats.distance2, tau**2 * (mu.w[:, None] * u * (K @ u)).sum(), rtol=1e-7, atol=0)


def test_random_batches_are_the_same_all_through_a_step():
    generator = torch.Generator().manual_seed(1)
    mu = Particles(torch.randn(30, 2, generator=torch.Generator().manual_seed(0)))
    F = ox.Blob(0.5) + Interaction(ox.kernels.RandomBatch(ox.kernels.RBF(1.0), 7, generator=generator))
    step = ox.Backward(F, ox.Landau(-1.0, batch=8, generator=generator), Descent())
    assert step.generators() == (generator,)
    first, second = step(mu, 0.0, 0.1), step(mu, 0.0, 0.1)
    assert first.stats.converged and second.stats.converged
    assert (first.mu.x - second.mu.x).norm() > 1e-3 * (first.mu.x - mu.x).norm()  # others at the next step


def test_the_generic_route_with_the_onsager_operator_of_wasserstein_is_the_wasserstein_step():
    @dataclass(frozen=True)
    class Flat(Metric):
        def descent(self, F, mu):
            raise TypeError("not needed here")

        def onsager(self, mu, u):
            return u @ Q2

    F, mu = Potential(coupled, curvature=-1.0), Particles(cloud(12, 2), weights(12))
    generic, direct = SOLVER(F, Flat(), mu, 0.3), SOLVER(F, Wasserstein(Q2), mu, 0.3)
    torch.testing.assert_close(generic.mu.x, direct.mu.x, rtol=0, atol=1e-7)
    torch.testing.assert_close(generic.stats.distance2, direct.stats.distance2, rtol=1e-7, atol=0)


@pytest.mark.parametrize("tau", [0.01, 0.1])
def test_on_quantiles_the_porous_medium_step_satisfies_its_virial_identity(tau: float):
    """Σ (X_i − x_i) X_i/n = tau·(m − 1)·F(X), exactly for the discrete energy, homogeneous of degree 1 − m."""
    mu, m = Quantiles((torch.arange(50) + 0.5) / 50), 3.0
    out = Descent(max_iter=3000, tol=1e-10, on_failure="raise")(PorousMedium(m), Wasserstein(), mu, tau)
    virial = ((out.mu.x - mu.x) * out.mu.x).mean()
    torch.testing.assert_close(virial, tau * (m - 1) * PorousMedium(m)(out.mu), rtol=1e-7, atol=0)
    assert (out.mu.gaps > 0).all()


def test_quantiles_keep_their_order_under_entropy():
    mu = Quantiles.of(Gaussian([10.0], [[100.0]]), 40)
    out = Descent(max_iter=3000, on_failure="raise")(ox.KL(Gaussian([0.0], [[1.0]])), Wasserstein(), mu, 0.5)
    assert (out.mu.gaps > 0).all()
    torch.testing.assert_close(out.mu.mean, torch.tensor([10 / 1.5]), rtol=1e-6, atol=0)


def test_single_precision_keeps_its_type():
    mu = Particles(cloud(20, 2).float())
    out = SOLVER(Potential(Quadratic(torch.zeros(2, dtype=torch.float32))), Wasserstein(), mu, 0.5)
    assert out.mu.x.dtype == torch.float32
    torch.testing.assert_close(out.mu.x, mu.x / 1.5, rtol=0, atol=1e-4)


def test_not_converging_is_never_silent():
    mu = Particles(cloud(10, 2))
    with pytest.warns(ConvergenceWarning, match="Descent stopped after 1 iterations with residual"):
        out = Descent(max_iter=1)(Potential(coupled), Wasserstein(), mu, 0.5)
    assert not out.stats.converged
    with pytest.raises(ConvergenceError, match="max_iter"):
        Descent(max_iter=1, on_failure="raise")(Potential(coupled), Wasserstein(), mu, 0.5)


def test_an_energy_without_lower_bound_is_reported():
    with pytest.warns(ConvergenceWarning, match="bounded below"):
        out = Descent(max_iter=50)(Potential(lambda x: -x.square().sum(-1)), Wasserstein(), Particles(cloud(4, 1)), 1.0)
    assert not out.stats.converged


def test_tau_past_the_convexity_limit_is_refused_in_the_metric_of_the_step():
    mu = Particles(torch.tensor([[0.1]]))
    with pytest.raises(ValueError, match="convexity limit 0.25"):
        SOLVER(DOUBLE_WELL, Wasserstein(), mu, 0.25)
    with pytest.raises(ValueError, match="convexity limit 0.0625"):
        SOLVER(DOUBLE_WELL, Wasserstein(torch.tensor([[4.0]])), mu, 0.0625)
    assert SOLVER(DOUBLE_WELL, Wasserstein(torch.tensor([[4.0]])), mu, 0.06).stats.converged


@pytest.mark.parametrize("density", [None, torch.zeros(4)])
@pytest.mark.parametrize("F", [Entropy(), PorousMedium(2), ox.KL(Quadratic([0.0]))])
def test_internal_energies_of_free_particles_are_declined(F: Functional, density: Tensor | None):
    mu = Particles(cloud(4, 1), log_density=density)
    reason = SOLVER.supports(F, Wasserstein(), mu)
    assert reason is not None
    for alternative in ("Blob", "GaussianMap", "Quantiles", "Density"):
        assert alternative in reason
    with pytest.raises(TypeError, match="Descent declines"):
        SOLVER(F, Wasserstein(), mu, 0.1)


def test_what_it_cannot_do_is_declined_in_words():
    particles = Particles(cloud(4, 1))
    assert "Particles" in str(SOLVER.supports(DOUBLE_WELL, Wasserstein(), Gaussian([0.0], [[1.0]])))
    assert "Scaling" in str(SOLVER.supports(DOUBLE_WELL, Entropic(0.1), particles))
    assert "over" in str(SOLVER.supports(DOUBLE_WELL, Moving(lambda t: t), particles))
    assert SOLVER.supports(DOUBLE_WELL, Wasserstein(), particles) is None


def test_an_energy_that_hides_its_gradient_is_an_error():
    hidden = Potential(lambda x: x.detach().square().sum(-1)) + DOUBLE_WELL
    with pytest.raises(TypeError, match="Potential is not differentiable by autograd"):
        SOLVER(hidden, Wasserstein(), Particles(cloud(4, 1)), 0.1)


def test_an_infinite_energy_at_the_start_is_an_error():
    with pytest.raises(ValueError, match="Potential is inf"):
        SOLVER(Potential(lambda x: 1 / x.square().sum(-1)), Wasserstein(), Particles(torch.zeros(2, 1)), 0.1)


def rosenbrock(x: Tensor) -> tuple[Tensor, Tensor]:
    a, b = x[:, 0], x[:, 1]
    value = (1 - a) ** 2 + 100 * (b - a * a) ** 2
    return value, torch.stack([-2 * (1 - a) - 400 * a * (b - a * a), 200 * (b - a * a)], -1)


def test_lbfgs_solves_rosenbrock_from_several_starts_and_freezes_what_is_done():
    x = torch.tensor([[-1.2, 1.0], [1.0, 1.0], [3.0, -2.0], [0.0, 0.0]])
    tol, noise = torch.full((4,), 1e-10), torch.full((4,), 1e-14)
    best = minimise(rosenbrock, x, tol=tol, scale=1e-3, noise=noise, max_iter=300)
    assert best.converged.all()
    torch.testing.assert_close(best.x, torch.ones(4, 2), rtol=0, atol=1e-8)
    assert best.iterations[1] == 0 and best.iterations[0] > 10


def test_lbfgs_backs_away_from_infinities():
    """−log x + x from 10: a full step would leave the domain."""
    best = minimise(
        lambda x: (torch.where(x > 0, x - x.clamp_min(0).log(), torch.nan).sum(-1), 1 - 1 / x),
        torch.tensor([[1e-3], [10.0]]),
        tol=torch.full((2,), 1e-12),
        scale=1e4,
        noise=torch.zeros(2),
    )
    torch.testing.assert_close(best.x, torch.ones(2, 1), rtol=0, atol=1e-11)


def test_lbfgs_stops_where_it_finds_no_descent():
    """|x| has a kink at its minimum: the search fails there, and the item says that it did not converge."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        best = minimise(
            lambda x: (x.abs().sum(-1), torch.where(x >= 0, 1.0, -1.0)),
            torch.tensor([[1.0]]),
            tol=torch.full((1,), 1e-9),
            scale=1.0,
            noise=torch.zeros(1),
            max_iter=200,
        )
    assert not best.converged and best.iterations < 200
    assert best.x.abs() < 1e-6


def test_a_gradient_that_is_not_finite_at_the_start_is_an_error():
    F = Potential(lambda x: (0 * x).norm(dim=-1).sqrt())
    with pytest.raises(ValueError, match="gradient of Potential is non-finite"):
        Descent()(F, Wasserstein(), Particles(torch.ones(4, 2)), 0.1)
