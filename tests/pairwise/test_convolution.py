"""Sums over pairs: equal to dense sums with all derivatives, whatever the tiles; memory linear in the points."""

from __future__ import annotations

import math
from importlib.util import find_spec

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from largest import Largest
from torch import Tensor

from otprox import Torus, pairwise
from otprox.kernels import RBF, Cosine, Energy
from otprox.pairwise import Slope, convolve, log_gaussian_sum


def smooth(z: Tensor) -> Tensor:
    return torch.exp(-z.square().sum(-1) / 3) + 0.1 * z.square().sum(-1)


def naive_norm(z: Tensor) -> Tensor:
    """|z| with a NaN gradient at 0."""
    return z.square().sum(-1).sqrt()


def log_gas(z: Tensor) -> Tensor:
    return -z.norm(dim=-1).log()


def dense(W, x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    return (W(x[..., :, None, :] - y[..., None, :, :]) * w[..., None, :]).sum(-1)


def data(
    m: int = 7, n: int = 5, d: int = 2, batch: tuple[int, ...] = (), seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    w = torch.rand(*batch, n, generator=g)
    return torch.randn(*batch, m, d, generator=g), torch.randn(*batch, n, d, generator=g), w / w.sum(-1, keepdim=True)


@pytest.fixture(params=[1, 24, 1 << 18])
def tile(request, monkeypatch) -> int:
    """One row a tile, a few rows a tile, one tile."""
    monkeypatch.setitem(pairwise.TILE, "cpu", request.param)
    return request.param


@pytest.mark.parametrize("batch", [(), (3,), (2, 2)])
@pytest.mark.parametrize("d", [1, 2, 5])
def test_convolve_is_the_dense_sum(tile, batch, d):
    x, y, w = data(d=d, batch=batch)
    torch.testing.assert_close(convolve(smooth, x, y, w), dense(smooth, x, y, w), rtol=1e-13, atol=1e-14)


def test_convolve_broadcasts_the_batch(tile):
    x, y, w = data(batch=(3,))
    torch.testing.assert_close(convolve(smooth, x[0], y, w), dense(smooth, x[0], y, w))
    torch.testing.assert_close(convolve(smooth, x, y[0], w[0]), dense(smooth, x, y[0], w[0]))


@pytest.mark.parametrize("W", [smooth, RBF(0.7), log_gas])
def test_first_derivatives_are_those_of_the_dense_sum(tile, W):
    x, y, w = (t.requires_grad_() for t in data(batch=(2,)))
    v = torch.randn(2, 7, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad(convolve(W, x, y, w), (x, y, w), v)
    for a, b in zip(found, torch.autograd.grad(dense(W, x, y, w), (x, y, w), v), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_gradcheck_and_gradgradcheck(tile):
    inputs = tuple(t.requires_grad_() for t in data(m=3, n=4))
    assert torch.autograd.gradcheck(lambda *a: convolve(smooth, *a), inputs)
    assert torch.autograd.gradgradcheck(lambda *a: convolve(smooth, *a), inputs)
    assert torch.autograd.gradcheck(lambda *a: convolve(Slope(smooth), *a), inputs)


def test_derivative_in_some_arguments_only(tile):
    x, y, w = data()
    for i in range(3):
        inputs = [t.clone() for t in (x, y, w)]
        inputs[i].requires_grad_()
        (found,) = torch.autograd.grad(convolve(smooth, *inputs).sum(), inputs[i])
        (expected,) = torch.autograd.grad(dense(smooth, *inputs).sum(), inputs[i])
        torch.testing.assert_close(found, expected)


def test_points_that_are_their_own_sources(tile):
    x, _, w = data(m=6, n=6)
    x.requires_grad_()
    energy = w @ convolve(smooth, x, x, w)
    (found,) = torch.autograd.grad(energy, x, create_graph=True)
    (expected,) = torch.autograd.grad(w @ dense(smooth, x, x, w), x, create_graph=True)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(g.square().sum(), x)[0] for g in (found, expected)))


@pytest.mark.parametrize("W", [smooth, RBF(0.7), Energy(), Cosine([0.3, -1.0])])
def test_slope_is_the_gradient_at_the_points_only(tile, W):
    x, _, w = data(m=6, n=6, d=1, batch=(2,))
    x.requires_grad_()
    slope = convolve(Slope(W), x, x, w)
    at = x.detach().clone().requires_grad_()
    (expected,) = torch.autograd.grad(convolve(W, at, x.detach(), w).sum(), at)
    torch.testing.assert_close(slope, expected)
    assert slope.requires_grad
    assert not convolve(Slope(W), x.detach(), x.detach(), w).requires_grad


def test_parameters_of_W_receive_their_gradients(tile):
    x, y, w = data()
    a = torch.tensor(0.8, requires_grad=True)

    def W(z: Tensor) -> Tensor:
        return torch.exp(-a * z.square().sum(-1))

    (found,) = torch.autograd.grad(convolve(W, x, y, w).sum(), a)
    torch.testing.assert_close(found, torch.autograd.grad(dense(W, x, y, w).sum(), a)[0])
    (found,) = torch.autograd.grad(convolve(Slope(W), x, y, w).square().sum(), a)
    at = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(dense(W, at, y, w).sum(), at, create_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad(slope.square().sum(), a)[0])


def test_torus_takes_the_shortest_displacement(tile):
    x, y, w = data(d=1)
    found = convolve(naive_norm, x, y, w, Torus(1.0))
    gap = torch.remainder(x - y[:, 0], 1.0)
    torch.testing.assert_close(found, torch.minimum(gap, 1 - gap) @ w)


@pytest.mark.parametrize("route", ["energy", "slope"])
def test_a_slope_that_autograd_lacks_at_0_is_0(tile, route):
    x, _, w = data(m=6, n=6)
    x[1] = x[0]
    z = x[:, None] - x
    unit = torch.nan_to_num(z / z.norm(dim=-1, keepdim=True))
    field = (w[:, None] * unit).sum(1)
    if route == "slope":
        torch.testing.assert_close(convolve(Slope(naive_norm), x, x, w), field)
    else:
        x.requires_grad_()
        (g,) = torch.autograd.grad(0.5 * w @ convolve(naive_norm, x, x, w), x)
        torch.testing.assert_close(g, w[:, None] * field)


def test_curvature_at_0_is_kept_where_it_exists(tile):
    """The Hessian of φ at a particle counts its own pair: ∇²W(0)·w_i."""
    x, _, w = data(m=4, n=4, d=1)
    at = x.clone().requires_grad_()
    slope = convolve(Slope(lambda z: z.square().sum(-1)), at, x, w)
    torch.testing.assert_close(torch.autograd.grad(slope.sum(), at)[0], torch.full_like(x, 2.0))


def test_an_infinite_W_at_0_leaves_out_the_point_itself(tile):
    x, _, w = data(m=6, n=6)
    distance = (x[:, None] - x).norm(dim=-1)
    off = ~torch.eye(6, dtype=torch.bool)
    expected = (torch.where(off, -torch.where(off, distance, 1).log(), 0) * w).sum(-1)
    torch.testing.assert_close(convolve(log_gas, x, x, w), expected)
    pull = torch.where(off[..., None], -(x[:, None] - x) / torch.where(off, distance, 1)[..., None] ** 2, 0)
    torch.testing.assert_close(convolve(Slope(log_gas), x, x, w), (w[:, None] * pull).sum(1))
    x[3] = x[2]
    with pytest.raises(ValueError, match="infinite and two particles"):
        convolve(log_gas, x, x, w)
    with pytest.raises(ValueError, match="infinite and two particles"):
        convolve(Slope(log_gas), x, x, w)


@pytest.mark.parametrize("W", [smooth, RBF(0.7), Energy(), Slope(smooth), Slope(Energy())])
def test_engines_agree(W):
    x, y, w = data(d=1)
    whole = convolve(W, x, y, w, engine="dense")
    torch.testing.assert_close(convolve(W, x, y, w, engine="tiled"), whole, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(convolve(W, x, y, w), whole, rtol=1e-12, atol=1e-13)


def test_errors_name_W():
    x, y, w = data()
    with pytest.raises(ValueError, match="engine='keops' has no formula for this kernel"):
        convolve(smooth, x, y, w, engine="keops")
    with pytest.raises(ValueError, match=r"W must map displacements .*: got \(.*2\)"):
        convolve(lambda z: z.square(), x, y, w)
    with pytest.raises(ValueError, match="W must map displacements .*: got float"):
        convolve(lambda z: 1.0, x, y, w)
    with pytest.raises(ValueError, match=r"W\(0\) is NaN"):
        convolve(lambda z: z.norm(dim=-1) * z.norm(dim=-1).log(), x, y, w)
    with pytest.raises(TypeError, match="W is not differentiable"):
        convolve(Slope(lambda z: z.detach().square().sum(-1)), x, y, w)


def test_a_nan_in_the_points_is_passed_on(tile):
    x, y, w = data()
    x[0, 0] = math.nan
    for W in (smooth, naive_norm, Energy(), log_gas):
        assert convolve(W, x, y, w).isnan().tolist() == [True] + [False] * 6
    assert log_gaussian_sum(x, y, w.log(), 0.5).isnan()[0]


@pytest.mark.parametrize("job", ["energy", "slope", "log"])
def test_memory_is_linear(monkeypatch, job):
    """No tensor beyond a tile or the points, and what the graph keeps is of the size of the points."""
    n, tile = 3000, 1 << 16
    monkeypatch.setitem(pairwise.TILE, "cpu", tile)
    x, _, w = data(m=n, n=n)
    kept: list[int] = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t)
    with Largest() as largest:
        if job == "slope":
            convolve(Slope(smooth), x, x, w)
        else:
            x.requires_grad_()
            with hooks:
                value = w @ (convolve(smooth, x, x, w) if job == "energy" else log_gaussian_sum(x, x, w.log(), 0.3))
            value.backward()
    assert tile / 2 < largest.numel <= tile
    assert job == "slope" or 0 < sum(kept) < 20 * n


@pytest.mark.parametrize("k", [RBF(0.7), Energy()], ids=str)
def test_memory_of_kernels_is_linear_in_derivatives_of_two_orders(monkeypatch, k):
    n, tile = 1500, 1 << 14
    monkeypatch.setitem(pairwise.TILE, "cpu", tile)
    x, _, w = data(m=n, n=n)
    x.requires_grad_()
    with Largest() as largest:
        (slope,) = torch.autograd.grad(w @ convolve(k, x, x, w), x, create_graph=True)
        slope.square().sum().backward()
    assert tile / 2 < largest.numel <= tile


def direct_log_sum(x: Tensor, y: Tensor, log_w: Tensor, width: float) -> Tensor:
    square = ((x[..., :, None, :] - y[..., None, :, :]) / width).square().sum(-1)
    return torch.logsumexp(log_w[..., None, :] - 0.5 * square, -1)


@pytest.mark.parametrize("width", [1e-3, 0.1, 1.0, 100.0])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_log_gaussian_sum_at_every_width(tile, width, offset):
    x, y, w = data(batch=(2,))
    found = log_gaussian_sum(x + offset, y + offset, w.log(), width)
    expected = direct_log_sum(x + offset, y + offset, w.log(), width)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def test_log_gaussian_sum_where_matrix_products_would_cancel():
    """Two close pairs 10⁹ widths apart."""
    x = torch.tensor([[0.0], [1.0], [1e9], [1e9 + 1]])
    found = log_gaussian_sum(x, x, torch.zeros(4), 1.0)
    torch.testing.assert_close(found, torch.full((4,), math.log(1 + math.exp(-0.5))), rtol=1e-14, atol=0)


def test_log_gaussian_sum_in_float32():
    x, y, w = (t.float() for t in data(m=40, n=50))
    exact = direct_log_sum(x.double(), y.double(), w.double().log(), 0.05)
    found = log_gaussian_sum(x, y, w.log(), 0.05)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-3)


def test_log_gaussian_sum_without_underflow_and_with_empty_weights():
    far = log_gaussian_sum(torch.tensor([[100.0]]), torch.zeros(1, 1), torch.zeros(1), 1.0)
    assert far.item() == pytest.approx(-5000.0, rel=1e-14)
    x, y, w = data()
    w = torch.cat([w, torch.zeros(1)])
    padded = torch.cat([y, x[:1]]).requires_grad_()
    value = log_gaussian_sum(x, padded, w.log(), 0.5)
    torch.testing.assert_close(value, log_gaussian_sum(x, y, w[:-1].log(), 0.5))
    (g,) = torch.autograd.grad(value.sum(), padded)
    assert g[-1].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("width", [0.4, 2.0])
def test_log_gaussian_sum_derivatives(tile, width):
    x, y, w = data(m=3, n=4)
    inputs = (x.requires_grad_(), y.requires_grad_(), w.log().requires_grad_())
    assert torch.autograd.gradcheck(lambda *a: log_gaussian_sum(*a, width), inputs)
    assert torch.autograd.gradgradcheck(lambda *a: log_gaussian_sum(*a, width), inputs)


def test_log_gaussian_sum_derivatives_far_apart(tile):
    x = torch.tensor([[0.0], [1.0], [1e9]], requires_grad=True)
    y = torch.tensor([[0.5], [1e9 + 0.25]], requires_grad=True)
    gx, gy = torch.autograd.grad(log_gaussian_sum(x, y, torch.zeros(2), 1.0).sum(), (x, y))
    torch.testing.assert_close(gx, torch.tensor([[0.5], [-0.5], [0.25]]))
    torch.testing.assert_close(gy, torch.tensor([[0.0], [-0.25]]))


@given(seed=st.integers(0, 2**31), shift=st.floats(-100, 100), c=st.floats(-5, 5), d=st.integers(1, 4))
def test_convolve_sees_differences_and_is_linear_in_the_weights(seed, shift, c, d):
    x, y, w = data(d=d, seed=seed)
    v = torch.rand(5, generator=torch.Generator().manual_seed(seed))
    moved = convolve(smooth, x + shift, y + shift, w)
    torch.testing.assert_close(moved, convolve(smooth, x, y, w), rtol=1e-9, atol=1e-9)
    both = convolve(smooth, x, y, w + c * v)
    torch.testing.assert_close(both, convolve(smooth, x, y, w) + c * convolve(smooth, x, y, v), rtol=1e-10, atol=1e-10)


@given(seed=st.integers(0, 2**31), shift=st.floats(-100, 100), width=st.floats(0.05, 20))
def test_log_gaussian_sum_sees_differences(seed, shift, width):
    x, y, w = data(seed=seed)
    moved = log_gaussian_sum(x + shift, y + shift, w.log(), width)
    torch.testing.assert_close(moved, log_gaussian_sum(x, y, w.log(), width), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("empty", [0, 12, 30])
@pytest.mark.parametrize("width", [0.05, 1.0])
def test_a_log_sum_built_up_in_tiles(monkeypatch, width, empty):
    """With sources of no weight, whole tiles of them, and sources that dwarf all those before them."""
    x, y, w = data(m=33, n=30, batch=(2,))
    log_w = w.log() + torch.linspace(0, 3000, 30)
    log_w[..., :empty] = -math.inf
    expected = direct_log_sum(x, y, log_w, width)
    for size in (16, 100, 1 << 18):
        monkeypatch.setitem(pairwise.TILE, "cpu", size)
        for weights in (log_w, log_w.flip(-1)):
            sources = y if weights is log_w else y.flip(-2)
            found = log_gaussian_sum(x, sources, weights, width)
            torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-11)
            torch.testing.assert_close(log_gaussian_sum(x, sources, weights, width, engine="dense"), found)


@pytest.mark.skipif(not find_spec("pykeops"), reason="pykeops is not installed")
def test_a_log_sum_by_keops():
    x, y, w = data(batch=(2,))
    found = log_gaussian_sum(x, y, w.log(), 0.5, engine="keops")
    torch.testing.assert_close(found, log_gaussian_sum(x, y, w.log(), 0.5), rtol=1e-12, atol=1e-12)
