"""Prox steps of particles by gradient maps over a space of features, with the carried log-density kept exact."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from ..domains import Euclidean
from ..functionals import Functional
from ..functionals.constraint import constraint_in
from ..measures import Measure, Particles
from ..measures.covariance import dense
from ..metrics import Metric, Wasserstein
from .base import OnFailure, Out, Stats, check_tau, report, require, slowest
from .feature_basis import Basis, Custom, Hermite
from .fitting import Objective, carries_entropy, differentiated, reservation, shortened, some, split, whitening
from .lbfgs import Minimum, minimise


@dataclass(frozen=True, eq=False)
class Features:
    """argmin of F(T#μ) + d²/(2·tau) over the maps T = x + Q∇ψ(x), ψ = Σ_k c_kψ_k, with ∇T positive on the particles.

    Free particles have no minimiser under an entropy: each could be stretched on its own. Within a few features the
    step is well posed; it is the prox itself when the optimal ψ lies among them (Hermite(2) for Gaussians and quadratic
    potentials), and its Galerkin approximation in general. log|det ∇T| is exact, so a carried log-density stays exact;
    an internal energy in F asks for one. Where I + Q∇²ψ is positive the map is optimal and d² = ∫⟨∇ψ, Q∇ψ⟩dμ; F with
    convex V and the entropy is convex in c. L-BFGS, in the coordinates of the Hessian at c = 0.

    basis: `Hermite(degree)`, `Cosines(count)`, or a callable ψ: (…, d) -> (…, K) differentiated by `torch.func`; it
    sees coordinates of zero mean and unit variance along each axis of L⁻¹x, Q = LLᵀ. A share `held_out` of the
    particles, drawn by a fixed seed, takes no part in the fit: the map is shortened until it lowers the objective on
    them too, and refused (μ returned) when it does not; converged is False in both cases; 0 turns this off. Used when
    asked for by solver= only, as the choice of features is an approximation. `residual` is the norm of the gradient
    relative to that at c = 0, and 0 where the latter is rounding.
    """

    basis: Basis | Callable[[Tensor], Tensor] = field(default_factory=lambda: Hermite(2))
    held_out: float = field(default=0.2, kw_only=True)
    tol: float | None = field(default=None, kw_only=True)
    max_iter: int = field(default=200, kw_only=True)
    on_failure: OnFailure = field(default="warn", kw_only=True)

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out is a share of the particles, in [0, 1), not {self.held_out}")
        if not callable(self.basis) and not isinstance(self.basis, Basis):
            raise TypeError(f"basis must be Hermite(degree), Cosines(count) or a callable, not {self.basis!r}")

    def supports(self, F: Functional, metric: Metric, mu: Measure) -> str | None:
        if not isinstance(mu, Particles):
            return f"it moves Particles, not a {type(mu).__name__}"
        if not isinstance(mu.domain, Euclidean):
            return f"it works on R^d, not on a {type(mu.domain).__name__}"
        if not isinstance(metric, Wasserstein):
            return f"it needs a metric with an optimal map, Wasserstein(), not {type(metric).__name__}"
        constraint = constraint_in(F)
        if constraint is not None:
            return f"{type(constraint).__name__} is a constraint, which a descent does not see"
        return carries_entropy(F, mu)

    def __call__(self, F: Functional, metric: Metric, mu: Measure, tau: float, last: Any = None) -> Out:
        require(self, F, metric, mu)
        mu, metric = cast(Particles, mu), cast(Wasserstein, metric)
        check_tau(tau, F, slowest(metric))
        frame = Frame.of(mu, metric)
        fitted, held = (some(mu, index) for index in split(mu, self.held_out))
        problem = Problem(F, frame, self._basis(), tau)
        with torch.no_grad():
            best, c = self._fit(problem, fitted)
            c, theta = shortened(problem.objective(held)[0], c)
            c = c.reshape(*mu.batch, -1)
            nu, distance2 = problem.moved(mu, c)
            stats = _stats(best, theta, F(nu) + distance2 / (2 * tau), distance2)
        stats = dataclasses.replace(stats, map=problem.map(c))
        advice = "give more particles, fewer features, or held_out=0; or smaller steps, or raise max_iter"
        return Out(nu, report(stats, self, advice, self.on_failure))

    def _basis(self) -> Basis:
        return self.basis if isinstance(self.basis, Basis) else Custom(self.basis)

    def _fit(self, problem: Problem, mu: Particles) -> tuple[Minimum, Tensor]:
        """The minimiser over the coefficients, (items, K)."""
        objective, count = problem.objective(mu)
        zero = mu.x.new_zeros(mu.batch.numel(), count)
        coordinates = _coordinates(objective, zero)

        def f(y: Tensor) -> tuple[Tensor, Tensor]:
            c = (coordinates @ y[..., None])[..., 0]
            value, gradient = differentiated(objective, c)
            return value, (coordinates.mT @ gradient[..., None])[..., 0]

        value, slope = f(zero)
        size = slope.norm(dim=-1)
        eps = torch.finfo(zero.dtype).eps
        tol = (self.tol or (1e-9 if zero.dtype == torch.float64 else 1e-4)) * size
        noise = 100 * eps * (1 + value.abs())
        best = minimise(
            f,
            zero,
            tol=torch.maximum(tol, noise),
            scale=1.0,
            noise=noise,
            max_iter=self.max_iter,
        )
        residual = torch.where(size > noise, best.residual / size, 0.0)
        best = dataclasses.replace(best, residual=residual)
        return best, (coordinates @ best.x[..., None])[..., 0]


@dataclass(frozen=True, eq=False)
class Frame:
    """Coordinates z = L⁻¹(x − m) with LLᵀ = Q, in which the cost is |z|², and their standard deviations s."""

    centre: Tensor
    factor: Tensor
    scale: Tensor

    @classmethod
    def of(cls, mu: Particles, metric: Wasserstein) -> Frame:
        with torch.no_grad():
            L = torch.linalg.cholesky(dense(metric.mobility(mu)))
            z = torch.linalg.solve_triangular(L, mu.x.mT, upper=False).mT
            centred = z - (mu.w[..., None] * z).sum(-2, keepdim=True)
            scale = (mu.w[..., None] * centred.square()).sum(-2).sqrt()
        if not (scale > 100 * torch.finfo(scale.dtype).eps * z.abs().amax(-2)).all():
            raise ValueError("the particles have no spread along an axis, so features do not tell them apart")
        return cls(mu.mean, L, scale)

    def to(self, x: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.factor, (x - self.centre[..., None, :]).mT, upper=False).mT

    def back(self, z: Tensor) -> Tensor:
        return self.centre[..., None, :] + z @ self.factor.mT

    def derivatives(self, basis: Basis, x: Tensor) -> tuple[Tensor, Tensor]:
        """∇ψ_k (*batch, n, K, d) and ∇²ψ_k (*batch, n, K, d, d) in the frame."""
        s = self.scale[..., None, None, :]
        slopes, bends = basis.derivatives(self.to(x) / s[..., 0, :])
        return slopes / s, bends / (s[..., None] * s[..., None, :])


@dataclass(frozen=True, eq=False)
class Problem:
    """F(T#μ) + d²/(2·tau) as a function of the coefficients c (*batch, K) of T = id + ∇ψ in the frame."""

    F: Functional
    frame: Frame
    basis: Basis
    tau: float

    def derivatives(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.frame.derivatives(self.basis, x)

    def image(self, mu: Particles, c: Tensor, parts: tuple[Tensor, Tensor]) -> tuple[Particles, Tensor, Tensor]:
        """T#μ with its log-density, the squared distance, and where ∇T is positive on all particles."""
        slopes, bends = parts
        u = (c[..., None, None, :] @ slopes)[..., 0, :]
        eye = torch.eye(mu.dim, dtype=c.dtype, device=c.device)
        jacobian = eye + torch.einsum("...k,...nkij->...nij", c, bends)
        L, info = torch.linalg.cholesky_ex(jacobian)
        inside = (info == 0).all(-1)
        log_det = 2 * torch.where(info == 0, L.diagonal(dim1=-2, dim2=-1).log().sum(-1), 0.0)
        log_density = None if mu.log_density is None else mu.log_density - log_det
        x = mu.x + u @ self.frame.factor.mT
        return mu.with_state(x=x, log_density=log_density), (mu.w * u.square().sum(-1)).sum(-1), inside

    def moved(self, mu: Particles, c: Tensor) -> tuple[Particles, Tensor]:
        nu, distance2, _ = self.image(mu, c, self.derivatives(mu.x))
        return nu, distance2

    def map(self, c: Tensor) -> Callable[[Tensor], Tensor]:
        """x ↦ T(x) for points (*batch, n, d)."""
        return lambda x: x + (c[..., None, None, :] @ self.derivatives(x)[0])[..., 0, :] @ self.frame.factor.mT

    def objective(self, mu: Particles) -> tuple[Objective, int]:
        """J(c), infinite where ∇T is not positive, and the number of features."""
        parts = self.derivatives(mu.x)

        def J(c: Tensor) -> Tensor:
            nu, distance2, inside = self.image(mu, c.reshape(*mu.batch, -1), parts)
            value = self.F(nu) + distance2 / (2 * self.tau)
            return torch.where(inside, value, torch.inf).reshape(-1)

        return J, parts[0].shape[-2]


def _coordinates(J: Objective, zero: Tensor) -> Tensor:
    """S with c = Sy in which the Hessian of J at 0 is the identity, (items, K, K)."""
    with torch.enable_grad():
        c = zero.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(J(c).sum(), c, create_graph=True)
        rows = [torch.autograd.grad(gradient[:, k].sum(), c, retain_graph=True)[0] for k in range(c.shape[-1])]
    H = torch.stack(rows, -2)
    return whitening(H)


def _stats(best: Minimum, theta: Tensor, objective: Tensor, distance2: Tensor) -> Stats:
    shape = distance2.shape
    return Stats(
        converged=(best.converged & (theta == 1)).reshape(shape),
        iterations=best.iterations.reshape(shape),
        residual=best.residual.reshape(shape),
        objective=objective,
        distance2=distance2,
        message=reservation(theta, "map"),
    )
