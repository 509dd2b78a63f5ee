"""Kernels k(x, y) as values: RBF, Laplace, InverseMultiquadric, Energy, Riesz, Cosine, Bilinear."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .domains import Domain, Torus


class Kernel(ABC):
    """A symmetric k(x, y): for points x (*batch, m, d) and y (*batch, n, d) the matrix (*batch, m, n)."""

    @abstractmethod
    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """k(x_i, y_j), (*batch, m, n)."""


class Stationary(Kernel):
    """k(x, y) = W(x − y). Called on displacements alone, (…, d) -> (…), it is W, so `Interaction` takes it as it is.

    >>> k = RBF(1.0)
    >>> x, y = torch.zeros(3, 2), torch.ones(5, 2)
    >>> k(x, y).shape, k(x).shape
    (torch.Size([3, 5]), torch.Size([3]))
    """

    def __call__(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.profile(x if y is None else x[..., :, None, :] - y[..., None, :, :])

    @abstractmethod
    def profile(self, z: Tensor) -> Tensor:
        """W at displacements (…, d) -> (…)."""

    @property
    @abstractmethod
    def curvatures(self) -> tuple[float, float]:
        """Bounds on the eigenvalues of ∇²W over all displacements, in any dimension; infinite where there is none."""

    def convolve(self, x: Tensor, y: Tensor, w: Tensor, domain: Domain | None = None) -> Tensor | None:
        """Σ_j w_j W(x_i − y_j), (*batch, m), by a route faster than all pairs; None where the kernel has none."""
        return None


@dataclass(frozen=True)
class RBF(Stationary):
    """exp(−|x − y|²/(2·width²))."""

    width: float

    def __post_init__(self) -> None:
        _positive(self.width, "RBF needs a width > 0")

    def profile(self, z: Tensor) -> Tensor:
        return torch.exp(-z.square().sum(-1) / (2 * self.width**2))

    @property
    def curvatures(self) -> tuple[float, float]:
        return -(self.width**-2), 2 * math.exp(-1.5) * self.width**-2  # at 0, and at |z| = √3·width


@dataclass(frozen=True)
class Laplace(Stationary):
    """exp(−|x − y|/width). Its gradient at x = y counts as 0."""

    width: float

    def __post_init__(self) -> None:
        _positive(self.width, "Laplace needs a width > 0")

    def profile(self, z: Tensor) -> Tensor:
        return torch.exp(-_power(z, 1.0) / self.width)

    @property
    def curvatures(self) -> tuple[float, float]:
        return -math.inf, self.width**-2


@dataclass(frozen=True)
class InverseMultiquadric(Stationary):
    """(1 + |x − y|²/width²)^(−½)."""

    width: float

    def __post_init__(self) -> None:
        _positive(self.width, "InverseMultiquadric needs a width > 0")

    def profile(self, z: Tensor) -> Tensor:
        return torch.rsqrt(1 + z.square().sum(-1) / self.width**2)

    @property
    def curvatures(self) -> tuple[float, float]:
        return -(self.width**-2), 2 * 2.5**-2.5 * self.width**-2  # at 0, and at |z|² = 1.5·width²


@dataclass(frozen=True)
class Energy(Stationary):
    """−|x − y|, the kernel of the energy distance. Its gradient at x = y counts as 0."""

    def profile(self, z: Tensor) -> Tensor:
        return -_power(z, 1.0)

    @property
    def curvatures(self) -> tuple[float, float]:
        return -math.inf, 0.0


@dataclass(frozen=True)
class Riesz(Stationary):
    """−|x − y|^r with r > 0; conditionally positive definite for r ≤ 2. Its gradient at x = y counts as 0.

    r = 2 needs the first two moments of the sources only: O(n) sums.
    """

    r: float

    def __post_init__(self) -> None:
        _positive(self.r, "Riesz needs an exponent r > 0")

    def profile(self, z: Tensor) -> Tensor:
        return -z.square().sum(-1) if self.r == 2 else -_power(z, self.r)

    @property
    def curvatures(self) -> tuple[float, float]:
        if self.r == 2:
            return -2.0, -2.0
        return -math.inf, 0.0 if self.r >= 1 else math.inf

    def convolve(self, x: Tensor, y: Tensor, w: Tensor, domain: Domain | None = None) -> Tensor | None:
        if self.r != 2 or isinstance(domain, Torus):
            return None
        centre = y.detach().mean(-2, keepdim=True)  # the sum does not depend on it
        x, y = x - centre, y - centre
        first = (w[..., None, :] @ y)[..., 0, :]
        second = (w * y.square().sum(-1)).sum(-1, keepdim=True)
        return 2 * (x @ first[..., None])[..., 0] - w.sum(-1, keepdim=True) * x.square().sum(-1) - second


@dataclass(frozen=True)
class Cosine(Stationary):
    """Σ_k c_k cos(k(x − y)), k = 1, 2, …, on a circle of length 2π; points are angles (*batch, n, 1).

    Sums go through the Fourier modes of the sources: O(n·modes) in place of all pairs.

    >>> Cosine([-1.0])(torch.tensor([[0.0], [math.pi]]))
    tensor([-1.,  1.])
    """

    coefficients: tuple[float, ...]

    def __init__(self, coefficients: Sequence[float]) -> None:
        values = tuple(float(c) for c in coefficients)
        if not values or not all(math.isfinite(c) for c in values):
            raise ValueError(f"Cosine needs finite coefficients (c_1, c_2, …), at least one; got {coefficients!r}")
        object.__setattr__(self, "coefficients", values)

    def profile(self, z: Tensor) -> Tensor:
        return self._angles(z).cos() @ z.new_tensor(self.coefficients)

    @property
    def curvatures(self) -> tuple[float, float]:
        bound = sum(k * k * abs(c) for k, c in enumerate(self.coefficients, 1))
        return -bound, bound

    def convolve(self, x: Tensor, y: Tensor, w: Tensor, domain: Domain | None = None) -> Tensor | None:
        if isinstance(domain, Torus) and not _divides(domain, 2 * math.pi):
            return None
        source, target = self._angles(y), self._angles(x)
        c = x.new_tensor(self.coefficients)
        even = c * (w[..., None, :] @ source.cos())[..., 0, :]
        odd = c * (w[..., None, :] @ source.sin())[..., 0, :]
        return (target.cos() @ even[..., None] + target.sin() @ odd[..., None])[..., 0]

    def _angles(self, x: Tensor) -> Tensor:
        if x.shape[-1] != 1:
            raise ValueError(f"Cosine lives on a circle: points are (*batch, n, 1), not {tuple(x.shape)}")
        return x * torch.arange(1, len(self.coefficients) + 1, dtype=x.dtype, device=x.device)


@dataclass(frozen=True)
class Bilinear(Kernel):
    """xᵀy + 1."""

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return x @ y.mT + 1


def _positive(value: float, message: str) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{message}, not {value}")


def _power(z: Tensor, r: float) -> Tensor:
    """|z|^r with derivative 0, of every order, at z = 0."""
    square = z.square().sum(-1)
    zero = square == 0
    return torch.where(zero, 0, torch.where(zero, 1, square).pow(r / 2))


def _divides(domain: Torus, length: float) -> bool:
    """Whether a function with period `length` is one on the torus."""
    period = domain.period if isinstance(domain.period, tuple | list) else (domain.period,)
    return all(abs(p / length - round(p / length)) < 1e-6 and p > length / 2 for p in period)
