"""What a kernel is: any k(x, y), one of the difference x − y, one of the distance |x − y|; and their combinations."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import SupportsFloat

import torch
from torch import Tensor

from ..domains import Domain


class Kernel(ABC):
    """A symmetric k(x, y): for points x (*batch, m, d) and y (*batch, n, d) the matrix (*batch, m, n).

    Kernels add and take scalar factors: `0.5 * Laplace(1.0)`, `RBF(1.0) + Bilinear()`.
    """

    @abstractmethod
    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """k(x_i, y_j), (*batch, m, n)."""

    def fit(self, x: Tensor) -> Kernel:
        """The kernel with widths for particles x (*batch, n, d), where its width is a rule; itself otherwise."""
        return self

    @property
    def terms(self) -> tuple[tuple[float, Kernel], ...]:
        """(c_i, k_i) with k = Σ c_i k_i: those of a combination, or the kernel alone."""
        return ((1.0, self),)

    def generators(self) -> tuple[torch.Generator, ...]:
        """The random generators that its sums draw from."""
        return tuple(g for _, k in self.terms if k is not self for g in k.generators())

    def indefinite(self, neutral: bool = False) -> str | None:
        """Why ∬ k dσdσ < 0 for some charge σ, of total 0 when `neutral`; None where that is not known."""
        return None

    def __add__(self, other: Kernel) -> Kernel:
        return combine([(1.0, self), (1.0, other)]) if isinstance(other, Kernel) else NotImplemented

    def __sub__(self, other: Kernel) -> Kernel:
        return combine([(1.0, self), (-1.0, other)]) if isinstance(other, Kernel) else NotImplemented

    def __mul__(self, c: float) -> Kernel:
        return combine([(float(c), self)]) if isinstance(c, int | float) else NotImplemented

    __rmul__ = __mul__

    def __neg__(self) -> Kernel:
        return -1.0 * self


class Stationary(Kernel):
    """k(x, y) = W(x − y). Called on displacements alone, (…, d) -> (…), it is W, so `Interaction` takes it as it is.

    >>> import torch
    >>> from otprox.kernels import RBF
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

    def check_domain(self, domain: Domain) -> None:
        """ValueError where W is no function on the domain, such as one of another period."""


class Radial(Stationary):
    """k(x, y) = f(|x − y|²), through the derivatives of f, which all sums over pairs in `pairwise` are made of."""

    @abstractmethod
    def derivative(self, s: Tensor, order: int = 0) -> Tensor:
        """f^(order)(s) at squared distances s ≥ 0, which may be overwritten; infinite values at s = 0 count as 0."""

    @property
    @abstractmethod
    def resolution(self) -> float:
        """The distance over which k changes, a lower bound; 0 where f is not smooth at 0, such as that of |x − y|."""

    @property
    def rate(self) -> float | None:
        """The c with f' = c·f, if there is one: sums of all orders then need one evaluation of f."""
        return None

    def profile(self, z: Tensor) -> Tensor:
        return self.derivative(z.square().sum(-1))


@dataclass(frozen=True)
class Combination(Kernel):
    """Σ c_i k_i of any kernels; made by + and scalar *."""

    addends: tuple[tuple[float, Kernel], ...]

    @property
    def terms(self) -> tuple[tuple[float, Kernel], ...]:
        return self.addends

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return _total(c * k(x, y) for c, k in self.terms)

    def fit(self, x: Tensor) -> Kernel:
        return combine([(c, k.fit(x)) for c, k in self.terms])

    def indefinite(self, neutral: bool = False) -> str | None:
        return _indefinite(self.terms, neutral)


@dataclass(frozen=True)
class StationaryCombination(Stationary):
    """Σ c_i k_i of kernels of the difference; made by + and scalar *."""

    addends: tuple[tuple[float, Stationary], ...]

    @property
    def terms(self) -> tuple[tuple[float, Stationary], ...]:
        return self.addends

    def profile(self, z: Tensor) -> Tensor:
        return _total(c * k.profile(z) for c, k in self.terms)

    def fit(self, x: Tensor) -> Kernel:
        return combine([(c, k.fit(x)) for c, k in self.terms])

    def indefinite(self, neutral: bool = False) -> str | None:
        return _indefinite(self.terms, neutral)

    @property
    def curvatures(self) -> tuple[float, float]:
        return _curvatures(self.terms)


@dataclass(frozen=True)
class RadialCombination(Radial):
    """Σ c_i k_i of kernels of the distance; made by + and scalar *."""

    addends: tuple[tuple[float, Radial], ...]

    @property
    def terms(self) -> tuple[tuple[float, Radial], ...]:
        return self.addends

    def derivative(self, s: Tensor, order: int = 0) -> Tensor:
        *first, (c, k) = self.terms
        parts = [a * part.derivative(s.clone(), order) for a, part in first]
        return _total([*parts, c * k.derivative(s, order)])

    def fit(self, x: Tensor) -> Kernel:
        return combine([(c, k.fit(x)) for c, k in self.terms])

    def indefinite(self, neutral: bool = False) -> str | None:
        return _indefinite(self.terms, neutral)

    @property
    def resolution(self) -> float:
        return min(k.resolution for _, k in self.terms)

    @property
    def rate(self) -> float | None:
        rates = {k.rate for _, k in self.terms}
        return rates.pop() if len(rates) == 1 else None

    @property
    def curvatures(self) -> tuple[float, float]:
        return _curvatures(self.terms)


def combine(terms: Sequence[tuple[float, Kernel]]) -> Kernel:
    """Σ c_i k_i as the narrowest kind of kernel that it is, nested combinations flattened."""
    if not all(math.isfinite(c) for c, _ in terms):
        raise ValueError(f"a kernel needs a finite factor, not {[c for c, _ in terms if not math.isfinite(c)][0]}")
    flat = [(c * a, part) for c, k in terms for a, part in k.terms]
    if all(isinstance(k, Radial) for _, k in flat):
        return RadialCombination(tuple(flat))  # type: ignore[arg-type]
    if all(isinstance(k, Stationary) for _, k in flat):
        return StationaryCombination(tuple(flat))  # type: ignore[arg-type]
    return Combination(tuple(flat))


def _total(parts) -> Tensor:  # type: ignore[no-untyped-def]
    """Their sum, without the 0 that `sum` starts from."""
    first, *rest = parts
    for part in rest:
        first = first + part
    return first


def _indefinite(terms: Sequence[tuple[float, Kernel]], neutral: bool) -> str | None:
    if all(c < 0 and k.indefinite(neutral=True) is None for c, k in terms):
        return f"its factor is {terms[0][0]:g}"
    return next((reason for c, k in terms if c > 0 and (reason := k.indefinite(neutral))), None)


def _curvatures(terms: Sequence[tuple[float, Stationary]]) -> tuple[float, float]:
    bounds = [sorted(c * bound if c else 0.0 for bound in k.curvatures) for c, k in terms]
    return sum(low for low, _ in bounds), sum(high for _, high in bounds)


def positive(value: float, message: str, instead: str = "") -> None:
    if not isinstance(value, SupportsFloat) or getattr(value, "ndim", 0) > 0:
        raise TypeError(f"{message}: one number, not {value!r}{instead}")
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{message}, not {value}")
