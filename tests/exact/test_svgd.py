"""Closed forms of SVGD against quadrature, finite differences, and each other."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import otprox as ox
from otprox.exact import gaussian, svgd

TARGET = ox.Gaussian([0.5, 0.25], [[1.0, -0.4], [-0.4, 0.8]])
START = ox.Gaussian([1.0, -0.5], [[2.0, 0.6], [0.6, 1.0]])


def normal(mean=0.0, std=1.0, **options):
    return ox.Gaussian([mean], [[std**2]], **options)


def test_bilinear_flow_reference():
    end = svgd.bilinear_flow(START, TARGET, 1.0)
    torch.testing.assert_close(end.mean, torch.tensor([0.71805582081, -0.045411374418]), atol=2e-12, rtol=0)
    cov = [[0.8594273929542681, -0.13950991312729322], [-0.13950991312729322, 0.6284874670736459]]
    torch.testing.assert_close(end.cov, torch.tensor(cov), atol=1e-11, rtol=0)


def test_bilinear_flow_has_one_precision():
    single, target = (ox.Gaussian(mu.mean.float(), mu.cov.float()) for mu in (START, TARGET))
    end, exact = svgd.bilinear_flow(single, target, 1.0), svgd.bilinear_flow(START, TARGET, 1.0)
    assert end.mean.dtype == end.cov.dtype == torch.float32
    torch.testing.assert_close(end.cov.double(), exact.cov, atol=1e-6, rtol=0)
    with pytest.raises(TypeError, match=r"the target is torch.float64 .* convert it with"):
        svgd.bilinear_flow(single, TARGET, 1.0)


def test_bilinear_flow_keeps_batches_and_ends_at_the_target():
    mean = torch.stack([START.mean, TARGET.mean])
    both = ox.Gaussian(mean, torch.stack([START.cov, 2 * START.cov]))
    end, single = svgd.bilinear_flow(both, TARGET, 0.7), svgd.bilinear_flow(START, TARGET, 0.7)
    torch.testing.assert_close(end.mean[0], single.mean, atol=1e-10, rtol=0)
    late = svgd.bilinear_flow(START, TARGET, 12.0)
    assert gaussian.kl(late, TARGET) < 1e-9


@given(q=st.floats(0.3, 3.0), s=st.floats(0.2, 5.0), t=st.floats(0.05, 2.0))
def test_centred_closed_form_solves_the_flow(q, s, t):
    end = svgd.bilinear_flow(normal(0.0, s**0.5), normal(0.0, q**0.5), t)
    want = svgd.bilinear_centred(torch.tensor([[s]]), torch.tensor([[q]]), t)
    assert end.cov.item() == pytest.approx(want.item(), rel=1e-9)
    assert want.item() == pytest.approx(q / (1 + (q / s - 1) * math.exp(-2 * t)))


def test_centred_closed_form_refuses_what_does_not_commute():
    with pytest.raises(ValueError, match="bilinear_flow"):
        svgd.bilinear_centred(START.cov, TARGET.cov, 1.0)


def test_bilinear_rates_are_those_of_the_linearised_flow():
    target = ox.Gaussian(torch.zeros(2), torch.diag(torch.tensor([0.5, 2.0])))
    eps = 1e-6
    for i, j in ((0, 0), (0, 1), (1, 1)):
        bump = torch.zeros(2, 2)
        bump[i, j] = bump[j, i] = eps
        _, rate = svgd.bilinear_moments(ox.Gaussian(target.mean, target.cov + bump), target)
        assert -rate[i, j].item() / eps == pytest.approx(svgd.bilinear_rates(target)[i, j].item(), rel=1e-4)


def test_dissipation_is_minus_the_rate_of_kl():
    eps = 1e-4
    kl = [gaussian.kl(svgd.bilinear_flow(START, TARGET, t), TARGET) for t in (0.3 - eps, 0.3 + eps)]
    middle = svgd.bilinear_flow(START, TARGET, 0.3)
    torch.testing.assert_close(
        svgd.bilinear_dissipation(middle, TARGET), (kl[0] - kl[1]) / (2 * eps), rtol=1e-6, atol=0
    )
    one = svgd.bilinear_dissipation(normal(0.0, 0.6), normal(0.0, 1.3))
    assert one.item() == pytest.approx((1 - 0.36 / 1.69) ** 2)


@pytest.mark.parametrize(
    ("m", "s", "h", "want"),
    [
        (0.0, 0.5, 1.0, 0.306186217848),
        (1.0, 1.0, 1.0, 0.577350269190),
        (1.0, 0.5, 0.7, 1.103257419932),
        (-2.0, 1.5, 2.0, 2.870079263120),
    ],
)
def test_rbf_dissipation(m, s, h, want):
    assert svgd.rbf_dissipation(normal(m, s), normal(), h).item() == pytest.approx(want, abs=1e-11)
    d = 3
    mean = torch.full((d,), m / d**0.5)
    high = svgd.rbf_dissipation(ox.Gaussian(mean, s**2 * torch.eye(d)), ox.Gaussian(torch.zeros(d), torch.eye(d)), h)
    formula = (h**2 / (h**2 + 2 * s**2)) ** (d / 2) * (d * (1 - s**2) ** 2 / (h**2 + 2 * s**2) + m**2)
    assert high.item() == pytest.approx(formula)


def test_rbf_dissipation_by_quadrature_without_commuting_covariances():
    exact = svgd.rbf_dissipation(START, TARGET, 1.3)
    z, w = ox.GaussHermite(24).nodes(2, torch.float64, torch.device("cpu"))
    x = START.mean + z @ START.factor.mT
    u = START.score(x) - TARGET.score(x)
    k = ox.kernels.RBF(1.3)(x, x)
    torch.testing.assert_close(w @ (k * (u @ u.mT)) @ w, exact, rtol=1e-5, atol=0)


def test_rbf_velocity():
    v = svgd.rbf_velocity(torch.tensor([[0.0], [2.0]]), normal(1.0, 0.5), normal(), 1.0)
    torch.testing.assert_close(v[:, 0], torch.tensor([-0.959283961355, -0.239820990339]), atol=1e-11, rtol=0)
    x = torch.tensor([[0.3, -0.2], [2.0, 1.0]])
    z, w = ox.GaussHermite(24).nodes(2, torch.float64, torch.device("cpu"))
    y = START.mean + z @ START.factor.mT
    u = START.score(y) - TARGET.score(y)
    quadrature = -ox.kernels.RBF(1.3)(x, y) @ (w[:, None] * u)
    torch.testing.assert_close(svgd.rbf_velocity(x, START, TARGET, 1.3), quadrature, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("n", "h", "want"),
    [
        (2, 0.5, [0.524073536984]),
        (2, 1.0, [0.741151903684]),
        (2, 2.0, [0.900516638501]),
        (3, 1.0, [0.0, 1.005655212244]),
        (5, 1.0, [0.0, 0.4166746315513, 1.393773991303]),
    ],
)
def test_equilibria(n, h, want):
    x = svgd.rbf_equilibrium(n, h)
    torch.testing.assert_close(x, -x.flip(0), atol=1e-11, rtol=0)
    torch.testing.assert_close(x[n // 2 :], torch.tensor(want), atol=1e-11, rtol=0)


def test_an_equilibrium_of_three_solves_its_equation():
    h = 1.4
    a = svgd.rbf_equilibrium(3, h)[2].item()
    one, two = math.exp(-(a**2) / (2 * h**2)), math.exp(-2 * a**2 / h**2)
    assert one / h**2 + two * (1 + 2 / h**2) == pytest.approx(1.0)


def test_weighted_spectrum():
    mu = svgd.weighted_spectrum(40, 0.5, 1.0)
    torch.testing.assert_close(mu[:3], torch.tensor([0.75, 0.9211646096066227, 0.9653516540862679]), atol=1e-13, rtol=0)
    n = torch.arange(40)
    torch.testing.assert_close(mu - 0.5, (2 * n + 1) * 0.5 * (1 - mu).sqrt(), atol=1e-9, rtol=0)
    assert (mu.diff() > 0).all() and mu[-1] < 1
    assert svgd.weighted_spectrum(2, 3.0, 0.9).tolist() == pytest.approx([0.81**-1] * 2)
    with pytest.raises(ValueError, match="alpha must be positive"):
        svgd.weighted_spectrum(2, -1.0, 1.0)


def test_rates_of_the_weighted_kernel():
    Z = math.sqrt(2 * math.pi)
    assert svgd.weighted_rate(0.5, 1.0, Z) == pytest.approx(0.598413420602)
    assert svgd.local_rate(0.5, Z) == pytest.approx(2 * svgd.log_sobolev_constant(0.5, Z)) == pytest.approx(2 / Z)
    assert svgd.weighted_rate(0.5, 1e-4, Z) == pytest.approx(svgd.local_rate(0.5, Z), rel=1e-6)  # k → δ


def test_weighted_dissipation_by_quadrature():
    m, sigma = 0.7, 0.4
    x = torch.linspace(-8, 8, 801)
    h = x[1] - x[0]
    flux = m * torch.exp(-0.5 * (x - m) ** 2 + 0.25 * x**2) / math.sqrt(2 * math.pi)  # ρ·∇log(ρ/π)·e^{V − V₀/2}
    k = torch.exp(-0.5 * ((x[:, None] - x) / sigma) ** 2) / math.sqrt(2 * math.pi) / sigma
    assert (h * h * flux @ k @ flux).item() == pytest.approx(svgd.weighted_dissipation(m, sigma), rel=1e-8)


def test_wave_solves_its_equation():
    wave, t, eps = svgd.wave(0.8, 1.3, 0.2), 0.5, 1e-4
    x = torch.linspace(0.5, 4.0, 50)
    rho = lambda y, s: wave.density(y, s)  # noqa: E731

    def flux(y):
        slope = (rho(y + eps, t) - rho(y - eps, t)) / (2 * eps)
        return rho(y, t) * slope + wave.c * rho(y, t) ** 2

    rate = (rho(x, t + eps) - rho(x, t - eps)) / (2 * eps)
    torch.testing.assert_close(rate, (flux(x + eps) - flux(x - eps)) / (2 * eps), atol=1e-5, rtol=0)
    assert wave.density(torch.tensor(-0.46), t) == 0
    fine = torch.linspace(-0.45, 4.0, 20001)
    assert torch.trapezoid(rho(fine, t), fine).item() == pytest.approx(wave.mass(4.0, t), rel=1e-6)
