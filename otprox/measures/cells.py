"""Masses of the cells of a Grid under measures given otherwise: Gaussians by integration, points by counting."""

from __future__ import annotations

import math
from itertools import product

import torch
from torch import Tensor

from .grid import Grid

FAR = 9.0  # standard deviations beyond which periodic images of a Gaussian are left out
ORDERS = ((0.5, 4), (2.0, 8), (8.0, 16))  # the cell in conditional deviations up to which an order serves


def gaussian_masses(mean: Tensor, cov: Tensor, grid: Grid) -> Tensor:
    """Masses (*batch, *shape) of the cells under N(mean, cov), periodic images summed, computed in float64.

    By the error function for a diagonal cov, which keeps the digits of the tails, and otherwise by Gauss–Legendre in
    each cell, exact to about 1e-10.
    """
    if mean.shape[-1] != grid.dim:
        raise ValueError(f"the measure lives in dimension {mean.shape[-1]}, but the grid has {grid.dim} axes")
    m, S = mean.double(), cov.double()
    variance = S.diagonal(dim1=-2, dim2=-1)
    centre, period = m.new_tensor(grid.lower), m.new_tensor(grid.period)
    m = torch.where(torch.tensor(grid.periodic, device=m.device), centre + torch.remainder(m - centre, period), m)
    reach = FAR * variance.sqrt().reshape(-1, grid.dim).amax(0) / period
    laps = [math.ceil(r) + 1 if free else 0 for r, free in zip(reach.tolist(), grid.periodic, strict=True)]
    separable = torch.equal(torch.diag_embed(variance), S)
    masses = _by_error_function(m, variance, grid, laps) if separable else _by_quadrature(m, S, grid, laps)
    return masses.to(mean.dtype)


def _by_error_function(m: Tensor, variance: Tensor, grid: Grid, laps: list[int]) -> Tensor:
    result = torch.ones((), dtype=m.dtype, device=m.device)
    for a, edges in enumerate(grid.edges(m)):
        shifts = grid.period[a] * torch.arange(-laps[a], laps[a] + 1, dtype=m.dtype, device=m.device)
        z = (edges + shifts[:, None] - m[..., a, None, None]) / variance[..., a, None, None].sqrt()
        low, high = z[..., :-1], z[..., 1:]
        near, far = torch.where(low > 0, low, -high), torch.where(low > 0, high, -low)  # in the upper tail
        line = (torch.erfc(near * 0.5**0.5) - torch.erfc(far * 0.5**0.5)).sum(-2) / 2
        result = result[..., None] * line.reshape(*line.shape[:-1], *(1,) * a, line.shape[-1])
    return result


def _by_quadrature(m: Tensor, S: Tensor, grid: Grid, laps: list[int]) -> Tensor:
    L = torch.linalg.cholesky(S)
    precision = torch.cholesky_inverse(L).diagonal(dim1=-2, dim2=-1)
    width = (precision.sqrt() * m.new_tensor(grid.spacing)).max().item()
    order = next((order for limit, order in ORDERS if width <= limit), None)
    if order is None:
        raise ValueError(
            f"a cell is {width:.3g} times as wide as the Gaussian in some direction; use at least "
            f"{width / ORDERS[-1][0]:.3g} times as many cells along each axis"
        )
    scale = L.diagonal(dim1=-2, dim2=-1).log().sum(-1) + grid.dim / 2 * math.log(2 * math.pi) - math.log(grid.volume)
    points, total = grid.points(m), m.new_zeros(*m.shape[:-1], grid.n)
    images = list(product(*[range(-k, k + 1) for k in laps]))
    for z, w in grid.nodes(order, m):
        for image in images:
            x = points + z + m.new_tensor(image) * m.new_tensor(grid.period) - m[..., None, :]
            white = torch.linalg.solve_triangular(L, x.mT, upper=False)
            total = total + w * torch.exp(-0.5 * white.square().sum(-2) - scale[..., None])
    return total.reshape(*total.shape[:-1], *grid.shape)


def histogram(x: Tensor, w: Tensor, grid: Grid) -> Tensor:
    """Weights (*batch, n) of points (*batch, n, d) summed by cell, (*batch, *shape), but those beyond walls."""
    if x.shape[-1] != grid.dim:
        raise ValueError(f"the points live in dimension {x.shape[-1]}, but the grid has {grid.dim} axes")
    inside = torch.where(grid.inside(x), w, 0)
    flat = w.new_zeros(*inside.shape[:-1], grid.n).scatter_add(-1, grid.cells(x), inside)
    return flat.reshape(*inside.shape[:-1], *grid.shape)
