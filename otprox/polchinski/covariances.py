"""Families of covariances t ↦ C_t, increasing from 0 to C_∞, that carry the scale of a renormalisation flow."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from ..measures.spectral import Spectral
from ..metrics.wasserstein import time_derivative
from .modes import Matrix, Modes, as_matrix

Time = float | Tensor


class Covariances(Protocol):
    """What a renormalisation flow asks of its scales. Each value is a matrix (N, N) or a Spectral."""

    @property
    def rate(self) -> Callable[[Time], Any]:
        """t ↦ Ċ_t, positive definite."""
        ...

    @property
    def limit(self) -> Any:
        """C_∞."""
        ...

    def __call__(self, t: Time) -> Any:
        """C_t."""
        ...

    def increment(self, s: float, t: float) -> Any:
        """C_t − C_s for s < t, positive definite, without cancellation where the family allows."""
        ...

    def remaining(self, t: Time) -> Any:
        """D_t = C_∞ − C_t."""
        ...


@dataclass(frozen=True, eq=False)
class FunctionOfM(ABC):
    """A family whose C_t is a function of one matrix M, symmetric positive definite: all is done on its eigenvalues."""

    M: Matrix

    def __post_init__(self) -> None:
        object.__setattr__(self, "M", as_matrix(self.M, "M"))
        self._modes.positive("M")

    @cached_property
    def _modes(self) -> Modes:
        return Modes.of(self.M)

    def __call__(self, t: Time) -> Matrix:
        return self._modes.build(self._reached(self._time(t)))

    def rate(self, t: Time) -> Matrix:
        return self._positive(self._slope(self._time(t)), f"Ċ at t = {number(t):g}")

    @property
    def limit(self) -> Matrix:
        return self._modes.build(1 / self._modes.values)

    def increment(self, s: float, t: float) -> Matrix:
        check_order(s, t)
        return self._positive(self._between(self._time(s), self._time(t)), f"C({number(t):g}) − C({number(s):g})")

    def remaining(self, t: Time) -> Matrix:
        return self._modes.build(self._left(self._time(t)))

    def principal(self) -> tuple[Self, Tensor]:
        """The same family in coordinates η = φU of the eigenvectors of a dense M, where every C_t is diagonal; and U.

        A grid takes diagonal metrics. The theory V₀ moves along as η ↦ V₀(ηUᵀ).

        >>> C, U = HeatKernel([[2.0, -1.0], [-1.0, 2.0]]).principal()
        >>> C.M.diagonal().tolist()
        [1.0, 3.0]
        """
        if isinstance(self.M, Spectral):
            raise TypeError("principal coordinates are for a dense M: pass M.dense()")
        values, U = torch.linalg.eigh(self.M)
        return replace(self, M=torch.diag(values)), U

    @abstractmethod
    def _reached(self, t: Tensor) -> Tensor:
        """Eigenvalues of C_t."""

    @abstractmethod
    def _slope(self, t: Tensor) -> Tensor:
        """Eigenvalues of Ċ_t."""

    @abstractmethod
    def _between(self, s: Tensor, t: Tensor) -> Tensor:
        """Eigenvalues of C_t − C_s."""

    @abstractmethod
    def _left(self, t: Tensor) -> Tensor:
        """Eigenvalues of D_t."""

    def _positive(self, values: Tensor, what: str) -> Matrix:
        return self._modes.with_values(values).positive(what).matrix

    def _time(self, t: Time) -> Tensor:
        check_time(t, 0.0, math.inf, self)
        return torch.as_tensor(t).to(self._modes.values)


@dataclass(frozen=True, eq=False)
class HeatKernel(FunctionOfM):
    """C_t = ∫₀ᵗ e^{−sM}ds = M⁻¹(1 − e^{−tM}), Ċ_t = e^{−tM}, D_t = M⁻¹e^{−tM}, C_∞ = M⁻¹.

    M: (N, N), typically −Δ + mass², or a Spectral where it is translation invariant.

    >>> C = HeatKernel([[2.0]])
    >>> C.limit.item(), C.rate(0.0).item()
    (0.5, 1.0)
    """

    def _reached(self, t: Tensor) -> Tensor:
        return -torch.expm1(-t * self._modes.values) / self._modes.values

    def _slope(self, t: Tensor) -> Tensor:
        return torch.exp(-t * self._modes.values)

    def _between(self, s: Tensor, t: Tensor) -> Tensor:
        return self._slope(s) * self._reached(t - s)

    def _left(self, t: Tensor) -> Tensor:
        return self._slope(t) / self._modes.values


@dataclass(frozen=True, eq=False)
class PauliVillars(FunctionOfM):
    """C_t = (M + 1/t)⁻¹ with C_0 = 0, Ċ_t = (tM + 1)⁻², D_t = M⁻¹(tM + 1)⁻¹, C_∞ = M⁻¹.

    M as in `HeatKernel`. Scales decay as powers of t, so steps may grow with t.

    >>> PauliVillars([[2.0]])(0.5).item()
    0.25
    """

    def _reached(self, t: Tensor) -> Tensor:
        return 1 / (self._modes.values + 1 / t)

    def _slope(self, t: Tensor) -> Tensor:
        return (t * self._modes.values + 1) ** -2

    def _between(self, s: Tensor, t: Tensor) -> Tensor:
        grown = s * self._modes.values + 1
        return 1 / (grown * (self._modes.values + grown / (t - s)))

    def _left(self, t: Tensor) -> Tensor:
        return 1 / (self._modes.values * (t * self._modes.values + 1))


@dataclass(frozen=True, eq=False)
class Family:
    """A user's own t ↦ C_t, with its derivative `rate` (by automatic differentiation when not given) and limit C_∞.

    C(t) and rate(t) are (N, N), a Spectral, or a number on one site. `times` is where they may be asked for. A rate or
    an increment that is not positive definite is refused where it is met, naming the mode.

    >>> C = Family(lambda t: t * torch.eye(2), limit=torch.eye(2), times=(0.0, 1.0))
    >>> C.rate(0.5).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """

    C: Callable[[Any], Any]
    rate: Any = None
    limit: Any = None
    times: tuple[float, float] = field(default=(0.0, math.inf), kw_only=True)

    def __post_init__(self) -> None:
        derivative = self.rate if self.rate is not None else self._differentiated
        object.__setattr__(self, "rate", lambda t: self._checked_rate(derivative, t))
        if self.limit is not None:
            object.__setattr__(self, "limit", as_matrix(self.limit, "limit"))

    def __call__(self, t: Time) -> Matrix:
        check_time(t, *self.times, self)
        return as_matrix(self.C(t), f"C({number(t):g})")

    def _checked_rate(self, derivative: Callable[[Time], Any], t: Time) -> Matrix:
        check_time(t, *self.times, self)
        what = f"C_t does not increase at t = {number(t):g}: Ċ"
        return Modes.of(as_matrix(derivative(t), f"Ċ at t = {number(t):g}")).positive(what).matrix

    def _differentiated(self, t: Time) -> Matrix:
        value = self.C(t)
        spectral = isinstance(value, Spectral)
        derivative = time_derivative(lambda s: self.C(s).values if spectral else self.C(s), t)
        if not derivative.any():
            raise TypeError(f"the automatic derivative of C at t = {number(t):g} is 0: write C in torch, or pass rate=")
        return value.with_values(derivative) if spectral else derivative

    def increment(self, s: float, t: float) -> Matrix:
        check_order(s, t)
        what = f"C_t does not increase from t = {number(s):g} to {number(t):g}: C({number(t):g}) − C({number(s):g})"
        return self._difference(self(t), self(s), what)

    def remaining(self, t: Time) -> Matrix:
        if self.limit is None:
            raise ValueError("this Family does not know its limit C_∞, so not D_t = C_∞ − C_t: give limit=")
        if t == self.times[1]:
            return self.limit - self.limit
        return self._difference(self.limit, self(t), f"C_t exceeds its limit at t = {number(t):g}: limit − C_t")

    def _difference(self, more: Matrix, less: Matrix, what: str) -> Matrix:
        scale = Modes.of(more).values.abs().max().item()
        return Modes.of(more - less).positive(what, scale).matrix


def check_time(t: Time, first: float, last: float, family: object) -> None:
    """Refuse a time outside [first, last]."""
    if not first <= (at := number(t)) <= last:
        raise ValueError(f"t = {at:g} is outside the times [{first:g}, {last:g}] of {type(family).__name__}")


def check_order(s: Time, t: Time) -> None:
    """Refuse s ≥ t."""
    if not number(s) < number(t):
        raise ValueError(f"an increment C(t) − C(s) needs s < t, not s = {number(s):g} and t = {number(t):g}")


def number(t: Time) -> float:
    """A time as a number, for messages and checks."""
    return float(t.detach()) if isinstance(t, Tensor) else float(t)
