"""One interface to what is asked of a kernel over all pairs, and who answers: the routes by kernel and engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ..domains import Domain
from ..kernels import Bilinear, Combination, Kernel, Radial
from . import engines, generic
from .keops import has_formula
from .radial import radial_sum
from .terms import Term


class Sums(ABC):
    """Sums over sources y_j (*batch, n, d) at points x_i (*batch, m, d); b is (*batch, n, 1), c (*batch, n, p)."""

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
    def traces(self, b: Tensor) -> Tensor:
        """Σ_j b_j tr ∇₁∇₂k(x_i, y_j), (*batch, m, 1)."""

    def stein(self, c: Tensor, b: Tensor) -> Tensor:
        """Σ_j k(x_i, y_j) c_j + b_j ∇₂k(x_i, y_j), (*batch, m, d), for c (*batch, n, d)."""
        return self.values(c) + self.source_slopes(b)


@dataclass(frozen=True, eq=False)
class RadialSums(Sums):
    """k = f(|x − y|²), by matrix products in tiles, or by KeOps."""

    k: Radial
    x: Tensor
    y: Tensor
    engine: str

    def values(self, c: Tensor) -> Tensor:
        return self._sum(Term(0, c))

    def slopes(self, b: Tensor) -> Tensor:
        return self._sum(Term(1, b=2 * b))

    def source_slopes(self, b: Tensor) -> Tensor:
        return self._sum(Term(1, b=-2 * b))

    def traces(self, b: Tensor) -> Tensor:
        """−Σ_j b_j (2d·f' + 4s·f'')."""
        if self.k.resolution == 0:
            raise ValueError(
                f"{self.k} has no second derivative at x = y, so tr ∇₁∇₂k is infinite there; a kernel that is smooth "
                "at 0 would work, such as RBF or InverseMultiquadric"
            )
        x, y = self.x, self.y
        if x is y:
            x = y = x - x.detach().mean(-2, keepdim=True)
        return self._sum(Term(1, -2 * x.shape[-1] * b), Term(2, -4 * b, factors=(_squares(x, y),)))

    def stein(self, c: Tensor, b: Tensor) -> Tensor:
        return self._sum(Term(0, c), Term(1, b=-2 * b))

    def _sum(self, *terms: Term) -> Tensor:
        return radial_sum(self.k, self.x, self.y, terms, self.engine)


def _squares(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """|x_i − y_j|² = u_i·v_j."""
    centre = y.detach().mean(-2, keepdim=True)
    x, y = x - centre, y - centre
    xx, yy = (t.square().sum(-1, keepdim=True) for t in (x, y))
    return torch.cat([xx, torch.ones_like(xx), -2 * x], -1), torch.cat([torch.ones_like(yy), yy, y], -1)


@dataclass(frozen=True, eq=False)
class GenericSums(Sums):
    """Any kernel on any domain, by its matrix in blocks of rows."""

    k: Kernel
    x: Tensor
    y: Tensor
    domain: Domain

    def values(self, c: Tensor) -> Tensor:
        return generic.value_sum(self.k, self.x, self.y, c, self.domain)

    def slopes(self, b: Tensor) -> Tensor:
        return generic.slope_sum(self.k, self.x, self.y, b, self.domain, 1)

    def source_slopes(self, b: Tensor) -> Tensor:
        return generic.slope_sum(self.k, self.x, self.y, b, self.domain, 2)

    def traces(self, b: Tensor) -> Tensor:
        return generic.trace_sum(self.k, self.x, self.y, b, self.domain)


@dataclass(frozen=True, eq=False)
class BilinearSums(Sums):
    """xᵀy + 1, by moments: O(m + n)."""

    x: Tensor
    y: Tensor

    def values(self, c: Tensor) -> Tensor:
        return self.x @ (self.y.mT @ c) + c.sum(-2, keepdim=True)

    def slopes(self, b: Tensor) -> Tensor:
        return (b * self.y).sum(-2, keepdim=True).expand(self._like(b))

    def source_slopes(self, b: Tensor) -> Tensor:
        return self.x * b.sum(-2, keepdim=True)

    def traces(self, b: Tensor) -> Tensor:
        return (self.x.shape[-1] * b.sum(-2, keepdim=True)).expand(*self._like(b)[:-1], 1)

    def _like(self, b: Tensor) -> torch.Size:
        batch = torch.broadcast_shapes(self.x.shape[:-2], self.y.shape[:-2], b.shape[:-2])
        return torch.Size([*batch, *self.x.shape[-2:]])


@dataclass(frozen=True, eq=False)
class CombinedSums(Sums):
    """Σ c_i k_i, each by its own route."""

    parts: tuple[tuple[float, Sums], ...]

    def values(self, c: Tensor) -> Tensor:
        return self._total([a * s.values(c) for a, s in self.parts])

    def slopes(self, b: Tensor) -> Tensor:
        return self._total([a * s.slopes(b) for a, s in self.parts])

    def source_slopes(self, b: Tensor) -> Tensor:
        return self._total([a * s.source_slopes(b) for a, s in self.parts])

    def traces(self, b: Tensor) -> Tensor:
        return self._total([a * s.traces(b) for a, s in self.parts])

    def stein(self, c: Tensor, b: Tensor) -> Tensor:
        return self._total([a * s.stein(c, b) for a, s in self.parts])

    @staticmethod
    def _total(parts: list[Tensor]) -> Tensor:
        return torch.stack(parts).sum(0)


def route(k: Kernel, x: Tensor, y: Tensor, domain: Domain, engine: str) -> Sums:
    """Who answers for k: moments, parts of a combination, products of a radial kernel in tiles, or its matrix."""
    if isinstance(k, Combination):
        return CombinedSums(tuple((c, route(part, x, y, domain, engine)) for c, part in k.terms))
    if isinstance(k, Bilinear) and domain.straight:
        return BilinearSums(x, y)
    if isinstance(k, Radial) and domain.straight:
        return RadialSums(k, x, y, engines.choose(x, y, engine, formula=has_formula(k)).engine)
    engines.choose(x, y, engine, formula=False)
    return GenericSums(k, x, y, domain)
