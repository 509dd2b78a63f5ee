"""Entropic transport between two given measures: POT's log-domain Sinkhorn, closed forms of Gaussians, properties."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import otprox as ox
from otprox import Density, Entropic, Gaussian, Grid, Particles, Wasserstein
from otprox.exact import entropic
from otprox.solvers import ConvergenceWarning, entropic_cost


def cloud(n: int, seed: int, scale: float = 1.0, shift: float = 0.0, batch: tuple[int, ...] = ()) -> Particles:
    g = torch.Generator().manual_seed(seed)
    w = torch.rand(*batch, n, generator=g) + 0.1
    return Particles(scale * torch.randn(*batch, n, 2, generator=g) + shift, w / w.sum(-1, keepdim=True))


def pot(mu: Particles, nu: Particles, reg: float, Q: Tensor | None = None) -> float:
    """⟨cost, π⟩ + reg·KL(π | μ⊗ν) of POT's plan."""
    import ot

    z = mu.x[:, None] - nu.x
    M = (z * (z if Q is None else z @ torch.linalg.inv(Q))).sum(-1)
    a, b = mu.w, nu.w
    plan = torch.from_numpy(
        ot.sinkhorn(a.numpy(), b.numpy(), M.numpy(), reg, method="sinkhorn_log", stopThr=1e-10, numItermax=5000)
    )
    return (plan * M).sum().item() + reg * (plan * (plan / (a[:, None] * b)).log()).sum().item()


@pytest.mark.parametrize("reg", [1.0, 0.3])
@pytest.mark.parametrize("Q", [None, torch.tensor([[1.0, 0.4], [0.4, 0.7]])])
def test_value_between_particles_is_that_of_pot(reg: float, Q: Tensor | None):
    mu, nu = cloud(40, 0), cloud(30, 1, 0.7, 0.5)
    base = Wasserstein(Q)
    value = entropic_cost(mu, nu, Entropic(reg, "product", base), tol=1e-8)
    assert value.item() == pytest.approx(pot(mu, nu, reg, Q), abs=1e-8)
    divergence = entropic_cost(mu, nu, Entropic(reg, "debiased", base), tol=1e-8)
    expected = pot(mu, nu, reg, Q) - 0.5 * (pot(mu, mu, reg, Q) + pot(nu, nu, reg, Q))
    assert divergence.item() == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("reference", ["lebesgue", "product", "debiased"])
def test_gaussians_on_a_grid(reference: str):
    grid, a, b = Grid(-8.0, 8.0, 320), Gaussian([0.5], [[0.6]]), Gaussian([-0.7], [[1.1]])
    value = entropic_cost(a.to_density(grid), b.to_density(grid), Entropic(0.3, reference))
    assert value.item() == pytest.approx(entropic.entropic_cost(a, b, 0.3, reference).item(), abs=2e-3)  # O(h²)


def test_the_divergence_is_a_divergence():
    mu, nu = cloud(30, 0, batch=(2,)), cloud(25, 3)
    metric = Entropic(0.4, "debiased")
    value = entropic_cost(mu, nu, metric)
    assert value.shape == (2,) and (value > 1e-3).all()
    torch.testing.assert_close(value, entropic_cost(nu, mu, metric), rtol=1e-6, atol=1e-8)
    assert entropic_cost(nu, nu, metric).abs().item() < 1e-9
    moved = Particles(nu.x + torch.tensor([3.0, -4.0]), nu.w)
    assert entropic_cost(nu, moved, metric).item() == pytest.approx(25.0, abs=1e-6)  # a translation: W2² itself


def test_as_an_observer():
    target = cloud(20, 5)
    run = ox.record(
        ox.flow(ox.Forward(ox.Potential(lambda x: x.square().sum(-1))), cloud(20, 6, shift=2.0), [0.0, 0.1, 0.2]),
        divergence=ox.observe.sinkhorn(target, 0.5),
    )
    series = run.series["divergence"]
    assert series.shape == (2,) and series[1] < series[0]
    assert series[1].item() == pytest.approx(entropic_cost(run.final, target, Entropic(0.5, "debiased")).item())


def test_what_cannot_be_compared_says_why():
    mu, metric = cloud(5, 0), Entropic(0.1, "debiased")
    density = Gaussian([0.0], [[1.0]]).to_density(Grid(-6.0, 6.0, 40))
    with pytest.raises(ValueError, match="different grids"):
        entropic_cost(density, Gaussian([0.0], [[1.0]]).to_density(Grid(-6.0, 6.0, 50)), metric)
    with pytest.raises(TypeError, match="Densities or Particles"):
        entropic_cost(mu, density, metric)
    with pytest.raises(ValueError, match="'lebesgue' is infinite"):
        entropic_cost(mu, mu, Entropic(0.1))
    with pytest.raises(TypeError, match="not that of a Torus"):
        entropic_cost(mu, Particles(mu.x, domain=ox.Torus(9.0)), metric)
    with pytest.raises(TypeError, match="float32"):
        entropic_cost(mu, Particles(mu.x.float()), metric)
    with pytest.warns(ConvergenceWarning, match="marginal error"):
        entropic_cost(mu, cloud(7, 2), Entropic(0.05, "product"), max_iter=2)


def test_float32_and_a_density_that_vanishes():
    mu, nu = cloud(30, 0), cloud(25, 3)
    single = entropic_cost(
        Particles(mu.x.float(), mu.w.float()), Particles(nu.x.float(), nu.w.float()), Entropic(0.4, "debiased")
    )
    assert single.item() == pytest.approx(entropic_cost(mu, nu, Entropic(0.4, "debiased")).item(), abs=1e-4)
    grid = Grid(0.0, 1.0, 50)
    values = torch.zeros(50)
    values[:20] = 2.5
    value = entropic_cost(Density(values, grid), Density(values.flip(0), grid), Entropic(0.02, "debiased"))
    assert value.item() == pytest.approx(0.36, abs=1e-3)  # a translation by 0.6
