"""Which solver a Backward step uses when none is given."""

from __future__ import annotations

from torch import Tensor

from ..functionals import Entropy, Functional, Potential
from ..measures import Measure
from ..metrics import Metric
from .advice import suggestions
from .base import Solver
from .bures import Bures
from .collision_flow import CollisionFlow
from .convex import Convex
from .cramer import Cramer
from .descent import Descent
from .dynamic import Dynamic
from .free_support import FreeSupport
from .kantorovich import Kantorovich
from .modes import Modes
from .quantile import Quantile
from .scaling import Scaling
from .self_consistent import SelfConsistent

ORDER: list[Solver] = [
    Bures(),
    Modes(),
    Cramer(),
    Quantile(),
    Scaling(),
    FreeSupport(),
    Kantorovich(),
    Dynamic(),
    SelfConsistent(),
    Convex(),
    Descent(),
    CollisionFlow(),
]


def choose(F: Functional, metric: Metric, mu: Measure) -> Solver:
    """The first solver of ORDER that supports the triple.

    When none does, a TypeError says what would work, and every solver's reason, those that fit the measure and the
    metric first.
    """
    solver = _first(F, metric, mu)
    if solver is None:
        raise TypeError(_refusal(F, metric, mu))
    return solver


def explain(F: Functional, metric: Metric, mu: Measure) -> str:
    """What would be used for a triple, and why each of the others would not: one line a solver, in order."""
    lines = [f"prox of {F} in {type(metric).__name__} on {type(mu).__name__}:"]
    chosen = False
    for solver in ORDER:
        reason = solver.supports(F, metric, mu)
        verdict = reason or ("also possible" if chosen else "chosen: the first in order that supports it")
        chosen = chosen or reason is None
        lines.append(f"  {type(solver).__name__}: {verdict}")
    return "\n".join(lines)


def _first(F: Functional, metric: Metric, mu: Measure) -> Solver | None:
    return next((solver for solver in ORDER if solver.supports(F, metric, mu) is None), None)


def _refusal(F: Functional, metric: Metric, mu: Measure) -> str:
    ways = suggestions(F, metric, mu, _first)
    probes = [Entropy(), Potential(_bowl), *(f for _, f in F.terms)]
    near = [solver for solver in ORDER if any(solver.supports(G, metric, mu) is None for G in probes)]
    order = near + [solver for solver in ORDER if solver not in near]
    return "\n".join(
        [
            f"no solver for this implicit step, of {F} in {type(metric).__name__} on {type(mu).__name__}.",
            *(["What would work:", *(f"  {way}" for way in ways)] if ways else []),
            "Why not" + (", those that fit the measure and the metric first:" if near else ":"),
            *(f"  {type(solver).__name__}: {solver.supports(F, metric, mu)}" for solver in order),
        ]
    )


def _bowl(x: Tensor) -> Tensor:
    return x.square().sum(-1)
