import math

import pytest
import torch

import otprox as ox
from otprox.exact import landau
from otprox.scores import GaussianFit


def cloud(n: int = 200, d: int = 3, seed: int = 0, *batch: int) -> ox.Particles:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*batch, n, d, generator=generator) @ torch.randn(d, d, generator=generator)
    w = torch.rand(*batch, n, generator=generator)
    return ox.Particles(x + 1.0, w / w.sum(-1, keepdim=True))


def loss_of_linear(mu: ox.Particles, B: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """E|s|² + 2E ∇·s of s = −B(x − a)."""
    return mu.expect(lambda x: ((x - a) @ B.mT).square().sum(-1)) - 2 * B.trace()


@pytest.mark.parametrize("seed", [0, 1])
def test_it_minimises_the_loss_of_score_matching_among_linear_scores(seed: int):
    mu = cloud(seed=seed)
    B, a = torch.linalg.inv(mu.cov), mu.mean
    least = loss_of_linear(mu, B, a)
    assert float(least) == pytest.approx(-float(B.trace()), rel=1e-12)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(20):
        dB, da = 0.1 * torch.randn(3, 3, generator=generator), 0.1 * torch.randn(3, generator=generator)
        assert loss_of_linear(mu, B + dB, a + da) > least
    torch.testing.assert_close(GaussianFit().fit(mu)(mu.x), -(mu.x - a) @ B)


def test_a_batch_is_single_fits():
    mu = cloud(50, 2, 0, 4)
    s = GaussianFit().fit(mu)(mu.x)
    for i in range(4):
        one = ox.Particles(mu.x[i], mu.w[i])
        torch.testing.assert_close(s[i], GaussianFit().fit(one)(one.x))


def test_particles_in_a_hyperplane_are_refused():
    flat = torch.randn(9, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.0])
    with pytest.raises(ValueError, match="positive definite; smallest eigenvalue"):
        GaussianFit().fit(ox.Particles(flat))


def test_particles_on_a_torus_are_refused():
    mu = ox.Particles(torch.rand(9, 2, generator=torch.Generator().manual_seed(0)), domain=ox.Torus(1.0))
    with pytest.raises(TypeError, match="GaussianFit estimates scores in R\\^d, not on a Torus"):
        GaussianFit().fit(mu)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_a_step_of_heat_moves_the_covariance_and_carries_the_density_as_in_closed_form(d: int):
    cov = torch.diag(torch.linspace(0.5, 2.0, d))
    start = ox.Gaussian(torch.ones(d), cov).to_particles(500, torch.Generator().manual_seed(0))
    tau, eye = 0.1, torch.eye(d)
    end = ox.Forward(ox.Entropy(score=GaussianFit()))(start, 0.0, tau).mu
    T = eye + tau * torch.linalg.inv(start.cov)
    torch.testing.assert_close(end.cov, T @ start.cov @ T)
    torch.testing.assert_close(end.entropy(), start.entropy() - torch.logdet(T))


def test_the_entropy_of_a_gaussian_under_heat_converges_at_first_order():
    """Particles with the Gaussian's own mean and covariance: the fit is exact, and only the time step errs."""
    z = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 2)
    start = ox.Gaussian(torch.zeros(2), torch.diag(torch.tensor([0.5, 1.5])))
    mu = ox.Particles(z @ start.cov.sqrt(), log_density=start.log_prob(z @ start.cov.sqrt()))
    exact = ox.Heat()(start, 0.0, 1.0).mu.entropy()
    fall = start.entropy() - exact
    errors = []
    for k in (20, 40):
        path = ox.flow(ox.Forward(ox.Entropy(score=GaussianFit())), mu, torch.linspace(0, 1, k + 1).tolist())
        errors.append(abs(float(mu.entropy() - ox.record(path).final.entropy() - fall)))
    assert errors[1] < 0.01 and errors[0] / errors[1] == pytest.approx(2.0, abs=0.15)


@pytest.mark.parametrize("C", [1 / 24, 0.1])
def test_a_gaussian_starts_to_relax_under_maxwell_molecules_as_in_closed_form(C: float):
    """Nodes of Gauss and Hermite have the Gaussian's moments up to the fourth, all that the rate of P takes."""
    node = math.sqrt(3.0)
    z = torch.cartesian_prod(*[torch.tensor([-node, 0.0, node])] * 3)
    P = torch.diag(torch.tensor([2.4, 0.3, 0.3]))
    mu = ox.Particles(z @ P.sqrt(), torch.where(z == 0, 2 / 3, 1 / 6).prod(-1))
    step = ox.Forward(ox.Entropy(score=GaussianFit()), ox.Landau(0.0, C))
    errors = [(step(mu, 0.0, tau).mu.cov - landau.covariance(P, tau, strength=C)).norm() for tau in (0.02, 0.01)]
    assert float(errors[0] / errors[1]) == pytest.approx(4.0, rel=0.1)


def test_single_precision():
    mu = cloud(100, 2)
    s = GaussianFit().fit(ox.Particles(mu.x.float(), mu.w.float()))(mu.x.float())
    assert s.dtype == torch.float32
    torch.testing.assert_close(s.double(), GaussianFit().fit(mu)(mu.x), atol=1e-4, rtol=1e-4)
