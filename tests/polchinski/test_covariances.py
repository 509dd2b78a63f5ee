"""Covariance families: their calculus, their errors, and the metric that moves with them."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from otprox import KL, Backward, Gaussian, Heat, Moving
from otprox.exact import polchinski as exact
from otprox.lattice import Lattice
from otprox.measures.spectral import Spectral
from otprox.polchinski import Family, HeatKernel, PauliVillars

RING = torch.tensor([[3.0, -1, -1], [-1, 3, -1], [-1, -1, 3]])
FAMILIES = [HeatKernel, PauliVillars]
SEEDS, TIMES = st.integers(0, 10**6), st.floats(0.02, 3.0)


def spd(seed: int, n: int = 3) -> Tensor:
    a = torch.randn(n, n, generator=torch.Generator().manual_seed(seed))
    return a @ a.mT + 0.3 * torch.eye(n)


@pytest.mark.parametrize("family", FAMILIES)
@given(SEEDS, TIMES, TIMES)
def test_calculus_of_families(family, seed: int, s: float, lag: float):
    C, t = family(spd(seed)), s + lag
    torch.testing.assert_close(C(t) - C(s), C.increment(s, t), rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(C(t) + C.remaining(t), C.limit, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(C.limit @ C.M, torch.eye(3), rtol=0, atol=1e-10)
    h = 1e-3 * s
    slope = (8 * (C(s + h) - C(s - h)) - (C(s + 2 * h) - C(s - 2 * h))) / (12 * h)
    torch.testing.assert_close(C.rate(s), slope, rtol=1e-7, atol=1e-9)


@given(SEEDS, TIMES)
def test_heat_kernel_is_the_integral_of_exponentials(seed: int, t: float):
    M = spd(seed)
    C = HeatKernel(M)
    torch.testing.assert_close(C.rate(t), torch.linalg.matrix_exp(-t * M), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(C(t), torch.linalg.solve(M, torch.eye(3) - C.rate(t)), rtol=1e-8, atol=1e-10)


@given(SEEDS, TIMES)
def test_pauli_villars_is_the_regularised_inverse(seed: int, t: float):
    M = spd(seed)
    torch.testing.assert_close(PauliVillars(M)(t), torch.linalg.inv(M + torch.eye(3) / t), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("family", FAMILIES)
def test_ends_of_time(family):
    C = family(RING)
    assert not C(0.0).any()
    torch.testing.assert_close(C(math.inf), C.limit)
    assert not C.remaining(math.inf).any()
    torch.testing.assert_close(C.remaining(0.0), C.limit)
    torch.testing.assert_close(C.rate(0.0), torch.eye(3))


@pytest.mark.parametrize("family", FAMILIES)
def test_increments_do_not_cancel(family):
    """At late times C_t − C_s is far below the rounding of C_t."""
    C = family([[2.0]])
    s, t = (20.0, 20.5) if family is HeatKernel else (1e9, 2e9)
    expected = math.exp(-40) * -math.expm1(-1) / 2 if family is HeatKernel else 1e9 / ((2e9 + 1) * (4e9 + 1))
    assert C.increment(s, t).item() == pytest.approx(expected, rel=1e-12)


def test_a_number_is_one_site_and_the_dtype_is_kept():
    assert HeatKernel(2.0)(0.5).shape == (1, 1)
    assert HeatKernel(RING.float())(0.5).dtype == torch.float32
    assert PauliVillars(RING.float()).rate(torch.tensor(0.5)).dtype == torch.float32


def test_families_are_differentiable_in_time():
    t = torch.tensor(0.7, requires_grad=True)
    C = HeatKernel(RING)
    (slope,) = torch.autograd.grad(C(t)[0, 1], t)
    torch.testing.assert_close(slope, C.rate(0.7)[0, 1])


# A user's own


def own(**options) -> Family:
    return Family(lambda t: t * RING + torch.sin(torch.as_tensor(t)) * torch.eye(3), **options)


def test_own_family_by_automatic_differentiation_or_given():
    expected = RING + math.cos(0.3) * torch.eye(3)
    torch.testing.assert_close(own().rate(0.3), expected)
    torch.testing.assert_close(own(rate=lambda t: RING + math.cos(t) * torch.eye(3)).rate(0.3), expected)
    torch.testing.assert_close(own().increment(0.1, 0.4), 0.3 * RING + (math.sin(0.4) - math.sin(0.1)) * torch.eye(3))


def test_own_family_with_a_limit():
    C = Family(lambda t: t * RING, limit=RING, times=(0.0, 1.0))
    torch.testing.assert_close(C.remaining(0.25), 0.75 * RING)
    assert not C.remaining(1.0).any()
    with pytest.raises(ValueError, match="does not know its limit"):
        Family(lambda t: t * RING).remaining(0.5)


def test_own_family_past_its_limit():
    C = Family(lambda t: t * RING, limit=0.5 * RING)
    with pytest.raises(ValueError, match=r"C_t exceeds its limit at t = 0.75: limit − C_t is indefinite: mode 0 of 3"):
        C.remaining(0.75)


def test_own_family_not_written_in_torch():
    C = Family(lambda t: float(t) * RING)
    with pytest.raises(TypeError, match="automatic derivative of C at t = 0.5 is 0: write C in torch, or pass rate="):
        C.rate(0.5)
    torch.testing.assert_close(Family(lambda t: float(t) * RING, lambda t: RING).rate(0.5), RING)


# On lattices


def lattice(*shape: int, mass2: float = 0.5) -> Spectral:
    box = Lattice(shape)
    return Spectral(box.laplacian(torch.zeros(())) + mass2, box)


@pytest.mark.parametrize("shape", [(5,), (4, 6), (2, 3, 4)])
@pytest.mark.parametrize("family", FAMILIES)
def test_spectral_families_are_the_dense_ones(family, shape):
    fast = family(lattice(*shape))
    C = family(fast.M.dense())
    for t in (0.2, 1.3):
        torch.testing.assert_close(fast(t).dense(), C(t))
        torch.testing.assert_close(fast.rate(t).dense(), C.rate(t))
        torch.testing.assert_close(fast.remaining(t).dense(), C.remaining(t))
    torch.testing.assert_close(fast.increment(0.2, 1.3).dense(), C.increment(0.2, 1.3))
    torch.testing.assert_close(fast.limit.dense(), C.limit)


def test_spectral_rates_keep_every_scale():
    """Rates from 1 to e^{−250}, which no dense matrix can hold."""
    rate = HeatKernel(lattice(8, 8)).rate(30.0)
    assert rate.values.min() > 0
    assert rate.values.min() / rate.values.max() < 1e-100


def test_own_spectral_family():
    M = lattice(4, 4)
    C = Family(lambda t: t * M + (t * t) * M, limit=2.5 * M)
    torch.testing.assert_close(C.rate(torch.tensor(0.5)).values, 2 * M.values)
    torch.testing.assert_close(C.remaining(1.0).values, 0.5 * M.values)


def test_a_falling_spectral_family_names_the_wave():
    M = lattice(4, 6, mass2=-0.3)
    with pytest.raises(
        ValueError, match=r"M is indefinite: mode 0 of 24 \(wave vector \(0, 0\)\) has the eigenvalue -0.3"
    ):
        HeatKernel(M)
    M = lattice(4, 6)
    falling = Family(lambda t: t * (M.with_values(torch.full((24,), 7.6)) - M))
    with pytest.raises(ValueError, match=r"does not increase at t = 0.5: Ċ is indefinite: .*wave vector \(2, 3\)"):
        falling.rate(0.5)


def test_a_massless_lattice_names_the_zero_mode():
    with pytest.raises(ValueError, match=r"M is singular: mode 0 of 16 \(wave vector \(0, 0\)\)"):
        PauliVillars(lattice(4, 4, mass2=0.0))


# Errors


def test_c_that_does_not_increase_names_the_mode():
    falling = Family(lambda t: torch.eye(2) + t * torch.tensor([[1.0, 0], [0, -0.3]]))
    with pytest.raises(
        ValueError, match=r"does not increase at t = 0.5: Ċ is indefinite: mode 0 of 2 .*eigenvalue -0.3"
    ):
        falling.rate(0.5)
    with pytest.raises(ValueError, match=r"does not increase from t = 0 to 0.5: .* indefinite: mode 0 of 2"):
        falling.increment(0.0, 0.5)


def test_singular_rate_names_the_mode():
    flat = Family(lambda t: t * torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"Ċ is singular: mode 0 of 2 \(eigenvector \[.*0.707"):
        flat.rate(0.5)


def test_rate_singular_to_rounding_names_the_mode():
    with pytest.raises(ValueError, match=r"Ċ at t = 50 is singular: mode 2 of 3"):
        HeatKernel(torch.diag(torch.tensor([1.0, 2.0, 3.0]))).rate(50.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_times_outside(family):
    C = family(RING)
    for ask in (C, C.rate, C.remaining):
        with pytest.raises(ValueError, match=rf"t = -0.1 is outside the times \[0, inf\] of {family.__name__}"):
            ask(-0.1)
    with pytest.raises(ValueError, match="s < t"):
        C.increment(0.5, 0.5)
    with pytest.raises(ValueError, match=r"t = 2 is outside the times \[0, 1\] of Family"):
        Family(lambda t: t * RING, times=(0.0, 1.0))(2.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_m_must_be_positive_definite(family):
    with pytest.raises(ValueError, match=r"M is singular: mode 0 of 3"):
        family(RING - torch.eye(3))
    with pytest.raises(ValueError, match=r"M is indefinite: mode 0 of 3 .*eigenvalue -1"):
        family(RING - 2 * torch.eye(3))
    with pytest.raises(ValueError, match="symmetric matrix"):
        family(torch.ones(3))
    with pytest.raises(ValueError, match="symmetric"):
        family(torch.tensor([[1.0, 0.5], [0.0, 1.0]]))


# The metric that moves with a family


@pytest.mark.parametrize("rule", ["end", "average"])
@pytest.mark.parametrize("family", FAMILIES)
def test_moving_takes_the_rate_of_a_family(family, rule):
    C = family(RING)
    Q = Moving(C, rule=rule).over(0.2, 0.5).Q
    torch.testing.assert_close(Q, C.rate(0.5) if rule == "end" else C.increment(0.2, 0.5) / 0.3)
    torch.testing.assert_close(Q, Moving(lambda t: C(t), rule=rule).over(0.2, 0.5).Q, rtol=1e-9, atol=1e-12)


def test_moving_prefers_a_rate_that_is_given():
    Q = Moving(HeatKernel(RING), rate=lambda t: 2 * torch.eye(3)).over(0.2, 0.5).Q
    torch.testing.assert_close(Q, 2 * torch.eye(3))


@pytest.mark.parametrize("rule", ["end", "average"])
@pytest.mark.parametrize("family", FAMILIES)
def test_jko_step_in_the_moving_metric(family, rule):
    C, mu = family(RING), Gaussian([0.3, -0.2, 0.1], spd(4))
    pi = exact.free_reference(C.remaining(0.5))
    step = Backward(0.5 * KL(pi), Moving(C, rule=rule))(mu, 0.2, 0.5).mu
    expected = exact.form_a(mu, C, 0.2, 0.5, rule)
    torch.testing.assert_close(step.mean, expected.mean, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(step.cov, expected.cov, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rule", ["end", "average"])
@pytest.mark.parametrize("family", FAMILIES)
def test_jko_step_on_a_lattice(family, rule):
    """64 × 64 sites, mode by mode, without a matrix."""
    M = lattice(64, 64)
    C, mean = family(M), torch.randn(4096, generator=torch.Generator().manual_seed(0))
    mu = Gaussian(mean, M.with_values(1 / (1 + M.values)))
    D = C.remaining(0.25)
    step = Backward(0.5 * KL(Gaussian(0 * mean, 0.5 * D)), Moving(C, rule=rule))(mu, 0.2, 0.25).mu
    q = C.rate(0.25) if rule == "end" else C.increment(0.2, 0.25) / 0.05
    modes, variance = exact.form_a_modes(M.lattice.to_modes(mean), mu.cov.values, D.values, q.values, 0.05)
    torch.testing.assert_close(M.lattice.to_modes(step.mean), modes, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(step.cov.values, variance, rtol=1e-9, atol=1e-12)


def test_heat_in_the_moving_metric_adds_the_increment():
    C, mu = HeatKernel(RING), Gaussian([0.3, -0.2, 0.1], spd(4))
    new = Heat(0.5, Moving(C))(mu, 0.2, 0.5).mu
    torch.testing.assert_close(new.cov, mu.cov + C.increment(0.2, 0.5))


def test_steps_refuse_a_family_that_falls():
    falling = Family(lambda t: torch.eye(2) - 0.5 * t * torch.eye(2))
    with pytest.raises(ValueError, match="does not increase at t = 0.5"):
        Backward(KL(Gaussian([0.0, 0.0], torch.eye(2))), Moving(falling))(Gaussian([0.0, 0.0], torch.eye(2)), 0.4, 0.5)


@pytest.mark.parametrize("family", [HeatKernel, PauliVillars])
def test_principal_coordinates(family):
    """C_t is diagonal in η = φU, and the same matrix."""
    M = torch.tensor([[2.0, -1.0, 0.0], [-1.0, 3.0, 0.5], [0.0, 0.5, 1.5]])
    C, (D, U) = family(M), family(M).principal()
    assert type(D) is family
    for matrix, diagonal in ((C(0.4), D(0.4)), (C.rate(0.4), D.rate(0.4)), (C.increment(0.1, 2), D.increment(0.1, 2))):
        torch.testing.assert_close(U @ diagonal @ U.mT, matrix)
        assert not (diagonal - torch.diag(diagonal.diagonal())).any()
    with pytest.raises(TypeError, match=r"dense M: pass M.dense\(\)"):
        family(Spectral(torch.ones(3), Lattice(3))).principal()
