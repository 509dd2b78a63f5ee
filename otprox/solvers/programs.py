"""Implicit steps as convex programs in CVXPY: over transport plans between cells, and over quantiles."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import numpy as np
from torch import Tensor

from ..functionals.atom import Atom
from ..measures import Density, Grid, Quantiles

Numbers = float | np.ndarray
USABLE = 1e-3  # the largest residual of a stalled solver whose point is still given, with a warning


class NoSolution(Exception):
    """A program without a solution, with the solver's status."""


@dataclass(frozen=True, eq=False)
class Solution:
    """What the solver says: its status, and the larger of the relative duality gap and the residuals of feasibility."""

    status: str
    iterations: int
    residual: float
    value: float
    new: np.ndarray | None  # densities or positions
    plan: np.ndarray | None
    potential: np.ndarray | None  # y_i, what a unit of mass more in the new cell i would cost F, up to a constant


@dataclass(frozen=True, eq=False)
class Program:
    """A program compiled once and solved again with other numbers in its parameters; `plan` may be a Markov kernel.

    `balance` is its constraint plan's marginal − masses of the new cells = 0, whose multiplier is the potential.
    `tilted` is a variable, measured from `origin` in a `unit`, to which `solve` can add a linear cost. A parameter
    would do that too, but CVXPY compiles in a time proportional to variables × parameters, so that few are to be
    vectors. The objective is that of the step times `scale`.
    """

    problem: Any
    new: Any
    plan: Any
    parameters: tuple[Any, ...]
    balance: Any = None
    tilted: Any = None
    origin: Any = None
    unit: float = 1.0
    scale: float = 1.0

    def solve(
        self, values: Sequence[Numbers], solver: str, options: dict[str, Any], tilt: np.ndarray | None = None
    ) -> Solution:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.value = value
        data, chain, inverse = self.problem.get_problem_data(solver, enforce_dpp=True, solver_opts=dict(options))
        if tilt is not None:
            data = self._add_tilt(data, tilt)
        raw = chain.solve_via_data(self.problem, data, solver_opts=dict(options))
        status, residual = self._unpack(raw, chain, inverse), _residual(raw, self.scale)
        lost = status == "optimal_inaccurate" and residual > USABLE
        stats = self.problem.solver_stats
        return Solution(
            status=status,
            iterations=0 if stats is None else int(stats.num_iters or 0),
            residual=residual,
            value=float("nan") if self.problem.value is None else float(self.problem.value),
            new=None if lost else self.new.value,
            plan=None if self.plan is None else self.plan.value,
            potential=None if self.balance is None else self.balance.dual_value,
        )

    def _add_tilt(self, data: dict[str, Any], tilt: np.ndarray) -> dict[str, Any]:
        start = data["param_prob"].var_id_to_col[self.tilted.id]
        cost = data["c"].copy()
        cost[start : start + len(tilt)] += self.unit * tilt
        return data | {"c": cost}

    def _unpack(self, raw: Any, chain: Any, inverse: Any) -> str:
        from cvxpy.error import SolverError

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # "may be inaccurate": the status says so
            try:
                self.problem.unpack_results(raw, chain, inverse)
            except SolverError:
                return f"solver_error ({getattr(raw, 'status', 'no status')})"
        return str(self.problem.status)


def transport_program(mu: Density, components: Tensor, atoms: Sequence[Atom]) -> Program:
    """min over Markov kernels K (new cells × old cells) of Σ_a q_a⟨Z_a, P⟩ + Σ atoms(ν), with plan P = K·diag(m).

    components: Z (k, n, n). Parameters, in order: the old masses m (n,), q_a·m (k·n,), then the atoms'. Kernels keep
    the program well scaled where cells hold very little mass.
    """
    import cvxpy as cp

    k, n = components.shape[:2]
    kernel = cp.Variable((n, n), nonneg=True)
    masses, weights = cp.Parameter(n, nonneg=True), cp.Parameter(k * n)
    lengths = [cp.sum(cp.multiply(z.numpy(), kernel), axis=0) for z in components]  # Σ_i Z_ij K_ij
    density = cp.Variable(n)  # a variable, for products of parameters are not DPP
    energy, held, more = _build(atoms, density)
    constraints = [cp.sum(kernel, axis=0) == 1, kernel @ masses == mu.grid.volume * density, *held]
    problem = cp.Problem(cp.Minimize(cp.hstack(lengths) @ weights + energy), constraints)
    return Program(problem, density, kernel, (masses, weights, *more))


def support_program(
    grid: Grid,
    pairs: tuple[Tensor, Tensor],
    cost: Tensor,
    masses: Tensor,
    atoms: Sequence[Atom],
    data: Sequence[Numbers],
) -> Program:
    """min over plans on given pairs (new, old) of cells of Σ_e c_e P_e + Σ atoms(ν), P_e = K_e·m with K Markov.

    All numbers are constants, for the pairs change from one program to the next.
    """
    import cvxpy as cp
    from scipy.sparse import csr_array

    new, old = (index.numpy() for index in pairs)
    edges, count, weight = np.arange(len(new)), len(new), masses.numpy()[old]
    kernel, density = cp.Variable(count, nonneg=True), cp.Variable(grid.n)
    leaving = csr_array((np.ones(count), (old, edges)), shape=(grid.n, count))
    arriving = csr_array((weight, (new, edges)), shape=(grid.n, count))
    balance = arriving @ kernel - grid.volume * density == 0
    energy, held = _add(atoms, density, data)
    problem = cp.Problem(
        cp.Minimize((cost.numpy() * weight) @ kernel + energy), [leaving @ kernel == 1, balance, *held]
    )
    return Program(problem, density, kernel, (), balance)


def entropic_program(mu: Density, components: Tensor, atoms: Sequence[Atom], reference: str) -> Program:
    """min over plans P (new cells × old cells) of Σ_a q_a⟨Z_a, P⟩ + ΣP log P + Σ atoms(ν), the old marginal given.

    With reference "product", KL(P | ν ⊗ 1), which differs from KL(P | ν ⊗ μ) by a constant. Parameters, in order: the
    old masses (n,), q (k,), then the atoms'.
    """
    import cvxpy as cp

    k, n = components.shape[:2]
    plan = cp.Variable((n, n), nonneg=True)
    masses, q = cp.Parameter(n, nonneg=True), cp.Parameter(k)
    new = cp.sum(plan, axis=1)
    if reference == "lebesgue":
        blur = -cp.sum(cp.entr(plan))
    else:
        blur = cp.sum(cp.rel_entr(plan, cp.reshape(new, (n, 1), order="C") @ np.ones((1, n))))
    cost = reduce(add, (q[a] * cp.sum(cp.multiply(z.numpy(), plan)) for a, z in enumerate(components)))
    density = new / mu.grid.volume
    energy, held, more = _build(atoms, density)
    problem = cp.Problem(cp.Minimize(cost + blur + energy), [cp.sum(plan, axis=0) == masses, *held])
    return Program(problem, density, plan, (masses, q, *more))


def quantile_program(near: np.ndarray, atoms: Sequence[Atom]) -> Program:
    """min over X_0 ≤ … ≤ X_{n−1} of κ Σ |X_i − near_i|² + Σ atoms(X), `tilted` in X − near.

    Parameters: κ, then the atoms'. κ Σ |X_i − x_i|² is, up to a constant, this with the tilt −2κ(x − near). Scaled as a
    sum over quantiles, and not a mean, it is solved more reliably.
    """
    import cvxpy as cp

    unit = float(np.std(near) / len(near) ** 0.5) or 1.0
    shift, kappa = cp.Variable(len(near)), cp.Parameter(nonneg=True)
    x = near + unit * shift
    energy, held, more = _build(atoms, x)
    order = [] if any(atom.ordered for atom in atoms) else [cp.diff(x) >= 0]
    problem = cp.Problem(cp.Minimize(kappa * cp.sum_squares(unit * shift) + energy), order + held)
    return Program(problem, x, None, (kappa, *more), tilted=shift, origin=near, unit=unit, scale=len(near))


def feasibility_program(mu: Density | Quantiles, atoms: Sequence[Atom], data: Sequence[Numbers]) -> Program:
    """Any density on μ's grid, or any sorted positions, with the constraints of the atoms."""
    import cvxpy as cp

    x = cp.Variable(mu.grid.n if isinstance(mu, Density) else mu.n)
    own = [x >= 0, mu.grid.volume * cp.sum(x) == 1] if isinstance(mu, Density) else [cp.diff(x) >= 0]
    _, held = _add(atoms, x, data)
    return Program(cp.Problem(cp.Minimize(0), own + held), x, None, ())


def numbers(atoms: Sequence[Atom], items: int, item: int) -> list[Numbers]:
    """The data of the atoms for one batch item, in the order of their parameters."""
    flat = [value for atom in atoms for value in atom.data]
    return [v.reshape(items, -1)[item].numpy(force=True) if isinstance(v, Tensor) else v for v in flat]


def structure(atoms: Sequence[Atom]) -> tuple[Any, ...]:
    """What makes two sums of atoms the same program."""
    return tuple((a.key, tuple(v.shape[-1] if isinstance(v, Tensor) else 0 for v in a.data)) for a in atoms)


def _build(atoms: Sequence[Atom], variable: Any) -> tuple[Any, list[Any], list[Any]]:
    """The sum of the energies, the constraints, and the parameters of all."""
    parameters = [_parameter(value) for atom in atoms for value in atom.data]
    return *_add(atoms, variable, parameters), parameters


def _add(atoms: Sequence[Atom], variable: Any, data: Sequence[Any]) -> tuple[Any, list[Any]]:
    """The sum of the energies, and the constraints, with the data of all in their order."""
    import cvxpy as cp

    rest = iter(data)
    built = [atom.build(variable, *[next(rest) for _ in atom.data]) for atom in atoms]
    energy = reduce(add, (part for part in built if not isinstance(part, list)), cp.Constant(0))
    return energy, [constraint for part in built if isinstance(part, list) for constraint in part]


def _parameter(value: float | Tensor) -> Any:
    import cvxpy as cp

    return cp.Parameter(value.shape[-1]) if isinstance(value, Tensor) else cp.Parameter(nonneg=True)


def _residual(raw: Any, scale: float) -> float:
    """Of Clarabel's solution, its objective being `scale` times that of the step; NaN from other solvers."""
    names = ("obj_val", "obj_val_dual", "r_prim", "r_dual")
    if not all(hasattr(raw, name) for name in names):
        return float("nan")
    primal, dual, feasibility, stationarity = (float(getattr(raw, name)) for name in names)
    return max(abs(primal - dual) / max(scale, abs(primal)), feasibility, stationarity)
