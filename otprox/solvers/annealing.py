"""Rougher versions of a scaling problem, on coarser cells and at larger reg, whose solutions start the next finer one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .sinkhorn import Plan, Problem
from .support import Support

NARROW = 0.02  # the largest reg to start from, as part of the largest cost
FINE = 12.0  # cells are merged while reg is at least so many squares of the coarser ones
ROUGH = 0.03  # marginal error of a rougher level


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

    def refined(self, plan: Plan, rougher: Level) -> Tensor:
        """Potentials to start from, by the plan of the rougher level.

        Where b = ν, log a = s·φ + log ν − log r, with φ and ν almost the same at both levels and s = 2·tau/reg.
        """
        up: Callable[[Tensor], Tensor] = self.support.interpolate if rougher.support is not self.support else torch.clone
        force = plan.log_a + rougher.problem.log_r(plan.log_nu, plan.log_d) - plan.log_nu
        log_nu, log_d = up(plan.log_nu), None if plan.log_d is None else up(plan.log_d)
        log_r = self.problem.log_r(log_nu, log_d)
        log_a = rougher.reg / self.reg * up(force) + log_nu - log_r
        log_v = self.problem.prox(log_a + log_r, None) - log_a
        return log_v if log_d is None else torch.cat([log_v, log_d], -1)


def _fine(support: Support | None, reg: float) -> bool:
    return support is not None and reg >= FINE * support.resolution
