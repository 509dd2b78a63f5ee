"""Orthonormal coordinates of fields on a lattice in which maps are separable: Fourier modes, and sums over blocks."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ..lattice import Lattice


class Frame(ABC):
    """y = Uz with orthonormal rows; coordinates of one group share their function."""

    @abstractmethod
    def groups(self, like: Tensor) -> Tensor:
        """Group of each coordinate, (m,), from 0 on."""

    @abstractmethod
    def take(self, z: Tensor) -> Tensor:
        """Uz, (*batch, n, m), of fields (*batch, n, N)."""

    @abstractmethod
    def give(self, y: Tensor) -> Tensor:
        """Uᵀy, (*batch, n, N)."""


@dataclass(frozen=True)
class ModePairs(Frame):
    """The modes of the lattice, ±k in one group: maps affine in them are translation invariant but for a shift."""

    lattice: Lattice

    def groups(self, like: Tensor) -> Tensor:
        index = torch.arange(self.lattice.sites, device=like.device)
        lower = torch.minimum(index, self.lattice.reflect(index))
        return torch.unique(lower, return_inverse=True)[1]

    def take(self, z: Tensor) -> Tensor:
        return self.lattice.to_modes(z)

    def give(self, y: Tensor) -> Tensor:
        return self.lattice.from_modes(y)


@dataclass(frozen=True)
class BlockSums(Frame):
    """Sums over blocks of `size` sites a side, over size^{d/2}, of the field shifted by `shift`; one group.

    size 1 are the sites themselves. On axes shorter than `size` a block is the whole axis.
    """

    lattice: Lattice
    size: int
    shift: tuple[int, ...]

    @property
    def sides(self) -> tuple[int, ...]:
        """Sites of a block along each axis."""
        return tuple(min(self.size, n) for n in self.lattice.shape)

    def groups(self, like: Tensor) -> Tensor:
        blocks = [n // b for n, b in zip(self.lattice.shape, self.sides, strict=True)]
        return torch.zeros(torch.Size(blocks).numel(), dtype=torch.int64, device=like.device)

    def take(self, z: Tensor) -> Tensor:
        field = z.unflatten(-1, self.lattice.shape).roll(self.shift, self._axes)
        for axis, b in zip(self._axes, self.sides, strict=True):
            field = field.unflatten(axis, (-1, b)).sum(axis) / b**0.5
        return field.flatten(-self.lattice.dim)

    def give(self, y: Tensor) -> Tensor:
        field = y.unflatten(-1, [n // b for n, b in zip(self.lattice.shape, self.sides, strict=True)])
        for axis, b in zip(self._axes, self.sides, strict=True):
            field = field.repeat_interleave(b, axis) / b**0.5
        return field.roll([-s for s in self.shift], self._axes).flatten(-self.lattice.dim)

    @property
    def _axes(self) -> tuple[int, ...]:
        return tuple(range(-self.lattice.dim, 0))


def shifted_blocks(lattice: Lattice, size: int) -> list[BlockSums]:
    """Blocks of a size at the shifts by half a block along each axis: 2^d of them, fewer where the axis is a block."""
    for n in lattice.shape:
        if not 1 <= size <= max(lattice.shape) or n % min(size, n):
            raise ValueError(f"blocks of {size} sites a side do not tile the lattice {lattice.shape}")
    half = [(0,) if size == 1 or size >= n else (0, size // 2) for n in lattice.shape]
    return [BlockSums(lattice, size, shift) for shift in itertools.product(*half)]
