"""Particles: what is refused, and densities carried along maps."""

from __future__ import annotations

import math

import pytest
import torch

from otprox import Particles


@pytest.mark.parametrize(
    ("x", "w", "message"),
    [
        ([1.0, 2.0], None, "shape"),
        ([[math.nan]], None, "finite"),
        ([[0.0], [1.0]], [-0.5, 1.5], "smallest is -0.5"),
        ([[0.0], [1.0]], [0.5, 0.6], "sum to 1, not 1.1"),
        ([[0.0], [1.0]], [0.5, math.inf], "finite"),
        ([[0.0], [1.0]], [0.5, 0.25, 0.25], "one entry a particle"),
        ([[0.0], [1.0]], [[0.5, 0.5]] * 3, "one entry a particle"),
        ([[[0.0], [1.0]]] * 2, [[0.5, 0.5]] * 3, "must broadcast"),
    ],
)
def test_bad_input_is_refused(x: list, w: list | None, message: str):
    with pytest.raises(ValueError, match=message):
        Particles(x, w)


def test_a_domain_that_is_not_one_is_refused():
    with pytest.raises(TypeError, match=r"Torus\(period\)"):
        Particles([[0.0]], domain=2.0)  # type: ignore[arg-type]


def test_weights_are_shared_by_a_batch():
    mu = Particles(torch.zeros(3, 2, 1), [0.25, 0.75])
    assert mu.w.tolist() == [[0.25, 0.75]] * 3


def test_push_carries_a_density_by_the_log_determinant():
    mu = Particles(torch.ones(5, 2), log_density=torch.zeros(5))
    want = torch.full((5,), -2 * math.log(3.0))
    for shape in ((5,), (1,), ()):
        nu = mu.push(lambda x, shape=shape: (3 * x, torch.full(shape, 2 * math.log(3.0))))
        torch.testing.assert_close(nu.log_density, want)


@pytest.mark.parametrize("shape", [(5, 1), (4,), (2, 5)])
def test_a_log_determinant_of_another_shape_is_refused(shape: tuple[int, ...]):
    mu = Particles(torch.ones(5, 2), log_density=torch.zeros(5))
    with pytest.raises(ValueError, match="log"):
        mu.push(lambda x: (x, torch.zeros(shape)))
