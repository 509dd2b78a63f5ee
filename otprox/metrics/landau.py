"""The metric of collisions, in which the Landau equation is the flow of the entropy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..domains import Euclidean
from ..functionals import Functional
from ..measures import Measure, Particles, Velocity
from ..pairwise.tiles import by_rows, rows_of
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

        return Velocity(field)

    def _points(self, mu: Measure) -> Tensor:
        if not isinstance(mu, Particles) or not isinstance(mu.domain, Euclidean):
            raise TypeError(f"Landau acts on Particles in R^d, not on {type(mu).__name__}; see to_particles")
        if mu.dim < 2 or self.gamma < -mu.dim:
            raise ValueError(f"Landau needs d ≥ 2 and gamma ≥ −d; got d = {mu.dim}, gamma = {self.gamma}")
        return mu.points

    def _collide(self, mu: Measure, x: Tensor, u: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Σ_j w_j A(x_i − y_j)(u_i − v_j)."""
        w = mu.weights[..., None]
        if self.gamma == 0:
            return self.strength * _maxwell(x, u, y, v, w)
        d = x.shape[-1]

        def tile(part: Tensor, y: Tensor, v: Tensor, w: Tensor) -> Tensor:
            return _pairs(part[..., :d], part[..., d:], y, v, w, self.gamma)

        return self.strength * by_rows(tile, rows_of(x, y, d), -2, torch.cat([x, u], -1), y, v, w)


def _maxwell(x: Tensor, u: Tensor, y: Tensor, v: Tensor, w: Tensor) -> Tensor:
    """Σ_j w_j (|z|²I − zzᵀ)(u_i − v_j), z = x_i − y_j, by the moments of the sources about their means."""
    mass = w.sum(-2, keepdim=True)
    x0, u0 = (w * y).sum(-2, keepdim=True) / mass, (w * v).sum(-2, keepdim=True) / mass
    x, y, u, v = x - x0, y - x0, u - u0, v - u0
    P, M = y.mT @ (w * y), y.mT @ (w * v)  # Σ w yyᵀ and Σ w yvᵀ; the first moments are 0
    square = y.square().sum(-1, keepdim=True)
    third = (w * (square * v - y * (y * v).sum(-1, keepdim=True))).sum(-2, keepdim=True)
    trace_P, trace_M = (m.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None] for m in (P, M))
    own = mass * (x.square().sum(-1, keepdim=True) * u - x * (x * u).sum(-1, keepdim=True)) + trace_P * u - u @ P
    return own - third + 2 * x @ M - x * trace_M - x @ M.mT


def _pairs(x: Tensor, u: Tensor, y: Tensor, v: Tensor, w: Tensor, gamma: float) -> Tensor:
    """Σ_j w_j |z|^γ(|z|²I − zzᵀ)(u_i − v_j), z = x_i − y_j, over all pairs; those with z = 0 and u = v count 0."""
    z, jump = x[..., :, None, :] - y[..., None, :, :], u[..., :, None, :] - v[..., None, :, :]
    square = z.square().sum(-1, keepdim=True)
    same = square == 0
    if gamma < -2 and (same & (jump != 0).any(-1, keepdim=True)).any():
        raise ValueError(f"particles at one place: A is infinite there for gamma = {gamma} < −2. Move them apart")
    square = square.masked_fill(same, 1.0)
    image = jump - z * ((z * jump).sum(-1, keepdim=True) / square)
    rate = (w[..., None, :, :] * square ** (gamma / 2 + 1)).masked_fill(same, 0.0)
    if gamma == -2:
        rate = w[..., None, :, :].expand_as(rate).masked_fill(same, 0.0)
    return (rate * image).sum(-2)
