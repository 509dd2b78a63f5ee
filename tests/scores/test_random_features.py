import pytest
import torch

import otprox as ox
from otprox.exact.landau import BKW
from otprox.measures.base import jacobian
from otprox.scores import GaussianFit, RandomFeatures
from otprox.scores.divergence import divergence


def cloud(n: int = 300, d: int = 2, seed: int = 0, *batch: int) -> ox.Particles:
    """Weighted particles of a mixture of two Gaussians."""
    generator = torch.Generator().manual_seed(seed)
    x, w = torch.randn(*batch, n, d, generator=generator), torch.rand(*batch, n, generator=generator)
    sides = 2 * torch.randint(2, (*batch, n, 1), generator=generator) - 1
    return ox.Particles(x + 1.5 * sides, w / w.sum(-1, keepdim=True))


def loss(mu: ox.Particles, score: object) -> torch.Tensor:
    """E|s|² + 2E ∇·s."""
    x = mu.x.clone().requires_grad_()
    s = score(x)
    return (mu.w * (s.square().sum(-1) + 2 * divergence(s, x))).sum().detach()


@pytest.mark.parametrize("d", [1, 2, 3])
def test_it_minimises_the_loss_of_score_matching(d: int):
    """Along the coefficients that a ridge would take away, to both sides."""
    mu = cloud(500, d)
    known = RandomFeatures(12, ridge=0.0).fit(mu)
    least = loss(mu, known)
    assert least < loss(mu, GaussianFit().fit(mu))
    for ridge in (0.01, 0.1, 1.0, 10.0):
        other = RandomFeatures(12, ridge=ridge).fit(mu)
        for c in (-1e-2, 1e-2):
            assert loss(mu, lambda x, c=c, other=other: known(x) + c * (other(x) - known(x))) > least


def test_the_mean_score_is_zero():
    mu = cloud()
    s = RandomFeatures().fit(mu)(mu.x)
    assert (mu.w @ s).abs().max() < 1e-12


def test_it_is_equivariant_under_triangular_maps():
    mu, L = cloud(), torch.tensor([[2.0, 0.0], [0.7, 0.1]])
    moved = mu.push(lambda x: x @ L.T + 5.0)
    torch.testing.assert_close(RandomFeatures().fit(moved)(moved.x) @ L, RandomFeatures().fit(mu)(mu.x))


def test_a_batch_is_single_fits():
    mu = cloud(60, 2, 0, 3)
    s = RandomFeatures(20).fit(mu)(mu.x)
    for i in range(3):
        one = ox.Particles(mu.x[i], mu.w[i])
        torch.testing.assert_close(s[i], RandomFeatures(20).fit(one)(one.x))


@pytest.mark.parametrize("n", [1000, 3000])
def test_the_ridge_is_chosen_on_particles_that_were_not_fitted(n: int):
    """On a Gaussian no correction is right; on a mixture one is, and it is near the best of all ridges."""
    generator = torch.Generator().manual_seed(0)
    gaussian = ox.Gaussian(torch.zeros(3), torch.eye(3)).to_particles(n, generator)
    fit = GaussianFit().fit(gaussian)(gaussian.x)
    assert (RandomFeatures().fit(gaussian)(gaussian.x) - fit).square().mean() < 0.02
    unseen, mu = cloud(20_000, 2, 7), cloud(n)
    chosen = loss(unseen, RandomFeatures().fit(mu))
    best = min(float(loss(unseen, RandomFeatures(ridge=10.0**k).fit(mu))) for k in range(-6, 2))
    linear = float(loss(unseen, GaussianFit().fit(mu)))
    assert chosen - best < 0.15 * (linear - best)


def test_without_weight_on_one_half_it_is_the_gaussian_fit():
    mu = cloud(40)
    w = mu.w.clone()
    w[::2] = 0.0
    half = ox.Particles(mu.x, w / w.sum())
    torch.testing.assert_close(RandomFeatures().fit(half)(mu.x), GaussianFit().fit(half)(mu.x))


def test_many_particles_go_in_blocks(monkeypatch: pytest.MonkeyPatch):
    mu = cloud(1000)
    whole, slope = RandomFeatures(16).fit(mu)(mu.x), jacobian(RandomFeatures(16).fit(mu), mu.x)
    monkeypatch.setitem(ox.pairwise.TILE, "cpu", 1600)
    parts = RandomFeatures(16).fit(mu)
    torch.testing.assert_close(parts(mu.x), whole)
    torch.testing.assert_close(jacobian(parts, mu.x), slope)


@pytest.mark.parametrize("t", [0.5, 2.0])
def test_on_a_grid_it_finds_the_score_of_bkw(t: float):
    mu = BKW().particles(ox.Grid((-5, -5), (5, 5), (60, 60)), t)
    exact = BKW().score(mu.x, t)
    errors = []
    for count in (64, 256):
        gap = (RandomFeatures(count).fit(mu)(mu.x) - exact).square().sum(-1)
        errors.append(float((mu.w @ gap / (mu.w @ exact.square().sum(-1))).sqrt()))
    assert errors[1] < 0.7 * errors[0] < 0.1


def test_a_flow_by_it_has_the_entropy_of_bkw():
    exact = BKW()
    mu = exact.particles(ox.Grid((-4.5, -4.5), (4.5, 4.5), (50, 50)), 1.0)
    mu = ox.Particles(mu.x, mu.w, exact.log_density(mu.x, 1.0))
    step = ox.Forward(ox.Entropy(score=RandomFeatures()), ox.Landau(0.0, exact.strength))
    run = ox.record(ox.flow(step, mu, [1.0 + 0.02 * k for k in range(51)]), H=ox.observe.energy(ox.Entropy()))
    errors = [float(H) - exact.entropy(t) for t, H in zip(run.times.tolist(), run.series["H"], strict=True)]
    assert max(map(abs, errors)) < 1e-3


def test_single_precision():
    mu = cloud(2000)
    single = ox.Particles(mu.x.float(), mu.w.float())
    s = RandomFeatures(32).fit(single)(single.x)
    assert s.dtype == torch.float32
    torch.testing.assert_close(s.double(), RandomFeatures(32).fit(mu)(mu.x), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count of at least 1, not 0"),
        ({"ridge": -1.0}, "ridge must be ≥ 0, or None to choose it by its loss, not -1.0"),
    ],
    ids=str,
)
def test_options_that_make_no_features_are_refused(options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        RandomFeatures(**options)
