"""Entropic transport between two given measures: its value, by the loop of `Scaling`."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from ..domains import Box, Euclidean
from ..measures import Density, Measure, Particles
from ..measures.base import check_alike, common_batch
from ..measures.covariance import solve_rows
from ..metrics import Entropic, Wasserstein
from ..pairwise import Engine
from .annealing import Level, solve
from .base import ConvergenceWarning
from .gibbs import CloudKernel, Gibbs
from .sinkhorn import Marginal, Problem, Solution, half_self, pairing
from .support import Cells, Support


def entropic_cost(
    mu: Measure,
    nu: Measure,
    metric: Entropic,
    *,
    tol: float = 1e-5,
    max_iter: int = 2000,
    memory: int = 10,
    engine: Engine = "auto",
) -> Tensor:
    """OT(μ, ν) as the reference of `metric` defines it, (*batch,), between Densities on one grid or Particles.

    "debiased" is the Sinkhorn divergence (Feydy et al. 2019): non-negative, 0 only for μ = ν, W2² as reg → 0. Between
    particles the entropies of plans are those of weights, so "lebesgue" is refused there. It stops at a marginal error
    of `tol` in L1, to whose square the value is accurate; ConvergenceWarning when it does not get there.
    """
    check_alike(nu.anchor, "the second measure", mu.anchor)
    if not isinstance(metric.base, Wasserstein):
        raise TypeError(f"the base {type(metric.base).__name__} acts over an interval: use metric.over(t0, t1)")
    with torch.no_grad():
        supports, logs = _posed(mu, nu, metric, engine)
        problem = Problem(supports[0].kernel(metric.reg), logs[0], Marginal(logs[1]))
        found, _ = solve(Level(problem, supports[0], metric.reg), None, tol, max_iter, memory)
        if not bool(found.converged.all()):
            warnings.warn(
                f"entropic_cost stopped after {int(found.iterations.max())} iterations with marginal error "
                f"{found.residual.max().item():.3g}; raise max_iter or tol, or take a larger reg",
                ConvergenceWarning,
                stacklevel=2,
            )
        return metric.reg * _value(problem, found, supports, metric)


@dataclass(frozen=True, eq=False)
class Clouds(Support):
    """Two clouds of points (*batch, n, d) and (*batch, m, d), each point counted as 1, cost |x − y|²."""

    x: Tensor
    y: Tensor
    engine: Engine

    @property
    def extent(self) -> float:
        both = torch.cat([self.x.flatten(0, -2), self.y.flatten(0, -2)])
        return (both.amax(0) - both.amin(0)).square().sum().item()

    @property
    def resolution(self) -> float:
        return 0.0

    def kernel(self, reg: float) -> Gibbs:
        return CloudKernel(self.x, self.y, reg, engine=self.engine)


def coordinates(mu: Particles, base: Wasserstein) -> Tensor:
    """The points in coordinates where the cost of `base` is |x − y|²."""
    factor = base.factor(mu)
    return mu.x if factor is None else solve_rows(factor, mu.x)


def log_weights(mu: Particles) -> Tensor:
    """log w, that of the smallest positive number where w = 0."""
    return mu.w.clamp_min(torch.finfo(mu.w.dtype).tiny).log()


Supports = tuple[Support, Support, Support]


def _posed(mu: Measure, nu: Measure, metric: Entropic, engine: Engine) -> tuple[Supports, tuple[Tensor, Tensor]]:
    """The supports of (μ, ν), (μ, μ) and (ν, ν), and the two log-densities against their base measures."""
    base = metric.base
    assert isinstance(base, Wasserstein)
    batch = common_batch("μ", mu.batch, "ν", nu.batch)
    if isinstance(mu, Density) and isinstance(nu, Density):
        if mu.grid != nu.grid:
            raise ValueError(f"the densities live on different grids, {mu.grid} and {nu.grid}: use nu.to_density(grid)")
        cells = Cells.of(mu, base)
        n = (*batch, mu.grid.n)
        return (cells, cells, cells), (mu.log_prob().expand(n), nu.log_prob().expand(n))
    if not isinstance(mu, Particles) or not isinstance(nu, Particles):
        raise TypeError(f"both measures must be Densities or Particles, not {type(mu).__name__}, {type(nu).__name__}")
    if metric.reference == "lebesgue":
        raise ValueError("between points the reference 'lebesgue' is infinite; use 'product' or 'debiased'")
    for points in (mu, nu):
        if not isinstance(points.domain, Euclidean | Box):
            raise TypeError(f"the cost between points is |x − y|², not that of a {type(points.domain).__name__}")
    x, y = (coordinates(points, base).expand(*batch, *points.x.shape[-2:]) for points in (mu, nu))
    a, b = (log_weights(points).expand(*batch, points.x.shape[-2]) for points in (mu, nu))
    return (Clouds(x, y, engine), Clouds(x, x, engine), Clouds(y, y, engine)), (a, b)


def _value(problem: Problem, found: Solution, supports: tuple[Support, ...], metric: Entropic) -> Tensor:
    """OT/reg: the dual value, whose error is the square of that of the potentials."""
    volumes, log_nu = problem.kernel.volumes, problem.prox(problem.log_mu)
    plan = found.plan
    excess = problem.integral(plan.nu) - 1  # of the mass of u K v
    cost = pairing(problem.log_mu, plan.log_u, volumes[0]) + pairing(log_nu, plan.log_v, volumes[1]) - excess
    if metric.reference == "lebesgue":
        return cost
    if metric.reference == "product":
        return cost - pairing(problem.log_mu, problem.log_mu, volumes[0]) - pairing(log_nu, log_nu, volumes[1])
    ends = ((supports[1], problem.log_mu), (supports[2], log_nu))
    halves = [half_self(support.kernel(metric.reg), log, None)[0] for support, log in ends]
    return cost - halves[0] - halves[1]
