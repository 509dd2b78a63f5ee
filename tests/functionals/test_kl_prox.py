"""The pointwise KL prox: its equation, closed forms, minimality, and the Wright function behind it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from otprox import KL, Congestion, Density, Entropy, Functional, Gaussian, Grid, Interaction, PorousMedium, Potential
from otprox.functionals.local_prox import LocalProx, wright_omega

GRID = Grid(-2.0, 2.0, 400)
MU = Density(torch.full((400,), 0.25, dtype=torch.float64), GRID)
LOG_A = torch.linspace(-600.0, 600.0, 400, dtype=torch.float64)


def well(x: Tensor) -> Tensor:
    return (x.square() - 1).square().sum(-1)


FUNCTIONALS = {
    "entropy": Entropy(),
    "potential": Potential(well),
    "KL": KL(well),
    "KL to a Gaussian": KL(Gaussian([0.3], [[0.5]])),
    "weighted": 0.1 * Entropy() + 3 * Potential(well),
    "m = 2": PorousMedium(2.0),
    "m = 3/2": 0.01 * PorousMedium(1.5),
    "m = 4 in a well": 5 * PorousMedium(4.0) + Potential(well),
    "m = 1/2": PorousMedium(0.5),
    "m = 0.9 in a well": PorousMedium(0.9) + Potential(well),
    "m = 1.001": PorousMedium(1.001),
    "m = 2, 3 and entropy": PorousMedium(2.0) + 0.2 * PorousMedium(3.0) + 0.5 * Entropy() + Potential(well),
    "m = 1/2 and 2": PorousMedium(0.5) + PorousMedium(2.0),
}


def first_variation(F: Functional, log_b: Tensor) -> Tensor:
    return sum(c * f.local(log_b, MU.points)[0] for c, f in F.terms)


@pytest.mark.parametrize("F", FUNCTIONALS.values(), ids=FUNCTIONALS.keys())
@pytest.mark.parametrize("s", [1e-3, 0.7, 40.0, 1e4])
def test_solves_its_equation(F: Functional, s: float):
    log_b = F.kl_prox(MU, LOG_A, s)
    assert log_b.shape == LOG_A.shape and torch.isfinite(log_b).all()
    # the slope of the left side is the amplification of a rounding error of log b
    value, slope = first_variation(F, log_b), sum(c * f.local(log_b, MU.points)[1] for c, f in F.terms)
    scale = (1 + s * slope) * (1 + log_b.abs()) + s * value.abs() + LOG_A.abs() + s * well(MU.points).abs()
    assert ((log_b + s * value - LOG_A).abs() <= 1e-13 * scale).all()


@pytest.mark.parametrize("m", [0.4, 0.8, 1.3, 2.0, 5.0])
@pytest.mark.parametrize("s", [0.1, 3.0])
def test_minimises_at_every_cell(m: float, s: float):
    """s·(bᵐ/(m − 1) + bV) + b log(b/a) − b + a is convex in b; larger on either side of the prox."""
    log_a, V = torch.linspace(-8.0, 8.0, 400), well(MU.points)
    b = (PorousMedium(m) + Potential(well)).kl_prox(MU, log_a, s).exp()

    def objective(b: Tensor) -> Tensor:
        return s * (b**m / (m - 1) + b * V) + b * (b.log() - log_a) - b + log_a.exp()

    for factor in (0.999, 1.001, 0.5, 2.0):
        assert (objective(factor * b) >= objective(b) - 1e-14 * objective(b).abs()).all()
    assert (objective(0.99 * b) > objective(b)).any()


def test_m_equal_to_two_by_the_lambert_function():
    from scipy.special import lambertw

    s, log_a = 0.8, torch.linspace(-20.0, 20.0, 400)
    b = lambertw((2 * s * log_a.exp()).numpy()).real / (2 * s)  # log b + 2sb = log a
    torch.testing.assert_close(PorousMedium(2.0).kl_prox(MU, log_a, s).exp(), torch.from_numpy(b), rtol=1e-13, atol=0)


@pytest.mark.parametrize("s", [0.01, 2.0, 300.0])
def test_affine_functionals_in_closed_form(s: float):
    V = well(MU.points)
    torch.testing.assert_close(Potential(well).kl_prox(MU, LOG_A, s), LOG_A - s * V, rtol=1e-14, atol=1e-12)
    expected = (LOG_A - s * (V + 1)) / (1 + s)  # the first variation of the entropy is log b + 1
    torch.testing.assert_close(KL(well).kl_prox(MU, LOG_A, s), expected, rtol=1e-13, atol=1e-12)


def test_a_power_law_takes_one_step_and_a_check():
    calls = []

    class Counting:
        def local(self, log_rho: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            calls.append(1)
            return PorousMedium(2.5).local(log_rho, x)

    one = torch.ones(400)
    prox = LocalProx(one, well(MU.points), None, ((3.0, Counting()),), MU.points, "counting", 1.0)
    prox(LOG_A)
    assert len(calls) == 2


def test_batches_and_float32_follow_the_input():
    batch = Density(torch.full((3, 400), 0.25, dtype=torch.float64), GRID)
    log_a = torch.linspace(-30, 30, 1200).reshape(3, 400)
    F = PorousMedium(2.0) + KL(well)
    together = F.kl_prox(batch, log_a, 0.5)
    for item, row in zip(together, log_a, strict=True):
        torch.testing.assert_close(item, F.kl_prox(MU, row, 0.5), rtol=1e-13, atol=1e-13)
    single = Density(torch.full((400,), 0.25, dtype=torch.float32), GRID)
    low = F.kl_prox(single, log_a[0].float(), 0.5)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low.double(), together[0], rtol=1e-5, atol=1e-4)


def test_what_has_no_prox_says_why():
    with pytest.raises(TypeError, match="Interaction has no KL prox"):
        (Interaction(lambda z: z.square().sum(-1)) + Entropy()).kl_prox(MU, LOG_A, 1.0)
    with pytest.raises(ValueError, match="not convex"):
        (-2 * Entropy()).kl_prox(MU, LOG_A, 1.0)
    with pytest.raises(ValueError, match="not finite on 400 cells"):
        Potential(lambda x: x[..., 0] * math.inf).kl_prox(MU, LOG_A, 1.0)
    with pytest.raises(ValueError, match="found no root"):
        (-1 * PorousMedium(2.0)).kl_prox(MU, LOG_A, 1.0)


def test_a_concave_entropy_weaker_than_the_kl_is_allowed():
    torch.testing.assert_close((-0.5 * Entropy()).kl_prox(MU, LOG_A, 1.0), (LOG_A + 0.5) / 0.5)


@given(z=st.floats(-700, 1e5))
def test_wright_omega(z: float):
    from scipy.special import wrightomega

    value = wright_omega(torch.tensor([z], dtype=torch.float64)).item()
    assert value == pytest.approx(float(wrightomega(z)), rel=1e-14, abs=1e-300)


def test_wright_omega_on_a_fine_line():
    z = torch.linspace(-20, 20, 100_001)
    w = wright_omega(z)
    assert ((w + w.log() - z).abs() <= 1e-14 * (1 + z.abs()) + 4e-15 * (1 + w)).all()


@pytest.mark.parametrize("F", [Potential(well), KL(well) + PorousMedium(2.0)], ids=["potential", "sum"])
def test_congestion_cuts_the_prox_off_at_its_bound(F: Functional):
    """The lesser of the bound and of the prox without it; it minimises among b ≤ bound, cell by cell."""
    free, bound = F.kl_prox(MU, LOG_A, 0.7), 3.0
    cut = (F + Congestion(bound)).kl_prox(MU, LOG_A, 0.7)
    torch.testing.assert_close(cut, free.clamp_max(math.log(bound)))
    assert (cut < math.log(bound)).any() and (cut == math.log(bound)).any()
    tighter = (F + 2 * Congestion(bound) + Congestion(2.0)).kl_prox(MU, LOG_A, 0.7)
    torch.testing.assert_close(tighter, free.clamp_max(math.log(2.0)))
    with pytest.raises(ValueError, match="must not be negative"):
        (F - Congestion(bound)).kl_prox(MU, LOG_A, 0.7)
