"""Every functional on every measure that supports it: first variations and gradients against finite differences, and
the algebra."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from otprox import (
    KL,
    Blob,
    Entropy,
    Functional,
    Gaussian,
    Interaction,
    Particles,
    PorousMedium,
    Potential,
    Quadratic,
    Varying,
)
from otprox.kernels import RBF, Cosine
from otprox.measures import Density, Grid, Measure, Quantiles


def quartic(x: Tensor) -> Tensor:
    return (0.1 * x**4 - 0.5 * x**2).sum(-1) + 0.3 * x[..., 0]


def half_square(z: Tensor) -> Tensor:
    return 0.5 * z.square().sum(-1)


def target(d: int) -> Gaussian:
    return Gaussian([0.5, -0.25][:d], torch.tensor([[0.8, 0.3], [0.3, 1.5]])[:d, :d])


TRANSPORT: dict[str, Callable[[int], Functional]] = {  # a value on any measure
    "Potential": lambda d: Potential(quartic),
    "Quadratic": lambda d: Potential(Quadratic.of(target(d))),
    "Interaction": lambda d: Interaction(half_square),
    "Interaction(RBF)": lambda d: Interaction(RBF(1.3)),
    "Interaction(Cosine)": lambda d: (
        Interaction(Cosine([-1.0, 0.2])) if d == 1 else Interaction(lambda z: -z.cos().sum(-1))
    ),
    "difference": lambda d: Potential(quartic) - 0.7 * Interaction(RBF(1.3)),
}
DENSITY: dict[str, Callable[[int], Functional]] = {  # a value where there is a density
    "Entropy": lambda d: Entropy(),
    "PorousMedium(2)": lambda d: PorousMedium(2),
    "PorousMedium(1.5)": lambda d: PorousMedium(1.5),
    "fast diffusion": lambda d: PorousMedium(0.9),
    "KL": lambda d: KL(target(d)),
    "KL(V)": lambda d: KL(quartic),
    "sum": lambda d: 0.5 * KL(target(d)) + PorousMedium(2) / 3 - 0.1 * Interaction(RBF(1.3)),
    "Varying": lambda d: (2 * Varying(lambda t: t * KL(target(d))) + Entropy()).at(0.3),
}
BLOB: dict[str, Callable[[int], Functional]] = {  # a value on nodes and Gaussians
    "Blob": lambda d: Blob(0.8),
    "Blob(full)": lambda d: Blob(0.8, "full"),
    "Blob + Potential": lambda d: Potential(quartic) + 0.5 * Blob(0.8),
}
ON_NODES, ON_GRIDS, ON_ALL = TRANSPORT | BLOB, TRANSPORT | DENSITY, TRANSPORT | DENSITY | BLOB


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gaussian(d: int) -> Gaussian:
    return Gaussian([0.2, -0.4][:d], torch.tensor([[0.9, -0.35], [-0.35, 0.6]])[:d, :d])


def particles(d: int, batch: tuple[int, ...] = ()) -> Particles:
    return Particles(random(*batch, 6, d), torch.softmax(0.5 * random(*batch, 6, seed=1), -1))


def density(d: int, n: int = 24, periodic: bool = False) -> Density:
    half = 2 * math.pi  # whole periods of Cosine
    grid = Grid([-half] * d, [half] * d, [n] * d, periodic=periodic)
    return Density.from_log_prob(gaussian(d).log_prob, grid)


def quantiles() -> Quantiles:
    return Quantiles(torch.tensor([-1.2, -0.5, -0.3, 0.4, 0.7, 1.9]))


def derivative(f: Callable[[float], Tensor], step: float = 1e-3) -> Tensor:
    """f'(0) by central differences of order six."""
    d = [(f(k * step) - f(-k * step)) / (2 * k * step) for k in (1, 2, 3)]
    return 1.5 * d[0] - 0.6 * d[1] + 0.1 * d[2]


def slopes(f: Callable[[Tensor], Tensor], x: Tensor, step: float = 1e-3) -> Tensor:
    """∇f at each of the points x (n, d), f (…, n, d) -> (…, n) pointwise."""
    axes = torch.eye(x.shape[-1])
    return torch.stack([derivative(lambda s, e=e: f(x + s * e), step) for e in axes], -1)


# First variations: dF = ∫ φ dσ for directions σ of mass 0


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("name", ON_GRIDS)
def test_first_variation_on_a_density(name, d, periodic):
    mu, F = density(d, periodic=periodic), ON_GRIDS[name](d)
    sigma = mu.values * random(*mu.values.shape, seed=3).clamp(-2, 2)
    sigma -= mu.values * sigma.sum() / mu.values.sum()
    found = (F.first_variation(mu) * sigma.flatten()).sum() * mu.grid.volume
    expected = derivative(lambda s: F(mu.with_state(values=mu.values + s * sigma)), 1e-2)
    assert abs(expected) > 1e-4
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("name", ON_NODES)
def test_first_variation_on_particles(name, d):
    mu, F = particles(d), ON_NODES[name](d)
    sigma = mu.w * (random(6, seed=3) - 1)
    sigma -= mu.w * sigma.sum()
    expected = derivative(lambda s: F(mu.with_state(w=mu.w + s * sigma)), 1e-2)
    torch.testing.assert_close(F.first_variation(mu) @ sigma, expected, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("name", ON_ALL)
def test_first_variation_on_a_gaussian(name, d):
    """Along N(m + s·a, Σ + s·A): d/ds F(μ_s) = d/ds ∫ φ dμ_s with φ = δF/δμ at μ_0."""
    mu, F = gaussian(d), ON_ALL[name](d)
    a, A = random(d, seed=4), 0.2 * random(d, d, seed=5)

    def at(s: float) -> Gaussian:
        return mu.with_state(mean=mu.mean + s * a, cov=mu.cov + s * (A + A.mT))

    expected = derivative(lambda s: at(s).expect(lambda x: F.first_variation(mu, x)))
    torch.testing.assert_close(derivative(lambda s: F(at(s))), expected, rtol=2e-6, atol=1e-7)


# Gradients


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("name", ON_ALL)
def test_gradient_of_the_first_variation_on_a_gaussian(name, d):
    mu, F = gaussian(d), ON_ALL[name](d)
    x = random(5, d, seed=2)
    torch.testing.assert_close(F.gradient(mu, x), slopes(lambda y: F.first_variation(mu, y), x), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(F.gradient(mu), F.gradient(mu, mu.points))


@pytest.mark.parametrize("mu", [particles(1), particles(2), quantiles()], ids=["line", "plane", "quantiles"])
@pytest.mark.parametrize("name", ON_NODES)
def test_gradient_on_nodes(name, mu):
    """∇φ by differences of φ away from the nodes, and w_i ∇φ(x_i) by differences of F."""
    F = ON_NODES[name](mu.dim)
    x = random(5, mu.dim, seed=2)
    torch.testing.assert_close(F.gradient(mu, x), slopes(lambda y: F.first_variation(mu, y), x), rtol=1e-8, atol=1e-9)
    found = (mu.w[:, None] * F.gradient(mu)).flatten()
    moved = [derivative(lambda s, e=e: F(mu.with_state(x=mu.x + s * e.view_as(mu.x)))) for e in torch.eye(mu.x.numel())]
    torch.testing.assert_close(found, torch.stack(moved), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", DENSITY)
def test_gradient_on_quantiles_is_that_of_the_sum(name):
    mu, F = quantiles(), DENSITY[name](1)
    moved = [derivative(lambda s, e=e: F(mu.with_state(x=mu.x + s * e[:, None]))) for e in torch.eye(mu.n)]
    torch.testing.assert_close(F.gradient(mu)[:, 0] / mu.n, torch.stack(moved), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("name", ON_GRIDS)
def test_gradient_on_a_density_is_second_order(name, d):
    """Against the Gaussian that the density averages, weighted by it."""
    F, errors = ON_GRIDS[name](d), []
    for n in (24, 48):
        mu = density(d, n)
        gap = F.gradient(mu) - F.gradient(gaussian(d), mu.points)
        errors.append(mu.expect(lambda x, gap=gap: gap.square().sum(-1)).sqrt().item())
    assert errors[1] < 0.05
    assert errors[0] < 1e-6 or math.log2(errors[0] / errors[1]) > 1.8


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("name", TRANSPORT)
def test_gradient_at_points_on_a_density(name, d):
    mu, F = density(d), TRANSPORT[name](d)
    x = random(5, d, seed=2)
    torch.testing.assert_close(F.gradient(mu, x), slopes(lambda y: F.first_variation(mu, y), x), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(F.first_variation(mu, mu.points), F.first_variation(mu), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("name", ON_ALL)
def test_bures_gradient(name, d):
    """dF = ⟨E∇φ, dm⟩ + ½ tr(E∇²φ dΣ) on Gaussians."""
    mu, F = gaussian(d), ON_ALL[name](d)
    shift, hessian = F.bures_gradient(mu)
    moved = [derivative(lambda s, e=e: F(mu.with_state(mean=mu.mean + s * e))) for e in torch.eye(d)]
    torch.testing.assert_close(shift, torch.stack(moved), rtol=1e-6, atol=1e-7)
    for i in range(d):
        for j in range(i + 1):
            A = torch.zeros(d, d)
            A[i, j] = A[j, i] = 1.0
            spread = derivative(lambda s, A=A: F(mu.with_state(cov=mu.cov + s * A)))
            torch.testing.assert_close(0.5 * (hessian * A).sum(), spread, rtol=1e-5, atol=1e-6)
    assert torch.equal(hessian, hessian.mT)


# Values do not depend on what else is in the batch


BATCHES: dict[str, tuple[Measure, Callable[[Measure, int], Measure]]] = {
    "Gaussian": (
        Gaussian(random(3, 1), torch.rand(3, 1, 1, generator=torch.Generator().manual_seed(0)) + 0.2),
        lambda mu, i: mu.with_state(mean=mu.mean[i], cov=mu.cov[i]),
    ),
    "Particles": (particles(1, (3,)), lambda mu, i: mu.with_state(x=mu.x[i], w=mu.w[i])),
    "Quantiles": (Quantiles(random(3, 8).sort(-1).values), lambda mu, i: mu.with_state(x=mu.x[i])),
    "Density": (
        Density(torch.softmax(random(3, 16), -1) * 16 / 12, Grid(-6.0, 6.0, 16)),
        lambda mu, i: mu.with_state(values=mu.values[i]),
    ),
}
SUPPORTED = {
    "Gaussian": ON_ALL,
    "Particles": ON_NODES,
    "Quantiles": ON_ALL,
    "Density": ON_GRIDS,
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in SUPPORTED.items() for name in names])
def test_a_batch_is_its_items(kind, name):
    (mu, item), F = BATCHES[kind], ON_ALL[name](1)
    value, variation, gradient = F(mu), F.first_variation(mu), F.gradient(mu)
    assert value.shape == (3,)
    assert variation.shape == mu.points.shape[:-1]
    assert gradient.shape == mu.points.shape
    for i in range(3):
        one = item(mu, i)
        torch.testing.assert_close(value[i], F(one))
        torch.testing.assert_close(variation[i], F.first_variation(one))
        torch.testing.assert_close(gradient[i], F.gradient(one))


@pytest.mark.parametrize("name", DENSITY)
def test_bare_particles_have_no_density_and_the_error_says_what_would_work(name):
    mu, F = particles(1), DENSITY[name](1)
    for call in (F, F.first_variation, F.gradient):
        with pytest.raises(TypeError, match=r"Particles has no .*Blob\(width\).*Quantiles"):
            call(mu)


# The algebra


def test_values_are_linear():
    mu = gaussian(2)
    F, G = Potential(quartic), Entropy()
    a, b = F(mu), G(mu)
    for H, value in [
        (F + G, a + b),
        (F - G, a - b),
        (-F, -a),
        (2 * F, 2 * a),
        (F * 2, 2 * a),
        (F / 4, a / 4),
        (torch.tensor(3.0) * F, 3 * a),
        (2 * (F + 3 * (G - F)) / 2 - G, -2 * a + 2 * b),
    ]:
        torch.testing.assert_close(H(mu), value)
        x = mu.points
        weights = [sum(c for c, f in H.terms if type(f) is kind) for kind in (Potential, Entropy)]
        expected = [
            weights[0] * getattr(F, m)(mu, x) + weights[1] * getattr(G, m)(mu, x)
            for m in ("first_variation", "gradient")
        ]
        torch.testing.assert_close(H.first_variation(mu, x), expected[0])
        torch.testing.assert_close(H.gradient(mu, x), expected[1])


def summary(F: Functional) -> list[tuple[float, str]]:
    return [(c, type(f).__name__) for c, f in F.terms]


def test_normal_form():
    V = quartic
    assert summary(Potential(V) + Entropy()) == summary(KL(V)) == [(1.0, "Potential"), (1.0, "Entropy")]
    assert KL(V).terms[0][1].V is V
    assert summary(KL(target(1))) == summary(KL(V))
    nested = 2 * (KL(V) - 3 * (Interaction(RBF(1.0)) + 0.5 * KL(V))) + PorousMedium(2)
    assert summary(nested) == [
        (2.0, "Potential"),
        (2.0, "Entropy"),
        (-6.0, "Interaction"),
        (-3.0, "Potential"),
        (-3.0, "Entropy"),
        (1.0, "PorousMedium"),
    ]
    assert summary(Entropy()) == [(1.0, "Entropy")]


def test_potential_and_entropy_are_the_kl():
    mu, pi = gaussian(2), target(2)
    V = Quadratic.of(pi)
    F = Potential(V) + Entropy()
    torch.testing.assert_close(F(mu), KL(pi)(mu))
    for found, expected in zip(F.bures_gradient(mu), KL(pi).bures_gradient(mu), strict=True):
        torch.testing.assert_close(found, expected)
    assert KL(pi)(pi).item() == pytest.approx(0, abs=1e-14)


def test_kl_of_gaussians(gaussians):
    value = KL(Gaussian(gaussians.mq, gaussians.Q))(Gaussian(gaussians.m0, gaussians.S0))
    assert value.item() == pytest.approx(7.401787151704376, rel=1e-14)


def test_convexity_adds_up():
    V = Potential(Quadratic([0.0, 0.0], precision=[[2.0, 0.0], [0.0, -0.5]]))
    assert V.convexity() == pytest.approx(-0.5)
    assert (-V).convexity() == pytest.approx(-2.0)
    assert (2 * V + Entropy() + PorousMedium(3)).convexity() == pytest.approx(-1.0)
    assert (V + Interaction(RBF(2.0))).convexity() == pytest.approx(-0.75)
    assert KL(target(2)).convexity() == pytest.approx(1 / torch.linalg.eigvalsh(target(2).cov).max().item())
    for unknown in (V - Entropy(), KL(quartic), PorousMedium(0.5), V + Interaction(half_square)):
        assert unknown.convexity() is None


def test_what_is_not_algebra_is_refused():
    F = Entropy()
    for operation in (
        lambda: F + 1,
        lambda: 1 + F,
        lambda: F - 1.0,
        lambda: F * F,
        lambda: F * "2",
        lambda: F / F,
        lambda: F + quartic,
    ):
        with pytest.raises(TypeError):
            operation()
    for c in (math.nan, math.inf):
        with pytest.raises(ValueError, match=f"scaled by a finite number, not {c}"):
            c * F


# Varying


def test_varying_has_values_only_at_a_time():
    F = Varying(lambda t: t * Entropy())
    mu = gaussian(1)
    for what, call in {
        "terms": lambda: F.terms,
        "value": lambda: F(mu),
        "first variation": lambda: F.first_variation(mu),
        "gradient": lambda: F.gradient(mu),
    }.items():
        with pytest.raises(TypeError, match=rf"{what} only at a time: use .at\(t\)"):
            call()
    with pytest.raises(TypeError, match="only at a time"):
        (2 * F + Entropy())(mu)
    torch.testing.assert_close(F.at(0.5)(mu), 0.5 * Entropy()(mu))


def test_varying_inside_sums_scalings_and_itself():
    mu = gaussian(1)
    F = Varying(lambda t: t * Entropy())
    G = 2 * (F + KL(target(1))) - Varying(lambda t: F)
    torch.testing.assert_close(G.at(3.0)(mu), 3 * Entropy()(mu) + 2 * KL(target(1))(mu))
    assert Entropy().at(1.0) == Entropy()


def test_varying_must_give_a_functional():
    with pytest.raises(TypeError, match=r"needs f\(t\) to be a Functional; f\(0.5\) is a float"):
        Varying(lambda t: t).at(0.5)


# Bad input


MEASURES = [gaussian(1), gaussian(2), particles(1), particles(2), quantiles(), density(1), density(2)]
NAMES = [f"{type(mu).__name__}-{mu.dim}" for mu in MEASURES]


@pytest.mark.parametrize("mu", MEASURES, ids=NAMES)
def test_a_potential_of_the_wrong_shape_is_refused(mu):
    for V in (lambda x: x**2, lambda x: x.square().sum(), lambda x: 1.0):
        F = Potential(V)
        for call in (F, F.first_variation, F.gradient):
            with pytest.raises(ValueError, match=r"V must map points .*for a radial one"):
                call(mu)


@pytest.mark.parametrize("mu", MEASURES, ids=NAMES)
def test_a_potential_without_a_derivative_is_refused(mu):
    with pytest.raises(TypeError, match="V is not differentiable by autograd"):
        Potential(lambda x: x.detach().square().sum(-1)).gradient(mu)


@pytest.mark.parametrize("mu", MEASURES, ids=NAMES)
def test_a_nan_is_not_hidden(mu):
    def V(x: Tensor) -> Tensor:
        return torch.where(x[..., 0] > 0, half_square(x), math.nan)

    for F in (Potential(V), 2 * Potential(V) + Interaction(half_square)):
        assert F(mu).isnan()
        assert F.first_variation(mu).isnan().any()
    if isinstance(mu, Particles | Quantiles):
        broken = mu.with_state(x=torch.cat([mu.x[:-1], torch.full_like(mu.x[-1:], math.nan)]))
        for name, F in ON_NODES.items():
            assert F(mu.dim)(broken).isnan(), name


def test_what_is_not_a_functional_is_refused():
    with pytest.raises(TypeError, match="Potential needs a callable V, not a float"):
        Potential(1.0)
    with pytest.raises(TypeError, match="KL needs a Gaussian or a callable V = −log density, not a Particles"):
        KL(particles(1))
    for m in (0, 1, -2, math.nan):
        with pytest.raises(ValueError, match=f"PorousMedium needs an exponent m > 0 other than 1, not {m}"):
            PorousMedium(m)
