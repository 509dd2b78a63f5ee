"""Gaussian prox steps: known numbers, optimality, inequalities, symmetries and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import otprox as ox
from otprox import (
    KL,
    Entropic,
    Entropy,
    Functional,
    Gaussian,
    Moving,
    Particles,
    PorousMedium,
    Potential,
    Quadratic,
    Wasserstein,
)
from otprox.measures import bures2, sqrtm
from otprox.measures.distance import w2_squared
from otprox.solvers import Bures, ConvergenceError, ConvergenceWarning, choose
from otprox.solvers.sinkhorn_gaussian import entropic_cost, sinkhorn_divergence

W2 = Wasserstein()
REFERENCES = ("lebesgue", "product", "debiased")
seeds, dims = st.integers(0, 2**31), st.integers(1, 4)
taus = st.floats(0.01, 5.0)


def upper(*entries: float) -> Tensor:
    """A symmetric 3 × 3 matrix from its upper triangle, row by row."""
    A = torch.zeros(3, 3)
    A[torch.triu_indices(3, 3).unbind()] = torch.tensor(entries)
    return A + A.mT - A.diagonal().diag()


def normal(var: float) -> Gaussian:
    return Gaussian([0.0], [[var]])


def random_gaussian(seed: int, dim: int, *batch: int) -> Gaussian:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*batch, dim, dim, generator=generator)
    return Gaussian(torch.randn(*batch, dim, generator=generator), x @ x.mT / dim + 0.1 * torch.eye(dim))


def prox(F: Functional, mu: Gaussian, tau: float, metric=W2) -> Gaussian:
    return Bures()(F, metric, mu, tau).mu


def close(actual, expected, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(torch.as_tensor(actual), torch.as_tensor(expected), rtol=tolerance, atol=tolerance)


# Known numbers


def test_entropy_step(gaussians):
    mu = Gaussian(gaussians.m0, gaussians.S0)
    nu = prox(Entropy(), mu, 0.3)
    expected = upper(2.557849120153, 0.619644133633, -0.317759407379, 1.530069735282, 0.221761280622, 0.999478555414)
    close(nu.cov, expected)
    assert torch.equal(nu.mean, mu.mean)
    B = torch.eye(3) - 0.3 * nu.cov.inverse()
    close(B @ nu.cov @ B, mu.cov)


def test_kl_step_of_covariances_that_do_not_commute(gaussians):
    mu, F = Gaussian(gaussians.m0, gaussians.S0), KL(Gaussian(gaussians.mq, gaussians.Q))
    nu, stats = Bures()(F, W2, mu, 0.3)
    close(nu.mean, [1.152881911903, -1.225046860356, 0.112347703843])
    expected = upper(1.382895927134, 0.023485769961, -0.115296513307, 0.755425087007, 0.255872261115, 0.753103991109)
    close(nu.cov, expected)
    close(F(nu), 2.8751426429106397)
    close(stats.distance2, 1.0030834107407216)
    close(stats.objective, 2.8751426429106397 + 1.0030834107407216 / 0.6)
    assert bool(stats.converged)
    assert int(stats.iterations) == 0


def test_potential_step(gaussians):
    F = Potential(Quadratic(gaussians.mq, cov=gaussians.Q))
    mu = Gaussian(gaussians.m0, gaussians.S0)
    nu, stats = Bures()(F, W2, mu, 0.3)
    close(nu.cov[[0, 0, 2], [0, 1, 2]], [0.981522373075, 0.068951061451, 0.349416924538])
    close(stats.distance2, w2_squared(mu, nu))


def test_forward_backward_converges_to_the_target(gaussians):
    mu, target = Gaussian(gaussians.m0, gaussians.S0), Gaussian(gaussians.mq, gaussians.Q)
    F, V, tau = KL(target), Potential(Quadratic(gaussians.mq, cov=gaussians.Q)), 0.9 / 2.4653815180144947
    kl, w2 = {}, {}
    for k in range(1, 301):
        mu = prox(Entropy(), mu.move(W2.descent(V, mu), tau), tau)
        kl[k], w2[k] = F(mu).item(), w2_squared(mu, target).item()
    close([kl[k] for k in (1, 2, 5, 10)], [0.92835901953192, 0.44009398983686, 0.058559490385114, 0.0022094371980353])
    close([w2[k] for k in (1, 2, 5, 10)], [2.2318031889348, 1.1163121591874, 0.1519402260395, 0.0058941856773429])
    close(mu.cov, gaussians.Q, 1e-12)
    close(mu.mean, gaussians.mq, 1e-12)


@pytest.mark.parametrize(
    ("tau", "expected"),
    [
        (
            0.1,
            {1: (9.09090909091, 82.8263465004), 5: (6.20921323059, 39.197476259), 20: (1.48643628024, 3.22503619778)},
        ),
        (
            0.5,
            {
                1: (6.66666666667, 45.1086479224),
                5: (1.31687242798, 2.86190156042),
                20: (0.00300728659822, 1.00004947283),
            },
        ),
    ],
)
def test_jko_of_the_paper(tau: float, expected: dict):
    """N(10, 100) → N(0, 1)."""
    mu, F = Gaussian([10.0], [[100.0]]), KL(normal(1.0))
    for k in range(1, 21):
        mu = prox(F, mu, tau)
        if k in expected:
            close((mu.mean.item(), mu.cov.item()), expected[k], 1e-11)


@pytest.mark.parametrize(
    ("tau", "expected"),
    [(0.1, {1: (9, 81.1998768471), 10: (3.486784401, 13.0800844823)}), (0.5, {2: (2.5, 4 + 2 * 3**0.5)})],
)
def test_forward_backward_of_the_paper(tau: float, expected: dict):
    mu, V = Gaussian([10.0], [[100.0]]), Potential(Quadratic([0.0]))
    for k in range(1, 11):
        mu = prox(Entropy(), mu.move(W2.descent(V, mu), tau), tau)
        if k in expected:
            close((mu.mean.item(), mu.cov.item()), expected[k], 1e-11)


@pytest.mark.parametrize(
    ("reference", "tau", "reg", "var"),
    [
        ("lebesgue", 0.3, 0.2, 1.1769056470),
        ("lebesgue", 0.3, 0.05, 1.1340097342),
        ("lebesgue", 1.0, 0.5, 0.8839547539),
        ("product", 0.3, 0.2, 1.0638220397),
        ("product", 0.3, 0.05, 1.1057282393),
        ("product", 1.0, 0.5, 0.7557591032),
        ("debiased", 0.3, 0.2, 1.1195982824),
    ],
)
def test_entropic_step(reference: str, tau: float, reg: float, var: float):
    """Variance 1.7, target variance 0.6."""
    nu = prox(KL(normal(0.6)), normal(1.7), tau, Entropic(reg, reference))
    assert nu.cov.item() == pytest.approx(var, abs=1e-10)


def test_entropic_step_of_the_entropy_alone():
    close(prox(Entropy(), normal(1.0), 0.1, Entropic(0.05)).cov.item(), 1.2147094735222952, 1e-14)


@pytest.mark.parametrize(
    ("reference", "tau", "reg", "var"),
    [
        ("lebesgue", 0.1, 0.01, 1.025030486853),
        ("lebesgue", 0.1, 0.1, 1.252494771935),
        ("lebesgue", 0.5, 0.1, 1.050594816896),
        ("product", 0.1, 0.01, 0.975032050176),
        ("product", 0.1, 0.1, 0.754142640607),
        ("product", 0.5, 0.1, 0.950657326213),
        ("debiased", 0.1, 0.1, 1.0),
        ("debiased", 0.5, 2.0, 1.0),
    ],
)
def test_entropic_fixed_points(reference: str, tau: float, reg: float, var: float):
    mu, F = normal(1.3), KL(normal(1.0))
    for _ in range(300 if tau < 0.3 else 100):
        mu = prox(F, mu, tau, Entropic(reg, reference))
    close(mu.cov.item(), var, 1e-11)


def test_entropic_steps_without_a_functional_convolve_or_shrink(gaussians):
    mu, nothing = Gaussian(gaussians.m0, gaussians.S0), 0 * Entropy()
    close(prox(nothing, mu, 0.7, Entropic(0.1)).cov, mu.cov + 0.05 * torch.eye(3), 1e-13)
    close(prox(nothing, mu, 0.7, Entropic(0.1, "product")).cov, mu.cov - 0.05 * torch.eye(3), 1e-13)
    close(prox(nothing, mu, 0.7, Entropic(0.1, "debiased")).cov, mu.cov, 1e-10)
    close(prox(nothing, mu, 0.7).cov, mu.cov, 1e-15)


def test_a_product_step_that_leaves_no_covariance_is_refused():
    with pytest.raises(ValueError, match="shrinks the covariance by reg/2 = 0.6"):
        prox(0 * Entropy(), normal(0.5), 0.7, Entropic(1.2, "product"))
    assert prox(0.1 * Entropy(), normal(0.5), 0.7, Entropic(1.2, "product")).cov.item() > 0


def residual_of_debiased(S: Tensor, cov: Tensor, P: Tensor, theta: float, tau: float, reg: float) -> Tensor:
    """(4S² + e²)^½ − (4 S^½ΣS^½ + e²)^½ − 2τ(θI − S^½PS^½), e = reg/2."""
    eye, R = torch.eye(len(S)), sqrtm(S)
    left = sqrtm(4 * S @ S + reg**2 / 4 * eye) - sqrtm(4 * R @ cov @ R + reg**2 / 4 * eye)
    return left - 2 * tau * (theta * eye - R @ P @ R)


@pytest.mark.parametrize(
    ("theta", "tau", "reg"),
    [
        *(
            (theta, tau, reg)
            for theta in (1.0, 0.2)
            for tau, reg in ((0.3, 1e-3), (2.0, 0.05), (0.05, 5.0), (0.3, 100.0))
        ),
        *((0.0, tau, reg) for tau, reg in ((0.3, 1e-3), (0.3, 0.2), (2.0, 0.05))),  # a potential alone: small reg only
    ],
)
def test_debiased_step_solves_its_equation(gaussians, theta: float, tau: float, reg: float):
    P = gaussians.Q.inverse()
    F = Potential(Quadratic(gaussians.mq, precision=P)) + theta * Entropy()
    nu, stats = Bures()(F, Entropic(reg, "debiased"), Gaussian(gaussians.m0, gaussians.S0), tau)
    assert bool(stats.converged)
    assert 0 < int(stats.iterations) < 15
    assert residual_of_debiased(nu.cov, gaussians.S0, P, theta, tau, reg).abs().max() < 1e-10
    close(nu.mean, torch.linalg.solve(torch.eye(3) + tau * P, gaussians.m0 + tau * P @ gaussians.mq), 1e-13)


def test_debiased_step_without_a_minimiser_says_so():
    """reg large, no entropy: the variance goes to 0."""
    F, metric = Potential(Quadratic([0.0], precision=[[5.0]])), Entropic(10.0, "debiased")
    with pytest.warns(ConvergenceWarning, match="may be singular"):
        stats = Bures(max_iterations=12)(F, metric, normal(1.0), 1.0).stats
    assert not bool(stats.converged)
    with pytest.raises(ConvergenceError):
        Bures(max_iterations=12, on_failure="raise")(F, metric, normal(1.0), 1.0)


# Optimality by other routes


@given(seeds, dims, taus, st.floats(0.0, 3.0))
def test_w2_step_is_optimal(seed: int, dim: int, tau: float, theta: float):
    """T = I + τP − γΣ'⁻¹ is the optimal map from new to old, so positive, and T Σ' T = Σ."""
    mu, target = random_gaussian(seed, dim), random_gaussian(seed + 1, dim)
    P, gamma = target.cov.inverse(), tau * theta
    V = Quadratic(target.mean, precision=P)
    nu, stats = Bures()(theta * Entropy() + Potential(V), W2, mu, tau)
    T = torch.eye(dim) + tau * P - gamma * nu.cov.inverse()
    close(T @ nu.cov @ T, mu.cov, 1e-8)
    assert torch.linalg.eigvalsh(T)[0] > 0
    close((torch.eye(dim) + tau * P) @ nu.mean, mu.mean + tau * P @ target.mean, 1e-8)
    close(stats.distance2, w2_squared(mu, nu), 1e-9)


@given(seeds, dims, taus, st.sampled_from(REFERENCES), st.floats(0.01, 3.0))
def test_no_perturbation_lowers_the_objective(seed: int, dim: int, tau: float, reference: str, reg: float):
    mu, F = random_gaussian(seed, dim), KL(random_gaussian(seed + 1, dim))
    for metric in (W2, Entropic(reg, reference)):
        nu, stats = Bures()(F, metric, mu, tau)
        best = objective(F, metric, mu, nu, tau)
        close(stats.objective, best, 1e-8)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(8):
            other = Gaussian(
                nu.mean + 0.01 * torch.randn(dim, generator=generator),
                conjugate(torch.eye(dim) + 0.01 * torch.randn(dim, dim, generator=generator), nu.cov),
            )
            assert objective(F, metric, mu, other, tau) >= best - 1e-11 * (1 + best.abs())


def conjugate(A: Tensor, S: Tensor) -> Tensor:
    return A @ S @ A.mT


def objective(F: Functional, metric, mu: Gaussian, nu: Gaussian, tau: float) -> Tensor:
    return F(nu) + distance2(metric, mu, nu) / (2 * tau)


def distance2(metric, mu: Gaussian, nu: Gaussian) -> Tensor:
    if isinstance(metric, Wasserstein):
        return w2_squared(mu, nu)
    moved, reg = (mu.mean - nu.mean).square().sum(-1), metric.reg
    if metric.reference == "debiased":
        return moved + sinkhorn_divergence(mu.cov, nu.cov, reg)
    lebesgue = reg * (mu.entropy() + nu.entropy()) if metric.reference == "lebesgue" else 0.0
    return moved + entropic_cost(mu.cov, nu.cov, reg) + lebesgue


def janati(A: np.ndarray, B: np.ndarray, reg: float) -> float:
    """Theorem 1 of Janati et al. (2020) as printed, 2σ² = reg, by scipy."""
    from scipy.linalg import sqrtm as root

    d, s2 = len(A), reg / 2
    half = root(A).real
    D = root(4 * half @ B @ half + s2**2 * np.eye(d)).real
    value = np.trace(A) + np.trace(B) - np.trace(D) + d * s2 * (1 - math.log(2 * s2))
    return value + s2 * math.log(np.linalg.det(D + s2 * np.eye(d)))


@given(seeds, dims, st.floats(0.05, 20.0))
def test_entropic_cost_is_the_published_formula(seed: int, dim: int, reg: float):
    A, B = random_gaussian(seed, dim).cov, random_gaussian(seed + 1, dim).cov
    close(entropic_cost(A, B, reg), janati(A.numpy(), B.numpy(), reg), 1e-9)
    close(entropic_cost(B, A, reg), entropic_cost(A, B, reg))


def test_entropic_cost_against_scaling_on_a_grid():
    """Sinkhorn's iterations on 401 points, independent of every formula for Gaussians."""
    x, reg, (a, b) = torch.linspace(-8, 8, 401), 0.7, (1.0, 0.4)
    mu, nu = (torch.softmax(-x.square() / (2 * v), 0) for v in (a, b))
    K = -(x[:, None] - x).square() / reg
    f = g = torch.zeros(401)
    for _ in range(200):
        f = -torch.logsumexp(K + g + nu.log(), 1)
        g = -torch.logsumexp(K + f[:, None] + mu.log()[:, None], 0)
    value = reg * ((f * mu).sum() + (g * nu).sum())
    close(entropic_cost(torch.tensor([[a]]), torch.tensor([[b]]), reg), value, 1e-9)


def test_entropic_cost_has_its_limits():
    A, B = random_gaussian(0, 3).cov, random_gaussian(1, 3).cov
    close(entropic_cost(A, B, 1e-9), bures2(A, B), 1e-6)
    close(entropic_cost(A, B, 1e9), A.trace() + B.trace(), 1e-6)
    close(sinkhorn_divergence(A, A, 0.3), 0.0, 1e-14)
    assert sinkhorn_divergence(A, B, 0.3) > 0


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize(("tau", "reg"), [(0.3, 0.2), (1.0, 0.5), (0.1, 0.02)])
def test_entropic_step_against_direct_minimisation(gaussians, reference: str, tau: float, reg: float):
    """BFGS over Cholesky factors, on the printed formula of the cost."""
    from scipy.optimize import minimize

    S0, P, d = gaussians.S0.numpy(), gaussians.Q.inverse().numpy(), 3

    def value(entries: np.ndarray) -> float:
        L = np.zeros((d, d))
        L[np.tril_indices(d)] = entries
        S = L @ L.T
        logdet = 2 * np.log(np.abs(np.diag(L))).sum()
        cost = janati(S0, S, reg)
        if reference == "lebesgue":
            cost -= reg / 2 * logdet
        if reference == "debiased":
            cost -= janati(S, S, reg) / 2
        return 0.5 * np.trace(P @ S) - 0.5 * logdet + cost / (2 * tau)

    nu = prox(
        KL(Gaussian(gaussians.mq, gaussians.Q)), Gaussian(gaussians.m0, gaussians.S0), tau, Entropic(reg, reference)
    )
    found = minimize(value, np.linalg.cholesky(S0)[np.tril_indices(d)], method="BFGS", options={"gtol": 1e-8})
    L = np.zeros((d, d))
    L[np.tril_indices(d)] = found.x
    close(nu.cov, L @ L.T, 2e-6)
    exact = np.linalg.cholesky(nu.cov.numpy())[np.tril_indices(d)]
    assert value(exact) <= found.fun + 1e-12


# Inequalities


@given(seeds, dims, taus, st.sampled_from((None, *REFERENCES)))
def test_energy_inequality(seed: int, dim: int, tau: float, reference: str | None):
    """F(ν) + d²(μ, ν)/2τ ≤ F(μ) + d²(μ, μ)/2τ."""
    metric = W2 if reference is None else Entropic(0.3, reference)
    mu, F = random_gaussian(seed, dim), KL(random_gaussian(seed + 1, dim))
    stats = Bures()(F, metric, mu, tau).stats
    before = objective(F, metric, mu, mu, tau)
    assert stats.objective <= before + 1e-11 * (1 + before.abs())


@given(seeds, dims, taus, seeds)
def test_evolution_variational_inequality(seed: int, dim: int, tau: float, other: int):
    """(1 + λτ)W²(μ₊, σ) + W²(μ₊, μ) ≤ W²(μ, σ) − 2τ(F(μ₊) − F(σ))."""
    mu, target, sigma = random_gaussian(seed, dim), random_gaussian(seed + 1, dim), random_gaussian(other, dim)
    F, lam = KL(target), 1 / torch.linalg.eigvalsh(target.cov)[-1]
    nu = prox(F, mu, tau)
    left = (1 + lam * tau) * w2_squared(nu, sigma) + w2_squared(nu, mu)
    right = w2_squared(mu, sigma) - 2 * tau * (F(nu) - F(sigma))
    assert left <= right + 1e-12 * (1 + left.abs() + right.abs())


@given(seeds, dims, taus)
def test_the_target_is_the_fixed_point(seed: int, dim: int, tau: float):
    target = random_gaussian(seed, dim)
    for metric in (W2, Entropic(0.4, "debiased"), Wasserstein(random_gaussian(seed + 1, dim).cov)):
        nu, stats = Bures()(KL(target), metric, target, tau)
        close(nu.cov, target.cov, 1e-10)
        close(nu.mean, target.mean, 1e-10)
        assert stats.distance2.abs() < 1e-13 * target.cov.trace() * (1 + tau) ** 2


# Symmetries


@given(seeds, dims, taus, st.sampled_from((None, *REFERENCES)))
def test_rotations_and_translations_commute_with_the_step(seed: int, dim: int, tau: float, reference: str | None):
    metric = W2 if reference is None else Entropic(0.3, reference)
    mu, target = random_gaussian(seed, dim), random_gaussian(seed + 1, dim)
    R = torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed)))[0]
    b = torch.arange(1.0, dim + 1)

    def turn(g: Gaussian) -> Gaussian:
        return Gaussian(R @ g.mean + b, conjugate(R, g.cov))

    expected, actual = turn(prox(KL(target), mu, tau, metric)), prox(KL(turn(target)), turn(mu), tau, metric)
    close(actual.cov, expected.cov)
    close(actual.mean, expected.mean)


@given(seeds, dims, taus, st.sampled_from((None, *REFERENCES)))
def test_a_metric_q_is_a_change_of_variables(seed: int, dim: int, tau: float, reference: str | None):
    mu, target, Q = (random_gaussian(seed + k, dim) for k in range(3))
    L = sqrtm(Q.cov)  # any root of Q; the solver takes Cholesky's
    base = Wasserstein(Q.cov)
    metric, plain = (base, W2) if reference is None else (Entropic(0.3, reference, base), Entropic(0.3, reference))

    def whitened(g: Gaussian) -> Gaussian:
        return Gaussian(torch.linalg.solve(L, g.mean), conjugate(L.inverse(), g.cov))

    nu, stats = Bures()(KL(target), metric, mu, tau)
    inner = Bures()(KL(whitened(target)), plain, whitened(mu), tau)
    close(nu.mean, L @ inner.mu.mean, 1e-8)
    close(nu.cov, conjugate(L, inner.mu.cov), 1e-8)
    jacobian = 2 * 0.3 * torch.linalg.slogdet(L).logabsdet if reference == "lebesgue" else 0.0  # ∫π log π in x, not z
    close(stats.distance2, inner.stats.distance2 - jacobian, 1e-8)


def test_moving_metrics_are_resolved_over_the_step(gaussians):
    mu, F, C = Gaussian(gaussians.m0, gaussians.S0), KL(Gaussian(gaussians.mq, gaussians.Q)), gaussians.Q
    moving = Moving(lambda t: t**2 / 2 * C)
    expected = prox(F, mu, 0.5, Wasserstein(1.5 * C))
    close(prox(F, mu, 0.5, moving.over(1.0, 1.5)).cov, expected.cov, 1e-14)
    entropic = Entropic(0.1, "product", moving)
    close(
        prox(F, mu, 0.5, entropic.over(1.0, 1.5)).cov,
        prox(F, mu, 0.5, Entropic(0.1, "product", Wasserstein(1.5 * C))).cov,
    )
    for metric in (moving, entropic):
        assert "over(t0, t1)" in Bures().supports(F, metric, mu)


@given(seeds, dims, taus)
def test_the_map_carries_old_to_new(seed: int, dim: int, tau: float):
    mu, target, Q = (random_gaussian(seed + k, dim) for k in range(3))
    for F in (KL(target), Entropy(), Potential(Quadratic(target.mean, cov=target.cov))):
        for metric in (W2, Wasserstein(Q.cov)):
            nu, stats = Bures()(F, metric, mu, tau)
            image = mu.push(stats.map)
            close(image.mean, nu.mean, 1e-8)
            close(image.cov, nu.cov, 1e-8)
            # its matrix is symmetric in the metric, so it is a gradient, and its cost is the distance
            step = mu.with_state(mean=mu.mean).expect(lambda x: _cost(stats.map(x) - x, metric))  # noqa: B023
            close(step, stats.distance2, 1e-8)


def _cost(z: Tensor, metric: Wasserstein) -> Tensor:
    return (z * (z if metric.Q is None else torch.linalg.solve(metric.Q, z.mT).mT)).sum(-1)


# What it accepts


def test_a_callable_that_is_quadratic_is_found_out(gaussians):
    mq, Q = gaussians.mq, gaussians.Q
    mu, P = Gaussian(gaussians.m0, gaussians.S0), Q.inverse()
    expected = prox(KL(Gaussian(mq, Q)), mu, 0.3)
    for V in (
        lambda x: 0.5 * ((x - mq) @ P * (x - mq)).sum(-1),
        lambda x: -torch.distributions.MultivariateNormal(mq, Q).log_prob(x),
    ):
        nu = prox(KL(V), mu, 0.3)
        close(nu.cov, expected.cov, 1e-11)
        close(nu.mean, expected.mean, 1e-11)
        assert not nu.cov.requires_grad
        assert isinstance(choose(KL(V), W2, mu), Bures)


def test_linear_and_constant_terms():
    mu = Gaussian([1.0, 2.0], torch.eye(2))
    nu = prox(Potential(lambda x: 3 * x[..., 0] - x[..., 1]) + Entropy(), mu, 0.1)
    close(nu.mean, [0.7, 2.1], 1e-14)
    close(nu.cov, prox(Entropy(), mu, 0.1).cov, 1e-14)


@pytest.mark.parametrize(
    "V",
    [
        lambda x: (x**2 - 1).square().sum(-1),
        lambda x: x.abs().sum(-1),
        lambda x: 0.5 * x.square().sum(-1) + 1e-5 * torch.cos(x).sum(-1),
        lambda x: torch.log1p(x.square().sum(-1)),
    ],
)
def test_other_potentials_are_declined_in_words(V: Callable):
    mu = Gaussian([0.3], [[1.0]])
    reason = Bures().supports(KL(V), W2, mu)
    assert "Forward(Potential(V)) >> Backward(Entropy())" in reason
    with pytest.raises(TypeError, match="Quadratic"):
        prox(KL(V), mu, 0.1)


@pytest.mark.parametrize(
    ("F", "words"),
    [
        (PorousMedium(2.0), "PorousMedium"),
        (-1.0 * Entropy(), "must not be negative"),
        (Potential(Quadratic([0.0, 0.0])), "dimension 2"),
        (Potential(Quadratic(torch.zeros(1, dtype=torch.float32))), "float32"),
        (Potential(lambda x: torch.zeros(x.shape[:-1])), "not differentiable"),
    ],
)
def test_other_functionals_are_declined_in_words(F: Functional, words: str):
    assert words in Bures().supports(F, W2, normal(1.0))


def test_other_measures_are_declined_in_words():
    assert "Particles" in Bures().supports(Entropy(), W2, Particles(torch.randn(4, 1)))


@pytest.mark.parametrize("metric", [W2, Entropic(0.1), Entropic(0.1, "debiased"), Wasserstein(4 * torch.eye(2))])
def test_a_step_beyond_the_convexity_limit_is_refused(metric):
    """V = −¼x₁² + x₂²: λ = ½, in the metric Q = 4 it is 2."""
    F = Potential(Quadratic([0.0, 0.0], precision=[[-0.5, 0.0], [0.0, 2.0]])) + Entropy()
    mu, limit = Gaussian([1.0, 1.0], torch.eye(2)), 0.5 if getattr(metric, "Q", None) is not None else 2.0
    with pytest.raises(ValueError, match=f"limit 1/λ = {limit:g}"):
        prox(F, mu, limit, metric)
    nu = prox(F, mu, 0.95 * limit, metric)
    assert nu.mean[0] == pytest.approx(20.0)


def test_concave_potentials_below_the_limit_are_minimised():
    F, mu = Potential(Quadratic([0.0], precision=[[-0.5]])) + Entropy(), normal(1.0)
    nu = prox(F, mu, 1.0)
    values = [objective(F, W2, mu, normal(nu.cov.item() * s), 1.0) for s in (0.99, 1.0, 1.01)]
    assert values[1] < min(values[0], values[2])


@pytest.mark.parametrize("tau", [0.0, -1.0, math.nan])
def test_step_sizes_are_positive(tau: float):
    with pytest.raises(ValueError, match="tau must be positive"):
        prox(Entropy(), normal(1.0), tau)


# Batches, precision, gradients

METRICS = [W2, Wasserstein(upper(1.0, -0.4, 0.1, 0.8, 0.3, 1.5)), *(Entropic(0.3, r) for r in REFERENCES)]


@pytest.mark.parametrize("metric", METRICS, ids=lambda m: getattr(m, "reference", "w2"))
def test_a_batch_equals_single_runs(metric):
    mus, targets = random_gaussian(3, 3, 4), random_gaussian(4, 3, 4)
    nu, stats = Bures()(KL(targets), metric, mus, 0.3)
    for k in range(4):
        one = Bures()(KL(Gaussian(targets.mean[k], targets.cov[k])), metric, Gaussian(mus.mean[k], mus.cov[k]), 0.3)
        close(nu.cov[k], one.mu.cov, 1e-12)
        close(nu.mean[k], one.mu.mean, 1e-12)
        close(stats.objective[k], one.stats.objective, 1e-10)
        assert stats.iterations[k] == one.stats.iterations
    shared = Bures()(KL(targets), metric, Gaussian(mus.mean[0], mus.cov[0]), 0.3)  # one measure, many targets
    assert shared.mu.batch == (4,)
    close(shared.mu.cov[0], nu.cov[0], 1e-12)
    assert shared.stats.distance2.shape == shared.stats.converged.shape == (4,)


@pytest.mark.parametrize(
    "metric", [W2, *(Entropic(0.3, r) for r in REFERENCES)], ids=lambda m: getattr(m, "reference", "w2")
)
def test_float32(metric):
    mu, target = random_gaussian(3, 3, 2), random_gaussian(4, 3, 2)
    nu, stats = Bures()(
        KL(Gaussian(target.mean.float(), target.cov.float())), metric, Gaussian(mu.mean.float(), mu.cov.float()), 0.3
    )
    assert nu.cov.dtype == nu.mean.dtype == stats.distance2.dtype == torch.float32
    assert bool(stats.converged.all())
    close(nu.cov.double(), prox(KL(target), mu, 0.3, metric).cov, 1e-4)


def symmetric(A: Tensor) -> Tensor:
    return (A + A.mT) / 2


@pytest.mark.parametrize("metric", METRICS, ids=lambda m: getattr(m, "reference", "w2"))
@pytest.mark.parametrize("case", ["repeated", "distinct"])
def test_gradients_match_finite_differences(metric, case: str, gaussians):
    cov = torch.eye(3) if case == "repeated" else gaussians.S0
    target = 2 * torch.eye(3) if case == "repeated" else gaussians.Q

    def step(m: Tensor, S: Tensor, mt: Tensor, T: Tensor) -> tuple[Tensor, ...]:
        nu, stats = Bures(tolerance=1e-13)(KL(Gaussian(mt, symmetric(T))), metric, Gaussian(m, symmetric(S)), 0.3)
        return nu.mean, nu.cov, stats.objective, stats.distance2

    inputs = [x.clone().requires_grad_() for x in (gaussians.m0, cov, gaussians.mq, target)]
    assert torch.autograd.gradcheck(step, inputs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("F", [Entropy(), Potential(Quadratic([1.0, 0.0], precision=[[1.0, 0.5], [0.5, 2.0]]))])
def test_gradients_of_single_terms(F: Functional):
    def step(m: Tensor, S: Tensor, Q: Tensor) -> tuple[Tensor, ...]:
        nu, stats = Bures()(F, Wasserstein(symmetric(Q)), Gaussian(m, symmetric(S)), 0.5)
        return nu.cov, stats.distance2, stats.map(torch.ones(1, 2))

    inputs = [
        x.requires_grad_() for x in (torch.tensor([1.0, -1.0]), torch.eye(2), torch.diag(torch.tensor([1.0, 2.0])))
    ]
    assert torch.autograd.gradcheck(step, inputs)


def test_gradients_reach_the_parameters_of_a_callable():
    def step(a: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        nu = prox(KL(lambda x: a * (x - 1).square().sum(-1)), Gaussian(m, torch.eye(2)), 0.3)
        return nu.mean, nu.cov

    assert torch.autograd.gradcheck(step, (torch.tensor(0.7, requires_grad=True), torch.zeros(2, requires_grad=True)))


def test_the_gradient_of_the_moreau_envelope():
    """∂/∂m of min F + W2²/2τ is (m − m')/τ."""
    m = torch.tensor([2.0, -1.0], requires_grad=True)
    nu, stats = Bures()(KL(random_gaussian(0, 2)), W2, Gaussian(m, torch.eye(2)), 0.4)
    stats.objective.backward()
    close(m.grad, ((m - nu.mean) / 0.4).detach(), 1e-12)


def test_one_eigendecomposition_and_at_most_four_products():
    """What a forward-backward step costs at any dimension."""
    from torch.utils._python_dispatch import TorchDispatchMode

    calls: dict[str, int] = {}

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            name = func.overloadpacket.__name__
            size = max((a.numel() for a in args if isinstance(a, Tensor)), default=0)
            if size == 400 and (name != "mm" or args[1].shape == (20, 20)):
                calls[name] = calls.get(name, 0) + 1
            return func(*args, **(kwargs or {}))

    mu, V = random_gaussian(0, 20), Potential(Quadratic.of(random_gaussian(1, 20)))
    with torch.no_grad(), Count():
        prox(Entropy(), mu.move(W2.descent(V, mu), 0.01), 0.01)
    assert calls["_linalg_eigh"] == 1
    assert calls.get("mm", 0) + calls.get("bmm", 0) <= 4
    assert "linalg_solve_triangular" not in calls
    assert not calls.keys() & {"_linalg_svd", "linalg_eig", "linalg_inv_ex"}


@pytest.mark.parametrize("seed", range(6))
def test_the_debiased_step_converges_in_float32(seed: int):
    x = torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(seed))
    mu = Gaussian(torch.zeros(3, 2), x @ x.mT + 0.3 * torch.eye(2))
    step = ox.Backward(KL(Quadratic(torch.zeros(2))), Entropic(0.2, "debiased"))
    want = step(mu, 0.0, 0.2).mu.cov
    single = Gaussian(mu.mean.float(), mu.cov.float())
    got = ox.Backward(KL(Quadratic(torch.zeros(2).float())), Entropic(0.2, "debiased"))(single, 0.0, 0.2)
    assert got.stats.converged.all()
    torch.testing.assert_close(got.mu.cov.double(), want, rtol=2e-5, atol=2e-5)


def test_a_potential_that_is_nan_is_said_to_be():
    reason = Bures().supports(KL(lambda x: x.sum(-1) * math.nan), Wasserstein(), Gaussian([0.0], [[1.0]]))
    assert reason is not None and "NaN" in reason


@pytest.mark.parametrize("tau", [0.0, -1.0, math.inf, math.nan])
def test_a_step_size_that_is_not_positive_and_finite_is_refused(tau: float):
    F, mu = KL(Quadratic([0.0])), Gaussian([0.0], [[1.0]])
    cases = [
        (ox.solvers.Bures(), F, Wasserstein(), mu),
        (ox.solvers.Quantile(), F, Wasserstein(), ox.Quantiles.of(mu, 10)),
        (ox.solvers.Convex(), F, Wasserstein(), ox.Quantiles.of(mu, 10)),
        (ox.solvers.Scaling(), F, Entropic(0.1), mu.to_density(ox.Grid(-5, 5, 20))),
        (ox.solvers.Descent(), Potential(Quadratic([0.0])), Wasserstein(), Particles([[0.0], [1.0]])),
        (ox.solvers.GaussianMap(), F, Wasserstein(), Particles([[0.0], [1.0]])),
    ]
    for solver, functional, metric, measure in cases:
        with pytest.raises(ValueError, match="tau must be positive and finite"):
            solver(functional, metric, measure, tau)
