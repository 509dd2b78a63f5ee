"""Generalised linear potentials: exact Gaussian expectations, against two independent quadratures."""

import pytest
import torch
from torch.nn.functional import softplus

import otprox as ox
from otprox.functionals import GeneralizedLinear, Potential, Quadratic


def logistic(rows, dim, seed=0, order=32):
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(rows, dim, generator=g)
    y = torch.sign(torch.randn(rows, generator=g))
    return GeneralizedLinear(X, lambda eta: softplus(-y * eta), order=order)


@pytest.mark.parametrize(("rows", "dim"), [(5, 1), (20, 2), (9, 3)])
def test_moments_agree_with_quadrature_over_the_whole_space(rows, dim):
    V = logistic(rows, dim)
    mu = ox.Gaussian(
        0.3 * torch.ones(dim), 0.5 * torch.eye(dim) + 0.1, quadrature=ox.GaussHermite(40 if dim < 3 else 24)
    )
    value, slope, curvature = V.moments(mu.mean, mu.cov)
    plain = Potential(lambda x: V(x))  # the wrapper hides `moments`, so quadrature over R^d is used
    torch.testing.assert_close(value, plain(mu), rtol=1e-7, atol=1e-7)
    shift, hessian = plain.bures_gradient(mu)
    torch.testing.assert_close(slope, shift, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(curvature, hessian, rtol=1e-5, atol=1e-5)


def test_moments_are_the_derivatives_of_the_expected_value():
    V, h = logistic(12, 3, order=100), 1e-5  # the two sides are equal up to quadrature
    mean, cov = torch.tensor([0.2, -0.4, 0.1]), 0.3 * torch.eye(3) + 0.05
    value, slope, curvature = V.moments(mean, cov)
    for i in range(3):
        e = torch.eye(3)[i]
        assert abs((V.moments(mean + h * e, cov)[0] - V.moments(mean - h * e, cov)[0]) / (2 * h) - slope[i]) < 1e-8
        bump = h * torch.outer(e, e)  # ∂ E V / ∂Σ = ½ E ∇²V
        assert abs((V.moments(mean, cov + bump)[0] - V.moments(mean, cov - bump)[0]) / h - curvature[i, i]) < 1e-7


def test_mode_is_stationary_and_batches_lead():
    V = logistic(40, 4)
    mode = V.mode()
    assert V.moments(mode, torch.zeros(4, 4))[1].norm() < 1e-9
    means = torch.stack([mode, mode + 1])
    both = V.moments(means, torch.eye(4).expand(2, 4, 4))
    alone = V.moments(means[1], torch.eye(4))
    for together, single in zip(both, alone, strict=True):
        torch.testing.assert_close(together[1], single)


def test_moments_are_differentiable():
    V = logistic(6, 2)
    mean = torch.tensor([0.3, 0.1], requires_grad=True)
    assert torch.autograd.gradcheck(lambda m: V.moments(m, torch.eye(2))[1], (mean,))


def test_refusals():
    with pytest.raises(ValueError, match="rows"):
        GeneralizedLinear(torch.zeros(3), softplus)
    with pytest.raises(ValueError, match="columns"):
        GeneralizedLinear(torch.zeros(3, 2), softplus, Quadratic(torch.zeros(4)))
