"""Dynamic transport (Benamou and Brenier): geodesics, implicit steps and mean-field games, on densities over a grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from ..functionals import Functional
from ..measures import Density, Measure
from ..measures.base import check_alike
from ..measures.covariance import dense
from ..metrics import Metric, Wasserstein
from .base import OnFailure, Out, check_positive, check_tau, report, require, slowest
from .concave import ConcaveMobility, Linear
from .curve import Curve
from .path_cost import Objective, not_convex, varies
from .path_problem import PathProblem
from .splitting import minimise


@dataclass(frozen=True, kw_only=True)
class Dynamic:
    """argmin_ν F(ν) + W2²(μ, ν)/(2·tau) on a Density, through a curve from μ to ν: no entropic blur, and no freezing.

        min ∫₀^τ ( ∫⟨m, Q⁻¹m⟩/(2·mobility(ρ)) dx + running(ρ_t) ) dt + F(ρ_τ)

        over    ∂t ρ + div m = viscosity·Δρ,    ρ_0 = μ,    no flux through walls,

    with `inner_steps` intervals in time (Benamou and Brenier 2000; for implicit steps Carrillo, Craig, Wang and Wei
    2022). Densities live on cells and fluxes on faces: the errors are of second order in the width of a cell and in
    tau/inner_steps where densities are smooth and positive, however short the step is; tails that fall by more than a
    factor of about 3 a cell count as denser than they are. F and `running` are sums of terms that are convex in the
    density, cell by cell (Potential, Entropy, PorousMedium, KL, Congestion), and of Dirichlet energies; `running` may
    be Varying, in time since μ. `mobility` is concave, and Q one diagonal matrix.

    `tol` is for the two paths that the minimisation keeps, one of finite energy and one that obeys the equation: it has
    converged when they agree to tol, relatively, in the norm in which fluxes and densities weigh alike. The mass of ν
    is exact. Stats: `residual` is that distance, `distance2` is 2·tau times the action, which is W2² where running
    and viscosity are 0 and the mobility is Linear. It runs under no_grad: results are constants to autograd. A step
    starts from the forces on μ, which are nearer to its solution than the step before is, so `last` is not used.
    """

    inner_steps: int = 4
    running: Functional | None = None
    viscosity: float = 0.0
    mobility: ConcaveMobility = Linear()
    tol: float = 3e-4
    max_iter: int = 2000
    on_failure: OnFailure = "warn"

    def __post_init__(self) -> None:
        if int(self.inner_steps) != self.inner_steps or self.inner_steps < 1:
            raise ValueError(f"inner_steps must be a whole number ≥ 1, not {self.inner_steps}")
        if not 0 <= self.viscosity < math.inf:
            raise ValueError(f"viscosity must be ≥ 0 and finite, not {self.viscosity}")
        if not isinstance(self.mobility, ConcaveMobility):
            raise TypeError(
                f"mobility must be concave, Linear(), Saturating(upper) or Concave(m, upper), not {self.mobility!r}"
            )
        if not self.tol > 0 or self.max_iter < 1:
            raise ValueError(f"Dynamic needs tol > 0 and max_iter ≥ 1, not {self.tol} and {self.max_iter}")

    def supports(self, F: Functional, metric: Metric, mu: Measure) -> str | None:
        if not isinstance(mu, Density):
            return f"it works on a Density on a Grid, not on {type(mu).__name__}"
        reason = _not_diagonal(metric) or _not_convex("running", self.running, mu)
        return reason or not_convex(F, mu)

    def __call__(self, F: Functional, metric: Metric, mu: Measure, tau: float, last: Any = None) -> Out:
        require(self, F, metric, mu)
        check_tau(tau, F, slowest(metric))
        assert isinstance(mu, Density)
        curve = self.curve(mu, F, horizon=tau, metric=metric)
        return Out(curve.at(-1), curve.stats)

    @torch.no_grad()
    def curve(self, mu: Density, end: Functional | Density, *, horizon: float, metric: Metric) -> Curve:
        """The curve of least action from mu: to a Density, or to where a Functional of the last density takes it."""
        check_positive(horizon)
        if not isinstance(mu, Density) or not isinstance(end, Density | Functional):
            raise TypeError(
                "a curve goes from a Density to a Density or a Functional of the last density, not from a "
                f"{type(mu).__name__} to a {type(end).__name__}"
            )
        metric = metric.over(0.0, horizon)
        self._check(mu, end, metric)
        assert isinstance(metric, Wasserstein)
        terminal, target = (None, end) if isinstance(end, Density) else (end.at(horizon), None)
        times = tuple(horizon * k / self.inner_steps for k in range(self.inner_steps + 1))
        objective = Objective(self.running, terminal, times)
        problem = PathProblem.of(mu, target, objective, self.viscosity, self.mobility, metric)
        y, weights = problem.start()
        curve = problem.curve(minimise(problem.action, y, weights, self.tol, self.max_iter))
        advice = "raise max_iter or tol, take a smaller tau, or fewer inner_steps"
        report(curve.stats, self, advice, self.on_failure)
        return curve

    def _check(self, mu: Density, end: Functional | Density, metric: Metric) -> None:
        """Refuse what does not fit together."""
        for name, rho in (("mu", mu), ("the end", end)):
            if isinstance(rho, Density) and rho.values.max().item() > self.mobility.upper:
                raise ValueError(f"{name} has a density of {rho.values.max().item():.6g}, above {self.mobility}")
        reason = _not_diagonal(metric) or _not_convex("running", self.running, mu)
        if not isinstance(end, Density):
            reason = reason or _not_convex("terminal", end, mu)
        if reason is not None:
            raise TypeError(f"Dynamic declines: {reason}")
        if not isinstance(end, Density):
            return
        if end.grid != mu.grid:
            raise ValueError(
                f"the ends of a curve need one grid, periodic along the same axes; got {mu.grid} and {end.grid}"
            )
        check_alike(end.values, "the end", mu.anchor)
        if self.inner_steps < 2:
            raise ValueError("a curve between two densities needs inner_steps ≥ 2")


def benamou_brenier(
    mu: Density,
    terminal: Functional | Density,
    *,
    horizon: float = 1.0,
    inner_steps: int = 16,
    running: Functional | None = None,
    viscosity: float = 0.0,
    mobility: ConcaveMobility | None = None,
    metric: Metric | None = None,
    tol: float = 3e-4,
    max_iter: int = 5000,
    on_failure: OnFailure = "warn",
) -> Curve:
    """The curve of least ∫₀ᵀ ( ∫⟨m, Q⁻¹m⟩/(2·mobility(ρ)) dx + running(ρ_t) ) dt + terminal(ρ_T), from mu.

    ∂t ρ + div m = viscosity·Δρ over T = `horizon`. A `terminal` Density is where the curve ends; a Functional acts on
    the last density. With running = 0 and viscosity = 0 it is an implicit step of size T; in general it is the
    equilibrium of a potential mean-field game (Lasry and Lions 2007; Benamou, Carlier and Santambrogio 2017), in
    which each agent pays ½|v|² + δrunning/δρ on the way and δterminal/δρ at the end, and u = −potential is the value
    function. The options are those of `Dynamic`; a Moving `metric` is the one that a step over [0, T] has.
    """
    solver = Dynamic(
        inner_steps=inner_steps,
        running=running,
        viscosity=viscosity,
        mobility=Linear() if mobility is None else mobility,
        tol=tol,
        max_iter=max_iter,
        on_failure=on_failure,
    )
    return solver.curve(mu, terminal, horizon=horizon, metric=Wasserstein() if metric is None else metric)


def geodesic(
    mu: Density,
    nu: Density,
    *,
    inner_steps: int = 16,
    metric: Metric | None = None,
    mobility: ConcaveMobility | None = None,
    tol: float = 3e-4,
    max_iter: int = 5000,
    on_failure: OnFailure = "warn",
) -> Curve:
    """The W2 geodesic from mu to nu over t in [0, 1]; `distance2` is W2²(mu, nu), of second order in cells and time.

    Where there is little mass the iteration converges like 1/iterations; `distance2` is then off by about tol,
    relatively.
    """
    return benamou_brenier(
        mu,
        nu,
        inner_steps=inner_steps,
        metric=metric,
        mobility=mobility,
        tol=tol,
        max_iter=max_iter,
        on_failure=on_failure,
    )


def _not_diagonal(metric: Metric) -> str | None:
    if not isinstance(metric, Wasserstein):
        return (
            f"the metric must be Wasserstein, not {type(metric).__name__}; Moving acts over an interval, .over(t0, t1)"
        )
    Q = None if metric.Q is None else dense(metric.Q)
    if Q is not None and (Q.ndim > 2 or bool((Q - torch.diag(Q.diagonal())).any())):
        return "Q must be one diagonal matrix: fluxes pass through the faces of cells"
    return None


def _not_convex(name: str, F: Functional | None, mu: Density) -> str | None:
    if F is None:
        return None
    reason = not_convex(F.at(0.0) if varies(F) else F, mu)
    return None if reason is None else f"{name}: {reason}"
