"""Coordinates in which particles have mean 0 and covariance I."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..measures import Gaussian, Measure
from ..measures.covariance import solve_rows, solve_rows_transposed


@dataclass(frozen=True, eq=False)
class Frame:
    """z = L⁻¹(x − m), with scores ∇_z log = Lᵀ∇_x log; m (*batch, d), L (*batch, d, d) lower triangular."""

    mean: Tensor
    factor: Tensor

    @classmethod
    def of(cls, mu: Measure) -> Frame:
        """The frame of the mean and covariance of μ, refused when that is singular."""
        fit = Gaussian.fit(mu)
        return cls(fit.mean, fit.factor)

    def points(self, x: Tensor) -> Tensor:
        """x ↦ z."""
        return solve_rows(self.factor, x - self.mean[..., None, :])

    def score(self, s: Tensor) -> Tensor:
        """A score in z as one in x, L⁻ᵀs."""
        return solve_rows_transposed(self.factor, s)

    def covector(self, s: Tensor) -> Tensor:
        """A score in x as one in z, Lᵀs."""
        return s @ self.factor
