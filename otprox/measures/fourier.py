"""Convolution of cell masses with a function of displacements, by FFT."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import pairwise
from ..kernels import Stationary
from .base import Field
from .grid import Grid


def convolve_cells(W: Field, masses: Tensor, grid: Grid) -> Tensor:
    """Σ_j W(x_i − x_j)·m_j at the cells, (*batch, n), or (*batch, n, d) for the Slope of a W; m is (*batch, *shape).

    Circular along periodic axes, padded with zeros along the others. W is called once, on all displacements.
    """
    sizes = _sizes(grid)
    vector = isinstance(W, pairwise.Slope)
    axes = tuple(range(-grid.dim, 0))
    source = torch.fft.rfftn(masses, s=sizes, dim=axes)
    source = source[..., None, *[slice(None)] * grid.dim] if vector else source
    found = torch.fft.irfftn(source * transfer(W, grid, masses), s=sizes, dim=axes)
    found = found[..., *[slice(n) for n in grid.shape]].flatten(-grid.dim)
    return found.mT if vector else found


def transfer(W: Field, grid: Grid, like: Tensor) -> Tensor:
    """What the modes of the masses, by `rfftn`, are multiplied by in `convolve_cells`; (d, …) for a Slope."""
    return torch.fft.rfftn(_kernel(W, grid, _sizes(grid), like), dim=tuple(range(-grid.dim, 0)))


def cell_matrix(W: Field, grid: Grid, like: Tensor) -> Tensor:
    """W(x_i − x_j) between the cells of a grid, (n, n), as `convolve_cells` has it."""
    sizes, d = _sizes(grid), grid.dim
    where = []
    for a, (n, size) in enumerate(zip(grid.shape, sizes, strict=True)):
        k = torch.arange(n, device=like.device)
        shape = [n if axis in (a, d + a) else 1 for axis in range(2 * d)]
        where.append(((k[:, None] - k) % size).reshape(shape))
    return _kernel(W, grid, sizes, like)[tuple(where)].reshape(grid.n, grid.n)


def _kernel(W: Field, grid: Grid, sizes: tuple[int, ...], like: Tensor) -> Tensor:
    """W on all displacements in the order of FFT, (*sizes); for a Slope (d, *sizes)."""
    if isinstance(plain := W.W if isinstance(W, pairwise.Slope) else W, Stationary):
        plain.check_domain(grid)
    steps = [torch.arange(size, device=like.device) for size in sizes]
    steps = [torch.where(k < (size + 1) // 2, k, k - size) for k, size in zip(steps, sizes, strict=True)]
    lines = [k.to(like.dtype) * h for k, h in zip(steps, grid.spacing, strict=True)]
    z = torch.stack(torch.meshgrid(*lines, indexing="ij"), -1).flatten(0, -2)
    values = pairwise.evaluate(W, z)
    values = torch.cat([_at_origin(W, values[:1], grid, like), values[1:]])
    if not torch.isfinite(values).all():
        bad = z[~torch.isfinite(values.reshape(len(z), -1)).all(-1)][0].tolist()
        raise ValueError(f"W must be finite away from 0; it is NaN or infinite at the displacement {bad}")
    if not isinstance(W, pairwise.Slope):
        return values.reshape(sizes)
    return _odd(values, grid, sizes)


def _at_origin(W: Field, value: Tensor, grid: Grid, like: Tensor) -> Tensor:
    """W(0), or its average over a cell when infinite; a slope that is not finite there is 0, since W is even."""
    if torch.isfinite(value).all():
        return value
    if isinstance(W, pairwise.Slope):
        return torch.zeros_like(value)
    if value.isnan().any():
        raise ValueError("W(0) is NaN: write the limit into W (torch.where), or +inf to have the average over a cell")
    nodes = grid.nodes(8, like)
    values = W(torch.stack([z for z, _ in nodes]))
    return (values * like.new_tensor([w for _, w in nodes])).sum(0, keepdim=True)


def _odd(values: Tensor, grid: Grid, sizes: tuple[int, ...]) -> Tensor:
    """Components of a slope as leading axis; half-way round a periodic axis the two ways cancel."""
    values = values.mT.reshape(grid.dim, *sizes).clone()
    for a, (size, periodic) in enumerate(zip(sizes, grid.periodic, strict=True)):
        if periodic and size % 2 == 0:
            values[a].narrow(a, size // 2, 1).zero_()
    return values


def symbol(W: Field, grid: Grid, like: Tensor) -> Tensor:
    """Ŵ(ξ) = ∫ W(z) cos(ξ·z) dz at the frequencies of a padded FFT, by sums over the grid."""
    return torch.fft.fftn(_kernel(W, grid, _sizes(grid), like)).real * grid.volume


def laplacian_symbol(grid: Grid, like: Tensor) -> Tensor:
    """Σ_a 4 sin²(ξ_a h_a/2)/h_a² at the same frequencies."""
    lines = [
        4 / h**2 * torch.sin(torch.pi * torch.fft.fftfreq(n, dtype=like.dtype, device=like.device)).square()
        for n, h in zip(_sizes(grid), grid.spacing, strict=True)
    ]
    return torch.stack(torch.meshgrid(*lines, indexing="ij")).sum(0)


def _sizes(grid: Grid) -> tuple[int, ...]:
    return tuple(n if periodic else 2 * n for n, periodic in zip(grid.shape, grid.periodic, strict=True))
