"""The names and arguments of the introduction, each run as it is written there."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import otprox as ox
from otprox.steps import Step

TARGET = ox.Gaussian([0.0], [[1.0]])
V = ox.Quadratic([0.0])  # KL(V) has the minimiser TARGET
START = ox.Gaussian([1.0], [[0.5]])
TAU, STEPS = 0.01, 10
TIMES = [TAU * k for k in range(STEPS + 1)]


def on_grid(n: int = 65) -> ox.Density:
    return START.to_density(ox.Grid(-6.0, 7.0, n))


def on_quantiles() -> ox.Quantiles:
    return ox.Quantiles.of(START, 200)


def particles(n: int = 2000) -> ox.Particles:
    return ox.Particles(1 + math.sqrt(0.5) * torch.randn(n, 1, generator=torch.Generator().manual_seed(0)))


def mean_after(step: Step, mu: ox.Measure) -> float:
    return ox.record(ox.flow(step, mu, TIMES)).final.mean.item()


EXPLICIT = (1 - TAU) ** STEPS  # of the mean, by the explicit and by the implicit step
IMPLICIT = (1 + TAU) ** -STEPS


def test_ula():
    rng = torch.Generator().manual_seed(1)
    ula = ox.Forward(ox.Potential(V)) >> ox.Heat(generator=rng)
    mu = particles()
    noise = math.sqrt(2 * TAU * STEPS / mu.x.shape[-2])
    assert abs(mean_after(ula, mu) - EXPLICIT * mu.mean.item()) < 3 * noise


@pytest.mark.parametrize("mu", [START, on_quantiles()], ids=["gaussian", "quantiles"])
def test_fb_and_what_is_recorded(mu: ox.Measure):
    fb = ox.Forward(ox.Potential(V)) >> ox.Backward(ox.Entropy())
    run = ox.record(ox.flow(fb, mu, TIMES), kl=ox.observe.kl(TARGET), mass=ox.observe.mass)
    assert run.final.mean.item() == pytest.approx(EXPLICIT, abs=1e-8)
    assert torch.allclose(run.series["mass"], torch.ones(STEPS))
    assert (run.series["kl"].diff() < 0).all()


@pytest.mark.parametrize(
    ("mu", "error"), [(START, 1e-10), (on_quantiles(), 1e-8), (on_grid(), 2e-4)], ids=["gaussian", "quantiles", "grid"]
)
def test_jko(mu: ox.Measure, error: float):
    assert mean_after(ox.Backward(ox.KL(V)), mu) == pytest.approx(IMPLICIT, abs=error)


@pytest.mark.parametrize(("mu", "error"), [(START, 1e-8), (on_grid(260), 1e-4)], ids=["gaussian", "grid"])
def test_sinkhorn(mu: ox.Measure, error: float):
    tau = 0.1
    sinkhorn = ox.Backward(ox.KL(V), ox.Entropic(reg=1e-2))
    mean = ox.record(ox.flow(sinkhorn, mu, [0.0, tau])).final.mean.item()
    exact = ox.exact.gaussian.prox_kl_entropic(START, TARGET, tau, 1e-2, "lebesgue").mean.item()
    assert mean == pytest.approx(exact, abs=error)


def test_convex():
    convex = ox.Backward(ox.KL(V), solver=ox.solvers.Convex())
    assert ox.record(ox.flow(convex, on_quantiles(), [0.0, 0.1])).final.mean.item() == pytest.approx(1 / 1.1, abs=1e-6)


def test_svgd_is_the_sum_over_pairs_over_n():
    svgd = ox.Forward(ox.KL(V), ox.Stein(ox.kernels.RBF(1.0)))
    x = particles(20).x
    z = x[:, None, 0] - x[None, :, 0]  # x_i − x_j
    k = torch.exp(-z.square() / 2)
    velocity = (-k * x[None, :, 0] + k * z).mean(1)  # k(x_i, x_j)·(−∇V(x_j)) + ∂k/∂x_j
    moved = svgd(ox.Particles(x), 0.0, TAU).mu.x
    torch.testing.assert_close(moved[:, 0], x[:, 0] + TAU * velocity)


def test_mmd_flow_is_that_of_half_the_square():
    mmd_flow = ox.Forward(ox.MMD(ox.kernels.Energy(), TARGET))
    x = particles(20).x
    moved = mmd_flow(ox.Particles(x), 0.0, TAU).mu.x
    torch.testing.assert_close(moved[:, 0], x[:, 0] + 2 * TAU * (_mean_rank(x[:, 0]) - torch.special.ndtr(x[:, 0])))


def _mean_rank(x: Tensor) -> Tensor:
    """F_μ at the points, halfway up their own jump."""
    return (torch.sign(x[:, None] - x[None, :]).mean(1) + 1) / 2


def test_kuramoto():
    K = 2.0
    rng = torch.Generator().manual_seed(0)
    kuramoto = ox.Forward(K * ox.Interaction(ox.kernels.Cosine([-1.0]))) >> ox.Heat(0.5, generator=rng)
    x = torch.rand(50, 1, generator=torch.Generator().manual_seed(2)) * 2 * math.pi
    moved = kuramoto(ox.Particles(x, domain=ox.Torus(2 * math.pi)), 0.0, TAU).mu
    noise = math.sqrt(TAU) * torch.randn(50, 1, generator=torch.Generator().manual_seed(0))
    drift = -K * torch.sin(x - x.T).mean(1, keepdim=True)
    torch.testing.assert_close((moved.x - x - TAU * drift - noise).cos(), torch.ones(50, 1))


def test_polchinski():
    def C(t: float) -> Tensor:
        return (1 + t) * torch.eye(1)

    def pi(t: float) -> ox.Gaussian:
        return ox.Gaussian([0.0], (0.5 - t / 2) * torch.eye(1))  # N(0, ½(C_∞ − C_t)) for C_∞ = 2

    polchinski = ox.Backward(ox.Varying(lambda t: 0.5 * ox.KL(pi(t))), ox.Moving(C))
    final = ox.record(ox.flow(polchinski, START, TIMES)).final
    mean = START.mean
    for t in TIMES[1:]:  # (y − x)/τ = −½·y/(½(1 − t)), at the end of the step
        mean = mean / (1 + TAU / (1 - t))
    torch.testing.assert_close(final.mean, mean)


def test_landau():
    landau = ox.Backward(ox.Entropy(), ox.Landau(gamma=-3))
    law = ox.Gaussian(torch.zeros(3), torch.diag(torch.tensor([2.0, 0.5, 0.5])))
    mu = law.to_particles(300, torch.Generator().manual_seed(0))  # with their log-density
    run = ox.record(ox.flow(landau, mu, [0.0, 0.2]), energy=ox.observe.energy(ox.Entropy()), mass=ox.observe.mass)
    assert run.final.cov[0, 0] < mu.cov[0, 0] and run.series["energy"][0] < mu.entropy()
    torch.testing.assert_close(run.final.cov.trace(), mu.cov.trace())
    torch.testing.assert_close(run.final.mean, mu.mean)


TABLE = [
    "Gaussian Particles Quantiles Grid Density Potential Interaction Varying Quadratic Entropy PorousMedium KL Blob",
    "MMD Wasserstein Entropic Moving Stein Torus Euclidean Box Forward Backward Heat Drift Flow Strang flow record",
]


@pytest.mark.parametrize("name", " ".join(TABLE).split())
def test_names_at_the_top(name: str):
    assert name in ox.__all__
    assert hasattr(ox, name)


def test_kernels_by_name():
    k = ox.kernels
    x, y = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    values = {
        k.RBF(5.0): math.exp(-0.5),
        k.Laplace(5.0): math.exp(-1.0),
        k.Energy(): -5.0,
        k.Riesz(0.5): -math.sqrt(5.0),
        k.Bilinear(): 1.0,
    }
    for kernel, value in values.items():
        assert kernel(x, y).item() == pytest.approx(value)
    assert k.InverseMultiquadric(5.0)(x, x).item() > k.InverseMultiquadric(5.0)(x, y).item() > 0
    assert k.Cosine([1.0, 2.0])(x[:, :1], y[:, :1]).item() == pytest.approx(math.cos(3.0) + 2 * math.cos(6.0))


def test_w2_is_the_distance():
    tick = ox.Tick(0, 0.0, 1.0, START, ox.Gaussian([4.0], [[1.0]]), None)
    assert ox.observe.w2(TARGET)(tick).item() == pytest.approx(4.0)


def test_onsager_takes_and_gives_vectors_on_particles():
    mu, u = particles(10), torch.ones(10, 1)
    for metric in (ox.Wasserstein(torch.tensor([[2.0]])), ox.Stein(ox.kernels.RBF(1.0))):
        assert metric.onsager(mu, u).shape == (10, 1)
    torch.testing.assert_close(ox.Wasserstein(torch.tensor([[2.0]])).onsager(mu, u), 2 * u)


def test_grids_and_weights_are_refused_or_divided():
    grid = ox.Grid([0.0], [1.0], [4], periodic=False)
    assert ox.Density(torch.full((4,), 1 + 5e-6), grid).values.sum().item() == pytest.approx(4.0, abs=1e-12)
    with pytest.raises(ValueError, match="must integrate to 1"):
        ox.Density(torch.full((4,), 1.1), grid)
    with pytest.raises(ValueError, match="must sum to 1"):
        ox.Particles(torch.zeros(2, 1), torch.tensor([0.5, 0.6]))
