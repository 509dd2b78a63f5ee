"""The implicit step as a convex program (CVXPY): a reference, small on a grid and of linear size on quantiles."""

from __future__ import annotations

import math
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from ..functionals import Functional
from ..functionals.atom import Atom, NotConvex
from ..functionals.local_prox import offers
from ..measures import Density, Measure, Quantiles
from ..measures.covariance import dense
from ..metrics import Entropic, Metric, Wasserstein
from .base import ConvergenceError, OnFailure, Out, Stats, check_tau, report, require, slowest
from .programs import (
    Program,
    Solution,
    entropic_program,
    numbers,
    quantile_program,
    structure,
    transport_program,
)

KEPT = 8  # programs that a solver keeps compiled


class FrozenWarning(UserWarning):
    """The exact step moved mass by less than half a cell: on a fixed grid it freezes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Convex:
    """argmin_ν F(ν) + d²(μ, ν)/(2·tau) as a disciplined convex program, by CVXPY with Clarabel.

    On a Density: over all transport plans between the n cells, with Wasserstein or Entropic ("lebesgue" or "product");
    n² at most `max_entries`. The exact W2 step on a fixed grid freezes when it moves mass by less than half a cell, and
    a FrozenWarning says so. On Quantiles: over the n ≤ `max_quantiles` sorted positions. Functionals enter by their
    `atom(mu, c)`.

    A program is compiled once per shape, structure of F and metric, and solved again through its parameters; this
    instance keeps the last few. Only the status "optimal" converges. "optimal_inaccurate" and "user_limit" give a
    ConvergenceWarning with the solver's status, or an error with on_failure="raise"; without a solution there is always
    a ConvergenceError. `residual` is the larger of Clarabel's relative duality gap and residuals of feasibility (NaN
    with other solvers); interior points stall when masses span many orders of magnitude, as in wide two-dimensional
    grids. `tol` sets its tolerances on these, `max_iter` its iterations; unset, they are Clarabel's own.
    Since F + W2²/(2·tau) is convex, a gap g leaves quantiles within √(2·tau·g) of the minimiser (root mean square).
    """

    solver: str = "CLARABEL"
    tol: float | None = None
    max_iter: int | None = None
    max_entries: int = 100_000
    max_quantiles: int = 20_000
    on_failure: OnFailure = "warn"
    _programs: OrderedDict[Hashable, Program] = field(default_factory=OrderedDict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.solver != "CLARABEL" and not (self.tol is None and self.max_iter is None):
            raise ValueError(f"tol and max_iter are Clarabel's; they mean nothing to {self.solver}")

    def supports(self, F: Functional, metric: Metric, mu: Measure) -> str | None:
        if not isinstance(mu, Density | Quantiles):
            return f"it needs a Density on a Grid or Quantiles, not a {type(mu).__name__}"
        reason = self._too_large(mu) or _metric_reason(metric, mu)
        if reason is not None:
            return reason
        try:
            _atoms(F, mu)
        except NotConvex as error:
            return str(error)
        return None

    def __call__(self, F: Functional, metric: Metric, mu: Measure, tau: float, last: Any = None) -> Out:
        require(self, F, metric, mu)
        check_tau(tau, F, slowest(metric.base if isinstance(metric, Entropic) else metric))
        step: Callable[..., Any] = _on_density if isinstance(mu, Density) else _on_quantiles
        new, solutions, distance2, plan = step(self, F, metric, mu, tau)
        stats = Stats(
            converged=_tensor([s.status == "optimal" for s in solutions], mu, torch.bool),
            iterations=_tensor([s.iterations for s in solutions], mu, torch.int64),
            residual=_tensor([s.residual for s in solutions], mu, mu.anchor.dtype),
            objective=F(new) + distance2 / (2 * tau),
            distance2=distance2,
            message=", ".join(sorted({s.status for s in solutions})),
            plan=plan,
        )
        advice = "raise max_iter or tol, rescale the problem, or use Scaling or Quantile"
        return Out(new, report(stats, self, advice, self.on_failure))

    def _too_large(self, mu: Density | Quantiles) -> str | None:
        n = mu.points.shape[-2]
        if isinstance(mu, Density) and n * n > self.max_entries:
            return (
                f"a plan between {n} cells has {n * n} entries, more than max_entries = {self.max_entries}; use "
                "Entropic with Scaling, Quantiles in 1-D, or a coarser grid"
            )
        if isinstance(mu, Quantiles) and n > self.max_quantiles:
            return f"{n} quantiles are more than max_quantiles = {self.max_quantiles}; use Quantile"
        return None

    def program(self, key: Hashable, make: Callable[[], Program]) -> Program:
        """The compiled program of this key, made when it is new; the least recently used one is forgotten."""
        program = self._programs.pop(key, None) or make()
        self._programs[key] = program
        while len(self._programs) > KEPT:
            self._programs.popitem(last=False)
        return program

    def solve(self, program: Program, values: Sequence[Any]) -> Solution:
        """The solution, or ConvergenceError with the solver's status when it has none."""
        options: dict[str, Any] = {} if self.max_iter is None else {"max_iter": self.max_iter}
        if self.solver == "CLARABEL":
            options["accept_unknown"] = True  # a stall gives what it has, as "optimal_inaccurate"
        if self.tol is not None:
            options |= dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), self.tol)
        solution = program.solve(values, self.solver, options)
        if solution.new is None:
            raise ConvergenceError(
                f"{self.solver} found no solution of the implicit step: its status is {solution.status}. The "
                "program is too ill conditioned for it, or F is not bounded below; use Entropic(reg) with Scaling on a "
                "grid, Quantiles in 1-D, or another step size"
            )
        return solution


def _atoms(F: Functional, mu: Measure, scale: float = 1.0) -> list[Atom]:
    for _, f in F.terms:
        if not offers(f, "atom"):
            raise NotConvex(f"{type(f).__name__} has no `atom`, its form in a convex program")
    return [f.atom(mu, scale * c) for c, f in F.terms]  # type: ignore[attr-defined]


def _checked_atoms(F: Functional, mu: Measure, scale: float = 1.0) -> list[Atom]:
    """The atoms of F, refused when their data are NaN or infinite."""
    atoms = _atoms(F, mu, scale)
    for (_, f), atom in zip(F.terms, atoms, strict=True):
        bad = sum(int((~torch.isfinite(torch.as_tensor(part))).sum()) for part in atom.data)
        if bad:
            raise ValueError(
                f"{type(f).__name__} is non-finite, NaN or infinite, at {bad} of its entries in the program"
            )
    return atoms


def _metric_reason(metric: Metric, mu: Density | Quantiles) -> str | None:
    base = metric.base if isinstance(metric, Entropic) else metric
    if not isinstance(base, Wasserstein):
        return f"{type(base).__name__} is not Wasserstein; a Moving metric acts over an interval, .over(t0, t1)"
    if isinstance(metric, Entropic):
        if isinstance(mu, Quantiles):
            return "Entropic has no form on Quantiles; use Wasserstein(), or a Density"
        if metric.reference == "debiased":
            return "the debiased divergence is convex but not a disciplined convex program; use Scaling"
    if isinstance(mu, Density) and base.Q is not None and _periodic(mu) and not _is_diagonal(dense(base.Q)):
        return "Q couples the axes of a periodic grid, and shortest displacements depend on it; use a diagonal Q"
    return None


def _periodic(mu: Density) -> bool:
    return bool(torch.as_tensor(mu.grid.periodic).any())


def _is_diagonal(Q: Tensor) -> bool:
    return not (Q - torch.diag_embed(Q.diagonal(dim1=-2, dim2=-1))).any()


def _on_density(
    solver: Convex, F: Functional, metric: Wasserstein | Entropic, mu: Density, tau: float
) -> tuple[Density, list[Solution], Tensor, Tensor]:
    q, components = _ground_cost(cast(Wasserstein, metric.base if isinstance(metric, Entropic) else metric), mu)
    masses = mu.masses.detach().reshape(len(q), -1).double().cpu()
    if isinstance(metric, Entropic):
        solutions = _entropic(solver, F, metric, mu, tau, q, components, masses)
    else:
        solutions = _transport(solver, F, mu, tau, q, components, masses)
    kernel = torch.stack([torch.as_tensor(s.plan) for s in solutions]).clamp_min(0)
    plan = kernel / kernel.sum(-2, keepdim=True).clamp_min(1e-300) * masses[:, None, :]
    cost = (q[:, :, None, None] * components).sum(1)
    distance2 = (cost * plan).sum((-2, -1))
    if isinstance(metric, Entropic):
        distance2 = distance2 + metric.reg * _plan_entropy(plan, metric, mu.grid.volume)
    else:
        _warn_if_frozen(distance2, cost)
    new = plan.sum(-1)
    values = (new / (new.sum(-1, keepdim=True) * mu.grid.volume)).to(mu.anchor).reshape(mu.values.shape)
    plan = plan.to(mu.anchor).reshape(*mu.batch, *components.shape[1:])
    return mu.with_state(values=values), solutions, distance2.to(mu.anchor).reshape(mu.batch), plan


def _transport(
    solver: Convex, F: Functional, mu: Density, tau: float, q: Tensor, components: Tensor, masses: Tensor
) -> list[Solution]:
    """F + W2²/(2·tau), for each batch item."""
    atoms = _checked_atoms(F, mu)
    key = (Density, mu.grid, q.shape[-1], structure(atoms))
    program = solver.program(key, lambda: transport_program(mu, components, atoms))
    weights = (q[:, :, None] * masses[:, None, :] / (2 * tau)).flatten(-2)
    own = [[m.numpy(), w.numpy()] for m, w in zip(masses, weights, strict=True)]
    return [solver.solve(program, [*o, *numbers(atoms, len(own), i)]) for i, o in enumerate(own)]


def _entropic(
    solver: Convex,
    F: Functional,
    metric: Entropic,
    mu: Density,
    tau: float,
    q: Tensor,
    components: Tensor,
    masses: Tensor,
) -> list[Solution]:
    """(2·tau·F + OT)/reg, for each batch item: scaled so that the entropy of the plan has weight 1."""
    atoms = _checked_atoms(F, mu, 2 * tau / metric.reg)
    key = (Density, mu.grid, metric.reference, q.shape[-1], structure(atoms))
    program = solver.program(key, lambda: entropic_program(mu, components, atoms, metric.reference))
    own = [[m.numpy(), w.numpy()] for m, w in zip(masses, q / metric.reg, strict=True)]
    return [solver.solve(program, [*o, *numbers(atoms, len(own), i)]) for i, o in enumerate(own)]


def _ground_cost(metric: Wasserstein, mu: Density) -> tuple[Tensor, Tensor]:
    """q (items, k) and Z (k, n, n) with cost Σ_a q_a Z_a between cell centres, in float64 on the CPU."""
    x = mu.grid.points(mu.values.detach()).double().cpu()
    z = mu.grid.displacement(x[:, None], x[None])
    items = mu.batch.numel()
    if metric.Q is None:
        return z.new_ones(items, 1), z.square().sum(-1)[None]
    precision = torch.linalg.inv(dense(metric.mobility(mu)).detach().double().cpu())
    a, b = torch.triu_indices(mu.dim, mu.dim)
    q = precision[..., a, b] * torch.where(a == b, 1.0, 2.0)
    return q.expand(*mu.batch, -1).reshape(items, -1), (z[..., a] * z[..., b]).movedim(-1, 0)


def _plan_entropy(plan: Tensor, metric: Entropic, volume: float) -> Tensor:
    """∫π log π of the density π = plan/volume², or KL of the plan relative to its marginals."""
    joint = torch.special.xlogy(plan, plan).sum((-2, -1))
    if metric.reference == "lebesgue":
        return joint - 2 * math.log(volume)
    new, old = plan.sum(-1), plan.sum(-2)
    return joint - torch.special.xlogy(new, new).sum(-1) - torch.special.xlogy(old, old).sum(-1)


def _warn_if_frozen(distance2: Tensor, cost: Tensor) -> None:
    n = cost.shape[-1]
    cell = cost.masked_fill(torch.eye(n, dtype=torch.bool), torch.inf).amin((-2, -1)).sqrt()
    moved = distance2.sqrt() / cell
    if n > 1 and (moved < 0.5).any():
        warnings.warn(
            f"the step moves mass by {moved.min().item():.3g} cells (root mean square), less than half a cell: the "
            "exact step between the cells of a fixed grid freezes there. Take larger steps or a finer grid, or use "
            "Quantiles in 1-D, Entropic, or the default solver of the grid",
            FrozenWarning,
            stacklevel=5,
        )


def _on_quantiles(
    solver: Convex, F: Functional, metric: Wasserstein, mu: Quantiles, tau: float
) -> tuple[Quantiles, list[Solution], Tensor, None]:
    atoms, items, n = _checked_atoms(F, mu), mu.batch.numel(), mu.n
    x = mu.x.detach().reshape(items, n).double().cpu()
    mobility = metric.mobility(mu).detach().double().cpu().expand(*mu.batch, 1, 1).reshape(items)
    program = solver.program((Quantiles, n, structure(atoms)), lambda: quantile_program(n, atoms))
    solutions = []
    for i in range(items):
        kappa = math.sqrt(1 / (2 * tau * n * mobility[i].item()))
        solutions.append(solver.solve(program, [kappa, kappa * x[i].numpy(), *numbers(atoms, items, i)]))
    new = torch.stack([torch.as_tensor(s.new) for s in solutions]).cummax(-1).values  # gaps below the tolerance
    distance2 = (new - x).square().mean(-1) / mobility
    moved = mu.with_state(x=new.to(mu.anchor).reshape(mu.x.shape))
    return moved, solutions, distance2.to(mu.anchor).reshape(mu.batch), None


def _tensor(values: Sequence[Any], mu: Measure, dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=mu.anchor.device).reshape(mu.batch)
