"""The Dirichlet energy: finite differences, closed forms of a Gaussian, and the thin-film flow."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from otprox import Backward, Density, Dirichlet, Forward, Gaussian, Grid, Quantiles, Wasserstein
from otprox.functionals import NotConvex
from otprox.solvers import Convex

MEAN, COV = torch.tensor([0.2, -0.4, 0.1]), torch.tensor([[0.9, -0.35, 0.1], [-0.35, 0.6, 0.2], [0.1, 0.2, 0.7]])


def gaussian(d: int) -> Gaussian:
    return Gaussian(MEAN[:d], COV[:d, :d])


def density(d: int, n: int, periodic: bool = False, half: float = 5.0) -> Density:
    grid = Grid([-half] * d, [half * 1.1] * d, [n + a for a in range(d)], periodic=periodic)
    return gaussian(d).to_density(grid)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_first_variation_is_the_derivative(d, periodic):
    """F is quadratic, so that central differences are exact; directions have mass 0 and do not vanish at walls."""
    mu, F = density(d, 8, periodic), Dirichlet()
    sigma = random(*mu.values.shape, seed=d)
    sigma -= sigma.mean()
    found = (F.first_variation(mu) * sigma.flatten()).sum() * mu.grid.volume
    ahead, behind = (F(mu.with_state(values=mu.values + s * sigma)) for s in (0.5, -0.5))
    assert abs(ahead - behind) > 1e-3
    torch.testing.assert_close(found, ahead - behind, rtol=1e-11, atol=1e-12)
    assert abs((F.first_variation(mu)).sum()) < 1e-10 * F.first_variation(mu).abs().sum()  # Δ_h sums to 0


@pytest.mark.parametrize(("d", "n"), [(1, 40), (2, 40), (3, 24)])
def test_second_order_to_the_closed_form(d, n):
    """The value, δF/δρ and its gradient on grids approach those of the Gaussian as h²."""
    exact, F, errors = gaussian(d), Dirichlet(), []
    for cells in (n, 2 * n):
        mu = density(d, cells)
        phi, slope = F.first_variation(exact, mu.points), F.gradient(exact, mu.points)
        errors.append(
            torch.stack(
                [
                    (F(mu) - F(exact)).abs() / F(exact),
                    (F.first_variation(mu) - phi).abs().max() / phi.abs().max(),
                    (F.gradient(mu) - slope).abs().max() / slope.abs().max(),
                ]
            )
        )
    assert (torch.log2(errors[0] / errors[1]) > 1.7).all(), errors


@pytest.mark.parametrize("d", [1, 2, 3])
def test_gaussian_closed_forms(d):
    """F by quadrature of ½E[ρ|∇log ρ|²] over a fine grid; the Bures gradient by differences of F."""
    mu, F = gaussian(d), Dirichlet()
    fine = density(d, 64 if d < 3 else 48, half=6.0)
    x = fine.points
    value = 0.5 * (mu.log_prob(x).exp().square() * mu.score(x).square().sum(-1)).sum() * fine.grid.volume
    torch.testing.assert_close(F(mu), value, rtol=1e-9, atol=0)
    shift, hessian = F.bures_gradient(mu)
    assert not shift.any()
    A = random(d, d, seed=7)
    A, eps = A + A.mT, 1e-5
    slope = (F(mu.with_state(cov=mu.cov + eps * A)) - F(mu.with_state(cov=mu.cov - eps * A))) / (2 * eps)
    torch.testing.assert_close((hessian * A).sum() / 2, slope, rtol=1e-7, atol=1e-10)  # dF = ½⟨E∇²φ, dΣ⟩


def test_standard_normal_and_batches():
    assert Dirichlet()(Gaussian([0.0], [[1.0]])).item() == pytest.approx(1 / (8 * math.sqrt(math.pi)), rel=1e-12)
    values = torch.stack([density(2, 12).values, density(2, 12).values.flip(0)])
    both = Density(values, density(2, 12).grid)
    one = Dirichlet()(density(2, 12))
    torch.testing.assert_close(Dirichlet()(both), torch.stack([one, one]), rtol=1e-2, atol=0)
    assert Dirichlet().first_variation(both).shape == (2, 12 * 13) and Dirichlet().gradient(both).shape == (2, 156, 2)
    at = Dirichlet().first_variation(both, both.points[:, :5])
    torch.testing.assert_close(at, Dirichlet().first_variation(both)[:, :5])


@pytest.mark.parametrize("periodic", [False, True])
def test_explicit_steps_are_stable_and_lower_the_energy(periodic):
    """At the stable step the energy decreases from a rough density; the shortest wave does not grow."""
    grid = Grid(0.0, 1.0, 24, periodic=periodic)
    rough = 1 + 0.4 * random(24, seed=3).clamp(-2, 2)
    mu, F = Density(rough / rough.mean(), grid), Dirichlet()
    before = F(mu)
    for _ in range(40):
        tau = mu.stable_step(Wasserstein().descent(F, mu)).item()
        mu = Forward(F)(mu, 0.0, 0.9 * tau).mu
        now = F(mu)
        assert now < before
        before = now
    assert tau <= 1 / (8 * grid.spacing[0] ** -4 * mu.values.max().item()) * 1.01


def test_convex_step():
    """The implicit step of a program is a minimum: the first variation and the potential balance it, so that no
    density near it is better."""
    mu, F, tau = density(1, 24), Dirichlet(), 2.0
    out = Backward(F, solver=Convex())(mu, 0.0, tau)
    assert out.stats.converged and out.stats.objective < F(mu)
    with pytest.raises(NotConvex, match="not convex"):
        F.atom(mu, -1.0)
    with pytest.raises(NotConvex, match="Quantiles"):
        F.atom(Quantiles([0.0, 1.0]), 1.0)


def test_atom_is_the_energy():
    import cvxpy as cp

    for d, periodic in ((1, False), (2, True), (3, False)):
        mu = density(d, 5, periodic)
        atom = Dirichlet().atom(mu, 0.7)
        rho = cp.Variable(mu.grid.n)
        expression = atom.build(rho, *atom.data)
        rho.value = mu.values.flatten().numpy()
        assert expression.is_convex()
        assert expression.value == pytest.approx(0.7 * Dirichlet()(mu).item(), rel=1e-12)


def test_needs_a_density():
    with pytest.raises(TypeError, match="would work"):
        Dirichlet()(Quantiles([0.0, 1.0]))
