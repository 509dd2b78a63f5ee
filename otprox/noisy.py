"""Noise injection: explicit steps whose field is evaluated at perturbed points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .functionals import Functional
from .measures import Measure, Particles, Velocity
from .metrics import Metric, Wasserstein
from .solvers import Out
from .steps import Step, check_nouns, finite, generators_of, step_size


@dataclass(frozen=True, eq=False)
class NoisyForward(Step):
    """x_i ↦ x_i + tau·v_μ(x_i + β·u_i), u_i ~ N(0, I): the field of `Forward`, but at perturbed points.

    The positions themselves get no noise, so particles at rest on a target stay when β goes to 0. An MMD whose field
    vanishes on all particles that are far from its target is felt again at the points around them. On Particles.
    noise: β, a number or a function of the time t0; F is taken at t0. β = 0 is `Forward`.

    Arbel, Korba, Salim, Gretton, "Maximum mean discrepancy gradient flow" (2019), section 4.2.
    """

    F: Functional
    noise: float | Callable[[float], float]
    metric: Metric = field(default_factory=Wasserstein)
    generator: torch.Generator = field(kw_only=True)

    def __post_init__(self) -> None:
        check_nouns("NoisyForward", self.F, self.metric)
        if not isinstance(self.generator, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator, not a {type(self.generator).__name__}")

    def __call__(self, mu: Measure, t0: float, t1: float, last: Any = None) -> Out:
        if not isinstance(mu, Particles):
            raise TypeError(f"NoisyForward perturbs Particles, not a {type(mu).__name__}; use Forward")
        tau, beta = step_size(t0, t1), self._amplitude(t0)
        F, stats = self.F.at(t0).drawn().fitted(mu, last)
        velocity = self.metric.over(t0, t1).descent(F, mu)
        if not isinstance(velocity, Velocity):
            raise TypeError(f"NoisyForward needs a metric with a velocity, not {type(self.metric).__name__}")
        u = torch.randn(mu.x.shape, generator=self.generator, dtype=mu.x.dtype, device=mu.x.device)

        def perturbed(x: Tensor) -> Tensor:
            return velocity.field(mu.domain.wrap(x + beta * u) if beta else x)

        moved = mu.with_state(log_density=None).move(Velocity(perturbed), tau)
        return Out(finite(moved, f"NoisyForward({self.F}) at t = {t0:g}"), stats)

    def generators(self) -> tuple[torch.Generator, ...]:
        return tuple({id(g): g for g in (self.generator, *generators_of(self.F, self.metric))}.values())

    def _amplitude(self, t: float) -> float:
        beta = float(self.noise(t) if callable(self.noise) else self.noise)
        if not 0 <= beta < float("inf"):
            raise ValueError(f"the noise must be ≥ 0 and finite, not {beta} at t = {t:g}")
        return beta
