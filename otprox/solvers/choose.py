"""Which solver a Backward step uses when none is given."""

from __future__ import annotations

from ..functionals import Functional
from ..measures import Measure
from ..metrics import Metric
from .base import Solver
from .bures import Bures
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
]


def choose(F: Functional, metric: Metric, mu: Measure) -> Solver:
    """The first solver of ORDER that supports the triple; TypeError with every solver's reason when none does."""
    for solver in ORDER:
        if solver.supports(F, metric, mu) is None:
            return solver
    raise TypeError(
        f"no solver for this implicit step; give one with solver=, or change a noun.\n{explain(F, metric, mu)}"
    )


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
