"""The distance to a measure on the line, ∫|x − y| dν(y), by its distribution function; and the resolvent of that."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..kernels import Energy, RadialCombination
from ..measures.covariance import dense
from .embedding import Embedding
from .gaussian_smoothing import smoothed, smoothed_moments


def energy_factor(k: Any) -> float | None:
    """a where k is −a·|x − y|, else None."""
    if isinstance(k, Energy):
        return 1.0
    if isinstance(k, RadialCombination) and all(isinstance(part, Energy) for _, part in k.terms):
        return sum(c for c, _ in k.terms)
    return None


@dataclass(frozen=True, eq=False)
class LineEmbedding(Embedding):
    """Of a measure on R in the kernel −factor·|x − y|: V' = factor·(2F_ν − 1)."""

    @property
    def factor(self) -> float:
        """a of the kernel −a·|x − y|."""
        factor = energy_factor(self.kernel)
        assert factor is not None
        return factor

    @abstractmethod
    def resolvent(self, r: Tensor, c: Tensor) -> Tensor:
        """z with z + c·F_ν(z) ∋ r, for r (*batch, n) and c ≥ 0 (*batch, 1); F_ν takes all values of its jumps."""


class Atoms(NamedTuple):
    """Sorted atoms (*batch, m) in float64, and sums over those before each, (*batch, m + 1), of weights and moments."""

    at: Tensor
    weight: Tensor
    moment: Tensor


@dataclass(frozen=True, eq=False)
class AtomsOnLine(LineEmbedding):
    """Of samples: sorted once, then a search for each point."""

    @cached_property
    def atoms(self) -> Atoms:
        at, order = self.target.points[..., 0].detach().double().sort(-1)
        w = self.target.weights.detach().double().expand(at.shape).gather(-1, order)
        sums = (torch.nn.functional.pad(part.cumsum(-1), (1, 0)) for part in (w, w * at))
        return Atoms(at.contiguous(), *sums)

    def mean(self, x: Tensor) -> Tensor:
        z = x[..., 0].double()
        weight, moment = self._below(z)
        total = self.atoms.moment[..., -1:]
        return (-self.factor * ((2 * weight - 1) * z - 2 * moment + total)).to(x)

    def gradient(self, x: Tensor) -> Tensor:
        self._check_points(x)
        slope = self.factor * (2 * self._below(x[..., 0].detach().double())[0] - 1)
        return slope.to(x)[..., None]

    @cached_property
    def half_norm(self) -> Tensor:
        w = self.atoms.weight.diff(dim=-1)
        middle = self.atoms.weight[..., :-1] + w / 2
        return (-self.factor * (w * (2 * middle - 1) * self.atoms.at).sum(-1)).to(self.target.anchor)

    def moments(self, mean: Tensor, cov: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """E V, E V' and E V'' under N(mean, cov)."""
        y, w = self.target.points, self.target.weights
        value, slope, hessian = smoothed_moments(Energy(), mean, dense(cov), y, w)
        return self.half_norm - self.factor * value, -self.factor * slope, -self.factor * hessian

    def resolvent(self, r: Tensor, c: Tensor) -> Tensor:
        at, weight, _ = self.atoms
        r, at, weight = (t.expand(*torch.broadcast_shapes(r.shape[:-1], at.shape[:-1]), -1) for t in (r, at, weight))
        index = torch.searchsorted((at + c * weight[..., 1:]).contiguous(), r.contiguous())
        last = at.gather(-1, index.clamp_max(at.shape[-1] - 1))
        free = r - c * weight.gather(-1, index)
        return torch.where(index < at.shape[-1], torch.minimum(last, free), free)

    def _below(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """F_ν and ∫_{y < z} y dν, each with half of an atom at z itself."""
        shape = torch.broadcast_shapes(z.shape[:-1], self.atoms.at.shape[:-1])
        at, weight, moment = (t.expand(*shape, t.shape[-1]).contiguous() for t in self.atoms)
        z = z.detach().expand(*shape, z.shape[-1]).contiguous()
        left = torch.searchsorted(at, z)
        if not (at.gather(-1, left.clamp_max(at.shape[-1] - 1)) == z).any():
            return weight.gather(-1, left), moment.gather(-1, left)
        right = torch.searchsorted(at, z, right=True)
        return tuple((t.gather(-1, left) + t.gather(-1, right)) / 2 for t in (weight, moment))  # type: ignore[return-value]


@dataclass(frozen=True, eq=False)
class CellsOnLine(LineEmbedding):
    """Of a density that is constant on the cells of a grid: F_ν is linear between the faces.

    On its own cells, where another density on the same grid is compared with it, the cells are atoms at their centres
    like those of the other, so that MMD(ν, ν) = 0; elsewhere all is exact.
    """

    def __call__(self, x: Tensor) -> Tensor:
        return self.at_centres(x) if self._on_own_cells(x) else super().__call__(x)

    def gradient(self, x: Tensor) -> Tensor:
        if self._on_own_cells(x):
            return self.at_centres.gradient(x)
        self._check_points(x)
        return (self.factor * (2 * self._below(x[..., 0].detach().double())[0] - 1)).to(x)[..., None]

    def mean(self, x: Tensor) -> Tensor:
        z = x[..., 0].double()
        weight, moment = self._below(z)
        return (-self.factor * ((2 * weight - 1) * z - 2 * moment + self.faces.moment[..., -1:])).to(x)

    @cached_property
    def at_centres(self) -> AtomsOnLine:
        return AtomsOnLine(self.kernel, self.target)

    @cached_property
    def faces(self) -> Atoms:
        """The faces (m + 1,), and the weights and moments before each."""
        target = self.target
        atoms = self.at_centres.atoms
        return Atoms(target.grid.edges(target.values)[0].detach().double(), atoms.weight, atoms.moment)

    @cached_property
    def half_norm(self) -> Tensor:
        """−factor·∫ F(1 − F) dx, F linear on each cell."""
        at, F, _ = self.faces
        a, b = F[..., :-1], F[..., 1:]
        total = (at.diff() * ((a + b) / 2 - (a * a + a * b + b * b) / 3)).sum(-1)
        return (-self.factor * total).to(self.target.anchor)

    def moments(self, mean: Tensor, cov: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """E V, E V' and E V'' under N(mean, cov), the cells as atoms."""
        return self.at_centres.moments(mean, cov)

    def resolvent(self, r: Tensor, c: Tensor) -> Tensor:
        at, weight, _ = self.faces
        mapped = (at + c * weight).expand(*torch.broadcast_shapes(r.shape[:-1], weight.shape[:-1]), -1).contiguous()
        r = r.expand(*mapped.shape[:-1], r.shape[-1]).contiguous()
        cell = (torch.searchsorted(mapped, r) - 1).clamp(0, at.shape[-1] - 2)
        left, right = mapped.gather(-1, cell), mapped.gather(-1, cell + 1)
        inside = at[cell] + (r - left) / (right - left) * (at[1] - at[0])
        outside = torch.where(r < mapped[..., :1], r, r - c)
        return torch.where((r < mapped[..., :1]) | (r > mapped[..., -1:]), outside, inside)

    def _below(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """F_ν and ∫_{y < z} y dν."""
        at, weight, moment = self.faces
        shape = torch.broadcast_shapes(z.shape[:-1], weight.shape[:-1])
        weight, moment = (t.expand(*shape, -1) for t in (weight, moment))
        z = z.expand(*shape, -1).clamp(at[0], at[-1])
        cell = (torch.searchsorted(at, z.detach().contiguous()) - 1).clamp(0, at.shape[-1] - 2)
        low = at[cell]
        before = weight.gather(-1, cell)
        part = (z - low) / (at[1] - at[0]) * (weight.gather(-1, cell + 1) - before)
        return before + part, moment.gather(-1, cell) + part * (low + z) / 2


@dataclass(frozen=True, eq=False)
class NormalOnLine(LineEmbedding):
    """Of N(m, σ²)."""

    def mean(self, x: Tensor) -> Tensor:
        return self.factor * smoothed(Energy(), x - self.target.mean[..., None, :], dense(self.target.cov))

    def gradient(self, x: Tensor) -> Tensor:
        self._check_points(x)
        return self.factor * torch.erf((x - self.target.mean[..., None, :]) / (2 * dense(self.target.cov)).sqrt())

    @cached_property
    def half_norm(self) -> Tensor:
        zero = torch.zeros_like(self.target.mean)[..., None, :]
        return 0.5 * self.factor * smoothed(Energy(), zero, 2 * dense(self.target.cov))[..., 0]

    def moments(self, mean: Tensor, cov: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """E V, E V' and E V'' under N(mean, cov)."""
        both = dense(cov) + dense(self.target.cov)
        value, slope, hessian = smoothed_moments(Energy(), mean - self.target.mean, both)
        return self.half_norm - self.factor * value, -self.factor * slope, -self.factor * hessian

    def resolvent(self, r: Tensor, c: Tensor) -> Tensor:
        """Newton's method for u + c·Φ(u) = ρ in units of σ, reflected so that u ≥ 0.

        There the left side is concave, and from max(0, ρ − c) the iterates rise to the root.
        """
        m, sigma = self.target.mean.double(), dense(self.target.cov)[..., 0].double().sqrt()
        rho, c = (r - m) / sigma, c / sigma
        mirrored = rho < c / 2
        rho = torch.where(mirrored, c - rho, rho)
        u = (rho - c).clamp_min(0)
        for _ in range(200):
            step = (rho - u - c * torch.special.ndtr(u)) / (1 + c * torch.exp(-0.5 * u * u) / math.sqrt(2 * math.pi))
            u = u + step.clamp_min(0)
            if (step <= 4e-16 * (rho.abs() + c)).all():
                break
        return m + sigma * torch.where(mirrored, -u, u)
