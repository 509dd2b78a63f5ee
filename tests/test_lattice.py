"""Lattices: an orthonormal involution that diagonalises every translation-invariant symmetric matrix."""

import math

import pytest
import torch

from otprox.lattice import Lattice

LATTICES = [Lattice(1), Lattice(5), Lattice(8, 0.5), Lattice((3, 4)), Lattice((4, 4), 2.0), Lattice((2, 3, 4))]


@pytest.mark.parametrize("lattice", LATTICES, ids=str)
def test_modes_are_an_orthonormal_involution(lattice):
    x = torch.randn(2, 3, lattice.sites, generator=torch.Generator().manual_seed(0))
    c = lattice.to_modes(x)
    torch.testing.assert_close(lattice.to_modes(c), x)
    torch.testing.assert_close(c.square().sum(-1), x.square().sum(-1))
    torch.testing.assert_close(lattice.from_modes(c), x)
    torch.testing.assert_close(lattice.reflect(lattice.reflect(x)), x)


@pytest.mark.parametrize("lattice", LATTICES, ids=str)
def test_the_laplacian_is_the_sum_of_second_differences(lattice):
    x = torch.randn(lattice.sites, generator=torch.Generator().manual_seed(1))
    field, want = x.reshape(lattice.shape), torch.zeros(lattice.shape)
    for axis in range(lattice.dim):
        want += (2 * field - field.roll(1, axis) - field.roll(-1, axis)) / lattice.spacing**2
    got = lattice.from_modes(lattice.laplacian(x) * lattice.to_modes(x))
    torch.testing.assert_close(got, want.flatten())
    torch.testing.assert_close(lattice.symbol(2.5, x), lattice.laplacian(x) + 2.5)


def test_modes_are_named_by_their_wave_vector():
    assert Lattice((3, 4)).mode_name(11) == "mode 11 of 12 (wave vector (-1, -1))"
    assert Lattice(4).mode_name(2) == "mode 2 of 4 (wave vector (2,))"


def test_wave_numbers_tend_to_the_continuum():
    errors = []
    for n in (64, 128):
        lattice = Lattice(n, 1.0 / n)
        p = lattice.wave_numbers(torch.zeros(1))[1, 0].item()
        assert p == pytest.approx(2 * math.pi)
        errors.append(abs(lattice.laplacian(torch.zeros(1))[1].item() - p**2))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.05)


def test_refusals():
    for shape in ((), (0,), (2, 2, 2, 2)):
        with pytest.raises(ValueError, match="one to three positive sizes"):
            Lattice(shape)
    with pytest.raises(ValueError, match="spacing"):
        Lattice(3, 0.0)
    with pytest.raises(ValueError, match="9 sites, not 8"):
        Lattice((3, 3)).to_modes(torch.zeros(8))
