"""Implicit steps of densities that interact: the field in which a density is optimal must be the one that it makes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ..functionals import Functional, Potential
from ..functionals.base import Sum
from ..measures import Density, Grid, Measure
from ..measures.remap import interpolate
from ..measures.transport import axes
from ..metrics import Metric, Wasserstein
from .anderson import Anderson
from .base import ConvergenceWarning, OnFailure, Out, Solver, Stats, check_tau, report, require, slowest, warm_start
from .dynamic import Dynamic
from .kantorovich import Kantorovich
from .scaling import split

INNER: tuple[Solver, ...] = (Kantorovich(), Dynamic())
SHORTEST = 2.0**-20  # step of the iteration below which nothing is left to gain
NOISE = 1e-3  # the part of d²/(2τ) by which the steps of `inner` may be off, while the residual falls


@dataclass(frozen=True, kw_only=True)
class SelfConsistent:
    """argmin_ν E(ν), E = R + G + d²(μ, ·)/(2·tau), on a Density: R has an exact step, and G is smooth, as interactions.

    Let ν(Φ) = argmin_ν R(ν) + ∫Φ dν + d²(μ, ν)/(2·tau), which the solver `inner` computes (when None, `Kantorovich`, or
    `Dynamic` where that declines). The minimiser is the ν(Φ) that makes its own field, Φ = δG/δν:

        Φ ← Φ + θ·(δG/δν − Φ),    δG/δν at ν(Φ).

    As −Φ is the derivative of h = R + d²(μ, ·)/(2·tau) at ν(Φ), this is mirror descent of E with the mirror map h: E
    falls at every step with (1/θ − 1)·h − G convex, that is for θ = 1 where G is concave, as for attraction by |x|²,
    and for some θ where G is smooth relative to R or to the transport (Bauschke, Bolte and Teboulle 2017; Lu, Freund
    and Nesterov 2018). θ starts at 1, and Φ is extrapolated from the last `memory` steps (Anderson); where E has risen
    above its least value the point is taken back, item by item, first for the step without extrapolation, then for half
    of it. `inner` is exact to a part of E only, so that while the residual falls, rises below d²(μ, ν)/(2000·tau) pass.

    G are the terms with `kl_smooth`: Interaction, and so the quadratic part of an MMD. The result is ν(Φ), with the
    mass and sign that `inner` gives. It has converged when `inner` has, and `residual` = tau·(∫⟨∇r, Q∇r⟩dν)^½ with
    r = δG/δν − Φ, by how much the force that is left over would move ν, is at most `tol` of d(μ, ν). It bounds
    (1 + λ·tau) times the distance of ν from the minimiser where E − d²(μ, ·)/(2·tau) is λ-convex along generalised
    geodesics; where it is not known that tau < −1/λ, ν may be a local minimum. `iterations` are those of `inner`;
    `objective`, `distance2`, `map` and `potentials` are those of the step. It runs under no_grad: results are constants
    to autograd.
    """

    inner: Solver | None = None
    tol: float = 1e-4
    max_iter: int = 100
    memory: int = 5
    on_failure: OnFailure = "warn"

    def __post_init__(self) -> None:
        if isinstance(self.inner, type) or not isinstance(self.inner, Solver | None):
            raise TypeError(f"inner must be a solver such as solvers.Kantorovich(), not {self.inner!r}")
        if not self.tol > 0 or self.max_iter < 1 or self.memory < 0:
            raise ValueError(
                "SelfConsistent needs tol > 0, max_iter ≥ 1 and memory ≥ 0, not "
                f"{self.tol}, {self.max_iter} and {self.memory}"
            )

    def supports(self, F: Functional, metric: Metric, mu: Measure) -> str | None:
        if not isinstance(mu, Density):
            return f"it works on a Density on a Grid, not on {type(mu).__name__}"
        if not isinstance(metric, Wasserstein):
            return f"it computes steps in the metric Wasserstein, not {type(metric).__name__}"
        if split(F)[1] is None:
            return "F makes no field: none of its terms is an interaction, so a solver of the others is enough"
        found = self._inner(F, metric, mu)
        return found if isinstance(found, str) else None

    def _inner(self, F: Functional, metric: Metric, mu: Density) -> Solver | str:
        """The solver of the step in a given field, or why there is none."""
        rest = split(F)[0] + Potential(CellField(torch.zeros_like(mu.values), mu.grid))
        refusals = []
        for solver in INNER if self.inner is None else (self.inner,):
            reason = solver.supports(rest, metric, mu)
            if reason is None:
                return solver
            refusals.append(f"{type(solver).__name__} declines: {reason}")
        return "beside the interactions, " + "; ".join(refusals)

    @torch.no_grad()
    def __call__(self, F: Functional, metric: Metric, mu: Measure, tau: float, last: Any = None) -> Out:
        require(self, F, metric, mu)
        check_tau(tau, F, slowest(metric))
        assert isinstance(mu, Density) and isinstance(metric, Wasserstein)
        inner = self._inner(F, metric, mu)
        assert not isinstance(inner, str)
        problem = Problem.of(F, inner, metric, mu, tau)
        start = problem.field(mu)
        ahead = warm_start(last, "ahead", start)
        point, out, iterations = self._descend(problem, start if ahead is None else start + ahead, last)
        stats = replace(
            out.stats,
            converged=point.exact & self._agrees(point, mu),
            iterations=iterations,
            residual=point.residual,
            objective=point.objective,
            distance2=point.distance2,
            message=f"force that is left over; {type(inner).__name__}: {out.stats.message}",
            warm={**out.stats.warm, "ahead": point.field - start},
        )
        nu = mu.with_state(values=point.rho.reshape(mu.values.shape))
        return Out(nu, report(stats, self, "raise max_iter or tol, or take a smaller tau", self.on_failure))

    def _descend(self, problem: Problem, field: Tensor, last: Any) -> tuple[Point, Out, Tensor]:
        """From a field on, item by item: the last point, what `inner` gave there, and its iterations in all."""
        best, out = problem.at(field, last)
        iterations, mixing = out.stats.iterations, Anderson(self.memory)
        theta, worse, least = torch.ones_like(best.energy), torch.zeros_like(best.exact), best.energy
        for _ in range(1, self.max_iter):
            done = self._agrees(best, problem.mu) | (theta < SHORTEST)
            if bool(done.all()):
                break
            plain = best.field + theta[..., None] * (best.made - best.field)
            field = mixing.extrapolate(best.field, plain, best.rho, worse)
            mixed = (field != plain).any(-1)
            here, out = problem.at(torch.where(done[..., None], best.field, field), out.stats)
            iterations = iterations + torch.where(done, 0, out.stats.iterations)
            noise = torch.where(here.residual < best.residual, NOISE / (2 * problem.tau) * here.distance2, 0)
            worse = (here.energy > least + here.rounding + noise) & ~done
            theta = torch.where(worse & ~mixed, theta / 2, theta)
            best = best.where(worse | done, here)
            least = torch.minimum(least, best.energy)
        if bool(worse.any()):
            out = problem.at(best.field, out.stats)[1]
        return best, out, iterations

    def _agrees(self, point: Point, mu: Density) -> Tensor:
        """Whether the force that is left moves ν by less than `tol` of the step, or √eps of a cell for rounding."""
        least = torch.finfo(point.residual.dtype).eps ** 0.5 * min(mu.grid.spacing)
        return point.residual <= (self.tol * point.distance2.clamp_min(0).sqrt()).clamp_min(least)


@dataclass(frozen=True, eq=False)
class Point:
    """ν(Φ) at a field Φ, the field that it makes, and E; fields and densities are (*batch, n), the others (*batch,)."""

    field: Tensor
    rho: Tensor
    made: Tensor
    energy: Tensor
    objective: Tensor
    distance2: Tensor
    residual: Tensor
    rounding: Tensor  # of the energy
    exact: Tensor  # whether `inner` has converged

    def where(self, kept: Tensor, other: Point) -> Point:
        """This point for the items that are kept, the other one for the rest."""
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return Point(*(torch.where(kept[..., None] if a.ndim > kept.ndim else kept, a, b) for a, b in pairs))


@dataclass(frozen=True, eq=False)
class Problem:
    """One step: F as a potential V on the cells, G, and the other terms; with `inner`, which solves it without G."""

    others: tuple[tuple[float, Functional], ...]
    V: Tensor
    G: Functional
    inner: Solver
    metric: Wasserstein
    mu: Density
    tau: float

    @classmethod
    def of(cls, F: Functional, inner: Solver, metric: Wasserstein, mu: Density, tau: float) -> Problem:
        local, G = split(F)
        assert G is not None
        V = torch.zeros_like(mu.masses)
        for c, f in local.terms:
            V = V + c * f.first_variation(mu) if isinstance(f, Potential) else V
        others = tuple((c, f) for c, f in local.terms if not isinstance(f, Potential))
        return cls(others, V, G, inner, metric, mu, tau)

    def field(self, nu: Density) -> Tensor:
        """δG/δν at the cells, of mean 0 under ν."""
        made = self.G.first_variation(nu)
        return made - (nu.masses * made).sum(-1, keepdim=True)

    def at(self, field: Tensor, last: Any) -> tuple[Point, Out]:
        potential = Potential(CellField((self.V + field).reshape(self.mu.values.shape), self.mu.grid))
        F = Sum((*(c * f for c, f in self.others), potential))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # only the last one counts, and is told in the stats
            out = self.inner(F, self.metric, self.mu, self.tau, last)
        nu, stats = out.mu, out.stats
        assert isinstance(nu, Density)
        made = self.field(nu)
        objective = stats.objective - (nu.masses * field).sum(-1) + self.G(nu)
        energy = objective + (self._distance2(nu, stats) - stats.distance2) / (2 * self.tau)
        rounding = stats.residual.abs() + 1e2 * torch.finfo(energy.dtype).eps * (1 + energy.abs())
        residual = self.tau * self._size(made - field, nu)
        rho = nu.values.flatten(-nu.dim)
        return Point(field, rho, made, energy, objective, stats.distance2, residual, rounding, stats.converged), out

    def _distance2(self, nu: Density, stats: Stats) -> Tensor:
        """d²(μ, ν) by the potentials of the transport, where they are known: its error is then of second order."""
        if stats.potentials is None:
            return stats.distance2
        f, g = stats.potentials
        return (self.mu.masses * f).sum(-1) + (nu.masses * g).sum(-1)

    def _size(self, r: Tensor, nu: Density) -> Tensor:
        """(∫⟨∇r, Q∇r⟩dν)^½."""
        r = r.reshape(nu.values.shape)
        slopes = torch.stack([axis.slope(r).flatten(-nu.dim) for axis in axes(nu.grid)], -1)
        return (nu.masses * (slopes * self.metric.onsager(nu, slopes)).sum(-1)).sum(-1).clamp_min(0).sqrt()


@dataclass(frozen=True, eq=False)
class CellField:
    """A potential by its values (*batch, *shape) at the cells of a grid, multilinear between their centres."""

    values: Tensor
    grid: Grid

    def __call__(self, x: Tensor) -> Tensor:
        return interpolate(self.values, self.grid, x)
