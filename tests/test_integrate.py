"""Particles along their differential equation, by torchdiffeq."""

import math
import sys

import pytest
import torch

import otprox as ox
from otprox.solvers import ConvergenceError

pytest.importorskip("torchdiffeq")


def cloud(n: int = 12, d: int = 2, *batch: int) -> ox.Particles:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*batch, n, d, generator=generator) * torch.tensor([1.5, 0.7, 0.6][:d])
    w = 0.5 + torch.rand(*batch, n, generator=generator)
    return ox.Particles(x, w / w.sum(-1, keepdim=True))


def energy(mu: ox.Particles) -> torch.Tensor:
    return mu.expect(lambda x: x.square().sum(-1) / 2)


@pytest.mark.parametrize(("method", "rtol"), [("dopri5", 1e-9), ("bosh3", 1e-6)])
def test_ornstein_uhlenbeck_drift_and_its_density(method, rtol, S0, Q):
    """x ↦ m + e^{−tQP}(x − m), whose density grows by t·tr QP."""
    m, mu = torch.tensor([0.3, -1.0, 2.0]), cloud(8, 3)
    step = ox.Integrate(ox.Potential(ox.Quadratic(m, S0)), ox.Wasserstein(Q), rtol=rtol, method=method)
    out = step(mu.with_state(log_density=torch.zeros(8)), 0.5, 1.2)
    rate = 0.7 * Q @ torch.linalg.inv(S0)
    torch.testing.assert_close(out.mu.x, m + (mu.x - m) @ torch.linalg.matrix_exp(-rate).T, rtol=0.0, atol=100 * rtol)
    torch.testing.assert_close(out.mu.log_density, rate.trace().expand(8), rtol=0.0, atol=100 * rtol)
    assert method in out.stats.message and out.stats.iterations > 10


def test_landau_against_runge_and_kutta():
    mu, F, metric, n = cloud(), ox.Blob(0.7), ox.Landau(0.0, 0.25), 40
    x, h = mu.x, 1 / n

    def slope(x):
        nu = mu.with_state(x=x)
        return metric.descent(F, nu).field(nu.x)

    for _ in range(n):
        a = slope(x)
        b = slope(x + h / 2 * a)
        c = slope(x + h / 2 * b)
        x = x + h / 6 * (a + 2 * b + 2 * c + slope(x + h * c))
    counts, drifts = [], []
    for rtol in (1e-4, 1e-7):
        out = ox.Integrate(F, metric, rtol=rtol, atol=rtol)(mu, 0.0, 1.0)
        torch.testing.assert_close(out.mu.x, x, rtol=0.0, atol=20 * rtol)
        counts.append(int(out.stats.iterations))
        drifts.append(abs(float(energy(out.mu) - energy(mu))))
    assert counts[0] < counts[1] and drifts[1] < 1e-6 and (out.mu.mean - mu.mean).abs().max() < 1e-13


def test_a_force_that_varies_in_time():
    F = ox.Varying(lambda t: math.cos(t) * ox.Potential(lambda x: x.sum(-1)))
    out = ox.Integrate(F, rtol=1e-9)(cloud(), 0.3, 2.0).mu
    torch.testing.assert_close(out.x, cloud().x - math.sin(2.0) + math.sin(0.3), rtol=0.0, atol=1e-7)


def test_every_item_of_a_batch_is_within_the_tolerance():
    mu, F, metric = cloud(10, 2, 3), ox.Blob(0.6), ox.Landau(0.0, 0.25)
    mu = mu.with_state(x=mu.x * torch.tensor([0.5, 1.0, 2.0])[:, None, None])
    out = ox.Integrate(F, metric)(mu, 0.0, 0.5).mu
    for i in range(3):
        one = ox.Integrate(F, metric, rtol=1e-7, atol=1e-8)(ox.Particles(mu.x[i], mu.w[i]), 0.0, 0.5).mu
        torch.testing.assert_close(out.x[i], one.x, rtol=0.0, atol=2e-5)


def test_on_a_torus_and_in_single_precision():
    F, x = ox.Potential(lambda x: torch.sin(2 * math.pi * x).sum(-1)), torch.tensor([[0.95], [0.02], [0.5]])
    torus, line = (ox.Integrate(F)(ox.Particles(x, domain=domain), 0.0, 0.2).mu for domain in (ox.Torus(1.0), None))
    torch.testing.assert_close(torus.x, line.x.remainder(1.0))
    single = ox.Integrate(F)(ox.Particles(x.float()), 0.0, 0.2).mu
    assert single.x.dtype == torch.float32
    torch.testing.assert_close(single.x.double(), line.x, rtol=0.0, atol=1e-5)


def test_random_batches_are_the_same_all_through_a_step():
    mu, F, generator = cloud(21, 3), ox.Blob(0.6), torch.Generator().manual_seed(1)
    step = ox.Integrate(F, ox.Landau(-3.0, batch=7, generator=generator), rtol=1e-7)
    assert step.generators() == (generator,)
    before = generator.get_state()
    first = step(mu, 0.0, 0.1).mu
    assert abs(energy(first) - energy(mu)) < 1e-6
    assert (step(mu, 0.0, 0.1).mu.x - first.x).norm() > 1e-3 * (first.x - mu.x).norm()
    generator.set_state(before)
    torch.testing.assert_close(step(mu, 0.0, 0.1).mu.x, first.x, rtol=0.0, atol=0.0)


def test_what_goes_wrong_says_so(monkeypatch):
    F, mu = ox.Blob(0.5), cloud()
    with pytest.raises(ConvergenceError, match="gave up between t = 0 and 1 after .* velocities"):
        ox.Integrate(ox.Potential(lambda x: -x.square().square().sum(-1)), max_steps=50)(mu, 0.0, 1.0)
    with pytest.raises(TypeError, match="Integrate moves Particles, not a Gaussian"):
        ox.Integrate(F)(ox.Gaussian([0.0], [[1.0]]), 0.0, 1.0)
    with pytest.raises(ValueError, match="method must be one of .*dopri5.*, not 'rk4'"):
        ox.Integrate(F, method="rk4")
    with pytest.raises(ValueError, match="0 ≤ rtol < 1"):
        ox.Integrate(F, rtol=-1.0)
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(ImportError, match="pip install 'otprox"):
        ox.Integrate(F)(mu, 0.0, 1.0)


@pytest.mark.needs_cuda
def test_runs_on_cuda():
    mu = cloud(30, 3)
    there = ox.Particles(mu.x.cuda(), mu.w.cuda())
    step = ox.Integrate(ox.Blob(0.6), ox.Landau(-3.0, 0.2))
    torch.testing.assert_close(step(there, 0.0, 0.3).mu.x.cpu(), step(mu, 0.0, 0.3).mu.x, rtol=1e-6, atol=1e-6)
