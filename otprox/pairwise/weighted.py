"""Kernels seen through a change of units or of weights: sums of the kernel underneath."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .sums import Sums


@dataclass(frozen=True, eq=False)
class RescaledSums(Sums):
    """k(x/h, y/h), from the sums of k at the points divided by h."""

    base: Sums
    h: Tensor  # (*batch, 1, 1)

    @property
    def how(self) -> str:
        return self.base.how

    def values(self, c: Tensor) -> Tensor:
        return self.base.values(c)

    def slopes(self, b: Tensor) -> Tensor:
        return self.base.slopes(b) / self.h

    def source_slopes(self, b: Tensor) -> Tensor:
        return self.base.source_slopes(b) / self.h

    def divergences(self, v: Tensor) -> Tensor:
        return self.base.divergences(v) / self.h

    def traces(self, b: Tensor) -> Tensor:
        return self.base.traces(b) / self.h**2

    def stein(self, c: Tensor, b: Tensor) -> Tensor:
        return self.base.stein(c, b / self.h)


@dataclass(frozen=True, eq=False)
class WeightedSums(Sums):
    """a(x)·k(x, y)·a(y), by the product rule; p = ∇log a at the points, q at the sources."""

    base: Sums
    a: Tensor  # (*batch, m, 1)
    b: Tensor  # (*batch, n, 1): a at the sources
    p: Tensor  # (*batch, m, d)
    q: Tensor  # (*batch, n, d)

    @property
    def how(self) -> str:
        return self.base.how

    def values(self, c: Tensor) -> Tensor:
        return self.a * self.base.values(self.b * c)

    def slopes(self, b: Tensor) -> Tensor:
        inner = self.b * b
        return self.a * (self.base.slopes(inner) + self.p * self.base.values(inner))

    def source_slopes(self, b: Tensor) -> Tensor:
        inner = self.b * b
        return self.a * self.base.stein(inner * self.q, inner)

    def divergences(self, v: Tensor) -> Tensor:
        inner = self.b * v
        turned = (self.p * self.base.values(inner)).sum(-1, keepdim=True)
        return self.a * (self.base.divergences(inner) + turned)

    def traces(self, b: Tensor) -> Tensor:
        inner = self.b * b
        turned = (self.p * self.base.stein(inner * self.q, inner)).sum(-1, keepdim=True)
        return self.a * (self.base.traces(inner) + self.base.divergences(inner * self.q) + turned)

    def stein(self, c: Tensor, b: Tensor) -> Tensor:
        return self.a * self.base.stein(self.b * (c + b * self.q), self.b * b)
