"""Step doubling: Richardson's extrapolation gains an order, adaptive steps keep their promise."""

import math

import pytest
import torch

import otprox as ox
from otprox import exact
from otprox.adaptive import Control, gap
from otprox.measures.distance import w2_squared


def run(step, mu, n, horizon=1.0):
    return ox.record(ox.flow(step, mu, [horizon * k / n for k in range(n + 1)])).final


def test_richardson_gains_an_order(m0, S0, mq, Q):
    mu, target = ox.Gaussian(m0, S0), ox.Gaussian(mq, Q)
    want = exact.gaussian.ornstein_uhlenbeck(mu, target, 1.0)
    scheme = ox.Richardson(ox.Backward(ox.KL(target)))
    errors = [w2_squared(run(scheme, mu, n), want).sqrt().item() for n in (20, 40)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2.0, abs=0.2)


def test_richardson_on_a_density():
    grid = ox.Grid(-6.0, 6.0, 30)
    mu, F = ox.Gaussian([0.7], [[0.8]]).to_density(grid), ox.KL(ox.Gaussian([0.0], [[1.5]]))
    want = run(ox.Richardson(ox.Forward(F)), mu, 320, 0.2).values
    errors = [(run(ox.Richardson(ox.Forward(F)), mu, n, 0.2).values - want).abs().sum().item() for n in (20, 40)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2.0, abs=0.2)
    end = run(ox.Richardson(ox.Forward(F)), mu, 20, 0.2)
    assert end.mass.item() == pytest.approx(1, abs=1e-14) and (end.values >= 0).all()


@pytest.mark.parametrize(
    ("make", "order", "tol"), [(ox.Backward, 1, 0.3), (ox.Backward, 1, 3e-2), (ox.BDF2, 2, 1e-1), (ox.BDF2, 2, 1e-3)]
)
def test_adaptive_steps_keep_their_promise(make, order, tol):
    """The error at time T is at most tol·T, and not much less than it must be; the estimate is of its size."""
    mu, target = ox.Gaussian([3.0], [[4.0]]), ox.Gaussian([0.0], [[0.5]])
    out = ox.Adaptive(make(ox.KL(target)), tol, order=order)(mu, 0.0, 2.0)
    want = exact.gaussian.ornstein_uhlenbeck(mu, target, 2.0)
    error = w2_squared(out.mu, want).sqrt().item()
    assert error <= 2.0 * tol
    assert out.stats.error.item() <= 2.0 * tol
    assert out.stats.iterations < 40 / tol ** (1 / order)


def test_a_tighter_tolerance_takes_more_and_second_order_fewer_substeps():
    mu, target = ox.Gaussian([3.0], [[4.0]]), ox.Gaussian([0.0], [[0.5]])

    def substeps(make, order, tol):
        return int(ox.Adaptive(make(ox.KL(target)), tol, order=order)(mu, 0.0, 2.0).stats.iterations)

    first = [substeps(ox.Backward, 1, tol) for tol in (1e-1, 1e-2)]
    second = [substeps(ox.BDF2, 2, tol) for tol in (1e-1, 1e-2)]
    assert 5 < first[1] / first[0] < 15 and second[1] / second[0] < 5 and second[1] < first[1] / 3


def test_steps_grow_as_the_flow_slows_down():
    """Far from equilibrium steps are small, near it they are long: fewer than of a uniform size with the same error."""
    mu, target = ox.Gaussian([10.0], [[100.0]]), ox.Gaussian([0.0], [[1.0]])
    ticks = list(ox.flow(ox.Adaptive(ox.Backward(ox.KL(target)), 0.05), mu, [0.0, 1.0, 2.0, 4.0, 8.0]))
    sizes = [tick.stats.tau for tick in ticks]
    assert all(b > 1.5 * a for a, b in zip(sizes, sizes[1:], strict=False))


def test_it_is_a_step_that_resumes_exactly(tmp_path):
    mu, target = ox.Gaussian([3.0], [[4.0]]), ox.Gaussian([0.0], [[0.5]])
    step = ox.Adaptive(ox.BDF2(ox.KL(target)), 1e-2, order=2)
    times, file = [0.0, 0.4, 0.9, 1.5], tmp_path / "run.npz"
    whole = ox.record(ox.flow(step, mu, times), substeps=ox.observe.iterations)
    ox.record(ox.flow(step, mu, times[:3]), checkpoint=file, substeps=ox.observe.iterations)
    resumed = ox.record(ox.flow(step, mu, times), checkpoint=file, substeps=ox.observe.iterations)
    assert torch.equal(resumed.final.cov, whole.final.cov)
    assert torch.equal(resumed.series["substeps"], whole.series["substeps"])


def test_adaptive_on_quantiles_particles_and_densities():
    V = ox.Quadratic([0.0])
    quantiles = ox.Quantiles.of(ox.Gaussian([1.0], [[2.0]]), 200)
    end = ox.Adaptive(ox.Backward(ox.Potential(V)), 1e-2)(quantiles, 0.0, 1.0).mu
    assert (end.x - quantiles.x * math.exp(-1)).abs().max() < 2e-2
    cloud = ox.Particles([[1.0], [-2.0]])
    end = ox.Adaptive(ox.Drift(lambda t, mu, x: -x, order=2), 1e-4, order=2)(cloud, 0.0, 1.0).mu
    torch.testing.assert_close(end.x, cloud.x * math.exp(-1), atol=2e-4, rtol=0)
    grid = ox.Grid((-6.0, -6.0), (6.0, 6.0), (24, 24))
    mu = ox.Gaussian([0.5, 0.0], torch.eye(2)).to_density(grid)
    out = ox.Adaptive(ox.Forward(ox.Entropy()), 5.0, first=0.1)(mu, 0.0, 0.1)  # first is above the stable step
    assert isinstance(out.stats, Control) and out.stats.rejected > 0 and out.mu.mass.item() == pytest.approx(1)


def test_gap_is_zero_only_between_equals():
    for mu in (ox.Gaussian([0.0], [[1.0]]), ox.Quantiles([0.0, 1.0]), ox.Particles([[0.0, 1.0], [2.0, 3.0]])):
        assert gap(mu, mu).item() == pytest.approx(0, abs=1e-12)
        assert gap(mu, mu.push(lambda x: x + 0.25)).item() == pytest.approx(0.25 * math.sqrt(mu.dim))


def test_batches_share_the_steps_of_their_hardest_item():
    batch = ox.Gaussian([[3.0], [0.1]], [[[4.0]], [[0.5]]])
    out = ox.Adaptive(ox.Backward(ox.KL(ox.Gaussian([0.0], [[0.5]]))), 1e-2)(batch, 0.0, 1.0)
    assert out.stats.error.shape == (2,) and out.stats.iterations.shape == (2,) and out.stats.error.max() <= 1e-2


def test_bad_input():
    step = ox.Backward(ox.Entropy())
    with pytest.raises(ValueError, match="tol > 0, not -1"):
        ox.Adaptive(step, -1)
    with pytest.raises(ValueError, match="first > 0"):
        ox.Adaptive(step, 0.1, first=0.0)
    for order in (0, 1.5, True):
        with pytest.raises(ValueError, match=f"order must be a whole number, at least 1, not {order}"):
            ox.Richardson(step, order=order)
    with pytest.raises(TypeError, match="must be a Step"):
        ox.Adaptive(ox.Entropy(), 0.1)
    with pytest.raises(TypeError, match="deterministic"):
        ox.Richardson(ox.Heat(generator=torch.Generator()))
    jump = ox.Drift(lambda t, mu, x: torch.full_like(x, 1e6 * math.sin(1e12 * t)))
    with pytest.raises(ox.solvers.ConvergenceError, match="substeps of"):
        ox.Adaptive(jump, 1e-6)(ox.Particles([[0.0]]), 0.0, 1.0)
