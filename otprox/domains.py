"""Where points live: how displacements are taken and how points that leave are brought back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class Domain(ABC):
    """A subset or quotient of R^d. Points have shape (…, d)."""

    @abstractmethod
    def wrap(self, x: Tensor) -> Tensor:
        """Bring points back into the domain."""

    def displacement(self, x: Tensor, y: Tensor) -> Tensor:
        """The shortest x − y."""
        return x - y


@dataclass(frozen=True)
class Euclidean(Domain):
    """All of R^d."""

    def wrap(self, x: Tensor) -> Tensor:
        return x


@dataclass(frozen=True)
class Torus(Domain):
    """R^d modulo `period` (one number, or one an axis); points are kept in [0, period)."""

    period: float | tuple[float, ...]

    def __post_init__(self) -> None:
        if min(_axes(self.period)) <= 0:
            raise ValueError(f"period must be positive, not {self.period}")

    def wrap(self, x: Tensor) -> Tensor:
        return torch.remainder(x, self._period(x))

    def displacement(self, x: Tensor, y: Tensor) -> Tensor:
        period = self._period(x)
        z = x - y
        return z - period * torch.round(z / period)

    def _period(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.period, dtype=x.dtype, device=x.device)


@dataclass(frozen=True)
class Box(Domain):
    """The box [lower, upper], reflecting at its walls."""

    lower: float | tuple[float, ...]
    upper: float | tuple[float, ...]

    def __post_init__(self) -> None:
        lower, upper = _axes(self.lower), _axes(self.upper)
        if len(lower) != len(upper) or any(a >= b for a, b in zip(lower, upper, strict=True)):
            raise ValueError(f"lower must be below upper on every axis; got {self.lower} and {self.upper}")

    def wrap(self, x: Tensor) -> Tensor:
        lower = torch.as_tensor(self.lower, dtype=x.dtype, device=x.device)
        width = torch.as_tensor(self.upper, dtype=x.dtype, device=x.device) - lower
        folded = torch.remainder(x - lower, 2 * width)  # unfold the reflections: a triangle wave
        return lower + width - (folded - width).abs()


def _axes(value: float | tuple[float, ...]) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (float(value),)
