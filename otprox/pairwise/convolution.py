"""Convolutions Σ_j w_j W(x_i − y_j) with any even W of displacements, and with its gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..domains import Domain, Euclidean
from ..kernels import RandomBatch, Stationary
from .batches import random_sum
from .engines import Engine, choose
from .generic import GenericSums
from .routes import route
from .tiles import by_rows, checkpointed, rows_of

Displacements = Callable[[Tensor], Tensor]  # (…, d) -> (…); a Slope gives (…, d)


def convolve(
    W: Displacements, x: Tensor, y: Tensor, w: Tensor, domain: Domain | None = None, *, engine: Engine = "auto"
) -> Tensor:
    """Σ_j w_j W(x_i − y_j) for x (*batch, m, d), y (*batch, n, d), w (*batch, n): (*batch, m).

    W maps displacements (…, d) to values (…); a `Slope` gives ∇W, and the result is (*batch, m, d). A kernel of
    `otprox.kernels` goes by its route: moments, sorting, Fourier modes, matrix products. Another W that knows a faster
    route offers `W.convolve(x, y, w, domain)`, and it is used unless it gives None.

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
    kernel = W.W if isinstance(W, Slope) else W
    if isinstance(kernel, RandomBatch):
        return _batched(W, kernel, x, y, w, domain, engine)
    if isinstance(kernel, Stationary):
        sums = route(kernel.fit(y), x, y, domain, engine)
        if not isinstance(sums, GenericSums):
            return sums.slopes(w[..., None]) if isinstance(W, Slope) else sums.values(w[..., None])[..., 0]
    choose(x, y, engine, formula=False)
    safe, own_graph = _guarded(W, x, y)
    vector = isinstance(W, Slope)

    def tile(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
        values = safe(domain.displacement(x[..., :, None, :], y[..., None, :, :]))
        return (w[..., None, None, :] @ values)[..., 0, :] if vector else (values @ w[..., None])[..., 0]

    run = checkpointed if own_graph else by_rows
    rows = x.shape[-2] if engine == "dense" else rows_of(x, y, x.shape[-1])
    return run(tile, max(1, rows), -2 if vector else -1, x, y, w)


def _batched(
    W: Displacements, k: RandomBatch, x: Tensor, y: Tensor, w: Tensor, domain: Domain, engine: Engine
) -> Tensor:
    """Over random batches where the points are the sources; over all pairs elsewhere."""
    slope = isinstance(W, Slope)
    inner = Slope(k.W) if slope else k.W
    if not (x.shape == y.shape and x.data_ptr() == y.data_ptr()):
        return convolve(inner, x, y, w, domain, engine=engine)

    def batch(x: Tensor, y: Tensor, c: Tensor) -> Tensor:
        found = convolve(inner, x, y, c[..., 0], domain, engine=engine)
        return found if slope else found[..., None]

    found = random_sum(k, batch, x, y, w[..., None])
    return found if slope else found[..., 0]


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
