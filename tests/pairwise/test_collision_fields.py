"""Collisions of many fields: the Onsager operator of each, and Jacobians by differences."""

import pytest
import torch
from torch import Tensor

import otprox as ox
from otprox.metrics import Landau
from otprox.pairwise import collisions_of_fields, tiles

N, K = 30, 3


def waves(x: Tensor) -> tuple[Tensor, Tensor]:
    """K fields sin(B_k x) and their Jacobians."""
    B = torch.randn(K, x.shape[-1], x.shape[-1], generator=torch.Generator().manual_seed(1))
    angle = torch.einsum("kab,...b->...ka", B, x)
    return angle.sin(), angle.cos()[..., None] * B


def cloud(d: int, *batch: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(*batch, N, d, generator=generator), torch.rand(*batch, N, generator=generator)
    return x, w / w.sum(-1, keepdim=True)


def others(at: Tensor, x: Tensor, w: Tensor, gamma: float) -> Tensor:
    """Σ_{j ≠ i} w_j |z|^γ(|z|²I − zzᵀ)(u(at_i) − u(x_j)), z = at_i − x_j."""
    own = torch.eye(N)[..., None]
    z = at[..., :, None, :] - x[..., None, :, :]
    square = z.square().sum(-1, keepdim=True) + own
    jump = waves(at)[0][..., :, None, :, :] - waves(x)[0][..., None, :, :, :]
    along = (z[..., None, :] * jump).sum(-1, keepdim=True)
    image = square[..., None] * jump - z[..., None, :] * along
    return ((1 - own) * w[..., None, :, None] * square ** (gamma / 2)).unsqueeze(-1).mul(image).sum(-3)


@pytest.mark.parametrize(("d", "gamma"), [(2, -2.0), (2, 1.0), (3, -3.0), (3, -1.3), (3, 0.0)])
def test_velocities_are_onsagers_and_jacobians_are_differences(d: int, gamma: float):
    x, w = cloud(d, 2)
    V, DV = Landau(gamma, 0.7).onsager_jacobian(ox.Particles(x, w), *waves(x))
    for k in range(K):
        u = waves(x)[0][..., k, :]
        torch.testing.assert_close(V[..., k, :], Landau(gamma, 0.7).onsager(ox.Particles(x, w), u))
    for m, step in enumerate(1e-6 * torch.eye(d)):
        slope = 0.7 * (others(x + step, x, w, gamma) - others(x - step, x, w, gamma)) / 2e-6
        torch.testing.assert_close(DV[..., m], slope, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("gamma", [-3.0, 0.0])
def test_one_field_is_as_many(gamma: float):
    """Whatever the route: moments, pairs of one field, pairs of many."""
    x, w = cloud(3)
    u, du = waves(x)
    V, DV = collisions_of_fields(x, u, du, w, gamma)
    one, slope = Landau(gamma).onsager_jacobian(ox.Particles(x, w), u[:, :1], du[:, :1])
    torch.testing.assert_close(one, V[:, :1])
    torch.testing.assert_close(slope, DV[:, :1])


def test_random_batches_are_the_same_for_all_fields():
    x, w = cloud(3)
    mu, (u, du) = ox.Particles(x, w), waves(x)
    found = [
        Landau(-3.0, batch=7, generator=torch.Generator().manual_seed(0)).onsager_jacobian(mu, u[:, k], du[:, k])
        for k in (slice(None), slice(1, 2))
    ]
    for all_fields, one in zip(*found, strict=True):
        torch.testing.assert_close(all_fields[:, 1:2], one)


@pytest.mark.parametrize("batch", [(), (2,)])
def test_the_size_of_tiles_does_not_matter(monkeypatch: pytest.MonkeyPatch, batch: tuple[int, ...]):
    x, w = cloud(3, *batch)
    whole = collisions_of_fields(x, *waves(x), w, -3.0)
    monkeypatch.setitem(tiles.TILE, "cpu", 1 << 12)
    for one, other in zip(whole, collisions_of_fields(x, *waves(x), w, -3.0), strict=True):
        torch.testing.assert_close(one, other)


def test_particles_at_one_place_are_refused():
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="at one place"):
        Landau(-3.0).onsager_jacobian(ox.Particles(x), *waves(x))
