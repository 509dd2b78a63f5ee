"""Anderson acceleration of fixed-point iterations, item by item of a batch."""

from __future__ import annotations

import torch
from torch import Tensor


class Anderson:
    """Extrapolates x ↦ G(x) from the last `depth` differences (Walker and Ni 2011, type II).

    The next point is G(x) − Σ γ_i ΔG_i, with γ the least-squares solution of Σ γ_i ΔR_i ≈ R, R = G(x) − x, in the
    inner product with the given weights. Vectors are (*batch, n). Where `forget` is true an item starts a new history.
    """

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.count = 0
        self.last: tuple[Tensor, Tensor, Tensor] | None = None

    def extrapolate(self, x: Tensor, image: Tensor, weights: Tensor, forget: Tensor) -> Tensor:
        """The next point, from a point, its image and the weights (*batch, n) of the inner product."""
        if self.depth == 0:
            return image
        residual = image - x
        self._remember(image, residual, forget)
        weighted = self.residuals * weights[..., None, :]
        gamma = _least_squares(weighted @ self.residuals.mT, (weighted @ residual[..., None])[..., 0])
        return image - (gamma[..., None, :] @ self.images)[..., 0, :]

    def _remember(self, image: Tensor, residual: Tensor, forget: Tensor) -> None:
        if self.last is None:
            self.images = image.new_zeros((*image.shape[:-1], self.depth, image.shape[-1]))
            self.residuals = torch.zeros_like(self.images)
        else:
            slot, lost = self.count % self.depth, (forget | self.last[2])[..., None]
            self.images[..., slot, :] = torch.where(lost, 0.0, image - self.last[0])
            self.residuals[..., slot, :] = torch.where(lost, 0.0, residual - self.last[1])
            self.count += 1
        if forget.any():
            self.images[forget] = 0.0
            self.residuals[forget] = 0.0
        self.last = image, residual, forget


def _least_squares(gram: Tensor, right: Tensor) -> Tensor:
    """gram⁻¹ right, with directions below rounding (and empty slots of the history) left out."""
    scale = gram.diagonal(dim1=-2, dim2=-1).sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    normal = gram / scale[..., None] / scale[..., None, :]
    ridge = 1e3 * torch.finfo(gram.dtype).eps
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(normal + ridge * identity, right / scale) / scale
