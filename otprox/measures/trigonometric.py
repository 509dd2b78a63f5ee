"""Cell averages on a periodic Grid, and values at centres of the trigonometric polynomial that has them."""

from __future__ import annotations

import torch
from torch import Tensor

from .grid import Grid


def at_centres(averages: Tensor, grid: Grid) -> Tensor:
    """Values at cell centres of the trigonometric polynomial with these cell averages, both (*batch, *shape)."""
    return _by_sinc(averages, grid, inverse=True)


def cell_averages(values: Tensor, grid: Grid) -> Tensor:
    """Cell averages of the trigonometric polynomial with these values at cell centres, both (*batch, *shape)."""
    return _by_sinc(values, grid, inverse=False)


def _by_sinc(cells: Tensor, grid: Grid, inverse: bool) -> Tensor:
    """Mode k divided or multiplied by Π_a sinc(k_a h_a/2), the average of e^{ikx} over a cell at its centre."""
    axes = tuple(range(-grid.dim, 0))
    modes = torch.fft.rfftn(cells, dim=axes)
    for a, k in enumerate(wave_numbers(grid, cells)):
        factor = torch.sinc(k * (grid.spacing[a] / (2 * torch.pi)))
        modes = modes / factor if inverse else modes * factor
    return torch.fft.irfftn(modes, s=grid.shape, dim=axes)


def wave_numbers(grid: Grid, like: Tensor) -> list[Tensor]:
    """2πk/period along each axis in the order of rfftn, shaped to broadcast over its modes."""
    lines = []
    for a, (n, length) in enumerate(zip(grid.shape, grid.period, strict=True)):
        frequencies = torch.fft.rfftfreq if a == grid.dim - 1 else torch.fft.fftfreq
        k = frequencies(n, length / n, dtype=like.dtype, device=like.device) * (2 * torch.pi)
        lines.append(k.reshape(*(-1 if b == a else 1 for b in range(grid.dim))))
    return lines
