"""Proximal steps in entropic transport by scaling (Sinkhorn's iteration with a KL prox), on a Density."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..functionals import Functional
from ..functionals.local_prox import LocalProx, not_local
from ..measures import Density, Grid, Measure
from ..measures.covariance import dense
from ..metrics import Entropic, Metric, Wasserstein
from .anderson import Anderson
from .base import OnFailure, Out, Stats, check_positive, check_tau, report, require, slowest, warm_start
from .separable import SeparableKernel

GROWTH = 0.1  # a cell that grows by more than this factor an iteration could still fill, however empty it is
RISE = 3.0  # a mixed point may raise the residual by this factor above the least so far
NARROW, ROUGH = 0.02, 0.03  # start from larger regs, up to this part of the largest cost, and to this marginal error
SPREAD = 200.0  # where the iteration only multiplies, cells start from at least e^−200 of the largest


@dataclass(frozen=True)
class Scaling:
    """argmin_ν F(ν) + OT(μ, ν)/(2·tau) in the metric Entropic(reg, reference, base), on a Density on a Grid.

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
    a mixed point that raises the residual much is dropped for the plain one. Without a previous step, "lebesgue" starts
    from rough solutions at larger reg.

    With entropy in F, or reference "lebesgue", it takes tens of iterations; "product" and "debiased" deconvolve where F
    has none, and converge slowly there. Cells of width h: reg should be at least h². Below, results are still right, by
    log-sum-exp, but a step much shorter than a cell freezes, as it does in every transport between fixed cells.

    Stats: `residual` is that L1 distance; `potentials` (f, g) on the cells give π = exp((f ⊕ g − cost)/reg), with
    marginals μ and ν; `distance2` is OT as the reference defines it: ⟨cost, π⟩ + reg·∫π log π, ⟨cost, π⟩ +
    reg·KL(π | μ⊗ν), or the Sinkhorn divergence. It runs under no_grad: results are constants to autograd.
    """

    tol: float = 1e-8
    max_iter: int = 2000
    memory: int = 10
    on_failure: OnFailure = "warn"

    def __post_init__(self) -> None:
        if not self.tol > 0 or self.max_iter < 1 or self.memory < 0:
            raise ValueError(
                f"Scaling needs tol > 0, max_iter ≥ 1 and memory ≥ 0, not {self.tol}, {self.max_iter}, {self.memory}"
            )

    def supports(self, F: Functional, metric: Metric, mu: Measure) -> str | None:
        if not isinstance(metric, Entropic):
            return f"it computes steps in the metric Entropic, not {type(metric).__name__}"
        if not isinstance(mu, Density):
            return f"it works on a Density on a Grid, not on {type(mu).__name__}"
        if not isinstance(metric.base, Wasserstein):
            return f"the base {type(metric.base).__name__} acts over an interval: use metric.over(t0, t1)"
        Q = None if metric.base.Q is None else dense(metric.base.Q)
        if Q is not None and (Q.ndim > 2 or bool((Q - torch.diag(Q.diagonal())).any())):
            return "its kernels are separable, so Q must be one diagonal matrix"
        return not_local(F) if type(F).kl_prox is Functional.kl_prox else None

    @torch.no_grad()
    def __call__(self, F: Functional, metric: Metric, mu: Measure, tau: float, last: Any = None) -> Out:
        require(self, F, metric, mu)
        check_positive(tau)
        check_tau(tau, F, slowest(metric))
        assert isinstance(mu, Density) and isinstance(metric, Entropic)
        problem = Problem.of(F, metric, mu, tau)
        start, coarse = self._start(problem, last, lambda reg: Problem.of(F, replace(metric, reg=reg), mu, tau))
        plan, converged, iterations = self._iterate(problem, start, self.tol)
        nu, distance2 = problem.measure(mu, plan), problem.transport(plan, warm_start(last, "log_d", plan.log_v))
        stats = Stats(
            converged=converged,
            iterations=iterations + coarse,
            residual=plan.residual,
            objective=F(nu) + distance2 / (2 * tau),
            distance2=distance2,
            message=f"marginal error, fastest growth {plan.growth.max().item():.2g}",
            warm={"log_v": plan.log_v} if plan.log_d is None else {"log_v": plan.log_v, "log_d": plan.log_d},
            potentials=(metric.reg * plan.log_u, metric.reg * plan.log_v),
        )
        advice = "raise max_iter or tol, take a larger reg or a smaller tau, or the reference 'lebesgue'"
        return Out(nu, report(stats, self, advice, self.on_failure))

    def _start(self, problem: Problem, last: Any, coarser: Callable[[float], Problem]) -> tuple[Tensor, Tensor | int]:
        """Potentials to start from, and the iterations they took.

        Those of the previous step if any. For "lebesgue", where log v = −(2·tau/reg)·δF/δν, else those of reg·4, which
        converge faster and start from reg·16, and so on while the kernel is narrow for the grid.
        """
        start, reg = problem.start(last), 4 * problem.metric.reg
        if problem.metric.reference != "lebesgue" or bool(start.any()) or reg > NARROW * problem.extent:
            return start, 0
        rough = coarser(reg)
        x, before = self._start(rough, None, coarser)
        plan, _, iterations = self._iterate(rough, x, max(self.tol, ROUGH))
        return 4 * plan.log_v, before + iterations

    def _iterate(self, problem: Problem, x: Tensor, tol: float) -> tuple[Plan, Tensor, Tensor]:
        """The fixed-point iteration from potentials x, with safeguarded mixing; finished items stay where they are."""
        mixer, safe, best = Anderson(self.memory), x, x.new_full(x.shape[:-1], torch.inf)
        iterations = torch.zeros_like(best, dtype=torch.int64)
        done = mixed = torch.zeros_like(best, dtype=torch.bool)
        plan = None
        for _ in range(self.max_iter):
            plan = problem.plan(x, plan)
            iterations += ~done
            done = plan.converged(tol)
            if bool(done.all()):
                return plan, done, iterations
            worse = mixed & ~(plan.residual <= RISE * best)
            safe = torch.where(worse[..., None], safe, plan.image)
            best = torch.where(worse, best, torch.minimum(best, plan.residual))
            ahead = mixer.extrapolate(x, plan.image, plan.weights, forget=worse)
            ahead = torch.where(worse[..., None], safe, ahead)
            x, mixed = torch.where(done[..., None], x, ahead), ~worse
        plan = problem.plan(torch.where(done[..., None], x, safe), None)
        return plan, plan.converged(tol), iterations


@dataclass(frozen=True, eq=False)
class Plan:
    """The plan u K v with first marginal μ, in logarithms on the cells (*batch, n), and what the next pass starts from.

    `log_nu` is its second marginal and `image` the next log v, with the next log d behind it when debiased.
    """

    log_u: Tensor
    log_v: Tensor
    log_d: Tensor | None
    log_nu: Tensor
    log_b: Tensor
    image: Tensor
    residual: Tensor
    growth: Tensor
    rounding: Tensor

    def converged(self, tol: float) -> Tensor:
        return (self.residual <= self.rounding.clamp_min(tol)) & (self.growth <= GROWTH)

    @property
    def weights(self) -> Tensor:
        """ν, in whose L2 space the linearised iteration is self-adjoint, for each block of unknowns."""
        nu = self.log_nu.exp()
        return nu if self.log_d is None else torch.cat([nu, nu], -1)


@dataclass(frozen=True, eq=False)
class Problem:
    """The data of one step, on flat cells (*batch, n)."""

    kernel: SeparableKernel
    grid: Grid
    log_mu: Tensor
    prox: Callable[[Tensor, Tensor | None], Tensor]
    metric: Entropic
    extent: float

    @classmethod
    def of(cls, F: Functional, metric: Entropic, mu: Density, tau: float) -> Problem:
        base, s = metric.base, 2 * tau / metric.reg
        assert isinstance(base, Wasserstein)
        mobility = base.mobility(mu).diagonal().tolist()
        kernel = SeparableKernel.on(mu.grid, mobility, metric.reg, mu.anchor)
        extent = sum(length**2 / q for length, q in zip(mu.grid.period, mobility, strict=True))
        return cls(kernel, mu.grid, mu.log_prob(), kl_prox(F, mu, s), metric, extent)

    def start(self, last: Any) -> Tensor:
        """Potentials of the previous step, or v = d = 1; none so small that multiplying could not bring it back."""
        names = ("log_v", "log_d") if self.metric.reference == "debiased" else ("log_v",)
        warm = [warm_start(last, name, self.log_mu) for name in names]
        parts = [torch.zeros_like(self.log_mu) if part is None else part for part in warm]
        if self.metric.reference != "lebesgue":
            parts = [part.maximum(part.amax(-1, keepdim=True) - SPREAD) for part in parts]
        return torch.cat(parts, -1)

    def plan(self, x: Tensor, before: Plan | None) -> Plan:
        """One pass of the loop; the KL prox starts from that of the pass before."""
        n = self.log_mu.shape[-1]
        log_v, log_d = x[..., :n], x[..., n:] if x.shape[-1] > n else None
        log_u = self.log_mu - self.apply(log_v)
        log_a = self.apply(log_u)
        log_nu = log_v + log_a
        log_b = self.prox(log_a + self.log_r(log_nu, log_d), None if before is None else before.log_b)
        nu, b, image = log_nu.exp(), log_b.exp(), log_b - log_a
        residual = self.integral((nu - b).abs())
        if log_d is not None:
            log_kd = self.apply(log_d)
            residual = residual.maximum(self.integral(((log_d + log_kd).exp() - b).abs()))
            image = torch.cat([image, (log_d + log_b - log_kd) / 2], -1)
        multiplies = self.metric.reference != "lebesgue"
        growth = (log_b - log_nu).amax(-1) if multiplies else torch.zeros_like(residual)
        rounding = 4 * torch.finfo(x.dtype).eps * (1 + self.integral(nu * (log_v.abs() + log_a.abs())))
        return Plan(log_u, log_v, log_d, log_nu, log_b, image, residual, growth, rounding)

    def log_r(self, log_nu: Tensor, log_d: Tensor | None) -> Tensor | float:
        """What the reference measure multiplies Kᵀu by."""
        if self.metric.reference == "lebesgue":
            return 0.0
        return log_nu if log_d is None else log_d

    def transport(self, plan: Plan, log_d: Tensor | None) -> Tensor:
        """OT(μ, ν), (*batch,): u K v is the optimal plan of its marginals. log_d starts OT(μ, μ) when debiased."""
        cost = self.against(self.log_mu, plan.log_u) + self.against(plan.log_nu, plan.log_v)
        if self.metric.reference == "product":
            cost = cost - self.against(self.log_mu, self.log_mu) - self.against(plan.log_nu, plan.log_nu)
        if plan.log_d is not None:
            cost = cost - self.half_self(self.log_mu, log_d) - self.half_self(plan.log_nu, plan.log_d)
        return self.metric.reg * cost

    def half_self(self, log_mu: Tensor, log_d: Tensor | None) -> Tensor:
        """½OT(μ, μ)/reg, from d with d·K d = μ by d ← √(d·μ/(K d)) (Knight, Ruiz and Uçar 2014).

        Each pass at least halves the error of d, in which the dual value ⟨log d, μ⟩ − ½(⟨d, K d⟩ − 1) is quadratic.
        """
        log_d = log_mu / 2 if log_d is None else log_d
        enough = torch.finfo(log_mu.dtype).eps ** 0.5
        for _ in range(100):
            log_kd = self.apply(log_d)
            plan = (log_d + log_kd).exp()
            if bool((self.integral((plan - log_mu.exp()).abs()) <= enough).all()):
                break
            log_d = (log_d + log_mu - log_kd) / 2
        return self.against(log_mu, log_d) - (self.integral(plan) - 1) / 2

    def measure(self, mu: Density, plan: Plan) -> Density:
        """ν, its mass (1 up to rounding) divided out."""
        nu = plan.log_nu.exp()
        nu = nu / self.integral(nu)[..., None]
        if not bool(torch.isfinite(nu).all()):
            raise FloatingPointError(f"the step has NaN or infinite values (reg = {self.metric.reg:g}); check F")
        return mu.with_state(values=nu.unflatten(-1, self.grid.shape))

    def apply(self, f: Tensor) -> Tensor:
        """log(K eᶠ)."""
        return self.kernel.log_apply(f.unflatten(-1, self.grid.shape)).flatten(-self.grid.dim)

    def integral(self, f: Tensor) -> Tensor:
        return f.sum(-1) * self.grid.volume

    def against(self, log_mu: Tensor, f: Tensor) -> Tensor:
        """∫ f dμ; nothing where μ = 0."""
        mu = log_mu.exp()
        return self.integral(torch.where(mu > 0, mu * f, 0.0))


def kl_prox(F: Functional, mu: Density, s: float) -> Callable[[Tensor, Tensor | None], Tensor]:
    """F's KL prox of (log a, a guess of log b): prepared once when F is local, its own otherwise."""
    return LocalProx.of(F, mu, s) if not_local(F) is None else lambda log_a, _: F.kl_prox(mu, log_a, s)
