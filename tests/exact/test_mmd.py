"""Flows of discrepancies in closed form, against printed values, quadrature and their defining equations."""

import math

import pytest
import torch

from otprox import GaussHermite, Gaussian
from otprox.exact import mmd
from otprox.kernels import RBF

PHI = torch.special.ndtr


def circle(n=256):
    return torch.arange(n) * 2 * math.pi / n


@pytest.mark.parametrize("s", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("n", [63, 64])
def test_energy_of_single_modes(s, n):
    x = circle(n)
    for k, a in ((1, 0.8), (3, 0.4)):
        want = 0.5 * 2 * k ** (-2 * s) * (a / 2) ** 2
        assert mmd.sobolev_energy(1 + a * torch.cos(k * x), s).item() == pytest.approx(want, rel=1e-12)
        unit = mmd.sobolev_energy(1 + a * torch.cos(k * x), s, period=1.0).item()
        assert unit == pytest.approx(want * (2 * math.pi) ** (-2 * s), rel=1e-12)


@pytest.mark.parametrize(
    ("k", "s", "period"), [(1, 2.0, 2 * math.pi), (3, 1.5, 2 * math.pi), (2, 1.0, 5.0), (2, 2.0, 1.0)]
)
def test_mode_rate_is_the_multiplier_of_the_linearised_flow(k, s, period):
    kappa = 2 * math.pi * k / period  # ∂t u = Δφ and φ = |κ|^(−2s)u
    assert mmd.mode_rate(k, s, period) == pytest.approx(kappa**2 * kappa ** (-2 * s), rel=1e-12)


@pytest.mark.parametrize("a", [0.3, 0.8])
@pytest.mark.parametrize("t", [0.5, 2.0])
def test_negative_sobolev_flow_on_the_circle(a, t):
    """The map of the flow carries 1 + a cos x to a density with the maximum and the energy of the closed forms."""
    x = circle(4096)
    X = mmd.negative_sobolev_map(x, a * torch.sin(x), t)
    density = (1 + a * torch.cos(x)) / (1 + (1 - math.exp(-t)) * a * torch.cos(x))
    assert density.max().item() == pytest.approx(mmd.negative_sobolev_maximum(1 + a, t), rel=1e-12)
    weights, k = (1 + a * torch.cos(x)) / len(x), torch.arange(1, 200)
    c = (weights * torch.exp(-1j * k[:, None] * X)).sum(-1)
    energy = (c.abs().square() / k**2).sum().item()
    assert energy == pytest.approx(math.exp(-2 * t) * mmd.sobolev_energy(1 + a * torch.cos(x), 1).item(), rel=1e-6)


def test_exponent_bound_and_tail():
    assert mmd.power_tail(1.0, 2, 1) == pytest.approx(0.117498200373, abs=1e-12)
    k = torch.arange(1, 200_000, dtype=torch.float64)
    for s, p, t in ((2.0, 1.0, 1e4), (1.5, 2.0, 1e4), (3.0, 1.0, 1e6)):
        total = (k ** (-2 * s - 2 * p) * torch.exp(-2 * k ** (2 - 2 * s) * t)).sum().item()
        assert mmd.power_tail(t, s, p) == pytest.approx(total, rel=0.02)
    for s, r, t in ((2.0, 1.0, 3.0), (1.5, 2.0, 10.0)):
        worst = (k ** (-2 * s - 2 * r) * torch.exp(-2 * k ** (2 - 2 * s) * t)).max().item() / 2
        assert worst <= mmd.sobolev_bound(t, s, r, 1.0) * (1 + 1e-12)
        peak = (k ** (-2 * s - 2 * r) * torch.exp(-2 * k ** (2 - 2 * s) * 1e3 * t)).max().item() / 2
        assert peak == pytest.approx(mmd.sobolev_bound(1e3 * t, s, r, 1.0), rel=1e-2)  # attained near one mode
    with pytest.raises(ValueError, match="s = 1.0"):
        mmd.sobolev_exponent(1.0, 1.0)


def test_line_flow_to_a_gaussian():
    q = torch.tensor([0.9, 0.75, 0.99])
    one, five, twenty = (mmd.cramer_flow(torch.zeros(3), q, PHI, t, 1.0) for t in (1.0, 5.0, 20.0))
    assert one[0].item() == pytest.approx(0.330454740604, abs=1e-11)
    assert five[0].item() == pytest.approx(0.924606629244, abs=1e-11)
    assert five[1].item() == pytest.approx(0.555376126840, abs=1e-11)
    assert twenty[2].item() == pytest.approx(1.868496288425, abs=1e-11)


@pytest.mark.parametrize("c", [1.0, 2.0, 4.0])
def test_line_flows_in_closed_form(c):
    q, t = torch.tensor([0.15, 0.4, 0.8]), 0.7
    uniform = lambda x: x.clamp(0, 1)  # noqa: E731
    start = torch.tensor([0.3, 0.5, 0.6])
    torch.testing.assert_close(
        mmd.cramer_flow(start, q, uniform, t, c), mmd.cramer_flow_to_uniform(start, q, t, c), atol=1e-9, rtol=0
    )
    steep = lambda x: PHI(x / 1e-4)  # noqa: E731
    smooth = mmd.cramer_flow(torch.full((3,), -1.0), q, steep, t, c)
    torch.testing.assert_close(mmd.cramer_flow_to_dirac(torch.full((3,), -1.0), q, t, c), smooth, atol=1e-3, rtol=0)
    pair = lambda x: (PHI((x + 1) / 1e-4) + PHI((x - 1) / 1e-4)) / 2  # noqa: E731
    smooth = mmd.cramer_flow(torch.zeros(3), q, pair, 3 * t, c)
    torch.testing.assert_close(mmd.cramer_flow_to_pair(q, 3 * t, c), smooth, atol=1e-3, rtol=0)


@pytest.mark.parametrize("tau", [0.01, 0.7, 5.0])
def test_prox_of_the_energy_distance(tau):
    q = torch.linspace(0.05, 0.95, 7)
    x = torch.linspace(-2, 3, 7)
    new = mmd.energy_prox(x, q, PHI, tau)
    torch.testing.assert_close(new + 2 * tau * (PHI(new) - q), x, atol=1e-11, rtol=0)
    step = lambda y: (y >= 0).to(y)  # noqa: E731
    atom = mmd.energy_prox(torch.tensor([0.1]), torch.tensor([0.5]), step, tau)  # a jump of F holds the quantile
    assert atom.item() == pytest.approx(max(0.0, 0.1 - tau), abs=1e-11)


def test_gaussian_mmd_and_dirac_to_dirac():
    one, zero = torch.eye(1), torch.zeros(1)
    assert mmd.gaussian_mmd2(zero, one, zero + 1, one / 4, 1.0).item() == pytest.approx(0.326196979562, abs=1e-12)
    S, T = torch.tensor([[1.0, 0.3], [0.3, 0.6]]), torch.tensor([[0.5, -0.1], [-0.1, 0.8]])
    m = torch.tensor([0.4, -0.2])
    k = lambda delta, C: Gaussian(delta, C, quadrature=GaussHermite(60)).expect(RBF(0.7))  # noqa: E731
    want = k(0 * m, 2 * S) + k(0 * m, 2 * T) - 2 * k(m, S + T)
    assert mmd.gaussian_mmd2(0 * m, S, m, T, 0.7).item() == pytest.approx(want.item(), abs=1e-7)
    for t, want in ((1.0, 1.662326304157), (2.0, 1.150532119025), (5.0, 0.084862828262)):
        assert mmd.dirac_to_dirac(2.0, t, 1.0) == pytest.approx(want, abs=1e-11)


@pytest.mark.parametrize("d", [2, 3])
def test_spectrum_of_the_relu_kernel(d):
    """σ_k² = |S^{d−1}|/|S^d| ∫ k(ρ) P_k(ρ) (1 − ρ²)^{d/2−1} dρ (Funk and Hecke), and Σ multiplicity·σ_k² = k(1)."""
    theta = (torch.arange(200_000) + 0.5) * math.pi / 200_000
    rho, weight = theta.cos(), theta.sin() ** (d - 1)
    weight = weight / weight.sum()
    P = [torch.ones_like(rho), rho]
    for k in range(1, 7):
        P.append(((2 * k + d - 1) * rho * P[k] - k * P[k - 1]) / (k + d - 1))
    for k in range(7):
        want = (weight * mmd.relu_kernel(rho, d) * P[k]).sum().item()
        assert mmd.relu_singular_value(k, d) ** 2 == pytest.approx(want, abs=1e-9)


def test_one_neuron():
    a, theta, F = mmd.wfr_neuron(0.5, 2.0, 5.0)
    assert (a, theta, F) == pytest.approx((0.306502756613, 1.461158898844, 0.1080140141693), abs=1e-11)
    a, theta, _ = mmd.wfr_neuron(0.5, 2.0, 20.0)
    assert (a, theta) == pytest.approx((0.993242045917, 0.084882809502), abs=1e-11)
