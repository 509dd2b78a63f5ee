"""Sums of any kernel over all pairs, on any domain: blocks of rows of its matrix, differentiated forward."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import jvp

from ..domains import Domain
from ..kernels import Kernel, Stationary
from .tiles import by_rows, rows_of

Matrix = Callable[[Tensor, Tensor], Tensor]  # x (*batch, m, d), y (*batch, n, d) -> (*batch, m, n)


def matrix(k: Kernel, domain: Domain) -> Matrix:
    """k(x_i, y_j), through the shortest displacements of the domain."""
    if domain.straight:
        return k
    if not isinstance(k, Stationary):
        raise TypeError(f"{k} is not a function of the difference of two points, so it does not live on {domain}")
    return lambda x, y: k.profile(domain.displacement(x[..., :, None, :], y[..., None, :, :]))


def value_sum(k: Kernel, x: Tensor, y: Tensor, c: Tensor, domain: Domain) -> Tensor:
    """Σ_j k(x_i, y_j) c_j for c (*batch, n, p)."""
    values = matrix(k, domain)
    return _rows(lambda x, y, c: values(x, y) @ c, x, y, c)


def slope_sum(k: Kernel, x: Tensor, y: Tensor, b: Tensor, domain: Domain, argument: int) -> Tensor:
    """Σ_j b_j ∇₁k(x_i, y_j), or ∇₂k for argument 2; b (*batch, n, 1)."""
    values = matrix(k, domain)

    def slope(x: Tensor, y: Tensor, axis: int) -> Tensor:
        if argument == 1:
            return _along(lambda z: values(z, y), x, axis)
        return _along(lambda z: values(x, z), y, axis)

    def tile(x: Tensor, y: Tensor, b: Tensor) -> Tensor:
        return torch.cat([slope(x, y, axis) @ b for axis in range(x.shape[-1])], -1)

    return _rows(tile, x, y, b)


def trace_sum(k: Kernel, x: Tensor, y: Tensor, b: Tensor, domain: Domain) -> Tensor:
    """Σ_j b_j tr ∇₁∇₂k(x_i, y_j), (*batch, m, 1)."""
    values = matrix(k, domain)

    def mixed(x: Tensor, y: Tensor, axis: int) -> Tensor:
        return _along(lambda p: _along(lambda q: values(p, q), y, axis), x, axis)

    def tile(x: Tensor, y: Tensor, b: Tensor) -> Tensor:
        return torch.stack([mixed(x, y, axis) for axis in range(x.shape[-1])]).sum(0) @ b

    return _rows(tile, x, y, b)


def _along(f: Callable[[Tensor], Tensor], x: Tensor, axis: int) -> Tensor:
    """The derivative of f as all points of x move along one axis."""
    direction = torch.zeros_like(x)
    direction[..., axis] = 1
    return jvp(f, (x,), (direction,))[1]


def _rows(tile: Callable[..., Tensor], x: Tensor, y: Tensor, c: Tensor) -> Tensor:
    return by_rows(tile, rows_of(x, y, x.shape[-1]), -2, x, y, c)
