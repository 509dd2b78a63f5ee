"""Elliptic equations on a Grid with coefficients that vary: conjugate gradients with a multigrid V-cycle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..measures.transport import Axis

Operator = Callable[[Tensor], Tensor]

DAMPING = 0.7  # of the Jacobi sweeps


@dataclass(frozen=True, eq=False)
class Elliptic:
    """w + Σ_a D_aᵀ k_a D_a on cells (batch, *shape), with w ≥ 0 and coefficients k_a ≥ 0 of the faces above cells.

    Face coefficients have the shape of the cells and are 0 on walls.
    """

    mass: Tensor
    faces: tuple[Tensor, ...]
    axes: tuple[Axis, ...]

    def __call__(self, f: Tensor) -> Tensor:
        total = self.mass * f
        for k, axis in zip(self.faces, self.axes, strict=True):
            total = total + spring(f, k, axis)
        return total

    @property
    def diagonal(self) -> Tensor:
        return self.mass + sum(k + k.roll(1, axis.dim) for k, axis in zip(self.faces, self.axes, strict=True))

    def coarse(self) -> Elliptic:
        """Pairs of cells along each axis put together; the faces between them are twice as long and half as stiff."""
        mass, faces = self.mass, list(self.faces)
        for a, axis in enumerate(self.axes):
            if axis.n == 1:
                continue
            mass = _pairs(mass, axis)
            for b, k in enumerate(faces):
                faces[b] = _pairs(k, axis) if a != b else _between(k, axis)
        return Elliptic(mass, tuple(faces), tuple(Axis(x.dim, (x.n + 1) // 2, 2 * x.h, x.periodic) for x in self.axes))


@dataclass(frozen=True, eq=False)
class Multigrid:
    """The V-cycle with piecewise constant transfer and damped Jacobi sweeps: a symmetric approximate inverse."""

    levels: tuple[tuple[Elliptic, Tensor], ...]
    sweeps: int = 2

    @classmethod
    def of(cls, operator: Elliptic) -> Multigrid:
        levels = []
        while True:
            levels.append((operator, DAMPING / operator.diagonal.clamp_min(torch.finfo(operator.mass.dtype).tiny)))
            if all(axis.n == 1 for axis in operator.axes):
                return cls(tuple(levels))
            operator = operator.coarse()

    def __call__(self, f: Tensor, level: int = 0) -> Tensor:
        operator, relax = self.levels[level]
        if level == len(self.levels) - 1:
            return f * relax / DAMPING
        u = relax * f
        for _ in range(self.sweeps - 1):
            u = u + relax * (f - operator(u))
        u = u + self._correction(f - operator(u), level)
        for _ in range(self.sweeps):
            u = u + relax * (f - operator(u))
        return u

    def _correction(self, rest: Tensor, level: int) -> Tensor:
        lines = [axis for axis in self.levels[level][0].axes if axis.n > 1]
        for axis in lines:
            rest = _pairs(rest, axis)
        rest = self(rest, level + 1)
        for axis in lines:
            rest = rest.repeat_interleave(2, axis.dim).narrow(axis.dim, 0, axis.n)
        return rest


def solve(operator: Operator, inverse: Operator, f: Tensor, tol: float, max_iter: int) -> Tensor:
    """u with operator(u) = f by conjugate gradients, preconditioned with `inverse`, item by item of (batch, *shape).

    Stops when the residual has fallen by `tol` in the norm of the preconditioner.
    """
    u, r = torch.zeros_like(f), f
    p = z = inverse(r)
    size = _dot(r, z)
    target = tol**2 * size
    for _ in range(max_iter):
        image = operator(p)
        curve = _dot(p, image)
        going = (size > target) & (curve > 0)
        if not bool(going.any()):
            break
        step = torch.where(going, size / curve, 0)
        u, r = u + step * p, r - step * image
        z = inverse(r)
        size, before = torch.where(going, _dot(r, z), size), size
        p = z + torch.where(going, size / before, 0) * p
    return u


def spring(f: Tensor, k: Tensor, axis: Axis) -> Tensor:
    """Dᵀ k D f with D the difference across the faces above cells; k is 0 on walls."""
    flux = k * (f.roll(-1, axis.dim) - f)
    return flux.roll(1, axis.dim) - flux


def _dot(a: Tensor, b: Tensor) -> Tensor:
    total = (a * b).flatten(1).sum(-1)
    return total.reshape(-1, *(1,) * (a.ndim - 1))


def _pairs(f: Tensor, axis: Axis) -> Tensor:
    """Sums over pairs of cells along an axis; the last of an odd number stays alone."""
    if axis.n % 2:
        f = torch.cat([f, torch.zeros_like(f.narrow(axis.dim, 0, 1))], axis.dim)
    return f.unflatten(axis.dim, (-1, 2)).sum(axis.dim)


def _between(k: Tensor, axis: Axis) -> Tensor:
    """Coefficients of the faces between pairs, along the axis itself."""
    if axis.n == 2:
        return torch.zeros_like(k.narrow(axis.dim, 0, 1))
    if axis.n % 2:
        k = torch.cat([k, k.narrow(axis.dim, axis.n - 1, 1)], axis.dim)
    return k.unflatten(axis.dim, (-1, 2)).select(axis.dim, 1) / 2
