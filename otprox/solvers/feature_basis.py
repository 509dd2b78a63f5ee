"""Spaces of scalar features with their gradients and Hessians, for maps that are gradients of their combinations."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


class Basis(ABC):
    """Functions ψ_1, …, ψ_K on R^d, in coordinates of zero mean and unit variance along each axis."""

    @abstractmethod
    def derivatives(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """∇ψ_k (*batch, n, K, d) and ∇²ψ_k (*batch, n, K, d, d) at points z (*batch, n, d)."""


@dataclass(frozen=True)
class Hermite(Basis):
    """Products of Hermite polynomials of total degree 1 to `degree`: binom(d + degree, d) − 1 features.

    degree = 2 spans the affine maps. Normalised to unit variance under N(0, I): h_p' = √p·h_{p−1}.
    """

    degree: int

    def __post_init__(self) -> None:
        if self.degree < 1:
            raise ValueError(f"degree must be at least 1, not {self.degree}")

    def derivatives(self, z: Tensor) -> tuple[Tensor, Tensor]:
        powers = torch.tensor(_exponents(z.shape[-1], self.degree), device=z.device)  # (K, d)
        tables = self._tables(z)
        factors = torch.stack([table[..., torch.arange(z.shape[-1]), powers] for table in tables])  # (3, …, n, K, d)
        d = z.shape[-1]
        slopes = torch.stack([self._product(factors, (i,)) for i in range(d)], -1)
        bends = [torch.stack([self._product(factors, (i, j)) for j in range(d)], -1) for i in range(d)]
        return slopes, torch.stack(bends, -2)

    def _tables(self, z: Tensor) -> list[Tensor]:
        """h_p, h_p', h_p'' on each axis, (*batch, n, d, degree + 1)."""
        h = [torch.ones_like(z), z]
        for p in range(1, self.degree):
            h.append((z * h[p] - math.sqrt(p) * h[p - 1]) / math.sqrt(p + 1))
        zero = torch.zeros_like(z)
        first = [math.sqrt(p) * h[p - 1] if p else zero for p in range(self.degree + 1)]
        second = [math.sqrt(p) * first[p - 1] if p else zero for p in range(self.degree + 1)]
        return [torch.stack(column[: self.degree + 1], -1) for column in (h, first, second)]

    @staticmethod
    def _product(factors: Tensor, axes: tuple[int, ...]) -> Tensor:
        """∂ψ along the axes, (*batch, n, K)."""
        orders = [axes.count(a) for a in range(factors.shape[-1])]
        return torch.stack([factors[order, ..., a] for a, order in enumerate(orders)]).prod(0)


@dataclass(frozen=True, eq=False)
class Cosines(Basis):
    """cos(⟨ω_k, z⟩ + b_k) with ω_k ~ N(0, I/width²) and b_k uniform, beside the polynomials of degree 1 and 2.

    Random Fourier features (Rahimi, Recht 2007); `seed` fixes them.
    """

    count: int
    width: float = 1.0
    seed: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        if self.count < 1 or not self.width > 0:
            raise ValueError(
                f"Cosines needs a positive count and width, not count = {self.count} and width = {self.width}"
            )

    def derivatives(self, z: Tensor) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        omega = torch.randn(self.count, z.shape[-1], generator=generator, dtype=torch.float64).to(z) / self.width
        phase = 2 * math.pi * torch.rand(self.count, generator=generator, dtype=torch.float64).to(z)
        angle = z @ omega.mT + phase
        slopes = -angle.sin()[..., None] * omega
        bends = -angle.cos()[..., None, None] * (omega[:, :, None] * omega[:, None, :])
        affine = Hermite(2).derivatives(z)
        return torch.cat([affine[0], slopes], -2), torch.cat([affine[1], bends], -3)


@dataclass(frozen=True, eq=False)
class Custom(Basis):
    """Features given by a callable ψ: (…, d) -> (…, K), differentiated automatically."""

    psi: Callable[[Tensor], Tensor]

    def derivatives(self, z: Tensor) -> tuple[Tensor, Tensor]:
        flat = z.reshape(-1, z.shape[-1])
        slopes = torch.func.vmap(torch.func.jacrev(self.psi))(flat)
        bends = torch.func.vmap(torch.func.jacfwd(torch.func.jacrev(self.psi)))(flat)
        return slopes.reshape(*z.shape[:-1], *slopes.shape[1:]), bends.reshape(*z.shape[:-1], *bends.shape[1:])


def _exponents(d: int, degree: int) -> list[tuple[int, ...]]:
    """Exponents of total degree 1 to `degree` on d axes, low degrees first."""
    found = []
    for total in range(1, degree + 1):
        for axes in itertools.combinations_with_replacement(range(d), total):
            found.append(tuple(axes.count(a) for a in range(d)))
    return found
