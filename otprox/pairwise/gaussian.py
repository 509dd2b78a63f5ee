"""Log-sums of Gaussians over pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from .tiles import by_rows, rows_of


def log_gaussian_sum(x: Tensor, y: Tensor, log_w: Tensor, width: float) -> Tensor:
    """log Σ_j w_j exp(−|x_i − y_j|²/(2·width²)); shapes as in `convolve`, log w in place of w (−inf for no weight).

    Squared distances come from matrix products on centred data, or, where the data spread over so many widths that
    these would cancel, from differences. Memory is linear, also in the backward pass.
    """
    centre = y.detach().mean(-2, keepdim=True)  # the sum does not depend on it
    x, y = (x - centre) / width, (y - centre) / width
    largest = max(x.detach().square().sum(-1).max(), y.detach().square().sum(-1).max())
    if largest * torch.finfo(x.dtype).eps ** 0.5 > 1:
        return by_rows(_log_tile_far, rows_of(x, y, x.shape[-1]), -1, x, y, log_w)
    return by_rows(_log_tile, rows_of(x, y), -1, x, y, log_w - 0.5 * y.square().sum(-1))


def _log_tile(x: Tensor, y: Tensor, offset: Tensor) -> Tensor:
    return torch.logsumexp(x @ y.mT + offset[..., None, :], -1) - 0.5 * x.square().sum(-1)


def _log_tile_far(x: Tensor, y: Tensor, log_w: Tensor) -> Tensor:
    square = (x[..., :, None, :] - y[..., None, :, :]).square().sum(-1)
    return torch.logsumexp(log_w[..., None, :] - 0.5 * square, -1)
