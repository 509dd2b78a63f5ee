"""Convex programs: closed forms, an independent linear program, compilation once, and statuses never silent."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
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
    Moving,
    Particles,
    PorousMedium,
    Potential,
    Quadratic,
    Quantiles,
    Wasserstein,
)
from otprox.exact.proximal import prox_entropy
from otprox.functionals import Functional
from otprox.functionals.atom import Atom, NotConvex
from otprox.solvers import ConvergenceError, ConvergenceWarning
from otprox.solvers.convex import Convex, FrozenWarning

W2 = Wasserstein()
SOLVER = Convex(on_failure="raise")  # shared: programs of the same shape are compiled once
PRECISE = Convex(tol=1e-9, on_failure="raise")


def reach(tau: float) -> float:
    """How far (root mean square) positions may be from the minimiser when the duality gap is 1e-9: F + W2²/(2·tau) is
    1/tau-convex."""
    return math.sqrt(2 * tau * 1e-9)


def normal(grid: Grid, mean: float, var: float) -> Density:
    """N(mean, var) at the cell centres, whose sums are exact to rounding when the grid resolves it."""
    x = grid.points(torch.empty(0))[:, 0]
    p = torch.exp(-((x - mean) ** 2) / (2 * var))
    return Density(p / (p.sum() * grid.volume), grid)


def blocks(grid: Grid, seed: int) -> Density:
    values = torch.rand(grid.shape, generator=torch.Generator().manual_seed(seed)) + 0.05
    return Density(values / (values.sum() * grid.volume), grid)


def uniform(n: int) -> Quantiles:
    return Quantiles((torch.arange(n) + 0.5) / n)


def kl_step(m0: float, s0: float, m: float, q: float, tau: float) -> tuple[float, float]:
    """Mean and variance of the W2 prox of KL(· | N(m, q)) at N(m0, s0)."""
    a = 1 + tau / q
    s = s0 / a
    return (m0 + tau * m / q) / a, 0.5 * (s + 2 * tau + math.sqrt(s * s + 4 * tau * s)) / a


def entropic_variance(s0: float, q: float, tau: float, reg: float, t: float) -> float:
    """The same in entropic transport: t = tau (Lebesgue), tau − reg/2 (product)."""
    a = 1 + tau / q
    half = s0 / a + 2 * t + reg / 2
    return 0.5 * (half + math.sqrt(half**2 - 4 * t * (t + reg / 2))) / a


@pytest.mark.parametrize(("n", "tolerance"), [(50, 8e-3), (100, 3e-3)])
def test_the_kl_step_of_a_gaussian_on_a_grid(n: int, tolerance: float):
    mu = normal(Grid(-7, 7, n), 1.0, 1.7)
    F = KL(Gaussian([-0.5], [[0.6]]))
    new, stats = SOLVER(F, Wasserstein(), mu, 0.8)
    mean, var = kl_step(1.0, 1.7, -0.5, 0.6, 0.8)
    assert abs(new.mean.item() - mean) < tolerance and abs(new.cov.item() - var) < tolerance
    assert stats.converged and stats.message == "optimal" and stats.residual < 1e-7
    assert stats.objective < F(mu)
    torch.testing.assert_close(stats.objective, F(new) + stats.distance2 / 1.6)


@pytest.mark.parametrize(("tau", "reg"), [(0.3, 0.2), (0.5, 0.4)])
@pytest.mark.parametrize("reference", ["lebesgue", "product"])
def test_entropic_steps_of_a_gaussian_have_their_closed_form(reference: str, tau: float, reg: float):
    mu = normal(Grid(-8, 8, 48), 0.4, 1.7)
    new, stats = SOLVER(KL(Gaussian([0.0], [[0.6]])), Entropic(reg, reference), mu, tau)
    t = tau if reference == "lebesgue" else tau - reg / 2
    assert new.mean.item() == pytest.approx(0.4 / (1 + tau / 0.6), abs=1e-4)
    assert new.cov.item() == pytest.approx(entropic_variance(1.7, 0.6, tau, reg, t), abs=1e-4)


def test_entropic_transport_costs_are_those_of_the_continuum():
    """Between the marginals of a Gaussian plan: ⟨cost⟩ + reg·∫π log π, and + reg·KL(π | ν⊗μ), on the plan returned."""
    mu, reg = normal(Grid(-7, 7, 42), 0.0, 1.0), 0.5
    for reference in ("lebesgue", "product"):
        new, stats = SOLVER(Entropy(), Entropic(reg, reference), mu, 0.4)
        a, b = mu.cov.item(), new.cov.item()
        root = math.sqrt(4 * a * b + reg**2 / 4)
        c = (root - reg / 2) / 2  # covariance of the optimal plan, Janati et al. 2020
        cost = a + b - 2 * c
        if reference == "lebesgue":
            cost += reg * (-1 - math.log(2 * math.pi) - 0.5 * math.log(a * b - c * c))
        else:
            cost += reg * -0.5 * math.log(1 - c * c / (a * b))
        assert stats.distance2.item() == pytest.approx(cost, abs=2e-5)


def test_a_plan_is_the_one_of_an_independent_linear_program():
    """With F linear the step is a linear program over plans; SciPy's HiGHS solves it in other words."""
    from scipy.optimize import linprog

    grid, tau = Grid((0, 0), (1, 2), (3, 4)), 0.3
    mu, Q = blocks(grid, 0), torch.tensor([[1.0, -0.4], [-0.4, 0.8]])
    V = Potential(lambda x: torch.sin(5 * x[..., 0]) + 2 * x[..., 1] ** 2)
    new, stats = SOLVER(V, Wasserstein(Q), mu, tau)
    x = grid.points(torch.empty(0)).numpy()
    z = x[:, None] - x[None]
    cost = np.einsum("ija,ab,ijb->ij", z, np.linalg.inv(Q.numpy()), z)
    total = V.value(grid.points(torch.empty(0))).numpy()[:, None] + cost / (2 * tau)
    old = (mu.values.flatten() * grid.volume).numpy()
    lp = linprog(total.ravel(), A_eq=np.kron(np.ones((1, 12)), np.eye(12)), b_eq=old, method="highs")
    assert stats.objective.item() == pytest.approx(lp.fun, abs=1e-7)
    plan = lp.x.reshape(12, 12)
    np.testing.assert_allclose(new.values.flatten().numpy() * grid.volume, plan.sum(1), atol=1e-5)
    np.testing.assert_allclose(stats.plan.numpy(), plan, atol=1e-5)
    assert stats.distance2.item() == pytest.approx((cost * plan).sum(), abs=1e-5)


def test_a_periodic_grid_transports_around_the_corner():
    grid = Grid(0, 1, 10, periodic=True)
    values = torch.zeros(10)
    values[9] = 10.0
    V = Potential(lambda x: 100 * (x[..., 0] - 0.15).square())  # its lowest cell is 1; the neighbours 9 → 0 → 1
    new, stats = SOLVER(V, Wasserstein(), Density(values, grid), 1.0)
    assert new.values.argmax() == 1
    torch.testing.assert_close(stats.distance2.item(), 0.04, rtol=1e-4, atol=0)
    walls = SOLVER(V, Wasserstein(), Density(values, Grid(0, 1, 10)), 1.0)
    torch.testing.assert_close(walls.stats.distance2.item(), 0.64, rtol=1e-4, atol=0)


@settings(max_examples=8)
@given(st.floats(0.05, 2.0), st.integers(0, 50), st.floats(0.2, 3.0), st.sampled_from([0.7, 1.5, 2.0, 3.0]))
def test_on_a_grid_the_energy_inequality_holds(tau: float, seed: int, c: float, m: float):
    mu = blocks(Grid(-1, 1, 12), seed)
    F = c * PorousMedium(m) + Potential(Quadratic([0.5])) + 0.1 * Entropy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FrozenWarning)
        new, stats = SOLVER(F, Wasserstein(), mu, tau)
    torch.testing.assert_close(new.mass.item(), 1.0)
    assert (new.values >= 0).all()
    assert stats.objective <= F(mu) + 1e-7
    torch.testing.assert_close(stats.plan.sum(-2), mu.values * mu.grid.volume, rtol=0, atol=1e-6)


@pytest.mark.parametrize("n", [100, 400])
@pytest.mark.parametrize("tau", [0.01, 0.1, 1.0])
def test_the_porous_medium_step_of_the_uniform_by_quantiles(n: int, tau: float):
    """ρ = 1 − cosh((x − ½)/s)/cosh(L/s), s = √(2·tau), L − s·tanh(L/s) = ½."""
    s = math.sqrt(2 * tau)
    low, high = 0.5, 0.5 + s
    for _ in range(100):
        L = (low + high) / 2
        low, high = (low, L) if L - s * math.tanh(L / s) > 0.5 else (L, high)
    new, stats = PRECISE(PorousMedium(2), Wasserstein(), uniform(n), tau)
    y = torch.linspace(-L, L, 20001)
    rho = 1 - torch.cosh(y / s) / math.cosh(L / s)
    var = torch.trapezoid(rho * y * y, y).item()
    assert abs(new.cov.item() - var) < n**-1.5 * max(1, 3 * tau)
    assert abs(new.mean.item() - 0.5) < 1e-6
    virial = ((new.x - uniform(n).x) * new.x).mean()
    torch.testing.assert_close(virial, tau * PorousMedium(2)(new), rtol=0, atol=4 * reach(tau))
    assert stats.objective <= PorousMedium(2)(uniform(n))


@pytest.mark.parametrize("m", [0.5, 1.5, 3.0])
def test_homogeneous_energies_satisfy_their_virial_identity_on_quantiles(m: float):
    mu, tau = Quantiles.of(Gaussian([0.3], [[2.0]]), 60), 0.4
    new, _ = PRECISE(2 * PorousMedium(m), Wasserstein(), mu, tau)
    virial = ((new.x - mu.x) * new.x).mean()
    torch.testing.assert_close(virial, 2 * tau * (m - 1) * PorousMedium(m)(new), rtol=0, atol=8 * reach(tau))


@pytest.mark.parametrize("q", [None, 2.5])
def test_quadratic_energies_on_quantiles_are_linear_maps(q: float | None):
    mu, tau = Quantiles.of(Gaussian([3.0], [[2.0]]), 50), 0.7
    metric = Wasserstein(None if q is None else torch.tensor([[q]]))
    V, W = Quadratic([1.0], precision=[[2.0]]), Quadratic([0.0], precision=[[0.5]])
    new, stats = SOLVER(Potential(V) + 3 * Interaction(W), metric, mu, tau)
    step = tau * (1.0 if q is None else q)
    mean = (mu.mean + 2 * step) / (1 + 2 * step)
    expected = mean + (mu.x - mu.mean) / (1 + step * (2 + 1.5))
    torch.testing.assert_close(new.x, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(stats.distance2, (new.x - mu.x).square().mean() / (q or 1.0))


def test_quantiles_meet_in_an_atom_and_keep_their_order():
    """V = 4|x|, far enough: the prox is soft thresholding, which sends an interval to the point 0."""

    class Absolute:
        def __call__(self, x: Tensor) -> Tensor:
            return 4 * x[..., 0].abs()

        def atom(self, x):
            import cvxpy as cp

            return 4 * cp.abs(x)

    mu = Quantiles(torch.linspace(-1, 1, 21))
    new, stats = PRECISE(Potential(Absolute()), Wasserstein(), mu, 0.1)
    expected = torch.sign(mu.x) * (mu.x.abs() - 0.4).clamp_min(0)
    torch.testing.assert_close(new.x, expected, rtol=0, atol=math.sqrt(21) * reach(0.1))
    assert (new.gaps >= 0).all()


def test_the_kl_step_by_quantiles_agrees_with_descent():
    from otprox.solvers.descent import Descent

    mu, F = Quantiles.of(Gaussian([10.0], [[100.0]]), 40), KL(Gaussian([0.0], [[1.0]]))
    convex = SOLVER(F, Wasserstein(), mu, 0.5)
    descent = Descent(max_iter=3000, on_failure="raise")(F, Wasserstein(), mu, 0.5)
    torch.testing.assert_close(convex.mu.x, descent.mu.x, rtol=0, atol=1e-4)
    torch.testing.assert_close(convex.stats.objective, descent.stats.objective, rtol=1e-8, atol=0)


class Compilations:
    """Counts the CVXPY problems that are made, and the passes of the canonicalisation."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import cvxpy as cp
        from cvxpy.reductions.solvers import solving_chain

        self.problems, self.chains = 0, 0
        init, build = cp.Problem.__init__, solving_chain.SolvingChain.__init__

        def counted(problem, *args, **kwargs):
            self.problems += 1
            init(problem, *args, **kwargs)

        def chained(chain, *args, **kwargs):
            self.chains += 1
            build(chain, *args, **kwargs)

        monkeypatch.setattr(cp.Problem, "__init__", counted)
        monkeypatch.setattr(solving_chain.SolvingChain, "__init__", chained)


CASES = [
    (lambda c, m: c * KL(Quadratic([m])), lambda s: blocks(Grid(-1, 1, 10), s), W2),
    (lambda c, m: c * KL(Quadratic([m])), lambda s: blocks(Grid(-1, 1, 8), s), Entropic(0.1)),
    (
        lambda c, m: c * Entropy() + Potential(Quadratic([m])),
        lambda s: Quantiles(uniform(20).x[:, 0] + s),
        Wasserstein(),
    ),
    (lambda c, m: c * PorousMedium(1.5) + Interaction(Quadratic([0.0])), lambda s: uniform(20), W2),
]


@pytest.mark.filterwarnings("ignore::otprox.solvers.convex.FrozenWarning")
@pytest.mark.parametrize(("F", "measure", "metric"), CASES)
def test_the_second_solve_does_not_compile_and_equals_a_fresh_one(F, measure, metric, monkeypatch):
    mobile = isinstance(measure(0), Quantiles)  # positions are measured from those at compilation
    tol, atol = (1e-10, math.sqrt(2 * 0.2 * 1e-10)) if mobile else (None, 1e-9)
    reused = Convex(tol=tol, on_failure="raise")
    reused(F(1.0, 0.0), metric, measure(0), 0.5)
    count = Compilations(monkeypatch)
    second = reused(F(0.7, 0.4), metric, measure(1), 0.2)  # other coefficients, potential, measure and step
    assert (count.problems, count.chains) == (0, 0)
    fresh = Convex(tol=tol, on_failure="raise")(F(0.7, 0.4), metric, measure(1), 0.2)
    assert count.problems > 0 and count.chains > 0
    for name in fresh.mu.state():
        torch.testing.assert_close(second.mu.state()[name], fresh.mu.state()[name], rtol=0, atol=atol)


def test_quantiles_that_have_moved_far_are_compiled_again(monkeypatch):
    """A tilt that carries them far costs digits; after a shift of 100 the step is as exact as before."""
    solver, F = Convex(tol=1e-10, on_failure="raise"), Entropy()
    near = solver(F, W2, uniform(30), 0.1)
    count = Compilations(monkeypatch)
    solver(F, W2, Quantiles(uniform(30).x[:, 0] + 0.1), 0.1)
    assert count.problems == 0
    far = solver(F, W2, Quantiles(uniform(30).x[:, 0] + 100), 0.1)
    assert count.problems > 0
    torch.testing.assert_close(far.mu.x - 100, near.mu.x, rtol=0, atol=1e-5)
    torch.testing.assert_close(far.stats.objective, near.stats.objective, rtol=0, atol=1e-9)


@pytest.mark.filterwarnings("ignore::otprox.solvers.convex.FrozenWarning")
def test_another_structure_is_another_program(monkeypatch):
    solver, mu = Convex(on_failure="raise"), blocks(Grid(-1, 1, 8), 0)
    solver(PorousMedium(2), Wasserstein(), mu, 0.5)
    count = Compilations(monkeypatch)
    cubic = solver(PorousMedium(3), Wasserstein(), mu, 0.5)
    assert count.problems > 0
    torch.testing.assert_close(cubic.mu.values, SOLVER(PorousMedium(3), Wasserstein(), mu, 0.5).mu.values)
    before = count.problems
    solver(PorousMedium(3), Wasserstein(), blocks(Grid(0, 1, 8), 0), 0.5)  # the grid's cost is compiled in
    assert count.problems > before


def test_a_batch_equals_single_runs():
    grid = Grid(-2, 2, 10)
    values = torch.stack([blocks(grid, s).values for s in range(3)])
    F = KL(Quadratic(torch.tensor([[0.0], [1.0], [-1.0]]), precision=torch.ones(3, 1, 1)))
    out = SOLVER(F, Wasserstein(torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1)), Density(values, grid), 1.0)
    assert out.stats.plan.shape == (3, 10, 10)
    for i in range(3):
        V = Quadratic([i * (5 - 3 * i) / 2])  # 0, 1, −1
        alone = SOLVER(KL(V), Wasserstein(torch.tensor([[1.0 + i]])), Density(values[i], grid), 1.0)
        torch.testing.assert_close(out.mu.values[i], alone.mu.values, rtol=0, atol=1e-7)
        torch.testing.assert_close(out.stats.distance2[i], alone.stats.distance2, rtol=0, atol=1e-7)


def test_a_batch_of_quantiles_and_single_precision():
    mu = Quantiles(torch.stack([uniform(15).x[:, 0], 3 * uniform(15).x[:, 0]]).float())
    out = PRECISE(Entropy(), Wasserstein(), mu, 0.3)
    assert out.mu.x.dtype == torch.float32 and out.stats.residual.shape == (2,)
    alone = PRECISE(Entropy(), Wasserstein(), Quantiles(mu.x[1, :, 0].double()), 0.3)
    torch.testing.assert_close(out.mu.x[1].double(), alone.mu.x, rtol=0, atol=1e-5)


def test_a_frozen_step_says_so():
    mu = normal(Grid(-4, 4, 16), 0.0, 1.0)
    with pytest.warns(FrozenWarning, match="less than half a cell"):
        new = SOLVER(Entropy(), Wasserstein(), mu, 1e-3).mu
    assert abs(new.cov.item() - mu.cov.item()) < 2e-3 * 0.2  # the heat flow adds 2·tau; this one barely moves
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SOLVER(Entropy(), Wasserstein(), normal(Grid(-5, 5, 40), 0.0, 1.0), 0.5)
        SOLVER(Entropy(), Entropic(0.5), mu, 1e-3)


def test_a_step_of_one_cell_freezes_in_part_and_says_so():
    """From N(0, 1) by 0.05: the exact step has the variance 1.0979."""
    mu, exact = normal(Grid(-5, 5, 200), 0.0, 1.0), prox_entropy(Gaussian([0.0], [[1.0]]), 0.05).cov.item()
    with pytest.warns(FrozenWarning, match=r"moves mass by 0.9\d+ cells .*freezes in part"):
        new = SOLVER(Entropy(), Wasserstein(), mu, 0.05).mu
    assert 1e-3 < exact - new.cov.item() < 1e-2


def test_a_metric_with_skew_axes_is_biased_by_whole_cells_alone():
    """The Gaussian closed form, to the second order in cells that are small against the step; a coarse grid warns."""
    metric, mu = Wasserstein(torch.tensor([[1.0, 0.5], [0.5, 0.8]])), Gaussian([0.0, 0.0], [[0.6, 0.1], [0.1, 0.9]])
    exact = ox.Backward(Entropy(), metric)(mu, 0.0, 0.5).mu.cov
    with pytest.warns(FrozenWarning, match=r"principal axes of Q"):
        coarse = SOLVER(Entropy(), metric, mu.to_density(Grid((-7, -7), (7, 7), (16, 16))), 0.5).mu.cov
    with pytest.warns(FrozenWarning, match=r"in part"):
        fine = SOLVER(Entropy(), metric, mu.to_density(Grid((-7, -7), (7, 7), (28, 28))), 0.5).mu.cov
    assert (coarse - exact).abs().max() > 0.05 and (fine - exact).abs().max() < 0.015


def test_what_is_not_optimal_is_never_silent():
    mu = blocks(Grid(-1, 1, 10), 0)
    with pytest.warns(ConvergenceWarning, match="Convex stopped after 2 iterations with residual .*user_limit"):
        out = Convex(max_iter=2)(KL(Quadratic([0.0])), Wasserstein(), mu, 1.0)
    assert not out.stats.converged and out.stats.message == "user_limit"
    with pytest.raises(ConvergenceError, match="user_limit"):
        Convex(max_iter=2, on_failure="raise")(KL(Quadratic([0.0])), Wasserstein(), mu, 1.0)


@dataclass(frozen=True)
class Broken(Functional):
    """An energy whose convex form has no minimum: −∞, or +∞ everywhere."""

    kind: str

    def __call__(self, mu):
        raise TypeError("not needed here")

    def first_variation(self, mu, x=None):
        raise TypeError("not needed here")

    gradient = first_variation

    def atom(self, mu, c):
        import cvxpy as cp

        build = {
            "unbounded": lambda x, c: c * cp.sum(cp.Variable(1)),
            "infeasible": lambda x, c: c * cp.inv_pos(cp.sum(x) - cp.sum(x) - 1),
        }
        return Atom(self, build[self.kind], (c,))


@pytest.mark.parametrize("kind", ["unbounded", "infeasible"])
def test_a_program_without_solution_is_an_error_with_its_status(kind: str):
    with pytest.raises(ConvergenceError, match=f"status is .*({kind}|solver_error)"):
        Convex()(Broken(kind), Wasserstein(), uniform(5), 1.0)


@pytest.mark.filterwarnings("ignore::otprox.solvers.convex.FrozenWarning")
def test_other_solvers_are_cvxpys():
    mu = blocks(Grid(-1, 1, 6), 0)
    scs = Convex(solver="SCS")(KL(Quadratic([0.0])), Wasserstein(), mu, 2.0)
    clarabel = SOLVER(KL(Quadratic([0.0])), Wasserstein(), mu, 2.0)
    torch.testing.assert_close(scs.mu.values, clarabel.mu.values, rtol=0, atol=1e-2)
    assert scs.stats.residual.isnan()
    with pytest.raises(ValueError, match="Clarabel"):
        Convex(solver="SCS", tol=1e-9)


def test_a_tighter_tolerance_lowers_the_residual():
    mu = blocks(Grid(-1, 1, 10), 0)
    loose = Convex(tol=1e-3)(KL(Quadratic([0.0])), Wasserstein(), mu, 1.0).stats
    tight = Convex(tol=1e-10)(KL(Quadratic([0.0])), Wasserstein(), mu, 1.0).stats
    assert tight.residual < 1e-9 < loose.residual
    assert tight.iterations > loose.iterations


def test_what_it_cannot_do_is_declined_in_words():
    line, cells = uniform(5), blocks(Grid(0, 1, 5), 0)
    fine = blocks(Grid(0, 1, 50), 0)
    reasons = {
        "Density on a Grid": SOLVER.supports(Entropy(), W2, Particles(torch.zeros(3, 1))),
        "2500 entries, more than max_entries = 100": Convex(max_entries=100).supports(Entropy(), Entropic(1.0), fine),
        "50 cells are more than max_cells = 40": Convex(max_cells=40).supports(Entropy(), W2, fine),
        "max_quantiles": Convex(max_quantiles=4).supports(Entropy(), W2, line),
        "debiased": SOLVER.supports(Entropy(), Entropic(0.1, "debiased"), cells),
        "no form on Quantiles": SOLVER.supports(Entropy(), Entropic(0.1), line),
        "over": SOLVER.supports(Entropy(), Moving(lambda t: t), cells),
        "coefficient must be non-negative": SOLVER.supports(-1 * Entropy(), W2, cells),
        "curvature": SOLVER.supports(-1 * Potential(Quadratic([0.0])), W2, line),
        "V a Quadratic": SOLVER.supports(Potential(lambda x: x[..., 0] ** 4), W2, line),
        "W a Quadratic": SOLVER.supports(Interaction(lambda z: z.square().sum(-1)), W2, line),
        "1·Interaction is not convex in the density": SOLVER.supports(Interaction(Quadratic([0.0])), W2, cells),
        "Blob has no `atom`": SOLVER.supports(ox.Blob(0.3), W2, line),
        "diagonal Q": SOLVER.supports(
            Entropy(),
            Wasserstein(torch.tensor([[1.0, 0.1], [0.1, 1.0]])),
            blocks(Grid((0, 0), (1, 1), (3, 3), periodic=(True, False)), 0),
        ),
    }
    for words, reason in reasons.items():
        assert reason is not None and words in reason, (words, reason)
    assert SOLVER.supports(-1 * Potential(Quadratic([0.0])), W2, cells) is None  # linear in the density
    with pytest.raises(TypeError, match="Convex declines"):
        SOLVER(-1 * Entropy(), W2, cells, 0.1)


def test_an_internal_energy_without_a_convex_form_is_declined():
    @dataclass(frozen=True)
    class Quartic(ox.functionals.Internal):
        def per_mass(self, log_rho: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            u = torch.exp(3 * log_rho)
            return u, 3 * u, 9 * u

    for mu in (uniform(5), blocks(Grid(0, 1, 5), 0)):
        with pytest.raises(NotConvex, match="no convex form"):
            Quartic().atom(mu, 1.0)


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate:UserWarning")
def test_a_stall_far_from_the_optimum_is_an_error(monkeypatch):
    """A solver that stalls returns its last point: it is given, with a warning, only when it is nearly optimal."""
    from otprox.solvers import programs

    mu, F = blocks(Grid(-1, 1, 10), 0), KL(Quadratic([0.0]))
    monkeypatch.setattr(
        programs.Program, "_unpack", lambda self, raw, chain, inverse: unpack(self, raw, chain, inverse)
    )
    unpacked = []

    def unpack(program, raw, chain, inverse):
        program.problem.unpack_results(raw, chain, inverse)
        unpacked.append(raw)
        return "optimal_inaccurate"

    with pytest.warns(ConvergenceWarning, match="optimal_inaccurate"):
        near = Convex()(F, W2, mu, 1.0)
    assert not near.stats.converged and near.stats.residual < 1e-7
    with pytest.raises(ConvergenceError, match="status is optimal_inaccurate"):
        Convex(max_iter=2)(F, W2, mu, 1.0)
    assert len(unpacked) == 2


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_potential_that_is_not_finite_is_named(value: float):
    mu = Density(torch.ones(8), Grid(0, 1, 8))
    with pytest.raises(ValueError, match="Potential is non-finite"):
        Convex()(Potential(lambda x: torch.where(x[..., 0] > 0.5, value, x[..., 0])), Wasserstein(), mu, 0.1)


def test_the_limit_on_tau_is_that_of_the_metric():
    mu, F = Density(torch.ones(8), Grid(0, 1, 8)), Potential(Quadratic([0.0], precision=[[-1.0]]))
    for metric in (Wasserstein(4 * torch.eye(1)), Entropic(0.1, base=Wasserstein(4 * torch.eye(1)))):
        with pytest.raises(ValueError, match="convexity limit 0.25"):
            Convex()(F, metric, mu, 0.3)
