"""Entropic steps that move particles: gradients, closed forms of translations, the two references, what is declined."""

from __future__ import annotations

import pytest
import torch

import otprox as ox
from otprox import Entropic, Entropy, Interaction, Particles, Potential, Wasserstein
from otprox.solvers import ConvergenceWarning, FreeSupport, Scaling, choose, entropic_cost
from otprox.solvers.free_support import Objective

REFERENCES = ("product", "debiased")
TIGHT = FreeSupport(tol=1e-6, inner=1e-9)


def cloud(n: int = 25, seed: int = 0, batch: tuple[int, ...] = ()) -> Particles:
    g = torch.Generator().manual_seed(seed)
    w = torch.rand(*batch, n, generator=g) + 0.2
    return Particles(torch.randn(*batch, n, 2, generator=g), w / w.sum(-1, keepdim=True))


def pull(x: torch.Tensor) -> torch.Tensor:
    return (x - 1).square().sum(-1)


@pytest.mark.parametrize("reference", REFERENCES)
def test_gradient_of_the_objective(reference: str):
    """By the envelope theorem, against central differences of solved problems."""
    metric = Entropic(0.5, reference, Wasserstein(torch.tensor([[1.0, 0.3], [0.3, 0.6]])))
    f = Objective(Potential(pull), metric, cloud(8), 0.3, 1e-12)
    g = torch.Generator().manual_seed(1)
    y, v = (0.2 * torch.randn(1, 16, generator=g) for _ in range(2))
    h = 1e-4
    slope = (f(y + h * v)[0] - f(y - h * v)[0]) / (2 * h)
    assert (f(y)[1] * v).sum().item() == pytest.approx(slope.item(), rel=1e-6)


@pytest.mark.parametrize("reference", REFERENCES)
def test_means_follow_a_quadratic_potential_exactly(reference: str):
    """Shifting ν by a adds |a|² + 2⟨a, mean ν − mean μ⟩ to either cost: mean (m + 2τ)/(1 + 2τ) for V = |x − 1|²."""
    mu, tau = cloud(), 0.2
    nu, stats = TIGHT(Potential(pull), Entropic(0.5, reference), mu, tau)
    torch.testing.assert_close(nu.mean, (mu.mean + 2 * tau) / (1 + 2 * tau), rtol=0, atol=1e-5)
    torch.testing.assert_close(nu.w, mu.w)
    cost = entropic_cost(mu, nu, Entropic(0.5, reference))
    assert stats.distance2.item() == pytest.approx(cost.item(), abs=1e-7)
    value = Potential(pull)(nu) + stats.distance2 / (2 * tau)
    assert stats.objective.item() == pytest.approx(value.item(), abs=1e-7)


@pytest.mark.parametrize("reference", REFERENCES)
def test_the_energy_inequality(reference: str):
    """F(ν) + OT(μ, ν)/2τ ≤ F(μ) + OT(μ, μ)/2τ, also far from the minimum and for a concave interaction."""
    F = Potential(lambda x: x[..., 0].cos()) + Interaction(lambda z: -torch.log(z.square().sum(-1) + 0.1))
    mu, metric, tau = cloud(), Entropic(0.4, reference), 0.1
    stay = (F(mu) + entropic_cost(mu, mu, metric) / (2 * tau)).item()
    with pytest.warns(ConvergenceWarning, match="FreeSupport"):
        _, rough = FreeSupport(max_iter=2)(F, metric, mu, tau)
    _, stats = FreeSupport()(F, metric, mu, tau)
    assert stats.converged
    assert stats.objective.item() <= rough.objective.item() + 1e-6 < stay


def test_without_energy_debiased_stays_and_product_collapses():
    nothing, mu = Potential(lambda x: 0 * x.sum(-1)), cloud()
    same, stats = TIGHT(nothing, Entropic(0.5, "debiased"), mu, 1.0)
    torch.testing.assert_close(same.x, mu.x, rtol=0, atol=1e-4)
    assert abs(stats.distance2.item()) < 1e-8
    point, _ = FreeSupport(tol=1e-5)(nothing, Entropic(20.0, "product"), mu, 1.0)
    torch.testing.assert_close(point.x, mu.mean.expand_as(mu.x), rtol=0, atol=1e-3)


def test_small_reg_is_the_step_without_it():
    """Particle by particle, prox of V, up to the bias of the divergence between points."""
    mu, tau = cloud(12), 0.05
    nu, _ = FreeSupport()(Potential(pull), Entropic(0.02, "debiased"), mu, tau)
    torch.testing.assert_close(nu.x, (mu.x + 2 * tau) / (1 + 2 * tau), rtol=0, atol=0.02)


def test_batches_and_warm_starts():
    pair, solver = cloud(10, batch=(2,)), FreeSupport(tol=1e-4, inner=1e-7)
    F, metric = Potential(pull), Entropic(0.4, "debiased")
    both, stats = solver(F, metric, pair, 0.2)
    one, _ = solver(F, metric, Particles(pair.x[1], pair.w[1]), 0.2)
    torch.testing.assert_close(both.x[1], one.x, rtol=0, atol=1e-3)
    _, again = solver(F, metric, pair, 0.2, stats)
    assert (again.iterations < stats.iterations).all()


def test_choice_and_refusals():
    mu, F = cloud(), Potential(pull)
    dense = Particles(mu.x, mu.w, log_density=torch.zeros(25))
    assert isinstance(choose(F, Entropic(0.1, "debiased"), mu), FreeSupport)
    assert isinstance(choose(F, Entropic(0.1, "debiased"), dense), Scaling)
    supports = FreeSupport().supports
    assert "'debiased' or 'product'" in supports(F, Entropic(0.1), mu)
    assert "Entropy needs a density" in supports(F + Entropy(), Entropic(0.1, "product"), mu)
    assert "Congestion needs a density" in supports(F + ox.Congestion(1.0), Entropic(0.1, "product"), mu)
    assert "not in a Torus" in supports(F, Entropic(0.1, "product"), Particles(mu.x, domain=ox.Torus(9.0)))
    with pytest.raises(ValueError, match="non-finite"):
        FreeSupport()(Potential(lambda x: x[..., 0] / 0), Entropic(0.1, "product"), mu, 0.1)
    with pytest.raises(TypeError, match="not differentiable"):
        FreeSupport()(Potential(lambda x: x.detach()[..., 0]), Entropic(0.1, "product"), mu, 0.1)
