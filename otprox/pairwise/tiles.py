"""Blocks of rows whose graph is not kept, so that memory stays linear in the particles under autograd too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

TILE = {"cpu": 1 << 18, "cuda": 1 << 24}  # entries of the largest tensor of a tile, over the whole batch

Tile = Callable[..., Tensor]  # a block of rows of x, then the other tensors -> the same rows of the result


def by_rows(tile: Tile, rows: int, dim: int, x: Tensor, *others: Tensor) -> Tensor:
    """tile(x[rows], *others) for each block of rows, put together along `dim`."""
    if x.shape[-2] <= rows:
        return tile(x, *others)
    result: Tensor = _Tiled.apply(tile, rows, dim, x, *others)
    return result


class _Tiled(torch.autograd.Function):
    """Blocks of rows whose graph is not kept: the backward pass computes each again.

    Results go to tensors made beforehand: small ones in between would pin the heap at the size of all tiles together.
    """

    @staticmethod
    def forward(ctx: Any, tile: Tile, rows: int, dim: int, x: Tensor, *others: Tensor) -> Tensor:
        ctx.tile, ctx.rows, ctx.dim = tile, rows, dim
        ctx.save_for_backward(x, *others)
        first = tile(x[..., :rows, :], *others)
        shape = list(first.shape)
        shape[dim] = x.shape[-2]
        out = first.new_empty(shape)
        out.narrow(dim, 0, rows).copy_(first)
        for start in range(rows, x.shape[-2], rows):
            part = x[..., start : start + rows, :]
            out.narrow(dim, start, part.shape[-2]).copy_(tile(part, *others))
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        tensors, needed = ctx.saved_tensors, ctx.needs_input_grad[3:]
        if torch.is_grad_enabled():  # a second derivative is wanted: one graph over all pairs
            aliases = [t.view_as(t) for t in tensors]
            with torch.enable_grad():
                out = torch.cat([ctx.tile(part, *aliases[1:]) for part in aliases[0].split(ctx.rows, -2)], ctx.dim)
            wanted = [t for t, need in zip(aliases, needed, strict=True) if need]
            grads = iter(torch.autograd.grad(out, wanted, g, create_graph=True, materialize_grads=True))
            return None, None, None, *(next(grads) if need else None for need in needed)
        sums = [torch.zeros_like(t) if need else None for t, need in zip(tensors, needed, strict=True)]
        for start in range(0, tensors[0].shape[-2], ctx.rows):
            _accumulate(ctx, start, tensors, sums, g)
        return None, None, None, *sums


def _accumulate(ctx: Any, start: int, tensors: tuple[Tensor, ...], sums: list[Tensor | None], g: Tensor) -> None:
    """Add the gradients of one block of rows to `sums`."""
    x, *others = tensors
    targets = list(sums)
    part = x[..., start : start + ctx.rows, :]
    if targets[0] is not None:
        targets[0] = targets[0][..., start : start + ctx.rows, :]
    inputs = [t.detach().requires_grad_(total is not None) for t, total in zip((part, *others), sums, strict=True)]
    with torch.enable_grad():
        out = ctx.tile(*inputs)
    wanted = [t for t in inputs if t.requires_grad]
    grads = torch.autograd.grad(out, wanted, g.narrow(ctx.dim, start, part.shape[-2]), materialize_grads=True)
    for target, grad in zip((t for t in targets if t is not None), grads, strict=True):
        target += grad


def checkpointed(tile: Tile, rows: int, dim: int, x: Tensor, *others: Tensor) -> Tensor:
    """As `by_rows`, for a tile that carries a graph of its own, such as the parameters of a learnt W."""
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    return torch.cat([checkpoint(tile, part, *others, **options) for part in x.split(rows, -2)], dim)


def rows_of(x: Tensor, y: Tensor, width: int = 1) -> int:
    batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2]).numel()
    return max(1, TILE.get(x.device.type, TILE["cpu"]) // max(1, batch * y.shape[-2] * width))
