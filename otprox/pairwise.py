"""The only door to sums over pairs of particles: tiled, with memory linear in the number of particles."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .domains import Domain, Euclidean

TILE = 1 << 21  # pairs evaluated at once, over the whole batch


def convolve(W: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, w: Tensor, domain: Domain | None = None) -> Tensor:
    """Σ_j w_j W(x_i − y_j) for x (*batch, m, d), y (*batch, n, d), w (*batch, n): (*batch, m).

    W maps displacements (…, d) to values (…). A kernel value that knows a faster route offers
    `W.convolve(x, y, w)`, and it is used. i = j counts as any other pair.
    """
    fast = getattr(W, "convolve", None)
    if fast is not None:
        return fast(x, y, w)
    domain = domain or Euclidean()
    tiles = [_tile(W, part, y, w, domain) for part in x.split(_rows(x, y), dim=-2)]
    return torch.cat(tiles, -1)


def _tile(W: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, w: Tensor, domain: Domain) -> Tensor:
    z = domain.displacement(x[..., :, None, :], y[..., None, :, :])
    values = W(z)
    if values.shape != z.shape[:-1]:
        raise ValueError(
            f"W must map displacements (…, d) to values (…): got {tuple(values.shape)} from {tuple(z.shape)}; "
            "a radial W is lambda z: f(z.norm(dim=-1))"
        )
    return (values @ w[..., None])[..., 0]


def log_gaussian_sum(x: Tensor, y: Tensor, log_w: Tensor, width: float) -> Tensor:
    """log Σ_j w_j exp(−|x_i − y_j|²/(2·width²)), stable for any width; shapes as in `convolve`, log w instead of w."""
    x, y = x / width, y / width
    offset = log_w - 0.5 * y.square().sum(-1)
    return torch.cat([_log_tile(part, y, offset) for part in x.split(_rows(x, y), dim=-2)], -1)


def _log_tile(x: Tensor, y: Tensor, offset: Tensor) -> Tensor:
    return torch.logsumexp(x @ y.mT + offset[..., None, :], -1) - 0.5 * x.square().sum(-1)


def _rows(x: Tensor, y: Tensor) -> int:
    batch = max(1, x[..., 0, 0].numel(), y[..., 0, 0].numel())
    return max(1, TILE // (batch * y.shape[-2]))
