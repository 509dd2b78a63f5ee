"""Sums of collisions: every route is the sum over pairs, keeps momentum and energy, and has the slope it says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from otprox.measures.base import jacobian
from otprox.pairwise import collide, collision_jacobian
from otprox.pairwise.collision_pairs import Pairs

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


@pytest.mark.parametrize("engine", ["auto", "dense", "tiled", "keops"])
@pytest.mark.parametrize("gamma", [-2.6, *GAMMAS])
def test_every_engine_is_the_sum_over_pairs(gamma: float, engine: str):
    if engine == "keops":
        pytest.importorskip("pykeops")
        if gamma not in (-3.0, -2.6, 0.5):  # each formula compiles for a while
            pytest.skip("one formula a kind")
    x, u, w = cloud(40, 3, 2)
    y, v, _ = cloud(40, 3, 2, seed=1)
    torch.testing.assert_close(collide(x, u, y, v, w, gamma, engine=engine), by_definition(x, u, y, v, w, gamma))
    torch.testing.assert_close(collide(x, u, x, u, w, gamma, engine=engine), by_definition(x, u, x, u, w, gamma))
    shared = collide(x[0], u, x[0], u, w, gamma, engine=engine)  # one cloud, a batch of covectors
    torch.testing.assert_close(shared, by_definition(x[0], u, x[0], u, w, gamma))


@pytest.mark.parametrize("d", [2, 3, 5])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_momentum_and_energy_are_kept_to_rounding(gamma: float, d: int):
    """Over several tiles, with weights, for any covector, in clusters too; and the form is positive."""
    if gamma < -d:
        return
    spread, u, w = cloud(700, d)
    for x in (spread, spread[:14].repeat_interleave(50, 0) + 1e-5 * spread):
        v = collide(x, u, x, u, w, gamma)
        size = (w * v.norm(dim=-1)).sum()
        assert (w @ v).norm() < 1e-13 * size
        assert (w * (v * x).sum(-1)).sum().abs() < 1e-13 * size * x.norm(dim=-1).max()
        assert (w * (v * u).sum(-1)).sum() > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("gamma", [-3.0, -2.0, 0.0, 0.5])
def test_close_pairs_lose_no_digits(gamma: float, dtype: torch.dtype):
    """Clusters of a width near the square root of the rounding of x, against the same numbers in double precision."""
    x, rough, w = cloud(400, 3)
    width = 20 * torch.finfo(dtype).eps ** 0.5
    x = (x[:8].repeat_interleave(50, 0) + width * x + 3).to(dtype)
    for u in (rough.to(dtype), x.sin()):
        found = collide(x, u, x, u, w.to(dtype), gamma)
        exact = by_definition(*(t.double() for t in (x, u, x, u, w.to(dtype))), gamma)
        assert (found - exact).norm() < 20 * torch.finfo(dtype).eps * exact.norm()


@pytest.mark.parametrize("n", [12, 700])
@pytest.mark.parametrize("gamma", [-3.0, 0.0, 0.5])
def test_derivatives_are_finite_differences(gamma: float, n: int):
    x, u, w = cloud(n, 3)
    way = cloud(n, 3, seed=7)[0] / n
    g, h = cloud(n, 3, seed=8)[0], 1e-5

    def value(s: Tensor) -> Tensor:
        return (g * collide(x + s * way, u + s * way.flip(-1), x + s * way, u + s * way.flip(-1), w, gamma)).sum()

    s = torch.zeros((), requires_grad=True)
    (slope,) = torch.autograd.grad(value(s), s)
    rate = (value(torch.tensor(h)) - value(torch.tensor(-h))) / (2 * h)
    torch.testing.assert_close(slope, rate, rtol=1e-5, atol=1e-8)


def test_points_among_the_sources():
    """As a field is asked at the particles through other tensors: equal covectors at one place count 0."""
    x, u, w = cloud(30, 3)
    torch.testing.assert_close(collide(x.clone(), u, x, u, w, -3.0), collide(x, u, x, u, w, -3.0))
    with pytest.raises(ValueError, match="at one place"):
        collide(x[:1].clone(), u[:1] + 1, x, u, w, -3.0)
    assert collide(x[:1].clone(), u[:1] + 1, x, u, w, -2.0).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("gamma", [-3.0, -2.0, 0.0, 0.5])
def test_slopes_in_tiles_are_those_of_all_pairs(gamma: float, dtype: torch.dtype):
    """Over several tiles, in clusters too, against the plain formulas in double precision."""
    spread, u, w = cloud(500, 3)
    du = torch.randn(500, 3, 3, generator=torch.Generator().manual_seed(3))
    for x in (spread, spread[:10].repeat_interleave(50, 0) + 1e-3 * spread):
        given = [t.to(dtype) for t in (x, u, du, w)]
        U, J = collision_jacobian(*given[:3], *given[:2], given[3], gamma)
        a, b, c, e = (t.double() for t in given)
        exact = Pairs(a, b, a, b, e[:, None], gamma)
        tol = (1e-9 if dtype == torch.float64 else 2e-4) if gamma < 0 else 1e2 * torch.finfo(dtype).eps
        assert (U - exact.velocity()).norm() < tol * exact.velocity().norm()
        assert (J - exact.jacobian(c)).norm() < tol * exact.jacobian(c).norm()
        V, L = collision_jacobian(given[0].clone(), *given[1:3], *given[:2], given[3], gamma)
        torch.testing.assert_close((V, L), (U, J), rtol=tol, atol=tol * J.abs().max().item())
