"""Domains: displacements are shortest, wrapping is a projection that keeps gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from otprox import Box, Euclidean, Particles, Torus

numbers = st.floats(-1e3, 1e3)


def test_euclidean_leaves_everything_alone():
    x, y = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 7.0]])
    assert Euclidean().wrap(x) is x
    assert Euclidean().displacement(x, y).tolist() == [[0.5, -9.0]]


@given(x=numbers, y=numbers, period=st.floats(0.1, 100), turns=st.integers(-5, 5))
def test_torus(x, y, period, turns):
    domain = Torus(period)
    a, b = torch.tensor([[x]]), torch.tensor([[y]])
    wrapped = domain.wrap(a)
    assert 0 <= wrapped.item() < period
    assert torch.equal(domain.wrap(wrapped), wrapped)
    z = domain.displacement(a, b).item()
    assert abs(z) <= period / 2 * (1 + 1e-12) + 1e-9
    assert abs(math.remainder(x - y - z, period)) < 1e-9
    assert abs(math.remainder(wrapped.item() - x, period)) < 1e-9
    turned = domain.displacement(a + turns * period, b).item()
    assert abs(abs(turned) - abs(z)) < 1e-8
    assert domain.displacement(b, a).item() == pytest.approx(-z, abs=1e-9)


def test_torus_keeps_a_tiny_negative_point_below_the_period():
    for dtype in (torch.float32, torch.float64):
        x = torch.tensor([[-1e-30], [-0.0], [3.0]], dtype=dtype)
        assert Torus(3.0).wrap(x).flatten().tolist() == [0.0, 0.0, 0.0]


def test_torus_with_a_period_for_each_axis():
    x = torch.tensor([[1.5, 1.5]])
    assert Torus((1.0, 2.0)).wrap(x).tolist() == [[0.5, 1.5]]
    assert Torus((1.0, 4.0)).displacement(torch.tensor([[0.9, 0.0]]), torch.zeros(1, 2)).tolist()[0] == pytest.approx(
        [-0.1, 0]
    )


@given(x=numbers, lower=st.floats(-10, 10), width=st.floats(0.1, 20))
def test_box_reflects(x, lower, width):
    upper = lower + width
    domain = Box(lower, upper)
    a = torch.tensor([[x]])
    wrapped = domain.wrap(a)
    assert lower <= wrapped.item() <= upper
    assert torch.equal(domain.wrap(wrapped), wrapped)
    walls = [math.remainder(sign * (wrapped.item() - lower) - (x - lower), 2 * width) for sign in (1, -1)]
    assert min(map(abs, walls)) < 1e-9
    if lower <= x <= upper:
        assert wrapped.item() == x


def test_box_by_hand():
    x = torch.tensor([[-0.25, 5.0], [1.25, 1.0], [2.25, -4.0]])
    assert Box((0.0, -1.0), (1.0, 2.0)).wrap(x).tolist() == [[0.25, -1.0], [0.75, 1.0], [0.25, 2.0]]


@pytest.mark.parametrize("domain", [Torus(1.5), Box(0.0, 1.5)])
def test_wrapping_keeps_gradients(domain):
    """±1 everywhere, on the walls too."""
    x = torch.tensor([[-0.7], [0.0], [0.4], [1.5], [2.0], [7.7]], requires_grad=True)
    (g,) = torch.autograd.grad(domain.wrap(x).sum(), x)
    assert g.abs().flatten().tolist() == [1.0] * 6


@pytest.mark.parametrize("domain", [Torus(1.0), Box(0.0, 1.0)])
def test_wrapping_passes_nan_on(domain):
    assert domain.wrap(torch.tensor([[math.nan], [0.5]])).isnan().flatten().tolist() == [True, False]


def test_dtype_is_that_of_the_points():
    x = torch.tensor([[3.5]], dtype=torch.float32)
    for domain in (Torus(1.0), Box(0.0, 1.0)):
        assert domain.wrap(x).dtype == domain.displacement(x, x).dtype == torch.float32


@pytest.mark.parametrize("period", [0.0, -1.0, (1.0, 0.0), math.nan, math.inf])
def test_bad_periods(period):
    with pytest.raises(ValueError, match="period must be positive and finite"):
        Torus(period)


@pytest.mark.parametrize(
    ("lower", "upper"), [(1.0, 1.0), (2.0, 1.0), ((0.0, 0.0), 1.0), (0.0, math.nan), (-math.inf, 0.0)]
)
def test_bad_boxes(lower, upper):
    with pytest.raises(ValueError, match="lower must be below upper on every axis"):
        Box(lower, upper)


def test_a_domain_of_another_dimension_is_refused():
    with pytest.raises(ValueError, match="period has 2 entries, but the points live in dimension 3"):
        Particles(torch.zeros(4, 3), domain=Torus((1.0, 2.0)))
    with pytest.raises(ValueError, match="lower has 2 entries, but the points live in dimension 1"):
        Particles(torch.zeros(4, 1), domain=Box((0.0, 0.0), (1.0, 1.0)))


def test_particles_live_in_their_domain():
    mu = Particles(torch.tensor([[1.25], [-0.25]]), domain=Torus(1.0))
    assert mu.x.flatten().tolist() == [0.25, 0.75]
    assert mu.push(lambda x: x + 0.5).x.flatten().tolist() == [0.75, 0.25]
