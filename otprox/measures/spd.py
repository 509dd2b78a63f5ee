"""Functions of symmetric positive definite matrices, with gradients that stay finite at repeated eigenvalues."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

Divided = Callable[[Tensor, Tensor], Tensor]  # f[x, y] = (f(x) − f(y))/(x − y), and f'(x) at x = y


@dataclass(frozen=True, eq=False)
class Spectrum:
    """A symmetric matrix A = U diag(λ) Uᵀ, ready for functions of it: one eigendecomposition serves them all.

    `values` λ (*batch, d) ascend and are differentiable in symmetric combinations such as sums; `vectors` U
    (*batch, d, d) are not differentiable.
    """

    matrix: Tensor
    values: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, A: Float[Tensor, "*batch d d"]) -> Spectrum:
        """The eigendecomposition of a symmetric matrix (its lower triangle is read)."""
        values, vectors = torch.linalg.eigh(A)
        return cls(A, values, vectors.detach())

    def map(self, f: Callable[[Tensor], Tensor], divided: Divided) -> Tensor:
        """f(A) = U f(λ) Uᵀ. Gradients flow to A, not to parameters inside f."""
        return _Map.apply(self.matrix, self.values.detach(), self.vectors, f, divided)


def spectral(
    A: Float[Tensor, "*batch d d"], f: Callable[[Tensor], Tensor], df: Callable[[Tensor], Tensor]
) -> Float[Tensor, "*batch d d"]:
    """f(A) = U f(λ) Uᵀ for symmetric A = U diag(λ) Uᵀ; f and its derivative df act on eigenvalues (*batch, d).

    The backward is the formula of Daleckii and Krein (1965): with divided differences f[λi, λj], and df where
    eigenvalues meet, it is finite at repeated eigenvalues. Differentiable once.
    """
    return Spectrum.of(A).map(f, divided_difference(f, df))


def divided_difference(f: Callable[[Tensor], Tensor], df: Callable[[Tensor], Tensor]) -> Divided:
    """f[x, y] from f and df: the difference quotient, or df at the midpoint when x and y nearly meet.

    Both errors balance at a relative gap of eps^⅓, so about ten digits are right in float64. Give `Spectrum.map` an
    exact f[x, y] where one is known.
    """

    def divided(x: Tensor, y: Tensor) -> Tensor:
        gap = x - y
        near = gap.abs() <= torch.finfo(x.dtype).eps ** (1 / 3) * torch.maximum(x.abs(), y.abs())
        quotient = (f(x) - f(y)) / torch.where(near, torch.ones_like(gap), gap)
        return torch.where(near, df((x + y) / 2), quotient)

    return divided


class _Map(torch.autograd.Function):
    """A ↦ U f(λ) Uᵀ, with the eigendecomposition of A given."""

    @staticmethod
    def forward(ctx: Any, A: Tensor, values: Tensor, vectors: Tensor, f: Any, divided: Divided) -> Tensor:
        ctx.divided = divided
        ctx.save_for_backward(values, vectors)
        return symmetrise((vectors * f(values)[..., None, :]) @ vectors.mT)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        values, U = ctx.saved_tensors
        loewner = ctx.divided(values[..., :, None], values[..., None, :])
        return symmetrise(U @ (loewner * (U.mT @ symmetrise(grad) @ U)) @ U.mT), None, None, None, None


def sqrtm(A: Float[Tensor, "*batch d d"]) -> Float[Tensor, "*batch d d"]:
    """The symmetric square root. Rounding below zero counts as zero; the gradient is finite for A ≻ 0."""
    return Spectrum.of(A).map(lambda x: x.clamp_min(0).sqrt(), _sqrt_divided)


def _sqrt_divided(x: Tensor, y: Tensor) -> Tensor:
    return 1 / (x.clamp_min(0).sqrt() + y.clamp_min(0).sqrt())


def optimal_map(A: Float[Tensor, "*#batch d d"], B: Float[Tensor, "*#batch d d"]) -> Float[Tensor, "*out d d"]:
    """The symmetric positive definite T with T A T = B: the optimal map from N(0, A) to N(0, B) is x ↦ Tx.

    T = L⁻ᵀ (Lᵀ B L)^½ L⁻¹ for any root A = L Lᵀ, here Cholesky's.
    """
    L = torch.linalg.cholesky(A)
    root = sqrtm(symmetrise(L.mT @ B @ L))
    half = torch.linalg.solve_triangular(L, root, upper=False, left=False)
    return symmetrise(torch.linalg.solve_triangular(L.mT, half, upper=True))


def bures2(A: Float[Tensor, "*#batch d d"], B: Float[Tensor, "*#batch d d"]) -> Float[Tensor, "*out"]:
    """Squared Bures distance tr A + tr B − 2 tr (A^½ B A^½)^½ = W2²(N(0, A), N(0, B)).

    Computed as min ‖L − K U‖² over orthogonal U, with A = L Lᵀ, B = K Kᵀ (Bhatia, Jain, Lim 2019): never negative, and
    without the cancellation of the traces when A is near B. The gradient is I − T, T the optimal map, by the envelope
    theorem; it needs A, B ≻ 0 and is differentiable once more.
    """
    return _Bures2.apply(*torch.broadcast_tensors(A, B))


class _Bures2(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, A: Tensor, B: Tensor) -> Tensor:
        ctx.save_for_backward(A, B)
        L, K = root(A), root(B)
        P, _, R = torch.linalg.svd(K.mT @ L)
        return (L - K @ (P @ R)).square().sum((-2, -1))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        A, B = ctx.saved_tensors
        eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
        weight = grad[..., None, None]
        return weight * (eye - optimal_map(A, B)), weight * (eye - optimal_map(B, A))


def root(A: Tensor) -> Tensor:
    """Some L with L Lᵀ = A: Cholesky's, or the symmetric one where A is singular."""
    L, info = torch.linalg.cholesky_ex(A)
    if not info.any():
        return L
    values, vectors = torch.linalg.eigh(A)
    symmetric = (vectors * values.clamp_min(0).sqrt()[..., None, :]) @ vectors.mT
    return torch.where((info != 0)[..., None, None], symmetric, L)


def whiten(A: Tensor, L: Tensor) -> Tensor:
    """L⁻¹ A L⁻ᵀ for lower triangular L and symmetric A."""
    half = torch.linalg.solve_triangular(L, A, upper=False)
    return symmetrise(torch.linalg.solve_triangular(L, half.mT, upper=False))


def symmetrise(A: Tensor) -> Tensor:
    """(A + Aᵀ)/2."""
    return (A + A.mT) / 2
