"""Particles moved by the affine map of the Gaussian step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from otprox import KL, Entropic, Entropy, Gaussian, Particles, Potential, Quadratic, Torus, Wasserstein
from otprox.solvers import Bures, ConvergenceError, GaussianMap, choose
from otprox.solvers.choose import ORDER

W2 = Wasserstein()
seeds = st.integers(0, 2**31)


def cloud(seed: int, n: int = 200, dim: int = 3, *batch: int, **options) -> Particles:
    generator = torch.Generator().manual_seed(seed)
    shear = torch.randn(dim, dim, generator=generator) + 2 * torch.eye(dim)
    return Particles(torch.randn(*batch, n, dim, generator=generator) @ shear + 1.0, **options)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@given(seeds, st.floats(0.01, 2.0))
def test_moments_follow_the_gaussian_step(seed: int, tau: float):
    mu = cloud(seed)
    Q = Wasserstein(cloud(seed + 1).cov)
    for F in (Entropy(), KL(Gaussian.fit(cloud(seed + 2))), Potential(Quadratic([1.0, 0.0, 2.0]))):
        for metric in (W2, Q):
            nu, stats = GaussianMap()(F, metric, mu, tau)
            law, exact = Bures()(F, metric, Gaussian.fit(mu), tau)
            close(nu.mean, law.mean)
            close(nu.cov, law.cov)
            close(stats.distance2, exact.distance2)


def test_forward_backward_in_the_form_of_the_paper():
    """y = m + (I − γQ⁻¹)(x − m), x' = m' + (I − γΣ'⁻¹)⁻¹(y − m'), for the mean m of the target."""
    mu, target, tau = cloud(0), Gaussian.fit(cloud(1)), 0.3
    step, P, eye = GaussianMap(), target.cov.inverse(), torch.eye(3)
    x = mu.x
    for _ in range(5):
        mu = mu.move(W2.descent(Potential(Quadratic.of(target)), mu), tau)
        mu = step(Entropy(), W2, mu, tau).mu
        y = target.mean + (x - target.mean) @ (eye - tau * P)
        law = Bures()(Entropy(), W2, Gaussian.fit(Particles(y)), tau).mu
        x = law.mean + (y - law.mean) @ (eye - tau * law.cov.inverse()).inverse()
        close(mu.x, x)


def test_particles_of_a_gaussian_converge_to_the_target():
    mu, target = cloud(0), Gaussian([1.0, 2.0, 3.0], torch.diag(torch.tensor([0.5, 1.0, 2.0])))
    for _ in range(80):
        mu = GaussianMap()(KL(target), W2, mu, 1.0).mu
    close(mu.mean, target.mean)
    close(mu.cov, target.cov)


def test_the_log_density_is_that_of_the_image():
    """A known law: after the step the carried log-density is that of the new Gaussian at the new particles."""
    mu = cloud(3)
    law = Gaussian(torch.zeros(3), torch.diag(torch.tensor([1.0, 2.0, 0.5])))
    mu = Particles(mu.x, log_density=law.log_prob(mu.x))
    nu, _ = GaussianMap(law=law)(Entropy(), W2, mu, 0.4)
    close(nu.log_density, Bures()(Entropy(), W2, law, 0.4).mu.log_prob(nu.x))
    fitted, _ = GaussianMap()(KL(law), Wasserstein(2 * torch.eye(3)), mu, 0.4)
    Tx = GaussianMap()(KL(law), Wasserstein(2 * torch.eye(3)), mu, 0.4).stats.map
    jacobian = torch.autograd.functional.jacobian(lambda x: Tx(x[None])[0], torch.zeros(3))
    close(fitted.log_density, mu.log_density - torch.linalg.slogdet(jacobian).logabsdet)


def test_the_objective_is_that_of_the_particles_where_they_have_one():
    mu, V, tau = cloud(3), Potential(Quadratic([1.0, 0.0, 2.0])), 0.4
    known = Particles(mu.x, log_density=torch.randn(200, generator=torch.Generator().manual_seed(0)))
    for F, start in ((V, mu), (V + Entropy(), known)):
        nu, stats = GaussianMap()(F, W2, start, tau)
        close(stats.objective, F(nu) + (nu.x - mu.x).square().sum(-1).mean() / (2 * tau))
    stats = GaussianMap()(Entropy(), W2, mu, tau).stats
    close(stats.objective, Bures()(Entropy(), W2, Gaussian.fit(mu), tau).stats.objective)


def test_the_law_need_not_be_fitted():
    """With the law given, one particle is enough, and the map is that of the law."""
    law = Gaussian([0.0], [[1.0]])
    nu, _ = GaussianMap(law=law)(Entropy(), W2, Particles([[1.0]]), 2.0)
    close(nu.x, torch.tensor([[2.0]]))  # Σ' = 4


@pytest.mark.parametrize("n", [1, 2, 3])
def test_too_few_particles_are_refused(n: int):
    with pytest.raises(ValueError, match=f"{n} particles in dimension 3 .* at least 4"):
        GaussianMap()(Entropy(), W2, cloud(0, n), 0.1)


def test_particles_in_a_subspace_are_refused():
    x = cloud(0).x.clone()
    x[:, 2] = x[:, 0] - 2 * x[:, 1]
    with pytest.raises(ValueError, match="lie in a subspace"):
        GaussianMap()(Entropy(), W2, Particles(x), 0.1)


def test_what_it_declines():
    solver, mu = GaussianMap(), cloud(0)
    assert "optimal map" in solver.supports(Entropy(), Entropic(0.1), mu)
    assert "Particles" in solver.supports(Entropy(), W2, Gaussian([0.0], [[1.0]]))
    assert "Torus" in solver.supports(Entropy(), W2, Particles(mu.x, domain=Torus(6.0)))
    assert "not quadratic" in solver.supports(KL(lambda x: x.pow(4).sum(-1)), W2, mu)
    with pytest.raises(TypeError, match="GaussianMap declines"):
        solver(Entropy(), Entropic(0.1), mu, 0.1)


def test_it_is_never_chosen_by_itself():
    assert not any(isinstance(solver, GaussianMap) for solver in ORDER)
    try:
        chosen = choose(Entropy(), W2, cloud(0))
    except TypeError:
        return
    assert not isinstance(chosen, GaussianMap)


def test_weights_batches_and_float32():
    w = torch.rand(2, 200, generator=torch.Generator().manual_seed(0)) + 0.1
    mu = cloud(5, 200, 3, 2, w=w / w.sum(-1, keepdim=True))
    nu, stats = GaussianMap()(Entropy(), W2, mu, 0.3)
    assert torch.equal(nu.w, mu.w)
    assert stats.distance2.shape == (2,)
    for k in range(2):
        close(nu.x[k], GaussianMap()(Entropy(), W2, Particles(mu.x[k], mu.w[k]), 0.3).mu.x, 1e-12)
    single, _ = GaussianMap()(Entropy(), W2, Particles(mu.x.float(), mu.w.float()), 0.3)
    assert single.x.dtype == torch.float32
    close(single.x.double(), nu.x, 1e-4)


def test_gradients_pass_through_the_particles():
    x = cloud(1, 6, 2).x.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: GaussianMap()(KL(Gaussian([0.0, 0.0], torch.eye(2))), W2, Particles(x), 0.3).mu.x, x
    )


def test_the_error_of_an_inner_solver_comes_through():
    with pytest.raises(ValueError, match="convexity limit"):
        GaussianMap(inner=Bures())(Potential(Quadratic([0.0] * 3, precision=-torch.eye(3))), W2, cloud(0), 1.5)
    assert issubclass(ConvergenceError, RuntimeError)
