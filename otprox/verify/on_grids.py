"""Claims about densities on grids: heat, exact and entropic steps, convex programs and dynamic transport."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch

from .. import exact
from ..functionals import KL, Congestion, Dirichlet, Potential
from ..measures import Density, Gaussian, Grid, Measure, Quantiles
from ..measures.distance import w2_squared
from ..metrics import Entropic
from ..solvers import Convex, benamou_brenier, geodesic
from ..steps import Backward, Heat
from .case import Case


def grids() -> list[Case]:
    def heat(h: float) -> float:
        grid = Grid(-8.0, 8.0, round(16 / h))
        mu = Gaussian([0.3], [[0.5]])
        new = Heat()(mu.to_density(grid), 0.0, 0.4).mu.state()["values"]
        want = exact.gaussian.heat(mu, 0.4).to_density(grid)
        return (new - want.values).abs().sum().item() * grid.volume

    def entropic(tau: float) -> float:
        grid = Grid(-8.0, 8.0, 800)
        mu, target = Gaussian([1.0], [[1.7]]), Gaussian([0.0], [[0.6]])
        new = Backward(KL(target), Entropic(0.2))(mu.to_density(grid), 0.0, tau).mu
        want = exact.gaussian.prox_kl_entropic(mu, target, tau, 0.2, "lebesgue")
        return abs(new.cov.item() - want.cov.item())

    return [
        Case("grid: heat", "Gaussian convolution, L1", (0.2, 0.1, 0.05), heat, order=2.0),
        Case("grid: JKO, τ = 10⁻⁴", "closed form, covariance", (0.25, 0.125), partial(_step, 1e-4), order=2.0),
        Case("grid: JKO, τ = 0.2", "closed form, covariance", (0.25, 0.125), partial(_step, 0.2), order=2.0),
        Case("grid: entropic JKO by scaling", "closed form, variance", (1.0, 0.3, 0.1), entropic, within=1e-3),
    ]


def _step(tau: float, h: float) -> float:
    """Error of the change of covariance in one JKO step on cells of width h, relative to that change."""
    mu, target = (
        Gaussian(torch.tensor(mean, dtype=torch.float64), torch.tensor(cov, dtype=torch.float64))
        for mean, cov in (([0.5, 0.2], [[0.6, 0.2], [0.2, 0.9]]), ([0.3, -0.2], [[1.0, -0.4], [-0.4, 0.8]]))
    )
    n = round(14 / h)
    before = mu.to_density(Grid((-7.0, -7.0), (7.0, 7.0), (n, n)))
    after = Backward(KL(target))(before, 0.0, tau).mu
    moved = Gaussian.fit(after).cov - Gaussian.fit(before).cov
    exactly = exact.gaussian.prox_kl(mu, target, tau).cov - mu.cov
    return ((moved - exactly).abs().max() / exactly.abs().max()).item()


class _Distance:
    """V(x) = |x|, with its form in a convex program."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x.abs().sum(-1)

    def atom(self, x: Any) -> Any:
        import cvxpy as cp

        return cp.abs(x)


def programs() -> list[Case]:
    def crowd(tau: float) -> float:
        start = torch.linspace(-2, 2, 201, dtype=torch.float64)  # of density ¼ · 200/201, gaps of 4/200
        step = Backward(Potential(_Distance()) + Congestion(1.0), solver=Convex(tol=1e-10))
        mu: Measure = Quantiles(start)
        for k in range(round(0.6 / tau)):
            mu = step(mu, k * tau, (k + 1) * tau).mu
        want = exact.diffusion.queue_flow(start, 0.6, density=200 / 201 / 4)
        return (mu.points[:, 0] - want).abs().max().item()

    def film(n: float) -> float:
        source, grid, tau = exact.diffusion.SmythHill(1), Grid(-5.0, 5.0, int(n)), 8.0
        start, end = source.radius(1.0), source.jko(source.radius(1.0), tau)
        values = source.density(grid.points(start.new_zeros(1)), radius=start)
        new = Backward(Dirichlet(), solver=Convex())(Density(values / values.sum() / grid.volume, grid), 0.0, tau).mu
        want = source.density(new.points, radius=end)
        return (new.state()["values"] - want).abs().sum().item() * grid.volume

    return [
        Case("convex: a crowd on the line", "its motion, at t = 0.6", (0.6, 0.3, 0.1), crowd, within=1e-6),
        Case("convex: Smyth–Hill to Smyth–Hill, L1", "closed form", (50, 100, 200), film, within=5e-3),
    ]


def dynamic() -> list[Case]:
    def waves(n: int) -> list[Density]:
        grid = Grid(0.0, 1.0, n)
        x = grid.points(torch.zeros((), dtype=torch.float64))[:, 0]
        return [Density(1 + sign * 0.5 * torch.cos(math.pi * x), grid) for sign in (1, -1)]

    def distance(dt: float) -> float:
        found = geodesic(*waves(128), inner_steps=round(1 / dt), tol=1e-5).distance2
        return abs(found.item() / w2_squared(*waves(2000)).item() - 1)

    def cost(dt: float) -> float:
        game = exact.games.LinearQuadraticGame(mean=1.0, variance=0.5, goal=-1.0, pull=2.0, horizon=1.0, viscosity=0.2)
        crowd = Gaussian([game.mean], [[game.variance]]).to_density(Grid(-4.0, 5.0, 128))
        end = Potential(lambda x: game.pull / 2 * (x[..., 0] - game.goal) ** 2)
        curve = benamou_brenier(crowd, end, inner_steps=round(1 / dt), viscosity=game.viscosity, tol=1e-4)
        return abs(curve.stats.objective.item() / game.value - 1)

    return [
        Case("dynamic: W2² of smooth densities", "quantile functions", (1 / 2, 1 / 4, 1 / 8), distance, order=2.0),
        Case("dynamic: a mean-field game, its cost", "Riccati's equation", (1 / 16, 1 / 32), cost, within=3e-3),
    ]
