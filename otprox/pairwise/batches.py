"""Sums over random batches of particles in place of all pairs: O(n·size)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import RandomBatch
from .sums import Sums

Sum = Callable[[Tensor, Tensor, Tensor], Tensor]  # x (…, r, d), y (…, r, d), c (…, r, p) -> (…, r, q)


@dataclass(frozen=True, eq=False)
class Split:
    """Particles in a random order, cut into batches of `size`; the last is smaller where they do not divide."""

    order: Tensor  # (n,)
    size: int

    @classmethod
    def draw(cls, n: int, size: int, generator: torch.Generator, device: torch.device) -> Split:
        return cls(torch.randperm(n, generator=generator, device=generator.device).to(device), size)

    @property
    def scale(self) -> float:
        """1/P(two given particles share a batch), with which sums over the pairs of a batch are unbiased."""
        n, rest = len(self.order), len(self.order) % self.size
        pairs = (n - rest) * (self.size - 1) + rest * (rest - 1)
        return n * (n - 1) / pairs if pairs else 1.0

    def within(self, f: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """f on each batch of the tensors (…, n, p), as (…, batches, size, p), in the order of the particles."""
        whole = len(self.order) - len(self.order) % self.size
        mixed = [t[..., self.order, :] for t in tensors]
        parts = [_by(f, self.size, *(t[..., :whole, :] for t in mixed))] if whole else []
        parts += [f(*(t[..., whole:, :] for t in mixed))] if whole < len(self.order) else []
        return torch.cat(parts, -2)[..., self.order.argsort(), :]


def random_sum(k: RandomBatch, f: Sum, x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    """f over each batch, weighed, in the order of the particles; pairs i = j once. y is x, perhaps as an alias."""
    split = Split.draw(x.shape[-2], k.size, k.generator, x.device)
    batch = torch.broadcast_shapes(x.shape[:-2], c.shape[:-2])
    x, y, c = (t.expand(*batch, *t.shape[-2:]) for t in (x, y, c))
    return split.scale * split.within(f, x, y, c) + (1 - split.scale) * _by(f, 1, x, y, c)


def _by(f: Callable[..., Tensor], size: int, *tensors: Tensor) -> Tensor:
    """f on consecutive batches of `size`."""
    return f(*(t.unflatten(-2, (-1, size)) for t in tensors)).flatten(-3, -2)


@dataclass(frozen=True, eq=False)
class BatchSums(Sums):
    """Each sum over batches of its own."""

    k: RandomBatch
    x: Tensor
    inner: Callable[[Tensor], Sums]  # the sums of W of points on themselves

    @property
    def how(self) -> str:
        return f"random batches: of {self.k.size} particles, O(n·size)"

    def values(self, c: Tensor) -> Tensor:
        return self._total(lambda sums, c: sums.values(c), c)

    def slopes(self, b: Tensor) -> Tensor:
        return self._total(lambda sums, b: sums.slopes(b), b)

    def source_slopes(self, b: Tensor) -> Tensor:
        return self._total(lambda sums, b: sums.source_slopes(b), b)

    def divergences(self, v: Tensor) -> Tensor:
        return self._total(lambda sums, v: sums.divergences(v), v)

    def traces(self, b: Tensor) -> Tensor:
        return self._total(lambda sums, b: sums.traces(b), b)

    def stein(self, c: Tensor, b: Tensor) -> Tensor:
        both = torch.cat([c, b.expand(*c.shape[:-1], 1)], -1)
        return self._total(lambda sums, both: sums.stein(both[..., :-1], both[..., -1:]), both)

    def _total(self, f: Callable[[Sums, Tensor], Tensor], c: Tensor) -> Tensor:
        return random_sum(self.k, lambda x, _, c: f(self.inner(x), c), self.x, self.x, c)
