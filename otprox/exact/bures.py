"""Distances, divergences, geodesics and exact flows of Gaussians, by eigenvalues and singular values."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..measures import Gaussian


def w2_squared(mu: Gaussian, nu: Gaussian, Q: Tensor | None = None) -> Tensor:
    """W2²(μ, ν) = |m − n|² + min over orthogonal U of ‖A^½ − B^½ U‖², for μ = N(m, A) and ν = N(n, B); (*batch,).

    The minimum is the Bures distance Tr A + Tr B − 2 Tr(A^½ B A^½)^½ (Gelbrich 1990; Bhatia, Jain, Lim 2019), here as
    an orthogonal Procrustes problem, which loses no digits when A is near B. `Q` is the matrix of the metric: the cost
    is ⟨x − y, Q⁻¹(x − y)⟩.

    >>> one = torch.ones(1, 1, dtype=torch.float64)
    >>> w2_squared(Gaussian(10 * one[0], 100 * one), Gaussian(0 * one[0], one)).item()
    181.0
    """
    mu, nu = to_flat(mu, Q), to_flat(nu, Q)
    a, b = root(mu.cov), root(nu.cov)
    left, _, right = torch.linalg.svd(b @ a)
    return (mu.mean - nu.mean).square().sum(-1) + (a - b @ left @ right).square().sum((-2, -1))


def kl(mu: Gaussian, nu: Gaussian) -> Tensor:
    """KL(μ | ν) = ½ Σᵢ (eᵢ − 1 − log eᵢ) + ½⟨m − n, B⁻¹(m − n)⟩, e the eigenvalues of B^−½ A B^−½; (*batch,)."""
    whiten = inverse_root(nu.cov)
    excess = torch.linalg.eigvalsh(symmetric(whiten @ mu.cov @ whiten)) - 1
    shift = apply(whiten, mu.mean - nu.mean)
    return 0.5 * (excess - torch.log1p(excess)).sum(-1) + 0.5 * shift.square().sum(-1)


def entropy(mu: Gaussian) -> Tensor:
    """∫ρ log ρ = −½ Σᵢ log(2πe σᵢ), σ the eigenvalues of the covariance; (*batch,)."""
    return -0.5 * (torch.linalg.eigvalsh(mu.cov) * (2 * torch.pi * torch.e)).log().sum(-1)


def fisher_information(mu: Gaussian, target: Gaussian | None = None, Q: Tensor | None = None) -> Tensor:
    """∫⟨ξ, Qξ⟩ dμ with ξ = ∇log(μ/π); (*batch,). Without a target ξ = ∇log μ.

    Along the flow of KL(· | π), or of the entropy, it is −dF/dt.
    """
    mu = to_flat(mu, Q)
    hessian, shift = -spectral(mu.cov, torch.reciprocal), torch.zeros_like(mu.mean)
    if target is not None:
        target = to_flat(target, Q)
        precision = spectral(target.cov, torch.reciprocal)
        hessian, shift = hessian + precision, apply(precision, mu.mean - target.mean)
    return shift.square().sum(-1) + (hessian @ root(mu.cov)).square().sum((-2, -1))


def optimal_map(mu: Gaussian, nu: Gaussian) -> Tensor:
    """The symmetric T with x ↦ n + T(x − m) optimal from μ to ν: A^−½(A^½ B A^½)^½ A^−½; (*batch, d, d)."""
    a, inverse = root(mu.cov), inverse_root(mu.cov)
    return symmetric(inverse @ root(symmetric(a @ nu.cov @ a)) @ inverse)


def geodesic(mu: Gaussian, nu: Gaussian, t: float, Q: Tensor | None = None) -> Gaussian:
    """Displacement interpolation (McCann 1997): the image of μ under (1 − t) id + t T, T optimal from μ to ν."""
    a, b = to_flat(mu, Q), to_flat(nu, Q)
    between = (1 - t) * identity(a) + t * optimal_map(a, b)
    return from_flat(image(a, between, (1 - t) * a.mean + t * b.mean), Q)


def heat(mu: Gaussian, t: float, Q: Tensor | None = None) -> Gaussian:
    """N(m, A + 2tQ), the solution of ∂t ρ = div(Q∇ρ)."""
    return gaussian(mu, mu.mean, mu.cov + 2 * t * (identity(mu) if Q is None else Q))


def ornstein_uhlenbeck(mu: Gaussian, target: Gaussian, t: float, Q: Tensor | None = None) -> Gaussian:
    """The solution of ∂t ρ = div(ρ Q∇log(ρ/π)), π = N(n, C), at time t.

    With E = exp(−t QC⁻¹): mean n + E(m − n), covariance C + E(A − C)Eᵀ.
    """
    a, pi = to_flat(mu, Q), to_flat(target, Q)
    decay = spectral(pi.cov, lambda c: torch.exp(-t / c))
    cov = pi.cov + decay @ (a.cov - pi.cov) @ decay
    return from_flat(gaussian(a, pi.mean + apply(decay, a.mean - pi.mean), cov), Q)


def trajectory(step: Callable[[Gaussian], Gaussian], mu: Gaussian, n: int) -> list[Gaussian]:
    """μ₀, …, μₙ with μₖ₊₁ = step(μₖ)."""
    path = [mu]
    for _ in range(n):
        path.append(step(path[-1]))
    return path


def spectral(matrix: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
    """f of a symmetric matrix (*batch, d, d), through its eigenvalues."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * f(values)[..., None, :]) @ vectors.mT


def root(matrix: Tensor) -> Tensor:
    """Symmetric square root of a positive semi-definite matrix."""
    return spectral(matrix, lambda s: s.clamp_min(0).sqrt())


def inverse_root(matrix: Tensor) -> Tensor:
    """Inverse of the symmetric square root."""
    return spectral(matrix, torch.rsqrt)


def symmetric(matrix: Tensor) -> Tensor:
    """(A + Aᵀ)/2, which removes rounding only."""
    return (matrix + matrix.mT) / 2


def apply(matrix: Tensor, vector: Tensor) -> Tensor:
    """Matrix times vector, batched."""
    return (matrix @ vector[..., None])[..., 0]


def identity(mu: Gaussian) -> Tensor:
    """I in the dtype and on the device of μ."""
    return torch.eye(mu.dim, dtype=mu.mean.dtype, device=mu.mean.device)


def gaussian(like: Gaussian, mean: Tensor, cov: Tensor) -> Gaussian:
    """N(mean, cov) with the quadrature of `like`, batches broadcast."""
    batch = torch.broadcast_shapes(mean.shape[:-1], cov.shape[:-2])
    return like.with_state(mean=mean.expand(*batch, -1), cov=symmetric(cov).expand(*batch, -1, -1))


def image(mu: Gaussian, A: Tensor, mean: Tensor) -> Gaussian:
    """Image of μ under x ↦ mean + A(x − m)."""
    return gaussian(mu, mean, A @ mu.cov @ A.mT)


def to_flat(mu: Gaussian, Q: Tensor | None) -> Gaussian:
    """μ in the coordinates Q^−½ x, where the cost ⟨z, Q⁻¹z⟩ is Euclidean."""
    if Q is None:
        return mu
    whiten = inverse_root(Q)
    return image(mu, whiten, apply(whiten, mu.mean))


def from_flat(mu: Gaussian, Q: Tensor | None) -> Gaussian:
    """The inverse of `to_flat`."""
    if Q is None:
        return mu
    colour = root(Q)
    return image(mu, colour, apply(colour, mu.mean))
