"""What a claim about a scheme is, and what was measured for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Case:
    """A claim about a scheme: its error falls at `order` along `ladder`, or is below `within` (order None)."""

    name: str
    reference: str
    ladder: Sequence[float]
    error: Callable[[float], float]
    order: float | None = None
    within: float | None = None
    slack: float = 0.2


@dataclass(frozen=True)
class Verdict:
    """What was measured for a case. `observed` is the order between the last two rungs."""

    name: str
    reference: str
    ladder: list[float]
    errors: list[float]
    expected: float | None
    observed: float | None
    passed: bool


def judge(case: Case) -> Verdict:
    """Measure one case."""
    errors = [case.error(rung) for rung in case.ladder]
    observed = observed_order(case.ladder, errors)
    if case.order is not None:
        passed = observed is not None and abs(observed - case.order) <= case.slack
    else:
        passed = case.within is not None and max(errors) <= case.within
    passed = passed and all(math.isfinite(e) for e in errors)
    return Verdict(case.name, case.reference, list(case.ladder), errors, case.order, observed, passed)


def observed_order(ladder: Sequence[float], errors: Sequence[float]) -> float | None:
    """log(e₁/e₂)/log(h₁/h₂) of the last two rungs; positive when the error falls as the rung falls (or as n grows)."""
    if len(ladder) < 2 or min(errors[-2:]) <= 0:
        return None
    return abs(math.log(errors[-2] / errors[-1]) / math.log(ladder[-2] / ladder[-1])) * math.copysign(
        1, errors[-2] - errors[-1]
    )


def as_json(verdicts: Sequence[Verdict]) -> list[dict[str, object]]:
    """Plain dictionaries, for machines."""
    return [asdict(v) for v in verdicts]
