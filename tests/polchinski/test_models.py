"""Models: values, gradients, closed forms of the free field, and potentials that are refused."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from otprox import Gaussian, Potential, Quadratic
from otprox.exact import polchinski as exact
from otprox.functionals.base import differentiate
from otprox.lattice import Lattice
from otprox.measures.spectral import Spectral
from otprox.polchinski import FreeField, HeatKernel, Phi4, SineGordon
from otprox.polchinski.models import gradient_of

A = torch.tensor([[0.5, 0.2, 0], [0.2, 1, 0], [0, 0, 2]])
B = torch.tensor([1, 0, -0.5])
RING = torch.tensor([[3.0, -1, -1], [-1, 3, -1], [-1, -1, 3]])
SEEDS = st.integers(0, 10**6)


BOX = Lattice((3, 1), spacing=0.5)

MODELS = [
    FreeField(A, B, constant=0.3),
    Phi4(1.3, -0.7),
    SineGordon(0.8, 1.7),
    Phi4(1.3, -0.7, BOX),
    SineGordon(0.8, 1.7, BOX),
]


def fields(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("V0", MODELS, ids=lambda V: type(V).__name__)
def test_gradients_and_shapes(V0):
    phi = fields(0, 2, 5, 3)
    assert V0(phi).shape == (2, 5)
    torch.testing.assert_close(V0.gradient(phi), differentiate(V0, phi, "V0"))
    torch.testing.assert_close(gradient_of(lambda x: V0(x), phi), V0.gradient(phi))


def test_values():
    phi = torch.tensor([[1.0, 2.0, -1.0]])
    assert Phi4(2.0, 3.0)(phi).item() == pytest.approx(0.5 * 18 + 1.5 * 6)
    assert Phi4(2.0, 3.0, BOX)(phi).item() == pytest.approx(0.25 * (0.5 * 18 + 1.5 * 6))
    assert SineGordon(2.0, 0.0)(phi).item() == 6.0
    assert FreeField(A, B)(phi).item() == pytest.approx(0.5 * (0.5 + 4 + 2 + 0.8) - 1.5)
    assert not FreeField(A)(torch.zeros(1, 3)).any()


@given(SEEDS, st.floats(0.01, 3.0))
def test_renormalised_free_field(seed: int, t: float):
    m = fields(seed, 3, 3)
    C = HeatKernel(m @ m.mT + 0.4 * torch.eye(3))(t)
    closed, field = exact.FreeField(A, B), FreeField(A, B, constant=0.3).renormalise(C)
    phi = fields(seed + 1, 4, 3)
    torch.testing.assert_close(field.A, closed.precision(C), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(field(phi), closed.potential(C, phi) + 0.3, rtol=1e-10, atol=1e-12)


def test_renormalisation_composes():
    """V_t from V_s by C_t − C_s."""
    C, field = HeatKernel(RING), FreeField(A - 0.8 * torch.eye(3), B, constant=0.3)
    twice, once = field.renormalise(C(0.4)).renormalise(C.increment(0.4, 1.1)), field.renormalise(C(1.1))
    phi = fields(0, 4, 3)
    torch.testing.assert_close(twice(phi), once(phi), rtol=1e-12, atol=1e-12)


def test_a_free_field_from_a_quadratic():
    V = Quadratic([0.3, -1.0, 0.2], precision=A, constant=0.7)
    phi = fields(0, 4, 3)
    torch.testing.assert_close(FreeField.of(V)(phi), V(phi))


def test_a_free_field_is_integrated_exactly_on_gaussians():
    mu, field = Gaussian([0.3, -0.2, 0.1], RING), FreeField(A, B, constant=0.3)
    V = Quadratic(torch.linalg.solve(A, B), precision=A)
    shift = V(torch.zeros(1, 3))[0] - 0.3
    torch.testing.assert_close(Potential(field)(mu), Potential(V)(mu) - shift)
    torch.testing.assert_close(Potential(field).bures_gradient(mu), Potential(V).bures_gradient(mu))


def test_a_spectral_free_field_is_the_dense_one():
    box = Lattice((3, 4))
    A = Spectral(box.laplacian(torch.zeros(())) + 0.4, box)
    C, b, phi = HeatKernel(Spectral(A.values + 0.3, box))(0.6), fields(0, 12), fields(1, 2, 5, 12)
    fast, slow = FreeField(A, b), FreeField(A.dense(), b)
    torch.testing.assert_close(fast(phi), slow(phi))
    torch.testing.assert_close(fast.gradient(phi), slow.gradient(phi))
    torch.testing.assert_close(fast.renormalise(C)(phi), slow.renormalise(C.dense())(phi))
    mean, cov = fields(2, 12), C
    value, slope, hessian = fast.moments(mean, cov)
    for a, b in zip((value, slope, hessian.dense()), slow.moments(mean, cov.dense()), strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip((value, slope, hessian.dense()), fast.moments(mean, cov.dense()), strict=True):
        torch.testing.assert_close(a, b)


def test_models_know_the_cell_of_a_lattice():
    box = Lattice((2, 3), spacing=0.5)
    phi = fields(0, 4, 6)
    torch.testing.assert_close(Phi4(1.0, 1.0, box)(phi), 0.25 * Phi4(1.0, 1.0)(phi))


# Bad input


@pytest.mark.parametrize(("g", "mu"), [(-0.1, 1.0), (0.0, -0.5), (-1.0, -1.0)])
def test_phi4_unbounded_below(g: float, mu: float):
    with pytest.raises(ValueError, match=f"unbounded below for g = {g:g}, mu = {mu:g}"):
        Phi4(g, mu)


def test_phi4_without_interaction_is_allowed():
    assert not Phi4(0.0, 0.0)(torch.ones(1, 2)).any()


@pytest.mark.parametrize("make", [lambda: Phi4(float("nan"), 1.0), lambda: SineGordon(float("inf"), 1.0)])
def test_couplings_must_be_finite(make):
    with pytest.raises(ValueError, match="must be finite"):
        make()


def test_an_unstable_free_field_names_the_mode():
    """A + C_∞⁻¹ = A + M: stable exactly while A ≻ −M, whose smallest eigenvalue is 1 on the ring."""
    limit = HeatKernel(RING).limit
    FreeField(-0.99 * torch.eye(3)).check_limit(limit)
    with pytest.raises(ValueError, match=r"I \+ C\^½AC\^½ .* is indefinite: mode 0 of 3 .*eigenvalue -0.01"):
        FreeField(-1.01 * torch.eye(3)).check_limit(limit)


@pytest.mark.parametrize("V0", [FreeField(A, B), Phi4(1.0, 1.0, BOX), SineGordon(1.0, 1.0, BOX)])
def test_fields_on_other_lattices_are_refused(V0):
    with pytest.raises(ValueError, match=f"this {type(V0).__name__} lives on 3 sites, the fields on 4"):
        V0(torch.zeros(1, 4))


def test_b_has_the_size_of_a():
    with pytest.raises(ValueError, match=r"b must have shape \(3,\)"):
        FreeField(A, [1.0, 2.0])
    with pytest.raises(ValueError, match="symmetric"):
        FreeField(A + torch.eye(3).roll(1, 0))
