"""Closed forms of the Polchinski flow: known numbers, moment equations, Polchinski's equation, quadrature, series."""

from __future__ import annotations

import math
from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from otprox import Gaussian
from otprox.exact import gaussian as G
from otprox.exact import polchinski as P


@dataclass(frozen=True, eq=False)
class Heat:
    """C_t = ∫₀ᵗ e^{−sM}ds by the eigenvectors of M."""

    M: Tensor

    def _of(self, f) -> Tensor:
        values, U = torch.linalg.eigh(self.M)
        return (U * f(values)) @ U.mT

    def __call__(self, t: float) -> Tensor:
        return self._of(lambda m: -torch.expm1(-t * m) / m)

    def rate(self, t: float) -> Tensor:
        return self._of(lambda m: torch.exp(-t * m))

    def remaining(self, t: float) -> Tensor:
        return self._of(lambda m: torch.exp(-t * m) / m)


RING = Heat(torch.tensor([[3.0, -1, -1], [-1, 3, -1], [-1, -1, 3]]))
FIELD = P.FreeField(torch.tensor([[0.5, 0.2, 0], [0.2, 1, 0], [0, 0, 2]]), torch.tensor([1, 0, -0.5]))
PAIR = Heat(torch.tensor([[2.0, -1], [-1, 2]]))
ONE = torch.ones(1, 1)


def close(actual: Tensor | float, expected: object, digits: float = 2e-12) -> None:
    """Equal to the printed digits, absolutely."""
    torch.testing.assert_close(
        torch.as_tensor(actual), torch.as_tensor(expected, dtype=torch.float64), rtol=0, atol=digits
    )


def random_field(seed: int, n: int = 3) -> tuple[Heat, P.FreeField]:
    g = torch.Generator().manual_seed(seed)
    m, a = torch.randn(n, n, generator=g), torch.randn(n, n, generator=g)
    m = 1.5 * m / torch.linalg.matrix_norm(m, 2)  # D_t = M⁻¹e^{−tM} keeps its digits: eigenvalues of M below 2.65
    return Heat(m @ m.mT + 0.4 * torch.eye(n)), P.FreeField(a @ a.mT, torch.randn(n, generator=g))


def law(field: P.FreeField, C: Heat, t: float) -> Gaussian:
    return field.law(C(t), C.remaining(t))


def slope_in_time(f, t: float, h: float = 1e-3) -> Tensor:
    """f'(t) by the five-point formula."""
    return (8 * (f(t + h) - f(t - h)) - (f(t + 2 * h) - f(t - 2 * h))) / (12 * h)


SEEDS, TIMES = st.integers(0, 10**6), st.floats(0.05, 2.0)

# The free field


def test_free_field_on_the_ring():
    close(FIELD.potential(RING(0.5), torch.tensor([0.3, -0.7, 0.2])), 0.271414887441)
    nu = law(FIELD, RING, 1.0)
    close(nu.mean, [0.040750749987, 0.036386104671, 0.034884666683])
    close(nu.cov.diagonal(), [0.100885088942, 0.100648630964, 0.100383300788])


@given(SEEDS, TIMES)
def test_free_potential_is_the_gaussian_integral(seed: int, t: float):
    C, field = random_field(seed)
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
    nodes, weights = _hermite(40)
    grid = torch.cartesian_prod(nodes, nodes, nodes)
    w = torch.cartesian_prod(weights, weights, weights).prod(-1)
    mild = P.FreeField(0.1 * FIELD.A, field.b)  # 40 nodes an axis are enough
    psi = z[:, None, :] + grid @ root(C(t))
    integral = torch.exp(-0.5 * (psi * (psi @ mild.A)).sum(-1) + psi @ field.b) @ w
    torch.testing.assert_close(mild.potential(C(t), z), -integral.log(), rtol=1e-8, atol=1e-8)


def _hermite(n: int) -> tuple[Tensor, Tensor]:
    off = torch.diag(torch.arange(1, n).double().sqrt(), 1)
    nodes, vectors = torch.linalg.eigh(off + off.mT)
    return nodes, vectors[0] ** 2


def root(matrix: Tensor) -> Tensor:
    values, U = torch.linalg.eigh(matrix)
    return (U * values.sqrt()) @ U.mT


@given(SEEDS, TIMES)
def test_free_potential_solves_polchinskis_equation(seed: int, t: float):
    C, field = random_field(seed)
    phi = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed + 1))
    A, b, rate = field.precision(C(t)), field.slope(C(t)), C.rate(t)
    grad = phi @ A - b
    right = 0.5 * (rate * A).sum() - 0.5 * (grad * (grad @ rate)).sum(-1)
    left = slope_in_time(lambda s: field.potential(C(s), phi), t)
    torch.testing.assert_close(left, right, rtol=1e-7, atol=1e-7)


@given(SEEDS, TIMES)
def test_moments_obey_the_fokker_planck_equation(seed: int, t: float):
    """∂tν = ½Δ_Ċ ν + div(νĊD⁻¹φ): ṁ = −ĊD⁻¹m, Σ̇ = Ċ − ĊD⁻¹Σ − ΣD⁻¹Ċ."""
    C, field = random_field(seed)
    drift = torch.linalg.solve(C.remaining(t), C.rate(t), left=False)
    nu = law(field, C, t)
    torch.testing.assert_close(
        slope_in_time(lambda s: law(field, C, s).mean, t), -drift @ nu.mean, rtol=1e-7, atol=1e-7
    )
    right = C.rate(t) - drift @ nu.cov - nu.cov @ drift.mT
    torch.testing.assert_close(slope_in_time(lambda s: law(field, C, s).cov, t), right, rtol=1e-7, atol=1e-7)


@given(SEEDS, TIMES)
def test_both_functionals_drive_the_same_curve(seed: int, t: float):
    """div(νĊ∇ of ½log(ν/π_t)) = div(νĊ∇ of log(ν/π̃_t)) at ν_t: their gradients agree there."""
    C, field = random_field(seed)
    nu, D = law(field, C, t), C.remaining(t)

    def gradient(weight: float, target: Gaussian) -> tuple[Tensor, Tensor]:
        slope = weight * (torch.linalg.inv(target.cov) - torch.linalg.inv(nu.cov))
        shift = torch.linalg.solve(target.cov, target.mean) - torch.linalg.solve(nu.cov, nu.mean)
        return slope, weight * shift

    a, b = gradient(0.5, P.free_reference(D)), gradient(1.0, field.reference(C(t), D))
    torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


@given(SEEDS, TIMES, TIMES)
def test_transitions_compose_and_carry_the_law(seed: int, s: float, lag: float):
    C, field = random_field(seed)
    t = s + lag
    nu = P.transported(law(field, C, s), C.remaining(s), C.remaining(t))
    torch.testing.assert_close(nu.mean, law(field, C, t).mean, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(nu.cov, law(field, C, t).cov, rtol=1e-8, atol=1e-10)
    K1, R1 = P.transition(C.remaining(0.0), C.remaining(s))
    K2, R2 = P.transition(C.remaining(s), C.remaining(t))
    K, R = P.transition(C.remaining(0.0), C.remaining(t))
    torch.testing.assert_close(K2 @ K1, K, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(K2 @ R1 @ K2.mT + R2, R, rtol=1e-8, atol=1e-10)


def test_there_is_no_equilibrium():
    nu = law(FIELD, RING, 6.0)
    assert nu.mean.norm() < 1e-3
    assert nu.cov.norm() < 3e-3


# JKO steps


def test_first_steps_on_the_ring():
    mu = law(FIELD, RING, 0.0)
    close(P.form_a(mu, RING, 0.0, 0.1).mean, [0.225269531162, 0.055054131311, -0.003499966238])
    close(P.form_b(mu, FIELD, RING, 0.0, 0.1).mean, [0.224185506817, 0.055351227029, -0.002590933447])
    close(P.form_a(mu, RING, 0.0, 0.1, "average").mean[0], 0.21665, 5e-6)


@pytest.mark.parametrize("rule", ["end", "average"])
@pytest.mark.parametrize("form", ["a", "b"])
def test_a_step_is_stationary_for_its_objective(rule, form):
    """In the flat coordinates z = Q^−½φ the objective γF + ½W² has zero gradient at ν, by autograd."""
    mu, t0, t1 = law(FIELD, RING, 0.3), 0.3, 0.55
    Q = P.mobility(RING, t0, t1, rule)
    if form == "a":
        nu, target, gamma = (
            P.form_a(mu, RING, t0, t1, rule),
            P.free_reference(RING.remaining(t1)),
            (t1 - t0) / 2,
        )
    else:
        nu = P.form_b(mu, FIELD, RING, t0, t1, rule)
        target, gamma = FIELD.reference(RING(t1), RING.remaining(t1)), t1 - t0
    mean, cov = nu.mean.clone().requires_grad_(), nu.cov.clone().requires_grad_()
    W = torch.linalg.inv(root(Q))
    a, b = W @ cov @ W, W @ mu.cov @ W
    cross = torch.linalg.eigvals(a @ b).real.sqrt().sum()
    w2 = (W @ (mean - mu.mean)).square().sum() + a.trace() + b.trace() - 2 * cross
    precision = torch.linalg.inv(target.cov)
    kl = 0.5 * (
        (precision @ cov).trace()
        - torch.linalg.slogdet(cov)[1]
        + (mean - target.mean) @ precision @ (mean - target.mean)
    )
    gradients = torch.autograd.grad(gamma * kl + w2 / 2, (mean, cov))
    for gradient in gradients:
        assert (gradient + gradient.mT if gradient.ndim == 2 else gradient).abs().max() < 1e-9


def errors(form: str, rule: str, n: int) -> tuple[float, float]:
    """Largest errors of the mean and of the covariance at T = 1 after n steps on the ring."""
    mu = law(FIELD, RING, 0.0)
    for k in range(n):
        t0, t1 = k / n, (k + 1) / n
        mu = P.form_a(mu, RING, t0, t1, rule) if form == "a" else P.form_b(mu, FIELD, RING, t0, t1, rule)
    exact = law(FIELD, RING, 1.0)
    return (mu.mean - exact.mean).abs().max().item(), (mu.cov - exact.cov).abs().max().item()


@pytest.mark.parametrize(("form", "first", "last"), [("a", 4.82e-3, 2.88e-4), ("b", 2.87e-3, 1.67e-4)])
def test_first_order_convergence_of_the_end_rule(form: str, first: float, last: float):
    means = [errors(form, "end", n)[0] for n in (10, 20, 40, 80, 160)]
    assert means[0] == pytest.approx(first, abs=6e-6)
    assert means[-1] == pytest.approx(last, abs=6e-7)
    assert all(1.8 < a / b < 2.2 for a, b in zip(means, means[1:], strict=False))


def test_average_rule_has_exact_means_and_twice_the_error_in_covariance():
    mean, cov = errors("a", "average", 40)
    assert mean < 1e-14
    assert 1.5 < cov / errors("a", "end", 40)[1] < 2.6
    assert 1.8 < cov / errors("a", "average", 80)[1] < 2.2


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="rule must be 'end' or 'average', not 'middle'"):
        P.form_a(law(FIELD, RING, 0.0), RING, 0.0, 0.1, "middle")


def test_modes_are_the_diagonal_of_the_matrices():
    """A polynomial in M has its modes; everything entry by entry equals everything as matrices."""
    values, U = torch.linalg.eigh(RING.M + torch.diag(torch.tensor([0.0, 0.3, 0.7])))
    C = Heat((U * values) @ U.mT)
    a, b = values**2 / 5 - 0.1, torch.tensor([0.4, -1.0, 0.7])
    field, modes = P.FreeField((U * a) @ U.mT, U @ b), P.FreeModes(a, b)
    t0, t1 = 0.2, 0.35
    c, r = -torch.expm1(-t1 * values) / values, torch.exp(-t1 * values) / values
    mu = field.law(C(t0), C.remaining(t0))
    mean, variance = modes.law(-torch.expm1(-t0 * values) / values, torch.exp(-t0 * values) / values)
    close(U @ mean, mu.mean, 1e-13)
    close((U * variance) @ U.mT, mu.cov, 1e-13)
    phi = torch.tensor([[0.2, -0.5, 1.1], [0.0, 0.0, 0.0]])
    close(modes.potential(c, phi), field.potential(C(t1), phi @ U.mT), 1e-12)
    for rule in ("end", "average"):
        q = (U.mT @ P.mobility(C, t0, t1, rule) @ U).diagonal()
        for new, (m, v) in (
            (P.form_a(mu, C, t0, t1, rule), P.form_a_modes(mean, variance, r, q, t1 - t0)),
            (P.form_b(mu, field, C, t0, t1, rule), P.form_b_modes(mean, variance, modes, c, r, q, t1 - t0)),
        ):
            close(U @ m, new.mean, 1e-12)
            close((U * v) @ U.mT, new.cov, 1e-12)


# One site

SITE = P.FewSites(P.phi4())


@pytest.mark.parametrize(
    ("C", "values"),
    [
        (0.25, [-0.081769369364, -0.057273117954, 1.081244821405]),
        (0.5, [-0.087870446931, 0.044724728285, 0.912232626866]),
        (0.75, [-0.060777409466, 0.107595126808, 0.842109877716]),
    ],
)
def test_phi4_potential(C: float, values: list[float]):
    close(SITE.potential(C * ONE, torch.tensor([[0.0], [1.0], [2.0]])), values)


def test_phi4_potential_at_the_end():
    close(SITE.potential(ONE, torch.zeros(1, 1)), [-0.022510401213])


@pytest.mark.parametrize(
    ("C", "value"), [(0.0, 0.675978240067), (0.25, 0.567737760038), (0.5, 0.418994560017), (0.75, 0.229748640004)]
)
def test_phi4_second_moment(C: float, value: float):
    """By quadrature, and by the exact transition: D + D²(M2(0) − 1) for C_∞ = 1."""
    D = 1 - C
    close(SITE.second_moment(C * ONE, D * ONE), [[value]])
    K, R = P.transition(ONE, D * ONE) if C else (ONE, 0 * ONE)
    close(K * P.phi4_second_moment() * K + R, [[value]])
    close(D + D**2 * (P.phi4_second_moment() - 1), value)


@given(st.floats(0.2, 3.0), st.floats(-2.0, 2.0), st.floats(0.05, 0.95), st.floats(-2.0, 2.0))
def test_site_solves_polchinskis_equation(g: float, mu: float, C: float, phi: float):
    """∂_C V = ½V'' − ½V'² with Ċ = 1."""
    site, x = P.FewSites(P.phi4(g, mu)), torch.tensor([[phi]])
    slope, bend = site.gradient(C * ONE, x)[0, 0], site.hessian(C * ONE, x)[0, 0, 0]
    left = slope_in_time(lambda c: site.potential(c * ONE, x)[0], C, 5e-3 * C)
    torch.testing.assert_close(left, 0.5 * bend - 0.5 * slope**2, rtol=1e-6, atol=1e-6)


@given(st.floats(0.2, 3.0), st.floats(-2.0, 2.0), st.floats(0.05, 2.0))
def test_site_derivatives(g: float, mu: float, C: float):
    site, x = P.FewSites(P.phi4(g, mu)), torch.tensor([[0.0], [0.7], [-1.6]])
    slope = slope_in_time(lambda s: site.potential(C * ONE, x + s), 0.0)
    bend = slope_in_time(lambda s: site.gradient(C * ONE, x + s)[:, 0], 0.0)
    torch.testing.assert_close(site.gradient(C * ONE, x)[:, 0], slope, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(site.hessian(C * ONE, x)[:, 0, 0], bend, rtol=1e-8, atol=1e-8)


def test_quadrature_of_a_free_site_is_the_closed_form():
    field = P.FreeField(torch.tensor([[0.8]]), torch.tensor([0.3]))
    site = P.FewSites(lambda phi: 0.4 * phi[..., 0] ** 2 - 0.3 * phi[..., 0])
    C, D, x = 0.7 * ONE, 0.6 * ONE, torch.tensor([[-1.0], [0.4]])
    close(site.potential(C, x), field.potential(C, x), 1e-13)
    close(site.second_moment(C, D), field.law(C, D).cov + field.law(C, D).mean ** 2, 1e-13)


# Sine-Gordon


def test_sine_gordon_values():
    close(
        P.sine_gordon(1.0, 2.0, 0.5, torch.tensor([0.0, 0.5, math.pi / 2])),
        [0.156405669296, -0.038579165453, -0.522871652912],
    )


@given(st.floats(-3.0, 3.0), st.floats(0.2, 3.0), st.floats(0.05, 2.0))
def test_sine_gordon_series_is_the_quadrature(z: float, beta: float, C: float):
    site, x = P.FewSites(lambda phi: z * torch.cos(beta * phi[..., 0])), torch.linspace(-2, 2, 5)
    torch.testing.assert_close(
        P.sine_gordon(z, beta, C, x), site.potential(C * ONE, x[:, None]), rtol=1e-10, atol=1e-10
    )


@given(st.floats(-8.0, 8.0))
def test_bessel_functions(z: float):
    theta = 2 * math.pi * torch.arange(200) / 200
    expected = (torch.exp(z * torch.cos(theta)) * torch.cos(torch.arange(12)[:, None] * theta)).mean(-1)
    torch.testing.assert_close(P.bessel_i(12, z), expected, rtol=1e-12, atol=1e-12 * math.exp(abs(z)))


def test_bessel_functions_at_zero():
    assert P.bessel_i(3, 0.0).tolist() == [1.0, 0.0, 0.0]


# Two sites


def test_two_site_phi4():
    pair, C = P.FewSites(P.phi4(), 2), PAIR(0.5)
    close(
        pair.potential(C, torch.tensor([[0.0, 0], [1, 1], [1, -1]])),
        [-0.1789909504, -0.0492355264, -0.0331078489],
        1e-10,
    )
    nu = pair.second_moment(0 * C, PAIR.remaining(0.0))
    close(nu[0], [0.547127923045, 0.243365058966])
    half = pair.second_moment(C, PAIR.remaining(0.5))
    close(half[0], [0.301180914044, 0.228276420969])
    K, R = P.transition(PAIR.remaining(0.0), PAIR.remaining(0.5))
    close(K @ nu @ K.mT + R, half, 1e-12)


def test_two_site_potential_solves_polchinskis_equation():
    pair, t, x = P.FewSites(P.phi4(1.5, -0.5), 2), 0.4, torch.tensor([[0.3, -0.8], [1.2, 0.5]])
    slope, bend, rate = pair.gradient(PAIR(t), x), pair.hessian(PAIR(t), x), PAIR.rate(t)
    right = 0.5 * (rate * bend).sum((-2, -1)) - 0.5 * (slope * (slope @ rate)).sum(-1)
    left = slope_in_time(lambda s: pair.potential(PAIR(s), x), t)
    torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-8)


def test_uncoupled_sites_add_up():
    x = torch.tensor([[0.4, -1.1]])
    C = torch.diag(torch.tensor([0.3, 0.8]))
    sum_of_sites = SITE.potential(0.3 * ONE, x[:, :1]) + SITE.potential(0.8 * ONE, x[:, 1:])
    close(P.FewSites(P.phi4(), 2).potential(C, x), sum_of_sites, 1e-12)


def test_three_sites_are_refused():
    with pytest.raises(ValueError, match="1 or 2 sites, not 3"):
        P.FewSites(P.phi4(), 3)


def test_second_moment_of_quartic_sites():
    for g in (0.5, 2.0):
        site = P.FewSites(P.phi4(g, -1.0))
        assert site.second_moment(0 * ONE, ONE).item() == pytest.approx(P.phi4_second_moment(g), rel=1e-12)


def test_steps_on_modes_are_those_of_the_prox():
    mu, target = Gaussian([0.7], [[1.3]]), Gaussian([-0.2], [[0.4]])
    new = G.prox_kl(mu, target, 0.3, torch.tensor([[1.7]]))
    m, v = P.prox_kl_modes(mu.mean, mu.cov[0], target.mean, target.cov[0], torch.tensor([1.7]), 0.3)
    close(m, new.mean, 1e-14)
    close(v, new.cov[0], 1e-14)
