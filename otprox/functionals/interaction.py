"""Interaction energies ½∬ W(x − y) dμ(x) dμ(y)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..measures import Gaussian, Measure
from .base import Functional, differentiate


@dataclass(frozen=True, eq=False)
class Interaction(Functional):
    """½∬ W(x − y) dμ(x) dμ(y) for an even W, on displacements (…, d) -> (…).

    W is any callable, summed over all pairs, or a kernel value with a fast route such as `kernels.Cosine`. Pairs i = j
    count, so W(0) must be finite.
    """

    W: Callable[[Tensor], Tensor]

    def __call__(self, mu: Measure) -> Tensor:
        return 0.5 * mu.interact(self.W)

    def first_variation(self, mu: Measure, x: Tensor | None = None) -> Tensor:
        return mu.convolve(self.W, x)

    def gradient(self, mu: Measure, x: Tensor | None = None) -> Tensor:
        return differentiate(lambda y: mu.convolve(self.W, y), mu.points if x is None else x, "W")

    def bures_gradient(self, mu: Gaussian) -> tuple[Tensor, Tensor]:
        """(0, E ∇²W(X − Y)), by Stein's lemma under X − Y ~ N(0, 2Σ)."""
        difference = mu.with_state(mean=torch.zeros_like(mu.mean), cov=2 * mu.cov)
        _, hessian = difference.nearest_affine(lambda z: differentiate(self.W, z, "W"))
        return torch.zeros_like(mu.mean), (hessian + hessian.mT) / 2

    def diffusivity(self, mu: Measure) -> Tensor:
        return mu.anchor.new_zeros(())
