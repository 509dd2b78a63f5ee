"""What a curve pays beside its action: costs of the densities at the nodes in time, and their prox."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor

from ..functionals import Dirichlet, Functional
from ..functionals.euclidean_prox import EuclideanProx, not_convex_local
from ..measures import Density, Grid


@dataclass(frozen=True, eq=False)
class NodeCost:
    """The prox of Σ_k cost_k(ρ_k) with 0 ≤ ρ ≤ upper at the free nodes: (how many nodes, their prox), in order."""

    blocks: tuple[tuple[int, EuclideanProx | None], ...]
    grid: Grid
    upper: float

    def __call__(self, nodes: Tensor, weights: Tensor, near: Tensor) -> Tensor:
        """From nodes, weights and a guess, (*batch, nodes, *shape)."""
        flat = [t.flatten(-self.grid.dim) for t in (nodes, weights, near)]
        counts = [count for count, _ in self.blocks]
        parts = zip(*(t.split(counts, -2) for t in flat), strict=True)
        found = [
            a.clamp_min(0) if prox is None else prox(a, w, guess)
            for (_, prox), (a, w, guess) in zip(self.blocks, parts, strict=True)
        ]
        return torch.cat(found, -2).clamp_max(self.upper).unflatten(-1, self.grid.shape)

    def admissible(self, nodes: Tensor) -> Tensor:
        """Nodes a little off, under their ceilings and of mass 1: scaled down, or filled up where there is room."""
        highest = [self.upper if prox is None else min(self.upper, prox.ceiling) for _, prox in self.blocks]
        counts = [count for count, _ in self.blocks]
        ceiling = nodes.new_tensor(highest).repeat_interleave(nodes.new_tensor(counts, dtype=torch.int64))
        ceiling = ceiling.reshape(-1, *[1] * self.grid.dim)
        nodes = nodes.minimum(ceiling)
        mass = over_cells(nodes, self.grid) * self.grid.volume
        room = torch.where(ceiling.isinf(), nodes, nodes * (ceiling - nodes))
        share = room / (over_cells(room, self.grid) * self.grid.volume).clamp_min(torch.finfo(nodes.dtype).tiny)
        return torch.where(mass > 1, nodes / mass, nodes + (1 - mass) * share)


@dataclass(frozen=True, eq=False)
class Objective:
    """∫₀ᵀ running(ρ_t) dt by the trapezoidal rule over the nodes, + terminal(ρ_T)."""

    running: Functional | None
    terminal: Functional | None
    times: tuple[float, ...]

    def acting(self, k: int) -> Functional | None:
        """What acts on the node t_k, k ≥ 1, over dt: the running cost, at the end a half of it and the terminal one."""
        last = len(self.times) - 1
        running = None if self.running is None else self.running.at(self.times[k])
        if k < last or self.terminal is None:
            return running if running is None or k < last else running / 2
        terminal = self.terminal / self.times[1]
        return terminal if running is None else terminal + running / 2

    def cost(self, mu: Density, free: int, upper: float) -> NodeCost:
        """The prox of the local terms on the free nodes t_1, …, over dt (the volume of a cell is left out)."""
        inner = len(self.times) - 2
        varying = self.running is not None and varies(self.running)
        runs = [(1, k) for k in range(1, inner + 1)] if varying else [(inner, 1)]
        runs += [(1, free)] if free > inner else []
        blocks = [(count, local(self.acting(k))) for count, k in runs if count]
        return NodeCost(
            tuple((n, None if F is None else EuclideanProx.of(F, mu, 1.0)) for n, F in blocks), mu.grid, upper
        )

    def tension(self, free: int) -> list[float]:
        """The coefficient of ½∫|∇ρ|² at each free node, over dt."""
        return [tension(self.acting(k)) for k in range(1, free + 1)]

    def slopes(self, mu: Density) -> Tensor:
        """First variations at mu of the local terms that act on each node t_1, …, over dt, (*batch, K, *shape)."""
        zero = torch.zeros_like(mu.values).flatten(-mu.dim)
        costs = [local(self.acting(k)) for k in range(1, len(self.times))]
        rows = [zero if F is None else F.first_variation(mu).expand_as(zero) for F in costs]
        return torch.stack(rows, -2).unflatten(-1, mu.grid.shape)

    def __call__(self, path: Sequence[Density]) -> Tensor:
        """The value on densities at all times, (*batch,)."""
        dt, last = self.times[1], len(self.times) - 1
        total = torch.zeros_like(path[0].mass)
        if self.running is not None:
            for k, (t, mu) in enumerate(zip(self.times, path, strict=True)):
                total = total + dt * (0.5 if k in (0, last) else 1.0) * self.running.at(t)(mu)
        return total if self.terminal is None else total + self.terminal(path[-1])


def varies(F: Functional) -> bool:
    """Whether a functional has terms only at a time."""
    try:
        return not F.terms
    except TypeError:
        return True


def local(F: Functional | None) -> Functional | None:
    """F without its Dirichlet energies, which are diagonal in the harmonics of the grid."""
    terms = [] if F is None else [c * f for c, f in F.terms if not isinstance(f, Dirichlet)]
    return reduce(add, terms) if terms else None


def tension(F: Functional | None) -> float:
    """The coefficient of ½∫|∇ρ|² in F."""
    return 0.0 if F is None else sum(c for c, f in F.terms if isinstance(f, Dirichlet))


def not_convex(F: Functional, mu: Density) -> str | None:
    """None when F is convex in the density, cell by cell but for Dirichlet energies; else why not."""
    if tension(F) < 0:
        return f"{F} is not convex in the density"
    cellwise = local(F)
    return None if cellwise is None else not_convex_local(cellwise, mu)


def over_cells(x: Tensor, grid: Grid) -> Tensor:
    """The sum over cells, its axes kept."""
    return x.sum(tuple(range(-grid.dim, 0)), keepdim=True)
