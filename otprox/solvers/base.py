"""What a prox solver is, what it returns, and how it says that it did not converge."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..functionals import Functional
from ..measures import Measure
from ..measures.base import ConvergenceWarning, StepTooLarge
from ..measures.covariance import eigenvalues
from ..metrics import Metric, Wasserstein

OnFailure = Literal["warn", "raise"]


class ConvergenceError(RuntimeError):
    """The same, with on_failure="raise"."""


@dataclass(frozen=True, eq=False)
class Stats:
    """What a solver knows of its result; every tensor has the leading batch shape.

    `residual` is the solver's own stationarity or marginal error, `objective` is F(ν) + d²(μ, ν)/(2·tau), `distance2`
    is d²(μ, ν) in the step's metric. `warm` holds the tensors from which the next step starts. `map` (old points to
    new), `potentials` (of the transport) and `plan` are there when the method knows them.
    """

    converged: Tensor
    iterations: Tensor
    residual: Tensor
    objective: Tensor
    distance2: Tensor
    message: str = ""
    warm: dict[str, Tensor] = field(default_factory=dict, repr=False)
    map: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)
    potentials: tuple[Tensor, Tensor] | None = field(default=None, repr=False)
    plan: Tensor | None = field(default=None, repr=False)


class Out(NamedTuple):
    """A measure, and what the step that made it wants to say (and to be told next time)."""

    mu: Measure
    stats: Any = None


@runtime_checkable
class Solver(Protocol):
    """A way to compute a prox: a frozen dataclass of its options."""

    def supports(self, F: Functional, metric: Metric, mu: Measure) -> str | None:
        """None, or why not, in words."""
        ...

    def __call__(self, F: Functional, metric: Metric, mu: Measure, tau: float, last: Any = None) -> Out:
        """argmin_ν F(ν) + d²(μ, ν)/(2·tau). `last` is the Stats of the previous step, a warm start."""
        ...


@runtime_checkable
class Drawing(Protocol):
    """A solver that draws random numbers."""

    def generators(self) -> tuple[torch.Generator, ...]:
        """The random generators that it draws from, for checkpoints."""
        ...


def exact(mu: Measure, objective: Tensor, distance2: Tensor, map: Callable[[Tensor], Tensor] | None = None) -> Stats:
    """Stats of a closed form: converged, no iterations, no residual."""
    batch, anchor = mu.batch, mu.anchor
    return Stats(
        converged=torch.ones(batch, dtype=torch.bool, device=anchor.device),
        iterations=torch.zeros(batch, dtype=torch.int64, device=anchor.device),
        residual=anchor.new_zeros(batch),
        objective=objective,
        distance2=distance2,
        message="closed form",
        map=map,
    )


def report(stats: Stats, solver: object, advice: str, on_failure: OnFailure = "warn") -> Stats:
    """Pass stats on; when an item did not converge, warn or raise with its residual and what to try."""
    if on_failure not in ("warn", "raise"):
        raise ValueError(f"on_failure must be 'warn' or 'raise', not {on_failure!r}")
    if not bool(stats.converged.all()):
        worst = stats.residual[~stats.converged].abs().max().item()
        message = (
            f"{type(solver).__name__} stopped after {int(stats.iterations.max())} iterations with residual {worst:.3g}"
            f"{' (' + stats.message + ')' if stats.message else ''}; {advice}"
        )
        if on_failure == "raise":
            raise ConvergenceError(message)
        warnings.warn(message, ConvergenceWarning, stacklevel=3)
    return stats


def warm_start(last: Any, name: str, like: Tensor) -> Tensor | None:
    """The tensor `name` that the previous step left, when it fits; a chain that changed shape starts cold."""
    tensor = last.warm.get(name) if isinstance(last, Stats) else None
    if tensor is None or tensor.shape != like.shape:
        return None
    return tensor.to(like)


def require(solver: Solver, F: Functional, metric: Metric, mu: Measure) -> None:
    """Raise TypeError with the solver's reason when it does not support the triple."""
    reason = solver.supports(F, metric, mu)
    if reason is not None:
        raise TypeError(f"{type(solver).__name__} declines: {reason}")


def check_positive(tau: float) -> None:
    """Refuse a step size that is not positive and finite."""
    if not 0 < tau < float("inf"):
        raise ValueError(f"tau must be positive and finite, not {tau}")


def check_tau(tau: float, F: Functional, scale: float = 1.0) -> None:
    """Refuse tau ≤ 0, and tau ≥ −scale/λ for a λ-convex F with known λ < 0; `scale` is 1/‖Q‖ in a metric Q."""
    check_positive(tau)
    lam = F.convexity()
    if lam is not None and lam < 0 and tau * -lam >= scale:
        raise StepTooLarge(
            f"tau = {tau:.6g} is not below the convexity limit {-scale / lam:.6g} (F is λ-convex with λ = {lam:.6g}): "
            "the implicit step may not exist or not be unique; take smaller steps"
        )


def slowest(metric: Metric) -> float:
    """1/‖Q‖: the factor by which the metric Q shortens the limit on tau."""
    if not isinstance(metric, Wasserstein) or metric.Q is None:
        return 1.0
    return 1 / eigenvalues(metric.Q).max().item()


def rewinding(generators: tuple[torch.Generator, ...]) -> Callable[[Tensor], Tensor]:
    """The identity, but generators go back to where they are now: random batches are the same all through a step."""
    states = [generator.get_state() for generator in generators]

    def rewind(v: Tensor) -> Tensor:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        return v

    return rewind
