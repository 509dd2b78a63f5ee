"""Sums with kernels against dense matrices with derivatives of two orders, for every route, engine and size of tile."""

from __future__ import annotations

import math
import re
from importlib.util import find_spec

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import jvp

from otprox import Interaction, Particles, Torus, pairwise
from otprox.kernels import (
    RBF,
    Bilinear,
    Cosine,
    Energy,
    InverseMultiquadric,
    Kernel,
    Laplace,
    PeriodicRBF,
    RandomBatch,
    Rescaled,
    Riesz,
    Sliced,
    Sobolev,
    Weighted,
)
from otprox.pairwise import (
    choose,
    divergence_sum,
    explain,
    gradient_sum,
    kernel_sum,
    stein_discrepancy,
    stein_sum,
    trace_sum,
)


def label(value: object) -> str:
    """A test's name for a value: without addresses of functions, which differ from one worker to another."""
    return re.sub(r" at 0x\w+", "", str(value))


WEIGHTED = Weighted(lambda x: 0.3 * x.square().sum(-1) + x[..., 0].sin(), lambda x: x.square().sum(-1) / 2, RBF(0.8))
SMOOTH = [
    RBF(0.7),
    InverseMultiquadric(0.7),
    WEIGHTED,
    Riesz(2),
    Bilinear(),
    0.5 * RBF(0.4) - 2 * RBF(1.1),
    RBF(1.0) + Bilinear(),
]
CUSPS = [Laplace(0.7), Energy(), Riesz(1.5), 0.5 * Laplace(1.0) + RBF(0.3)]
NARROW = RBF(0.02)  # its squared distances are differences


def data(seed: int = 0, *, m: int = 7, n: int = 5, d: int = 2, batch: tuple[int, ...] = ()) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    shapes = (m, d), (n, d), (n,), (n, d)
    return tuple(torch.randn(*batch, *shape, generator=g) for shape in shapes)


@pytest.fixture(params=[9, 1 << 18])
def tile(request, monkeypatch) -> int:
    """Tiles of three rows and columns, and one tile."""
    monkeypatch.setitem(pairwise.TILE, "cpu", request.param)
    return request.param


def along(f, x: Tensor, axis: int) -> Tensor:
    direction = torch.zeros_like(x)
    direction[..., axis] = 1
    return jvp(f, (x,), (direction,))[1]


def slopes(k: Kernel, x: Tensor, y: Tensor, b: Tensor, argument: int) -> Tensor:
    """Σ_j b_j ∇k(x_i, y_j) in the first or second argument, by forward differentiation of the dense matrix."""
    parts = [
        along(lambda z: k(z, y), x, a) if argument == 1 else along(lambda z: k(x, z), y, a) for a in range(x.shape[-1])
    ]
    return torch.cat([part @ b[..., None] for part in parts], -1)


@pytest.mark.parametrize("k", [*SMOOTH, *CUSPS], ids=label)
def test_divergence_sum_is_the_dense_one(tile, k):
    x, y, _, v = data()

    def dense(x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return sum(along(lambda z: k(z, y), x, a) @ v[:, a] for a in range(2))

    assert_same_derivatives(lambda *a: divergence_sum(k, *a), dense, (x, y, v))


def traces(k: Kernel, x: Tensor, y: Tensor, b: Tensor) -> Tensor:
    mixed = [along(lambda p: along(lambda q: k(p, q), y, a), x, a) for a in range(x.shape[-1])]  # noqa: B023
    return (sum(mixed) @ b[..., None])[..., 0]


def assert_same_derivatives(f, g, inputs: tuple[Tensor, ...], rtol: float = 1e-10) -> None:
    """Values and derivatives of two orders of f and g, to `rtol` of their largest entry."""

    def ladder(f) -> list[Tensor]:
        at = tuple(t.detach().clone().requires_grad_() for t in inputs)
        value = f(*at)
        weights = torch.linspace(0.5, 1.5, value.numel()).view(value.shape)
        first = torch.autograd.grad((value * weights).sum(), at, create_graph=True, materialize_grads=True)
        total = sum((t * torch.linspace(-1, 1, t.numel()).view(t.shape)).sum() for t in first)
        return [value, *first, *torch.autograd.grad(total, at, materialize_grads=True)]

    for found, expected in zip(ladder(f), ladder(g), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=rtol * max(1.0, expected.abs().max().item()))


@pytest.mark.parametrize("k", [*SMOOTH, *CUSPS, NARROW], ids=label)
def test_kernel_sum_is_the_dense_product(tile, k):
    x, y, b, c = data()
    assert_same_derivatives(lambda *a: kernel_sum(k, *a), lambda x, y, c: k(x, y) @ c, (x, y, c))
    torch.testing.assert_close(kernel_sum(k, x, y, b), k(x, y) @ b, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("k", [*SMOOTH, *CUSPS, NARROW], ids=label)
@pytest.mark.parametrize("d", [1, 3, 6])
def test_gradient_sum_is_the_dense_slope(tile, k, d):
    x, y, b, _ = data(d=d)
    assert_same_derivatives(lambda *a: gradient_sum(k, *a), lambda x, y, b: slopes(k, x, y, b, 1), (x, y, b))


@pytest.mark.parametrize("k", [*SMOOTH, *CUSPS], ids=label)
def test_stein_sum_of_points_on_themselves(tile, k):
    x, w, s = (data(n=9)[i] for i in (1, 2, 3))

    def dense(x: Tensor, s: Tensor, w: Tensor) -> Tensor:
        return k(x, x) @ (w[:, None] * s) + slopes(k, x, x, w, 2)

    assert_same_derivatives(lambda x, s, w: stein_sum(k, x, s, w), dense, (x, s, w))
    uniform = torch.full((9,), 1 / 9)
    torch.testing.assert_close(stein_sum(k, x, s), dense(x, s, uniform), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(stein_sum(k, x, s, at=x[:4] + 0), dense(x, s, uniform)[:4], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("k", SMOOTH, ids=label)
@pytest.mark.parametrize("d", [1, 3])
def test_trace_sum_is_the_dense_mixed_derivative(tile, k, d):
    x, y, b, _ = data(d=d)
    assert_same_derivatives(lambda *a: trace_sum(k, *a), lambda *a: traces(k, *a), (x, y, b))
    assert_same_derivatives(lambda x, b: trace_sum(k, x, x, b), lambda x, b: traces(k, x, x, b), (y, b))


@pytest.mark.parametrize("batch", [(3,), (2, 2)])
@pytest.mark.parametrize("k", [RBF(0.7), Laplace(0.7), RBF(1.0) + Bilinear()], ids=label)
def test_a_batch_equals_single_sums_and_broadcasts(tile, k, batch):
    x, y, b, c = data(batch=batch)
    for f, w in ((kernel_sum, b), (kernel_sum, c), (gradient_sum, b)):
        found = f(k, x, y, w).flatten(0, len(batch) - 1)
        one = [f(k, *item) for item in zip(*(t.flatten(0, len(batch) - 1) for t in (x, y, w)), strict=True)]
        torch.testing.assert_close(found, torch.stack(one), rtol=1e-12, atol=1e-13)
    first = (0,) * len(batch)
    shared = gradient_sum(k, x, y[first], b)
    torch.testing.assert_close(shared, gradient_sum(k, x, y[first].expand_as(y), b), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(stein_sum(k, y, c)[first], stein_sum(k, y[first], c[first]))


def test_a_width_for_each_item_is_a_rescaled_kernel(tile):
    x, y, b, c = data(batch=(3,))
    h = torch.tensor([0.5, 1.0, 2.0])
    k = Rescaled(RBF(1.0), h)
    torch.testing.assert_close(k(x, y), torch.stack([RBF(w)(p, q) for w, p, q in zip(h.tolist(), x, y, strict=True)]))
    for f, w in ((kernel_sum, b), (gradient_sum, b), (divergence_sum, c), (trace_sum, b)):
        one = [f(RBF(h), *item) for h, *item in zip(h.tolist(), x, y, w, strict=True)]
        torch.testing.assert_close(f(k, x, y, w), torch.stack(one), rtol=1e-11, atol=1e-12)
    one = [stein_sum(RBF(h), *item) for h, *item in zip(h.tolist(), y, c, strict=True)]
    torch.testing.assert_close(stein_sum(k, y, c), torch.stack(one), rtol=1e-11, atol=1e-12)
    assert_same_derivatives(
        lambda h, x: kernel_sum(Rescaled(RBF(1.0), h), x, y, b),
        lambda h, x: (Rescaled(RBF(1.0), h)(x, y) @ b[..., None])[..., 0],
        (h, x),
    )
    with pytest.raises(ValueError, match="Rescaled needs lengths > 0, not 0.0"):
        Rescaled(RBF(1.0), torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize("k", SMOOTH, ids=label)
def test_stein_discrepancy_is_its_double_sum(tile, k):
    _, x, b, s = data(n=6)
    w = torch.softmax(b, 0)

    def dense(x: Tensor, s: Tensor, w: Tensor) -> Tensor:
        inner = (s @ s.mT) * k(x, x) + sum(
            s[:, a, None] * along(lambda z: k(x, z), x, a)  # noqa: B023
            + s[None, :, a] * along(lambda z: k(z, x), x, a)
            + along(lambda p: along(lambda q: k(p, q), x, a), x, a)  # noqa: B023
            for a in range(2)
        )
        return w @ inner @ w

    assert_same_derivatives(lambda *a: stein_discrepancy(k, *a), dense, (x, s, w))


@given(m=st.floats(-3, 3), s=st.floats(0.3, 2), h=st.floats(0.3, 3), d=st.integers(1, 3))
def test_stein_discrepancy_of_a_gaussian(m, s, h, d):
    """KSD²(N(m, s²I) | N(0, I)) = (h²/(h² + 2s²))^{d/2} [d(1 − s²)²/(h² + 2s²) + |m|²] for RBF(h), by Gauss–Hermite."""
    if s > h:  # the nodes resolve the kernel
        s, h = h, s
    order = 24 if d < 3 else 12
    k = torch.arange(1, order, dtype=torch.float64).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(k, 1) + torch.diag(k, -1))
    weights = vectors[0].square()
    z = torch.cartesian_prod(*[nodes] * d).reshape(-1, d)
    w = torch.cartesian_prod(*[weights] * d).reshape(-1, d).prod(-1)
    x = s * z
    x[:, 0] += m
    found = stein_discrepancy(RBF(h), x, -x, w)
    q = h * h + 2 * s * s
    expected = (h * h / q) ** (d / 2) * (d * (1 - s * s) ** 2 / q + m * m)
    assert found.item() == pytest.approx(expected, rel=1e-6 if d < 3 else 1e-3, abs=1e-8 if d < 3 else 1e-4)


def test_the_velocity_of_bilinear_stein_is_its_closed_form():
    """For k = xᵀy + 1: v(x) = E[s] + E[s yᵀ]x + x."""
    _, x, _, s = data(n=9)
    expected = s.mean(0) + x @ (x.mT @ s) / 9 + x
    torch.testing.assert_close(stein_sum(Bilinear(), x, s), expected)


@pytest.mark.parametrize("k", [RBF(0.3), Laplace(0.3)], ids=label)
def test_on_a_torus_displacements_are_the_shortest(tile, k):
    x, y, b, _ = data(d=2)
    torus = Torus(1.0)
    x, y = torus.wrap(x), torus.wrap(y)
    z = torus.displacement(x[:, None], y)
    torch.testing.assert_close(kernel_sum(k, x, y, b, domain=torus), k(z) @ b)
    moved = gradient_sum(k, x + 3.0, y - 1.0, b, domain=torus)
    at = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad((k(torus.displacement(at[:, None], y)) @ b).sum(), at)
    torch.testing.assert_close(moved, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        gradient_sum(k, x, x, b.new_ones(7), domain=torus).sum(0), torch.zeros(2), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("k", [RBF(0.7), Laplace(0.7), InverseMultiquadric(0.7)], ids=label)
def test_engines_agree(k):
    x, y, b, c = data(m=40, n=50)
    sums = [(kernel_sum(k, x, y, c, engine=e), gradient_sum(k, x, y, b, engine=e)) for e in ("dense", "tiled", "auto")]
    for other in sums[1:]:
        torch.testing.assert_close(other, sums[0], rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(not find_spec("pykeops"), reason="pykeops is not installed")
def test_keops_agrees_with_first_derivatives():
    """One kernel, one dimension: each formula takes seconds to compile, once a machine."""
    x, y, b, _ = data(d=1, batch=(2,))
    x.requires_grad_()
    found, expected = (kernel_sum(RBF(0.7), x, y, b, engine=e) for e in ("keops", "tiled"))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    v = torch.ones_like(found)
    torch.testing.assert_close(
        *(torch.autograd.grad(out, x, v)[0] for out in (found, expected)), rtol=1e-10, atol=1e-12
    )


def test_far_from_the_origin_and_in_float32():
    x, y, b, _ = data(m=40, n=50)
    for k in (RBF(0.7), InverseMultiquadric(0.7), Laplace(0.7)):
        torch.testing.assert_close(kernel_sum(k, x + 1e6, y + 1e6, b), kernel_sum(k, x, y, b), rtol=1e-8, atol=1e-8)
        single = gradient_sum(k, x.float(), y.float(), b.float())
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), gradient_sum(k, x, y, b), rtol=1e-4, atol=1e-4)


def test_the_choice_is_explained():
    small, large = torch.zeros(100, 2), torch.zeros(5000, 2)
    assert str(choose(small, small)) == "dense: 10000 pairs fit in one tile; 0.1 MB for pairs"
    assert str(choose(large, large)) == "tiled: 2.5e+07 pairs on cpu; 2.1 MB for pairs"
    assert choose(large, large, "dense").engine == "dense"
    huge = torch.zeros(200_000, 2)
    with pytest.raises(ValueError, match=r"would hold 4\.00e\+10 pairs, 320\.0 GB.*engine='tiled' needs 2\.1 MB"):
        kernel_sum(RBF(1.0), huge, huge, huge[:, 0], engine="dense")
    with pytest.raises(ValueError, match="engine must be 'auto', 'dense', 'tiled' or 'keops', not 'gpu'"):
        kernel_sum(RBF(1.0), small, small, small[:, 0], engine="gpu")
    with pytest.raises(ValueError, match="engine='keops' has no formula for this kernel"):
        kernel_sum(Riesz(1.5), small, small, small[:, 0], engine="keops")


def test_errors_name_what_is_wrong():
    x, y, b, _ = data()
    with pytest.raises(TypeError, match="need a kernel such as kernels.RBF"):
        kernel_sum(lambda z: z, x, y, b)
    with pytest.raises(ValueError, match="b needs one entry a source: 5 of them, not"):
        kernel_sum(RBF(1.0), x, y, b[:3])
    with pytest.raises(ValueError, match="dimension 2 and sources in 1"):
        kernel_sum(RBF(1.0), x, y[:, :1], b)
    with pytest.raises(ValueError, match=r"Laplace.* has no second derivative at x = y.*RBF or InverseMultiquadric"):
        stein_discrepancy(Laplace(1.0), x, -x)
    with pytest.raises(TypeError, match="Bilinear.* is not a function of the difference .* Torus"):
        kernel_sum(Bilinear(), x, y, b, domain=Torus(1.0))


def test_a_nan_in_a_point_stays_there():
    x, y, b, _ = data()
    x[0, 0] = math.nan
    for k in (RBF(0.7), Laplace(0.7)):
        assert kernel_sum(k, x, y, b).isnan().tolist() == [True] + [False] * 6


@pytest.mark.parametrize("k", [Cosine([0.3, -1.0]), Sobolev(1.0, modes=3), PeriodicRBF(0.6, 2.0), Riesz(2)], ids=label)
def test_series_and_moments_serve_every_reduction(k):
    x, y, b, v = data(d=1)
    for own in (False, True):
        y = x[:5] if own else y
        torch.testing.assert_close(kernel_sum(k, x, y, v), k(x, y) @ v)
        torch.testing.assert_close(gradient_sum(k, x, y, b), slopes(k, x, y, b, 1))
        torch.testing.assert_close(stein_sum(k, y, v, b), k(y, y) @ (b[:, None] * v) + slopes(k, y, y, b, 2))
        torch.testing.assert_close(divergence_sum(k, x, y, v), slopes(k, x, y, v[:, 0], 1)[:, 0])
        torch.testing.assert_close(trace_sum(k, x, y, b), traces(k, x, y, b))


def test_the_route_is_explained():
    x, g = torch.zeros(3000, 1), torch.Generator()
    for k, words in (
        (Energy(), "sorting: O((m + n)·log n)"),
        (Riesz(2), "moments: of the sources, O(m + n)"),
        (Bilinear(), "moments: of the sources, O(m + n)"),
        (Cosine([-1.0, 0.5]), "Fourier: 2 modes, O((m + n)·modes)"),
        (RBF(1.0), "tiled: 9.0e+06 pairs on cpu; 2.1 MB for pairs"),
        (Sliced(8, generator=g), "slicing: a sort along each of 8 lines"),
        (RandomBatch(RBF(1.0), 16, generator=g), "random batches: of 16 particles, O(n·size)"),
        (0.5 * Laplace(1.0) + Energy(), "sorting: O((m + n)·log n)"),
        (Weighted(lambda x: x[..., 0], lambda x: x[..., 0], Energy()), "sorting: O((m + n)·log n)"),
    ):
        assert explain(k, x) == words
    assert explain(Energy(), x, engine="tiled").startswith("tiled: asked for")
    assert explain(RBF(0.1), x, domain=Torus(1.0)) == "matrix: of the kernel in blocks of rows, O(m·n)"


def test_particles_in_one_place_have_no_slope_where_it_is_infinite():
    x, y, b, _ = data()
    y[1] = y[0]
    mu = Particles(y)
    for f in (lambda k: gradient_sum(k, y, y, b), lambda k: stein_sum(k, y, y), lambda k: Interaction(k).gradient(mu)):
        with pytest.raises(ValueError, match=r"Riesz\(r=0.5\) has an infinite slope at x = y, and two particles"):
            f(Riesz(0.5))
        assert f(Riesz(1.5)).isfinite().all()
    assert gradient_sum(Riesz(0.5), y[1:], y[1:], b[1:]).isfinite().all()


@pytest.mark.needs_cuda
@pytest.mark.parametrize("k", [*SMOOTH, *CUSPS, Sobolev(1.0, modes=3)], ids=label)
def test_sums_on_a_gpu_are_those_on_a_cpu(k):
    x, y, b, v = data(m=70, n=60)
    for f, c in ((kernel_sum, v), (gradient_sum, b), (divergence_sum, v)):
        torch.testing.assert_close(f(k, x.cuda(), y.cuda(), c.cuda()).cpu(), f(k, x, y, c), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(stein_sum(k, y.cuda(), v.cuda()).cpu(), stein_sum(k, y, v), rtol=1e-10, atol=1e-10)


def test_mixed_dtypes_integers_and_arrays_are_refused():
    x, b = torch.zeros(3, 1), torch.ones(3)
    with pytest.raises(TypeError, match="one floating dtype; points are torch.float32, sources torch.float64"):
        pairwise.kernel_sum(RBF(1.0), x.float(), x, b)
    with pytest.raises(TypeError, match="points are torch.int64"):
        pairwise.kernel_sum(RBF(1.0), x.long(), x.long(), b.long())
    with pytest.raises(TypeError, match=r"sums take tensors; torch.as_tensor"):
        pairwise.kernel_sum(RBF(1.0), x.numpy(), x.numpy(), b.numpy())
