"""Implicit steps over transport plans on few pairs of cells, certified against all pairs by a dual potential.

The plan of the step is supported on O(n) of the n² pairs. A program over a guess of them gives a potential y of the new
cells; pairs with c_ij + y_i below u_j = min over the guess would improve the plan, and Σ_j m_j (u_j − min over all i of
c_ij + y_i) bounds by how much, whatever the guess (linear duality: lowering u_j makes the potentials feasible for all
pairs). The best pairs under y are added until the bound is below the tolerance, so that the result is that of the full
plan. The first guess comes from the step on cells twice as wide, its potential interpolated (Schmitzer 2016 has the
idea, and another certificate).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..functionals.atom import Atom
from ..measures import Density, Grid
from ..measures.remap import interpolate
from .programs import USABLE, NoSolution, Program, Solution, numbers, support_program

BLOCK = 2**20  # pairs that are priced at a time
NEIGHBOURS = {1: 6, 2: 12, 3: 20}  # pairs that a cell brings into a guess, by dimension
LIGHT = 1e-14  # mass of an old cell below which it brings only the pair with itself
FAINT = 1e-10  # the same after a stall; the bound counts what that loses
FEWEST = 64  # pairs that are always all taken
MOST = 50_000  # pairs up to which more of them are tried where the solver stalled: too few are often why
ROUNDS = 12  # guesses before the bound is reported as it stands


class Pairs(NamedTuple):
    """Pairs of a new and an old cell, flat indices (k,) each, sorted."""

    new: Tensor
    old: Tensor

    def where(self, kept: Tensor) -> Pairs:
        return Pairs(self.new[kept], self.old[kept])


@dataclass(frozen=True, eq=False)
class Settings:
    """How programs are solved, the tolerance on the bound relative to the objective, how many pairs are all taken."""

    solve: Callable[[Program], Solution]
    tolerance: float
    full: int


@dataclass(frozen=True, eq=False)
class Certified:
    """A plan on pairs, with their costs, the potential (n,), and the bound on what it misses in its `solution`."""

    solution: Solution
    pairs: Pairs
    cost: Tensor
    potential: Tensor

    def flow(self, masses: Tensor) -> Tensor:
        """Masses on the pairs, (k,), which sum to `masses` over those of each old cell."""
        kernel = torch.as_tensor(self.solution.plan).clamp_min(0)
        total = torch.zeros_like(masses).index_add(0, self.pairs.old, kernel)
        return kernel * (masses / total.clamp_min(1e-300))[self.pairs.old]


@dataclass(frozen=True, eq=False)
class Transport:
    """Costs Σ_ab P_ab z_a z_b between the cells of a grid, for a precision P (d, d)."""

    grid: Grid
    precision: Tensor

    def cost(self, new: Tensor, old: Tensor) -> Tensor:
        """Of pairs of points (…, d) -> (…)."""
        z = self.grid.displacement(new, old)
        return ((z @ self.precision) * z).sum(-1)

    def of(self, pairs: Pairs) -> Tensor:
        x = self.grid.points(self.precision)
        return self.cost(x[pairs.new], x[pairs.old])

    def price(self, y: Tensor, masses: Tensor, k: int, light: float = LIGHT) -> tuple[Tensor, Pairs]:
        """min over i of c_ij + y_i (n,), and the k best pairs of each old and each new cell under it."""
        x, n = self.grid.points(y), self.grid.n
        k, width = min(k, n), max(1, BLOCK // n)
        lowest, codes, best = [], [], None
        for old in torch.arange(n).split(width):
            reduced = self.cost(x[:, None], x[old]) + y[:, None]
            values, new = reduced.topk(k, 0, largest=False)
            lowest.append(values[0])
            heavy = masses[old] > light
            codes.append((new * n + old)[:, heavy].flatten())
            reduced = torch.where(heavy, reduced - values[0], torch.inf)
            best = _merge(best, reduced, old, k)
        values, old = best  # type: ignore[misc]
        codes.append((torch.arange(n)[:, None] * n + old)[values < torch.inf])
        still = torch.arange(n)[masses <= light]
        return torch.cat(lowest), _pairs(torch.cat([*codes, still * (n + 1)]), n)


def _merge(best: tuple[Tensor, Tensor] | None, values: Tensor, old: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k smallest of each row among those found before and those of the columns `old`."""
    old = old.expand(values.shape)
    if best is not None:
        values, old = torch.cat([best[0], values], 1), torch.cat([best[1], old], 1)
    values, index = values.topk(min(k, values.shape[1]), 1, largest=False)
    return values, old.gather(1, index)


def _pairs(codes: Tensor, n: int) -> Pairs:
    codes = codes.unique()
    return Pairs(codes // n, codes % n)


def every_pair(n: int) -> Pairs:
    """All n² of them."""
    return _pairs(torch.arange(n * n), n)


def certified_plans(
    mu: Density,
    energy: Callable[[Density], Sequence[Atom]],
    precision: Tensor,
    settings: Settings,
) -> list[Certified]:
    """The steps of a batch: min of the atoms of `energy` plus ⟨z, Pz⟩ over plans, precision P (items, d, d)."""
    atoms = energy(mu)
    masses = mu.masses.detach().reshape(len(precision), -1).double().cpu()
    guess = None if mu.grid.n**2 <= max(settings.full, FEWEST) else _from_coarser(mu, energy, precision, settings)
    return [
        _certify(
            partial(_program, mu.grid, atoms, masses, i),
            Transport(mu.grid, precision[i]),
            masses[i],
            None if guess is None else guess[i],
            settings,
        )
        for i in range(len(masses))
    ]


def _program(grid: Grid, atoms: Sequence[Atom], masses: Tensor, item: int, pairs: Pairs, cost: Tensor) -> Program:
    return support_program(grid, pairs, cost, masses[item], atoms, numbers(atoms, len(masses), item))


def _from_coarser(
    mu: Density, energy: Callable[[Density], Sequence[Atom]], precision: Tensor, settings: Settings
) -> Tensor:
    """Potentials (items, n) from the step on cells twice as wide; 0 when that one has no solution."""
    grid = mu.grid
    coarse = Grid(grid.lower, grid.upper, tuple((n + 1) // 2 for n in grid.shape), grid.periodic)
    x = grid.points(precision)
    try:
        found = certified_plans(mu.to_density(coarse), energy, precision, settings)
    except NoSolution:  # a constraint may hold on these cells, and not on those
        return precision.new_zeros(len(precision), grid.n)
    return torch.stack([interpolate(one.potential.reshape(coarse.shape), coarse, x) for one in found])


def _certify(
    program: Callable[[Pairs, Tensor], Program],
    transport: Transport,
    masses: Tensor,
    guess: Tensor | None,
    settings: Settings,
) -> Certified:
    """Solve over pairs and add the best others, until they cannot improve the plan by more than the tolerance."""

    def solve(pairs: Pairs) -> Solution:
        return settings.solve(program(pairs, transport.of(pairs)))

    n = transport.grid.n
    pairs, solution, k, light = _usable(solve, transport, masses, guess)
    best: Certified | None = None
    for _ in range(ROUNDS):
        cost, y = transport.of(pairs), torch.as_tensor(solution.potential)
        lowest, better = transport.price(y, masses, k, light)
        u = torch.full_like(y, torch.inf).scatter_reduce(0, pairs.old, cost + y[pairs.new], "amin")
        missed = (masses * (u - lowest)).sum().item() / max(1.0, abs(solution.value))
        now = Certified(_with_bound(solution, missed, settings.tolerance), pairs, cost, y)
        if best is None or now.solution.residual < best.solution.residual:
            best = now
        if missed <= settings.tolerance or solution.status != "optimal":  # more pairs would not cure a stall
            break
        used = torch.as_tensor(solution.plan) > settings.tolerance
        pairs = _pairs(torch.cat([one.new * n + one.old for one in (better, pairs.where(used))]), n)
        try:
            solution = solve(pairs)
        except NoSolution:
            break
    assert best is not None
    return best


def _usable(
    solve: Callable[[Pairs], Solution], transport: Transport, masses: Tensor, guess: Tensor | None
) -> tuple[Pairs, Solution, int, float]:
    """The k cheapest pairs a cell, their solution, k, and the mass of cells left out; all pairs without a guess.

    A program that is infeasible on its pairs, or stalls, is given more of them.
    """
    n = transport.grid.n
    if guess is None:
        pairs = every_pair(n)
        return pairs, solve(pairs), n, LIGHT
    k = min(n, NEIGHBOURS[transport.grid.dim])
    light = LIGHT
    while True:
        pairs = transport.price(guess, masses, k, light)[1]
        try:
            solution = solve(pairs)
        except NoSolution as nothing:
            if not _may_need_more(str(nothing), k, n):
                raise
        else:
            if not (_is_lost(solution) and _may_need_more(solution.status, k, n)):
                return pairs, solution, k, light
        k, light = min(n, 4 * k), FAINT


def _is_lost(solution: Solution) -> bool:
    return solution.status != "optimal" and solution.residual > USABLE


def _may_need_more(status: str, k: int, n: int) -> bool:
    """Whether more pairs than k a cell may help a program that has no solution: it may be infeasible on its pairs."""
    return k < n and ("infeasible" in status or 4 * k * n <= MOST)


def _with_bound(solution: Solution, missed: float, tolerance: float) -> Solution:
    """The solution with the bound in its residual, and in its status when it is above the tolerance."""
    status = solution.status
    if missed > tolerance:
        status = f"pairs of cells that were left out may lower the objective by {missed:.1e} of itself"
    return replace(solution, status=status, residual=max(solution.residual, missed))
