"""Moving cell masses on a Grid by maps, conservative and positive; interpolation; passing from one grid to another."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from .grid import Grid
from .transport import axes

Map = Callable[[Tensor], Tensor]

LAPS = 16  # times that a monotone map may wind round a periodic axis before it is treated as any other
FINEST = {1: 32, 2: 12, 3: 6}  # most sub-points of a cell along each axis, by dimension


def push(masses: Tensor, grid: Grid, T: Map) -> Tensor:
    """Masses (*batch, *shape) of T#μ. Monotone maps of the line by `remap`, all others by `deposit`."""
    if grid.dim > 1:
        return deposit(masses, grid, T)
    edges = grid.edges(masses)[0][:, None]
    y = T(edges.expand(*masses.shape[:-1], *edges.shape))[..., 0]
    falling = y[..., -1:] < y[..., :1]
    rising = torch.where(falling, y.flip(-1), y)
    monotone = (rising.diff(dim=-1) >= 0).all(-1, keepdim=True)
    if grid.periodic[0]:
        monotone = monotone & (rising[..., -1:] - rising[..., :1] <= LAPS * grid.period[0])
    ordered = torch.where(falling, masses.flip(-1), masses)
    exact = remap(ordered, torch.where(monotone, rising, edges[:, 0]), grid)
    return exact if monotone.all() else torch.where(monotone, exact, deposit(masses, grid, T))


def remap(masses: Tensor, y: Tensor, grid: Grid) -> Tensor:
    """Masses (*batch, n) carried to the intervals [y_i, y_{i+1}], y (*batch, n + 1) non-decreasing, binned on the grid.

    The density in an interval is linear with a limited slope. Its overlaps with cells are integrated exactly, without
    differences of a cumulative sum, so the tails keep their relative accuracy.
    """
    h, low, n, L = grid.spacing[0], grid.lower[0], grid.shape[0], grid.period[0]
    laps = 1
    if grid.periodic[0]:
        y = y - L * ((y[..., :1] - low) / L).floor()
        laps = 1 + int(((y[..., -1] - low) / L).floor().max())
    lattice = low + h * torch.arange(laps * n + 1, dtype=y.dtype, device=y.device)
    breaks = torch.cat([y, lattice.expand(*y.shape[:-1], -1)], -1).sort(-1).values
    middle = (breaks[..., 1:] + breaks[..., :-1]) / 2
    place = ((middle - low) / h).floor().long()
    source = torch.searchsorted(y.contiguous(), middle, right=True) - 1
    within = (source >= 0) & (source < n)
    source = source.clamp(0, n - 1)
    start, width = y.gather(-1, source), y.diff(dim=-1).gather(-1, source).clamp_min(torch.finfo(y.dtype).tiny)
    a, b = ((breaks[..., :-1] - start) / width).clamp(0, 1), ((breaks[..., 1:] - start) / width).clamp(0, 1)
    tilt = _tilt(masses, y, grid).gather(-1, source)
    share = torch.where(within, (b - a) * (1 + tilt / 2 * (a + b - 1)), 0)
    total = torch.zeros_like(masses).scatter_add(-1, source, share)  # 1 but for rounding, 0 where T collapses a cell
    share = share * (masses / torch.where(total > 0, total, 1)).gather(-1, source)
    collapsed = torch.where(total > 0, 0, masses)
    place = torch.cat([place, ((y[..., :-1] - low) / h).floor().long()], -1)
    place = place % n if grid.periodic[0] else place.clamp(0, n - 1)
    return torch.zeros_like(masses).scatter_add(-1, place, torch.cat([share, collapsed], -1))


def _tilt(masses: Tensor, y: Tensor, grid: Grid) -> Tensor:
    """Increment of the density over each interval [y_i, y_{i+1}] over its mean: central, limited as `Axis.limited`."""
    axis, tiny = axes(grid)[0], torch.finfo(y.dtype).tiny
    width, gap = y.diff(dim=-1), axis.jump(y[..., 1:] + y[..., :-1]) / 2
    if grid.periodic[0]:
        gap = torch.cat([gap[..., :-1], gap[..., -1:] + y[..., -1:] - y[..., :1]], -1)
    density = masses / width.clamp_min(tiny)
    up, down = axis.upper(axis.jump(density)), axis.lower(axis.jump(density))
    central = (up + down) / (axis.upper(gap) + axis.lower(gap)).clamp_min(tiny) * width
    size = torch.minimum(2 * torch.minimum(up.abs(), down.abs()), central.abs())
    tilt = torch.where((up * down > 0) & (density > 0), size * up.sign() / density, 0)
    return tilt.nan_to_num(0).clamp(-2, 2)


def deposit(masses: Tensor, grid: Grid, T: Map) -> Tensor:
    """Masses of T#μ by splitting each cell into q^d points and spreading each image over 3^d cells.

    The spread is by quadratic splines (triangular-shaped clouds, Hockney and Eastwood 1988, ch. 5), which keep the mean
    and add h²/4 to the variance; splitting adds h²(1 − 1/q²)/12. Both are taken back (`sharpened`), so mean and
    covariance are exact for affine maps where neither walls nor the limiter act. q follows the stretching of T: images
    stay closer than half a cell.
    """
    fineness = _fineness(masses, grid, T)
    result = torch.zeros_like(masses)
    for q in fineness.unique().tolist():
        chosen = torch.where(fineness == q, masses, 0)
        split = sharpened(chosen, grid, (1 - q**-2) / 24) / q**grid.dim
        for offset in product([(k + 0.5) / q - 0.5 for k in range(q)], repeat=grid.dim):
            x = grid.points(masses) + masses.new_tensor(offset) * masses.new_tensor(grid.spacing)
            y = T(x.expand(*masses.shape[: -grid.dim], *x.shape))
            result = result + _spread(split, grid, y)
    return sharpened(result, grid, 1 / 8)


def sharpened(cells: Tensor, grid: Grid, c: float) -> Tensor:
    """cells − Σ_a δ_a²(g_a) with g_a = c·cells, which takes 2c·h² from the variance along each axis.

    g is limited, as in flux-corrected transport (Zalesak 1979), by what the neighbours can give without becoming
    negative. Mass and mean are kept whatever the limiter does.
    """
    lines = axes(grid)
    around = [(axis.upper(axis.above(cells)), axis.lower(axis.below(cells))) for axis in lines]
    demand = c * sum((above + below for above, below in around), torch.zeros_like(cells))
    room = torch.where(demand > cells, cells / demand, 1)
    result = cells
    for axis in lines:
        least = torch.minimum(axis.upper(axis.above(room), 1.0), axis.lower(axis.below(room), 1.0))
        result = result - axis.second_difference(c * cells * least)
    return result.clamp_min(0)


def _fineness(masses: Tensor, grid: Grid, T: Map) -> Tensor:
    """Sub-points along each axis, (*batch, 1, …): twice the largest stretch of T where there is mass."""
    x, batch = grid.points(masses), masses.shape[: -grid.dim]
    y = T(x.expand(*batch, *x.shape)).reshape(*masses.shape, grid.dim)
    over = tuple(range(-grid.dim, 0))
    heavy = masses > 1e-10 * masses.amax(over, keepdim=True)
    h = masses.new_tensor(grid.spacing)
    stretch = masses.new_ones(*batch, *(1,) * grid.dim)
    for axis in axes(grid):
        if axis.n == 1:
            continue
        dim = axis.dim - 1
        jumps = grid.displacement(y.narrow(dim, 1, axis.n - 1), y.narrow(dim, 0, axis.n - 1))
        pairs = heavy.narrow(axis.dim, 0, axis.n - 1) & heavy.narrow(axis.dim, 1, axis.n - 1)
        largest = torch.where(pairs, (jumps.abs() / h).amax(-1), 0).amax(over, keepdim=True)
        stretch = torch.maximum(stretch, largest)
    return (2 * stretch - 1e-6).ceil().clamp(2, FINEST[grid.dim]).long()


def _spread(masses: Tensor, grid: Grid, y: Tensor) -> Tensor:
    """Masses (*batch, *shape) at points y (*batch, n, d), spread over the 3^d nearest cells."""
    batch = masses.shape[: -grid.dim]
    stencils = []
    for a, n in enumerate(grid.shape):
        u = (y[..., a] - grid.lower[a]) / grid.spacing[a]
        if not grid.periodic[a]:
            u = u.clamp(0, n)
        cell = u.floor() if grid.periodic[a] else u.floor().clamp_max(n - 1)
        r = u - cell
        weights = ((1 - r).square() / 2, 0.5 + r * (1 - r), r.square() / 2)
        near = [cell.long() + k for k in (-1, 0, 1)]
        near = [i % n if grid.periodic[a] else i.clamp(0, n - 1) for i in near]
        stencils.append(list(zip(near, weights, strict=True)))
    flat, result = masses.flatten(-grid.dim), masses.new_zeros(*batch, grid.n)
    for corner in product(*stencils):
        place, weight = torch.zeros_like(corner[0][0]), flat
        for n, (index, w) in zip(grid.shape, corner, strict=True):
            place, weight = place * n + index, weight * w
        result = result.scatter_add(-1, place, weight)
    return result.reshape(masses.shape)


def interpolate(cells: Tensor, grid: Grid, x: Tensor) -> Tensor:
    """Multilinear interpolation of cells (*batch, *shape) at points x (*batch, m, d); constant past outer centres."""
    flat = cells.flatten(-grid.dim)
    batch = torch.broadcast_shapes(flat.shape[:-1], x.shape[:-2])
    flat = flat.expand(*batch, -1)
    ends = []
    for a, n in enumerate(grid.shape):
        u = (x[..., a] - grid.lower[a]) / grid.spacing[a] - 0.5
        if not grid.periodic[a]:
            u = u.clamp(0, n - 1)
        cell = u.detach().floor() if grid.periodic[a] else u.detach().floor().clamp(0, max(n - 2, 0))
        r, i = u - cell, cell.long()
        low, high = (i % n, (i + 1) % n) if grid.periodic[a] else (i, (i + 1).clamp_max(n - 1))
        ends.append(((low, 1 - r), (high, r)))
    result = torch.zeros((), dtype=cells.dtype, device=cells.device)
    for corner in product(*ends):
        place, weight = torch.zeros_like(corner[0][0]), torch.ones_like(corner[0][1])
        for n, (index, w) in zip(grid.shape, corner, strict=True):
            place, weight = place * n + index, weight * w
        result = result + weight * flat.gather(-1, place.expand(*batch, -1))
    return result


def regrid(masses: Tensor, old: Grid, new: Grid) -> Tensor:
    """Masses of a piecewise constant density on another grid, by exact overlaps; what lies outside is lost."""
    for a in range(old.dim):
        ends, edges = old.edges(masses)[a], new.edges(masses)[a]
        overlap = torch.minimum(ends[1:, None], edges[1:]) - torch.maximum(ends[:-1, None], edges[:-1])
        share = overlap.clamp_min(0) / old.spacing[a]
        masses = (masses.movedim(a - old.dim, -1) @ share).movedim(-1, a - old.dim)
    return masses
