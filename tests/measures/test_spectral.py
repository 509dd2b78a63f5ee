"""Spectral covariances do what the dense matrices do, on every operation and step, without forming them."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import otprox as ox
from otprox import exact, observe, storage
from otprox.functionals import Potential, Quadratic
from otprox.lattice import Lattice
from otprox.measures import Spectral
from otprox.measures.distance import gelbrich_squared, w2_squared
from otprox.solvers import Modes

SHAPES = [(5,), (6,), (3, 4), (2, 3, 2)]


def matrix(lattice, seed, low=0.5):
    """A random even positive spectrum."""
    v = torch.rand(lattice.sites, generator=torch.Generator().manual_seed(seed)) + low
    return Spectral((v + lattice.reflect(v)) / 2, lattice)


def pair(lattice, seed):
    """A Gaussian with a Spectral covariance, and the same with a dense one."""
    mean = torch.randn(lattice.sites, generator=torch.Generator().manual_seed(seed + 100))
    cov = matrix(lattice, seed)
    return ox.Gaussian(mean, cov), ox.Gaussian(mean, cov.dense())


def same(a, b, tolerance=1e-10):
    torch.testing.assert_close(a.mean, b.mean, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(a.cov.dense(), b.cov, rtol=tolerance, atol=tolerance)


@given(st.sampled_from(SHAPES), st.integers(0, 1000))
def test_the_algebra_is_that_of_dense_matrices(shape, seed):
    lattice = Lattice(shape)
    A, B = matrix(lattice, seed), matrix(lattice, seed + 1)
    a, b = A.dense(), B.dense()
    x = torch.randn(4, lattice.sites, generator=torch.Generator().manual_seed(seed))
    for got, want in [
        ((A @ B).dense(), a @ b),
        ((A + B).dense(), a + b),
        ((A - B).dense(), a - b),
        ((-2.0 * A / 3).dense(), -2 * a / 3),
        (A.inverse().dense(), torch.linalg.inv(a)),
        ((A.sqrt() @ A.sqrt()).dense(), a),
        (A.logdet(), torch.logdet(a)),
        (A.trace(), torch.trace(a)),
        (A.diagonal(), a.diagonal()),
        (A.row(), a[0]),
        (Spectral.of_row(A.row(), lattice).values, A.values),
        (A @ x.mT, a @ x.mT),
        (x @ A, x @ a),
        (x[0] @ A, x[0] @ a),
        (A @ x[0], a @ x[0]),
        (a, a.mT),
    ]:
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("shape", SHAPES)
def test_gaussians_agree(shape):
    lattice = Lattice(shape)
    a, b = pair(lattice, 0)
    c, d = pair(lattice, 7)
    x = torch.randn(3, lattice.sites, generator=torch.Generator().manual_seed(3))
    for got, want in [
        (a.entropy(), b.entropy()),
        (a.log_prob(x), b.log_prob(x)),
        (a.score(x), b.score(x)),
        (w2_squared(a, c), w2_squared(b, d)),
        (gelbrich_squared(a, d), gelbrich_squared(b, d)),
        (ox.KL(c)(a), ox.KL(d)(b)),
        (Potential(Quadratic(c.mean, precision=c.cov))(a), Potential(Quadratic(c.mean, precision=d.cov))(b)),
        (Quadratic(c.mean, cov=c.cov)(x), Quadratic(c.mean, cov=d.cov)(x)),
    ]:
        torch.testing.assert_close(got, want)
    assert Quadratic(c.mean, cov=c.cov).curvatures == pytest.approx(Quadratic(c.mean, cov=d.cov).curvatures)
    sample = a.to_particles(40_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(sample.cov, b.cov, rtol=0, atol=0.05)
    torch.testing.assert_close(sample.log_density, b.log_prob(sample.x))


@pytest.mark.parametrize(("shape", "tau"), list(itertools.product(SHAPES, (0.05, 0.7))))
def test_steps_agree(shape, tau):
    lattice = Lattice(shape)
    (a, b), (c, d), Q = pair(lattice, 0), pair(lattice, 7), matrix(lattice, 3)
    V, W = Quadratic.of(c), Quadratic.of(d)
    metrics = [(ox.Wasserstein(), ox.Wasserstein()), (ox.Wasserstein(Q), ox.Wasserstein(Q.dense()))]
    metrics += [
        (ox.Entropic(0.1, reference, base[0]), ox.Entropic(0.1, reference, base[1]))
        for base in metrics[:2]
        for reference in ("lebesgue", "product", "debiased")
    ]
    for (F, G), (m, n) in itertools.product([(ox.KL(c), ox.KL(d)), (ox.Entropy(), ox.Entropy())], metrics):
        got, want = ox.Backward(F, m)(a, 0.0, tau), ox.Backward(G, n)(b, 0.0, tau)
        same(got.mu, want.mu)
        torch.testing.assert_close(got.stats.objective, want.stats.objective)
        torch.testing.assert_close(got.stats.distance2, want.stats.distance2, rtol=1e-5, atol=1e-9)
        assert got.stats.converged.all()
        if got.stats.map is not None:
            points = torch.randn(2, lattice.sites, generator=torch.Generator().manual_seed(1))
            torch.testing.assert_close(got.stats.map(points), want.stats.map(points))
    for m, n in metrics[:2]:
        same(ox.Heat(0.7, m)(a, 0.0, tau).mu, ox.Heat(0.7, n)(b, 0.0, tau).mu)
        same(ox.Forward(Potential(V), m)(a, 0.0, tau).mu, ox.Forward(Potential(W), n)(b, 0.0, tau).mu)
        same(ox.Forward(ox.KL(c), m)(a, 0.0, tau).mu, ox.Forward(ox.KL(d), n)(b, 0.0, tau).mu)
        same(ox.Flow(V, m)(a, 0.0, tau).mu, ox.Flow(W, n)(b, 0.0, tau).mu)


def test_a_spectral_target_or_metric_serves_dense_gaussians():
    lattice = Lattice((3, 3))
    (_, b), (c, d), Q = pair(lattice, 0), pair(lattice, 7), matrix(lattice, 3)
    got = ox.Backward(ox.KL(c), ox.Wasserstein(Q))(b, 0.0, 0.3).mu
    want = ox.Backward(ox.KL(d), ox.Wasserstein(Q.dense()))(b, 0.0, 0.3).mu
    torch.testing.assert_close(got.cov, want.cov)


@pytest.mark.parametrize("rule", ["end", "average"])
def test_a_moving_metric_in_modes(rule):
    lattice = Lattice((3, 4))
    lap = lattice.laplacian(torch.zeros(1)) + 1

    def C(t):
        return Spectral((1 - torch.exp(-torch.as_tensor(t, dtype=torch.float64) * lap)) / lap, lattice)

    (a, b), (c, d) = pair(lattice, 0), pair(lattice, 7)
    dense = ox.Moving(lambda t: C(t).dense(), rate=lambda t: C(t).with_values(torch.exp(-t * lap)).dense(), rule=rule)
    moving = ox.Moving(C, rule=rule)
    torch.testing.assert_close(moving.over(0.1, 0.4).Q.dense(), dense.over(0.1, 0.4).Q)
    same(ox.Backward(ox.KL(c), moving)(a, 0.1, 0.4).mu, ox.Backward(ox.KL(d), dense)(b, 0.1, 0.4).mu)
    same(ox.Heat(metric=moving)(a, 0.1, 0.4).mu, ox.Heat(metric=dense)(b, 0.1, 0.4).mu)


def test_batches_equal_single_runs():
    lattice = Lattice((3, 3))
    values = torch.stack([matrix(lattice, k).values for k in range(3)])
    means = torch.randn(3, 9, generator=torch.Generator().manual_seed(0))
    target = pair(lattice, 9)[0]
    step = ox.Forward(ox.KL(target)) >> ox.Backward(ox.KL(target))
    together = step(ox.Gaussian(means, Spectral(values, lattice)), 0.0, 0.2).mu
    assert together.batch == (3,)
    for k in range(3):
        alone = step(ox.Gaussian(means[k], Spectral(values[k], lattice)), 0.0, 0.2).mu
        torch.testing.assert_close(together.mean[k], alone.mean)
        torch.testing.assert_close(together.cov.values[k], alone.cov.values)


METRICS = [ox.Wasserstein(), *(ox.Entropic(0.3, r) for r in ("lebesgue", "product", "debiased"))]


@pytest.mark.parametrize("metric", METRICS, ids=str)
def test_batches_of_entropic_steps_equal_single_runs(metric):
    lattice = Lattice((3, 2))
    covs = torch.stack([matrix(lattice, k, 0.5 + 10.0**k).values for k in range(3)])
    mu, F = ox.Gaussian(torch.zeros(3, 6), Spectral(covs, lattice)), ox.KL(pair(lattice, 4)[0])
    together = ox.Backward(F, metric)(mu, 0.0, 0.4)
    for k in range(3):
        alone = ox.Backward(F, metric)(ox.Gaussian(mu.mean[k], Spectral(covs[k], lattice)), 0.0, 0.4)
        assert torch.equal(together.mu.cov.values[k], alone.mu.cov.values)
        assert torch.equal(together.stats.iterations[k], alone.stats.iterations)


def test_the_debiased_step_has_no_bias():
    target = pair(Lattice((3, 4)), 3)[0]
    nu = ox.Backward(ox.KL(target), ox.Entropic(0.5, "debiased"))(target, 0.0, 0.7).mu
    torch.testing.assert_close(nu.cov.values, target.cov.values)


def test_small_steps_keep_the_digits_of_the_distance():
    lattice = Lattice(8)
    mu, F = pair(lattice, 0)[0], ox.KL(pair(lattice, 7)[0])
    slope, hessian = F.bures_gradient(mu)
    speed2 = slope.square().sum() + (hessian.values.square() * mu.cov.values).sum()
    ratios = [ox.Backward(F)(mu, 0.0, t).stats.distance2 / (t**2 * speed2) - 1 for t in (1e-6, 1e-7)]
    assert ratios[0].abs() < 1e-4 and ratios[1] / ratios[0] == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("metric", METRICS, ids=str)
def test_single_precision_and_gradients(metric):
    lattice = Lattice((4, 4))
    cov = matrix(lattice, 0)
    single = ox.Gaussian(torch.zeros(16).float(), Spectral(cov.values.float(), lattice))
    out, want = (
        ox.Backward(ox.Entropy(), metric)(mu, 0.0, 0.3).mu for mu in (single, ox.Gaussian(torch.zeros(16), cov))
    )
    assert out.cov.values.dtype == torch.float32
    torch.testing.assert_close(out.cov.values.double(), want.cov.values, rtol=1e-5, atol=0)
    values = cov.values.clone().requires_grad_()
    F = ox.KL(pair(lattice, 5)[0])
    loss = F(ox.Backward(F, metric)(ox.Gaussian(torch.zeros(16), Spectral(values, lattice)), 0.0, 0.3).mu)
    (grad,) = torch.autograd.grad(loss, values)
    h = 1e-6
    bump = torch.zeros(16)
    bump[5] = 1.0
    bump = (bump + lattice.reflect(bump)) * h
    ends = [
        F(ox.Backward(F, metric)(ox.Gaussian(torch.zeros(16), Spectral(cov.values + s * bump, lattice)), 0.0, 0.3).mu)
        for s in (1, -1)
    ]
    assert (ends[0] - ends[1]).item() / 2 == pytest.approx((grad * bump).sum().item(), rel=1e-5)


def test_a_field_of_4096_sites_stays_in_its_modes():
    """JKO towards a free field on 64²: the fixed point, the rate of each mode, and functions by sampling."""
    lattice = Lattice((64, 64))
    lap = lattice.laplacian(torch.zeros(1))
    target = ox.Gaussian(torch.zeros(4096), Spectral(1 / (lap + 0.5), lattice))
    mu = ox.Gaussian(torch.ones(4096), Spectral(torch.full((4096,), 2.0), lattice))
    tau = 0.4
    run = ox.record(
        ox.flow(ox.Backward(ox.KL(target)), mu, [tau * k for k in range(101)]),
        w2=observe.w2(target), kl=observe.kl(target), gap=observe.dissipation_gap(ox.KL(target)), mean=observe.mean,
    )  # fmt: skip
    torch.testing.assert_close(run.final.cov.values, target.cov.values)
    want = (1 + 0.5 * tau) ** -torch.arange(1, 101)  # the mean lies in mode 0, of precision ½
    torch.testing.assert_close(run.series["mean"][:, 0], want)
    assert (run.series["kl"].diff() < 1e-10).all() and (run.series["gap"] > -1e-9).all()
    square = mu.expect(lambda x: x.square().mean(-1))
    assert square.item() == pytest.approx(3.0, rel=0.01)  # 1 + 2, by antithetic samples


@pytest.mark.parametrize("shape", SHAPES)
def test_the_nearest_affine_map_is_the_translation_invariant_one(shape):
    lattice = Lattice(shape)
    mu, A = pair(lattice, 0)[0], matrix(lattice, 5)
    b, J = mu.nearest_affine(lambda x: (x - 1.0) @ A)  # exact for such fields
    torch.testing.assert_close(b, (mu.mean - 1.0) @ A)
    torch.testing.assert_close(J.values, A.values)
    nu = mu.push(lambda x: 2.0 * x @ A)
    torch.testing.assert_close(nu.cov.values, 4 * A.values**2 * mu.cov.values)
    _, diagonal = mu.nearest_affine(lambda x: torch.arange(1.0, lattice.sites + 1) * x)  # its mean over translations
    torch.testing.assert_close(
        diagonal.trace(), torch.tensor(lattice.sites * (lattice.sites + 1) / 2), rtol=0.2, atol=0
    )


def test_a_quartic_potential_on_a_field():
    """E ∇V = m³ + 3mc and E ∇²V = 3(m² + c) for V = Σ φ⁴/4, c = Σ_00, up to sampling."""
    lattice = Lattice((16, 16))
    cov = Spectral(1 / lattice.symbol(0.5, torch.zeros(())), lattice)
    mu, tau = ox.Gaussian(torch.full((256,), 0.7), cov, quadrature=ox.measures.Antithetic(4096)), 0.05
    nu = ox.Forward(Potential(lambda x: (x**4).sum(-1) / 4))(mu, 0.0, tau).mu
    m, c = 0.7, cov.diagonal()[0].item()
    assert nu.mean.mean().item() == pytest.approx(m - tau * (m**3 + 3 * m * c), abs=2e-3)
    shrink = 1 - tau * 3 * (m**2 + c)
    torch.testing.assert_close(nu.cov.values, shrink**2 * cov.values, rtol=0.03, atol=0)


def test_particles_in_a_spectral_metric():
    lattice, generator = Lattice((2, 3)), torch.Generator()
    Q, x = matrix(lattice, 1), torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    V = Potential(Quadratic(torch.ones(6), precision=matrix(lattice, 2)))
    for step in (lambda m: ox.Forward(V, m), lambda m: ox.Backward(V, m)):
        got, want = (step(m)(ox.Particles(x), 0.0, 0.3).mu for m in (ox.Wasserstein(Q), ox.Wasserstein(Q.dense())))
        torch.testing.assert_close(got.x, want.x, rtol=1e-6, atol=1e-6)
    many = ox.Particles(torch.zeros(40_000, 6))
    noisy = ox.Heat(metric=ox.Wasserstein(Q), generator=generator.manual_seed(1))(many, 0.0, 0.5).mu
    torch.testing.assert_close(noisy.cov, Q.dense(), rtol=0, atol=0.04)


def test_the_observed_covariance_is_the_two_point_function():
    a, b = pair(Lattice((3, 4)), 0)
    run = ox.record(ox.flow(ox.Heat(), a, [0.0, 0.1, 0.2]), covariance=observe.covariance)
    torch.testing.assert_close(run.series["covariance"][-1], b.cov[0] + 0.4 * torch.eye(12)[0])


def test_states_save_and_load(tmp_path):
    a, _ = pair(Lattice((3, 4), 0.5), 0)
    storage.save(tmp_path / "field.npz", a)
    back = storage.load(tmp_path / "field.npz")
    assert back.cov.lattice == a.cov.lattice and torch.equal(back.cov.values, a.cov.values)
    step, times = ox.Backward(ox.Entropy()), [0.1 * k for k in range(5)]
    ox.record(ox.flow(step, a, times[:3]), checkpoint=tmp_path / "run.npz")
    again = ox.record(ox.flow(step, a, times), checkpoint=tmp_path / "run.npz").final
    assert torch.equal(again.cov.values, ox.record(ox.flow(step, a, times)).final.cov.values)


def test_refusals():
    lattice = Lattice(4)
    with pytest.raises(ValueError, match="even in k"):
        Spectral(torch.tensor([1.0, 2.0, 3.0, 4.0]), lattice)
    with pytest.raises(ValueError, match="3 modes"):
        Spectral(torch.ones(3), lattice)
    with pytest.raises(ValueError, match="smallest eigenvalue is -1.*mode 2"):
        ox.Gaussian(torch.zeros(4), Spectral(torch.tensor([1.0, 1.0, -1.0, 1.0]), lattice))
    with pytest.raises(ValueError, match="would take 0.12"):
        Spectral(torch.ones(4096), Lattice((64, 64))).dense()
    with pytest.raises(ValueError, match="two lattices"):
        Spectral(torch.ones(4), lattice) @ Spectral(torch.ones(4), Lattice((2, 2)))
    a, b = pair(lattice, 0)
    with pytest.raises(TypeError, match="dense precision"):
        ox.Backward(ox.KL(b))(a, 0.0, 0.1)
    with pytest.raises(TypeError, match="Spectral\\(values, lattice\\)"):
        ox.Forward(ox.Entropy(), ox.Wasserstein(b.cov))(a, 0.0, 0.1)
    with pytest.raises(ValueError, match="mode 0 of 4 .* without variance"):
        step = ox.Backward(Potential(Quadratic(a.mean, precision=10.0 * a.cov)), ox.Entropic(5.0, "debiased"))
        step(a, 0.0, 0.1)
    with pytest.raises(TypeError, match=r"Forward\(Potential\(V\)\) >> Backward"):
        ox.Backward(Potential(lambda x: (x**2).sum(-1)))(a, 0.0, 0.1)
    with pytest.raises(ValueError, match="tau must be positive"):
        Modes()(ox.Entropy(), ox.Wasserstein(), a, 0.0)
    with pytest.raises(ValueError, match="eigenvalue is -2, at mode 0"):
        mu = ox.Particles(torch.zeros(3, 4))
        mu.diffuse(Spectral(torch.tensor([-2.0, 1.0, 1.0, 1.0]), lattice), torch.Generator())
    concave = Quadratic(a.mean, precision=Spectral(torch.tensor([-2.0, 1.0, 1.0, 1.0]), lattice))
    with pytest.raises(ValueError, match=r"convexity limit 1/λ = 0.5: mode 0 of 4 \(wave vector \(0,\)\)"):
        ox.Backward(Potential(concave))(a, 0.0, 0.6)
    with pytest.raises(ValueError, match="product"):
        ox.Backward(Potential(Quadratic(a.mean, precision=a.cov)), ox.Entropic(9.0, "product"))(a, 0.0, 0.1)


def test_exact_forms_agree_on_the_ring():
    lattice = Lattice(5)
    (a, b), (c, d) = pair(lattice, 0), pair(lattice, 7)
    want = exact.gaussian.prox_kl(b, d, 0.3)
    got = ox.Backward(ox.KL(c))(a, 0.0, 0.3).mu
    torch.testing.assert_close(got.cov.dense(), want.cov)
    assert math.isclose(observe.w2(c)(ox.Tick(0, 0.0, 1.0, a, a, None)).item(), exact.gaussian.w2_squared(b, d).sqrt())
