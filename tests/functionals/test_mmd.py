"""Discrepancies in a kernel's norm: closed forms, quadrature, finite differences, flows against their closed forms."""

import math

import pytest
import torch

import otprox as ox
from otprox import exact, kernels
from otprox.functionals.gaussian_smoothing import smoothed, smoothed_moments


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def cloud(n, d, seed=0, **options):
    return ox.Particles(torch.randn(n, d, generator=generator(seed)), **options)


COV = torch.tensor([[1.2, 0.4], [0.4, 0.5]])
KERNELS = [
    kernels.RBF(0.7),
    kernels.InverseMultiquadric(0.9),
    kernels.Energy(),
    kernels.Riesz(2),
    0.5 * kernels.RBF(1.1) + 0.3 * kernels.Energy(),
]
TARGETS = {
    "samples": cloud(40, 2, 1),
    "weighted": ox.Particles(torch.randn(9, 2, generator=generator(2)), torch.linspace(1, 2, 9) / 13.5),
    "gaussian": ox.Gaussian([0.3, -0.2], COV),
    "density": ox.Gaussian([0.3, -0.2], COV).to_density(ox.Grid([-6.0, -6.0], [6.0, 6.0], (24, 24))),
}


@pytest.mark.parametrize("k", KERNELS, ids=str)
@pytest.mark.parametrize("d", [1, 2])
def test_kernels_smoothed_by_gaussians(k, d):
    """Against Gauss–Hermite sums of a kernel that is smoothed a first time by two thirds of the noise."""
    cov = COV[:d, :d]
    z = torch.tensor([[0.0, 0.0], [0.4, -0.3], [5.0, 2.0]])[:, :d]
    rest = ox.Gaussian(torch.zeros(d), cov / 3, quadrature=ox.GaussHermite(40))
    want = torch.stack([rest.expect(lambda y: smoothed(k, at + y, 2 * cov / 3)) for at in z])  # noqa: B023
    torch.testing.assert_close(smoothed(k, z, cov), want, atol=1e-9, rtol=1e-9)
    value, slope, hessian = smoothed_moments(k, z[1], cov)
    assert value.item() == pytest.approx(smoothed(k, z, cov)[1].item(), rel=1e-12)
    e = 1e-5 * torch.eye(d)
    up, down = (smoothed_moments(k, z[1] + s * e, cov.expand(d, d, d)) for s in (1, -1))
    torch.testing.assert_close((up[0] - down[0]) / 2e-5, slope, atol=1e-8, rtol=1e-7)
    torch.testing.assert_close((up[1] - down[1]) / 2e-5, hessian, atol=1e-8, rtol=1e-7)


def test_distance_to_a_round_gaussian():
    """E |N(m, I)| in three dimensions, and E |N(0, s²I)| = s·c_d."""
    m = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 2.0]])
    r = 3.0
    want = [
        2 * math.sqrt(2 / math.pi),
        math.sqrt(2 / math.pi) * math.exp(-(r**2) / 2) + (r + 1 / r) * math.erf(r / 2**0.5),
    ]
    torch.testing.assert_close(-smoothed(kernels.Energy(), m, torch.eye(3)), torch.tensor(want), atol=1e-11, rtol=0)


@pytest.mark.parametrize("width", [0.5, 1.0, 2.0])
def test_two_gaussians(width):
    m, n, S, T = torch.tensor([0.2, 1.0]), torch.tensor([-0.5, 0.4]), COV, torch.tensor([[0.6, -0.2], [-0.2, 1.5]])
    F = ox.MMD(kernels.RBF(width), ox.Gaussian(n, T))
    want = exact.mmd.gaussian_mmd2(m, S, n, T, width).item()
    assert 2 * F(ox.Gaussian(m, S)).item() == pytest.approx(want, abs=1e-14)
    assert F(ox.Gaussian(n, T)).item() == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize("k", [kernels.RBF(0.8), kernels.Energy()], ids=str)
def test_bures_gradient_is_that_of_the_value(k):
    F, m = ox.MMD(k, TARGETS["gaussian"]), torch.tensor([0.7, 0.1])
    S = torch.tensor([[0.8, -0.1], [-0.1, 0.6]])
    shift, hessian = F.bures_gradient(ox.Gaussian(m, S))
    D = torch.tensor([[0.3, 0.2], [0.2, -0.4]])
    for dm, dS in ((torch.tensor([1.0, -0.5]), 0 * D), (0 * m, D)):
        up, down = (F(ox.Gaussian(m + s * dm, S + s * dS)).item() for s in (1e-5, -1e-5))
        want = (shift @ dm).item() + 0.5 * (hessian * dS).sum().item()
        assert (up - down) / 2e-5 == pytest.approx(want, abs=1e-8)


@pytest.mark.parametrize("k", [*KERNELS, kernels.Bilinear()], ids=str)
@pytest.mark.parametrize("name", TARGETS)
def test_gradient_and_first_variation_on_particles(k, name):
    target, mu = TARGETS[name], cloud(7, 2)
    F = ox.MMD(k, target)
    value = F(mu).item()
    assert value >= -1e-12 and F(target).item() == pytest.approx(0.0, abs=1e-12)
    e = 1e-6 * torch.randn(7, 2, generator=generator(5))
    up, down = (F(ox.Particles(mu.x + s * e)).item() for s in (1, -1))
    assert (up - down) / 2 == pytest.approx((F.gradient(mu) * e).sum().item() / 7, abs=1e-13)
    dw = torch.linspace(-1, 1, 7) * 1e-4  # of mass 0: F is quadratic in the weights
    up, down = (F(ox.Particles(mu.x, mu.w + s * dw)).item() for s in (1, -1))
    assert (up - down) / 2 == pytest.approx((F.first_variation(mu) * dw).sum().item(), abs=1e-13)


def test_every_representation_agrees():
    """Particles on the centres of cells, the density itself and the definition, all pairs."""
    k, mu = kernels.RBF(0.9), ox.Gaussian([1.0, 0.0], COV).to_density(TARGETS["density"].grid)
    for target in TARGETS.values():
        F = ox.MMD(k, target)
        as_points = ox.Particles(mu.points, mu.masses)
        assert F(mu).item() == pytest.approx(F(as_points).item(), rel=1e-11)
        torch.testing.assert_close(F.gradient(mu), F.gradient(as_points), atol=1e-13, rtol=1e-9)
    x, y = cloud(6, 2).x, TARGETS["samples"].x
    pairs = 0.5 * (k(x, x).mean() - 2 * k(x, y).mean() + k(y, y).mean())
    assert ox.MMD(k, TARGETS["samples"])(ox.Particles(x)).item() == pytest.approx(pairs.item(), abs=1e-15)


def test_batches_and_single_precision():
    x, y = torch.randn(3, 20, 2, generator=generator()), torch.randn(15, 2, generator=generator(1))
    F = ox.MMD(kernels.RBF(1.0), ox.Particles(y))
    torch.testing.assert_close(F(ox.Particles(x)), torch.stack([F(ox.Particles(each)) for each in x]))
    single = ox.MMD(kernels.Energy(), ox.Particles(y.float()))(ox.Particles(x.float()))
    assert single.dtype == torch.float32
    torch.testing.assert_close(
        single.double(), ox.MMD(kernels.Energy(), ox.Particles(y))(ox.Particles(x)), atol=1e-6, rtol=1e-5
    )


def test_widths_by_rule_and_lines_are_fixed_by_the_target():
    y = cloud(50, 3).x
    F = ox.MMD(kernels.RBF(kernels.Median()), ox.Particles(y))
    assert F.kernel == kernels.RBF(kernels.Median()).fit(y)
    sliced = ox.MMD(kernels.Sliced(400, generator=generator()), ox.Particles(y))
    mu = cloud(30, 3, 4)
    assert sliced(mu).item() == sliced(mu).item()
    assert sliced(mu).item() == pytest.approx(ox.MMD(kernels.Energy(), ox.Particles(y))(mu).item(), rel=0.05)


def test_bad_input_says_what_would_work():
    k = kernels.RBF(1.0)
    with pytest.raises(TypeError, match="samples of it"):
        ox.MMD(k, lambda x: x.square().sum(-1))
    with pytest.raises(TypeError, match="needs a kernel such as"):
        ox.MMD(lambda z: z, cloud(3, 1))
    with pytest.raises(TypeError, match="no closed form under a Gaussian target"):
        ox.MMD(kernels.Laplace(1.0), TARGETS["gaussian"])
    F = ox.MMD(k, cloud(3, 2))
    with pytest.raises(ValueError, match="lives in dimension 2, μ in 1"):
        F(cloud(3, 1))
    with pytest.raises(TypeError, match="float32"):
        F(ox.Particles(torch.zeros(3, 2, dtype=torch.float32)))
    around = ox.Particles(torch.rand(3, 2), domain=ox.Torus(1.0))
    for G in (F, 2.0 * F):
        with pytest.raises(ValueError, match="one domain"):
            G.gradient(around)
    with pytest.raises(ValueError, match="period"):
        ox.MMD(kernels.Sobolev(1.0, 2.0), around)(around)
