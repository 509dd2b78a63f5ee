"""Step doubling: an error estimate for any deterministic step, adaptive step sizes, Richardson's extrapolation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .measures import Density, Measure, Particles
from .measures.base import StepTooLarge
from .measures.distance import w2_squared
from .solvers import ConvergenceError, Out
from .solvers.extrapolation import extrapolate
from .steps import Step, finite, step_size

SAFETY, SHRINK, GROW = 0.9, 0.2, 5.0  # a new step size is SAFETY times the ideal one, and within these factors


@dataclass(frozen=True, eq=False)
class Richardson(Step):
    """ν₂ + (ν₂ − ν₁)/(2ᵖ − 1), with ν₁ one step over the interval, ν₂ two steps over its halves, p the step's order.

    One order more than the step, for three times its cost. The sum is taken along the geodesic on Gaussian, Quantiles
    and Particles, and cell by cell on a Density, where what falls below 0 is cut and the mass restored. It is a step
    for deterministic schemes: two draws of noise do not differ by an error in time.
    """

    step: Step
    order: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        _check(self.step, self.order)

    def __call__(self, mu: Measure, t0: float, t1: float, last: Any = None) -> Out:
        step_size(t0, t1)
        whole, halves = _doubled(self.step, mu, t0, t1, last)
        c = 1 / (2**self.order - 1)
        if isinstance(whole, Density) and isinstance(halves.mu, Density):
            new: Measure = _combined(whole, halves.mu, c)
        else:
            new = extrapolate(whole, halves.mu, c)
        return Out(finite(new, f"Richardson at t = {t0:g}"), halves.stats)


@dataclass(frozen=True, eq=False)
class Control:
    """What `Adaptive` did over an interval: accepted and rejected substeps, the estimated error (*batch,) that they
    added up to, and the size it would try next."""

    converged: Tensor
    iterations: Tensor
    error: Tensor
    rejected: int
    tau: float
    last: Any


@dataclass(frozen=True, eq=False)
class Adaptive(Step):
    """Substeps of `step` whose sizes are chosen so that the error made per unit of time is at most `tol`.

    A substep of size h is taken once as a whole and once in halves; their distance over 2ᵖ − 1 estimates the error of
    the halves, p the step's order, and the substep is kept when that is at most tol·h. The next size is
    h·0.9·(tol·h/error)^{1/p}. In a λ-convex flow, λ ≥ 0, errors do not grow, so that the error at time T is at most
    about tol·T, in the distance of the estimate: W2 for Gaussians and on the line, root mean square displacement for
    Particles, L1 for a Density in more dimensions.

    `first` is the size tried first, a hundredth of the interval unless given; later intervals start from the last size.
    A size that the step refuses, above the limit of its stability or convexity, is rejected like one with a large
    error. The stats are a `Control`. A size below 1e-10 of the interval is a ConvergenceError.

    >>> import otprox as ox
    >>> target, mu = ox.Gaussian([0.0], [[1.0]]), ox.Gaussian([2.0], [[1.0]])
    >>> out = ox.Adaptive(ox.BDF2(ox.KL(target)), tol=1e-3, order=2)(mu, 0.0, 1.0)
    >>> print(f"{out.mu.mean.item():.3f} after {int(out.stats.iterations)} substeps; exactly 2/e = 0.736")
    0.735 after 10 substeps; exactly 2/e = 0.736
    """

    step: Step
    tol: float
    order: int = field(default=1, kw_only=True)
    first: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        _check(self.step, self.order)
        for name, value in (("tol", self.tol), ("first", self.first)):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"Adaptive needs {name} > 0, not {value}")

    def __call__(self, mu: Measure, t0: float, t1: float, last: Any = None) -> Out:
        span = step_size(t0, t1)
        known = last if isinstance(last, Control) else None
        tau, inner = (known.tau, known.last) if known else (self.first or span / 100, None)
        t, accepted, rejected, total = t0, 0, 0, mu.anchor.new_zeros(mu.batch)
        while t < t1:
            end = t + tau if t + tau * (1 + 1e-9) < t1 else t1
            halves, error = self._try(mu, t, end, inner)
            kept, ideal = self._judge(error.max().item(), end - t)
            tau = max(tau, ideal) if kept and end == t1 else ideal  # a last substep cut short says little of the next
            if kept:
                t, mu, inner = end, halves.mu, halves.stats
                accepted, total = accepted + 1, total + error
            else:
                rejected += 1
                self._check_size(tau, span, t)
        count = torch.full(mu.batch, accepted, dtype=torch.int64, device=mu.anchor.device)
        return Out(mu, Control(torch.ones_like(count, dtype=torch.bool), count, total, rejected, tau, inner))

    def _try(self, mu: Measure, t0: float, t1: float, last: Any) -> tuple[Out, Tensor]:
        """The substep in halves and its estimated error, infinite where the step refuses the size."""
        try:
            whole, halves = _doubled(self.step, mu, t0, t1, last)
        except StepTooLarge:
            return Out(mu), mu.anchor.new_full(mu.batch, math.inf)
        return halves, gap(whole, halves.mu) / (2**self.order - 1)

    def _judge(self, error: float, h: float) -> tuple[bool, float]:
        """Whether a substep of size h is kept, and the size that would meet `tol` with a margin."""
        allowed = self.tol * h
        if error == 0:
            return True, GROW * h
        factor = SAFETY * (allowed / error) ** (1 / self.order)
        return error <= allowed, h * min(GROW, max(SHRINK, factor))

    def _check_size(self, tau: float, span: float, t: float) -> None:
        if tau < 1e-10 * span:
            raise ConvergenceError(
                f"Adaptive would need substeps of {tau:.3g} at t = {t:g} for an error of {self.tol:g} per unit of "
                "time: raise tol, take float64, or lower the tolerance of the solver; the estimate sees rounding and "
                "the solver's own error too"
            )


def gap(mu: Measure, nu: Measure) -> Tensor:
    """The distance of two approximations of one measure, (*batch,): W2 for Gaussians and on the line, root mean square
    displacement of Particles, L1 of a Density in more dimensions."""
    if isinstance(mu, Particles) and isinstance(nu, Particles):
        moved = mu.domain.displacement(mu.x, nu.x).square().sum(-1)
        return (mu.w * moved).sum(-1).sqrt()
    if isinstance(mu, Density) and isinstance(nu, Density) and (mu.dim > 1 or any(mu.grid.periodic)):
        return (mu.values - nu.values).abs().flatten(-mu.dim).sum(-1) * mu.grid.volume
    return w2_squared(mu, nu).clamp_min(0).sqrt()


def _doubled(step: Step, mu: Measure, t0: float, t1: float, last: Any) -> tuple[Measure, Out]:
    """One step over the interval, and two over its halves."""
    mid = (t0 + t1) / 2
    first = step(mu, t0, mid, last)
    return step(mu, t0, t1, last).mu, step(first.mu, mid, t1, first.stats)


def _combined(whole: Density, halves: Density, c: float) -> Density:
    values = (halves.values + c * (halves.values - whole.values)).clamp_min(0)
    over = tuple(range(-halves.dim, 0))
    return halves.with_state(values=values / (values.sum(over, keepdim=True) * halves.grid.volume))


def _check(step: Step, order: int) -> None:
    if not isinstance(step, Step):
        raise TypeError(f"step must be a Step such as Backward(F), not {step!r}")
    if step.generators():
        raise TypeError("step doubling sees errors in time only; give it a deterministic step, without noise")
    if isinstance(order, bool) or not isinstance(order, int) or order < 1:
        raise ValueError(f"order must be a whole number, at least 1, not {order!r}")
