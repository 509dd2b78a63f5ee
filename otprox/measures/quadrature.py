"""Rules for integrals against a Gaussian: nodes z and weights w with Σ w f(z) ≈ E f(Z), Z ~ N(0, I)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor


class Quadrature(Protocol):
    """A rule for N(0, I) in d dimensions."""

    def nodes(self, dim: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """z (n, d) and w (n,)."""
        ...


@dataclass(frozen=True)
class GaussHermite:
    """Tensor Gauss–Hermite rule, `order` nodes an axis: exact for polynomials of degree 2·order − 1 in each variable.

    order^d nodes, so for low dimension (d ≤ 3).
    """

    order: int = 32

    def nodes(self, dim: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        return _gauss_hermite(self.order, dim, dtype, device)


@dataclass(frozen=True)
class Trapezoidal:
    """The trapezoidal rule on the lattice of multiples of `spacing`, cut where the Gaussian is the rounding of 1.

    Its error for smooth functions falls like e^{−2π²/spacing²}: 6e-16 at 0.75. About (17/spacing)^d nodes, so for low
    dimension (d ≤ 3); the nodes are those of a grid, which integrals around many particles share.
    """

    spacing: float = 0.75

    def __post_init__(self) -> None:
        if not 0 < self.spacing <= 2:
            raise ValueError(f"spacing must be in (0, 2], in standard deviations of the Gaussian; got {self.spacing}")

    def nodes(self, dim: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        last = int(math.sqrt(-2 * math.log(torch.finfo(torch.float64).eps)) / self.spacing)
        z = self.spacing * torch.arange(-last, last + 1, dtype=torch.float64)
        return _tensor_rule(z, (-0.5 * z.square()).exp(), dim, dtype, device)


@dataclass(frozen=True)
class Samples:
    """Seeded samples, antithetic and whitened so that mean 0 and covariance I hold exactly: affine fields and quadratic
    functions are integrated exactly, the rest at the Monte Carlo rate. Fewer than 2·d nodes are raised to 2·d."""

    n: int = 1024
    seed: int = 0

    def nodes(self, dim: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        return _samples(max(self.n // 2, dim), self.seed, dim, dtype, device)


@dataclass(frozen=True)
class Antithetic:
    """Seeded samples and their mirror images, n in all: odd functions are integrated exactly, the rest at the Monte
    Carlo rate. For dimensions where whitening `Samples` would cost more than the integral."""

    n: int = 256
    seed: int = 0

    def nodes(self, dim: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        z = torch.randn(self.n // 2, dim, generator=generator, dtype=torch.float64)
        z = torch.cat([z, -z]).to(device, dtype)
        return z, z.new_full((len(z),), 1 / len(z))


def default_quadrature(dim: int) -> Quadrature:
    """Gauss–Hermite up to d = 3 (32, 32² and 16³ nodes), seeded samples beyond."""
    if dim <= 3:
        return GaussHermite(32 if dim < 3 else 16)
    return Samples(max(1024, 4 * dim))


@lru_cache(maxsize=16)
def _gauss_hermite(order: int, dim: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    k = torch.arange(1, order, dtype=torch.float64)
    jacobi = torch.diag(k.sqrt(), 1) + torch.diag(k.sqrt(), -1)  # Golub–Welsch: eigenvalues are the nodes
    z, vectors = torch.linalg.eigh(jacobi)
    return _tensor_rule(z, vectors[0] ** 2, dim, dtype, device)


def _tensor_rule(z: Tensor, w: Tensor, dim: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """The rule of nodes z and weights w on a line, along every axis."""
    if len(z) ** dim > 2_000_000:
        raise ValueError(
            f"{len(z)} nodes an axis are {len(z)}^{dim} in dimension {dim}; take fewer, or Samples(n, seed)"
        )
    nodes = torch.cartesian_prod(*[z] * dim).reshape(-1, dim)
    weights = torch.cartesian_prod(*[w] * dim).reshape(-1, dim).prod(-1)
    return nodes.to(device, dtype), (weights / weights.sum()).to(device, dtype)


@lru_cache(maxsize=4)
def _samples(half: int, seed: int, dim: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(half, dim, generator=generator, dtype=torch.float64)
    factor = torch.linalg.cholesky(z.mT @ z / half)
    z = torch.linalg.solve_triangular(factor, z.mT, upper=False).mT  # whitened: zᵀz / half = I
    z = torch.cat([z, -z])
    return z.to(device, dtype), torch.full((2 * half,), 1 / (2 * half), dtype=dtype, device=device)


def log_normaliser(cov_logdet: Tensor, dim: int) -> Tensor:
    """½ log det(2πΣ)."""
    return 0.5 * (cov_logdet + dim * math.log(2 * math.pi))
