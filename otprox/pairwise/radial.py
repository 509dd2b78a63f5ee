"""Sums of a radial kernel and its derivatives over all pairs, in tiles of matrix products, differentiable at will.

All that is asked of k = f(|x − y|²) is a sum of terms

    Σ_j f^(q)(|x_i − y_j|²)·Π_l (u^l_i·v^l_j)·(c_j + b_j(x_i − y_j)),

and so are the derivatives of such terms in x, y, u, v, c and b: `radial_sum` alone serves every reduction, with
derivatives of every order, and keeps nothing of the size of the pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..kernels import Radial
from .keops import keops_sum
from .products import budget, tiled_sum
from .terms import Factor, Term, split


def radial_sum(k: Radial, x: Tensor, y: Tensor, terms: Sequence[Term], engine: str = "tiled") -> Tensor:
    """The sum of the terms, (*batch, m, p), for x (*batch, m, d), y (*batch, n, d); p = d where there is a b.

    Squared distances are matrix products of centred data, or differences where k is not smooth at 0 or so narrow that
    products would lose digits. Where y is x itself, each pair of tiles is visited once. The engine "dense" has all
    pairs in one tile.
    """
    same = x is y
    given = [t for term in terms for t in term.tensors]
    batch = torch.broadcast_shapes(*[t.shape[:-2] for t in (x, y, *given) if t is not None])
    centre = y.detach().mean(-2, keepdim=True)
    x = (x - centre).expand(*batch, *x.shape[-2:])
    y = x if same else (y - centre).expand(*batch, *y.shape[-2:])
    tensors = [None if t is None else t.expand(*batch, *t.shape[-2:]) for t in given]
    result: Tensor = _Sum.apply(k, terms, engine, x, y, *tensors)
    return result


class _Sum(torch.autograd.Function):
    """The derivatives of `radial_sum`, by itself."""

    @staticmethod
    def forward(ctx: Any, k: Radial, terms: Sequence[Term], engine: str, x: Tensor, y: Tensor, *tensors: Any) -> Tensor:
        ctx.k, ctx.engine, ctx.same = k, engine, x is y
        ctx.shapes = [Term(t.order, factors=((None, None),) * len(t.factors)) for t in terms]  # type: ignore[arg-type]
        ctx.save_for_backward(x, y, *tensors)
        return _evaluate(k, x, y, list(split(ctx.shapes, tensors)), engine)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, y, *tensors = ctx.saved_tensors
        needs_x, needs_y, *needs = ctx.needs_input_grad[3:]
        y = x if ctx.same else y
        terms = list(split(ctx.shapes, tensors))
        gradients = _Gradients(ctx.k, ctx.engine, x, y, g)
        own = [d for t, need in zip(terms, split(ctx.shapes, needs), strict=True) for d in gradients.of_term(t, need)]
        dx = gradients.of_points(terms) if needs_x else None
        dy = gradients.of_sources(terms) if needs_y else None
        return None, None, None, dx, dy, *own


@dataclass(frozen=True, eq=False)
class _Gradients:
    """Σ_i g_i·(sum of terms)_i differentiated in all that it depends on."""

    k: Radial
    engine: str
    x: Tensor
    y: Tensor
    g: Tensor

    def forth(self, *terms: Term) -> Tensor:
        return radial_sum(self.k, self.x, self.y, terms, self.engine)

    def back(self, *terms: Term) -> Tensor:
        return radial_sum(self.k, self.y, self.x, terms, self.engine)

    def pairing(self, t: Term) -> Factor:
        """The two sides of g_i·(c_j + b_j(x_i − y_j))."""
        if t.b is None:
            return self.g, t.c  # type: ignore[return-value]
        c = -t.b * self.y if t.c is None else t.c - t.b * self.y
        return torch.cat([self.g, self.along], -1), torch.cat([c, t.b], -1)

    @property
    def along(self) -> Tensor:
        return (self.g * self.x).sum(-1, keepdim=True)

    def of_points(self, terms: Sequence[Term]) -> Tensor:
        one = torch.ones_like(self.y[..., :1])
        total = 2 * self.forth(*[t.weighing(None, one, self.pairing(t), more=1) for t in terms])
        moving = [t.weighing(t.b) for t in terms if t.b is not None]
        return total + self.g * self.forth(*moving) if moving else total

    def of_sources(self, terms: Sequence[Term]) -> Tensor:
        one = torch.ones_like(self.x[..., :1])
        total = 2 * self.back(*[t.weighing(None, one, self.pairing(t), more=1).swapped() for t in terms])
        for t in terms:
            if t.b is not None:
                total = total - t.b * self.back(t.weighing(self.g).swapped())
        return total

    def of_term(self, t: Term, need: Term) -> Iterator[Tensor | None]:
        yield self.back(t.weighing(self.g).swapped()) if need.c else None
        yield self._of_b(t) if need.b else None
        for l, ((u, v), (need_u, need_v)) in enumerate(zip(t.factors, need.factors, strict=True)):
            rest = replace(t, factors=(*t.factors[:l], *t.factors[l + 1 :], self.pairing(t)))
            yield self.forth(rest.weighing(v)) if need_u else None
            yield self.back(rest.weighing(u).swapped()) if need_v else None

    def _of_b(self, t: Term) -> Tensor:
        found = self.back(t.weighing(torch.cat([self.g, self.along], -1)).swapped())
        return found[..., -1:] - (self.y * found[..., :-1]).sum(-1, keepdim=True)


def _evaluate(k: Radial, x: Tensor, y: Tensor, terms: Sequence[Term], engine: str) -> Tensor:
    """Items of the batch one by one when large, and with KeOps, which has no batches; otherwise many to a tile."""
    dense = engine == "dense"
    if x.ndim == 2:
        return keops_sum(k, x, y, terms) if engine == "keops" else tiled_sum(k, x, y, terms, dense)
    count, pairs = math.prod(x.shape[:-2]), x.shape[-2] * y.shape[-2]
    step = {"dense": count, "keops": 1}.get(engine, max(1, budget(x) // max(1, pairs)))
    flat = [None if t is None else t.flatten(0, -3) for term in terms for t in term.tensors]
    points, sources, parts = x.flatten(0, -3), y.flatten(0, -3), []
    for start in range(0, count, step):
        item = start if step == 1 else slice(start, start + step)
        some = list(split(terms, [None if t is None else t[item] for t in flat]))
        a = points[item]
        b = a if x is y else sources[item]
        parts.append(_evaluate(k, a, b, some, engine) if step == 1 else tiled_sum(k, a, b, some, dense))
    return (torch.stack(parts) if step == 1 else torch.cat(parts)).unflatten(0, x.shape[:-2])
