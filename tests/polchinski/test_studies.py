"""φ⁴ from its flow beside a long run, small, on both sides of the transition; wells of opposite sign."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from otprox.flow import flow, record
from otprox.lattice import Lattice
from otprox.measures import Particles
from otprox.polchinski import (
    Ascent,
    Bridge,
    Fluctuations,
    HeatKernel,
    HermiteSites,
    Phi4,
    RenormalisedPotential,
    form_a,
)
from otprox.polchinski.reference import moments, moments_after
from otprox.polchinski.steps import transition
from otprox.polchinski.studies import LatticePhi4, ParticleJKO, Study, independent
from otprox.solvers import BlockSpins
from otprox.solvers.base import ConvergenceWarning

BOX = Lattice((4, 4))


@pytest.mark.parametrize("mass2", [-0.6, -2.2])
def test_the_ascent_agrees_with_a_long_run(mass2):
    seen = Study(LatticePhi4(BOX, mass2), particles=200, steps=24, chains=8, samples=2, long=300).run(0)
    assert max(abs(pull) for pull in seen.pulls.values()) < 3.5, str(seen)
    assert seen.flow["φ²"].error < 0.05 * seen.flow["φ²"].value
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


@pytest.mark.parametrize("mass2", [-0.6, -2.0])
def test_the_particle_jko_follows_the_exact_law_of_its_fields(mass2):
    """Extrapolated in the step, on both sides of the transition; not so with maps of modes alone, which keep the shape
    of ν₀."""
    theory, end = LatticePhi4(Lattice((8, 8)), mass2), 0.4
    start = theory.fields(torch.Generator().manual_seed(0), chains=100, each=2, every=10)
    want = {name: f(start.x).mean() for name, f in moments_after(*transition(theory.scales, 0.0, end)).items()}

    def gaps(sizes: tuple[int, ...] | None) -> dict[str, float]:
        step = form_a(theory.scales, solver=BlockSpins(theory.lattice, sizes))
        ends = [record(flow(step, start, [end * k / n for k in range(n + 1)])).final.x for n in (3, 6)]
        means = {name: [f(x).mean() for x in ends] for name, f in moments().items()}
        return {name: (2 * fine - coarse - want[name]).div(want[name]).item() for name, (coarse, fine) in means.items()}

    gap, linear = gaps(None), gaps(())
    assert max(abs(gap[name]) for name in gap) < 0.03, gap
    assert linear["φ⁴"] < -0.03 and abs(gap["φ⁴"]) < 0.5 * abs(linear["φ⁴"]), (gap, linear)


def test_the_particle_jko_beside_a_long_run():
    theory = LatticePhi4(BOX, -1.0)
    seen = ParticleJKO(theory, BlockSpins(BOX), steps=2, chains=60, each=2, long=60).run(0)
    assert max(abs(pull) for pull in seen.pulls.values()) < 3.5, str(seen)


def test_moments_after_a_transition():
    """In closed form given the fields, against samples of the Bridge."""
    theory, rng = LatticePhi4(BOX, -1.0), torch.Generator().manual_seed(0)
    phi = torch.randn(4, 16, generator=rng)
    many = phi.repeat_interleave(20000, 0)
    end = Bridge(theory.scales, rng)(Particles(many), 0.0, 0.4).mu.x
    for name, f in moments_after(*transition(theory.scales, 0.0, 0.4)).items():
        values = moments()[name](end).reshape(4, -1)
        assert ((values.mean(-1) - f(phi)) / (values.std(-1) / 20000**0.5)).abs().max() < 4, name


def test_chains_of_an_ascent_are_judged_over_its_steps():
    """Two samples a step are no ground for a warning; chains that stay in their wells are, and no step hides it."""
    theory = LatticePhi4(BOX, -2.2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        theory.ascend(torch.Generator().manual_seed(0), particles=8, steps=24, chains=8, samples=2)
    rng = torch.Generator().manual_seed(0)
    deep = RenormalisedPotential(Phi4(1.0, -12.0), HeatKernel(torch.ones(1, 1)), Fluctuations(rng, samples=2, burn=24))
    with pytest.warns(ConvergenceWarning, match="chains disagree"):
        record(flow(Ascent(deep, rng), Particles(torch.zeros(4, 1)), theory.times(24)))
