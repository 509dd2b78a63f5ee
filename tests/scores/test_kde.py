import math

import pytest
import torch

import otprox as ox
from otprox.exact.landau import BKW
from otprox.measures.base import jacobian
from otprox.scores import KDE


def cloud(n: int = 60, d: int = 2, seed: int = 0, *batch: int) -> ox.Particles:
    generator = torch.Generator().manual_seed(seed)
    x, w = torch.randn(*batch, n, d, generator=generator), torch.rand(*batch, n, generator=generator)
    return ox.Particles(x, w / w.sum(-1, keepdim=True))


def bkw_grid(side: int, t: float) -> ox.Particles:
    """Nodes of a grid of spacing 10/side with the BKW density as weights."""
    line = (torch.arange(side) + 0.5) * 10 / side - 5
    x = torch.cartesian_prod(line, line)
    log_f = BKW().log_density(x, t)
    return ox.Particles(x, torch.softmax(log_f, -1), log_f)


@pytest.mark.parametrize("width", [None, 0.3, 1.0])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_the_score_is_the_slope_of_the_log_density(d: int, width: float | None):
    mu, at = cloud(d=d), torch.randn(20, d, generator=torch.Generator().manual_seed(1))
    x = torch.cat([at, mu.x]).requires_grad_()
    (slope,) = torch.autograd.grad(KDE(width).log_density(mu, x).sum(), x)
    torch.testing.assert_close(KDE(width).fit(mu)(x.detach()), slope)
    torch.testing.assert_close(KDE(width).fit(mu)(mu.x), slope[20:])


@pytest.mark.parametrize("width", [None, 0.5])
def test_the_density_has_mass_one_and_is_the_sum_of_bumps(width: float | None):
    mu = cloud(30, 1)
    line = torch.linspace(-9, 9, 4001)
    f = KDE(width).log_density(mu, line[:, None]).exp()
    assert float(torch.trapezoid(f, line)) == pytest.approx(1.0, abs=1e-10)
    if width:
        bumps = mu.w * torch.exp(-((line[:, None] - mu.x[:, 0]) ** 2) / (2 * width**2)) / math.sqrt(2 * math.pi) / width
        torch.testing.assert_close(f, bumps.sum(-1))


@pytest.mark.parametrize("width", [None, 0.4])
def test_its_jacobian_by_finite_differences(width: float | None):
    known, x, h = KDE(width).fit(cloud()), torch.tensor([[0.3, -0.2], [2.0, 1.0]]), 1e-6
    columns = [(known(x + h * e) - known(x - h * e)) / (2 * h) for e in torch.eye(2)]
    torch.testing.assert_close(jacobian(known, x), torch.stack(columns, -1), atol=1e-7, rtol=1e-6)
    assert known.jacobian is not None
    torch.testing.assert_close(known.jacobian(x), jacobian(known, x))


@pytest.mark.parametrize("width", [None, 0.3])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_sums_on_a_grid_are_those_over_all_pairs(d: int, width: float | None):
    mu, x = cloud(400, d), 1.5 * torch.randn(30, d, generator=torch.Generator().manual_seed(1))
    grid, pairs = (KDE(width, grid=choice).fit(mu) for choice in (True, False))
    torch.testing.assert_close(grid(mu.x), pairs(mu.x), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(grid(x), pairs(x), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(jacobian(grid, mu.x), jacobian(pairs, mu.x), atol=1e-8, rtol=1e-8)
    F, G = (ox.Entropy(score=KDE(width, grid=choice)) for choice in (True, False))
    torch.testing.assert_close(F.hessian(mu), jacobian(pairs, mu.x), atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(G.hessian(mu, x), jacobian(pairs, x), atol=1e-8, rtol=1e-8)


def test_a_grid_serves_a_batch_with_tails_of_hardly_any_weight():
    mu = bkw_grid(40, 5.0)
    both = ox.Particles(torch.stack([mu.x, mu.x + 3]), torch.stack([mu.w, mu.w]))
    assert mu.w.min() < 1e-12 * mu.w.max()
    s = KDE(0.4, grid=True).fit(both)(both.x)
    torch.testing.assert_close(s[0], KDE(0.4, grid=False).fit(mu)(mu.x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(s[0], s[1], atol=1e-5, rtol=1e-5)


def test_a_grid_of_too_many_nodes_is_refused_or_left_for_pairs():
    far = ox.Particles(torch.tensor([[0.0, 0.0], [1e5, 1e5]]))
    with pytest.raises(ValueError, match="too many widths for a grid of nodes: leave grid=None"):
        KDE(1.0, grid=True).fit(far)(far.x)
    torch.testing.assert_close(KDE(1.0).fit(far)(far.x), torch.zeros(2, 2))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.needs_cuda)])
def test_a_grid_in_single_precision(device: str):
    mu = cloud(3000)
    single = ox.Particles(mu.x.float().to(device), mu.w.float().to(device))
    s = KDE(0.4).fit(single)(single.x).double().cpu()
    torch.testing.assert_close(s, KDE(0.4, grid=False).fit(mu)(mu.x), atol=1e-2, rtol=1e-3)


def test_a_weight_of_one_half_is_half_a_particle():
    x = cloud(7).x
    twice = ox.Particles(torch.cat([x, x[:3]]))
    w = torch.full((7,), 0.1)
    w[:3] = 0.2
    torch.testing.assert_close(KDE(0.5).fit(twice)(x), KDE(0.5).fit(ox.Particles(x, w))(x))


def test_without_a_width_it_is_equivariant_under_affine_maps():
    mu, A, b = cloud(), torch.tensor([[2.0, 0.7], [0.0, 0.1]]), torch.tensor([30.0, -7.0])
    moved = mu.push(lambda x: x @ A.T + b)
    s = KDE().fit(moved)(moved.x)
    torch.testing.assert_close(s @ A, KDE().fit(mu)(mu.x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_far_away_it_points_to_the_nearest_particle(dtype: torch.dtype):
    mu = ox.Particles(torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=dtype))
    far = torch.tensor([[100.0, 3.0], [-200.0, 0.0], [0.5, 0.0]], dtype=dtype)
    s = KDE(0.5).fit(mu)(far)
    expected = torch.tensor([[-99.0, -3.0], [200.0, 0.0], [0.0, 0.0]], dtype=dtype) / 0.25
    torch.testing.assert_close(s, expected, atol=1e-4, rtol=1e-5)


def test_a_batch_is_single_fits():
    mu = cloud(40, 2, 0, 3)
    s = KDE().fit(mu)(mu.x)
    for i in range(3):
        one = ox.Particles(mu.x[i], mu.w[i])
        torch.testing.assert_close(s[i], KDE().fit(one)(one.x))


def error(mu: ox.Particles, s: torch.Tensor, exact: torch.Tensor) -> float:
    """√(E|s − s*|²/E|s*|²)."""
    gap, size = (mu.expect(lambda _, v=v: v.square().sum(-1)) for v in (s - exact, exact))
    return math.sqrt(float(gap / size))


def test_on_a_grid_the_error_is_of_second_order_in_the_width():
    t = 5.0
    errors = []
    for side, width in ((30, 0.4), (60, 0.2)):
        mu = bkw_grid(side, t)
        errors.append(error(mu, KDE(width).fit(mu)(mu.x), BKW().score(mu.x, t)))
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.2)


def test_the_error_falls_with_independent_samples_of_a_mixture():
    """By 8× more samples, at the rate n^{−2/(d + 6)} of the rule: 0.595 in two dimensions."""
    centres = torch.tensor([[-1.5, 0.0], [1.5, 0.5]])

    def log_f(x: torch.Tensor) -> torch.Tensor:
        return torch.logsumexp(-0.5 * (x[..., None, :] - centres).square().sum(-1), -1)

    errors = []
    for n in (500, 4000):
        generator = torch.Generator().manual_seed(n)
        z = torch.randn(n, 2, generator=generator)
        x = (z + centres[torch.randint(2, (n,), generator=generator)]).requires_grad_()
        (exact,) = torch.autograd.grad(log_f(x).sum(), x)
        mu = ox.Particles(x.detach())
        errors.append(error(mu, KDE().fit(mu)(mu.x), exact))
    assert errors[1] < 0.3 and 0.5 < errors[1] / errors[0] < 0.7


@pytest.mark.parametrize("width", [0.0, -1.0, math.inf, math.nan])
def test_widths_that_are_none_are_refused(width: float):
    with pytest.raises(ValueError, match=f"KDE needs a width > 0.*not {width}"):
        KDE(width)
