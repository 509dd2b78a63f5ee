"""Observers: functions of a Tick, to give to `record` by name."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .flow import Observer, Tick
from .functionals import KL, Functional
from .kernels import Kernel
from .measures import Density, Gaussian, Measure, Spectral, distance, trigonometric
from .measures.covariance import factor_inverse, solve_rows, trace
from .metrics import Entropic, Metric, Stein, Wasserstein
from .solvers import ConvergenceWarning, entropic_cost, grid_distance


def mass(tick: Tick) -> Tensor:
    """Total mass of the measure."""
    return tick.after.mass


def mean(tick: Tick) -> Tensor:
    """∫ x dμ, (*batch, d)."""
    return tick.after.mean


def covariance(tick: Tick) -> Tensor:
    """Covariance, (*batch, d, d); of a field with a Spectral one its first row, the two-point function, (*batch, N)."""
    cov: Any = tick.after.cov
    return cov.row() if isinstance(cov, Spectral) else cov


def order(k: int = 1, period: float = 2 * math.pi) -> Observer:
    """The order parameter |∫ e^{2πikx/period} dμ| on a circle, (*batch,): 0 for uniform, 1 for one point (or k).

    On a Density it is that of the trigonometric polynomial with its cell averages.
    """

    def look(tick: Tick) -> Tensor:
        mu, turn = tick.after, 2 * math.pi * k / period
        if mu.dim != 1:
            raise ValueError(f"order is of measures on a circle; this one lives in dimension {mu.dim}")
        both = mu.expect(lambda x: torch.cat([torch.cos(turn * x), torch.sin(turn * x)], -1))
        averaged = mu.grid.spacing[0] * k / period if isinstance(mu, Density) else 0.0
        return both.norm(dim=-1) / torch.sinc(both.new_tensor(averaged))

    return look


def converged(tick: Tick) -> Tensor:
    """Whether every solver of the step converged, (*batch,)."""
    flags = [stats.converged for stats in _stats(tick.stats)]
    return torch.stack(flags).all(0) if flags else torch.ones(tick.after.batch, dtype=torch.bool)


def iterations(tick: Tick) -> Tensor:
    """Solver iterations of the step, summed over its parts, (*batch,)."""
    counts = [stats.iterations for stats in _stats(tick.stats)]
    return torch.stack(counts).sum(0) if counts else torch.zeros(tick.after.batch, dtype=torch.int64)


def energy(F: Functional) -> Observer:
    """F(μ) at the end of the step (at time t1 when F varies)."""
    return lambda tick: F.at(tick.t1)(tick.after)


def at_centres(look: Observer) -> Observer:
    """`look` at Densities on periodic grids as trigonometric polynomials: with their values at cell centres in place of
    cell averages, so that sums over cells are the trapezoidal rule, which for smooth densities converges faster than
    any power of the spacing. `energy(F)` alone has an error of second order in it."""

    def values(mu: Measure) -> Measure:
        if not isinstance(mu, Density) or not all(mu.grid.periodic):
            raise TypeError(f"at_centres needs a Density on a periodic grid, not {type(mu).__name__}")
        return mu.with_state(values=trigonometric.at_centres(mu.values, mu.grid))

    return lambda tick: look(tick._replace(before=values(tick.before), after=values(tick.after)))


def kl(target: Gaussian | Callable[[Tensor], Tensor]) -> Observer:
    """KL(μ | target); up to its normalisation when the target is a callable V = −log density."""
    return energy(KL(target))


def w2(target: Measure, metric: Metric | None = None, *, within: float | None = None) -> Observer:
    """The distance W2(μ, target), not its square.

    Exact for two Gaussians and in 1-D, by POT's linear program for Particles with n ≤ 5000; otherwise TypeError, and
    `gelbrich` gives a lower bound. `metric` Wasserstein(Q) changes the cost to ⟨z, Q⁻¹z⟩.

    With `within`, such as 0.02, two Densities on one grid have a distance too, by `solvers.grid_distance`: a
    ConvergenceWarning tells when its relative error, as estimated, is above that.
    """
    if within is not None and not within > 0:
        raise ValueError(f"within is the relative error that is allowed, such as 0.02, not {within}")

    def look(tick: Tick) -> Tensor:
        mu = tick.after
        if within is not None and isinstance(mu, Density) and isinstance(target, Density) and _curved(mu):
            return _on_grid(mu, target, (metric or Wasserstein()).over(tick.t0, tick.t1), within)
        return distance2(mu, target, metric, tick).clamp_min(0).sqrt()

    return look


def _curved(mu: Density) -> bool:
    """Whether no quantile function gives the distance: in the plane, in space and on a circle."""
    return mu.dim > 1 or mu.grid.periodic[0]


def _on_grid(mu: Density, target: Density, metric: Metric, within: float) -> Tensor:
    found = grid_distance(mu, target, metric)
    least = torch.finfo(found.error.dtype).eps ** 0.5 * min(mu.grid.spacing)
    worst = (found.error / found.distance.clamp_min(least)).max().item()
    if worst > within:
        message = f"W2 on the grid {mu.grid.shape} is known to about {worst:.2g}, relatively, not {within:g}"
        warnings.warn(f"{message}: take finer cells, or a larger within", ConvergenceWarning, stacklevel=3)
    return found.distance


def sinkhorn(target: Measure, reg: float, metric: Wasserstein | None = None) -> Observer:
    """The Sinkhorn divergence OT(μ, σ) − ½OT(μ, μ) − ½OT(σ, σ) to the target σ, not its root; near W2² for small reg.

    Between Densities on one grid, or Particles in any dimension, with memory linear in their number.
    """
    entropic = Entropic(reg, "debiased", metric or Wasserstein())
    return lambda tick: entropic_cost(tick.after, target, entropic)


def gelbrich(target: Measure) -> Observer:
    """W2 between the Gaussians with the moments of μ and of the target: a lower bound of W2 for any pair."""
    return lambda tick: distance.gelbrich_squared(tick.after, target).clamp_min(0).sqrt()


def dissipation(F: Functional, metric: Metric | None = None) -> Observer:
    """∫ ⟨∇φ, K_μ ∇φ⟩ dμ with φ = δF/δμ: the rate −dF/dt at which the flow would lose F.

    In Stein(k) it is the Stein–Fisher information, on particles the squared kernel Stein discrepancy.
    """

    return lambda tick: (metric or Wasserstein()).over(tick.t0, tick.t1).dissipation(F.at(tick.t1), tick.after)


def fisher(target: Gaussian | Callable[[Tensor], Tensor]) -> Observer:
    """Relative Fisher information ∫ |∇ log(μ/target)|² dμ."""
    return dissipation(KL(target))


def ksd(target: Gaussian | Callable[[Tensor], Tensor], kernel: Kernel) -> Observer:
    """The kernel Stein discrepancy (∬⟨∇log(μ/π)(x), k(x, y)∇log(μ/π)(y)⟩ dμ dμ)^½, not its square.

    On particles it needs ∇V of the target only, and counts the pairs i = j (the V-statistic), so that N equal weights
    that sample the target have a discrepancy of order N^−½.
    """
    squared = dissipation(KL(target), Stein(kernel))
    return lambda tick: squared(tick).clamp_min(0).sqrt()


def log_sobolev(F: Functional, metric: Metric | None = None, *, infimum: float = 0.0) -> Observer:
    """∫⟨∇φ, K_μ∇φ⟩dμ / (F(μ) − inf F): the rate at which F − inf F falls along the flow, and an upper bound of every
    constant λ with λ(F − inf F) ≤ the dissipation (for KL in Stein(k), of the Stein log-Sobolev inequality)."""
    rate = dissipation(F, metric)
    return lambda tick: rate(tick) / (F.at(tick.t1)(tick.after) - infimum)


def dissipation_gap(F: Functional, metric: Metric | None = None) -> Observer:
    """F(μ₀) − F(μ₁) − d²(μ₀, μ₁)/(2·tau) over the step: non-negative, up to `rounding`/tau, for an exact Backward step.

    Both values are taken at t1, where Backward takes F.
    """

    def look(tick: Tick) -> Tensor:
        G, tau = F.at(tick.t1), tick.t1 - tick.t0
        return G(tick.before) - G(tick.after) - distance2(tick.before, tick.after, metric, tick) / (2 * tau)

    return look


def evi_gap(F: Functional, sigma: Measure, metric: Metric | None = None, *, convexity: float | None = None) -> Observer:
    """Slack of the evolution variational inequality of a Backward step with λ-convex F, tested against sigma:

    d²(μ₀, σ) − 2·tau·(F(μ₁) − F(σ)) − (1 + λ·tau)·d²(μ₁, σ) − d²(μ₁, μ₀) ≥ −rounding

    (Ambrosio, Gigli, Savaré 2008, section 4.1). λ is `convexity`, or the one that F knows of itself.
    """

    def look(tick: Tick) -> Tensor:
        G, tau = F.at(tick.t1), tick.t1 - tick.t0
        lam = _convexity(G, convexity)
        before, after = (distance2(mu, sigma, metric, tick) for mu in (tick.before, tick.after))
        moved = distance2(tick.before, tick.after, metric, tick)
        return before - 2 * tau * (G(tick.after) - G(sigma)) - (1 + lam * tau) * after - moved

    return look


def forward_backward_gap(
    F: Functional, target: Measure, metric: Metric | None = None, *, convexity: float | None = None
) -> Observer:
    """Slack of (1 − λ·tau)·d²(μ₀, π) − 2·tau·(F(μ₁) − F(π)) − d²(μ₁, π) ≥ −rounding, for forward-backward steps with
    tau < 1/L (Salim, Korba, Luise 2020); λ is the strong convexity of the potential."""

    def look(tick: Tick) -> Tensor:
        G, tau = F.at(tick.t1), tick.t1 - tick.t0
        lam = _convexity(G, convexity)
        before, after = (distance2(mu, target, metric, tick) for mu in (tick.before, tick.after))
        return (1 - lam * tau) * before - 2 * tau * (G(tick.after) - G(target)) - after

    return look


def rounding(tick: Tick) -> Tensor:
    """What arithmetic allows to squared distances: 1000·eps·(Tr Σ + |m|²), the larger of before and after."""
    sizes = [trace(mu.cov) + mu.mean.square().sum(-1) for mu in (tick.before, tick.after)]
    return 1000 * torch.finfo(sizes[0].dtype).eps * torch.maximum(*sizes)


def distance2(mu: Measure, nu: Measure, metric: Metric | None, tick: Tick) -> Tensor:
    """d²(μ, ν) in the metric of the step: W2² after the change of variables z = L⁻¹x, LLᵀ = Q."""
    over = (metric or Wasserstein()).over(tick.t0, tick.t1)
    if not isinstance(over, Wasserstein):
        raise TypeError(f"no distance formula for {type(over).__name__}; give a Wasserstein or Moving metric")
    L = over.factor(mu)
    if L is None:
        return distance.w2_squared(mu, nu)
    return distance.w2_squared(_whitened(mu, L), _whitened(nu, L))


def _whitened(mu: Measure, L: Any) -> Measure:
    if isinstance(mu, Gaussian):
        inverse = factor_inverse(L)
        return mu.affine((inverse @ mu.mean[..., None])[..., 0], inverse)
    return mu.push(lambda x: solve_rows(L, x))


def _convexity(F: Functional, given: float | None) -> float:
    lam = F.convexity() if given is None else given
    if lam is None:
        raise ValueError(f"the convexity of {F} is not known; pass convexity=λ")
    return lam


def _stats(stats: Any) -> list[Any]:
    if isinstance(stats, tuple):
        return [leaf for part in stats for leaf in _stats(part)]
    stats = getattr(stats, "inner", stats)
    return [] if stats is None else [stats]
