"""Observables: closed forms of the free field, Gaussians stored two ways, samples within error bars, observers."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

import otprox as ox
from otprox.lattice import Lattice
from otprox.measures.spectral import Spectral
from otprox.polchinski.observables import (
    CorrelationLength,
    EffectivePotential,
    Magnetisation,
    StructureFactor,
    Susceptibility,
    TwoPoint,
    radial,
)

LATTICES = [Lattice(9, 0.5), Lattice((6, 6)), Lattice((4, 6), 0.3), Lattice((3, 4, 2), 2.0), Lattice((1, 5))]


def free(lattice: Lattice, mass: float, mean: float = 0.0) -> ox.Gaussian:
    """The free field of precision spacing^d(−Δ + mass²)."""
    like = torch.zeros(lattice.sites)
    precision = lattice.spacing**lattice.dim * (lattice.laplacian(like) + mass**2)
    return ox.Gaussian(like + mean, Spectral(1 / precision, lattice))


def every(lattice: Lattice) -> list:
    levels = torch.linspace(-1, 1, 5)
    return [
        Magnetisation(),
        Magnetisation(absolute=True),
        Susceptibility(lattice),
        Susceptibility(lattice, absolute=True),
        StructureFactor(lattice),
        TwoPoint(lattice),
        CorrelationLength(lattice),
        EffectivePotential(lattice, levels),
    ]


@pytest.mark.parametrize("lattice", LATTICES, ids=str)
@pytest.mark.parametrize("mass", [0.3, 1.0])
def test_free_field(lattice, mass):
    mu = free(lattice, mass, mean=0.4)
    volume = lattice.sites * lattice.spacing**lattice.dim
    assert Magnetisation()(mu).item() == pytest.approx(0.4)
    assert Susceptibility(lattice)(mu).item() == pytest.approx(mass**-2)
    assert CorrelationLength(lattice)(mu).item() == pytest.approx(1 / mass)
    U = EffectivePotential(lattice, torch.linspace(-2, 2, 9))(mu)
    bend = U.diff(n=2) / 0.25  # the tree-level potential, ½mass²(m − 0.4)²
    torch.testing.assert_close(bend, torch.full_like(bend, mass**2))
    assert U[0] - U[8] == pytest.approx(0.5 * mass**2 * (2.4**2 - 1.6**2))
    normalised = torch.linspace(-10 / mass / volume**0.5, 10 / mass / volume**0.5, 400)
    p = torch.exp(-volume * EffectivePotential(lattice, normalised + 0.4)(mu))
    assert torch.trapezoid(p, normalised).item() == pytest.approx(1.0)


@pytest.mark.parametrize("lattice", LATTICES, ids=str)
def test_dense_and_spectral_agree(lattice):
    mu = free(lattice, 0.7, mean=-0.2)
    dense = ox.Gaussian(mu.mean, mu.cov.dense())
    for observable in every(lattice):
        torch.testing.assert_close(observable(dense), observable(mu))
    torch.testing.assert_close(TwoPoint(lattice)(mu), mu.cov.dense()[0])


@given(st.integers(0, 10**6))
def test_a_dense_covariance_is_averaged_over_translations(seed: int):
    lattice = Lattice((2, 3))
    m = torch.randn(6, 6, generator=torch.Generator().manual_seed(seed))
    cov = m @ m.mT + torch.eye(6)
    grid = cov.reshape(2, 3, 2, 3)
    shifted = [grid.roll((i, j, i, j), (0, 1, 2, 3)) for i in range(2) for j in range(3)]
    average = torch.stack(shifted).mean(0).reshape(6, 6)
    mu = ox.Gaussian(torch.zeros(6), cov)
    torch.testing.assert_close(TwoPoint(lattice)(mu), average[0])
    torch.testing.assert_close(Susceptibility(lattice)(mu), cov.sum() / 6)
    torch.testing.assert_close(StructureFactor(lattice)(mu).sum(), cov.trace())


def test_ring_in_closed_form():
    n, a, m = 40, 0.25, 0.8
    theta = 2 * math.asinh(m * a / 2)  # cosh θ = 1 + (ma)²/2
    r = torch.arange(n)
    decay = torch.cosh(theta * (n / 2 - r)) / math.sinh(n * theta / 2)
    G = TwoPoint(Lattice(n, a))(free(Lattice(n, a), m))
    torch.testing.assert_close(G, a * decay / (2 * math.sinh(theta)))


@given(st.integers(0, 10**6))
def test_the_sum_of_the_two_point_function_is_the_susceptibility(seed: int):
    lattice = Lattice((4, 5), 0.5)
    mu = ox.Particles(torch.randn(2, 7, 20, generator=torch.Generator().manual_seed(seed)))
    chi = lattice.spacing**2 * TwoPoint(lattice)(mu).sum(-1)
    torch.testing.assert_close(chi, Susceptibility(lattice)(mu))
    torch.testing.assert_close(TwoPoint(lattice)(mu)[:, 0], mu.cov.diagonal(dim1=-2, dim2=-1).mean(-1))
    direct = Magnetisation(absolute=True)(mu)
    torch.testing.assert_close(direct, mu.x.mean(-1).abs().mean(-1))


def test_samples_lie_within_their_error_bars():
    lattice = Lattice((6, 6))
    law = free(lattice, 0.6, mean=0.1)
    mu = law.to_particles(6000, torch.Generator().manual_seed(3))
    for observable in every(lattice)[:-1]:
        seen, exact = observable.estimate(mu, blocks=30), observable(law)
        pull = (seen.value - exact) / seen.error
        assert pull.abs().max() < 4, observable
        assert pull.square().mean() > 1e-3, observable  # the error bars are no larger than they must be
    assert not observable.estimate(law).error.any()


def test_error_bars_are_those_of_repetition():
    lattice = Lattice((4, 4))
    law = free(lattice, 0.5)
    clouds = law.to_particles(200 * 400, torch.Generator().manual_seed(0)).x.reshape(200, 400, 16)
    for observable in (Susceptibility(lattice), CorrelationLength(lattice), Magnetisation(absolute=True)):
        seen = observable.estimate(ox.Particles(clouds), blocks=20)
        assert (seen.error.mean() / seen.value.std()).item() == pytest.approx(1.0, abs=0.15)


def test_effective_potential_of_samples():
    lattice = Lattice((3, 3))
    law = free(lattice, 0.8)
    potential = EffectivePotential(lattice, torch.linspace(-0.8, 0.8, 17))
    seen = potential.estimate(law.to_particles(40_000, torch.Generator().manual_seed(1)))
    assert ((seen.value - potential(law)).abs() < 4 * seen.error + 1e-3).all()
    assert potential(ox.Particles(torch.zeros(1, 9))).isinf().sum() == 16
    far = potential.estimate(ox.Particles(torch.full((40, 9), 5.0)))
    assert far.value.isinf().all() and far.error.isinf().all()


@pytest.mark.parametrize("lattice", LATTICES, ids=str)
def test_radial_average(lattice):
    like = torch.zeros(lattice.sites)
    G = TwoPoint(lattice)(free(lattice, 1.0))
    r, mean = radial(torch.stack([G, like + 2]), lattice)
    assert (r.diff() > 0).all() and r[0] == 0
    assert mean[0, 0] == G[0] and (mean[1] == 2).all()
    if lattice.dim == 1:
        torch.testing.assert_close(mean[0], G[: len(r)])


def test_they_observe_paths():
    lattice = Lattice((4, 4))
    mu = free(lattice, 0.5)
    path = ox.flow(ox.Heat(), mu, [0.0, 0.1, 0.3])
    run = ox.record(path, chi=Susceptibility(lattice), G=TwoPoint(lattice), m=Magnetisation())
    torch.testing.assert_close(run.series["chi"], torch.tensor([4.0 + 0.2, 4.0 + 0.6]))  # the heat flow adds 2t
    assert run.series["G"].shape == (2, 16)


def test_bad_input():
    lattice = Lattice((4, 4))
    with pytest.raises(ValueError, match="16 sites and the fields of the measure 3"):
        Susceptibility(lattice)(ox.Gaussian(torch.zeros(3), torch.eye(3)))
    with pytest.raises(TypeError, match="not for Quantiles"):
        Magnetisation()(ox.Quantiles(torch.linspace(0, 1, 5)))
    with pytest.raises(ValueError, match="evenly spaced"):
        EffectivePotential(lattice, torch.tensor([0.0, 1.0, 3.0]))
    with pytest.raises(ValueError, match="no wave vector but 0"):
        CorrelationLength(Lattice(1))(ox.Gaussian([0.0], [[1.0]]))
    with pytest.raises(ValueError, match="between 2 and the number of particles 5, not 20"):
        Magnetisation().estimate(ox.Particles(torch.zeros(5, 1)))
