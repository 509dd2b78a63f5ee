"""Collisions under a Gaussian, against closed forms and an integral over directions."""

import math

import pytest
import torch
from torch import Tensor

import otprox as ox
from otprox.exact import landau
from otprox.measures.spectral import Spectral
from otprox.metrics import Landau
from otprox.metrics.landau_gaussian import velocity_covariance


def spd(d: int, seed: int = 0, *batch: int) -> Tensor:
    root = torch.randn(*batch, d, d, generator=torch.Generator().manual_seed(seed))
    return root @ root.mT + 0.1 * torch.eye(d)


@pytest.mark.parametrize("d", [2, 3, 5])
def test_the_covariance_of_maxwell_molecules_follows_its_equation(d: int):
    """dP/dt = 4C(tr P I − dP) for the entropy, and steps converge to its solution in first order."""
    mu, C, t = ox.Gaussian(torch.ones(3, d), spd(d, 1, 3)), 0.05, 0.4
    v = Landau(0.0, C).descent(ox.Entropy(), mu)
    shift, slope = v.affine()
    rate = 4 * C * (mu.cov.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None] * torch.eye(d) - d * mu.cov)
    torch.testing.assert_close(slope @ mu.cov + mu.cov @ slope.mT, rate)
    assert not shift.any()
    exact = landau.covariance(mu.cov, t, strength=C)
    step = ox.Forward(ox.Entropy(), Landau(0.0, C))
    ends = [ox.record(ox.flow(step, mu, torch.linspace(0, t, n + 1).tolist())).final for n in (40, 80)]
    errors = [float((end.cov - exact).norm()) for end in ends]
    assert errors[0] / errors[1] == pytest.approx(2.0, abs=0.15)
    torch.testing.assert_close(ends[1].mean, mu.mean)


@pytest.mark.parametrize(("parallel", "perpendicular"), [(0.5, 1.25), (2.0, 0.5), (1.0, 1.0), (0.01, 3.0)])
def test_coulomb_rates_of_a_bi_maxwellian(parallel: float, perpendicular: float):
    P = torch.diag(torch.tensor([parallel, perpendicular, perpendicular]))
    rate = 2 * velocity_covariance(P, torch.linalg.inv(P), -3.0)  # of the flow −K(∇log ρ), ∇log ρ = −P⁻¹x
    along, across = landau.coulomb_rates(parallel, perpendicular)
    expected = torch.diag(torch.tensor([along, across, across]))
    torch.testing.assert_close(rate, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("d", [2, 3, 4])
@pytest.mark.parametrize("gamma", [-2.0, -1.3, -1e-9, 0.0, 1e-3, 0.5, 1.0])
def test_in_an_isotropic_gaussian_length_and_direction_are_independent(gamma: float, d: int):
    """E|z|^γ(…) = E|z|^{γ+4}/E|z|⁴ times the fourth moments, for z in N(0, 2TI)."""
    T, H = 0.7, torch.randn(d, d, generator=torch.Generator().manual_seed(2))
    power = lambda k: (4 * T) ** (k / 2) * math.gamma((d + k) / 2) / math.gamma(d / 2)  # noqa: E731
    ratio = power(gamma + 4) / power(4)
    P = T * torch.eye(d)
    expected = ratio * velocity_covariance(P, H, 0.0)
    torch.testing.assert_close(velocity_covariance(P, H, gamma), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gamma", [-2.0, -1.0, 0.0, 0.5, 1.0])
def test_in_the_plane_it_is_an_integral_over_directions(gamma: float):
    P, H = torch.tensor([[2.0, 0.6], [0.6, 0.3]]), torch.tensor([[1.0, 0.4], [-0.7, 0.2]])
    S, n = 2 * P, 400
    angle = torch.arange(n) * (2 * math.pi / n)
    e = torch.stack([angle.cos(), angle.sin()], -1)
    q = (e * torch.linalg.solve(S, e.mT).mT).sum(-1)
    radial = 0.5 * (2 / q) ** ((gamma + 6) / 2) * math.gamma((gamma + 6) / 2)
    He = e @ H.mT
    form = He[:, :, None] * e[:, None, :] - (e * He).sum(-1)[:, None, None] * e[:, :, None] * e[:, None, :]
    expected = (radial[:, None, None] * form).mean(0) / torch.linalg.det(S).sqrt()
    torch.testing.assert_close(velocity_covariance(P, H, gamma), expected / 2, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("gamma", [-3.0, 0.0, 1.0])
def test_a_gaussian_moves_as_its_particles_do(gamma: float):
    """dF/dt = −dissipation, and the energy stays: for the mean flow, and of many particles within sampling error."""
    mu = ox.Gaussian(torch.zeros(3), torch.diag(torch.tensor([2.0, 0.5, 0.8])))
    F = ox.KL(ox.Quadratic(torch.zeros(3)))
    metric, h = Landau(gamma, 0.3), 1e-5
    v = metric.descent(F, mu)
    ahead, behind = mu.move(v, h), mu.move(v, -h)
    rate = (F(ahead) - F(behind)) / (2 * h)
    torch.testing.assert_close(-rate, metric.dissipation(F, mu), rtol=1e-7, atol=1e-9)
    slope = v.affine()[1]
    assert abs(float((slope @ mu.cov).trace())) < 1e-13
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3)
    x = (mu.to_particles(400, torch.Generator().manual_seed(0)).x[:, None] * signs).flatten(0, 1)
    velocity = -metric.onsager(ox.Particles(x), mu.score(x) + x)
    torch.testing.assert_close(velocity.mT @ x / len(x), slope @ mu.cov, rtol=0.25, atol=1e-12)


def test_a_spectral_covariance_is_refused():
    mu = ox.Gaussian(torch.zeros(4), Spectral(torch.ones(4), ox.lattice.Lattice(4, 1)))
    with pytest.raises(TypeError, match="dense covariance"):
        Landau(0.0).descent(ox.Entropy(), mu)
