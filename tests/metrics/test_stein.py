"""SVGD on particles, Gaussians and densities: closed forms, limits, and the energy identity dKL/dt = −D²."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import otprox as ox
from otprox.exact import gaussian, svgd

RBF, Bilinear, Laplace = ox.kernels.RBF, ox.kernels.Bilinear, ox.kernels.Laplace
TARGET = ox.Gaussian([0.5, 0.25], [[1.0, -0.4], [-0.4, 0.8]])
START = ox.Gaussian([1.0, -0.5], [[2.0, 0.6], [0.6, 1.0]])
NORMAL = ox.Gaussian([0.0], [[1.0]])


HALF_SQUARE = ox.Quadratic([0.0])  # V = V₀ of the weighted kernel


def cloud(n=6, d=2, seed=0, **options):
    return ox.Particles(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), **options)


def velocity(F, kernel, mu):
    return ox.Stein(kernel).descent(F, mu).field(mu.points)


def direct(V, kernel, x, w):
    """Σ_j w_j [−k(x_i, x_j)∇V(x_j) + ∇_y k(x_i, x_j)], by automatic differentiation over all pairs."""
    y = x.clone().requires_grad_()
    (score,) = torch.autograd.grad(V(y).sum(), y)
    rows = []
    for i in range(len(x)):
        k = kernel(x[i : i + 1], y)[0]
        (slope,) = torch.autograd.grad(k.sum(), y)
        rows.append((w[:, None] * (slope - k.detach()[:, None] * score)).sum(0))
    return torch.stack(rows)


KERNELS = {
    "RBF": RBF(0.8),
    "InverseMultiquadric": ox.kernels.InverseMultiquadric(1.2),
    "Laplace": Laplace(0.7),
    "Bilinear": Bilinear(),
    "sum": Bilinear() + 0.5 * RBF(0.6),
    "Weighted": ox.kernels.Weighted(lambda x: x.square().sum(-1), lambda x: x[..., 0] ** 2, RBF(0.8)),
}


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_the_velocity_is_that_of_svgd(kernel):
    V = lambda x: (x**4).sum(-1) / 4 + x[..., 0] * x[..., 1]  # noqa: E731
    w = torch.tensor([0.1, 0.3, 0.2, 0.15, 0.05, 0.2])
    mu = cloud(w=w)
    torch.testing.assert_close(velocity(ox.KL(V), kernel, mu), direct(V, kernel, mu.x, w), atol=1e-12, rtol=1e-12)


def test_batches_are_single_runs():
    x = torch.stack([cloud(seed=s).x for s in (0, 1, 2)])
    both = velocity(ox.KL(TARGET), RBF(1.0), ox.Particles(x))
    for part, one in zip(x, both, strict=True):
        torch.testing.assert_close(velocity(ox.KL(TARGET), RBF(1.0), ox.Particles(part)), one)


def test_bilinear_particles_follow_the_gaussian_exactly():
    F, mu = ox.KL(TARGET), cloud()
    fit, tau = ox.Gaussian.fit(mu), 0.05
    step = ox.Forward(F, ox.Stein(Bilinear()))
    moved, law = step(mu, 0.0, tau).mu, step(fit, 0.0, tau).mu
    torch.testing.assert_close(moved.mean, law.mean, atol=1e-13, rtol=0)
    torch.testing.assert_close(moved.cov, law.cov, atol=1e-13, rtol=0)
    b, J = ox.Stein(Bilinear()).descent(F, fit).affine()
    mean, cov = svgd.bilinear_moments(fit, TARGET)
    torch.testing.assert_close(b, mean, atol=1e-13, rtol=0)
    torch.testing.assert_close(J @ fit.cov + fit.cov @ J.mT, cov, atol=1e-13, rtol=0)


@pytest.mark.parametrize("start", [cloud(), ox.Gaussian.fit(cloud())], ids=["particles", "Gaussian"])
def test_bilinear_flow_at_fourth_order(start):
    stein = ox.Stein(Bilinear())
    step = ox.Drift(lambda t, mu, x: stein.descent(ox.KL(TARGET), mu).field(x), order=4)
    want = svgd.bilinear_flow(ox.Gaussian.fit(start), TARGET, 1.0)
    errors = []
    for n in (12, 24):
        end = ox.record(ox.flow(step, start, [k / n for k in range(n + 1)])).final
        errors.append((end.cov - want.cov).abs().max().item() + (end.mean - want.mean).abs().max().item())
    assert errors[1] < 1e-5 and math.log2(errors[0] / errors[1]) > 3.7


@pytest.mark.parametrize(("n", "h"), [(2, 0.5), (2, 2.0), (3, 1.0), (5, 1.0)])
def test_equilibria_of_a_few_particles(n, h):
    x = svgd.rbf_equilibrium(n, h)[:, None]
    assert velocity(ox.KL(NORMAL), RBF(h), ox.Particles(x)).abs().max() < 1e-11
    start = ox.Quantiles.of(NORMAL, n).x * 1.05
    step = ox.Forward(ox.KL(NORMAL), ox.Stein(RBF(h)))
    end = ox.record(ox.flow(step, ox.Particles(start), [0.6 * k for k in range(400)])).final
    torch.testing.assert_close(end.x, x, atol=1e-8, rtol=0)


def test_wide_and_narrow_kernels():
    V, mu = lambda x: (x**4).sum(-1) / 4, cloud(8)
    slope = mu.x**3
    wide = velocity(ox.KL(V), RBF(1e5), mu)
    torch.testing.assert_close(wide, -slope.mean(0).expand_as(slope), atol=1e-8, rtol=0)
    narrow = velocity(ox.KL(V), RBF(1e-3), mu)
    torch.testing.assert_close(narrow, -slope / 8, atol=1e-9, rtol=0)


def test_rbf_velocity_of_a_gaussian():
    mu = ox.Gaussian(START.mean, START.cov, quadrature=ox.GaussHermite(32))
    x = torch.tensor([[0.3, -0.2], [2.0, 1.0]])
    found = ox.Stein(RBF(1.3)).descent(ox.KL(TARGET), mu).field(x)
    torch.testing.assert_close(found, svgd.rbf_velocity(x, START, TARGET, 1.3), atol=1e-8, rtol=0)
    grid = ox.Grid((-6.0, -6.0), (8.0, 5.0), (84, 66))
    density = START.to_density(grid)
    cells = ox.Stein(RBF(1.3)).descent(ox.KL(TARGET), density).field(x)
    torch.testing.assert_close(cells, svgd.rbf_velocity(x, START, TARGET, 1.3), atol=5e-3, rtol=0)


@pytest.mark.parametrize(("m", "s", "h"), [(0.0, 0.5, 1.0), (1.0, 0.5, 0.7), (-2.0, 1.5, 2.0)])
def test_stein_discrepancy_of_every_representation(m, s, h):
    law, F, metric = ox.Gaussian([m], [[s * s]], quadrature=ox.GaussHermite(64)), ox.KL(NORMAL), ox.Stein(RBF(h))
    want = svgd.rbf_dissipation(law, NORMAL, h).item()
    assert metric.dissipation(F, law).item() == pytest.approx(want, rel=1e-9)
    assert metric.dissipation(F, ox.Quantiles.of(law, 2000)).item() == pytest.approx(want, rel=3e-4)
    errors = [
        abs(metric.dissipation(F, law.to_density(ox.Grid(-12.0, 12.0, n))).item() - want) for n in (200, 400, 800)
    ]
    assert errors[2] < 1e-2 * want and math.log2(errors[1] / errors[2]) == pytest.approx(2, abs=0.1)


def test_discrepancy_of_particles_over_all_pairs():
    mu, h = cloud(7), 0.9
    F, x = ox.KL(TARGET), mu.x
    s = -TARGET.score(x)
    z = x[:, None] - x
    square = z.square().sum(-1)
    k = torch.exp(-square / (2 * h * h))
    pairs = s @ s.mT - ((z * s[:, None]).sum(-1) - (z * s).sum(-1)) / h**2 + (2 / h**2 - square / h**4)
    torch.testing.assert_close(ox.Stein(RBF(h)).dissipation(F, mu), (k * pairs).mean())


def test_kl_falls_at_the_rate_of_the_dissipation_on_gaussians():
    F, metric = ox.KL(TARGET), ox.Stein(Bilinear())
    torch.testing.assert_close(metric.dissipation(F, START), svgd.bilinear_dissipation(START, TARGET))
    torch.testing.assert_close(ox.Stein(0.5 * Bilinear()).dissipation(F, START), 0.5 * metric.dissipation(F, START))
    half, whole = (ox.Forward(F, ox.Stein(k)) for k in (0.5 * Bilinear(), Bilinear()))
    torch.testing.assert_close(half(START, 0.0, 0.02).mu.cov, whole(START, 0.0, 0.01).mu.cov)
    step, eps = ox.Forward(F, metric), 1e-5
    fall = (F(START) - F(step(START, 0.0, eps).mu)) / eps
    torch.testing.assert_close(fall, metric.dissipation(F, START), rtol=1e-3, atol=0)


@pytest.mark.parametrize("kernel", [RBF(0.8), Laplace(1.0), Bilinear()])
@pytest.mark.parametrize("d", [1, 2])
def test_kl_falls_at_the_rate_of_the_dissipation_on_densities(kernel, d):
    target = lambda x: (x**4).sum(-1) / 4 + 0.3 * x.sum(-1)  # noqa: E731
    grid = ox.Grid(-3.0, 3.5, 120) if d == 1 else ox.Grid((-3.0, -2.5), (3.5, 2.5), (60, 50))
    mu = ox.Density.from_log_prob(lambda x: -((x - 0.3) ** 2).sum(-1) / 0.8, grid)
    F, metric, eps = ox.KL(target), ox.Stein(kernel), 1e-6
    moved = ox.Forward(F, metric)(mu, 0.0, eps).mu
    fall = (F(mu) - F(moved)) / eps
    torch.testing.assert_close(fall, metric.dissipation(F, mu), rtol=1e-2, atol=0)
    assert moved.mass.item() == pytest.approx(1.0, abs=1e-12)


def test_the_target_rests_on_a_grid():
    V = lambda x: ((x**2 - 1) ** 2).sum(-1)  # noqa: E731
    grid = ox.Grid(-2.5, 2.5, 100)
    rho = torch.softmax(-V(grid.points(torch.zeros(()))), -1) / grid.volume
    mu = ox.Density(rho, grid)
    moved = ox.Forward(ox.KL(V), ox.Stein(RBF(0.5)))(mu, 0.0, 0.05).mu
    torch.testing.assert_close(moved.values, mu.values, atol=1e-13, rtol=0)


def test_particles_approach_the_mean_field_equation():
    """From the quantiles of the start, the error of mean and variance falls as n grows."""
    F, metric, horizon = ox.KL(lambda x: ((x**2 - 1) ** 2).sum(-1)), ox.Stein(RBF(0.5)), 1.0
    start = ox.Gaussian([0.6], [[0.25]])
    grid = ox.Grid(-3.0, 3.5, 325)
    step = ox.Forward(F, metric)
    times = [horizon * k / 100 for k in range(101)]
    pde = ox.record(ox.flow(step, start.to_density(grid), times)).final
    errors = []
    for n in (25, 250):
        end = ox.record(ox.flow(step, ox.Particles(ox.Quantiles.of(start, n).x), times)).final
        errors.append(max((end.mean - pde.mean).abs().item(), (end.cov - pde.cov).abs().item()))
    assert errors[1] < 2e-3 and errors[1] < errors[0] / 5


def test_density_follows_the_exact_velocity_and_stays_positive():
    mu = ox.Gaussian([1.0], [[0.25]])
    density = mu.to_density(ox.Grid(-3.0, 5.0, 400))
    tangent = ox.Stein(RBF(1.0)).descent(ox.KL(NORMAL), density)
    faces = density.grid.faces(0, density.values)
    want = svgd.rbf_velocity(faces, mu, NORMAL, 1.0)[:, 0]
    torch.testing.assert_close(tangent.faces()[0], want, atol=2e-4, rtol=0)
    tau = density.stable_step(tangent).item()
    assert (density.move(tangent, tau).values >= 0).all()
    with pytest.raises(ValueError, match="stable step"):
        density.move(tangent, 1.01 * tau)


def test_the_stable_step_holds_off_the_grid_wave():
    """A kernel as narrow as a few cells diffuses: just below the stable step a perturbation dies out."""
    grid = ox.Grid(0.0, 1.0, 64, periodic=True)
    x = grid.points(torch.zeros(()))[:, 0]
    mu = ox.Density(1 + 0.01 * torch.cos(64 * math.pi * x + 0.3), grid)
    step = ox.Forward(ox.Entropy(), ox.Stein(RBF(0.02)))
    tau = mu.stable_step(ox.Stein(RBF(0.02)).descent(ox.Entropy(), mu)).item()
    end = ox.record(ox.flow(step, mu, [0.95 * tau * k for k in range(200)])).final
    assert (end.values - 1).abs().max() < 0.01


def test_a_carried_log_density_gives_the_kl():
    """In the mean-field limit the log-density carried along gives KL, which falls at the rate D²."""
    law = ox.Gaussian([1.0], [[0.25]])
    mu = ox.Particles(ox.Quantiles.of(law, 400).x, log_density=law.log_prob(ox.Quantiles.of(law, 400).x))
    F, metric, eps = ox.KL(NORMAL), ox.Stein(RBF(1.0)), 1e-4
    moved = ox.Forward(F, metric)(mu, 0.0, eps).mu
    fall = ((F(mu) - F(moved)) / eps).item()
    assert fall == pytest.approx(metric.dissipation(F, mu).item(), rel=1e-3)


def test_annealing_scales_the_potential_in_time():
    target = ox.Potential(ox.Quadratic.of(TARGET))
    varying = ox.Forward(ox.Varying(lambda t: (0.1 + t) * target + ox.Entropy()), ox.Stein(RBF(1.0)))
    fixed = ox.Forward(0.6 * target + ox.Entropy(), ox.Stein(RBF(1.0)))
    torch.testing.assert_close(varying(cloud(), 0.5, 0.7).mu.x, fixed(cloud(), 0.5, 0.7).mu.x)


@given(seed=st.integers(0, 10**6), n=st.integers(2, 12), width=st.floats(0.3, 3.0), angle=st.floats(0, 6.28))
def test_rigid_motions_and_signs(seed, n, width, angle):
    """The velocity turns with the particles and the target; the discrepancy is positive, and does not turn."""
    mu, F, metric = cloud(n, seed=seed), ox.KL(TARGET), ox.Stein(RBF(width))
    c, s = math.cos(angle), math.sin(angle)
    R, shift = torch.tensor([[c, -s], [s, c]]), torch.tensor([0.7, -1.3])
    cov = R @ TARGET.cov @ R.mT
    turned = ox.Particles(mu.x @ R.mT + shift)
    G = ox.KL(ox.Gaussian(R @ TARGET.mean + shift, (cov + cov.mT) / 2))
    v = velocity(F, RBF(width), mu)
    torch.testing.assert_close(velocity(G, RBF(width), turned), v @ R.mT, atol=1e-10, rtol=1e-10)
    D2 = metric.dissipation(F, mu)
    assert D2 > 0
    torch.testing.assert_close(metric.dissipation(G, turned), D2, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("kernel", [RBF(0.8), Bilinear()])
def test_a_step_is_differentiable_in_its_start(kernel):
    V = lambda x: (x**4).sum(-1) / 4  # noqa: E731
    step = ox.Forward(ox.KL(V), ox.Stein(kernel))
    x, bump, eps = cloud(5).x, cloud(5, seed=1).x, 1e-5
    value = lambda y: step(ox.Particles(y), 0.0, 0.1).mu.x.sin().sum()  # noqa: E731
    start = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(value(start), start)
    difference = (value(x + eps * bump) - value(x - eps * bump)) / (2 * eps)
    torch.testing.assert_close((slope * bump).sum(), difference, rtol=1e-6, atol=1e-8)


def test_adaptive_steps():
    """From far out, where one fixed step would overshoot."""
    step, start = (
        ox.Forward(ox.KL(lambda x: (x**4).sum(-1) / 4), ox.Stein(RBF(1.0))),
        ox.Particles(cloud(10, 1).x + 4.0),
    )
    assert step(start, 0.0, 0.5).mu.x.min() < -4.0
    out = ox.Adaptive(step, tol=1.0)(start, 0.0, 0.5)
    assert out.mu.x.min() > 0.0 and out.mu.x.max() < 4.0 and out.stats.iterations > 10


def test_float32():
    mu = ox.Particles(cloud(20).x.float())
    V = lambda x: 0.5 * x.square().sum(-1)  # noqa: E731
    found = velocity(ox.KL(V), RBF(0.8), mu)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), velocity(ox.KL(V), RBF(0.8), cloud(20)), atol=1e-6, rtol=0)


def late_rates(kernel, n, reach):
    """Minus the smallest eigenvalues of the linearised equation around N(0, 1), by differences in every cell."""
    grid, eps = ox.Grid(-reach, reach, n), 1e-6
    rest = ox.Density.from_log_prob(lambda x: -HALF_SQUARE(x), grid)
    rest = rest.with_state(values=torch.softmax(-HALF_SQUARE(rest.points), -1) / grid.volume)
    shifted = rest.with_state(values=rest.values * (1 + eps * torch.eye(n)))
    F, step = ox.KL(HALF_SQUARE), ox.Forward(ox.KL(HALF_SQUARE), ox.Stein(kernel))
    tau = 0.1 * shifted.stable_step(ox.Stein(kernel).descent(F, shifted)).min().item()
    rate = (step(shifted, 0.0, tau).mu.values - shifted.values) / (tau * eps * rest.values)
    return torch.linalg.eigvals(-rate).real.sort().values


def test_spectrum_of_the_weighted_kernel():
    """The mean-field equation decays at the rates μ_n/Z."""
    for width in (1.0, 0.7):
        kernel = ox.kernels.Weighted(HALF_SQUARE, HALF_SQUARE, 0.5 / width * Laplace(width))
        rates = late_rates(kernel, 100, 5.0)
        assert abs(rates[0]) < 1e-6  # mass
        want = svgd.weighted_spectrum(3, 0.5, width) / math.sqrt(2 * math.pi)
        torch.testing.assert_close(rates[1:4], want, rtol=4e-3, atol=0)


def test_reference_values_of_the_weighted_kernel():
    """V = V₀ = x²/2, k = ½e^{−|x|}, from N(0, 1)(1 + ½sin x), against independent values with 4 digits."""
    kernel = ox.kernels.Weighted(HALF_SQUARE, HALF_SQUARE, 0.5 * Laplace(1.0))
    mu = ox.Density.from_log_prob(
        lambda x: -HALF_SQUARE(x) + (1 + 0.5 * x.sin()[..., 0]).log(), ox.Grid(-5.0, 5.0, 140)
    )
    step = ox.Richardson(ox.Forward(ox.KL(NORMAL), ox.Stein(kernel)))
    run = ox.record(ox.flow(step, mu, [0.05 * k for k in range(81)]), every=20, kl=ox.observe.kl(NORMAL))
    want = torch.tensor([3.1295e-2, 1.75406e-2, 5.40610e-3])
    torch.testing.assert_close(run.series["kl"][[0, 1, 3]], want, rtol=4e-3, atol=0)


@pytest.mark.parametrize(("m", "sigma"), [(0.5, 0.6), (-1.0, 1.5)])
def test_dissipation_in_the_weighted_kernel(m, sigma):
    k = RBF(sigma) * (1 / math.sqrt(2 * math.pi) / sigma)
    metric = ox.Stein(ox.kernels.Weighted(HALF_SQUARE, HALF_SQUARE, k))
    mu = ox.Gaussian([m], [[1.0]]).to_density(ox.Grid(-9.0, 9.0, 500))
    assert metric.dissipation(ox.KL(NORMAL), mu).item() == pytest.approx(svgd.weighted_dissipation(m, sigma), rel=2e-3)


def test_on_a_circle():
    """A kernel and a potential of period 2π: what the velocity is does not depend on where the circle is cut."""
    V, kernel = lambda x: -x.cos().sum(-1), ox.kernels.Cosine([1.0, 0.5])  # noqa: E731
    x = torch.tensor([[0.1], [2.0], [5.0]])
    for shift in (0.0, 4.0):
        mu = ox.Particles(x + shift, domain=ox.Torus(2 * math.pi))
        found = velocity(ox.KL(lambda y, s=shift: V(y - s)), kernel, mu)
        torch.testing.assert_close(found, direct(V, kernel, x, torch.full((3,), 1 / 3)), atol=1e-12, rtol=0)


def test_widths_by_rule():
    rule, mu = ox.kernels.Median(), cloud(20)
    width = rule.width(mu.x).item()
    torch.testing.assert_close(velocity(ox.KL(TARGET), RBF(rule), mu), velocity(ox.KL(TARGET), RBF(width), mu))
    with pytest.raises(TypeError, match="no width until it is fitted"):
        ox.Forward(ox.KL(NORMAL), ox.Stein(RBF(rule)))(NORMAL.to_density(ox.Grid(-7.0, 7.0, 50)), 0.0, 0.1)


def test_refusals():
    F = ox.KL(NORMAL)
    with pytest.raises(ValueError, match="positive definite"):
        ox.Stein(ox.kernels.Energy())
    with pytest.raises(ValueError, match="positive definite"):
        ox.Stein(ox.kernels.Weighted(HALF_SQUARE, HALF_SQUARE, RBF(1.0) + 0.5 * ox.kernels.Riesz(1.5)))
    with pytest.raises(ValueError, match="its factor is -2"):
        ox.Stein(-2.0 * RBF(1.0))
    with pytest.raises(ValueError, match="negative coefficient"):
        ox.Stein(ox.kernels.Cosine([1.0, -0.5]))
    with pytest.raises(TypeError, match="needs a kernel"):
        ox.Stein(1.0)
    with pytest.raises(TypeError, match="GaussHermite"):
        ox.Forward(F, ox.Stein(RBF(1.0)))(NORMAL, 0.0, 0.1)
    with pytest.raises(ValueError, match="all 5 particles are at one place"):
        ox.Forward(F, ox.Stein(RBF(1.0)))(ox.Particles(torch.ones(5, 1)), 0.0, 0.1)
    with pytest.raises(ValueError, match="no second derivative"):
        ox.Stein(Laplace(1.0)).dissipation(F, cloud(5, 1))
    sharp = ox.KL(lambda x: x.sum(-1).abs().sqrt())  # ∇V is infinite at 0
    with pytest.raises(ValueError, match="NaN or infinite at 1 of 3 nodes"):
        ox.Forward(sharp, ox.Stein(RBF(1.0)))(ox.Particles([[0.0], [1.0], [2.0]]), 0.0, 0.1)
    spectral = ox.Gaussian(torch.zeros(1), ox.Spectral(torch.ones(1), ox.Lattice(1)))
    with pytest.raises(TypeError, match="dense"):
        ox.Forward(F, ox.Stein(Bilinear()))(spectral, 0.0, 0.1)


def test_a_failed_run_keeps_what_it_recorded():
    F = ox.KL(lambda x: torch.where(x.sum(-1) > 1.0, torch.nan, x.square().sum(-1) - 4 * x.sum(-1)))
    step = ox.Forward(F, ox.Stein(RBF(1.0)))
    with pytest.raises(ValueError) as caught:
        ox.record(ox.flow(step, ox.Particles([[0.0], [0.1]]), [0.1 * k for k in range(50)]), mean=ox.observe.mean)
    assert caught.value.trajectory.status == "failed" and len(caught.value.trajectory.times) > 1


@pytest.mark.needs_cuda
def test_cuda():
    mu, V = cloud(50), lambda x: 0.5 * x.square().sum(-1)
    there = velocity(ox.KL(V), RBF(0.8), ox.Particles(mu.x.cuda()))
    torch.testing.assert_close(there.cpu(), velocity(ox.KL(V), RBF(0.8), mu))


def test_reference_kl_of_gaussians():
    """KL along the exact bilinear flow, against the closed form of the Gaussian at the end of Forward steps."""
    step = ox.Forward(ox.KL(TARGET), ox.Stein(Bilinear()))
    gaps = []
    for n in (100, 200):
        run = ox.record(ox.flow(step, START, [k / n for k in range(n + 1)]), kl=ox.observe.kl(TARGET))
        gaps.append(abs(run.series["kl"][-1] - gaussian.kl(svgd.bilinear_flow(START, TARGET, 1.0), TARGET)).item())
    assert math.log2(gaps[0] / gaps[1]) == pytest.approx(1, abs=0.15)
