"""The JKO step of collisions over a network: better than quadratic ψ where f is no Gaussian, warm, never silent."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import otprox as ox
from otprox.exact import landau
from otprox.solvers import CollisionFlow, ConvergenceWarning, Hermite, NetworkFlow

STRENGTH = 1 / 16


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def perceptron(out: int = 2) -> nn.Module:
    torch.manual_seed(0)
    last = nn.Linear(24, out)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(2, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), last)


def ring(n: int) -> ox.Particles:
    """A sample of the BKW density at t = 0.5, from nodes of a grid."""
    exact = landau.BKW(2, STRENGTH)
    line = torch.linspace(-4.5, 4.5, 200)
    x = torch.cartesian_prod(line, line)
    w = exact.density(x, 0.5)
    nodes = ox.Particles(x, w / w.sum())
    x = nodes.to_particles(n, rng(1)).x + (torch.rand(n, 2, generator=rng(2)) - 0.5) * (line[1] - line[0])
    return ox.Particles(x, log_density=exact.log_density(x, 0.5))


@pytest.fixture(scope="module")
def two_steps() -> tuple[ox.Particles, list[ox.solvers.Stats], list[ox.Particles]]:
    torch.set_default_dtype(torch.float64)
    start, mu, last = ring(1500), None, None
    stats, path = [], []
    step = ox.Backward(ox.Entropy(), ox.Landau(0.0, STRENGTH), NetworkFlow(perceptron(), rng(), lr=1e-2, max_iter=160))
    mu = start
    for k in range(2):
        mu, last = step(mu, float(k), k + 1.0, last)
        stats, path = [*stats, last], [*path, mu]
    return start, stats, path


def test_it_finds_what_quadratic_features_cannot(two_steps):
    """A radial f of covariance I does not move under linear u. The decrease held out is most of the true one."""
    start, stats, path = two_steps
    linear = CollisionFlow(Hermite(2))(ox.Entropy(), ox.Landau(0.0, STRENGTH), start, 1.0).stats
    gain = stats[0].warm["held_out"].item()
    assert gain > 5 * max(linear.warm["held_out"].item(), 0.0) and gain > 0.004
    exact = landau.BKW(2, STRENGTH)
    fall = exact.entropy(0.5) - exact.entropy(2.5)
    assert path[1].entropy() - start.entropy() == pytest.approx(-fall, rel=0.5)


def test_it_keeps_momentum_and_energy_and_goes_on_from_its_parameters(two_steps):
    start, stats, path = two_steps
    torch.testing.assert_close(path[1].mean, start.mean, rtol=0, atol=1e-14)
    torch.testing.assert_close(path[1].cov.trace(), start.cov.trace())
    moved = [stats[k].warm["network.0.weight"] for k in range(2)]
    assert not torch.equal(*moved) and (moved[1] - moved[0]).norm() < 2 * (moved[0] - perceptron()[0].weight).norm()


def test_the_module_is_not_changed_and_a_generator_repeats_a_step():
    module, mu = perceptron(), ring(300)
    before = {name: p.clone() for name, p in module.named_parameters()}
    step = [NetworkFlow(module, rng(), lr=1e-2, max_iter=40) for _ in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        one, two = (s(ox.Entropy(), ox.Landau(0.0, STRENGTH), mu, 1.0).mu for s in step)
    assert torch.equal(one.x, two.x)
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())


def test_a_checkpoint_holds_the_generator(tmp_path):
    def path(end: int) -> ox.Path:
        solver = NetworkFlow(perceptron(), rng(), batch=32, max_iter=20)
        return ox.flow(ox.Backward(ox.Entropy(), ox.Landau(0.0, STRENGTH), solver), ring(200), range(end + 1))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        ox.record(path(1), checkpoint=tmp_path / "run")
        resumed = ox.record(path(3), checkpoint=tmp_path / "run").final
        assert torch.equal(resumed.x, ox.record(path(3)).final.x)


def test_divergence_stops_keeps_the_best_state_and_says_so():
    mu = ox.Gaussian(torch.zeros(2), torch.diag(torch.tensor([1.6, 0.4]))).to_particles(300, rng())
    solver = NetworkFlow(perceptron(), rng(), lr=1e3, inner_steps=2)
    with pytest.warns(ConvergenceWarning, match="diverged 5 times"):
        out = ox.Backward(ox.Entropy(), ox.Landau(0.0), solver)(mu, 0.0, 0.2)
    assert not out.stats.converged and out.mu.entropy() < mu.entropy()  # by quadratic ψ alone


def test_bad_input_is_named():
    mu = ring(50)
    with pytest.raises(ValueError, match=r"\(1, 2\) gave \(1, 3\)"):
        ox.Backward(ox.Entropy(), ox.Landau(0.0), NetworkFlow(perceptron(3), rng()))(mu, 0.0, 0.1)
    with pytest.raises(TypeError, match="without batch"):
        metric = ox.Landau(0.0, batch=8, generator=rng())
        ox.Backward(ox.Entropy(), metric, NetworkFlow(perceptron(), rng()))(mu, 0.0, 0.1)
    with pytest.raises(TypeError, match="not for a batch"):
        many = ox.Particles(torch.randn(2, 30, 2), log_density=torch.zeros(2, 30))
        ox.Backward(ox.Entropy(), ox.Landau(0.0), NetworkFlow(perceptron(), rng()))(many, 0.0, 0.1)
    with pytest.raises(TypeError, match=r"nn\.Module"):
        NetworkFlow(lambda x: x, rng())
    with pytest.raises(ValueError, match="held_out"):
        NetworkFlow(perceptron(), rng(), held_out=0.0)
