"""The full blob on a shared grid: equal to the integral, exact derivatives of what is computed, right where f is 0."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from otprox import Blob, GaussHermite, Gaussian, Particles, Trapezoidal
from otprox.functionals.blob_integrals import MANY, AroundEach, AtParticles, OnGrid
from otprox.pairwise import log_gaussian_sum

GRID = Trapezoidal(0.6)


def cloud(n: int = 7, d: int = 2, batch: tuple[int, ...] = (), scale: float = 1.0) -> Particles:
    g = torch.Generator().manual_seed(n + d)
    w = torch.rand(*batch, n, generator=g) + 0.1
    return Particles(scale * torch.randn(*batch, n, d, generator=g), w / w.sum(-1, keepdim=True))


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("width", [0.4, 1.5])
def test_it_is_the_integral(d, width):
    """Against Gauss–Hermite around each particle, which converges to the same number, and the grid faster."""
    mu = cloud(5, d)
    exact = Blob(width, "full", quadrature=GaussHermite({1: 128, 2: 64, 3: 24}[d]))(mu).item()
    grid = Blob(width, "full", quadrature=Trapezoidal(0.4))(mu).item()
    assert grid == pytest.approx(exact, abs={1: 2e-8, 2: 1e-6, 3: 2e-5}[d])


@pytest.mark.parametrize("width", [0.3, 1.0])
def test_the_error_falls_faster_than_any_power_of_the_spacing(width):
    mu = cloud(40, 2)
    value = {s: Blob(width, "full", quadrature=Trapezoidal(s))(mu).item() for s in (0.2, 0.4, 0.8, 1.6)}
    errors = [abs(value[s] - value[0.2]) for s in (0.4, 0.8, 1.6)]
    assert errors[0] < 1e-8
    assert errors[0] < 1e-3 * errors[1] < 1e-4 * errors[2]


@pytest.mark.parametrize("d", [1, 2, 3])
def test_a_lattice_of_particles_has_the_closed_forms_of_its_gaussian(d):
    g = torch.Generator().manual_seed(d)
    root = torch.eye(d) + 0.3 * torch.randn(d, d, generator=g)
    mu = Gaussian(torch.full((d,), 0.2), root @ root.mT)
    line = torch.arange(-7, 7.01, 0.5 if d < 3 else 0.7)
    x = torch.cartesian_prod(*[line] * d).reshape(-1, d)
    particles = Particles(mu.mean + x @ root.mT, torch.softmax(-0.5 * x.square().sum(-1), -1))
    F = Blob(0.6, "full", quadrature=Trapezoidal(0.7))
    at = torch.randn(6, d, generator=g)
    tol = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(F(particles), F(mu), **tol)
    torch.testing.assert_close(F.first_variation(particles, at), F.first_variation(mu, at), **tol)
    torch.testing.assert_close(F.gradient(particles, at), F.gradient(mu, at), rtol=0, atol=1e-4)


@pytest.mark.parametrize("batch", [(), (2,), (2, 2)])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_derivatives_are_those_of_the_sum(d, batch):
    """∂F/∂w_i is the first variation and ∂F/∂x_i is w_i times its gradient, to rounding, on a coarse grid too."""
    mu = cloud(6, d, batch)
    x, w = mu.x.clone().requires_grad_(), mu.w.clone().requires_grad_()
    F = Blob(0.5, "full", quadrature=Trapezoidal(1.5))
    gx, gw = torch.autograd.grad(F(mu.with_state(x=x, w=w)).sum(), (x, w))
    torch.testing.assert_close(F.first_variation(mu), gw, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(F.gradient(mu), gx / mu.w[..., None], rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("form", ["outer", "full"])
@pytest.mark.parametrize("rule", [GRID, GaussHermite(6)], ids=str)
def test_the_hessian_is_the_jacobian_of_the_gradient(rule, form):
    """The point moves and the particles stay."""
    mu, F = cloud(20, 2, (2,)), Blob(0.7, form, quadrature=rule)
    at = mu.x[:, :3].clone()
    h = 1e-5 * torch.eye(2)
    want = torch.stack([(F.gradient(mu, at + e) - F.gradient(mu, at - e)) / 2e-5 for e in h], -1)
    torch.testing.assert_close(F.hessian(mu, at), want, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(F.hessian(mu)[:, :3], want, rtol=1e-6, atol=1e-7)


def test_the_gradient_is_differentiable_in_particles_weights_and_points():
    mu, F = cloud(4, 2), Blob(0.7, "full", quadrature=Trapezoidal(1.5))
    x, w = mu.x.clone().requires_grad_(), mu.w.clone().requires_grad_()
    at = torch.tensor([[0.3, -0.4]], requires_grad=True)
    for f in (F.first_variation, F.gradient):
        assert torch.autograd.gradcheck(lambda x, w, f=f: f(mu.with_state(x=x, w=w)), (x, w))
        assert torch.autograd.gradcheck(lambda x, w, at, f=f: f(mu.with_state(x=x, w=w), at), (x, w, at))


@pytest.mark.parametrize("distance", [0.0, 12.0, 40.0])
@pytest.mark.parametrize("d", [1, 2])
def test_points_that_no_particle_reaches(d, distance):
    """There f is 0 to rounding and log f is not: 1 + φ∗log f, by Gauss–Hermite around the point, is quadratic."""
    mu, F = cloud(5, d, (2,), scale=0.5), Blob(1.0, "full", quadrature=GRID)
    at = (torch.full((2, 3, d), distance) + torch.arange(3.0)[:, None]).requires_grad_()
    z, p = GaussHermite(40).nodes(d, at.dtype, at.device)
    nodes = (at[..., None, :] + z).flatten(-3, -2)
    log_f = log_gaussian_sum(nodes, mu.x, mu.w.log(), 1.0) - d / 2 * math.log(2 * math.pi)
    want = 1 + log_f.unflatten(-1, (-1, len(p))) @ p
    torch.testing.assert_close(F.first_variation(mu, at), want, rtol=1e-7, atol=1e-6)
    (slopes,) = torch.autograd.grad(want.sum(), at)
    torch.testing.assert_close(F.gradient(mu, at), slopes, rtol=1e-6, atol=1e-6)


def test_a_batch_equals_single_runs():
    mu, F = cloud(8, 2, (3,)), Blob(0.5, "full", quadrature=GRID)
    for i in range(3):
        one = Particles(mu.x[i], mu.w[i])
        torch.testing.assert_close(F(mu)[i], F(one), rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(F.gradient(mu)[i], F.gradient(one), rtol=1e-11, atol=1e-11)


def test_the_default_is_the_grid_for_many_particles_and_gauss_hermite_for_few_far_apart():
    F = Blob(0.5, "full")
    near, far, high = torch.randn(100, 2), torch.tensor([[0.0], [1e4]]), torch.randn(9, 5)
    assert isinstance(F._integral(near), OnGrid)
    assert isinstance(F._integral(far), AroundEach)
    assert isinstance(F._integral(high), AroundEach)
    assert isinstance(F._integral(torch.full((9, 1), torch.nan)), AroundEach)
    mu = cloud(100)
    chosen, each = F(mu).item(), Blob(0.5, "full", quadrature=GaussHermite(16))(mu).item()
    assert chosen == pytest.approx(each, abs=1e-5)
    assert chosen == pytest.approx(Blob(0.5, "full", quadrature=Trapezoidal(0.3))(mu).item(), abs=2e-6)


def test_float32():
    mu, F = cloud(50, 2), Blob(0.4, "full", quadrature=GRID)
    single = Particles(mu.x.float(), mu.w.float())
    assert F(single).dtype == F.gradient(single).dtype == torch.float32
    assert F(single).item() == pytest.approx(F(mu).item(), abs=1e-5)
    torch.testing.assert_close(F.gradient(single).double(), F.gradient(mu), rtol=0, atol=1e-3)


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_the_outer_blob_through_a_lattice_is_the_sum_over_pairs(d, batch):
    mu = cloud(40, d, batch)
    y, w = mu.x, mu.w
    through, pairs = AtParticles(0.6), AroundEach(0.6, torch.zeros(1, d), torch.ones(1))
    torch.testing.assert_close(through.value(y, w), pairs.value(y, w), rtol=1e-12, atol=1e-12)
    for name in ("variation", "slopes", "curvatures"):
        found, want = getattr(through, name)(y, w, y), getattr(pairs, name)(y, w, y)
        torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-10)


def test_the_outer_blob_of_many_particles():
    """Chosen for many particles at themselves, with derivatives of what is computed; pairs elsewhere."""
    mu, F = cloud(MANY, 2), Blob(0.4)
    assert isinstance(F._integral(mu.x, mu.x.clone()), AtParticles)
    assert isinstance(F._integral(mu.x, mu.x[:9]), AroundEach)
    assert isinstance(F._integral(1e5 * mu.x), AroundEach)
    x, w = mu.x.clone().requires_grad_(), mu.w.clone().requires_grad_()
    gx, gw = torch.autograd.grad(F(mu.with_state(x=x, w=w)), (x, w))
    torch.testing.assert_close(F.first_variation(mu), gw, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(F.gradient(mu), gx / mu.w[..., None], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(F.gradient(mu)[:9], F.gradient(mu, mu.x[:9]), rtol=1e-8, atol=1e-9)
    single = Particles(mu.x.float(), mu.w.float())
    torch.testing.assert_close(F.gradient(single).double(), F.gradient(mu), rtol=0, atol=1e-3)


@pytest.mark.needs_cuda
def test_cuda():
    mu, F = cloud(500, 2), Blob(0.4, "full", quadrature=GRID)
    there = mu.with_state(x=mu.x.cuda(), w=mu.w.cuda())
    torch.testing.assert_close(F(there).cpu(), F(mu), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(F.gradient(there).cpu(), F.gradient(mu), rtol=1e-9, atol=1e-9)


def test_what_is_refused():
    far = Particles(torch.tensor([[0.0, 0.0, 0.0], [1e3, 1e3, 1e3]]))
    with pytest.raises(ValueError, match=r"over a grid of 4\.9e\+09 nodes at 0\.6 widths: take a larger width, or"):
        Blob(1.0, "full", quadrature=GRID)(far)
    for spacing in (0.0, 3.0, math.nan):
        with pytest.raises(ValueError, match=f"spacing must be in .*; got {spacing}"):
            Trapezoidal(spacing)


def moments(rule: Trapezoidal, d: int) -> Tensor:
    z, w = rule.nodes(d, torch.float64, torch.device("cpu"))
    return torch.stack([w @ z[:, 0] ** 2, w @ z[:, -1] ** 4, w @ z.cos().prod(-1) * math.exp(d / 2)])


@pytest.mark.parametrize("d", [1, 2, 3])
def test_the_trapezoidal_rule_for_the_normal_law(d):
    torch.testing.assert_close(moments(Trapezoidal(), d), torch.tensor([1.0, 3.0, 1.0]), rtol=1e-11, atol=0)
