"""The slope of log Σ_j w_j exp(−|x − y_j|²/2) at points: on a grid of nodes, over all pairs, or through logarithms."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..kernels import RBF
from ..pairwise import gaussian_gather, gaussian_spread, kernel_sum, log_gaussian_sum

STEPS = 2.4  # nodes a unit: the trapezoidal rule of exp(−2z²) is then exact to 1e-12
WORTH = {1: 1_000, 2: 3_000, 3: 100_000}  # by dimension, the particles from which the grid is faster than all pairs
NODES = 1 << 24

Route = Callable[[Tensor], tuple[Tensor, Tensor]]  # points (*batch, m, d) -> slopes there, and where to trust them (m,)


def slope(x: Tensor, y: Tensor, w: Tensor, *, grid: bool | None = None) -> Tensor:
    """The slope at points x (*batch, m, d) for y (*batch, n, d) and w (*batch, n): the weighted mean of y, less x.

    Far out, where a route loses its digits, the next takes over: the grid where the sum is 1e-10 of its largest
    (float32: 5e-5), all pairs where it underflows.
    """
    axes = _axes(y) if grid or (grid is None and y.shape[-2] >= WORTH.get(y.shape[-1], math.inf)) else None
    if grid and axes is None:
        raise ValueError("the particles spread over too many widths for a grid of nodes: leave grid=None")
    routes: list[Route] = [_by_pairs(y, w), _by_logs(y, w)]
    return _through([_on_grid(y, w, axes), *routes] if axes else routes, x)


def _through(routes: list[Route], x: Tensor) -> Tensor:
    """Slopes by the first route, and by the others at the points where it is not to be trusted."""
    first, *others = routes
    s, good = first(x)
    if not others or good.all():
        return s
    rows = (~good).nonzero()[:, 0]
    return s.index_copy(-2, rows, _through(others, x.index_select(-2, rows)))


def _on_grid(y: Tensor, w: Tensor, axes: list[Tensor]) -> Route:
    """exp(−|x − y|²/2) is ∫exp(−|x − g|²)exp(−|g − y|²) dg up to a factor: from particles to nodes, then to points."""
    width = math.sqrt(0.5)
    columns = [gaussian_spread(y, w * c, axes, width) for c in (torch.ones_like(w), *y.unbind(-1))]

    def route(x: Tensor) -> tuple[Tensor, Tensor]:
        total, *means = (gaussian_gather(x, c, axes, width) for c in columns)
        floor = torch.finfo(x.dtype).eps ** 0.625 * total.detach().amax(-1, keepdim=True)
        return _mean(torch.stack(means, -1), total, x), _everywhere(total > floor)

    return route


def _by_pairs(y: Tensor, w: Tensor) -> Route:
    b = torch.cat([w[..., None] * y, w[..., None]], -1)

    def route(x: Tensor) -> tuple[Tensor, Tensor]:
        sums = kernel_sum(RBF(1.0), x, y, b)
        info = torch.finfo(x.dtype)
        return _mean(sums[..., :-1], sums[..., -1], x), _everywhere(sums[..., -1] > info.tiny / info.eps)

    return route


def _by_logs(y: Tensor, w: Tensor) -> Route:
    def route(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            at = x if x.requires_grad else x.detach().requires_grad_()
            logs = log_gaussian_sum(at, y.detach(), w.log(), 1.0)
            (s,) = torch.autograd.grad(logs.sum(), at, create_graph=x.requires_grad)
        return s, x.new_ones(x.shape[-2], dtype=torch.bool)

    return route


def _mean(sums: Tensor, total: Tensor, x: Tensor) -> Tensor:
    """Σ w y exp/Σ w exp − x, and no NaN where the total is 0."""
    return sums / torch.where(total > 0, total, 1.0)[..., None] - x


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
