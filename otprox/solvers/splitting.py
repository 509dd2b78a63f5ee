"""Least action by Douglas–Rachford splitting: pointwise proximal steps, and projections on the continuity equation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Protocol

import torch
from torch import Tensor

from .concave import ConcaveMobility
from .continuity import Continuity, Projection, Weights
from .staggered import Staggered

RELAXATION = 1.7
CHECK = 5  # sweeps between tests of convergence
ADAPT = (10, 30, 90, 270)  # sweeps after which the weights follow the speed of the path
STIFF = 10.0  # weight of fluxes, in units of 1/m(ρ) where the mass is
END = 5.0  # and of the last node, in units of the curvature of its cost there
LEAP = 100.0  # by which the mean square speed may change at a time
STILL = 1e-4  # a motion below this part of the path itself is measured against the latter


class NodeProx(Protocol):
    """The prox of the costs of the free nodes, from their densities, weights and a guess."""

    def __call__(self, nodes: Tensor, weights: Tensor, near: Tensor) -> Tensor: ...

    def admissible(self, nodes: Tensor) -> Tensor:
        """Nodes a little off, made to have finite cost and mass 1."""
        ...


@dataclass(frozen=True, eq=False)
class Action:
    """min Σ_k dt·Σ_faces volume·|m|²/(2·mobility(ρ̄)) + costs of the nodes, over paths that obey `continuity`.

    ρ̄ averages the two cells at a face, at both ends of an interval (Papadakis, Peyré and Oudet 2014, whose averages of
    fluxes are not needed when each face has an energy of its own). `cost` is the prox of the costs of the free nodes,
    divided by dt·volume. `mass` is the density where the mass is, and `steep` the curvature of the last node's cost
    there, over dt: what the weights are scaled with, (*batch, 1, …). No path counts as slower than `slowest2`.
    """

    continuity: Continuity
    mobility: ConcaveMobility
    cost: NodeProx
    mass: Tensor
    steep: Tensor
    slowest2: float

    def weights(self, speed2: Tensor) -> Weights:
        """The norm in which fluxes and densities weigh alike for paths of this mean square speed."""
        flux = STIFF / self.mobility(self.mass)
        density = flux * speed2.clamp_min(self.slowest2)
        c = self.continuity
        nodes = density.repeat_interleave(c.nodes, c.time)
        if c.end is None:
            nodes.select(c.time, c.nodes - 1).add_(END * self.steep.squeeze(c.time))
        return Weights(nodes, density, flux)

    def prox(self, y: Staggered, weights: Weights, near: Staggered) -> Staggered:
        """Nearest to y in cost, part by part."""
        w = weights.density, weights.flux
        pairs = [
            self.mobility.prox(rho, m, w, guess) for rho, m, guess in zip(y.density, y.flux, near.density, strict=True)
        ]
        return Staggered(
            self.cost(y.nodes, weights.nodes, near.nodes), tuple(rho for rho, _ in pairs), tuple(m for _, m in pairs)
        )

    def kinetic(self, path: Staggered) -> Tensor:
        """∫|m|²/m(ρ̄) dx on each interval, (*batch, K)."""
        return reduce(add, (self._energy(*part) for part in zip(path.density, path.flux, strict=True)))

    def _energy(self, rho: Tensor, m: Tensor) -> Tensor:
        """|m|²/mobility(ρ̄) summed over faces, which are m = 0 on walls."""
        energy = torch.where(m == 0, 0.0, m.square() / self.mobility(rho).clamp_min(torch.finfo(m.dtype).tiny))
        return energy.flatten(self.continuity.time + 1).sum(-1) * self.continuity.grid.volume

    def speed2(self, flux: tuple[Tensor, ...]) -> Tensor:
        """Mean square speed for these fluxes where the mass is, (*batch, 1, …)."""
        c = self.continuity
        over = tuple(range(c.time, 0))
        total = reduce(add, (m.square().sum(over, keepdim=True) for m in flux))
        return total * c.grid.volume / (c.steps * self.mobility(self.mass))

    def moved(self, path: Staggered) -> Staggered:
        """What a path is above staying at the start."""
        c = self.continuity
        start = c.start.unsqueeze(c.time)
        density = (rho - line.average(start) for line, rho in zip(c.lines, path.density, strict=True))
        return Staggered(path.nodes - start, tuple(density), path.flux)

    def norm2(self, path: Staggered, weights: Weights) -> Tensor:
        """Σ weight·x², (*batch,)."""
        c = self.continuity
        counted = [line.counted for line in c.lines]
        parts = [path.nodes, *[f(x) for f, x in zip(counted * 2, path.parts[1:], strict=True)]]
        terms = zip(weights.parts(c.grid.dim), parts, strict=True)
        return reduce(add, ((w * x.square()).flatten(c.time).sum(-1) for w, x in terms))


@dataclass(frozen=True, eq=False)
class Iterate:
    """Where a splitting stands: y, the two paths that meet at a solution, and how far apart they still are.

    `split` has finite cost and is positive, `joined` obeys the continuity equation. `potential` is φ at the middle of
    the intervals, m = mobility·∇φ.
    """

    y: Staggered
    split: Staggered
    joined: Staggered
    potential: Tensor
    weights: Weights
    converged: Tensor
    iterations: Tensor
    residual: Tensor


def minimise(action: Action, y: Staggered, weights: Weights, tol: float, max_iter: int) -> Iterate:
    """Douglas–Rachford sweeps y ← y + 1.7·(P(2·prox(y) − y) − prox(y)) until the last bracket is small; items freeze.

    The residual is its norm over that of the motion. After some early sweeps the weights follow the speed of the path;
    y keeps its multipliers.
    """
    project, split = action.continuity.factor(weights), y
    batch = weights.flux.shape[: action.continuity.time]
    done = torch.zeros(batch, dtype=torch.bool, device=y.nodes.device)
    iterations, residual = done.to(torch.int64), y.nodes.new_full(batch, torch.inf)
    for sweep in range(1, max_iter + 1):
        split = action.prox(y, weights, split)
        joined, psi = project(combine(lambda z, v: 2 * z - v, split, y))
        gap = combine(torch.sub, joined, split)
        iterations += ~done
        if sweep % CHECK == 0 or sweep == max_iter:
            residual = _residual(action, gap, split, weights, tol)
            done = done | (residual <= tol)
            if bool(done.all()) or sweep == max_iter:
                break
        moving = RELAXATION * (~done).reshape(weights.flux.shape).to(y.nodes.dtype)
        y = Staggered.of([v + moving * g for v, g in zip(y.parts, gap.parts, strict=True)])
        if sweep in ADAPT:
            y, weights, project = _adapted(action, y, split, joined, weights, project, done)
    return Iterate(y, split, joined, weights.flux * psi, weights, done, iterations, residual)


def _residual(action: Action, gap: Staggered, split: Staggered, weights: Weights, tol: float) -> Tensor:
    """|gap| over what the path moves, or over a little of the path itself where it hardly does, (*batch,)."""
    least = max(STILL, 100 * torch.finfo(gap.nodes.dtype).eps / tol)
    scale = action.norm2(action.moved(split), weights).sqrt() + least * action.norm2(split, weights).sqrt()
    return action.norm2(gap, weights).sqrt() / scale


def _adapted(
    action: Action,
    y: Staggered,
    split: Staggered,
    joined: Staggered,
    weights: Weights,
    project: Projection,
    done: Tensor,
) -> tuple[Staggered, Weights, Projection]:
    """Weights for the speed that the path has by now, and y with the same multipliers weight·(y − split)."""
    before = weights.density / weights.flux
    speed2 = torch.maximum(action.speed2(joined.flux), before / LEAP).minimum(before * LEAP)
    near = (speed2 > before / 1.5) & (speed2 < before * 1.5)
    new = action.weights(torch.where(done.reshape(before.shape) | near, before, speed2))
    parts = zip(split.parts, y.parts, weights.parts(len(y.density)), new.parts(len(y.density)), strict=True)
    return Staggered.of([z + old / w * (v - z) for z, v, old, w in parts]), new, action.continuity.factor(new)


def combine(f: Callable[[Tensor, Tensor], Tensor], a: Staggered, b: Staggered) -> Staggered:
    """f part by part."""
    return Staggered.of([f(x, y) for x, y in zip(a.parts, b.parts, strict=True)])
