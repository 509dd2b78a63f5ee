"""Kernels against their formulas: values, derivatives at x = y, positivity, curvature bounds, fast routes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from otprox import Density, Grid, Torus, kernels, pairwise
from otprox.kernels import (
    RBF,
    Bilinear,
    Cosine,
    Energy,
    InverseMultiquadric,
    Laplace,
    PeriodicRBF,
    Riesz,
    Sobolev,
)

STATIONARY = [RBF(0.7), Laplace(0.7), InverseMultiquadric(0.7), Energy(), Riesz(0.5), Riesz(1.5), Riesz(2), Riesz(3)]


def points(n: int, d: int, seed: int = 0, batch: tuple[int, ...] = ()) -> Tensor:
    return torch.randn(*batch, n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("k", "value"),
    [
        (RBF(2.0), math.exp(-25 / 8)),
        (Laplace(2.0), math.exp(-2.5)),
        (InverseMultiquadric(2.0), (1 + 25 / 4) ** -0.5),
        (Energy(), -5.0),
        (Riesz(1.0), -5.0),
        (Riesz(0.5), -math.sqrt(5)),
        (Riesz(2), -25.0),
        (Bilinear(), -2.0 - 4.0 + 1.0),
    ],
    ids=str,
)
def test_values(k, value):
    """x − y = (3, 4)."""
    x, y = torch.tensor([[1.0, 2.0]]), torch.tensor([[-2.0, -2.0]])
    torch.testing.assert_close(k(x, y), torch.tensor([[value]]), rtol=1e-14, atol=0)


@pytest.mark.parametrize("k", [*STATIONARY, Bilinear()], ids=str)
def test_gram_is_a_symmetric_matrix_for_each_batch_item(k):
    x, y = points(4, 2, 0, (3,)), points(5, 2, 1, (3,))
    gram = k(x, y)
    assert gram.shape == (3, 4, 5)
    torch.testing.assert_close(gram, k(y, x).mT, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(gram[1], k(x[1], y[1]))
    assert k(x.float(), y.float()).dtype == torch.float32


@pytest.mark.parametrize("k", STATIONARY, ids=str)
def test_displacements_give_the_profile(k):
    x, y = points(4, 3), points(5, 3, 1)
    torch.testing.assert_close(k(x[:, None] - y), k(x, y))
    torch.testing.assert_close(k(x), k(-x))


@pytest.mark.parametrize("k", STATIONARY, ids=str)
def test_derivatives_of_two_orders_are_finite_at_0_and_right_elsewhere(k):
    z = torch.zeros(1, 2, requires_grad=True)
    (slope,) = torch.autograd.grad(k(z).sum(), z, create_graph=True)
    assert slope.tolist() == [[0.0, 0.0]]
    assert torch.autograd.grad(slope.sum(), z, materialize_grads=True)[0].isfinite().all()
    away = points(3, 2).requires_grad_()
    assert torch.autograd.gradcheck(k, (away,))
    assert torch.autograd.gradgradcheck(k, (away,))


@pytest.mark.parametrize("k", STATIONARY, ids=str)
def test_a_nan_is_passed_on(k):
    assert k(torch.tensor([[math.nan, 0.0], [1.0, 0.0]])).isnan().tolist() == [True, False]


@pytest.mark.parametrize(
    "k", [RBF(0.7), Laplace(0.7), InverseMultiquadric(0.7), Energy(), Riesz(0.5), Riesz(1.5)], ids=str
)
@given(seed=st.integers(0, 2**31), d=st.integers(1, 3))
def test_positive_definite_on_weights_that_sum_to_0(k, seed, d):
    x = points(8, d, seed)
    v = points(8, 1, seed + 1)
    v -= v.mean()
    assert (v.mT @ k(x, x) @ v).item() > 0
    if not isinstance(k, Energy | Riesz):
        assert torch.linalg.eigvalsh(k(x, x)).min() > -1e-12


@pytest.mark.parametrize("k", [*STATIONARY, Cosine([-1.0]), Cosine([0.5, -0.2, 0.1])], ids=str)
def test_curvatures_bound_the_hessian(k):
    d = 1 if isinstance(k, Cosine) else 2
    z = (3 * points(2000, d)).requires_grad_()
    (slope,) = torch.autograd.grad(k(z).sum(), z, create_graph=True)
    rows = [torch.autograd.grad(slope[:, i].sum(), z, retain_graph=True)[0] for i in range(d)]
    eigenvalues = torch.linalg.eigvalsh(torch.stack(rows, -2))
    low, high = k.curvatures
    assert low - 1e-12 <= eigenvalues.min().item()
    assert eigenvalues.max().item() <= high + 1e-12
    if isinstance(k, RBF | InverseMultiquadric) or k == Cosine([-1.0]):  # sharp
        assert eigenvalues.min().item() < low + 0.05 * abs(low)
        assert eigenvalues.max().item() > high - 0.05 * high


@pytest.mark.parametrize("coefficients", [[-1.0], [0.3, -1.0], [0.0, 0.0, 2.0, -0.1]])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_cosine_is_its_series_by_either_route(coefficients, batch):
    k = Cosine(coefficients)
    x, y = points(6, 1, 0, batch), points(5, 1, 1, batch)
    w = torch.softmax(points(5, 1, 2, batch)[..., 0], -1)
    z = x - y.mT
    expected = sum(c * torch.cos((i + 1) * z) for i, c in enumerate(coefficients))
    torch.testing.assert_close(k(x, y), expected)
    torch.testing.assert_close(pairwise.convolve(k, x, y, w), (expected * w[..., None, :]).sum(-1))
    slope = sum(-(i + 1) * c * torch.sin((i + 1) * z) for i, c in enumerate(coefficients))
    torch.testing.assert_close(pairwise.convolve(pairwise.Slope(k), x, y, w)[..., 0], (slope * w[..., None, :]).sum(-1))


@pytest.mark.parametrize("k", [Cosine([0.3, -1.0]), Sobolev(1.5, modes=4), Riesz(2)], ids=str)
def test_fast_routes_are_all_pairs_with_all_derivatives(k):
    inputs = points(4, 1), points(3, 1, 1), torch.tensor([0.5, -0.8, 0.3])  # weights of any sign
    torch.testing.assert_close(pairwise.convolve(k, *inputs), pairwise.convolve(lambda z: k(z), *inputs))
    inputs = tuple(t.requires_grad_() for t in inputs)
    for W in (k, pairwise.Slope(k)):
        assert torch.autograd.gradcheck(lambda *a, W=W: pairwise.convolve(W, *a), inputs)
        assert torch.autograd.gradgradcheck(lambda *a, W=W: pairwise.convolve(W, *a), inputs)


def test_fast_routes_are_taken():
    """A million points: all pairs would be 10¹²."""
    x = torch.linspace(-1, 1, 1_000_000)[:, None]
    w = torch.full((1_000_000,), 1e-6)
    torch.testing.assert_close(pairwise.convolve(Riesz(2), x[:1], x, w), -(1 + (x.square().mean(0))))
    slope = pairwise.convolve(pairwise.Slope(Cosine([1.0])), x, x, w)
    torch.testing.assert_close(slope, -x.sin() * x.cos().mean())


def test_riesz_2_far_from_the_origin_does_not_cancel():
    x = points(50, 2) + 1e7
    w = torch.full((50,), 0.02)
    torch.testing.assert_close(pairwise.convolve(Riesz(2), x, x, w), pairwise.convolve(lambda z: Riesz(2)(z), x, x, w))


def test_moments_are_not_for_a_torus():
    x, y, w = points(4, 1), points(3, 1, 1), torch.tensor([0.5, 0.2, 0.3])
    found = pairwise.convolve(Riesz(2), x, y, w, Torus(1.0))
    torch.testing.assert_close(found, pairwise.convolve(lambda z: Riesz(2)(z), x, y, w, Torus(1.0)))


@pytest.mark.parametrize("domain", [Torus(1.0), Torus(math.pi), Grid(0, 7, 16, periodic=True)])
def test_periods_that_do_not_match_are_refused(domain):
    x, w = torch.tensor([[0.1], [0.6]]), torch.tensor([0.5, 0.5])
    for k in (Cosine([1.0]), Sobolev(1.0), PeriodicRBF(0.3)):
        for W in (k, pairwise.Slope(k)):
            with pytest.raises(
                ValueError, match=f"{type(k).__name__} has period 6.28319, and the domain .*no multiple"
            ):
                pairwise.convolve(W, x, x, w, domain)
            if isinstance(domain, Grid):
                with pytest.raises(ValueError, match="the domain 7, which is no multiple"):
                    Density(torch.full((16,), 1 / 7), domain).convolve(W)
        k.check_domain(Grid(0, 1, 4))  # walls close nothing
        pairwise.convolve(k, x, x, w, Torus(4 * math.pi))
    with pytest.raises(ValueError, match="PeriodicRBF has period 1, and the domain 1.5"):
        pairwise.kernel_sum(PeriodicRBF(0.1, period=1.0), points(4, 2), points(2, 2), w, domain=Torus((1.0, 1.5)))


@pytest.mark.parametrize("batch", [(), (2,)])
def test_slopes_of_cosines_are_the_derivatives_of_their_sums(batch):
    g = torch.Generator().manual_seed(0)
    k = Cosine([0.7, -0.3, 0.2, 1.1])
    x, y, w = (torch.randn(*batch, *shape, generator=g) for shape in ((5, 1), (3, 1), (3,)))
    z = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(pairwise.convolve(k, z, y, w).sum(), z)
    slope = pairwise.Slope(k)
    torch.testing.assert_close(pairwise.convolve(slope, x, y, w), want)
    torch.testing.assert_close(pairwise.convolve(k, x, y, w), (k(x, y) @ w[..., None])[..., 0])
    y.requires_grad_(), w.requires_grad_()
    assert torch.autograd.gradcheck(lambda y, w: pairwise.convolve(slope, x, y, w), (y, w))


@pytest.mark.parametrize("s", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("period", [2 * math.pi, 1.0])
def test_sobolev_energy_is_the_sum_over_modes(s, period):
    """½∬k dμdμ = ½ Σ |κ|^{−2s}|c_k|² for particles on a torus of one and of two axes."""
    for dim, modes in ((1, 9), (2, 3)):
        x = period * torch.rand(6, dim, generator=torch.Generator().manual_seed(0))
        w = torch.softmax(points(6, 1, 3)[:, 0], 0)
        line = torch.arange(-modes, modes + 1) * 2 * math.pi / period
        kappa = torch.cartesian_prod(*[line] * dim).reshape(-1, dim)
        kappa = kappa[kappa.norm(dim=-1) > 0]
        c = torch.exp(-1j * (kappa @ x.mT)) @ w.to(torch.complex128)
        expected = (kappa.norm(dim=-1) ** (-2 * s) * c.abs() ** 2).sum()
        k = Sobolev(s, period, modes)
        torch.testing.assert_close(w @ pairwise.kernel_sum(k, x, x, w, domain=Torus(period)), expected)
        torch.testing.assert_close(w @ k(x, x) @ w, expected)


def test_sobolev_of_order_one_on_the_circle_is_a_parabola():
    """Σ_{k≠0} k^{−2}e^{ikz} = z²/2 − πz + π²/3 on [0, 2π]; truncation costs at most `error`, and nearly so at 0."""
    z = torch.linspace(0, 2 * math.pi, 101)[:, None]
    for modes in (8, 64):
        k = Sobolev(1.0, modes=modes)
        exact = (z * z / 2 - math.pi * z + math.pi**2 / 3)[:, 0]
        gap = (k(z) - exact).abs().max().item()
        assert 0.5 * k.error() < gap <= k.error()
    assert Sobolev(1.0).error(2) == math.inf
    for dim, s in ((1, 0.8), (2, 1.5), (3, 2.0)):
        few, many = (Sobolev(s, modes=m)(torch.zeros(1, dim)).item() for m in (3, 9))
        assert many - few <= Sobolev(s, modes=3).error(dim)


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("width", [0.05, 0.3, 2.0])
def test_periodic_rbf_is_the_sum_over_images(dim, width):
    z = torch.rand(20, dim, generator=torch.Generator().manual_seed(0))
    reach = math.ceil(9 * width + 1)
    images = torch.cartesian_prod(*[torch.arange(-reach, reach + 1.0)] * dim).reshape(-1, dim)
    exact = RBF(width)(z[:, None] + images).sum(-1)
    k = PeriodicRBF(width, period=1.0)
    torch.testing.assert_close(k(z), exact, rtol=1e-12, atol=1e-12)
    assert k.error(dim) < 1e-12
    short = PeriodicRBF(width, period=1.0, modes=2)
    at_0 = RBF(width)(images).sum() - short(torch.zeros(1, dim))
    assert short.error(dim) == pytest.approx(at_0.item(), rel=1e-6, abs=1e-14)
    assert (short(z) - exact).abs().max().item() <= short.error(dim) + 1e-12


def test_many_modes_of_many_points_are_summed_in_blocks(monkeypatch):
    k, x, y = Sobolev(1.2, 1.0, 5), points(9, 2), points(7, 2, 1)
    b, v = points(7, 1, 2)[:, 0], points(7, 2, 3)
    sums = [(pairwise.kernel_sum, b), (pairwise.gradient_sum, b), (pairwise.trace_sum, b), (pairwise.divergence_sum, v)]
    whole = [f(k, x, y, w) for f, w in sums]
    monkeypatch.setitem(pairwise.TILE, "cpu", 16)
    torch.testing.assert_close([f(k, x, y, w) for f, w in sums], whole)
    z = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(pairwise.kernel_sum(k, z, y, b).sum(), z)
    torch.testing.assert_close(slope, whole[1])


@pytest.mark.parametrize("width", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("make", [RBF, Laplace, InverseMultiquadric, Riesz])
def test_parameters_out_of_range_are_refused(make, width):
    with pytest.raises(ValueError, match=f"{make.__name__} needs .* > 0, not {width}"):
        make(width)


@pytest.mark.parametrize(
    "k",
    [
        *(RBF(0.7), Laplace(1.0), InverseMultiquadric(1.0), kernels.Energy(), Riesz(1.5), Riesz(2.0), Riesz(3.0)),
        *(Cosine([1.0, 0.5]), Cosine([1.0, -0.5]), Sobolev(1.0, 5.0, 4), -2.0 * RBF(1.0), -kernels.Energy()),
        *(RBF(1.0) + 0.5 * kernels.Energy(), 2.0 * RBF(1.0) + Laplace(0.5), kernels.Bilinear()),
        kernels.Weighted(lambda x: x[..., 0], lambda x: x[..., 0], RBF(1.0)),
        kernels.Weighted(lambda x: x[..., 0], lambda x: x[..., 0], kernels.Energy()),
    ],
    ids=[*"rbf laplace imq energy riesz1.5 riesz2 riesz3 cosine negative sobolev -rbf -energy".split()]
    + [*"rbf+energy sum bilinear weighted weighted-energy".split()],
)
@pytest.mark.parametrize("neutral", [False, True], ids=["any charge", "total 0"])
def test_definiteness_against_the_spectrum(k, neutral):
    x = 3 * points(40, 1)
    matrix = k(x, x)
    if neutral:
        centre = torch.eye(40) - 1 / 40
        matrix = centre @ matrix @ centre
    spectrum = torch.linalg.eigvalsh(matrix)
    assert (spectrum[0] < -1e-9 * spectrum.abs().max()).item() == (k.indefinite(neutral) is not None)


def test_series_refuse_what_they_cannot_be():
    for make in (Sobolev, PeriodicRBF):
        with pytest.raises(ValueError, match=f"{make.__name__} needs a period > 0, not 0.0"):
            make(1.0, 0.0)
        with pytest.raises(ValueError, match=f"{make.__name__} needs at least one mode, not 0"):
            make(1.0, 1.0, 0)
        with pytest.raises(ValueError, match=f"{make.__name__} needs an? .* > 0, not -1.0"):
            make(-1.0)


def test_cosine_refuses_what_is_not_a_series_on_a_circle():
    with pytest.raises(ValueError, match="at least one"):
        Cosine([])
    with pytest.raises(ValueError, match="finite coefficients"):
        Cosine([1.0, math.nan])
    with pytest.raises(TypeError, match="sequence of coefficients"):
        Cosine(1.0)
    with pytest.raises(ValueError, match=r"Cosine lives on a circle.*n, 2\)"):
        Cosine([1.0])(points(3, 2))


def test_kernels_are_values():
    assert RBF(1.0) == RBF(1.0) != RBF(2.0)
    assert Cosine([1, 2]) == Cosine((1.0, 2.0))
    assert len({kernels.Energy(), kernels.Energy()}) == 1
