"""Exact transitions, and the ascent from δ₀ to ν₀: against closed forms, quadrature, and long chains."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

import otprox as ox
from otprox.exact import polchinski as exact
from otprox.lattice import Lattice
from otprox.measures import Spectral
from otprox.polchinski import (
    Ascent,
    Bridge,
    Family,
    Fluctuations,
    FreeField,
    HeatKernel,
    HermiteSites,
    Learned,
    PauliVillars,
    Phi4,
    RenormalisedPotential,
    ascending,
    form_a,
)
from otprox.polchinski.steps import halfway, transition

RING = torch.tensor([[3.0, -1, -1], [-1, 3, -1], [-1, -1, 3]])
A, B = torch.tensor([[0.5, 0.2, 0], [0.2, 1, 0], [0, 0, 2]]), torch.tensor([1, 0, -0.5])
FAMILIES = [HeatKernel(RING), PauliVillars(RING)]
ONE = HeatKernel(torch.ones(1, 1))
SITE = exact.FewSites(exact.phi4())


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def law(C, t: float) -> ox.Gaussian:
    """ν_t of the free field (A, B)."""
    return exact.FreeField(A, B).law(C(t), C.remaining(t))


def lattice_matrix(*shape: int, mass2: float = 1.0) -> Spectral:
    lattice = Lattice(shape)
    return Spectral(lattice.laplacian(torch.zeros(())) + mass2, lattice)


def normal_levels(n: int) -> Tensor:
    return torch.special.ndtri((torch.arange(n) + 0.5) / n)


def moments(C, t: float) -> Tensor:
    """E φ² and E φ⁴ of ν_t for the site of φ⁴, by quadrature."""
    return SITE.expect(C(t), C.remaining(t), lambda phi: torch.cat([phi**2, phi**4], -1))


def quantiles_of_nu0(n: int) -> Tensor:
    """Quantiles of e^{−φ⁴/4}."""
    x = torch.linspace(-4, 4, 80001)
    cdf = torch.exp(-(x**4) / 4).cumsum(0)
    levels = (torch.arange(n) + 0.5) / n * cdf[-1]
    return x[torch.searchsorted(cdf, levels)]


# Bridge


@pytest.mark.parametrize("C", FAMILIES)
@given(st.floats(0.0, 1.0), st.floats(0.01, 2.0))
def test_bridge_carries_the_free_field(C, s: float, span: float):
    got = Bridge(C)(law(C, s), s, s + span).mu
    torch.testing.assert_close(got.mean, law(C, s + span).mean, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(got.cov, law(C, s + span).cov, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("C", FAMILIES)
def test_bridge_composes_and_agrees_with_the_transition(C):
    mu = ox.Gaussian(torch.ones(3), 2 * torch.eye(3))
    whole = Bridge(C)(mu, 0.2, 1.1).mu
    parts = ox.record(ox.flow(Bridge(C), mu, [0.2, 0.3, 0.8, 1.1])).final
    torch.testing.assert_close(parts.cov, whole.cov)
    torch.testing.assert_close(parts.mean, whole.mean)
    K, R = exact.transition(C.remaining(0.2), C.remaining(1.1))
    torch.testing.assert_close(transition(C, 0.2, 1.1)[0], K)
    torch.testing.assert_close(transition(C, 0.2, 1.1)[1], R)


def test_bridge_in_modes_is_the_dense_one():
    M = lattice_matrix(4, 3)
    dense, fast = Bridge(HeatKernel(M.dense())), Bridge(HeatKernel(M))
    mean = torch.randn(12, generator=rng())
    got = fast(ox.Gaussian(mean, M), 0.1, 0.6).mu
    want = dense(ox.Gaussian(mean, M.dense()), 0.1, 0.6).mu
    torch.testing.assert_close(got.mean, want.mean)
    torch.testing.assert_close(got.cov.dense(), want.cov)


def test_bridge_carries_phi4_by_quadrature():
    """Eφ² = .675978240067, .567737760038, .418994560017, .229748640004 at C = 0, ¼, ½, ¾: quantiles, without noise."""
    mu = ox.Quantiles(quantiles_of_nu0(4000))
    for c, want in [(0.25, 0.567737760038), (0.5, 0.418994560017), (0.75, 0.229748640004)]:
        t = -math.log(1 - c)
        nu = Bridge(ONE)(mu, 0.0, t).mu
        assert nu.x.square().mean().item() == pytest.approx(want, abs=1e-3)
        assert nu.x.pow(4).mean().item() == pytest.approx(moments(ONE, t)[1].item(), rel=5e-3)


def test_bridge_on_particles_of_a_large_lattice():
    """64²: variances of all modes, with noise by fast transforms; the generator belongs to the step."""
    C, g = HeatKernel(lattice_matrix(64, 64)), rng(3)
    step, start = Bridge(C, g), 0.7
    mu = ox.Particles(torch.full((400, 4096), start))
    assert step.generators() == (g,)
    nu = step(mu, 0.1, 0.9).mu
    K, R = transition(C, 0.1, 0.9)
    modes = C.M.lattice.to_modes(nu.x - K.values[0] * start)  # the constant field lies in mode 0
    ratio = modes.square().mean(0) / R.values
    assert ratio.mean().item() == pytest.approx(1, abs=5 * (2 / (400 * 4096)) ** 0.5)
    assert (ratio - 1).abs().max() < 6 * (2 / 400) ** 0.5
    again = ox.record(ox.flow(step, mu, [0.1, 0.9])).final
    assert not torch.equal(again.x, nu.x)  # the generator went on


def test_all_fields_meet_at_zero():
    """ν_t → δ₀ from anywhere: no equilibrium."""
    C = FAMILIES[0]
    path = ox.flow(Bridge(C, rng()), ox.Particles(10 * torch.randn(50, 3, generator=rng(1))), [0, 1.0, 4, 8, 16])
    sizes = [tick.after.x.square().sum(-1).mean().item() for tick in path]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < 1e-4


def test_refusals_of_bridge():
    C, mu = FAMILIES[0], law(FAMILIES[0], 0.0)
    with pytest.raises(ValueError, match="outside the times"):
        Bridge(C)(mu, -0.1, 0.5)
    with pytest.raises(ValueError, match="t0 < t1"):
        Bridge(C)(mu, 0.5, 0.5)
    with pytest.raises(ValueError, match="generator"):
        Bridge(C)(ox.Particles(torch.zeros(2, 3)), 0.0, 0.5)
    line = Family(lambda t: t * torch.eye(2), limit=torch.eye(2), times=(0.0, 1.0))
    with pytest.raises(ValueError, match="singular: mode"):
        transition(line, 1.0, 1.5)
    with pytest.raises(ValueError, match="outside the times"):
        Bridge(line)(ox.Gaussian(torch.zeros(2), torch.eye(2)), 0.5, 1.5)
    falling = Family(lambda t: t * torch.diag(torch.tensor([1.0, -1.0])), limit=torch.eye(2))
    with pytest.raises(ValueError, match=r"does not increase.*mode"):
        Bridge(falling)(ox.Gaussian(torch.zeros(2), torch.eye(2)), 0.1, 0.2)


# Ascent


def ascent_error(C, order: int, n: int) -> float:
    """Distance of the covariance at scale 0, started from the exact law at scale 2."""
    V = RenormalisedPotential(FreeField(A, B), C)
    times = [-2.0 * (1 - k / n) for k in range(n + 1)]
    end = ox.record(ox.flow(Ascent(V, order=order), law(C, 2.0), times)).final
    torch.testing.assert_close(end.mean, law(C, 0.0).mean)  # exact, as Σb is affine in C along the free field
    return (end.cov - law(C, 0.0).cov).abs().max().item()


@pytest.mark.parametrize("C", FAMILIES)
@pytest.mark.parametrize("order", [1, 2])
def test_order_of_the_ascent_on_the_free_field(C, order: int):
    errors = [ascent_error(C, order, n) for n in (40, 80, 160)]
    rates = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    assert all(rate == pytest.approx(order, abs=0.12) for rate in rates), rates


def test_the_ascent_undoes_the_bridge_in_modes():
    """16²: up from scale 1, then down again; the Spectral step is the dense one."""
    M = lattice_matrix(16, 16)
    V = RenormalisedPotential(FreeField(0.4 * M, torch.ones(256)), HeatKernel(M))
    mean, variance = _mode_law(V, 1.0)
    times = [-1 + k / 64 for k in range(65)]
    up = ox.record(ox.flow(Ascent(V), ox.Gaussian(mean, M.with_values(variance)), times)).final
    want = _mode_law(V, 0.0)
    torch.testing.assert_close(up.cov.values, want[1], rtol=2e-3, atol=0)
    down = Bridge(V.C)(up, 0.0, 1.0).mu
    torch.testing.assert_close(down.cov.values, variance, rtol=1e-3, atol=0)
    small = lattice_matrix(3, 2)
    flat = RenormalisedPotential(FreeField(0.4 * small.dense(), torch.ones(6)), HeatKernel(small.dense()))
    fast = RenormalisedPotential(FreeField(0.4 * small, torch.ones(6)), HeatKernel(small))
    one = Ascent(flat)(ox.Gaussian(torch.ones(6), small.dense()), -0.7, -0.2).mu
    two = Ascent(fast)(ox.Gaussian(torch.ones(6), small), -0.7, -0.2).mu
    torch.testing.assert_close(two.cov.dense(), one.cov)
    torch.testing.assert_close(two.mean, one.mean)


def _mode_law(V: RenormalisedPotential, t: float) -> tuple[Tensor, Tensor]:
    """Mean and eigenvalues of the covariance of ν_t for a Spectral free field."""
    lattice = V.C.M.lattice
    field = exact.FreeModes(V.V0.A.values, lattice.to_modes(V.V0.b))
    mean, variance = field.law(V.C(t).values, V.C.remaining(t).values)
    return lattice.to_modes(mean), variance


def test_euler_of_phi4_on_quantiles():
    """One site from ν_{r} = δ₀ at r = ∞, without noise: errors of Eφ² halve with the step."""
    V = RenormalisedPotential(Phi4(1.0, -1.0), ONE, HermiteSites(100))
    errors = []
    for n in (8, 16, 32):
        times = ascending(ONE, n)
        start = ox.Quantiles(normal_levels(4000) * ONE.remaining(-times[1]).sqrt().item())  # one Euler step from δ₀
        end = ox.record(ox.flow(Ascent(V, order=1), start, times[1:])).final
        errors.append(end.x.pow(4).mean().item() - moments(ONE, 0.0)[1].item())
    assert errors[0] > 1.8 * errors[1] > 3.4 * errors[2] > 0, errors


def test_heun_of_phi4_on_particles():
    """Eφ² and Eφ⁴ of ν₀ from δ₀, within four standard errors and the bias of eight steps."""
    V = RenormalisedPotential(Phi4(1.0, -1.0), ONE, HermiteSites(60))
    start = ox.Particles(torch.zeros(8000, 1))
    errors = {}
    for n in (4, 16):
        end = ox.record(ox.flow(Ascent(V, rng(n)), start, ascending(ONE, n))).final
        got = torch.stack([end.x.square().mean(), end.x.pow(4).mean()])
        errors[n] = (got - moments(ONE, 0.0)).abs()
    assert (errors[16] < torch.tensor([0.025, 0.08])).all() and errors[16][1] < errors[4][1] / 3, errors


def test_learned_slopes_give_the_same_path():
    V = RenormalisedPotential(FreeField(A, B), FAMILIES[0])
    start, times = ox.Particles(torch.zeros(5, 3)), ascending(V.C, 4)
    other = Learned(V.C, lambda t, phi: V.gradient(t, phi) if t < math.inf else -B.expand_as(phi) @ _limit_damp())
    ends = [ox.record(ox.flow(Ascent(U, rng()), start, times)).final.x for U in (V, other)]
    torch.testing.assert_close(*ends)
    with pytest.raises(ValueError, match="must map fields"):
        Ascent(Learned(V.C, lambda t, phi: phi[..., :1]), rng())(start, -1.0, -0.5)


def _limit_damp() -> Tensor:
    """b ↦ (I + AC_∞)⁻¹b on rows."""
    return torch.linalg.inv(torch.eye(3) + A @ FAMILIES[0].limit).mT


def test_step_control_halves_where_the_drift_bends():
    """One interval from ∞ to 0 is cut until Euler and Heun agree to tol; the bridges keep the law of the noise."""
    V = RenormalisedPotential(Phi4(1.0, -1.0), ONE, HermiteSites(60))
    start, halved = ox.Particles(torch.zeros(3000, 1)), []
    for tol in (0.1, 0.02):
        end, stats = Ascent(V, rng(), tol=tol)(start, -math.inf, 0.0)
        assert stats.converged.item() and stats.error <= tol
        halved.append(stats.iterations.item())
    assert 0 < halved[0] < halved[1]
    assert end.x.square().mean().item() == pytest.approx(moments(ONE, 0.0)[0].item(), abs=0.04)
    forced = Ascent(V, rng(), tol=1e-9, halvings=1)(start, -math.inf, 0.0).stats
    assert not forced.converged and forced.iterations == 1


def test_brownian_bridges_keep_the_noise():
    """A drift that only looks at the clock: halved or not, the increments are N(0, C_t − C_s)."""
    C = FAMILIES[1]
    drift = Learned(C, lambda t, phi: torch.full_like(phi, 50.0 * (t > 1.0)))
    start = ox.Particles(torch.zeros(20000, 3))
    end, stats = Ascent(drift, rng(), tol=0.05, halvings=3)(start, -1.4, -0.2)
    assert stats.iterations > 2
    torch.testing.assert_close(end.cov, C.increment(0.2, 1.4), rtol=0, atol=0.01)


def test_sampled_slopes_agree_with_long_chains():
    """φ⁴ on 4² sites: the ascent with ∇V_t by chains, and ν₀ by Hamiltonian Monte Carlo, within error bars."""
    M, V0 = lattice_matrix(4, 4, mass2=0.5), Phi4(1.0, -1.0)
    long = Fluctuations(rng(1), chains=200, samples=200, burn=60)
    both = long.expect(V0, M.inverse(), torch.zeros(1, 16), _observables)
    V = RenormalisedPotential(V0, HeatKernel(M), Fluctuations(rng(2), chains=6, samples=6, burn=32))
    step = Ascent(V, rng(3))
    assert step.generators() == (step.generator, V.method.generator)
    path = list(ox.flow(step, ox.Particles(torch.zeros(300, 16)), ascending(V.C, 10)))
    values = _observables(path[-1].after.x)
    assert path[-1].stats.chains.eta.shape == (6, 300, 16)
    error = (values.var(0) / 300 + both.error[0] ** 2).sqrt()
    assert ((values.mean(0) - both.value[0]).abs() < 4 * error).all()


def _observables(phi: Tensor) -> Tensor:
    """Squares of the sites and of the magnetisation."""
    return torch.stack([phi.square().mean(-1), phi.mean(-1).square()], -1)


@pytest.mark.parametrize("C", [*FAMILIES, HeatKernel(lattice_matrix(8, 8))])
def test_scales_of_equal_growth(C):
    """The largest eigenvalue of C grows equally between `ascending` times, and `halfway` is the middle."""
    times = ascending(C, 5)
    assert times[0] == -math.inf and times[-1] == 0 and times == sorted(times)
    sizes = [_largest(C(-t)) for t in times[1:]]
    torch.testing.assert_close(torch.tensor(sizes), _largest(C.limit) * torch.tensor([0.8, 0.6, 0.4, 0.2, 0]))
    assert _largest(C(halfway(C, 0.0, math.inf))) == pytest.approx(_largest(C.limit) / 2)
    with pytest.raises(ValueError, match="at least 1"):
        ascending(C, 0)


def _largest(matrix) -> float:
    return (matrix.values if isinstance(matrix, Spectral) else torch.linalg.eigvalsh(matrix)).max().item()


def test_refusals_of_the_ascent():
    V = RenormalisedPotential(Phi4(1.0, 1.0), ONE)
    cloud = ox.Particles(torch.zeros(3, 1))
    with pytest.raises(ValueError, match="minus the scale"):
        Ascent(V, rng())(cloud, 0.0, 0.5)
    with pytest.raises(ValueError, match="generator"):
        Ascent(V)(cloud, -1.0, -0.5)
    with pytest.raises(TypeError, match="free field"):
        Ascent(V)(ox.Gaussian([0.0], [[1.0]]), -1.0, -0.5)
    with pytest.raises(TypeError, match="order=1"):
        Ascent(V)(ox.Quantiles(normal_levels(9)), -1.0, -0.5)
    with pytest.raises(ValueError, match="orders 1"):
        Ascent(V, order=3)
    with pytest.raises(ValueError, match="tol"):
        Ascent(V, tol=0.0)


def test_bridge_keeps_the_dtype_of_the_measure_or_refuses():
    lattice = Lattice(4)
    C = HeatKernel(Spectral(torch.ones(4), lattice))
    with pytest.raises(
        TypeError, match="the covariance of Bridge is torch.float64 on cpu, but the measure is torch.float32"
    ):
        Bridge(C, torch.Generator())(ox.Particles(torch.zeros(2, 4, dtype=torch.float32)), 0.0, 1.0)


def test_forms_refuse_a_step_from_before_the_family_starts():
    C = HeatKernel(torch.eye(2))
    with pytest.raises(ValueError, match=r"t = -0.5 is outside the times \[0, inf\] of HeatKernel"):
        form_a(C)(ox.Gaussian(torch.zeros(2), torch.eye(2)), -0.5, 0.1)
