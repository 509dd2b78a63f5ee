"""Interactions within random batches of particles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..domains import Domain
from .base import Kernel, Stationary


@dataclass(frozen=True, eq=False)
class RandomBatch(Stationary):
    """W over pairs of one batch only, as the particles are split at random into batches of `size`, at every sum anew.

    Each pair i ≠ j of one batch counts n(n − 1)/Σ size(size − 1) times, so that the sums are unbiased, the last,
    smaller batch included; pairs i = j count once. Two particles act on each other or not at all: with an even W,
    Σ w_i v_i = 0 exactly for v = ∇W∗μ. At points other than the particles all of them act.

    W is any function of displacements, or a kernel, for `Interaction` and for every sum over pairs.

    Jin, Li, Liu, "Random batch methods for interacting particle systems" (2020).
    """

    W: Callable[..., Tensor]
    size: int
    generator: torch.Generator = field(kw_only=True)

    def __post_init__(self) -> None:
        if self.size < 2:
            raise ValueError(f"RandomBatch needs batches of at least 2 particles, not {self.size}")
        if not isinstance(self.generator, torch.Generator):
            raise ValueError("RandomBatch draws its batches: it needs an explicit generator=torch.Generator()")

    def generators(self) -> tuple[torch.Generator, ...]:
        return (self.generator,)

    def profile(self, z: Tensor) -> Tensor:
        return self.W(z)

    def fit(self, x: Tensor) -> Kernel:
        W = self.W.fit(x) if isinstance(self.W, Kernel) else self.W
        return RandomBatch(W, self.size, generator=self.generator)

    def indefinite(self, neutral: bool = False) -> str | None:
        return self.W.indefinite(neutral) if isinstance(self.W, Kernel) else None

    @property
    def curvatures(self) -> tuple[float, float]:
        return self.W.curvatures if isinstance(self.W, Stationary) else (-torch.inf, torch.inf)

    def check_domain(self, domain: Domain) -> None:
        if isinstance(self.W, Stationary):
            self.W.check_domain(domain)
