"""Energies that are not local, in entropic steps: minimise a local majoriser of the objective, again and again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..functionals import Functional
from ..functionals.local_prox import LocalProx
from ..measures import Density, Particles
from .annealing import Level
from .sinkhorn import Plan, Solution

Solve = Callable[[Level, Tensor | None], Solution]


@dataclass(frozen=True, eq=False)
class Majorised:
    """min over ν of E(ν) = F(ν) + G(ν) + OT(μ, ν)/(2·tau), F with a KL prox and G smooth relative to KL:

        G(ν) ≤ G(η) + ⟨δG/δη, ν − η⟩ + L·KL(ν | η).

    ν_{k+1} minimises F(ν) + ⟨φ_k, ν⟩ + L·KL(ν | ν_k) + OT(μ, ν)/(2·tau), φ_k = δG/δμ at ν_k, by scaling: linear terms
    and entropies are local. This majorises E up to a constant and touches it at ν_k, so E(ν_{k+1}) ≤ E(ν_k) (mirror
    descent of Bauschke, Bolte and Teboulle 2017). For G = ½∬W ν ν and δ = ν − η of mass 0, ½∬W δ δ ≤ (max W − min
    W)/4·‖δ‖₁² ≤ (max W − min W)/2·KL(ν | η) by Pinsker's inequality: L = (max W − min W)/2 always will do. None is
    needed where W is negative on such δ, as for attraction by |x|². So L starts at 0, and is doubled, item by item,
    whenever E has risen; that step is taken back.
    """

    G: Functional
    energy: Callable[[Plan], Tensor]
    mu: Density | Particles
    tol: float
    max_iter: int

    def minimise(self, level: Level, solve: Solve, warm: Tensor | None, start: Tensor) -> Solution:
        """From ν = μ, with E(μ) = `start`; stops when ν moves by no more than tol in L1."""
        prox = level.problem.prox
        assert isinstance(prox, LocalProx)
        log_nu, least, total = level.problem.log_mu, start, torch.zeros_like(start, dtype=torch.int64)
        weight, unit = torch.zeros_like(start), self._oscillation(log_nu)
        phi = self._slope(log_nu)
        for _ in range(self.max_iter):
            tilted = replace(level.problem, prox=prox.tilted(phi, weight, log_nu))
            found = solve(replace(level, problem=tilted), warm)
            energy, total = self.energy(found.plan), total + found.iterations
            slack = found.residual.clamp_min(1e2 * torch.finfo(energy.dtype).eps) * (1 + energy.abs())
            better = energy <= least + slack
            moved = level.problem.integral((found.plan.nu - log_nu.exp()).abs())
            least = torch.where(better, torch.minimum(energy, least), least)
            weight = torch.where(better, weight, (2 * weight).maximum(unit))
            log_nu = torch.where(better[..., None], found.plan.log_nu, log_nu)
            warm = found.plan.image
            residual = torch.where(better, moved.maximum(found.residual), torch.inf)
            if bool((residual <= found.plan.rounding.clamp_min(self.tol)).all()):
                break
            phi = self._slope(log_nu)
        done = found.converged & (residual <= found.plan.rounding.clamp_min(self.tol))
        return Solution(found.plan, done, total, residual)

    def _slope(self, log_nu: Tensor) -> Tensor:
        return self.G.first_variation(self.mu.with_log_prob(log_nu))

    def _oscillation(self, log_nu: Tensor) -> Tensor:
        """A first L when 0 is too little: 1/64 of the oscillation of φ."""
        phi = self._slope(log_nu)
        return (phi.amax(-1) - phi.amin(-1)) / 64
