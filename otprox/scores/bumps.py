"""Means of columns under weights w_j exp(−|x − y_j|²/2) at points x: on a grid, over all pairs, or by logarithms."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..kernels import RBF
from ..pairwise import gaussian_gather, gaussian_spread, kernel_sum
from ..pairwise.tiles import by_rows, rows_of

STEPS = 2.4  # nodes a unit: the trapezoidal rule of exp(−2z²) is then exact to 1e-12
WORTH = {1: 1_000, 2: 3_000, 3: 100_000}  # by dimension, the particles from which the grid is faster than all pairs
NODES = 1 << 24

Route = Callable[[Tensor], tuple[Tensor, Tensor]]  # points (*batch, m, d) -> means there, and where to trust them (m,)


def slope(x: Tensor, y: Tensor, w: Tensor, *, grid: bool | None = None) -> Tensor:
    """∇log Σ_j w_j exp(−|x − y_j|²/2) at x, the mean of y less x: (*batch, m, d)."""
    return means(x, y, w, y, grid=grid) - x


def curvature(x: Tensor, y: Tensor, w: Tensor, *, grid: bool | None = None) -> Tensor:
    """∇²log Σ_j w_j exp(−|x − y_j|²/2) at x, the covariance of y less I: (*batch, m, d, d)."""
    d = y.shape[-1]
    i, j = torch.triu_indices(d, d, device=y.device)
    found = means(x, y, w, torch.cat([y, y[..., i] * y[..., j]], -1), grid=grid)
    mean, second = found[..., :d], found[..., d:]
    upper = second - mean[..., i] * mean[..., j] - (i == j).to(x)
    full = upper.new_empty(*upper.shape[:-1], d, d)
    full[..., i, j] = upper
    full[..., j, i] = upper
    return full


def means(x: Tensor, y: Tensor, w: Tensor, columns: Tensor, *, grid: bool | None = None) -> Tensor:
    """Σ_j p_j c_j with p_j ∝ w_j exp(−|x − y_j|²/2), Σ p_j = 1.

    x (*batch, m, d), y (*batch, n, d), w (*batch, n) and columns c (*batch, n, k) give (*batch, m, k). Far out, where a
    route loses its digits, the next takes over: the grid where the sum of the weights is 1e-10 of its largest (float32:
    5e-5), all pairs where it underflows.
    """
    axes = _axes(y) if grid or (grid is None and y.shape[-2] >= WORTH.get(y.shape[-1], math.inf)) else None
    if grid and axes is None:
        raise ValueError("the particles spread over too many widths for a grid of nodes: leave grid=None")
    routes = [_by_pairs(y, w, columns), _by_logs(y, w, columns)]
    return _through([_on_grid(y, w, columns, axes), *routes] if axes else routes, x)


def _through(routes: list[Route], x: Tensor) -> Tensor:
    """Means by the first route, and by the others at the points where it is not to be trusted."""
    first, *others = routes
    found, good = first(x)
    if not others or good.all():
        return found
    rows = (~good).nonzero()[:, 0]
    return found.index_copy(-2, rows, _through(others, x.index_select(-2, rows)))


def _on_grid(y: Tensor, w: Tensor, columns: Tensor, axes: list[Tensor]) -> Route:
    """exp(−|x − y|²/2) is ∫exp(−|x − g|²)exp(−|g − y|²) dg up to a factor: from particles to nodes, then to points."""
    width = math.sqrt(0.5)
    nodes = [gaussian_spread(y, w * c, axes, width) for c in (torch.ones_like(w), *columns.unbind(-1))]

    def route(x: Tensor) -> tuple[Tensor, Tensor]:
        total, *sums = (gaussian_gather(x, c, axes, width) for c in nodes)
        floor = torch.finfo(x.dtype).eps ** 0.625 * total.detach().amax(-1, keepdim=True)
        return _ratio(torch.stack(sums, -1), total), _everywhere(total > floor)

    return route


def _by_pairs(y: Tensor, w: Tensor, columns: Tensor) -> Route:
    weighted = w[..., None] * torch.cat([torch.ones_like(columns[..., :1]), columns], -1)
    least = torch.finfo(y.dtype).tiny / torch.finfo(y.dtype).eps

    def route(x: Tensor) -> tuple[Tensor, Tensor]:
        sums = kernel_sum(RBF(1.0), x, y, weighted)
        return _ratio(sums[..., 1:], sums[..., 0]), _everywhere(sums[..., 0] > least)

    return route


def _by_logs(y: Tensor, w: Tensor, columns: Tensor) -> Route:
    def tile(x: Tensor, y: Tensor, log_w: Tensor, columns: Tensor) -> Tensor:
        square = (x[..., :, None, :] - y[..., None, :, :]).square().sum(-1)
        return torch.softmax(log_w - 0.5 * square, -1) @ columns

    def route(x: Tensor) -> tuple[Tensor, Tensor]:
        found = by_rows(tile, rows_of(x, y, x.shape[-1]), -2, x, y, w.log()[..., None, :], columns)
        return found, x.new_ones(x.shape[-2], dtype=torch.bool)

    return route


def _ratio(sums: Tensor, total: Tensor) -> Tensor:
    """sums/total, and no NaN where the total is 0."""
    return sums / torch.where(total > 0, total, 1.0)[..., None]


def _everywhere(good: Tensor) -> Tensor:
    """Whether a point (m,) is good in every item of the batch."""
    return good.reshape(-1, good.shape[-1]).all(0)


def _axes(y: Tensor) -> list[Tensor] | None:
    """Nodes around the particles, as far as their Gaussians reach; None where that is more than `NODES`."""
    y = y.detach().reshape(-1, y.shape[-1])
    margin = math.sqrt(-math.log(torch.finfo(y.dtype).eps))
    low, high = (y.amin(0) - margin).tolist(), (y.amax(0) + margin).tolist()
    counts = [math.ceil((b - a) * STEPS) + 1 for a, b in zip(low, high, strict=True)]
    if math.prod(counts) > NODES:
        return None
    return [a + torch.arange(k, dtype=y.dtype, device=y.device) / STEPS for a, k in zip(low, counts, strict=True)]
