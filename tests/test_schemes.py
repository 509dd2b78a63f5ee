"""Mean-field schemes against the formulas that they stand for."""

from __future__ import annotations

import math

import pytest
import torch

import otprox as ox


def rotators(n: int, seed: int = 0) -> ox.Particles:
    x = 2 * math.pi * torch.rand(n, 1, generator=torch.Generator().manual_seed(seed))
    return ox.Particles(x, domain=ox.Torus(2 * math.pi))


def test_kuramoto_is_its_system_of_equations():
    """θᵢ + (K τ/N)Σⱼ W'(θᵢ − θⱼ) + τ^½ξᵢ with W' = −sin θ − 2m sin 2θ."""
    mu, tau, K, m = rotators(7), 0.1, 1.3, 0.4
    new = ox.schemes.kuramoto(K, (1.0, m), torch.Generator().manual_seed(3))(mu, 0.0, tau).mu
    z = mu.x - mu.x.mT
    noise = math.sqrt(tau) * torch.randn(7, 1, generator=torch.Generator().manual_seed(3))
    want = mu.x + tau * K * (-z.sin() - 2 * m * (2 * z).sin()).mean(1, keepdim=True) + noise
    torch.testing.assert_close(new.x, want.remainder(2 * math.pi))


@pytest.mark.parametrize("m", [0.0, 0.5])
def test_kuramoto_settles_in_the_minimiser(m: float):
    """The stationary order parameters of 20,000 rotators, up to noise and the bias of the step, which is O(τ)."""
    scheme = ox.schemes.kuramoto(2.0, (1.0, m), torch.Generator().manual_seed(0))
    start = rotators(20_000).push(lambda x: 0.3 * x)
    path = ox.flow(scheme, start, [0.01 * k for k in range(401)])
    run = ox.record(path, r1=ox.observe.order(), r2=ox.observe.order(2))
    want = ox.exact.kuramoto.Kuramoto(2.0, (1.0, m)).minimiser()
    for k, r in enumerate(want.r, 1):
        if k == 1 or m:
            assert run.series[f"r{k}"][-150:].mean().item() == pytest.approx(r, abs=0.01)


def test_mckean_vlasov_is_its_system_of_equations():
    g = torch.Generator().manual_seed(1)
    mu, tau = ox.Particles(torch.randn(6, 2, generator=g)), 0.05
    attract = ox.schemes.mckean_vlasov(lambda z: z.square().sum(-1) / 2, noise=0.3, generator=g)
    confined = ox.schemes.mckean_vlasov(lambda z: z.square().sum(-1) / 2, ox.Quadratic([1.0, 0.0]), 0.3, g)
    for scheme, pull in ((attract, torch.zeros(6, 2)), (confined, mu.x - torch.tensor([1.0, 0.0]))):
        state = g.get_state()
        new = scheme(mu, 0.0, tau).mu
        g.set_state(state)
        noise = math.sqrt(0.6 * tau) * torch.randn(6, 2, generator=g)
        torch.testing.assert_close(new.x, mu.x - tau * (pull + mu.x - mu.mean) + noise)


def test_particles_need_their_generator_and_densities_do_not():
    with pytest.raises(ValueError, match="explicit generator"):
        ox.schemes.kuramoto(1.0)(rotators(5), 0.0, 0.1)
    grid = ox.Grid(0.0, 2 * math.pi, 16, periodic=True)
    flat = ox.Density(torch.full((16,), 1 / (2 * math.pi)), grid)
    torch.testing.assert_close(ox.schemes.kuramoto(1.0)(flat, 0.0, 0.01).mu.values, flat.values)


def test_svgd_and_its_annealing():
    V, k = ox.Quadratic([0.5, 0.0]), ox.kernels.RBF(0.8)
    mu = ox.Particles(torch.randn(5, 2, generator=torch.Generator().manual_seed(0)))
    plain = ox.Forward(ox.KL(V), ox.Stein(k))(mu, 0.0, 0.1).mu.x
    torch.testing.assert_close(ox.schemes.svgd(V, k)(mu, 0.0, 0.1).mu.x, plain)
    annealed = ox.schemes.annealed_svgd(V, k, lambda t: min(1.0, t))
    torch.testing.assert_close(annealed(mu, 1.0, 1.1).mu.x, plain)
    early = ox.Forward(0.2 * ox.Potential(V) + ox.Entropy(), ox.Stein(k))(mu, 0.0, 0.1).mu.x
    torch.testing.assert_close(annealed(mu, 0.2, 0.3).mu.x, early)
    steps = [ox.schemes.svgd(V, k, adagrad=True), ox.schemes.annealed_svgd(V, k, lambda t: 1.0, adagrad=True)]
    torch.testing.assert_close(*(step(mu, 0.0, 0.1).mu.x for step in steps))


def test_mmd_flow_is_its_system_of_equations():
    """xᵢ + (τ/N)Σⱼ [∇k(yᵢ, y′ⱼ) − ∇k(yᵢ, xⱼ)] at perturbed yᵢ = xᵢ + βuᵢ, with ∇ in the first argument."""
    g = torch.Generator().manual_seed(2)
    x, target, width = torch.randn(6, 2, generator=g), torch.randn(6, 2, generator=g), 0.9

    def slope(y: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        z = y[:, None] - points
        return (-z / width**2 * torch.exp(-z.square().sum(-1, keepdim=True) / (2 * width**2))).mean(1)

    k, mu, nu = ox.kernels.RBF(width), ox.Particles(x), ox.Particles(target)
    for beta in (0.0, 0.7):
        y = x + beta * torch.randn(6, 2, generator=torch.Generator().manual_seed(5))
        step = ox.schemes.mmd_flow(k, nu, lambda t, beta=beta: beta, torch.Generator().manual_seed(5))
        torch.testing.assert_close(step(mu, 0.0, 0.1).mu.x, x + 0.1 * (slope(y, target) - slope(y, x)))
    torch.testing.assert_close(
        ox.schemes.mmd_flow(k, nu)(mu, 0.0, 0.1).mu.x, x + 0.1 * (slope(x, target) - slope(x, x))
    )
    with pytest.raises(ValueError, match="explicit generator"):
        ox.schemes.mmd_flow(k, nu, 0.5)


def bump(grid: ox.Grid, centre: float = 0.3) -> ox.Density:
    return ox.Density.from_log_prob(lambda x: -3 * (x - centre).square().sum(-1), grid, like=torch.zeros(()))


def test_equations_take_any_representation_that_has_a_solver():
    """Grids and quantiles agree on the mean and the variance after a step."""
    V = ox.Quadratic([0.0])
    levels = (torch.arange(400) + 0.5) / 400
    start = ox.Gaussian([0.3], [[1 / 6]])
    for scheme in (
        ox.schemes.porous_medium(2.0),
        ox.schemes.porous_medium(3.0, V),
        ox.schemes.fast_diffusion(0.8, V),
        ox.schemes.aggregation_diffusion_jko(ox.kernels.RBF(1.0), V=V),
        ox.schemes.aggregation_diffusion_jko(lambda z: z.square().sum(-1).square(), m=2.0),
        ox.schemes.crowd(V, bound=0.9),
        ox.schemes.crowd(V, bound=0.9, noise=0.1),
    ):
        grid = scheme(start.to_density(ox.Grid(-4.0, 4.0, 200)), 0.0, 0.1).mu
        line = scheme(ox.Quantiles(0.3 + math.sqrt(1 / 6) * torch.special.ndtri(levels)), 0.0, 0.1).mu
        assert grid.mean.item() == pytest.approx(line.mean.item(), abs=1e-3)
        assert grid.cov.item() == pytest.approx(line.cov.item(), rel=2e-2)


def test_aggregation_alone_forward_is_its_explicit_step():
    """With W = |x|²/2 the mean stays and, but for the noise, each point moves to m + (1 − τ)(x − m)."""
    mu, tau = ox.Gaussian([0.5, -1.0], [[0.4, 0.1], [0.1, 0.7]]), 0.2
    new = ox.schemes.aggregation_diffusion(ox.Quadratic([0.0, 0.0]))(mu, 0.0, tau).mu
    want = ox.exact.gaussian.forward_backward(mu, ox.Gaussian(mu.mean, torch.eye(2)), tau)
    torch.testing.assert_close((new.mean, new.cov), (want.mean, want.cov))


def test_constrained_equations_keep_mass_and_bounds():
    grid = ox.Grid((-2.0, -2.0), (2.0, 2.0), (16, 16))
    mu = bump(grid)
    packed = ox.schemes.crowd(lambda x: x.square().sum(-1), bound=0.5)(mu, 0.0, 0.2).mu
    assert packed.values.max() <= 0.5 * (1 + 1e-6) and packed.mass.item() == pytest.approx(1, abs=1e-12)
    flat = ox.Density(torch.full((40,), 1 / 4), ox.Grid(-2.0, 2.0, 40))
    between = ox.schemes.obstacle(lambda x: x.square().sum(-1), lower=0.05, upper=0.4)(flat, 0.0, 1.0).mu
    assert between.values.max() <= 0.4 * (1 + 1e-5) and between.values.min() >= 0.01 * (1 - 1e-5)


def test_landau_is_forward_on_the_entropy_of_blobs():
    mu = ox.exact.landau.BKW().particles(ox.Grid((-4, -4), (4, 4), (9, 9)), 0.0)
    metric, blobs = ox.Landau(-2.0, 0.3), [ox.Blob(w, form="full") for w in (0.5, 0.5 * math.sqrt(2))]
    for order, F in ((2, blobs[0]), (4, 2 * blobs[0] - blobs[1])):
        new = ox.schemes.landau(-2.0, 0.5, strength=0.3, order=order)(mu, 0.0, 0.1).mu
        torch.testing.assert_close(new.x, mu.x - 0.1 * metric.onsager(mu, F.gradient(mu)))
    with pytest.raises(ValueError, match="order is 2 or 4 in the width, not 3"):
        ox.schemes.landau(0.0, 0.5, order=3)


@pytest.mark.parametrize("order", [2, 4])
def test_landau_loses_its_entropy_at_the_rate_of_dissipation(order: int):
    """−dF/dt = ∫⟨∇φ, K∇φ⟩, φ = δF/δμ, by a difference in time."""
    mu = ox.exact.landau.BKW().particles(ox.Grid((-4, -4), (4, 4), (15, 15)), 0.0)
    scheme, tau = ox.schemes.landau(-1.0, 0.5, order=order), 1e-6
    rate = scheme.metric.dissipation(scheme.F, mu).item()
    assert rate > 0.01
    lost = scheme.F(mu) - scheme.F(scheme(mu, 0.0, tau).mu)
    assert lost.item() / tau == pytest.approx(rate, rel=1e-4)


@pytest.mark.parametrize("order", [2, 4])
def test_order_of_the_entropy_of_landau_in_the_width(order: int):
    mu = ox.Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.3], [0.3, 0.6]]))
    errors = [(ox.schemes.landau(0.0, w, order=order).F(mu) - ox.Entropy()(mu)).abs().item() for w in (0.1, 0.05)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.05)


def test_exponents_of_the_wrong_equation_are_refused():
    with pytest.raises(ValueError, match="fast_diffusion has m < 1"):
        ox.schemes.porous_medium(0.5)
    with pytest.raises(ValueError, match="between 0 and 1, not 2"):
        ox.schemes.fast_diffusion(2)
