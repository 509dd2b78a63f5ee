"""The metric of collisions, in which the Landau equation is the flow of the entropy."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ..domains import Euclidean
from ..functionals import Functional
from ..measures import Measure, Particles, Velocity
from ..pairwise import collide, collision_jacobian
from .base import Metric


@dataclass(frozen=True, eq=False)
class Landau(Metric):
    """(K_μ u)(x) = ∫ A(x − y)(u(x) − u(y)) dμ(y), A(z) = strength·|z|^{γ+2}(I − ẑẑᵀ), on Particles in R^d, d ≥ 2.

    γ = 0 are Maxwell molecules, in O(n) by moments; γ = −3 in d = 3 is Coulomb. Any other γ in [−d, 1] takes all
    pairs, in tiles. As A is even and A(z)z = 0, momentum Σw x and energy ½Σw|x|² have rate 0 for every covector u, to
    rounding; a forward Euler step of size τ still adds ½τ²Σw|v|² to the energy. Particles at one place with γ < −2
    are refused. `Forward(Blob(width, form="full"), Landau(γ))` is the particle method of
    Carrillo, Hu, Wang and Wu (2020).
    """

    gamma: float
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not self.gamma <= 1:
            raise ValueError(f"gamma must be in [−d, 1]: 0 for Maxwell molecules, −3 for Coulomb; got {self.gamma}")
        if not 0 < self.strength < math.inf:
            raise ValueError(f"strength must be positive and finite; got {self.strength}")

    def onsager(self, mu: Measure, u: Tensor) -> Tensor:
        x = self._points(mu)
        return self._collide(mu, x, u, x, u)

    def descent(self, F: Functional, mu: Measure) -> Velocity:
        y = self._points(mu)

        def field(x: Tensor) -> Tensor:
            here = F.gradient(mu, x)
            return -self._collide(mu, x, here, y, here if x is y else F.gradient(mu, y))

        def jacobian() -> tuple[Tensor, Tensor]:
            u = F.gradient(mu)
            v, dv = collision_jacobian(y, u, F.hessian(mu), y, u, mu.weights, self.gamma)
            return -self.strength * v, -self.strength * dv

        return Velocity(field, jacobian=jacobian)

    def _points(self, mu: Measure) -> Tensor:
        if not isinstance(mu, Particles) or not isinstance(mu.domain, Euclidean):
            raise TypeError(f"Landau acts on Particles in R^d, not on {type(mu).__name__}; see to_particles")
        if mu.dim < 2 or self.gamma < -mu.dim:
            raise ValueError(f"Landau needs d ≥ 2 and gamma ≥ −d; got d = {mu.dim}, gamma = {self.gamma}")
        return mu.points

    def _collide(self, mu: Measure, x: Tensor, u: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Σ_j w_j A(x_i − y_j)(u_i − v_j)."""
        return self.strength * collide(x, u, y, v, mu.weights, self.gamma)
