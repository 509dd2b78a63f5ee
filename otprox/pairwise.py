"""The only door to sums over pairs of particles: tiled, with memory linear in their number, also under autograd."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .domains import Domain, Euclidean

TILE = {"cpu": 1 << 18, "cuda": 1 << 24}  # entries of the largest tensor of a tile, over the whole batch

Displacements = Callable[[Tensor], Tensor]  # (…, d) -> (…); a Slope gives (…, d)


def convolve(W: Displacements, x: Tensor, y: Tensor, w: Tensor, domain: Domain | None = None) -> Tensor:
    """Σ_j w_j W(x_i − y_j) for x (*batch, m, d), y (*batch, n, d), w (*batch, n): (*batch, m).

    W maps displacements (…, d) to values (…); a `Slope` gives ∇W, and the result is (*batch, m, d). A kernel value
    that knows a faster route offers `W.convolve(x, y, w, domain)`, and it is used unless it gives None.

    Displacements 0, where W is even: W(0) counts when it is finite, and a ∇W that autograd cannot find there (as of
    `z.square().sum(-1).sqrt()`) is 0. Where W(0) is infinite, as for −log|z|, a point does not act on itself, and two
    particles at one place are an error.

    Tiles are computed again in the backward pass in place of being kept, so memory stays linear there too (second
    derivatives keep all pairs).
    """
    domain = domain or Euclidean()
    fast = getattr(W, "convolve", None)
    result = None if fast is None else fast(x, y, w, domain)
    if result is not None:
        return result
    safe, own_graph = _guarded(W, x, y)
    vector = isinstance(W, Slope)

    def tile(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        values = safe(domain.displacement(x[..., :, None, :], y[..., None, :, :]))
        return (w[..., None, None, :] @ values)[..., 0, :] if vector else (values @ w[..., None])[..., 0]

    run = _checkpointed if own_graph else _by_rows
    return run(tile, _rows(x, y, x.shape[-1]), -2 if vector else -1, x, y, w)


@dataclass(frozen=True, eq=False)
class Slope:
    """∇W as a field of displacements, (…, d) -> (…, d): convolved with a measure it gives ∇(W∗μ), with no graph across
    pairs. It follows the fast route of W where there is one."""

    W: Displacements
    keep: bool = False  # the graph of the gradient, also where z needs none: for the parameters of W

    def __call__(self, z: Tensor) -> Tensor:
        with torch.enable_grad():
            at = z if z.requires_grad else z.detach().requires_grad_()
            return _slope(evaluate(self.W, at), at, self.keep or z.requires_grad)

    def convolve(self, x: Tensor, y: Tensor, w: Tensor, domain: Domain | None = None) -> Tensor | None:
        fast = getattr(self.W, "convolve", None)
        if fast is None:
            return None
        with torch.enable_grad():
            at = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()  # x may be y: only x moves
            values = fast(at, y, w, domain)
            keep = any(t.requires_grad for t in (x, y, w))
            return None if values is None else _slope(values, at, keep)


def log_gaussian_sum(x: Tensor, y: Tensor, log_w: Tensor, width: float) -> Tensor:
    """log Σ_j w_j exp(−|x_i − y_j|²/(2·width²)); shapes as in `convolve`, log w in place of w (−inf for no weight).

    Squared distances come from matrix products on centred data, or, where the data spread over so many widths that
    these would cancel, from differences. Memory is linear, also in the backward pass.
    """
    centre = y.detach().mean(-2, keepdim=True)  # the sum does not depend on it
    x, y = (x - centre) / width, (y - centre) / width
    largest = max(x.detach().square().sum(-1).max(), y.detach().square().sum(-1).max())
    if largest * torch.finfo(x.dtype).eps ** 0.5 > 1:
        return _by_rows(_log_tile_far, _rows(x, y, x.shape[-1]), -1, x, y, log_w)
    return _by_rows(_log_tile, _rows(x, y), -1, x, y, log_w - 0.5 * y.square().sum(-1))


def _log_tile(x: Tensor, y: Tensor, offset: Tensor) -> Tensor:
    return torch.logsumexp(x @ y.mT + offset[..., None, :], -1) - 0.5 * x.square().sum(-1)


def _log_tile_far(x: Tensor, y: Tensor, log_w: Tensor) -> Tensor:
    square = (x[..., :, None, :] - y[..., None, :, :]).square().sum(-1)
    return torch.logsumexp(log_w[..., None, :] - 0.5 * square, -1)


Tile = Callable[..., Tensor]  # a block of rows of x, then the other tensors -> the same rows of the result


def _by_rows(tile: Tile, rows: int, dim: int, x: Tensor, *others: Tensor) -> Tensor:
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


def _checkpointed(tile: Tile, rows: int, dim: int, x: Tensor, *others: Tensor) -> Tensor:
    """As `_by_rows`, for a tile that carries a graph of its own, such as the parameters of a learnt W."""
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    return torch.cat([checkpoint(tile, part, *others, **options) for part in x.split(rows, -2)], dim)


def _rows(x: Tensor, y: Tensor, width: int = 1) -> int:
    batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2]).numel()
    return max(1, TILE.get(x.device.type, TILE["cpu"]) // max(1, batch * y.shape[-2] * width))


def evaluate(W: Displacements, z: Tensor) -> Tensor:
    """W(z), its shape checked."""
    values = W(z)
    if isinstance(W, Slope) or (isinstance(values, Tensor) and values.shape == z.shape[:-1]):
        return values
    shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
    raise ValueError(
        f"W must map displacements (…, d) to values (…): got {shape} from {tuple(z.shape)}; "
        "a radial W is lambda z: f(z.norm(dim=-1))"
    )


def _slope(values: Tensor, z: Tensor, keep: bool) -> Tensor:
    if not values.requires_grad:
        raise TypeError(
            "W is not differentiable by autograd: write it with torch operations, without .detach(), .item() or NumPy"
        )
    return torch.autograd.grad(values.sum(), z, create_graph=keep)[0]


def _guarded(W: Displacements, x: Tensor, y: Tensor) -> tuple[Displacements, bool]:
    """W with 0 cut out unless it and the derivatives that will be asked for are finite there, its shape checked; and
    whether W carries a graph of its own."""
    batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    origin = x.new_zeros(*batch, 1, 1, x.shape[-1])
    at_origin = evaluate(W.W if isinstance(W, Slope) else W, origin)
    own_graph, at_origin = at_origin.requires_grad, at_origin.detach()
    if own_graph and isinstance(W, Slope):
        W = Slope(W.W, keep=True)
    if at_origin.isnan().any():
        raise ValueError("W(0) is NaN: write the limit into W (torch.where), or +inf to leave out the pairs i = j")
    if at_origin.isinf().any():
        return _punctured(W, 0.0, singular=True), own_graph
    differentiated = torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)
    if _regular(W, origin, differentiated):
        return lambda z: evaluate(W, z), own_graph
    return _punctured(W, 0.0 if isinstance(W, Slope) else None, singular=False), own_graph


def _regular(W: Displacements, origin: Tensor, differentiated: bool) -> bool:
    """Whether W, and its derivative when that is asked for, are finite at 0."""
    with torch.set_grad_enabled(differentiated):
        z = origin.clone().requires_grad_(differentiated)
        values = W(z)
        if not values.isfinite().all():
            return False
        if not (differentiated and values.requires_grad):
            return True
        (slope,) = torch.autograd.grad(values.sum(), z, allow_unused=True)
    return slope is None or bool(slope.isfinite().all())


def _punctured(W: Displacements, at_origin: float | None, singular: bool) -> Displacements:
    """W with the value `at_origin` (None: its own) and derivative 0 at displacement 0."""

    def cut(z: Tensor) -> Tensor:
        zero = (z == 0).all(-1)
        if singular and (zero.sum(-1) > 1).any():
            raise ValueError("W(0) is infinite and two particles are at the same place")
        values = evaluate(W, torch.where(zero[..., None], 1, z))
        where = zero if values.ndim == zero.ndim else zero[..., None]
        own = evaluate(W, torch.zeros_like(z[..., :1, :1, :])) if at_origin is None else at_origin
        return torch.where(where, own, values)

    return cut
