"""Fixed points of a map of fields on particles, by Anderson's acceleration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .anderson import Anderson


@dataclass(frozen=True, eq=False)
class FixedPoint:
    """The best point v and its image G(v), their distance in L2(w), and how many images were taken; per batch item."""

    point: Tensor
    image: Tensor
    residual: Tensor
    converged: Tensor
    iterations: Tensor

    def or_else(self, other: FixedPoint) -> FixedPoint:
        """The other where this one is not converged, with the iterations of both."""
        keep = self.converged
        fields = (keep[..., None, None], self.point, other.point), (keep[..., None, None], self.image, other.image)
        point, image = (torch.where(*field) for field in fields)
        return FixedPoint(
            point,
            image,
            torch.where(keep, self.residual, other.residual),
            keep | other.converged,
            torch.where(keep, self.iterations, self.iterations + other.iterations),
        )


@torch.no_grad()
def fixed_point(
    G: Callable[[Tensor], Tensor], v: Tensor, w: Tensor, *, tol: float, floor: Tensor, max_iter: int, depth: int
) -> FixedPoint:
    """v = G(v) for fields v (*batch, n, d) on particles of weights w (*batch, n).

    Until |G(v) − v| ≤ max(tol·|G(v)|, floor) in L2(w), floor (*batch,); an item that is there stays while the others go
    on. An item that gets twice as far as its best goes back there and starts a new history with a shorter step, a
    quarter of the one before; an item that does not converge returns its best, NaN where none was finite.
    """
    anderson, weights = Anderson(depth), w.repeat_interleave(v.shape[-1], -1)
    best, length = _start(v, w), torch.ones_like(w[..., 0])
    for k in range(1, max_iter + 1):
        image = G(v)
        error = norm(image - v, w)
        lost = ~best.converged & ~(error <= 2 * best.residual)
        best = _better(best, v, image, error, error <= torch.maximum(tol * norm(image, w), floor), k)
        if bool(best.converged.all()):
            break
        back = (lost | best.converged)[..., None, None]
        v, image = torch.where(back, best.point, v), torch.where(back, best.image, image)
        ahead = anderson.extrapolate(v.flatten(-2), image.flatten(-2), weights, torch.zeros_like(lost))
        anderson.clear(lost)
        length = torch.where(lost, length / 4, length)
        v = torch.where(back, v + length[..., None, None] * (image - v), ahead.unflatten(-1, v.shape[-2:]))
    return best


def differentiable(G: Callable[[Tensor], Tensor], v: Tensor, solve: Callable[..., FixedPoint]) -> Tensor:
    """G(v) at a fixed point, with derivatives in what G depends on by the implicit function theorem, ∂v = (I − G')⁻¹∂G.

    `solve(map, start)` finds fixed points; backward passes call it for the transposed equation.
    """
    v = v.detach()
    at = v.clone().requires_grad_()
    inner, image = G(at), G(v)

    def adjoint(g: Tensor) -> Tensor:
        solved = solve(lambda y: torch.autograd.grad(inner, at, y, retain_graph=True)[0] + g, g)
        if not bool(solved.converged.all()):
            raise RuntimeError(
                f"the derivative of the step stalled at a residual of {solved.residual.max().item():.2g}"
            )
        return solved.image

    image.register_hook(adjoint)
    return image


def norm(v: Tensor, w: Tensor) -> Tensor:
    """The norm of a field in L2(w), (*batch,)."""
    return (w * v.square().sum(-1)).sum(-1).sqrt()


def _start(v: Tensor, w: Tensor) -> FixedPoint:
    none = torch.zeros_like(w[..., 0])
    return FixedPoint(v, torch.full_like(v, torch.nan), none + torch.inf, none.bool(), none.long())


def _better(best: FixedPoint, v: Tensor, image: Tensor, error: Tensor, done: Tensor, k: int) -> FixedPoint:
    """The better of the two, item by item; k is the number of the new image."""
    going = ~best.converged
    take = going & (error < best.residual)
    return FixedPoint(
        torch.where(take[..., None, None], v, best.point),
        torch.where(take[..., None, None], image, best.image),
        torch.where(take, error, best.residual),
        best.converged | (going & done),
        torch.where(going, k, best.iterations),
    )
