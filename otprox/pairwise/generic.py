"""Sums of any kernel over all pairs, on any domain: blocks of rows of its matrix, differentiated forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jvp

from ..domains import Domain
from ..kernels import Kernel, Stationary
from .sums import Sums
from .tiles import by_rows, rows_of


@dataclass(frozen=True, eq=False)
class GenericSums(Sums):
    """Any kernel on any domain, by its matrix in blocks of rows."""

    k: Kernel
    x: Tensor
    y: Tensor
    domain: Domain

    @property
    def how(self) -> str:
        return "matrix: of the kernel in blocks of rows, O(m·n)"

    def values(self, c: Tensor) -> Tensor:
        return self._rows(lambda x, y, c: self.matrix(x, y) @ c, c)

    def slopes(self, b: Tensor) -> Tensor:
        return self._rows(lambda x, y, b: torch.cat([self._slope(x, y, a) @ b for a in range(x.shape[-1])], -1), b)

    def source_slopes(self, b: Tensor) -> Tensor:
        def slope(x: Tensor, y: Tensor, axis: int) -> Tensor:
            return _along(lambda z: self.matrix(x, z), y, axis)

        return self._rows(lambda x, y, b: torch.cat([slope(x, y, a) @ b for a in range(x.shape[-1])], -1), b)

    def divergences(self, v: Tensor) -> Tensor:
        def tile(x: Tensor, y: Tensor, v: Tensor) -> Tensor:
            return torch.stack([self._slope(x, y, a) @ v[..., a : a + 1] for a in range(x.shape[-1])]).sum(0)

        return self._rows(tile, v)

    def traces(self, b: Tensor) -> Tensor:
        def mixed(x: Tensor, y: Tensor, axis: int) -> Tensor:
            return _along(lambda z: self._slope(x, z, axis), y, axis)

        return self._rows(lambda x, y, b: torch.stack([mixed(x, y, a) for a in range(x.shape[-1])]).sum(0) @ b, b)

    def matrix(self, x: Tensor, y: Tensor) -> Tensor:
        """k(x_i, y_j), (*batch, m, n), through the shortest displacements of the domain."""
        if self.domain.straight:
            return self.k(x, y)
        if not isinstance(self.k, Stationary):
            raise TypeError(
                f"{self.k} is not a function of the difference of two points, so it does not live on {self.domain}"
            )
        return self.k.profile(self.domain.displacement(x[..., :, None, :], y[..., None, :, :]))

    def _slope(self, x: Tensor, y: Tensor, axis: int) -> Tensor:
        return _along(lambda z: self.matrix(z, y), x, axis)

    def _rows(self, tile: Callable[..., Tensor], c: Tensor) -> Tensor:
        return by_rows(tile, rows_of(self.x, self.y, self.x.shape[-1]), -2, self.x, self.y, c)


def _along(f: Callable[[Tensor], Tensor], x: Tensor, axis: int) -> Tensor:
    """The derivative of f as all points of x move along one axis."""
    direction = torch.zeros_like(x)
    direction[..., axis] = 1
    return jvp(f, (x,), (direction,))[1]
