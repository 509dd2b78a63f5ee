"""Prox steps over a space of features: Gaussians, the double well against quantiles, carried densities, refusals."""

from __future__ import annotations

import math
import warnings

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

import otprox as ox
from otprox import observe
from otprox.solvers import ConvergenceError, ConvergenceWarning, Cosines, Features, Hermite
from otprox.solvers.feature_basis import Custom

CASES = [ox.Wasserstein(), ox.Wasserstein(torch.tensor([[1, -0.4, 0.1], [-0.4, 0.8, 0.3], [0.1, 0.3, 1.5]]))]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def levels(n: int) -> Tensor:
    """Quantiles of N(0, 1)."""
    return torch.special.ndtri((torch.arange(n) + 0.5) / n)


def line(n: int) -> ox.Particles:
    """N(0, 1) by its quantiles, with the density."""
    z = levels(n)
    return ox.Particles(z[:, None], log_density=-(z**2) / 2 - 0.5 * math.log(2 * math.pi))


def double_well(x: Tensor) -> Tensor:
    return (x**4 / 2 - x**2).sum(-1)


def skew(z: Tensor) -> Tensor:
    """Features with couplings between two axes."""
    return torch.stack([z[..., 0] ** 2 * z[..., 1], torch.sin(z[..., 0] + 2 * z[..., 1]), z[..., 1] ** 3], -1)


@pytest.mark.parametrize("basis", [Hermite(1), Hermite(5), Cosines(7, 0.7), Custom(skew)])
def test_derivatives_of_features(basis):
    """Hessians are the differences of gradients, and symmetric: the gradients are gradients."""
    z, h = torch.randn(2, 5, 2, generator=rng()), 1e-5
    slopes, bends = basis.derivatives(z)
    assert slopes.shape == (*bends.shape[:-1],) and slopes.shape[:2] == (2, 5)
    for j, e in enumerate(torch.eye(2)):
        ahead, behind = basis.derivatives(z + h * e)[0], basis.derivatives(z - h * e)[0]
        torch.testing.assert_close(bends[..., j], (ahead - behind) / (2 * h), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(bends, bends.mT)


def test_hermite_polynomials():
    """He₃/√6 has the derivatives (3z² − 3)/√6 and 6z/√6; there are binom(d + p, p) − 1 of them."""
    z = torch.randn(9, 1, generator=rng())
    slopes, bends = Hermite(3).derivatives(z)
    torch.testing.assert_close(slopes[:, 2, 0], (3 * z[:, 0] ** 2 - 3) / 6**0.5)
    torch.testing.assert_close(bends[:, 2, 0, 0], 6**0.5 * z[:, 0])
    assert Hermite(4).derivatives(torch.zeros(1, 3))[0].shape[-2] == math.comb(7, 4) - 1


@pytest.mark.parametrize("metric", CASES)
@pytest.mark.parametrize("tau", [0.05, 0.3, 2.0])
def test_gaussians_against_the_closed_form(metric, tau, gaussians):
    """With quadratic features the step of the particles is that of the Gaussian with their moments."""
    mu = ox.Gaussian(gaussians.m0, gaussians.S0).to_particles(500, rng())
    F = ox.KL(ox.Gaussian(gaussians.mq, gaussians.Q))
    out = Features(held_out=0.0)(F, metric, mu, tau)
    want = ox.Backward(F, metric)(ox.Gaussian.fit(mu), 0.0, tau)
    torch.testing.assert_close(out.mu.mean, want.mu.mean, rtol=0, atol=1e-7)
    torch.testing.assert_close(out.mu.cov, want.mu.cov, rtol=0, atol=1e-7)
    torch.testing.assert_close(out.stats.distance2, want.stats.distance2, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(out.mu.x, want.stats.map(mu.x), rtol=0, atol=1e-6)
    torch.testing.assert_close(out.stats.map(mu.x), out.mu.x)


def test_the_carried_density_is_that_of_the_image(gaussians):
    """Gaussian particles stay Gaussian under affine maps, so their log-density is known."""
    law = ox.Gaussian(gaussians.m0, gaussians.S0)
    out = Features()(ox.KL(ox.Gaussian(gaussians.mq, gaussians.Q)), ox.Wasserstein(), law.to_particles(400, rng()), 0.3)
    T = torch.linalg.lstsq(
        torch.cat([law.to_particles(400, rng()).x, torch.ones(400, 1)], -1), out.mu.x
    ).solution  # the map, from its values
    image = law.affine(law.mean @ T[:3] + T[3], T[:3].mT)
    torch.testing.assert_close(out.mu.log_density, image.log_prob(out.mu.x), rtol=1e-8, atol=1e-8)


def test_the_carried_density_of_a_curved_map_in_the_plane():
    """log ρ falls by log|det ∇T|, ∇T by differences of the map."""
    mu = ox.Gaussian(torch.zeros(2), torch.eye(2)).to_particles(300, rng())
    F = ox.KL(lambda x: double_well(x) + 0.5 * (x[..., 0] - x[..., 1] ** 2) ** 2)
    out, h = Features(Hermite(4))(F, CASES[0], mu, 0.1), 1e-5
    columns = [(out.stats.map(mu.x + h * e) - out.stats.map(mu.x - h * e)) / (2 * h) for e in torch.eye(2)]
    log_det = torch.linalg.slogdet(torch.stack(columns, -1)).logabsdet
    torch.testing.assert_close(mu.log_density - out.mu.log_density, log_det, rtol=1e-6, atol=1e-7)
    assert out.stats.converged and log_det.std() > 0.05


def test_double_well_approaches_the_quantile_step():
    """The distance to the prox on quantiles falls as the space grows."""
    start, F = line(1000), ox.KL(double_well)
    want = ox.Backward(F)(ox.Quantiles(start.x[:, 0]), 0.0, 0.2).mu
    gaps = []
    for degree in (2, 6, 10):
        out = Features(Hermite(degree), held_out=0.0)(F, ox.Wasserstein(), start, 0.2)
        gaps.append((out.mu.x - want.x).square().mean().sqrt().item())
    assert gaps[0] > 3 * gaps[1] > 9 * gaps[2] and gaps[2] < 0.015


def test_double_well_flow_reaches_the_target():
    """Moments of e^{−V} by quadrature."""
    step = ox.Backward(ox.KL(double_well), solver=Features(Hermite(10), held_out=0.0))
    run = ox.record(ox.flow(step, line(500), [0.2 * k for k in range(16)]), energy=observe.energy(ox.KL(double_well)))
    x = torch.linspace(-5, 5, 4001)
    w = torch.exp(-double_well(x[:, None]))
    assert run.final.expect(lambda y: y[..., 0] ** 2).item() == pytest.approx(
        ((w * x**2).sum() / w.sum()).item(), rel=0.03
    )
    assert (run.series["energy"].diff() < 0).all()
    log_z = torch.log(w.sum() * (x[1] - x[0])).item()
    assert run.series["energy"][-1].item() == pytest.approx(-log_z, abs=0.02)


@given(st.integers(0, 10**6), st.sampled_from([0.02, 0.3, 1.5]))
def test_the_step_lowers_the_objective(seed: int, tau: float):
    """J(ν) ≤ F(μ), d² ≥ W2² ≥ Gelbrich, on all particles with nothing held out, for an internal energy that is no
    entropy."""
    mu = ox.Gaussian(torch.ones(2), torch.tensor([[1.0, 0.3], [0.3, 0.5]])).to_particles(200, rng(seed))
    F = ox.PorousMedium(2.0) + ox.Potential(double_well)
    out = Features(Hermite(3), held_out=0.0)(F, ox.Wasserstein(), mu, min(tau, 0.4))
    assert out.stats.objective <= F(mu)
    bound = ox.measures.distance.gelbrich_squared(mu, out.mu)
    assert out.stats.distance2 >= bound - 1e-9


def test_batches_are_items_on_their_own():
    x = torch.randn(3, 200, 1, generator=rng()) * torch.tensor([0.5, 1.0, 2.0])[:, None, None]
    mu = ox.Particles(x, log_density=torch.randn(3, 200, generator=rng(1)))
    solver, F = Features(Hermite(4)), ox.KL(double_well)
    whole = solver(F, ox.Wasserstein(), mu, 0.1)
    assert whole.stats.converged.shape == (3,) and whole.stats.converged.all()
    for k in range(3):
        one = solver(F, ox.Wasserstein(), ox.Particles(x[k], log_density=mu.log_density[k]), 0.1)
        torch.testing.assert_close(one.mu.x, whole.mu.x[k], rtol=0, atol=1e-7)


def test_a_map_that_fits_noise_is_refused():
    """At the minimiser of F a fit finds noise: refused about as often as not, and then μ stays, or else shortened."""
    target = ox.Gaussian(torch.zeros(2), torch.eye(2))
    step, refused = ox.Backward(ox.KL(target), solver=Features(Hermite(3), held_out=0.5)), 0
    for seed in range(12):
        mu = target.to_particles(40, rng(seed))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            out = step(mu, 0.0, 0.5)
        if not out.stats.converged:
            assert "held out" in out.stats.message
            stays = torch.equal(out.mu.x, mu.x) and torch.equal(out.mu.log_density, mu.log_density)
            assert stays == ("does not lower" in out.stats.message) != ("shortened to 0." in out.stats.message)
            refused += stays
    assert 2 <= refused <= 11
    with pytest.raises(ConvergenceError, match="held out.*fewer features"):
        for seed in range(12):
            Features(Hermite(3), held_out=0.5, on_failure="raise")(
                ox.KL(target), ox.Wasserstein(), target.to_particles(40, rng(seed)), 0.5
            )


def test_float32():
    mu = ox.Particles(line(300).x.float(), log_density=line(300).log_density.float())
    out = Features(Hermite(4))(ox.KL(double_well), ox.Wasserstein(), mu, 0.1)
    assert out.mu.x.dtype == torch.float32 and out.stats.converged
    want = Features(Hermite(4))(ox.KL(double_well), ox.Wasserstein(), line(300), 0.1).mu.x
    torch.testing.assert_close(out.mu.x.double(), want, rtol=0, atol=2e-3)


def test_refusals():
    solver, bare = Features(), ox.Particles(torch.randn(20, 1, generator=rng()))
    with pytest.raises(TypeError, match="Entropy needs the log-density"):
        solver(ox.Entropy(), ox.Wasserstein(), bare, 0.1)
    with pytest.raises(TypeError, match="not a Gaussian"):
        solver(ox.Entropy(), ox.Wasserstein(), ox.Gaussian([0.0], [[1.0]]), 0.1)
    with pytest.raises(TypeError, match="optimal map"):
        solver(ox.Entropy(), ox.Entropic(0.1), line(9), 0.1)
    with pytest.raises(TypeError, match="negative coefficient"):
        solver(-1.0 * ox.Entropy(), ox.Wasserstein(), line(9), 0.1)
    with pytest.raises(TypeError, match="R\\^d"):
        solver(ox.Potential(double_well), ox.Wasserstein(), ox.Particles(line(9).x, domain=ox.Torus(9.0)), 0.1)
    with pytest.raises(ValueError, match="convexity limit"):
        solver(ox.Potential(double_well, curvature=-2.0), ox.Wasserstein(), line(9), 0.6)
    with pytest.raises(ValueError, match="no spread"):
        solver(ox.Potential(double_well), ox.Wasserstein(), ox.Particles(torch.ones(9, 1)), 0.1)
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        Features(held_out=1.0)
    with pytest.raises(ValueError, match="degree"):
        Hermite(0)
    with pytest.raises(ValueError, match="width"):
        Cosines(3, 0.0)
    with pytest.raises(TypeError, match="Hermite"):
        Features(3)
