"""Renormalised potentials by sampling the fluctuation measure: Hamiltonian Monte Carlo, with error bars."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..functionals.base import scalar_potential
from ..solvers.base import ConvergenceWarning
from .estimates import Estimate, Fields
from .models import gradient_of
from .modes import Matrix, Modes, root

TARGET = 0.8  # acceptance to which the step of the chains is tuned
WATCHED = 32  # samples of a chain over which chains that resume are judged


@dataclass(frozen=True, eq=False)
class Whitened:
    """−log of e^{−βV₀(φ+ζ)}g_C(dζ) in the variable η with ζ = C^½η: U(η) = βV₀(φ + C^½η) + ½|η|².

    φ: (*batch, n, N), η: (chains, *batch, n, N), β: a number or (*batch, n). In η every mode of the Gaussian part has
    unit variance, so that steps of order one serve all scales, also where C is nearly singular.
    """

    V0: Any
    half: Matrix
    phi: Tensor
    beta: Tensor | float = 1.0

    def field(self, eta: Tensor) -> Tensor:
        """φ + ζ."""
        return self.phi + eta @ self.half

    def interaction(self, eta: Tensor) -> Tensor:
        """V₀(φ + ζ), (chains, *batch, n)."""
        return scalar_potential(self.V0, "V0")(self.field(eta))

    def energy(self, eta: Tensor, p: Tensor) -> Tensor:
        """U(η) + ½|p|²."""
        return self.beta * self.interaction(eta) + 0.5 * (eta.square() + p.square()).sum(-1)

    def force(self, eta: Tensor) -> Tensor:
        """βC^½∇V₀(φ + ζ)."""
        beta = self.beta[..., None] if isinstance(self.beta, Tensor) else self.beta
        return beta * (gradient_of(self.V0, self.field(eta)) @ self.half)

    @cached_property
    def centre(self) -> Tensor:
        """C^{−½}φ: minus the η at which the field φ + ζ vanishes."""
        return self.phi @ Modes.of(self.half).inverse

    def start(self, chains: int, generator: torch.Generator) -> Tensor:
        return _normal((chains, *self.phi.shape), self.phi, generator)


@dataclass(frozen=True, eq=False)
class Window:
    """Sums over the last samples of each chain: of η and η², (chains, *batch, n, N), and acceptances, (*batch, n)."""

    samples: int
    first: Tensor
    second: Tensor
    accepted: Tensor

    def __add__(self, other: Window) -> Window:
        pairs = ((self.first, other.first), (self.second, other.second), (self.accepted, other.accepted))
        return Window(self.samples + other.samples, *(a + b for a, b in pairs))

    @property
    def acceptance(self) -> Tensor:
        return self.accepted / self.samples

    @property
    def spread(self) -> Tensor:
        """R̂ of η, pooled over all sites: their largest would be noise."""
        mean = self.first / self.samples
        within = (self.second / self.samples - mean.square()).mean(0) * self.samples / (self.samples - 1)
        ratio = mean.var(0).sum(-1) / within.sum(-1).clamp_min(torch.finfo(mean.dtype).tiny)
        return (1 - 1 / self.samples + ratio).sqrt()


@dataclass(frozen=True, eq=False)
class Chains:
    """Where the chains of each field stand: η (chains, *batch, n, N) in whitened units, and their steps (*batch, n).

    Whitened, they stay near the fluctuation measure when C and φ change a little: a start for the next ones. `window`
    holds what they did since they were last judged.
    """

    eta: Tensor
    step: Tensor
    window: Window

    def judged(self, at_least: int = WATCHED) -> Chains:
        """Warn where the chains disagree or stand still over a window of `at_least` samples, and begin another.

        Itself while the window is shorter.
        """
        if self.window.samples < at_least:
            return self
        _warn_of_chains(self.window.spread, self.window.acceptance)
        empty = Window(0, *(torch.zeros_like(t) for t in (self.window.first, self.window.second, self.window.accepted)))
        return replace(self, window=empty)


@dataclass(frozen=True, eq=False)
class Fluctuations:
    """Sampling of the fluctuation measure ∝ e^{−V₀(φ+ζ)}g_C(dζ), many independent chains for each field φ at once.

    ∇V_C(φ) = E ∇V₀(φ+ζ) by Hamiltonian Monte Carlo with mass C⁻¹: `chains` × `samples`, after `burn` trajectories that
    tune the step. V_C(φ) = ∫₀¹E_β V₀(φ+ζ)dβ, with βV₀ for V₀, by thermodynamic integration on `temperatures` Gauss
    nodes: for 10 of them an error of 2e-7 a mode while C·∇²V₀ ≤ 10, and 4e-4 at 100. Error bars come from the spread of
    independent chains, so what is correlated within one is counted. The leapfrog turns the Gaussian part exactly and
    kicks by V₀ (Neal 2011, 5.5.1): for V₀ = 0 it has no error.

    `even` says that V₀(−φ) = V₀(φ). Each trajectory is then followed by the proposal of −φ − ζ, which gives two wells
    of opposite sign their weights where no trajectory crosses from one to the other.
    """

    generator: torch.Generator
    chains: int = field(default=32, kw_only=True)
    samples: int = field(default=64, kw_only=True)
    burn: int = field(default=64, kw_only=True)
    leaps: int = field(default=5, kw_only=True)
    temperatures: int = field(default=10, kw_only=True)
    even: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("chains", "samples", "burn", "leaps", "temperatures"):
            if getattr(self, name) < 2:
                raise ValueError(f"Fluctuations needs {name} of at least 2, not {getattr(self, name)}")

    def supports(self, V0: Any, sites: int) -> str | None:
        return None

    def gradient(self, V0: Any, C: Matrix, phi: Tensor) -> Estimate:
        return self.expect(V0, C, phi, lambda psi: gradient_of(V0, psi))

    def resume(self, V0: Any, C: Matrix, phi: Tensor, last: Chains | None = None) -> tuple[Estimate, Chains]:
        """∇V_C(φ) from where the chains of a nearby φ and C stand, with an eighth of the burn; and where they stop.

        For paths of fields in small steps. Without `last`, or where its shape does not fit, from N(0, C) as `gradient`.
        A step may have few samples, so it does not warn: the chains carry their `window` along, to be `judged`.
        """
        means, chains = self._run(Whitened(V0, root(C), phi), lambda psi: gradient_of(V0, psi), last)
        estimate = self._over_chains(means, chains.window)
        if last is not None and last.eta.shape == chains.eta.shape:
            chains = replace(chains, window=last.window + chains.window)
        return estimate, chains

    def expect(self, V0: Any, C: Matrix, phi: Tensor, f: Fields) -> Estimate:
        means, chains = self._run(Whitened(V0, root(C), phi), f)
        return _warned(self._over_chains(means, chains.window))

    def value(self, V0: Any, C: Matrix, phi: Tensor) -> Estimate:
        node, weight = gauss_unit(self.temperatures, phi)
        beta, weight = node.square(), 2 * node * weight  # β = u², whose nodes crowd at 0, where E_β V₀ changes fastest
        levels = phi.expand(self.temperatures, *phi.shape)
        column = (-1, *[1] * (phi.ndim - 1))
        target = Whitened(V0, root(C), levels, beta.reshape(column))
        means, chains = self._run(target, scalar_potential(V0, "V0"))
        estimate = self._over_chains((weight.reshape(column) * means).sum(1), chains.window)
        worst = replace(estimate, acceptance=chains.window.acceptance.amin(0), spread=chains.window.spread.amax(0))
        return _warned(worst)

    @torch.no_grad()
    def _run(self, target: Whitened, f: Fields, last: Chains | None = None) -> tuple[Tensor, Chains]:
        """Means of f over each chain; and where the chains end, with what they did."""
        eta, step = self._burn_in(target, last)
        total = first = second = accepted = target.phi.new_zeros(())
        for _ in range(self.samples):
            eta, rate = self._trajectory(target, eta, step)
            total, accepted = total + f(target.field(eta)), accepted + rate.mean(0)
            first, second = first + eta, second + eta.square()
        return total / self.samples, Chains(eta, step, Window(self.samples, first, second, accepted))

    def _over_chains(self, means: Tensor, window: Window) -> Estimate:
        error = means.std(0) / math.sqrt(self.chains)
        return Estimate(means.mean(0), error, acceptance=window.acceptance, spread=window.spread)

    def _burn_in(self, target: Whitened, last: Chains | None) -> tuple[Tensor, Tensor]:
        """Chains from N(0, C), or from `last`, and a step for each φ tuned to the acceptance that leapfrog likes."""
        longest = 0.5 * math.pi / self.leaps  # a quarter turn, which would make a trajectory independent if V₀ were 0
        if last is not None and last.eta.shape == (self.chains, *target.phi.shape):
            eta, step, done, count = last.eta, last.step, self.burn, max(1, self.burn // 8)
        else:
            eta, done, count = target.start(self.chains, self.generator), 0, self.burn
            step = target.phi.new_full(target.phi.shape[:-1], longest)
        for k in range(done, done + count):
            eta, rate = self._trajectory(target, eta, step)
            step = (step * torch.exp((rate.mean(0) - TARGET) / math.sqrt(1 + k))).clamp_max(longest)
        return eta, step

    def _trajectory(self, target: Whitened, eta: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """One trajectory of all chains from fresh momenta, accepted or not; with the acceptance probabilities."""
        p = _normal(eta.shape, eta, self.generator)
        jitter = 0.8 + 0.4 * torch.rand(eta.shape[:-1], generator=self.generator, dtype=eta.dtype, device=eta.device)
        moved, end = self._leapfrog(target.force, eta, p, (step * jitter)[..., None])
        gain = target.energy(eta, p) - target.energy(moved, end)
        rate = torch.exp(gain.clamp_max(0)).nan_to_num(0.0)  # a trajectory that blew up is refused
        eta = torch.where((self._uniform(rate) < rate)[..., None], moved, eta)
        return (self._turned(target, eta) if self.even else eta), rate

    def _turned(self, target: Whitened, eta: Tensor) -> Tensor:
        """φ + ζ or −φ − ζ, which is −η − 2C^{−½}φ in η, by the Gaussian part alone as V₀ is the same (Metropolis)."""
        shift = 2 * target.centre
        odds = torch.exp((-shift * (eta + shift / 2)).sum(-1)).nan_to_num(0.0)
        return torch.where((self._uniform(odds) < odds)[..., None], -eta - shift, eta)

    def _uniform(self, like: Tensor) -> Tensor:
        return torch.rand(like.shape, generator=self.generator, dtype=like.dtype, device=like.device)

    def _leapfrog(
        self, force: Callable[[Tensor], Tensor], eta: Tensor, p: Tensor, angle: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Half a kick, then turns by `angle` in the plane (η, p) with whole kicks between, and half a kick."""
        cos, sin = angle.cos(), angle.sin()
        p = p - 0.5 * angle * force(eta)
        for k in range(self.leaps):
            eta, p = cos * eta + sin * p, cos * p - sin * eta
            p = p - (0.5 if k == self.leaps - 1 else 1.0) * angle * force(eta)
        return eta, p


@dataclass(frozen=True, eq=False)
class Importance:
    """Plain importance sampling, ζ ~ N(0, C) weighted by e^{−V₀(φ+ζ)}: for a few sites or tiny C only.

    Its variance grows exponentially with the number of sites. `ess` says how much is left; below a tenth the error bar
    is no longer to be trusted (a few weights decide, and the largest were not drawn), which gives a ConvergenceWarning.
    """

    generator: torch.Generator
    samples: int = field(default=4096, kw_only=True)

    def supports(self, V0: Any, sites: int) -> str | None:
        return None

    def value(self, V0: Any, C: Matrix, phi: Tensor) -> Estimate:
        return _free_energy(self._draw(V0, C, phi)[0])

    def gradient(self, V0: Any, C: Matrix, phi: Tensor) -> Estimate:
        return self.expect(V0, C, phi, lambda psi: gradient_of(V0, psi))

    def expect(self, V0: Any, C: Matrix, phi: Tensor, f: Fields) -> Estimate:
        log_w, psi = self._draw(V0, C, phi)
        w, values = log_w.softmax(0), f(psi)
        ess = 1 / w.square().sum(0) / self.samples
        w = w[..., None] if values.ndim > w.ndim else w
        mean = (w * values).sum(0)
        error = (w * (values - mean)).square().sum(0).sqrt()
        return _warned(Estimate(mean, error, ess=ess))

    @torch.no_grad()
    def _draw(self, V0: Any, C: Matrix, phi: Tensor) -> tuple[Tensor, Tensor]:
        target = Whitened(V0, root(C), phi)
        eta = target.start(self.samples, self.generator)
        return -target.interaction(eta), target.field(eta)


def _free_energy(log_w: Tensor) -> Estimate:
    """−log of the mean of w over the leading axis, with the bias and the error of the jackknife, and ess."""
    n = log_w.shape[0]
    peak = log_w.amax(0)
    w = torch.exp(log_w - peak)
    whole = -(w.mean(0).log() + peak)
    rest = ((w.sum(0) - w) / (n - 1)).clamp_min(torch.finfo(w.dtype).tiny)
    without = -(rest.log() + peak)
    value = n * whole - (n - 1) * without.mean(0)
    error = ((n - 1) * (without - without.mean(0)).square().mean(0)).sqrt()
    return _warned(Estimate(value, error, ess=w.sum(0).square() / w.square().sum(0) / n))


def gauss_unit(count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Gauss–Legendre nodes and weights on [0, 1] (Golub, Welsch 1969)."""
    k = torch.arange(1, count, dtype=torch.float64)
    off = torch.diag(k / (4 * k * k - 1).sqrt(), 1)
    nodes, vectors = torch.linalg.eigh(off + off.mT)
    return ((nodes + 1) / 2).to(like), (vectors[0] ** 2).to(like)


def _warned(estimate: Estimate) -> Estimate:
    """The estimate itself, after a ConvergenceWarning when its diagnostics say that its error bar means little."""
    if estimate.ess is not None and (left := estimate.ess.min().item()) < 0.1:
        _warn(f"the weights collapsed: {left:.3g} of the samples are effective; use Fluctuations")
    if estimate.spread is not None and estimate.acceptance is not None:
        _warn_of_chains(estimate.spread, estimate.acceptance)
    return estimate


def _warn_of_chains(spread: Tensor, acceptance: Tensor) -> None:
    if (worst := spread.max().item()) > 1.2:
        _warn(f"the chains disagree (R̂ = {worst:.3g} > 1.2): give more burn and samples")
    if (rate := acceptance.min().item()) < 0.2:
        _warn(f"the chains accept only {rate:.3g} of their moves: give more burn, which tunes the step, or more leaps")


def _warn(message: str) -> None:
    warnings.warn(message, ConvergenceWarning, stacklevel=4)


def _normal(shape: Any, like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
