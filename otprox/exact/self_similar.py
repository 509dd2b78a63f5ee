"""Families of densities that keep their shape and change their radius, along a flow and under its JKO steps."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class SelfSimilar(ABC):
    """ρ_R(x) = M/(Z R^d)·shape(|x|²/R²), whose radius obeys R' = speed·R^−power along a W2 flow from a point mass.

    The velocity of such a flow is linear in x on the family, so a JKO step dilates: R' − R = τ·speed·R'^−power. Radii,
    times and points are numbers or tensors; of numbers the results are float64, but densities have the dtype of x.
    """

    dim: int
    mass: float

    @property
    @abstractmethod
    def Z(self) -> float:
        """∫shape(|x|²) dx."""

    @property
    @abstractmethod
    def speed(self) -> float:
        """The factor of R^−power."""

    @property
    @abstractmethod
    def power(self) -> float:
        """By which the expansion slows down; negative where it accelerates."""

    @abstractmethod
    def shape(self, square: Tensor) -> Tensor:
        """The profile as a function of |x|²/R², 1 at 0."""

    @abstractmethod
    def second_moment(self, radius: float | Tensor) -> Tensor:
        """∫|x|²ρ_R."""

    def radius(self, t: float | Tensor) -> Tensor:
        """R(t) = ((power + 1)·speed·t)^{1/(power + 1)}."""
        k = self.power + 1
        return (k * self.speed * real(t)) ** (1 / k)

    def time(self, radius: float | Tensor) -> Tensor:
        """The t with radius(t) = R."""
        k = self.power + 1
        return real(radius) ** k / (k * self.speed)

    def density(self, x: Tensor, *, t: float | Tensor | None = None, radius: float | Tensor | None = None) -> Tensor:
        """ρ at points x (*batch, n, d) -> (*batch, n): at time t, or of a radius; either a number or (*batch,)."""
        if t is not None and radius is None:
            R = self.radius(t)
        elif radius is not None and t is None:
            R = real(radius)
        else:
            raise TypeError(
                "density needs t=, a time of the flow, or radius=, that of a member of the family: one of both"
            )
        R = R.to(x)[..., None]
        return self.maximum(R) * self.shape(x.square().sum(-1) / R**2)

    def rest(self) -> float:
        """The radius at which ρ_R is the steady state under the potential |x|²/2, R = speed·R^−power."""
        return self.speed ** (1 / (self.power + 1))

    def maximum(self, radius: float | Tensor) -> Tensor:
        """ρ_R(0) = M/(Z R^d)."""
        return self.mass / (self.Z * real(radius) ** self.dim)

    def w2_squared(self, radius: float | Tensor, other: float | Tensor) -> Tensor:
        """Between two members, a dilation: (1 − R'/R)² ∫|x|²ρ_R (of the masses M, not normalised)."""
        return (1 - real(other) / real(radius)) ** 2 * self.second_moment(radius)

    def jko(self, radius: float | Tensor, tau: float, steps: int = 1) -> Tensor:
        """The radius after `steps` JKO steps, R' − R = τ·speed·R'^−power, by Newton's method from R, to rounding.

        For power > 0 the right-hand side of R' = R + … is convex and falls, and Newton climbs to the only root.
        """
        if not tau > 0:
            raise ValueError(f"tau must be positive, not {tau}")
        new = real(radius)
        for _ in range(steps):
            new = self._step(new, tau)
        return new

    def _step(self, old: Tensor, tau: float) -> Tensor:
        new = old
        for _ in range(200):
            push = tau * self.speed * new**-self.power
            change = (new - old - push) / (1 + self.power * push / new)
            new = new - change
            if (change.abs() <= 4e-16 * new).all():
                break
        return new


def real(value: float | Tensor) -> Tensor:
    """A number as float64, a tensor as it is."""
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
