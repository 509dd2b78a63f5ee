"""The motion of particles as an ordinary differential equation, by the adaptive Runge–Kutta pairs of torchdiffeq."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .conservative import trained, velocity_of
from .functionals import Functional
from .measures import Measure, Particles
from .metrics import Metric, Wasserstein
from .solvers import ConvergenceError, Out, Stats
from .solvers.base import rewinding
from .solvers.fixed_point import norm
from .steps import Step, check_nouns, finite, generators_of, step_size, unconstrained

Pair = Literal["adaptive_heun", "bosh3", "dopri5", "dopri8", "fehlberg2"]


@dataclass(frozen=True, eq=False)
class Integrate(Step):
    """ẋ = −K_μ∇δF/δμ(x), μ = x#μ₀, over the interval with steps that torchdiffeq chooses; on Particles.

    The error of each of them is at most atol + rtol·|x| in L2(μ), in every item of a batch: one sequence of steps
    serves all. `method` is a pair of torchdiffeq; a carried log-density follows d log ρ/dt = −div v. Explicit, so a
    stiff F makes the steps short: more than `max_steps` of them is a ConvergenceError. Invariants drift by the
    tolerance. A metric that moves is that of the interval, random batches are the same all through it, and a score that
    is trained is fitted at t0. `iterations` of the stats counts velocities.

    Needs torchdiffeq, pip install 'otprox[ode]' (Chen 2018; Dormand, Prince 1980).
    """

    F: Functional
    metric: Metric = field(default_factory=Wasserstein)
    rtol: float = field(default=1e-6, kw_only=True)
    atol: float = field(default=1e-8, kw_only=True)
    method: Pair = field(default="dopri5", kw_only=True)
    max_steps: int = field(default=10_000, kw_only=True)

    def __post_init__(self) -> None:
        check_nouns("Integrate", self.F, self.metric)
        if self.method not in get_args(Pair):
            raise ValueError(f"method must be one of {', '.join(get_args(Pair))}, not {self.method!r}")
        if not (0 <= self.rtol < 1 and self.atol >= 0 and self.rtol + self.atol > 0 and self.max_steps >= 1):
            raise ValueError(
                "Integrate needs 0 ≤ rtol < 1, atol ≥ 0, not both 0, and max_steps ≥ 1, "
                f"not {self.rtol}, {self.atol} and {self.max_steps}"
            )

    def __call__(self, mu: Measure, t0: float, t1: float, last: Any = None) -> Out:
        step_size(t0, t1)
        if not isinstance(mu, Particles):
            raise TypeError(f"Integrate moves Particles, not a {type(mu).__name__}; use to_particles, or Forward")
        F, fit = trained(
            unconstrained(self.F.at(t0).drawn(), "Integrate"),
            mu,
            last[1] if isinstance(last, tuple) and len(last) == 2 else None,
        )
        slope = _Slope(mu, self.F if fit is None else F, self.metric.over(t0, t1), rewinding(self.generators()))
        end = slope.measure(self._integrated(slope, t0, t1))
        stats = _stats(mu, slope.count, f"{self.method} of torchdiffeq")
        return Out(finite(end, f"Integrate({F}) at t = {t0:g}"), stats if fit is None else (stats, fit))

    def generators(self) -> tuple[torch.Generator, ...]:
        return generators_of(self.F, self.metric)

    def _integrated(self, slope: _Slope, t0: float, t1: float) -> Tensor:
        odeint = _odeint()
        y = slope.start()
        options = {"norm": slope.size, "max_num_steps": self.max_steps}
        times = torch.tensor([t0, t1], dtype=torch.float64, device=y.device)
        settings = {"rtol": self.rtol, "atol": self.atol, "method": self.method, "options": options}
        try:
            return odeint(slope, y, times, **settings)[-1]
        except AssertionError as error:  # torchdiffeq asserts that a step is not too short, and y finite
            raise ConvergenceError(
                f"Integrate gave up between t = {t0:g} and {t1:g} after {slope.count} velocities ({error}): F is stiff "
                "or its gradient infinite; raise rtol, atol or max_steps, or take Midpoint"
            ) from error


@dataclass(eq=False)
class _Slope:
    """t, y ↦ dy/dt for y = (x, log ρ) in one tensor, (*batch, n, d) or (*batch, n, d + 1), and a count of its calls."""

    mu: Particles
    F: Functional
    metric: Metric
    rewind: Any
    count: int = 0

    def start(self) -> Tensor:
        x, log_density = self.mu.x, self.mu.log_density
        return x if log_density is None else torch.cat([x, log_density[..., None]], -1)

    def measure(self, y: Tensor) -> Particles:
        d = self.mu.dim
        log_density = None if self.mu.log_density is None else y[..., d]
        return self.mu.push(lambda _: y[..., :d]).with_state(log_density=log_density)

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        self.count += 1
        mu = self.rewind(self.measure(y))
        tangent = velocity_of(self.F.at(float(t)).drawn(), self.metric, mu)
        if mu.log_density is None:
            return tangent.field(mu.x)
        v, slope = tangent.with_jacobian(mu.x)
        return torch.cat([v, -slope.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)], -1)

    def size(self, y: Tensor) -> Tensor:
        """The largest norm of an item in L2(μ)."""
        return norm(y, self.mu.w).max()


def _stats(mu: Particles, count: int, message: str) -> Stats:
    """`residual` is not known: the pair keeps the error of its steps below the tolerance, and does not add them up."""
    unknown = mu.x.new_full(mu.batch, torch.nan)
    return Stats(
        converged=torch.ones_like(unknown, dtype=torch.bool),
        iterations=torch.full_like(unknown, count, dtype=torch.int64),
        residual=unknown,
        objective=unknown,
        distance2=unknown,
        message=message,
    )


def _odeint() -> Any:
    try:
        from torchdiffeq import odeint
    except ModuleNotFoundError as error:
        raise ImportError("Integrate needs torchdiffeq: pip install 'otprox[ode]'") from error
    return odeint
