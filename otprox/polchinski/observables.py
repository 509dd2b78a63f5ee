"""Observables of a field theory: magnetisation, susceptibility, two-point function, correlation length, potential.

Each is a value that takes a measure, or the Tick of a path, so that it serves `record` as an observer. Fields are flat,
(*batch, N), as on a `Lattice`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ..flow import Tick
from ..lattice import Lattice
from ..measures import Gaussian, Measure, Particles
from ..measures.spectral import Spectral
from .estimates import Estimate


class Observable(ABC):
    """A number, or a row of them, that a measure on fields has."""

    def __call__(self, at: Measure | Tick) -> Tensor:
        """Its value under a measure, or under the measure at the end of a step."""
        mu = at.after if isinstance(at, Tick) else at
        if not isinstance(mu, Gaussian | Particles):
            raise TypeError(f"{type(self).__name__} is known for Gaussian and Particles, not for {type(mu).__name__}")
        lattice = getattr(self, "lattice", None)
        if lattice is not None and lattice.sites != mu.dim:
            raise ValueError(f"{lattice} has {lattice.sites} sites and the fields of the measure {mu.dim}")
        return self.of(mu)

    @abstractmethod
    def of(self, mu: Gaussian | Particles) -> Tensor:
        """Its value, (*batch,) or (*batch, k)."""

    def estimate(self, mu: Measure, blocks: int = 20) -> Estimate:
        """Its value with a standard error, by the jackknife over `blocks` runs of consecutive particles.

        Error² = (B − 1)/B Σ_b (f_{−b} − f̄)², f_{−b} without block b (Quenouille 1956). It is right when the blocks are
        independent, each longer than the autocorrelation of the chain it comes from. A Gaussian has no error.
        """
        value = self(mu)
        if not isinstance(mu, Particles):
            return Estimate.exact(value)
        n = mu.w.shape[-1]
        if not 2 <= blocks <= n:
            raise ValueError(f"blocks must lie between 2 and the number of particles {n}, not {blocks}")
        block = torch.arange(n, device=mu.w.device) * blocks // n
        without = torch.stack([self(_reweighted(mu, mu.w * (block != b))) for b in range(blocks)])
        spread = (without - without.mean(0)).square().sum(0)
        return Estimate(value, ((blocks - 1) / blocks * spread).sqrt().nan_to_num(nan=math.inf))


@dataclass(frozen=True)
class Magnetisation(Observable):
    """E m, with m = N⁻¹Σφ_x the average of a field; E|m| when `absolute`, which tells a phase of two signs from none.

    >>> round(Magnetisation(absolute=True)(Gaussian([0.0], [[1.0]])).item(), 4)  # (2/π)^½
    0.7979
    """

    absolute: bool = False

    def of(self, mu: Gaussian | Particles) -> Tensor:
        mean, variance = _magnetisation(mu)
        if not self.absolute:
            return mean
        if isinstance(mu, Particles):
            return (mu.w * mu.x.mean(-1).abs()).sum(-1)
        spread = variance.sqrt()
        z = mean / (math.sqrt(2) * spread)
        return spread * math.sqrt(2 / math.pi) * torch.exp(-z.square()) + mean * torch.erf(z)


@dataclass(frozen=True)
class Susceptibility(Observable):
    """χ = spacing^d Σ_x Cov(φ_0, φ_x) = spacing^d N Var m, the response of E m to a uniform field.

    `absolute` takes Var|m| = E m² − (E|m|)² for Var m, as is done where a finite lattice changes the sign of m.
    """

    lattice: Lattice
    absolute: bool = False

    def of(self, mu: Gaussian | Particles) -> Tensor:
        mean, variance = _magnetisation(mu)
        if self.absolute:
            variance = variance + mean.square() - Magnetisation(absolute=True).of(mu).square()
        return _volume(self.lattice) * variance


@dataclass(frozen=True)
class StructureFactor(Observable):
    """S(k) = E|φ̂(k)|² of the field about its mean, (*batch, N): the eigenvalues of the translation average of cov."""

    lattice: Lattice

    def of(self, mu: Gaussian | Particles) -> Tensor:
        if isinstance(mu, Particles):
            power = (mu.w[..., None] * self.lattice.to_modes(mu.x - mu.mean[..., None, :]).square()).sum(-2)
        elif isinstance(mu.cov, Spectral):
            return mu.cov.values
        else:
            power = self.lattice.to_modes(self.lattice.to_modes(mu.cov).mT).diagonal(dim1=-2, dim2=-1)
        return (power + self.lattice.reflect(power)) / 2


@dataclass(frozen=True)
class TwoPoint(Observable):
    """G(r) = N⁻¹Σ_x Cov(φ_x, φ_{x+r}), (*batch, N), r as the sites of the lattice; `radial` averages over directions.

    By the fast Fourier transform of the structure factor (Wiener–Khinchin).
    """

    lattice: Lattice

    def of(self, mu: Gaussian | Particles) -> Tensor:
        spectrum = StructureFactor(self.lattice).of(mu)
        return self.lattice.to_modes(spectrum) / self.lattice.sites**0.5


@dataclass(frozen=True)
class CorrelationLength(Observable):
    """ξ with ξ² = (S(0)/S(k₁) − 1)/p̂₁², the second-moment definition; S(k₁) averaged over the axes that have two sites.

    k₁ is the smallest wave vector along an axis and p̂₁² = 4sin²(π/n)/spacing² the eigenvalue of −Δ there. ξ is 1/mass
    for a free field, on any lattice. nan where S(0) < S(k₁).
    Source: Cooper, Freedman, Preston, "Solving φ⁴ field theory with Monte Carlo" (1982).
    """

    lattice: Lattice

    def of(self, mu: Gaussian | Particles) -> Tensor:
        first = self._first()
        if not first:
            raise ValueError(f"{self.lattice} has no wave vector but 0, so no correlation length")
        S = StructureFactor(self.lattice).of(mu)
        momenta = self.lattice.laplacian(S)[first]
        return ((S[..., :1] / S[..., first] - 1) / momenta).mean(-1).sqrt()

    def _first(self) -> list[int]:
        """Indices of the smallest wave vectors along each axis."""
        strides = [math.prod(self.lattice.shape[a + 1 :]) for a in range(self.lattice.dim)]
        return [stride for stride, n in zip(strides, self.lattice.shape, strict=True) if n > 1]


@dataclass(frozen=True, eq=False)
class EffectivePotential(Observable):
    """U(m) = −log p(m)/(N spacing^d) at evenly spaced levels m, with p the density of the magnetisation; (*batch, k).

    The constraint effective potential: convex for a Gaussian, a double well where φ⁴ orders on a finite lattice. For
    Particles p is their share in the cell around each level, and U is infinite where no particle is.
    Source: O'Raifeartaigh, Wipf, Yoneyama, "The constraint effective potential" (1986).
    """

    lattice: Lattice
    levels: Tensor

    def __post_init__(self) -> None:
        gaps = self.levels.diff() if self.levels.ndim == 1 and len(self.levels) > 1 else self.levels.new_zeros(1)
        if not (gaps > 0).all() or not torch.allclose(gaps, gaps[0]):
            raise ValueError(f"levels must be at least two increasing, evenly spaced numbers, not {self.levels}")

    def of(self, mu: Gaussian | Particles) -> Tensor:
        if isinstance(mu, Particles):
            log_p = self._shares(mu).log()
        else:
            mean, variance = (moment[..., None] for moment in _magnetisation(mu))
            levels = self.levels.to(mean)
            log_p = -0.5 * ((levels - mean).square() / variance + torch.log(2 * math.pi * variance))
        return -log_p / _volume(self.lattice)

    def _shares(self, mu: Particles) -> Tensor:
        width = (self.levels[1] - self.levels[0]).to(mu.x)
        cell = torch.floor((mu.x.mean(-1) - self.levels[0].to(mu.x)) / width + 0.5).long()
        inside = (cell >= 0) & (cell < len(self.levels))
        mass = mu.x.new_zeros(*mu.batch, len(self.levels))
        return mass.scatter_add(-1, cell.clamp(0, len(self.levels) - 1), mu.w * inside) / width


def radial(values: Tensor, lattice: Lattice) -> tuple[Tensor, Tensor]:
    """(r, averages): values (*batch, N) on displacements averaged over those of equal length r, (k,) and (*batch, k).

    >>> radial(torch.tensor([5.0, 1.0, 0.0, 3.0]), Lattice(4))
    (tensor([0., 1., 2.]), tensor([5., 2., 0.]))
    """
    axes = [torch.arange(n, device=values.device) for n in lattice.shape]
    nearest = [torch.minimum(x, n - x).square() for x, n in zip(axes, lattice.shape, strict=True)]
    squares = torch.cartesian_prod(*nearest).reshape(lattice.sites, -1).sum(-1)
    lengths, shell = squares.unique(return_inverse=True)
    count = torch.bincount(shell).to(values)
    sums = values.new_zeros(*values.shape[:-1], len(lengths)).index_add(-1, shell, values)
    return lattice.spacing * lengths.to(values).sqrt(), sums / count


def _magnetisation(mu: Gaussian | Particles) -> tuple[Tensor, Tensor]:
    """Mean and variance of m, (*batch,)."""
    if isinstance(mu, Particles):
        m = mu.x.mean(-1)
        mean = (mu.w * m).sum(-1)
        return mean, (mu.w * (m - mean[..., None]).square()).sum(-1)
    if isinstance(mu.cov, Spectral):
        return mu.mean.mean(-1), mu.cov.values[..., 0] / mu.dim
    return mu.mean.mean(-1), mu.cov.mean((-2, -1))


def _reweighted(mu: Particles, w: Tensor) -> Particles:
    return mu.with_state(w=w / w.sum(-1, keepdim=True))


def _volume(lattice: Lattice) -> float:
    return lattice.sites * lattice.spacing**lattice.dim
