"""The exact implicit step of the energy distance on the line."""

import math

import pytest
import torch

import otprox as ox
from otprox import exact, kernels, solvers
from otprox.solvers import Cramer

PHI = torch.special.ndtr
NORMAL = ox.Gaussian([0.3], [[0.49]])


def levels(n):
    return (torch.arange(n) + 0.5) / n


def spread(n, seed=0):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)).sort().values


def prox(F, mu, tau, metric=None):
    return ox.Backward(F, metric or ox.Wasserstein(), Cramer())(mu, 0.0, tau)


@pytest.mark.parametrize("tau", [1e-3, 0.3, 5.0, 1e4])
@pytest.mark.parametrize("sigma", [1e-3, 0.7])
def test_gaussian_target_against_bisection(tau, sigma):
    target, x = ox.Gaussian([0.3], [[sigma**2]]), 2 * spread(30)
    new = prox(ox.MMD(kernels.Energy(), target), ox.Quantiles(x), tau).mu.x[..., 0]
    want = exact.mmd.energy_prox(x, levels(30), lambda y: PHI((y - 0.3) / sigma), tau)
    torch.testing.assert_close(new, want, atol=1e-11 * max(1, tau), rtol=0)


@pytest.mark.parametrize("tau", [0.01, 0.4, 3.0])
@pytest.mark.parametrize("kind", ["samples", "weighted"])
def test_targets_that_jump(tau, kind):
    """The defining inclusion: r = X' + 2·tau·F(X'), with F anywhere in its jump."""
    y = ox.Particles(torch.tensor([[-1.0], [0.2], [0.2], [2.5]]), torch.tensor([0.1, 0.2, 0.3, 0.4]))
    target = {"samples": ox.Particles(spread(9, 3)[:, None]), "weighted": y}[kind]
    x = 2 * spread(40)
    out = prox(ox.MMD(kernels.Energy(), target), ox.Quantiles(x), tau)
    z, at, w = out.mu.x[..., 0], target.points[..., 0], target.weights
    below, upto = ((w * cmp(at, z[:, None] + s * 1e-9)).sum(-1) for cmp, s in ((torch.lt, -1), (torch.le, 1)))
    r = x + 2 * tau * levels(40)
    assert (z + 2 * tau * below <= r + 1e-7).all() and (r - 1e-7 <= z + 2 * tau * upto).all()
    assert (z.diff() >= 0).all()


@pytest.mark.parametrize("tau", [0.01, 0.4, 30.0])
def test_density_target_against_bisection(tau):
    """F_ν is linear on cells; the first and the last quantile are beyond the grid."""
    grid, x = ox.Grid(-1.0, 2.0, 7), 4 * spread(30)
    target = ox.Density(torch.tensor([1.0, 0.0, 3.0, 2.0, 0.0, 1.0, 4.0]) / 11 / grid.volume, grid)
    total = torch.nn.functional.pad(target.masses.cumsum(-1), (1, 0))

    def cdf(y):
        place = ((y + 1) / grid.spacing[0]).clamp(0, 7)
        cell = place.floor().long().clamp_max(6)
        return total[cell] + (place - cell) * target.masses[cell]

    F = ox.MMD(kernels.Energy(), target)
    out = prox(F, ox.Quantiles(x), tau)
    torch.testing.assert_close(out.mu.x[..., 0], exact.mmd.energy_prox(x, levels(30), cdf, tau), atol=1e-10, rtol=0)
    assert out.stats.objective.item() == pytest.approx((F(out.mu) + out.stats.distance2 / (2 * tau)).item(), rel=1e-12)


def test_it_is_the_minimiser_and_reports_the_objective():
    F, mu = (
        ox.MMD(2.0 * kernels.Energy(), NORMAL),
        ox.Particles(torch.tensor([[0.9], [-0.4], [0.1]]), torch.tensor([0.5, 0.2, 0.3])),
    )
    metric, tau = ox.Wasserstein(torch.tensor([[1.7]])), 0.4
    out = prox(0.5 * F, mu, tau, metric)
    value = lambda x: 0.5 * F(ox.Particles(x, mu.w)) + (mu.w * (x - mu.x)[..., 0].square()).sum() / (2 * tau * 1.7)  # noqa: E731
    assert out.stats.objective.item() == pytest.approx(value(out.mu.x).item(), abs=1e-13)
    other = ox.Backward(0.5 * F, metric, solvers.Descent())(mu, 0.0, tau).mu
    torch.testing.assert_close(out.mu.x, other.x, atol=1e-6, rtol=0)
    for seed in range(5):
        e = 1e-4 * torch.randn(3, 1, generator=torch.Generator().manual_seed(seed))
        assert value(out.mu.x + e) > out.stats.objective


def test_batches_and_single_precision():
    x = torch.stack([spread(20), 3 * spread(20, 1)])
    F = ox.MMD(kernels.Energy(), ox.Particles(spread(11, 2)[:, None]))
    both = prox(F, ox.Quantiles(x), 0.5).mu
    for row, want in zip(x, both.x, strict=True):
        torch.testing.assert_close(prox(F, ox.Quantiles(row), 0.5).mu.x, want)
    single = ox.MMD(kernels.Energy(), ox.Particles(spread(11, 2)[:, None].float()))
    found = prox(single, ox.Quantiles(x.float()), 0.5).mu.x
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), both.x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("n", [50, 200])
def test_implicit_flow_to_a_dirac_arrives_in_time(n):
    """From δ_(−1), X = min(−1 + 2qt, 0): straight lines, so the implicit steps are exact but where one ends."""
    F = ox.MMD(kernels.Energy(), ox.Particles(torch.zeros(1, 1)))
    start = ox.Quantiles(torch.full((n,), -1.0))
    run = ox.record(ox.flow(ox.Backward(F), start, [0.1 * k for k in range(31)]))
    want = exact.mmd.cramer_flow_to_dirac(start.x[..., 0], levels(n), 3.0, 2.0)
    torch.testing.assert_close(run.final.x[..., 0], want, atol=1e-12, rtol=0)


def test_implicit_flow_to_a_gaussian_is_first_order():
    F, n, errors = ox.MMD(kernels.Energy(), ox.Gaussian([0.0], [[1.0]])), 200, []
    want = exact.mmd.cramer_flow(torch.zeros(n), levels(n), PHI, 1.0, 2.0)
    for steps in (20, 40):
        run = ox.record(ox.flow(ox.Backward(F), ox.Quantiles(torch.zeros(n)), [k / steps for k in range(steps + 1)]))
        errors.append((run.final.x[..., 0] - want).abs().max().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1.0, abs=0.1)


def test_it_is_chosen_where_it_fits_and_says_why_not():
    F, mu = ox.MMD(kernels.Energy(), NORMAL), ox.Quantiles(spread(9))
    assert isinstance(solvers.choose(F, ox.Wasserstein(), mu), Cramer)
    assert isinstance(solvers.choose(ox.MMD(kernels.RBF(1.0), NORMAL), ox.Wasserstein(), mu), solvers.Quantile)
    why = lambda F, mu: Cramer().supports(F, ox.Wasserstein(), mu)  # noqa: E731
    assert "negative" in why(-1.0 * F, mu)
    assert "to one target" in why(F + ox.MMD(kernels.Energy(), ox.Particles(torch.zeros(2, 1))), mu)
    assert "Torus" in why(F, ox.Particles(torch.rand(4, 1), domain=ox.Torus(1.0)))
    assert "2-D" in why(F, ox.Particles(torch.rand(4, 2)))
    assert "not a term" in why(F + ox.Entropy(), mu)
