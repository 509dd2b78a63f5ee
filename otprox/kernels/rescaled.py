"""A kernel in units of a length, one for each batch item."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from .base import Stationary


@dataclass(frozen=True, eq=False)
class Rescaled(Stationary):
    """k(x/h, y/h) for lengths h (*batch,): a kernel of width 1 with a width an item, differentiable in h."""

    k: Stationary
    h: Tensor

    def __post_init__(self) -> None:
        if not bool((self.h > 0).all() and self.h.isfinite().all()):
            raise ValueError(f"Rescaled needs lengths > 0, not {self.h.min().item()}")

    def __call__(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.profile(x) if y is None else self.k(self.shrunk(x), self.shrunk(y))

    def profile(self, z: Tensor) -> Tensor:
        """On displacements (*batch, …, d)."""
        return self.k.profile(z / self.h[(...,) + (None,) * (z.ndim - self.h.ndim)])

    def shrunk(self, x: Tensor) -> Tensor:
        return x / self.lengths(x)

    def lengths(self, x: Tensor) -> Tensor:
        """h to divide points (*batch, …, n, d), the batch leading, or points (n, d) that all items share."""
        return self.h[(...,) + (None,) * max(2, x.ndim - self.h.ndim)]

    def indefinite(self, neutral: bool = False) -> str | None:
        return self.k.indefinite(neutral)

    @property
    def curvatures(self) -> tuple[float, float]:
        scale = self.h.min().item() ** -2
        low, high = self.k.curvatures
        return (low * scale if math.isfinite(low) else low), (high * scale if math.isfinite(high) else high)
