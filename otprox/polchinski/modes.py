"""Symmetric matrices by their eigenvalues, whether stored densely or in Fourier modes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..measures.base import as_float, check_symmetric

Matrix = Tensor


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
        values, U = torch.linalg.eigh(matrix)

        def build(v: Tensor) -> Tensor:
            product = (U * v[..., None, :]) @ U.mT
            return (product + product.mT) / 2

        def name(k: int) -> str:
            vector = U.reshape(-1, *U.shape[-2:])[0, :, k]
            entries = ", ".join(f"{x:.3g}" for x in vector[:6].tolist())
            return f"mode {k} of {len(vector)} (eigenvector [{entries}{', …' if len(vector) > 6 else ''}])"

        return cls(values, build, name, values.shape[-1] * torch.finfo(values.dtype).eps)

    def positive(self, what: str, scale: float | None = None) -> Modes:
        """Itself; ValueError naming the worst mode unless every eigenvalue exceeds rounding of `scale`, the largest."""
        flat = self.values.detach().reshape(-1, self.values.shape[-1]).amin(0)
        k = int(flat.argmin())
        smallest = flat[k].item()
        largest = self.values.detach().abs().max().item() if scale is None else scale
        if smallest <= self.rounding * largest:
            state = "is indefinite" if smallest < -self.rounding * largest else "is singular"
            raise ValueError(f"{what} {state}: {self.name(k)} has the eigenvalue {smallest:.3g}; it must be positive")
        return self


def as_matrix(value: Any, name: str) -> Matrix:
    """A symmetric matrix (N, N) from a tensor, list or number (one site)."""
    tensor = as_float(value, name)
    tensor = tensor.reshape(1, 1) if tensor.ndim == 0 else tensor
    if tensor.ndim != 2 or tensor.shape[0] != tensor.shape[1]:
        raise ValueError(f"{name} must be a symmetric matrix (N, N), not of shape {tuple(tensor.shape)}")
    return check_symmetric(tensor, name)


def apply(matrix: Matrix, x: Tensor) -> Tensor:
    """Symmetric matrix times fields (…, N)."""
    return x @ matrix


def root(matrix: Matrix) -> Matrix:
    """The symmetric square root of a positive semi-definite matrix; rounding below zero counts as zero."""
    modes = Modes.of(matrix)
    return modes.build(modes.values.clamp_min(0).sqrt())


def sandwich(half: Matrix, A: Matrix) -> Matrix:
    """half·A·half, symmetric."""
    product = half @ A @ half
    return (product + product.mT) / 2


def resolve(A: Matrix, C: Matrix) -> Matrix:
    """A(I + CA)⁻¹, symmetric."""
    result = torch.linalg.solve(eye(A) + A @ C, A)
    return (result + result.mT) / 2


def damp(A: Matrix, C: Matrix, b: Tensor) -> Tensor:
    """(I + AC)⁻¹b."""
    return torch.linalg.solve(eye(A) + A @ C, b)


def eye(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)


def to_dense(matrix: Matrix) -> Tensor:
    """The matrix as a tensor (N, N)."""
    return matrix
