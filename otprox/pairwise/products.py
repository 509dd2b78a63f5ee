"""A radial sum in tiles: squared distances by matrix products, f in place, sources by matrix products again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..kernels import Radial
from .terms import Term
from .tiles import TILE

SPREAD = 16.0  # radius of the data, in resolutions of k, up to which squared distances come from matrix products


def tiled_sum(k: Radial, x: Tensor, y: Tensor, terms: Sequence[Term], dense: bool) -> Tensor:
    """The sum of the terms over all pairs of x (…, m, d) and y (…, n, d), centred data; `dense`: in one tile."""
    return _Tiles.of(k, x, y, terms, dense).total()


def budget(x: Tensor) -> int:
    """Entries of the largest tensor of pairs."""
    return TILE.get(x.device.type, TILE["cpu"])


@dataclass(frozen=True, eq=False)
class _Tiles:
    """One sum, made ready: blocks of pairs are added up in `out`."""

    k: Radial
    x: Tensor
    y: Tensor
    terms: list[Term]
    rows: int
    columns: int
    exact: bool  # squared distances by differences
    out: Tensor  # (…, m, p), or (…, m, p + 1) with Σ_j (weight)·b_j last, to be multiplied by x_i
    left: Tensor  # the squared distances, or the exponents where f is an exponential, are left @ right
    right: Tensor

    @classmethod
    def of(cls, k: Radial, x: Tensor, y: Tensor, terms: Sequence[Term], dense: bool) -> _Tiles:
        radius = max(t.square().sum(-1).amax().sqrt().item() if t.numel() else 0.0 for t in (x, y))
        terms = _merged(k, terms if k.resolution == 0 else [_gathered(t, y) for t in terms])
        width = max(t.c.shape[-1] if t.c is not None else x.shape[-1] for t in terms)
        rows, columns = _shape(x, y, dense)
        xx, yy = (t.square().sum(-1, keepdim=True) for t in (x, y))
        left = torch.cat([-2 * x, xx, torch.ones_like(xx)], -1) * (1.0 if k.rate is None else k.rate)
        right = torch.cat([y, torch.ones_like(yy), yy], -1)
        out = x.new_zeros(*x.shape[:-1], width)
        return cls(k, x, y, terms, rows, columns, not radius <= SPREAD * k.resolution, out, left, right)

    def total(self) -> Tensor:
        m, n, same = self.x.shape[-2], self.y.shape[-2], self.x is self.y
        for i in range(0, m, self.rows):
            for j in range(i if same else 0, n, self.columns):
                self.add(slice(i, i + self.rows), slice(j, j + self.columns), mirrored=same and i != j)
        moving = self.k.resolution > 0 and any(t.b is not None for t in self.terms)
        return self.out[..., :-1] + self.x * self.out[..., -1:] if moving else self.out

    def add(self, i: slice, j: slice, mirrored: bool) -> None:
        values = self.values(self.squares(i, j) if self.exact else self.left[..., i, :] @ self.right[..., j, :].mT)
        for t in self.terms:
            self.contribute(t, values[t.order], i, j)
            if mirrored:
                self.contribute(t, values[t.order].mT, j, i)

    def values(self, s: Tensor) -> dict[int, Tensor]:
        """The derivatives of f that the terms ask for, by order; an exponential without its factor f(0)."""
        if self.k.rate is not None:
            return {0: (s.mul_(self.k.rate) if self.exact else s).exp_()}
        orders = sorted({t.order for t in self.terms})
        return {q: self.k.derivative(s if q == orders[-1] else s.clone(), q) for q in orders}

    def contribute(self, t: Term, weights: Tensor, i: slice, j: slice) -> None:
        """Add what the sources j do to the points i."""
        for u, v in t.factors:
            weights = weights * (u[..., i, :] @ v[..., j, :].mT)
        out = self.out[..., i, :]
        if t.c is not None:
            out[..., : t.c.shape[-1]] += weights @ t.c[..., j, :]
        if t.b is not None and self.k.resolution == 0:
            for a in range(self.x.shape[-1]):
                z = self.x[..., i, a, None] - self.y[..., None, j, a]
                out[..., a : a + 1] += (weights * z) @ t.b[..., j, :]

    def squares(self, i: slice, j: slice) -> Tensor:
        """|x_i − y_j|² by differences."""
        x, y = self.x[..., i, :], self.y[..., j, :]
        if x.shape[-1] > 4:
            return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square_()
        s = (x[..., :, None, 0] - y[..., None, :, 0]).square_()
        for a in range(1, x.shape[-1]):
            z = x[..., :, None, a] - y[..., None, :, a]
            s.addcmul_(z, z)
        return s


def _shape(x: Tensor, y: Tensor, dense: bool) -> tuple[int, int]:
    """Rows and columns of a tile: square where pairs are symmetric."""
    m, n, most = max(1, x.shape[-2]), max(1, y.shape[-2]), budget(x)
    if dense or m * n * math.prod(x.shape[:-2]) <= most and x is not y:
        return m, n
    side = max(1, math.isqrt(most))
    if x is y:
        return (m, n) if math.prod(x.shape[:-2]) > 1 else (side, side)
    rows = min(m, max(side, most // n))
    return rows, max(1, most // rows)


def _gathered(t: Term, y: Tensor) -> Term:
    """c_j + b_j(x_i − y_j) as columns [c − b·y, b], whose sums are then combined with x_i."""
    if t.b is None:
        return t
    c = -t.b * y if t.c is None else t.c - t.b * y
    return replace(t, c=torch.cat([c, t.b], -1))


def _merged(k: Radial, terms: Sequence[Term]) -> list[Term]:
    """Terms of one order and without factors added up; where f' = c·f all orders are one, times f(0)."""
    found: dict[Any, Term] = {}
    for l, t in enumerate(terms):
        if k.rate is not None:
            scale = k.rate**t.order * k.derivative(torch.zeros(1, dtype=torch.float64)).item()
            c, b = (None if v is None else scale * v for v in (t.c, t.b))
            t = Term(0, c, b, t.factors)
        key = (l,) if t.factors else t.order
        found[key] = _sum(found[key], t) if key in found else t
    return list(found.values())


def _sum(a: Term, b: Term) -> Term:
    pick = [p if q is None else q if p is None else _padded(p, q) for p, q in ((a.c, b.c), (a.b, b.b))]
    return replace(a, c=pick[0], b=pick[1])


def _padded(p: Tensor, q: Tensor) -> Tensor:
    """p + q, the narrower filled up with zeros on the right."""
    wide = max(p.shape[-1], q.shape[-1])
    p, q = (torch.nn.functional.pad(t, (0, wide - t.shape[-1])) for t in (p, q))
    return p + q
