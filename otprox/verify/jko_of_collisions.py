"""Claims about the JKO step in the metric of collisions, with carried densities."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import exact
from ..exact.landau import BKW
from ..flow import flow
from ..functionals import Entropy
from ..measures import Gaussian, Particles
from ..metrics import Landau
from ..solvers import CollisionFlow, Cosines, Hermite
from ..steps import Backward
from .case import Case
from .scenes import march

PLANE = BKW(2, 1 / 16)


def jko_of_collisions() -> list[Case]:
    ladder = (0.25, 0.125, 0.0625)
    return [
        Case("Landau JKO: anisotropy in the plane", "e^{−4dCt}", ladder, _covariance(1.6, 0.4), order=1.0),
        Case("Landau JKO: anisotropy in space", "e^{−4dCt}", ladder, _covariance(2.4, 0.3, 0.3), order=1.0),
        Case("Landau JKO: E|v|⁴ in the plane", "Ornstein–Uhlenbeck law, t = 8", (2.0, 1.0, 0.5), _fourth, order=1.0),
        Case("Landau JKO: entropy", "BKW in the plane, 2 < t ≤ 4", (0.5,), _entropy, within=1e-3),
        Case("Landau JKO: momentum and energy", "identity", (4.0, 0.25), _invariants, within=1e-12),
        Case("Landau JKO: Coulomb rates, 2000 particles", "NRL, relative", (0.5, 2.0), _coulomb, within=0.05),
    ]


def _jko(gamma: float, strength: float, basis: Hermite | Cosines, inner_steps: int = 1) -> Backward:
    return Backward(Entropy(), Landau(gamma, strength), CollisionFlow(basis, held_out=0.0, inner_steps=inner_steps))


def _cloud(n: int, *variances: float) -> Particles:
    P = torch.diag(torch.tensor(variances, dtype=torch.float64))
    return Gaussian(P.new_zeros(len(variances)), P).to_particles(n, torch.Generator().manual_seed(0))


def _covariance(*variances: float) -> Callable[[float], float]:
    """From the particles' own covariance, which quadratic ψ test exactly."""

    def error(tau: float) -> float:
        mu, strength = _cloud(300, *variances), 0.125 / len(variances)
        want = exact.landau.covariance(mu.cov, 1.0, strength=strength)
        return (march(_jko(0.0, strength, Hermite(2)), mu, tau, 1.0).cov - want).abs().max().item()

    return error


def _nodes(t: float) -> Particles:
    """The BKW density on a grid, where it is not negligible."""
    line = torch.linspace(-4.4, 4.4, 41, dtype=torch.float64)
    x = torch.cartesian_prod(line, line)
    w = PLANE.density(x, t)
    x, w = x[w > 1e-5 * w.max()], w[w > 1e-5 * w.max()]
    return Particles(x, w / w.sum(), log_density=w.log())


def _fourth(tau: float) -> float:
    def m4(x: Tensor) -> Tensor:
        return x.square().sum(-1).square()

    mu = _nodes(2.0)
    want = exact.landau.radial_fourth_moment(mu.expect(m4).item(), 8.0, 2, strength=1 / 16)
    return abs(march(_jko(0.0, 1 / 16, Hermite(4)), mu, tau, 8.0).expect(m4).item() - want)


def _entropy(tau: float) -> float:
    times = [2.0 + tau * k for k in range(round(2 / tau) + 1)]
    path = flow(_jko(0.0, 1 / 16, Cosines(80, 0.6)), _nodes(2.0), times)
    return max(abs(tick.after.entropy().item() - PLANE.entropy(tick.t1)) for tick in path)


def _invariants(tau: float) -> float:
    mu = _cloud(200, 1.6, 0.4)
    nu = _jko(0.0, 1.0, Hermite(3), inner_steps=2)(mu, 0.0, tau).mu
    gaps = (nu.mean - mu.mean, nu.cov.diagonal().sum() - mu.cov.diagonal().sum())
    return max(gap.abs().max().item() for gap in gaps)


def _coulomb(parallel: float) -> float:
    """dP∥/dt over a small step, P⊥ = (3 − P∥)/2."""
    mu, tau = _cloud(2000, parallel, (3 - parallel) / 2, (3 - parallel) / 2), 1e-3
    P = mu.cov
    rate = (_jko(-3.0, 1.0, Hermite(2))(mu, 0.0, tau).mu.cov - P)[0, 0].item() / tau
    closed, _ = exact.landau.coulomb_rates(P[0, 0].item(), (P[1, 1] + P[2, 2]).item() / 2)
    return abs(rate / closed - 1)
