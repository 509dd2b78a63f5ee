"""Closed forms of Gaussians: known numbers, and independent routes (minimisation, simulation, coupling) elsewhere."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from otprox import Gaussian, Quadratic
from otprox.exact import gaussian as G


def close(actual: Tensor | float, expected: object, digits: float = 1e-11) -> None:
    """Equal to the printed digits, relative to the largest entry."""
    expected = torch.as_tensor(expected)
    torch.testing.assert_close(
        torch.as_tensor(actual), expected, rtol=digits, atol=digits * float(expected.abs().max())
    )


def printed(upper: list[float]) -> Tensor:
    """A symmetric 3×3 matrix from its entries 11, 12, 13, 22, 23, 33."""
    a, b, c, d, e, f = upper
    return torch.tensor([[a, b, c], [b, d, e], [c, e, f]])


def line(mean: float, variance: float, dim: int = 1) -> Gaussian:
    return Gaussian(torch.full((dim,), mean), variance * torch.eye(dim))


def random(seed: int, dim: int, batch: tuple[int, ...] = ()) -> Gaussian:
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(*batch, dim, dim, generator=g)
    return Gaussian(torch.randn(*batch, dim, generator=g), a @ a.mT + 0.3 * torch.eye(dim))


SEEDS, DIMS, STEPS = st.integers(0, 10**6), st.integers(1, 5), st.floats(0.01, 3.0)


@pytest.fixture
def mu(gaussians) -> Gaussian:
    return Gaussian(gaussians.m0, gaussians.S0)


@pytest.fixture
def pi(gaussians) -> Gaussian:
    return Gaussian(gaussians.mq, gaussians.Q)


@pytest.fixture
def metric() -> Tensor:
    return torch.tensor([[1.5, 0.4, 0.0], [0.4, 0.7, -0.2], [0.0, -0.2, 2.0]])


# Distances and flows


def test_distances_of_the_fixed_pair(mu, pi):
    close(G.w2_squared(mu, pi), 8.598073996897323, 1e-14)
    close(G.w2_squared(mu, mu.with_state(mean=mu.mean, cov=pi.cov)), 1.035573996897324, 1e-14)
    close(G.kl(mu, pi), 7.401787151704376, 1e-14)


@given(SEEDS, DIMS)
def test_bures_formula(seed: int, dim: int):
    a, b = random(seed, dim), random(seed + 1, dim)
    cross = torch.linalg.eigvals(a.cov @ b.cov).real.clamp_min(0).sqrt().sum()  # Tr (A^½BA^½)^½
    expected = (a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * cross
    torch.testing.assert_close(G.w2_squared(a, b), expected, rtol=1e-8, atol=1e-10)


@given(SEEDS, DIMS)
def test_optimal_map_pushes_forward_at_the_cost_of_the_distance(seed: int, dim: int):
    a, b = random(seed, dim), random(seed + 1, dim)
    T = G.optimal_map(a, b)
    torch.testing.assert_close(T @ a.cov @ T, b.cov)
    shift = torch.eye(dim) - T
    cost = (a.mean - b.mean).square().sum() + (shift @ a.cov @ shift).trace()
    torch.testing.assert_close(G.w2_squared(a, b), cost, rtol=1e-9, atol=1e-12)


def test_the_distance_keeps_its_digits_between_near_gaussians():
    h = 1e-7
    for scale in (1e-3, 1.0, 1e3):
        a = line(0.0, scale, 3)
        b = line(0.0, scale * (1 + h) ** 2, 3)
        close(G.w2_squared(a, b), 3 * scale * h * h, 1e-7)


def test_kl_against_log_densities(mu, pi):
    log_ratio = mu.expect(lambda x: mu.log_prob(x) - pi.log_prob(x))  # quadratic, so exact by quadrature
    close(G.kl(mu, pi), log_ratio, 1e-12)
    close(G.entropy(mu), mu.expect(mu.log_prob), 1e-12)
    assert G.kl(mu, mu).abs() < 1e-14


@pytest.mark.parametrize("with_metric", [False, True])
def test_fisher_information_is_the_dissipation(mu, pi, metric, with_metric):
    Q, h = (metric if with_metric else None), 1e-5
    flow = [G.kl(G.ornstein_uhlenbeck(mu, pi, t, Q), pi) for t in (0.3 - h, 0.3 + h)]
    at = G.ornstein_uhlenbeck(mu, pi, 0.3, Q)
    close((flow[0] - flow[1]) / (2 * h), G.fisher_information(at, pi, Q), 1e-8)
    heat = [G.entropy(G.heat(mu, t, Q)) for t in (0.3 - h, 0.3 + h)]
    close((heat[0] - heat[1]) / (2 * h), G.fisher_information(G.heat(mu, 0.3, Q), None, Q), 1e-8)


def test_ornstein_uhlenbeck_printed():
    mu, pi = line(10, 100), line(0, 1)
    at = G.ornstein_uhlenbeck(mu, pi, 1.0)
    close(at.mean[0], 3.67879441171)
    close(at.cov[0, 0], 14.3981930404)
    close(G.kl(at, pi), 12.1323093243)
    close(G.w2_squared(at, pi), 21.3427311703)


@pytest.mark.parametrize("with_metric", [False, True])
def test_ornstein_uhlenbeck_solves_its_moment_equations(mu, pi, metric, with_metric):
    Q, t, h = (metric if with_metric else None), 0.4, 1e-5
    mobility, precision = (torch.eye(3) if Q is None else Q), torch.linalg.inv(pi.cov)
    before, at, after = (G.ornstein_uhlenbeck(mu, pi, s, Q) for s in (t - h, t, t + h))
    drift = mobility @ precision
    close((after.mean - before.mean) / (2 * h), -drift @ (at.mean - pi.mean), 1e-8)
    close((after.cov - before.cov) / (2 * h), 2 * mobility - drift @ at.cov - at.cov @ drift.T, 1e-8)
    close(G.ornstein_uhlenbeck(G.ornstein_uhlenbeck(mu, pi, 0.3, Q), pi, 0.2, Q).cov,
          G.ornstein_uhlenbeck(mu, pi, 0.5, Q).cov, 1e-12)  # fmt: skip


def test_geodesic_has_constant_speed(mu, pi, metric):
    for Q in (None, metric):
        whole = G.w2_squared(mu, pi, Q)
        between = G.geodesic(mu, pi, 0.3, Q)
        close(G.w2_squared(mu, between, Q), 0.09 * whole, 1e-11)
        close(G.w2_squared(between, pi, Q), 0.49 * whole, 1e-11)
    close(G.geodesic(mu, pi, 1.0).cov, pi.cov, 1e-12)


# Proximal maps


def test_prox_entropy_printed(mu):
    new = G.prox_entropy(mu, 0.3)
    close(
        new.cov,
        printed([2.557849120153, 0.619644133633, -0.317759407379, 1.530069735282, 0.221761280622, 0.999478555414]),
    )
    close(new.mean, mu.mean)


def test_prox_kl_printed(mu, pi):
    new = G.prox_kl(mu, pi, 0.3)
    close(new.mean, [1.152881911903, -1.225046860356, 0.112347703843])
    close(
        new.cov,
        printed([1.382895927134, 0.023485769961, -0.115296513307, 0.755425087007, 0.255872261115, 0.753103991109]),
    )
    close(G.kl(new, pi), 2.8751426429106397, 1e-14)
    close(G.w2_squared(new, mu), 1.0030834107407216, 1e-14)
    apart = G.prox_entropy(G.prox_potential(mu, Quadratic(pi.mean, cov=pi.cov), 0.3), 0.3)
    close((new.cov - apart.cov).abs().max(), 0.1468, 1e-3)  # the prox does not split


@given(SEEDS, DIMS, STEPS, st.booleans())
def test_backward_maps_return_to_the_start(seed: int, dim: int, gamma: float, with_metric: bool):
    mu, pi = random(seed, dim), random(seed + 1, dim)
    Q = random(seed + 2, dim).cov if with_metric else None
    for new, target in ((G.prox_kl(mu, pi, gamma, Q), pi), (G.prox_entropy(mu, gamma, Q), None)):
        T = G.backward_map(new, target, gamma, Q)
        torch.testing.assert_close(T @ new.cov @ T.mT, mu.cov, rtol=1e-7, atol=1e-8)
        assert torch.linalg.eigvals(T).real.min() > 0
        slope = torch.zeros(dim) if target is None else torch.linalg.solve(pi.cov, new.mean - pi.mean)
        mobility = torch.eye(dim) if Q is None else Q
        torch.testing.assert_close(new.mean + gamma * mobility @ slope, mu.mean, rtol=1e-8, atol=1e-8)


def minimiser(objective, start: Tensor) -> Tensor:
    """The covariance LLᵀ that minimises, by BFGS over lower-triangular L."""
    from scipy.optimize import minimize

    rows, columns = torch.tril_indices(*start.shape)

    def value(flat):
        theta = torch.tensor(flat, requires_grad=True)
        L = torch.zeros_like(start).index_put((rows, columns), theta)
        out = objective(L @ L.T)
        out.backward()
        return out.item(), theta.grad.numpy()

    found = minimize(value, torch.linalg.cholesky(start)[rows, columns].numpy(), jac=True, method="BFGS",
                     options={"gtol": 1e-10})  # fmt: skip
    L = torch.zeros_like(start).index_put((rows, columns), torch.tensor(found.x))
    return L @ L.T


def bures2(a: Tensor, b: Tensor) -> Tensor:
    """Written for gradients: eigenvalues of LᵀBL, L the Cholesky factor of A."""
    L = torch.linalg.cholesky(a)
    return a.trace() + b.trace() - 2 * torch.linalg.eigvalsh(L.T @ b @ L).sqrt().sum()


@pytest.mark.parametrize("gamma", [0.1, 0.3, 2.0])
def test_proximal_covariances_minimise_their_objectives(mu, pi, metric, gamma):
    P, flat = torch.linalg.inv(pi.cov), torch.linalg.inv(torch.linalg.cholesky(metric))

    def cost(S: Tensor) -> Tensor:
        return bures2(flat @ mu.cov @ flat.T, flat @ S @ flat.T) / (2 * gamma)

    entropy = minimiser(lambda S: cost(S) - 0.5 * torch.logdet(S), mu.cov)
    close(G.prox_entropy(mu, gamma, metric).cov, entropy, 1e-6)
    kl = minimiser(lambda S: cost(S) - 0.5 * torch.logdet(S) + 0.5 * (P @ S).trace(), mu.cov)
    close(G.prox_kl(mu, pi, gamma, metric).cov, kl, 1e-6)
    potential = minimiser(lambda S: cost(S) + 0.5 * (P @ S).trace(), mu.cov)
    close(G.prox_potential(mu, Quadratic(pi.mean, cov=pi.cov), gamma, metric).cov, potential, 1e-6)


@given(SEEDS, DIMS, STEPS)
def test_the_target_is_fixed(seed: int, dim: int, gamma: float):
    pi, Q = random(seed, dim), random(seed + 1, dim).cov
    for step in (G.prox_kl, G.forward_backward, G.forward_kl):
        g = gamma if step is G.prox_kl else gamma / 4 / G.curvatures(pi, Q)[1].item()
        new = step(pi, pi, g, Q)
        torch.testing.assert_close(new.cov, pi.cov, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(new.mean, pi.mean, rtol=1e-9, atol=1e-10)


def test_prox_potential(mu, pi):
    new = G.prox_potential(mu, Quadratic(pi.mean, cov=pi.cov), 0.3)
    close(new.cov[0, 0], 0.981522373075)
    close(new.cov[0, 1], 0.068951061451)
    close(new.cov[2, 2], 0.349416924538)
    concave = Quadratic(pi.mean, precision=-torch.eye(3))
    close(G.prox_potential(mu, concave, 0.5).cov, 4 * mu.cov)
    with pytest.raises(ValueError, match="gamma = 1.5 is too large"):
        G.prox_potential(mu, concave, 1.5)


def test_scalar_prox():
    x = torch.tensor([0.5, 2.0])
    close(G.prox_double_well(x, 0.05), [0.576979988407, 1.556773264394])
    x = torch.linspace(-4, 4, 41)
    for gamma in (0.01, 0.1, 0.249):
        y = G.prox_double_well(x, gamma)
        torch.testing.assert_close(y + 4 * gamma * y * (y * y - 1), x, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(G.prox_scalar(lambda z: 4 * z * (z * z - 1), x, gamma, curvature=-4.0), y,
                                   rtol=1e-9, atol=1e-9)  # fmt: skip
    torch.testing.assert_close(G.prox_scalar(torch.sign, x, 0.7), G.soft_threshold(x, 0.7))
    close(G.soft_threshold(torch.tensor([-2.0, 0.3, 1.0]), 0.5), [-1.5, 0.0, 0.5])
    for gamma in (0.25, 1.0):
        with pytest.raises(ValueError, match="not single-valued"):
            G.prox_double_well(x, gamma)
        with pytest.raises(ValueError, match="not single-valued"):
            G.prox_scalar(lambda z: 4 * z * (z * z - 1), x, gamma, curvature=-4.0)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
def test_step_sizes_must_be_positive(mu, pi, bad):
    for step in (G.prox_kl, G.forward_backward, G.forward_kl, G.ula):
        with pytest.raises(ValueError, match="gamma must be positive"):
            step(mu, pi, bad)


# Schemes


def test_forward_backward_printed(mu, pi):
    lam, L = G.curvatures(pi)
    close(L, 2.4653815180144947, 1e-13)
    close(lam, 0.618950837470822, 1e-13)
    gamma = 0.9 / L.item()
    path = G.trajectory(lambda x: G.forward_backward(x, pi, gamma), mu, 2000)
    at = [path[n] for n in (1, 2, 5, 10)]
    close(torch.stack([G.kl(x, pi) for x in at]),
          [0.9283590195319201, 0.4400939898368629, 0.058559490385114474, 0.0022094371980353566], 1e-14)  # fmt: skip
    close(torch.stack([G.w2_squared(x, pi) for x in at]),
          [2.231803188934877, 1.1163121591874172, 0.1519402260395827, 0.005894185677342913], 1e-14)  # fmt: skip
    assert (path[-1].cov - pi.cov).abs().max() < 5e-15
    w0 = G.w2_squared(mu, pi)
    for n, (before, after) in enumerate(zip(path, path[1:], strict=False), start=1):
        assert G.evi_gap_forward_backward(before, after, pi, gamma) >= -1e-13
        assert G.w2_squared(after, pi) <= G.linear_bound(w0, gamma, lam, n) + 1e-13
        assert G.kl(after, pi) <= G.sublinear_bound(w0, gamma, n) + 1e-13


TABLE = {
    (G.forward_backward, 0.1): {
        1: (9, 81.1998768471, 145.177681992), 2: (8.1, 65.9717486661, 116.337149728),
        3: (7.29, 53.6369299808, 93.1335824242), 4: (6.561, 43.6456841668, 74.4794290952),
        5: (5.9049, 35.5527229027, 59.4953460925), 10: (3.486784401, 13.0800844823, 19.004470054),
        20: (1.21576654591, 2.50190029877, 1.81650930658),
    },
    (G.forward_backward, 0.5): {
        1: (5, 25.9903810568, 41.7942286341), 2: (2.5, 4 + 2 * math.sqrt(3), 9.25),
        3: (1.25, 2.77596668613, 2.00622018497), 4: (0.625, 1.53066384424, 0.446888840812),
        5: (0.3125, 1.16876495471, 0.104232540684), 10: (0.009765625, 1.00067653955, 9.54818193896e-5),
        20: (9.53674316406e-6, 1.00000001146, 9.0949503e-11),
    },
    (G.prox_kl, 0.1): {
        1: (9.09090909091, 82.8263465004), 2: (8.26446280992, 68.6332238003), 3: (7.51314800902, 56.9033455072),
        4: (6.83013455365, 47.2092013918), 5: (6.20921323059, 39.197476259), 10: (3.8554328943, 15.7546130101),
        20: (1.48643628024, 3.22503619778),
    },
    (G.prox_kl, 0.5): {
        1: (6.66666666667, 45.1086479224), 2: (4.44444444444, 20.7095894311), 3: (2.96296296296, 9.85965937138),
        4: (1.97530864198, 5.02663301797), 5: (1.31687242798, 2.86190156042), 10: (0.173415299158, 1.05097667453),
        20: (0.00300728659822, 1.00004947283),
    },
    (G.ula, 0.1): {1: (9, 81.2), 2: (8.1, 65.972), 3: (7.29, 53.63732), 4: (6.561, 43.6462292),
                   5: (5.9049, 35.553445652), 10: (3.486784401, 13.0823216121), 20: (1.21576654591, 2.51516104894)},
    (G.ula, 0.5): {1: (5, 26), 2: (2.5, 7.5), 3: (1.25, 2.875), 4: (0.625, 1.71875), 5: (0.3125, 1.4296875),
                   10: (0.009765625, 1.3334274292), 20: (9.53674316406e-6, 1.33333333342)},
}  # fmt: skip


@pytest.mark.parametrize(("step", "gamma"), TABLE, ids=lambda v: getattr(v, "__name__", v))
def test_the_one_dimensional_experiment(step, gamma):
    mu, pi = line(10, 100), line(0, 1)
    path = G.trajectory(lambda x: step(x, pi, gamma), mu, 20)
    for n, numbers in TABLE[step, gamma].items():
        got = [path[n].mean.item(), path[n].cov.item(), G.w2_squared(path[n], pi).item()]
        for value, number in zip(got, numbers, strict=False):
            assert value == pytest.approx(number, rel=6e-9 if number == 9.0949503e-11 else 6e-12)


def test_the_experiment_in_dimension_1000_is_a_thousand_times_the_line():
    mu, pi = line(10, 100, 1000), line(0, 1, 1000)
    close(G.w2_squared(mu, pi), 181000.0, 1e-12)
    close(G.kl(mu, pi), 97197.41490700595, 1e-13)
    close(G.kl(line(10, 100), line(0, 1)), 97.19741490700595, 1e-14)
    one = G.forward_backward(mu, pi, 0.1)
    close(G.w2_squared(one, pi), 145177.681992)


def test_ula_stationary(mu, pi, metric):
    gamma = 0.9 / 2.4653815180144947
    close(
        G.ula_stationary(pi, gamma).cov,
        printed([1.251304329392, -0.347052160472, 0.082722954535, 1.083957203578, 0.272884681291, 1.715301345812]),
    )
    for Q, g in ((None, gamma), (metric, 0.2)):
        end = G.ula_stationary(pi, g, Q)
        close(G.trajectory(lambda x, Q=Q, g=g: G.ula(x, pi, g, Q), mu, 2000)[-1].cov, end.cov, 1e-12)
    for g, w2, kl in (
        (0.1, 0.000674874777060224, 0.0006691422799089408),
        (0.5, 0.023932256574830255, 0.022825630440776207),
    ):
        end = G.ula_stationary(line(0, 1), g)
        close(end.cov[0, 0], 1 / (1 - g / 2), 1e-15)
        close(G.w2_squared(end, line(0, 1)), w2, 1e-12)
        close(G.kl(end, line(0, 1)), kl, 1e-12)
    with pytest.raises(ValueError, match="not below 2/L = 2"):
        G.ula_stationary(line(0, 1), 2.0)


@pytest.mark.parametrize("variance", [1.0, 3.0])
@pytest.mark.parametrize("gamma", [0.1, 0.4])
def test_local_multipliers_are_the_derivatives_at_the_fixed_point(gamma, variance):
    names = G.local_multipliers(gamma, variance)
    steps = {"forward_backward": G.forward_backward, "jko": G.prox_kl, "forward_kl": G.forward_kl, "ula": G.ula}
    pi, h = line(0, variance), 1e-6
    for name, step in steps.items():
        rest = G.ula_stationary(pi, gamma).cov.item() if name == "ula" else variance
        low, high = (step(line(0, rest + s), pi, gamma).cov.item() for s in (-h, h))
        assert (high - low) / (2 * h) == pytest.approx(getattr(names, name).variance, rel=1e-7)
        assert step(line(1, rest), pi, gamma).mean.item() == pytest.approx(getattr(names, name).mean)
    assert G.local_multipliers(0.1).forward_backward.variance == pytest.approx(0.9 / 1.1)
    assert G.local_multipliers(0.1).jko == pytest.approx((1 / 1.1, 1 / 1.2))


def test_forward_backward_of_particles_has_the_moments_of_the_step(mu, pi, metric):
    x = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0))
    x = x - x.mean(0)
    whiten = torch.linalg.inv(torch.linalg.cholesky(x.T @ x / len(x)))
    x = mu.mean + x @ whiten.T @ torch.linalg.cholesky(mu.cov).T  # exactly the moments of μ
    for Q, gamma in ((None, 0.3), (metric, 0.2)):
        y = G.forward_backward_particles(x, mu, pi, gamma, Q)
        new = G.forward_backward(mu, pi, gamma, Q)
        close(y.mean(0), new.mean, 1e-10)
        close((y - y.mean(0)).T @ (y - y.mean(0)) / len(y), new.cov, 1e-10)


def test_forward_kl_is_first_order_and_checked(mu, pi):
    h = 1e-4
    velocity = (G.forward_kl(mu, pi, h).cov - mu.cov) / h
    exact = (G.ornstein_uhlenbeck(mu, pi, h).cov - mu.cov) / h
    close(velocity, exact, 1e-3)
    with pytest.raises(ValueError, match="too large"):
        G.forward_kl(line(0, 100), line(0, 1), 2.0)


@given(SEEDS, DIMS, st.floats(0.05, 0.95), st.booleans())
def test_descent_lemmas_bound_the_energy(seed: int, dim: int, share: float, with_metric: bool):
    mu, pi = random(seed, dim), random(seed + 1, dim)
    Q = random(seed + 2, dim).cov if with_metric else None
    gamma = share / G.curvatures(pi, Q)[1].item()
    new = G.forward_backward(mu, pi, gamma, Q)
    bound = G.forward_backward_descent_bound(mu, pi, gamma, Q)
    assert G.kl(new, pi) <= bound + 1e-10 * (1 + bound.abs())
    assert bound <= G.kl(mu, pi)
    bound = G.forward_kl_descent_bound(mu, pi, gamma, Q)
    assert G.kl(G.forward_kl(mu, pi, gamma, Q), pi) <= bound + 1e-10 * (1 + bound.abs())


def test_the_descent_lemma_of_the_explicit_step_is_sharp_to_first_order(mu, pi):
    gamma = 1e-5
    fall = G.kl(mu, pi) - G.forward_kl_descent_bound(mu, pi, gamma)
    close(fall / gamma, G.fisher_information(mu, pi), 1e-3)


@given(SEEDS, DIMS, STEPS, st.booleans())
def test_evi_of_the_backward_step(seed: int, dim: int, tau: float, with_metric: bool):
    mu, pi, other = (random(seed + k, dim) for k in range(3))
    Q = random(seed + 3, dim).cov if with_metric else None
    new = G.prox_kl(mu, pi, tau, Q)
    for sigma in (pi, other, mu):
        gap = G.evi_gap_backward(mu, new, sigma, pi, tau, Q)
        assert gap >= -1e-10 * (1 + G.w2_squared(mu, sigma, Q) + tau * G.kl(sigma, pi))


def test_the_evi_gap_can_fail(mu, pi):
    assert G.evi_gap_backward(mu, mu, pi, pi, 0.3) < 0
    assert G.evi_gap_forward_backward(mu, mu, pi, 0.3) < 0


# Entropic transport


def coupling_cost(a: float, b: float, reg: float) -> float:
    """min over k of a + b − 2k − (reg/2) log(1 − k²/(ab)): Gaussian couplings, product reference, in one dimension."""
    from scipy.optimize import minimize_scalar

    top = math.sqrt(a * b)
    found = minimize_scalar(
        lambda c: a + b - 2 * c * top - 0.5 * reg * math.log1p(-c * c), bounds=(0, 1 - 1e-12), method="bounded",
        options={"xatol": 1e-12},
    )  # fmt: skip
    return found.fun


@pytest.mark.parametrize("reg", [0.02, 0.5, 4.0])
def test_entropic_cost_is_the_minimum_over_couplings(reg):
    a, b = line(0.0, 1.7), line(0.5, 0.6)
    product = 0.25 + coupling_cost(1.7, 0.6, reg)
    close(G.entropic_cost(a, b, reg, "product"), product, 1e-9)
    close(G.entropic_cost(a, b, reg), product + reg * (G.entropy(a) + G.entropy(b)), 1e-9)
    own = 0.5 * (coupling_cost(1.7, 1.7, reg) + coupling_cost(0.6, 0.6, reg))
    close(G.entropic_cost(a, b, reg, "debiased"), product - own, 1e-9)


def test_entropic_cost_tends_to_the_distance(mu, pi, metric):
    for reference in ("lebesgue", "product", "debiased"):
        close(G.entropic_cost(mu, pi, 1e-7, reference, metric), G.w2_squared(mu, pi, metric), 1e-5)
    assert G.entropic_cost(mu, mu, 0.3, "debiased").abs() < 1e-14


@pytest.mark.parametrize(
    ("tau", "reg", "lebesgue", "product"),
    [
        (0.1, 0.01, 1.025030486853, 0.975032050176),
        (0.1, 0.1, 1.252494771935, 0.754142640607),
        (0.5, 0.1, 1.050594816896, 0.950657326213),
    ],
)
def test_entropic_fixed_points_printed(tau, reg, lebesgue, product):
    close(G.entropic_fixed_point(line(0, 1), tau, reg).cov, [[lebesgue]], 1e-12)
    close(G.entropic_fixed_point(line(0, 1), tau, reg, "product").cov, [[product]], 1e-12)


@pytest.mark.parametrize(
    ("tau", "reg", "expected"),
    [
        (0.3, 0.2, {"lebesgue": 1.1769056470, "product": 1.0638220397, "debiased": 1.1195982824}),
        (0.3, 0.05, {"lebesgue": 1.1340097342, "product": 1.1057282393}),
        (1.0, 0.5, {"lebesgue": 0.8839547539, "product": 0.7557591032}),
    ],
)
def test_entropic_steps_printed(tau, reg, expected):
    for reference, variance in expected.items():
        close(G.prox_kl_entropic(line(0, 1.7), line(0, 0.6), tau, reg, reference).cov[0, 0], variance, 5e-11)


def test_entropic_steps_without_potential(mu):
    close(G.prox_kl_entropic(line(0, 1), None, 0.1, 0.05).cov[0, 0], 1.2147094735222952, 1e-15)
    eye = torch.eye(3)
    close(G.prox_kl_entropic(mu, None, 0.3, 0.2, theta=0.0).cov, mu.cov + 0.1 * eye, 1e-14)
    close(G.prox_kl_entropic(mu, None, 0.3, 0.2, "product", theta=0.0).cov, mu.cov - 0.1 * eye, 1e-14)
    close(G.prox_kl_entropic(mu, None, 0.3, 0.2, "debiased", theta=0.0).cov, mu.cov, 1e-12)
    with pytest.raises(ValueError, match="no Gaussian minimises"):
        G.prox_kl_entropic(mu, None, 0.3, 1.5, "product", theta=0.0)


@pytest.mark.parametrize("reference", ["lebesgue", "product", "debiased"])
@pytest.mark.parametrize(("tau", "reg", "theta"), [(0.3, 0.2, 1.0), (0.1, 1.0, 1.0), (1.0, 0.05, 0.4)])
def test_entropic_steps_minimise_their_objectives(mu, pi, metric, reference, tau, reg, theta):
    P, flat, s = torch.linalg.inv(pi.cov), torch.linalg.inv(torch.linalg.cholesky(metric)), reg / 2
    old = flat @ mu.cov @ flat.T

    def product(a: Tensor, b: Tensor) -> Tensor:
        L = torch.linalg.cholesky(a)
        D = (4 * torch.linalg.eigvalsh(L.T @ b @ L) + s * s).sqrt()
        return a.trace() + b.trace() - D.sum() + s * (D + s).log().sum()

    def objective(S: Tensor) -> Tensor:
        new = flat @ S @ flat.T
        cost = product(old, new)
        if reference == "lebesgue":
            cost = cost - 0.5 * reg * torch.logdet(new)
        if reference == "debiased":
            cost = cost - 0.5 * product(new, new)
        return cost / (2 * tau) - 0.5 * theta * torch.logdet(S) + 0.5 * (P @ S).trace()

    new = G.prox_kl_entropic(mu, pi, tau, reg, reference, theta, metric)
    close(new.cov, minimiser(objective, mu.cov), 2e-6)
    shift = torch.linalg.solve(pi.cov, new.mean - pi.mean)
    close(new.mean + tau * metric @ shift, mu.mean, 1e-12)


@given(SEEDS, st.floats(0.05, 1.0), st.floats(0.01, 2.0), st.sampled_from(["lebesgue", "product", "debiased"]))
def test_entropic_fixed_points_are_fixed(seed: int, tau: float, reg: float, reference: str):
    pi = random(seed, 3)
    rest = G.entropic_fixed_point(pi, tau, reg, reference)
    torch.testing.assert_close(G.prox_kl_entropic(rest, pi, tau, reg, reference).cov, rest.cov, rtol=1e-8, atol=1e-9)


def test_first_order_bias(pi):
    for reference in ("lebesgue", "product", "debiased"):
        errors = []
        for reg in (1e-2, 5e-3):
            bias = G.entropic_fixed_point(pi, 0.4, reg, reference).cov - pi.cov
            errors.append((bias - G.entropic_bias(pi, 0.4, reg, reference)).abs().max().item())
        assert max(errors) == 0 or math.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.1)


def test_the_debiased_equation_holds_for_non_commuting_data(mu, pi):
    tau, reg = 0.3, 0.2
    new = G.prox_kl_entropic(mu, pi, tau, reg, "debiased").cov
    half, s2 = _power(new, 0.5), (reg / 2) ** 2 * torch.eye(3)
    left = _power(4 * new @ new + s2, 0.5) - _power(4 * half @ mu.cov @ half + s2, 0.5)
    close(left, 2 * tau * (torch.eye(3) - half @ torch.linalg.inv(pi.cov) @ half), 1e-12)


def _power(matrix: Tensor, p: float) -> Tensor:
    from scipy.linalg import fractional_matrix_power

    return torch.as_tensor(fractional_matrix_power(matrix.numpy(), p))


@pytest.mark.parametrize("reference", ["lebesgue", "product", "debiased"])
def test_energy_inequality_of_entropic_steps(mu, pi, reference):
    for start in (mu, pi):
        new = G.prox_kl_entropic(start, pi, 0.1, 0.1, reference)
        assert G.entropic_energy_gap(start, new, pi, 0.1, 0.1, reference) >= -1e-13
    risen = G.kl(G.prox_kl_entropic(pi, pi, 0.1, 0.1, "product"), pi)
    assert risen > 1e-4  # the inequality without the bias of the metric fails


def test_reference_and_reg_are_checked(mu, pi):
    with pytest.raises(ValueError, match="reg must be positive"):
        G.prox_kl_entropic(mu, pi, 0.1, 0.0)
    with pytest.raises(ValueError, match="reference must be"):
        G.entropic_cost(mu, pi, 0.1, "uniform")


# Splittings, samples, batches


@pytest.mark.parametrize("splitting", G.SPLITTINGS, ids=lambda s: s.name)
def test_splitting_orders(mu, pi, splitting):
    errors = [G.splitting_error(splitting.step, mu, pi, 1.0, n).item() for n in (64, 128, 256)]
    orders = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    assert orders[-1] == pytest.approx(splitting.order, abs=0.03)


def test_the_drift_of_order_four():
    mu, pi = line(1, 2), line(0, 1)
    errors = [abs(G.drift(4)(mu, pi, t).mean.item() - math.exp(-t)) for t in (0.1, 0.05)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(5, abs=0.05)


def test_sampling_floor_on_the_line_is_known():
    n = 200  # (n − 1)/n − 2E√(χ²/n) + 1 + 1/n, χ² of n − 1 degrees
    root = math.sqrt(2 / n) * math.exp(math.lgamma(n / 2) - math.lgamma((n - 1) / 2))
    exact = (n - 1) / n - 2 * root + 1 + 1 / n
    close(G.sampling_floor(line(3.0, 4.0), n), 4 * exact, 0.01)


@pytest.mark.parametrize(("dim", "n"), [(3, 400), (40, 200)])
def test_sampling_floor_by_simulation(dim, n):
    g = torch.Generator().manual_seed(1)
    target = Gaussian(torch.zeros(dim), torch.diag(torch.linspace(1, 3, dim)) if dim == 3 else torch.eye(dim))
    x = torch.randn(300, n, dim, generator=g) @ torch.linalg.cholesky(target.cov).T
    mean = x.mean(-2)
    centred = x - mean[:, None]
    values = G.w2_squared(Gaussian(mean, centred.mT @ centred / n), target)
    error = 4 * values.std().item() / math.sqrt(300)
    expected = G.sampling_floor(target, n).item() if dim == 3 else G.sampling_floor_isotropic(dim, n)
    assert values.mean().item() == pytest.approx(expected, abs=error + 0.01 * expected)


def test_the_floor_of_ten_thousand_samples_in_dimension_1000():
    assert G.sampling_floor(line(0, 1, 1000), 10_000).item() == pytest.approx(25.125)
    assert G.sampling_floor_isotropic(1000, 10_000) == pytest.approx(25.4, abs=0.1)
    for c in (1e-3, 1e-2):  # they agree as d/n falls
        close(
            G.sampling_floor_isotropic(1000, int(1000 / c)), G.sampling_floor(line(0, 1, 1000), int(1000 / c)).item(), c
        )
    with pytest.raises(ValueError, match="d/n must be in"):
        G.sampling_floor_isotropic(10, 5)


def test_batches_equal_single_runs(metric):
    mu, pi = random(0, 3, (4,)), random(9, 3)
    calls = [
        lambda a: G.prox_entropy(a, 0.2, metric).cov,
        lambda a: G.prox_kl(a, pi, 0.2, metric).cov,
        lambda a: G.forward_backward(a, pi, 0.05, metric).cov,
        lambda a: G.prox_kl_entropic(a, pi, 0.2, 0.1).cov,
        lambda a: G.prox_kl_entropic(a, pi, 0.2, 0.1, "debiased", 1.0, metric).cov,
        lambda a: G.w2_squared(a, pi, metric),
        lambda a: G.kl(pi, a),
        lambda a: G.evi_gap_backward(a, G.prox_kl(a, pi, 0.2), pi, pi, 0.2),
    ]
    for call in calls:
        single = torch.stack([call(Gaussian(m, c)) for m, c in zip(mu.mean, mu.cov, strict=True)])
        torch.testing.assert_close(call(mu), single, rtol=1e-10, atol=1e-11)


def test_float32_stays_float32(mu, pi):
    low = [Gaussian(x.mean.float(), x.cov.float()) for x in (mu, pi)]
    for step in (lambda a, b: G.prox_kl(a, b, 0.3), lambda a, b: G.prox_kl_entropic(a, b, 0.3, 0.2, "debiased")):
        new = step(*low)
        assert new.cov.dtype == torch.float32
        torch.testing.assert_close(new.cov.double(), step(mu, pi).cov, rtol=1e-4, atol=1e-4)
