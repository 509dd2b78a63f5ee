"""Diffusions, porous media, aggregation, the double well: known numbers, quadrature, ODEs, minimisation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from otprox import Density, Entropy, Gaussian, Grid, Interaction
from otprox.exact import aggregation as A
from otprox.exact import diffusion as D
from otprox.exact import gaussian as G


def approx(value: float, digits: int = 12) -> object:
    """Equal to a number printed with so many decimals."""
    return pytest.approx(value, abs=0.6 * 10**-digits)


# Barenblatt


@pytest.mark.parametrize(
    ("dim", "m", "alpha", "C", "radius", "top", "second", "energy"),
    [
        (1, 2, 1 / 3, 0.360562392577, 2.080083823052, 0.360562392577, 0.865349742184, 0.288449914061),
        (1, 3, 1 / 4, 0.183776298474, 1.485030498571, 0.428691379052, 0.551328895422, 0.068916111928),
        (2, 2, 1 / 2, 0.199471140201, 1.786487683476, 0.199471140201, 1.063846081070, 0.132980760134),
        (2, 3, 1 / 3, 0.088943166629, 1.265297198025, 0.298233409647, 0.640390799732, 0.026682949989),
        (3, 2, 3 / 5, 0.134810140819, 1.642011819807, 0.134810140819, 1.155515492737, 0.077034366182),
        (3, 3, 3 / 8, 0.058711299317, 1.187043042019, 0.242304146306, 0.704535591803, 0.014677824829),
    ],
)
def test_barenblatt_printed(dim, m, alpha, C, radius, top, second, energy):
    b = D.barenblatt(m, dim)
    R = b.radius(1.0)
    got = [b.C, R, b.maximum(R), b.second_moment(R), b.energy(R)]
    assert b.alpha == pytest.approx(alpha)
    assert [float(v) for v in got] == [approx(v) for v in (C, radius, top, second, energy)]


@pytest.mark.parametrize(("dim", "m"), [(1, 2.0), (1, 1.5), (2, 3.0), (3, 2.0), (5, 1.2)])
def test_barenblatt_by_quadrature(dim, m):
    b, t = D.barenblatt(m, dim, mass=0.7, coefficient=0.3), 2.5
    R = b.radius(t).item()
    theta = (torch.arange(20_000) + 0.5) * (math.pi / 2 / 20_000)  # r = R sin θ: smooth at the edge
    r = R * theta.sin()
    x = torch.zeros(len(r), dim)
    x[:, 0] = r
    rho = b.density(x, radius=R)
    sphere = 2 * math.pi ** (dim / 2) / math.gamma(dim / 2)
    weight = sphere * r ** (dim - 1) * R * theta.cos() * (math.pi / 2 / 20_000)
    assert (rho * weight).sum().item() == pytest.approx(0.7, rel=1e-8)
    assert (rho * r**2 * weight).sum().item() == pytest.approx(b.second_moment(R).item(), rel=1e-8)
    assert (0.3 * rho**m / (m - 1) * weight).sum().item() == pytest.approx(b.energy(R).item(), rel=1e-8)
    assert b.time(R).item() == pytest.approx(t)


@pytest.mark.parametrize(("dim", "m"), [(1, 2.0), (2, 3.0), (3, 1.7)])
def test_barenblatt_solves_the_equation(dim, m):
    b, t = D.barenblatt(m, dim, mass=1.3, coefficient=0.6), torch.tensor(0.8, requires_grad=True)
    x = 0.25 * torch.randn(7, dim, generator=torch.Generator().manual_seed(0))
    rate = torch.autograd.functional.jacobian(lambda s: b.density(x, t=s), t)

    def power(y: Tensor) -> Tensor:
        return b.density(y[None], t=0.8)[0] ** m

    laplacian = torch.stack([torch.autograd.functional.hessian(power, y).trace() for y in x])
    torch.testing.assert_close(rate, 0.6 * laplacian, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    ("dim", "m", "expected"),
    [(1, 2, 2.145270258161), (2, 2, 1.828164478629), (3, 2, 1.672520642196), (1, 3, 1.519674628759),
     (2, 1.5, 2.682175805643)],
)  # fmt: skip
def test_barenblatt_jko_printed(dim, m, expected):
    b = D.barenblatt(m, dim)
    assert b.jko(b.radius(1.0), 0.1).item() == approx(expected)


def test_ten_steps_of_barenblatt():
    b = D.barenblatt(2, 1)
    assert b.jko(b.radius(1.0), 0.1, steps=10).item() == approx(2.610968421410)
    assert b.radius(2.0).item() == approx(2.620741394209)


@pytest.mark.parametrize(("dim", "m"), [(1, 2.0), (2, 1.5), (4, 3.0)])
@pytest.mark.parametrize("tau", [0.01, 1.0, 50.0])
def test_the_jko_radius_minimises_over_dilations(dim, m, tau):
    from scipy.optimize import minimize_scalar

    b, R = D.barenblatt(m, dim, mass=0.5, coefficient=0.4), 1.3
    new = b.jko(R, tau).item()
    found = minimize_scalar(lambda r: (b.energy(r) + b.w2_squared(R, r) / (2 * tau)).item(), bounds=(R, 2 * new),
                            method="bounded", options={"xatol": 1e-11})  # fmt: skip
    assert found.x == pytest.approx(new, rel=1e-6)
    residual = new - R - tau * 0.4 * b.G * new ** (-dim * (m - 1) - 1)
    assert abs(residual) <= 1e-14 * new


@pytest.mark.parametrize(("dim", "m"), [(1, 2.0), (2, 3.0)])
def test_the_jko_step_of_barenblatt_is_stationary_among_all_measures(dim, m):
    b, R, tau = D.barenblatt(m, dim), 1.3, 0.2
    new = b.jko(R, tau).item()
    x = torch.linspace(0.05, 0.95, 10)[:, None] * torch.eye(dim)[0] * new
    x.requires_grad_(True)
    variation = m / (m - 1) * b.density(x, radius=new) ** (m - 1)  # δF/δρ
    (gradient,) = torch.autograd.grad(variation.sum(), x)
    torch.testing.assert_close(x + tau * gradient, x * R / new, rtol=1e-12, atol=1e-12)


def test_the_virial_of_barenblatt():
    b, R, tau = D.barenblatt(3.0, 2), 1.3, 0.2
    new = b.jko(R, tau)

    class Member:
        @staticmethod
        def expect(f):  # radial symmetry: ∫⟨x − T(x), x⟩ is a multiple of the second moment
            at = torch.tensor([[1.0, 0.0]])
            return f(at)[0] * b.second_moment(new)

    left, right = D.virial_porous_medium(Member, lambda x: x * R / new, tau, 2, 3.0, b.energy(new))
    torch.testing.assert_close(left, right, rtol=1e-13, atol=0)


def test_barenblatt_jko_is_first_order_and_batched():
    b = D.barenblatt(2, 1)
    errors = [abs((b.jko(b.radius(1.0), 1 / n, steps=n) - b.radius(2.0)).item()) for n in (40, 80)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.02)
    radii = torch.tensor([0.5, 1.0, 4.0])
    torch.testing.assert_close(b.jko(radii, 0.1), torch.stack([b.jko(r.item(), 0.1) for r in radii]))
    for bad in ({"m": 1.0, "dim": 1}, {"m": 2.0, "dim": 0}, {"m": 2.0, "dim": 1, "mass": 0.0}):
        with pytest.raises(ValueError, match="Barenblatt needs"):
            D.barenblatt(**bad)
    with pytest.raises(ValueError, match="tau must be positive"):
        b.jko(1.0, 0.0)


# One JKO step of a uniform density

HALF = torch.tensor(0.5, dtype=torch.float64)


@pytest.mark.parametrize(
    ("tau", "width", "middle", "variance", "energy", "w2", "upper_quartile"),
    [
        (0.01, 0.641388834023, 0.978555171293, 0.099573895959, 0.858906128309, 0.000937559940, 0.759239807718),
        (0.1, 0.933676912694, 0.755824495531, 0.186505570626, 0.621990470601, 0.021225856828, 0.841836834920),
        (1.0, 1.670846697190, None, 0.572327813992, None, None, None),
    ],
)
def test_porous_medium_printed(tau, width, middle, variance, energy, w2, upper_quartile):
    u = D.jko_uniform_porous_medium(tau)
    got = [u.half_width, u.density(HALF).item(), u.variance, u.energy, u.w2_squared, u.quantile(1.5 * HALF).item()]
    for value, number in zip(got, [width, middle, variance, energy, w2, upper_quartile], strict=True):
        assert number is None or value == approx(number)


@pytest.mark.parametrize(
    ("tau", "middle", "variance", "energy", "w2"),
    [
        (0.1, (0.747950551731, 12), (0.2393302881, 10), (-0.6984146409, 10), (0.0440030452, 10)),
        (0.01, (0.991100215678, 12), (0.1017831631, 10), None, None),
        (1.0, (0.337717535568, 12), (1.3258597118, 10), None, None),
    ],
)
def test_entropy_printed(tau, middle, variance, energy, w2):
    u = D.jko_uniform_entropy(tau)
    got = [u.density(HALF).item(), u.variance, u.energy, u.w2_squared]
    for value, number in zip(got, [middle, variance, energy, w2], strict=True):
        assert number is None or value == approx(*number)


STEPS = [
    pytest.param(kind, tau, lower, upper, id=f"{kind.__name__}-{tau}-{lower}-{upper}")
    for kind in (D.jko_uniform_porous_medium, D.jko_uniform_entropy)
    for tau, lower, upper in ((0.002, 0.0, 1.0), (0.1, 0.0, 1.0), (0.7, -2.0, 1.0), (30.0, 0.5, 1.0))
]


@pytest.mark.parametrize(("kind", "tau", "lower", "upper"), STEPS)
def test_uniform_steps_are_stationary(kind, tau, lower, upper):
    """T(x) = x + τ∂x(δF/δρ) and T' ρ₀(T) = ρ, by differences of the density."""
    u, h = kind(tau, lower, upper), 1e-4 * (upper - lower)
    x = u.quantile(torch.linspace(0.03, 0.97, 12))
    low, high = u.density(x - h), u.density(x + h)
    porous = kind is D.jko_uniform_porous_medium
    slope = (2 * (high - low) if porous else (high / low).log()) / (2 * h)
    torch.testing.assert_close(u.map(x), x + tau * slope, rtol=1e-5, atol=1e-5)
    growth = (u.map(x + h) - u.map(x - h)) / (2 * h)
    torch.testing.assert_close(growth / (upper - lower), u.density(x), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("kind", "tau", "lower", "upper"), STEPS)
def test_uniform_steps_agree_with_their_own_quadrature(kind, tau, lower, upper):
    u, porous = kind(tau, lower, upper), kind is D.jko_uniform_porous_medium
    assert u.expect(lambda x: torch.ones_like(x[:, 0])).item() == pytest.approx(1, rel=1e-11)
    assert u.expect(lambda x: (x[:, 0] - u.center) ** 2).item() == pytest.approx(u.variance, rel=1e-9)
    value = u.expect(lambda x: u.density(x[:, 0]) if porous else u.density(x[:, 0]).log()).item()
    assert value == pytest.approx(u.energy, rel=1e-9)
    assert u.expect(lambda x: (x - u.map(x))[:, 0] ** 2).item() == pytest.approx(u.w2_squared, rel=1e-8)
    q = torch.linspace(0.01, 0.99, 9)
    torch.testing.assert_close(u.cdf(u.quantile(q)), q, rtol=0, atol=1e-12)
    if porous:
        left, right = D.virial_porous_medium(u, u.map, tau, 1, 2.0, u.energy)
    else:
        left, right = D.virial_entropy(u, u.map, tau, 1)
    assert left.item() == pytest.approx(right, rel=1e-9)


def quantile_minimum(tau: float, n: int, porous: bool) -> float:
    """min of the discrete F + W²/2τ over sorted quantiles, with the logarithms of the gaps as variables."""
    from scipy.optimize import minimize

    level = (torch.arange(n) + 0.5) / n

    def value(logs):
        gaps = torch.tensor(logs, requires_grad=True)
        widths = gaps.exp()
        x = 0.5 + torch.cat([torch.zeros(1), widths.cumsum(0)]) - widths.sum() / 2
        internal = 1 / (n * widths) if porous else -(n * widths).log()
        out = internal.sum() / n + ((x - level) ** 2).sum() / (2 * tau * n)
        out.backward()
        return out.item(), gaps.grad.numpy()

    start = torch.full((n - 1,), math.log(1.5 / n)).numpy()
    return minimize(value, start, jac=True, method="L-BFGS-B", options={"maxiter": 20_000, "maxfun": 40_000}).fun


@pytest.mark.parametrize("porous", [True, False])
def test_uniform_steps_by_direct_minimisation(porous):
    u = (D.jko_uniform_porous_medium if porous else D.jko_uniform_entropy)(0.1)
    exact = u.energy + u.w2_squared / 0.2
    errors = [abs(quantile_minimum(0.1, n, porous) - exact) for n in (50, 100)]
    assert errors[1] < 0.7 * errors[0] < 0.06


def test_the_printed_objectives():
    u = D.jko_uniform_porous_medium(0.1)
    assert u.energy + u.w2_squared / 0.2 == approx(0.728119754740)
    v = D.jko_uniform_entropy(0.1)
    assert v.energy + v.w2_squared / 0.2 == approx(-0.4783994147, 10)


def test_small_steps_of_the_uniform_density():
    for kind, order in ((D.jko_uniform_porous_medium, 1), (D.jko_uniform_entropy, 1)):
        u = kind(1e-5)
        assert (u.variance - 1 / 12) / (2 * 1e-5) == pytest.approx(order, rel=0.02)  # dVar/dτ = 2∫ρ^m at 0
        assert u.density(HALF).item() == pytest.approx(1)
    with pytest.raises(ValueError, match="below 1e-6"):
        D.jko_uniform_entropy(1e-7)
    for kind in (D.jko_uniform_porous_medium, D.jko_uniform_entropy):
        with pytest.raises(ValueError, match="tau must be positive"):
            kind(-1.0)
        with pytest.raises(ValueError, match="upper must exceed lower"):
            kind(0.1, 1.0, 1.0)


def test_a_large_entropy_step_is_that_of_a_gaussian_of_the_same_variance():
    u, tau = D.jko_uniform_entropy(1e4), 1e4
    new = G.prox_entropy(Gaussian(torch.zeros(1), torch.eye(1) / 12), tau)
    assert u.variance == pytest.approx(new.cov.item(), rel=1e-4)


def test_the_virial_of_gaussians(gaussians):
    mu = Gaussian(gaussians.m0, gaussians.S0)
    new = G.prox_entropy(mu, 0.3)
    T = G.backward_map(new, None, 0.3)
    left, right = D.virial_entropy(new, lambda x: mu.mean + (x - new.mean) @ T, 0.3, 3)
    assert left.item() == pytest.approx(right, rel=1e-12)
    assert right == pytest.approx(0.9)


# Aggregation


def sample(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)).sort().values


def integrate(velocity, x: Tensor, t: float, steps: int = 400) -> Tensor:
    """Classical Runge–Kutta."""
    h = t / steps
    for _ in range(steps):
        a = velocity(x)
        b = velocity(x + h / 2 * a)
        c = velocity(x + h / 2 * b)
        x = x + h / 6 * (a + 2 * b + 2 * c + velocity(x + h * c))
    return x


def test_attraction():
    x, w = sample(30).reshape(10, 3), torch.softmax(sample(10, 1), 0)

    def velocity(y: Tensor) -> Tensor:
        return -(w[None, :, None] * (y[:, None] - y[None])).sum(1)

    torch.testing.assert_close(D.attraction_flow(x, 0.8, w), integrate(velocity, x, 0.8), rtol=1e-9, atol=1e-10)
    new = D.attraction_jko(x, 0.3, w)
    torch.testing.assert_close((new - x) / 0.3, velocity(new), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(D.attraction_flow(x, 0.8), D.attraction_flow(x, 0.8, torch.full((10,), 0.1)))


def test_newtonian_attraction_of_the_uniform_density():
    levels = D.levels(1000)
    torch.testing.assert_close(D.newtonian_flow(levels, 0.2), 0.2 + 0.6 * levels)  # U[0, 1] -> U[.2, .8]
    assert D.newtonian_flow(levels, 0.4999).std() > 0
    torch.testing.assert_close(D.newtonian_flow(3 * levels, 1.6), torch.full((1000,), 1.5))  # at ℓ/2 = 1.5, a point


def test_newtonian_attraction_is_the_sticky_flow_and_its_own_jko_step():
    from scipy.optimize import minimize

    x = sample(8)
    once, twice = D.newtonian_flow(x, 0.9), D.newtonian_flow(D.newtonian_flow(x, 0.5), 0.4)
    torch.testing.assert_close(once, twice)
    assert (once.diff() >= 0).all() and (once.diff() == 0).any()
    torch.testing.assert_close(once.mean(), x.mean())

    def objective(y):
        y = torch.tensor(y)
        return (0.5 * (y[:, None] - y).abs().mean() + (y - x).square().mean() / (2 * 0.3)).item()

    new = D.newtonian_flow(x, 0.3)
    found = minimize(objective, new.numpy() + 0.01, method="Nelder-Mead",
                     options={"maxfev": 6000, "xatol": 1e-9, "fatol": 1e-13, "adaptive": True})  # fmt: skip
    assert objective(new.numpy()) <= found.fun + 1e-12
    assert found.fun - objective(new.numpy()) < 1e-3
    batch = torch.stack([x, 2 * x])
    torch.testing.assert_close(D.newtonian_flow(batch, 0.3)[0], new)


def test_spread():
    x, n = sample(12), 12

    def velocity(y: Tensor) -> Tensor:
        z = y[:, None] - y
        return -(z - z.sign()).sum(1) / n

    torch.testing.assert_close(D.spread_flow(x, 0.7), integrate(velocity, x, 0.7), rtol=1e-9, atol=1e-9)
    new = D.spread_jko(x, 0.4)
    torch.testing.assert_close((new - x) / 0.4, velocity(new), rtol=1e-12, atol=1e-12)
    rest = D.spread_steady(x)
    assert velocity(rest).abs().max() < 1e-12
    z = rest[:, None] - rest
    assert (0.5 * (z * z / 2 - z.abs()).mean()).item() == pytest.approx(D.spread_steady_energy(n))
    assert D.spread_steady_energy() == pytest.approx(-1 / 6)
    assert D.spread_steady_energy(10**6) == pytest.approx(-1 / 6)
    for flow in (D.newtonian_flow, D.spread_flow, D.spread_jko):
        with pytest.raises(ValueError, match="sorted"):
            flow(x.flip(0), 0.1)


def log_gas_velocity(x: Tensor) -> Tensor:
    z = x[:, None] - x
    z.fill_diagonal_(math.inf)
    return -x + (1 / z).mean(1)


def test_log_gas_of_particles():
    for n in (2, 7, 40):
        assert log_gas_velocity(D.log_gas_equilibrium(n)).abs().max() < 1e-11 * n
    x = torch.linspace(-1, 1, 9) ** 3 * 2 + torch.linspace(-0.5, 0.6, 9)
    y = integrate(log_gas_velocity, x, 0.4, 4000)
    start, end = x.square().mean(), y.square().mean()
    torch.testing.assert_close(D.log_gas_second_moment(0.4, start, 9), end, rtol=1e-9, atol=0)
    torch.testing.assert_close(D.log_gas_equilibrium(9).square().mean(), D.log_gas_second_moment(60.0, start, 9))


def test_semicircle():
    theta = (torch.arange(4000) + 0.5) * math.pi / 4000
    for R in (0.6, 2.0):
        x = R * theta.cos()
        w = D.semicircle_density(x, R) * R * theta.sin() * math.pi / 4000
        assert w.sum().item() == pytest.approx(1)
        assert (w * x * x).sum().item() == pytest.approx(R * R / 4)
    h = 1e-5
    rate = (D.log_gas_radius(0.3 + h, 0.9) ** 2 - D.log_gas_radius(0.3 - h, 0.9) ** 2) / (2 * h)
    assert rate.item() == pytest.approx(4 - 2 * D.log_gas_radius(0.3, 0.9).item() ** 2, rel=1e-8)
    assert D.log_gas_radius(0.0, 0.9).item() == pytest.approx(0.9)
    assert D.log_gas_radius(50.0, 0.9).item() == pytest.approx(math.sqrt(2))
    particles = D.log_gas_equilibrium(400)
    assert particles.max().item() == pytest.approx(math.sqrt(2), abs=0.03)


@pytest.mark.parametrize("tau", [0.01, 0.5, 10.0])
def test_log_gas_jko(tau):
    from scipy.optimize import minimize_scalar

    R = 0.9
    found = minimize_scalar(lambda r: r * r / 8 - math.log(r) / 2 + (r - R) ** 2 / (8 * tau), bounds=(0.1, 5),
                            method="bounded", options={"xatol": 1e-11})  # fmt: skip
    assert D.log_gas_jko(R, tau).item() == pytest.approx(found.x, rel=1e-6)
    assert D.log_gas_jko(math.sqrt(2), tau).item() == pytest.approx(math.sqrt(2), rel=1e-14)
    slope = (D.log_gas_jko(R, 1e-6).item() - R) / 1e-6
    assert slope == pytest.approx((D.log_gas_radius(1e-6, R).item() - R) / 1e-6, rel=1e-5)


@pytest.mark.parametrize("chi", [1.0, 8 * math.pi, 30.0])
def test_chemotaxis_grows_at_its_rate_whatever_the_density(chi: float):
    """−2E⟨x, ∇δF/δμ⟩ = −2 Σ over cells, with the field of a density that is not radial."""
    grid = Grid((-5.0, -5.0), (5.0, 5.0), (160, 160))
    mu = Density.from_log_prob(lambda x: -x.square().sum(-1) + torch.sin(2 * x[:, 0]) * torch.cos(x[:, 1]), grid)
    F = Entropy() + chi / (2 * math.pi) * Interaction(lambda z: z.norm(dim=-1).log())
    rate = -2 * (mu.masses * (mu.points * F.gradient(mu)).sum(-1)).sum()
    assert rate.item() == pytest.approx(A.chemotaxis_growth(chi), abs=5e-3)


# The double well


def test_double_well_printed():
    w = D.double_well()
    got = [w.Z, w.x2, w.x4, w.mean_potential, w.barrier]
    want = [1.973732150090, 0.832745487128, 1.082745487128, 0.417254512872, 0.219437266058]
    assert got == [approx(v) for v in want]
    assert w.probability(-0.5, 0.5) == approx(0.219437266058)


def test_spectrum_printed():
    values = D.double_well().spectrum(5)
    assert values[0].abs().item() < 1e-11
    assert values[1].item() == approx(0.7486816723, 10)
    assert values[2].item() == approx(6.0041136709, 10)
    assert values[3].item() == approx(11.660695558, 9)
    assert values[4].item() == approx(18.643146781, 9)


@pytest.mark.parametrize(("height", "width"), [(1.0, 1.0), (0.4, 1.7), (5.0, 0.8)])
def test_spectrum_by_polynomials(height, width):
    """Galerkin in L²(π) with orthogonal polynomials (Lanczos), ∫f'g'dπ = λ∫fg dπ."""
    w = D.double_well(height, width)
    x = torch.linspace(-w.reach, w.reach, 6001)
    p = w.density(x)
    p = p / p.sum()
    basis, slopes = [torch.ones_like(x)], [torch.zeros_like(x)]
    for _ in range(60):
        f, df = x * basis[-1], basis[-1] + x * slopes[-1]
        for _ in range(2):
            for b, db in zip(basis, slopes, strict=True):
                c = (p * b * f).sum()
                f, df = f - c * b, df - c * db
        size = (p * f * f).sum().sqrt()
        basis.append(f / size)
        slopes.append(df / size)
    d = torch.stack(slopes)
    values = torch.linalg.eigvalsh((d * p) @ d.T)[:5]
    torch.testing.assert_close(w.spectrum(5), values, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("height", "width"), [(1.0, 1.0), (0.3, 1.5), (20.0, 1.0)])
def test_double_well_identities(height, width):
    from scipy.special import iv

    w = D.double_well(height, width)
    a = height * width**4 / 2
    bessel = math.pi / 2 * width * math.exp(-a) * (iv(-0.25, a) + iv(0.25, a))
    assert w.Z == pytest.approx(bessel, rel=1e-12)
    assert 4 * height * (w.x4 - width**2 * w.x2) == pytest.approx(1, rel=1e-11)  # ∫xV' = 1
    assert w.moment(3) == pytest.approx(0, abs=1e-13)
    assert w.mean_potential == pytest.approx(height * (w.x4 - 2 * width**2 * w.x2 + width**4), rel=1e-10)
    q = torch.linspace(0.01, 0.99, 7)
    x = w.quantile(q)
    torch.testing.assert_close(w.cdf(x), q, rtol=0, atol=1e-13)
    h = 1e-5
    torch.testing.assert_close((w.cdf(x + h) - w.cdf(x - h)) / (2 * h), w.density(x), rtol=1e-7, atol=1e-9)
    assert w.cdf(torch.tensor([-50.0, 0.0, 50.0])).tolist() == pytest.approx([0, 0.5, 1], abs=1e-13)


def test_the_bad_double_well():
    with pytest.raises(ValueError, match="must be positive"):
        D.double_well(height=0.0)


def test_heat_and_ornstein_uhlenbeck_are_here_too():
    assert D.heat is G.heat
    assert D.ornstein_uhlenbeck is G.ornstein_uhlenbeck


def test_a_density_says_whether_it_is_given_a_time_or_a_radius():
    b, x = D.barenblatt(2.0, 1), torch.zeros(1, 1)
    torch.testing.assert_close(b.density(x, t=2.0), b.density(x, radius=b.radius(2.0)))
    assert b.density(x.float(), t=2.0).dtype == torch.float32
    for arguments in ({}, {"t": 1.0, "radius": 2.0}):
        with pytest.raises(TypeError, match=r"t=, a time of the flow, or radius="):
            b.density(x, **arguments)
    with pytest.raises(TypeError, match="positional"):
        b.density(x, 2.0)
