"""Anderson acceleration of fixed-point iterations, item by item of a batch."""

from __future__ import annotations

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

    def extrapolate(self, x: Tensor, image: Tensor, weights: Tensor, forget: Tensor) -> Tensor:
        """The next point, from a point, its image and the weights (*batch, n) of the inner product."""
        if self.depth == 0:
            return image
        residual = (image - x).mul_(weights.sqrt())
        if self.last is None:
            self.images = image.new_zeros((*image.shape[:-1], self.depth, image.shape[-1]))
            self.residuals = torch.zeros_like(self.images)
            self.gram = image.new_zeros((*image.shape[:-1], self.depth, self.depth))
        else:
            self._remember(image, residual, forget | self.last[2])
        self._forget(forget)
        self.last = image, residual, forget
        gamma = _least_squares(self.gram, (self.residuals @ residual[..., None])[..., 0])
        return image - (gamma[..., None, :] @ self.images)[..., 0, :]

    def _remember(self, image: Tensor, residual: Tensor, lost: Tensor) -> None:
        """Differences with the iteration before take the place of the oldest; none where either was lost."""
        assert self.last is not None
        slot, lost = self.count % self.depth, lost[..., None]
        self.images[..., slot, :] = torch.where(lost, 0.0, image - self.last[0])
        self.residuals[..., slot, :] = torch.where(lost, 0.0, residual - self.last[1])
        row = (self.residuals @ self.residuals[..., slot, :, None])[..., 0]
        self.gram[..., slot, :] = row
        self.gram[..., :, slot] = row
        self.count += 1

    def _forget(self, forget: Tensor) -> None:
        if bool(forget.any()):
            for history in (self.images, self.residuals, self.gram):
                history[forget] = 0.0


def _least_squares(gram: Tensor, right: Tensor) -> Tensor:
    """gram⁻¹ right, with directions below rounding (and empty slots of the history) left out."""
    scale = gram.diagonal(dim1=-2, dim2=-1).sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    normal = gram / scale[..., None] / scale[..., None, :]
    ridge = 1e3 * torch.finfo(gram.dtype).eps
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(normal + ridge * identity, right / scale) / scale
