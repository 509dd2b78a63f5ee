"""Translation-invariant symmetric matrices on a lattice, as their eigenvalues: O(N) memory, O(N log N) products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..lattice import Lattice

DENSE_LIMIT = 2048  # sites beyond which a dense copy is refused


@dataclass(frozen=True, eq=False)
class Spectral:
    """The N × N matrix with eigenvalue values[k] on mode k of the lattice; values (*batch, N), even in k.

    It stands where a matrix (*batch, N, N) would: +, −, multiplication by numbers, and @ with another Spectral, with
    columns (*batch, N, k) or a vector (N,) on its right, or with rows (*batch, n, N) or a vector on its left.

    >>> A = Spectral(torch.tensor([1.0, 2.0, 2.0]), Lattice(3))
    >>> (A @ torch.ones(3)).round(decimals=3)
    tensor([1., 1., 1.])
    """

    values: Tensor
    lattice: Lattice

    def __post_init__(self) -> None:
        if self.values.shape[-1] != self.lattice.sites:
            raise ValueError(f"values has {self.values.shape[-1]} modes, and {self.lattice} {self.lattice.sites} sites")
        scale = self.values.abs().amax() if self.values.numel() else 0.0
        gap = (self.values - self.lattice.reflect(self.values)).abs()
        tolerance = 1e-8 if self.values.dtype == torch.float64 else 1e-4
        if (gap > tolerance * scale).any():
            k = int(gap.flatten(0, -2).amax(0).argmax()) if gap.ndim > 1 else int(gap.argmax())
            raise ValueError(
                f"values must be even in k, for a symmetric matrix; mode {k} differs from −k by {gap.max():.3g}"
            )

    @classmethod
    def of_row(cls, row: Tensor, lattice: Lattice) -> Spectral:
        """The matrix with this first row, (*batch, N)."""
        return cls(lattice.to_modes(row) * lattice.sites**0.5, lattice)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.values.shape, self.values.shape[-1]))

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def mT(self) -> Spectral:
        return self

    def with_values(self, values: Tensor) -> Spectral:
        """Another matrix on the same lattice; not checked again."""
        new = object.__new__(Spectral)
        object.__setattr__(new, "values", values)
        object.__setattr__(new, "lattice", self.lattice)
        return new

    def expand(self, *batch: int) -> Spectral:
        """The same matrix for every batch item."""
        return self.with_values(self.values.expand(*batch, -1))

    def row(self) -> Tensor:
        """The first row, (*batch, N): for a covariance, the two-point function."""
        return self.lattice.to_modes(self.values) / self.lattice.sites**0.5

    def diagonal(self) -> Tensor:
        """The diagonal, the same at each site, (*batch, N)."""
        return self.values.mean(-1, keepdim=True).expand_as(self.values)

    def trace(self) -> Tensor:
        return self.values.sum(-1)

    def logdet(self) -> Tensor:
        return self.values.log().sum(-1)

    def inverse(self) -> Spectral:
        return self.with_values(1 / self.values)

    def sqrt(self) -> Spectral:
        """The symmetric square root; ValueError when an eigenvalue is negative."""
        if (self.values < 0).any():
            raise ValueError(f"the matrix must be positive semi-definite to have a root; {self.lowest()}")
        return self.with_values(self.values.sqrt())

    def lowest(self) -> str:
        """The smallest eigenvalue and its mode, for messages."""
        k = int(self.values.argmin())
        mode = self.lattice.mode_name(k % self.lattice.sites)
        return f"smallest eigenvalue is {self.values.flatten()[k].item():.3g}, at {mode}"

    def dense(self) -> Tensor:
        """The matrix itself, (*batch, N, N); refused on lattices where it would not be wise."""
        N = self.lattice.sites
        if N > DENSE_LIMIT:
            size = N * N * self.values.element_size() / 2**30
            raise ValueError(
                f"a dense matrix on {N} sites would take {size:.2g} GiB; keep it Spectral (limit {DENSE_LIMIT})"
            )
        return self @ torch.eye(N, dtype=self.dtype, device=self.device)

    def __matmul__(self, other: Any) -> Any:
        if isinstance(other, Spectral):
            return self.with_values(self.values * self._same(other).values)
        if not isinstance(other, Tensor):
            return NotImplemented
        return other @ self if other.ndim == 1 else self._apply(other.mT).mT

    def __rmatmul__(self, rows: Any) -> Any:
        if not isinstance(rows, Tensor):
            return NotImplemented
        return self._apply(rows[None])[..., 0, :] if rows.ndim == 1 else self._apply(rows)

    def _apply(self, rows: Tensor) -> Tensor:
        modes = self.lattice.to_modes(rows) * self.values[..., None, :]
        return self.lattice.to_modes(modes)

    def __add__(self, other: Spectral) -> Spectral:
        if not isinstance(other, Spectral):
            return NotImplemented
        return self.with_values(self.values + self._same(other).values)

    def __sub__(self, other: Spectral) -> Spectral:
        if not isinstance(other, Spectral):
            return NotImplemented
        return self.with_values(self.values - self._same(other).values)

    def __neg__(self) -> Spectral:
        return self.with_values(-self.values)

    def __mul__(self, c: float | Tensor) -> Spectral:
        if isinstance(c, Spectral):
            return NotImplemented
        return self.with_values(self.values * (c[..., None] if isinstance(c, Tensor) else c))

    __rmul__ = __mul__

    def __truediv__(self, c: float | Tensor) -> Spectral:
        return self * (1 / c)

    def _same(self, other: Spectral) -> Spectral:
        if other.lattice != self.lattice:
            raise ValueError(f"matrices on two lattices, {self.lattice} and {other.lattice}")
        return other
