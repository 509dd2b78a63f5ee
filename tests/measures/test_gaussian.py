"""Gaussian measures: what is refused, and closed forms of everything that is exact."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from otprox import (
    Box,
    Entropy,
    Forward,
    GaussHermite,
    Gaussian,
    Particles,
    Potential,
    Quadratic,
    Samples,
    Wasserstein,
)
from otprox.measures import Growth, Velocity


def random_gaussian(seed: int, dim: int, *batch: int, **options) -> Gaussian:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*batch, dim, dim, generator=generator)
    return Gaussian(torch.randn(*batch, dim, generator=generator), x @ x.mT / dim + 0.1 * torch.eye(dim), **options)


seeds, dims = st.integers(0, 2**31), st.integers(1, 4)


@pytest.mark.parametrize(
    ("mean", "cov", "message"),
    [
        ([0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]], "smallest eigenvalue is -1"),
        ([0.0, 0.0], [[1.0, 0.5], [0.0, 1.0]], "symmetric"),
        ([0.0, 0.0], [[1.0, math.nan], [math.nan, 1.0]], "finite"),
        ([math.inf], [[1.0]], "finite"),
        ([0.0, 0.0], [[1.0]], "same d"),
        ([0.0, 0.0], [1.0, 1.0], "shape"),
        ([0.0], 1.0, "shape"),
        ([0.0], [[0.0]], "positive definite"),
    ],
)
def test_bad_input_is_refused(mean: list, cov: list, message: str):
    with pytest.raises(ValueError, match=message):
        Gaussian(mean, cov)


def test_the_batch_item_that_is_not_spd_is_named():
    covs = torch.eye(2).repeat(3, 1, 1)
    covs[2, 0, 0] = -0.5
    with pytest.raises(ValueError, match="-0.5 in batch item 2"):
        Gaussian(torch.zeros(2), covs)


def test_batches_that_do_not_broadcast_are_refused():
    with pytest.raises(ValueError, match=r"mean has batch shape \(3,\) and cov has \(4,\)"):
        Gaussian(torch.zeros(3, 2), torch.eye(2).expand(4, 2, 2))


def test_mixed_dtypes_are_refused():
    with pytest.raises(TypeError, match="float32"):
        Gaussian(torch.zeros(2), torch.eye(2, dtype=torch.float32))


def test_input_is_read_once_and_batches_broadcast():
    mu = Gaussian(np.zeros((4, 1, 2)), np.stack([np.eye(2)] * 3))
    assert mu.batch == (4, 3)
    assert mu.cov.shape == (4, 3, 2, 2)
    assert Gaussian([0], [[1]]).mean.dtype == torch.get_default_dtype()
    assert set(mu.state()) == {"mean", "cov"}


def test_rounding_asymmetry_is_removed():
    cov = torch.tensor([[1.0, 0.3 + 1e-10], [0.3, 1.0]])
    assert torch.equal(Gaussian([0.0, 0.0], cov).cov, Gaussian([0.0, 0.0], cov).cov.mT)


@given(seeds, dims)
def test_entropy_is_minus_the_expected_log_density(seed: int, dim: int):
    mu = random_gaussian(seed, dim, 2)
    sign, logdet = np.linalg.slogdet(2 * math.pi * math.e * mu.cov.numpy())
    torch.testing.assert_close(mu.entropy(), torch.as_tensor(-0.5 * logdet))
    torch.testing.assert_close(mu.expect_log(lambda u: u), mu.entropy(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(mu.mass, torch.ones(2))


@given(seeds, dims)
def test_expectations_of_quadratics_are_exact(seed: int, dim: int):
    mu = random_gaussian(seed, dim, 2)
    torch.testing.assert_close(mu.expect(lambda x: x), mu.mean)
    second = mu.expect(lambda x: (x[..., :, None] * x[..., None, :]).flatten(-2)).unflatten(-1, (dim, dim))
    torch.testing.assert_close(second, mu.cov + mu.mean[..., :, None] * mu.mean[..., None, :])


@pytest.mark.parametrize("quadrature", [None, GaussHermite(20), Samples(20000, seed=1)])
def test_expectation_of_an_exponential(quadrature):
    mu = random_gaussian(2, 2, quadrature=quadrature)
    exact = torch.exp(mu.mean.sum() + 0.5 * mu.cov.sum())
    tolerance = 0.05 if isinstance(quadrature, Samples) else 1e-9
    torch.testing.assert_close(mu.expect(lambda x: x.sum(-1).exp()), exact, rtol=tolerance, atol=0)


def test_log_density_and_score_match_autograd():
    mu = random_gaussian(4, 3, 2)
    x = torch.randn(2, 5, 3, requires_grad=True)
    (g,) = torch.autograd.grad(mu.log_prob(x).sum(), x)
    torch.testing.assert_close(g, mu.score(x))
    reference = torch.distributions.MultivariateNormal(mu.mean[:, None], mu.cov[:, None])
    torch.testing.assert_close(mu.log_prob(x), reference.log_prob(x))
    torch.testing.assert_close(mu.log_prob(), mu.log_prob(mu.points))


@given(seeds, dims)
def test_push_by_an_affine_map_is_exact(seed: int, dim: int):
    mu = random_gaussian(seed, dim, 2)
    A, b = torch.randn(dim, dim) + 3 * torch.eye(dim), torch.randn(dim)
    nu = mu.push(lambda x: x @ A.mT + b)
    torch.testing.assert_close(nu.mean, mu.mean @ A.mT + b)
    torch.testing.assert_close(nu.cov, A @ mu.cov @ A.mT, rtol=1e-9, atol=1e-9)
    with_jacobian = mu.push(lambda x: (x @ A.mT + b, torch.zeros(x.shape[:-1])))
    torch.testing.assert_close(with_jacobian.cov, nu.cov)


def test_nearest_affine_of_a_cubic_is_steins():
    """E X³ = m³ + 3mσ² and E 3X² = 3(m² + σ²)."""
    mu = Gaussian([0.7], [[2.0]])
    b, J = mu.nearest_affine(lambda x: x**3)
    torch.testing.assert_close(b.item(), 0.7**3 + 3 * 0.7 * 2.0)
    torch.testing.assert_close(J.item(), 3 * (0.7**2 + 2.0))


def test_nearest_affine_beats_every_other_affine_map():
    mu = random_gaussian(1, 2)
    b, J = mu.nearest_affine(torch.sin)

    def loss(b: Tensor, J: Tensor) -> Tensor:
        return mu.expect(lambda x: (torch.sin(x) - b - (x - mu.mean) @ J.mT).square().sum(-1))

    best, generator = loss(b, J), torch.Generator().manual_seed(0)
    for _ in range(10):
        db, dJ = torch.randn(2, generator=generator), torch.randn(2, 2, generator=generator)
        assert loss(b + 1e-3 * db, J + 1e-3 * dJ) > best


def test_diffusion_adds_covariances():
    mu = random_gaussian(3, 2)
    torch.testing.assert_close(mu.diffuse(0.5 * torch.eye(2)).cov, mu.cov + 0.5 * torch.eye(2))


@pytest.mark.parametrize(
    ("cov", "message"),
    [
        (torch.eye(1), "dimension 2"),
        (torch.eye(3), "dimension 2"),
        (torch.eye(2).expand(5, 2, 2), "batch shape"),
        (-torch.eye(2), "a variance -1"),
    ],
)
def test_noise_that_does_not_fit_is_refused(cov: Tensor, message: str):
    generator = torch.Generator().manual_seed(0)
    for mu in (random_gaussian(3, 2), Particles(torch.randn(7, 2))):
        with pytest.raises(ValueError, match=message):
            mu.diffuse(cov, generator)
        with pytest.raises(TypeError, match="float32"):
            mu.diffuse(torch.eye(2, dtype=torch.float32), generator)


def test_forward_in_dimension_1000_needs_memory_for_its_nodes_only():
    mu = Gaussian(torch.ones(1000), 2 * torch.eye(1000))
    nu = Forward(Potential(lambda x: 0.5 * x.square().sum(-1)))(mu, 0.0, 0.1).mu
    torch.testing.assert_close(nu.mean, 0.9 * mu.mean)
    torch.testing.assert_close(nu.cov, 0.81 * mu.cov)


def test_convolution_and_interaction_of_a_quadratic():
    mu = random_gaussian(5, 2, 3)
    x = torch.randn(3, 7, 2)
    trace = mu.cov.diagonal(dim1=-2, dim2=-1).sum(-1)
    values = mu.convolve(lambda z: z.square().sum(-1), x)
    torch.testing.assert_close(values, (x - mu.mean[:, None]).square().sum(-1) + trace[:, None])
    torch.testing.assert_close(mu.interact(lambda z: z.square().sum(-1)), 2 * trace)
    assert mu.convolve(lambda z: z.square().sum(-1)).shape == mu.points.shape[:-1]


def test_a_forward_step_is_the_affine_image():
    mu, H, b = random_gaussian(6, 3, 2), random_gaussian(7, 3).cov, torch.randn(3)
    tangent = Wasserstein().descent(Potential(Quadratic(b, precision=H)), mu)
    B = torch.eye(3) - 0.1 * H
    nu = mu.move(tangent, 0.1)
    torch.testing.assert_close(nu.mean, b + (mu.mean - b) @ B)
    torch.testing.assert_close(nu.cov, B @ mu.cov @ B)
    by_quadrature = mu.move(Velocity(field=tangent.field), 0.1)
    torch.testing.assert_close(by_quadrature.cov, nu.cov, rtol=1e-9, atol=1e-9)


def test_the_bures_gradient_of_entropy_is_minus_the_precision():
    mu = random_gaussian(8, 3)
    shift, hessian = Entropy().bures_gradient(mu)
    assert not shift.any()
    torch.testing.assert_close(hessian, -mu.cov.inverse())


def test_what_a_gaussian_cannot_follow_is_refused():
    with pytest.raises(TypeError, match="Growth"):
        random_gaussian(0, 1).move(Growth(lambda x: x[..., 0]), 0.1)


def test_fit_takes_the_moments():
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2.0, 3.0]) + 1
    mu = Gaussian.fit(Particles(x))
    torch.testing.assert_close(mu.mean, x.mean(0))
    torch.testing.assert_close(mu.cov, torch.cov(x.mT, correction=0))
    assert Particles(x, domain=Box([-20.0] * 3, [20.0] * 3)).dim == 3


def test_float32_stays_float32():
    mu = Gaussian(torch.zeros(2, dtype=torch.float32), torch.eye(2, dtype=torch.float32))
    values = (mu.entropy(), mu.expect(lambda x: x.square().sum(-1)), mu.score(), mu.push(lambda x: 2 * x).cov)
    assert {v.dtype for v in values} == {torch.float32}
    torch.testing.assert_close(values[1].item(), 2.0, rtol=1e-5, atol=0)


def test_log_density_is_differentiable_in_the_parameters():
    mean, cov = torch.randn(2, requires_grad=True), (2 * torch.eye(2)).requires_grad_()
    x = torch.randn(4, 2)
    assert torch.autograd.gradcheck(lambda m, S: Gaussian(m, (S + S.mT) / 2).log_prob(x), (mean, cov))
