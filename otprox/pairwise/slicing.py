"""The energy kernel through random lines, a sort each; with its standard error."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.sliced import Sliced, mean_width
from .sorting import DistanceSums
from .sums import Sums
from .tiles import TILE


class Estimate(NamedTuple):
    """A mean over random lines and its standard error."""

    value: Tensor
    error: Tensor


@dataclass(frozen=True, eq=False)
class SlicedSums(Sums):
    """−c_d·mean_l |θ_l·(x − y)|."""

    k: Sliced
    x: Tensor
    y: Tensor

    @property
    def how(self) -> str:
        return f"slicing: a sort along each of {len(self.k.drawn(self.x))} lines"

    def values(self, c: Tensor) -> Tensor:
        return self._mean(lambda sums, lines: sums.values(c).sum(0))

    def slopes(self, b: Tensor) -> Tensor:
        return self._mean(lambda sums, lines: _spread(sums.slopes(b), lines))

    def source_slopes(self, b: Tensor) -> Tensor:
        return -self.slopes(b)

    def divergences(self, v: Tensor) -> Tensor:
        return self._mean(lambda sums, lines: sums.slopes((v @ lines.mT).movedim(-1, 0)[..., None]).sum(0))

    def traces(self, b: Tensor) -> Tensor:
        raise ValueError("Sliced has no second derivative at x = y; RBF would work")

    def lines(self) -> Iterator[tuple[DistanceSums, Tensor]]:
        """Sums along a few lines at a time, with leading axis the lines, and those lines (l, d)."""
        lines = self.k.drawn(self.x)
        size = max(self.x[..., 0].numel(), self.y[..., 0].numel())
        for some in lines.split(max(1, 8 * TILE.get(self.x.device.type, TILE["cpu"]) // max(1, size))):
            x = (self.x @ some.mT).movedim(-1, 0)[..., None]
            y = x if self.x is self.y else (self.y @ some.mT).movedim(-1, 0)[..., None]
            yield DistanceSums(x, y), some

    def _mean(self, f: Callable[[DistanceSums, Tensor], Tensor]) -> Tensor:
        total: Tensor | None = None
        for sums, lines in self.lines():
            part = f(sums, lines)
            total = part if total is None else total + part
        assert total is not None
        return mean_width(self.x.shape[-1]) / len(self.k.drawn(self.x)) * total


def _spread(slopes: Tensor, lines: Tensor) -> Tensor:
    """Σ_l slope_l·θ_l, (*batch, m, d), for slopes (l, *batch, m, 1)."""
    return slopes[..., 0].movedim(0, -1) @ lines


def sliced_sum(k: Sliced, x: Tensor, y: Tensor, b: Tensor, a: Tensor | None = None) -> Estimate:
    """Σ_j k(x_i, y_j) b_j, (*batch, m), or Σ_ij a_i k(x_i, y_j) b_j, (*batch,), with the standard error over the lines.

    b is (*batch, n), a is (*batch, m). The error is that of estimating −|x − y|; it falls as 1/√directions.
    """
    drawn = k.fit(y)
    assert isinstance(drawn, Sliced)
    if drawn.drawn(x).shape[0] < 2:
        raise ValueError("a standard error needs at least 2 directions")
    parts = []
    for sums, _ in SlicedSums(drawn, x, y).lines():
        value = sums.values(b[..., None])[..., 0]
        parts.append(value if a is None else (value * a).sum(-1))
    each = mean_width(x.shape[-1]) * torch.cat(parts)
    return Estimate(each.mean(0), each.std(0) / math.sqrt(len(each)))
