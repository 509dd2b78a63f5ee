"""Run schemes over a ladder of step sizes (or resolutions) against closed forms: error, observed order, verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .case import Case, Verdict, as_json, judge, observed_order
from .collisions import collisions
from .discrepancies import discrepancies
from .equations import equations
from .jko_of_collisions import jko_of_collisions
from .landau import landau
from .mean_field import mean_field
from .on_gaussians import fixed_points, one_step, splittings
from .on_grids import dynamic, grids, programs
from .on_particles import particles, stein
from .on_the_line import quantiles
from .renormalisation import renormalisation
from .scores import scores

__all__ = ["Case", "Verdict", "as_json", "catalogue", "judge", "observed_order", "run"]


def run(names: Sequence[str] = ()) -> Iterator[Verdict]:
    """Verdicts of the catalogue, in order; only the cases whose name contains one of `names`, when given."""
    for case in catalogue():
        if not names or any(name in case.name for name in names):
            yield judge(case)


def catalogue() -> list[Case]:
    """Every case that is run."""
    return [
        *splittings(),
        *fixed_points(),
        *one_step(),
        *quantiles(),
        *grids(),
        *programs(),
        *dynamic(),
        *equations(),
        *particles(),
        *mean_field(),
        *landau(),
        *collisions(),
        *scores(),
        *jko_of_collisions(),
        *stein(),
        *discrepancies(),
        *renormalisation(),
    ]
