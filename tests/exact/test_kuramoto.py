"""Kuramoto–Daido: known numbers, Bessel functions, quadrature, brute minima, an independent spectrum."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from otprox.exact.kuramoto import Kuramoto, State, branch, hysteresis, second_transition, transition, triple_point


def approx(value: float, digits: int = 12) -> object:
    """Equal to a number printed with so many decimals."""
    return pytest.approx(value, abs=0.6 * 10**-digits)


R = {1.05: 0.303689343805638, 1.1: 0.413388513064383, 1.2: 0.544888986611909, 1.5: 0.724158717626353}
R |= {2.0: 0.831462024754257, 3.0: 0.90215277906496}
ENERGY = {1.1: -0.00899703499538591, 1.2: -0.0326915310425801, 1.5: -0.160064001564678, 2.0: -0.470215442331191}


@pytest.mark.parametrize("K", R)
def test_kuramoto_printed(K: float):
    assert Kuramoto(K).minimiser().r[0] == approx(R[K], 14)


@pytest.mark.parametrize("K", ENERGY)
def test_energy_printed(K: float):
    assert Kuramoto(K).minimiser().energy == approx(ENERGY[K], 14)


@pytest.mark.parametrize("K", [1.01, 1.7, 8.0, 300.0])
def test_kuramoto_by_bessel_functions(K: float):
    """r = I₁(2Kr)/I₀(2Kr), F_K(r) = Kr² − log I₀(2Kr)."""
    from scipy.special import ive

    state = Kuramoto(K).minimiser()
    r = state.r[0]
    assert r == pytest.approx(ive(1, 2 * K * r) / ive(0, 2 * K * r), rel=1e-12)
    assert state.energy == pytest.approx(K * r * r - math.log(ive(0, 2 * K * r)) - 2 * K * r, rel=1e-10, abs=1e-13)


@pytest.mark.parametrize("excess", [1e-4, 1e-6])
def test_onset_is_a_square_root(excess: float):
    assert Kuramoto(1 + excess).minimiser().r[0] == pytest.approx(math.sqrt(2 * excess), rel=excess + 1e-4)


def test_no_order_up_to_the_threshold():
    for K in (0.0, 0.3, 0.999, 1.0):
        (only,) = Kuramoto(K).stationary()
        assert only.uniform and only.energy == 0.0


@pytest.mark.parametrize(
    ("m", "K", "r1", "r2"),
    [
        (0.25, 1.5, 0.811851221808, 0.506201964715),
        (1.0, 1.0, 0.798199929365, 0.649775839740),
        (2.0, 1.0, 0.905035294359, 0.860251251021),
        (0.75, 1.0, 0.675840437288, 0.460461589306),
    ],
)
def test_daido_printed(m: float, K: float, r1: float, r2: float):
    assert Kuramoto(K, (1.0, m)).minimiser().r == (approx(r1), approx(r2))


def free_energy_of(q: Tensor, model: Kuramoto) -> float:
    """2(F(q) − F(1/2π)) by the trapezoidal rule from densities at equispaced angles."""
    n = len(q)
    theta = torch.arange(n) * (2 * math.pi / n)
    c = [(q * torch.cos(k * theta)).mean() * 2 * math.pi for k in range(1, len(model.a) + 1)]
    entropy = (q * (2 * math.pi * q).log()).mean() * 2 * math.pi
    return (entropy - model.K * sum(a * ck**2 for a, ck in zip(model.a, c, strict=True))).item()


models = st.builds(
    lambda K, a: Kuramoto(K, a), st.floats(0.2, 4.0), st.lists(st.floats(-1.5, 2.0), min_size=1, max_size=3)
)


@given(models)
def test_states_are_critical_and_have_their_energy(model: Kuramoto):
    theta = torch.arange(600) * (2 * math.pi / 600)
    for state in model.stationary():
        r = state.moments
        torch.testing.assert_close(model.moments(r), r, rtol=0, atol=1e-11)
        q = state.density(theta)
        assert q.mean().item() * 2 * math.pi == pytest.approx(1, abs=1e-12)
        assert state.energy == pytest.approx(free_energy_of(q, model), abs=1e-11)
        slope = torch.func.grad(model.free_energy)(r)
        torch.testing.assert_close(slope, torch.zeros_like(r), rtol=0, atol=1e-9)


@given(K=st.floats(0.2, 3.0), m=st.floats(0.0, 3.0))
def test_the_minimiser_is_below_a_grid_of_moments(K: float, m: float):
    model = Kuramoto(K, (1.0, m))
    line = torch.linspace(0, 1, 81)
    assert model.minimiser().energy <= model.free_energy(torch.cartesian_prod(line, line)).min().item() + 1e-14


def test_a_negative_second_harmonic_is_a_maximum_over_its_moment():
    """min over r_1 of max over r_2 of G, on a grid."""
    model = Kuramoto(2.0, (1.0, -1.0))
    line = torch.linspace(-1, 1, 201)
    G = model.free_energy(torch.stack(torch.meshgrid(line, line, indexing="ij"), -1))
    assert model.minimiser().energy == pytest.approx(G.amax(1).min().item(), abs=1e-4)


K_C = {
    0.55: (0.997472411041, 0.3108591059, 0.0990334927),
    0.6: (0.990851761113, 0.4100348342, 0.1765072499),
    0.75: (0.956214767285, 0.5393683853, 0.3293399068),
    1.0: (0.878211844072, 0.5800624669, 0.4497749379),
    1.25: (0.794901688514, 0.5098014334, 0.4826275740),
}


@pytest.mark.parametrize("m", K_C)
def test_discontinuous_transitions_printed(m: float):
    at = transition((1.0, m))
    assert not at.continuous and (at.K, *at.r) == (approx(K_C[m][0]), approx(K_C[m][1], 10), approx(K_C[m][2], 10))
    assert Kuramoto(at.K * (1 - 1e-6), (1.0, m)).minimiser().uniform
    assert Kuramoto(at.K * (1 + 1e-6), (1.0, m)).minimiser().r == pytest.approx(at.r, abs=1e-4)


@pytest.mark.parametrize(("m", "K"), [(0.0, 1.0), (0.25, 1.0), (0.5, 1.0), (1.5, 2 / 3), (2.0, 0.5), (-1.0, 1.0)])
def test_continuous_transitions(m: float, K: float):
    at = transition((1.0, m))
    assert at.continuous and at.K == pytest.approx(K, rel=1e-15)
    above = Kuramoto(K * (1 + 1e-6), (1.0, m)).minimiser()
    assert not above.uniform and max(above.r) < 0.05  # m = 1/2 is tricritical: (K − 1)^¼
    assert Kuramoto(K, (1.0, m)).minimiser().uniform
    assert above.symmetry == (2 if m > 1 else 1)


@given(st.lists(st.floats(0.1, 2.0), min_size=1, max_size=4))
def test_no_energy_is_negative_below_the_transition(a: list[float]):
    at = transition(a)
    r = torch.rand(400, len(a), generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert Kuramoto(at.K, a).free_energy(r).min() >= -1e-13
    assert at.K <= at.threshold == 1 / max(a)


@pytest.mark.parametrize("scale", [0.02, 1.0, 30.0])
def test_coefficients_and_coupling_scale_together(scale: float):
    at, want = transition([scale, 0.86 * scale, 0.9 * scale]), transition([1.0, 0.86, 0.9])
    assert at.K * scale == pytest.approx(want.K, rel=1e-12) and at.r == pytest.approx(want.r, abs=1e-9)
    assert not want.continuous and at.threshold == 1 / scale


def test_three_harmonics_jump_early():
    """Where K_c is far from what small moments say: the minimiser is not uniform from there on."""
    a = (0.23151707267886495, 0.1991227761024273, 0.20827462089655358)
    at = transition(a)
    assert not at.continuous and at.K < 0.85 * at.threshold
    assert Kuramoto(at.K * (1 - 1e-7), a).minimiser().uniform
    assert Kuramoto(at.K * (1 + 1e-7), a).minimiser().r == pytest.approx(at.r, abs=1e-4)


def test_a_single_higher_harmonic_is_kuramoto_again():
    """q(θ) → q(3θ): r_3 at (0, 0, a) is r at K a."""
    state = Kuramoto(0.75, (0.0, 0.0, 2.0)).minimiser()
    assert state.r == (approx(0.0), approx(0.0), approx(R[1.5], 13)) and state.symmetry == 3
    assert transition((0.0, 0.0, 2.0)).K == 0.5


def test_triple_point_printed():
    at = triple_point()
    assert 1 / at.K == pytest.approx(1.2672925042579543, rel=1e-14)
    assert (at.K, *at.r) == (approx(0.7890838118588386, 14), approx(0.4991345513489), approx(0.4814717983705))
    energy = Kuramoto(at.K, (1.0, 1 / at.K)).free_energy(torch.tensor(at.r))
    assert energy.item() == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize(("m", "continuous"), [(1.3, False), (1.5, False), (1.8, True), (4.0, True)])
def test_nematic_order_ends_at_a_second_transition(m: float, continuous: bool):
    at = second_transition(m)
    assert at.continuous == continuous and 1 / m < at.K <= at.threshold
    assert at.threshold * (1 + Kuramoto(at.threshold * m).minimiser().r[0]) == pytest.approx(1, abs=1e-13)
    assert Kuramoto(at.K * (1 - 1e-5), (1.0, m)).minimiser().symmetry == 2
    above = Kuramoto(at.K * (1 + 1e-5), (1.0, m)).minimiser()
    assert above.symmetry == 1 and above.r == pytest.approx(at.r, abs=0.03)
    nematic = State(Kuramoto(at.threshold * (1 - 1e-4), (1.0, m)), (0.0, Kuramoto(at.threshold * m).minimiser().r[0]))
    assert nematic.stable and not State(Kuramoto(at.threshold * (1 + 1e-4), (1.0, m)), nematic.r).stable


def test_the_second_transition_starts_at_the_triple_point():
    star = triple_point()
    at = second_transition(1 / star.K + 1e-7)
    assert (at.K, *at.r) == pytest.approx((star.K, *star.r), abs=1e-6)
    with pytest.raises(ValueError, match="for m = 1.2 the uniform state orders at once: m_\\* = 1.267293"):
        second_transition(1.2)


@pytest.mark.parametrize("m", [0.55, 1.0, 1.2])
def test_hysteresis_ends_where_the_ordered_state_does(m: float):
    low, high = hysteresis((1.0, m))
    assert low < transition((1.0, m)).K < high == 1 / max(1.0, m)
    assert all(state.uniform for state in Kuramoto(low - 1e-5, (1.0, m)).stationary())
    above = [state for state in Kuramoto(low + 1e-5, (1.0, m)).stationary() if not state.uniform]
    assert len(above) == 2 and sorted(state.stable for state in above) == [False, True]
    middle = Kuramoto((low + high) / 2, (1.0, m)).stationary()
    assert sum(state.stable for state in middle) == 2


def test_hysteresis_of_a_continuous_transition_is_empty():
    assert hysteresis((1.0, 0.2)) == (1.0, 1.0)


def test_a_branch_holds_stationary_states_on_both_sides_of_its_fold():
    at = transition((1.0, 0.75))
    curve = branch(State(Kuramoto(at.K, (1.0, 0.75)), at.r), (0.5, 1.0), forward=False)
    for row in curve[::7]:
        r = row[1:]
        torch.testing.assert_close(Kuramoto(row[0].item(), (1.0, 0.75)).moments(r), r, rtol=0, atol=1e-12)
    turn = int(curve[:, 0].argmin())
    assert 0 < turn < len(curve) - 1 and curve[-1, 0] > 0.999 and curve[-1, 1] < 0.1
    assert curve[turn, 0] == pytest.approx(hysteresis((1.0, 0.75))[0], abs=1e-4)


GAPS = {1.1: 0.1016652618138, 1.2: 0.2066434239234, 1.5: 0.5406662270554, 2.0: 1.148248419017, 3.0: 2.364326308241}


@pytest.mark.parametrize("K", GAPS)
def test_gaps_printed(K: float):
    assert Kuramoto(K).minimiser().gap == pytest.approx(GAPS[K], abs=2e-12)


def test_spectrum_printed():
    found = Kuramoto(1.5).minimiser().spectrum(4)
    want = torch.tensor([0.0, -0.5406662270554, -2.167709759740, -2.207514097219])
    torch.testing.assert_close(found, want, rtol=0, atol=2e-12)
    assert Kuramoto(1.5, (1.0, 8.568e-4)).minimiser().gap == pytest.approx(0.5405977478508, abs=2e-12)
    assert Kuramoto(1.5, (1.0, 0.25)).minimiser().gap == pytest.approx(0.5206793483785, abs=2e-12)


@pytest.mark.parametrize(("K", "a"), [(0.7, (1.0, 0.8)), (1.3, (1.0, 0.9, -0.5)), (2.0, (0.5, 0.25))])
def test_spectrum_at_the_uniform_state(K: float, a: tuple[float, ...]):
    model = Kuramoto(K, a)
    twice = model.uniform_eigenvalues(8).repeat_interleave(2).sort(descending=True).values
    torch.testing.assert_close(State(model, (0.0,) * len(a)).spectrum(6), twice[:6])


@pytest.mark.parametrize(("K", "a"), [(1.5, (1.0,)), (1.2, (1.0, 0.75)), (2.0, (1.0, -1.0)), (1.0, (1.0, 0.5, 0.25))])
def test_spectrum_by_rayleigh_quotients(K: float, a: tuple[float, ...]):
    """Independently: −λ of ⟨φ, AHAφ⟩ = −λ⟨φ, Aφ⟩, A = −∂(q∂), H = 1/(2q) − K W∗, symmetric in φ = cos, sin."""
    model = Kuramoto(K, a)
    state = model.minimiser()
    n, theta = 24, torch.arange(512) * (2 * math.pi / 512)
    q = state.density(theta)
    log_slope = sum(
        -2 * K * k * ak * r * torch.sin(k * theta) for k, (ak, r) in enumerate(zip(a, state.r, strict=True), 1)
    )
    k = torch.arange(1, n + 1)[:, None]
    slope = torch.cat([-k * torch.sin(k * theta), k * torch.cos(k * theta)])
    bend = torch.cat([-k * k * torch.cos(k * theta), -k * k * torch.sin(k * theta)])
    h = 2 * math.pi / 512
    u = -q * (bend + log_slope * slope)  # Aφ
    H = 0.5 * h * (u / q) @ u.T
    for j, aj in enumerate(a, 1):
        for wave in (torch.cos(j * theta), torch.sin(j * theta)):
            c = h * u @ wave
            H -= K * aj * c[:, None] * c
    L = torch.linalg.cholesky(h * (slope * q) @ slope.T)
    inverse = torch.linalg.inv(L)
    values = -torch.linalg.eigvalsh(inverse @ H @ inverse.T)[:5]
    torch.testing.assert_close(state.spectrum(5), values, rtol=1e-6, atol=1e-7)


def test_resolution_follows_the_sharpness_of_the_state():
    """At K = 400 a Gaussian of variance 1/(2K): r = 1 − 1/(4K) + …, and rates near those of Ornstein–Uhlenbeck, K."""
    state = Kuramoto(400.0).minimiser()
    assert state.r[0] == pytest.approx(1 - 1 / 1600, abs=1e-6)
    assert state.gap == pytest.approx(400.0, rel=0.01)


def test_what_is_refused():
    with pytest.raises(ValueError, match="K must be a finite number ≥ 0, not -1"):
        Kuramoto(-1.0)
    with pytest.raises(ValueError, match="K must be a finite number"):
        Kuramoto(math.nan)
    with pytest.raises(ValueError, match="coefficients must be finite"):
        Kuramoto(1.0, (1.0, math.inf))
    with pytest.raises(ValueError, match="at least one"):
        Kuramoto(1.0, ())
    with pytest.raises(ValueError, match="no coefficient is positive"):
        transition((-1.0, 0.0))
    with pytest.raises(ValueError, match="K_c with them is not covered"):
        transition((1.0, 1.0, -0.5))


def test_a_coefficient_alone_is_refused():
    with pytest.raises(TypeError, match=r"sequence \(a_1, a_2, …\) such as \(1.0, m\), not 0.5"):
        Kuramoto(1.0, 0.5)
