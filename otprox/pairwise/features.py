"""Kernels that are inner products of known features: O(m + n) sums."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import Expected
from .generic import GenericSums
from .sums import Sums


@dataclass(frozen=True, eq=False)
class FeatureSums(Sums):
    """⟨Φ(x), Φ(y)⟩: the sources are summed in the space of features; slopes are one pass backward through Φ."""

    k: Expected
    x: Tensor
    y: Tensor
    pairs: GenericSums

    @property
    def how(self) -> str:
        rows = self.k.data.shape[0]
        return f"inner products of features over {rows} rows of data, O(m + n)"

    def values(self, c: Tensor) -> Tensor:
        return self.k.features(self.x) @ (self.k.features(self.y).mT @ c)

    def slopes(self, b: Tensor) -> Tensor:
        source = self.k.features(self.y).mT @ b
        keep = torch.is_grad_enabled() and (self.x.requires_grad or source.requires_grad)
        with torch.enable_grad():
            at = self.x.view_as(self.x) if self.x.requires_grad else self.x.detach().requires_grad_()
            total = (self.k.features(at) @ source).sum()
            return torch.autograd.grad(total, at, create_graph=keep)[0]

    def source_slopes(self, b: Tensor) -> Tensor:
        return self.pairs.source_slopes(b)

    def divergences(self, v: Tensor) -> Tensor:
        return self.pairs.divergences(v)

    def traces(self, b: Tensor) -> Tensor:
        return self.pairs.traces(b)
