"""The time-dependent JKO, both forms and both rules, on every representation; inequalities of the moving metric."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import otprox as ox
from otprox import observe
from otprox.exact import polchinski as exact
from otprox.lattice import Lattice
from otprox.measures import Spectral
from otprox.polchinski import (
    Family,
    FreeField,
    HeatKernel,
    HermiteSites,
    PauliVillars,
    Phi4,
    RenormalisedPotential,
    form_a,
    form_b,
    forward_backward,
    forward_heat,
    reference_a,
    reference_b,
)
from otprox.solvers import Features, Hermite

RING = torch.tensor([[3.0, -1, -1], [-1, 3, -1], [-1, -1, 3]])
A, B = torch.tensor([[0.5, 0.2, 0], [0.2, 1, 0], [0, 0, 2]]), torch.tensor([1, 0, -0.5])
FIELD, FREE = exact.FreeField(A, B), RenormalisedPotential(FreeField(A, B), HeatKernel(RING))
ONE = HeatKernel(torch.ones(1, 1))
PHI4 = RenormalisedPotential(Phi4(1.0, -1.0), ONE, HermiteSites(100))
SITE = exact.FewSites(exact.phi4())
RULES = ["end", "average"]


def law(t: float, C=FREE.C) -> ox.Gaussian:
    return FIELD.law(C(t), C.remaining(t))


def grid(n: int, end: float = 1.0) -> list[float]:
    return [end * k / n for k in range(n + 1)]


def errors(step: ox.Step, steps: tuple[int, ...]) -> tuple[list[float], list[float]]:
    """Largest errors of the mean and the covariance of ν₁ for so many steps from ν₀."""
    ends = [ox.record(ox.flow(step, law(0.0), grid(n))).final for n in steps]
    want = law(1.0)
    return [(e.mean - want.mean).abs().max().item() for e in ends], [
        (e.cov - want.cov).abs().max().item() for e in ends
    ]


def halve(values: list[float], slack: float = 0.12) -> bool:
    return all(a / b == pytest.approx(2, abs=slack) for a, b in zip(values, values[1:], strict=False))


def lattice_theory(*shape: int) -> tuple[RenormalisedPotential, exact.FreeModes]:
    lattice = Lattice(shape)
    M = Spectral(lattice.laplacian(torch.zeros(())) + 1, lattice)
    b = torch.randn(lattice.sites, generator=torch.Generator().manual_seed(0))
    V = RenormalisedPotential(FreeField(0.3 * M, b), HeatKernel(M))
    return V, exact.FreeModes(0.3 * M.values, lattice.to_modes(b))


def quantiles_of_nu0(n: int) -> Tensor:
    """Quantiles of e^{−φ⁴/4}, the law at scale 0 of the site of φ⁴."""
    x = torch.linspace(-4, 4, 80001)
    cdf = torch.exp(-(x**4) / 4).cumsum(0)
    return x[torch.searchsorted(cdf, (torch.arange(n) + 0.5) / n * cdf[-1])]


def second_moment(t: float) -> float:
    """E φ² = D + D²(E₀φ² − 1) of ν_t for the site of φ⁴."""
    D = math.exp(-t)
    return D + D**2 * (exact.phi4_second_moment() - 1)


# Gaussians


def test_first_steps_on_the_ring():
    """Known numbers, both forms, rule="end"; and form A with the other rule."""
    mu = law(0.0)
    expected = {
        form_a(FREE.C): [0.225269531162, 0.055054131311, -0.003499966238],
        form_b(FREE): [0.224185506817, 0.055351227029, -0.002590933447],
    }
    for step, mean in expected.items():
        torch.testing.assert_close(step(mu, 0.0, 0.1).mu.mean, torch.tensor(mean), rtol=0, atol=2e-12)
    average = form_a(FREE.C, rule="average")(mu, 0.0, 0.1).mu.mean[0].item()
    assert average == pytest.approx(0.21665, abs=1e-5)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("C", [FREE.C, PauliVillars(RING)])
def test_the_closed_form_step_on_the_ring(rule, C):
    V = RenormalisedPotential(FreeField(A, B), C)
    pairs = [
        (form_a(C, rule=rule), lambda mu, s, t: exact.form_a(mu, C, s, t, rule)),
        (form_b(V, rule=rule), lambda mu, s, t: exact.form_b(mu, FIELD, C, s, t, rule)),
    ]
    for step, closed in pairs:
        mu = law(0.0, C)
        for s, t in [(0.0, 0.1), (0.1, 0.4), (0.4, 1.4)]:
            want, mu = closed(mu, s, t), step(mu, s, t).mu
            torch.testing.assert_close(mu.mean, want.mean, rtol=0, atol=1e-9)
            torch.testing.assert_close(mu.cov, want.cov, rtol=0, atol=1e-9)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", [(16, 16, 16), (64, 64)])
def test_the_closed_form_step_on_lattices(rule, shape):
    """16³ and 64², mode by mode, over three steps."""
    V, modes = lattice_theory(*shape)
    C, lattice = V.C, V.C.M.lattice
    start = modes.law(C(0.0).values, C.remaining(0.0).values)
    for form, step in (("a", form_a(C, rule=rule)), ("b", form_b(V, rule=rule))):
        (m, v), mu = start, ox.Gaussian(lattice.to_modes(start[0]), C.M.with_values(start[1]))
        for s, t in [(0.0, 0.1), (0.1, 0.15), (0.15, 0.6)]:
            mu, r = step(mu, s, t).mu, C.remaining(t).values
            q = C.rate(t).values if rule == "end" else C.increment(s, t).values / (t - s)
            if form == "a":
                m, v = exact.form_a_modes(m, v, r, q, t - s)
            else:
                m, v = exact.form_b_modes(m, v, modes, C(t).values, r, q, t - s)
            torch.testing.assert_close(lattice.to_modes(mu.mean), m, rtol=0, atol=1e-9)
            torch.testing.assert_close(mu.cov.values, v, rtol=0, atol=1e-9)


def test_first_order_with_the_known_constants():
    """From n = 10 to 160 the errors halve: form A 4.82e-3 to 2.88e-4, form B 2.87e-3 to 1.67e-4."""
    for step, first, last in [(form_a(FREE.C), 4.82e-3, 2.88e-4), (form_b(FREE), 2.87e-3, 1.67e-4)]:
        means, covs = errors(step, (10, 20, 40, 80, 160))
        assert means[0] == pytest.approx(first, rel=2e-3) and means[-1] == pytest.approx(last, rel=2e-3)
        assert halve(means) and halve(covs)


@pytest.mark.parametrize("scheme", [forward_backward, forward_heat])
def test_splittings_are_first_order(scheme):
    """With exact means for rule="average"."""
    means, covs = errors(scheme(FREE.C, rule="end"), (40, 80))
    assert halve(means, 0.2) and halve(covs, 0.2)
    means, covs = errors(scheme(FREE.C), (40, 80))
    assert max(means) < 1e-14 and halve(covs, 0.2)


def test_the_average_rule_is_first_order_and_worse_in_covariance():
    end, average = errors(form_a(FREE.C), (40, 80, 160)), errors(form_a(FREE.C, rule="average"), (40, 80, 160))
    assert halve(average[1]) and average[1][-1] == pytest.approx(2 * end[1][-1], rel=0.3)


def test_first_order_on_16_cubed():
    V, modes = lattice_theory(16, 16, 16)
    C, lattice = V.C, V.C.M.lattice
    m, v = modes.law(C(0.0).values, C.remaining(0.0).values)
    want = modes.law(C(0.5).values, C.remaining(0.5).values)[1]
    gaps = []
    for n in (8, 16, 32):
        run = ox.record(ox.flow(form_a(C), ox.Gaussian(lattice.to_modes(m), C.M.with_values(v)), grid(n, 0.5)))
        gaps.append((run.final.cov.values - want).abs().max().item())
    assert halve(gaps, 0.25), gaps


@pytest.mark.parametrize("reg", [None, 0.01])
@pytest.mark.parametrize("top", [60.0, 65.0])
def test_long_steps_to_scales_near_the_smallest_number(reg, top):
    """Up to t·λ = 585 in few steps: variances stay right where their squares in units of Ċ would overflow."""
    lattice = Lattice((8, 8))
    C = HeatKernel(Spectral(lattice.symbol(1.0, torch.zeros(())), lattice))
    mu = ox.Gaussian(torch.ones(64), C.limit)
    run = ox.record(ox.flow(form_a(C, reg=reg), mu, grid(4, top)))
    v = C.limit.values
    for s, t in zip(grid(4, top), grid(4, top)[1:], strict=False):
        q, r = C.rate(t).values, C.M.values  # Ċ/D = M
        scaled, a, gamma = v / q, 1 + (t - s) * r, (t - s) / 2
        x, w = scaled / a, 0.0 if reg is None else reg / 2
        v = q / a * (x + w + 2 * gamma + torch.hypot(x + w, 2 * (gamma * x).sqrt())) / 2
    torch.testing.assert_close(run.final.cov.values / v, torch.ones(64))


@pytest.mark.parametrize(("dtype", "end"), [(torch.float64, 79.0), (torch.float32, 10.0)])
def test_scales_without_an_inverse_are_refused_by_name(dtype, end):
    lattice = Lattice((8, 8))
    C = HeatKernel(Spectral(lattice.symbol(1.0, torch.zeros((), dtype=dtype)), lattice))
    V = RenormalisedPotential(FreeField(0.3 * C.M), C)
    for step in (form_a(C), form_b(V), forward_backward(C)):
        with pytest.raises(ValueError, match=f"D = C_∞ − C_t at t = {end:g} is singular: mode 36 of 64"):
            mu = step(ox.Gaussian(torch.zeros(64, dtype=dtype), C.remaining(end / 2)), end / 2, end).mu
            step(mu, end, end + 1)


def test_references():
    """−log π̃_t is ¾⟨φ, D⁻¹φ⟩ + ½V_t, as a Gaussian for a free field and as a callable else."""
    phi = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    D, gaussian = FREE.C.remaining(0.4), reference_b(FREE)(0.4)
    value = 0.75 * (phi @ torch.linalg.inv(D) * phi).sum(-1) + 0.5 * FIELD.potential(FREE.C(0.4), phi)
    shifted = -gaussian.log_prob(phi)
    torch.testing.assert_close(shifted - shifted[0], value - value[0])
    torch.testing.assert_close(reference_a(FREE.C)(0.4).cov, D / 2)
    x = torch.linspace(-1, 1, 5)[:, None]
    D1 = ONE.remaining(0.4)
    want = 0.75 * x[:, 0] ** 2 / D1[0, 0] + 0.5 * SITE.potential(ONE(0.4), x)
    torch.testing.assert_close(reference_b(PHI4)(0.4)(x), want, rtol=0, atol=1e-8)


# One site of φ⁴


@pytest.mark.parametrize("rule", RULES)
def test_form_a_of_phi4_on_quantiles(rule):
    """First order to E φ² = .418994560017 at C = ½."""
    end = math.log(2)
    assert second_moment(end) == pytest.approx(0.418994560017, abs=1e-11)
    check_first_order(form_a(ONE, rule=rule), ox.Quantiles(quantiles_of_nu0(10000)), (8, 16, 32), end, 1e-4)


def test_form_b_of_phi4_on_quantiles():
    """The same curve from another functional, with V_t by quadrature."""
    check_first_order(form_b(PHI4), ox.Quantiles(quantiles_of_nu0(1000)), (4, 8, 16), math.log(2), 5e-4)


def check_first_order(step: ox.Step, mu: ox.Measure, steps: tuple[int, ...], end: float, digits: float) -> None:
    """E φ² at `end`: its changes halve as steps double, and their extrapolation is exact to the error of the nodes."""
    ends = [ox.record(ox.flow(step, mu, grid(n, end))).final for n in steps]
    values = [nu.expect(lambda x: x[..., 0].square()).item() for nu in ends]
    assert halve([a - b for a, b in zip(values, values[1:], strict=False)], 0.25), values
    assert 2 * values[-1] - values[-2] == pytest.approx(second_moment(end), abs=digits)


def test_form_a_of_phi4_on_a_density():
    """Entropic transport in the moving metric widens each step by about reg·Ċ/2, which goes away with reg."""
    space, end = ox.Grid(-5.0, 5.0, 240), 0.4
    mu = ox.Density.from_log_prob(lambda x: -(x[..., 0] ** 4) / 4, space)
    plain = ox.record(ox.flow(form_a(ONE), ox.Quantiles(quantiles_of_nu0(2000)), grid(4, end))).final.x.square().mean()
    gaps = []
    for reg in (0.04, 0.02):
        run = ox.record(ox.flow(form_a(ONE, reg=reg), mu, grid(4, end)))
        gaps.append((run.final.expect(lambda y: y[..., 0] ** 2) - plain).item())
    assert gaps[0] == pytest.approx(2 * gaps[1], rel=0.15) and 0 < gaps[1] < 0.05, gaps


def test_form_a_of_phi4_over_features():
    """Particles that carry their density, moved by gradients of polynomials: near the quantile step, and first order
    like it."""
    x, end = quantiles_of_nu0(600), 0.5
    step = form_a(ONE, solver=Features(Hermite(6), held_out=0.0))
    gaps = []
    for n in (5, 10):
        run = ox.record(ox.flow(step, ox.Particles(x[:, None], log_density=-(x**4) / 4), grid(n, end)))
        gaps.append(run.final.x.square().mean().item() - second_moment(end))
    assert gaps[0] == pytest.approx(2 * gaps[1], rel=0.3), gaps
    same = ox.record(ox.flow(form_a(ONE), ox.Quantiles(x), grid(10, end))).final
    assert run.final.x.square().mean().item() == pytest.approx(same.x.square().mean().item(), abs=5e-3)
    assert (run.final.x - same.x).square().mean().sqrt() < 0.02


def test_forward_heat_of_phi4_is_first_order_in_law():
    """On quantiles, without noise."""
    check_first_order(forward_heat(ONE), ox.Quantiles(quantiles_of_nu0(16000)), (5, 10, 20), 0.5, 3e-4)


def test_forward_heat_moves_particles_on_a_lattice():
    """8² sites: variances of modes against the same step on Gaussians."""
    V, modes = lattice_theory(8, 8)
    C, lattice = V.C, V.C.M.lattice
    m, v = modes.law(C(0.0).values, C.remaining(0.0).values)
    law0 = ox.Gaussian(lattice.to_modes(m), C.M.with_values(v))
    cloud = law0.to_particles(2000, torch.Generator().manual_seed(0))
    end = ox.record(ox.flow(forward_heat(C, torch.Generator().manual_seed(1)), cloud, grid(6, 0.3))).final
    want = ox.record(ox.flow(forward_heat(C), law0, grid(6, 0.3))).final
    ratio = lattice.to_modes(end.x).var(0) / want.cov.values
    assert (ratio - 1).abs().max() < 5 * (2 / 2000) ** 0.5
    torch.testing.assert_close(end.x.mean(0), want.mean, rtol=0, atol=0.05)


# Two sites of φ⁴

PAIR = HeatKernel(torch.tensor([[2.0, -1], [-1, 2]]))
COV = torch.tensor([[0.301180914044, 0.228276420969], [0.228276420969, 0.301180914044]])  # of ν_t at t = ½


def pair_of_nu0(n: int) -> ox.Particles:
    """Samples of e^{−V₀(φ) − ½⟨φ, Mφ⟩} by its masses on a grid, symmetrised, with their log-density."""
    axis = torch.linspace(-3.5, 3.5, 281)
    nodes = torch.cartesian_prod(axis, axis)
    g = torch.Generator().manual_seed(0)
    x = nodes[torch.multinomial(_log_nu0(nodes).softmax(0), n, replacement=True, generator=g)]
    x = x + 0.025 * (torch.rand(n, 2, generator=g) - 0.5)
    x = torch.cat([x, -x, x.flip(-1), -x.flip(-1)])
    return ox.Particles(x, log_density=_log_nu0(x))


def _log_nu0(x: Tensor) -> Tensor:
    return -Phi4(1.0, -1.0)(x) - 0.5 * (x * (x @ PAIR.M)).sum(-1)


def test_two_sites_by_the_bridge():
    mu = pair_of_nu0(20000)
    nu = ox.polchinski.Bridge(PAIR, torch.Generator().manual_seed(1))(mu, 0.0, 0.5).mu
    torch.testing.assert_close(nu.cov, COV, rtol=0, atol=0.01)


def test_two_sites_by_form_a_over_features():
    """Against the form-A curve from the covariance that the particles themselves have: D_tC_∞⁻¹ΣC_∞⁻¹D_t + R."""
    mu, C = pair_of_nu0(300), PAIR
    K, R = exact.transition(C.limit, C.remaining(0.5))
    want = K @ mu.cov @ K.mT + R
    gaps = []
    for n in (3, 6):
        step = form_a(C, solver=Features(Hermite(4), held_out=0.0))
        gaps.append((ox.record(ox.flow(step, mu, grid(n, 0.5))).final.cov - want)[0, 0].item())
    assert gaps[0] == pytest.approx(2 * gaps[1], rel=0.35) and abs(gaps[1]) < 0.02, gaps


@pytest.mark.parametrize(("form", "ladder"), [("a", (4, 8, 16)), ("b", (4, 8))])
def test_two_sites_on_a_density(form, ladder):
    """In principal coordinates, by debiased entropic transport: first order to the covariance at t = ½, and exact to
    2e-3 when extrapolated."""
    C, U = PAIR.principal()
    V0, masses = (lambda eta: Phi4(1.0, -1.0)(eta @ U.mT)), C.M.diagonal()
    V = RenormalisedPotential(V0, C, HermiteSites(14))
    options = {"reg": 0.03, "reference": "debiased"}
    step = form_a(C, **options) if form == "a" else form_b(V, **options)
    mu = ox.Density.from_log_prob(
        lambda eta: -V0(eta) - 0.5 * (masses * eta.square()).sum(-1), ox.Grid([-3.3, -2.1], [3.3, 2.1], (104, 66))
    )
    want = (U.mT @ COV @ U).diagonal()
    ends = [ox.record(ox.flow(step, mu, grid(n, 0.5))).final.cov.diagonal() for n in ladder]
    gaps = [(end / want - 1)[1].item() for end in ends]
    assert 0 < gaps[-1] < 0.03 and halve(gaps, 0.15), gaps
    torch.testing.assert_close(2 * ends[-1] - ends[-2], want, rtol=2e-3, atol=0)


# The moving metric


@pytest.mark.parametrize("rule", RULES)
def test_evolution_variational_inequality(rule):
    """In the metric of each step form A is convex with λ = least eigenvalue of QD⁻¹, which is M for the heat kernel and
    rule="end": the slack is non-negative, and tight against a σ where the inequality is one."""
    C, pi = FREE.C, reference_a(FREE.C)
    F, metric = ox.Varying(lambda t: 0.5 * ox.KL(pi(t))), ox.Moving(C, rule=rule)
    slack_lost = []
    for tick in ox.flow(form_a(C, rule=rule), law(0.0), grid(10)):
        Q = metric.over(tick.t0, tick.t1).Q
        lam = torch.linalg.eigvals(Q @ torch.linalg.inv(C.remaining(tick.t1))).real.min().item()
        if rule == "end":
            assert lam == pytest.approx(1.0)
        for sigma in (law(0.3), ox.Gaussian(torch.ones(3), 0.5 * RING), pi(tick.t1)):
            gap = observe.evi_gap(F, sigma, metric, convexity=lam)(tick)
            assert gap >= -observe.rounding(tick) * 10
            slack_lost.append(observe.evi_gap(F, sigma, metric, convexity=lam + 4)(tick).item())
        assert observe.dissipation_gap(F, metric)(tick) > 0
    assert min(slack_lost) < 0  # a larger λ would be false


def test_entropy_production():
    """At a frozen time the flow loses F at the rate ∫⟨∇φ, Ċ∇φ⟩dν, φ = δF/δν: forms A and B, along the exact flow."""
    pi, tilde, h, t = reference_a(FREE.C), reference_b(FREE), 1e-4, 0.5
    rates = []
    for F in (0.5 * ox.KL(pi(t)), ox.KL(tilde(t))):
        slope = (F(law(t + h)) - F(law(t - h))).item() / (2 * h)
        tick = ox.Tick(0, t - 1e-9, t, law(t), law(t), None)
        rates.append(observe.dissipation(F, ox.Moving(FREE.C))(tick).item())
        assert slope == pytest.approx(-rates[-1], rel=1e-6)
    assert min(rates) > 0


def test_contraction_in_the_moving_metric():
    """W_t(μ_t, σ_t) falls at least as e^{−λt/2}, λ the least eigenvalue of M (after Kopfer, Sturm 2018)."""
    C = FREE.C
    other = ox.Gaussian(torch.tensor([2.0, -1, 0]), torch.tensor([[2.0, 0.5, 0], [0.5, 1, 0], [0, 0, 0.3]]))
    for step in (ox.polchinski.Bridge(C), form_a(C)):
        paths = [ox.flow(step, mu, grid(12)) for mu in (law(0.0), other)]
        first = exact_distance(law(0.0), other, C.rate(0.0))
        for a, b in zip(*paths, strict=True):
            distance = exact_distance(a.after, b.after, C.rate(a.t1))
            assert distance <= math.exp(-0.5 * a.t1) * first * (1 + 1e-9)


def exact_distance(mu: ox.Gaussian, nu: ox.Gaussian, Q: Tensor) -> float:
    return ox.exact.bures.w2_squared(mu, nu, Q).sqrt().item()


@pytest.mark.parametrize("step", [form_a(FREE.C), form_b(FREE), forward_backward(FREE.C)])
def test_the_flow_has_no_equilibrium(step):
    """ν_t → δ₀: mean and covariance fall with D_t."""
    end = ox.record(ox.flow(step, law(0.0), grid(60, 6.0))).final
    D = FREE.C.remaining(6.0)
    assert end.cov.diagonal().sum() < 3 * D.diagonal().sum() < 0.02 and end.mean.norm() < 0.02


def test_refusals():
    mu = law(0.0)
    with pytest.raises(ValueError, match="rule"):
        form_a(FREE.C, rule="middle")
    with pytest.raises(ValueError, match="outside the times"):
        form_a(FREE.C)(mu, -0.5, -0.1)
    limited = Family(lambda t: t * torch.eye(3), limit=torch.eye(3), times=(0.0, 1.0))
    with pytest.raises(ValueError, match="D = C_∞ − C_t at t = 1 is singular: mode"):
        form_a(limited)(mu, 0.5, 1.0)
    with pytest.raises(ValueError, match="outside the times"):
        form_a(limited)(mu, 0.5, 1.5)
    flat = Family(lambda t: torch.diag(torch.ones(3)) * t, rate=lambda t: torch.diag(torch.tensor([1.0, 1, 0])))
    with pytest.raises(ValueError, match=r"Ċ is singular: mode 0.*eigenvector"):
        ox.Backward(ox.Entropy(), ox.Moving(flat))(mu, 0.1, 0.2)
    bent = Family(lambda t: torch.eye(3) * t, rate=lambda t: torch.diag(torch.tensor([1.0, -2, 1])))
    with pytest.raises(ValueError, match="Ċ is indefinite: mode 0"):
        ox.Backward(ox.Entropy(), ox.Moving(bent))(mu, 0.1, 0.2)
