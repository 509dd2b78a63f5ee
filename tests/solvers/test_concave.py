"""Mobilities: their prox against optimality and a brute-force search, and the refusal of what is not concave."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from otprox.solvers import Concave, ConcaveMobility, Linear, Saturating

MOBILITIES: list[ConcaveMobility] = [
    Linear(),
    Saturating(),
    Saturating(2.5),
    Concave(torch.sqrt),
    Concave(lambda r: r / (1 + r)),
]


def settled(mobility: ConcaveMobility, b: Tensor, a: Tensor, weights: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The prox repeated from its own answer: `Linear` takes a few Newton steps a call."""
    rho = b.clamp(0, mobility.upper)
    for _ in range(12):
        rho, m = mobility.prox(b, a, weights, rho)
    return rho, m


@pytest.mark.parametrize("mobility", MOBILITIES, ids=lambda mobility: type(mobility).__name__)
def test_the_prox_is_the_best_of_a_fine_search(mobility: ConcaveMobility):
    draws = torch.randn(2, 40, generator=torch.Generator().manual_seed(1))
    b, a = 0.5 + draws[0], 2 * draws[1]
    weights = torch.tensor(0.7), torch.tensor(1.3)
    rho, m = settled(mobility, b, a, weights)
    assert (rho >= 0).all() and (rho <= mobility.upper).all()

    def value(r: Tensor, w: Tensor) -> Tensor:
        return w**2 / (2 * mobility(r)) + 0.35 * (r - b) ** 2 + 0.65 * (w - a) ** 2

    grid = torch.linspace(1e-6, min(mobility.upper, 8.0) - 1e-6, 20001)[:, None]
    k = 1.3 * mobility(grid)
    best = value(grid, a * k / (1 + k)).amin(0)
    at_zero = torch.where(m == 0, 0.35 * (rho - b) ** 2 + 0.65 * a**2, value(rho.clamp_min(1e-300), m))
    assert (at_zero <= best + 1e-6).all()


@settings(max_examples=60, deadline=None)
@given(
    b=st.floats(-50, 50),
    a=st.floats(-50, 50),
    stiff=st.floats(1e-3, 1e3),
    k=st.floats(1e-3, 1e3),
    near=st.floats(0, 10),
)
def test_the_linear_prox_solves_its_cubic_from_any_guess(b: float, a: float, stiff: float, k: float, near: float):
    """∂ρ: −m²/(2ρ²) + stiff·(ρ − b) = 0, ∂m: m/ρ + k·(m − a) = 0, where ρ > 0; else −½(k·a)² − stiff·b ≥ 0."""
    b_, a_, w, rho = torch.tensor(b), torch.tensor(a), (torch.tensor(stiff), torch.tensor(k)), torch.tensor(near)
    for _ in range(40):
        rho, m = Linear().prox(b_, a_, w, rho)
    slope = 0.5 * (k * a) ** 2
    if rho == 0:
        assert -slope - stiff * b >= -1e-9 * (1 + slope + stiff * abs(b)) and m == 0
    else:
        v = m.item() / rho.item()
        scale = slope + stiff * (abs(b) + rho.item())
        assert abs(-0.5 * v**2 + stiff * (rho.item() - b)) < 1e-8 * (1 + scale)
        assert abs(v + k * (m.item() - a)) < 1e-8 * (1 + k * abs(a))


def test_the_general_prox_agrees_with_the_cubic():
    draws = torch.randn(2, 200, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor(2.0), torch.tensor(0.4)
    found = settled(Linear(), draws[0], draws[1], weights)
    torch.testing.assert_close(
        settled(Concave(lambda r: 1.0 * r), draws[0], draws[1], weights), found, atol=1e-12, rtol=0
    )
    single = tuple(w.float() for w in weights)
    coarse = settled(Saturating(), draws[0].float(), draws[1].float(), single)
    fine = settled(Saturating(), draws[0], draws[1], weights)
    torch.testing.assert_close(tuple(x.double() for x in coarse), fine, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("power", [2.0, 3.0, 1.01])
def test_powers_above_one_are_refused_with_the_reason(power: float):
    with pytest.raises(ValueError, match="not concave.*jointly convex.*explicit steps"):
        Concave(lambda rho: rho**power)


def test_mobilities_need_sensible_values():
    with pytest.raises(ValueError, match="finite values ≥ 0"):
        Concave(lambda rho: -rho)
    with pytest.raises(ValueError, match="upper density"):
        Concave(lambda rho: rho, upper=0.0)
    with pytest.raises(ValueError, match="positive, finite upper"):
        Saturating(math.inf)
