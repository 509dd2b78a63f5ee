"""Renormalised potentials: every route against quadrature and closed forms, error bars, semigroup, the equation."""

from __future__ import annotations

import math
import warnings

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from otprox import Potential, Quadratic
from otprox.exact import polchinski as exact
from otprox.functionals.base import differentiate
from otprox.lattice import Lattice
from otprox.measures.spectral import Spectral
from otprox.polchinski import (
    AtScale,
    BesselSeries,
    ClosedForm,
    Fluctuations,
    FreeField,
    HeatKernel,
    HermiteSites,
    Importance,
    PauliVillars,
    Phi4,
    RenormalisedPotential,
    SineGordon,
)
from otprox.solvers.base import ConvergenceWarning

ONE = torch.ones(1, 1)
PAIR = HeatKernel(torch.tensor([[2.0, -1], [-1, 2]]))
RING = HeatKernel(torch.tensor([[3.0, -1, -1], [-1, 3, -1], [-1, -1, 3]]))
FIELD = FreeField(torch.tensor([[0.5, 0.2, 0], [0.2, 1, 0], [0, 0, 2]]), torch.tensor([1, 0, -0.5]))
CORNERS = torch.tensor([[0.0, 0], [1, 1], [1, -1]])


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spectral(*shape: int, mass2: float = 1.0) -> Spectral:
    lattice = Lattice(shape)
    return Spectral(lattice.laplacian(torch.zeros(())) + mass2, lattice)


def torus(n: int, mass2: float = 1.0) -> Tensor:
    """−Δ + mass² on n × n sites, by its entries."""
    eye = torch.eye(n)
    line = 2 * eye - eye.roll(1, 0) - eye.roll(-1, 0)
    return torch.kron(line, eye) + torch.kron(eye, line) + mass2 * torch.eye(n * n)


# Without sampling


@given(st.floats(0.2, 3.0), st.floats(-1.5, 2.0), st.floats(0.05, 0.95))
def test_one_site_quadrature(g: float, mu: float, C: float):
    phi = torch.tensor([[0.0], [1.0], [2.0]])
    V, site = AtScale(Phi4(g, mu), C * ONE), exact.FewSites(exact.phi4(g, mu))
    torch.testing.assert_close(V(phi), site.potential(C * ONE, phi), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(V.gradient(phi), site.gradient(C * ONE, phi), rtol=1e-8, atol=1e-8)


def test_two_site_quadrature():
    V, pair = AtScale(Phi4(1.0, -1.0), PAIR(0.5)), exact.FewSites(exact.phi4(), 2)
    expected = torch.tensor([-0.1789909504, -0.0492355264, -0.0331078489])
    torch.testing.assert_close(V(CORNERS), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(V.gradient(CORNERS), pair.gradient(PAIR(0.5), CORNERS), rtol=0, atol=1e-9)


def test_quadrature_is_differentiable_and_keeps_batches():
    V, phi = AtScale(Phi4(1.0, -1.0), PAIR(0.5)), torch.randn(2, 5, 2, generator=rng())
    assert V(phi).shape == (2, 5)
    torch.testing.assert_close(V(phi)[1], V(phi[1]))
    torch.testing.assert_close(V.gradient(phi), differentiate(V, phi, "V"))


def test_small_chunks_give_the_same(monkeypatch):
    V, phi = AtScale(Phi4(1.0, -1.0), PAIR(0.5)), torch.randn(7, 2, generator=rng())
    values = V(phi)
    monkeypatch.setattr("otprox.polchinski.routes.CHUNK", 20_000)
    torch.testing.assert_close(V(phi), values, rtol=1e-13, atol=1e-13)


def test_free_field_in_closed_form():
    V = AtScale(FIELD, RING(0.5))
    assert isinstance(V.method, ClosedForm)
    phi = torch.tensor([[0.3, -0.7, 0.2]])
    assert V(phi).item() == pytest.approx(0.271414887441, abs=1e-12)
    by_nodes = AtScale(FIELD, RING(0.5), HermiteSites())
    torch.testing.assert_close(by_nodes(phi), V(phi), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(by_nodes.gradient(phi), V.gradient(phi), rtol=1e-10, atol=1e-10)
    quadratic = Quadratic(torch.linalg.solve(FIELD.A, FIELD.b), precision=FIELD.A)
    torch.testing.assert_close(AtScale(quadratic, RING(0.5)).gradient(phi), V.gradient(phi))


def test_sine_gordon_series():
    V = AtScale(SineGordon(1.0, 2.0), 0.5 * ONE)
    assert isinstance(V.method, BesselSeries)
    phi = torch.tensor([[0.0], [0.5], [math.pi / 2]])
    expected = torch.tensor([0.156405669296, -0.038579165453, -0.522871652912])
    torch.testing.assert_close(V(phi), expected, rtol=0, atol=1e-12)


@given(st.floats(-4.0, 4.0), st.floats(0.0, 2.0), st.floats(0.05, 1.5))
def test_series_and_quadrature_agree(z: float, beta: float, C: float):
    V0, phi = SineGordon(z, beta), torch.linspace(-2, 2, 5)[:, None]
    series, nodes = AtScale(V0, C * ONE), AtScale(V0, C * ONE, HermiteSites())
    torch.testing.assert_close(series(phi), nodes(phi), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(series.gradient(phi), nodes.gradient(phi), rtol=1e-8, atol=1e-8)


def test_at_time_zero_it_is_the_interaction():
    for V0, C, n in ((Phi4(1.0, -1.0), PAIR, 2), (FIELD, RING, 3), (SineGordon(1.0, 2.0), HeatKernel(1.0), 1)):
        phi = torch.randn(4, n, generator=rng())
        V = RenormalisedPotential(V0, C)
        torch.testing.assert_close(V(0.0, phi), V0(phi), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(V.gradient(0.0, phi), V0.gradient(phi), rtol=1e-12, atol=1e-12)


def test_a_potential_energy_takes_it():
    V, phi = AtScale(Phi4(1.0, -1.0), PAIR(0.5)), torch.randn(4, 2, generator=rng())
    torch.testing.assert_close(Potential(V).value(phi), V(phi))


# Polchinski's equation and the semigroup

MODELS = [
    (Phi4(1.0, -1.0), HeatKernel(1.0)),
    (Phi4(1.0, -1.0), PauliVillars(1.5)),
    (Phi4(1.5, 0.5), PAIR),
    (SineGordon(1.0, 2.0), HeatKernel(1.0)),
    (FIELD, RING),
    (Phi4(1.0, -1.0), HeatKernel(spectral(2))),
    (FreeField(spectral(4, 4), torch.linspace(-1, 1, 16)), PauliVillars(spectral(4, 4, mass2=0.3))),
]


@pytest.mark.parametrize(("V0", "C"), MODELS)
@pytest.mark.parametrize("t", [0.02, 0.6])
def test_polchinskis_equation(V0, C, t: float):
    phi = 0.8 * torch.randn(3, C.limit.shape[-1], generator=rng())
    V = RenormalisedPotential(V0, C)
    assert V.residual(t, phi).abs().max() < 2e-8 * (1 + V(t, phi).abs().max())


def test_the_residual_notices_a_wrong_metric():
    class Halved(HeatKernel):
        def rate(self, t):
            return 0.5 * super().rate(t)

    V = RenormalisedPotential(Phi4(1.0, -1.0), Halved(1.0))
    assert V.residual(0.5, torch.tensor([[1.0]])).abs() > 1e-2


def test_potentials_compose():
    """V_t = −log P e^{−V_s} over C_t − C_s, the semigroup from V_s."""
    V = RenormalisedPotential(Phi4(1.0, -1.0), HeatKernel(1.0))
    phi = torch.tensor([[0.0], [0.8], [-1.7]])
    again = AtScale(V.at(0.3), V.C.increment(0.3, 0.9), HermiteSites())
    torch.testing.assert_close(again(phi), V(0.9, phi), rtol=1e-10, atol=1e-10)


def test_semigroup_preserves_one_and_composes():
    V = RenormalisedPotential(Phi4(1.0, -1.0), HeatKernel(1.0), HermiteSites(80))
    phi = torch.tensor([[0.0], [0.8], [-1.7]])
    one = V.semigroup(0.2, 0.9, lambda x: torch.ones_like(x[..., 0]), phi).value
    torch.testing.assert_close(one, torch.ones(3))

    def f(x: Tensor) -> Tensor:
        return torch.sin(x[..., 0])

    halfway = V.semigroup(0.5, 0.9, lambda x: V.semigroup(0.2, 0.5, f, x).value, phi).value
    torch.testing.assert_close(halfway, V.semigroup(0.2, 0.9, f, phi).value, rtol=1e-8, atol=1e-8)


def test_semigroup_from_zero_to_infinity_is_the_measure():
    V = RenormalisedPotential(Phi4(1.0, -1.0), HeatKernel(1.0))
    value = V.semigroup(0.0, math.inf, lambda x: x[..., 0] ** 2, torch.zeros(1, 1)).value
    assert value.item() == pytest.approx(0.675978240067, abs=1e-10)


def test_semigroup_commutes_with_the_gradient():
    """∇V_t = P_{s,t}∇V_s."""
    V, phi = RenormalisedPotential(Phi4(1.0, -1.0), PAIR, HermiteSites(40)), CORNERS[1:2]
    carried = V.semigroup(0.2, 0.6, lambda x: V.gradient(0.2, x), phi).value
    torch.testing.assert_close(carried, V.gradient(0.6, phi), rtol=1e-7, atol=1e-7)


# By sampling


def scores(estimate, expected: Tensor) -> Tensor:
    return ((estimate.value - expected) / estimate.error).flatten()


@pytest.mark.parametrize("t", [0.1, 0.5, 2.0])
def test_two_sites_by_sampling_within_error_bars(t: float):
    phi = torch.tensor([[0.0, 0], [1, 1], [1, -1], [2, 2.5]])
    V, sampled = AtScale(Phi4(1.0, -1.0), PAIR(t)), AtScale(Phi4(1.0, -1.0), PAIR(t), Fluctuations(rng(1)))
    gradient, value = sampled.estimate_gradient(phi), sampled.estimate(phi)
    assert scores(gradient, V.gradient(phi)).abs().max() < 4
    assert scores(value, V(phi)).abs().max() < 4
    assert gradient.error.max() < 0.1
    assert value.error.max() < 0.03
    assert gradient.acceptance.min() > 0.6
    assert gradient.spread.max() < 1.05
    assert value.acceptance.min() > 0.6


@pytest.mark.parametrize("what", ["value", "gradient"])
def test_error_bars_are_calibrated(what: str):
    """Over 200 independent fields φ the errors have the size that is claimed: mean square score near 1, mean near 0."""
    phi = torch.tensor([0.7, -0.4]).expand(200, 2).contiguous()
    V, method = AtScale(Phi4(1.0, -1.0), PAIR(0.5)), Fluctuations(rng(2), samples=16, burn=40, temperatures=8)
    if what == "value":
        z = scores(method.value(V.V0, V.C, phi), V(phi))
    else:
        estimate = method.gradient(V.V0, V.C, phi)
        z = ((estimate.value - V.gradient(phi)) / estimate.error)[:, 0]
    assert 0.8 < z.square().mean().sqrt() < 1.25  # 200 scores of Student's t with 31 degrees: 1.03 ± 0.055
    assert z.mean().abs() < 4 / math.sqrt(200)


def test_error_bars_shrink_like_the_root_of_the_samples():
    few, many = (Fluctuations(rng(3), chains=64, samples=n) for n in (16, 256))
    phi = torch.tensor([[0.7, -0.4]])
    ratio = few.gradient(Phi4(1.0, -1.0), PAIR(0.5), phi).error / many.gradient(Phi4(1.0, -1.0), PAIR(0.5), phi).error
    assert (ratio - 4).abs().max() < 1.5


def test_the_two_forms_of_the_gradient_agree():
    """E ∇V₀(φ+ζ) = −C⁻¹E ζ."""
    phi, C, method = torch.tensor([[0.7, -0.4]]), PAIR(0.5), Fluctuations(rng(4))
    V0 = Phi4(1.0, -1.0)
    by_parts = method.expect(V0, C, phi, lambda psi: -torch.linalg.solve(C, (psi - phi)[..., None])[..., 0])
    assert scores(by_parts, AtScale(V0, C).gradient(phi)).abs().max() < 4


def test_without_interaction_sampling_is_exact():
    V = AtScale(Phi4(0.0, 0.0), PAIR(0.5), Fluctuations(rng()))
    estimate = V.estimate_gradient(CORNERS)
    assert not V(CORNERS).any()
    assert not estimate.value.any()
    torch.testing.assert_close(estimate.acceptance, torch.ones(3))


@pytest.mark.parametrize("mass2", [0.2, 1.0])
def test_free_field_on_a_lattice_by_sampling(mass2: float):
    """16²: the gradient and the potential by sampling against the closed form, dense and Spectral."""
    M, t = spectral(16, 16, mass2=mass2), 0.3
    b = torch.randn(256, generator=rng(5))
    field, C = FreeField(spectral(16, 16, mass2=0.5), b), HeatKernel(M)
    dense = AtScale(FreeField(torus(16, 0.5), b), HeatKernel(torus(16, mass2))(t))
    phi = torch.randn(2, 256, generator=rng(6))
    V = AtScale(field, C(t))
    torch.testing.assert_close(V(phi), dense(phi), rtol=1e-11, atol=1e-10)
    torch.testing.assert_close(V.gradient(phi), dense.gradient(phi), rtol=1e-10, atol=1e-11)
    method = Fluctuations(rng(7), chains=16, samples=24, burn=32, temperatures=8)
    z = scores(method.gradient(field, C(t), phi), V.gradient(phi))
    assert 0.85 < z.square().mean().sqrt() < 1.25
    assert scores(method.value(field, C(t), phi), V(phi)).abs().max() < 4


def test_phi4_on_a_lattice_is_translation_invariant():
    C = HeatKernel(spectral(16, 16))(0.3)
    V = AtScale(Phi4(1.0, 2.0), C, Fluctuations(rng(8), chains=16, samples=32, burn=40))
    estimate = V.estimate_gradient(torch.full((1, 256), 0.5))
    spread = estimate.value.std() / estimate.error.square().mean().sqrt()
    assert 0.8 < spread < 1.3  # all 256 sites have one expectation
    ends = V.estimate(torch.tensor([0.45, 0.55])[:, None].expand(2, 256))
    difference, error = ends.value[1] - ends.value[0], ends.error.square().sum().sqrt()
    assert error < 0.4
    assert (difference - 0.1 * estimate.value.sum()).abs() < 4 * error + 0.05  # the values and the gradient agree


def test_plain_importance_sampling_collapses_and_says_so():
    C = HeatKernel(spectral(16, 16, mass2=0.1))(0.3)
    V0, phi = Phi4(1.0, 2.0), torch.zeros(1, 256)
    with pytest.warns(ConvergenceWarning, match="the weights collapsed"):
        plain = Importance(rng(9), samples=4000).value(V0, C, phi)
    assert plain.ess.item() < 5e-3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chains = Fluctuations(rng(9), chains=16, samples=32, burn=40).value(V0, C, phi)
    assert chains.error.item() < 0.2


def test_importance_sampling_works_on_two_sites():
    V, method = AtScale(Phi4(1.0, -1.0), PAIR(0.5)), Importance(rng(10), samples=20_000)
    assert scores(method.value(V.V0, V.C, CORNERS), V(CORNERS)).abs().max() < 4
    assert scores(method.gradient(V.V0, V.C, CORNERS), V.gradient(CORNERS)).abs().max() < 4


def test_chains_that_do_not_mix_say_so():
    deep = Phi4(40.0, -160.0)  # wells at ±2, barrier 160
    with pytest.warns(ConvergenceWarning, match="the chains disagree"):
        estimate = Fluctuations(rng(11)).gradient(deep, 2 * ONE, torch.zeros(1, 1))
    assert estimate.spread.item() > 3


def test_semigroup_by_sampling():
    V0 = Phi4(1.0, -1.0)
    exactly = (
        RenormalisedPotential(V0, PAIR, HermiteSites(40)).semigroup(0.2, 0.7, lambda x: x[..., 0] ** 2, CORNERS).value
    )
    sampled = RenormalisedPotential(V0, PAIR, Fluctuations(rng(12)))
    estimate = sampled.semigroup(0.2, 0.7, lambda x: x[..., 0] ** 2, CORNERS)
    assert scores(estimate, exactly).abs().max() < 4
    assert estimate.error.max() < 0.03


def test_semigroup_of_the_gradient_on_a_lattice():
    """P_{s,t}∇V_s = ∇V_t, on 8² sites for a free field."""
    M = spectral(8, 8)
    field, C, phi = FreeField(spectral(8, 8, mass2=0.5)), HeatKernel(M), torch.randn(1, 64, generator=rng(13))
    V, sampled = RenormalisedPotential(field, C), RenormalisedPotential(field, C, Fluctuations(rng(14)))
    estimate = sampled.semigroup(0.2, 0.7, lambda x: V.gradient(0.2, x), phi)
    assert 0.75 < scores(estimate, V.gradient(0.7, phi)).square().mean().sqrt() < 1.3


def test_resumed_chains_follow_a_path_of_fields():
    """φ and t move in small steps, with chains that are short once they run: the error bars stay honest."""
    V0, method, chains, z = Phi4(1.0, -1.0), Fluctuations(rng(16), samples=24), None, []
    phi = torch.linspace(-1.5, 1.5, 40)[:, None] * torch.tensor([1.0, -0.5])
    for k in range(5):
        C, field = PAIR(0.3 + 0.05 * k), phi + 0.1 * k
        estimate, chains = method.resume(V0, C, field, chains)
        z.append(((estimate.value - AtScale(V0, C, HermiteSites(40)).gradient(field)) / estimate.error)[:, 0])
    assert 0.8 < torch.cat(z).square().mean().sqrt() < 1.25
    fresh, _ = method.resume(V0, C, field[:3], chains)  # another shape starts afresh
    assert fresh.value.shape == (3, 2)


def test_a_sampled_potential_has_the_sampled_gradient():
    V = AtScale(Phi4(1.0, -1.0), PAIR(0.5), Fluctuations(rng(17)))
    exactly = AtScale(Phi4(1.0, -1.0), PAIR(0.5)).gradient(CORNERS)
    assert (differentiate(V, CORNERS, "V") - exactly).abs().max() < 5 * V.estimate_gradient(CORNERS).error.max()
    assert not V.estimate_gradient(CORNERS.clone().requires_grad_()).value.requires_grad


def test_sampling_is_reproducible_and_keeps_the_dtype():
    C, phi = PAIR(0.5), CORNERS
    first, again = (Fluctuations(rng(15)).gradient(Phi4(1.0, -1.0), C, phi).value for _ in range(2))
    assert torch.equal(first, again)
    single = Fluctuations(rng(15)).gradient(Phi4(1.0, -1.0), C.float(), phi.float())
    assert single.value.dtype == single.error.dtype == torch.float32


# Choice and errors


def test_large_lattices_ask_for_a_method():
    with pytest.raises(TypeError, match=r"ClosedForm: V₀ is not .* N ≤ 3 sites, not 4; give method=Fluctuations"):
        AtScale(Phi4(1.0, 1.0), torch.eye(4))
    with pytest.raises(TypeError, match="the series is for SineGordon on one site"):
        AtScale(Phi4(1.0, 1.0), ONE, BesselSeries())


def test_strong_sine_gordon_goes_to_quadrature():
    V = AtScale(SineGordon(9.0, 2.0), 0.5 * ONE)
    assert isinstance(V.method, HermiteSites)
    site = exact.FewSites(lambda phi: 9 * torch.cos(2 * phi[..., 0]))
    phi = torch.tensor([[0.0], [0.4]])
    torch.testing.assert_close(V(phi), site.potential(0.5 * ONE, phi), rtol=1e-8, atol=1e-8)


def test_what_a_method_cannot_do():
    with pytest.raises(TypeError, match="no expectation of a general f"):
        ClosedForm().expect(FIELD, RING(0.5), torch.zeros(1, 3), lambda x: x)
    with pytest.raises(TypeError, match="second derivatives"):
        RenormalisedPotential(Phi4(1.0, 1.0), PAIR, Fluctuations(rng())).residual(0.5, CORNERS)
    with pytest.raises(TypeError, match="quadrature is for N ≤ 3"):
        RenormalisedPotential(FreeField(torch.eye(4)), HeatKernel(torch.eye(4))).semigroup(
            0.1, 0.2, lambda x: x, torch.zeros(1, 4)
        )
    with pytest.raises(ValueError, match="chains of at least 2, not 1"):
        Fluctuations(rng(), chains=1)


def test_a_potential_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match="V0 must map points"):
        AtScale(lambda phi: phi**2, PAIR(0.5))(CORNERS)


def test_dense_beside_spectral_is_refused():
    with pytest.raises(TypeError, match="one matrix is dense and the other a Spectral"):
        AtScale(FreeField(torch.eye(4)), HeatKernel(spectral(4))(0.5))(torch.zeros(1, 4))


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_a_potential_unbounded_below_is_refused(sign):
    C = torch.tensor([[0.5]])
    for V0 in (lambda x: -(x**4).sum(-1), lambda x: sign * (x**3).sum(-1)):
        with pytest.raises(ValueError, match="V0 is unbounded below: it is -"):
            AtScale(V0, C)
    with pytest.raises(ValueError, match="unbounded below"):
        RenormalisedPotential(lambda x: -1.1 * x.square().sum(-1), lambda t: t * torch.eye(2)).at(0.5)
    AtScale(lambda x: -0.9 * x.square().sum(-1), C)  # ½ζ²/C = ζ² wins
    AtScale(lambda x: -5 * x.abs().sum(-1), C)


def test_a_potential_that_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match="V0 is NaN at a field of size 0.5"):
        AtScale(lambda x: x.log().sum(-1), torch.tensor([[0.25]]))
