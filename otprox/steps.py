"""The alphabet of schemes: a step carries a measure over an interval [t0, t1]; `a >> b` runs a, then b."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from .functionals import Functional, Potential, Quadratic
from .functionals.constraint import constraint_in
from .measures import Gaussian, Measure
from .measures.covariance import exponential, factor_inverse, trace
from .metrics import Metric, Wasserstein
from .solvers import Out, Solver, choose
from .solvers.base import Drawing, require

M = TypeVar("M", bound=Measure)


class Step(ABC):
    """One step of a scheme. Steps are values: frozen, without state but for the generators that they hold."""

    @abstractmethod
    def __call__(self, mu: Measure, t0: float, t1: float, last: Any = None) -> Out:
        """The measure at t1 from the measure at t0. `last` is the stats of the previous call, a warm start."""

    def generators(self) -> tuple[torch.Generator, ...]:
        """The random generators that the step draws from."""
        return ()

    def __rshift__(self, other: Step) -> Chain:
        if not isinstance(other, Step):
            return NotImplemented
        return Chain((*_links(self), *_links(other)))


@dataclass(frozen=True, eq=False)
class Forward(Step):
    """Explicit step μ ↦ (id − tau·K_μ ∇δF/δμ)#μ, with F at t0 and the metric over [t0, t1].

    On Gaussians it is the Bures–Wasserstein gradient step. On a Density it is a conservative finite-volume step, and
    tau above its stable step is refused. The stats are those of the fit where F estimates a score, None otherwise.
    """

    F: Functional
    metric: Metric = field(default_factory=Wasserstein)

    def __post_init__(self) -> None:
        check_nouns("Forward", self.F, self.metric)

    def __call__(self, mu: Measure, t0: float, t1: float, last: Any = None) -> Out:
        tau = step_size(t0, t1)
        F = unconstrained(self.F.at(t0).drawn(), "Forward")
        F, stats = F.fitted(mu, last)
        moved = mu.move(self.metric.over(t0, t1).descent(F, mu), tau)
        return Out(finite(moved, f"Forward({F}) at t = {t0:g}"), stats)

    def generators(self) -> tuple[torch.Generator, ...]:
        return generators_of(self.F, self.metric)


@dataclass(frozen=True, eq=False)
class Backward(Step):
    """Implicit step argmin_ν F(ν) + d²(μ, ν)/(2·tau), with F at t1 and the metric over [t0, t1] (JKO).

    `solver` computes it; when None, `solvers.choose` takes the first that supports the triple.
    """

    F: Functional
    metric: Metric = field(default_factory=Wasserstein)
    solver: Solver | None = None

    def __post_init__(self) -> None:
        check_nouns("Backward", self.F, self.metric)
        if isinstance(self.solver, type) or not isinstance(self.solver, Solver | None):
            raise TypeError(f"solver must be a solver such as solvers.Convex(), not {self.solver!r}")

    def __call__(self, mu: Measure, t0: float, t1: float, last: Any = None) -> Out:
        tau = step_size(t0, t1)
        F, metric = self.F.at(t1), self.metric.over(t0, t1)
        solver = self.solver or choose(F, metric, mu)
        require(solver, F, metric, mu)
        out = solver(F, metric, mu, tau, last)
        return Out(finite(out.mu, f"Backward({F}) by {type(solver).__name__} at t = {t1:g}"), out.stats)

    def generators(self) -> tuple[torch.Generator, ...]:
        return generators_of(self.F, self.metric, *([self.solver] if isinstance(self.solver, Drawing) else []))


@dataclass(frozen=True, eq=False)
class Heat(Step):
    """The exact flow of scale·Entropy: convolution with N(0, 2·scale·∫Q dt). On Particles, noise from `generator`."""

    scale: float = 1.0
    metric: Metric = field(default_factory=Wasserstein)
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"Heat needs a positive scale, not {self.scale}")
        if not isinstance(self.generator, torch.Generator | None):
            raise TypeError(f"generator must be a torch.Generator, not a {type(self.generator).__name__}")

    def __call__(self, mu: Measure, t0: float, t1: float, last: Any = None) -> Out:
        step_size(t0, t1)
        cov = 2 * self.scale * self.metric.diffusion(mu, t0, t1)
        return Out(finite(mu.diffuse(cov, self.generator), f"Heat at t = {t0:g}"))

    def generators(self) -> tuple[torch.Generator, ...]:
        return () if self.generator is None else (self.generator,)


@dataclass(frozen=True, eq=False)
class Drift(Step):
    """Push along ẋ = v(t, μ, x) by explicit Euler (order=1), midpoint (2) or classical Runge–Kutta (4).

    v takes a time, the measure at that time and points (*batch, n, d), and returns velocities of the points' shape.
    """

    v: Callable[[float, Measure, Tensor], Tensor]
    order: Literal[1, 2, 4] = 1

    def __post_init__(self) -> None:
        if self.order not in _TABLEAUX:
            raise ValueError(f"Drift has orders {sorted(_TABLEAUX)}, not {self.order}")

    def __call__(self, mu: Measure, t0: float, t1: float, last: Any = None) -> Out:
        tau = step_size(t0, t1)
        nodes, weights = _TABLEAUX[self.order]
        slopes: list[Callable[[Tensor], Tensor]] = []
        for c in nodes:  # slope k at x: v at time t0 + cτ, at the point and in the measure reached with slope k − 1
            slopes.append(self._slope(mu, t0, c * tau, slopes[-1] if slopes else None))

        def end(x: Tensor) -> Tensor:
            increments = (b * k(x) for b, k in zip(weights, slopes, strict=True) if b)
            return x + tau * sum(increments, torch.zeros_like(x))

        return Out(finite(mu.push(end), f"Drift at t = {t0:g}"))

    def _slope(
        self, mu: Measure, t0: float, lag: float, previous: Callable[[Tensor], Tensor] | None
    ) -> Callable[[Tensor], Tensor]:
        if previous is None:
            return lambda x: self._velocity(t0, mu, x)
        there = mu.push(lambda x: x + lag * previous(x))
        return lambda x: self._velocity(t0 + lag, there, x + lag * previous(x))

    def _velocity(self, t: float, mu: Measure, x: Tensor) -> Tensor:
        v = self.v(t, mu, x)
        if v.shape != x.shape:
            raise ValueError(
                f"v must map points {tuple(x.shape)} to velocities of the same shape, not {tuple(v.shape)}"
            )
        return v


_TABLEAUX: dict[int, tuple[tuple[float, ...], tuple[float, ...]]] = {
    1: ((0.0,), (1.0,)),
    2: ((0.0, 0.5), (0.0, 1.0)),
    4: ((0.0, 0.5, 0.5, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}


@dataclass(frozen=True, eq=False)
class Flow(Step):
    """The exact flow of ∂t μ = div(μ Q P(x − m)) for a Quadratic V: push by x ↦ m + e^{−tau·QP}(x − m)."""

    V: Quadratic
    metric: Wasserstein = field(default_factory=Wasserstein)

    def __post_init__(self) -> None:
        V = self.V.V if isinstance(self.V, Potential) else self.V
        if not isinstance(V, Quadratic):
            raise TypeError(f"Flow is exact for a Quadratic only, not {type(V).__name__}; use Drift(v, order=4)")
        object.__setattr__(self, "V", V)

    def __call__(self, mu: Measure, t0: float, t1: float, last: Any = None) -> Out:
        self.V.check_fits(mu.dim, mu.anchor)
        tau, center = step_size(t0, t1), self.V.mean[..., None, :]
        decay, log_det = self._decay(mu, tau)
        if isinstance(mu, Gaussian):
            mean = self.V.mean + (decay @ (mu.mean - self.V.mean)[..., None])[..., 0]
            return Out(finite(mu.affine(mean, decay), f"Flow at t = {t0:g}"))

        def T(x: Tensor) -> tuple[Tensor, Tensor]:
            return center + (x - center) @ decay.mT, log_det[..., None].expand(x.shape[:-1])

        return Out(finite(mu.push(T), f"Flow at t = {t0:g}"))

    def _decay(self, mu: Measure, tau: float) -> tuple[Tensor, Tensor]:
        """e^{−tau·QP} = L e^{−tau·LᵀPL} L⁻¹ with LLᵀ = Q, and its log-determinant."""
        L = self.metric.factor(mu)
        if L is None:
            return exponential(-tau * self.V.precision), -tau * trace(self.V.precision)
        rate = tau * (L.mT @ self.V.precision @ L)
        return L @ exponential(-rate) @ factor_inverse(L), -trace(rate)


@dataclass(frozen=True, eq=False)
class Chain(Step):
    """Steps one after another over the same interval (Lie splitting), written a >> b >> c."""

    steps: tuple[Step, ...]

    def __call__(self, mu: Measure, t0: float, t1: float, last: Any = None) -> Out:
        return _run(mu, [(step, t0, t1) for step in self.steps], last)

    def generators(self) -> tuple[torch.Generator, ...]:
        return generators_of(*self.steps)


@dataclass(frozen=True, eq=False)
class Split(Step):
    """Two steps over parts of the interval."""

    a: Step
    b: Step

    def __post_init__(self) -> None:
        _check_steps(self.a, self.b)

    def __call__(self, mu: Measure, t0: float, t1: float, last: Any = None) -> Out:
        return _run(mu, self._legs(t0, (t0 + t1) / 2, t1), last)

    def generators(self) -> tuple[torch.Generator, ...]:
        return generators_of(self.a, self.b)

    @abstractmethod
    def _legs(self, t0: float, mid: float, t1: float) -> list[tuple[Step, float, float]]:
        """Steps with their intervals, in order."""


@dataclass(frozen=True, eq=False)
class Strang(Split):
    """Half of a, all of b, half of a: second order exactly when both parts are."""

    def _legs(self, t0: float, mid: float, t1: float) -> list[tuple[Step, float, float]]:
        return [(self.a, t0, mid), (self.b, t0, t1), (self.a, mid, t1)]


@dataclass(frozen=True, eq=False)
class Halves(Split):
    """a over the first half of the interval, b over the second.

    Halves(Forward(F), Backward(F)) is second order, and so is the other way round: the trapezoidal and midpoint rules.
    """

    def _legs(self, t0: float, mid: float, t1: float) -> list[tuple[Step, float, float]]:
        return [(self.a, t0, mid), (self.b, mid, t1)]


def check_nouns(step: str, F: Any, metric: Any) -> None:
    """TypeError unless F is a functional and `metric` a metric."""
    if not isinstance(F, Functional):
        raise TypeError(f"{step} needs a Functional such as Potential(V) or KL(V), not {F!r}")
    if not isinstance(metric, Metric):
        raise TypeError(f"{step} needs a Metric such as Wasserstein(Q), not {metric!r}")


def unconstrained(F: Functional, step: str) -> Functional:
    """F itself; TypeError naming the step when it holds a constraint, which has no gradient."""
    constraint = constraint_in(F)
    if constraint is not None:
        raise TypeError(f"{step}({F}) declines: {constraint.needs_implicit()}")
    return F


def _check_steps(*steps: Any) -> None:
    for step in steps:
        if not isinstance(step, Step):
            raise TypeError(f"a composition is made of Steps such as Forward(F) and Heat(); {step!r} is not one")


def step_size(t0: float, t1: float) -> float:
    """t1 − t0, refused unless positive and finite."""
    tau = float(t1) - float(t0)
    if not 0 < tau < float("inf"):
        raise ValueError(f"a step needs t0 < t1, so that tau = t1 − t0 > 0; got [{t0}, {t1}]")
    return tau


def finite(mu: M, cause: str) -> M:
    """mu itself; ValueError naming the step when a tensor of it is not finite."""
    for name, tensor in mu.state().items():
        if not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():  # the sum alone is one pass
            bad = int((~torch.isfinite(tensor)).sum())
            raise ValueError(
                f"{cause} gave {bad} non-finite entries in {type(mu).__name__}.{name}: the step size is too large, or "
                "V or its gradient is NaN or infinite where the mass is"
            )
    return mu


def _run(mu: Measure, legs: list[tuple[Step, float, float]], last: Any) -> Out:
    warm = last if isinstance(last, tuple) and len(last) == len(legs) else (None,) * len(legs)
    stats = []
    for (step, t0, t1), before in zip(legs, warm, strict=True):
        out = step(mu, t0, t1, before)
        mu = out.mu
        stats.append(out.stats)
    return Out(mu, tuple(stats))


def _links(step: Step) -> tuple[Step, ...]:
    return step.steps if isinstance(step, Chain) else (step,)


def generators_of(*parts: Step | Functional | Metric | Drawing) -> tuple[torch.Generator, ...]:
    """The generators of all parts, each once."""
    return tuple({id(g): g for part in parts for g in part.generators()}.values())
