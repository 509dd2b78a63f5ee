"""Discrepancies in a kernel's norm: closed forms, quadrature, finite differences, flows against their closed forms."""

import math

import pytest
import torch

import otprox as ox
from otprox import exact, kernels
from otprox.functionals.gaussian_smoothing import smoothed, smoothed_moments
from otprox.measures.trigonometric import at_centres, cell_averages


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


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("k", [kernels.RBF(0.8), kernels.Energy()], ids=str)
def test_a_gaussian_against_samples(k, d):
    """∬k dμdν is a sum of kernels smoothed by μ."""
    mu, y = ox.Gaussian(torch.ones(d), COV[:d, :d]), cloud(9, d)
    pull = smoothed(k, y.x - 1.0, mu.cov).mean()
    want = 0.5 * smoothed(k, torch.zeros(1, d), 2 * mu.cov)[0] - pull + 0.5 * k(y.x, y.x).mean()
    assert ox.MMD(k, y)(mu).item() == pytest.approx(want.item(), abs=1e-13)


@pytest.mark.parametrize("name", ["gaussian", "samples"])
@pytest.mark.parametrize("k", [kernels.RBF(0.8), kernels.Energy()], ids=str)
def test_bures_gradient_is_that_of_the_value(k, name):
    F, m = ox.MMD(k, TARGETS[name]), torch.tensor([0.7, 0.1])
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
    samples = ox.Particles(torch.zeros(2, 1))
    with pytest.raises(ValueError, match="no r above 2"):
        ox.MMD(kernels.Riesz(2.5), samples)
    with pytest.raises(ValueError, match="its factor is -1"):
        ox.MMD(-kernels.RBF(1.0), samples)
    k = kernels.RBF(1.0)
    with pytest.raises(TypeError, match="samples of it"):
        ox.MMD(k, lambda x: x.square().sum(-1))
    with pytest.raises(TypeError, match="needs a kernel such as"):
        ox.MMD(lambda z: z, cloud(3, 1))
    with pytest.raises(TypeError, match=r"not a Particles; it is MMD\(kernel, target\), in this order$"):
        ox.MMD(cloud(3, 1), k)
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


# flows


def run(step, mu, horizon, steps, **observers):
    return ox.record(ox.flow(step, mu, [horizon * k / steps for k in range(steps + 1)]), **observers)


def waves(n):
    """A grid on the circle, its centres, and a density from its values at them, by exact cell averages."""
    grid = ox.Grid(0.0, 2 * math.pi, n, periodic=True)
    x = grid.centers(torch.ones(()))[0]
    return grid, x, lambda values: ox.Density(cell_averages(values, grid) / (2 * math.pi), grid)


def sobolev(s, mu, target=None):
    values = [None if m is None else 2 * math.pi * at_centres(m.values, m.grid) for m in (mu, target)]
    return exact.mmd.sobolev_energy(values[0], s, target=values[1]).item()


@pytest.mark.parametrize("a", [0.5, 0.8])
def test_negative_sobolev_flow_decays_exactly(a):
    """s = 1, ν uniform: E(t) = e^{−2t}E(0) for the full nonlinear flow, and the maximum of its closed form."""
    grid, x, density = waves(96)
    mu, uniform = density(1 + a * torch.cos(x)), density(torch.ones(96))
    end = run(ox.PseudoSpectral(ox.MMD(kernels.Sobolev(1.0, modes=47), uniform)), mu, 1.5, 60).final
    assert sobolev(1, end) == pytest.approx(math.exp(-3) * a**2 / 4, rel=1e-8)
    top = at_centres(end.values, grid).max().item() * 2 * math.pi  # of a centre half a cell away from the maximum
    assert top == pytest.approx(exact.mmd.negative_sobolev_maximum(1 + a, 1.5), rel=2e-3)


def test_negative_sobolev_flow_to_a_wave():
    _, x, density = waves(128)
    mu, nu = density(1 + 0.5 * torch.cos(x)), density(1 + 0.5 * torch.sin(x))
    F = ox.MMD(kernels.Sobolev(1.0, modes=63), nu)
    assert sobolev(1, run(ox.PseudoSpectral(F), nu, 0.5, 5).final, nu) < 1e-25  # the target is at rest
    step = ox.PseudoSpectral(F)
    one = run(step, mu, 1.0, 40).final
    two = run(step, one, 1.0, 40).final
    four = run(step, two, 2.0, 80).final
    found = [sobolev(1, m, nu) for m in (one, two, four)]
    assert found == pytest.approx([1.743061704e-2, 2.749501340e-3, 1.060896601e-4], rel=1e-7)
    assert found[2] <= sobolev(1, mu, nu) * math.exp(-2 * 0.5 * 4)  # E ≤ E₀e^{−2 min ν t}


def test_smoother_norms_decay_slowly():
    """s = 2 against the nonlinear reference, and the linear rates |k|^{2−2s} near the uniform measure."""
    _, x, density = waves(64)
    uniform = density(torch.ones(64))
    step = ox.PseudoSpectral(ox.MMD(kernels.Sobolev(2.0, modes=31), uniform))
    one = run(step, density(1 + 0.5 * torch.cos(x)), 1.0, 80).final
    five = run(step, one, 4.0, 200).final
    assert [sobolev(2, m) for m in (one, five)] == pytest.approx([8.123688610e-3, 2.525607941e-5], rel=1e-8)
    c = (
        torch.fft.rfft(2 * math.pi * at_centres(five.values, five.grid))
        * torch.exp(-0.5j * torch.arange(33) * x.diff()[0])
        / 64
    )
    assert [2 * c[1].real.item(), 2 * c[2].real.item()] == pytest.approx([0.002870742196, -0.03578139370], rel=1e-7)
    k, eps = 3, 1e-6
    near = run(step, density(1 + eps * torch.cos(k * x)), 1.0, 10).final
    want = 0.5 * 2 * k**-4.0 * (eps / 2) ** 2 * math.exp(-2 * exact.mmd.mode_rate(k, 2.0))
    assert sobolev(2, near) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("s", [1.0, 1.5])
def test_a_wave_on_the_torus(s):
    """Mode κ decays at the rate |κ|^{2 − 2s} about the uniform measure, in two dimensions and on another period."""
    L, eps = 3.0, 1e-6
    grid = ox.Grid([0.0, 0.0], [L, L], (24, 24), periodic=True)
    kappa = 2 * math.pi / L * torch.tensor([1.0, 2.0])
    plane = torch.cos(grid.points(torch.ones(())) @ kappa).reshape(24, 24)
    uniform = ox.Density(torch.full((24, 24), 1 / L**2), grid)
    F = ox.MMD(kernels.Sobolev(s, L, modes=5), uniform)
    end = run(ox.PseudoSpectral(F), ox.Density((1 + eps * plane) / L**2, grid), 1.0, 10).final
    decay = (end.values * L**2 - 1) / (eps * plane)
    want = math.exp(-(kappa.norm().item() ** (2 - 2 * s)))
    assert decay[plane.abs() > 0.5].mean().item() == pytest.approx(want, rel=1e-5)


def test_an_implicit_step_on_the_torus():
    """By descent, with the kernel's own modes: it beats the explicit step in its own objective."""
    L = 2 * math.pi
    mu = ox.Particles(1 + torch.rand(12, 1, generator=generator()), domain=ox.Torus(L))
    F = ox.MMD(kernels.Sobolev(1.0, modes=10), ox.Particles(L * torch.arange(12.0)[:, None] / 12, domain=ox.Torus(L)))
    out = ox.Backward(F)(mu, 0.0, 0.02)
    explicit = ox.Forward(F)(mu, 0.0, 0.02).mu
    shift = mu.domain.displacement(explicit.x, mu.x).square().sum(-1).mean()
    assert out.stats.converged and out.stats.objective < F(explicit) + shift / 0.04
    assert out.stats.objective.item() == pytest.approx((F(out.mu) + out.stats.distance2 / 0.04).item(), rel=1e-12)
    with pytest.raises(ValueError, match="convexity limit 0.025"):  # −1/λ, λ = −2Σ_k k²·2k^(−2)
        ox.Backward(F)(mu, 0.0, 0.03)


def test_the_exponent_and_its_prefactor():
    """c_k = k^{−1} near the uniform measure, s = 2: E → Γ(5/2)2^{−5/2}/2·t^{−5/2}, exponent (s + r)/(s − 1), r → ½."""
    _, x, density = waves(256)
    k = torch.arange(1, 100.0)
    shape = (2 / k * torch.cos(k * x[:, None])).sum(-1)
    uniform, eps = density(torch.ones(256)), 1e-7
    mu = density(1 + eps * shape)
    step = ox.PseudoSpectral(ox.MMD(kernels.Sobolev(2.0, modes=127), uniform))
    found = []
    for t in (200.0, 400.0):
        mu = run(step, mu, 200.0, 100).final
        found.append(sobolev(2, mu) / eps**2)
        assert found[-1] == pytest.approx(exact.mmd.power_tail(t, 2.0, 1.0), rel=5e-3)
    assert math.log2(found[0] / found[1]) == pytest.approx(2.5, abs=0.01)


def test_particles_on_the_torus_follow_the_equation():
    """s = 1, particles on the quantiles of 1 + a cos x: X = x + (1 − e^{−t})a·sin x but for modes that are cut."""
    n, a = 400, 0.5
    grid, _, density = waves(64)
    q = (torch.arange(n) + 0.5) / n
    x = 2 * math.pi * q
    for _ in range(40):
        x = x - (x + a * torch.sin(x) - 2 * math.pi * q) / (1 + a * torch.cos(x))
    k = kernels.Sobolev(1.0, modes=30)
    mu = ox.Particles(x[:, None], domain=ox.Torus(2 * math.pi))
    F = ox.MMD(k, density(torch.ones(64)))
    step = ox.Drift(lambda t, m, at: -F.gradient(m, at), order=2)
    end = run(step, mu, 1.0, 20)
    want = exact.mmd.negative_sobolev_map(x, a * torch.sin(x), 1.0)
    assert (end.final.x[:, 0] - want).abs().max().item() < 2e-3
    assert F(end.final).item() == pytest.approx(math.exp(-2) * a**2 / 4, rel=5e-3)


@pytest.mark.parametrize("target", ["gaussian", "samples"])
def test_flow_on_the_line(target):
    """½∫(F_μ − F_ν)² of 4000 quantiles from a point to N(0, 1), Ẋ = q − F_ν(X), by classical Runge–Kutta steps."""
    n = 4000
    q = (torch.arange(n) + 0.5) / n
    nu = ox.Gaussian([0.0], [[1.0]])
    F = 0.5 * ox.MMD(kernels.Energy(), nu if target == "gaussian" else ox.Particles(ox.Quantiles.of(nu, 200_000).x))
    step, start = ox.Drift(lambda t, m, at: -F.gradient(m, at), order=4), ox.Quantiles(1e-9 * (q - 0.5))
    assert F(start).item() == pytest.approx(0.5 * (math.sqrt(2 / math.pi) - math.pi**-0.5), abs=1e-8)
    one = run(step, start, 1.0, 10).final
    five = run(step, one, 4.0, 40).final
    assert [F(one).item(), F(five).item()] == pytest.approx([0.05925743, 0.00758740], abs=2e-8)
    want = exact.mmd.cramer_flow(torch.zeros(n), q, torch.special.ndtr, 5.0, 1.0)
    torch.testing.assert_close(five.x[..., 0], want, atol=1e-5, rtol=0)


def test_a_density_on_the_line():
    """∫(F_μ − F_ν)² for a step F_μ and a piecewise linear F_ν, its slope; from 0 to U[0, 1], X = q(1 − e^{−2t})."""
    grid, q = ox.Grid(0.0, 1.0, 5), (torch.arange(40) + 0.5) / 40
    F = ox.MMD(kernels.Energy(), ox.Density(torch.ones(5), grid))
    for x in (0.3, -0.2, 1.5):
        want = max(0.0, -x) + max(0.0, x - 1) + (min(max(x, 0), 1) ** 3 + (1 - min(max(x, 0), 1)) ** 3) / 3
        assert F(ox.Particles(torch.tensor([[x]]))).item() == pytest.approx(want, abs=1e-14)
    z = torch.tensor([[0.1], [0.55], [1.2]], requires_grad=True)
    (slope,) = torch.autograd.grad(F(ox.Particles(z)), z)
    torch.testing.assert_close(3 * slope, F.gradient(ox.Particles(z.detach())))
    mu = ox.Density(torch.tensor([2.0, 1.0, 1.0, 1.0, 0.0]), grid)
    assert F(F.target).item() == pytest.approx(0.0, abs=1e-15) and F(mu) > 0
    step = ox.Drift(lambda t, m, at: -F.gradient(m, at), order=4)
    end = run(step, ox.Quantiles(1e-12 * q), 1.0, 20).final.x[..., 0]
    torch.testing.assert_close(end, exact.mmd.cramer_flow_to_uniform(0 * q, q, 1.0, 2.0), atol=1e-6, rtol=0)


def test_particles_on_the_line_move_as_quantiles_do():
    F, x = ox.MMD(kernels.Energy(), cloud(31, 1, 2)), cloud(20, 1).x.sort(0).values
    for step in (ox.Forward(F), ox.Backward(F)):
        there = step(ox.Quantiles(x[:, 0]), 0.0, 0.1).mu.x
        shuffled = torch.randperm(20, generator=generator())
        torch.testing.assert_close(step(ox.Particles(x[shuffled]), 0.0, 0.1).mu.x, there[shuffled])


def test_dirac_to_dirac():
    F = ox.MMD(kernels.RBF(1.0), ox.Particles(torch.zeros(1, 1)))
    step = ox.Drift(lambda t, m, at: -F.gradient(m, at), order=4)
    end = run(step, ox.Particles(torch.full((1, 1), 2.0)), 2.0, 40).final
    assert end.x.item() == pytest.approx(exact.mmd.dirac_to_dirac(2.0, 2.0, 1.0), abs=1e-6)


def test_noise_injection():
    F, mu = ox.MMD(kernels.RBF(0.5), ox.Particles(torch.zeros(1, 2))), cloud(30, 2)
    quiet = ox.NoisyForward(F, 0.0, generator=generator())(mu, 0.0, 0.1).mu
    torch.testing.assert_close(quiet.x, ox.Forward(F)(mu, 0.0, 0.1).mu.x)
    noisy = ox.NoisyForward(F, lambda t: 0.5 / (1 + t), generator=generator(3))(mu, 1.0, 1.2).mu
    u = torch.randn(30, 2, generator=generator(3))
    torch.testing.assert_close(noisy.x, mu.x - 0.2 * F.gradient(mu, mu.x + 0.25 * u))
    y = cloud(40, 2, 1).x / 2 + torch.tensor([2.0, 0.0]) * (1 - 2 * (torch.arange(40) % 2))[:, None]
    F, far = ox.MMD(kernels.RBF(1.0), ox.Particles(y)), ox.Particles(cloud(40, 2).x / 2 + torch.tensor([0.0, 5.0]))
    fading = ox.NoisyForward(F, lambda t: 3 * max(0.0, 1 - t / 250), generator=generator())
    assert F(run(fading, far, 300.0, 300).final) < 0.75 * F(run(ox.Forward(F), far, 300.0, 300).final)
    with pytest.raises(ValueError, match="noise must be ≥ 0"):
        ox.NoisyForward(F, -1.0, generator=generator())(mu, 0.0, 0.1)
    with pytest.raises(TypeError, match="perturbs Particles"):
        ox.NoisyForward(F, 1.0, generator=generator())(TARGETS["gaussian"], 0.0, 0.1)


def neurons(z, x):
    """a·relu(w·x + b) for z = (a, w, b)."""
    return z[..., :1] * (z[..., 1:-1] @ x.mT + z[..., -1:]).relu()


def test_a_wide_network_is_a_flow_of_its_kernel():
    """MMD in the kernel of one neuron is half the mean squared error, and its flow the network's gradient descent."""
    data, students, teachers = (torch.randn(n, d, generator=generator(d)) for n, d in ((60, 2), (25, 4), (3, 4)))
    k = kernels.Expected(neurons, data)
    F, mu = ox.MMD(k, ox.Particles(teachers)), ox.Particles(students)
    error = neurons(students, data).mean(0) - neurons(teachers, data).mean(0)
    assert F(mu).item() == pytest.approx(0.5 * error.square().mean().item(), rel=1e-12)
    z = students.clone()
    for _ in range(10):
        z.requires_grad_()
        loss = 0.5 * (neurons(z, data).mean(0) - neurons(teachers, data).mean(0)).square().mean()
        (slope,) = torch.autograd.grad(loss, z)
        z = (z - 0.1 * 25 * slope).detach()  # particles move by the gradient of the first variation: n times that of F
    torch.testing.assert_close(run(ox.Forward(F), mu, 1.0, 10).final.x, z, atol=1e-12, rtol=0)
    smooth = kernels.Expected(lambda z, x: z[..., :1] * torch.tanh(z[..., 1:-1] @ x.mT + z[..., -1:]), data)
    G = ox.MMD(smooth, ox.Particles(teachers))
    stats = ox.Backward(G)(mu, 0.0, 0.5).stats
    assert stats.converged and stats.objective < G(mu)


def test_the_kernel_of_relu_neurons_on_the_circle():
    angle = 2 * math.pi * torch.arange(2000) / 2000
    data = torch.stack([angle.cos(), angle.sin()], -1)
    z = data[[0, 300, 900]]
    k = kernels.Expected(lambda z, x: (z @ x.mT).relu(), data)
    torch.testing.assert_close(k(z, z), exact.mmd.relu_kernel(z @ z.mT, 1), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="feature must map"):
        kernels.Expected(lambda z, x: z, data)(z, z)
