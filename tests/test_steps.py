"""The alphabet of steps: composition, exactness, orders of drifts, and what is refused."""

import math

import pytest
import torch

import otprox as ox
from otprox import exact
from otprox.functionals import Potential, Quadratic


def particles(n=200, d=2, seed=0):
    return ox.Particles(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)))


def test_composition_is_flat_and_in_order():
    a, b, c = (ox.Drift(lambda t, mu, x, k=k: torch.full_like(x, k)) for k in (1.0, 2.0, 3.0))
    chain = a >> b >> c
    assert chain.steps == (a, b, c) and (a >> (b >> c)).steps == (a, b, c)
    out = chain(ox.Particles(torch.zeros(1, 1)), 0.0, 1.0)
    assert out.mu.x.item() == 6.0 and len(out.stats) == 3


@pytest.mark.parametrize("tau", [0.05, 0.4, 1.5])
def test_flow_of_a_quadratic_is_exact(S0, m0, Q, mq, tau):
    V = Quadratic(mq, precision=Q)
    mu = particles(40, 3)
    once = ox.Flow(V)(mu, 0.0, tau).mu
    thrice = mu
    for k in range(3):
        thrice = ox.Flow(V)(thrice, k * tau / 3, (k + 1) * tau / 3).mu
    torch.testing.assert_close(once.x, thrice.x)
    decay = torch.linalg.matrix_exp(-tau * Q)
    torch.testing.assert_close(once.x, mq + (mu.x - mq) @ decay)
    gaussian = ox.Flow(V)(ox.Gaussian(m0, S0), 0.0, tau).mu
    torch.testing.assert_close(gaussian.cov, decay @ S0 @ decay)


def test_flow_in_a_metric_and_carries_density(S0, Q, mq):
    V = Quadratic(mq, precision=Q)
    start = ox.Gaussian(mq, S0)
    mu = start.to_particles(20, torch.Generator().manual_seed(0))
    metric = ox.Wasserstein(S0)
    end = ox.Flow(V, metric)(mu, 0.0, 0.3).mu
    law = ox.Flow(V, metric)(start, 0.0, 0.3).mu
    torch.testing.assert_close(end.log_density, law.log_prob(end.x))


@pytest.mark.parametrize("order", [1, 2, 4])
def test_orders_of_drifts(order):
    v = lambda t, mu, x: -(x**3) + torch.cos(torch.as_tensor(3 * t))  # noqa: E731
    mu = ox.Particles(torch.tensor([[0.3], [1.2], [-0.7]]))

    def end(n, order):
        times = [k / n for k in range(n + 1)]
        return ox.record(ox.flow(ox.Drift(v, order=order), mu, times)).final.x

    exact_end = end(2000, 4)
    errors = [(end(n, order) - exact_end).abs().max().item() for n in (20, 40)]
    assert abs(math.log2(errors[0] / errors[1]) - order) < 0.25


@pytest.mark.parametrize("order", [2, 4])
def test_orders_hold_when_the_field_depends_on_the_measure(order):
    v = lambda t, mu, x: mu.mean[..., None, :] - 2 * x + torch.sin(mu.mean[..., None, :])  # noqa: E731
    mu = ox.Particles(torch.tensor([[0.3], [1.2], [-0.7]]))

    def end(n, order):
        return ox.record(ox.flow(ox.Drift(v, order=order), mu, [k / n for k in range(n + 1)])).final.x

    exact_end = end(2000, 4)
    errors = [(end(n, order) - exact_end).abs().max().item() for n in (10, 20)]
    assert abs(math.log2(errors[0] / errors[1]) - order) < 0.3


def test_forward_takes_F_at_the_start_and_backward_at_the_end():
    F = ox.Varying(lambda t: Potential(Quadratic([t])))
    mu = ox.Particles(torch.zeros(1, 1))
    assert ox.Forward(F)(mu, 1.0, 1.5).mu.x.item() == pytest.approx(0.5 * 1.0)
    new = ox.Backward(F)(ox.Gaussian([0.0], [[1.0]]), 1.0, 1.5).mu
    assert new.mean.item() == pytest.approx(0.5 * 1.5 / 1.5)


def test_forward_carries_a_density_along_smooth_fields():
    V = lambda x: (x**4).sum(-1) / 4 + x[..., 0] * x[..., 1]  # noqa: E731
    mu = ox.Gaussian(torch.zeros(2), torch.eye(2)).to_particles(30, torch.Generator().manual_seed(1))
    tau = 0.05
    out = ox.Forward(Potential(V))(mu, 0.0, tau).mu
    x = mu.x
    hessian = torch.diag_embed(3 * x**2) + torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    want = mu.log_density - torch.linalg.slogdet(torch.eye(2) - tau * hessian).logabsdet
    torch.testing.assert_close(out.log_density, want)


def test_langevin_particles_have_the_biased_variance():
    tau = 0.2
    step = ox.Forward(Potential(Quadratic([0.0]))) >> ox.Heat(generator=torch.Generator().manual_seed(0))
    run = ox.record(ox.flow(step, particles(40_000, 1), [tau * k for k in range(41)]))
    standard_error = math.sqrt(2 / 40_000) / (1 - tau / 2)
    assert abs(run.final.cov.item() - 1 / (1 - tau / 2)) < 4 * standard_error


@pytest.mark.parametrize("n", [10, 100, 2000])
def test_forward_backward_table(n):
    mu, target = ox.Gaussian([10.0], [[100.0]]), ox.Gaussian([0.0], [[1.0]])
    fb = ox.Forward(Potential(Quadratic.of(target))) >> ox.Backward(ox.Entropy())
    want = mu
    for _ in range(n):
        want = exact.gaussian.forward_backward(want, target, 0.1)
    end = ox.record(ox.flow(fb, mu, [0.1 * k for k in range(n + 1)])).final
    torch.testing.assert_close(end.mean, want.mean, rtol=1e-9, atol=1e-300)
    torch.testing.assert_close(end.cov, want.cov, rtol=1e-9, atol=0)


def test_halves_and_strang_use_their_intervals():
    seen = []

    def spy(name):
        def v(t, mu, x):
            seen.append((name, t))
            return torch.zeros_like(x)

        return ox.Drift(v)

    ox.Strang(spy("a"), spy("b"))(ox.Particles(torch.zeros(1, 1)), 0.0, 1.0)
    assert seen == [("a", 0.0), ("b", 0.0), ("a", 0.5)]
    seen.clear()
    ox.Halves(spy("a"), spy("b"))(ox.Particles(torch.zeros(1, 1)), 0.0, 1.0)
    assert seen == [("a", 0.0), ("b", 0.5)]


def test_generators_are_found_once():
    g, h = torch.Generator(), torch.Generator()
    step = ox.Strang(ox.Heat(generator=g), ox.Forward(ox.Entropy()) >> ox.Heat(generator=h) >> ox.Heat(generator=g))
    assert step.generators() == (g, h)


def test_a_chain_that_changed_shape_starts_cold():
    mu = ox.Gaussian([0.0], [[1.0]])
    one, two = ox.Backward(ox.Entropy()), ox.Backward(ox.Entropy()) >> ox.Heat()
    out = one(mu, 0.0, 0.1)
    torch.testing.assert_close(two(mu, 0.0, 0.1, out.stats).mu.cov, two(mu, 0.0, 0.1).mu.cov)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ox.Forward(lambda x: x.sum(-1)), "Functional such as Potential"),
        (lambda: ox.Backward(lambda x: x.sum(-1)), "Functional such as Potential"),
        (lambda: ox.Backward(ox.Entropy(), 3), "Metric such as Wasserstein"),
        (lambda: ox.Backward(ox.Entropy(), solver=3), "solver must be"),
        (lambda: ox.Backward(ox.Entropy(), solver=ox.solvers.Bures), "solver must be"),
        (lambda: ox.Heat() >> 3, "unsupported operand"),
        (lambda: ox.Strang(ox.Heat(), ox.Entropy()), "made of Steps"),
        (lambda: ox.Halves(3, ox.Heat()), "made of Steps"),
        (lambda: ox.flow(ox.Heat(), torch.zeros(3), [0.0, 1.0]), "starts from a Measure"),
    ],
)
def test_nouns_of_another_kind_are_refused_when_composed(make, message):
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.parametrize(
    "mu", [ox.Gaussian([1.0], [[1.0]]), ox.Particles([[0.5], [-0.5]]), ox.Quantiles([-1.0, 0.0, 1.0])]
)
def test_a_potential_that_is_not_finite_is_named(mu):
    for V in (lambda x: (x + 1).sum(-1).log() * math.nan, lambda x: (0 * x).sum(-1) + math.inf):
        with pytest.raises(ValueError, match="Potential's V is non-finite"):
            ox.Forward(Potential(V))(mu, 0.0, 0.1)


def test_flow_refuses_a_quadratic_that_does_not_fit():
    mu = ox.Gaussian([0.0, 1.0], torch.eye(2))
    with pytest.raises(ValueError, match="lives in dimension 1"):
        ox.Flow(ox.Quadratic([0.0]))(mu, 0.0, 0.1)
    with pytest.raises(TypeError, match="float32"):
        ox.Flow(ox.Quadratic(torch.zeros(2, dtype=torch.float32)))(mu, 0.0, 0.1)


def test_refusals():
    mu, cloud = ox.Gaussian([0.0], [[1.0]]), particles()
    for t0, t1 in ((0.0, 0.0), (1.0, 0.0), (0.0, math.nan)):
        with pytest.raises(ValueError, match="t0 < t1"):
            ox.Heat()(mu, t0, t1)
    with pytest.raises(ValueError, match="generator"):
        ox.Heat()(cloud, 0.0, 0.1)
    with pytest.raises(TypeError, match="Blob"):
        ox.Forward(ox.Entropy())(cloud, 0.0, 0.1)
    with pytest.raises(TypeError, match="GaussianMap"):
        ox.Backward(ox.Entropy())(cloud, 0.0, 0.1)
    with pytest.raises(ValueError, match="orders"):
        ox.Drift(lambda t, mu, x: x, order=3)
    with pytest.raises(TypeError, match="Quadratic"):
        ox.Flow(lambda x: x.sum(-1))
    with pytest.raises(ValueError, match="positive scale"):
        ox.Heat(-1.0)
    with pytest.raises(ValueError, match="same shape"):
        ox.Drift(lambda t, mu, x: x[..., 0])(cloud, 0.0, 0.1)
    with pytest.raises(ValueError, match="Forward\\(Potential\\).*non-finite"):
        ox.Forward(Potential(lambda x: (0 * x).norm(dim=-1).sqrt()))(cloud, 0.0, 0.1)
    with pytest.raises(TypeError, match="autograd"):
        ox.Forward(Potential(lambda x: x.detach().sum(-1)))(cloud, 0.0, 0.1)
    with pytest.raises(ValueError, match="\\(200, 2\\) gave"):
        ox.Forward(Potential(lambda x: x**2))(cloud, 0.0, 0.1)


def test_constant_fields_carry_the_density():
    mu = ox.Gaussian(torch.zeros(2), torch.eye(2)).to_particles(20, torch.Generator().manual_seed(0))
    for V in (lambda x: x.sum(-1), lambda x: x[..., 0] ** 2 / 2):
        out = ox.Forward(Potential(V))(mu, 0.0, 0.1).mu
        assert torch.isfinite(out.log_density).all()
    moved = ox.Forward(Potential(lambda x: x.sum(-1)))(mu, 0.0, 0.1).mu
    torch.testing.assert_close(moved.log_density, mu.log_density)


def test_more_refusals():
    mu, cloud = ox.Gaussian([0.0], [[1.0]]), particles()
    with pytest.raises(TypeError, match="uses NumPy"):
        ox.Forward(Potential(lambda x: torch.from_numpy((x.numpy() ** 2).sum(-1))))(cloud, 0.0, 0.1)
    with pytest.raises(TypeError, match="torch.Generator, not a int"):
        ox.Heat(generator=0)
    with pytest.raises(TypeError, match="not the number 0.1"):
        ox.flow(ox.Heat(), mu, 0.1)
    with pytest.raises(TypeError, match="flow\\(step, mu, times\\)"):
        ox.record(ox.Heat())
    with pytest.raises(TypeError, match="observe.energy"):
        ox.record(ox.flow(ox.Heat(), mu, [0.0, 0.1]), x=ox.Entropy())
    carried = mu.to_particles(9, torch.Generator().manual_seed(0))
    with pytest.raises(TypeError, match="known at the particles only"):
        ox.Forward(ox.KL(mu))(carried, 0.0, 0.1)
    flat = ox.Forward(Potential(Quadratic([0.0])))(mu, 0.0, 1.0).mu
    with pytest.raises(ValueError, match="flattens a direction"):
        ox.Entropy()(flat)
    single = ox.Gaussian(torch.zeros(1).float(), torch.eye(1).float())
    assert ox.Backward(ox.Entropy(), ox.Moving(lambda t: t * torch.eye(1).float()))(single, 0.0, 0.1).mu.cov.item() > 1
