"""Prox steps of Gaussians in closed form: entropy and quadratic potentials in Wasserstein and entropic metrics."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..functionals import Functional
from ..measures import Gaussian, Measure, Spectral
from ..measures.base import StepTooLarge
from ..measures.spd import Divided, Spectrum, symmetrise, whiten
from ..metrics import Entropic, Metric, Moving, Wasserstein
from .base import OnFailure, Out, Stats, check_positive, exact, report
from .quadratic_form import QuadraticForm, read
from .sinkhorn_gaussian import DebiasedProx, coupling_gain, sinkhorn_divergence


@dataclass(frozen=True)
class Bures:
    """argmin_ν F(ν) + d²(μ, ν)/(2·tau) for a Gaussian μ and F = c·Entropy + ∫V dν, c ≥ 0, V quadratic.

    In coordinates where the cost is |z|², with A = I + tau·∇²V = C Cᵀ ≻ 0, M = C⁻¹ΣC⁻ᵀ and γ = tau·c, the minimiser
    has mean m − tau·A⁻¹∇V(m) and covariance C⁻ᵀ f(M) C⁻¹, where covariances need not commute:

    - Wasserstein: f(λ) = ½[λ + 2γ + √(λ² + 4γλ)] (Wibisono 2018, Salim, Korba, Luise 2020, for entropy and KL).
    - Entropic: f(λ) = ½[λ + 2γ + h + √((λ + h)² + 4γλ)], h = reg/2 for the "lebesgue" reference and −reg/2 for
      "product" (Janati, Muzellec, Peyré, Cuturi 2020 give the cost). "debiased" has no closed form: Newton's method, to
      `tolerance` relative to the covariance.

    V may be a Quadratic, or a callable that turns out to be quadratic. Gradients flow through the mean and covariance
    of μ and the parameters of V and Q (once), not through tau and reg. Raises ValueError when A is not positive
    definite, that is tau ≥ 1/λ for a potential with smallest curvature −λ, and when a "product" step leaves no
    covariance.

    >>> from otprox import Entropy, Gaussian, Wasserstein
    >>> nu, _ = Bures()(Entropy(), Wasserstein(), Gaussian([0.0], [[1.0]]), tau=2.0)
    >>> round(nu.cov.item(), 6)
    4.0
    """

    tolerance: float = dataclasses.field(default=1e-10, kw_only=True)
    max_iterations: int = dataclasses.field(default=100, kw_only=True)
    on_failure: OnFailure = dataclasses.field(default="warn", kw_only=True)

    def supports(self, F: Functional, metric: Metric, mu: Measure) -> str | None:
        form = self._read(F, metric, mu)
        return form if isinstance(form, str) else None

    def _read(self, F: Functional, metric: Metric, mu: Measure) -> QuadraticForm | str:
        if not isinstance(mu, Gaussian):
            return f"it works on a Gaussian, not on {type(mu).__name__}"
        if isinstance(mu.cov, Spectral):
            return "it works on dense covariances; Modes takes Spectral ones"
        if isinstance(metric, Moving) or (isinstance(metric, Entropic) and isinstance(metric.base, Moving)):
            return "a Moving metric needs the interval of its step: metric.over(t0, t1)"
        if not isinstance(metric, Wasserstein | Entropic):
            return f"it knows the metrics Wasserstein and Entropic, not {type(metric).__name__}"
        return read(F, mu)

    def __call__(self, F: Functional, metric: Metric, mu: Measure, tau: float, last: Any = None) -> Out:
        form = self._read(F, metric, mu)
        if isinstance(form, str):
            raise TypeError(f"Bures declines: {form}")
        check_positive(tau)
        base = metric.base if isinstance(metric, Entropic) else metric
        assert isinstance(mu, Gaussian) and isinstance(base, Wasserstein)  # _read has checked
        step = _Step.of(form, base, mu, tau)
        if not isinstance(metric, Entropic):
            return _wasserstein(step, F, mu)
        if metric.reference != "debiased":
            return _entropic(step, F, mu, metric)
        out = self._debiased(step, F, mu, metric.reg)
        advice = "add Entropy to F (without it the minimiser may be singular), lower tau, or raise max_iterations"
        report(out.stats, self, advice, self.on_failure)
        return out

    def _debiased(self, step: _Step, F: Functional, mu: Gaussian, reg: float) -> Out:
        start = step.unwhiten(Spectrum.of(step.M).map(*_prox(step.gamma))).detach()
        shape = start.shape[:-2]
        hessian = start.new_zeros(()) if step.hessian is None else step.hessian
        cov, P = (S.expand_as(start).reshape(-1, *start.shape[-2:]) for S in (step.cov, hessian))
        tolerance = max(self.tolerance, 100 * torch.finfo(start.dtype).eps)
        prox = DebiasedProx(cov, P, step.tau, step.gamma, reg)
        S, iterations, residual = prox.solve(start.reshape(cov.shape), tolerance, self.max_iterations)
        S = S.reshape(start.shape)
        nu = step.place(mu, S)
        stats = dataclasses.replace(
            _stats(step, F, nu, step.moved + sinkhorn_divergence(S, step.cov, reg)),
            converged=(residual <= tolerance).reshape(shape).expand(nu.batch),
            iterations=iterations.reshape(shape).expand(nu.batch),
            residual=residual.reshape(shape).expand(nu.batch),
            message="Newton on the covariance; the residual is the relative length of its last step",
        )
        return Out(nu, stats)


@dataclass(frozen=True, eq=False)
class _Step:
    """A step in coordinates z = L⁻¹x, Q = LLᵀ, where the cost is |z|²."""

    cov: Tensor
    shift: Tensor | None  # z' − z of the mean
    hessian: Tensor | None  # ∇²V
    chol: Tensor | None  # C with CCᵀ = A = I + tau·∇²V
    factor: Tensor | None  # L
    tau: float
    gamma: float

    @classmethod
    def of(cls, form: QuadraticForm, base: Wasserstein, mu: Gaussian, tau: float) -> _Step:
        L, gamma = base.factor(mu), tau * form.entropy
        cov = mu.cov if L is None else whiten(mu.cov, L)
        if form.hessian is None or form.gradient is None:
            return cls(cov, None, None, None, L, tau, gamma)
        g, H = form.gradient, form.hessian
        if L is not None:
            g, H = (L.mT @ g[..., None])[..., 0], symmetrise(L.mT @ H @ L)
        C = _cholesky_of_step(H, tau)
        shift = -tau * torch.cholesky_solve(g[..., None], C)[..., 0]
        return cls(cov, shift, H, C, L, tau, gamma)

    @cached_property
    def M(self) -> Tensor:
        """C⁻¹ Σ C⁻ᵀ."""
        return self.cov if self.chol is None else whiten(self.cov, self.chol)

    def unwhiten(self, X: Tensor) -> Tensor:
        """C⁻ᵀ X C⁻¹."""
        if self.chol is None:
            return X
        half = torch.linalg.solve_triangular(self.chol.mT, X, upper=True)
        return symmetrise(torch.linalg.solve_triangular(self.chol.mT, half.mT, upper=True))

    def place(self, mu: Gaussian, cov: Tensor) -> Gaussian:
        """The Gaussian whose covariance is `cov` in z, in the original coordinates."""
        shift, mean = self.shift, mu.mean
        if self.factor is not None:
            cov = symmetrise(self.factor @ cov @ self.factor.mT)
            shift = None if shift is None else (self.factor @ shift[..., None])[..., 0]
        mean = mean if shift is None else mean + shift
        batch = torch.broadcast_shapes(mean.shape[:-1], cov.shape[:-2])
        return mu.with_state(mean=mean.expand(*batch, -1), cov=cov.expand(*batch, -1, -1))

    def effort(self, hessian: Tensor, cov: Tensor) -> Tensor:
        """W2² from Σ to the minimiser Σ' = K Kᵀ: ‖tau·∇²V K − γ K⁻ᵀ‖², by optimality, so without cancellation."""
        K = torch.linalg.cholesky(cov)
        force = self.tau * hessian @ K
        if self.gamma:
            eye = torch.eye(K.shape[-1], dtype=K.dtype, device=K.device)
            force = force - self.gamma * torch.linalg.solve_triangular(K.mT, eye, upper=True)
        return force.square().sum((-2, -1))

    def map(self, spectrum: Spectrum | None) -> Tensor:
        """The matrix of the optimal map from old to new, in the original coordinates."""
        eye = torch.eye(self.cov.shape[-1], dtype=self.cov.dtype, device=self.cov.device)
        T = self.unwhiten(eye if spectrum is None else spectrum.map(*_stretch(self.gamma)))
        if self.factor is None:
            return T
        return torch.linalg.solve_triangular(self.factor, self.factor @ T, upper=False, left=False)

    @property
    def moved(self) -> Tensor:
        """|z' − z|² of the mean."""
        return self.cov.new_zeros(()) if self.shift is None else self.shift.square().sum(-1)


def _wasserstein(step: _Step, F: Functional, mu: Gaussian) -> Out:
    if step.gamma == 0:  # a potential alone: the image under A⁻¹, no eigendecomposition
        spectrum, X, distance2 = None, step.M, step.moved
    else:
        spectrum = Spectrum.of(step.M)
        f, divided = _prox(step.gamma)
        X = spectrum.map(f, divided)
        distance2 = step.moved + step.gamma**2 * (1 / f(spectrum.values)).sum(-1)
    cov = step.unwhiten(X)
    if step.hessian is not None:
        distance2 = step.moved + step.effort(step.hessian, cov)
    nu = step.place(mu, cov)

    def transport(x: Tensor) -> Tensor:
        return nu.mean[..., None, :] + (x - mu.mean[..., None, :]) @ step.map(spectrum).mT

    return Out(nu, _stats(step, F, nu, distance2, transport))


def _entropic(step: _Step, F: Functional, mu: Gaussian, metric: Entropic) -> Out:
    reg, lebesgue = metric.reg, metric.reference == "lebesgue"
    spectrum = Spectrum.of(step.M)
    f, divided = _prox(step.gamma, reg / 2 if lebesgue else -reg / 2)
    values = f(spectrum.values)
    if not (values > 0).all():
        raise ValueError(
            f'reference="product" shrinks the covariance by reg/2 = {reg / 2:.6g}, which leaves an eigenvalue of '
            f"{values.min().item():.3g}; take a smaller reg, add Entropy to F, or use reference='debiased'"
        )
    cov = step.unwhiten(spectrum.map(f, divided))
    nu = step.place(mu, cov)
    # Σ and Σ' are C M Cᵀ and C⁻ᵀ f(M) C⁻¹, so that the eigenvalues of ΣΣ' are λ f(λ)
    distance2 = step.moved + _trace(step.cov) + _trace(cov) + coupling_gain(spectrum.values * values, reg)
    if lebesgue:
        distance2 = distance2 + reg * (mu.entropy() + nu.entropy())
    return Out(nu, _stats(step, F, nu, distance2))


def _stats(
    step: _Step, F: Functional, nu: Gaussian, distance2: Tensor, map: Callable[[Tensor], Tensor] | None = None
) -> Stats:
    distance2 = distance2.expand(nu.batch)
    return exact(nu, F(nu) + distance2 / (2 * step.tau), distance2, map)


def _cholesky_of_step(hessian: Tensor, tau: float) -> Tensor:
    """C with CCᵀ = I + tau·∇²V, or the limit that tau exceeds."""
    eye = torch.eye(hessian.shape[-1], dtype=hessian.dtype, device=hessian.device)
    C, info = torch.linalg.cholesky_ex(eye + tau * hessian)
    if info.any():
        smallest = torch.linalg.eigvalsh(hessian).min().item()
        raise StepTooLarge(
            f"tau = {tau:.6g} is not below the convexity limit 1/λ = {-1 / smallest:.6g}: the smallest curvature of "
            f"the potential in this metric is −λ = {smallest:.6g}, and I + tau·∇²V must be positive definite; take "
            "smaller steps"
        )
    return C


def _prox(gamma: float, h: float = 0.0) -> tuple[Callable[[Tensor], Tensor], Divided]:
    """f(λ) = ½[λ + 2γ + h + s], s = √((λ + h)² + 4γλ), and its divided differences, without cancellation."""

    def f(x: Tensor) -> Tensor:
        x = x.clamp_min(0)
        u, s = x + 2 * gamma + h, _root(x, gamma, h)
        if h >= 0:
            return (u + s) / 2
        small = -2 * gamma * (gamma + h) / torch.where(u < 0, s - u, torch.ones_like(u))  # u + s = (s² − u²)/(s − u)
        return torch.where(u < 0, small, (u + s) / 2)

    return f, lambda x, y: (1 + _root_divided(x, y, gamma, h)) / 2


def _stretch(gamma: float) -> tuple[Callable[[Tensor], Tensor], Divided]:
    """f/(f − γ) = 1 + 2γ/(λ + s): the stretch of the optimal map, in the frame of M."""

    def ratio(x: Tensor) -> Tensor:
        return 1 + 2 * gamma / (x + _root(x, gamma))

    def divided(x: Tensor, y: Tensor) -> Tensor:
        slope = 1 + _root_divided(x, y, gamma)
        return -2 * gamma * slope / ((x + _root(x, gamma)) * (y + _root(y, gamma)))

    return ratio, divided


def _root(x: Tensor, gamma: float, h: float = 0.0) -> Tensor:
    return ((x + h).square() + 4 * gamma * x).clamp_min(0).sqrt()


def _root_divided(x: Tensor, y: Tensor, gamma: float, h: float = 0.0) -> Tensor:
    return (x + y + 2 * h + 4 * gamma) / (_root(x, gamma, h) + _root(y, gamma, h))


def _trace(A: Tensor) -> Tensor:
    return A.diagonal(dim1=-2, dim2=-1).sum(-1)
