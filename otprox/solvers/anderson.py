"""Anderson acceleration of fixed-point iterations, item by item of a batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Anderson:
    """Extrapolates x ↦ G(x) from the last `depth` differences (Walker and Ni 2011, type II).

    The next point is G(x) − Σ γ_i ΔG_i, with γ the least-squares solution of Σ γ_i ΔR_i ≈ R, R = G(x) − x, in L2 with
    the given weights; each ΔR_i keeps the weights of its own iteration, so that its products with the others are
    computed once. Vectors are (*batch, n). Where `forget` is true an item starts a new history.
    """

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.count = 0
        self.last: tuple[Tensor, Tensor, Tensor] | None = None
        self.history: tuple[Tensor, Tensor, Tensor] | None = None

    def extrapolate(self, x: Tensor, image: Tensor, weights: Tensor, forget: Tensor) -> Tensor:
        """The next point, from a point, its image and the weights (*batch, n) of the inner product."""
        if self.depth == 0:
            return image
        residual = (image - x).mul_(weights.sqrt())
        images, residuals, gram = self._history(image)
        if self.last is not None:
            self._remember(image, residual, forget | self.last[2])
        self.clear(forget)
        self.last = image, residual, forget
        gamma = _least_squares(gram, (residuals @ residual[..., None])[..., 0])
        return image - (gamma[..., None, :] @ images)[..., 0, :]

    def clear(self, items: Tensor) -> None:
        """Empty the history of these items; the next difference is that from their last point."""
        if self.history is not None and bool(items.any()):
            for part in self.history:
                part[items] = 0.0

    def carried(self, linear: Callable[[Tensor], Tensor]) -> Anderson:
        """The history of a similar iteration as a start for another, to whose vectors `linear` takes these."""
        new = Anderson(self.depth)
        if self.history is not None:
            images, residuals = (linear(part) for part in self.history[:2])
            new.history, new.count = (images, residuals, residuals @ residuals.mT), self.count
        return new

    def _history(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Differences of images and of weighted residuals, (*batch, depth, n), and the Gram matrix of the latter."""
        if self.history is None:
            images = like.new_zeros((*like.shape[:-1], self.depth, like.shape[-1]))
            self.history = images, torch.zeros_like(images), like.new_zeros((*like.shape[:-1], self.depth, self.depth))
        return self.history

    def _remember(self, image: Tensor, residual: Tensor, lost: Tensor) -> None:
        """Differences with the iteration before take the place of the oldest; none where either was lost."""
        assert self.last is not None and self.history is not None
        images, residuals, gram = self.history
        slot, lost = self.count % self.depth, lost[..., None]
        images[..., slot, :] = torch.where(lost, 0.0, image - self.last[0])
        residuals[..., slot, :] = torch.where(lost, 0.0, residual - self.last[1])
        gram[..., slot, :] = gram[..., :, slot] = (residuals @ residuals[..., slot, :, None])[..., 0]
        self.count += 1


def _least_squares(gram: Tensor, right: Tensor) -> Tensor:
    """gram⁻¹ right, with directions below rounding (and empty slots of the history) left out."""
    scale = gram.diagonal(dim1=-2, dim2=-1).sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    normal = gram / scale[..., None] / scale[..., None, :]
    ridge = 1e3 * torch.finfo(gram.dtype).eps
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(normal + ridge * identity, right / scale) / scale
