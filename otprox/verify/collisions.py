"""Claims about Coulomb collisions: rates of particles in closed form, and steps that keep the invariants."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import exact
from ..conservative import Conservative, DiscreteGradient, Midpoint
from ..functionals import Blob, Entropy
from ..measures import Measure, Particles
from ..metrics import Landau
from ..scores import GaussianFit
from ..steps import Drift
from .case import Case
from .scenes import march

COULOMB, BLOB = Landau(-3.0), Blob(0.6)


def collisions() -> list[Case]:
    steps = "identity, each of 10 steps"
    return [
        Case("Landau: midpoint rule in time", "Runge–Kutta of order 4", (0.4, 0.2, 0.1), _in_time(Midpoint), order=2.0),
        Case(
            "Landau: discrete gradient",
            "Runge–Kutta of order 4",
            (0.4, 0.2, 0.1),
            _in_time(DiscreteGradient),
            order=2.0,
        ),
        Case("Landau: energy of the midpoint rule", steps, (1.0, 0.1), _energy(Midpoint), within=1e-8),
        Case("Landau: energy of a discrete gradient", steps, (1.0, 0.1), _energy(DiscreteGradient), within=1e-8),
        Case("Landau: F rises by no discrete gradient", steps, (2.0, 1.0, 0.1), _rise, within=0.0),
        Case("Landau: Coulomb rates, 10⁴ particles", "NRL, in standard errors", (0.5, 2.0), _rate_error, within=3.0),
    ]


def _cloud() -> Particles:
    x = torch.randn(30, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Particles(x * x.new_tensor([1.5, 0.7, 0.7]))


def _in_time(kind: type[Conservative]) -> Callable[[float], float]:
    def velocity(t: float, mu: Measure, x: Tensor) -> Tensor:
        return COULOMB.descent(BLOB, mu).field(x)

    def error(tau: float) -> float:
        reference = march(Drift(velocity, order=4), _cloud(), 0.1, 0.8)
        return (march(kind(BLOB, COULOMB), _cloud(), tau, 0.8).points - reference.points).abs().max().item()

    return error


def _path(step: Conservative, tau: float) -> list[Particles]:
    path = [_cloud()]
    for k in range(10):
        path.append(step(path[-1], k * tau, (k + 1) * tau).mu)  # type: ignore[arg-type]
    return path


def _energy(kind: type[Conservative]) -> Callable[[float], float]:
    """The drift of the energy, over what an explicit step with the same velocity adds; or that of the mean."""

    def error(tau: float) -> float:
        path, worst = _path(kind(BLOB, COULOMB), tau), 0.0
        for mu, nu in zip(path, path[1:], strict=False):
            drift = (nu.w * (nu.x.square() - mu.x.square()).sum(-1)).sum().abs()
            explicit = (nu.w * (nu.x - mu.x).square().sum(-1)).sum()
            worst = max(worst, (drift / explicit).item(), (nu.mean - mu.mean).abs().max().item())
        return worst

    return error


def _rise(tau: float) -> float:
    values = torch.stack([BLOB(mu) for mu in _path(DiscreteGradient(BLOB, COULOMB), tau)])
    return values.diff().clamp_min(0).max().item()


def _rate_error(parallel: float) -> float:
    """dP∥/dt against the closed form with P⊥ = (3 − P∥)/2; ten clouds of a tenth give the standard error."""
    closed, _ = exact.landau.coulomb_rates(parallel, (3 - parallel) / 2)
    few = torch.tensor([_rate(1000, parallel, seed) for seed in range(1, 11)])
    return abs(_rate(10_000, parallel, 0) - closed) / (few.std().item() / 10**0.5)


def _rate(n: int, parallel: float, seed: int) -> float:
    v = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mu = Particles(v * v.new_tensor([parallel, (3 - parallel) / 2, (3 - parallel) / 2]).sqrt())
    velocity = COULOMB.descent(Entropy(score=GaussianFit()), mu).field(mu.points)
    return 2 * (mu.w * (mu.x - mu.mean)[:, 0] * velocity[:, 0]).sum().item()
