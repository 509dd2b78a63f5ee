"""Constraints as functionals: 0 where they hold, infinite where they do not."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from ..measures import Gaussian, Measure
from .atom import Atom
from .base import Functional

TOLERANCE = 1e-6  # relative violation that still counts as rounding: what implicit steps leave, and float32


class Constraint(Functional):
    """The indicator of a set of measures: F(μ) = 0 when violation(μ) ≤ 1e-6, else +∞.

    Its force is a multiplier that only an implicit step finds. `first_variation` and `gradient` give 0, the smallest
    element of the subdifferential where the constraint holds; explicit steps would not see it, and decline.
    """

    @abstractmethod
    def violation(self, mu: Measure) -> Tensor:
        """By how much, relative to what is allowed, μ violates the constraint; ≤ 0 when it holds, (*batch,)."""

    @abstractmethod
    def atom(self, mu: Measure, c: float) -> Atom:
        """The constraint in a convex program, whatever c ≥ 0; or NotConvex."""

    def impossible(self, mu: Measure) -> str | None:
        """Why no measure in μ's representation can satisfy the constraint, when a simple count shows it."""
        return None

    def __call__(self, mu: Measure) -> Tensor:
        violation = self.violation(mu)
        return torch.where(violation <= TOLERANCE, torch.zeros_like(violation), math.inf)

    def first_variation(self, mu: Measure, x: Tensor | None = None) -> Tensor:
        points = mu.points if x is None else x
        return points.new_zeros((*mu.batch, points.shape[-2]))

    def gradient(self, mu: Measure, x: Tensor | None = None) -> Tensor:
        points = mu.points if x is None else x
        return points.new_zeros((*mu.batch, *points.shape[-2:]))

    def bures_gradient(self, mu: Gaussian) -> tuple[Tensor, Tensor]:
        raise TypeError(self.needs_implicit())

    def diffusivity(self, mu: Measure) -> Tensor:
        raise TypeError(self.needs_implicit())

    def needs_implicit(self) -> str:
        """Why explicit steps decline, and what would work."""
        return (
            f"{type(self).__name__} is a constraint: its force is a multiplier, which an explicit step does not see. "
            "Use Backward for the sum that it belongs to"
        )


def constraint_in(F: Functional) -> Constraint | None:
    """The first constraint among the terms of F."""
    return next((f for _, f in F.terms if isinstance(f, Constraint)), None)
