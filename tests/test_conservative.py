"""Midpoint rule and discrete gradients on particles: invariants, decay of F, closed forms, orders."""

import math
import warnings

import pytest
import torch

import otprox as ox
from otprox.measures.base import StepTooLarge
from otprox.solvers import ConvergenceError, ConvergenceWarning

STEPS = (ox.Midpoint, ox.DiscreteGradient)


def cloud(n: int = 40, d: int = 2, *batch: int, seed: int = 0) -> ox.Particles:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*batch, n, d, generator=generator) * torch.tensor([1.5, 0.7, 0.6][:d])
    w = 0.5 + torch.rand(*batch, n, generator=generator)
    return ox.Particles(x, w / w.sum(-1, keepdim=True))


def energy(mu: ox.Particles) -> torch.Tensor:
    return mu.expect(lambda x: x.square().sum(-1) / 2)


def run(step: ox.Step, mu: ox.Particles, tau: float, n: int) -> list[ox.Particles]:
    return [tick.after for tick in ox.flow(step, mu, [tau * k for k in range(n + 1)])]


def reference(F, metric, mu, horizon, n=30):
    """Classical Runge and Kutta steps."""
    h = horizon / n

    def slope(t, x):
        nu = mu.with_state(x=x)
        return metric.descent(F.at(t), nu).field(nu.x)

    x = mu.x
    for t in (h * k for k in range(n)):
        a = slope(t, x)
        b = slope(t + h / 2, x + h / 2 * a)
        c = slope(t + h / 2, x + h / 2 * b)
        x = x + h / 6 * (a + 2 * b + 2 * c + slope(t + h, x + h * c))
    return mu.with_state(x=x)


def orders(error, ladder=(5, 10)):
    errors = [error(n) for n in ladder]
    return [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(("gamma", "d"), [(0.0, 2), (-3.0, 3), (1.0, 3)])
def test_landau_keeps_momentum_and_energy_and_loses_entropy(step, gamma: float, d: int):
    mu, tau, F, metric = cloud(16, d, 2), 0.3, ox.Blob(0.6), ox.Landau(gamma, 0.2)
    path = [mu, *run(step(F, metric), mu, tau, 5)]
    size = (energy(path[0]) - energy(ox.Forward(F, metric)(mu, 0.0, tau).mu)).abs()  # what one Euler step adds
    for before, after in zip(path, path[1:], strict=False):
        assert (after.mean - mu.mean).abs().max() < 1e-14
        assert ((energy(after) - energy(before)).abs() <= 1e-8 * size + 1e-15).all()
        assert (F(after) < F(before)).all()


@pytest.mark.parametrize("step", STEPS)
def test_second_order_on_the_landau_equation(step):
    mu, metric = cloud(8, 2), ox.Landau(0.0, 0.25)
    F = ox.Blob(0.7, form="full", quadrature=ox.GaussHermite(5))
    want = reference(F, metric, mu, 1.0)
    found = orders(lambda n: (run(step(F, metric, tol=1e-11), mu, 1.0 / n, n)[-1].x - want.x).norm().item())
    assert found[-1] == pytest.approx(2.0, abs=0.1)


def test_stable_where_forward_euler_heats():
    mu, F, metric, tau = cloud(40, 3), ox.Blob(0.6), ox.Landau(-3.0), 1.0
    explicit = run(ox.Forward(F, metric), mu, tau, 10)[-1]
    implicit = run(ox.Midpoint(F, metric), mu, tau, 10)[-1]
    want = reference(F, metric, mu, 10.0, 25)
    assert energy(explicit) > 1.04 * energy(mu) and abs(energy(implicit) - energy(mu)) < 1e-8
    assert abs(F(implicit) - F(want)) < 0.1 * abs(F(explicit) - F(want))


def test_entropy_falls_by_what_the_covector_dissipates():
    mu, tau, F, metric = cloud(25, 3), 0.7, ox.Blob(0.6), ox.Landau(-3.0, 0.5)
    nu = ox.DiscreteGradient(F, metric, tol=1e-12)(mu, 0.0, tau).mu
    half, step, weigh = mu.push(lambda x: (x + nu.x) / 2), nu.x - mu.x, mu.w[:, None]
    g = F.gradient(half)
    g = g + step * (F(nu) - F(mu) - (weigh * g * step).sum()) / (weigh * step.square()).sum()
    v = metric.onsager(half, g)
    torch.testing.assert_close(step, -tau * v, rtol=1e-9, atol=1e-10)
    assert float(F(nu) - F(mu)) == pytest.approx(-tau * float((weigh * g * v).sum()), rel=1e-9)


@pytest.mark.parametrize("step", STEPS)
def test_quadratic_potentials_are_in_closed_form(step, S0, Q):
    """x₁ = m + (I + ½τQP)⁻¹(I − ½τQP)(x₀ − m), the Cayley transform."""
    mu, m, tau = cloud(10, 3), torch.tensor([0.3, -1.0, 2.0]), 0.4
    out = step(ox.Potential(ox.Quadratic(m, S0)), ox.Wasserstein(Q), tol=1e-13)(mu, 0.0, tau)
    rate, eye = tau / 2 * Q @ torch.linalg.inv(S0), torch.eye(3)
    want = m + (mu.x - m) @ torch.linalg.solve(eye + rate, eye - rate).T
    assert out.stats.converged
    torch.testing.assert_close(out.mu.x, want, rtol=1e-11, atol=1e-11)


def test_a_discrete_gradient_on_the_line_is_the_difference_quotient():
    V = lambda x: (x.square() - 1).square().sum(-1) / 4  # noqa: E731
    mu, tau = ox.Particles([[3.0]]), 0.5
    nu = ox.DiscreteGradient(ox.Potential(V), tol=1e-13)(mu, 0.0, tau).mu
    quotient = (V(nu.x) - V(mu.x)) / (nu.x - mu.x)[:, 0]
    torch.testing.assert_close((nu.x - mu.x)[:, 0], -tau * quotient)


def test_a_discrete_gradient_decreases_f_where_the_midpoint_rule_does_not():
    F, mu, tau = ox.Potential(lambda x: (x + torch.exp(-4 * x)).sum(-1)), ox.Particles([[1.0]]), 5.0
    rule, gradient = (step(F, tol=1e-12)(mu, 0.0, tau) for step in STEPS)
    assert rule.stats.converged and gradient.stats.converged
    assert F(rule.mu) > 1.5 * F(mu) and F(gradient.mu) < F(mu)
    path = run(ox.DiscreteGradient(F, tol=1e-12), mu, tau, 20)
    values = torch.stack([F(mu), *map(F, path)])
    assert (values.diff() <= 1e-15).all() and values[-1] < values[1]


def test_the_midpoint_rule_is_reversible():
    mu, F, metric = cloud(20, 2), ox.Blob(0.6), ox.Landau(0.0, 0.25)
    nu = ox.Midpoint(F, metric, tol=1e-13)(mu, 0.0, 0.1).mu
    back = ox.Midpoint(-F, metric, tol=1e-13)(nu, 0.0, 0.1).mu
    torch.testing.assert_close(back.x, mu.x, rtol=1e-10, atol=1e-10)


def test_second_order_in_the_stein_metric_and_when_f_varies():
    mu = cloud(12, 2)
    F = ox.Varying(lambda t: ox.KL(ox.Gaussian([math.sin(t), 0.0], torch.eye(2))))
    metric = ox.Stein(ox.kernels.RBF(1.0))
    want = reference(F, metric, mu, 1.0)
    found = orders(lambda n: (run(ox.Midpoint(F, metric), mu, 1.0 / n, n)[-1].x - want.x).norm().item())
    assert found[-1] == pytest.approx(2.0, abs=0.1)


def test_a_log_density_follows_the_map():
    """Each particle of a potential moves on its own, so its map can be differentiated by finite differences."""
    V, tau, h = lambda x: (x.square().square() + x[..., :1] * x[..., 1:]).sum(-1) / 4, 0.3, 1e-5
    mu = cloud(9, 2)
    step, log_density = ox.Midpoint(ox.Potential(V), tol=1e-14), torch.linspace(-1.0, 0.0, 9)
    out = step(ox.Particles(mu.x, mu.w, log_density), 0.0, tau).mu
    columns = []
    for axis in range(2):
        shift = h * torch.eye(2)[axis]
        plus, minus = (step(ox.Particles(mu.x + s * shift, mu.w), 0.0, tau).mu.x for s in (1, -1))
        columns.append((plus - minus) / (2 * h))
    stretch = torch.linalg.det(torch.stack(columns, -1)).abs().log()
    torch.testing.assert_close(out.log_density, log_density - stretch, rtol=1e-7, atol=1e-7)
    assert ox.DiscreteGradient(ox.Potential(V))(ox.Particles(mu.x, mu.w, log_density), 0.0, tau).mu.log_density is None


def test_a_batch_equals_single_runs():
    mu, F, metric = cloud(15, 2, 3), ox.Blob(0.6), ox.Landau(0.0, 0.25)
    mu = mu.with_state(x=mu.x * torch.tensor([0.5, 1.0, 2.0])[:, None, None])
    out = ox.DiscreteGradient(F, metric)(mu, 0.0, 0.5)
    assert out.stats.iterations.unique().numel() > 1
    for i in range(3):
        one = ox.DiscreteGradient(F, metric)(ox.Particles(mu.x[i], mu.w[i]), 0.0, 0.5)
        assert one.stats.iterations == out.stats.iterations[i]
        torch.testing.assert_close(one.mu.x, out.mu.x[i], rtol=1e-9, atol=1e-9)


def test_on_a_torus_the_midpoint_is_taken_along_the_step():
    F, tau = ox.Potential(lambda x: torch.sin(2 * math.pi * x).sum(-1)), 0.05
    x = torch.tensor([[0.95], [0.02], [0.5]])
    torus, line = (ox.Midpoint(F, tol=1e-13)(ox.Particles(x, domain=dom), 0.0, tau).mu for dom in (ox.Torus(1.0), None))
    torch.testing.assert_close(torus.x, line.x.remainder(1.0))
    assert (line.x.remainder(1.0) != line.x).any()


@pytest.mark.parametrize("step", STEPS)
def test_random_batches_are_the_same_all_through_a_step(step):
    mu, F = cloud(41, 3), ox.Blob(0.6)
    generator = torch.Generator().manual_seed(3)
    metric = ox.Landau(-3.0, batch=8, generator=generator)
    first = step(F, metric)(mu, 0.0, 0.1)
    second = step(F, metric)(first.mu, 0.1, 0.2, first.stats)
    assert first.stats.converged and second.stats.converged and step(F, metric).generators() == (generator,)
    size = (energy(mu) - energy(ox.Forward(F, metric)(mu, 0.0, 0.1).mu)).abs()
    assert abs(energy(second.mu) - energy(mu)) < 1e-8 * size
    again = step(F, metric)(mu, 0.0, 0.1)
    assert (again.mu.x - first.mu.x).norm() > 1e-3 * (first.mu.x - mu.x).norm()


def test_a_score_is_fitted_half_way():
    mu, tau, metric = cloud(20, 2), 0.2, ox.Landau(-1.0, 0.3)
    step = ox.Midpoint(ox.Entropy(score=ox.scores.GaussianFit()), metric, tol=1e-13)
    out = step(mu.with_state(log_density=torch.zeros(20)), 0.0, tau).mu
    half = mu.push(lambda x: (x + out.x) / 2)
    B = torch.linalg.inv(half.cov)
    torch.testing.assert_close(out.x - mu.x, tau * metric.onsager(half, (half.x - half.mean) @ B))

    def velocity(x):
        z = x - half.x
        jump = z @ B
        return 0.3 * (
            half.w[:, None]
            * (
                z.norm(dim=-1, keepdim=True) * jump
                - z * (z * jump).sum(-1, keepdim=True) / z.norm(dim=-1, keepdim=True)
            )
        ).sum(0)

    for i in range(3):
        x = half.x[i] + 1e-9  # off the particle, where |z| has no derivative for automatic differentiation
        slope = tau / 2 * torch.autograd.functional.jacobian(velocity, x)
        ratio = torch.linalg.det(torch.eye(2) + slope) / torch.linalg.det(torch.eye(2) - slope)
        torch.testing.assert_close(out.log_density[i], -ratio.log(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [ox.Midpoint, ox.Integrate])
def test_a_trained_score_is_fitted_once_a_step_and_starts_from_the_step_before(make):
    if make is ox.Integrate:
        pytest.importorskip("torchdiffeq")
    mu, fits = cloud(20, 2), []

    class Trained(ox.scores.Estimator):
        def fit(self, mu, last=None):
            fits.append(mu)
            return ox.scores.Known(ox.scores.GaussianFit().fit(mu), stats=["trained", *(last or [])])

    step = make(ox.Entropy(score=Trained()), ox.Landau(0.0, 0.1))
    first = step(mu, 0.0, 0.1)
    second = step(first.mu, 0.1, 0.2, first.stats)
    assert fits == [mu, first.mu] and second.stats[0].converged and second.stats[1] == ["trained", "trained"]
    assert abs(energy(second.mu) - energy(mu)) < (1e-10 if make is ox.Midpoint else 1e-6)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("gamma", [-3.0, 0.0])
def test_derivatives_are_those_of_finite_differences(step, gamma: float):
    mu, F, h = cloud(7, 3), ox.Blob(0.8), 1e-5
    kind = step(F, ox.Landau(gamma, 0.3), tol=1e-12)
    generator = torch.Generator().manual_seed(5)
    direction, covector = torch.randn(2, 7, 3, generator=generator)
    x = mu.x.clone().requires_grad_()
    value = (kind(mu.with_state(x=x), 0.0, 0.4).mu.x * covector).sum()
    (slope,) = torch.autograd.grad(value, x)
    ends = [kind(mu.with_state(x=mu.x + s * h * direction), 0.0, 0.4).mu.x for s in (1, -1)]
    want = ((ends[0] - ends[1]) * covector).sum() / (2 * h)
    assert float((slope * direction).sum()) == pytest.approx(float(want), rel=1e-6)


def test_warm_starts_save_evaluations():
    mu, step = cloud(30, 3), ox.Midpoint(ox.Blob(0.6), ox.Landau(-3.0, 0.2))
    first = step(mu, 0.0, 0.02)
    warm, cold = step(first.mu, 0.02, 0.04, first.stats), step(first.mu, 0.02, 0.04)
    assert warm.stats.iterations <= cold.stats.iterations
    torch.testing.assert_close(warm.mu.x, cold.mu.x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("step", STEPS)
def test_equilibrium_and_single_precision_end_at_rounding(step):
    metric = ox.Landau(-3.0)
    pair = ox.Particles([[1.0, 0.0, 0.5], [-1.0, 0.2, 0.0]])  # two particles push along the line between them: no force
    mu = cloud(20, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(step(ox.Blob(0.5), metric)(pair, 0.0, 1.0).mu.x, pair.x)
        single = ox.Particles(mu.x.float(), mu.w.float())
        path = run(step(ox.Blob(0.5), metric), single, 0.1, 5)
        late = run(step(ox.Blob(0.5), metric), run(step(ox.Blob(0.5), metric), mu, 1.0, 10)[-1], 1.0, 4)
    assert path[-1].x.dtype == torch.float32
    assert abs(energy(path[-1]) - energy(single)) < 1e-6 * energy(single)
    assert abs(energy(late[-1]) - energy(mu)) < 1e-9


def test_adaptive_step_doubling_keeps_the_energy():
    mu, F, metric = cloud(8, 2), ox.Blob(0.7), ox.Landau(0.0, 0.25)
    out = ox.Adaptive(ox.Midpoint(F, metric, tol=1e-10), tol=2e-4, order=2)(mu, 0.0, 1.0)
    want = reference(F, metric, mu, 1.0)
    assert (out.mu.x - want.x).square().sum(-1).mean().sqrt() < 2e-4
    assert abs(energy(out.mu) - energy(mu)) < 1e-11


def test_what_does_not_converge_says_so():
    F, mu = ox.Blob(0.2), cloud(20, 2)
    with pytest.warns(ConvergenceWarning, match="Midpoint stopped after 3 iterations with residual"):
        ox.Midpoint(F, ox.Landau(1.0), max_iter=3)(mu, 0.0, 2e-3)
    with pytest.raises(ConvergenceError, match="take smaller steps"):
        ox.DiscreteGradient(F, ox.Landau(1.0), max_iter=3, on_failure="raise")(mu, 0.0, 2e-3)
    with pytest.raises(StepTooLarge, match="Midpoint found no velocity for tau = 50 in 20 iterations"):
        ox.Midpoint(F, ox.Landau(1.0), max_iter=20)(mu, 0.0, 50.0)


def test_bad_input_is_named():
    F, mu = ox.Blob(0.5), cloud(5, 2)
    with pytest.raises(TypeError, match="Midpoint moves Particles, not a Gaussian"):
        ox.Midpoint(F)(ox.Gaussian([0.0], [[1.0]]), 0.0, 1.0)
    with pytest.raises(TypeError, match="needs a Functional"):
        ox.Midpoint(ox.Landau(0.0))
    with pytest.raises(ValueError, match="tol must be between 0 and 1, not 0"):
        ox.Midpoint(F, tol=0.0)
    with pytest.raises(ValueError, match="max_iter ≥ 1 and depth ≥ 0, not 0"):
        ox.DiscreteGradient(F, max_iter=0)
    with pytest.raises(ValueError, match="t0 < t1"):
        ox.Midpoint(F)(mu, 1.0, 1.0)
    with pytest.raises(TypeError, match="DiscreteGradient.*declines"):
        ox.DiscreteGradient(ox.Obstacle(lower=0.0))(mu, 0.0, 1.0)
    with pytest.raises(ValueError, match="non-finite"):
        ox.Midpoint(ox.Potential(lambda x: x.sum(-1) / 0))(mu, 0.0, 1.0)


@pytest.mark.needs_cuda
@pytest.mark.parametrize("step", STEPS)
def test_runs_on_cuda(step):
    mu = cloud(30, 3)
    there = ox.Particles(mu.x.cuda(), mu.w.cuda())
    F, metric = ox.Blob(0.6), ox.Landau(-3.0, 0.2)
    out, want = step(F, metric)(there, 0.0, 0.3).mu, step(F, metric)(mu, 0.0, 0.3).mu
    torch.testing.assert_close(out.x.cpu(), want.x, rtol=1e-9, atol=1e-9)
