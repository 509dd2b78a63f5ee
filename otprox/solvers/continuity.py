"""The nearest path that obeys the continuity equation: a Poisson problem in space and time, one system a mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor

from ..measures import Grid
from .harmonics import Harmonics
from .staggered import Staggered, StaggeredAxis


@dataclass(frozen=True, eq=False)
class Weights:
    """The norm Σ weight·x² in which paths are compared: (*batch, nodes, 1, …), and (*batch, 1, 1, …) on faces."""

    nodes: Tensor
    density: Tensor
    flux: Tensor

    def parts(self, dim: int) -> tuple[Tensor, ...]:
        """One for each part of a path."""
        return (self.nodes, *[self.density] * dim, *[self.flux] * dim)


@dataclass(frozen=True, eq=False)
class Continuity:
    """(ρ_k − ρ_{k−1})/dt + div m_k = viscosity·Δ(ρ_k + ρ_{k−1})/2, k = 1, …, K: paths from `start` to `end`, if given.

    Nothing crosses walls. In the basis of `Harmonics` every mode is alone. There −Δ has eigenvalue λ ("stiffness" in
    the coordinates of `lines`), and the equation reads a·ρ_k − b·ρ_{k−1} + div m_k = 0 with a, b = 1/dt ±
    ½·viscosity·λ. `tension` has the eigenvalues, (*shape), of a quadratic cost at each free node, over dt.
    """

    grid: Grid
    lines: tuple[StaggeredAxis, ...]
    harmonics: Harmonics
    start: Tensor
    end: Tensor | None
    steps: int
    ahead: Tensor
    behind: Tensor
    stiffness: Tensor
    averaging: Tensor
    tension: tuple[Tensor, ...]

    @classmethod
    def on(
        cls,
        grid: Grid,
        lines: tuple[StaggeredAxis, ...],
        start: Tensor,
        end: Tensor | None,
        dt: float,
        steps: int,
        viscosity: float,
        tension: Callable[[int], Sequence[float]] = lambda nodes: [0.0] * nodes,
    ) -> Continuity:
        harmonics = Harmonics.on(lines, start)
        laplacian = harmonics.laplacian(grid.spacing, start)
        diffusion = viscosity / 2 * laplacian
        stiffness = harmonics.laplacian([line.h for line in lines], start)
        averaging = harmonics.averaging(start)
        ahead, behind = 1 / dt + diffusion, 1 / dt - diffusion
        tight = tuple(c * laplacian for c in tension(steps if end is None else steps - 1))
        return cls(grid, lines, harmonics, start, end, steps, ahead, behind, stiffness, averaging, tight)

    @property
    def time(self) -> int:
        """The axis of time, counted from the end."""
        return -self.grid.dim - 1

    @property
    def nodes(self) -> int:
        """Nodes in time whose density is not given."""
        return self.steps if self.end is None else self.steps - 1

    def whole(self, nodes: Tensor) -> Tensor:
        """Densities at all K + 1 nodes, given ones included."""
        ends = [self.start] if self.end is None else [self.start, self.end]
        ends = [end.unsqueeze(self.time) for end in ends]
        return torch.cat([ends[0], nodes, *ends[1:]], self.time)

    def averages(self, nodes: Tensor) -> tuple[Tensor, ...]:
        """Densities at the faces, half-way in time."""
        middle = self.pairs(self.whole(nodes)) / 2
        return tuple(line.average(middle) for line in self.lines)

    def pairs(self, whole: Tensor) -> Tensor:
        """Sums of neighbours in time."""
        return whole.narrow(self.time, 0, self.steps) + whole.narrow(self.time, 1, self.steps)

    def divergence(self, flux: tuple[Tensor, ...]) -> Tensor:
        return reduce(add, (line.divergence(part) for line, part in zip(self.lines, flux, strict=True)))

    def change(self, whole: Tensor) -> Tensor:
        """(ρ_k − ρ_{k−1})/dt − viscosity·Δ(ρ_k + ρ_{k−1})/2 on each interval."""
        modes = self.harmonics.forward(whole)
        past, now = modes.narrow(self.time, 0, self.steps), modes.narrow(self.time, 1, self.steps)
        return self.harmonics.inverse(self.ahead * now - self.behind * past)

    def factor(self, weights: Weights) -> Projection:
        """LDLᵀ of the system in time of each mode."""
        w, spread = weights.flux.squeeze(self.time), self.stiffness * weights.density.squeeze(self.time)
        spread = spread * self.averaging / 4
        off = spread - w * self.ahead * self.behind
        pivots: list[Tensor] = []
        ratios: list[Tensor] = []
        for k in range(self.nodes):
            inner = 1.0 if k + 1 < self.steps else 0.0
            pivot = w * (self.ahead**2 + inner * self.behind**2) + (1 + inner) * spread
            pivot = pivot + self.stiffness * (weights.nodes.select(self.time, k) + self.tension[k])
            if k:
                ratios.append(off / pivots[-1])
                pivot = pivot - ratios[-1] * off
            pivots.append(pivot)
        return Projection(self, weights, off, tuple(pivots), tuple(ratios))


@dataclass(frozen=True, eq=False)
class Projection:
    """The path that obeys the equation, `density` being its averages, and is nearest in the norm of some weights.

    With `tension` that is the least of half the square of the distance and of the quadratic cost.

    For given ρ the nearest m differs from its target by a gradient, ∇ψ with −λψ = −a·ρ_k + b·ρ_{k−1} − div m. The
    square of that over λ, and the distance of ρ, are least where a tridiagonal system in time holds.
    """

    continuity: Continuity
    weights: Weights
    off: Tensor
    pivots: tuple[Tensor, ...]
    ratios: tuple[Tensor, ...]

    def __call__(self, target: Staggered) -> tuple[Staggered, Tensor]:
        """The path, and ψ on the cells (*batch, K, *shape)."""
        c = self.continuity
        sources = c.harmonics.forward(c.divergence(target.flux))
        modes = self._solve(self._right(target, sources))
        nodes = c.harmonics.inverse(modes)
        ends = [c.harmonics.forward(end).unsqueeze(c.time) for end in (c.start, c.end) if end is not None]
        whole = torch.cat([ends[0], modes, *ends[1:]], c.time)
        past, now = whole.narrow(c.time, 0, c.steps), whole.narrow(c.time, 1, c.steps)
        constant = c.stiffness <= 0
        psi = (c.ahead * now - c.behind * past + sources) / torch.where(constant, 1.0, c.stiffness)
        psi = c.harmonics.inverse(torch.where(constant, 0.0, psi))
        flux = tuple(m + line.gradient(psi) for line, m in zip(c.lines, target.flux, strict=True))
        return Staggered(nodes, c.averages(nodes), flux), psi

    def _right(self, target: Staggered, sources: Tensor) -> Tensor:
        """The right-hand side at the free nodes, in modes."""
        c, w = self.continuity, self.weights
        gathered = (line.gather(part) for line, part in zip(c.lines, target.density, strict=True))
        half = reduce(add, gathered) * (w.density / 2)
        pull = w.nodes * target.nodes + half.narrow(c.time, 0, c.nodes)
        later = c.steps - 1
        pull.narrow(c.time, 0, later).add_(half.narrow(c.time, 1, later))
        right = c.stiffness * c.harmonics.forward(pull)
        right = right - w.flux * c.ahead * sources.narrow(c.time, 0, c.nodes)
        right.narrow(c.time, 0, later).add_(w.flux * c.behind * sources.narrow(c.time, 1, later))
        right.select(c.time, 0).sub_(self.off * c.harmonics.forward(c.start))
        if c.end is not None:
            right.select(c.time, c.nodes - 1).sub_(self.off * c.harmonics.forward(c.end))
        return right

    def _solve(self, right: Tensor) -> Tensor:
        rows = list(right.unbind(self.continuity.time))
        for k in range(1, len(rows)):
            rows[k] = rows[k] - self.ratios[k - 1] * rows[k - 1]
        rows[-1] = rows[-1] / self.pivots[-1]
        for k in range(len(rows) - 2, -1, -1):
            rows[k] = rows[k] / self.pivots[k] - self.ratios[k] * rows[k + 1]
        return torch.stack(rows, self.continuity.time)
