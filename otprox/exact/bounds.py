"""Rates, inequalities and local multipliers of the Gaussian schemes, and the floor that sampling puts under them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..measures import Gaussian
from .bures import apply, fisher_information, identity, kl, root, spectral, to_flat, w2_squared
from .proximal import forward_backward


def curvatures(target: Gaussian, Q: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """λ and L of −log π: the smallest and the largest eigenvalue of Q^½C⁻¹Q^½, (*batch,) each."""
    variances = torch.linalg.eigvalsh(to_flat(target, Q).cov)
    return 1 / variances[..., -1], 1 / variances[..., 0]


def linear_bound(w2_squared_0: Tensor | float, gamma: float, lam: Tensor | float, n: int) -> Tensor | float:
    """(1 − γλ)ⁿ W2²(μ₀, π) ≥ W2²(μₙ, π), forward-backward with γ < 1/L (Salim, Korba, Luise 2020)."""
    return (1 - gamma * lam) ** n * w2_squared_0


def sublinear_bound(w2_squared_0: Tensor | float, gamma: float, n: int) -> Tensor | float:
    """W2²(μ₀, π)/(2γn) ≥ KL(μₙ | π), forward-backward with γ < 1/L, λ = 0 allowed (the same paper)."""
    return w2_squared_0 / (2 * gamma * n)


def evi_gap_forward_backward(
    before: Gaussian, after: Gaussian, target: Gaussian, gamma: float, Q: Tensor | None = None
) -> Tensor:
    """(1 − γλ)W²(μ, π) − 2γ KL(μ₊ | π) − W²(μ₊, π) ≥ 0 for a forward-backward step with γ < 1/L; (*batch,).

    Salim, Korba, Luise (2020); rounding reaches about 1e-15·Tr of the covariances.
    """
    lam, _ = curvatures(target, Q)
    return (
        (1 - gamma * lam) * w2_squared(before, target, Q) - 2 * gamma * kl(after, target) - w2_squared(after, target, Q)
    )


def evi_gap_backward(
    before: Gaussian, after: Gaussian, other: Gaussian, target: Gaussian, tau: float, Q: Tensor | None = None
) -> Tensor:
    """W²(μ, σ) − 2τ(F(μ₊) − F(σ)) − (1 + λτ)W²(μ₊, σ) − W²(μ₊, μ) with F = KL(· | π), for any σ = `other`; (*batch,).

    Never negative for a JKO step: the discrete evolution variational inequality (Ambrosio, Gigli, Savaré 2008, §4.1).
    """
    lam, _ = curvatures(target, Q)
    return (
        w2_squared(before, other, Q)
        - 2 * tau * (kl(after, target) - kl(other, target))
        - (1 + lam * tau) * w2_squared(after, other, Q)
        - w2_squared(after, before, Q)
    )


def forward_backward_descent_bound(mu: Gaussian, target: Gaussian, gamma: float, Q: Tensor | None = None) -> Tensor:
    """The descent lemma of forward-backward, a bound on KL(μ₊ | π); (*batch,).

    KL(μ | π) − γ(1 − ½Lγ)‖∇V + ∇_W H(μ₊)∘X‖²_{L²(μ)}, X the map of the step (Salim, Korba, Luise 2020), γ < 1/L.
    """
    _, L = curvatures(target, Q)
    a, pi = to_flat(mu, Q), to_flat(target, Q)
    new = forward_backward(a, pi, gamma)
    precision = spectral(pi.cov, torch.reciprocal)
    B = identity(a) - gamma * precision
    field = precision - torch.linalg.solve(new.cov - gamma * identity(a), B)  # ∇H(μ₊)∘X = −(Σ₊ − γI)⁻¹B(x − m)
    norm2 = apply(precision, a.mean - pi.mean).square().sum(-1) + (field @ root(a.cov)).square().sum((-2, -1))
    return kl(mu, target) - gamma * (1 - 0.5 * L * gamma) * norm2


def forward_kl_descent_bound(mu: Gaussian, target: Gaussian, gamma: float, Q: Tensor | None = None) -> Tensor:
    """The descent lemma of the explicit step, a bound on KL(μ₊ | π); (*batch,).

    KL(μ | π) − γ(1 − ½γM) I(μ | π), with M = L + 1/(κ²·min Σ) and κ = min(1, min T), `min` the smallest eigenvalue and
    T = I − γ∇²log(μ/π) the map's gradient. Along the step F'' is at most ∫⟨ξ, C⁻¹ξ⟩dμ + Tr(S T⁻² S) ≤ M·I(μ | π),
    S = ∇²log(μ/π), since Tr S² ≤ Tr(SΣS)/min Σ.
    """
    _, L = curvatures(target, Q)
    a, pi = to_flat(mu, Q), to_flat(target, Q)
    T = identity(a) - gamma * (spectral(pi.cov, torch.reciprocal) - spectral(a.cov, torch.reciprocal))
    kappa = torch.linalg.eigvalsh(T)[..., 0].clamp_max(1)
    M = L + 1 / (kappa.square() * torch.linalg.eigvalsh(a.cov)[..., 0])
    return kl(mu, target) - gamma * (1 - 0.5 * gamma * M) * fisher_information(mu, target, Q)


class Multipliers(NamedTuple):
    """By what one step multiplies a small deviation of the mean, and of the variance, from the fixed point."""

    mean: float
    variance: float


class LocalMultipliers(NamedTuple):
    """`Multipliers` of each scheme."""

    forward_backward: Multipliers
    jko: Multipliers
    forward_kl: Multipliers
    ula: Multipliers


def local_multipliers(gamma: float, variance: float = 1.0) -> LocalMultipliers:
    """Along an eigenvector of the target's covariance with this variance, r = γ/variance.

    Forward-backward (1 − r, (1 − r)/(1 + r)), JKO (1/(1 + r), 1/(1 + 2r)), Forward(KL) (1 − r, 1 − 2r),
    Langevin (1 − r, (1 − r)²). W2² contracts by the square of the larger of the two in size.
    """
    r = gamma / variance
    return LocalMultipliers(
        Multipliers(1 - r, (1 - r) / (1 + r)),
        Multipliers(1 / (1 + r), 1 / (1 + 2 * r)),
        Multipliers(1 - r, 1 - 2 * r),
        Multipliers(1 - r, (1 - r) ** 2),
    )


def sampling_floor(target: Gaussian, n: int) -> Tensor:
    """E W2²(N(m̂, Ĉ), N(m, C)), m̂ and Ĉ (divided by n) those of n samples of N(m, C), to first order in 1/n; (*batch,).

    Tr C/n + (1/2n)[Σᵢⱼ cᵢcⱼ/(cᵢ + cⱼ) + ½Σᵢ cᵢ] with c the eigenvalues of C: the second derivative of the Bures
    distance against the covariance of a Wishart matrix. Needs d ≪ n; `sampling_floor_isotropic` does not.
    """
    c = torch.linalg.eigvalsh(target.cov)
    pairs = (c[..., :, None] * c[..., None, :]) / (c[..., :, None] + c[..., None, :])
    return c.sum(-1) / n + (pairs.sum((-2, -1)) + 0.5 * c.sum(-1)) / (2 * n)


def sampling_floor_isotropic(d: int, n: int, variance: float = 1.0, nodes: int = 400) -> float:
    """The same for C = variance·I and any ratio c = d/n ≤ 1, by the Marchenko–Pastur law.

    variance·(d/n + d∫(√x − 1)² dMP_c(x)), exact as n → ∞ at fixed d/n. The integral over the edges (1 ± √c)² is a
    trigonometric sum, exact to rounding.

    >>> round(sampling_floor_isotropic(1000, 10_000), 1)
    25.4
    """
    c = d / n
    if not 0 < c <= 1:
        raise ValueError(f"d/n must be in (0, 1], not {c:.3g}")
    theta = (torch.arange(nodes, dtype=torch.float64) + 0.5) * (math.pi / nodes)
    x = 1 + c + 2 * math.sqrt(c) * theta.cos()  # dMP = (2/π) sin²θ/x dθ
    mean = (2 / nodes) * ((x.sqrt() - 1).square() * theta.sin().square() / x).sum()
    return variance * (c + d * mean.item())
