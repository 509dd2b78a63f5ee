"""The heat semigroup of the discrete Laplacian on a Grid: positive, conservative, and exact in time."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from .grid import Grid

DENSE = 1024  # cells along an axis up to which its kernel is applied as a matrix


def heat(cells: Tensor, grid: Grid, variance: Tensor) -> Tensor:
    """exp(½ Σ_a variance_a·δ_a²/h_a²) on cells (*batch, *shape), with variance (d,) or (*batch, d).

    δ² is the second difference, reflecting at walls. An axis of up to 1024 cells is a product with the matrix of the
    discrete heat kernel e^{−2s}I_k(2s), s = variance/(2h²), so that the smallest values keep their digits. A longer one
    goes through FFT, where values below rounding are lost; what falls below 0 is cut, and the mass restored.
    """
    for a, (n, h, periodic) in enumerate(zip(grid.shape, grid.spacing, grid.periodic, strict=True)):
        s = variance[..., a] / (2 * h**2)
        lines = cells.movedim(a - grid.dim, -1)
        lines = _by_matrix(lines, s, periodic, grid.dim) if n <= DENSE else _by_fft(lines, s, periodic, grid.dim)
        cells = lines.movedim(-1, a - grid.dim)
    return cells


def _by_matrix(lines: Tensor, s: Tensor, periodic: bool, dim: int) -> Tensor:
    n = lines.shape[-1]
    period = n if periodic else 2 * n
    kernels = [kernel(value, period) for value in s.detach().reshape(-1).tolist()]
    g = torch.tensor(kernels, dtype=lines.dtype, device=lines.device).reshape(*s.shape, period)
    i = torch.arange(n, device=lines.device)
    matrix = g[..., (i[:, None] - i) % period]
    if not periodic:
        matrix = matrix + g[..., (i[:, None] + i + 1) % period]  # images of cells in the walls
    if dim == 1:
        return (lines[..., None, :] @ matrix)[..., 0, :]
    return lines @ matrix.reshape(*s.shape, *(1,) * (dim - 2), n, n)


@lru_cache(maxsize=64)
def kernel(s: float, period: int) -> tuple[float, ...]:
    """Σ_m e^{−2s}I_{k + m·period}(2s), k = 0, …, period − 1: the heat kernel on a ring of `period` cells."""
    k = torch.arange(period, dtype=torch.float64)
    if s > period**2 / 50:  # wide: no value is small, so the spectral sum keeps all digits
        g = torch.fft.ifft(torch.exp(-4 * s * torch.sin(torch.pi * k / period).square())).real
    else:
        from scipy.special import ive

        orders = (k + period * torch.arange(-3, 4, dtype=torch.float64)[:, None]).abs()  # beyond: < 1e−50
        g = torch.from_numpy(ive(orders.numpy(), 2 * s)).sum(0)
    return tuple((g / g.sum()).tolist())


def _by_fft(lines: Tensor, s: Tensor, periodic: bool, dim: int) -> Tensor:
    n = lines.shape[-1]
    period = n if periodic else 2 * n
    extended = lines if periodic else torch.cat([lines, lines.flip(-1)], -1)
    k = torch.arange(period // 2 + 1, dtype=lines.dtype, device=lines.device)
    decay = torch.exp(-4 * s[..., None] * torch.sin(torch.pi * k / period).square())
    decay = decay.reshape(*s.shape, *(1,) * (dim - 1), -1)
    smooth = torch.fft.irfft(torch.fft.rfft(extended) * decay, n=period)[..., :n].clamp_min(0)
    over = tuple(range(-dim, 0))
    return smooth * (lines.sum(over, keepdim=True) / smooth.sum(over, keepdim=True))
