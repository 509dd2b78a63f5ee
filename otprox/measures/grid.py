"""Regular cell-centred grids in one, two and three dimensions, with walls or periodic on each axis."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from ..domains import Domain, Euclidean, Torus


@dataclass(frozen=True)
class Grid(Domain):
    """The box [lower, upper] cut into shape[0] × … × shape[d − 1] equal cells, d = 1, 2 or 3.

    Each argument is a number for every axis, or a tuple with one an axis. Nothing crosses the walls of an axis that is
    not periodic (no flux). Arrays over the grid are (*batch, *shape), or flat over cells, (*batch, n), in row-major
    order. As a domain of points it wraps periodic axes and reflects at walls.

    >>> grid = Grid((-1, 0), (1, 4), (10, 20), periodic=(False, True))
    >>> grid.dim, grid.n, grid.spacing
    (2, 200, (0.2, 0.2))
    """

    lower: tuple[float, ...]
    upper: tuple[float, ...]
    shape: tuple[int, ...]
    periodic: tuple[bool, ...]

    def __init__(self, lower: Any, upper: Any, shape: Any, periodic: Any = False) -> None:
        named = {"lower": lower, "upper": upper, "shape": shape, "periodic": periodic}
        lengths = {name: len(tuple(value)) for name, value in named.items() if _is_sequence(value)}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"lower, upper, shape and periodic must agree on the number of axes; they have {lengths}")
        dim = next(iter(lengths.values()), 1)
        if not 1 <= dim <= 3:
            raise ValueError(f"a Grid has 1, 2 or 3 axes, not {dim}; in more dimensions use Particles or Gaussian")
        for name, convert in (("lower", float), ("upper", float), ("shape", _count), ("periodic", bool)):
            value = named[name]
            axes = tuple(value) if _is_sequence(value) else (value,) * dim
            object.__setattr__(self, name, tuple(convert(entry) for entry in axes))
        for a, (low, high) in enumerate(zip(self.lower, self.upper, strict=True)):
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(f"lower must be below upper, both finite, on every axis; axis {a} has [{low}, {high}]")

    @property
    def dim(self) -> int:
        """Number of axes d."""
        return len(self.shape)

    @property
    def n(self) -> int:
        """Number of cells."""
        return math.prod(self.shape)

    @property
    def period(self) -> tuple[float, ...]:
        """upper − lower."""
        return tuple(high - low for low, high in zip(self.lower, self.upper, strict=True))

    @property
    def spacing(self) -> tuple[float, ...]:
        """Width h of a cell along each axis."""
        return tuple(length / n for length, n in zip(self.period, self.shape, strict=True))

    @property
    def volume(self) -> float:
        """Volume of one cell."""
        return math.prod(self.spacing)

    @property
    def domain(self) -> Domain:
        """Where samples of a density on the grid live: R^d when no axis is periodic, a Torus when all are."""
        if not any(self.periodic):
            return Euclidean()
        return Torus(self.period) if all(self.periodic) else self

    def edges(self, like: Tensor) -> tuple[Tensor, ...]:
        """The shape[a] + 1 edges along each axis, in the dtype and device of `like`."""
        lines = zip(self.lower, self.upper, self.shape, strict=True)
        return tuple(torch.linspace(low, high, n + 1, dtype=like.dtype, device=like.device) for low, high, n in lines)

    def centers(self, like: Tensor) -> tuple[Tensor, ...]:
        """The shape[a] cell centres along each axis, in the dtype and device of `like`."""
        return tuple((edge[1:] + edge[:-1]) / 2 for edge in self.edges(like))

    def points(self, like: Tensor) -> Tensor:
        """Cell centres (n, d), row-major, in the dtype and device of `like`."""
        return _mesh(self.centers(like))

    def faces(self, axis: int, like: Tensor) -> Tensor:
        """Centres (m, d) of the faces normal to an axis, row-major: face i is the upper one of cell i.

        An axis with walls has shape[axis] − 1 of them a line, since no face on a wall is counted; a periodic one has
        shape[axis], and its last face joins the last cell to the first.
        """
        lines = list(self.centers(like))
        upper = self.edges(like)[axis][1:]
        lines[axis] = upper if self.periodic[axis] else upper[:-1]
        return _mesh(lines)

    def cells(self, x: Tensor) -> Tensor:
        """Flat index of the cell that holds each point (…, d) -> (…); beyond a wall, that of the nearest cell."""
        low, h = x.new_tensor(self.lower), x.new_tensor(self.spacing)
        index = ((x - low) / h).floor().long()
        flat = torch.zeros_like(index[..., 0])
        for a, n in enumerate(self.shape):
            along = index[..., a] % n if self.periodic[a] else index[..., a].clamp(0, n - 1)
            flat = flat * n + along
        return flat

    def inside(self, x: Tensor) -> Tensor:
        """Whether points (…, d) are within the walls, (…)."""
        low, high = x.new_tensor(self.lower), x.new_tensor(self.upper)
        free = torch.tensor(self.periodic, device=x.device)
        return (free | ((x >= low) & (x <= high))).all(-1)

    def wrap(self, x: Tensor) -> Tensor:
        low, period = x.new_tensor(self.lower), x.new_tensor(self.period)
        free = torch.tensor(self.periodic, device=x.device)
        folded = torch.remainder(x - low, torch.where(free, period, 2 * period))
        return low + torch.where(free, folded, period - (folded - period).abs())

    def displacement(self, x: Tensor, y: Tensor) -> Tensor:
        z = x - y
        period = z.new_tensor(self.period)
        return z - torch.where(torch.tensor(self.periodic, device=z.device), period * torch.round(z / period), 0.0)

    def nodes(self, order: int, like: Tensor) -> list[tuple[Tensor, float]]:
        """Gauss–Legendre in a cell, `order` nodes an axis: offsets (d,) from the centre, and weights that sum to 1."""
        z, w = _gauss_legendre(order)
        h = like.new_tensor(self.spacing)
        pairs = product(zip(z, w, strict=True), repeat=self.dim)
        return [(h * like.new_tensor([z for z, _ in node]) / 2, math.prod(w for _, w in node)) for node in pairs]


def _gauss_legendre(order: int) -> tuple[list[float], list[float]]:
    k = torch.arange(1, order, dtype=torch.float64)
    beta = k / (4 * k.square() - 1).sqrt()  # Golub–Welsch: the eigenvalues of the Jacobi matrix are the nodes
    z, vectors = torch.linalg.eigh(torch.diag(beta, 1) + torch.diag(beta, -1))
    return z.tolist(), vectors[0].square().tolist()


def _mesh(lines: Iterable[Tensor]) -> Tensor:
    return torch.stack(torch.meshgrid(*lines, indexing="ij"), -1).flatten(0, -2)


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Iterable) and getattr(value, "ndim", 1) > 0


def _count(value: Any) -> int:
    if int(value) != value or value < 1:
        raise ValueError(f"shape needs at least one cell along every axis, a whole number; got {value}")
    return int(value)
