"""Rougher versions of a scaling problem, on coarser cells and at larger reg, that start the next finer one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .anderson import Anderson
from .sinkhorn import Plan, Problem, Solution, iterate
from .support import Support

NARROW = 0.02  # the largest reg to start from, as part of the largest cost
FINE = 6.0  # cells are merged while reg is at least so many squares of the coarser ones
ROUGH, COARSE = 0.03, 1e-4  # marginal errors at which to leave a level for less reg, and for finer cells


@dataclass(frozen=True, eq=False)
class Level:
    """A problem, with the support and the reg that it is posed for."""

    problem: Problem
    support: Support
    reg: float

    def rougher(self) -> Level | None:
        """On coarser cells, at the same reg if it is wide for them, else at four times reg; None when that is wide."""
        problem = self.problem
        coarse = self.support.coarser() if problem.prox.cellwise else None
        reg = self.reg if _fine(coarse, self.reg) else 4 * self.reg
        if reg > self.reg and reg > NARROW * self.support.extent:
            return None
        if coarse is None or not _fine(coarse, reg):
            prox = problem.prox.restricted(lambda f: f, self.reg / reg)
            return Level(Problem(self.support.kernel(reg), problem.log_mu, prox, problem.reference), self.support, reg)
        tiny = torch.finfo(problem.log_mu.dtype).tiny
        log_mu = self.support.average(problem.log_mu.exp()).clamp_min(tiny).log()
        prox = problem.prox.restricted(self.support.average, self.reg / reg)
        return Level(Problem(coarse.kernel(reg), log_mu, prox, problem.reference), coarse, reg)

    def enough(self, rougher: Level, tol: float) -> float:
        """The marginal error to which the rougher level is solved."""
        return max(tol, COARSE if rougher.reg == self.reg else ROUGH)

    def refined(self, plan: Plan, rougher: Level) -> Tensor:
        """Potentials to start from, by the plan of the rougher level.

        Where b = ν, log a = s·φ + log ν − log r, with φ and ν almost the same at both levels and s = 2·tau/reg.
        """
        up = self._up(rougher)
        force = plan.log_a + rougher.problem.log_r(plan.log_nu, plan.log_d) - plan.log_nu
        log_nu, log_d = up(plan.log_nu), None if plan.log_d is None else up(plan.log_d)
        log_r = self.problem.log_r(log_nu, log_d)
        log_a = rougher.reg / self.reg * up(force) + log_nu - log_r
        log_v = self.problem.prox(log_a + log_r, None) - log_a
        return log_v if log_d is None else torch.cat([log_v, log_d], -1)

    def mixer(self, rougher: Level, mixer: Anderson) -> Anderson:
        """That of the rougher level where only the cells are finer: the slow modes are smooth, and almost the same."""
        if rougher.reg != self.reg:
            return Anderson(mixer.depth)
        blocks = 2 if self.problem.reference == "debiased" else 1
        return mixer.carried(lambda x: self._up(rougher)(x.unflatten(-1, (blocks, -1))).flatten(-2))

    def _up(self, rougher: Level) -> Callable[[Tensor], Tensor]:
        return (lambda f: f) if rougher.support is self.support else self.support.interpolate


def solve(level: Level, x: Tensor | None, tol: float, max_iter: int, memory: int) -> tuple[Solution, Anderson]:
    """From the potentials x if given, else from the solution of a rougher level, and so on."""
    problem, mixer = level.problem, Anderson(memory)
    rough: Tensor | int = 0
    rougher = level.rougher() if x is None else None
    if rougher is not None:
        found, history = solve(rougher, None, level.enough(rougher, tol), max_iter, memory)
        x, mixer, rough = level.refined(found.plan, rougher), level.mixer(rougher, history), found.iterations
    plan, converged, iterations = iterate(problem, problem.start(x), mixer, tol, max_iter)
    return Solution(plan, converged, iterations + rough, plan.residual), mixer


def _fine(support: Support | None, reg: float) -> bool:
    return support is not None and reg >= FINE * support.resolution
