"""Steps over few pairs of cells: the same as over all, by certificate."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

import otprox as ox
from otprox import (
    KL,
    Congestion,
    Density,
    Dirichlet,
    Entropy,
    Gaussian,
    Grid,
    Interaction,
    Obstacle,
    PorousMedium,
    Potential,
    Quadratic,
    Wasserstein,
)
from otprox.kernels import RBF
from otprox.solvers import ConvergenceWarning, Convex, sparse_plan
from otprox.solvers.convex import FrozenWarning

MANY = 10**6
W2 = Wasserstein()


def gaussian(d: int) -> Gaussian:
    return Gaussian([0.8, -0.4, 0.1][:d], torch.tensor([[0.9, 0.3, 0.0], [0.3, 0.6, 0.1], [0.0, 0.1, 0.5]])[:d, :d])


def density(d: int, n: int, periodic: bool = False) -> Density:
    return Density.from_log_prob(gaussian(d).log_prob, Grid([-3.0] * d, [3.5] * d, [n] * d, periodic=periodic))


ENERGIES = {
    "KL": KL(Quadratic([0.0])),
    "m = 2": PorousMedium(2.0),
    "fast diffusion": PorousMedium(0.6) + Potential(Quadratic([-0.5])),
    "crowd": 5 * Potential(Quadratic([-1.0])) + Congestion(0.6),
    "wall": Potential(Quadratic([2.0])) + Entropy() + Obstacle(upper=lambda x: torch.where(x[..., 0] < 1, math.inf, 0)),
    "thin film": Dirichlet(),
    "repulsion": 0.2 * Interaction(RBF(0.5)) + Potential(Quadratic([0.0])),
}


def both(F, metric, mu, tau):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FrozenWarning)
        few = Convex(max_full=0, on_failure="raise")(F, metric, mu, tau)
        warnings.simplefilter("ignore", ConvergenceWarning)  # over all pairs it stalls at 2e-8 once
        return few, Convex(max_full=MANY)(F, metric, mu, tau)


@pytest.mark.parametrize("tau", [0.02, 1.0])
@pytest.mark.parametrize("name", ENERGIES)
def test_the_objective_is_that_of_the_full_plan(name, tau):
    few, all_pairs = both(ENERGIES[name], W2, density(1, 90), tau)
    assert few.stats.residual < 1e-6 and all_pairs.stats.residual < 1e-7
    assert few.stats.objective.item() == pytest.approx(all_pairs.stats.objective.item(), rel=2e-6, abs=2e-6)
    assert few.stats.distance2.item() == pytest.approx(all_pairs.stats.distance2.item(), rel=1e-3, abs=1e-5)
    assert few.stats.plan.is_sparse and few.stats.plan.values().numel() < 90 * 14


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("d", [2, 3])
def test_in_more_dimensions_and_periodic(d, periodic):
    mu, V = density(d, {2: 9, 3: 5}[d], periodic), Quadratic([-2.5, 0.5, 0.0][:d])
    F = Potential(V) + 0.5 * PorousMedium(2.0)
    Q = torch.diag(torch.tensor([1.0, 2.0, 0.5][:d]))
    for metric in (W2, Wasserstein(Q if periodic else gaussian(d).cov)):
        few, all_pairs = both(F, metric, mu, 1.0)
        assert few.stats.objective.item() == pytest.approx(all_pairs.stats.objective.item(), rel=1e-6)
        torch.testing.assert_close(few.mu.values, all_pairs.mu.values, rtol=0, atol=1e-3)


def test_the_plan_has_its_marginals_and_its_cost():
    mu = density(2, 10)
    out = Convex(max_full=0)(KL(Quadratic([0.0, 0.0])), W2, mu, 0.7)
    plan, x = out.stats.plan.to_dense(), mu.points
    torch.testing.assert_close(plan.sum(0), mu.masses)
    torch.testing.assert_close(plan.sum(1), out.mu.masses)
    cost = (x[:, None] - x[None]).square().sum(-1)
    torch.testing.assert_close((plan * cost).sum(), out.stats.distance2)


def test_a_batch_equals_single_runs():
    base = density(1, 60)
    mu = Density(torch.stack([base.values, base.values.flip(0)])[None], base.grid)
    F, Q = KL(Quadratic([0.5])), torch.tensor([1.0, 2.0]).reshape(1, 2, 1, 1)
    out = Convex(max_full=0)(F, Wasserstein(Q), mu, 0.5)
    assert out.stats.plan.shape == (1, 2, 60, 60) and out.stats.residual.shape == (1, 2)
    for i in range(2):
        alone = Convex(max_full=0)(F, Wasserstein(Q[0, i]), Density(mu.values[0, i], base.grid), 0.5)
        torch.testing.assert_close(out.mu.values[0, i], alone.mu.values, rtol=0, atol=1e-9)
        torch.testing.assert_close(out.stats.plan.to_dense()[0, i], alone.stats.plan.to_dense())


@pytest.mark.filterwarnings("ignore::otprox.solvers.convex.FrozenWarning")
@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_the_bound_is_one_and_says_when_it_is_not_met(tau, monkeypatch):
    """With two neighbours and one round the plan may be bad; the full plan is never better than the bound allows."""
    mu, F = density(2, 12), KL(Quadratic([-1.0, 1.0], precision=torch.tensor([[3.0, 1.0], [1.0, 1.0]])))
    monkeypatch.setattr(sparse_plan, "NEIGHBOURS", {2: 2})
    monkeypatch.setattr(sparse_plan, "ROUNDS", 1)
    with pytest.warns(ConvergenceWarning, match="left out may lower the objective"):
        poor = Convex(max_full=0)(F, W2, mu, tau)
    best = Convex(max_full=MANY)(F, W2, mu, tau)
    objective, missed = poor.stats.objective.item(), poor.stats.residual.item()
    assert best.stats.objective < objective - 1e-4
    assert best.stats.objective > objective - missed * max(1, abs(objective)) - 1e-6
    monkeypatch.setattr(sparse_plan, "ROUNDS", 30)
    mended = Convex(max_full=0, on_failure="raise")(F, W2, mu, tau)  # from the same guess
    assert mended.stats.objective.item() == pytest.approx(best.stats.objective.item(), abs=1e-6)


def test_pairs_on_which_a_constraint_cannot_hold_are_widened(monkeypatch):
    """A block of density 4 under a bound of 0.5: neighbours cannot take it, and no coarser grid helps."""
    grid = Grid(0.0, 8.0, 64)
    x = grid.points(torch.zeros(1))[:, 0]
    mu = Density(torch.where((x - 2).abs() < 0.125, 4.0, 0.0), grid)
    monkeypatch.setattr(sparse_plan, "_from_coarser", lambda mu, energy, precision, settings: torch.zeros(1, 64))
    out = Convex(max_full=0, on_failure="raise")(Congestion(0.5), W2, mu, 1.0)
    expected = torch.where((x - 2).abs() < 1, 0.5, 0.0)
    torch.testing.assert_close(out.mu.values, expected, rtol=0, atol=1e-4)  # spread evenly about the same centre


def test_price_is_the_c_transform():
    grid = Grid((0.0, 0.0), (1.0, 2.0), (5, 4), periodic=(True, False))
    P = torch.diag(torch.tensor([2.0, 0.5]))
    transport, y = sparse_plan.Transport(grid, P), torch.randn(20, generator=torch.Generator().manual_seed(0))
    x = grid.points(y)
    z = grid.displacement(x[:, None], x[None])
    full = torch.einsum("ija,ab,ijb->ij", z, P, z) + y[:, None]
    masses = torch.full((20,), 0.05)
    masses[7] = 0.0
    lowest, pairs = transport.price(y, masses, 3)
    torch.testing.assert_close(lowest, full.amin(0))
    chosen = torch.zeros(20, 20, dtype=torch.bool)
    chosen[pairs.new, pairs.old] = True
    best = full.topk(3, 0, largest=False).indices
    assert chosen[best[:, 3], 3].all() and chosen[7, 7]
    assert chosen[:, 7].sum() == 1  # a cell without mass brings itself only
    assert (chosen.sum(1) >= 3).all()


@pytest.mark.filterwarnings("ignore::otprox.solvers.convex.FrozenWarning")
@pytest.mark.parametrize("floor", [0.0, 1e-13, 1e-10])
@pytest.mark.parametrize("name", ["Potential", "KL"])
def test_a_floor_that_mass_must_come_to_from_afar(name, floor):
    """Cells near 1e-13 fill up to 1e-3: a guess of few pairs is infeasible; the entropic step is near the result."""
    grid, V = Grid((-4.0, -4.0), (4.0, 4.0), (16, 16)), Quadratic([0.0, 0.0])
    values = Gaussian([1.0, 0.0], [[0.3, 0.0], [0.0, 0.3]]).to_density(grid).values
    values = torch.where(values < 1e-8, floor, values)
    mu = Density(values / (values.sum() * grid.volume), grid)
    F = {"Potential": Potential(V), "KL": KL(V)}[name] + Obstacle(lower=1e-3, upper=0.15)
    new, stats = Convex(on_failure="raise", max_full=0)(F, W2, mu, 0.5)
    assert stats.residual < 1e-6
    assert new.values.min() > 1e-3 - 1e-6 and new.values.max() < 0.15 + 1e-6
    blurred = ox.Backward(F, ox.Entropic(0.1))(mu, 0.0, 0.5).mu
    assert (new.values - blurred.values).abs().sum() * grid.volume < 0.25
