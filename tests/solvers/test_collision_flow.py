"""The JKO step of collisions: covariances and rates in closed form, conservation, large steps, held-out particles."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import otprox as ox
from otprox.exact import landau
from otprox.solvers import CollisionFlow, ConvergenceWarning, Cosines, Descent, Hermite
from otprox.solvers.collision_flow import Problem
from otprox.solvers.features import Frame


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(n: int, *variances: float) -> ox.Particles:
    law = ox.Gaussian(torch.zeros(len(variances)), torch.diag(torch.tensor(variances)))
    return law.to_particles(n, rng())


def march(step: ox.Backward, mu: ox.Measure, tau: float, end: float) -> ox.Particles:
    return ox.record(ox.flow(step, mu, [tau * k for k in range(round(end / tau) + 1)])).final


@pytest.mark.parametrize(("variances", "strength"), [((1.6, 0.4), 1 / 16), ((2.4, 0.3, 0.3), 1 / 24)])
def test_first_order_on_the_covariance_of_maxwell_molecules(variances: tuple[float, ...], strength: float):
    """P(t) = T I + (P − T I)e^{−4dCt} from the particles' own covariance, as quadratic ψ test it exactly."""
    mu, errors = gaussian(300, *variances), []
    want = landau.covariance(mu.cov, 1.0, strength=strength)
    for tau in (0.25, 0.125):
        step = ox.Backward(ox.Entropy(), ox.Landau(0.0, strength), CollisionFlow(Hermite(3), held_out=0.0))
        errors.append((march(step, mu, tau, 1.0).cov - want).abs().max().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1.0, abs=0.1)
    assert errors[1] < 0.012 * max(variances)


@pytest.mark.parametrize("gamma", [-3.0, 0.0])
def test_momentum_and_energy_are_kept_and_entropy_falls(gamma: float):
    mu = gaussian(120, 2.0, 0.5, 0.5)
    nu = ox.Backward(ox.Entropy(), ox.Landau(gamma), CollisionFlow(Hermite(2), inner_steps=2))(mu, 0.0, 0.05).mu
    torch.testing.assert_close(nu.mean, mu.mean, rtol=0, atol=1e-14)
    torch.testing.assert_close(nu.cov.trace(), mu.cov.trace(), rtol=1e-13, atol=0)
    assert nu.entropy() < mu.entropy() - 0.01


def nodes(t: float, least: float = 1e-5) -> ox.Particles:
    """The BKW density at time t on a grid, where it is not negligible."""
    exact, line = landau.BKW(2, 1 / 16), torch.linspace(-4.4, 4.4, 41)
    x = torch.cartesian_prod(line, line)
    w = exact.density(x, t)
    x, w = x[w > least * w.max()], w[w > least * w.max()]
    return ox.Particles(x, w / w.sum(), log_density=w.log())


def test_entropy_and_density_of_bkw():
    """Entropy within 1e-3 along the path, and the carried density within 2 % in L2, relative."""
    exact, basis = landau.BKW(2, 1 / 16), Cosines(80, 0.6)
    step = ox.Backward(ox.Entropy(), ox.Landau(0.0, 1 / 16), CollisionFlow(basis))
    path = ox.flow(step, nodes(2.0), [2.0, 2.5, 3.0, 3.5, 4.0])
    for tick in path:
        assert tick.after.entropy().item() == pytest.approx(exact.entropy(tick.t1), abs=1e-3)
        assert tick.stats.converged
    density, want = tick.after.log_density.exp(), exact.density(tick.after.x, 4.0)
    gap = (tick.after.w * (density - want) ** 2 / density).sum() / (tick.after.w * want).sum()
    assert gap.sqrt() < 0.02


def test_nodes_of_negligible_weight_do_not_hold_the_step_up():
    """No map may fold there either, but u on the rest is the same."""
    step = ox.Backward(ox.Entropy(), ox.Landau(0.0, 1 / 16), CollisionFlow(Cosines(60, 0.6)))
    all_nodes, most = (step(nodes(2.0, least), 2.0, 4.0) for least in (0.0, 1e-5))
    assert all_nodes.stats.converged and len(all_nodes.mu.x) > 1.3 * len(most.mu.x)
    assert all_nodes.mu.entropy().item() == pytest.approx(most.mu.entropy().item(), abs=3e-4)


def test_first_order_on_the_fourth_moment_of_bkw():
    """ψ = |v|⁴ is in the space; collisions are strong, four units of time at once."""
    mu = nodes(2.0)
    fourth = lambda x: x.square().sum(-1).square()  # noqa: E731
    want = landau.radial_fourth_moment(mu.expect(fourth).item(), 8.0, 2, strength=1 / 16)
    errors = []
    for tau in (2.0, 1.0):
        step = ox.Backward(ox.Entropy(), ox.Landau(0.0, 1 / 16), CollisionFlow(Hermite(4)))
        errors.append(abs(march(step, mu, tau, 8.0).expect(fourth).item() - want))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1.0, abs=0.25)


@pytest.mark.parametrize("tau", [0.25, 1.0])
def test_steps_at_which_the_explicit_scheme_blows_up(tau: float):
    """4dC·tau is 2 and 8. The explicit step gains energy without bound; the implicit one goes to the Maxwellian."""
    mu, metric = gaussian(500, 1.6, 0.4), ox.Landau(0.0)
    explicit = ox.Forward(ox.Entropy(score=ox.scores.GaussianFit()), metric)
    assert march(explicit, mu, tau, 1.0).cov.trace() > 10 * mu.cov.trace()
    run = ox.record(
        ox.flow(ox.Backward(ox.Entropy(), metric, CollisionFlow(Hermite(2))), mu, [tau * k for k in range(9)]),
        energy=ox.observe.energy(ox.Entropy()),
    )
    assert (run.series["energy"].diff() < 1e-3).all()
    rest = mu.cov.trace() / 2 * torch.eye(2)
    torch.testing.assert_close(run.final.cov, rest, rtol=0, atol=0.03)


@pytest.mark.parametrize(("parallel", "perpendicular"), [(0.5, 1.25), (2.0, 0.5)])
def test_coulomb_relaxes_at_the_rate_of_the_bi_maxwellian(parallel: float, perpendicular: float):
    mu, tau = gaussian(500, parallel, perpendicular, perpendicular), 0.01
    solver = CollisionFlow(Hermite(2), held_out=0.0)
    rate = (solver(ox.Entropy(), ox.Landau(-3.0), mu, tau).mu.cov - mu.cov) / tau
    want, _ = landau.coulomb_rates(mu.cov[0, 0].item(), (mu.cov[1, 1] + mu.cov[2, 2]).item() / 2)
    assert rate[0, 0].item() == pytest.approx(want, rel=0.08)  # the sampling error of 500 particles


def test_more_inner_steps_come_nearer_to_the_distance():
    """The action of a finer curve is smaller, and the objective too; it settles."""
    mu, values = gaussian(300, 1.6, 0.4), []
    for pieces in (1, 2, 4):
        solver = CollisionFlow(Hermite(2), inner_steps=pieces, held_out=0.0)
        values.append(solver(ox.Entropy(), ox.Landau(0.0), mu, 0.25).stats.objective)
    gaps = torch.stack(values).diff().abs()
    assert gaps[0] / gaps[1] > 1.4


def test_a_potential_beside_the_entropy():
    """Collisions do not feel |v|²/2: the step is that of the entropy alone, and the objective differs by its value."""
    mu, solver = gaussian(200, 1.6, 0.4), CollisionFlow(Hermite(2))
    V = ox.Potential(ox.Quadratic(mu.mean))
    one, two = (solver(F, ox.Landau(0.0), mu, 0.1) for F in (ox.Entropy(), ox.Entropy() + V))
    torch.testing.assert_close(one.mu.x, two.mu.x, rtol=0, atol=1e-5)
    torch.testing.assert_close(two.stats.objective - one.stats.objective, V(mu))


def test_free_particles_only_with_a_blob():
    mu, metric = gaussian(60, 1.6, 0.4), ox.Landau(0.0)
    with pytest.raises(TypeError, match="stretched on its own"):
        ox.Backward(ox.Entropy(), metric, Descent())(mu, 0.0, 0.1)
    F = ox.Blob(0.5, form="full")
    assert isinstance(ox.solvers.choose(F, metric, mu), Descent)
    out = ox.Backward(F, metric)(mu, 0.0, 0.05)
    assert out.stats.converged and out.stats.objective < F(mu)


def test_batches_are_items_on_their_own():
    many = [gaussian(100, 1.6, 0.4), gaussian(100, 0.5, 1.0)]
    mu = ox.Particles(torch.stack([m.x for m in many]), log_density=torch.stack([m.log_density for m in many]))
    solver = CollisionFlow(Hermite(3), inner_steps=2)
    whole = solver(ox.Entropy(), ox.Landau(0.0), mu, 0.1)
    assert whole.stats.converged.shape == (2,)
    for k, one in enumerate(many):
        torch.testing.assert_close(
            solver(ox.Entropy(), ox.Landau(0.0), one, 0.1).mu.x, whole.mu.x[k], rtol=0, atol=1e-5
        )


def test_single_precision():
    mu = gaussian(300, 1.6, 0.4)
    small = ox.Particles(mu.x.float(), log_density=mu.log_density.float())
    one, two = (CollisionFlow()(ox.Entropy(), ox.Landau(0.0), m, 0.1) for m in (mu, small))
    assert two.stats.converged and two.mu.x.dtype == torch.float32
    torch.testing.assert_close(two.mu.x.double(), one.mu.x, rtol=0, atol=5e-3)


def test_chosen_for_the_entropy_in_the_metric_of_collisions():
    mu = gaussian(200, 1.6, 0.4)
    step = ox.Backward(ox.Entropy(), ox.Landau(gamma=0, strength=1 / 16))
    out = step(mu, 0.0, 0.5)
    assert isinstance(ox.solvers.choose(step.F, step.metric, mu), CollisionFlow)
    assert out.stats.converged and out.stats.warm["held_out"] > 0
    assert out.stats.objective < mu.entropy()
    assert out.stats.objective.item() == pytest.approx((out.mu.entropy() + out.stats.distance2).item())


def test_small_steps_move_against_the_score():
    """u → −∇log f: the step is that of the score in closed form, to first order in tau, where moments are exact."""
    z, weight = ox.measures.GaussHermite(5).nodes(2, torch.float64, torch.device("cpu"))
    law = ox.Gaussian(torch.zeros(2), torch.diag(torch.tensor([1.6, 0.4])))
    x = z @ law.cov.sqrt()
    mu, metric = ox.Particles(x, weight, log_density=law.log_prob(x)), ox.Landau(0.0, 1 / 16)
    v = -metric.onsager(mu, law.score(x))
    gaps = []
    for tau in (0.02, 0.01):
        nu = ox.Backward(ox.Entropy(), metric, CollisionFlow(Hermite(2), held_out=0.0))(mu, 0.0, tau).mu
        gaps.append(((nu.x - x) / tau - v).norm().item() / v.norm().item())
    assert gaps[1] < 0.01 and gaps[0] / gaps[1] == pytest.approx(2.0, abs=0.1)


def test_the_carried_density_is_that_of_the_map():
    """log f falls by log det of the differences of the map, the sources held fixed."""
    mu, metric = gaussian(80, 1.6, 0.4), ox.Landau(0.0, 1 / 16)
    frame = Frame.of(mu, ox.Wasserstein())
    problem = Problem.of(ox.Entropy(), metric, frame, Hermite(3), 0.5, 1, mu)
    c = 0.02 * torch.randn(problem.zero().shape, generator=rng(3))
    curve = problem.curve(c)

    def T(x: Tensor) -> Tensor:
        u = lambda y: (c[..., None] * frame.derivatives(Hermite(3), y)[0]).sum(-2)  # noqa: E731
        return x + 0.5 * metric._field(mu, x, u(x), u(mu.x))

    h = 1e-6
    columns = [(T(mu.x + h * e) - T(mu.x - h * e)) / (2 * h) for e in torch.eye(2)]
    scale = math.sqrt((mu.cov.trace() / torch.cov(T(mu.x).T, correction=0).trace()).item())
    want = mu.log_density - torch.linalg.slogdet(torch.stack(columns, -1)).logabsdet - 2 * math.log(scale)
    torch.testing.assert_close(curve.end.log_density, want, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(curve.end.x, scale * (T(mu.x) - mu.mean) + mu.mean)


def test_hessian_is_exact_for_one_piece():
    mu = gaussian(60, 1.6, 0.4)
    problem = Problem.of(ox.Entropy(), ox.Landau(0.0), Frame.of(mu, ox.Wasserstein()), Hermite(3), 0.1, 1, mu)
    H = torch.autograd.functional.hessian(lambda c: problem.objective(c[None]).sum(), problem.zero()[0])
    S = problem.coordinates(problem.zero())[0]
    kept = (S != 0).any(0)  # the others are ψ that no collision feels
    torch.testing.assert_close((S.T @ H @ S)[kept][:, kept], torch.eye(int(kept.sum())), rtol=0, atol=1e-6)
    assert kept.sum() == 9 - 3


def test_what_is_not_supported_is_named():
    mu = gaussian(50, 1.0, 0.5)
    for bare in (ox.Particles(mu.x), ox.Gaussian.fit(mu)):
        with pytest.raises(TypeError, match=r"log_density.*by CollisionFlow"):
            ox.Backward(ox.Entropy(), ox.Landau(0.0))(bare, 0.0, 0.1)
    with pytest.raises(TypeError, match="metric Landau"):
        ox.Backward(ox.Entropy(), solver=CollisionFlow())(mu, 0.0, 0.1)
    with pytest.raises(ValueError, match="inner_steps must be at least 1"):
        CollisionFlow(inner_steps=0)
    with pytest.raises(ValueError, match="held_out"):
        CollisionFlow(held_out=1.0)
    with pytest.raises(TypeError, match="basis must be"):
        CollisionFlow(3)


def test_a_map_that_fits_noise_is_refused():
    """What the fit gains on its own particles it loses on those held out; with more features it is not even tried."""
    mu = ox.Gaussian(torch.zeros(2), torch.eye(2)).to_particles(100, rng(1))
    with pytest.warns(ConvergenceWarning, match="held out"):
        out = ox.Backward(ox.Entropy(), ox.Landau(0.0), CollisionFlow(Cosines(20, 0.3)))(mu, 0.0, 0.5)
    assert not out.stats.converged
    torch.testing.assert_close(out.mu.x, mu.x)
    with pytest.raises(ValueError, match="45 coefficients are too many for 80 particles"):
        ox.Backward(ox.Entropy(), ox.Landau(0.0), CollisionFlow(Cosines(40, 0.3)))(mu, 0.0, 0.5)


def test_a_shortened_step_is_not_called_converged():
    """Too many features for the cloud: what is left of the fit is no minimiser, far from that of fewer features."""
    mu, metric = gaussian(1000, 1.6, 0.4), ox.Landau(0.0)
    with pytest.warns(ConvergenceWarning, match=r"shortened to 0\.\d+ of the fitted .*Hermite\(2\)\), or held_out=0"):
        out = ox.Backward(ox.Entropy(), metric)(mu, 0.0, 0.5)
    fewer, all_fitted = (
        ox.Backward(ox.Entropy(), metric, solver)(mu, 0.0, 0.5)
        for solver in (CollisionFlow(Hermite(2)), CollisionFlow(held_out=0.0))
    )
    assert not out.stats.converged and "shortened" in out.stats.message
    for whole in (fewer, all_fitted):
        assert whole.stats.converged and not whole.stats.message
        assert whole.stats.objective < out.stats.objective


def test_nothing_to_gain_leaves_no_residual():
    """V = |x|² is a multiple of the energy, which collisions keep."""
    mu = gaussian(200, 1.6, 0.4)
    out = ox.Backward(ox.Potential(lambda x: x.square().sum(-1)), ox.Landau(0.0), CollisionFlow(Hermite(2)))(
        mu, 0.0, 0.5
    )
    assert out.stats.converged and out.stats.residual == 0
    torch.testing.assert_close(out.mu.x, mu.x)


@pytest.mark.needs_cuda
@pytest.mark.parametrize("gamma", [0.0, -3.0])
def test_on_cuda(gamma: float):
    mu = gaussian(200, 2.0, 0.5, 0.5)
    there = mu.with_state(**{name: t.cuda() for name, t in mu.state().items()})
    solver = CollisionFlow(Hermite(3), inner_steps=2)
    one, two = (solver(ox.Entropy(), ox.Landau(gamma), m, 0.05) for m in (mu, there))
    assert two.mu.x.is_cuda and two.stats.converged
    torch.testing.assert_close(two.mu.x.cpu(), one.mu.x, rtol=0, atol=1e-5)
