"""Blobs: closed forms on Gaussians, integrals on the line, gradients of what is computed, the entropy as limit."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from otprox import Blob, Entropy, GaussHermite, Gaussian, Particles, Torus
from otprox.measures import Density, Grid, Quantiles

FORMS = ["outer", "full"]


def cloud(n: int = 7, d: int = 2, seed: int = 0, batch: tuple[int, ...] = ()) -> Particles:
    g = torch.Generator().manual_seed(seed)
    w = torch.rand(*batch, n, generator=g) + 0.1
    return Particles(torch.randn(*batch, n, d, generator=g), w / w.sum(-1, keepdim=True))


def lattice(mu: Gaussian, spacing: float) -> Particles:
    """A 1-D Gaussian by weights on a lattice: the trapezoidal rule, exact to rounding for wider functions."""
    x = torch.arange(-9, 9, spacing)[:, None] * mu.cov.sqrt() + mu.mean
    return Particles(x, torch.softmax(mu.log_prob(x), -1))


def line(x: Tensor, w: Tensor, width: float, step: float = 1e-3) -> Tensor:
    """∫ρ log ρ for ρ = Σ w_i N(x_i, width²) on the line, by the trapezoidal rule."""
    t = torch.arange(x.min() - 12 * width, x.max() + 12 * width, step * width)
    rho = torch.exp(-((t[:, None] - x) ** 2) / (2 * width**2)) @ w / math.sqrt(2 * math.pi * width**2)
    return torch.special.xlogy(rho, rho).sum() * step * width


@pytest.mark.parametrize("width", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("d", [1, 2, 3, 5])
def test_a_single_particle(width, d):
    log = math.log(2 * math.pi * width**2)
    mu = Particles(torch.randn(1, d, generator=torch.Generator().manual_seed(0)))
    assert Blob(width)(mu).item() == pytest.approx(-0.5 * d * log)
    assert Blob(width, "full")(mu).item() == pytest.approx(-0.5 * d * (log + 1))
    for form in FORMS:
        torch.testing.assert_close(Blob(width, form).gradient(mu), torch.zeros(1, d), rtol=0, atol=1e-12)


@pytest.mark.parametrize("gap", [0.0, 0.3, 1.0, 3.0, 1000.0])
def test_two_particles(gap):
    """outer: log φ(0) + log(½(1 + exp(−gap²/2))); full by integration."""
    mu = Particles(torch.tensor([[0.0], [gap]]))
    overlap = math.exp(-(gap**2) / 2)
    outer = Blob(1.0)
    assert outer(mu).item() == pytest.approx(-0.5 * math.log(2 * math.pi) + math.log((1 + overlap) / 2))
    # ∂F/∂x_2 = −gap·overlap/(1 + overlap), and ∇φ is 1/w = 2 of it
    force = 2 * gap * overlap / (1 + overlap)
    torch.testing.assert_close(outer.gradient(mu)[:, 0], torch.tensor([force, -force]), rtol=1e-12, atol=1e-12)
    if gap < 10:
        assert Blob(1.0, "full", quadrature=GaussHermite(64))(mu).item() == pytest.approx(
            line(mu.x[:, 0], mu.w, 1.0).item(), abs=1e-7
        )


@pytest.mark.parametrize("width", [0.2, 0.7, 2.0])
def test_full_is_the_entropy_of_the_mixture(width):
    """Gauss–Hermite converges to the integral: 64 nodes a particle are far better than 8."""
    mu = cloud(12, 1)
    exact = line(mu.x[:, 0], mu.w, width).item()
    errors = [abs(Blob(width, "full", quadrature=GaussHermite(k))(mu).item() - exact) for k in (8, 64)]
    assert errors[1] < 1e-6
    assert errors[1] < errors[0] / 10 or errors[0] < 1e-9
    assert Blob(width, "full")(mu).item() == pytest.approx(exact, abs=2e-4)


@pytest.mark.parametrize("width", [0.5, 1.5])
@pytest.mark.parametrize("form", FORMS)
def test_gaussian_closed_forms_are_those_of_its_particles(form, width):
    mu = Gaussian([0.4], [[1.3]])
    sum_of_diracs = lattice(mu, width / 8)
    F = Blob(width, form, quadrature=GaussHermite(40))
    torch.testing.assert_close(F(mu), F(sum_of_diracs), rtol=1e-10, atol=0)
    x = torch.linspace(-2, 3, 7)[:, None]
    torch.testing.assert_close(F.first_variation(mu, x), F.first_variation(sum_of_diracs, x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(F.gradient(mu, x), F.gradient(sum_of_diracs, x), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("form", FORMS)
def test_gaussian_bures_gradient_is_the_expectation_of_the_first_variation(gaussians, form):
    """On non-commuting covariances in a batch; and F = E log ρ of the blurred law."""
    mu = Gaussian(torch.stack([gaussians.m0, gaussians.mq]), torch.stack([gaussians.S0, gaussians.Q]))
    F = Blob(0.6, form)
    shift, hessian = F.bures_gradient(mu)
    expected_shift, expected = mu.nearest_affine(lambda x: F.gradient(mu, x))
    torch.testing.assert_close(shift, expected_shift, rtol=0, atol=1e-10)
    torch.testing.assert_close(hessian, expected, rtol=1e-4, atol=1e-5)
    blurred = Gaussian(mu.mean, mu.cov + 0.36 * torch.eye(3))
    averaged = (mu if form == "outer" else blurred).expect(blurred.log_prob)
    torch.testing.assert_close(F(mu), averaged)


@pytest.mark.parametrize(("form", "order"), [("outer", 4), ("full", 2)])
def test_the_entropy_is_the_limit_on_gaussians(form, order, gaussians):
    """−½ log det S − ½ tr S⁻¹Σ is stationary in the width² at 0."""
    mu = Gaussian(gaussians.m0, gaussians.S0)
    errors = [(Blob(width, form)(mu) - Entropy()(mu)).abs().item() for width in (0.04, 0.02, 0.01)]
    orders = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    assert orders == pytest.approx([order, order], abs=0.02)


@pytest.mark.parametrize("form", FORMS)
def test_the_entropy_is_the_limit_on_quantiles(form):
    """Twenty neighbours a width: the blob of the quantiles is that of the law, to O(1/n)."""
    mu = Gaussian([0.0], [[1.0]])
    errors = [abs(Blob(0.3, form)(Quantiles.of(mu, n)).item() - Blob(0.3, form)(mu).item()) for n in (50, 200)]
    assert errors[1] < min(errors[0] / 2.5, 5e-3)


MEASURES = {
    "particles": cloud(),
    "batch": cloud(5, 1, batch=(2,)),
    "three dimensions": cloud(5, 3),
    "five dimensions": cloud(4, 5),
    "quantiles": Quantiles(torch.tensor([-1.0, -0.2, 0.1, 0.9])),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", MEASURES)
def test_gradient_is_that_of_the_sum(name, form):
    """∂F/∂x_i = w_i ∇φ(x_i), to rounding: the quadrature is part of F."""
    mu, F = MEASURES[name], Blob(0.6, form)
    x = mu.x.clone().requires_grad_()
    (g,) = torch.autograd.grad(F(mu.with_state(x=x)).sum(), x)
    torch.testing.assert_close(F.gradient(mu), g / mu.w[..., None], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_first_variation_is_the_derivative_in_the_weights(form):
    mu, F = cloud(), Blob(0.6, form)
    w = mu.w.clone().requires_grad_()
    (g,) = torch.autograd.grad(F(mu.with_state(w=w)), w)
    torch.testing.assert_close(F.first_variation(mu), g, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("form", FORMS)
def test_gradient_is_differentiable_in_the_particles(form):
    mu, F = cloud(4, 1), Blob(0.6, form, quadrature=GaussHermite(4))
    at = torch.tensor([[0.3]])
    x = mu.x.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: F.gradient(mu.with_state(x=x)), (x,))
    assert torch.autograd.gradcheck(lambda x: F.gradient(mu.with_state(x=x), at), (x,))


@pytest.mark.parametrize("form", FORMS)
@given(seed=st.integers(0, 2**31), shift=st.floats(-100, 100), s=st.floats(0.01, 100))
def test_translations_and_scalings(form, seed, shift, s):
    """F is invariant under translations, and F_{s·width}(s#μ) = F_width(μ) − d·log s."""
    mu, F = cloud(seed=seed), Blob(0.5, form, quadrature=GaussHermite(6))
    assert F(mu.push(lambda x: x + shift)).item() == pytest.approx(F(mu).item(), rel=1e-8, abs=1e-8)
    scaled = Blob(0.5 * s, form, quadrature=GaussHermite(6))(mu.push(lambda x: s * x))
    assert scaled.item() == pytest.approx(F(mu).item() - 2 * math.log(s), rel=1e-8, abs=1e-8)
    force = mu.expect(lambda x: F.gradient(mu))
    torch.testing.assert_close(force, torch.zeros(2), rtol=0, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_particles_without_weight_change_nothing(form):
    mu, F = cloud(), Blob(0.6, form)
    more = Particles(torch.cat([mu.x, torch.ones(1, 2)]), torch.cat([mu.w, torch.zeros(1)]))
    torch.testing.assert_close(F(more), F(mu))
    torch.testing.assert_close(F.gradient(more)[:-1], F.gradient(mu))
    assert F.gradient(more).isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_float32_far_apart_stays_finite(form):
    mu = Particles(torch.tensor([[0.0], [1e4], [1e4 + 0.5]], dtype=torch.float32))
    F = Blob(1.0, form)
    assert F(mu).dtype == F.gradient(mu).dtype == torch.float32
    g = F.gradient(mu)[:, 0]
    assert g[0].abs() < 1e-5
    assert g[1].item() == pytest.approx(-g[2].item(), rel=1e-3)
    assert g[1] > 0.1


def test_what_is_refused():
    for width in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"Blob needs a width > 0, not {width}"):
            Blob(width)
    with pytest.raises(ValueError, match="form must be 'outer' or 'full', not 'inner'"):
        Blob(1.0, "inner")
    density = Density(torch.ones(4), Grid(0.0, 1.0, 4))
    torus = Particles(torch.rand(3, 1), domain=Torus(1.0))
    for call in (Blob(1.0), Blob(1.0).first_variation, Blob(1.0).gradient):
        with pytest.raises(TypeError, match=r"a Density has a density: use Entropy\(\)"):
            call(density)
        with pytest.raises(TypeError, match="not on a Torus"):
            call(torus)
