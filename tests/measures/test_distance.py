"""Wasserstein distances against closed forms, POT, and quadrature over quantile functions."""

import math

import ot
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

import otprox as ox
from otprox.measures.distance import gelbrich_squared, w2_squared


@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 9))
def test_weighted_atoms_on_the_line_agree_with_pot(seed, n, m):
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(n, 1, generator=g), 2 * torch.randn(m, 1, generator=g) + 1
    a, b = torch.rand(n, generator=g) + 0.01, torch.rand(m, generator=g) + 0.01
    a, b = a / a.sum(), b / b.sum()
    want = ot.emd2(a.numpy(), b.numpy(), ot.dist(x.numpy(), y.numpy()))
    assert w2_squared(ox.Particles(x, a), ox.Particles(y, b)).item() == pytest.approx(want, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("n", "m"), [(7, 7), (12, 5)])
def test_points_in_the_plane_agree_with_pot(n, m):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(3, n, 2, generator=g), torch.randn(3, m, 2, generator=g) + 1
    got = w2_squared(ox.Particles(x), ox.Particles(y))
    for k in range(3):
        want = ot.emd2([], [], ot.dist(x[k].numpy(), y[k].numpy()))
        assert got[k].item() == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize(("m", "s"), [(0.0, 1.0), (10.0, 10.0), (-2.0, 0.1)])
def test_atoms_to_a_gaussian(m, s):
    x = torch.tensor([[-1.0], [0.5], [2.0]])
    w = torch.tensor([0.2, 0.5, 0.3])
    got = w2_squared(ox.Particles(x, w), ox.Gaussian([m], [[s * s]])).item()
    edges, want = [0.0, 0.2, 0.7, 1.0], 0.0
    for value, low, high in zip(x[:, 0].tolist(), edges, edges[1:], strict=False):
        want += integrate.quad(lambda u, v=value: (v - stats.norm.ppf(u, m, s)) ** 2, low, high, epsabs=1e-12)[0]
    assert got == pytest.approx(want, rel=1e-8)
    assert w2_squared(ox.Gaussian([m], [[s * s]]), ox.Particles(x, w)).item() == pytest.approx(got)


def test_uniform_quantiles_of_a_gaussian_are_close_to_it():
    n = 10_000
    mu = ox.Quantiles(torch.special.ndtri((torch.arange(n) + 0.5) / n))
    assert 0 < w2_squared(mu, ox.Gaussian([0.0], [[1.0]])).item() < 1e-3


def test_densities_on_the_line():
    one = ox.Density(torch.ones(10), ox.Grid(0.0, 1.0, 10))
    two = ox.Density(torch.full((16,), 0.5), ox.Grid(1.0, 3.0, 16))
    assert w2_squared(one, two).item() == pytest.approx(1.5**2 + 1 / 12, rel=1e-12)  # U[0,1] → U[1,3]: x = 1 + 2u
    assert w2_squared(one, one).item() == pytest.approx(0.0, abs=1e-15)
    s = 0.7
    want = integrate.quad(lambda u: (u - stats.norm.ppf(u, 0.2, s)) ** 2, 0, 1, epsabs=1e-12)[0]
    assert w2_squared(one, ox.Gaussian([0.2], [[s * s]])).item() == pytest.approx(want, rel=1e-8)
    grids = [ox.Gaussian([0.0], [[1.0]]).to_density(ox.Grid(-9.0, 9.0, n)) for n in (90, 180, 360)]
    errors = [w2_squared(d, ox.Gaussian([0.0], [[1.0]])).sqrt().item() for d in grids]
    assert math.log2(errors[1] / errors[2]) > 0.9


def test_batches_broadcast():
    g = torch.Generator().manual_seed(3)
    x = torch.randn(4, 6, 1, generator=g)
    many = w2_squared(ox.Particles(x), ox.Particles(x[0]))
    assert many.shape == (4,) and many[0].item() == pytest.approx(0.0, abs=1e-12)
    assert many[2].item() == pytest.approx(w2_squared(ox.Particles(x[2]), ox.Particles(x[0])).item())


@given(st.integers(0, 10_000))
def test_gelbrich_is_a_lower_bound(seed):
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(8, 2, generator=g), torch.rand(8, 2, generator=g)
    mu, nu = ox.Particles(x), ox.Particles(y)
    assert gelbrich_squared(mu, nu) <= w2_squared(mu, nu) + 1e-9


def test_dimensions_must_agree():
    with pytest.raises(ValueError, match="dimensions 1 and 2"):
        w2_squared(ox.Particles(torch.zeros(2, 1)), ox.Particles(torch.zeros(2, 2)))


def test_measures_that_do_not_fit_are_refused():
    mu, flat = ox.Gaussian(torch.zeros(2), torch.eye(2)), ox.Gaussian(torch.zeros(1), torch.eye(1))
    single = ox.Gaussian(torch.zeros(2).float(), torch.eye(2).float())
    for distance in (w2_squared, gelbrich_squared):
        with pytest.raises(ValueError, match="dimensions 2 and 1"):
            distance(mu, flat)
        with pytest.raises(TypeError, match="float32"):
            distance(mu, single)


@pytest.mark.parametrize(("lower", "upper"), [(0.0, 1.0), (-2.0, 1.0)])
@pytest.mark.parametrize("turn", [0, 3, 17, 47, 61])
def test_a_bump_on_a_circle_moves_the_short_way(lower: float, upper: float, turn: int):
    grid = ox.Grid(lower, upper, 64, periodic=True)
    values = torch.zeros(64)
    values[:6] = torch.tensor([1.0, 3.0, 2.0, 0.0, 1.0, 0.5])
    mu = ox.Density(values / (values.sum() * grid.volume), grid)
    nu = mu.with_state(values=mu.values.roll(turn))
    shift = min(turn, 64 - turn) * grid.spacing[0]
    assert w2_squared(mu, nu).item() == pytest.approx(shift**2, rel=1e-9, abs=1e-12)
    assert w2_squared(nu, mu).item() == pytest.approx(shift**2, rel=1e-9, abs=1e-12)


def test_a_density_on_a_circle_turns_by_less_than_its_rotation():
    """No mass circulates where a map is optimal, ∫(T(x) − x) dx = 0, so that a rotation of full support is not."""
    grid = ox.Grid(0.0, 1.0, 64, periodic=True)
    values = torch.exp(torch.cos(2 * math.pi * grid.points(torch.zeros(()))[:, 0]))
    mu = ox.Density(values / (values.sum() * grid.volume), grid)
    nu = mu.with_state(values=mu.values.roll(9))
    atoms = [ox.Particles(grid.points(values), m.values * grid.volume, domain=ox.Torus(1.0)) for m in (mu, nu)]
    found = w2_squared(mu, nu).item()
    assert found < (9 / 64) ** 2 / 2
    assert found == pytest.approx(w2_squared(*atoms).item(), rel=2e-2)  # cells as atoms


def test_a_circle_by_the_linear_program():
    """A batch of atoms against POT's program over the shortest distances on a strip that closes."""
    g = torch.Generator().manual_seed(0)
    x, y = 2.0 * torch.rand(3, 40, 1, generator=g), 2.0 * torch.rand(3, 30, 1, generator=g)
    a, b = torch.rand(3, 40, generator=g), torch.rand(3, 30, generator=g)
    circle, strip = ox.Torus(2.0), ox.Torus((2.0, 5.0))
    mu, nu = (ox.Particles(p, w / w.sum(-1, keepdim=True), domain=circle) for p, w in ((x, a), (y, b)))
    flat = [ox.Particles(torch.cat([m.x, 0 * m.x], -1), m.w, domain=strip) for m in (mu, nu)]
    torch.testing.assert_close(w2_squared(mu, nu), w2_squared(*flat), rtol=1e-9, atol=1e-12)
    line = [ox.Particles(m.x, m.w) for m in (mu, nu)]
    assert (w2_squared(mu, nu) < w2_squared(*line) - 1e-3).any()


def test_spaces_differ():
    x = torch.rand(5, 1, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="different spaces: of periods"):
        w2_squared(ox.Particles(x, domain=ox.Torus(1.0)), ox.Particles(x))
    with pytest.raises(ValueError, match="different spaces"):
        w2_squared(ox.Particles(x, domain=ox.Torus(1.0)), ox.Gaussian([0.0], [[1.0]]))
