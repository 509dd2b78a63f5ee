"""Prox steps by maps of modes, sites and blocks: Gaussian fields, Jacobians, batches, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import otprox as ox
from otprox.lattice import Lattice
from otprox.measures import Spectral
from otprox.solvers import BlockSpins, ConvergenceWarning
from otprox.solvers.lattice_frames import ModePairs, shifted_blocks

BOX = Lattice((4, 4))


def spectral(mass2: float, lattice: Lattice = BOX) -> Spectral:
    return Spectral(lattice.symbol(mass2, torch.zeros(())), lattice)


def rough(n: int, seed: int = 0, lattice: Lattice = BOX) -> ox.Particles:
    """Free fields with their density."""
    law = ox.Gaussian(torch.zeros(lattice.sites), spectral(1.0, lattice).inverse())
    return law.to_particles(n, torch.Generator().manual_seed(seed))


def quartic(phi: Tensor) -> Tensor:
    """An action with two wells: ½⟨φ, −Δφ⟩ + Σ φ⁴/4 − φ²/2."""
    return 0.5 * (phi * (phi @ spectral(-1.0))).sum(-1) + 0.25 * phi.pow(4).sum(-1)


FRAMES = [ModePairs(BOX), *(frame for size in (1, 2, 4) for frame in shifted_blocks(BOX, size))]


@pytest.mark.parametrize("frame", FRAMES)
def test_frames_are_orthonormal(frame):
    m = len(frame.groups(torch.zeros(())))
    rows = frame.give(torch.eye(m))
    torch.testing.assert_close(rows @ rows.mT, torch.eye(m))
    torch.testing.assert_close(frame.take(torch.eye(BOX.sites)), rows.mT)


def test_shifts():
    assert [len(shifted_blocks(Lattice((8, 4)), size)) for size in (1, 2, 4, 8)] == [1, 4, 2, 1]
    assert shifted_blocks(Lattice((8, 4)), 8)[0].sides == (8, 4)


@pytest.mark.parametrize("Q", [None, spectral(0.7).inverse()])
@pytest.mark.parametrize("tau", [0.05, 1.0])
def test_gaussian_fields_by_modes(Q, tau):
    """Variances of modes, averaged over ±k, are those of the closed form from what the particles have."""
    x = rough(200).x
    mu = ox.Particles(torch.cat([x, -x]), log_density=torch.zeros(400))
    F, metric = ox.KL(ox.Gaussian(torch.zeros(16), 0.3 * spectral(2.0))), ox.Wasserstein(Q)

    def fit(nu: ox.Particles) -> ox.Gaussian:
        v = BOX.to_modes(nu.x).square().mean(0)
        return ox.Gaussian(torch.zeros(16), Spectral((v + BOX.reflect(v)) / 2, BOX))

    out = BlockSpins(BOX, (), held_out=0.0, tol=1e-9)(F, metric, mu, tau)
    want = ox.Backward(F, metric)(fit(mu), 0.0, tau)
    torch.testing.assert_close(fit(out.mu).cov.values, want.mu.cov.values, rtol=1e-5, atol=0)
    torch.testing.assert_close(out.stats.distance2, want.stats.distance2, rtol=1e-4, atol=0)
    torch.testing.assert_close(out.stats.map(mu.x), out.mu.x)


def test_the_carried_density_is_that_of_the_image():
    """log ρ falls by log|det ∇T|, ∇T by automatic differentiation of the composed map."""
    mu = rough(60)
    out = BlockSpins(BOX)(ox.KL(quartic), ox.Wasserstein(spectral(1.0).inverse()), mu, 0.2)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda x: out.stats.map(x[None])[0]))(mu.x)
    log_det = torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(mu.log_density - out.mu.log_density, log_det, rtol=0, atol=1e-9)
    assert log_det.std() > 0.05


def test_the_objective_falls_and_its_parts_agree():
    mu, Q, tau = rough(100), spectral(1.0).inverse(), 0.3
    F = ox.KL(quartic)
    out = BlockSpins(BOX, held_out=0.0)(F, ox.Wasserstein(Q), mu, tau)
    step = out.mu.x - mu.x
    torch.testing.assert_close(out.stats.distance2, (step * (step @ Q.inverse())).sum(-1).mean())
    assert out.stats.objective == F(out.mu) + out.stats.distance2 / (2 * tau) < F(mu)
    fewer = BlockSpins(BOX, (), held_out=0.0)(F, ox.Wasserstein(Q), mu, tau).stats.objective
    assert out.stats.objective < fewer - 0.01  # the wells need more than linear maps


def test_sampling_by_jko_reaches_the_free_energy():
    """The flow of KL(· | e^{−S}) from the free field: F → −log ∫e^{−S}, here two sites, whose integral is a sum."""
    pair = Lattice(2)

    def action(phi: Tensor) -> Tensor:
        return (0.25 * phi.pow(4) + 0.5 * phi.square()).sum(-1) - phi.prod(-1)

    axis = torch.linspace(-5, 5, 201)
    log_z = torch.logsumexp(-action(torch.cartesian_prod(axis, axis)), 0) + 2 * torch.log(axis[1] - axis[0])
    law = ox.Gaussian(torch.zeros(2), Spectral(torch.tensor([1.0, 0.5]), pair))
    mu = law.to_particles(2000, torch.Generator().manual_seed(0))
    F = ox.KL(action)
    run = ox.record(ox.flow(ox.Backward(F, solver=BlockSpins(pair)), mu, [0.25 * k for k in range(7)]), energy=F_of(F))
    assert (run.series["energy"].diff() < 1e-3).all()
    assert run.series["energy"][-1].item() == pytest.approx(-log_z.item(), abs=0.06)


def F_of(F):
    return lambda tick: F(tick.after)


def test_batches_are_items_on_their_own():
    clouds = [rough(60, seed) for seed in range(3)]
    mu = ox.Particles(torch.stack([c.x for c in clouds]), log_density=torch.stack([c.log_density for c in clouds]))
    solver, F = BlockSpins(BOX), ox.KL(quartic)
    whole = solver(F, ox.Wasserstein(), mu, 0.1)
    assert whole.stats.converged.shape == (3,)
    for k, cloud in enumerate(clouds):
        one = solver(F, ox.Wasserstein(), cloud, 0.1)
        torch.testing.assert_close(one.mu.x, whole.mu.x[k], rtol=0, atol=1e-6)
        assert one.stats.iterations == whole.stats.iterations[k]


def test_float32():
    mu = rough(80)
    single = ox.Particles(mu.x.float(), log_density=mu.log_density.float())
    F = ox.KL(lambda phi: 0.25 * phi.pow(4).sum(-1))
    got, want = (BlockSpins(BOX)(F, ox.Wasserstein(), m, 0.1).mu for m in (single, mu))
    assert got.x.dtype == torch.float32
    torch.testing.assert_close(got.x.double(), want.x, rtol=0, atol=0.02)


def test_one_sweep_may_not_be_enough():
    with pytest.warns(ConvergenceWarning, match="1 iterations with residual 1; raise max_sweeps"):
        BlockSpins(BOX, max_sweeps=1)(ox.KL(quartic), ox.Wasserstein(), rough(50), 0.1)


def test_refusals():
    F, mu = ox.KL(quartic), rough(20)
    with pytest.raises(TypeError, match="16 sites, the fields 3"):
        BlockSpins(BOX)(F, ox.Wasserstein(), ox.Particles(torch.randn(5, 3), log_density=torch.zeros(5)), 0.1)
    with pytest.raises(TypeError, match="Spectral on its lattice"):
        BlockSpins(BOX)(F, ox.Wasserstein(torch.eye(16)), mu, 0.1)
    with pytest.raises(TypeError, match="Entropy needs the log-density"):
        BlockSpins(BOX)(F, ox.Wasserstein(), ox.Particles(mu.x), 0.1)
    with pytest.raises(TypeError, match="not a Gaussian"):
        BlockSpins(BOX)(F, ox.Wasserstein(), ox.Gaussian.fit(mu), 0.1)
    with pytest.raises(ValueError, match="no spread in a mode or block"):
        BlockSpins(BOX)(F, ox.Wasserstein(), ox.Particles(torch.ones(9, 16), log_density=torch.zeros(9)), 0.1)
    with pytest.raises(ValueError, match="blocks of 3 sites a side do not tile"):
        BlockSpins(BOX, (3,))
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        BlockSpins(BOX, held_out=1.0)
    with pytest.raises(ValueError, match="max_sweeps"):
        BlockSpins(BOX, max_sweeps=0)
