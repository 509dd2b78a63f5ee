"""What a sum over pairs with a radial kernel is made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

Factor = tuple[Tensor, Tensor]  # u (*batch, m, r) and v (*batch, n, r): a pair weighs u_i·v_j


@dataclass(frozen=True, eq=False)
class Term:
    """Σ_j f^(order)(s_ij)·Π (u_i·v_j)·(c_j + b_j(x_i − y_j)), (*batch, m, p); c (*batch, n, p), b (*batch, n, 1)."""

    order: int
    c: Tensor | None = None
    b: Tensor | None = None
    factors: tuple[Factor, ...] = ()

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.c, self.b, *(t for factor in self.factors for t in factor)

    def rebuilt(self, tensors: Sequence[Any]) -> Term:
        c, b, *rest = tensors
        return Term(self.order, c, b, tuple(zip(rest[::2], rest[1::2], strict=True)))

    def weighing(self, c: Tensor | None = None, b: Tensor | None = None, *factors: Factor, more: int = 0) -> Term:
        """The same weights of pairs, times `factors` and with `more` derivatives of f, on other sources."""
        return Term(self.order + more, c, b, (*self.factors, *factors))

    def swapped(self) -> Term:
        """The same weights of pairs, seen from the sources."""
        return replace(self, factors=tuple((v, u) for u, v in self.factors))


def split(shapes: Sequence[Term], tensors: Sequence[Any]) -> Iterator[Term]:
    """The terms, from their shapes and the flat list of their tensors."""
    start = 0
    for shape in shapes:
        stop = start + len(shape.tensors)
        yield shape.rebuilt(tensors[start:stop])
        start = stop
