"""Where points live: how displacements are taken and how points that leave are brought back."""

from __future__ import annotations

import math
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

    @property
    def straight(self) -> bool:
        """Whether displacements are plain differences."""
        return type(self).displacement is Domain.displacement


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
        if not all(0 < p < math.inf for p in _axes(self.period)):
            raise ValueError(f"period must be positive and finite, not {self.period}")

    def periods(self, dim: int) -> tuple[float, ...]:
        """The period of each of `dim` axes."""
        period = _axes(self.period)
        return period * dim if len(period) == 1 else period

    def wrap(self, x: Tensor) -> Tensor:
        period = _like(self.period, x, "period")
        y = torch.remainder(x, period)  # a tiny negative x is rounded up to the period
        return torch.where(y < period, y, y - period) if y.requires_grad else y.masked_fill_(y >= period, 0.0)

    def displacement(self, x: Tensor, y: Tensor) -> Tensor:
        """The shortest x − y, each entry in [−period/2, period/2]."""
        period = _like(self.period, x, "period")
        z = x - y
        return z - period * torch.round(z / period)


@dataclass(frozen=True)
class Box(Domain):
    """The box [lower, upper] (one number each, or one an axis), reflecting at its walls."""

    lower: float | tuple[float, ...]
    upper: float | tuple[float, ...]

    def __post_init__(self) -> None:
        lower, upper = _axes(self.lower), _axes(self.upper)
        if len(lower) != len(upper) or not all(-math.inf < a < b < math.inf for a, b in zip(lower, upper, strict=True)):
            raise ValueError(f"lower must be below upper on every axis; got {self.lower} and {self.upper}")

    def wrap(self, x: Tensor) -> Tensor:
        lower, upper = _like(self.lower, x, "lower"), _like(self.upper, x, "upper")
        inside = (lower <= x) & (x <= upper)
        folded = torch.remainder(x - lower, 2 * (upper - lower))  # the reflections unfolded: a triangle wave
        reflected = torch.where(folded <= upper - lower, lower + folded, 2 * upper - lower - folded)
        return torch.where(inside, x, torch.maximum(lower, torch.minimum(upper, reflected)))


def _axes(value: float | tuple[float, ...]) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (float(value),)


def _like(value: float | tuple[float, ...], x: Tensor, name: str) -> Tensor:
    """`value` in x's dtype and device; one number serves every axis."""
    if len(_axes(value)) not in (1, x.shape[-1]):
        raise ValueError(f"{name} has {len(_axes(value))} entries, but the points live in dimension {x.shape[-1]}")
    return torch.as_tensor(value, dtype=x.dtype, device=x.device)
