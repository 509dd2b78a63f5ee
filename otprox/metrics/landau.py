"""The metric of collisions, in which the Landau equation is the flow of the entropy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from ..domains import Euclidean
from ..functionals import Functional
from ..measures import Gaussian, Measure, Particles, Velocity
from ..pairwise import collide, collision_jacobian, collisions_of_fields
from ..pairwise.batches import Split
from ..pairwise.collisions import check_apart
from .base import Metric
from .landau_gaussian import velocity_covariance


@dataclass(frozen=True, eq=False)
class Landau(Metric):
    """(K_μ u)(x) = ∫ A(x − y)(u(x) − u(y)) dμ(y), A(z) = strength·|z|^{γ+2}(I − ẑẑᵀ), in R^d, d ≥ 2.

    γ = 0 are Maxwell molecules, in O(n) by moments; γ = −3 in d = 3 is Coulomb. Any other γ in [−d, 1] takes all
    pairs, in tiles. As A is even and A(z)z = 0, momentum Σw x and energy ½Σw|x|² have rate 0 for every covector u, to
    rounding; a forward Euler step of size τ still adds ½τ²Σw|v|² to the energy. Particles at one place with γ < −2
    are refused. `Forward(Blob(width, form="full"), Landau(γ))` is the particle method of
    Carrillo, Hu, Wang and Wu (2020).

    With `batch`, velocities at the particles are over random batches of so many of them, drawn from `generator` at
    every step anew: O(n·batch). Pairs of one batch count (n − 1)/(batch − 1) times, so the velocity is unbiased; the
    two of a pair act on each other or not at all, so momentum and energy keep rate 0, with any weights. Velocities at
    other points, and `dissipation`, are over all particles (Carrillo, Jin, Tang 2022).

    A carried density moves by the Jacobian of the velocity, det(I + τ∇v), of the same batches.

    A Gaussian moves along the affine field nearest to K_μ of the affine covector nearest to ∇φ, exact moments in closed
    form for γ = 0 and by one integral otherwise. With the entropy and γ = 0 its covariance follows the equation of any
    law's, dP/dt = 4·strength·(tr P I − dP); otherwise this is the closure by a Gaussian.
    """

    gamma: float
    strength: float = 1.0
    batch: int | None = field(default=None, kw_only=True)
    generator: torch.Generator | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not self.gamma <= 1:
            raise ValueError(f"gamma must be in [−d, 1]: 0 for Maxwell molecules, −3 for Coulomb; got {self.gamma}")
        if not 0 < self.strength < math.inf:
            raise ValueError(f"strength must be positive and finite; got {self.strength}")
        if self.batch is not None and self.batch < 2:
            raise ValueError(f"batch must be at least 2 particles, or None for all pairs; got {self.batch}")
        if (self.batch is None) != (self.generator is None):
            raise ValueError("random batches need both: batch=64, generator=torch.Generator()")

    def onsager(self, mu: Measure, u: Tensor) -> Tensor:
        self._points(mu)
        return self._among(mu, lambda x, w, u: collide(x, u, x, u, w[..., 0], self.gamma), u)

    def descent(self, F: Functional, mu: Measure) -> Velocity:
        if isinstance(mu, Gaussian):
            return self._affine(F, mu)
        points = self._points(mu)

        def velocity(x: Tensor) -> Tensor:
            u = F.gradient(mu, x)
            return -self.onsager(mu, u) if x is points else -self._field(mu, x, u, F.gradient(mu, points))

        def jacobian() -> tuple[Tensor, Tensor]:
            v, slope = self._with_jacobian(mu, F.gradient(mu), F.hessian(mu))
            return -v, -slope

        return Velocity(velocity, jacobian=jacobian)

    def dissipation(self, F: Functional, mu: Measure) -> Tensor:
        if isinstance(mu, Gaussian):
            H = F.bures_gradient(mu)[1]
            return (H * self._moment(mu, H)).sum((-2, -1))
        if self.batch is not None:
            return Landau(self.gamma, self.strength).dissipation(F, mu)
        return super().dissipation(F, mu)

    def declines(self, mu: Measure) -> str | None:
        try:
            self._points(mu)
        except (TypeError, ValueError) as reason:
            return str(reason)
        return None

    def generators(self) -> tuple[torch.Generator, ...]:
        return () if self.generator is None else (self.generator,)

    def onsager_jacobian(self, mu: Measure, u: Tensor, du: Tensor) -> tuple[Tensor, Tensor]:
        """K_μ u_k and their Jacobians at the particles, for K fields: (*batch, n, K, d) and (*batch, n, K, d, d).

        u_k at the particles is u (*batch, n, K, d), ∂_b of its component a is du[…, a, b]. In random batches, the same
        for all K.
        """
        x, w = self._points(mu), mu.weights
        if self.gamma != 0 and self.batch is None and u.shape[-2] > 1:
            V, DV = collisions_of_fields(x, u, du, w, self.gamma)
            return self.strength * V, self.strength * DV
        each = u.movedim(-2, -3)  # (*batch, K, n, d)
        many = cast(Particles, mu).with_state(
            x=x[..., None, :, :].expand_as(each), w=w[..., None, :].expand(each.shape[:-1]), log_density=None
        )
        V, DV = self._with_jacobian(many, each, du.movedim(-3, -4))
        return V.movedim(-3, -2), DV.movedim(-4, -3)

    def _affine(self, F: Functional, mu: Gaussian) -> Velocity:
        """The affine field nearest to −K_μu, with u the affine covector nearest to ∇φ: E v = 0, E ∇v = E[v xᵀ]P⁻¹."""
        moment = self._moment(mu, F.bures_gradient(mu)[1])
        slope = -torch.linalg.solve(mu.cov, moment.mT).mT

        def velocity(x: Tensor) -> Tensor:
            return (x - mu.mean[..., None, :]) @ slope.mT

        return Velocity(velocity, affine=lambda: (torch.zeros_like(mu.mean), slope))

    def _moment(self, mu: Gaussian, H: Tensor) -> Tensor:
        """E[v(x − m)ᵀ] for v = K_μ(Hx)."""
        self._check_dim(mu)
        if not isinstance(mu.cov, Tensor):
            raise TypeError("Landau needs a dense covariance: Gaussian(mu.mean, mu.cov.dense())")
        return self.strength * velocity_covariance(mu.cov, H, self.gamma)

    def _points(self, mu: Measure) -> Tensor:
        if not isinstance(mu, Particles) or not isinstance(mu.domain, Euclidean):
            raise TypeError(
                f"Landau acts on Particles in R^d, and moves a Gaussian; not a {type(mu).__name__}: see to_particles"
            )
        self._check_dim(mu)
        return mu.points

    def _check_dim(self, mu: Measure) -> None:
        if mu.dim < 2 or self.gamma < -mu.dim:
            raise ValueError(f"Landau needs d ≥ 2 and gamma ≥ −d; got d = {mu.dim}, gamma = {self.gamma}")

    def _field(self, mu: Measure, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """K_μ at points x with covectors u, where those of the particles are v."""
        return self.strength * collide(x, u, mu.points, v, mu.weights, self.gamma)

    def _with_jacobian(self, mu: Measure, u: Tensor, du: Tensor) -> tuple[Tensor, Tensor]:
        """K_μ u and its Jacobian at the particles, (*batch, n, d) and (*batch, n, d, d), where ∇u is du."""
        d = u.shape[-1]

        def joined(x: Tensor, w: Tensor, u: Tensor, du: Tensor) -> Tensor:
            v, slope = collision_jacobian(x, u, du.unflatten(-1, (d, d)), x, u, w[..., 0], self.gamma)
            return torch.cat([v, slope.flatten(-2)], -1)

        found = self._among(mu, joined, u, du.flatten(-2))
        return found[..., :d], found[..., d:].unflatten(-1, (d, d))

    def _among(self, mu: Measure, f: Callable[..., Tensor], *fields: Tensor) -> Tensor:
        """strength·f(x, w, *fields) for w (*batch, n, 1): over all particles, or in random batches, without bias."""
        x, w = mu.points, mu.weights[..., None]
        if self.batch is None or self.generator is None:
            return self.strength * f(x, w, *fields)
        check_apart(x, self.gamma)
        split = Split.draw(x.shape[-2], self.batch, self.generator, x.device)
        return self.strength * split.scale * split.within(f, x, w, *fields)
