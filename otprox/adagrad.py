"""Explicit steps that scale every coordinate of every particle by the size of its past velocities."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .functionals import Functional
from .measures import Measure, Particles
from .metrics import Metric, Wasserstein
from .solvers import Out, Stats
from .solvers.base import warm_start
from .steps import Step, check_nouns, finite, generators_of, step_size


@dataclass(frozen=True, eq=False)
class Adagrad(Step):
    """x ← x + tau·v/(ε + √h), h ← decay·h + (1 − decay)·v², with v the velocity of `Forward(F, metric)`; on Particles.

    The step size of practice for SVGD (Liu, Wang 2016, whose code has decay 0.9; h starts at v²): tau is a length,
    about what a coordinate moves in one step, whatever the scale of V. With decay < 1 particles keep moving by about
    tau, so end with small steps; decay = 1 sums h ← h + v² instead (Duchi, Hazan, Singer 2011), and steps shrink like
    k^−½. h travels in the stats, and checkpoints resume exactly. Equilibria are those of Forward, but paths are not
    those of a gradient flow, and a carried log-density is dropped.

    >>> import otprox as ox
    >>> V = lambda x: 500 * (x - 3).square().sum(-1)
    >>> step = ox.Adagrad(ox.KL(V), ox.Stein(ox.kernels.RBF(1.0)))
    >>> run = ox.record(ox.flow(step, ox.Particles([[0.0], [1.0]]), [0.1 * k for k in range(100)]))
    >>> bool((run.final.x - 3).abs().max() < 0.1)
    True
    """

    F: Functional
    metric: Metric = field(default_factory=Wasserstein)
    decay: float = field(default=0.9, kw_only=True)
    eps: float = field(default=1e-6, kw_only=True)

    def __post_init__(self) -> None:
        check_nouns("Adagrad", self.F, self.metric)
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay must be between 0 and 1, not {self.decay}")
        if not self.eps > 0:
            raise ValueError(f"eps must be positive, not {self.eps}")

    def __call__(self, mu: Measure, t0: float, t1: float, last: Any = None) -> Out:
        tau = step_size(t0, t1)
        if not isinstance(mu, Particles):
            raise TypeError(
                f"Adagrad scales the coordinates of Particles, and a {type(mu).__name__} has none; use Forward, or "
                "Adaptive(Forward(F, metric), tol) for step sizes that follow the error"
            )
        own, fit = last if isinstance(last, tuple) and len(last) == 2 else (last, None)
        F, fit = self.F.at(t0).drawn().fitted(mu, fit)
        v = self.metric.over(t0, t1).descent(F, mu).field(mu.x)  # type: ignore[attr-defined]
        h = self._accumulate(v, warm_start(own, "squares", v))
        moved = mu.push(lambda x: x + tau * v / (self.eps + h.sqrt())).with_state(log_density=None)
        stats = _stats(mu, v, h)
        return Out(finite(moved, f"Adagrad({F}) at t = {t0:g}"), stats if fit is None else (stats, fit))

    def _accumulate(self, v: Tensor, h: Tensor | None) -> Tensor:
        if h is None:
            return v.square()
        return h + v.square() if self.decay == 1 else self.decay * h + (1 - self.decay) * v.square()

    def generators(self) -> tuple[torch.Generator, ...]:
        return generators_of(self.F, self.metric)


def _stats(mu: Particles, v: Tensor, h: Tensor) -> Stats:
    """No equation is solved: `residual` is the root mean square velocity."""
    nothing = v.new_zeros(mu.batch)
    return Stats(
        converged=torch.ones_like(nothing, dtype=torch.bool),
        iterations=torch.zeros_like(nothing, dtype=torch.int64),
        residual=(mu.w * v.square().sum(-1)).sum(-1).sqrt(),
        objective=nothing * torch.nan,
        distance2=nothing * torch.nan,
        message="explicit step",
        warm={"squares": h},
    )
