"""Finite volumes on a Grid: upwind fluxes with a limited reconstruction, conservative updates, the stable step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Field, Flux, Tangent, Velocity
from .grid import Grid


@dataclass(frozen=True)
class Axis:
    """One axis of arrays (*batch, *shape): cells, and faces that are the upper ones of their cells (no wall faces)."""

    dim: int  # counted from the end
    n: int
    h: float
    periodic: bool

    def below(self, cells: Tensor) -> Tensor:
        """Value of the cell under each face."""
        return cells if self.periodic else cells.narrow(self.dim, 0, self.n - 1)

    def above(self, cells: Tensor) -> Tensor:
        """Value of the cell over each face."""
        return cells.roll(-1, self.dim) if self.periodic else cells.narrow(self.dim, 1, self.n - 1)

    def upper(self, faces: Tensor, wall: float = 0.0) -> Tensor:
        """Value at the upper face of each cell, `wall` at walls."""
        return faces if self.periodic else torch.cat([faces, self._wall(faces, wall)], self.dim)

    def lower(self, faces: Tensor, wall: float = 0.0) -> Tensor:
        """Value at the lower face of each cell, `wall` at walls."""
        return faces.roll(1, self.dim) if self.periodic else torch.cat([self._wall(faces, wall), faces], self.dim)

    def _wall(self, faces: Tensor, value: float) -> Tensor:
        shape = list(faces.shape)
        shape[self.dim] = 1
        return faces.new_full(shape, value)

    def jump(self, cells: Tensor) -> Tensor:
        """Difference across each face."""
        return self.above(cells) - self.below(cells)

    def divergence(self, faces: Tensor) -> Tensor:
        return (self.upper(faces) - self.lower(faces)) / self.h

    def second_difference(self, cells: Tensor) -> Tensor:
        return self.divergence(self.jump(cells)) * self.h

    def slope(self, cells: Tensor) -> Tensor:
        """Derivative at cells: central, second order also next to a wall."""
        if self.n == 1:
            return torch.zeros_like(cells)
        if not self.periodic:
            return torch.gradient(cells, spacing=self.h, dim=self.dim, edge_order=min(2, self.n - 1))[0]
        return (cells.roll(-1, self.dim) - cells.roll(1, self.dim)) / (2 * self.h)

    def limited(self, cells: Tensor) -> Tensor:
        """Increment over a cell, by the monotonised central limiter (van Leer 1977): at most twice either jump, and 0
        at extrema and walls, so that a linear profile with it stays between the neighbours."""
        jump = self.jump(cells)
        up, down = self.upper(jump), self.lower(jump)
        size = torch.minimum(2 * torch.minimum(up.abs(), down.abs()), (up + down).abs() / 2)
        return torch.where(up * down > 0, size * up.sign(), 0.0)


def axes(grid: Grid) -> tuple[Axis, ...]:
    """The axes of a grid."""
    lines = zip(grid.shape, grid.spacing, grid.periodic, strict=True)
    return tuple(Axis(a - grid.dim, n, h, periodic) for a, (n, h, periodic) in enumerate(lines))


@dataclass(frozen=True, eq=False)
class Rates:
    """What moves a density: fluxes through the faces normal to each axis, and what bounds the step, (*batch, *shape).

    `outflow` bounds the fraction of each cell that leaves it in unit time; `diffusion` is half the largest eigenvalue
    of the linearised diffusive part of the scheme.
    """

    fluxes: tuple[Tensor, ...]
    outflow: Tensor
    diffusion: Tensor

    def __add__(self, other: Rates) -> Rates:
        fluxes = tuple(f + g for f, g in zip(self.fluxes, other.fluxes, strict=True))
        return Rates(fluxes, self.outflow + other.outflow, self.diffusion + other.diffusion)

    def stable_step(self, dim: int) -> Tensor:
        """Largest tau for which no cell is emptied and the linearised scheme does not grow, (*batch,)."""
        over = tuple(range(-dim, 0))
        return 1 / torch.maximum(self.outflow.amax(over), self.diffusion.amax(over))


def rates(values: Tensor, grid: Grid, tangent: Tangent) -> Rates:
    """Fluxes and step bounds of a density along a tangent."""
    total: Rates | None = None
    for part in tangent._parts():
        if isinstance(part, Velocity):
            new = _along_velocity(values, grid, part)
        elif isinstance(part, Flux):
            new = _along_flux(values, grid, part)
        else:
            raise TypeError(f"a Density moves along a Velocity or a Flux, which keep mass, not a {type(part).__name__}")
        total = new if total is None else total + new
    if total is None:
        raise ValueError("a sum of no tangents moves nothing")
    return total


def update(values: Tensor, grid: Grid, fluxes: tuple[Tensor, ...], tau: float) -> Tensor:
    """ρ − tau·div J. What rounding leaves below 0 in cells that are emptied is cut."""
    change = sum((axis.divergence(J) for axis, J in zip(axes(grid), fluxes, strict=True)), torch.zeros_like(values))
    return (values - tau * change).clamp_min(0)


def _along_velocity(values: Tensor, grid: Grid, tangent: Velocity) -> Rates:
    """Second-order upwind fluxes (Carrillo, Chertock, Huang 2015, eqs. 2.3–2.8) with a step bound.

    Each cell is the mean of its two face values along every axis, so it stays non-negative for
    tau·Σ_a 2·max(v⁺ at the upper face, v⁻ at the lower face)/h_a ≤ 1, which also makes the update a mean of neighbours.
    """
    velocities = face_velocities(values, grid, tangent)
    D, mobility = _diffusivity(values, grid, tangent), _diagonal_mobility(values, grid, tangent)
    fluxes, outflow, diffusion = [], torch.zeros_like(values), torch.zeros_like(values)
    for axis, v, q in zip(axes(grid), velocities, mobility, strict=True):
        half = axis.limited(values) / 2
        right, left = axis.below((values + half).clamp_min(0)), axis.above((values - half).clamp_min(0))
        fluxes.append(v.clamp_min(0) * right + v.clamp_max(0) * left)
        leaving = torch.maximum(axis.upper(v.expand_as(right)), -axis.lower(v.expand_as(right))).clamp_min(0)
        outflow = outflow + 2 * leaving / axis.h
        diffusion = diffusion + q / axis.h**2 * _spreading(values, D, axis, torch.where(v > 0, right, left))
    return Rates(tuple(fluxes), torch.where(values > 0, outflow, 0.0), diffusion)


def _spreading(values: Tensor, D: Tensor, axis: Axis, face: Tensor) -> Tensor:
    """Diffusion coefficients of a cell's two faces together, at least 2D: a mean needs tau·Σ_a(·)/h_a² ≤ 1.

    Across a face the flux is `face`·Δφ/h = k·Δρ/h with k = face·L(D)/L(ρ), L the logarithmic mean over its two cells:
    L(D)·Δlog ρ is Δφ, exactly when D is a power of ρ. k is D where ρ is smooth, and larger at kinks.
    """
    tiny = torch.finfo(values.dtype).tiny
    means = (log_mean(axis.below(f).clamp_min(tiny), axis.above(f).clamp_min(tiny)) for f in (D, values))
    k = face * next(means) / next(means)
    return torch.maximum(2 * D, axis.upper(k) + axis.lower(k))


def log_mean(a: Tensor, b: Tensor) -> Tensor:
    """(b − a)/(log b − log a), between the two positive numbers."""
    ratio = (b / a).log()
    near = ratio.abs() < 1e-3
    return torch.where(near, (a + b) / 2, (b - a) / torch.where(near, 1, ratio))


def _diffusivity(values: Tensor, grid: Grid, tangent: Velocity) -> Tensor:
    """|dφ/dlog ρ| on the cells."""
    if tangent.diffusivity is None:
        return torch.zeros_like(values)
    D = tangent.diffusivity()
    return (D.reshape(*D.shape[:-1], *grid.shape) if D.ndim else D).abs().expand_as(values)


def _diagonal_mobility(values: Tensor, grid: Grid, tangent: Velocity) -> list[Tensor]:
    """κ·Q_aa by axis: what explicit diffusion with Q needs in place of 1.

    The symbol of −div(Q∇) here is Σ_a Q_aa·4s_a²/h_a² + Σ_{a≠b} Q_ab·4s_a c_a s_b c_b/(h_a h_b), s and c the sine and
    cosine of half the phases. As |Q_ab|² ≤ Q_aa·Q_bb, it is at most 4κ·Σ_a Q_aa/h_a², with κ = 1 for d ≤ 2 or a
    diagonal Q, and κ = 9/8 for d = 3.
    """
    Q = tangent.mobility
    if Q is None:
        return [values.new_ones(())] * grid.dim
    oblique = grid.dim == 3 and not torch.equal(torch.diag_embed(Q.diagonal(dim1=-2, dim2=-1)), Q)
    return [(9 / 8 if oblique else 1.0) * _entry(Q, a, a, grid.dim) for a in range(grid.dim)]


def face_velocities(values: Tensor, grid: Grid, tangent: Velocity) -> tuple[Tensor, ...]:
    """Normal velocity on the faces of each axis: as given, from the potential by differences across them, or from the
    field."""
    if tangent.faces is not None:
        given = tangent.faces()
        for v in given:
            _finite(v, "the velocity on the faces of the grid is NaN or infinite")
        return given
    if tangent.potential is None:
        batch = values.shape[: values.ndim - grid.dim]
        return tuple(_field_on_faces(tangent.field, grid, a, values, batch) for a in range(grid.dim))
    phi = tangent.potential()
    phi = phi.reshape(*phi.shape[:-1], *grid.shape)
    lines, Q = axes(grid), tangent.mobility
    if Q is None:
        found = [-axis.jump(phi) / axis.h for axis in lines]
    else:
        found = [-_oblique(phi, lines, a, Q) for a in range(grid.dim)]
    for v in found:
        _finite(v, "the first variation differs by NaN or infinity between neighbouring cells")
    return tuple(found)


def _oblique(phi: Tensor, lines: tuple[Axis, ...], a: int, Q: Tensor) -> Tensor:
    """(Q∇φ)_a on the faces of axis a; derivatives along the other axes are averages over the two cells."""
    axis = lines[a]
    total = _entry(Q, a, a, len(lines)) * axis.jump(phi) / axis.h
    for b, other in enumerate(lines):
        if b != a and Q[..., a, b].any():
            transverse = other.slope(phi)
            total = total + _entry(Q, a, b, len(lines)) * (axis.below(transverse) + axis.above(transverse)) / 2
    return total


def _entry(Q: Tensor, a: int, b: int, dim: int) -> Tensor:
    entry = Q[..., a, b]
    return entry.reshape(*entry.shape, *(1,) * dim)


def _field_on_faces(field: Field, grid: Grid, a: int, like: Tensor, batch: torch.Size) -> Tensor:
    x = grid.faces(a, like)
    x = x.expand(*batch, *x.shape)
    v = field(x)
    if v.shape != x.shape:
        raise ValueError(f"a velocity field must map points {tuple(x.shape)} to the same shape, not {tuple(v.shape)}")
    _finite(v, "the velocity field is NaN or infinite on faces of the grid")
    shape = list(grid.shape)
    shape[a] -= not grid.periodic[a]
    return v[..., a].reshape(*batch, *shape)


def _along_flux(values: Tensor, grid: Grid, tangent: Flux) -> Rates:
    if len(tangent.faces) != grid.dim:
        raise ValueError(f"a Flux has one array of faces an axis: {grid.dim}, not {len(tangent.faces)}")
    outflow = torch.zeros_like(values)
    for a, (axis, J) in enumerate(zip(axes(grid), tangent.faces, strict=True)):
        expected = axis.below(values).shape
        if J.shape != expected:
            raise ValueError(
                f"faces[{a}] has shape {tuple(J.shape)}; faces normal to axis {a} are {tuple(expected)}: the upper "
                "face of each cell, without those on walls"
            )
        _finite(J, f"faces[{a}] of the Flux holds NaN or infinity")
        outflow = outflow + (axis.upper(J).clamp_min(0) + axis.lower(J).clamp_max(0).neg()) / axis.h
    return Rates(tangent.faces, torch.where(outflow > 0, outflow / values, 0.0), torch.zeros_like(values))


def _finite(tensor: Tensor, message: str) -> None:
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{message}, in {int((~torch.isfinite(tensor)).sum())} places")
