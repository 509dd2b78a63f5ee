"""Wasserstein, Moving and Entropic as metrics: mobility, intervals, and what they refuse."""

import math

import pytest
import torch

import otprox as ox
from otprox.functionals import Potential, Quadratic


def test_descent_is_minus_Q_times_the_gradient(S0, Q, m0):
    mu = ox.Particles(torch.randn(7, 3, generator=torch.Generator().manual_seed(0)))
    F = Potential(Quadratic(m0, precision=S0))
    velocity = ox.Wasserstein(Q).descent(F, mu)
    torch.testing.assert_close(velocity.field(mu.x), -(mu.x - m0) @ S0 @ Q)
    torch.testing.assert_close(ox.Wasserstein().descent(F, mu).field(mu.x), -(mu.x - m0) @ S0)


def test_affine_field_on_gaussians_agrees_with_the_nearest_affine_map(S0, Q, m0):
    mu = ox.Gaussian(m0, S0)
    F = ox.KL(ox.Gaussian(m0 + 1, Q))
    velocity = ox.Wasserstein(Q).descent(F, mu)
    shift, jacobian = velocity.affine()
    fit = mu.nearest_affine(velocity.field)
    torch.testing.assert_close(shift, fit[0])
    torch.testing.assert_close(jacobian, fit[1])


@pytest.mark.parametrize(("t0", "t1"), [(0.0, 0.5), (0.5, 0.75), (1.0, 3.0)])
def test_moving_rules(t0, t1):
    def C_of_float(t):
        t = torch.as_tensor(t, dtype=torch.float64)
        return torch.diag(torch.stack([t**2 + t, torch.expm1(t)]))

    end = ox.Moving(C_of_float).over(t0, t1).Q
    torch.testing.assert_close(end, torch.diag(torch.tensor([2 * t1 + 1, math.exp(t1)])))
    average = ox.Moving(C_of_float, rule="average").over(t0, t1).Q
    torch.testing.assert_close(average, (C_of_float(t1) - C_of_float(t0)) / (t1 - t0))
    given = ox.Moving(C_of_float, rate=lambda t: torch.diag(torch.tensor([2 * t + 1, math.exp(t)]))).over(t0, t1).Q
    torch.testing.assert_close(given, end)


def test_heat_in_a_moving_metric_is_exact():
    C = lambda t: torch.as_tensor(t, dtype=torch.float64) ** 3 * torch.eye(2)  # noqa: E731
    mu = ox.Gaussian(torch.zeros(2), torch.eye(2))
    end = ox.record(ox.flow(ox.Heat(0.5, ox.Moving(C)), mu, [0.0, 0.3, 1.1])).final
    torch.testing.assert_close(end.cov, (1 + 1.1**3) * torch.eye(2))


def test_jko_in_a_moving_metric_is_first_order():
    C = lambda t: (t**2 + t) * torch.eye(2)  # noqa: E731
    mu = ox.Gaussian(torch.zeros(2), torch.eye(2))
    want = (1 + 2 * 2.0) * torch.eye(2)
    errors = []
    for n in (50, 100, 200):
        times = [k / n for k in range(n + 1)]
        end = ox.record(ox.flow(ox.Backward(ox.Entropy(), ox.Moving(C)), mu, times)).final
        errors.append((end.cov - want).abs().max().item())
    assert 0.9 < math.log2(errors[1] / errors[2]) < 1.1


def test_a_number_C_in_one_dimension():
    mu = ox.Gaussian([0.0], [[1.0]])
    metric = ox.Moving(lambda t: 2 * t)
    torch.testing.assert_close(metric.diffusion(mu, 0.0, 0.5), torch.eye(1))
    torch.testing.assert_close(metric.over(0.0, 0.5).mobility(mu), 2 * torch.eye(1))


def test_entropic_takes_a_moving_base():
    metric = ox.Entropic(0.1, base=ox.Moving(lambda t: (t**2 + t) * torch.eye(2))).over(0.0, 1.0)
    torch.testing.assert_close(metric.base.Q, 3 * torch.eye(2))
    assert metric.reg == 0.1


def test_refusals(S0):
    with pytest.raises(ValueError, match="smallest eigenvalue is -1"):
        ox.Wasserstein(torch.diag(torch.tensor([1.0, -1.0])))
    with pytest.raises(ValueError, match="reg must be positive"):
        ox.Entropic(0.0)
    with pytest.raises(ValueError, match="reference"):
        ox.Entropic(0.1, "kl")
    with pytest.raises(ValueError, match="rule"):
        ox.Moving(lambda t: t, rule="middle")
    with pytest.raises(TypeError, match="base"):
        ox.Entropic(0.1, base=ox.Entropic(0.1))
    with pytest.raises(TypeError, match="rate="):
        ox.Moving(lambda t: torch.eye(2) * float(t) ** 2 + torch.tensor(math.exp(t))).over(0.0, 1.0)
    with pytest.raises(ValueError, match="C\\(1.0\\) − C\\(0.0\\) must be symmetric positive definite"):
        ox.Moving(lambda t: -t * torch.eye(2)).diffusion(ox.Gaussian(torch.zeros(2), torch.eye(2)), 0.0, 1.0)
    with pytest.raises(TypeError, match="over"):
        ox.Moving(lambda t: t).descent(ox.Entropy(), ox.Gaussian([0.0], [[1.0]]))
    with pytest.raises(TypeError, match="Backward"):
        ox.Forward(ox.Entropy(), ox.Entropic(0.1))(ox.Gaussian([0.0], [[1.0]]), 0.0, 1.0)
    with pytest.raises(ValueError, match="dimension 1"):
        ox.Wasserstein(S0).mobility(ox.Gaussian([0.0], [[1.0]]))
    with pytest.raises(TypeError, match="float32"):
        ox.Wasserstein(S0.float()).mobility(ox.Gaussian(torch.zeros(3), torch.eye(3)))


def test_a_batch_of_metrics_needs_a_batch_of_particles():
    Q = torch.eye(2).expand(3, 2, 2)
    with pytest.raises(ValueError, match=r"Q has batch shape \(3,\)"):
        ox.Forward(Potential(Quadratic([0.0, 0.0])), ox.Wasserstein(Q))(ox.Particles(torch.ones(4, 2)), 0.0, 0.1)


@pytest.mark.parametrize("reg", [0.0, -1.0, math.inf, math.nan])
def test_reg_is_positive_and_finite(reg: float):
    with pytest.raises(ValueError, match="reg must be positive and finite"):
        ox.Entropic(reg)
