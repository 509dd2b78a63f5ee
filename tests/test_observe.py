"""Observers against closed forms, and the inequalities that steps must satisfy along whole runs."""

import math

import pytest
import torch

import otprox as ox
from otprox import exact, observe
from otprox.flow import Tick
from otprox.functionals import Potential, Quadratic


def tick(mu, before=None, t0=0.0, t1=0.1):
    return Tick(0, t0, t1, before or mu, mu, None)


def test_gaussian_observers(gaussians):
    m0, S0, mq, Q = gaussians
    mu, target = ox.Gaussian(m0, S0), ox.Gaussian(mq, Q)
    at = tick(mu)
    assert observe.w2(target)(at).item() == pytest.approx(math.sqrt(8.598073996897323), rel=1e-12)
    assert observe.gelbrich(target)(at).item() == pytest.approx(math.sqrt(8.598073996897323), rel=1e-12)
    assert observe.kl(target)(at).item() == pytest.approx(7.401787151704376, rel=1e-12)
    assert observe.mass(at).item() == 1
    torch.testing.assert_close(observe.covariance(at), S0)
    torch.testing.assert_close(observe.fisher(target)(at), exact.gaussian.fisher_information(mu, target))
    torch.testing.assert_close(
        observe.dissipation(ox.KL(target), ox.Wasserstein(S0))(at).item(), _fisher_in(mu, target, S0)
    )


def _fisher_in(mu, target, Q):
    P = torch.linalg.inv(target.cov)
    A = P - torch.linalg.inv(mu.cov)
    b = P @ (mu.mean - target.mean)
    return (torch.trace(A @ Q @ A @ mu.cov) + b @ Q @ b).item()


def test_energy_follows_a_varying_functional():
    F = ox.Varying(lambda t: t * Potential(lambda x: x.sum(-1)))
    mu = ox.Particles(torch.ones(4, 1))
    assert observe.energy(F)(tick(mu, t1=0.7)).item() == pytest.approx(0.7)


@pytest.mark.parametrize("tau", [0.05, 0.4])
def test_inequalities_along_jko(gaussians, tau):
    m0, S0, mq, Q = gaussians
    mu, target, sigma = ox.Gaussian(m0, S0), ox.Gaussian(mq, Q), ox.Gaussian(mq + 1, S0 + Q)
    F = ox.KL(target)
    path = ox.flow(ox.Backward(F), mu, [tau * k for k in range(200)])
    run = ox.record(
        path,
        energy=observe.dissipation_gap(F),
        evi=observe.evi_gap(F, sigma),
        at_target=observe.evi_gap(F, target),
        rounding=observe.rounding,
    )
    for name in ("energy", "evi", "at_target"):
        assert (run.series[name] >= -run.series["rounding"] / tau).all(), name
    assert run.series["evi"].max() > 1e-6  # the inequality is not an equality everywhere


def test_inequalities_along_forward_backward_for_2000_iterates(gaussians):
    m0, S0, mq, Q = gaussians
    mu, target = ox.Gaussian(m0, S0), ox.Gaussian(mq, Q)
    L, lam = 2.4653815180144947, 0.618950837470822
    tau = 0.9 / L
    fb = ox.Forward(Potential(Quadratic.of(target))) >> ox.Backward(ox.Entropy())
    gap = observe.forward_backward_gap(ox.KL(target), target, convexity=lam)
    run = ox.record(
        ox.flow(fb, mu, [tau * k for k in range(2001)]),
        gap=gap, rounding=observe.rounding, w2=observe.w2(target), kl=observe.kl(target),
    )  # fmt: skip
    n = torch.arange(1, 2001)
    start = exact.gaussian.w2_squared(mu, target)
    rounding = run.series["rounding"]
    assert (run.series["gap"] >= -rounding).all()
    assert (run.series["w2"].square() <= (1 - tau * lam) ** n * start + rounding).all()
    assert (run.series["kl"] <= start / (2 * tau * n) + rounding).all()
    for k, kl, w2 in [
        (1, 0.9283590195319201, 2.231803188934877),
        (2, 0.4400939898368629, 1.1163121591874172),
        (5, 0.058559490385114474, 0.1519402260395827),
        (10, 0.0022094371980353566, 0.005894185677342913),
    ]:
        assert run.series["kl"][k - 1].item() == pytest.approx(kl, rel=1e-9)
        assert run.series["w2"][k - 1].item() ** 2 == pytest.approx(w2, rel=1e-9)
    assert (run.final.cov - Q).abs().max() < 1e-10


def test_gaps_in_a_metric(gaussians):
    m0, S0, mq, Q = gaussians
    mu, target, metric = ox.Gaussian(m0, S0), ox.Gaussian(mq, Q), ox.Wasserstein(S0)
    F = ox.KL(target)
    L = torch.linalg.cholesky(S0)
    lam = torch.linalg.eigvalsh(L.mT @ torch.linalg.inv(Q) @ L)[0].item()
    run = ox.record(
        ox.flow(ox.Backward(F, metric), mu, [0.2 * k for k in range(30)]),
        evi=observe.evi_gap(F, target, metric, convexity=lam),
        energy=observe.dissipation_gap(F, metric),
        rounding=observe.rounding,
    )
    assert (run.series["evi"] >= -10 * run.series["rounding"]).all()
    assert (run.series["energy"] >= -10 * run.series["rounding"]).all()


def test_convergence_observers():
    step = ox.Backward(ox.KL(lambda x: (x**2).sum(-1)), ox.Entropic(0.1)) >> ox.Heat()
    mu = ox.Gaussian([0.0], [[0.5]]).to_density(ox.Grid(-5.0, 5.0, 64))
    run = ox.record(ox.flow(step, mu, [0.0, 0.1, 0.2]), ok=observe.converged, n=observe.iterations)
    assert run.series["ok"].all() and (run.series["n"] > 0).all()
    plain = ox.record(ox.flow(ox.Heat(), mu, [0.0, 0.1]), ok=observe.converged, n=observe.iterations)
    assert plain.series["ok"].all() and not plain.series["n"].any()


def test_refusals():
    mu = ox.Gaussian([0.0], [[1.0]])
    with pytest.raises(ValueError, match="convexity"):
        observe.evi_gap(ox.KL(lambda x: (x**4).sum(-1)), mu)(tick(mu))
    with pytest.raises(TypeError, match="distance"):
        observe.w2(mu, ox.Entropic(0.1))(tick(mu))
    with pytest.raises(TypeError, match="gelbrich"):
        observe.w2(ox.Particles(torch.zeros(6000, 2)))(tick(ox.Particles(torch.ones(3, 2))))


def test_stein_discrepancy_and_log_sobolev_ratio():
    target, mu = ox.Gaussian([0.0], [[1.0]]), ox.Gaussian([1.0], [[0.25]])
    step, kernel = ox.Forward(ox.KL(target), ox.Stein(ox.kernels.Bilinear())), ox.kernels.Bilinear()
    run = ox.record(
        ox.flow(step, mu, [0.0, 0.01]),
        ksd=ox.observe.ksd(target, kernel),
        kl=ox.observe.kl(target),
        ratio=ox.observe.log_sobolev(ox.KL(target), ox.Stein(kernel)),
    )
    want = ox.exact.svgd.bilinear_dissipation(run.final, target)
    torch.testing.assert_close(run.series["ksd"][0] ** 2, want)
    torch.testing.assert_close(run.series["ratio"][0], want / run.series["kl"][0])


def test_stein_discrepancy_of_samples_falls_with_their_number():
    target = ox.Gaussian([0.0, 1.0], [[1.0, 0.3], [0.3, 0.5]])
    look = ox.observe.ksd(target, ox.kernels.RBF(1.0))
    sizes, found = (50, 800), []
    for n in sizes:
        draws = [target.to_particles(n, torch.Generator().manual_seed(s)) for s in range(8)]
        found.append(sum(look(ox.Tick(0, 0.0, 1.0, mu, mu, None)).item() for mu in draws))
    assert found[0] / found[1] == pytest.approx(4, rel=0.25)
