"""Claims about particles in the metric of collisions."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .. import exact, schemes
from ..exact.landau import BKW
from ..flow import flow, record
from ..measures import Gaussian, Grid, Measure, Particles
from ..pairwise import gaussian_spread
from ..steps import Drift, Forward
from .case import Case
from .scenes import march

PLANE, SPACE = BKW(2, 1 / 16), BKW(3, 1 / 24, K0=0.8)


def landau() -> list[Case]:
    """Particles at the centres of n cells an axis, of blobs 0.8·h^0.99 wide for cells h wide."""
    return [*bkw(), *moments(), *time_steps()]


def bkw() -> list[Case]:
    def in_space(n: float) -> float:
        grid = _cells(PLANE, n)
        new = march(_scheme(PLANE, grid), _start(PLANE, grid), 0.02, 1.0)
        exactly = PLANE.density(_cells(PLANE, 100).points(new.anchor), 1.0)
        return ((_blobs(new, _width(grid)) - exactly).norm() / exactly.norm()).item()

    def entropy(order: int) -> Callable[[float], float]:
        def error(n: float) -> float:
            grid = _cells(PLANE, n)
            step = _scheme(PLANE, grid, order)
            run = record(
                flow(step, _start(PLANE, grid), [0.05 * k for k in range(41)]), H=lambda tick: step.F(tick.after)
            )
            exactly = [PLANE.entropy(t) for t in run.times.tolist()]
            return (run.series["H"] - run.series["H"].new_tensor(exactly)).abs().max().item()

        return error

    def carried(n: float) -> float:
        grid = _cells(PLANE, n)
        start = _start(PLANE, grid)
        mu = Particles(start.x, start.w, log_density=PLANE.log_density(start.x, 0.0))
        new = march(_scheme(PLANE, grid, 4), mu, 0.02, 0.6)
        return abs(new.entropy().item() - PLANE.entropy(0.6))

    path = "BKW in the plane, 0 < t ≤ 2"
    return [
        Case("Landau: f of blobs in L2", "BKW in the plane, t = 1", (40, 60, 80), in_space, order=2.0),
        Case("Landau: entropy of blobs", path, (30, 60), entropy(2), order=2.0, slack=0.3),
        Case("Landau: entropy of blobs, extrapolated in the width", path, (80,), entropy(4), within=1e-3),
        Case("Landau: entropy of the density carried", "BKW in the plane, t = 0.6", (50,), carried, within=1e-3),
    ]


def moments() -> list[Case]:
    def fourth(solution: BKW) -> Callable[[float], float]:
        """Of E|v|⁴, relative, which relaxes alike for every radial law."""

        def error(n: float) -> float:
            grid = _cells(solution, n)
            new = _march_in_order_two(_scheme(solution, grid, 4), _start(solution, grid), 0.1)
            m4 = solution.moment(2, 0.0)
            want = exact.landau.radial_fourth_moment(m4, 1.0, solution.d, strength=solution.strength)
            return abs(new.expect(lambda v: v.square().sum(-1) ** 2).item() / want - 1)

        return error

    def covariance(d: int) -> Callable[[float], float]:
        def error(n: float) -> float:
            P = torch.diag(torch.tensor([1.5, *[0.75] * (d - 1)], dtype=torch.float64))
            grid = Grid((-5.5,) * d, (5.5,) * d, (int(n),) * d)
            v = grid.points(P)
            mu = Particles(v, torch.softmax(Gaussian(P.new_zeros(d), P).log_prob(v), -1))
            scheme = schemes.landau(0.0, _width(grid), strength=0.125 / d, order=4)  # anisotropy decays as e^{−t/2}
            new = _march_in_order_two(scheme, mu, 0.2)
            return (new.cov - exact.landau.covariance(P, 1.0, strength=0.125 / d)).abs().max().item()

        return error

    law = "Ornstein–Uhlenbeck law, t = 1"
    return [
        Case("Landau: E|v|⁴ in the plane", law, (30, 40, 60), fourth(PLANE), order=4.0, slack=0.3),
        Case("Landau: E|v|⁴ in space", law, (14,), fourth(SPACE), within=7e-3),
        Case("Landau: anisotropy in the plane", "e^{−4dCt}", (44,), covariance(2), within=2e-3),
        Case("Landau: anisotropy in space", "e^{−4dCt}", (20,), covariance(3), within=2e-2),
    ]


def time_steps() -> list[Case]:
    grid = _cells(PLANE, 20)
    mu, scheme = _start(PLANE, grid), _scheme(PLANE, grid)

    def in_time(tau: float) -> float:
        reference = march(Drift(_velocity(scheme), order=4), mu, 0.1, 0.4)
        return (march(scheme, mu, tau, 0.4).points - reference.points).abs().max().item()

    def growth(tau: float) -> float:
        v, new = _velocity(scheme)(0.0, mu, mu.x), scheme(mu, 0.0, tau).mu
        added = new.expect(lambda x: x.square().sum(-1)) - mu.expect(lambda x: x.square().sum(-1))
        expected = tau**2 * (mu.w * v.square().sum(-1)).sum()
        return max((added / expected - 1).abs().item(), new.mean.abs().max().item())

    return [
        Case("Landau: forward Euler in time", "Runge–Kutta of order 4", (0.1, 0.05, 0.025), in_time, order=1.0),
        Case("Landau: momentum, and energy growth of tau²/2 Σw|v|²", "identity", (0.2, 0.05), growth, within=1e-9),
    ]


def _cells(solution: BKW, n: float) -> Grid:
    return Grid((-4.0,) * solution.d, (4.0,) * solution.d, (int(n),) * solution.d)


def _start(solution: BKW, grid: Grid) -> Particles:
    return solution.particles(grid, 0.0, like=torch.zeros((), dtype=torch.float64))


def _scheme(solution: BKW, grid: Grid, order: int = 2) -> Forward:
    return schemes.landau(0.0, _width(grid), strength=solution.strength, order=4 if order == 4 else 2)


def _width(grid: Grid) -> float:
    return 0.8 * grid.spacing[0] ** 0.99


def _velocity(scheme: Forward) -> Callable[[float, Measure, Tensor], Tensor]:
    return lambda t, mu, x: scheme.metric.descent(scheme.F, mu).field(x)  # type: ignore[attr-defined]


def _march_in_order_two(scheme: Forward, mu: Measure, tau: float) -> Measure:
    return march(Drift(_velocity(scheme), order=2), mu, tau, 1.0)


def _blobs(mu: Measure, width: float) -> Tensor:
    """φ∗μ at the centres of 100 × 100 cells, flat."""
    axes = _cells(PLANE, 100).centers(mu.anchor)
    return gaussian_spread(mu.points, mu.weights, axes, width).flatten() / (2 * math.pi * width**2)
