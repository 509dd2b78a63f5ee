"""A curve of densities in time, with its momentum: what dynamic transport returns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ..measures import Density, Grid
from .base import Stats


@dataclass(frozen=True, eq=False)
class Curve:
    """t ↦ ρ_t with its momentum m_t: a path of least action between t = 0 and the horizon.

    `values` are the densities at the K + 1 `times`, (*batch, K + 1, *shape), non-negative and of mass 1; iterating
    gives them as measures. `flux` has the momentum through the faces normal to each axis on the K intervals, (*batch,
    K, *faces), walls included. `potential` is φ on cells at the middle of the intervals: m = mobility(ρ)·Q∇φ.
    `kinetic` is ∫⟨m, Q⁻¹m⟩/mobility(ρ) dx on each interval, (*batch, K): constant along a geodesic. `continuity` is
    the mass by which (values, flux) miss the equation of continuity, on the worst interval, (*batch,): rounding, but
    where values that the projection left below 0 were mended.
    """

    times: Tensor
    values: Tensor
    flux: tuple[Tensor, ...]
    potential: Tensor
    kinetic: Tensor
    continuity: Tensor
    grid: Grid
    stats: Stats

    @property
    def action(self) -> Tensor:
        """∫∫⟨m, Q⁻¹m⟩/(2·mobility(ρ)) dx dt, (*batch,)."""
        return self.kinetic.mean(-1) * self.times[-1] / 2

    @property
    def distance2(self) -> Tensor:
        """2·horizon·action, (*batch,): W2² between the ends of a geodesic."""
        return self.kinetic.mean(-1) * self.times[-1].square()

    def at(self, k: int) -> Density:
        """The density at times[k]."""
        return Density(self.values.select(-self.grid.dim - 1, k), self.grid)

    def __len__(self) -> int:
        return len(self.times)

    def __iter__(self) -> Iterator[Density]:
        return (self.at(k) for k in range(len(self)))
