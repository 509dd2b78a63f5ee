"""Propagation of chaos: the linear model's exact 1/N, the Kuramoto model's, couplings that do not part."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch

import otprox as ox
from otprox import chaos
from otprox.exact.mckean_vlasov import LinearMeanField

MODEL = LinearMeanField(1.0, 2.0)
START = ox.Gaussian([0.7], [[0.5]])
PULL = ox.Potential(ox.Quadratic([0.0])) - 1.0 * ox.Interaction(ox.kernels.Riesz(2))  # W = |x|²


def ticks(end: float, steps: int, model: LinearMeanField = MODEL) -> Iterator[ox.Tick]:
    for k in range(steps):
        t0, t1 = end * k / steps, end * (k + 1) / steps
        yield ox.Tick(k, t0, t1, model.law(START, t0), model.law(START, t1), None)


def test_linear_model_printed():
    assert MODEL.chaos(10, 1.0, variance=0.5) == pytest.approx(2.660788170788e-2, rel=1e-11)
    assert MODEL.chaos(1, 1.0, variance=0.5) == pytest.approx(0.2660788170779, abs=1e-12)


@pytest.mark.parametrize(("a", "b", "noise"), [(1.0, 2.0, 1.0), (0.3, 0.7, 0.4), (2.0, -0.5, 1.5)])
def test_linear_model_settles(a: float, b: float, noise: float):
    model = LinearMeanField(a, b, noise)
    want = noise * b * b / (7 * a * (a + b) * (2 * a + b))
    assert model.chaos(7) == pytest.approx(want) and model.chaos(7, 60.0, variance=3.0) == pytest.approx(want)
    assert model.chaos(7, 60.0, dim=3) == pytest.approx(3 * want)
    torch.testing.assert_close(model.law(START, 60.0).cov, model.stationary().cov)


def test_the_linear_law_solves_its_equation():
    """m' = −am, S' = −2(a + b)S + 2·noise by differences, and the PDE."""
    model, h = LinearMeanField(0.5, 1.0, 0.8), 1e-5
    at, later = model.law(START, 0.6), model.law(START, 0.6 + h)
    assert ((later.mean - at.mean) / h).item() == pytest.approx(-0.5 * at.mean.item(), rel=1e-4)
    assert ((later.cov - at.cov) / h).item() == pytest.approx(-3.0 * at.cov.item() + 1.6, rel=1e-3)
    grid = ox.Grid(-9.0, 9.0, 64, periodic=True)
    F = 0.8 * ox.Entropy() + 0.5 * ox.Potential(ox.Quadratic([0.0])) + ox.Interaction(lambda z: z.square().sum(-1) / 2)
    path = ox.flow(ox.PseudoSpectral(F), START.to_density(grid), [0.03 * k for k in range(21)])
    torch.testing.assert_close(ox.record(path).final.values, at.to_density(grid).values, rtol=0, atol=1e-7)


def test_coupling_of_the_linear_model():
    run = chaos.synchronous(ticks(1.0, 100), PULL, 1.0, n=10, replicas=4000, generator=torch.Generator().manual_seed(0))
    assert run.times[-1] == 1.0 and run.distance2.shape == (100, 4000)
    want = MODEL.chaos(10, 1.0, variance=0.5)
    assert run.mean[-1].item() == pytest.approx(want, abs=4 * run.error[-1].item())
    assert run.error[-1].item() == pytest.approx(want * math.sqrt(2 / 4000), rel=0.15)  # D is Gaussian


def test_rates_are_one_over_n():
    found = chaos.rates(ticks(0.5, 20), PULL, 1.0, (10, 40), replicas=2000)
    assert found.order == pytest.approx(1.0, abs=0.08)  # four standard errors
    again = chaos.rates(ticks(0.5, 20), PULL, 1.0, (10, 40), replicas=2000)
    assert torch.equal(found.mean, again.mean)
    assert str(found).splitlines()[-1] == f"order {found.order:.3f}"


def test_kuramoto_against_its_equation():
    """The limit by the pseudo-spectral step; on the circle, distances are the shortest."""
    grid = ox.Grid(0.0, 2 * math.pi, 32, periodic=True)
    theta = grid.points(torch.ones(()))[:, 0]
    mu = ox.Density((1 + 0.5 * torch.cos(theta)) / (2 * math.pi), grid)
    pull = 0.8 * ox.Interaction(ox.kernels.Cosine([-1.0]))
    law = ox.flow(ox.PseudoSpectral(pull + 0.5 * ox.Entropy()), mu, [0.05 * k for k in range(21)])
    found = chaos.rates(law, pull, 0.5, (20, 80, 320), replicas=1000)
    assert found.order == pytest.approx(1.0, abs=0.12)
    assert (found.mean < math.pi**2 / 3).all()


def test_without_interaction_nothing_parts():
    V = ox.Potential(lambda x: torch.cos(x[..., 0]))
    run = chaos.synchronous(ticks(1.0, 10), V, 1.0, n=3, replicas=2, generator=torch.Generator().manual_seed(0))
    assert run.distance2.max() == 0


def test_what_is_refused():
    rng = torch.Generator()
    with pytest.raises(ValueError, match="a ≥ 0, a \\+ b > 0 and noise > 0, not a = 1.0, b = -1.0"):
        LinearMeanField(1.0, -1.0)
    with pytest.raises(ValueError, match="noise = nan"):
        LinearMeanField(1.0, 1.0, math.nan)
    with pytest.raises(ValueError, match="no single stationary law"):
        LinearMeanField(0.0, 1.0).stationary()
    assert LinearMeanField(0.0, 1.0).chaos(5) == math.inf
    with pytest.raises(ValueError, match="at least two sizes"):
        chaos.rates(ticks(1.0, 2), PULL, 1.0, (10,))
    with pytest.raises(ValueError, match="at least 2 replicas, not 5 and 1"):
        chaos.synchronous(ticks(1.0, 2), PULL, 1.0, n=5, replicas=1, generator=rng)
    with pytest.raises(ValueError, match="noise must be ≥ 0"):
        chaos.synchronous(ticks(1.0, 2), PULL, -1.0, n=5, replicas=2, generator=rng)
    with pytest.raises(ValueError, match="the law has no steps"):
        chaos.synchronous([], PULL, 1.0, n=5, replicas=2, generator=rng)
    with pytest.raises(TypeError, match="Entropy"):
        chaos.synchronous(ticks(1.0, 2), PULL + ox.Entropy(), 1.0, n=5, replicas=2, generator=rng)
