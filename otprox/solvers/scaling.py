"""Proximal steps in entropic transport by scaling: Sinkhorn's iteration with a KL prox, on cells or on points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..domains import Box, Euclidean
from ..functionals import Functional
from ..functionals.base import Sum
from ..functionals.constraint import Constraint
from ..functionals.local_prox import LocalProx, not_local, offers
from ..measures import Density, Measure, Particles
from ..measures.covariance import dense
from ..metrics import Entropic, Metric, Wasserstein
from ..pairwise import Engine
from .annealing import Level, solve
from .base import OnFailure, Out, Stats, check_tau, report, require, slowest, warm_start
from .implicit import Linearised, Minimiser
from .majorise import Majorised
from .sinkhorn import Plan, Problem, Prox, Solution, half_self, pairing
from .support import Cells, Points


@dataclass(frozen=True)
class Scaling:
    """argmin_ν F(ν) + OT(μ, ν)/(2·tau) in the metric Entropic(reg, reference, base), over densities on a fixed support.

    The support is that of μ: the cells of its Grid, or its points when it is Particles with a log-density log ρ. Points
    keep their places and their volumes w/ρ, and change their weights. Q is diagonal on a grid, any matrix for points.

    With K = exp(−⟨x − y, Q⁻¹(x − y)⟩/reg), s = 2·tau/reg, and the plan π = u K v (densities for Lebesgue measure), the
    loop of Peyré (2015) is

        u = μ/(K v),    b = argmin s·F(b) + KL(b | r·Kᵀu),    v = b/(Kᵀu),

    where r = 1 for the reference "lebesgue"; r = v·Kᵀu, the second marginal of the plan, for "product"; and for
    "debiased" r = d, with d ← √(d·b/(K d)) (Janati, Cuturi and Gramfort 2020). It serves every F that has a KL prox.

    The result ν is the second marginal of a plan whose first marginal is μ: positive, of mass 1 up to rounding, with an
    exact transport cost. It has converged when ν and b agree to `tol` in L1; that bounds the marginal error of the plan
    (u, b/(Kᵀu)) and, when F has entropy, the error of ν mode by mode. "debiased" asks the same of d·K d, and where the
    iteration multiplies ("product", "debiased") no cell may still be growing. In float32 `tol` is never less than the
    rounding of the potentials. The loop is accelerated by Anderson mixing of log v over `memory` iterations, in L2(ν);
    a mixed point that raises the residual much is dropped for the plain one. Without a previous step it starts from
    solutions on coarser cells, which hand on the history of the mixing, and from rough ones at larger reg.

    With entropy in F, or reference "lebesgue", it takes tens of iterations. Where F has none, "product" and "debiased"
    deconvolve: the objective is so flat in the fine scales of ν that densities far apart cell by cell can agree in it
    to five digits. There it converges slowly, or says that it did not; `tol` then bounds the residual but not the error
    of ν. Some entropy in F, or "lebesgue", mends that. Cells of width h: reg should be at least h²; below h²/4 it is
    refused, since a step could not leave its cell.

    Sums over points go through `otprox.pairwise`, with memory linear in their number: `engine` is "dense", "tiled",
    "keops" (when installed) or "auto".

    Stats: `residual` is that L1 distance; `iterations` count those at all levels; `potentials` (f, g) give π =
    exp((f ⊕ g − cost)/reg), with marginals μ and ν; `distance2` is OT as the reference defines it: ⟨cost, π⟩ +
    reg·∫π log π, ⟨cost, π⟩ + reg·KL(π | μ⊗ν), or the Sinkhorn divergence. `objective` is differentiable, by the
    envelope theorem: in the masses of μ along directions that keep its mass, and in the parameters of F. So is ν, by
    the implicit function theorem, in the values of a Density μ and in the parameters of F; but for "debiased", and for
    an F with interactions, ν is a constant to autograd. All else is a constant always.
    """

    tol: float = 1e-8
    max_iter: int = 2000
    memory: int = 10
    engine: Engine = "auto"
    on_failure: OnFailure = "warn"

    def __post_init__(self) -> None:
        if not self.tol > 0 or self.max_iter < 1 or self.memory < 0:
            raise ValueError(
                f"Scaling needs tol > 0, max_iter ≥ 1 and memory ≥ 0, not {self.tol}, {self.max_iter}, {self.memory}"
            )

    def supports(self, F: Functional, metric: Metric, mu: Measure) -> str | None:
        if not isinstance(metric, Entropic):
            return f"it computes steps in the metric Entropic, not {type(metric).__name__}"
        if not isinstance(mu, Density | Particles):
            return f"it works on a Density on a Grid or on Particles with a log-density, not on {type(mu).__name__}"
        if not isinstance(metric.base, Wasserstein):
            return f"the base {type(metric.base).__name__} acts over an interval: use metric.over(t0, t1)"
        reason = no_cells(metric.base) if isinstance(mu, Density) else no_points(mu)
        local, _ = split(F)
        return reason or (not_local(local) if type(F).kl_prox is Functional.kl_prox else None)

    def __call__(self, F: Functional, metric: Metric, mu: Measure, tau: float, last: Any = None) -> Out:
        require(self, F, metric, mu)
        assert isinstance(metric, Entropic) and isinstance(mu, Density | Particles)
        check_tau(tau, F, slowest(metric.base))
        with torch.no_grad():
            problem, found = self._minimise(F, metric, mu, tau, last)
            nu, value = mu.with_log_prob(found.plan.log_nu), Transport.of(problem, found.plan, last)
        plan, distance2 = found.plan, metric.reg * value.cost
        objective = F(nu) + (distance2 + metric.reg * value.envelope(mu.masses)) / (2 * tau)
        stats = Stats(
            converged=found.converged & objective.isfinite(),
            iterations=found.iterations,
            residual=found.residual,
            objective=objective,
            distance2=distance2,
            message=f"marginal error, fastest growth {plan.growth.max().item():.2g}",
            warm=value.warm,
            potentials=(metric.reg * plan.log_u, metric.reg * plan.log_v),
        )
        advice = "raise max_iter or tol, take a larger reg or a smaller tau, or the reference 'lebesgue'"
        if metric.reference != "lebesgue":
            advice += "; without entropy in F this reference leaves the fine scales of ν almost free: add some Entropy"
        nu = differentiable(F, mu, problem, plan, 2 * tau / metric.reg) or nu
        return Out(nu, report(stats, self, advice, self.on_failure))

    def _minimise(
        self, F: Functional, metric: Entropic, mu: Density | Particles, tau: float, last: Any
    ) -> tuple[Problem, Solution]:
        local, smooth = split(F)
        level = pose(local, metric, mu, tau, self.engine)
        warm = _warm(level.problem, last)
        if smooth is None:
            return level.problem, self._solve(level, warm)

        def energy(plan: Plan) -> Tensor:
            cost = Transport.of(level.problem, plan, last).cost
            return F(mu.with_log_prob(plan.log_nu)) + metric.reg / (2 * tau) * cost

        start = F(mu) + metric.reg / (2 * tau) * staying(level.problem)
        descent = Majorised(smooth, energy, mu, self.tol, self.max_iter)
        return level.problem, descent.minimise(level, self._solve, warm, start)

    def _solve(self, level: Level, x: Tensor | None) -> Solution:
        return solve(level, x, self.tol, self.max_iter, self.memory)[0]


def differentiable(F: Functional, mu: Density | Particles, problem: Problem, plan: Plan, s: float) -> Any:
    """ν with its derivatives in the values of μ and the parameters of F; None when nothing asks for them, or for the
    reference "debiased" and for energies that are not local, whose ν is a constant."""
    prox = problem.prox
    if not torch.is_grad_enabled() or not isinstance(prox, LocalProx) or problem.reference == "debiased":
        return None
    if split(F)[1] is not None:
        return None
    local: list[tuple[float, Any]] = [(c, f) for c, f in F.terms if offers(f, "local")]
    parts = [c * f.local(plan.log_nu, mu.points)[0] for c, f in local]
    phi, log_mu = sum(parts, torch.zeros_like(plan.log_nu)), problem.log_mu
    if isinstance(mu, Density):
        log_mu = mu.log_prob()
    if not (phi.requires_grad or log_mu.requires_grad):
        return None
    rate = prox.slope_at(plan.log_b)
    beta = 1 / (rate if problem.reference == "lebesgue" else rate - 1)
    return mu.with_log_prob(Minimiser.apply(log_mu, phi, Linearised(problem, plan, beta, s)))


def split(F: Functional) -> tuple[Functional, Functional | None]:
    """F as what has a KL prox, and the rest, which is smooth relative to KL; None when there is no such rest."""
    smooth = [(c, f) for c, f in F.terms if getattr(f, "kl_smooth", False)]
    if not smooth:
        return F, None
    local = [(c, f) for c, f in F.terms if not getattr(f, "kl_smooth", False)]
    return Sum(tuple(c * f for c, f in local)), Sum(tuple(c * f for c, f in smooth))


def no_cells(base: Wasserstein) -> str | None:
    """Why a base has no separable kernel on a grid, or None."""
    Q = None if base.Q is None else dense(base.Q)
    if Q is not None and (Q.ndim > 2 or bool((Q - torch.diag(Q.diagonal())).any())):
        return "its kernels on a grid are separable, so Q must be one diagonal matrix"
    return None


def no_points(mu: Particles) -> str | None:
    """Why points cannot carry a density, or None."""
    if mu.log_density is None:
        return (
            "on points it changes their weights, against volumes w/ρ that come from a log-density: give one, "
            "Particles.from_log_prob(log_prob, x, volumes), or let the points move with FreeSupport"
        )
    if not isinstance(mu.domain, Euclidean | Box):
        return f"its cost between points is |x − y|², not that of a {type(mu.domain).__name__}; use a periodic Grid"
    return None


def pose(F: Functional, metric: Entropic, mu: Density | Particles, tau: float, engine: Engine) -> Level:
    """The step as a scaling problem on the support of μ."""
    base, s = metric.base, 2 * tau / metric.reg
    assert isinstance(base, Wasserstein)
    support = Cells.of(mu, base) if isinstance(mu, Density) else Points.of(mu, base, engine)
    least = support.resolution / 4
    if metric.reg < least:
        raise ValueError(
            f"reg = {metric.reg:.3g} is below {least:.3g}, the smallest usable one here, a quarter of the cost of a "
            "step to the next cell: take a larger reg, or finer cells"
        )
    for _, f in F.terms:
        reason = f.impossible(mu) if isinstance(f, Constraint) else None
        if reason is not None:
            raise ValueError(f"no density on this support satisfies {type(f).__name__}: {reason}")
    prox: Prox = LocalProx.of(F, mu, s) if not_local(F) is None else Own(F, mu, s)
    problem = Problem(support.kernel(metric.reg), mu.log_prob(), prox, metric.reference)
    return Level(problem, support, metric.reg)


def staying(problem: Problem) -> Tensor:
    """OT(μ, μ)/reg as the reference defines it, (*batch,)."""
    if problem.reference == "debiased":
        return torch.zeros_like(problem.log_mu[..., 0])
    twice = 2 * half_self(problem.kernel, problem.log_mu, None)[0]
    if problem.reference == "lebesgue":
        return twice
    return twice - 2 * pairing(problem.log_mu, problem.log_mu, problem.kernel.volumes[0])


@dataclass(frozen=True, eq=False)
class Own:
    """The KL prox that a functional brings itself."""

    F: Functional
    mu: Measure
    s: float
    cellwise: ClassVar[bool] = False

    def __call__(self, log_a: Tensor, near: Tensor | None = None) -> Tensor:
        return self.F.kl_prox(self.mu, log_a, self.s)

    def restricted(self, average: Callable[[Tensor], Tensor], s: float) -> Own:
        return replace(self, s=s * self.s)


def _warm(problem: Problem, last: Any) -> Tensor | None:
    names = ("log_v", "log_d") if problem.reference == "debiased" else ("log_v",)
    parts = [warm_start(last, name, problem.log_mu) for name in names]
    found = [part for part in parts if part is not None]
    return torch.cat(found, -1) if len(found) == len(parts) else None


@dataclass(frozen=True, eq=False)
class Transport:
    """OT(μ, ν)/reg as the reference defines it, (*batch,), its first variation in μ, and what the next step starts
    from."""

    cost: Tensor
    slope: Tensor
    warm: dict[str, Tensor]

    @classmethod
    def of(cls, problem: Problem, plan: Plan, last: Any) -> Transport:
        volume, log_mu = problem.kernel.volumes[0], problem.log_mu
        cost, warm = problem.cost(plan), {"log_v": plan.log_v}
        if problem.reference == "lebesgue":
            return cls(cost, plan.log_u, warm)
        if plan.log_d is None:
            cost = cost - pairing(log_mu, log_mu, volume) - pairing(plan.log_nu, plan.log_nu, volume)
            return cls(cost, plan.log_u - log_mu, warm)
        own, log_d = half_self(problem.kernel, log_mu, warm_start(last, "log_d", plan.log_d))
        cost = cost - own - half_self(problem.kernel, plan.log_nu, plan.log_d)[0]
        return cls(cost, plan.log_u - log_d, warm | {"log_d": plan.log_d})

    def envelope(self, masses: Tensor) -> Tensor:
        """0, with the derivative of the optimal value in the masses of μ, by the envelope theorem."""
        return (self.slope * (masses - masses.detach())).sum(-1)
