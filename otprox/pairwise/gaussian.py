"""Log-sums of Gaussians over pairs."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .engines import Engine, choose
from .products import budget
from .tiles import by_rows, rows_of


def log_gaussian_sum(x: Tensor, y: Tensor, log_w: Tensor, width: float, *, engine: Engine = "auto") -> Tensor:
    """log Σ_j w_j exp(−|x_i − y_j|²/(2·width²)); shapes as in `convolve`, log w in place of w (−inf for no weight).

    Squared distances come from matrix products on centred data, or, where the data spread over so many widths that
    these would cancel, from differences. Memory is linear, also in the backward pass. Without derivatives the sum is
    built up tile by tile, each relative to the sum so far, which takes one exponential and no maximum a pair.
    """
    picked = choose(x, y, engine).engine
    centre = y.detach().mean(-2, keepdim=True)  # the sum does not depend on it
    x, y = (x - centre) / width, (y - centre) / width
    if picked == "keops":
        return _by_items(_keops, x, y, log_w)
    rows = x.shape[-2] if picked == "dense" else 0
    largest = max(x.detach().square().sum(-1).max(), y.detach().square().sum(-1).max())
    if largest * torch.finfo(x.dtype).eps ** 0.5 > 1:
        return by_rows(_log_tile_far, rows or rows_of(x, y, x.shape[-1]), -1, x, y, log_w)
    offset = log_w - 0.5 * y.square().sum(-1)
    differentiated = torch.is_grad_enabled() and any(t.requires_grad for t in (x, y, log_w))
    if differentiated or rows or x.shape[-2] * y.shape[-2] <= budget(x):
        return by_rows(_log_tile, rows or rows_of(x, y), -1, x, y, offset)
    return _by_items(_running, x, y, offset) - 0.5 * x.square().sum(-1)


def _log_tile(x: Tensor, y: Tensor, offset: Tensor) -> Tensor:
    return torch.logsumexp(x @ y.mT + offset[..., None, :], -1) - 0.5 * x.square().sum(-1)


def _log_tile_far(x: Tensor, y: Tensor, log_w: Tensor) -> Tensor:
    square = (x[..., :, None, :] - y[..., None, :, :]).square().sum(-1)
    return torch.logsumexp(log_w[..., None, :] - 0.5 * square, -1)


def _by_items(f: Any, x: Tensor, y: Tensor, log_w: Tensor) -> Tensor:
    """f of each item of the batch."""
    batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2], log_w.shape[:-1])
    if not batch:
        return f(x, y, log_w)
    x, y = (t.expand(*batch, *t.shape[-2:]).flatten(0, -3) for t in (x, y))
    items = zip(x, y, log_w.expand(*batch, log_w.shape[-1]).flatten(0, -2), strict=True)
    return torch.stack([f(*item) for item in items]).unflatten(0, batch)


def _running(x: Tensor, y: Tensor, offset: Tensor) -> Tensor:
    """log Σ_j exp(x_i·y_j + offset_j), (m,), in square tiles."""
    side = math.isqrt(budget(x))
    left = torch.cat([x, torch.ones_like(x[:, :1])], -1)
    right = torch.cat([y, offset[:, None]], -1)
    out = x.new_empty(len(x))
    for start in range(0, len(x), side):
        rows = left[start : start + side]
        total = torch.logsumexp(rows @ right[:side].mT, -1)
        for j in range(side, len(y), side):
            total = _added(total, rows, right[j : j + side])
        out[start : start + side] = total
    return out


def _added(total: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """log(e^total + Σ e^(rows·columns)), relative to the total, unless that overflows or is still empty."""
    shifted = torch.cat([rows, -total[:, None]], -1) @ torch.cat([columns, torch.ones_like(columns[:, :1])], -1).mT
    found = total + shifted.exp_().sum(-1).log1p()
    if found.isfinite().all():
        return found
    return torch.logaddexp(total, torch.logsumexp(rows @ columns.mT, -1))


def _keops(x: Tensor, y: Tensor, log_w: Tensor) -> Tensor:
    from pykeops.torch import LazyTensor

    z = LazyTensor(x[:, None].contiguous()) - LazyTensor(y[None].contiguous())
    exponent = LazyTensor(log_w[None, :, None].contiguous()) - 0.5 * (z**2).sum(-1)
    return exponent.logsumexp(dim=1)[:, 0]
