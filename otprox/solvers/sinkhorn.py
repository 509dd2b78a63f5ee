"""Sinkhorn's iteration with a KL prox: the one loop of entropic transport, on grids and on points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from .anderson import Anderson
from .gibbs import Gibbs

Reference = Literal["lebesgue", "product", "debiased"]

LOST = 1e-2  # marginal error that rounding does not excuse: potentials that large have diverged
GROWTH = 0.1  # a cell that grows by more than this factor an iteration could still fill, however empty it is
RISE = 3.0  # a mixed point may raise the residual by this factor above the least so far
SPREAD = 200.0  # where the iteration only multiplies, cells start from at least e^−200 of the largest


class Prox(Protocol):
    """argmin_b s·F(b) + KL(b | a) in logarithms; `cellwise` when it acts on each point alone."""

    @property
    def cellwise(self) -> bool: ...

    def __call__(self, log_a: Tensor, near: Tensor | None = None) -> Tensor:
        """log b; `near` is a guess of it."""
        ...

    def restricted(self, average: Callable[[Tensor], Tensor], s: float) -> Prox:
        """The same for s times F, on coarser cells onto which `average` takes the values of these."""
        ...


@dataclass(frozen=True, eq=False)
class Marginal:
    """b = ν: the prox of the indicator of ν, which makes the loop Sinkhorn's iteration between μ and ν."""

    log_nu: Tensor
    cellwise: ClassVar[bool] = True

    def __call__(self, log_a: Tensor, near: Tensor | None = None) -> Tensor:
        return self.log_nu

    def restricted(self, average: Callable[[Tensor], Tensor], s: float) -> Marginal:
        return Marginal(average(self.log_nu.exp()).clamp_min(torch.finfo(self.log_nu.dtype).tiny).log())


@dataclass(frozen=True, eq=False)
class Problem:
    """min over b of s·F(b) + OT(μ, b)/reg, through u = μ/(K v), b = prox(r·Kᵀu), v = b/(Kᵀu).

    Everything is a logarithm of a density against the base measure of its support, (*batch, n). `prox` is that of s·F
    in KL; the constant log ν makes it transport between μ and a given ν (then r = 1). r = 1 is the Lebesgue reference,
    r = v·Kᵀu, the second marginal of the plan, the product one, and r = d with d ← √(d·b/(K d)) the debiased one
    (Janati, Cuturi and Gramfort 2020); for the last two both supports are one.
    """

    kernel: Gibbs
    log_mu: Tensor
    prox: Prox
    reference: Reference = "lebesgue"

    def start(self, x: Tensor | None) -> Tensor:
        """Potentials to start from, v = d = 1 for None; none so small that multiplying could not bring it back."""
        blocks = 2 if self.reference == "debiased" else 1
        if x is None:
            like = self.prox.log_nu if isinstance(self.prox, Marginal) else self.log_mu
            return like.new_zeros((*like.shape[:-1], blocks * like.shape[-1]))
        if self.reference == "lebesgue":
            return x
        parts = x.unflatten(-1, (blocks, -1))
        return parts.maximum(parts.amax(-1, keepdim=True) - SPREAD).flatten(-2)

    def plan(self, x: Tensor, before: Plan | None = None) -> Plan:
        """One pass of the loop; the KL prox starts from that of the pass before."""
        log_v, log_d = x, None
        if self.reference == "debiased":
            log_v, log_d = x.unflatten(-1, (2, -1)).unbind(-2)
        log_u = self.log_mu - self.kernel.apply(log_v)
        log_a = self.kernel.adjoint(log_u)
        log_nu = log_v + log_a
        log_b = self.prox(log_a + self.log_r(log_nu, log_d), None if before is None else before.log_b)
        nu, b, image = log_nu.exp(), log_b.exp(), log_b - log_a
        residual = self.integral((nu - b).abs_())
        growth = torch.zeros_like(residual) if self.reference == "lebesgue" else (log_b - log_nu).amax(-1)
        if log_d is not None:
            log_kd = self.kernel.apply(log_d)
            residual = residual.maximum(self.integral(((log_d + log_kd).exp() - b).abs()))
            image = torch.cat([image, (log_d + log_b - log_kd) / 2], -1)
        sizes = self.integral((log_v.abs() + log_a.abs()).mul_(nu))
        rounding = 4 * torch.finfo(x.dtype).eps * (1 + sizes)
        return Plan(log_u, log_v, log_d, log_a, log_nu, log_b, nu, image, residual, growth, rounding)

    def log_r(self, log_nu: Tensor, log_d: Tensor | None) -> Tensor | float:
        """What the reference measure multiplies Kᵀu by."""
        if self.reference == "lebesgue":
            return 0.0
        return log_nu if log_d is None else log_d

    def integral(self, f: Tensor) -> Tensor:
        """∫ f dm over the second support, (*batch,)."""
        return integral(f, self.kernel.volumes[1])

    def cost(self, plan: Plan) -> Tensor:
        """OT(μ, ν)/reg for the Lebesgue reference, ⟨log u, μ⟩ + ⟨log v, ν⟩: u K v is the best plan of its marginals."""
        first = pairing(self.log_mu, plan.log_u, self.kernel.volumes[0])
        return first + pairing(plan.log_nu, plan.log_v, self.kernel.volumes[1])


@dataclass(frozen=True, eq=False)
class Plan:
    """The plan u K v with first marginal μ, in logarithms (*batch, n), and what the next pass starts from.

    a = Kᵀu; `nu` is its second marginal, b the prox; `image` is the next log v, with the next log d behind it when
    debiased.
    """

    log_u: Tensor
    log_v: Tensor
    log_d: Tensor | None
    log_a: Tensor
    log_nu: Tensor
    log_b: Tensor
    nu: Tensor
    image: Tensor
    residual: Tensor
    growth: Tensor
    rounding: Tensor

    def converged(self, tol: float) -> Tensor:
        return (self.residual <= self.rounding.clamp_max(LOST).clamp_min(tol)) & (self.growth <= GROWTH)

    @property
    def weights(self) -> Tensor:
        """ν, in whose L2 space the linearised iteration is self-adjoint, for each block of unknowns."""
        return self.nu if self.log_d is None else torch.cat([self.nu, self.nu], -1)


@dataclass(frozen=True, eq=False)
class Solution:
    """Where the loop stopped, and how."""

    plan: Plan
    converged: Tensor
    iterations: Tensor
    residual: Tensor


def iterate(problem: Problem, x: Tensor, mixer: Anderson, tol: float, max_iter: int) -> tuple[Plan, Tensor, Tensor]:
    """The fixed-point iteration from potentials x: the last plan, which items converged, and their iterations.

    Mixed, with a safeguard; finished items stay where they are.
    """
    safe, best = x, x.new_full(x.shape[:-1], torch.inf)
    iterations = torch.zeros_like(best, dtype=torch.int64)
    done = mixed = torch.zeros_like(best, dtype=torch.bool)
    plan = None
    for _ in range(max_iter):
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


def half_self(kernel: Gibbs, log_mu: Tensor, log_d: Tensor | None) -> tuple[Tensor, Tensor]:
    """½OT(μ, μ)/reg and log d, with d·K d = μ, by d ← √(d·μ/(K d)) (Knight, Ruiz and Uçar 2014).

    Each pass at least halves the error of d, in which the dual value ⟨log d, μ⟩ − ½(⟨d, K d⟩ − 1) is quadratic.
    """
    volume = kernel.volumes[0]
    log_d = log_mu / 2 if log_d is None else log_d
    enough = torch.finfo(log_mu.dtype).eps ** 0.5
    for _ in range(100):
        log_kd = kernel.apply(log_d)
        plan = (log_d + log_kd).exp()
        if bool((integral((plan - log_mu.exp()).abs(), volume) <= enough).all()):
            break
        log_d = (log_d + log_mu - log_kd) / 2
    return pairing(log_mu, log_d, volume) - (integral(plan, volume) - 1) / 2, log_d


def integral(f: Tensor, volume: Tensor | float) -> Tensor:
    """∫ f dm, (*batch,)."""
    return (f * volume).sum(-1) if isinstance(volume, Tensor) else f.sum(-1) * volume


def pairing(log_mu: Tensor, f: Tensor, volume: Tensor | float) -> Tensor:
    """∫ f dμ; nothing where μ = 0."""
    mu = log_mu.exp()
    return integral(torch.where(mu > 0, mu * f, 0.0), volume)
