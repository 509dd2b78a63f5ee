"""Renormalised potentials by sampling the fluctuation measure: Hamiltonian and annealed, with error bars."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..functionals.base import scalar_potential
from ..solvers.base import ConvergenceWarning
from .estimates import Estimate, Fields
from .models import gradient_of
from .modes import Matrix, apply, root

TARGET = 0.8  # acceptance to which the step of the chains is tuned


@dataclass(frozen=True, eq=False)
class Whitened:
    """−log of e^{−V₀(φ+ζ)}g_C(dζ) in the variable η with ζ = C^½η: U(η) = βV₀(φ + C^½η) + ½|η|².

    φ: (*batch, n, N), η: (chains, *batch, n, N). In η every mode of the Gaussian part has unit variance, so that steps
    of order one serve all scales, also where C is nearly singular.
    """

    V0: Any
    half: Matrix
    phi: Tensor

    def field(self, eta: Tensor) -> Tensor:
        """φ + ζ."""
        return self.phi + apply(self.half, eta)

    def interaction(self, eta: Tensor) -> Tensor:
        """V₀(φ + ζ), (chains, *batch, n)."""
        return scalar_potential(self.V0, "V0")(self.field(eta))

    def force(self, eta: Tensor) -> Tensor:
        """C^½∇V₀(φ + ζ)."""
        return apply(self.half, gradient_of(self.V0, self.field(eta)))

    def start(self, chains: int, generator: torch.Generator) -> Tensor:
        return _normal((chains, *self.phi.shape), self.phi, generator)


@dataclass(frozen=True, eq=False)
class Fluctuations:
    """Sampling of the fluctuation measure ∝ e^{−V₀(φ+ζ)}g_C(dζ), many independent chains for each field φ at once.

    ∇V_C(φ) = E ∇V₀(φ+ζ) by Hamiltonian Monte Carlo with mass C⁻¹ (`chains` × `samples`, after `burn` trajectories that
    tune the step); V_C(φ) by annealed importance sampling through `temperatures` levels (Neal 2001), jackknifed over
    the chains. Error bars come from the spread of independent chains, so what is correlated within one is counted.
    The leapfrog turns the Gaussian part exactly and kicks by V₀ (Neal 2011, 5.5.1): for V₀ = 0 it has no error.
    """

    generator: torch.Generator
    chains: int = field(default=32, kw_only=True)
    samples: int = field(default=64, kw_only=True)
    burn: int = field(default=64, kw_only=True)
    leaps: int = field(default=5, kw_only=True)
    temperatures: int = field(default=64, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("chains", "samples", "burn", "leaps", "temperatures"):
            if getattr(self, name) < 2:
                raise ValueError(f"Fluctuations needs {name} of at least 2, not {getattr(self, name)}")

    def supports(self, V0: Any, sites: int) -> str | None:
        return None

    def gradient(self, V0: Any, C: Matrix, phi: Tensor) -> Estimate:
        return self.expect(V0, C, phi, lambda psi: gradient_of(V0, psi))

    def expect(self, V0: Any, C: Matrix, phi: Tensor, f: Fields) -> Estimate:
        target = Whitened(V0, root(C), phi)
        eta, step = self._burn_in(target)
        total = square = accepted = torch.zeros((), dtype=phi.dtype, device=phi.device)
        for _ in range(self.samples):
            eta, rate = self._trajectory(target, eta, step)
            values = f(target.field(eta))
            total, square, accepted = total + values, square + values.square(), accepted + rate.mean(0)
        mean = total / self.samples
        within = (square / self.samples - mean.square()).clamp_min(0).mean(0)
        spread = (1 - 1 / self.samples + mean.var(0) / within.clamp_min(torch.finfo(phi.dtype).tiny)).sqrt()
        if spread.ndim == phi.ndim:
            spread = spread.amax(-1)
        return _warned(
            Estimate(
                mean.mean(0),
                mean.std(0) / math.sqrt(self.chains),
                acceptance=accepted / self.samples,
                spread=spread,
            )
        )

    def value(self, V0: Any, C: Matrix, phi: Tensor) -> Estimate:
        target = Whitened(V0, root(C), phi)
        steps = self._anneal(target, None)[
            1
        ]  # a first pass tunes; the second, with fixed steps, has independent chains
        return _free_energy(self._anneal(target, steps)[0])

    def _anneal(self, target: Whitened, steps: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        """log weights (chains, *batch, n) of annealed importance sampling, and the step at every temperature."""
        eta, log_w = target.start(self.chains, self.generator), target.phi.new_zeros(())
        step, used = self._first_step(target), []
        for j in range(1, self.temperatures + 1):
            beta, before = (j / self.temperatures) ** 2, ((j - 1) / self.temperatures) ** 2
            log_w = log_w - (beta - before) * target.interaction(eta)
            step = step if steps is None else steps[j - 1]
            used.append(step)
            eta, rate = self._trajectory(target, eta, step, beta)
            step = self._tuned(step, rate, 0.5)
        return log_w, used

    def _burn_in(self, target: Whitened) -> tuple[Tensor, Tensor]:
        eta, step = target.start(self.chains, self.generator), self._first_step(target)
        for k in range(self.burn):
            eta, rate = self._trajectory(target, eta, step)
            step = self._tuned(step, rate, 1 / math.sqrt(1 + k))
        return eta, step

    def _first_step(self, target: Whitened) -> Tensor:
        """A quarter turn in one trajectory, which would make it independent of the last if V₀ were 0."""
        return target.phi.new_full(target.phi.shape[:-1], 0.5 * math.pi / self.leaps)

    def _tuned(self, step: Tensor, rate: Tensor, gain: float) -> Tensor:
        return (step * torch.exp(gain * (rate.mean(0) - TARGET))).clamp_max(0.5 * math.pi / self.leaps)

    def _trajectory(self, target: Whitened, eta: Tensor, step: Tensor, beta: float = 1.0) -> tuple[Tensor, Tensor]:
        """One trajectory of all chains from fresh momenta, accepted or not; with the acceptance probabilities."""
        p = _normal(eta.shape, eta, self.generator)
        jitter = 0.8 + 0.4 * torch.rand(eta.shape[:-1], generator=self.generator, dtype=eta.dtype, device=eta.device)
        angle = (step * jitter)[..., None]
        start = beta * target.interaction(eta) + 0.5 * (eta.square() + p.square()).sum(-1)
        moved, p = self._leapfrog(lambda x: beta * target.force(x), eta, p, angle)
        end = beta * target.interaction(moved) + 0.5 * (moved.square() + p.square()).sum(-1)
        rate = torch.exp((start - end).clamp_max(0)).nan_to_num(0.0)  # a trajectory that blew up is refused
        draw = torch.rand(rate.shape, generator=self.generator, dtype=eta.dtype, device=eta.device)
        return torch.where((draw < rate)[..., None], moved, eta), rate

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


def _warned(estimate: Estimate) -> Estimate:
    """The estimate itself, after a ConvergenceWarning when its diagnostics say that its error bar means little."""
    if estimate.ess is not None and (left := estimate.ess.min().item()) < 0.1:
        _warn(f"the weights collapsed: {left:.3g} of the samples are effective; use Fluctuations, more temperatures")
    if estimate.spread is not None and (spread := estimate.spread.max().item()) > 1.2:
        _warn(f"the chains disagree (R̂ = {spread:.3g} > 1.2): give more burn and samples")
    if estimate.acceptance is not None and (rate := estimate.acceptance.min().item()) < 0.2:
        _warn(f"the chains accept only {rate:.3g} of their moves: give more burn, which tunes the step, or more leaps")
    return estimate


def _warn(message: str) -> None:
    warnings.warn(message, ConvergenceWarning, stacklevel=4)


def _normal(shape: Any, like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
