"""The problem of least action that a curve solves: its data, where it starts from, and what it is made into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor

from ..functionals import Entropy, Functional
from ..functionals.euclidean_prox import EuclideanProx
from ..measures import Density, Grid
from ..metrics import Wasserstein
from .base import Stats
from .concave import ConcaveMobility
from .continuity import Continuity, Weights
from .curve import Curve
from .splitting import Action, Iterate
from .staggered import Staggered, lines

PART = 0.1  # of a cell, that a path is taken to cross at least for the first weights; or of the box


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

    def cost(self, mu: Density, free: int, upper: float) -> NodeCost:
        """The prox of all this on the free nodes t_1, …, over dt (the volume of a cell is left out)."""
        dt, last = self.times[1], len(self.times) - 1
        inner = last - 1
        blocks: list[tuple[int, EuclideanProx | None]] = []
        if self.running is None:
            blocks.append((inner, None))
        elif varies(self.running):
            blocks += [(1, EuclideanProx.of(self.running.at(t), mu, 1.0)) for t in self.times[1:last]]
        else:
            blocks.append((inner, EuclideanProx.of(self.running, mu, 1.0)))
        if free > inner:
            end = self.end(dt)
            blocks.append((1, None if end is None else EuclideanProx.of(end, mu, 1.0)))
        return NodeCost(tuple((count, prox) for count, prox in blocks if count), mu.grid, upper)

    def end(self, dt: float) -> Functional | None:
        """What acts on the last node, over dt."""
        parts = [] if self.terminal is None else [self.terminal / dt]
        parts += [] if self.running is None else [self.running.at(self.times[-1]) / 2]
        return reduce(add, parts) if parts else None

    def slopes(self, mu: Density) -> Tensor:
        """First variations at mu of what acts on each node t_1, …, over dt, (*batch, K, *shape)."""
        dt, zero = self.times[1], torch.zeros_like(mu.values).flatten(-mu.dim)
        inner = [zero if self.running is None else self.running.at(t).first_variation(mu) for t in self.times[1:-1]]
        end = self.end(dt)
        rows = [*inner, zero if end is None else end.first_variation(mu)]
        return torch.stack([row.expand_as(zero) for row in rows], -2).unflatten(-1, mu.grid.shape)

    def __call__(self, path: Sequence[Density]) -> Tensor:
        """The value on densities at all times, (*batch,)."""
        dt, last = self.times[1], len(self.times) - 1
        total = torch.zeros_like(path[0].mass)
        if self.running is not None:
            for k, (t, mu) in enumerate(zip(self.times, path, strict=True)):
                total = total + dt * (0.5 if k in (0, last) else 1.0) * self.running.at(t)(mu)
        return total if self.terminal is None else total + self.terminal(path[-1])


@dataclass(frozen=True, eq=False)
class PathProblem:
    """The least of action + objective over curves from mu, in a diagonal metric Q (its diagonal, (d,)).

    With a `target` the curve ends there; `mu` and `target` have the same batch.
    """

    mu: Density
    target: Tensor | None
    objective: Objective
    action: Action
    Q: Tensor
    viscosity: float

    @classmethod
    def of(
        cls,
        mu: Density,
        target: Density | None,
        objective: Objective,
        viscosity: float,
        mobility: ConcaveMobility,
        metric: Wasserstein,
    ) -> PathProblem:
        grid, dt, steps = mu.grid, objective.times[1], len(objective.times) - 1
        Q = metric.mobility(mu).diagonal(dim1=-2, dim2=-1)
        batch = mu.batch if target is None else torch.broadcast_shapes(mu.batch, target.batch)
        start, *ends = [m.values.expand(*batch, *grid.shape) for m in (mu, target) if m is not None]
        mu = mu.with_state(values=start)
        continuity = Continuity.on(
            grid, lines(grid, Q.tolist()), start, ends[0] if ends else None, dt, steps, viscosity
        )
        mass = over_cells(start.square() if not ends else (start.square() + ends[0].square()) / 2, grid) * grid.volume
        mass = mass.unsqueeze(continuity.time)
        cost = objective.cost(mu, continuity.nodes, mobility.upper)
        last = None if ends else cost.blocks[-1][1]
        steep = torch.zeros_like(mass)
        if last is not None:
            steep = last.curvature(mass.flatten(continuity.time)).reshape(mass.shape)
        horizon = objective.times[-1]
        slowest2 = (PART * min(line.h for line in continuity.lines) / horizon) ** 2 + viscosity / horizon
        action = Action(continuity, mobility, cost, mass.clamp_max(mobility.upper / 2), steep, slowest2)
        return cls(mu, ends[0] if ends else None, objective, action, Q, viscosity)

    def start(self) -> tuple[Staggered, Weights]:
        """A first y, and weights: at rest between given ends, or along the forces on the first density.

        In the latter case the path mixes μ with what it diffuses to, and y holds the multipliers (slopes of the costs)
        of that path, its velocity being that of the forces there: where there is little mass multipliers take long to
        find. Forces that move mass further than it is wide overshoot, and are damped.
        """
        if self.target is not None:
            return self._at_rest(), self.action.weights(self._between2())
        o, end = self.objective, self._diffused()
        rest, slopes = self._at_rest(end.values), o.slopes(end)
        damping = 1 / (1 + self._strain(self._along(slopes, rest)[1], end))
        slopes = slopes * damping
        velocity, flux = self._along(slopes, rest)
        w = self.action.weights(self._known(self.action.speed2(flux)))
        density = tuple(rho - v.square() / (2 * w.density) for rho, v in zip(rest.density, velocity, strict=True))
        flux = tuple(m + v / w.flux for m, v in zip(flux, velocity, strict=True))
        return Staggered(rest.nodes + slopes / w.nodes, density, flux), w

    def _strain(self, flux: tuple[Tensor, ...], end: Density) -> Tensor:
        """horizon·|Σ_a E v_a·(x_a − E x_a)|/Σ_a Var x_a: the relative change of width, to first order."""
        c, one = self.action.continuity, [1] * self.mu.grid.dim
        lever = torch.zeros_like(self.mu.mass)
        for a, (line, m) in enumerate(zip(c.lines, flux, strict=True)):
            centres = c.grid.centers(m)[a].reshape(*one[:a], -1, *one[a + 1 :])
            arm = centres - self.mu.mean[..., a].reshape(*lever.shape, *one)
            moment = line.gather(m).mean(c.time) * arm / self.Q[a] ** 0.5
            lever = lever + moment.flatten(-c.grid.dim).sum(-1) * c.grid.volume
        width2 = (end.cov.diagonal(dim1=-2, dim2=-1) / self.Q).sum(-1)
        strain = self.objective.times[-1] * lever.abs() / width2
        return strain.reshape(*strain.shape, *[1] * (c.grid.dim + 1))

    def _along(self, slopes: Tensor, rest: Staggered) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Velocities −∇ of the costs still to come, and the fluxes that they make."""
        c = self.action.continuity
        phi = -slopes.flip(c.time).cumsum(c.time).flip(c.time) * self.objective.times[1]
        velocity = tuple(line.gradient(phi) for line in c.lines)
        return velocity, tuple(self.action.mobility(rho) * v for rho, v in zip(rest.density, velocity, strict=True))

    def _diffused(self) -> Density:
        """μ after the heat flow of the entropy in the last cost, and of the viscosity, over the horizon."""
        o = self.objective
        theta = 0.0 if o.terminal is None else sum(c for c, f in o.terminal.terms if isinstance(f, Entropy))
        variance = 2 * o.times[-1] * (theta * self.Q + self.viscosity)
        return self.mu.diffuse(torch.diag(variance)) if bool(variance.any()) else self.mu

    def curve(self, found: Iterate) -> Curve:
        """The curve at an iterate, with its statistics."""
        c, times, flux = self.action.continuity, self.objective.times, found.joined.flux
        nodes = torch.where(found.joined.nodes > 0, found.joined.nodes, found.split.nodes)
        whole = c.whole(self.action.cost.admissible(nodes))
        kinetic = self.action.kinetic(found.split)
        path = [self.mu.with_state(values=rho) for rho in whole.unbind(c.time)]
        missed = times[1] * c.grid.volume * over_cells((c.change(whole) + c.divergence(flux)).abs(), c.grid)
        stats = Stats(
            converged=found.converged,
            iterations=found.iterations,
            residual=found.residual,
            objective=kinetic.mean(-1) * times[-1] / 2 + self.objective(path),
            distance2=kinetic.mean(-1) * times[-1] ** 2,
            message=f"distance between the two paths of the splitting, inner_steps = {c.steps}",
        )
        return Curve(
            times=self.mu.anchor.new_tensor(times),
            values=whole,
            flux=tuple(m * q**0.5 for m, q in zip(flux, self.Q, strict=True)),
            potential=found.potential,
            kinetic=kinetic,
            continuity=missed.flatten(c.time).amax(-1),
            grid=c.grid,
            stats=stats,
        )

    def _at_rest(self, end: Tensor | None = None) -> Staggered:
        """Without momentum: the mixture of μ and an end (the target, or else μ) that changes in the course of time."""
        c = self.action.continuity
        start = self.mu.values
        end = end if end is not None else start if self.target is None else self.target
        share = torch.arange(1, c.nodes + 1, dtype=start.dtype, device=start.device) / c.steps
        nodes = torch.lerp(start.unsqueeze(c.time), end.unsqueeze(c.time), share.reshape(-1, *[1] * c.grid.dim))
        density = c.averages(nodes)
        return Staggered(nodes, density, tuple(torch.zeros_like(part) for part in density))

    def _between2(self) -> Tensor:
        """Mean square speed between the means and deviations of the two ends."""
        ends = self.mu, self.mu.with_state(values=self.target)
        deviations = [m.cov.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt() for m in ends]
        gap = (ends[0].mean - ends[1].mean).square() + (deviations[0] - deviations[1]).square()
        speed2 = (gap / self.Q).sum(-1) / self.objective.times[-1] ** 2
        return speed2.reshape(*speed2.shape, *[1] * (self.mu.grid.dim + 1))

    def _known(self, speed2: Tensor) -> Tensor:
        """Where there is no speed to go by, as when only ceilings act, one that crosses a part of the box."""
        box = min(line.h * line.n for line in self.action.continuity.lines)
        return torch.where(speed2 > 0, speed2, (PART * box / self.objective.times[-1]) ** 2)


def varies(F: Functional) -> bool:
    """Whether a functional has terms only at a time."""
    try:
        return not F.terms
    except TypeError:
        return True


def over_cells(x: Tensor, grid: Grid) -> Tensor:
    """The sum over cells, its axes kept."""
    return x.sum(tuple(range(-grid.dim, 0)), keepdim=True)
