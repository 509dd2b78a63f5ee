"""The prox of local functionals in L2: the equation that it solves, closed forms, and what is declined."""

from __future__ import annotations

import pytest
import torch

from otprox import KL, Density, Entropy, Gaussian, Grid, Interaction, PorousMedium, Potential, Quadratic
from otprox.functionals import Functional
from otprox.functionals.euclidean_prox import EuclideanProx, not_convex_local

GRID = Grid(-1.0, 1.0, 40)
MU = Density(torch.full((40,), 0.5), GRID)
V = Potential(Quadratic([0.2]))
SUMS = [
    Entropy(),
    2.0 * Entropy() + V,
    PorousMedium(2.0),
    PorousMedium(3.5) + V,
    PorousMedium(0.5),
    PorousMedium(1.5),
    Entropy() + 0.5 * PorousMedium(4.0) + V,
    KL(Gaussian([0.1], [[0.3]])),
    0.3 * PorousMedium(0.7) + PorousMedium(2.0),
]


@pytest.mark.parametrize("F", SUMS, ids=str)
@pytest.mark.parametrize("s", [1e-3, 1.0, 50.0])
@pytest.mark.parametrize("near", [0.0, 1e-12, 1.0, 1e4])
def test_the_minimiser_is_stationary_or_zero(F: Functional, s: float, near: float):
    a = torch.linspace(-3.0, 5.0, 40)[None]
    w = torch.full((1, 1), 1.7)
    rho = EuclideanProx.of(F, MU, s)(a, w, torch.full_like(a, near))
    assert (rho >= 0).all()
    positive = rho > 0
    log_rho = rho.clamp_min(1e-300).log()
    phi = sum(c * f.local(log_rho, MU.points)[0] for c, f in F.terms)
    slope = s * phi + 1.7 * (rho - a)
    scale = 1 + s * phi.abs() + 1.7 * (rho + a.abs())
    assert (slope[positive].abs() <= 1e-10 * scale[positive]).all()
    assert (slope[~positive] >= -1e-10 * scale[~positive]).all()


def test_potentials_alone_shift_and_cut():
    a = torch.linspace(-1.0, 1.0, 40)[None]
    rho = EuclideanProx.of(V, MU, 2.0)(a, torch.ones(1, 1), a)
    torch.testing.assert_close(rho, (a - 2.0 * V.value(MU.points)).clamp_min(0))


def test_what_is_not_local_or_not_convex_is_named():
    assert not_convex_local(Entropy() + V, MU) is None
    assert "Interaction is not a function of x and ρ(x)" in str(
        not_convex_local(Interaction(lambda z: z.square().sum(-1)), MU)
    )
    assert "not convex in the density" in str(not_convex_local(-1.0 * Entropy(), MU))
    with pytest.raises(TypeError, match="not convex"):
        EuclideanProx.of(-0.1 * PorousMedium(2.0) + V, MU, 1.0)
    with pytest.raises(ValueError, match="not finite on 40 cells"):
        EuclideanProx.of(Potential(lambda x: x[..., 0] / 0.0), MU, 1.0)
