"""Lattice spacing to zero and size to infinity: the free field against the continuum, and φ⁴ with its mass."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..lattice import Lattice
from ..measures import Gaussian
from ..measures.spectral import Spectral
from .estimates import Estimate
from .models import Phi4
from .observables import TwoPoint
from .reference import LongRun


@dataclass(frozen=True)
class Ladder:
    """A value on finer and finer (or larger and larger) lattices, its target, and how fast the error falls."""

    rungs: list[float]
    values: list[float]
    targets: list[float]

    @property
    def errors(self) -> list[float]:
        return [abs(value - target) for value, target in zip(self.values, self.targets, strict=True)]

    @property
    def orders(self) -> list[float]:
        """log(e₁/e₂)/log(h₁/h₂) between neighbours: the order in a spacing h."""
        return [math.log(a / b) / math.log(g / h) for a, b, g, h in self._pairs()]

    @property
    def rates(self) -> list[float]:
        """log(e₁/e₂)/(L₂ − L₁) between neighbours: the rate of an exponential in a size L."""
        return [math.log(a / b) / (h - g) for a, b, g, h in self._pairs()]

    def _pairs(self) -> Iterable[tuple[float, float, float, float]]:
        return zip(self.errors, self.errors[1:], self.rungs, self.rungs[1:], strict=False)


def free_field(lattice: Lattice, mass: float) -> Gaussian:
    """The free field on a lattice, of covariance (spacing^d(−Δ + mass²))⁻¹, in float64."""
    cov = _covariance(lattice, mass)
    return Gaussian(torch.zeros_like(cov.values), cov)


def _covariance(lattice: Lattice, mass: float) -> Spectral:
    symbol = lattice.laplacian(torch.zeros(lattice.sites, dtype=torch.float64)) + mass**2
    return Spectral(lattice.spacing**-lattice.dim / symbol, lattice)


def continuum(r: float, mass: float, dim: int, length: float = math.inf) -> float:
    """The two-point function of the free field at distance r along an axis, in R^d or on a torus of that length.

    e^{−mr}/2m, K₀(mr)/2π and e^{−mr}/4πr for d = 1, 2, 3, summed over the images of a torus.
    """
    shifts = (
        [0.0] if math.isinf(length) else [k * length for k in range(-_reach(mass, length), _reach(mass, length) + 1)]
    )
    axis = torch.tensor(shifts, dtype=torch.float64)
    squares = (r + axis).square()
    for _ in range(dim - 1):
        squares = (squares[..., None] + axis.square()).flatten()
    x = squares.sqrt()
    if dim == 2:
        return (torch.special.modified_bessel_k0(mass * x) / (2 * math.pi)).sum().item()
    kernel = torch.exp(-mass * x)
    return (kernel / (2 * mass) if dim == 1 else kernel / (4 * math.pi * x)).sum().item()


def _reach(mass: float, length: float) -> int:
    return math.ceil(40 / (mass * length))


def spacings(counts: Sequence[int], dim: int, *, mass: float = 1.0, length: float = 4.0) -> Ladder:
    """G at a quarter of the torus, on `counts` sites an axis (multiples of 4), against the continuum torus: order 2."""
    if any(n % 4 for n in counts):
        raise ValueError(f"counts must be multiples of 4, for a site at a quarter of the torus, not {list(counts)}")
    values = [_along_axis(Lattice((n,) * dim, length / n), mass, n // 4) for n in counts]
    return Ladder([length / n for n in counts], values, [continuum(length / 4, mass, dim, length)] * len(values))


def sizes(counts: Sequence[int], dim: int, *, mass: float = 1.0, spacing: float = 0.25, sites: int = 2) -> Ladder:
    """G at a distance of `sites` on tori of `counts` sites an axis, against a torus so large that it has no size.

    The error falls as e^{−θL}, θ the inverse correlation length along an axis of that spacing, 4sinh²(θ·spacing/2) =
    (mass·spacing)².
    """
    huge = math.ceil(40 / (mass * spacing))
    target = _along_axis(Lattice((huge + huge % 2,) * dim, spacing), mass, sites)
    values = [_along_axis(Lattice((n,) * dim, spacing), mass, sites) for n in counts]
    return Ladder([n * spacing for n in counts], values, [target] * len(values))


def _along_axis(lattice: Lattice, mass: float, sites: int) -> float:
    return TwoPoint(lattice)(free_field(lattice, mass))[sites].item()


@dataclass(frozen=True, eq=False)
class Refined:
    """φ⁴ at one spacing: the counterterm in the mass, E φ² of the free field, and E φ² and χ as sampled."""

    spacing: float
    counterterm: float
    free: float
    square: Estimate
    susceptibility: Estimate


def phi4_spacings(
    counts: Sequence[int],
    generator: torch.Generator,
    *,
    g: float = 1.0,
    mass: float = 1.0,
    length: float = 4.0,
    wick: bool = False,
    chains: int = 32,
    samples: int = 400,
) -> list[Refined]:
    """φ⁴ on a 2-D torus of fixed length and couplings, on finer and finer lattices: ½|∇φ|² + ½mass²φ² + ¼gφ⁴.

    With fixed couplings E φ² grows as log(1/spacing)/2π, which makes the particle heavier by 3gE φ² and χ fall to 0.
    `wick` takes ¼g:φ⁴: in place of ¼gφ⁴, the counterterm −3gG(0) in μ, G(0) = E φ² of the free field: χ and E :φ²: =
    E φ² − G(0) then converge (Glimm, Jaffe, "Quantum Physics", 8.5).
    """
    return [_refined(Lattice((n, n), length / n), generator, g, mass, wick, chains, samples) for n in counts]


def _refined(
    lattice: Lattice, generator: torch.Generator, g: float, mass: float, wick: bool, chains: int, samples: int
) -> Refined:
    cov = _covariance(lattice, mass)
    free = cov.row()[0].item()
    mu = -3 * g * free if wick else 0.0
    heavier = cov.inverse() + cov.with_values(torch.full_like(cov.values, 2 * g * lattice.spacing**2))
    run = LongRun(Phi4(g, mu, lattice), cov.inverse(), heavier, chains=chains, samples=samples)
    volume = lattice.sites * lattice.spacing**2
    seen = run.expect(generator, square=_mean_square, chi=lambda phi: volume * phi.mean(-1).square())
    return Refined(lattice.spacing, mu, free, seen["square"], seen["chi"])


def _mean_square(phi: Tensor) -> Tensor:
    return phi.square().mean(-1)
