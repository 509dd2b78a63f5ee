"""Quantiles: the measure's algebra, its density, its conversions, and the convolution with a Gaussian."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

import otprox as ox
from otprox.measures import Velocity


def gaussian(mean: float = 0.0, var: float = 1.0) -> ox.Gaussian:
    return ox.Gaussian([mean], [[var]])


def levels(n: int) -> Tensor:
    return (torch.arange(n) + 0.5) / n


def sample(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).sort(-1).values


def test_keeps_points_in_the_shape_of_nodes():
    mu = ox.Quantiles(sample(0, 3, 2, 7))
    assert mu.x.shape == (3, 2, 7, 1)
    assert mu.batch == (3, 2)
    assert (mu.dim, mu.n) == (1, 7)
    torch.testing.assert_close(mu.w.sum(-1), torch.ones(3, 2))
    torch.testing.assert_close(mu.mass, torch.ones(3, 2))


@pytest.mark.parametrize(
    ("x", "words"),
    [
        ([0.0, 2.0, 1.0, 3.0], r"x\[1\] = 2 > x\[2\] = 1"),
        ([[0.0, 1.0], [1.0, 0.5]], r"x\[0\] = 1 > x\[1\] = 0.5 in batch item \(1,\)"),
        ([0.0, float("nan")], "finite"),
        ([1.0], "n ≥ 2"),
        (1.0, "n ≥ 2"),
        ([[0.0], [1.0]], "n ≥ 2"),
    ],
)
def test_refuses_what_are_not_quantiles(x: object, words: str):
    with pytest.raises(ValueError, match=words):
        ox.Quantiles(x)


def test_moments():
    x = sample(1, 4, 50)
    mu = ox.Quantiles(x)
    torch.testing.assert_close(mu.mean, x.mean(-1, keepdim=True))
    torch.testing.assert_close(mu.cov[..., 0, 0], x.var(-1, correction=0))
    torch.testing.assert_close(mu.expect(lambda z: z[..., 0] ** 3), (x**3).mean(-1))
    torch.testing.assert_close(mu.expect(lambda z: torch.cat([z, z**2], -1))[..., 1], (x**2).mean(-1))


def test_convolve_sums_over_pairs():
    mu, z = ox.Quantiles(sample(2, 2, 9)), sample(3, 2, 5)[..., None]
    direct = torch.cos(z - mu.x.mT).mean(-1)
    torch.testing.assert_close(mu.convolve(lambda d: d.cos().sum(-1), z), direct)
    square = mu.interact(lambda d: d.square().sum(-1))
    torch.testing.assert_close(square, 2 * mu.cov[..., 0, 0])


@pytest.mark.parametrize("n", [100, 400])
def test_entropy_is_the_sum_over_gaps(n: int):
    torch.testing.assert_close(ox.Quantiles.of(lambda p: 3 * p, n).entropy(), torch.tensor(-math.log(3) * (n - 1) / n))


def test_entropy_and_porous_medium_converge_on_a_gaussian():
    errors = []
    for n in (100, 1000, 10000):
        mu = ox.Quantiles.of(gaussian(1.0, 4.0), n)
        errors.append(abs(mu.entropy().item() - gaussian(1.0, 4.0).entropy().item()))
        assert abs(ox.PorousMedium(2.0)(mu).item() - 1 / (4 * math.sqrt(math.pi))) < 2 / n
    assert errors[0] > 5 * errors[1] > 25 * errors[2]


def test_score_is_the_gradient_of_the_entropy():
    x = (sample(4, 2, 12) + 0.3 * torch.arange(12)).requires_grad_()
    (g,) = torch.autograd.grad(ox.Quantiles(x).entropy().sum(), x)
    torch.testing.assert_close(ox.Entropy().gradient(ox.Quantiles(x))[..., 0], 12 * g)


def test_score_and_density_of_a_gaussian():
    mu = ox.Quantiles.of(gaussian(1.0, 4.0), 20000)
    z = torch.linspace(-3.0, 5.0, 9)[:, None]
    torch.testing.assert_close(mu.log_prob(z), gaussian(1.0, 4.0).log_prob(z), atol=2e-3, rtol=0)
    torch.testing.assert_close(mu.score(z), gaussian(1.0, 4.0).score(z), atol=5e-3, rtol=0)
    inner = slice(2000, -2000)
    torch.testing.assert_close(mu.log_prob()[inner], gaussian(1.0, 4.0).log_prob(mu.x)[inner], atol=1e-6, rtol=0)


def test_the_density_has_mass_one_and_the_cdf_of_the_levels():
    mu = ox.Quantiles(torch.tensor([0.0, 1.0, 1.5, 4.0]))
    z = torch.linspace(-1.0, 6.0, 700001)[:, None]
    assert torch.trapezoid(mu.log_prob(z).exp(), z[:, 0]).item() == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(mu.cdf(mu.x[:, 0]), levels(4))
    torch.testing.assert_close(mu.cdf(torch.tensor([-0.5, 5.25, -2.0, 9.0])), torch.tensor([0.0, 1.0, 0.0, 1.0]))
    assert mu.log_prob(torch.tensor([[-0.6], [5.3]])).tolist() == [-math.inf, -math.inf]


@given(st.integers(0, 10**6), st.integers(2, 40))
def test_quantile_inverts_cdf(seed: int, n: int):
    mu = ox.Quantiles(sample(seed, 3, n))
    p = torch.rand(3, 11, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(mu.cdf(mu.quantile(p)), p, atol=1e-9, rtol=0)


def test_an_atom_is_a_measure_without_a_density():
    mu = ox.Quantiles(torch.tensor([0.0, 2.0, 2.0, 3.0]))
    assert mu.mean.item() == 1.75
    for ask in (mu.entropy, mu.log_prob, mu.score, lambda: ox.PorousMedium(2.0)(mu)):
        with pytest.raises(ValueError, match="an atom at 2"):
            ask()


def test_push_sorts_after_a_map_that_is_not_monotone():
    mu = ox.Quantiles(torch.tensor([-2.0, -1.0, 1.5]))
    assert mu.push(lambda x: x.square()).x[:, 0].tolist() == [1.0, 2.25, 4.0]
    assert mu.push(lambda x: (-x, torch.zeros_like(x[..., 0]))).x[:, 0].tolist() == [-1.5, 1.0, 2.0]
    with pytest.raises(ValueError, match="shape"):
        mu.push(lambda x: x[:2])


def test_move_follows_a_velocity_and_refuses_the_rest():
    mu = ox.Quantiles(torch.tensor([-1.0, 0.0, 2.0]))
    assert mu.move(Velocity(lambda x: -x), 0.5).x[:, 0].tolist() == [-0.5, 0.0, 1.0]
    assert mu.move(Velocity(lambda x: -x), 2.0).x[:, 0].tolist() == [-2.0, 0.0, 1.0]
    with pytest.raises(TypeError, match="Growth"):
        mu.move(ox.measures.Growth(lambda x: x[..., 0]), 0.5)


@pytest.mark.parametrize("cov", [1e-4, 0.3, 3.0, 400.0])
def test_diffuse_of_a_gaussian(cov: float):
    """The quantiles of N(1, 2 + cov): W2 error O(n^-½), from the tails beyond the last level; inside O(n^-1.5)."""
    for n in (250, 1000, 4000):
        got = ox.Quantiles.of(gaussian(1.0, 2.0), n).diffuse(torch.tensor([[cov]])).x[:, 0]
        error = (got - ox.Quantiles.of(gaussian(1.0, 2.0 + cov), n).x[:, 0]).abs() / math.sqrt(2 + cov)
        assert error[n // 10 : -n // 10].max().item() < 3 / n**1.5 + 1e-6
        assert error.square().mean().sqrt().item() < 0.06 / n**0.5


@pytest.mark.parametrize("sigma", [0.02, 0.2, 1.0, 50.0])
def test_diffuse_of_the_uniform(sigma: float):
    """U[0, 1] + N(0, σ²) has the CDF σ (G(x/σ) − G((x − 1)/σ)), G' = Φ. The representation is exact, so is the CDF."""
    n = 2000
    x = ox.Quantiles.of(lambda p: p, n).diffuse(torch.tensor([[sigma**2]])).x[:, 0]

    def G(z: Tensor) -> Tensor:
        return z * torch.special.ndtr(z) + torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)

    cdf = sigma * (G(x / sigma) - G((x - 1) / sigma))
    torch.testing.assert_close(cdf, levels(n), atol=3e-7, rtol=0)


def test_diffuse_keeps_each_item_of_a_batch_and_no_noise_changes_nothing():
    x = torch.stack([levels(200), 5 * levels(200) - 40])
    mu, cov = ox.Quantiles(x), torch.tensor([[[0.1]], [[2.0]]])
    both = mu.diffuse(cov).x
    torch.testing.assert_close(both[1], ox.Quantiles(x[1]).diffuse(cov[1]).x, atol=1e-6, rtol=0)
    assert mu.diffuse(torch.zeros(1, 1)) is mu
    torch.testing.assert_close(mu.diffuse(torch.tensor([[[0.0]], [[2.0]]])).x[0], mu.x[0])


def test_diffuse_spreads_an_atom():
    mu = ox.Quantiles(torch.full((1000,), 3.0)).diffuse(torch.tensor([[0.25]]))
    torch.testing.assert_close(mu.x, ox.Quantiles.of(gaussian(3.0, 0.25), 1000).x, atol=3e-4, rtol=0)


def test_diffuse_is_nearly_a_semigroup():
    mu = ox.Quantiles.of(gaussian(0.0, 1.0), 2000)
    for _ in range(20):
        mu = mu.diffuse(torch.tensor([[0.05]]))
    inner = slice(100, -100)
    torch.testing.assert_close(mu.x[inner], ox.Quantiles.of(gaussian(0.0, 2.0), 2000).x[inner], atol=5e-4, rtol=0)
    assert mu.cov.item() == pytest.approx(2, rel=5e-3)


def test_diffuse_with_a_generator_adds_sorted_noise():
    mu = ox.Quantiles.of(gaussian(0.0, 1.0), 20000)
    noisy = mu.diffuse(torch.tensor([[3.0]]), torch.Generator().manual_seed(0))
    assert (noisy.gaps >= 0).all()
    assert noisy.cov.item() == pytest.approx(4, abs=0.1)


def test_quantiles_of_measures():
    n = 500
    exact = 1 + 2 * torch.special.ndtri(levels(n))
    torch.testing.assert_close(ox.Quantiles.of(gaussian(1.0, 4.0), n).x[:, 0], exact)
    fine = ox.Quantiles.of(gaussian(1.0, 4.0), 100 * n)
    torch.testing.assert_close(ox.Quantiles.of(fine, n).x[:, 0], exact, atol=1e-4, rtol=0)
    x = torch.randn(2, n, 1, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ox.Quantiles.of(ox.Particles(x), n).x, x.sort(-2).values)
    weighted = ox.Particles(torch.tensor([[3.0], [0.0]]), w=torch.tensor([0.25, 0.75]))
    assert ox.Quantiles.of(weighted, 4).x[:, 0].tolist() == pytest.approx([-1.0, 0.0, 1.5, 3.0])
    assert ox.Quantiles.of(ox.Particles(torch.tensor([[2.0]])), 3).x[:, 0].tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        (ox.Gaussian([0.0, 0.0], torch.eye(2)), ValueError, "dimension 2"),
        (ox.Particles(torch.zeros(3, 1), domain=ox.Torus(1.0)), TypeError, "Torus"),
    ],
)
def test_quantiles_of_what_has_none(source: ox.Measure, error: type[Exception], words: str):
    with pytest.raises(error, match=words):
        ox.Quantiles.of(source, 10)
    with pytest.raises(ValueError, match="at least 2"):
        ox.Quantiles.of(gaussian(), 1)


def test_to_particles_samples_the_density():
    mu = ox.Quantiles.of(gaussian(1.0, 4.0), 1000)
    cloud = mu.to_particles(40000, torch.Generator().manual_seed(0))
    assert cloud.mean.item() == pytest.approx(1, abs=0.04)
    assert cloud.cov.item() == pytest.approx(4, abs=0.1)


@pytest.mark.parametrize("cells", [40, 400])
def test_to_density_and_back(cells: int):
    mu = ox.Quantiles(torch.stack([levels(300), 2 * levels(300) ** 1.5 - 1]))
    rho = mu.to_density(ox.Grid(-1.25, 1.25, cells))
    centres = rho.points[..., 0]
    mass = rho.values * 2.5 / cells
    torch.testing.assert_close((mass * centres).sum(-1, keepdim=True), mu.mean, atol=5 / cells**2, rtol=0)
    back = ox.Quantiles.of(rho, 300)
    assert (back.x - mu.x).abs().mean().item() < 0.6 / cells
    with pytest.raises(ValueError, match="dimension 1, not 2"):
        mu.to_density(ox.Grid((0.0, 0.0), (1.0, 1.0), (4, 4)))


def test_float32_stays_float32():
    mu = ox.Quantiles(levels(100).float())
    assert mu.diffuse(torch.tensor([[0.1]], dtype=torch.float32)).x.dtype == torch.float32
    assert mu.log_prob().dtype == mu.score().dtype == torch.float32
    assert mu.with_state(**mu.state()).x.equal(mu.x)


@pytest.mark.parametrize("F", [ox.Entropy(), ox.PorousMedium(2.0), ox.KL(ox.Quadratic([0.0]))], ids=str)
def test_an_unstable_explicit_step_is_refused(F):
    mu = ox.Quantiles.of(ox.Gaussian([0.0], [[2.0]]), 1000)
    with pytest.raises(ValueError, match="above the stable step.*Backward in place of Forward"):
        ox.record(ox.flow(ox.Forward(F), mu, [0.01 * k for k in range(11)]))
    crossing = ox.Forward(ox.Potential(lambda x: 3 * x.square().sum(-1)))(mu, 0.0, 1.0).mu  # no energy that spreads
    torch.testing.assert_close(crossing.x, 5 * mu.x)
