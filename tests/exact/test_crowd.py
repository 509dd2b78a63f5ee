"""The queue on the line: mass, density, and that it solves the flow."""

from __future__ import annotations

import pytest
import torch

from otprox.exact.diffusion import queue_flow


@pytest.mark.parametrize(("density", "bound"), [(0.25, 1.0), (0.3, 0.5)])
def test_they_walk_or_stand(density, bound):
    """In order, at speed 1 or at rest at the bound; the block has half-width t·density/(bound − density)."""
    half, t = 0.5 / density, 0.4
    x = torch.linspace(-half, half, 2001)
    new = queue_flow(x, t, density, bound)
    assert (new.diff() > 0).all()
    rho = density * x.diff() / new.diff()
    block = t * density / (bound - density)
    inner, outer = new[1:].abs() < block - 1e-2, new[1:].abs() > block + 1e-2
    torch.testing.assert_close(rho[inner], torch.full_like(rho[inner], bound))
    torch.testing.assert_close(rho[outer], torch.full_like(rho[outer], density))
    speed = (queue_flow(x, t + 1e-6, density, bound) - new).abs() / 1e-6
    torch.testing.assert_close(speed[1:][outer], torch.ones_like(rho[outer]), rtol=0, atol=1e-6)
    assert speed[1:][inner].max() < 1e-9


def test_a_density_beyond_the_bound_is_refused():
    with pytest.raises(ValueError, match="bound 1"):
        queue_flow(torch.zeros(3), 0.1, density=1.5)
