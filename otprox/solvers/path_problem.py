"""The problem of least action that a curve solves: its data, where it starts from, and what it is made into."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..functionals import Entropy
from ..measures import Density
from ..metrics import Wasserstein
from .base import Stats
from .concave import ConcaveMobility
from .continuity import Continuity, Weights
from .curve import Curve
from .path_cost import Objective, over_cells
from .splitting import Action, Iterate
from .staggered import Staggered, lines

PART = 0.1  # of a cell, that a path is taken to cross at least for the first weights; or of the box


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
            grid, lines(grid, Q.tolist()), start, ends[0] if ends else None, dt, steps, viscosity, objective.tension
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
        end = self._diffused()
        rest, slopes = self._at_rest(end.values), self.objective.slopes(end)
        velocity = self._along(slopes, end)
        flux = tuple(self.action.mobility(rho) * v for rho, v in zip(rest.density, velocity, strict=True))
        damping = 1 / (1 + self._strain(flux, end))
        moving = [(rho, damping * m, damping * v) for rho, m, v in zip(rest.density, flux, velocity, strict=True)]
        w = self.action.weights(self._known(self.action.speed2(tuple(m for _, m, _ in moving))))
        density = tuple(rho - v.square() / (2 * w.density) for rho, _, v in moving)
        y = Staggered(rest.nodes + damping * slopes / w.nodes, density, tuple(m + v / w.flux for _, m, v in moving))
        return y, w

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

    def _along(self, slopes: Tensor, end: Density) -> tuple[Tensor, ...]:
        """Velocities −∇ of the costs still to come, less where the density jumps from cell to cell."""
        c, tiny = self.action.continuity, torch.finfo(slopes.dtype).tiny
        phi = -slopes.flip(c.time).cumsum(c.time).flip(c.time) * self.objective.times[1]
        even = (line.harmonic(end.values) / line.average(end.values).clamp_min(tiny) for line in c.lines)
        return tuple(line.gradient(phi) * e.unsqueeze(c.time) for line, e in zip(c.lines, even, strict=True))

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
