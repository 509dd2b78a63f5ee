"""The reference for lattice field theories: long Hamiltonian Monte Carlo, with error bars from autocorrelations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from ..functionals.base import scalar_potential
from ..measures import Particles, Spectral
from .estimates import Estimate, Fields
from .models import gradient_of
from .modes import Matrix, Modes, as_matrix, check_same, root

TARGET = 0.85  # acceptance to which the leapfrog's step is tuned
WINDOW = 6.0  # autocorrelations are summed up to this many autocorrelation times


@dataclass(frozen=True, eq=False)
class LongRun:
    """Hamiltonian Monte Carlo of the law ∝ e^{−V₀(φ) − ½⟨φ, Pφ⟩} with kinetic energy ½⟨p, K⁻¹p⟩, p ~ N(0, K).

    `precision` P and `kinetic` K (P when not given) are matrices (N, N) or Spectral; where K is close to the Hessian of
    the action all modes turn at one speed, so near a transition K = spacing^d(−Δ + ξ⁻²) is the better choice. `chains`
    independent chains from N(0, K⁻¹) make `burn` trajectories that tune the step, then `samples` that count, of `leaps`
    leapfrog steps (Duane, Kennedy, Pendleton, Roweth 1987) each.

    It shares no step with the renormalisation flow: a referee for it, not a part.
    """

    V0: Any
    precision: Matrix
    kinetic: Matrix | None = None
    chains: int = field(default=16, kw_only=True)
    samples: int = field(default=1000, kw_only=True)
    burn: int = field(default=200, kw_only=True)
    leaps: int = field(default=8, kw_only=True)

    def __post_init__(self) -> None:
        for name, least in {"chains": 2, "samples": 10, "burn": 10, "leaps": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(f"LongRun needs {name} of at least {least}, not {getattr(self, name)}")
        object.__setattr__(self, "precision", as_matrix(self.precision, "precision"))
        kinetic = self.precision if self.kinetic is None else as_matrix(self.kinetic, "kinetic")
        check_same(self.precision, kinetic)
        Modes.of(kinetic).positive("kinetic")
        object.__setattr__(self, "kinetic", kinetic)

    def expect(self, generator: torch.Generator, **observables: Fields) -> dict[str, Estimate]:
        """E f for each f: fields (chains, N) -> (chains,) or (chains, k), with the error bars of `autocorrelated`."""
        series: dict[str, list[Tensor]] = {name: [] for name in observables}
        rates = []
        for phi, rate in self._walk(generator):
            rates.append(rate)
            for name, f in observables.items():
                series[name].append(f(phi))
        acceptance = torch.stack(rates).mean()
        return {name: autocorrelated(torch.stack(values, 1), acceptance) for name, values in series.items()}

    def draw(self, generator: torch.Generator, every: int = 1) -> Particles:
        """Every `every`-th field of each chain, one chain after the other: chains blocks of equal size."""
        kept = [phi for k, (phi, _) in enumerate(self._walk(generator)) if k % every == 0]
        return Particles(torch.stack(kept, 1).flatten(0, 1))

    @torch.no_grad()
    def _walk(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Fields (chains, N) after each trajectory that counts, with the acceptance."""
        inverse = Modes.of(self.kinetic).inverse
        half = root(inverse)
        phi = self._normal(generator) @ half
        step = longest = 0.5 * math.pi / self.leaps
        for k in range(self.burn + self.samples):
            velocity = self._normal(generator) @ half
            jitter = 0.8 + 0.4 * torch.rand((self.chains, 1), generator=generator, dtype=phi.dtype, device=phi.device)
            moved, end = self._leapfrog(inverse, phi, velocity, step * jitter)
            rate = torch.exp((self._energy(phi, velocity) - self._energy(moved, end)).clamp_max(0)).nan_to_num(0.0)
            draw = torch.rand(rate.shape, generator=generator, dtype=phi.dtype, device=phi.device)
            phi = torch.where((draw < rate)[:, None], moved, phi)
            if k < self.burn:
                step = min(longest, step * math.exp((rate.mean().item() - TARGET) / math.sqrt(1 + k)))
            else:
                yield phi, rate.mean()

    def _normal(self, generator: torch.Generator) -> Tensor:
        like = self.precision.diagonal()
        return torch.randn((self.chains, like.shape[-1]), generator=generator, dtype=like.dtype, device=like.device)

    def _energy(self, phi: Tensor, velocity: Tensor) -> Tensor:
        """Action plus kinetic energy, (chains,)."""
        quadratic = phi * (phi @ self.precision) + velocity * (velocity @ cast(Any, self.kinetic))
        return scalar_potential(self.V0, "V0")(phi) + 0.5 * quadratic.sum(-1)

    def _leapfrog(self, inverse: Matrix, phi: Tensor, velocity: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        def push(x: Tensor) -> Tensor:
            return (x @ self.precision + gradient_of(self.V0, x)) @ inverse

        velocity = velocity - 0.5 * step * push(phi)
        for k in range(self.leaps):
            phi = phi + step * velocity
            velocity = velocity - (0.5 if k == self.leaps - 1 else 1.0) * step * push(phi)
        return phi, velocity


def autocorrelated(series: Tensor, acceptance: Tensor | None = None) -> Estimate:
    """The mean of stationary chains, (chains, samples) or (chains, samples, k), with error² = 2τ Var/(chains·samples).

    τ = ½ + Σ ρ(t) is summed to the first t ≥ 6τ(t), with the autocorrelation ρ pooled over chains and corrected for the
    use of the mean that it measures. `ess` is 1/2τ, and `spread` the Gelman–Rubin ratio.
    Source: Wolff, "Monte Carlo errors with less errors" (2004), eqs. 31–42, and Sokal (1997) for the window.
    """
    chains, n = series.shape[:2]
    mean = series.mean((0, 1))
    gamma = _autocovariance(series - mean)
    tau, window = _window(gamma / gamma[0].clamp_min(torch.finfo(gamma.dtype).tiny))
    variance = gamma[0] * (1 + (2 * window + 1) / (chains * n))
    between = series.mean(1).var(0)
    spread = (1 - 1 / n + between / gamma[0].clamp_min(torch.finfo(gamma.dtype).tiny)).sqrt()
    error = (2 * tau * variance / (chains * n)).sqrt()
    return Estimate(mean, error, ess=1 / (2 * tau), acceptance=acceptance, spread=spread)


def _autocovariance(x: Tensor) -> Tensor:
    """Γ(t), (samples, …), averaged over pairs at distance t within each chain, and over chains."""
    n = x.shape[1]
    power = torch.fft.rfft(x, 2 * n, dim=1).abs().square()
    sums = torch.fft.irfft(power, 2 * n, dim=1)[:, :n].mean(0)
    pairs = torch.arange(n, 0, -1, dtype=x.dtype, device=x.device)
    return sums / pairs.reshape(-1, *[1] * (sums.ndim - 1))


def _window(rho: Tensor) -> tuple[Tensor, Tensor]:
    """τ at the first t ≥ WINDOW·τ(t), and that t; at least 0.05, for chains that jump to and fro."""
    tau = rho.cumsum(0) - 0.5
    t = torch.arange(len(rho), dtype=rho.dtype, device=rho.device).reshape(-1, *[1] * (rho.ndim - 1))
    reached = (t >= WINDOW * tau) & (t > 0)
    first = torch.where(reached.any(0), reached.int().argmax(0), len(rho) - 1)
    return tau.gather(0, first[None])[0].clamp_min(0.05), first.to(rho.dtype)


def moments() -> dict[str, Callable[[Tensor], Tensor]]:
    """The averages by which theories are compared: |m|, m², φ² and φ⁴ per site, m the average of the field."""
    return {
        "|m|": lambda phi: phi.mean(-1).abs(),
        "m²": lambda phi: phi.mean(-1).square(),
        "φ²": lambda phi: phi.square().mean(-1),
        "φ⁴": lambda phi: phi.pow(4).mean(-1),
    }


def moments_after(K: Spectral, R: Spectral) -> dict[str, Callable[[Tensor], Tensor]]:
    """The same averages of Kφ + N(0, R) given φ, in closed form: for `transition`, those of ν_t from fields of ν₀."""
    r, r0 = R.values.mean(), R.values[0] / R.values.numel()  # variances of the noise at a site and of its average

    def modulus(phi: Tensor) -> Tensor:
        """E|m + √r0·ξ| for ξ ~ N(0, 1)."""
        a = (phi @ K).mean(-1) / r0.sqrt()
        return r0.sqrt() * (math.sqrt(2 / math.pi) * torch.exp(-a.square() / 2) + a * torch.erf(a / math.sqrt(2)))

    def quartic(phi: Tensor) -> Tensor:
        square = (phi @ K).square()
        return (square.square() + 6 * r * square + 3 * r.square()).mean(-1)

    return {
        "|m|": modulus,
        "m²": lambda phi: (phi @ K).mean(-1).square() + r0,
        "φ²": lambda phi: (phi @ K).square().mean(-1) + r,
        "φ⁴": quartic,
    }
