"""Quantile functions, piecewise linear, and the distance W2 through them on a line and on a circle."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from .base import Measure
from .density import Density
from .particles import Particles
from .quantiles import Quantiles

ROUNDS = 64  # of golden section: the level of the cut to 1e-13
GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, eq=False)
class QuantileFunction:
    """A quantile function, linear from `left` to `right` on each of n levels of widths `w` (*batch, n)."""

    left: Tensor
    right: Tensor
    w: Tensor

    @property
    def ends(self) -> Tensor:
        """The upper ends of the levels, (*batch, n); the last is 1."""
        ends = self.w.cumsum(-1)
        return ends / ends[..., -1:]

    @property
    def mean(self) -> Tensor:
        return (self.w * (self.left + self.right)).sum(-1) / (2 * self.w.sum(-1))

    def pieces(self, ends: Tensor, mid: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        """Value at the levels `mid`, each inside one piece, and the piece's increase over `width` levels."""
        index = torch.searchsorted(ends, mid).clamp_max(ends.shape[-1] - 1)
        left, right, w = (t.expand(ends.shape).gather(-1, index) for t in (self.left, self.right, self.w))
        w = w.clamp_min(torch.finfo(w.dtype).tiny)
        below = ((ends.gather(-1, index) - mid) / w).clamp(0, 1)  # rounding of the levels must not leave the piece
        return right - (right - left) * below, (right - left) * (width / w).clamp_max(1)


def quantile_function(mu: Measure) -> QuantileFunction:
    if isinstance(mu, Density):
        centers, h = mu.grid.centers(mu.values)[0], mu.grid.spacing[0]
        values = mu.values * h
        left = (centers - h / 2).expand_as(values)
        return QuantileFunction(left, left + h, values)
    if not isinstance(mu, Particles | Quantiles):
        raise TypeError(f"no quantile function of a {type(mu).__name__}")
    x, order = mu.x[..., 0].sort(-1)
    return QuantileFunction(x, x, mu.w.expand_as(x).gather(-1, order))


def line_squared(a: QuantileFunction, b: QuantileFunction) -> Tensor:
    """∫ |a(s) − b(s)|² ds, (*batch,)."""
    batch = torch.broadcast_shapes(a.w.shape[:-1], b.w.shape[:-1])
    ends_a, ends_b = (q.ends.expand(*batch, -1).contiguous() for q in (a, b))
    levels = torch.cat([ends_a, ends_b], -1).sort(-1).values
    levels = torch.cat([torch.zeros_like(levels[..., :1]), levels], -1)
    mid, width = (levels[..., 1:] + levels[..., :-1]) / 2, levels.diff(dim=-1)
    p, q = a.pieces(ends_a, mid, width), b.pieces(ends_b, mid, width)
    gap, spread = p[0] - q[0], p[1] - q[1]
    return (width * (gap.square() + spread.square() / 12)).sum(-1)


def circle_squared(a: QuantileFunction, b: QuantileFunction, period: float) -> Tensor:
    """min over θ of ∫₀¹ |a(s) − b(s + θ)|² ds with b(s + 1) = b(s) + period, (*batch,).

    Convex in θ, with a minimiser in [−1, 1] once the means are less than half a period apart: by golden section
    (Delon, Salomon, Sobolevski 2010, "Fast transport optimization for Monge costs on the circle").
    """
    turns = torch.round((a.mean - b.mean) / period)[..., None] * period
    b = QuantileFunction(b.left + turns, b.right + turns, b.w.expand(*turns.shape[:-1], -1))
    with torch.no_grad():
        cost = partial(_cut, a, b, period)
        low, high = torch.full_like(turns[..., 0], -1.0), torch.ones_like(turns[..., 0])
        p, q = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        at_p, at_q = cost(p), cost(q)
        for _ in range(ROUNDS):
            left = at_p < at_q  # the minimum is left of q
            low, high = torch.where(left, low, p), torch.where(left, q, high)
            new = torch.where(left, high - GOLDEN * (high - low), low + GOLDEN * (high - low))
            value = cost(new)
            p, q = torch.where(left, new, q), torch.where(left, p, new)
            at_p, at_q = torch.where(left, value, at_q), torch.where(left, at_p, value)
    return _cut(a, b, period, torch.where(at_p < at_q, p, q))


def _cut(a: QuantileFunction, b: QuantileFunction, period: float, theta: Tensor) -> Tensor:
    """∫₀¹ |a(s) − b(s + θ)|² ds for θ (*batch,) in [−1, 1]: b over three turns, cut to the levels from θ to θ + 1."""
    shift = b.left.new_tensor([-period, 0.0, period])[:, None]
    top = (b.ends[..., None, :] + b.left.new_tensor([-1.0, 0.0, 1.0])[:, None]).flatten(-2)
    start = torch.cat([torch.full_like(top[..., :1], -1.0), top[..., :-1]], -1)
    left, right = ((t[..., None, :] + shift).flatten(-2) for t in (b.left, b.right))
    s, e = (t.maximum(theta[..., None]).minimum(theta[..., None] + 1) for t in (start, top))
    slope = (right - left) / (top - start).clamp_min(torch.finfo(top.dtype).tiny)
    slope = torch.where(top > start, slope, 0.0)
    return line_squared(a, QuantileFunction(left + slope * (s - start), left + slope * (e - start), e - s))
