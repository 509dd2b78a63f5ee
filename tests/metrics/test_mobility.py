"""Flows with a mobility that depends on the density: the local limits of SVGD, and exact solutions."""

import math

import pytest
import torch

import otprox as ox
from otprox.exact import diffusion, svgd

NORMAL = ox.Gaussian([0.0], [[1.0]])
HALF_SQUARE = ox.Quadratic.of(NORMAL)  # x²/2 + ½ log 2π


def weighted(rho, x):
    """ρ²e^{2V − V₀} with V = V₀ = x²/2."""
    return rho**2 * torch.exp(0.5 * x.square().sum(-1))


def plain(rho, x):
    return rho**2


def perturbed(f, n, reach=6.0):
    grid = ox.Grid(-reach, reach, n)
    return ox.Density.from_log_prob(lambda x: -HALF_SQUARE(x) + f(x[..., 0]).log(), grid)


def kl_at(m, mu, times):
    """KL(·|N(0, 1)) at times, by steps just below the stable one."""
    F, metric, t, found = ox.KL(NORMAL), ox.Mobility(m), 0.0, []
    step = ox.Forward(F, metric)
    for end in times:
        count = math.ceil((end - t) / (0.8 * mu.stable_step(metric.descent(F, mu)).item()))
        path = ox.flow(step, mu, [t + (end - t) * k / count for k in range(count + 1)])
        mu, t = ox.record(path, every=count).final, end
        found.append(F(mu).item())
    return torch.tensor(found)


@pytest.mark.parametrize(
    ("m", "f", "times", "want"),
    [
        (weighted, lambda x: 1 + 0.5 * x.sin(), (1.0, 2.0), (2.257615075e-2, 9.989648487e-3)),
        (weighted, lambda x: 1 + 0.5 * (x.cos() - math.exp(-0.5)), (1.0, 2.0), (7.09921421e-3, 1.662879107e-3)),
        (plain, lambda x: 1 + 0.5 * x.tanh(), (1.0,), (2.608075951e-2,)),
    ],
    ids=["weighted, odd", "weighted, even", "plain"],
)
def test_reference_values_of_the_local_limits(m, f, times, want):
    """Towards independent values; errors in space and in time have opposite signs, so that the order is no clean 2."""
    coarse, fine = (kl_at(m, perturbed(f, n), times) for n in (50, 100))
    for a, b, value in zip(coarse.tolist(), fine.tolist(), want, strict=True):
        assert abs(b - value) < 0.01 * value and abs(b - value) < abs(a - value) / 2.5


def test_the_weight_makes_the_decay_exponential():
    """KL(t) ≤ e^{−λt}KL(0) with the provable λ = 2α/Z; the late rate is 4α/Z."""
    Z = math.sqrt(2 * math.pi)
    mu = perturbed(lambda x: 1 + 0.5 * x.sin(), 60)
    times = (2.0, 6.0, 8.0)
    kl, first = kl_at(weighted, mu, times), ox.KL(NORMAL)(mu)
    bound = first * torch.exp(-svgd.log_sobolev_constant(0.5, Z) * torch.tensor(times))
    assert (kl < bound).all()
    assert math.log(kl[1] / kl[2]) / 2 == pytest.approx(svgd.local_rate(0.5, Z), rel=0.02)


def test_without_the_weight_it_is_algebraic():
    """KL·t falls slower than any exponential: the local slope of log KL in log t is near −1 at late times."""
    kl = kl_at(plain, perturbed(lambda x: 1 + 0.5 * x.tanh(), 36), (10.0, 40.0, 80.0))
    late = math.log(kl[1] / kl[2]) / math.log(2)
    assert 1.0 < late < 2.2
    assert kl[2] > 1e3 * kl[0] * math.exp(-svgd.local_rate(0.5, math.sqrt(2 * math.pi)) * 70)


def test_dissipation():
    mu = perturbed(lambda x: 1 + 0.5 * x.sin(), 160)
    for m in (weighted, plain):
        F, metric, eps = ox.KL(NORMAL), ox.Mobility(m), 1e-6
        fall = (F(mu) - F(ox.Forward(F, metric)(mu, 0.0, eps).mu)) / eps
        torch.testing.assert_close(fall, metric.dissipation(F, mu), rtol=2e-3, atol=0)
    law = ox.Gaussian([0.4], [[1.0]])  # ∫ρ²e^{x²/2}·m² dx for ρ = N(m, 1)
    want = 0.16 * math.exp(0.16) / math.sqrt(2 * math.pi)
    assert ox.Mobility(weighted).dissipation(ox.KL(NORMAL), law).item() == pytest.approx(want)


@pytest.mark.parametrize(("m", "weigh"), [(plain, False), (weighted, True)], ids=["plain", "weighted"])
def test_they_are_the_limits_of_narrow_kernels(m, weigh):
    """The velocity of Stein's flow with k = N(0, σ²) tends to that with the mobility at order σ²."""
    mu = perturbed(lambda x: 1 + 0.5 * x.sin(), 600)
    F, local = ox.KL(NORMAL), ox.Mobility(m).descent(ox.KL(NORMAL), mu).faces()[0]
    near, gaps = mu.grid.faces(0, mu.values)[:, 0].abs() < 3, []
    for sigma in (0.4, 0.2):
        k = ox.kernels.RBF(sigma) * (1 / math.sqrt(2 * math.pi) / sigma)
        V = ox.Quadratic([0.0])
        metric = ox.Stein(ox.kernels.Weighted(V, V, k) if weigh else k)
        gaps.append((metric.descent(F, mu).faces()[0] - local)[near].abs().max().item())
    assert math.log2(gaps[0] / gaps[1]) == pytest.approx(2, abs=0.2)


def test_with_mobility_rho_it_is_wasserstein():
    mu, F = perturbed(lambda x: 1 + 0.5 * x.sin(), 80), ox.KL(NORMAL)
    tau = 0.5 * mu.stable_step(ox.Wasserstein().descent(F, mu)).item()
    same = ox.Forward(F, ox.Mobility(lambda rho, x: rho))(mu, 0.0, tau).mu
    torch.testing.assert_close(same.values, ox.Forward(F)(mu, 0.0, tau).mu.values, atol=1e-12, rtol=0)


@pytest.mark.parametrize("d", [1, 2])
def test_barenblatt(d):
    """∂t ρ = div(ρ²∇log ρ) = ½Δρ²: Barenblatt's solution with m = 2 at half the time."""
    source, n = diffusion.barenblatt(2.0, d), 80 if d == 1 else 40
    grid = ox.Grid((-3.0,) * d, (3.0,) * d, (n,) * d)
    x = grid.points(torch.zeros(()))
    values = source.density(x, t=1.0).reshape(grid.shape)
    mu = ox.Density(values / values.sum() / grid.volume, grid)
    F, metric = ox.Entropy(), ox.Mobility(plain)
    tau = 0.8 * mu.stable_step(metric.descent(F, mu)).item()
    count = math.ceil(1.0 / tau)
    times = [1.0 * k / count for k in range(count + 1)]
    end = ox.record(ox.flow(ox.Forward(F, metric), mu, times), every=count).final
    want = source.density(x, t=1.5).reshape(grid.shape)
    assert (end.values - want).abs().sum() * grid.volume < 0.02
    assert end.cov.diagonal().sum().item() == pytest.approx(source.second_moment(source.radius(1.5)).item(), rel=0.02)
    assert (end.values >= 0).all()


def test_travelling_wave():
    """The exact wave of V = cx, in a box with a wall behind it."""
    c, sigma, right = 1.0, 0.5, 4.0
    wave = svgd.wave(c, sigma, 1.0)
    grid = ox.Grid(-1.0, right, 120)
    x = grid.points(torch.zeros(()))
    mass = wave.mass(right, 0.0)
    scale = 1 / mass  # ρ/mass solves the equation with time slowed down by mass
    mu = ox.Density(wave.density(x[:, 0], 0.0) / wave.density(x[:, 0], 0.0).sum() / grid.volume, grid)
    F, metric = ox.KL(lambda y: c * y.sum(-1)), ox.Mobility(plain)
    tau = 0.8 * mu.stable_step(metric.descent(F, mu)).item()
    count = math.ceil(0.6 * mass / tau)
    times = [0.6 * mass * k / count for k in range(count + 1)]
    end = ox.record(ox.flow(ox.Forward(F, metric), mu, times), every=count).final
    near = x[:, 0] < 1.8  # ahead of what the wall has changed
    want = wave.density(x[:, 0], 0.6) * scale
    torch.testing.assert_close(end.values[near], want[near], atol=1e-2, rtol=0)


def test_gaussians_and_particles():
    mu = ox.Gaussian([1.0], [[0.5]])
    porous = ox.Forward(ox.Entropy(), ox.Mobility(plain))(mu, 0.0, 1e-3).mu
    rate = (porous.cov - mu.cov).item() / 1e-3
    assert rate == pytest.approx(1 / math.sqrt(4 * math.pi * 0.5), rel=1e-2)  # d/dt E x² = ∫ρ² = (4πs²)^−½
    with pytest.raises(TypeError, match="Particles has no log-density"):
        ox.Forward(ox.Potential(HALF_SQUARE), ox.Mobility(plain))(ox.Particles(torch.zeros(2, 1)), 0.0, 0.1)


def test_refusals():
    mu = perturbed(torch.ones_like, 20)
    with pytest.raises(TypeError, match="needs a function"):
        ox.Mobility(2.0)
    with pytest.raises(ValueError, match="non-negative"):
        ox.Forward(ox.Entropy(), ox.Mobility(lambda rho, x: -rho))(mu, 0.0, 1e-3)
    with pytest.raises(ValueError, match="shape"):
        ox.Forward(ox.Entropy(), ox.Mobility(lambda rho, x: x))(mu, 0.0, 1e-3)
    with pytest.raises(ValueError, match="stable step"):
        ox.Forward(ox.Entropy(), ox.Mobility(plain))(mu, 0.0, 100.0)
