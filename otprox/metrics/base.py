"""A metric on measures, through its Onsager operator K_μ: ∂t μ = −K_μ δF/δμ."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..functionals import Functional
from ..measures import Measure, Tangent


class Metric(ABC):
    """What turns the first variation of a functional into a motion of the measure."""

    @abstractmethod
    def descent(self, F: Functional, mu: Measure) -> Tangent:
        """−K_μ DF(μ), steepest descent."""

    @abstractmethod
    def onsager(self, mu: Measure, u: Tensor) -> Tensor:
        """K_μ on covector fields at μ's points: ∇φ ↦ velocity, both (*batch, n, d)."""

    def dissipation(self, F: Functional, mu: Measure) -> Tensor:
        """∫ ⟨∇φ, K_μ ∇φ⟩ dμ with φ = δF/δμ, (*batch,): the rate −dF/dt of the flow."""

        def rate(x: Tensor) -> Tensor:
            u = F.gradient(mu, x)
            return (u * self.onsager(mu, u)).sum(-1)

        return mu.expect(rate)

    def over(self, t0: float, t1: float) -> Metric:
        """The metric that a step over [t0, t1] uses: itself, unless it moves."""
        return self

    def declines(self, mu: Measure) -> str | None:
        """None, or why the metric does not act on the points of μ, in words."""
        return None

    def generators(self) -> tuple[torch.Generator, ...]:
        """The random generators that the metric draws from."""
        return ()

    def diffusion(self, mu: Measure, t0: float, t1: float) -> Tensor:
        """∫ Q_t dt over the step, (d, d) or (*batch, d, d): half the covariance of the exact heat flow."""
        raise TypeError(
            f"{type(self).__name__} has no constant mobility, so no exact heat flow; use Backward(Entropy(), …)"
        )
