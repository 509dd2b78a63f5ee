"""Symmetric positive definite tridiagonal systems, batched: LAPACK on the CPU, parallel cyclic reduction elsewhere."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def solve(
    diagonal: Float[Tensor, "*batch n"], off: Float[Tensor, "*batch n-1"], rhs: Float[Tensor, "*batch n"]
) -> Tensor:
    """The x (*batch, n) with off_{i−1} x_{i−1} + diagonal_i x_i + off_i x_{i+1} = rhs_i, by the route of the device.

    All three share their batch shape. No gradient is recorded. A matrix that is not positive definite is an error on
    the CPU; cyclic reduction is stable for diagonally dominant matrices, and gives non-finite or wrong values else.
    """
    if diagonal.device.type == "cpu":
        return lapack(diagonal, off, rhs)
    return cyclic_reduction(diagonal, off, rhs)


@torch.no_grad()
def lapack(diagonal: Tensor, off: Tensor, rhs: Tensor) -> Tensor:
    """O(n), by dptsv or sptsv on the batch laid end to end, the items decoupled by zeros off the diagonal."""
    from scipy.linalg import get_lapack_funcs

    n = diagonal.shape[-1]
    if n == 1 or diagonal.numel() == 0:
        return rhs / diagonal
    joined = torch.cat([off, torch.zeros_like(diagonal[..., :1])], -1).reshape(-1)[:-1]
    arrays = [diagonal.reshape(-1).numpy(), joined.numpy(), rhs.reshape(-1).numpy()]
    (ptsv,) = get_lapack_funcs(("ptsv",), arrays)
    _, _, x, info = ptsv(*arrays, overwrite_e=True)
    if info > 0:
        item, row = divmod(info - 1, n)
        raise ValueError(f"the tridiagonal matrix is not positive definite: it fails at row {row} of batch item {item}")
    return torch.from_numpy(x).reshape(rhs.shape)


@torch.no_grad()
def cyclic_reduction(diagonal: Tensor, off: Tensor, rhs: Tensor) -> Tensor:
    """O(n log n), parallel: each sweep eliminates the neighbours at distance 1, 2, 4, … (Hockney and Jesshope 1981)."""
    zero = torch.zeros_like(diagonal[..., :1])
    left, right = torch.cat([zero, off], -1), torch.cat([off, zero], -1)
    n, step = diagonal.shape[-1], 1
    while step < n:
        alpha = -left / _shift(diagonal, step, 1.0)
        beta = -right / _shift(diagonal, -step, 1.0)
        diagonal = diagonal + alpha * _shift(right, step) + beta * _shift(left, -step)
        rhs = rhs + alpha * _shift(rhs, step) + beta * _shift(rhs, -step)
        left, right = alpha * _shift(left, step), beta * _shift(right, -step)
        step *= 2
    return rhs / diagonal


def _shift(a: Tensor, step: int, fill: float = 0.0) -> Tensor:
    """a_{i − step}, with `fill` beyond the ends."""
    pad = a.new_full((*a.shape[:-1], abs(step)), fill)
    return torch.cat([pad, a[..., :-step]], -1) if step > 0 else torch.cat([a[..., -step:], pad], -1)
