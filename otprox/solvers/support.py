"""Where the densities of entropic transport live: the cells of a grid, or weighted points with volumes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from ..measures import Density, Grid, Particles
from ..measures.covariance import logdet, solve_rows
from ..metrics import Wasserstein
from ..pairwise import Engine
from .gibbs import CloudKernel, Gibbs
from .separable import SeparableKernel


class Support(ABC):
    """Points with a base measure and a quadratic cost; it makes the kernels of every reg."""

    @property
    @abstractmethod
    def extent(self) -> float:
        """The largest cost, up to a small factor."""

    @property
    @abstractmethod
    def resolution(self) -> float:
        """The cost of going from a point to its neighbour: reg should not be less."""

    @abstractmethod
    def kernel(self, reg: float) -> Gibbs:
        """exp(−cost/reg)."""

    def coarser(self) -> Support | None:
        """A support with fewer points, between which functions go by `average` and `interpolate`; or None."""
        return None

    def average(self, f: Tensor) -> Tensor:
        """From this support to the coarser one."""
        return f

    def interpolate(self, f: Tensor) -> Tensor:
        """From the coarser support to this one."""
        return f


@dataclass(frozen=True, eq=False)
class Points(Support):
    """Points x (*batch, n, d) in coordinates where the cost is |x − y|², and their volumes (*batch, n) before
    coordinates were stretched by det Q^−½."""

    x: Tensor
    volumes: Tensor
    stretch: float
    engine: Engine

    @classmethod
    def of(cls, mu: Particles, base: Wasserstein, engine: Engine) -> Points:
        """The points of μ with the volumes of their cells."""
        factor = base.factor(mu)
        if factor is None:
            return cls(mu.x, mu.volumes, 1.0, engine)
        return cls(solve_rows(factor, mu.x), mu.volumes, math.exp(0.5 * logdet(factor).max().item()), engine)

    @property
    def extent(self) -> float:
        return (self.x.amax(-2) - self.x.amin(-2)).square().sum(-1).max().item()

    @property
    def resolution(self) -> float:
        return (self.volumes.median().item() / self.stretch) ** (2 / self.x.shape[-1])

    def kernel(self, reg: float) -> Gibbs:
        return CloudKernel(self.x, self.x, reg, (self.volumes, self.volumes), self.engine)


@dataclass(frozen=True, eq=False)
class Cells(Support):
    """The cells of a grid, flat (*batch, n), and the diagonal of the mobility Q in the cost ⟨z, Q⁻¹z⟩."""

    grid: Grid
    mobility: Sequence[float]
    like: Tensor

    @classmethod
    def of(cls, mu: Density, base: Wasserstein) -> Cells:
        """The cells of μ."""
        return cls(mu.grid, base.mobility(mu).diagonal().tolist(), mu.anchor)

    @property
    def extent(self) -> float:
        return sum(length**2 / q for length, q in zip(self.grid.period, self.mobility, strict=True))

    @property
    def resolution(self) -> float:
        return max(h**2 / q for h, q in zip(self.grid.spacing, self.mobility, strict=True))

    def kernel(self, reg: float) -> Gibbs:
        return SeparableKernel.on(self.grid, self.mobility, reg, self.like)

    def coarser(self) -> Cells | None:
        """Two cells an axis in one; None when some axis has an odd number of cells, or fewer than 16."""
        if any(n % 2 or n < 16 for n in self.grid.shape):
            return None
        half = Grid(self.grid.lower, self.grid.upper, tuple(n // 2 for n in self.grid.shape), self.grid.periodic)
        return replace(self, grid=half)

    def average(self, f: Tensor) -> Tensor:
        pairs = [size for n in self.grid.shape for size in (n // 2, 2)]
        over = tuple(range(-1, -2 * self.grid.dim, -2))
        return f.unflatten(-1, pairs).mean(over).flatten(-self.grid.dim)

    def interpolate(self, f: Tensor) -> Tensor:
        """By cubics along each axis."""
        f = f.unflatten(-1, [n // 2 for n in self.grid.shape])
        for axis, (n, wraps) in enumerate(zip(self.grid.shape, self.grid.periodic, strict=True)):
            f = (f.movedim(axis - self.grid.dim, -1) @ _cubic(n, wraps).to(f)).movedim(-1, axis - self.grid.dim)
        return f.flatten(-self.grid.dim)


@lru_cache(maxsize=32)
def _cubic(n: int, periodic: bool) -> Tensor:
    """(n/2, n): Lagrange's cubic through the four nearest of n/2 centres, at n centres."""
    coarse = n // 2
    at = (torch.arange(n, dtype=torch.float64) - 0.5) / 2
    first = at.floor().long() - 1
    first = first if periodic else first.clamp(0, coarse - 4)
    t, matrix = at - first, torch.zeros(coarse, n, dtype=torch.float64)
    for j in range(4):
        weight = math.prod((t - k) / (j - k) for k in range(4) if k != j)
        matrix[(first + j) % coarse, torch.arange(n)] += weight
    return matrix
