"""Claims about estimated scores, and about the entropy of particles that move along them."""

from __future__ import annotations

import torch

from ..exact.landau import BKW
from ..flow import flow, record
from ..functionals import Entropy, Varying
from ..measures import Gaussian, Grid, Particles
from ..metrics import Landau
from ..scores import KDE, GaussianFit, RandomFeatures
from ..steps import Forward, Heat
from .case import Case
from .scenes import march, two_gaussians

PLANE = BKW(2, 1 / 16)


def scores() -> list[Case]:
    """Particles at the centres of cells, weighed by BKW's density, which they carry."""
    return [
        Case("scores: heat by a Gaussian fit, covariance", "heat flow, t = 1", (0.1, 0.05, 0.025), _heat, order=1.0),
        Case("scores: kernel density on a grid", "score of BKW, t = 5", (0.4, 0.3, 0.2), _kernel, order=2.0, slack=0.3),
        Case("scores: random features on a grid", "score of BKW, t = 5", (60,), _features, within=0.01),
        Case("scores: entropy carried by BKW's own score", "BKW, 0 < t ≤ 1", (0.1, 0.05), _known, within=1e-3),
        Case("scores: entropy carried by random features", "BKW, 1 < t ≤ 2", (0.05,), _fitted, within=1e-3),
    ]


def _heat(tau: float) -> float:
    mu, _ = two_gaussians()
    cloud = mu.to_particles(200, torch.Generator().manual_seed(0))
    want = Heat()(Gaussian.fit(cloud), 0.0, 1.0).mu.cov
    return (march(Forward(Entropy(score=GaussianFit())), cloud, tau, 1.0).cov - want).abs().max().item()


def _kernel(width: float) -> float:
    mu, exact = _scene(60, 5.0)
    return _gap(mu, KDE(width).fit(mu)(mu.x), exact)


def _features(n: float) -> float:
    mu, exact = _scene(int(n), 5.0)
    return _gap(mu, RandomFeatures().fit(mu)(mu.x), exact)


def _known(tau: float) -> float:
    own = Varying(lambda t: Entropy(score=lambda v: PLANE.score(v, t)))
    return _entropy(Forward(own, Landau(0.0, PLANE.strength)), tau, 0.0)


def _fitted(tau: float) -> float:
    return _entropy(Forward(Entropy(score=RandomFeatures()), Landau(0.0, PLANE.strength)), tau, 1.0)


def _entropy(step: Forward, tau: float, start: float) -> float:
    """The largest error of Σ w log f over the ticks of a unit of time."""
    mu, _ = _scene(60, start)
    times = [start + tau * k for k in range(round(1 / tau) + 1)]
    run = record(flow(step, mu, times), H=lambda tick: tick.after.entropy())
    exact = [PLANE.entropy(t) for t in run.times.tolist()]
    return (run.series["H"] - run.series["H"].new_tensor(exact)).abs().max().item()


def _scene(n: int, t: float) -> tuple[Particles, torch.Tensor]:
    grid = Grid((-4.5, -4.5), (4.5, 4.5), (n, n))
    mu = PLANE.particles(grid, t, like=torch.empty(0, dtype=torch.float64))
    return mu.with_state(log_density=PLANE.log_density(mu.x, t)), PLANE.score(mu.x, t)


def _gap(mu: Particles, s: torch.Tensor, exact: torch.Tensor) -> float:
    """√(E|s − s*|²/E|s*|²)."""
    return (mu.w @ (s - exact).square().sum(-1) / (mu.w @ exact.square().sum(-1))).sqrt().item()
