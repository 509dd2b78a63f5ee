"""Prox steps of translation-invariant Gaussian fields, mode by mode: O(N log N) for N sites."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..functionals import Functional
from ..measures import Gaussian, Measure, Spectral
from ..measures.base import StepTooLarge
from ..measures.covariance import tensor_of
from ..metrics import Entropic, Metric, Wasserstein
from .base import OnFailure, Out, exact, report, require
from .quadratic_form import QuadraticForm, read
from .sinkhorn_gaussian import coupling_gain


@dataclass(frozen=True)
class Modes:
    """argmin_ν F(ν) + d²(μ, ν)/(2·tau) for a Gaussian μ with Spectral covariance, F = c·Entropy + ∫V dν, c ≥ 0, V a
    Quadratic with Spectral precision, in Wasserstein(Q) or Entropic(base=Wasserstein(Q)) with Q Spectral or None.

    All matrices share their eigenvectors, so every mode is a step in one dimension. For eigenvalues s of the
    covariance, p of ∇²V and q of Q, with a = 1 + tau·qp and γ = tau·c, the new variance is

    - Wasserstein, and Entropic with references "lebesgue" and "product": q·f(s/(qa))/a, with the f of `Bures` (Wibisono
      2018; Janati, Muzellec, Peyré, Cuturi 2020);
    - "debiased": q·x with x the positive root of tau·qp·x + ½√(4x² + e²) − ½√(4xs/q + e²) = γ, e = reg/2, a convex
      equation, by Newton's method from above to `tolerance`.

    Raises ValueError, naming the mode, when some a ≤ 0 and when a step would leave a mode without variance.
    """

    tolerance: float = dataclasses.field(default=1e-13, kw_only=True)
    max_iterations: int = dataclasses.field(default=100, kw_only=True)
    on_failure: OnFailure = dataclasses.field(default="warn", kw_only=True)

    def supports(self, F: Functional, metric: Metric, mu: Measure) -> str | None:
        if not isinstance(mu, Gaussian) or not isinstance(mu.cov, Spectral):
            return "it works on a Gaussian with a Spectral covariance"
        base = metric.base if isinstance(metric, Entropic) else metric
        if not isinstance(base, Wasserstein):
            return f"it knows Wasserstein and Entropic over an interval, not {type(base).__name__}"
        if base.Q is not None and not isinstance(base.Q, Spectral):
            return "Q is dense and the covariance Spectral; give Q as Spectral(values, lattice)"
        form = read(F, mu)
        return form if isinstance(form, str) else None

    def __call__(self, F: Functional, metric: Metric, mu: Measure, tau: float, last: Any = None) -> Out:
        require(self, F, metric, mu)
        if not tau > 0:
            raise ValueError(f"tau must be positive, not {tau}")
        form = read(F, mu)  # type: ignore[arg-type]  # supports has checked
        base = metric.base if isinstance(metric, Entropic) else metric
        assert isinstance(mu, Gaussian) and isinstance(form, QuadraticForm) and isinstance(base, Wasserstein)
        step = _Step.of(form, base, mu, tau)
        if not isinstance(metric, Entropic):
            return step.out(F, mu, step.closed(), None)
        if metric.reference != "debiased":
            widening = metric.reg / 2 if metric.reference == "lebesgue" else -metric.reg / 2
            return step.out(F, mu, step.closed(widening), metric)
        x, iterations, residual = step.debiased(metric.reg, self.tolerance, self.max_iterations)
        out = step.out(F, mu, x, metric)
        stats = dataclasses.replace(
            out.stats,
            converged=(residual <= _rounding(self.tolerance, x)).expand(mu.batch),
            iterations=iterations.expand(mu.batch),
            residual=residual.expand(mu.batch),
            message="Newton on each mode; the residual is the largest last step, relative",
        )
        return Out(out.mu, report(stats, self, "add Entropy to F, lower tau, or raise max_iterations", self.on_failure))


@dataclass(frozen=True, eq=False)
class _Step:
    """A step mode by mode, in coordinates where the cost is |z|²: eigenvalues (*batch, N)."""

    q: Tensor
    s: Tensor  # of the covariance
    h: Tensor  # of ∇²V
    shift: Tensor | None  # of the mean, in modes of the original coordinates
    cov: Any  # Spectral
    tau: float
    gamma: float

    @classmethod
    def of(cls, form: QuadraticForm, base: Wasserstein, mu: Gaussian, tau: float) -> _Step:
        cov: Any = mu.cov
        q = tensor_of(base.mobility(mu))
        if form.hessian is None or form.gradient is None:
            return cls(q, cov.values / q, torch.zeros_like(q), None, cov, tau, tau * form.entropy)
        h = q * tensor_of(form.hessian)
        a = 1 + tau * h
        if not (a > 0).all():
            mode, smallest = _worst(h, cov)
            raise StepTooLarge(
                f"tau = {tau:.6g} is not below the convexity limit 1/λ = {-1 / smallest:.6g}: {mode} has "
                f"curvature −λ = {smallest:.6g} in this metric, and 1 − tau·λ must be positive; take smaller steps"
            )
        shift = -tau * q / a * cov.lattice.to_modes(form.gradient)
        return cls(q, cov.values / q, h, shift, cov, tau, tau * form.entropy)

    def closed(self, widening: float = 0.0) -> Tensor:
        """f(s/a)/a with f(λ) = ½[λ + 2γ + w + √((λ + w)² + 4γλ)]."""
        a = 1 + self.tau * self.h
        x = _prox(self.s / a, self.gamma, widening)
        if not (x > 0).all():
            mode, smallest = _worst(x, self.cov)
            raise ValueError(
                f'reference="product" shrinks variances by reg/2 = {-widening:.6g}, which leaves {mode} with '
                f"{smallest:.3g}; take a smaller reg, add Entropy to F, or use reference='debiased'"
            )
        return x / a

    def debiased(self, reg: float, tolerance: float, max_iterations: int) -> tuple[Tensor, Tensor, Tensor]:
        """The roots x (*batch, N), and for each item Newton's iterations and the largest last step, relative to x."""
        e, a = reg / 2, 1 + self.tau * self.h
        if self.gamma == 0 and (slope := self.tau * self.h - self.s / e).max() >= 0:
            raise ValueError(
                f"the debiased step leaves {_worst(-slope, self.cov)[0]} without variance; add Entropy to F, or take a "
                "smaller tau or reg"
            )
        with torch.no_grad():
            x = ((self.s.sqrt() + (self.s + 4 * a * (self.gamma + e / 2)).sqrt()) / (2 * a)).square()  # above the root
            residual = torch.full_like(x[..., 0], torch.inf)
            iterations = torch.zeros_like(residual, dtype=torch.int64)
            for _ in range(max_iterations):
                active = residual > _rounding(tolerance, x)  # finished items freeze
                if not active.any():
                    break
                new = torch.where(active[..., None], x - self._newton(x, e), x)
                residual = torch.where(active, ((new - x).abs() / new).amax(-1), residual)
                x, iterations = new, iterations + active
        return x - self._newton(x, e), iterations, residual  # once more, to be differentiated

    def _newton(self, x: Tensor, e: float) -> Tensor:
        """k/k' of k(x) = tau·h·x + ½√(4x² + e²) − ½√(4xs + e²) − γ, which is convex."""
        width = torch.full_like(x, e)
        own, pair = torch.hypot(2 * x, width), torch.hypot(2 * x.sqrt() * self.s.sqrt(), width)
        value = self.tau * self.h * x + 2 * x * (x - self.s) / (own + pair) - self.gamma
        return value / (self.tau * self.h + 2 * x / own - self.s / pair).detach()

    def out(self, F: Functional, mu: Gaussian, x: Tensor, metric: Entropic | None) -> Out:
        """The Gaussian with variances x in the modes of z, and its closed-form stats."""
        to_modes, mean = self.cov.lattice.to_modes, mu.mean
        if self.shift is not None:
            mean = mean + to_modes(self.shift)
        batch = torch.broadcast_shapes(mean.shape[:-1], x.shape[:-1])
        nu = mu.with_matrix(mean.expand(*batch, -1), self.cov.with_values((self.q * x).expand(*batch, -1)))
        distance2 = self._distance2(x, metric)
        if metric is not None and metric.reference == "lebesgue":
            distance2 = distance2 + metric.reg * (mu.entropy() + nu.entropy())
        distance2 = distance2.expand(nu.batch)
        stats = exact(nu, F(nu) + distance2 / (2 * self.tau), distance2, None if metric else self._map(mu, nu, x))
        return Out(nu, stats)

    def _distance2(self, x: Tensor, metric: Entropic | None) -> Tensor:
        """d² but for the entropies of the "lebesgue" reference."""
        moved = x.new_zeros(()) if self.shift is None else (self.shift.square() / self.q).sum(-1)
        if metric is None:  # by optimality √x − √s = (γ/x − tau·h)√x, without cancellation
            return moved + (x * (self.tau * self.h - self.gamma / x).square()).sum(-1)
        pair = coupling_gain(x * self.s, metric.reg)
        if metric.reference == "debiased":
            own = [coupling_gain(v.square(), metric.reg) for v in (x, self.s)]
            return moved + pair - 0.5 * (own[0] + own[1])
        return moved + (x + self.s).sum(-1) + pair

    def _map(self, mu: Gaussian, nu: Gaussian, x: Tensor) -> Any:
        stretch = self.cov.with_values((x / self.s).sqrt())
        return lambda points: nu.mean[..., None, :] + (points - mu.mean[..., None, :]) @ stretch


def _prox(x: Tensor, gamma: float, h: float) -> Tensor:
    u, root = x + 2 * gamma + h, torch.hypot(x + h, 2 * math.sqrt(gamma) * x.sqrt())  # x may be near the largest number
    if h >= 0:
        return (u + root) / 2
    small = (
        -2 * gamma * (gamma + h) / torch.where(u < 0, root - u, torch.ones_like(u))
    )  # u + root = (root² − u²)/(root − u)
    return torch.where(u < 0, small, (u + root) / 2)


def _worst(values: Tensor, cov: Spectral) -> tuple[str, float]:
    """The name of the mode with the smallest value, and the value."""
    k = int(values.argmin())
    return cov.lattice.mode_name(k % values.shape[-1]), values.flatten()[k].item()


def _rounding(tolerance: float, x: Tensor) -> float:
    return max(tolerance, 100 * torch.finfo(x.dtype).eps)
