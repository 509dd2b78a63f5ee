"""Velocities of collisions and their Jacobians for many covector fields at once: the pairs are gone through once."""

from __future__ import annotations

import torch
from torch import Tensor

from .collisions import check_apart
from .tiles import by_rows, rows_of


def collisions_of_fields(x: Tensor, u: Tensor, Du: Tensor, w: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """(V, ∇V) of V_k = Σ_j w_j A(x − x_j)(u_k(x) − u_k(x_j)), A(z) = |z|^γ(|z|²I − zzᵀ), at the particles.

    x (*batch, n, d), w (*batch, n); K fields u (*batch, n, K, d), Du (*batch, n, K, d, d) with Du[…, a, m] = ∂_m u_a.
    A and ∇A of a tile of pairs are matrices, times all fields: for one field `collision_jacobian` is faster.
    """
    check_apart(x, gamma)
    d, K = x.shape[-1], u.shape[-2]
    fields = (w[..., None, None] * u).transpose(-1, -2).flatten(-3, -2)  # (*batch, n·d, K)
    weights = w[..., None]

    def tile(part: Tensor, y: Tensor, fields: Tensor, weights: Tensor) -> Tensor:
        A = _kernel(part, y, gamma)  # (*batch, rows, d + d², n, d)
        near = A.flatten(-4, -3).flatten(-2) @ fields
        mean = A.movedim(-2, -1) @ weights[..., None, None, :, :]
        return torch.cat([near.unflatten(-2, A.shape[-4:-2]).flatten(-2), mean.flatten(-3)], -1)

    width = d * (d + d * d)
    rows = by_rows(tile, rows_of(x, x, 2 * width), -2, x, x, fields, weights)
    near, mean = rows.split([(d + d * d) * K, width], -1)
    near, mean = near.unflatten(-1, (d + d * d, K)).transpose(-1, -2), mean.unflatten(-1, (d + d * d, d))
    A, DA = mean[..., :d, :], mean[..., d:, :].unflatten(-2, (d, d))
    V = (A[..., None, :, :] @ u[..., None])[..., 0] - near[..., :d]
    DV = torch.einsum("...namb,...nkb->...nkam", DA, u) + A[..., None, :, :] @ Du
    return V, DV - near[..., d:].unflatten(-1, (d, d))


def _kernel(x: Tensor, y: Tensor, gamma: float) -> Tensor:
    """A(z)[a, b], then ∂_m A(z)[a, b] with rows (a, m), z = x_i − y_j: (*batch, rows, d + d², n, d)."""
    z, eye = x[..., :, None, :] - y[..., None, :, :], torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    square = z.square().sum(-1)
    same = square == 0
    square = square.masked_fill(same, 1.0)
    power = (square ** (gamma / 2)).masked_fill(same, 0.0)[..., None, None]
    A = power * (square[..., None, None] * eye - z[..., :, None] * z[..., None, :])
    a, m, b = (z.reshape(*z.shape[:-1], *shape) for shape in ((-1, 1, 1), (1, -1, 1), (1, 1, -1)))
    bend = 2 * m * eye[:, None, :] - eye[:, :, None] * b - a * eye
    DA = (gamma / square)[..., None, None, None] * A[..., :, None, :] * m + power[..., None] * bend
    return torch.cat([A, DA.flatten(-3, -2)], -2).transpose(-3, -2)
