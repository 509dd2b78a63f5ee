"""What is asked of a kernel over all pairs: one interface, whatever route answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


class Sums(ABC):
    """Sums over sources y_j (*batch, n, d) at points x_i (*batch, m, d); b is (*batch, n, 1), c (*batch, n, p)."""

    @property
    @abstractmethod
    def how(self) -> str:
        """The route in words, and what it costs."""

    @abstractmethod
    def values(self, c: Tensor) -> Tensor:
        """Σ_j k(x_i, y_j) c_j, (*batch, m, p)."""

    @abstractmethod
    def slopes(self, b: Tensor) -> Tensor:
        """Σ_j b_j ∇₁k(x_i, y_j), (*batch, m, d)."""

    @abstractmethod
    def source_slopes(self, b: Tensor) -> Tensor:
        """Σ_j b_j ∇₂k(x_i, y_j), (*batch, m, d)."""

    @abstractmethod
    def divergences(self, v: Tensor) -> Tensor:
        """Σ_j ∇₁k(x_i, y_j)·v_j, (*batch, m, 1), for v (*batch, n, d)."""

    @abstractmethod
    def traces(self, b: Tensor) -> Tensor:
        """Σ_j b_j tr ∇₁∇₂k(x_i, y_j), (*batch, m, 1)."""

    def stein(self, c: Tensor, b: Tensor) -> Tensor:
        """Σ_j k(x_i, y_j) c_j + b_j ∇₂k(x_i, y_j), (*batch, m, d), for c (*batch, n, d)."""
        return self.values(c) + self.source_slopes(b)


@dataclass(frozen=True, eq=False)
class CombinedSums(Sums):
    """Σ c_i k_i, each by its own route."""

    parts: tuple[tuple[float, Sums], ...]

    @property
    def how(self) -> str:
        return "; ".join(dict.fromkeys(sums.how for _, sums in self.parts))

    def values(self, c: Tensor) -> Tensor:
        return self._total([a * s.values(c) for a, s in self.parts])

    def slopes(self, b: Tensor) -> Tensor:
        return self._total([a * s.slopes(b) for a, s in self.parts])

    def source_slopes(self, b: Tensor) -> Tensor:
        return self._total([a * s.source_slopes(b) for a, s in self.parts])

    def divergences(self, v: Tensor) -> Tensor:
        return self._total([a * s.divergences(v) for a, s in self.parts])

    def traces(self, b: Tensor) -> Tensor:
        return self._total([a * s.traces(b) for a, s in self.parts])

    def stein(self, c: Tensor, b: Tensor) -> Tensor:
        return self._total([a * s.stein(c, b) for a, s in self.parts])

    @staticmethod
    def _total(parts: list[Tensor]) -> Tensor:
        return torch.stack(parts).sum(0)
