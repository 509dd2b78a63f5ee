"""Entropic implicit steps that move particles: for energies that need a gradient and no density."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..domains import Euclidean
from ..functionals import Functional, Internal
from ..functionals.constraint import constraint_in
from ..measures import Measure, Particles
from ..metrics import Entropic, Metric, Wasserstein
from ..pairwise import Engine
from .annealing import Level, solve
from .base import OnFailure, Out, Stats, check_tau, report, require, slowest, warm_start
from .gibbs import CloudKernel
from .lbfgs import minimise
from .sinkhorn import Marginal, Problem, half_self, pairing
from .static import Clouds, coordinates, log_weights

PASSES = 1000  # of Sinkhorn's iteration for one value of the objective


@dataclass(frozen=True, kw_only=True)
class FreeSupport:
    """argmin over positions Y of F(Σ w_i δ_{Y_i}) + OT(μ, Σ w_i δ_{Y_i})/(2·tau) in Entropic(reg, reference, base).

    OT compares weights with their product, ⟨cost, π⟩ + reg·KL(π | μ⊗ν) ("product"), or is the Sinkhorn divergence
    ("debiased"); a plan between points has no density, so "lebesgue" is declined. By L-BFGS, whose every value is a
    transport problem solved by Sinkhorn's iteration to a marginal error of `inner`, started from the one before.
    Gradients are those of the envelope theorem (Feydy et al. 2019), g(y) = −reg·log ∫ exp((f(x) − cost(x, y))/reg)
    dμ(x) being the potential at any y: nothing is unrolled, and memory is linear in the particles.

    The objective never rises from its value at Y = x, F(μ) + OT(μ, μ)/(2·tau), beyond the accuracy of the transport.
    `residual` is the norm of its gradient in W2; an item has converged when that is below `tol` times its start, with
    every transport problem solved. "product" draws points together, to one where reg exceeds about twice their
    variance; "debiased" does not. A carried log-density is dropped. Results are constants to autograd.
    """

    tol: float = 1e-3
    inner: float = 1e-5
    max_iter: int = 200
    memory: int = 10
    engine: Engine = "auto"
    on_failure: OnFailure = "warn"

    def supports(self, F: Functional, metric: Metric, mu: Measure) -> str | None:
        if not isinstance(metric, Entropic):
            return f"it computes steps in the metric Entropic, not {type(metric).__name__}"
        if not isinstance(mu, Particles):
            return f"it moves Particles, not a {type(mu).__name__}"
        if not isinstance(metric.base, Wasserstein):
            return f"the base {type(metric.base).__name__} acts over an interval: use metric.over(t0, t1)"
        if metric.reference == "lebesgue":
            return "a plan between points has no Lebesgue density: use the reference 'debiased' or 'product'"
        if not isinstance(mu.domain, Euclidean):
            return f"its points move in all of R^d, not in a {type(mu.domain).__name__}"
        needs = [type(f).__name__ for _, f in F.terms if isinstance(f, Internal)]
        constraint = constraint_in(F)
        if needs or constraint is not None:
            return f"{' + '.join(needs) or type(constraint).__name__} needs a density, which free particles do not have"
        return None

    def __call__(self, F: Functional, metric: Metric, mu: Measure, tau: float, last: Any = None) -> Out:
        require(self, F, metric, mu)
        assert isinstance(metric, Entropic) and isinstance(mu, Particles)
        check_tau(tau, F, slowest(metric.base))
        objective = Objective(F, metric, mu, tau, self.inner, self.engine)
        origin = mu.x.new_zeros(mu.batch.numel(), mu.x.shape[-2] * mu.dim)
        value, gradient = objective(origin)
        if not gradient.isfinite().all():
            raise ValueError(f"the gradient of {F} is non-finite, NaN or infinite, where the step begins")
        best = minimise(
            objective,
            objective.start(warm_start(last, "covector", origin), origin, value),
            tol=self.tol * gradient.norm(dim=-1).clamp_min(self.inner**0.5),
            scale=tau,
            noise=self.inner * (1 + value.abs()),
            memory=self.memory,
            max_iter=self.max_iter,
        )
        nu, distance2 = objective.moved(best.x), objective.distance2(best.x)
        stats = Stats(
            converged=best.converged.reshape(mu.batch) & objective.solved,
            iterations=best.iterations.reshape(mu.batch),
            residual=best.residual.reshape(mu.batch),
            objective=best.value.reshape(mu.batch),
            distance2=distance2,
            message="L-BFGS over positions",
            warm={"covector": best.x / tau},
        )
        advice = "raise max_iter, tol or inner, take smaller steps, or check that F is differentiable and bounded below"
        return Out(mu.with_state(x=nu, log_density=None), report(stats, self, advice, self.on_failure))


class Objective:
    """Coordinates y = √w·L⁻¹(Y − x), Q = LLᵀ, (items, n·d) ↦ F + OT/(2·tau) and its gradient, which is that of W2.

    Keeps the potentials of the last value: the next transport problem starts from them.
    """

    def __init__(
        self, F: Functional, metric: Entropic, mu: Particles, tau: float, inner: float, engine: Engine = "auto"
    ) -> None:
        assert isinstance(metric.base, Wasserstein)
        self.F, self.mu, self.tau, self.inner, self.engine = F, mu, tau, inner, engine
        self.reg, self.debiased = metric.reg, metric.reference == "debiased"
        self.factor, self.x = metric.base.factor(mu), coordinates(mu, metric.base).detach()
        self.log_w, weight = log_weights(mu), mu.w[..., None]
        self.scale = torch.where(weight > 0, weight.rsqrt(), 0)
        self.log_v: Tensor | None = None
        self.log_d: Tensor | None = None
        with torch.no_grad():
            ends = self._kernel(self.x, self.x)
            self.half = half_self(ends, self.log_w, None)[0] if self.debiased else self._entropy()

    def __call__(self, y: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            energy = self.F(self.mu.with_state(x=self.moved(y), log_density=None))
            if not energy.requires_grad:
                raise TypeError(f"{self.F} is not differentiable by autograd in the positions: write it with torch")
            value = energy + self._transport(self.x + self._shift(y)) / (2 * self.tau)
            (gradient,) = torch.autograd.grad(value.sum(), y)
        return value.detach().reshape(-1), gradient

    def start(self, covector: Tensor | None, origin: Tensor, value: Tensor) -> Tensor:
        """The last step's covector where it lowers the objective, the old points elsewhere."""
        if covector is None:
            return origin
        better = self(self.tau * covector)[0] < value
        return torch.where(better[:, None], self.tau * covector, origin)

    def moved(self, y: Tensor) -> Tensor:
        """Positions Y (*batch, n, d)."""
        shift = self._shift(y)
        return self.mu.x.detach() + (shift if self.factor is None else shift @ self.factor.mT)

    def distance2(self, y: Tensor) -> Tensor:
        with torch.no_grad():
            return self._transport(self.x + self._shift(y))

    def _shift(self, y: Tensor) -> Tensor:
        return y.reshape(self.mu.x.shape) * self.scale

    def _transport(self, y: Tensor) -> Tensor:
        """OT(μ, ν), (*batch,), with its gradient in the points y of ν: potentials are held where they are optimal."""
        kernel = self._kernel(self.x, y)
        with torch.no_grad():
            at = y.detach()
            problem = Problem(self._kernel(self.x, at), self.log_w, Marginal(self.log_w))
            found, _ = solve(
                Level(problem, Clouds(self.x, at, self.engine), self.reg), self.log_v, self.inner, PASSES, 10
            )
            self.log_v, self.solved = found.plan.image, found.converged
            half = self._entropy()
            if self.debiased:
                half, self.log_d = half_self(self._kernel(at, at), self.log_w, self.log_d)
            cost = problem.cost(found.plan) - self.half - half
        slope = kernel.adjoint(found.plan.log_u)
        if self.log_d is not None:
            slope = slope - self._kernel(y, at).apply(self.log_d)
        return self.reg * (cost - (self.mu.w * (slope - slope.detach())).sum(-1))

    def _kernel(self, x: Tensor, y: Tensor) -> CloudKernel:
        return CloudKernel(x, y, self.reg, engine=self.engine)

    def _entropy(self) -> Tensor:
        """∫ log w dμ."""
        return pairing(self.log_w, self.log_w, 1.0)
