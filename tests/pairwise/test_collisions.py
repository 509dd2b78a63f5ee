"""Sums of collisions: every route is the sum over pairs, keeps momentum and energy, and has the slope it says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from otprox.measures.base import jacobian
from otprox.pairwise import collide, collision_jacobian

GAMMAS = [-3.0, -2.0, -1.3, -1.0, 0.0, 0.5, 1.0]


def cloud(n: int, d: int, *batch: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, u = torch.randn(2, *batch, n, d, generator=generator)
    w = torch.rand(*batch, n, generator=generator)
    return x, u, w / w.sum(-1, keepdim=True)


def by_definition(x: Tensor, u: Tensor, y: Tensor, v: Tensor, w: Tensor, gamma: float) -> Tensor:
    """With A(z) as a matrix for each pair."""
    z, q = x[..., :, None, :] - y[..., None, :, :], u[..., :, None, :] - v[..., None, :, :]
    r = z.norm(dim=-1, keepdim=True)[..., None]
    A = r**2 * torch.eye(x.shape[-1]) - z[..., :, None] * z[..., None, :]
    rate = torch.where(r > 0, r**gamma, 0.0)
    return (w[..., None, :, None] * (rate * A @ q[..., None])[..., 0]).sum(-2)


@pytest.mark.parametrize("d", [2, 3, 5])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_slopes_are_those_of_autograd(gamma: float, d: int):
    y, v, w = cloud(20, d, 2)
    x = cloud(7, d, 2, seed=1)[0]
    covector = lambda x: torch.sin(x) * x.flip(-1)  # noqa: E731
    field = lambda x: collide(x, covector(x), y, v, w, gamma)  # noqa: E731
    u, du = covector(x), jacobian(covector, x)
    found, slope = collision_jacobian(x, u, du, y, v, w, gamma)
    torch.testing.assert_close(found, by_definition(x, u, y, v, w, gamma))
    torch.testing.assert_close(slope, jacobian(field, x))
    z, q = x[..., :, None, :] - y[..., None, :, :], u[..., :, None, :] - v[..., None, :, :]
    A = z.square().sum(-1)[..., None, None] * torch.eye(d) - z[..., :, None] * z[..., None, :]
    rate = w[..., None, :] * z.norm(dim=-1) ** gamma
    divergence = (rate * (-(d - 1) * (z * q).sum(-1) + (A * du.mT[..., None, :, :]).sum((-2, -1)))).sum(-1)
    torch.testing.assert_close(slope.diagonal(dim1=-2, dim2=-1).sum(-1), divergence)
