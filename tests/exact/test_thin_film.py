"""Smyth and Hill's solution: its equation, its moments, and its JKO steps."""

from __future__ import annotations

import pytest
import torch

from otprox.exact.diffusion import SmythHill


@pytest.mark.parametrize(
    ("dim", "radius", "top", "second", "stepped"),
    [
        (1, 2.571760398378, 0.364536292180, 0.944850220952, 2.619544086822),
        (2, 2.383483236455, 0.168092051821, 1.420248084615, 2.420278714811),
        (3, 2.250569852882, 0.091624571562, 1.688354887567, 2.280287333637),
    ],
)
def test_printed(dim, radius, top, second, stepped):
    film = SmythHill(dim)
    R = film.radius(1.0)
    for value, expected in ((R, radius), (film.maximum(R), top), (film.second_moment(R), second)):
        assert value.item() == pytest.approx(expected, abs=1e-11)
    assert film.jko(R, 0.1).item() == pytest.approx(stepped, abs=1e-11)


@pytest.mark.parametrize("dim", [1, 2, 3, 5])
def test_it_solves_the_equation(dim):
    """∂t ρ + div(ρ∇Δρ) = 0 at random points inside, by automatic differentiation."""
    film, t = SmythHill(dim, 1.7), torch.tensor(0.8, requires_grad=True)
    x = 0.3 * torch.randn(6, dim, generator=torch.Generator().manual_seed(dim))

    def density(y, s):
        return film.density(y[None], t=s)[0]

    def divergence(field, y):
        return torch.func.jacrev(field)(y).diagonal().sum()

    def rho(y):
        return density(y, t.detach())

    def laplacian(y):
        return divergence(torch.func.grad(rho), y)

    def flux(y):
        return rho(y) * torch.func.grad(laplacian)(y)

    for point in x:
        slope = torch.autograd.grad(density(point, t), t)[0]
        assert abs(slope + divergence(flux, point)).item() < 1e-12


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_moments_and_energy_by_quadrature(dim):
    film, R = SmythHill(dim, 0.6), torch.tensor(1.3)
    r = torch.linspace(0, 1.3, 40001)
    y = torch.cat([r[:, None], torch.zeros(len(r), dim - 1)], 1).requires_grad_()
    rho = film.density(y, radius=R)
    (grad,) = torch.autograd.grad(rho.sum(), y)
    shell = {1: 2.0, 2: 2 * torch.pi, 3: 4 * torch.pi}[dim] * r ** (dim - 1)
    rho = rho.detach()
    assert torch.trapezoid(shell * rho, r).item() == pytest.approx(0.6, rel=1e-8)
    assert torch.trapezoid(shell * r**2 * rho, r).item() == pytest.approx(film.second_moment(R).item(), rel=1e-7)
    energy = 0.5 * torch.trapezoid(shell * grad.square().sum(-1), r)
    assert energy.item() == pytest.approx(film.energy(R).item(), rel=1e-7)


def test_steps_approach_the_flow_and_minimise():
    """First order; and R' minimises energy(R') + W2²/2τ among dilations."""
    film = SmythHill(2)
    errors = [(film.jko(film.radius(1.0), 1 / n, n) - film.radius(2.0)).abs().item() for n in (10, 20, 40)]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1) and errors[1] / errors[2] == pytest.approx(2, rel=0.1)
    R, tau = film.radius(1.0), 0.3
    new = film.jko(R, tau).requires_grad_()
    cost = film.energy(new) + (1 - R / new) ** 2 * film.second_moment(new) / (2 * tau)
    assert abs(torch.autograd.grad(cost, new)[0].item()) < 1e-14
    with pytest.raises(ValueError, match="tau"):
        film.jko(R, 0.0)
    with pytest.raises(ValueError, match="dim"):
        SmythHill(0)
