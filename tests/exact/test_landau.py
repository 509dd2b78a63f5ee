import math

import pytest
import torch

from otprox import Grid
from otprox.exact import landau
from otprox.exact.landau import BKW

FLAT, SPACE = BKW(2, 1 / 16), BKW(3, 1 / 24, K0=0.0)


def grid(d: int, half: float = 8.0, n: int = 81) -> tuple[torch.Tensor, float]:
    axis = torch.linspace(-half, half, n)
    return torch.cartesian_prod(*[axis] * d), float(axis[1] - axis[0]) ** d


@pytest.mark.parametrize(
    ("solution", "t", "H"),
    [
        (FLAT, 0.0, -math.log(math.pi) - 1 - 0.5772156649015329),
        (FLAT, 1.0, -2.7890492941),
        (FLAT, 5.0, -2.8342358762),
        (SPACE, 5.5, -4.1930523116),
        (SPACE, 7.0, -4.2415178230),
    ],
)
def test_entropy_of_bkw(solution: BKW, t: float, H: float):
    assert solution.entropy(t) == pytest.approx(H, abs=2e-10)


def test_entropy_tends_to_that_of_the_maxwellian():
    for d in (2, 3, 4):
        assert BKW(d, 0.3).entropy(200.0) == pytest.approx(-d / 2 * math.log(2 * math.pi * math.e), abs=1e-13)


@pytest.mark.parametrize(("solution", "t"), [(FLAT, 1.0), (BKW(2, 0.5, K0=0.7), 0.3), (SPACE, 6.0), (BKW(4, 0.1), 1.0)])
def test_entropy_rate_is_the_derivative_of_entropy(solution: BKW, t: float):
    h = 1e-4
    slope = (solution.entropy(t + h) - solution.entropy(t - h)) / (2 * h)
    assert solution.entropy_rate(t) == pytest.approx(slope, rel=1e-6)


def test_entropy_rate_where_f_vanishes_at_the_origin():
    assert FLAT.entropy_rate(0.0) == pytest.approx(-0.125, abs=1e-12)


@pytest.mark.parametrize(("solution", "t"), [(FLAT, 0.5), (SPACE, 6.5), (BKW(2, 0.4, K0=0.6), 0.2)])
def test_moments_and_entropy_are_those_of_the_density(solution: BKW, t: float):
    v, cell = grid(solution.d, n=401 if solution.d == 2 else 81)
    f = solution.density(v, t)
    for m in range(4):
        assert float((f * v.square().sum(-1) ** m).sum()) * cell == pytest.approx(solution.moment(m, t), rel=1e-9)
    K, d = solution.K(t), solution.d
    assert solution.moment(2, t) == pytest.approx(d * (d + 2) * (2 * K - K**2), rel=1e-14)
    assert float((f * solution.log_density(v, t)).sum()) * cell == pytest.approx(solution.entropy(t), abs=1e-8)


@pytest.mark.parametrize("width", [0.08, 0.7])
@pytest.mark.parametrize(("solution", "t"), [(FLAT, 0.0), (BKW(3, 0.3, K0=0.7), 0.2)])
def test_bkw_smoothed_is_the_convolution(solution: BKW, t: float, width: float):
    v = torch.randn(5, solution.d, generator=torch.Generator().manual_seed(5))
    y, cell = grid(solution.d, half=9 * width, n=61)
    normal = torch.exp(-y.square().sum(-1) / (2 * width**2)) / (2 * math.pi * width**2) ** (solution.d / 2)
    convolved = cell * solution.density(v[:, None] - y, t) @ normal
    torch.testing.assert_close(solution.density(v, t, width=width), convolved, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("width", [0.08, 0.7])
def test_entropy_moments_and_score_of_bkw_smoothed(width: float):
    v, cell = grid(2, half=12.0, n=601)
    f, log = FLAT.density(v, 0.3, width=width), FLAT.log_density(v, 0.3, width=width)
    assert float((f * log).sum()) * cell == pytest.approx(FLAT.entropy(0.3, width=width), abs=1e-10)
    score = FLAT.score(v, 0.3, width=width)
    assert float((f * score.square().sum(-1)).sum()) * cell == pytest.approx(FLAT.fisher(0.3, width=width), rel=1e-10)
    for m in range(4):
        moment = float((f * v.square().sum(-1) ** m).sum()) * cell
        assert moment == pytest.approx(FLAT.moment(m, 0.3, width=width), rel=1e-10)
    h = 1e-5
    ahead, behind = (FLAT.entropy(0.3, width=math.sqrt(width**2 + s * h)) for s in (1, -1))
    assert (ahead - behind) / (2 * h) == pytest.approx(-FLAT.fisher(0.3, width=width) / 2, rel=1e-7)
    at = torch.randn(6, 2, generator=torch.Generator().manual_seed(6)).requires_grad_()
    (slope,) = torch.autograd.grad(FLAT.log_density(at, 0.3, width=width).sum(), at)
    torch.testing.assert_close(FLAT.score(at.detach(), 0.3, width=width), slope)


@pytest.mark.parametrize(("solution", "t"), [(FLAT, 0.0), (SPACE, 6.0)])
def test_particles_of_bkw_have_its_moments(solution: BKW, t: float):
    """The midpoint rule: to the tail beyond the grid."""
    cells = Grid((-7.0,) * solution.d, (7.0,) * solution.d, (40 if solution.d == 2 else 30,) * solution.d)
    mu = solution.particles(cells, t)
    assert mu.expect(lambda v: v.square().sum(-1) ** 2).item() == pytest.approx(solution.moment(2, t), rel=1e-6)
    torch.testing.assert_close(mu.cov, torch.eye(solution.d), rtol=0, atol=1e-7)
    assert solution.particles(cells, t, like=torch.zeros((), dtype=torch.float32)).x.dtype == torch.float32


@pytest.mark.parametrize(("solution", "t"), [(FLAT, 0.7), (SPACE, 6.0), (BKW(3, 0.2), 0.5)])
def test_bkw_solves_the_continuity_equation_of_its_velocity(solution: BKW, t: float):
    v = torch.randn(20, solution.d, generator=torch.Generator().manual_seed(0))
    h = 1e-4
    rate = (solution.density(v, t + h) - solution.density(v, t - h)) / (2 * h)
    shifts = h * torch.eye(solution.d)
    flux = [
        (solution.density(x, t)[:, None] * solution.velocity(x, t))[:, i]
        for i, e in enumerate(shifts)
        for x in (v + e, v - e)
    ]
    divergence = sum(a - b for a, b in zip(flux[::2], flux[1::2], strict=True)) / (2 * h)
    torch.testing.assert_close(rate, -divergence, atol=1e-8, rtol=1e-5)


@pytest.mark.parametrize(("solution", "t"), [(FLAT, 0.7), (BKW(3, 0.2), 0.5)])
def test_velocity_is_the_collision_integral(solution: BKW, t: float):
    d = solution.d
    v = torch.randn(3, d, generator=torch.Generator().manual_seed(1))
    y, cell = grid(d, n=65)
    f = solution.density(y, t)[:, None] * cell
    z = v[:, None] - y
    jump = solution.score(v, t)[:, None] - solution.score(y, t)
    image = z.square().sum(-1, keepdim=True) * jump - z * (z * jump).sum(-1, keepdim=True)
    torch.testing.assert_close(solution.velocity(v, t), -solution.strength * (image * f).sum(1), atol=1e-7, rtol=1e-6)


def test_score_is_the_gradient_of_log_density():
    v = torch.randn(10, 3, generator=torch.Generator().manual_seed(2)).requires_grad_()
    (slope,) = torch.autograd.grad(SPACE.log_density(v, 6.0).sum(), v)
    torch.testing.assert_close(SPACE.score(v.detach(), 6.0), slope)


@pytest.mark.parametrize(("d", "C"), [(2, 1 / 16), (3, 1 / 24), (3, 0.7)])
def test_covariance_solves_its_equation(d: int, C: float):
    root = torch.randn(d, d, generator=torch.Generator().manual_seed(3))
    P, h = root @ root.T, 1e-5
    now = landau.covariance(P, 0.2, strength=C, mass=1.3)
    ahead, behind = (landau.covariance(P, 0.2 + s * h, strength=C, mass=1.3) for s in (1, -1))
    expected = 4 * C * 1.3 * (now.trace() * torch.eye(d) - d * now)
    torch.testing.assert_close((ahead - behind) / (2 * h), expected, atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(landau.covariance(P, 0.0, strength=C), P)


def test_covariance_in_closed_form():
    P = landau.covariance(torch.diag(torch.tensor([2.4, 0.3, 0.3])), 1.0, strength=1 / 24)
    assert float(P[0, 0]) == pytest.approx(1.849142923598, abs=1e-12)


@pytest.mark.parametrize("d", [2, 3])
def test_the_fourth_moment_of_bkw_follows_the_radial_law(d: int):
    solution = BKW(d, 0.2)
    moment = landau.radial_fourth_moment(solution.moment(2, 0.0), 0.6, d, strength=0.2)
    assert moment == pytest.approx(solution.moment(2, 0.6), rel=1e-13)


@pytest.mark.parametrize("d", [2, 3])
def test_bkw_is_its_start_under_the_radial_law(d: int):
    """f(t) = ∫ N(v; e^{−at}y, (1 − e^{−2at})I) f₀(y) dy."""
    solution, t = BKW(d, 0.2), 1.0
    decay, deviation = landau.radial_law(t, d, strength=0.2)
    v = torch.randn(4, d, generator=torch.Generator().manual_seed(4))
    y, cell = grid(d)
    square = (v[:, None] - decay * y).square().sum(-1) / (2 * deviation**2)
    law = torch.exp(-square) @ solution.density(y, 0.0) * cell / (2 * math.pi * deviation**2) ** (d / 2)
    torch.testing.assert_close(law, solution.density(v, t), atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize(("P", "rate"), [((0.5, 1.25), 0.271977824187), ((2.0, 0.5), -0.448471744689)])
def test_coulomb_rates(P: tuple[float, float], rate: float):
    parallel, perpendicular = landau.coulomb_rates(*P)
    assert parallel == pytest.approx(rate, abs=1e-12)
    assert perpendicular == pytest.approx(-rate / 2, abs=1e-12)


@pytest.mark.parametrize("A", [0.0999999999, -0.0999999999])
def test_coulomb_rates_are_continuous_where_the_series_ends(A: float):
    inside = landau.coulomb_rates(1.0, 1 + A)[0]
    outside = landau.coulomb_rates(1.0, 1 + A * 1.00000001)[0]
    assert inside == pytest.approx(outside, rel=1e-7)
    assert landau.coulomb_rates(1.0, 1 + 1e-9)[0] == pytest.approx(8e-9 / (15 * math.sqrt(math.pi)), rel=1e-7)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="d = 1"):
        BKW(1)
    with pytest.raises(ValueError, match="strength must be positive"):
        BKW(2, -1.0)
    with pytest.raises(ValueError, match="K0 must be at most 1"):
        BKW(2, K0=1.5)
    with pytest.raises(ValueError, match="f would be negative"):
        SPACE.density(torch.zeros(3), 5.0)
    with pytest.raises(ValueError, match="v must be"):
        FLAT.density(torch.zeros(4, 3), 0.0)
    with pytest.raises(ValueError, match="temperatures must be positive"):
        landau.coulomb_rates(0.0, 1.0)
    with pytest.raises(ValueError, match="P must be"):
        landau.covariance(torch.ones(3), 1.0)
