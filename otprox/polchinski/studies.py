"""A study that anyone can rerun from a seed: φ⁴ from its renormalisation flow beside a long Hamiltonian run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..flow import flow, record
from ..lattice import Lattice
from ..measures import Particles
from ..measures.spectral import Spectral
from ..solvers import BlockSpins
from .covariances import HeatKernel
from .estimates import Estimate
from .fluctuations import Fluctuations
from .models import Phi4
from .potential import RenormalisedPotential
from .reference import LongRun, moments, moments_after
from .schemes import form_a
from .steps import Ascent, transition


@dataclass(frozen=True)
class LatticePhi4:
    """φ⁴ by its action Σ ½|∇φ|² + ½mass2·φ² + ¼gφ⁴ per site, mass2 of either sign, split for a flow with C_∞ ≻ 0.

    C_∞⁻¹ = spacing^d(−Δ + split), V₀ has the rest, μ = mass2 − split. In d = 2 with spacing 1 and g = 1 the transition
    is at mass2 = −1.27 (Loinaz, Willey 1998).
    """

    lattice: Lattice
    mass2: float
    g: float = 1.0
    split: float = 1.0

    @property
    def V0(self) -> Phi4:
        return Phi4(self.g, self.mass2 - self.split, self.lattice)

    def precision(self, mass2: float) -> Spectral:
        """spacing^d(−Δ + mass2), in float64."""
        symbol = self.lattice.laplacian(torch.zeros(self.lattice.sites, dtype=torch.float64))
        return Spectral(self.lattice.spacing**self.lattice.dim * (symbol + mass2), self.lattice)

    @property
    def scales(self) -> HeatKernel:
        """C_t = ∫₀ᵗe^{−sM}ds with M = C_∞⁻¹."""
        return HeatKernel(self.precision(self.split))

    def times(self, steps: int, reach: float = 7.0) -> list[float]:
        """Minus the scales of an ascent: ∞, then `reach`/split·(k/steps)^1.5 from where D_t is e^{−reach} of C_∞, to 0.

        A field that orders chooses its sign where D_t is about (N E m²)⁻¹ of C_∞, which steps even in t resolve; the
        short wavelengths come in at the end, which asks for shorter steps.
        """
        top = reach / (self.split * self.lattice.spacing**self.lattice.dim)
        return [-math.inf, *(-top * (1 - k / steps) ** 1.5 for k in range(steps)), 0.0]

    def ascend(self, generator: torch.Generator, *, particles: int, steps: int, chains: int, samples: int) -> Particles:
        """Fields of ν₀ from δ₀ through all scales, with ∇V_t by `chains` × `samples` fields of the fluctuation law.

        The few samples of a step are noise that averages over the steps. A warning tells where the chains disagree over
        windows of many steps.
        """
        method = Fluctuations(generator, chains=chains, samples=samples, burn=24, leaps=3, even=True)
        step = Ascent(RenormalisedPotential(self.V0, self.scales, method), generator)
        start = Particles(torch.zeros(particles, self.lattice.sites, dtype=torch.float64))
        return record(flow(step, start, self.times(steps))).final  # type: ignore[return-value]

    def fields(self, generator: torch.Generator, *, chains: int, each: int, every: int = 20) -> Particles:
        """Fields of ν₀ with their log-density up to a constant: `each` from so many chains, `every` trajectories apart.

        One block after the other, a chain a block.
        """
        run = LongRun(self.V0, self.precision(self.split), self.precision(0.5), chains=chains, samples=each * every)
        x = run.draw(generator, every).x
        return Particles(x, log_density=-self.V0(x) - 0.5 * (x * (x @ self.precision(self.split))).sum(-1))

    def refer_at(
        self, generator: torch.Generator, t: float, *, chains: int = 32, samples: int = 1000
    ) -> dict[str, Estimate]:
        """`moments` of ν_t, exact given fields of ν₀ by a long Hamiltonian run (`moments_after`)."""
        run = LongRun(self.V0, self.precision(self.split), self.precision(0.5), chains=chains, samples=samples)
        return run.expect(generator, **moments_after(*transition(self.scales, 0.0, t)))

    def refer(self, generator: torch.Generator, *, chains: int = 32, samples: int = 1000) -> dict[str, Estimate]:
        """`moments` of ν₀ by a long Hamiltonian run."""
        run = LongRun(self.V0, self.precision(self.split), self.precision(0.5), chains=chains, samples=samples)
        return run.expect(generator, **moments())


@dataclass(frozen=True, eq=False)
class Comparison:
    """The same averages by two samplers."""

    flow: dict[str, Estimate]
    reference: dict[str, Estimate]

    @property
    def pulls(self) -> dict[str, float]:
        """Differences in units of the two standard errors together."""
        return {name: self._pull(name) for name in self.reference}

    def _pull(self, name: str) -> float:
        a, b = self.flow[name], self.reference[name]
        return ((a.value - b.value) / (a.error.square() + b.error.square()).sqrt()).item()

    def __str__(self) -> str:
        rows = [f"{'':6}{'from scale':>20}{'Hamiltonian':>20}{'pull':>7}"]
        for name, pull in self.pulls.items():
            rows.append(f"{name:6}{_shown(self.flow[name]):>20}{_shown(self.reference[name]):>20}{pull:7.1f}")
        return "\n".join(rows)


@dataclass(frozen=True)
class Study:
    """Sizes of a comparison; the same seed gives the same numbers."""

    theory: LatticePhi4
    particles: int = field(default=64, kw_only=True)
    steps: int = field(default=50, kw_only=True)
    chains: int = field(default=8, kw_only=True)
    samples: int = field(default=4, kw_only=True)
    long: int = field(default=1000, kw_only=True)

    def run(self, seed: int = 0) -> Comparison:
        """Moments of ν₀ by ascent from δ₀ and by a long run, with standard errors."""
        rng = torch.Generator().manual_seed(seed)
        fields = self.theory.ascend(
            rng, particles=self.particles, steps=self.steps, chains=self.chains, samples=self.samples
        )
        ascent = {name: independent(f(fields.x)) for name, f in moments().items()}
        return Comparison(ascent, self.theory.refer(rng, samples=self.long))


@dataclass(frozen=True)
class ParticleJKO:
    """The JKO of form A on particles, fields of ν₀ with their density, from ν₀ to ν_t beside the exact law.

    Steps of t/steps and half of it, extrapolated: 2f(T_{τ/2}φ) − f(T_τφ) for each field φ, as the scheme is of first
    order. The same seed gives the same numbers.
    """

    theory: LatticePhi4
    solver: BlockSpins
    t: float = field(default=0.5, kw_only=True)
    steps: int = field(default=6, kw_only=True)
    chains: int = field(default=128, kw_only=True)
    each: int = field(default=4, kw_only=True)
    long: int = field(default=1000, kw_only=True)

    def run(self, seed: int = 0) -> Comparison:
        """Moments of ν_t by the particles and by the exact transition of a long run, with standard errors."""
        rng = torch.Generator().manual_seed(seed)
        start = self.theory.fields(rng, chains=self.chains, each=self.each)
        coarse, fine = (self._end(start, steps).x for steps in (self.steps, 2 * self.steps))
        seen = {
            name: independent((2 * f(fine) - f(coarse)).reshape(self.chains, self.each).mean(-1))
            for name, f in moments().items()
        }
        return Comparison(seen, self.theory.refer_at(rng, self.t, samples=self.long))

    def _end(self, start: Particles, steps: int) -> Particles:
        times = [self.t * k / steps for k in range(steps + 1)]
        return record(flow(form_a(self.theory.scales, solver=self.solver), start, times)).final  # type: ignore[return-value]


def independent(values: Tensor) -> Estimate:
    """The mean of independent numbers (n,) with its standard error."""
    return Estimate(values.mean(), values.std() / math.sqrt(len(values)))


def _shown(estimate: Estimate) -> str:
    return f"{estimate.value.item():.4f} ± {estimate.error.item():.4f}"
