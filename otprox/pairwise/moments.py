"""Polynomial kernels, by the moments of the sources."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .sums import Sums


@dataclass(frozen=True, eq=False)
class BilinearSums(Sums):
    """xᵀy + 1, by moments: O(m + n)."""

    x: Tensor
    y: Tensor

    @property
    def how(self) -> str:
        return "moments: of the sources, O(m + n)"

    def values(self, c: Tensor) -> Tensor:
        return self.x @ (self.y.mT @ c) + c.sum(-2, keepdim=True)

    def slopes(self, b: Tensor) -> Tensor:
        return (b * self.y).sum(-2, keepdim=True).expand(self._like(b))

    def source_slopes(self, b: Tensor) -> Tensor:
        return self.x * b.sum(-2, keepdim=True)

    def divergences(self, v: Tensor) -> Tensor:
        total = (self.y * v).sum((-2, -1), keepdim=True)
        return total.expand(*self._like(v)[:-1], 1)

    def traces(self, b: Tensor) -> Tensor:
        return (self.x.shape[-1] * b.sum(-2, keepdim=True)).expand(*self._like(b)[:-1], 1)

    def _like(self, b: Tensor) -> torch.Size:
        batch = torch.broadcast_shapes(self.x.shape[:-2], self.y.shape[:-2], b.shape[:-2])
        return torch.Size([*batch, *self.x.shape[-2:]])


@dataclass(frozen=True, eq=False)
class SquareSums(Sums):
    """−|x − y|², by moments of centred sources: O(m + n)."""

    x: Tensor
    y: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> SquareSums:
        centre = y.detach().mean(-2, keepdim=True)  # the sums do not depend on it
        return cls(x - centre, y - centre)

    @property
    def how(self) -> str:
        return "moments: of the sources, O(m + n)"

    def values(self, c: Tensor) -> Tensor:
        total, second = c.sum(-2, keepdim=True), self.y.square().sum(-1, keepdim=True).mT @ c
        return 2 * self.x @ (self.y.mT @ c) - self.x.square().sum(-1, keepdim=True) * total - second

    def slopes(self, b: Tensor) -> Tensor:
        return 2 * ((b * self.y).sum(-2, keepdim=True) - b.sum(-2, keepdim=True) * self.x)

    def source_slopes(self, b: Tensor) -> Tensor:
        return -self.slopes(b)

    def divergences(self, v: Tensor) -> Tensor:
        return 2 * ((self.y * v).sum((-2, -1), keepdim=True) - self.x @ v.sum(-2, keepdim=True).mT)

    def traces(self, b: Tensor) -> Tensor:
        total = 2 * self.x.shape[-1] * b.sum(-2, keepdim=True)
        return total.expand(*torch.broadcast_shapes(self.x.shape[:-2], total.shape[:-2]), self.x.shape[-2], 1)
