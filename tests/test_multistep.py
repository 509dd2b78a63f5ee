"""Second order with one prox a step: BDF2 against exact flows, on every representation with a geodesic."""

import math

import pytest
import torch

import otprox as ox
from otprox import exact
from otprox.lattice import Lattice
from otprox.measures.distance import w2_squared
from otprox.solvers.extrapolation import extrapolate


def run(step, mu, n, horizon=1.0):
    return ox.record(ox.flow(step, mu, [horizon * k / n for k in range(n + 1)])).final


def orders(error, ladder=(10, 20, 40)):
    errors = [error(n) for n in ladder]
    return [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]


def test_second_order_to_ornstein_uhlenbeck(m0, S0, mq, Q):
    mu, target = ox.Gaussian(m0, S0), ox.Gaussian(mq, Q)
    want = exact.gaussian.ornstein_uhlenbeck(mu, target, 1.0)

    def error(n, step=ox.BDF2):
        return w2_squared(run(step(ox.KL(target)), mu, n), want).sqrt().item()

    assert orders(error)[-1] == pytest.approx(2.0, abs=0.15)
    assert error(40) < 0.15 * error(40, ox.Backward)


def test_second_order_in_a_metric(m0, S0, mq, Q):
    mu, target, metric = ox.Gaussian(m0, S0), ox.Gaussian(mq, Q), ox.Wasserstein(S0 / 2)
    want = exact.gaussian.ornstein_uhlenbeck(mu, target, 1.0, S0 / 2)
    found = orders(lambda n: w2_squared(run(ox.BDF2(ox.KL(target), metric), mu, n), want).sqrt().item(), (20, 40, 80))
    assert found[-1] == pytest.approx(2.0, abs=0.15)


def test_a_metric_is_a_change_of_variables(m0, S0, mq, Q):
    L = torch.linalg.cholesky(S0)
    flat = [
        g.affine(torch.linalg.solve(L, g.mean), torch.linalg.inv(L)) for g in (ox.Gaussian(m0, Q), ox.Gaussian(mq, S0))
    ]
    step = run(ox.BDF2(ox.KL(ox.Gaussian(mq, S0)), ox.Wasserstein(S0)), ox.Gaussian(m0, Q), 7)
    want = run(ox.BDF2(ox.KL(flat[1])), flat[0], 7)
    torch.testing.assert_close(step.mean, L @ want.mean)
    torch.testing.assert_close(step.cov, L @ want.cov @ L.mT)


def test_second_order_on_quantiles_and_on_a_double_well():
    V = lambda x: (x.square() - 1).square().sum(-1)  # noqa: E731
    mu = ox.Quantiles.of(ox.Gaussian([0.5], [[0.5]]), 60)
    want = run(ox.BDF2(ox.KL(V)), mu, 240, 0.2)
    found = orders(lambda n: w2_squared(run(ox.BDF2(ox.KL(V)), mu, n, 0.2), want).sqrt().item(), (15, 30))
    assert found[-1] == pytest.approx(2.0, abs=0.25)


def test_second_order_on_particles():
    V = lambda x: (x**4).sum(-1) / 4 + x[..., 0] * x[..., 1]  # noqa: E731
    mu = ox.Particles(0.5 * torch.randn(30, 2, generator=torch.Generator().manual_seed(0)))
    force = lambda t, mu, x: -(x**3) - x.flip(-1)  # noqa: E731
    want = run(ox.Drift(force, order=4), mu, 400).x
    solver = ox.solvers.Descent(tol=1e-10)
    error = lambda n: (run(ox.BDF2(ox.Potential(V), solver=solver), mu, n).x - want).abs().max().item()  # noqa: E731
    found = orders(error, (40, 80))
    assert found[-1] == pytest.approx(2.0, abs=0.2)


def test_second_order_on_a_lattice_in_its_modes():
    lattice = Lattice((8,))
    row = torch.zeros(8)
    row[0], row[1], row[-1] = 3.0, -1.0, -1.0
    precision = ox.Spectral.of_row(row, lattice)
    target, mu = ox.Gaussian(torch.zeros(8), precision.inverse()), ox.Gaussian(torch.ones(8), precision)
    end = run(ox.BDF2(ox.KL(target)), mu, 20)
    dense = run(ox.BDF2(ox.KL(ox.Gaussian(target.mean, target.cov.dense()))), ox.Gaussian(mu.mean, mu.cov.dense()), 20)
    torch.testing.assert_close(end.cov.dense(), dense.cov)
    torch.testing.assert_close(end.mean, dense.mean)


@pytest.mark.parametrize("ratio", [0.5, 1.7])
def test_second_order_with_variable_steps(ratio):
    mu, target = ox.Gaussian([2.0], [[3.0]]), ox.Gaussian([0.0], [[0.7]])
    want = exact.gaussian.ornstein_uhlenbeck(mu, target, 1.0)

    def error(n):
        sizes = torch.tensor([1.0, ratio] * n)
        times = [0.0, *(sizes.cumsum(0) / sizes.sum()).tolist()]
        return w2_squared(ox.record(ox.flow(ox.BDF2(ox.KL(target)), mu, times)).final, want).sqrt().item()

    assert orders(error)[-1] == pytest.approx(2.0, abs=0.2)


def test_flat_recursion():
    """On atoms it is (3x₂ − 4x₁ + x₀)/(2·tau) = −∇V(x₂)."""
    tau, P = 0.3, torch.tensor([[2.0, 0.5], [0.5, 1.0]])
    V = ox.Quadratic([0.0, 1.0], precision=P)
    mu = ox.Particles([[1.0, 2.0], [-1.0, 0.5]])
    ticks = list(ox.flow(ox.BDF2(ox.Potential(V), solver=ox.solvers.Descent(tol=1e-12)), mu, [0.0, tau, 2 * tau]))
    x0, x1, x2 = mu.x, ticks[0].after.x, ticks[1].after.x
    torch.testing.assert_close((3 * x2 - 4 * x1 + x0) / (2 * tau), -(x2 - V.mean) @ P, atol=1e-8, rtol=0)


def test_extrapolation_continues_the_geodesic(m0, S0, mq, Q):
    a, b = ox.Gaussian(m0, S0), ox.Gaussian(mq, Q)
    middle = exact.gaussian.geodesic(a, b, 0.8)
    end = extrapolate(a, middle, 0.25)
    torch.testing.assert_close(end.cov, b.cov)
    torch.testing.assert_close(end.mean, b.mean)


def test_extrapolation_is_shortened_before_it_folds():
    a, b = ox.Gaussian([0.0], [[100.0]]), ox.Gaussian([0.0], [[1.0]])
    end = extrapolate(a, b, 1 / 3)  # 1 + (1 − 10)/3 < 0
    assert end.cov.item() == pytest.approx(0.01)
    mu = ox.Quantiles([0.0, 1.0, 1.1])
    folded = extrapolate(ox.Quantiles([0.0, 0.2, 1.1]), mu, 1.0)
    torch.testing.assert_close(folded.x[:, 0], torch.tensor([0.0, 1.45, 1.45]))


def test_extrapolation_minimises_its_metric_functional():
    """(1 + β)·W2²(ν, μ₁) − β·W2²(ν, μ₀) is least at the extrapolated quantiles."""
    g, beta = torch.Generator().manual_seed(0), 1.3
    x0, x1 = (torch.randn(12, generator=g).sort().values for _ in range(2))
    nu = extrapolate(ox.Quantiles(x0), ox.Quantiles(x1), beta).x[:, 0]
    value = lambda x: ((1 + beta) * (x - x1).square() - beta * (x - x0).square()).sum()  # noqa: E731
    for _ in range(200):
        other = (nu + 0.3 * torch.randn(12, generator=g)).sort().values
        assert value(nu) <= value(other)


def test_resumes_exactly(tmp_path):
    mu, step = ox.Gaussian([2.0], [[3.0]]), ox.BDF2(ox.KL(ox.Gaussian([0.0], [[1.0]])))
    times = [0.1 * k for k in range(11)]
    whole = ox.record(ox.flow(step, mu, times)).final
    look = {"done": ox.observe.converged, "substeps": ox.observe.iterations}
    file = tmp_path / "run.npz"
    ox.record(ox.flow(step, mu, times[:5]), checkpoint=file, **look)
    resumed = ox.record(ox.flow(step, mu, times), checkpoint=file, **look)
    assert torch.equal(resumed.final.cov, whole.cov) and resumed.series["done"].all()


def test_batches_equal_single_runs():
    target = ox.KL(ox.Gaussian([0.0], [[1.0]]))
    mus = [ox.Gaussian([m], [[v]]) for m, v in ((1.0, 2.0), (-3.0, 50.0))]
    batch = ox.Gaussian([[1.0], [-3.0]], [[[2.0]], [[50.0]]])
    together = run(ox.BDF2(target), batch, 8)
    for i, mu in enumerate(mus):
        torch.testing.assert_close(together.cov[i], run(ox.BDF2(target), mu, 8).cov)


def test_what_has_no_geodesic_is_refused():
    density = ox.Gaussian([0.0], [[1.0]]).to_density(ox.Grid(-6.0, 6.0, 30))
    step = ox.BDF2(ox.KL(ox.Gaussian([0.0], [[2.0]])), solver=ox.solvers.Convex())
    with pytest.raises(TypeError, match="Richardson"):
        run(step, density, 2)
    with pytest.raises(TypeError, match="not of Entropic"):
        run(ox.BDF2(ox.Entropy(), ox.Entropic(0.1)), ox.Gaussian([0.0], [[1.0]]), 2)
    with pytest.raises(TypeError, match="Functional such as Potential"):
        ox.BDF2(lambda x: x)
