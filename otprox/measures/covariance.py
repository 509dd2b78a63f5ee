"""What Gaussians ask of a covariance, for a dense matrix (a Tensor) and for a Spectral one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from .base import as_float, check_alike, check_spd, check_symmetric
from .spectral import Spectral

if TYPE_CHECKING:
    Matrix = Tensor  # to a type checker; a Spectral offers the operations that are used
    Matrices = Tensor
else:
    Matrix = Float[Tensor, "*batch d d"] | Spectral
    Matrices = Float[Tensor, "... d d"] | Spectral


def as_matrix(value: Any, name: str, like: Tensor | None = None, *, definite: bool = True) -> Any:
    """A symmetric (by default positive definite) matrix from what a user gave, or an error with its number."""
    if not isinstance(value, Spectral):
        tensor = as_float(value, name, like=like)
        return check_spd(tensor, name) if definite else check_symmetric(tensor, name)
    as_float(value.values, name)
    if like is not None:
        check_alike(value.values, name, like)
    if definite and not (value.values > 0).all():
        raise ValueError(f"{name} must be symmetric positive definite; {value.lowest()}")
    return value


def cholesky(matrix: Any) -> Any:
    """A factor L with LLᵀ = matrix: lower triangular when dense, the symmetric root when Spectral."""
    if isinstance(matrix, Spectral):
        return matrix.sqrt()
    try:
        return torch.linalg.cholesky(matrix)
    except torch.linalg.LinAlgError as error:
        smallest = torch.linalg.eigvalsh(matrix).min().item()
        raise ValueError(
            f"this needs a positive definite covariance; its smallest eigenvalue is {smallest:.3g}. A Forward step "
            "with tau = 1/L flattens a direction: take tau below it"
        ) from error


def slope(L: Any, z: Tensor, w: Tensor, values: Tensor) -> Any:
    """J for which z ↦ JLz is nearest to `values` (*batch, n, d) at centred nodes z (n, d) of weights w.

    For a factor L of `cholesky` and a rule with Σ w zzᵀ = I it is E[v zᵀ]L⁻¹, E ∇v by Stein's lemma. For a Spectral L
    it is the nearest translation-invariant J, by regression in each pair of modes ±k: exact for such fields on any
    nodes.
    """
    if not isinstance(L, Spectral):
        products = values.mT @ (w[:, None] * z)
        return torch.linalg.solve_triangular(L, products, upper=False, left=False)
    x, v = L.lattice.to_modes(z @ L), L.lattice.to_modes(values)
    up, down = ((w[:, None] * t).sum(-2) for t in (v * x, x.square()))
    return L.with_values((up + L.lattice.reflect(up)) / (down + L.lattice.reflect(down)))


def solve_rows(L: Any, x: Tensor) -> Tensor:
    """L⁻¹ applied to each row of x (*batch, n, d), for a factor L of `cholesky`."""
    if isinstance(L, Spectral):
        return x @ L.inverse()
    return torch.linalg.solve_triangular(L, x.mT, upper=False).mT


def solve_rows_transposed(L: Any, x: Tensor) -> Tensor:
    """L⁻ᵀ applied to each row of x."""
    if isinstance(L, Spectral):
        return x @ L.inverse()
    return torch.linalg.solve_triangular(L.mT, x.mT, upper=True).mT


def logdet(L: Any) -> Tensor:
    """log det LLᵀ from a factor L."""
    if isinstance(L, Spectral):
        return 2 * L.logdet()
    return 2 * L.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def inverse(matrix: Any) -> Any:
    """The inverse of a positive definite matrix."""
    return matrix.inverse() if isinstance(matrix, Spectral) else torch.cholesky_inverse(torch.linalg.cholesky(matrix))


def factor_inverse(L: Any) -> Any:
    """L⁻¹ for a factor of `cholesky`."""
    if isinstance(L, Spectral):
        return L.inverse()
    return torch.linalg.solve_triangular(L, torch.eye(L.shape[-1], dtype=L.dtype, device=L.device), upper=False)


def trace(matrix: Any) -> Tensor:
    """The trace, (*batch,)."""
    return matrix.trace() if isinstance(matrix, Spectral) else matrix.diagonal(dim1=-2, dim2=-1).sum(-1)


def eigenvalues(matrix: Any) -> Tensor:
    """The eigenvalues, (*batch, d)."""
    return matrix.values if isinstance(matrix, Spectral) else torch.linalg.eigvalsh(matrix)


def inner(A: Any, B: Any) -> Tensor:
    """tr(AB) of symmetric matrices, (*batch,)."""
    if isinstance(A, Spectral) and isinstance(B, Spectral):
        return (A @ B).trace()
    return (dense(A) * dense(B)).sum((-2, -1))


def dense(matrix: Any) -> Tensor:
    """The matrix as a Tensor."""
    return matrix.dense() if isinstance(matrix, Spectral) else matrix


def alike(matrix: Any, like: Any) -> Any:
    """A Spectral matrix as a dense one where `like` is dense; TypeError for a dense matrix where `like` is Spectral."""
    if isinstance(like, Spectral) == isinstance(matrix, Spectral):
        return matrix
    if isinstance(matrix, Spectral):
        return dense(matrix)
    raise TypeError(
        f"a dense {tuple(matrix.shape)} matrix with a Spectral covariance: give it as Spectral(values, lattice), or "
        "make the covariance dense with cov.dense()"
    )


def exponential(matrix: Any) -> Any:
    """The exponential of a symmetric matrix, by its eigenvalues."""
    if isinstance(matrix, Spectral):
        return matrix.with_values(matrix.values.exp())
    values, U = torch.linalg.eigh(matrix)
    return (U * values.exp()[..., None, :]) @ U.mT


def identity(like: Any) -> Any:
    """The identity of the kind and size of `like`."""
    if isinstance(like, Spectral):
        return like.with_values(like.values.new_ones(like.lattice.sites))
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)


def expand(matrix: Any, batch: torch.Size) -> Any:
    """The matrix for every batch item."""
    return matrix.expand(*batch) if isinstance(matrix, Spectral) else matrix.expand(*batch, -1, -1)


def tensor_of(matrix: Any) -> Tensor:
    """The numbers that make the matrix."""
    return matrix.values if isinstance(matrix, Spectral) else matrix
