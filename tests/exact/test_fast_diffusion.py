"""The self-similar solution of fast diffusion against its equation, quadrature and the optimality of its steps."""

import pytest
import torch

from otprox.exact.diffusion import FastDiffusion

CASES = [(0.75, 1), (0.9, 1), (0.8, 2), (0.85, 3)]


@pytest.mark.parametrize(("m", "dim"), CASES)
def test_mass_and_second_moment(m, dim):
    """By the substitution r = tan θ, which makes the integrands smooth."""
    source, R = FastDiffusion(m, dim), 1.3
    theta = (torch.arange(20_000) + 0.5) / 20_000 * torch.pi / 2
    r = R * theta.tan()
    sphere = {1: 2.0, 2: 2 * torch.pi, 3: 4 * torch.pi}[dim]
    x = torch.cat([r[:, None], torch.zeros(len(r), dim - 1)], -1)
    shell = source.density(x, radius=R) * sphere * r ** (dim - 1) * R / theta.cos() ** 2 * torch.pi / 2 / 20_000
    assert shell.sum().item() == pytest.approx(1, abs=1e-6)
    assert (shell * r**2).sum().item() == pytest.approx(source.second_moment(R).item(), rel=1e-5)


@pytest.mark.parametrize(("m", "dim"), CASES)
def test_it_solves_the_equation(m, dim):
    """∂t ρ = Δρ^m by automatic differentiation."""
    source = FastDiffusion(m, dim)
    x, t = torch.linspace(-0.7, 0.9, dim), torch.tensor(0.6)
    rate = torch.func.jacrev(lambda t: source.density(x[None], t=t)[0])(t)
    hessian = torch.func.hessian(lambda x: source.density(x[None], t=t)[0] ** m)(x)
    assert rate.item() == pytest.approx(hessian.trace().item(), rel=1e-10)


@pytest.mark.parametrize(("m", "dim"), CASES)
@pytest.mark.parametrize("tau", [1e-3, 0.1, 2.0])
def test_steps_are_stationary(m, dim, tau):
    """x + τ∇(δF/δρ) carries the new density to the old one: it multiplies by R/R'."""
    source, R = FastDiffusion(m, dim), torch.tensor([0.5, 1.0, 3.0])
    new = source.jko(R, tau)
    x = torch.linspace(0.2, 1.0, dim)
    for old, r in zip(R, new, strict=True):
        slope = torch.func.grad(lambda x, r=r: -m / (1 - m) * source.density(x[None], radius=r)[0] ** (m - 1))(x)
        torch.testing.assert_close(x + tau * slope, x * old / r)


@pytest.mark.parametrize(("m", "dim"), CASES)
def test_small_steps_follow_the_flow_at_first_order(m, dim):
    source, errors = FastDiffusion(m, dim), []
    for n in (20, 40):
        R = source.radius(1.0)
        for _ in range(n):
            R = source.jko(R, 1 / n)
        errors.append(abs(R - source.radius(2.0)).item())
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize(("m", "dim"), CASES)
def test_rest_balances_the_potential(m, dim):
    source = FastDiffusion(m, dim)
    x = torch.linspace(0.2, 1.0, dim)
    F = lambda x: -m / (1 - m) * source.density(x[None], radius=source.rest())[0] ** (m - 1) + x.square().sum() / 2  # noqa: E731
    torch.testing.assert_close(torch.func.grad(F)(x), torch.zeros(dim), atol=1e-10, rtol=0)


def test_exponents_without_a_second_moment_are_refused():
    with pytest.raises(ValueError, match=r"m must be in \(0.5, 1\), not 0.4"):
        FastDiffusion(0.4, 2)
    with pytest.raises(ValueError, match="not 2"):
        FastDiffusion(2, 1)
    with pytest.raises(ValueError, match="tau must be positive"):
        FastDiffusion(0.9, 1).jko(1.0, 0.0)
