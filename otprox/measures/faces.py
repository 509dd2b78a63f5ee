"""Covector fields on the faces of a Grid: the flux ρ∇φ of a density, and its convolution with a kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels import Bilinear, Combination, Kernel, Stationary, Weighted
from .density import Density
from .fourier import convolve_cells, laplacian_symbol, symbol
from .grid import Grid
from .transport import axes, log_mean


def covectors(mu: Density, phi: Tensor) -> tuple[Tensor, ...]:
    """ρ∇φ on the faces normal to each axis, φ (*batch, n) on cells: L(ρ)·Δφ/h with L the logarithmic mean of the two
    cells, so that ρ∇log ρ is Δρ/h exactly, and 0 where φ is constant."""
    return on_faces(mu.grid, mu.values, phi)


def on_faces(grid: Grid, weight: Tensor, phi: Tensor) -> tuple[Tensor, ...]:
    """L(weight)·Δφ/h on the faces normal to each axis; weight ≥ 0 is (*batch, *shape), φ (*batch, n)."""
    phi = phi.reshape(*phi.shape[:-1], *grid.shape)
    positive = weight.clamp_min(torch.finfo(weight.dtype).tiny)
    return tuple(log_mean(axis.below(positive), axis.above(positive)) * axis.jump(phi) / axis.h for axis in axes(grid))


def work(mu: Density, J: tuple[Tensor, ...], v: tuple[Tensor, ...]) -> Tensor:
    """∫ ⟨J, v⟩ dx as a sum over the faces, (*batch,)."""
    parts = [(a * b).flatten(-mu.dim).sum(-1) for a, b in zip(J, v, strict=True)]
    return mu.grid.volume * torch.stack(parts).sum(0)


def smooth_faces(kernel: Kernel, grid: Grid, J: Tensor, axis: int) -> Tensor:
    """∫ k(·, y) J(y) dy on the faces normal to an axis, as a sum over them; J is (*batch, *faces)."""
    x = grid.faces(axis, J)
    if isinstance(kernel, Combination):
        return torch.stack([c * smooth_faces(k, grid, J, axis) for c, k in kernel.terms]).sum(0)
    if isinstance(kernel, Weighted):
        a = kernel.weight(x).reshape(J.shape[-grid.dim :])
        return a * smooth_faces(kernel.k, grid, a * J, axis)
    if isinstance(kernel, Stationary):
        found = convolve_cells(kernel, J * grid.volume, _lattice(grid, axis))
    elif isinstance(kernel, Bilinear):
        masses = J.flatten(-grid.dim) * grid.volume
        found = (masses @ x) @ x.mT + masses.sum(-1, keepdim=True)
    else:
        raise TypeError(f"on a Density a kernel is one of x − y, Bilinear, Weighted or a sum of such, not {kernel}")
    return found.reshape(J.shape)


def smoothing_rate(kernel: Kernel, mu: Density) -> Tensor:
    """The coefficient D of the diffusion that moves the fastest wave of the grid as much as K_μ∇log ρ does, on cells
    (*batch, n): ρ·sup k̂(ξ)|ξ|² / Σ_a 4/h_a², with |ξ|² the symbol of the discrete Laplacian."""
    if isinstance(kernel, Combination):
        return torch.stack([c * smoothing_rate(k, mu) for c, k in kernel.terms]).sum(0)
    if isinstance(kernel, Weighted):
        return kernel.weight(mu.grid.points(mu.values)).square() * smoothing_rate(kernel.k, mu)
    if not isinstance(kernel, Stationary):
        return mu.masses * 0  # Bilinear moves no short wave
    fastest = (symbol(kernel, mu.grid, mu.values) * laplacian_symbol(mu.grid, mu.values)).amax()
    return mu.values.flatten(-mu.dim) * fastest / sum(4 / h**2 for h in mu.grid.spacing)


def _lattice(grid: Grid, axis: int) -> Grid:
    """A grid whose cells are the faces normal to an axis, up to a shift."""
    shape = tuple(n - (a == axis and not grid.periodic[a]) for a, n in enumerate(grid.shape))
    upper = tuple(low + n * h for low, n, h in zip(grid.lower, shape, grid.spacing, strict=True))
    return Grid(grid.lower, upper, shape, grid.periodic)
