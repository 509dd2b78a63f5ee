import math
from itertools import permutations

import pytest
import torch

import otprox as ox
from otprox.exact import landau
from otprox.metrics import Landau


def cloud(n: int = 40, d: int = 3, seed: int = 0, *batch: int) -> tuple[ox.Particles, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, u = torch.randn(2, *batch, n, d, generator=generator)
    w = torch.rand(*batch, n, generator=generator)
    return ox.Particles(x, w / w.sum(-1, keepdim=True)), u


def in_batches(gamma: float, batch: int, seed: int = 0) -> Landau:
    return Landau(gamma, 0.7, batch=batch, generator=torch.Generator().manual_seed(seed))


def direct(mu: ox.Particles, u: torch.Tensor, gamma: float) -> torch.Tensor:
    rows = torch.zeros_like(u)
    for i in range(len(u)):
        for j in range(len(u)):
            z = mu.x[i] - mu.x[j]
            if i != j:
                r = z.norm()
                A = r ** (gamma + 2) * (torch.eye(len(z)) - torch.outer(z, z) / r**2)
                rows[i] += mu.w[j] * A @ (u[i] - u[j])
    return rows


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("gamma", [-2.0, -1.3, 0.0, 0.5, 1.0])
def test_onsager_is_the_sum_over_pairs(gamma: float, d: int):
    mu, u = cloud(12, d)
    torch.testing.assert_close(Landau(gamma, 0.7).onsager(mu, u), 0.7 * direct(mu, u, gamma))


@pytest.mark.parametrize("gamma", [-3.0, -2.0, 0.0, 1.0])
def test_momentum_and_energy_have_rate_zero(gamma: float):
    mu, u = cloud(300, 3, 1, 2)
    v = Landau(gamma).onsager(mu, u)
    size = (mu.w[..., None] * v.abs()).sum((-2, -1)).max()
    assert (mu.w[..., None] * v).sum(-2).abs().max() < 1e-14 * size
    assert (mu.w[..., None] * v * mu.x).sum((-2, -1)).abs().max() < 1e-13 * size
    assert (((mu.w[..., None] * v * u).sum((-2, -1))) > 0).all()


def test_coulomb_is_the_sum_over_pairs_in_tiles():
    mu, u = cloud(700, 3, 2)
    few = ox.Particles(mu.x[:9], torch.full((9,), 1 / 9))
    torch.testing.assert_close(Landau(-3.0).onsager(few, u[:9]), direct(few, u[:9], -3.0))
    z = mu.x[:, None] - mu.x
    r = z.norm(dim=-1, keepdim=True) + torch.eye(700)[..., None]
    jump = u[:, None] - u
    image = (jump - z * (z * jump).sum(-1, keepdim=True) / r**2) / r * mu.w[:, None]
    torch.testing.assert_close(Landau(-3.0).onsager(mu, u), image.sum(1))


def test_the_score_of_a_gaussian_moves_its_covariance_as_in_closed_form():
    """Nodes of Gauss and Hermite have the Gaussian's moments up to the fourth, all that the rate of P takes."""
    node = math.sqrt(3.0)
    z = torch.cartesian_prod(*[torch.tensor([-node, 0.0, node])] * 3)
    w = torch.where(z == 0, 2 / 3, 1 / 6).prod(-1)
    root, C, h = torch.tensor([[1.5, 0.0, 0.0], [0.3, 0.8, 0.0], [-0.2, 0.1, 0.5]]), 1 / 24, 1e-5
    P, x = root @ root.T, z @ root.T
    v = -Landau(0.0, C).onsager(ox.Particles(x, w), -x @ torch.linalg.inv(P))
    rate = v.T @ (w[:, None] * x)
    slope = (landau.covariance(P, h, strength=C) - landau.covariance(P, -h, strength=C)) / (2 * h)
    torch.testing.assert_close(rate + rate.T, slope, atol=1e-8, rtol=1e-7)


@pytest.mark.parametrize("gamma", [-3.0, 0.0])
def test_an_euler_step_keeps_momentum_and_adds_its_square_to_the_energy(gamma: float):
    mu, _ = cloud(60, 3, 4)
    F, tau = ox.Blob(0.5, form="full"), 0.01
    v = Landau(gamma).descent(F, mu).field(mu.points)
    nu = ox.Forward(F, Landau(gamma))(mu, 0.0, tau).mu
    w = mu.w[:, None]
    torch.testing.assert_close((w * nu.x).sum(0), (w * mu.x).sum(0), atol=1e-15, rtol=1e-14)
    growth = (w * (nu.x.square() - mu.x.square())).sum() / 2
    assert float(growth) == pytest.approx(tau**2 / 2 * float((w * v.square()).sum()), rel=1e-9)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="gamma must be"):
        Landau(math.nan)
    with pytest.raises(ValueError, match="strength must be positive"):
        Landau(0.0, 0.0)
    with pytest.raises(ValueError, match="d ≥ 2"):
        Landau(0.0).onsager(*cloud(5, 1))
    with pytest.raises(TypeError, match="Particles"):
        Landau(0.0).onsager(ox.Gaussian([0.0, 0.0], torch.eye(2)), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="gamma ≥ −d"):
        Landau(-3.0).onsager(*cloud(5, 2))
    with pytest.raises(ValueError, match="batch must be"):
        in_batches(0.0, 1)
    with pytest.raises(ValueError, match="need both"):
        Landau(0.0, batch=10)


@pytest.mark.parametrize("n", [2, 3, 700])
@pytest.mark.parametrize("metric", [Landau(-3.0), in_batches(-2.5, 2)], ids=["all pairs", "batches"])
def test_particles_at_one_place_are_refused_where_A_is_infinite(metric: Landau, n: int):
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(0))
    x[-1] = x[0]
    mu = ox.Particles(x)
    with pytest.raises(ValueError, match="at one place"):
        metric.onsager(mu, x.sin())
    with pytest.raises(ValueError, match="at one place"):
        metric.descent(ox.Potential(lambda x: x.square().sum(-1).cos()), mu).jacobian()
    for gamma in (-2.0, -1.0, 0.5):
        assert Landau(gamma).onsager(mu, x.sin()).isfinite().all()


@pytest.mark.parametrize("gamma", [-3.0, 0.0])
def test_a_density_is_carried_by_the_jacobian_of_the_velocity(gamma: float):
    x, w = cloud(40, 3, 5)[0].x, cloud(40, 3, 5)[0].w
    mu = ox.Particles(x, w, log_density=-x.square().sum(-1))
    F = ox.Blob(0.5) + 0.3 * ox.Potential(lambda x: (x.square().sum(-1) ** 2) / 4)
    v = Landau(gamma).descent(F, mu)
    known, generic = mu.move(v, 1e-3), mu.move(ox.measures.Velocity(v.field), 1e-3)
    torch.testing.assert_close(known.x, generic.x)
    torch.testing.assert_close(known.log_density, generic.log_density, rtol=1e-12, atol=1e-12)
    assert (known.log_density - mu.log_density).abs().max() > 1e-4


@pytest.mark.parametrize(("n", "size"), [(4, 2), (5, 2), (5, 3), (5, 4)])
@pytest.mark.parametrize("gamma", [-3.0, 0.0, 0.5])
def test_random_batches_are_unbiased(monkeypatch, gamma: float, n: int, size: int):
    """The mean over every order of the particles is the sum over all pairs, of the velocity and of its Jacobian."""
    mu, u = cloud(n, 3)
    F = ox.Potential(lambda x: x.square().sum(-1).cos())
    orders = [torch.tensor(p) for p in permutations(range(n))]
    draws = iter(orders + orders)
    monkeypatch.setattr(torch, "randperm", lambda *_, **__: next(draws))
    metric = in_batches(gamma, size)
    mean = sum(metric.onsager(mu, u) for _ in orders) / len(orders)
    torch.testing.assert_close(mean, Landau(gamma, 0.7).onsager(mu, u), rtol=1e-12, atol=1e-13)
    slope = sum(metric.descent(F, mu).jacobian()[1] for _ in orders) / len(orders)
    torch.testing.assert_close(slope, Landau(gamma, 0.7).descent(F, mu).jacobian()[1], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("gamma", [-3.0, -1.0, 0.0, 1.0])
@pytest.mark.parametrize("n", [64, 67, 65])
def test_random_batches_keep_momentum_and_energy(gamma: float, n: int):
    mu, u = cloud(n, 3, 0, 2)
    metric = in_batches(gamma, 8)
    first, second = metric.onsager(mu, u), metric.onsager(mu, u)
    assert not torch.allclose(first, second)
    for v in (first, second):
        size = (mu.w[..., None] * v.abs()).sum((-2, -1)).max()
        assert (mu.w[..., None] * v).sum(-2).abs().max() < 1e-13 * size
        assert (mu.w[..., None] * v * mu.x).sum((-2, -1)).abs().max() < 1e-13 * size
        assert ((mu.w[..., None] * v * u).sum((-2, -1)) > 0).all()


def test_one_batch_of_all_is_the_sum_over_all_pairs():
    mu, u = cloud(20, 3)
    torch.testing.assert_close(in_batches(-3.0, 20).onsager(mu, u), Landau(-3.0, 0.7).onsager(mu, u))
    torch.testing.assert_close(in_batches(-3.0, 99).onsager(mu, u), Landau(-3.0, 0.7).onsager(mu, u))


def test_a_flow_in_random_batches_repeats_and_observers_draw_nothing():
    metric, mu = in_batches(0.5, 8), cloud(50, 2)[0]
    F = ox.Blob(0.5, form="full")
    path = ox.flow(ox.Forward(F, metric), mu, [0.0, 0.1, 0.2, 0.3])
    assert path.step.generators() == (metric.generator,)
    first = ox.record(path).final.x
    rate = ox.record(path, rate=lambda tick: metric.dissipation(F, tick.after)).final.x
    torch.testing.assert_close(first, rate, rtol=0, atol=0)
    torch.testing.assert_close(metric.dissipation(F, mu), Landau(0.5, 0.7).dissipation(F, mu), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("gamma", [-3.0, -2.6, 0.0, 0.5])
@pytest.mark.needs_cuda
def test_on_cuda(gamma: float, dtype: torch.dtype):
    mu, u = cloud(3000, 3, 0, 2)
    there, v = ox.Particles(mu.x.to("cuda", dtype), mu.w.to("cuda", dtype)), u.to("cuda", dtype)
    tol = {"rtol": 1e-10, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-3, "atol": 1e-4}
    found = Landau(gamma).onsager(there, v)
    torch.testing.assert_close(found.cpu().double(), Landau(gamma).onsager(mu, u), **tol)
    drawn = Landau(gamma, batch=16, generator=torch.Generator("cuda").manual_seed(0)).onsager(there, v)
    w = there.w[..., None]
    assert (w * drawn).sum(-2).norm() < 1e2 * torch.finfo(dtype).eps * (w * drawn).norm(dim=-1).sum()
    F = ox.Potential(lambda x: x.square().sum(-1).cos())
    slope = Landau(gamma).descent(F, there).jacobian()[1].cpu().double()
    torch.testing.assert_close(slope, Landau(gamma).descent(F, mu).jacobian()[1], **tol)
