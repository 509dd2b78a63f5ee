"""Collisions over a block of rows of pairs, all at once: the plain formulas, differentiable by autograd."""

from __future__ import annotations

import torch
from torch import Tensor


class Pairs:
    """A block of rows of pairs, all at once: z = x_i − y_j and q = u_i − v_j, (*batch, m, n, d)."""

    def __init__(self, x: Tensor, u: Tensor, y: Tensor, v: Tensor, w: Tensor, gamma: float) -> None:
        self.z, self.q = x[..., :, None, :] - y[..., None, :, :], u[..., :, None, :] - v[..., None, :, :]
        square = self.z.square().sum(-1, keepdim=True)
        same = square == 0
        if gamma < -2 and (same & (self.q != 0).any(-1, keepdim=True)).any():
            raise ValueError(at_one_place(gamma))
        self.gamma, self.square = gamma, square.masked_fill(same, 1.0)
        self.along = (self.z * self.q).sum(-1, keepdim=True)
        self.rate = (w[..., None, :, :] * self.square ** (gamma / 2)).masked_fill(same, 0.0)  # w|z|^γ

    def velocity(self) -> Tensor:
        return (self.rate * (self.square * self.q - self.z * self.along)).sum(-2)

    def jacobian(self, du: Tensor) -> Tensor:
        rate, z, eye = self.rate, self.z, torch.eye(du.shape[-1], dtype=du.dtype, device=du.device)
        qz = (rate * self.q).mT @ z
        A = (rate * self.square).sum(-2)[..., None] * eye - (rate * z).mT @ z
        radial = (rate * self.along / self.square * z).mT @ z
        return (self.gamma + 2) * qz - qz.mT - trace(qz) * eye - self.gamma * radial + A @ du


def trace(m: Tensor) -> Tensor:
    return m.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]


def at_one_place(gamma: float) -> str:
    return f"particles at one place: A is infinite there for gamma = {gamma:g} < −2. Move them apart"
