"""Paths of densities on a staggered grid: densities at nodes in time, fluxes through faces between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..measures import Grid


class Staggered(NamedTuple):
    """What a path is made of, between times t_0 and t_K; time stands before the axes of the grid.

    `nodes` are densities on the cells at t_1, …, t_K. `density` and `flux` live on the faces normal to each axis and on
    the K intervals: two numbers a face, whose kinetic energy is one term of the action.
    """

    nodes: Tensor
    density: tuple[Tensor, ...]
    flux: tuple[Tensor, ...]

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return (self.nodes, *self.density, *self.flux)

    @classmethod
    def of(cls, parts: Sequence[Tensor]) -> Staggered:
        dim = len(parts) // 2
        return cls(parts[0], tuple(parts[1 : 1 + dim]), tuple(parts[1 + dim :]))


@dataclass(frozen=True)
class StaggeredAxis:
    """One axis: n cells of width h, and their faces, counted with both walls (n + 1), or n on a periodic axis.

    Cells are reflected in the walls. There the discrete Laplacian, averages and their adjoints are diagonal in the same
    basis (cosines, or sines and cosines on a periodic axis), provided that a face on a wall counts half.
    """

    dim: int  # counted from the end
    n: int
    h: float
    periodic: bool

    @property
    def faces(self) -> int:
        return self.n if self.periodic else self.n + 1

    def average(self, cells: Tensor) -> Tensor:
        """Mean of the two cells at each face."""
        below, above = self._sides(cells)
        return (below + above) / 2

    def harmonic(self, cells: Tensor) -> Tensor:
        """Harmonic mean of the two cells at each face: 0 next to an empty cell."""
        below, above = self._sides(cells)
        return 2 * below * above / (below + above).clamp_min(torch.finfo(cells.dtype).tiny)

    def gradient(self, cells: Tensor) -> Tensor:
        """Difference across each face over h; 0 at walls."""
        below, above = self._sides(cells)
        return (above - below) / self.h

    def gather(self, faces: Tensor) -> Tensor:
        """Mean of the two faces of each cell: the adjoint of `average`."""
        lower, upper = self._bounds(faces)
        return (lower + upper) / 2

    def divergence(self, faces: Tensor) -> Tensor:
        """Difference of the two faces of each cell over h: minus the adjoint of `gradient`."""
        lower, upper = self._bounds(faces)
        return (upper - lower) / self.h

    def counted(self, faces: Tensor) -> Tensor:
        """Values on faces, with those on walls halved: what sums over faces are taken of."""
        if self.periodic:
            return faces
        faces = faces.clone()
        faces.select(self.dim, 0).mul_(0.5)
        faces.select(self.dim, self.n).mul_(0.5)
        return faces

    def _sides(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        first, last = cells.narrow(self.dim, 0, 1), cells.narrow(self.dim, self.n - 1, 1)
        padded = torch.cat([last, cells] if self.periodic else [first, cells, last], self.dim)
        return padded.narrow(self.dim, 0, self.faces), padded.narrow(self.dim, 1, self.faces)

    def _bounds(self, faces: Tensor) -> tuple[Tensor, Tensor]:
        if self.periodic:
            faces = torch.cat([faces, faces.narrow(self.dim, 0, 1)], self.dim)
        return faces.narrow(self.dim, 0, self.n), faces.narrow(self.dim, 1, self.n)


def lines(grid: Grid, mobility: Sequence[float]) -> tuple[StaggeredAxis, ...]:
    """The axes of a grid, in coordinates x_a/√mobility_a in which a diagonal metric is the identity."""
    named = zip(grid.shape, grid.spacing, grid.periodic, mobility, strict=True)
    return tuple(StaggeredAxis(a - grid.dim, n, h / q**0.5, periodic) for a, (n, h, periodic, q) in enumerate(named))
