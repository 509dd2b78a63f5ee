"""Kernels of the distance |x − y|, through the derivatives of f in k = f(|x − y|²)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .bandwidth import Bandwidth, Fixed
from .base import Kernel, Radial, positive
from .rescaled import Rescaled


@dataclass(frozen=True)
class Wide(Radial):
    """A function of |x − y|/width. The width is a number, or a rule that awaits particles: see `Bandwidth`."""

    width: float | Bandwidth

    def __post_init__(self) -> None:
        if isinstance(self.width, Fixed):
            object.__setattr__(self, "width", self.width.h)
        elif not isinstance(self.width, Bandwidth):
            positive(self.width, f"{type(self).__name__} needs a width > 0", "; a rule is Median()")

    @property
    def h(self) -> float:
        """The width as a number."""
        if isinstance(self.width, Bandwidth):
            raise TypeError(f"{self} has no width until it is fitted: k.fit(x) for particles x")
        return self.width

    def fit(self, x: Tensor) -> Kernel:
        if not isinstance(self.width, Bandwidth):
            return self
        h = self.width.width(x)
        return Rescaled(replace(self, width=1.0), h) if h.ndim else replace(self, width=h.item())


@dataclass(frozen=True)
class RBF(Wide):
    """exp(−|x − y|²/(2·width²))."""

    def derivative(self, s: Tensor, order: int = 0) -> Tensor:
        values = s.mul_(self.rate).exp_()
        return values * self.rate**order if order else values

    @property
    def resolution(self) -> float:
        return self.h

    @property
    def rate(self) -> float:
        return -0.5 / self.h**2

    @property
    def curvatures(self) -> tuple[float, float]:
        return -(self.h**-2), 2 * math.exp(-1.5) * self.h**-2  # at 0, and at |z| = √3·width


@dataclass(frozen=True)
class Laplace(Wide):
    """exp(−|x − y|/width). Its gradient at x = y counts as 0."""

    def derivative(self, s: Tensor, order: int = 0) -> Tensor:
        """With ρ = √s/width, f^(q) = (−1/2width²)^q e^(−ρ) θ_(q−1)(ρ)/ρ^(2q−1), θ the reverse Bessel polynomials."""
        zero = s == 0
        root = s.masked_fill_(zero, 1).sqrt()
        values = (root * (-1 / self.h)).exp_()
        if order == 0:
            return values.masked_fill(zero, 1)
        scale = (-0.5 / self.h**2) ** order * self.h ** (2 * order - 1)
        values = scale * values * root ** (1 - 2 * order)
        return (values * _bessel(root / self.h, order - 1) if order > 1 else values).masked_fill(zero, 0)

    @property
    def resolution(self) -> float:
        return 0.0

    @property
    def curvatures(self) -> tuple[float, float]:
        return -math.inf, self.h**-2


@dataclass(frozen=True)
class InverseMultiquadric(Wide):
    """(1 + |x − y|²/width²)^(−½)."""

    def derivative(self, s: Tensor, order: int = 0) -> Tensor:
        root = s.mul_(self.h**-2).add_(1).rsqrt_()
        scale = math.prod(-(0.5 + q) / self.h**2 for q in range(order))
        return scale * root * root.square() ** order if order else root

    @property
    def resolution(self) -> float:
        return self.h

    @property
    def curvatures(self) -> tuple[float, float]:
        return -(self.h**-2), 2 * 2.5**-2.5 * self.h**-2  # at 0, and at |z|² = 1.5·width²


@dataclass(frozen=True)
class Energy(Radial):
    """−|x − y|, the kernel of the energy distance. Its gradient at x = y counts as 0."""

    def derivative(self, s: Tensor, order: int = 0) -> Tensor:
        return -_falling(0.5, order) * _power(s, 0.5 - order)

    def indefinite(self, neutral: bool = False) -> str | None:
        return None if neutral else f"{self} is so only against charges of total 0"

    @property
    def resolution(self) -> float:
        return 0.0

    @property
    def curvatures(self) -> tuple[float, float]:
        return -math.inf, 0.0


@dataclass(frozen=True)
class Riesz(Radial):
    """−|x − y|^r with r > 0; conditionally positive definite for r ≤ 2. Its gradient at x = y counts as 0.

    r = 2 needs the first two moments of the sources only: O(n) sums.
    """

    r: float

    def __post_init__(self) -> None:
        positive(self.r, "Riesz needs an exponent r > 0")

    def derivative(self, s: Tensor, order: int = 0) -> Tensor:
        scale, p = -_falling(self.r / 2, order), self.r / 2 - order
        if scale == 0 or p == 0:
            return s * 0 + scale
        return scale * (s if p == 1 else s.pow(p) if self.r % 2 == 0 else _power(s, p))

    def indefinite(self, neutral: bool = False) -> str | None:
        if self.r > 2:
            return f"{self} is so for no r above 2"
        return None if neutral else f"{self} is so only against charges of total 0"

    @property
    def resolution(self) -> float:
        return math.inf if self.r % 2 == 0 else 0.0

    @property
    def curvatures(self) -> tuple[float, float]:
        if self.r == 2:
            return -2.0, -2.0
        return -math.inf, 0.0 if self.r >= 1 else math.inf


def _falling(p: float, order: int) -> float:
    """p(p − 1)…(p − order + 1)."""
    return math.prod(p - q for q in range(order))


def _power(s: Tensor, p: float) -> Tensor:
    """s^p with the value 0, and derivatives 0 of every order, at s = 0."""
    zero = s == 0
    return s.masked_fill_(zero, 1).pow(p).masked_fill(zero, 0)


def _bessel(rho: Tensor, n: int) -> Tensor:
    """The reverse Bessel polynomial θ_n(ρ), n ≥ 1: θ_0 = 1, θ_1 = ρ + 1, θ_n = (2n − 1)θ_(n−1) + ρ²θ_(n−2)."""
    before, theta = torch.ones_like(rho), rho + 1
    for k in range(2, n + 1):
        before, theta = theta, (2 * k - 1) * theta + rho.square() * before
    return theta
