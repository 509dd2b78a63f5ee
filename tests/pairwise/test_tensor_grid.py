"""Gaussian sums on a grid: equal to sums over all pairs with derivatives of every order; memory linear in particles."""

from __future__ import annotations

import math

import pytest
import torch
from largest import Largest
from torch import Tensor

from otprox import pairwise
from otprox.pairwise import gaussian_gather, gaussian_gather_curvatures, gaussian_gather_slopes, gaussian_spread
from otprox.pairwise.tensor_grid import BLOCK


def axes(d: int, n: int = 9) -> list[Tensor]:
    """Nodes at unequal spacings, as many as n + a along axis a."""
    lines = [torch.linspace(-3, 3, n + a) for a in range(d)]
    return [line + 0.05 * line**2 / (1 + a) for a, line in enumerate(lines)]


def data(n: int, d: int, batch: tuple[int, ...] = ()) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(n + d)
    x = 1.5 * torch.randn(*batch, n, d, generator=g)
    return x, torch.rand(n, generator=g), torch.randn([len(a) for a in axes(d)], generator=g)


def pairs(x: Tensor, d: int, width: float) -> Tensor:
    """exp(−|x_i − g|²/2·width²) for every node, (*batch, n, nodes)."""
    nodes = torch.cartesian_prod(*axes(d)).reshape(-1, d)
    return torch.exp(-(x[..., :, None, :] - nodes).square().sum(-1) / (2 * width**2))


@pytest.mark.parametrize(("block", "tile"), [(256, 1 << 18), (8, 1 << 18), (64, 1 << 9)])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_sums_are_those_over_all_pairs(monkeypatch, block, tile, batch, d):
    monkeypatch.setitem(BLOCK, "cpu", block)
    monkeypatch.setitem(pairwise.TILE, "cpu", tile)
    width, (x, w, c) = 0.3, data(300, d, batch)
    x.requires_grad_()
    all_pairs = pairs(x, d, width)
    f = gaussian_spread(x, w, axes(d), width)
    assert f.shape == (*batch, *c.shape)
    torch.testing.assert_close(f.flatten(-d), w @ all_pairs, rtol=1e-12, atol=1e-13)
    values = gaussian_gather(x, c, axes(d), width)
    torch.testing.assert_close(values, all_pairs @ c.flatten(), rtol=1e-12, atol=1e-13)
    (slopes,) = torch.autograd.grad((all_pairs @ c.flatten()).sum(), x)
    torch.testing.assert_close(gaussian_gather_slopes(x, c, axes(d), width), slopes, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(values.sum(), x)[0], slopes, rtol=1e-12, atol=1e-12)
    bends = gaussian_gather_curvatures(x, c, axes(d), width)
    for a in range(d):
        column = gaussian_gather_slopes(x, c, axes(d), width)[..., a].sum()
        (row,) = torch.autograd.grad(column, x)
        torch.testing.assert_close(bends[..., a, :], row, rtol=1e-12, atol=1e-11)


def test_gather_is_the_adjoint_of_spread():
    x, w, c = data(400, 2)
    left = (gaussian_spread(x, w, axes(2), 0.4) * c).sum()
    torch.testing.assert_close(left, (gaussian_gather(x, c, axes(2), 0.4) * w).sum(), rtol=1e-13, atol=0)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_derivatives_of_two_orders(monkeypatch, d):
    monkeypatch.setitem(pairwise.TILE, "cpu", 64)
    monkeypatch.setitem(BLOCK, "cpu", 2)
    x, w, _ = data(3, d, (2,))
    few = [axis[::4] for axis in axes(d)]
    c = torch.randn(2, *(len(axis) for axis in few), generator=torch.Generator().manual_seed(1))
    x, w, c = x.requires_grad_(), w.expand(2, 3).clone().requires_grad_(), c.requires_grad_()
    for f, inputs in (
        (lambda x, w: gaussian_spread(x, w, few, 0.8), (x, w)),
        (lambda x, c: gaussian_gather(x, c, few, 0.8), (x, c)),
        (lambda x, c: gaussian_gather_slopes(x, c, few, 0.8), (x, c)),
        (lambda x, c: gaussian_gather_curvatures(x, c, few, 0.8), (x, c)),
    ):
        assert torch.autograd.gradcheck(f, inputs)
        assert torch.autograd.gradgradcheck(f, inputs)


def test_derivatives_of_every_order_are_hermite_polynomials():
    """d^k/dx^k exp(−x²/2h²) = (−1/h)^k He_k(z) exp(−z²/2) at z = x/h."""
    z, h = 0.6, 0.5
    x = torch.tensor([[z * h]], requires_grad=True)
    value = gaussian_gather(x, torch.ones(1), [torch.tensor([0.0])], h)
    for k, hermite in enumerate((z, z**2 - 1, z**3 - 3 * z, z**4 - 6 * z**2 + 3), 1):
        (value,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        assert value.item() == pytest.approx((-1 / h) ** k * hermite * math.exp(-(z**2) / 2), rel=1e-12)


@pytest.mark.parametrize(("d", "nodes"), [(2, 100), (3, 20)])
def test_memory_is_linear_in_the_particles(monkeypatch, d, nodes):
    """No tensor beyond a tile, the particles and the nodes, also under autograd."""
    n, tile = 3000, 1 << 13
    monkeypatch.setitem(pairwise.TILE, "cpu", tile)
    x, w, _ = data(n, d)
    x.requires_grad_()
    lines = [torch.linspace(-6, 6, nodes)] * d
    with Largest() as largest:
        f = gaussian_spread(x, w, lines, 0.2)
        (f * f.detach()).sum().backward()
    assert largest.numel <= max(tile, nodes**d, d * n)  # n·nodes**d would be 24 million or more


def test_float32_and_far_points():
    """Nothing underflows into a NaN; points out of reach of every node sum to 0 to rounding."""
    x = torch.tensor([[0.0, 0.0], [1e4, -1e4]], dtype=torch.float32)
    line = torch.linspace(-1, 1, 11, dtype=torch.float32)
    f = gaussian_spread(x, torch.ones(2, dtype=torch.float32), [line, line], 0.5)
    assert f.dtype == torch.float32
    want = torch.exp(-2 * (line[:, None] ** 2 + line**2))
    torch.testing.assert_close(f, want, rtol=1e-5, atol=1e-6)
    slopes = gaussian_gather_slopes(x, f, [line, line], 0.5)
    assert slopes.isfinite().all()
    assert slopes[1].abs().max() < 1e-6


def test_what_is_refused():
    x, w, c = data(4, 2)
    with pytest.raises(ValueError, match="axes hold the nodes along each axis: 2 of them for x, not 1"):
        gaussian_spread(x, w, axes(1), 1.0)
    with pytest.raises(ValueError, match=r"w needs one entry a particle: 4 of them, not \(3,\)"):
        gaussian_spread(x, w[:3], axes(2), 1.0)
    with pytest.raises(ValueError, match=r"c needs one entry a node, \(\*batch, 9, 10\), not \(10, 9\)"):
        gaussian_gather(x, c.mT, axes(2), 1.0)
    with pytest.raises(ValueError, match="width must be > 0, not 0"):
        gaussian_spread(x, w, axes(2), 0.0)
