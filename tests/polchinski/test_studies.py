"""φ⁴ from its flow beside a long run, small, on both sides of the transition; wells of opposite sign."""

from __future__ import annotations

import math

import pytest
import torch

from otprox.lattice import Lattice
from otprox.polchinski import Fluctuations, HermiteSites, Phi4
from otprox.polchinski.studies import LatticePhi4, Study, independent
from otprox.solvers.base import ConvergenceWarning

BOX = Lattice((4, 4))


@pytest.mark.parametrize("mass2", [-0.6, -2.2])
def test_the_ascent_agrees_with_a_long_run(mass2):
    seen = Study(LatticePhi4(BOX, mass2), particles=200, steps=24, chains=8, samples=2, long=300).run(0)
    assert max(abs(pull) for pull in seen.pulls.values()) < 3.5, str(seen)
    assert seen.ascent["φ²"].error < 0.05 * seen.ascent["φ²"].value
    ordered = seen.reference["|m|"].value ** 2 / seen.reference["m²"].value  # 2/π for a Gaussian, 1 for two points
    assert (ordered < 0.75) if mass2 > -1 else (ordered > 0.95)


def test_a_seed_is_a_result():
    study = Study(LatticePhi4(BOX, -1.0), particles=8, steps=4, chains=2, samples=2, long=20)
    first, again, other = study.run(3), study.run(3), study.run(4)
    assert str(first) == str(again) != str(other)


def test_the_split_does_not_change_the_theory():
    phi = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    actions = []
    for split in (0.5, 2.0):
        theory = LatticePhi4(Lattice((4, 4), 0.5), -0.7, g=1.3, split=split)
        P = theory.precision(split)
        actions.append(theory.V0(phi) + 0.5 * (phi * (phi @ P)).sum(-1))
    torch.testing.assert_close(*actions)
    grid = phi.reshape(3, 4, 4)
    bonds = sum((grid - grid.roll(1, axis)).square().sum((-1, -2)) for axis in (-1, -2))
    local = 0.25 * (-0.35 * phi.square() + 0.25 * 1.3 * phi**4).sum(-1)
    torch.testing.assert_close(actions[0], 0.5 * bonds + local)


def test_times_reach_small_remainders():
    theory = LatticePhi4(Lattice((4, 4), 0.5), -0.7, split=0.5)
    first, start, *_, end = theory.times(10)
    assert first == -math.inf and end == 0
    left = theory.scales.remaining(-start).values[0] / theory.scales.limit.values[0]
    assert left.item() == pytest.approx(math.exp(-7))


@pytest.mark.parametrize("phi", [0.3, -0.4])
def test_even_theories_weigh_their_wells(phi):
    V0, C, at = Phi4(1.0, -10.0), torch.ones(1, 1), torch.tensor([[phi]])
    want = HermiteSites().gradient(V0, C, at).value
    rng = torch.Generator().manual_seed(0)
    with pytest.warns(ConvergenceWarning, match="chains disagree"):
        stuck = Fluctuations(rng, chains=400, samples=20).gradient(V0, C, at)
    free = Fluctuations(rng, chains=400, samples=20, even=True).gradient(V0, C, at)
    assert (free.value - want).abs() < 4 * free.error
    assert (stuck.value - want).abs() > 6 * stuck.error


def test_even_changes_no_law_that_needed_no_help():
    V0, C = Phi4(1.0, 0.5), torch.tensor([[0.8, 0.2], [0.2, 0.6]])
    phi = torch.tensor([[0.3, -0.2], [0.0, 0.0]])
    method = Fluctuations(torch.Generator().manual_seed(1), chains=400, samples=40, even=True)
    seen, want = method.gradient(V0, C, phi), HermiteSites().gradient(V0, C, phi).value
    assert ((seen.value - want) / seen.error).abs().max() < 4


def test_independent_numbers():
    seen = independent(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert seen.value == 2.5 and seen.error.item() == pytest.approx(math.sqrt(5 / 3) / 2)
