"""Implicit steps on particles that keep the invariants of the metric: midpoint rule and discrete gradient."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .functionals import Functional
from .measures import Measure, Particles, Velocity
from .measures.base import StepTooLarge
from .metrics import Metric, Wasserstein
from .solvers import Out, Stats
from .solvers.base import OnFailure, report, rewinding, warm_start
from .solvers.fixed_point import FixedPoint, differentiable, fixed_point, norm
from .steps import Step, check_nouns, finite, generators_of, step_size, unconstrained

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Conservative(Step):
    """x₁ = x₀ + tau·v with v = −K_μ̄ g, where μ̄ = (x₀ + x₁)/2 is the measure half way; on Particles.

    Whatever the covector g, what K keeps for every covector is kept by the step: for `Landau` momentum to rounding,
    and the energy ½Σw|x|² up to `tol` times the growth ½tau²Σw|v|² of an explicit step. Second order in tau, F at the
    middle of the interval. The equation for v is solved by fixed-point iteration with Anderson acceleration (`depth`
    differences, at most `max_iter` evaluations), until the residual is at most `tol` of v, or below the rounding of x.
    Derivatives in x and w are those of the implicit function theorem. A score that is trained, `scores.Network`, is
    fitted once a step, at x₀: the invariants stay, and the order is one.
    """

    F: Functional
    metric: Metric = field(default_factory=Wasserstein)
    tol: float = field(default=1e-8, kw_only=True)
    max_iter: int = field(default=100, kw_only=True)
    depth: int = field(default=10, kw_only=True)
    on_failure: OnFailure = field(default="warn", kw_only=True)

    def __post_init__(self) -> None:
        check_nouns(type(self).__name__, self.F, self.metric)
        if not 0 < self.tol < 1:
            raise ValueError(f"tol must be between 0 and 1, not {self.tol}")
        if self.max_iter < 1 or self.depth < 0:
            raise ValueError(f"needs max_iter ≥ 1 and depth ≥ 0, not {self.max_iter} and {self.depth}")

    def __call__(self, mu: Measure, t0: float, t1: float, last: Any = None) -> Out:
        name, tau = type(self).__name__, step_size(t0, t1)
        if not isinstance(mu, Particles):
            raise TypeError(f"{name} moves Particles, not a {type(mu).__name__}; use to_particles, or Forward")
        solved, fit = last if isinstance(last, tuple) and len(last) == 2 else (last, None)
        F, fit = trained(unconstrained(self.F.at((t0 + t1) / 2).drawn(), name), mu, fit)
        metric, rewind = self.metric.over(t0, t1), rewinding(self.generators())
        image = self._image(F, metric, mu, tau)
        v, stats = self._solve(lambda v: image(rewind(v)), mu, tau, solved)
        moved = self._end(F, metric, mu, rewind(v), tau)
        return Out(finite(moved, f"{name}({F}) at t = {t0:g}"), stats if fit is None else (stats, fit))

    def _solve(self, image: Map, mu: Particles, tau: float, last: Any) -> tuple[Tensor, Stats]:
        start, floor = warm_start(last, "velocity", mu.x), 4 * torch.finfo(mu.x.dtype).eps * norm(mu.x, mu.w) / tau
        solve = partial(fixed_point, w=mu.w.detach(), tol=self.tol, max_iter=self.max_iter, depth=self.depth)
        zero, floor = torch.zeros_like(mu.x), floor.detach()
        found = solve(image, zero if start is None else start, floor=floor)
        if start is not None and not bool(found.converged.all()):  # a velocity that no longer helps
            found = found.or_else(solve(image, zero, floor=floor))
        stats = _stats(found, mu)
        self._check(stats, tau)
        report(stats, self, "take smaller steps, or raise max_iter or tol", self.on_failure)
        if torch.is_grad_enabled() and (mu.x.requires_grad or mu.w.requires_grad):
            return differentiable(image, found.image, partial(solve, floor=torch.zeros_like(floor))), stats
        return found.image, stats

    def generators(self) -> tuple[torch.Generator, ...]:
        return generators_of(self.F, self.metric)

    def _check(self, stats: Stats, tau: float) -> None:
        """A velocity that is no better than a guess is not returned."""
        worst = stats.residual[~stats.converged].max().item() if not bool(stats.converged.all()) else 0.0
        if not worst <= 0.1:
            raise StepTooLarge(
                f"{type(self).__name__} found no velocity for tau = {tau:g} in {self.max_iter} iterations: the "
                f"relative residual is {worst:.2g}. Take smaller steps, as Adaptive(step, tol, order=2) does"
            )

    @abstractmethod
    def _image(self, F: Functional, metric: Metric, mu: Particles, tau: float) -> Map:
        """v ↦ −K_μ̄ g at μ̄ = (id + ½tau·v)#μ."""

    @abstractmethod
    def _end(self, F: Functional, metric: Metric, mu: Particles, v: Tensor, tau: float) -> Particles:
        """(id + tau·v)#μ, with the log-density when the step carries it."""


@dataclass(frozen=True, eq=False)
class Midpoint(Conservative):
    """x₁ = x₀ + tau·U_μ̄(x̄), with U_μ = −K_μ∇δF/δμ and x̄ = (x₀ + x₁)/2, μ̄ = x̄#μ: the implicit midpoint rule.

    Second order, time reversible, and it keeps every quadratic invariant of the flow: with `Landau` momentum to
    rounding and the energy ½Σw|x|² to `tol` (a forward Euler step adds ½tau²Σw|U|² to it). A log-density is carried by
    det(I + ½tau∇U)/det(I − ½tau∇U) at x̄. F decreases when tau is small enough, with `DiscreteGradient` always.

    Hairer, Lubich, Wanner, "Geometric Numerical Integration" (2006), IV.2.

    >>> import otprox as ox
    >>> x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> out = ox.Midpoint(ox.Blob(0.5), ox.Landau(0.0))(ox.Particles(x), 0.0, 0.5)
    >>> energy = lambda mu: mu.expect(lambda v: v.square().sum(-1) / 2).item()
    >>> abs(energy(out.mu) - energy(ox.Particles(x))) < 1e-9
    True
    """

    def _image(self, F: Functional, metric: Metric, mu: Particles, tau: float) -> Map:
        def image(v: Tensor) -> Tensor:
            half = _shifted(mu, v, tau / 2)
            return velocity_of(F, metric, half).field(half.x)

        return image

    def _end(self, F: Functional, metric: Metric, mu: Particles, v: Tensor, tau: float) -> Particles:
        moved = _shifted(mu, v, tau)
        if mu.log_density is None:
            return moved
        half = _shifted(mu, v, tau / 2)
        _, slope = velocity_of(F, metric, half).with_jacobian(half.x)
        ahead, behind = (torch.linalg.slogdet(mu.identity() + s * tau / 2 * slope).logabsdet for s in (1, -1))
        return moved.with_state(log_density=mu.log_density - ahead + behind)


@dataclass(frozen=True, eq=False)
class DiscreteGradient(Conservative):
    """x₁ = x₀ − tau·K_μ̄ ∇̄F(x₀, x₁), with Gonzalez' discrete gradient of F over the particles,

        ∇̄F = ∇δF/δμ(x̄) + c·(x₁ − x₀),    F(x₁) − F(x₀) = Σ w⟨∇̄F, x₁ − x₀⟩,

    so that F(x₁) − F(x₀) = −tau·Σ w⟨∇̄F, K_μ̄∇̄F⟩ ≤ 0 for every tau, beside the invariants of `Midpoint`: for the Landau
    equation momentum, energy and the second law, with F = Blob(width, form="full") (Hirvijoki 2021). Second order. F
    must have a value and a gradient on particles. Each iteration evaluates both. A log-density is dropped.

    Gonzalez, "Time integration and discrete Hamiltonian systems" (1996); Hirvijoki, "Structure-preserving
    marker-particle discretizations of Coulomb collisions for particle-in-cell codes" (2021).
    """

    def _image(self, F: Functional, metric: Metric, mu: Particles, tau: float) -> Map:
        start = F(mu)
        c = torch.zeros_like(start)

        def image(v: Tensor) -> Tensor:
            nonlocal c
            half, end = _shifted(mu, v, tau / 2), F(_shifted(mu, v, tau))
            g, step = F.gradient(half), tau * v
            size, defect = _inner(mu, step, step), end - start - _inner(mu, g, step)
            rounding = 8 * torch.finfo(v.dtype).eps * (start.abs() + end.abs())
            steady = (defect - c * size).abs() <= rounding  # F cannot tell this c from the one before
            c = torch.where(steady & (not defect.requires_grad), c, defect / size.clamp_min(torch.finfo(v.dtype).tiny))
            return -metric.onsager(half, g + c[..., None, None] * step)

        return image

    def _end(self, F: Functional, metric: Metric, mu: Particles, v: Tensor, tau: float) -> Particles:
        return _shifted(mu, v, tau).with_state(log_density=None)


def _inner(mu: Particles, u: Tensor, v: Tensor) -> Tensor:
    """∫⟨u, v⟩dμ, (*batch,)."""
    return (mu.w * (u * v).sum(-1)).sum(-1)


def _shifted(mu: Particles, v: Tensor, tau: float) -> Particles:
    return mu.push(lambda x: x + tau * v)


def velocity_of(F: Functional, metric: Metric, mu: Particles) -> Velocity:
    """−K_μ∇δF/δμ."""
    tangent = metric.descent(F, mu)
    if not isinstance(tangent, Velocity):
        raise TypeError(f"particles need a metric with a velocity, not {type(metric).__name__}")
    return tangent


def trained(F: Functional, mu: Particles, last: Any) -> tuple[Functional, Any]:
    """F with its score trained at μ, and the stats of the training; F itself where nothing is trained."""
    fitted, stats = F.fitted(mu, last)
    return (F, None) if stats is None else (fitted, stats)


def _stats(found: FixedPoint, mu: Particles) -> Stats:
    """`residual` is that of the velocity, relative to it."""
    unknown = torch.full_like(found.residual, torch.nan)
    return Stats(
        converged=found.converged,
        iterations=found.iterations,
        residual=found.residual / norm(found.image, mu.w).clamp_min(torch.finfo(mu.x.dtype).tiny),
        objective=unknown,
        distance2=unknown,
        message="",
        warm={"velocity": found.image},
    )
