"""Sums on the line by sorting, and through random lines, against all pairs, with ties and all derivatives."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from otprox import Interaction, Particles, Quantiles
from otprox.kernels import RBF, Energy, Laplace, Sliced
from otprox.kernels.sliced import mean_width
from otprox.pairwise import Slope, convolve, gradient_sum, kernel_sum, sliced_sum, stein_sum, trace_sum

KERNELS = [Energy(), Laplace(0.4), Laplace(30.0), 0.5 * Laplace(1.0) + RBF(0.3) - 0.2 * Energy()]


def line(n: int, seed: int, ties: bool = False, batch: tuple[int, ...] = ()) -> Tensor:
    x = torch.randn(*batch, n, 1, generator=torch.Generator().manual_seed(seed))
    return (2 * x).round() / 2 if ties else x


@pytest.mark.parametrize("k", KERNELS, ids=str)
@given(seed=st.integers(0, 2**31), m=st.integers(1, 9), n=st.integers(1, 9), ties=st.booleans(), own=st.booleans())
def test_sorting_is_all_pairs(k, seed, m, n, ties, own):
    x = line(m, seed, ties)
    y = x if own else line(n, seed + 1, ties)
    c = torch.randn(len(y), 3, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(kernel_sum(k, x, y, c), kernel_sum(k, x, y, c, engine="tiled"), rtol=1e-12, atol=1e-12)
    found = gradient_sum(k, x, y, c[:, 0])
    torch.testing.assert_close(found, gradient_sum(k, x, y, c[:, 0], engine="tiled"), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("k", KERNELS, ids=str)
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("f", [kernel_sum, gradient_sum])
def test_derivatives_are_those_of_all_pairs(k, own, f):
    x, y = line(6, 0), line(5, 1)
    y[0] = x[0]
    b = torch.randn(6 if own else 5, generator=torch.Generator().manual_seed(2)).requires_grad_()

    def ladder(engine: str) -> list[Tensor]:
        p = x.clone().requires_grad_()
        q = p if own else y.clone().requires_grad_()
        value = f(k, p, q, b, engine=engine)
        first = torch.autograd.grad(value.sin().sum(), (p, q, b), create_graph=True, materialize_grads=True)
        total = sum(t.sin().sum() for t in first)
        return [value, *first, *torch.autograd.grad(total, (p, q, b), materialize_grads=True)]

    for found, expected in zip(ladder("auto"), ladder("tiled"), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("k", KERNELS, ids=str)
def test_batches_and_broadcasts(k):
    x, y = line(6, 0, batch=(3,)), line(5, 1)
    b = torch.randn(3, 5, generator=torch.Generator().manual_seed(2))
    found = gradient_sum(k, x, y, b)
    torch.testing.assert_close(found, torch.stack([gradient_sum(k, p, y, w) for p, w in zip(x, b, strict=True)]))
    s = torch.randn_like(x)
    torch.testing.assert_close(stein_sum(k, x, s), stein_sum(k, x, s, engine="tiled"), rtol=1e-11, atol=1e-12)
    single = kernel_sum(k, x.float(), y.float().expand(3, 5, 1), b.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), kernel_sum(k, x, y.expand(3, 5, 1), b), rtol=1e-5, atol=1e-5)


def test_a_million_points_in_closed_form():
    """Uniform on [0, 1]: ∫|x − y|dy = x² − x + ½, and ∫e^{−|x − y|}dy = 2 − e^{−x} − e^{x − 1}, by midpoints.

    A running sum of n terms is known to n·eps = 2e-10.
    """
    n = 1_000_000
    x = ((torch.arange(n) + 0.5) / n)[:, None]
    x = x[torch.randperm(n, generator=torch.Generator().manual_seed(0))]
    w = torch.full((n,), 1 / n)
    torch.testing.assert_close(-kernel_sum(Energy(), x, x, w), (x * x - x + 0.5)[:, 0], rtol=0, atol=2e-10)
    torch.testing.assert_close(gradient_sum(Energy(), x, x, w), 1 - 2 * x, rtol=0, atol=2e-10)
    expected = 2 - (-x).exp() - (x - 1).exp()
    torch.testing.assert_close(kernel_sum(Laplace(1.0), x, x, w), expected[:, 0], rtol=0, atol=2e-10)


def test_far_from_the_origin_nothing_cancels():
    x, y, w = line(50, 0), line(40, 1), torch.full((40,), 0.025)
    for k in KERNELS:
        torch.testing.assert_close(kernel_sum(k, x + 1e7, y + 1e7, w), kernel_sum(k, x, y, w), rtol=1e-7, atol=1e-7)


def test_interactions_on_the_line_take_the_route():
    """A million particles of the uniform law: ½∬−|x − y| = −1/6."""
    x = (torch.arange(1_000_000) + 0.5) / 1_000_000
    for mu in (Particles(x.flip(0)[:, None]), Quantiles(x)):
        assert Interaction(Energy())(mu).item() == pytest.approx(-1 / 6, rel=1e-9)
        torch.testing.assert_close(mu.convolve(Slope(Energy())), 1 - 2 * mu.x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("d", [1, 2, 3, 10])
def test_the_mean_of_projections_is_the_norm(d):
    g = torch.Generator().manual_seed(0)
    theta = torch.randn(400_000, d, generator=g)
    theta /= theta.norm(dim=-1, keepdim=True)
    z = torch.ones(d)
    each = mean_width(d) * (theta @ z).abs()
    assert each.mean().item() == pytest.approx(math.sqrt(d), abs=5 * each.std().item() / math.sqrt(len(each)) + 1e-12)


def sliced(d: int, directions: int = 16, seed: int = 0) -> Sliced:
    return Sliced(directions, generator=torch.Generator().manual_seed(seed)).fit(torch.zeros(1, d))


@pytest.mark.parametrize("tile", [1, 1 << 18])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_sliced_sums_are_those_of_its_matrix(monkeypatch, tile, batch):
    from otprox import pairwise

    monkeypatch.setitem(pairwise.TILE, "cpu", tile)
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(*batch, 7, 3, generator=g), torch.randn(*batch, 5, 3, generator=g)
    b, s = torch.randn(*batch, 5, generator=g), torch.randn(*batch, 7, 3, generator=g)
    k = sliced(3)
    torch.testing.assert_close(kernel_sum(k, x, y, b), (k(x, y) @ b[..., None])[..., 0])
    z = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad((k(z, y) @ b[..., None]).sum(), z)
    torch.testing.assert_close(gradient_sum(k, x, y, b), slope)
    (slope,) = torch.autograd.grad(kernel_sum(k, z, y, b).sum(), z)
    torch.testing.assert_close(gradient_sum(k, x, y, b), slope)
    own = torch.full((7,), 1 / 7).expand(*batch, 7)
    expected = (k(x, x) @ (own[..., None] * s)) - gradient_sum(k, x, x, own)
    torch.testing.assert_close(stein_sum(k, x, s), expected)


def test_the_standard_error_of_slicing_covers_the_truth():
    """Of 100 independent estimates of ∬−|x − y| about 95 lie within two standard errors."""
    g = torch.Generator().manual_seed(2)
    x, y = torch.randn(30, 4, generator=g), torch.randn(20, 4, generator=g) + 1
    a, b = torch.full((30,), 1 / 30), torch.full((20,), 1 / 20)
    truth = a @ Energy()(x, y) @ b
    k = Sliced(50, generator=g)
    estimates = [sliced_sum(k, x, y, b, a) for _ in range(100)]
    assert 88 <= sum(abs(e.value - truth) < 2 * e.error for e in estimates) <= 100
    at = sliced_sum(k, x, y, b)
    assert at.value.shape == at.error.shape == (30,)
    few, many = (sliced_sum(Sliced(L, generator=g), x, y, b, a).error for L in (100, 6400))
    assert few / many == pytest.approx(8, rel=0.3)


def test_a_sum_draws_lines_of_its_own_and_a_fitted_kernel_keeps_them():
    x, w = torch.randn(9, 2, generator=torch.Generator().manual_seed(0)), torch.full((9,), 1 / 9)
    k = Sliced(4, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(kernel_sum(k, x, x, w), kernel_sum(k, x, x, w))
    kept = k.fit(x)
    assert torch.equal(kernel_sum(kept, x, x, w), kernel_sum(kept, x, x, w))
    torch.testing.assert_close(convolve(kept, x, x, w), kernel_sum(kept, x, x, w))


def test_what_is_refused():
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match="needs an explicit generator"):
        Sliced(4)
    with pytest.raises(ValueError, match="at least one direction, not 0"):
        Sliced(0, generator=torch.Generator())
    with pytest.raises(TypeError, match="no lines until it is fitted"):
        Sliced(4, generator=torch.Generator())(x, x)
    with pytest.raises(ValueError, match="lines live in dimension 3, the points in 2"):
        sliced(3)(x, x)
    with pytest.raises(ValueError, match="at least 2 directions"):
        sliced_sum(Sliced(1, generator=torch.Generator()), x, x, x[:, 0])
    with pytest.raises(ValueError, match="cusp at x = y has no second derivative"):
        trace_sum(Energy(), x[:, :1], x[:, :1], x[:, 0])


@pytest.mark.parametrize("k", [Energy(), Laplace(1.0)], ids=str)
def test_no_sources_sum_to_zero(k):
    x = torch.zeros(2, 1)
    assert kernel_sum(k, x, x[:0], torch.ones(0)).tolist() == [0.0, 0.0]
