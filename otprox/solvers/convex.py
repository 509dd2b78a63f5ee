"""The implicit step as a convex program (CVXPY): a reference, small on a grid and of linear size on quantiles."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from ..functionals import Functional
from ..functionals.atom import Atom, NotConvex
from ..functionals.constraint import Constraint
from ..functionals.local_prox import offers
from ..measures import Density, Measure, Quantiles
from ..measures.covariance import dense
from ..metrics import Entropic, Metric, Wasserstein
from .base import ConvergenceError, OnFailure, Out, Stats, check_tau, report, require, slowest
from .density_programs import Found, FrozenWarning, entropic, over_all_pairs, over_few_pairs
from .programs import NoSolution, Program, Solution, feasibility_program, numbers, quantile_program, structure
from .sparse_plan import Settings

__all__ = ["Convex", "FrozenWarning"]

KEPT = 8  # programs that a solver keeps compiled
CERTIFIED = 1e-6  # what plans over pairs that were left out may lower the objective by, relative to it
STALLS = 5e-8  # tolerance of programs with many cones, unless given: exponential ones may stall at 3e-8
DRIFT = 10.0  # W2²/(2·tau) from the quantiles at which a program was compiled beyond which it is compiled again


@dataclass(frozen=True, kw_only=True, eq=False)
class Convex:
    """argmin_ν F(ν) + d²(μ, ν)/(2·tau) as a disciplined convex program, by CVXPY with Clarabel.

    On a Density with Wasserstein: over transport plans between the n ≤ `max_cells` cells. Up to `max_full` pairs of
    cells, over all of them; beyond, over O(n) pairs, more being added until dual potentials certify that no plan over
    all pairs has an objective lower by more than 1e-6 of itself (`sparse_plan`). The exact W2 step between centres of
    cells moves mass by whole cells: it freezes when it should move by less than half a cell, and in part up to about
    one and a half, and a FrozenWarning says so. With Entropic ("lebesgue" or "product"): over all pairs, n² at most
    `max_entries`. On Quantiles: over the n ≤ `max_quantiles` sorted positions. Functionals, constraints among them,
    enter by their `atom(mu, c)`.

    A program over all pairs or over quantiles is compiled once per shape, structure of F and metric, and solved again
    through its parameters; this instance keeps the last few. Those over few pairs differ from step to step, and take
    little time to compile. Only the status "optimal" converges. "optimal_inaccurate" and "user_limit" give a
    ConvergenceWarning with the solver's status, or an error with on_failure="raise"; without a solution there is always
    a ConvergenceError, and a ValueError naming them when no measure satisfies the constraints. `residual` is the larger
    of Clarabel's relative duality gap, its residuals of feasibility (NaN with other solvers) and what pairs that were
    left out may gain. Interior points stall when masses span many orders of magnitude, as with entropies on thousands
    of cells. `tol` sets Clarabel's tolerances on these (unset, 5e-8 over few pairs and on quantiles, otherwise 1e-8),
    `max_iter` its iterations.
    Since F + W2²/(2·tau) is convex, a gap g leaves quantiles within √(2·tau·g) of the minimiser (root mean square).
    """

    solver: str = "CLARABEL"
    tol: float | None = None
    max_iter: int | None = None
    max_full: int = 2_500
    max_cells: int = 10_000
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
        reason = _metric_reason(metric, mu) or self._too_large(metric, mu)
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
        try:
            self._check_feasible(F, cast(Density | Quantiles, mu))
            found = self._find(F, metric, mu, tau)
        except NoSolution as nothing:
            raise ConvergenceError(
                f"{self.solver} found no solution of the implicit step: its status is {nothing}. The program is too "
                "ill conditioned for it, or F is not bounded below; use Entropic(reg) with Scaling on a grid, "
                "Quantiles in 1-D, or another step size"
            ) from None
        solutions = found.solutions
        stats = Stats(
            converged=_tensor([s.status == "optimal" for s in solutions], mu, torch.bool),
            iterations=_tensor([s.iterations for s in solutions], mu, torch.int64),
            residual=_tensor([s.residual for s in solutions], mu, mu.anchor.dtype),
            objective=F(found.mu) + found.distance2 / (2 * tau),
            distance2=found.distance2,
            message=", ".join(sorted({s.status for s in solutions})),
            plan=found.plan,
        )
        advice = "raise max_iter or tol, rescale the problem, or use Scaling or Quantile"
        return Out(found.mu, report(stats, self, advice, self.on_failure))

    def _check_feasible(self, F: Functional, mu: Density | Quantiles) -> None:
        """ValueError when no measure in μ's representation satisfies the constraints in F, naming those."""
        held = [f for _, f in F.terms if isinstance(f, Constraint)]
        if not held or self._feasible(held, mu):
            return
        alone = [f for f in held if not self._feasible([f], mu)]
        reasons = [f"{type(f).__name__}: {f.impossible(mu) or 'infeasible by itself'}" for f in alone]
        together = " and ".join(type(f).__name__ for f in held) + " cannot hold together, though each can by itself"
        where = "density on this grid" if isinstance(mu, Density) else "quantiles"
        raise ValueError(
            f"no {where} satisfy the constraints; {self.solver} says infeasible. {'; '.join(reasons) or together}"
        )

    def _feasible(self, held: Sequence[Constraint], mu: Density | Quantiles) -> bool:
        atoms = [f.atom(mu, 1.0) for f in held]
        for i in range(mu.batch.numel()):
            try:
                self.solve(feasibility_program(mu, atoms, numbers(atoms, mu.batch.numel(), i)), [])
            except NoSolution as nothing:
                if "infeasible" in str(nothing):
                    return False
        return True

    def _find(self, F: Functional, metric: Metric, mu: Measure, tau: float) -> Found:
        if isinstance(mu, Quantiles):
            return _on_quantiles(self, F, cast(Wasserstein, metric), mu, tau)
        mu = cast(Density, mu)
        if isinstance(metric, Entropic):
            energy = partial(_checked_atoms, F, scale=2 * tau / metric.reg)
            return entropic(self, energy, metric, cast(Wasserstein, metric.base), mu)
        energy = partial(_checked_atoms, F)
        if mu.grid.n**2 <= self.max_full:
            return over_all_pairs(self, energy, cast(Wasserstein, metric), mu, tau)
        solve = partial(self.solve, values=[], tol=STALLS)
        settings = Settings(solve, max(CERTIFIED, self.tol or 0), self.max_full)
        return over_few_pairs(settings, energy, cast(Wasserstein, metric), mu, tau)

    def _too_large(self, metric: Metric, mu: Density | Quantiles) -> str | None:
        n = mu.points.shape[-2]
        if isinstance(mu, Quantiles):
            few = n <= self.max_quantiles
            return None if few else f"{n} quantiles are more than max_quantiles = {self.max_quantiles}; use Quantile"
        if isinstance(metric, Entropic) and n * n > self.max_entries:
            return (
                f"an entropic plan between {n} cells has {n * n} entries, more than max_entries = {self.max_entries}; "
                "use Scaling, Quantiles in 1-D, or a coarser grid"
            )
        if n > self.max_cells:
            return (
                f"{n} cells are more than max_cells = {self.max_cells}; use the default solver of the grid, Entropic "
                "with Scaling, Quantiles in 1-D, or a coarser grid"
            )
        return None

    def program(
        self, key: Hashable, make: Callable[[], Program], fits: Callable[[Program], bool] = lambda _: True
    ) -> Program:
        """The compiled program of this key, made when it is new or does not fit; the least recently used is dropped."""
        program = self._programs.pop(key, None)
        if program is None or not fits(program):
            program = make()
        self._programs[key] = program
        while len(self._programs) > KEPT:
            self._programs.popitem(last=False)
        return program

    def solve(
        self,
        program: Program,
        values: Sequence[Any],
        tilt: np.ndarray | None = None,
        tol: float = 1e-8,
        scaled: bool = False,
    ) -> Solution:
        """What the solver makes of a program; NoSolution with its status when that is nothing."""
        options: dict[str, Any] = {} if self.max_iter is None else {"max_iter": self.max_iter}
        if self.solver == "CLARABEL":
            tol = self.tol or tol
            options |= {"tol_gap_abs": tol * program.scale, "tol_gap_rel": tol, "tol_feas": tol}
            options |= {"accept_unknown": True, "equilibrate_enable": not scaled}
        solution = program.solve(values, self.solver, options, tilt)
        if solution.new is None:
            raise NoSolution(solution.status)
        return solution

    def solve_scaled(self, program: Program, values: Sequence[Any], tilt: np.ndarray) -> Solution:
        """For a program whose numbers are near 1: without Clarabel's equilibration, which spoils that; if need be with
        it."""
        try:
            first = self.solve(program, values, tilt, STALLS, scaled=True)
        except NoSolution:
            return self.solve(program, values, tilt)
        if first.status == "optimal" or self.solver != "CLARABEL":
            return first
        second = self.solve(program, values, tilt)
        return second if second.status == "optimal" or second.residual < first.residual else first


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


def _on_quantiles(solver: Convex, F: Functional, metric: Wasserstein, mu: Quantiles, tau: float) -> Found:
    items, n = mu.batch.numel(), mu.n
    atoms = _checked_atoms(F, mu, n)
    x = mu.x.detach().reshape(items, n).double().cpu()
    mobility = metric.mobility(mu).detach().double().cpu().expand(*mu.batch, 1, 1).reshape(items)
    solutions = []
    for i in range(items):
        kappa, own = 1 / (2 * tau * mobility[i].item()), x[i].numpy()
        program = _near(solver, i, own, kappa, atoms)
        tilt = -2 * kappa * (own - program.origin)
        solutions.append(solver.solve_scaled(program, [kappa, *numbers(atoms, items, i)], tilt))
    new = torch.stack([torch.as_tensor(s.new) for s in solutions]).cummax(-1).values  # gaps below the tolerance
    distance2 = (new - x).square().mean(-1) / mobility
    moved = mu.with_state(x=new.to(mu.anchor).reshape(mu.x.shape))
    return Found(moved, solutions, distance2.to(mu.anchor).reshape(mu.batch))


def _near(solver: Convex, item: int, own: np.ndarray, kappa: float, atoms: list[Atom]) -> Program:
    """The program of quantiles near `own`.

    Far from those that it was compiled at, a tilt would cost digits, and gaps that have changed more than twofold are
    no longer near 1 in its cones.
    """

    def fits(program: Program) -> bool:
        ratio = np.diff(own) / np.maximum(np.diff(program.origin), 1e-300)
        moved = kappa * np.square(own - program.origin).sum() / len(own)
        return bool(moved <= DRIFT and ratio.max(initial=1) <= 2 and ratio.min(initial=1) >= 0.5)

    key = (Quantiles, len(own), item, structure(atoms))
    return solver.program(key, lambda: quantile_program(own, atoms), fits)


def _tensor(values: Sequence[Any], mu: Measure, dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=mu.anchor.device).reshape(mu.batch)
