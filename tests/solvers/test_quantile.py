"""The prox on quantiles: closed forms, orders in n, optimality, batches, gradients, and what it refuses."""

from __future__ import annotations

import math
import warnings

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from scipy import optimize, special
from torch import Tensor

import otprox as ox
from otprox.functionals import Functional
from otprox.solvers import ConvergenceError, ConvergenceWarning, Quantile, quantile_newton, tridiagonal
from otprox.solvers.quantile_energy import QuantileEnergy
from otprox.solvers.quantile_free import isotonic

W2 = ox.Wasserstein()
SQUARE = ox.Interaction(lambda z: 0.5 * z.square().sum(-1))
ABS = ox.Interaction(lambda z: z.abs().sum(-1))


def prox(F: Functional, mu: ox.Quantiles, tau: float, metric: ox.Wasserstein = W2, solver: Quantile | None = None):
    """The step, with every warning an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return (solver or Quantile())(F, metric, mu, tau)


def uniform(n: int) -> ox.Quantiles:
    return ox.Quantiles.of(lambda p: p, n)


def sample(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).sort(-1).values


def double_well(x: Tensor) -> Tensor:
    return (x.square() - 1).square().sum(-1)


def order(errors: list[float], ratio: float) -> float:
    return math.log(errors[0] / errors[-1]) / math.log(ratio) / (len(errors) - 1)


ENERGIES = {
    "kl": ox.KL(ox.Gaussian([0.3], [[0.8]])),
    "kl of a callable": ox.KL(lambda x: x.square().square().sum(-1)),
    "double well": ox.KL(double_well),
    "entropy": ox.Entropy(),
    "porous medium": ox.PorousMedium(3.0),
    "fast diffusion": ox.PorousMedium(0.7),
    "sum of internal": 0.5 * ox.Entropy() + 0.1 * ox.PorousMedium(2.0) + ox.Potential(ox.Quadratic([1.0])),
    "attraction": ox.Entropy() + SQUARE,
    "repulsion": ox.KL(ox.Gaussian([0.0], [[1.0]])) + ox.Interaction(ox.kernels.RBF(0.5)),
    "kink": 0.2 * ox.PorousMedium(2.0) + ABS,
    "energy kernel": ox.Entropy() + ox.Interaction(ox.kernels.Energy()),
    "fast kernel": ox.Entropy() + ox.Interaction(ox.kernels.Cosine([-0.8, 0.1])),
    "logarithmic gas": ox.Potential(ox.Quadratic([0.0])) + ox.Interaction(lambda z: -z.abs().log().sum(-1)),
    "interaction": SQUARE + ox.Potential(lambda x: x.cosh().sum(-1)),
    "quadratic minus modulus": SQUARE - ABS,
    "potential": ox.Potential(double_well),
}


# Closed forms


@pytest.mark.parametrize("tau", [0.1, 0.5])
@pytest.mark.parametrize(("mean", "var"), [(10.0, 100.0), (-1.0, 0.3)])
def test_kl_of_gaussians(tau: float, mean: float, var: float):
    """Mean exact, variance O(1/n), the typical quantile better."""
    target, start = ox.Gaussian([0.5], [[2.0]]), ox.Gaussian([mean], [[var]])
    exact = ox.solvers.Bures()(ox.KL(target), W2, start, tau).mu
    variance, median = [], []
    for n in (250, 1000, 4000):
        new = prox(ox.KL(target), ox.Quantiles.of(start, n), tau).mu
        torch.testing.assert_close(new.mean, exact.mean, atol=1e-10, rtol=1e-10)
        variance.append(abs(new.cov.item() / exact.cov.item() - 1))
        median.append((new.x - ox.Quantiles.of(exact, n).x).abs().median().item())
    assert order(variance, 4) > 0.9
    assert order(median, 4) > 1.2
    assert variance[-1] < 4 / 4000


@pytest.mark.parametrize(
    ("tau", "L", "var", "F", "w2", "q75"),
    [
        (0.01, 0.641388834023, 0.099573895959, 0.858906128309, 0.000937559940, 0.759239807718),
        (0.1, 0.933676912694, 0.186505570626, 0.621990470601, 0.021225856828, 0.841836834920),
        (1.0, 1.670846697190, 0.572327813992, None, None, None),
    ],
)
def test_porous_medium_step_of_the_uniform(tau, L, var, F, w2, q75):
    s = math.sqrt(2 * tau)
    assert L - s * math.tanh(L / s) == pytest.approx(0.5, abs=1e-10)
    errors = []
    for n in (500, 2000, 8000):
        new, stats = prox(ox.PorousMedium(2.0), uniform(n), tau)
        errors.append(abs(new.cov.item() / var - 1))
        assert errors[-1] < 3 * n**-1.5
        if F is not None:
            assert ox.PorousMedium(2.0)(new).item() == pytest.approx(F, abs=3 / n)
            assert stats.distance2.item() == pytest.approx(w2, abs=1 / n)
            assert new.quantile(torch.tensor([0.75])).item() == pytest.approx(q75, abs=10 * n**-1.5)
    assert order(errors, 4) > 1.35


@pytest.mark.parametrize(
    ("tau", "var", "entropy"),
    [(0.1, 0.2393302881, -0.6984146409), (0.01, 0.1017831631, None), (1.0, 1.3258597118, None)],
)
def test_entropy_step_of_the_uniform(tau, var, entropy):
    errors = []
    for n in (500, 2000, 8000):
        new = prox(ox.Entropy(), uniform(n), tau).mu
        errors.append(abs(new.cov.item() / var - 1))
        if entropy is not None:
            assert new.entropy().item() == pytest.approx(entropy, abs=20 / n)
    assert order(errors, 4) > 0.9
    assert errors[-1] < 2 / 8000


@pytest.mark.parametrize(
    ("m", "R", "new_radius"), [(2.0, 2.080083823052, 2.145270258161), (3.0, 1.485030498571, 1.519674628759)]
)
def test_barenblatt_steps_to_barenblatt(m: float, R: float, new_radius: float):
    p = 1 / (m - 1)
    errors = []
    for n in (250, 1000, 4000):
        profile = torch.from_numpy(2 * special.betaincinv(p + 1, p + 1, ((torch.arange(n) + 0.5) / n).numpy()) - 1)
        new = prox(ox.PorousMedium(m), ox.Quantiles(R * profile), 0.1).mu
        errors.append((new.x[:, 0] - new_radius * profile).abs().median().item())
    assert order(errors, 4) > 1.35
    assert errors[-1] < 3 * 4000**-1.5


@pytest.mark.parametrize("tau", [0.01, 0.3])
@pytest.mark.parametrize("m", [None, 2.0, 1.5])
def test_virial_identity(tau: float, m: float | None):
    """E⟨x − T(x), x⟩ = tau (entropy), tau (m − 1) F(μ') (porous medium); n − 1 gaps make (n − 1)/n of it, exactly."""
    F = ox.Entropy() if m is None else ox.PorousMedium(m)
    mu = ox.Quantiles(sample(0, 300))
    new = prox(F, mu, tau).mu
    got = ((new.x - mu.x) * new.x).mean().item()
    assert got == pytest.approx(tau * (299 / 300 if m is None else (m - 1) * F(new).item()), rel=1e-7)


@pytest.mark.parametrize("tau", [0.1, 3.0])
def test_quadratic_attraction(tau: float):
    mu = ox.Quantiles(sample(1, 3, 80))
    m = mu.mean[..., None, :]
    torch.testing.assert_close(prox(SQUARE, mu, tau).mu.x, m + (mu.x - m) / (1 + tau), atol=1e-9, rtol=0)
    assert prox(SQUARE, mu, tau).stats.iterations.max() <= 3


@pytest.mark.parametrize("tau", [0.2, 0.45])
def test_attraction_by_the_modulus_contracts_the_uniform(tau: float):
    """U[0, 1] -> U[tau, 1 − tau]: each quantile moves by −tau (2q − 1)."""
    mu = uniform(200)
    torch.testing.assert_close(prox(ABS, mu, tau).mu.x, mu.x + tau * (1 - 2 * mu.x), atol=1e-10, rtol=0)


@pytest.mark.parametrize("tau", [0.5, 2.0])
def test_attraction_by_the_modulus_makes_atoms(tau: float):
    torch.testing.assert_close(prox(ABS, uniform(100), tau).mu.x, torch.full((100, 1), 0.5), atol=1e-10, rtol=0)
    clusters = torch.cat([uniform(50).x[:, 0] / 10, 5 + uniform(50).x[:, 0] / 10])
    new = prox(ABS, ox.Quantiles(clusters), 0.4).mu.x[:, 0]
    torch.testing.assert_close(new, torch.tensor([0.05 + 0.2, 5.05 - 0.2]).repeat_interleave(50), atol=1e-10, rtol=0)


@pytest.mark.parametrize("tau", [0.3, 5.0])
def test_quadratic_minus_modulus(tau: float):
    """X' = m + s + (X − m − s)/(1 + tau), s = 2q − 1, also from an atom: it is torn apart."""
    for mu in (uniform(100), ox.Quantiles(torch.full((100,), 0.5))):
        s = 2 * uniform(100).x - 1
        torch.testing.assert_close(
            prox(SQUARE - ABS, mu, tau).mu.x, 0.5 + s + (mu.x - 0.5 - s) / (1 + tau), atol=1e-9, rtol=0
        )


@pytest.mark.parametrize("potential", [None, lambda x: x.square().square().sum(-1)])
@pytest.mark.parametrize("W", [lambda z: 2 * z.abs(), lambda z: z.abs() + z.square() / 2, lambda z: z.abs() + z.cosh()])
def test_atoms_against_bounded_minimisation(W, potential):
    """The same objective over x_0 and the gaps ≥ 0, by L-BFGS-B."""
    n, tau, y = 20, 0.4, sample(16, 20)
    F = ox.Interaction(lambda z: W(z).sum(-1))
    F = F if potential is None else F + ox.Potential(potential)
    below = torch.ones(n, n).tril(-1).bool()

    def objective(p: np.ndarray) -> tuple[float, np.ndarray]:
        p = torch.tensor(p, requires_grad=True)
        x = p.cumsum(0)
        pairs = W((x[:, None] - x)[below] + 1e-300).sum() / n**2 + W(torch.zeros(())) / (2 * n)
        value = pairs + (x - y).square().mean() / (2 * tau)
        value = value if potential is None else value + potential(x[:, None]).mean()
        return value.item(), torch.autograd.grad(value, p)[0].numpy()

    start, bounds = np.diff(y.numpy(), prepend=0.0), [(None, None)] + [(0, None)] * (n - 1)
    options = {"maxiter": 5000, "ftol": 1e-16, "gtol": 1e-12, "maxcor": 40}
    want = optimize.minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    new, stats = prox(F, ox.Quantiles(y), tau)
    assert stats.objective.item() == pytest.approx(want.fun, abs=1e-12)
    assert F(new).item() + stats.distance2.item() / (2 * tau) == pytest.approx(stats.objective.item(), abs=1e-12)
    torch.testing.assert_close(new.x[:, 0], torch.from_numpy(want.x.cumsum()), atol=1e-5, rtol=0)
    assert (new.gaps == 0).any()


def test_a_flow_settles_at_the_target():
    """The double well: E x² = .832745487128, E x⁴ = 1.082745487128, whatever the step."""
    path = ox.flow(
        ox.Backward(ox.KL(double_well)), ox.Quantiles.of(ox.Gaussian([0.0], [[1.0]]), 2000), torch.arange(60) / 5
    )
    x = ox.record(path).final.x
    assert x.square().mean().item() == pytest.approx(0.832745487128, abs=1e-4)
    assert x.pow(4).mean().item() == pytest.approx(1.082745487128, abs=2e-4)


def test_logarithmic_gas_settles_at_hermite_zeros():
    n = 10
    mu = ox.Quantiles(torch.linspace(-1.0, 3.0, n))
    for _ in range(5):
        mu = prox(ENERGIES["logarithmic gas"], mu, 200.0).mu
    zeros = torch.from_numpy(special.roots_hermite(n)[0]) / math.sqrt(n)
    torch.testing.assert_close(mu.x[:, 0], zeros, atol=1e-9, rtol=0)


def test_potentials_move_each_quantile_by_its_own_prox():
    new = prox(ox.Potential(double_well), ox.Quantiles(torch.tensor([0.5, 2.0])), 0.05).mu
    assert new.x[:, 0].tolist() == pytest.approx([0.576979988407, 1.556773264394], abs=1e-11)


@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_soft_threshold(tau: float):
    y = torch.linspace(-3.0, 3.0, 62)
    new = prox(ox.Potential(lambda x: x.abs().sum(-1)), ox.Quantiles(y), tau).mu
    torch.testing.assert_close(new.x[:, 0], y.sign() * (y.abs() - tau).clamp_min(0), atol=1e-8, rtol=0)


@pytest.mark.parametrize("F", [ox.Entropy(), ox.PorousMedium(2.0), ENERGIES["attraction"]])
def test_an_atom_spreads(F: Functional):
    """A Dirac mass has no density, but its prox has: the virial identity still holds."""
    mu = ox.Quantiles(torch.full((200,), 2.0))
    new = prox(F, mu, 0.1).mu
    assert (new.gaps > 0).all()
    assert new.mean.item() == pytest.approx(2, abs=1e-9)
    if isinstance(F, ox.Entropy):
        assert new.cov.item() == pytest.approx(0.1 * 199 / 200, rel=1e-9)


# What every step keeps


@pytest.mark.parametrize("name", ENERGIES)
def test_first_order_conditions_and_energy(name: str):
    """The gradient of the objective vanishes, it is what Stats says, and F(ν) + d²/2τ ≤ F(μ)."""
    F, tau, mu = ENERGIES[name], 0.1, ox.Quantiles(sample(2, 60) * 1.5)
    new, stats = prox(F, mu, tau)
    x = new.x.detach().requires_grad_()
    objective = F(new.with_state(x=x)) + (x - mu.x).square().mean() / (2 * tau)
    (g,) = torch.autograd.grad(objective, x)
    assert g.abs().max().item() < 1e-8
    assert stats.converged and stats.residual.item() < 1e-9
    assert stats.objective.item() == pytest.approx(objective.item(), abs=1e-10)
    assert stats.distance2.item() == pytest.approx((x - mu.x).square().mean().item(), rel=1e-12)
    assert objective.item() <= F(mu).item()


@pytest.mark.parametrize("name", ENERGIES)
def test_a_batch_is_its_items(name: str):
    y = torch.stack([sample(3, 50), 3 * sample(4, 50) + 2, 0.1 * sample(5, 50), 2.0 + sample(6, 50)]).reshape(2, 2, 50)
    both = prox(ENERGIES[name], ox.Quantiles(y), 0.05)
    for i in (0, 1):
        for j in (0, 1):
            one = prox(ENERGIES[name], ox.Quantiles(y[i, j]), 0.05)
            torch.testing.assert_close(both.mu.x[i, j], one.mu.x, atol=1e-12, rtol=1e-12)
            assert both.stats.iterations[i, j] == one.stats.iterations


@pytest.mark.parametrize("name", ["kl", "porous medium", "attraction", "interaction", "potential"])
def test_the_mobility_is_a_change_of_time(name: str):
    mu, Q = ox.Quantiles(sample(7, 2, 40)), torch.tensor([[[0.5]], [[2.0]]])
    got = prox(ENERGIES[name], mu, 0.1, ox.Wasserstein(Q))
    for i, scale in enumerate((0.5, 2.0)):
        one = prox(ENERGIES[name], ox.Quantiles(mu.x[i, :, 0]), 0.1 * scale)
        torch.testing.assert_close(got.mu.x[i], one.mu.x, atol=1e-10, rtol=0)
        assert got.stats.distance2[i].item() == pytest.approx(one.stats.distance2.item() / scale, rel=1e-8)


@settings(max_examples=8)
@given(st.integers(0, 10**6), st.floats(-2, 2), st.floats(-3, 1), st.sampled_from(["entropy", "attraction", "kink"]))
def test_translations_commute_and_steps_contract(seed: int, shift: float, log_tau: float, name: str):
    """The prox of a convex energy that sees no position moves along with μ, and is 1-Lipschitz in W2."""
    F, tau = ENERGIES[name], 10.0**log_tau
    y, z = sample(seed, 12), sample(seed + 1, 12)
    a, b = (prox(F, ox.Quantiles(q), tau).mu.x[:, 0] for q in (y, z))
    torch.testing.assert_close(prox(F, ox.Quantiles(y + shift), tau).mu.x[:, 0], a + shift, atol=1e-7, rtol=0)
    assert (a - b).square().mean() <= (y - z).square().mean() + 1e-9


def test_the_map_carries_old_points_to_new():
    mu = ox.Quantiles(sample(8, 2, 40))
    new, stats = prox(ENERGIES["kl"], mu, 0.2)
    torch.testing.assert_close(stats.map(mu.x), new.x)
    far = torch.tensor([[-50.0], [50.0]]).expand(2, 2, 1)
    torch.testing.assert_close(stats.map(far) - far, (new.x - mu.x)[:, [0, -1]])


@pytest.mark.parametrize("name", ["kl", "double well", "porous medium"])
@pytest.mark.parametrize("n", [12000, 12345])
def test_the_coarse_start_changes_nothing_but_the_work(name: str, n: int):
    mu = ox.Quantiles.of(ox.Gaussian([4.0], [[9.0]]), n)
    energy = QuantileEnergy.of(ENERGIES[name], mu.x[:, 0], torch.tensor([10.0]))
    plain = quantile_newton.newton(energy, quantile_newton.start(energy), 1e-9, 100)
    new, stats = prox(ENERGIES[name], mu, 0.1)
    torch.testing.assert_close(new.x[:, 0], plain.x, atol=1e-9, rtol=0)
    assert stats.iterations <= min(4, plain.iterations)


def test_the_coarse_start_with_an_interaction():
    F = ox.Entropy() + ox.Interaction(ox.kernels.Cosine([-1.5]))
    new, stats = prox(F, ox.Quantiles.of(ox.Gaussian([0.0], [[0.2]]), 6000), 0.2)
    same = prox(F, ox.Quantiles.of(ox.Gaussian([0.0], [[0.2]]), 600), 0.2).mu
    assert new.cov.item() == pytest.approx(same.cov.item(), rel=3e-3)
    assert stats.iterations <= 4


@pytest.mark.parametrize("name", ["kl", "double well", "kl of a callable", "interaction", "potential"])
def test_float32(name: str):
    y, F = sample(9, 2, 500), ENERGIES[name]
    if name == "kl":
        F = ox.KL(ox.Gaussian(torch.tensor([0.3]).float(), torch.tensor([[0.8]]).float()))
    new, stats = prox(F, ox.Quantiles(y.float()), 0.1)
    assert new.x.dtype == stats.residual.dtype == stats.objective.dtype == torch.float32
    torch.testing.assert_close(new.x.double(), prox(ENERGIES[name], ox.Quantiles(y), 0.1).mu.x, atol=2e-5, rtol=0)


# Gradients


@pytest.mark.parametrize("name", ["kl", "porous medium", "attraction", "fast kernel", "interaction", "potential"])
def test_gradient_in_the_quantiles(name: str):
    y, v, u = sample(10, 2, 15), sample(11, 2, 15), torch.randn(2, 15, generator=torch.Generator().manual_seed(1))
    y = (y + 0.1 * torch.arange(15)).requires_grad_()

    def readout(y: Tensor) -> Tensor:
        return (u * prox(ENERGIES[name], ox.Quantiles(y), 0.1).mu.x[..., 0]).sum()

    (g,) = torch.autograd.grad(readout(y), y)
    h = 1e-5
    with torch.no_grad():
        slope = (readout(y + h * v) - readout(y - h * v)) / (2 * h)
    assert (g * v).sum().item() == pytest.approx(slope.item(), rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("with_entropy", [True, False])
def test_gradient_in_a_parameter_of_the_potential(with_entropy: bool):
    mu = ox.Quantiles(sample(12, 30))

    def variance(a: Tensor) -> Tensor:
        V = ox.Potential(lambda x: a * x.square().square().sum(-1))
        return prox(V + ox.Entropy() if with_entropy else V, mu, 0.2).mu.cov.sum()

    a, h = torch.tensor(0.7, requires_grad=True), 1e-5
    (g,) = torch.autograd.grad(variance(a), a)
    with torch.no_grad():
        slope = (variance(a + h) - variance(a - h)) / (2 * h)
    assert g.item() == pytest.approx(slope.item(), rel=1e-5)


# What it refuses


@pytest.mark.parametrize("F", [ox.Potential(double_well), ox.KL(double_well), 2.0 * ox.Potential(double_well)])
def test_tau_past_the_convexity_limit(F: Functional):
    limit = 0.25 / F.terms[0][0]
    mu = ox.Quantiles(torch.linspace(-1.7, 1.9, 30))
    for tau in (limit, 1.2 * limit):
        with pytest.raises(ValueError, match=f"convexity limit {limit:.6g}"):
            Quantile()(F, W2, mu, tau)
    prox(F, mu, 0.99 * limit)
    prox(F, ox.Quantiles(torch.linspace(1.5, 2.5, 30)), 0.99 * limit)


def test_tau_past_a_known_limit():
    saddle = ox.Potential(ox.Quadratic([0.0], precision=[[-2.0]]))
    with pytest.raises(ValueError, match="limit 0.25"):
        Quantile()(saddle, ox.Wasserstein(torch.tensor([[2.0]])), uniform(10), 0.3)
    with pytest.raises(ValueError, match="limit 0.5"):
        Quantile()(ox.Entropy() - 2.0 * SQUARE, W2, uniform(10), 0.5)
    prox(ox.Entropy() - 2.0 * SQUARE, uniform(10), 0.4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite(bad: float):
    for extra in (ox.Entropy(), 0.0 * ox.Entropy(), SQUARE):
        with pytest.raises(ValueError, match="V"):
            Quantile()(ox.Potential(lambda x: x.square().sum(-1) * bad) + extra, W2, uniform(10), 0.1)


def test_a_wall_is_not_crossed():
    """V = −log(x) is infinite beyond 0: the step stays inside."""
    new = prox(ox.KL(lambda x: (x - x.log()).sum(-1)), ox.Quantiles(torch.linspace(0.01, 5.0, 50)), 1.0).mu
    assert new.x.min() > 0


@pytest.mark.parametrize(
    ("F", "metric", "mu", "words"),
    [
        (ox.Entropy(), W2, ox.Gaussian([0.0], [[1.0]]), "not on Gaussian"),
        (ox.Entropy(), ox.Entropic(0.1), uniform(5), "not in Entropic"),
        (ox.Blob(0.1), W2, uniform(5), "Blob is not"),
        (-1.0 * ox.Entropy(), W2, uniform(5), "negative coefficient -1"),
        (ox.Varying(lambda t: ox.Entropy()), W2, uniform(5), "only at a time"),
    ],
)
def test_declines_with_a_reason(F, metric, mu, words):
    assert words in Quantile().supports(F, metric, mu)
    with pytest.raises(TypeError, match=words):
        Quantile()(F, metric, mu, 0.1)


@pytest.mark.parametrize("tau", [0.0, -0.1, float("nan")])
def test_tau_must_be_positive(tau: float):
    with pytest.raises(ValueError, match="positive"):
        Quantile()(ox.Entropy(), W2, uniform(5), tau)


def test_a_potential_must_be_differentiable():
    with pytest.raises(TypeError, match="V is not differentiable"):
        Quantile()(ox.KL(lambda x: x.detach().square().sum(-1)), W2, uniform(5), 0.1)


@pytest.mark.parametrize("name", ["kl of a callable", "interaction", "potential"])
def test_says_when_it_did_not_converge(name: str):
    mu, F = ox.Quantiles(20 * sample(13, 50)), ENERGIES[name]
    if name == "potential":  # scalar roots are bracketed, but no bracket shrinks below rounding
        F = ox.Potential(lambda x: x.square().square().sum(-1))
    with pytest.warns(ConvergenceWarning, match="Quantile stopped after [0-9]+ iterations with residual"):
        out = Quantile(max_iter=1, tol=1e-30)(F, W2, mu, 1.0)
    assert not out.stats.converged
    with pytest.raises(ConvergenceError, match="raise max_iter"):
        Quantile(max_iter=1, tol=1e-30, on_failure="raise")(F, W2, mu, 1.0)


# Its parts


@pytest.mark.parametrize("route", [tridiagonal.lapack, tridiagonal.cyclic_reduction, tridiagonal.solve])
@pytest.mark.parametrize("shape", [(1,), (2,), (7,), (64,), (3, 33), (2, 2, 100)])
def test_tridiagonal_solve(route, shape: tuple[int, ...]):
    g = torch.Generator().manual_seed(0)
    off = torch.randn(*shape[:-1], shape[-1] - 1, generator=g)
    rhs, extra = torch.randn(shape, generator=g), torch.rand(shape, generator=g) + 0.1
    pad = torch.nn.functional.pad
    diagonal = pad(off.abs(), (1, 0)) + pad(off.abs(), (0, 1)) + extra
    dense = torch.diag_embed(diagonal) + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    torch.testing.assert_close(route(diagonal, off, rhs), torch.linalg.solve(dense, rhs), atol=1e-11, rtol=1e-11)
    single = route(diagonal.float(), off.float(), rhs.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), torch.linalg.solve(dense, rhs), atol=1e-4, rtol=1e-4)


def test_tridiagonal_solve_says_where_the_matrix_is_indefinite():
    diagonal = torch.tensor([[2.0, 2.0, 2.0], [2.0, -1.0, 2.0]])
    with pytest.raises(ValueError, match="row 1 of batch item 1"):
        tridiagonal.solve(diagonal, torch.zeros(2, 2), torch.ones(2, 3))


@given(st.integers(0, 10**6), st.integers(1, 60), st.booleans())
def test_isotonic_regression(seed: int, n: int, coarse: bool):
    g = torch.Generator().manual_seed(seed)
    x, w = torch.randn(3, n, generator=g) + torch.linspace(0, 1, n), torch.rand(3, n, generator=g) + 0.01
    x = x.round() if coarse else x
    want = [optimize.isotonic_regression(a.numpy(), weights=b.numpy()).x for a, b in zip(x, w, strict=True)]
    torch.testing.assert_close(isotonic(x, w), torch.tensor(np.stack(want)))


@pytest.mark.parametrize("name", ENERGIES)
def test_hessian_is_the_derivative_of_the_gradient(name: str):
    y = sample(14, 20) + 0.1 * torch.arange(20)
    energy, v, h = QuantileEnergy.of(ENERGIES[name], y, torch.tensor([2.0])), sample(15, 20), 1e-6
    x = 1.1 * y + 0.05
    slope = (energy.at(x + h * v).gradient - energy.at(x - h * v).gradient) / (2 * h)
    torch.testing.assert_close(energy.hessian(x, energy.at(x), v), slope, atol=1e-4, rtol=1e-5)
    value = (energy.at(x + h * v).value - energy.at(x - h * v).value) / (2 * h)
    assert (energy.at(x).gradient * v).sum().item() == pytest.approx(value.item(), rel=1e-6, abs=1e-5)


@pytest.mark.needs_cuda
def test_cuda():
    mu = ox.Quantiles.of(ox.Gaussian([10.0], [[100.0]]), 20000)
    F = ox.KL(double_well)
    on_device = prox(F, ox.Quantiles(mu.x[:, 0].cuda()), 0.1).mu.x
    assert on_device.is_cuda
    torch.testing.assert_close(on_device.cpu(), prox(F, mu, 0.1).mu.x, atol=1e-8, rtol=0)


def test_objective_and_distance_are_differentiable():
    x, a = torch.linspace(-1, 1, 12) ** 3 + torch.linspace(-1, 1, 12), torch.tensor(1.3)
    F = {
        "KL": lambda a: ox.KL(lambda z: a * z.square().sum(-1) ** 2),
        "V": lambda a: ox.Potential(lambda z: a * z[..., 0] ** 4),
    }
    for make in F.values():

        def values(x: Tensor, a: Tensor, make=make) -> tuple[Tensor, Tensor]:
            stats = ox.Backward(make(a), ox.Wasserstein(2 * torch.eye(1)))(ox.Quantiles(x), 0.0, 0.2).stats
            return stats.objective, stats.distance2

        inputs = (x.clone().requires_grad_(), a.clone().requires_grad_())
        assert torch.autograd.gradcheck(values, inputs, eps=1e-5, atol=1e-6, rtol=1e-5)
