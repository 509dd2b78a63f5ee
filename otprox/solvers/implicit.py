"""Derivatives of the minimiser of an entropic step by the implicit function theorem: one linear system each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .sinkhorn import Plan, Problem

Linear = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Linearised:
    """The equations of the plan u K v at the solution, to first order.

    With A w = (u K v w)/μ and B t = (v Kᵀ u t)/ν, averages over the plan, and β = dlog ν/dlog a at fixed x,

        δlog u + A(δlog ν − B δlog u) = δlog μ,    δlog ν = β·(B δlog u − s·δφ),

    β = 1/(1 + s·φ') for the Lebesgue reference and 1/(s·φ') for the product one, φ' = dφ/dlog ρ. Eliminating δlog ν
    leaves (I − A(1 − β)B) δlog u = δlog μ + A(β·s·δφ), self-adjoint and positive in L2(μ): conjugate gradients.
    """

    problem: Problem
    plan: Plan
    beta: Tensor
    s: float

    def pullback(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """From the derivatives of a scalar in log ν to those in log μ and in φ, (*batch, n)."""
        mu, nu = self.problem.log_mu.exp(), self.plan.nu
        m, n = (density * volume for density, volume in zip((mu, nu), self.problem.kernel.volumes, strict=True))
        per_mass = torch.where(n > 0, g / n, 0.0)
        lam = conjugate_gradients(
            lambda t: t - self.A((1 - self.beta) * self.B(t)), self.A(self.beta * per_mass), lambda f: (m * f).sum(-1)
        )
        return lam * m, -self.s * self.beta * (g - n * self.B(lam))

    def A(self, w: Tensor) -> Tensor:
        log = self.plan.log_u - self.problem.log_mu
        return _average(w, lambda f: log + self.problem.kernel.apply(self.plan.log_v + f))

    def B(self, t: Tensor) -> Tensor:
        return _average(t, lambda f: self.problem.kernel.adjoint(self.plan.log_u + f) - self.plan.log_a)


class Minimiser(torch.autograd.Function):
    """log ν as a function of log μ and φ, whose values are those of a solved problem."""

    @staticmethod
    def forward(ctx: Any, log_mu: Tensor, phi: Tensor, linearised: Linearised) -> Tensor:
        ctx.linearised = linearised
        return linearised.plan.log_nu.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        return *ctx.linearised.pullback(g), None


def conjugate_gradients(T: Linear, right: Tensor, inner: Linear, tol: float = 1e-11, max_iter: int = 500) -> Tensor:
    """T⁻¹ right (*batch, n) for T positive and self-adjoint in Σ inner(·); RuntimeError when it stalls."""
    x, r = torch.zeros_like(right), right
    p, size = r, inner(r * r)
    start = size.clamp_min(torch.finfo(right.dtype).tiny)
    for _ in range(max_iter):
        if bool((size <= tol**2 * start).all()):
            return x
        Tp = T(p)
        curvature = inner(p * Tp)
        alpha = torch.where(curvature > 0, size / curvature, 0.0)[..., None]
        x, r = x + alpha * p, r - alpha * Tp
        before, size = size, inner(r * r)
        p = r + torch.where(before > 0, size / before, 0.0)[..., None] * p
    worst = (size / start).max().sqrt().item()
    if worst > 1e-3:
        raise RuntimeError(
            f"the derivative of the step stalled at a relative residual of {worst:.2g}: take a larger reg"
        )
    return x


def _average(w: Tensor, log_mean: Linear) -> Tensor:
    """A mean of signed w by one of positive numbers, since means take constants to themselves."""
    shift = 2 * w.abs().amax(-1, keepdim=True) + torch.finfo(w.dtype).tiny
    return log_mean((w + shift).log()).exp() - shift
