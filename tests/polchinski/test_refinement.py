"""Spacing to zero and size to infinity: orders and rates of the free field, the mass of φ⁴."""

from __future__ import annotations

import math

import pytest
import torch

from otprox.lattice import Lattice
from otprox.polchinski.observables import TwoPoint
from otprox.polchinski.refinement import continuum, free_field, phi4_spacings, sizes, spacings


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("dim", "counts"), [(1, (16, 32, 64)), (2, (32, 64, 128)), (3, (16, 32, 64))])
@pytest.mark.parametrize("mass", [0.7, 1.5])
def test_the_two_point_function_converges_at_order_two(dim, counts, mass):
    ladder = spacings(counts, dim, mass=mass)
    assert ladder.orders[-1] == pytest.approx(2.0, abs=0.25)
    assert ladder.errors[-1] < 0.02 * ladder.targets[-1]


@pytest.mark.parametrize("r", [0.3, 1.0, 1.7])
def test_continuum_on_a_circle_in_closed_form(r):
    m, length = 0.8, 4.0
    want = math.cosh(m * (length / 2 - r)) / (2 * m * math.sinh(m * length / 2))
    assert continuum(r, m, 1, length) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_continuum_solves_its_equation(dim):
    m, r, h = 0.8, 1.1, 1e-3
    down, here, up = (continuum(x, m, dim) for x in (r - h, r, r + h))
    laplacian = (up - 2 * here + down) / h**2 + (dim - 1) / r * (up - down) / (2 * h)
    assert laplacian == pytest.approx(m**2 * here, rel=1e-5)
    assert continuum(r, m, dim, 80.0) == pytest.approx(here, rel=1e-12)


def test_many_points_at_once():
    """The whole continuum curve, not one distance of it."""
    lattice = Lattice((64, 64), 0.125)
    G = TwoPoint(lattice)(free_field(lattice, 1.0))
    want = [continuum(0.125 * k, 1.0, 2, 8.0) for k in (8, 16, 24, 32)]
    torch.testing.assert_close(G[[8, 16, 24, 32]], torch.tensor(want), rtol=3e-3, atol=0)


@pytest.mark.parametrize(("dim", "tolerance"), [(1, 1e-3), (2, 0.12), (3, 0.2)])
def test_the_error_of_a_finite_size_is_exponential(dim, tolerance):
    ladder = sizes((24, 28, 32, 36), dim)
    theta = 2 * math.asinh(0.125) / 0.25
    slower = (dim - 1) / 2 / 8.5  # the images of a torus decay as L^{−(d−1)/2}e^{−θL}
    assert ladder.rates[-1] == pytest.approx(theta + slower, rel=tolerance)
    assert all(x > y for x, y in zip(ladder.errors, ladder.errors[1:], strict=False))


def test_bare_phi4_grows_and_its_particle_gets_heavy():
    coarse, fine = phi4_spacings((4, 16), rng(0), chains=64, samples=100)
    growth = fine.square.value - coarse.square.value
    assert growth.item() == pytest.approx(math.log(4) / (2 * math.pi), rel=0.15)
    assert coarse.counterterm == fine.counterterm == 0
    drop = coarse.susceptibility.value - fine.susceptibility.value
    noise = (coarse.susceptibility.error**2 + fine.susceptibility.error**2).sqrt()
    assert drop > 5 * noise


def test_wick_ordered_phi4_converges():
    coarse, fine = phi4_spacings((8, 16), rng(1), wick=True, chains=64, samples=100)
    for rung in (coarse, fine):
        assert rung.counterterm == pytest.approx(-3 * rung.free)
        assert abs(rung.square.value - rung.free) < 0.02 + 3 * rung.square.error  # E :φ²:, while E φ² grows by 0.11
    gap = (coarse.susceptibility.value - fine.susceptibility.value).abs()
    assert gap < 0.1 + 3 * (coarse.susceptibility.error + fine.susceptibility.error)


def test_perturbation_theory():
    """To first order in g, E φ² of bare φ⁴ is G(0) − 3gG(0)·volume·ΣG(x)², and of Wick-ordered φ⁴ just G(0)."""
    g = 0.02
    bare, wick = (
        phi4_spacings((8,), rng(2), g=g, wick=on, chains=64, samples=300)[0].square.value for on in (False, True)
    )
    lattice = Lattice((8, 8), 0.5)
    G = free_field(lattice, 1.0).cov.row()
    first = 3 * g * G[0] * 0.25 * G.square().sum()
    assert (bare - G[0] + first).abs() < 0.15 * first + 0.004
    assert (wick - G[0]).abs() < 0.004


def test_bad_input():
    with pytest.raises(ValueError, match="multiples of 4"):
        spacings((8, 10), 1)
