"""Symmetric matrices by their eigenvalues, whether stored densely or in Fourier modes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..measures.base import as_float, check_symmetric
from ..measures.covariance import identity
from ..measures.spectral import Spectral

Matrix = Any  # a Tensor (N, N) or a Spectral


@dataclass(frozen=True, eq=False)
class Modes:
    """A symmetric matrix: eigenvalues (*batch, N), how to name one, and how to go back from eigenvalues to a matrix."""

    values: Tensor
    build: Callable[[Tensor], Any]
    name: Callable[[int], str]
    rounding: float

    @property
    def matrix(self) -> Any:
        return self.build(self.values)

    @property
    def inverse(self) -> Any:
        return self.build(1 / self.values)

    def with_values(self, values: Tensor) -> Modes:
        """The matrix with the same eigenvectors and other eigenvalues."""
        return replace(self, values=values)

    def shifted(self, c: float) -> Modes:
        """The matrix plus c times the identity."""
        return self.with_values(self.values + c)

    @classmethod
    def of(cls, matrix: Matrix) -> Modes:
        """By the fast transform of a lattice, or by eigendecomposition."""
        if isinstance(matrix, Spectral):
            return cls(matrix.values, matrix.with_values, matrix.lattice.mode_name, 0.0)
        values, U = torch.linalg.eigh(matrix)

        def build(v: Tensor) -> Tensor:
            product = (U * v[..., None, :]) @ U.mT
            return (product + product.mT) / 2

        return cls(values, build, lambda k: _eigenvector(k, U), values.shape[-1] * torch.finfo(values.dtype).eps)

    def positive(self, what: str, scale: float = 0.0) -> Modes:
        """Itself; ValueError naming the worst mode unless every eigenvalue exceeds rounding.

        That is rounding of the largest eigenvalue of a dense matrix, and of `scale` where the matrix is a difference.
        """
        values = self.values.detach()
        k = int(values.argmin())
        floor = max(self.rounding * values.abs().max().item(), torch.finfo(values.dtype).eps * scale)
        if (smallest := values[k].item()) <= floor:
            state = "is indefinite" if smallest < -floor else "is singular"
            raise ValueError(f"{what} {state}: {self.name(k)} has the eigenvalue {smallest:.3g}; it must be positive")
        return self


def _eigenvector(k: int, U: Tensor) -> str:
    entries = ", ".join(f"{x:.3g}" for x in U[:6, k].tolist())
    return f"mode {k} of {len(U)} (eigenvector [{entries}{', …' if len(U) > 6 else ''}])"


def as_matrix(value: Any, name: str) -> Matrix:
    """A symmetric matrix (N, N) from a Spectral, a tensor, a list or a number (one site)."""
    if isinstance(value, Spectral):
        if value.values.ndim != 1 or not torch.isfinite(value.values).all():
            raise ValueError(f"{name} must be one Spectral with finite values (N,), not {tuple(value.values.shape)}")
        return value
    tensor = as_float(value, name)
    tensor = tensor.reshape(1, 1) if tensor.ndim == 0 else tensor
    if tensor.ndim != 2 or tensor.shape[0] != tensor.shape[1]:
        raise ValueError(f"{name} must be a symmetric matrix (N, N), not of shape {tuple(tensor.shape)}")
    return check_symmetric(tensor, name)


def root(matrix: Matrix) -> Matrix:
    """The symmetric square root of a positive semi-definite matrix; rounding below zero counts as zero."""
    modes = Modes.of(matrix)
    return modes.build(modes.values.clamp_min(0).sqrt())


def sandwich(half: Matrix, A: Matrix) -> Matrix:
    """half·A·half, symmetric."""
    check_same(half, A)
    return _symmetric(half @ A @ half)


def resolve(A: Matrix, C: Matrix) -> Matrix:
    """A(I + CA)⁻¹, symmetric."""
    if isinstance(A, Spectral):
        return A.with_values(A.values / (1 + C.values * A.values))
    return _symmetric(torch.linalg.solve(identity(A) + A @ C, A))


def damp(A: Matrix, C: Matrix, b: Tensor) -> Tensor:
    """(I + AC)⁻¹b for b (N,)."""
    if isinstance(A, Spectral):
        return b @ A.with_values(1 / (1 + C.values * A.values))
    return torch.linalg.solve(identity(A) + A @ C, b)


def check_same(A: Matrix, B: Matrix) -> None:
    """Refuse a dense matrix beside a Spectral."""
    if isinstance(A, Spectral) != isinstance(B, Spectral):
        raise TypeError("one matrix is dense and the other a Spectral: keep both Spectral, or pass .dense() of it")
    if A.shape[-1] != B.shape[-1]:
        raise ValueError(f"matrices on {A.shape[-1]} and {B.shape[-1]} sites")


def _symmetric(matrix: Matrix) -> Matrix:
    return matrix if isinstance(matrix, Spectral) else (matrix + matrix.mT) / 2
