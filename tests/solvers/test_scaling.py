"""Scaling: Gaussian closed forms, a convex program and dense plans as independent routes, kernels at small reg."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import otprox as ox
from otprox import (
    KL,
    Density,
    Entropic,
    Entropy,
    Gaussian,
    Grid,
    Interaction,
    Particles,
    PorousMedium,
    Potential,
    Wasserstein,
)
from otprox.solvers import ConvergenceError, ConvergenceWarning, Scaling, choose, separable
from otprox.solvers.anderson import Anderson
from otprox.solvers.separable import SeparableKernel, log_gibbs

REFERENCES = ("lebesgue", "product", "debiased")
LINE = Grid(-10.0, 10.0, 901)
PRECISE = Scaling(tol=1e-11, on_failure="raise")


def normal(mean: float, var: float, grid: Grid = LINE) -> Density:
    x = grid.points(torch.zeros(1))
    values = torch.exp(-(x - mean).square().sum(-1) / (2 * var))
    return Density((values / (values.sum() * grid.volume)).reshape(grid.shape), grid)


def moments(mu: Density) -> tuple[float, float]:
    mean = mu.expect(lambda x: x[..., 0])
    return mean.item(), (mu.expect(lambda x: x[..., 0].square()) - mean.square()).item()


# ------------------------------------------------------------------------------------------------ Gaussian closed forms


def entropic_variance(b: float, q: float, tau: float, eps: float, reference: str, theta: float = 1.0) -> float:
    """One step from variance b for θ·Ent + ∫x²/2q (q = ∞: no potential), from the stationarity of OT between Gaussians.

    Biased references: X² − (M + 2t + ε/2)X + t(t + ε/2) = 0 with A = 1 + τ/q, M = b/A, variance X/A, t = τθ
    ("lebesgue") or τθ − ε/2 ("product"). Debiased: √(4a² + ε²/4) − √(4ab + ε²/4) = 2τ(θ − a/q), by bisection.
    """
    if reference != "debiased":
        A, t = 1 + tau / q, tau * theta - (eps / 2 if reference == "product" else 0.0)
        p = b / A + 2 * t + eps / 2
        return (p + math.sqrt(p * p - 4 * t * (t + eps / 2))) / 2 / A
    low, high = 1e-9, 1e3
    for _ in range(200):
        a = (low + high) / 2
        gap = math.sqrt(4 * a * a + eps**2 / 4) - math.sqrt(4 * a * b + eps**2 / 4) - 2 * tau * (theta - a / q)
        low, high = (low, a) if gap > 0 else (a, high)
    return (low + high) / 2


def fixed_variance(q: float, tau: float, eps: float, reference: str) -> float:
    """a(T² − 1) = εT/2, T = 1 + τ/q − t/a, by bisection; q itself when debiased."""
    if reference == "debiased":
        return q
    t, low, high = tau - (eps / 2 if reference == "product" else 0.0), 0.3 * q, 10 * q
    for _ in range(200):
        a = (low + high) / 2
        T = 1 + tau / q - t / a
        low, high = (low, a) if a * (T * T - 1) > eps * T / 2 else (a, high)
    return (low + high) / 2


@pytest.mark.parametrize(
    ("reference", "tau", "eps", "variance"),
    [
        ("lebesgue", 0.3, 0.2, 1.1769056470),
        ("product", 0.3, 0.2, 1.0638220397),
        ("debiased", 0.3, 0.2, 1.1195982824),
        ("lebesgue", 0.3, 0.05, 1.1340097342),
        ("product", 0.3, 0.05, 1.1057282393),
        ("lebesgue", 1.0, 0.5, 0.8839547539),
        ("product", 1.0, 0.5, 0.7557591032),
    ],
)
def test_one_step_by_numbers(reference: str, tau: float, eps: float, variance: float):
    """From N(0, 1.7) towards N(0, 0.6)."""
    assert entropic_variance(1.7, 0.6, tau, eps, reference) == pytest.approx(variance, abs=6e-11)
    nu, stats = PRECISE(KL(Gaussian([0.0], [[0.6]])), Entropic(eps, reference), normal(0.0, 1.7), tau)
    assert moments(nu)[1] == pytest.approx(variance, abs=5e-10)
    assert stats.converged and stats.residual <= 1e-11


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize(
    ("mean", "var", "target", "q", "tau", "eps", "theta"),
    [(1.0, 0.8, -0.5, 1.3, 0.7, 0.3, 1.0), (-1.5, 0.5, 1.0, 0.9, 0.2, 0.1, 0.5), (0.4, 1.2, 0.0, 0.4, 2.0, 1.0, 2.0)],
)
def test_one_step_at_other_parameters(
    reference: str, mean: float, var: float, target: float, q: float, tau: float, eps: float, theta: float
):
    F = theta * Entropy() + Potential(lambda x: (x[..., 0] - target).square() / (2 * q))
    nu, _ = PRECISE(F, Entropic(eps, reference), normal(mean, var), tau)
    m, v = moments(nu)
    assert m == pytest.approx((mean + tau / q * target) / (1 + tau / q), abs=2e-8)
    assert v == pytest.approx(entropic_variance(var, q, tau, eps, reference, theta), abs=2e-8)


def test_a_metric_scales_the_line():
    """Cost z²/Q is the standard one in z/√Q."""
    Q, tau, eps = 0.5, 0.4, 0.3
    F = KL(lambda x: x[..., 0].square() / 1.4)
    nu, _ = PRECISE(F, Entropic(eps, "product", Wasserstein(torch.tensor([[Q]]))), normal(0.0, 1.2), tau)
    assert moments(nu)[1] / Q == pytest.approx(entropic_variance(1.2 / Q, 0.7 / Q, tau, eps, "product"), abs=1e-8)


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize(("tau", "eps"), [(0.1, 0.01), (0.1, 0.1), (0.5, 0.1)])
def test_fixed_points(reference: str, tau: float, eps: float):
    known = {
        ("lebesgue", 0.1, 0.01): 1.025030486853,
        ("lebesgue", 0.1, 0.1): 1.252494771935,
        ("lebesgue", 0.5, 0.1): 1.050594816896,
        ("product", 0.1, 0.01): 0.975032050176,
        ("product", 0.1, 0.1): 0.754142640607,
        ("product", 0.5, 0.1): 0.950657326213,
    }
    variance = fixed_variance(1.0, tau, eps, reference)
    assert variance == pytest.approx(known.get((reference, tau, eps), 1.0), abs=1e-12)
    mu = normal(0.0, variance)
    nu, _ = PRECISE(KL(Gaussian([0.0], [[1.0]])), Entropic(eps, reference), mu, tau)
    assert moments(nu)[1] == pytest.approx(variance, abs=1e-9)
    assert (nu.values - mu.values).abs().sum() * LINE.volume < 1e-7


@pytest.mark.parametrize("reference", REFERENCES)
def test_bias_of_a_target_that_is_no_gaussian(reference: str):
    """debiased leaves exp(−V) in place to the tolerance; the others widen or narrow it by about reg/4τ, on any grid."""
    grid, reg, tau = Grid((-1.6, -1.6), (1.6, 1.6), (32, 32)), 0.08, 0.2

    def V(x: Tensor) -> Tensor:
        return 3 * (x.square() - 0.5).square().sum(-1) + 0.4 * x.sum(-1)

    pi = Density(torch.softmax(-V(grid.points(torch.zeros(1))), -1).reshape(32, 32) / grid.volume, grid)
    nu, stats = Scaling(tol=1e-9)(KL(V), Entropic(reg, reference), pi, tau)
    off = (nu.values - pi.values).abs().sum().item() * grid.volume
    # Ent(ν) − Ent(π): blurred by lebesgue, sharpened by product
    change = (Entropy()(nu) - Entropy()(pi)).item()
    if reference == "debiased":
        assert off < 1e-6
        assert abs(stats.distance2.item()) < 1e-9
    else:
        assert off > 0.01 and (change < -1e-3 if reference == "lebesgue" else change > 1e-3)


def test_as_the_step_shrinks_at_fixed_reg():
    """Variance of an Ornstein–Uhlenbeck flow by closed forms: bias ±reg/4τ, and a floor of O(reg²) for debiased."""
    from otprox.exact.gaussian import debiased_speed, prox_kl_entropic

    start, target, T = Gaussian([0.0], [[0.4]]), Gaussian([0.0], [[1.0]]), 0.5

    def variance(n: int, reg: float, reference: str) -> float:
        mu = start
        for _ in range(n):
            mu = prox_kl_entropic(mu, target, T / n, reg, reference)
        return mu.cov.item()

    def limit(reg: float, n: int = 2000) -> float:
        """da/dt = 2(1 − a)·debiased_speed(a) by the midpoint rule."""
        a = 0.4
        for _ in range(n):
            middle = a + T / n * (1 - a) * debiased_speed(a, reg)
            a = a + 2 * T / n * (1 - middle) * debiased_speed(middle, reg)
        return a

    exact = 1 - 0.6 * math.exp(-2 * T)
    assert limit(0.0) == pytest.approx(exact, abs=1e-6)
    gaps = [abs(variance(n, 0.5, "debiased") - limit(0.5)) for n in (40, 80)]
    assert gaps[0] / gaps[1] == pytest.approx(2.0, abs=0.1)  # first order to its own limit
    floors = [limit(reg) - exact for reg in (0.2, 0.1)]
    assert floors[0] / floors[1] == pytest.approx(4.0, abs=0.1) and floors[1] > 1e-5
    wide = [variance(n, 0.1, "lebesgue") - exact for n in (40, 80)]
    assert wide[1] / wide[0] == pytest.approx(2.0, abs=0.3) and wide[0] > 0.5


def test_without_energy_lebesgue_blurs_product_sharpens_debiased_stays():
    nothing, mu, eps = Potential(lambda x: 0 * x[..., 0]), normal(0.2, 1.0), 0.4
    assert moments(PRECISE(nothing, Entropic(eps), mu, 1.0)[0])[1] == pytest.approx(1 + eps / 2, abs=1e-9)
    # deconvolution is ill-posed: a marginal error tol leaves a larger error in ν
    sharp, _ = Scaling(tol=1e-7)(nothing, Entropic(eps, "product"), mu, 1.0)
    assert moments(sharp)[1] == pytest.approx(1 - eps / 2, abs=1e-4)
    same, stats = Scaling(tol=1e-9)(nothing, Entropic(eps, "debiased"), mu, 1.0)
    assert moments(same)[1] == pytest.approx(1.0, abs=1e-5)
    assert abs(stats.distance2.item()) < 1e-9


@pytest.mark.parametrize("reference", REFERENCES)
def test_product_measures_factor(reference: str):
    """Separable V, diagonal Q, unequal axes: the 2-D step is the product of the 1-D steps."""
    first, second, tau, reg = Grid(-3.0, 3.0, 40), Grid(-4.0, 5.0, 51), 0.4, 0.3
    joint = Grid((-3.0, -4.0), (3.0, 5.0), (40, 51))
    a, b = normal(0.5, 0.6, first), normal(-0.5, 1.1, second)
    mu = Density(a.values[:, None] * b.values, joint)

    def step(V, Q: list[float], mu: Density) -> Density:
        base = Wasserstein(torch.diag(torch.tensor(Q)))
        return PRECISE(KL(V), Entropic(reg, reference, base), mu, tau).mu

    u = step(lambda x: x[..., 0] ** 4 / 4, [0.7], a)
    v = step(lambda x: x[..., 0].square(), [1.6], b)
    nu = step(lambda x: x[..., 0] ** 4 / 4 + x[..., 1].square(), [0.7, 1.6], mu)
    torch.testing.assert_close(nu.values, u.values[:, None] * v.values, rtol=1e-6, atol=1e-10)


def test_three_dimensions():
    grid = Grid((-3.0,) * 3, (3.0,) * 3, (24,) * 3)
    nu, _ = PRECISE(KL(Gaussian([0.0] * 3, torch.eye(3))), Entropic(0.5), normal(0.0, 0.3, grid), 0.2)
    line = Grid(-3.0, 3.0, 24)
    one, _ = PRECISE(KL(Gaussian([0.0], [[1.0]])), Entropic(0.5), normal(0.0, 0.3, line), 0.2)
    product = one.values[:, None, None] * one.values[:, None] * one.values
    torch.testing.assert_close(nu.values, product, rtol=1e-6, atol=1e-10)


# --------------------------------------------------------------------------------------------------- independent routes


def cost_matrix(grid: Grid) -> Tensor:
    x = grid.points(torch.zeros(1))
    return grid.displacement(x[:, None], x).square().sum(-1)


def dense_ot(a: Tensor, b: Tensor, grid: Grid, reg: float, reference: str) -> float:
    """OT of two densities by Sinkhorn's iteration on the dense log-kernel, evaluated from the plan."""
    C, h = cost_matrix(grid), grid.volume
    if reference == "debiased":
        return dense_ot(a, b, grid, reg, "product") - 0.5 * (
            dense_ot(a, a, grid, reg, "product") + dense_ot(b, b, grid, reg, "product")
        )
    f, g = torch.zeros_like(a), torch.zeros_like(b)
    for _ in range(5000):
        f = a.log() - torch.logsumexp(g - C / reg, 1) - math.log(h)
        g = b.log() - torch.logsumexp(f[:, None] - C / reg, 0) - math.log(h)
    log_plan = f[:, None] + g - C / reg
    weight = log_plan if reference == "lebesgue" else log_plan - a.log()[:, None] - b.log()
    return (log_plan.exp() * (C + reg * weight)).sum().item() * h * h


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("periodic", [False, True])
def test_distance_objective_and_energy_inequality(reference: str, periodic: bool):
    """F(ν) + OT(μ, ν)/2τ ≤ F(μ) + OT(μ, μ)/2τ, and OT against a dense computation."""
    grid, reg, tau = Grid(0.0, 1.0, 40, periodic), 0.02, 0.05
    x = grid.points(torch.zeros(1))[:, 0]
    values = 1.5 + torch.sin(2 * math.pi * x) + 0.3 * torch.cos(6 * math.pi * x)
    mu = Density(values / values.mean(), grid)
    F = 0.5 * Entropy() + Potential(lambda x: torch.cos(2 * math.pi * x[..., 0])) + 0.1 * PorousMedium(2.0)
    nu, stats = PRECISE(F, Entropic(reg, reference), mu, tau)
    assert stats.distance2.item() == pytest.approx(dense_ot(mu.values, nu.values, grid, reg, reference), abs=1e-9)
    assert stats.objective.item() == pytest.approx(F(nu).item() + stats.distance2.item() / (2 * tau), abs=1e-12)
    stay = F(mu).item() + dense_ot(mu.values, mu.values, grid, reg, reference) / (2 * tau)
    assert stats.objective.item() < stay - 1e-3
    # and it is a minimum: every mass-preserving perturbation is worse
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        bump = torch.randn(40, generator=generator) * nu.values
        bump = bump - bump.mean() * nu.values
        for size in (-0.05, 0.05):
            near = Density(nu.values + size * bump, grid)
            near_ot = dense_ot(mu.values, near.values, grid, reg, reference)
            assert F(near).item() + near_ot / (2 * tau) > stats.objective.item() + 1e-9


@pytest.mark.parametrize("reference", ["lebesgue", "product"])
@pytest.mark.parametrize("F", [KL(lambda x: 4 * x[..., 0]), 0.3 * PorousMedium(2.0)], ids=["KL", "m = 2"])
def test_against_a_convex_program_over_full_plans(reference: str, F):
    import cvxpy as cp
    import numpy as np

    n, reg, tau = 10, 0.1, 0.3
    grid = Grid(0.0, 1.0, n)
    mu, h, C = normal(0.3, 0.05, grid), grid.volume, cost_matrix(grid).numpy()
    plan = cp.Variable((n, n), nonneg=True)  # weights, h² times the density
    nu = cp.sum(plan, axis=0) / h
    prior = np.full((n, n), h * h) if reference == "lebesgue" else np.outer(mu.values.numpy() * h, np.ones(n) * h)
    transport = cp.sum(cp.multiply(C, plan)) + reg * cp.sum(cp.rel_entr(plan, prior))
    if reference == "product":  # KL(π | μ⊗ν) = KL(π | μ⊗dy) − ∫ν log ν, jointly convex as KL of π given its marginal
        columns = cp.multiply(
            np.outer(mu.values.numpy() * h, np.ones(n)), np.ones((n, 1)) @ cp.reshape(h * nu, (1, n), "C")
        )
        transport = cp.sum(cp.multiply(C, plan)) + reg * cp.sum(cp.rel_entr(plan, columns))
    if isinstance(F, KL):
        x = grid.points(torch.zeros(1))[:, 0].numpy()
        energy = h * (cp.sum(-cp.entr(nu)) + (4 * x) @ nu)
    else:
        energy = 0.3 * h * cp.sum_squares(nu)
    problem = cp.Problem(cp.Minimize(energy + transport / (2 * tau)), [cp.sum(plan, axis=1) == mu.values.numpy() * h])
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
    ours, stats = PRECISE(F, Entropic(reg, reference), mu, tau)
    assert stats.objective.item() == pytest.approx(problem.value, abs=1e-7)
    assert ours.values.numpy() == pytest.approx(nu.value, abs=1e-5)


def test_barenblatt_like_spreading_conserves_and_is_symmetric():
    grid = Grid((-1.0, -1.0), (1.0, 1.0), (48, 48))
    x = grid.points(torch.zeros(1))
    disk = (x.square().sum(-1) < 0.09).double().reshape(48, 48)
    mu = Density(disk / (disk.sum() * grid.volume), grid)
    nu, _ = Scaling(on_failure="raise")(0.01 * PorousMedium(2.0), Entropic(5e-3), mu, 0.5)
    assert nu.values.sum().item() * grid.volume == pytest.approx(1.0, abs=1e-13)
    assert (nu.values > 0).all()
    torch.testing.assert_close(nu.values, nu.values.flip(0))
    torch.testing.assert_close(nu.values, nu.values.T)


@pytest.mark.parametrize("reference", REFERENCES)
def test_periodic_steps_commute_with_translations(reference: str):
    grid = Grid((0.0, 0.0), (1.0, 2.0), (16, 20), periodic=(True, True))
    x = grid.points(torch.zeros(1))

    def V(y: Tensor, shift: float = 0.0) -> Tensor:
        return torch.cos(2 * math.pi * (y[..., 0] - shift)) + torch.sin(math.pi * y[..., 1])

    values = torch.exp(torch.sin(2 * math.pi * x[:, 0]) * torch.cos(math.pi * x[:, 1])).reshape(16, 20)
    values = values / (values.sum() * grid.volume)
    metric = Entropic(0.05, reference)
    nu, _ = PRECISE(KL(V), metric, Density(values, grid), 0.1)
    moved, _ = PRECISE(KL(lambda y: V(y, 5 / 16)), metric, Density(values.roll(5, 0), grid), 0.1)
    torch.testing.assert_close(moved.values, nu.values.roll(5, 0), rtol=1e-8, atol=1e-9)


# --------------------------------------------------------------------------------------------------- kernels, small reg


def dense_log_apply(grid: Grid, mobility: list[float], reg: float, f: Tensor) -> Tensor:
    for axis, (n, length, wraps, q) in enumerate(zip(grid.shape, grid.period, grid.periodic, mobility, strict=True)):
        log_kernel = log_gibbs(n, length, wraps, q * reg)
        lines = f.double().movedim(1 + axis, -1)
        f = torch.logsumexp(lines[..., None, :] + log_kernel, -1).movedim(-1, 1 + axis)
    return f


@settings(max_examples=40)
@given(
    reg=st.floats(1e-6, 10.0),
    spread=st.floats(0.0, 2000.0),
    periodic=st.booleans(),
    holes=st.booleans(),
    seed=st.integers(0, 1000),
    double=st.booleans(),
)
def test_kernel_is_accurate_in_every_entry(
    reg: float, spread: float, periodic: bool, holes: bool, seed: int, double: bool
):
    """Relative accuracy of K eᶠ, far below the range of floating numbers, and below the square of a cell."""
    grid = Grid((0.0, -1.0), (1.0, 0.5), (23, 16), periodic)
    dtype = torch.float64 if double else torch.float32
    f = spread * torch.randn((2, 23, 16), generator=torch.Generator().manual_seed(seed)).to(dtype)
    if holes:
        f[0, 3:9], f[1, :, 5] = -torch.inf, -torch.inf
    kernel = SeparableKernel.on(grid, [0.7, 2.0], reg, f)
    value, expected = kernel.apply(f.flatten(-2)).unflatten(-1, grid.shape), dense_log_apply(grid, [0.7, 2.0], reg, f)
    assert value.dtype == dtype and torch.isfinite(value).all()
    scale = 10 + expected.abs() + f[torch.isfinite(f)].abs().max() + 4 / reg
    assert ((value.double() - expected).abs() <= 8 * torch.finfo(dtype).eps * scale).all()


def test_gibbs_kernel_on_a_circle_and_a_segment():
    grid = Grid(0.0, 3.0, 7, periodic=True)
    expected = torch.exp(-cost_matrix(grid) / 0.4) * grid.volume
    torch.testing.assert_close(log_gibbs(7, 3.0, True, 0.4).exp(), expected)
    grid = Grid(0.0, 3.0, 7)
    torch.testing.assert_close(log_gibbs(7, 3.0, False, 0.4).exp(), torch.exp(-cost_matrix(grid) / 0.4) * grid.volume)


@pytest.mark.parametrize("shape", [(48,), (32, 21), (8, 9, 10)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_fft_on_periodic_grids_and_its_fallback(shape: tuple[int, ...], dtype: torch.dtype, monkeypatch):
    """Equal to the matrices to rounding where sums are of one size; where they are not, it leaves them to those."""
    grid = Grid((0.0,) * len(shape), (1.0,) * len(shape), shape, True)
    monkeypatch.setattr(separable, "FFT", 1)
    g = torch.Generator().manual_seed(0)
    f = torch.randn(2, grid.n, generator=g).to(dtype)
    for reg, spread in ((0.5, 1.0), (0.02, 1.0), (0.02, 60.0)):
        kernel = SeparableKernel.on(grid, [1.0] * len(shape), reg, f)
        assert kernel.spectrum is not None
        exact = kernel.log_apply(spread * f)
        torch.testing.assert_close(
            kernel.apply(spread * f), exact, rtol=0, atol=2e-11 if dtype == torch.float64 else 2e-3
        )
    assert SeparableKernel.on(Grid(0.0, 1.0, 48), [1.0], 0.5, f).spectrum is None


def plan_marginals(mu: Density, stats, reg: float) -> tuple[Tensor, Tensor]:
    f, g = stats.potentials
    log_kernel = -cost_matrix(mu.grid).to(f) / reg + math.log(mu.grid.volume)
    first = (f / reg + torch.logsumexp(g[..., None, :] / reg + log_kernel, -1)).exp()
    second = (g / reg + torch.logsumexp(f[..., None, :] / reg + log_kernel, -1)).exp()
    return first, second


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("cells", [4.0, 1.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_marginals_at_reg_near_the_square_of_a_cell(reference: str, cells: float, dtype: torch.dtype):
    n = 24
    grid, reg = Grid((0.0, 0.0), (1.0, 1.0), (n, n)), cells / n**2
    mu = normal(0.35, 0.01, grid)
    mu = Density(mu.values.to(dtype), grid)
    solver = Scaling(tol=1e-6, on_failure="raise", max_iter=4000)
    nu, stats = solver(KL(lambda x: 20 * (x - 0.6).square().sum(-1)), Entropic(reg, reference), mu, 0.02)
    assert nu.values.dtype == dtype
    first, second = plan_marginals(mu, stats, reg)
    tolerance = 1e-11 if dtype == torch.float64 else 2e-3
    assert (first - mu.values.flatten()).abs().sum() * grid.volume < tolerance
    assert (second - nu.values.flatten()).abs().sum() * grid.volume < tolerance
    assert (nu.values > 0).all() or dtype == torch.float32  # e^−88 is 0 in float32
    assert nu.expect(lambda x: x[..., 0]).item() == pytest.approx((0.35 + 0.8 * 0.6) / 1.8, abs=0.03)


def test_float32_agrees_with_float64():
    grid = Grid((0.0, 0.0), (1.0, 1.0), (32, 32))
    mu, F, metric = normal(0.4, 0.02, grid), KL(lambda x: 10 * (x - 0.6).square().sum(-1)), Entropic(5e-3)
    double, _ = Scaling()(F, metric, mu, 0.05)
    single, stats = Scaling(on_failure="raise")(F, metric, Density(mu.values.float(), grid), 0.05)
    assert (single.values.double() - double.values).abs().sum() * grid.volume < 1e-4


# ----------------------------------------------------------------------------------------------------------- the solver


@pytest.mark.parametrize("reference", REFERENCES)
def test_a_batch_equals_single_runs_and_finished_items_freeze(reference: str):
    grid = Grid(-4.0, 4.0, 60)
    singles = [normal(0.0, 0.4, grid), normal(1.5, 0.1, grid), normal(-1.0, 1.0, grid)]
    batch = Density(torch.stack([mu.values for mu in singles]), grid)
    F, metric = KL(lambda x: x[..., 0] ** 4 / 4), Entropic(0.05, reference)
    together, stats = Scaling()(F, metric, batch, 0.3)
    assert len(set(stats.iterations.tolist())) > 1
    for k, mu in enumerate(singles):
        nu, one = Scaling()(F, metric, mu, 0.3)
        torch.testing.assert_close(together.values[k], nu.values, rtol=1e-6, atol=1e-9)
        assert abs(int(one.iterations) - int(stats.iterations[k])) <= 1
        torch.testing.assert_close(stats.objective[k], one.objective)


@pytest.mark.parametrize("reference", REFERENCES)
def test_mixing_changes_the_iterations_only(reference: str):
    F, metric, mu = KL(Gaussian([0.0], [[0.6]])), Entropic(0.1, reference), normal(1.0, 1.0, Grid(-5.0, 6.0, 200))
    plain, slow = Scaling(tol=1e-10, memory=0)(F, metric, mu, 0.5)
    mixed, fast = Scaling(tol=1e-10)(F, metric, mu, 0.5)
    torch.testing.assert_close(plain.values, mixed.values, rtol=0, atol=1e-8)
    assert 2 * fast.iterations < slow.iterations


@pytest.mark.parametrize("reference", REFERENCES)
def test_a_warm_start_saves_iterations(reference: str):
    F, metric, mu = KL(Gaussian([0.0], [[0.6]])), Entropic(0.1, reference), normal(0.5, 1.0)
    nu, cold = Scaling()(F, metric, mu, 0.2)
    again, warm = Scaling()(F, metric, mu, 0.2, cold)
    assert warm.iterations <= 3 < cold.iterations
    torch.testing.assert_close(again.values, nu.values, rtol=0, atol=1e-7)


def test_sharp_data_and_weak_energy_find_the_minimum_where_nothing_was():
    """Multiplicative iterations must fill cells where μ = 0: stationary on too small a set is not converged."""
    grid = Grid((0.0, 0.0), (1.0, 1.0), (32, 32))
    x = grid.points(torch.zeros(1))
    disk = ((x - 0.3).square().sum(-1) < 0.04).double().reshape(32, 32)
    disk = disk / (disk.sum() * grid.volume)
    F = Potential(lambda x: 4 * (x - 0.6).square().sum(-1)) + 0.005 * PorousMedium(3.0)
    metric, solver = Entropic(4e-3, "debiased"), Scaling(tol=1e-5)
    _, stats = solver(F, metric, Density(disk, grid), 0.01)
    _, full = solver(F, metric, Density(disk * (1 - 1e-9) + 1e-9, grid), 0.01)
    assert stats.objective.item() == pytest.approx(full.objective.item(), abs=2e-4)


def test_steps_compose():
    """Backward chooses Scaling, hands the potentials on, and every step lowers F up to the bias of the metric."""
    mu, F = normal(1.0, 0.3, Grid(-8.0, 8.0, 240)), KL(Gaussian([0.0], [[1.0]]))
    assert isinstance(choose(F, Entropic(0.05, "debiased"), mu), Scaling)
    step = ox.Backward(F, Entropic(0.05, "debiased"))
    energy, out = F(mu), None
    for k in range(6):
        out = step(mu, 0.2 * k, 0.2 * (k + 1), None if out is None else out.stats)
        mu = out.mu
        assert F(mu) < energy
        energy = F(mu)
    expected, variance = 1.0 / 1.2**6, 0.3
    for _ in range(6):
        variance = entropic_variance(variance, 1.0, 0.2, 0.05, "debiased")
    assert moments(mu) == pytest.approx((expected, variance), abs=1e-4)


def test_moving_metrics_are_taken_over_the_step():
    base = ox.Moving(lambda t: t * t, rate=lambda t: 2 * t)
    mu, F = normal(0.0, 1.0), KL(Gaussian([0.0], [[0.5]]))
    out = ox.Backward(F, Entropic(0.2, base=base), PRECISE)(mu, 0.2, 0.5)  # Ċ = 1 at the end
    assert moments(out.mu)[1] == pytest.approx(entropic_variance(1.0, 0.5, 0.3, 0.2, "lebesgue"), abs=1e-9)
    assert "over" in Scaling().supports(F, Entropic(0.2, base=base), mu)


def test_not_converging_is_said():
    mu, F, metric = normal(0.5, 1.0), KL(Gaussian([0.0], [[0.6]])), Entropic(0.01)
    with pytest.warns(ConvergenceWarning, match="marginal error"):
        nu, stats = Scaling(max_iter=3)(F, metric, mu, 0.2)
    assert not stats.converged and stats.residual > 1e-8
    assert nu.values.sum().item() * LINE.volume == pytest.approx(1.0, abs=1e-12)
    with pytest.raises(ConvergenceError, match="larger reg"):
        Scaling(max_iter=3, on_failure="raise")(F, metric, mu, 0.2)


@pytest.mark.parametrize(
    ("F", "metric", "mu", "reason"),
    [
        (Entropy(), Wasserstein(), normal(0, 1), "not Wasserstein"),
        (Entropy(), Entropic(0.1), Gaussian([0.0], [[1.0]]), "not on Gaussian"),
        (
            Entropy() + ox.Blob(0.5),
            Entropic(0.1),
            normal(0, 1),
            "Blob has no KL prox",
        ),
        (
            Entropy(),
            Entropic(0.1, base=Wasserstein(torch.tensor([[1.0, 0.5], [0.5, 1.0]]))),
            normal(0, 1, Grid((-4, -4), (4, 4), (8, 8))),
            "one diagonal matrix",
        ),
    ],
)
def test_declines_in_words(F, metric, mu, reason: str):
    assert reason in Scaling().supports(F, metric, mu)
    with pytest.raises(TypeError, match="declines"):
        Scaling()(F, metric, mu, 0.1)


def test_bad_options_and_steps():
    with pytest.raises(ValueError, match="tol > 0"):
        Scaling(tol=0.0)
    with pytest.raises(ValueError, match="tau must be positive"):
        Scaling()(Entropy(), Entropic(0.1), normal(0, 1), 0.0)


def check_derivatives(value, rho: Tensor, bump: Tensor, **tolerance: float) -> None:
    """Of value(rho, shift) along `bump` and in the shift, at 0.55, by central differences."""
    rho, shift, h = rho.clone().requires_grad_(), torch.tensor(0.55, requires_grad=True), 1e-4
    in_rho, in_shift = torch.autograd.grad(value(rho, shift), (rho, shift))
    with torch.no_grad():
        along = (value(rho + h * bump, shift) - value(rho - h * bump, shift)) / (2 * h)
        across = (value(rho, shift + h) - value(rho, shift - h)) / (2 * h)
    assert (in_rho * bump).sum().item() == pytest.approx(along.item(), rel=1e-5, **tolerance)
    assert in_shift.item() == pytest.approx(across.item(), rel=1e-5)


@pytest.mark.parametrize("reference", REFERENCES)
def test_envelope_gradients_of_the_value(reference: str):
    """d/dε of min F(ν) + OT(μ, ν)/2τ, in μ along directions that keep its mass, and in the parameters of V."""
    grid = Grid(0.0, 1.0, 40)
    mu, metric, tau = normal(0.4, 0.03, grid), Entropic(0.02, reference), 0.05
    x = grid.points(torch.zeros(1))[:, 0]
    bump = torch.sin(7 * x) * mu.values
    bump = bump - bump.mean() * mu.values

    def value(rho: Tensor, shift: Tensor) -> Tensor:
        F = KL(lambda y: 10 * (y[..., 0] - shift).square()) + 0.1 * PorousMedium(2.0)
        return Scaling(tol=1e-12)(F, metric, mu.with_state(values=rho), tau).stats.objective

    check_derivatives(value, mu.values, bump, abs=1e-8)


@pytest.mark.parametrize("reference", ["lebesgue", "product"])
@pytest.mark.parametrize("periodic", [False, True])
def test_derivatives_of_the_minimiser(reference: str, periodic: bool):
    """By the implicit function theorem, against central differences in μ and in the parameters of V, in a batch."""
    grid, metric, tau = Grid(0.0, 1.0, 30, periodic), Entropic(0.02, reference), 0.05
    first, second = normal(0.4, 0.03, Grid(0.0, 1.0, 30)).values, normal(0.6, 0.05, Grid(0.0, 1.0, 30)).values
    mu = Density(torch.stack([first, second]), grid)
    x = grid.points(torch.zeros(1))[:, 0]
    bump = torch.sin(7 * x) * mu.values
    bump = bump - bump.mean(-1, keepdim=True) * mu.values
    test = torch.cos(3 * x) + x * torch.tensor([[1.0], [-2.0]])

    def value(rho: Tensor, shift: Tensor) -> Tensor:
        F = KL(lambda y: 8 * (y[..., 0] - shift).square()) + 0.2 * PorousMedium(2.0)
        nu = Scaling(tol=1e-12)(F, metric, mu.with_state(values=rho), tau).mu
        return (test * nu.values.square()).sum()

    check_derivatives(value, mu.values, bump, abs=1e-7)


def test_gradients_flow_through_several_steps():
    mu, x = normal(0.4, 0.03, Grid(0.0, 1.0, 30)), torch.tensor(0.7)

    def mean(shift: Tensor) -> Tensor:
        step = ox.Backward(KL(lambda y: 8 * (y[..., 0] - shift).square()), Entropic(0.02), PRECISE)
        nu = step(step(mu, 0.0, 0.05).mu, 0.05, 0.1).mu
        return nu.mean[0]

    shift = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(mean(shift), shift)
    assert slope.item() == pytest.approx(((mean(x + 1e-4) - mean(x - 1e-4)) / 2e-4).item(), rel=1e-5)


def test_what_has_no_derivative_is_a_constant():
    mu = normal(0.0, 1.0)
    mu = mu.with_state(values=mu.values.clone().requires_grad_())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nu, stats = Scaling()(Entropy(), Entropic(0.1, "debiased"), mu, 0.1)
    assert not nu.values.requires_grad and stats.objective.requires_grad


# ---------------------------------------------------------------------------------------------------- weights on points


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize(
    "F",
    [KL(lambda x: 20 * (x - 0.6).square().sum(-1)), PorousMedium(0.7) + Potential(lambda x: 9 * x.square().sum(-1))],
    ids=["KL", "fast diffusion"],
)
def test_points_at_the_centres_of_cells_are_the_grid(F, reference: str):
    grid = Grid((0.0, 0.0), (1.0, 1.0), (12, 12))
    centres = grid.points(torch.zeros(1))
    points = Particles.from_log_prob(lambda x: -20 * (x - 0.35).square().sum(-1), centres, grid.volume)
    cells = Density(points.log_density.exp().reshape(12, 12), grid)
    metric, solver = Entropic(2e-2, reference, Wasserstein(torch.diag(torch.tensor([0.8, 1.5])))), Scaling(tol=1e-9)
    on_cells, a = solver(F, metric, cells, 0.03)
    on_points, b = solver(F, metric, points, 0.03)
    torch.testing.assert_close(on_points.log_density.exp(), on_cells.values.flatten(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(on_points.volumes, points.volumes)
    assert on_points.w.sum().item() == pytest.approx(1.0, abs=1e-14) and (on_points.x == points.x).all()
    assert b.objective.item() == pytest.approx(a.objective.item(), abs=1e-9)
    assert b.distance2.item() == pytest.approx(a.distance2.item(), abs=1e-9)


def test_points_in_three_dimensions_with_any_metric():
    """A step of a Gaussian on quasi-random points: mean and covariance of the closed form, up to sampling."""
    from otprox.exact import entropic

    x = 6 * torch.quasirandom.SobolEngine(3, scramble=True, seed=0).draw(4096, dtype=torch.float64) - 3
    Q = torch.tensor([[1.0, 0.3, 0.0], [0.3, 0.8, 0.0], [0.0, 0.0, 1.2]])
    start, target = Gaussian([0.3, 0.0, -0.2], 0.3 * torch.eye(3)), Gaussian([0.0, 0.2, 0.0], 0.4 * torch.eye(3))
    mu = Particles.from_log_prob(start.log_prob, x, 6.0**3 / 4096)
    nu, stats = Scaling(tol=1e-6)(KL(target), Entropic(0.4, base=Wasserstein(Q)), mu, 0.2)
    expected = entropic.prox_kl_entropic(start, target, 0.2, 0.4, Q=Q)
    torch.testing.assert_close(nu.mean, expected.mean, rtol=0, atol=0.01)
    torch.testing.assert_close(nu.cov, expected.cov, rtol=0, atol=0.01)


@pytest.mark.parametrize("engine", ["dense", "tiled", "keops"])
def test_engines_agree(engine: str):
    if engine == "keops":
        pytest.importorskip("pykeops")
    x = torch.rand(300, 3, generator=torch.Generator().manual_seed(0))
    mu = Particles.from_log_prob(lambda x: -x.sum(-1), x, 1 / 300)
    expected = Scaling()(KL(lambda x: x.sum(-1)), Entropic(0.3), mu, 0.1)
    found = Scaling(engine=engine)(KL(lambda x: x.sum(-1)), Entropic(0.3), mu, 0.1)
    torch.testing.assert_close(found.mu.w, expected.mu.w, rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="engine must be"):
        Scaling(engine="gpu")(KL(lambda x: x.sum(-1)), Entropic(0.3), mu, 0.1)


def test_points_in_float32_and_in_batches():
    x = torch.rand(2, 200, 2, generator=torch.Generator().manual_seed(0))
    F, metric = KL(lambda x: 3 * x.sum(-1)), Entropic(0.2, "debiased")
    mu = Particles.from_log_prob(lambda x: -x.square().sum(-1), x, 1 / 200)
    both, _ = Scaling()(F, metric, mu, 0.1)
    single = Particles.from_log_prob(lambda x: -x.square().sum(-1), x[1].float(), 1 / 200)
    one, stats = Scaling(on_failure="raise")(F, metric, single, 0.1)
    assert one.w.dtype == torch.float32
    torch.testing.assert_close(one.w.double(), both.w[1], rtol=2e-3, atol=0)


def test_points_without_volumes_or_on_a_torus_are_declined():
    x = torch.rand(5, 2)
    F, metric = Entropy(), Entropic(0.1)
    assert "from_log_prob" in Scaling().supports(F, metric, Particles(x))
    on_torus = Particles(x, log_density=torch.zeros(5), domain=ox.Torus(1.0))
    assert "periodic Grid" in Scaling().supports(F, metric, on_torus)
    with pytest.raises(ValueError, match="2 particles have weight 0"):
        gone = Particles(x, torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0]) / 3, log_density=torch.zeros(5))
        Scaling()(F, metric, gone, 0.1)


@pytest.mark.parametrize("reference", REFERENCES)
def test_cells_without_mass_fill_up(reference: str):
    grid = Grid(0.0, 1.0, 50)
    mu = Density(torch.where(torch.arange(50) < 20, 2.5, 0.0), grid)
    nu, stats = Scaling(on_failure="raise")(
        KL(lambda x: 10 * (x[..., 0] - 0.8).square()), Entropic(0.01, reference), mu, 0.05
    )
    assert torch.isfinite(nu.values).all() and (nu.values > 1e-3).all()
    assert nu.mass.item() == pytest.approx(1.0, abs=1e-14)


def test_constraints_bound_the_density_or_are_impossible():
    grid = Grid(0.0, 1.0, 50)
    mu, metric = Density(torch.where(torch.arange(50) < 20, 2.5, 0.0), grid), Entropic(0.01)
    crowd = ox.Congestion(1.2) + Potential(lambda x: x[..., 0])
    nu, stats = Scaling(on_failure="raise")(crowd, metric, mu, 0.05)
    assert (nu.values <= 1.2 * (1 + 1e-6)).all() and (nu.values > 1.19).any() and torch.isfinite(stats.objective)
    room = ox.Obstacle(upper=lambda x: torch.where(x[..., 0] < 0.5, 3.0, 0.0)) + Entropy()
    inside = Scaling(on_failure="raise")(room, metric, mu, 0.05).mu.values
    assert inside[25:].sum() < 1e-6 < inside[24]
    with pytest.raises(ValueError, match="no density on this support satisfies Congestion"):
        Scaling()(ox.Congestion(0.5), metric, mu, 0.05)


def crowded_gap(mu: Density, nu: Density, V: Tensor, bound: float, reg: float, tau: float) -> tuple[float, float]:
    """∫V dν + S_reg(μ, ν)/2τ by dense Sinkhorn, and a bound of what it lacks of its minimum over ρ ≤ bound.

    For convex J, J(ν) − min J ≤ max over b of ⟨J'(ν), ν − b⟩ (Frank and Wolfe 1956); the best b fills the cells of
    least J' first.
    """
    x, volume = mu.points, mu.grid.volume
    log_k = -torch.cdist(x, x).square() / reg + math.log(volume)
    log_mu, log_nu = mu.log_prob().flatten(), nu.log_prob().flatten()

    def smooth(f: Tensor) -> Tensor:
        return torch.logsumexp(log_k + f, -1)

    log_v, c, d = torch.zeros_like(log_nu), log_mu / 2, log_nu / 2
    for _ in range(3000):
        log_u = log_mu - smooth(log_v)
        before, log_v = log_v, log_nu - smooth(log_u)
        if (log_v - before).abs().max() < 1e-11:
            break
    for _ in range(100):
        c, d = (c + log_mu - smooth(c)) / 2, (d + log_nu - smooth(d)) / 2
    m, n, slope = log_mu.exp() * volume, log_nu.exp() * volume, V + reg / (2 * tau) * (log_v - d)
    order, b = slope.argsort(), torch.full_like(n, bound * volume)
    b[order] = (1 - (b[order].cumsum(0) - b[order])).clamp(min=0).minimum(b[order])
    value = (n * V).sum() + reg / (2 * tau) * ((m * (log_u - c)).sum() + (n * (log_v - d)).sum())
    return value.item(), ((n - b) * slope).sum().item()


@pytest.mark.parametrize(("bound", "strength", "tau"), [(3.0, 9.0, 0.03), (2.0, 2.0, 0.03), (2.0, 9.0, 0.3)])
@pytest.mark.parametrize("on", ["cells", "points"])
@pytest.mark.filterwarnings("ignore::otprox.solvers.ConvergenceWarning")
def test_debiased_without_entropy_is_optimal_where_it_says_so(on: str, bound: float, strength: float, tau: float):
    """The last case is too hard for the loop: it may stop anywhere, but then must not be called converged."""
    grid = Grid((0.0, 0.0), (1.0, 1.0), (12, 12))
    centres = grid.points(torch.zeros(1))
    points = Particles.from_log_prob(lambda x: -20 * (x - 0.35).square().sum(-1), centres, grid.volume)
    cells = Density(points.log_density.exp().reshape(12, 12), grid)
    F = Potential(lambda x: strength * (x - 0.6).square().sum(-1)) + ox.Congestion(bound)
    solver, mu = Scaling(tol=1e-9, max_iter=500), cells if on == "cells" else points
    found, stats = solver(F, Entropic(2e-2, "debiased"), mu, tau)
    nu = found if on == "cells" else Density(found.log_density.exp().reshape(12, 12), grid)
    V = strength * (centres - 0.6).square().sum(-1)
    value, gap = crowded_gap(cells, nu, V, bound, 2e-2, tau)
    assert gap < 1e-7 or not stats.converged
    assert stats.converged or tau == 0.3
    if stats.converged:
        assert stats.objective.item() == pytest.approx(value, abs=1e-8)


@pytest.mark.filterwarnings("ignore::otprox.solvers.ConvergenceWarning")
def test_debiased_without_entropy_is_flat():
    """Two answers whose objectives agree to 1e-5 and whose densities do not; the solver says that it is not done."""
    grid = Grid(0.0, 1.0, 60)
    F = Potential(lambda x: 2 * (x[..., 0] - 0.7).square()) + ox.Congestion(4.2)
    metric, mu = Entropic(1e-2, "debiased"), normal(0.3, 0.01, grid)
    rough, _ = Scaling(tol=1e-4)(F, metric, mu, 0.05)
    with pytest.warns(ConvergenceWarning, match="add some Entropy"):
        fine, stats = Scaling(tol=1e-9, max_iter=600)(F, metric, mu, 0.05)
    V = 2 * (mu.points[..., 0] - 0.7).square()
    values = [crowded_gap(mu, nu, V, 4.2, 1e-2, 0.05)[0] for nu in (rough, fine)]
    assert not stats.converged
    assert abs(values[0] - values[1]) < 1e-5 and (rough.values - fine.values).abs().max() > 0.3


@pytest.mark.needs_cuda
@pytest.mark.parametrize("reference", REFERENCES)
def test_cuda_agrees_with_cpu(reference: str):
    grid = Grid((0.0, 0.0), (1.0, 1.0), (12, 12))
    points = Particles.from_log_prob(
        lambda x: -20 * (x - 0.35).square().sum(-1), grid.points(torch.zeros(1)), grid.volume
    )
    cells = Density(points.log_density.exp().reshape(12, 12), grid)
    F, metric = KL(lambda x: 20 * (x - 0.6).square().sum(-1)), Entropic(2e-2, reference)
    there = cells.with_state(values=cells.values.cuda())
    nu, stats = Scaling()(F, metric, there, 0.03)
    assert nu.values.is_cuda and stats.objective.is_cuda
    torch.testing.assert_close(nu.values.cpu(), Scaling()(F, metric, cells, 0.03).mu.values, rtol=1e-5, atol=1e-7)
    there = Particles(points.x.cuda(), points.w.cuda(), log_density=points.log_density.cuda())
    moved, stats = Scaling()(F, metric, there, 0.03)
    assert moved.w.is_cuda and stats.objective.is_cuda
    torch.testing.assert_close(moved.w.cpu(), Scaling()(F, metric, points, 0.03).mu.w, rtol=1e-5, atol=1e-9)


def test_a_reg_below_the_square_of_half_a_cell_is_refused():
    with pytest.raises(ValueError, match="the smallest usable"):
        Scaling()(Entropy(), Entropic(1e-5), normal(0.4, 0.03, Grid(0.0, 1.0, 50)), 0.1)


# ------------------------------------------------------------------------------------------------ Anderson acceleration


def test_anderson_solves_linear_equations_in_as_many_steps_as_dimensions():
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(5, 5, generator=generator)
    A = 0.9 * A / torch.linalg.matrix_norm(A, 2)
    b, x = torch.randn(5, generator=generator), torch.zeros(5)
    mixer = Anderson(5)
    for _ in range(6):
        x = mixer.extrapolate(x, A @ x + b, torch.ones(5), torch.tensor(False))
    torch.testing.assert_close(x, torch.linalg.solve(torch.eye(5) - A, b), rtol=0, atol=1e-6)


def test_anderson_forgets_item_by_item():
    mixer, one = Anderson(2), torch.ones(2, 3)
    generator = torch.Generator().manual_seed(0)
    points = [torch.randn(2, 3, generator=generator) for _ in range(4)]
    for x in points[:3]:
        mixer.extrapolate(x, x.sin(), one, torch.tensor([False, False]))
    x = points[3]
    out = mixer.extrapolate(x, x.sin(), one, torch.tensor([True, False]))
    torch.testing.assert_close(out[0], x[0].sin())
    assert not torch.allclose(out[1], x[1].sin())


# --------------------------------------------------------------------------------------------- energies that interact


@pytest.mark.parametrize("reference", REFERENCES)
def test_quadratic_interaction_is_a_potential_about_the_mean(reference: str):
    """½∬½|x − y|² = ½∫|x − m|² where the mean m does not move."""
    mu, metric, tau = normal(0.4, 0.8, Grid(-7.0, 7.0, 140)), Entropic(0.2, reference), 0.3
    attraction = Interaction(lambda z: 0.5 * z.square().sum(-1))
    nu, stats = Scaling()(0.5 * Entropy() + attraction, metric, mu, tau)
    potential = Potential(lambda x: 0.5 * (x[..., 0] - 0.4).square())
    expected, other = Scaling()(0.5 * Entropy() + potential, metric, mu, tau)
    torch.testing.assert_close(nu.values, expected.values, rtol=0, atol=1e-6)
    assert stats.objective.item() == pytest.approx(other.objective.item(), abs=1e-8)
    assert moments(nu)[1] == pytest.approx(entropic_variance(0.8, 1.0, tau, 0.2, reference, 0.5), abs=1e-6)


@pytest.mark.parametrize(("reference", "strength"), [("lebesgue", 40.0), ("debiased", 1.0)])
def test_repulsion_is_minimised_by_majorants(reference: str, strength: float):
    """Repulsion, weak and so strong that plain linearisation overshoots: a minimum, below every neighbour."""
    grid, reg, tau = Grid(0.0, 1.0, 40), 0.03, 0.1
    mu = normal(0.45, 0.02, grid)
    F = 0.1 * Entropy() + strength * Interaction(lambda z: torch.exp(-z.square().sum(-1) / 0.02))
    nu, stats = Scaling(tol=1e-7)(F, Entropic(reg, reference), mu, tau)
    assert stats.converged and stats.residual <= 1e-7
    stay = F(mu).item() + dense_ot(mu.values, mu.values, grid, reg, reference) / (2 * tau)
    assert stats.objective.item() < stay
    bump = torch.randn(40, generator=torch.Generator().manual_seed(1)) * nu.values
    bump = bump - bump.mean() * nu.values
    for size in (-0.02, 0.02):
        near = Density(nu.values + size * bump, grid)
        value = F(near).item() + dense_ot(mu.values, near.values, grid, reg, reference) / (2 * tau)
        assert value > stats.objective.item() + 1e-9


def test_potentials_that_diverge_are_not_excused_by_their_rounding():
    """A floor with the reference "product": the loop multiplies where nothing holds it, and must say so."""
    mu = Gaussian([0.0], [[0.2]]).to_density(Grid(-4.0, 4.0, 100))
    F = Potential(lambda x: x.square().sum(-1) / 2) + ox.Obstacle(lower=0.01, upper=0.6)
    with pytest.warns(ConvergenceWarning, match="or the reference 'lebesgue'"):
        stats = ox.Backward(F, Entropic(0.03, "product"), Scaling(max_iter=200))(mu, 0.0, 0.1).stats
    assert not stats.converged and stats.residual > 1e-2
    assert ox.Backward(F, Entropic(0.03))(mu, 0.0, 0.1).stats.converged
