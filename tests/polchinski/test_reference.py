"""The referee: free fields in closed form, φ⁴ on one and two sites by quadrature, error bars of known processes."""

from __future__ import annotations

import math

import pytest
import torch

from otprox import Quadratic
from otprox.exact import polchinski as exact
from otprox.lattice import Lattice
from otprox.measures.spectral import Spectral
from otprox.polchinski import FreeField, Phi4
from otprox.polchinski.observables import CorrelationLength, StructureFactor
from otprox.polchinski.reference import LongRun, autocorrelated, moments

BOX = Lattice((4, 4))
PRECISION = Spectral(BOX.laplacian(torch.zeros(16)) + 1.0, BOX)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pulls(seen: dict, want: dict) -> torch.Tensor:
    assert seen.keys() == want.keys()
    return torch.stack([(seen[k].value - want[k]) / seen[k].error for k in want])


@pytest.mark.parametrize("stored", ["spectral", "dense"])
@pytest.mark.parametrize("kinetic", [None, 0.4, 5.0])
def test_free_field(stored, kinetic):
    A = Spectral(PRECISION.values * 0 - 0.4, BOX)
    P, K = PRECISION, None if kinetic is None else PRECISION + Spectral(torch.full((16,), kinetic - 1), BOX)
    if stored == "dense":
        A, P, K = A.dense(), P.dense(), None if K is None else K.dense()
    b = 0.3 * torch.ones(16)
    run = LongRun(FreeField(A, b), P, K, chains=64, samples=200, burn=50)
    variance = 1 / (PRECISION.values - 0.4)
    seen = run.expect(rng(), **moments(), mean=lambda phi: phi.mean(-1))
    mean, var, local = 0.5, variance[0].item() / 16, variance.mean().item()
    s = math.sqrt(var)
    folded = s * math.sqrt(2 / math.pi) * math.exp(-(mean**2) / (2 * var)) + mean * math.erf(mean / s / math.sqrt(2))
    want = {
        "|m|": folded,
        "m²": mean**2 + var,
        "φ²": mean**2 + local,
        "φ⁴": mean**4 + 6 * mean**2 * local + 3 * local**2,
        "mean": mean,
    }
    assert pulls(seen, want).abs().max() < 4
    assert seen["m²"].acceptance > 0.7 and seen["m²"].spread < 1.05
    assert 0 < seen["m²"].error < 0.05


@pytest.mark.parametrize(("g", "mu"), [(1.0, -1.0), (1.0, 0.5), (2.0, -2.5)])
def test_one_site(g, mu):
    one = torch.ones(1, 1)
    site = exact.FewSites(exact.phi4(g, mu))
    want = site.expect(0 * one, one, lambda x: torch.cat([x.square(), x.pow(4)], -1))
    run = LongRun(Phi4(g, mu), one, chains=256, samples=500, burn=50)
    seen = run.expect(rng(1), both=lambda phi: torch.cat([phi.square(), phi.pow(4)], -1))["both"]
    assert ((seen.value - want) / seen.error).abs().max() < 4
    assert (seen.error < 0.02 * want).all()


def test_one_site_without_mass_in_closed_form():
    run = LongRun(Phi4(1.0, -1.0), torch.ones(1, 1), chains=256, samples=300, burn=50)
    seen = run.expect(rng(2), square=lambda phi: phi[:, 0].square())["square"]
    assert abs(seen.value - exact.phi4_second_moment()) < 4 * seen.error < 0.02


def test_two_sites():
    M = torch.tensor([[2.0, -1], [-1, 2]])
    run = LongRun(Phi4(1.0, -1.0), M, chains=256, samples=300, burn=50)
    seen = run.expect(rng(3), s=lambda x: torch.stack([x[:, 0].square(), x[:, 0] * x[:, 1]], -1))["s"]
    want = torch.tensor([0.547127923045, 0.243365058966])
    assert ((seen.value - want) / seen.error).abs().max() < 4
    assert (seen.error < 0.01).all()


def test_draws_are_blocks_of_chains():
    run = LongRun(Quadratic(torch.zeros(16), cov=torch.eye(16) * 1e6), PRECISION.dense(), chains=20, samples=300)
    mu = run.draw(rng(4), every=3)
    assert mu.x.shape == (20 * 100, 16)
    seen = StructureFactor(BOX).estimate(mu, blocks=20)
    pull = (seen.value - 1 / PRECISION.values) / seen.error
    assert pull.abs().max() < 4
    xi = CorrelationLength(BOX).estimate(mu, blocks=20)
    assert abs(xi.value - 1.0) < 4 * xi.error


@pytest.mark.parametrize("rho", [-0.3, 0.0, 0.6, 0.9])
def test_error_bars_of_autoregressive_chains(rho):
    n, noise = 4000, torch.randn(200, 4000, generator=rng(5))
    x = [noise[:, 0]]
    for k in range(1, n):
        x.append(rho * x[-1] + math.sqrt(1 - rho**2) * noise[:, k])
    series = torch.stack(x, 1).reshape(25, 8, n)
    seen = [autocorrelated(s[..., None]) for s in series]
    tau = 0.5 * (1 + rho) / (1 - rho)
    errors = torch.stack([e.error for e in seen])
    assert errors.mean().item() == pytest.approx(math.sqrt(2 * tau / (8 * n)), rel=0.05)
    assert seen[0].ess.item() == pytest.approx(1 / (2 * tau), rel=0.15)
    pull = torch.stack([e.value for e in seen]) / errors
    assert 0.6 < pull.std() < 1.4


def test_chains_that_disagree_show():
    apart = torch.randn(4, 500, generator=rng(6)) + torch.tensor([-3.0, 3, -3, 3])[:, None]
    assert autocorrelated(apart).spread > 1.3
    assert autocorrelated(apart).error > 0.5  # and the error bar says so


def test_bad_input():
    with pytest.raises(ValueError, match="chains of at least 2, not 1"):
        LongRun(Phi4(1.0, 0.0), torch.eye(2), chains=1)
    with pytest.raises(ValueError, match="kinetic is indefinite: mode"):
        LongRun(Phi4(1.0, 0.0), torch.eye(2), -torch.eye(2))
    with pytest.raises(TypeError, match="one matrix is dense and the other a Spectral"):
        LongRun(Phi4(1.0, 0.0), PRECISION, torch.eye(16))
