"""Potential energies of data: sums over rows, estimated from random batches of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..measures import Measure
from .base import Functional
from .potential import Potential


@dataclass(frozen=True, eq=False)
class Minibatch(Functional):
    """∫ Σ_i ℓ_i dμ, a sum over `rows` rows of data, whose explicit steps use an unbiased estimate from `size` of them.

    loss(x, index): points (*batch, n, d) and row numbers (m,) -> Σ over those rows of ℓ_i(x), (*batch, n). A step draws
    `size` rows without replacement from `generator`, and moves every particle with the same (rows/size)·Σ ℓ_i. The
    value, the first variation and everything that observers and implicit steps ask for are those of the full sum.

    >>> import otprox as ox
    >>> data = torch.arange(100.0)
    >>> loss = lambda x, index: 0.5 * (x - data[index]).square().mean(-1) * len(index)
    >>> F = Minibatch(loss, rows=100, size=10, generator=torch.Generator().manual_seed(0))
    >>> step = ox.Forward(F + ox.Entropy(), ox.Stein(ox.kernels.RBF(10.0)))
    >>> step.generators() == (F.generator,)
    True
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    rows: int
    size: int
    generator: torch.Generator

    def __post_init__(self) -> None:
        if not isinstance(self.generator, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator, not a {type(self.generator).__name__}")
        if not 1 <= self.size <= self.rows:
            raise ValueError(f"a batch has between 1 and all {self.rows} rows, not {self.size}")

    @property
    def full(self) -> Potential:
        """The sum over all rows."""
        return Potential(lambda x: self.loss(x, torch.arange(self.rows, device=x.device)))

    def __call__(self, mu: Measure) -> Tensor:
        return self.full(mu)

    def first_variation(self, mu: Measure, x: Tensor | None = None) -> Tensor:
        return self.full.first_variation(mu, x)

    def gradient(self, mu: Measure, x: Tensor | None = None) -> Tensor:
        return self.full.gradient(mu, x)

    def diffusivity(self, mu: Measure) -> Tensor:
        return mu.anchor.new_zeros(())

    def drawn(self) -> Potential:
        order = torch.randperm(self.rows, generator=self.generator, device=self.generator.device)
        chosen, scale = order[: self.size].sort().values, self.rows / self.size
        return Potential(lambda x: scale * self.loss(x, chosen.to(x.device)))

    def generators(self) -> tuple[torch.Generator, ...]:
        return (self.generator,)
