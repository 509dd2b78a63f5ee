"""Proximal maps and one-step schemes on Gaussians in closed form, for covariances that need not commute.

prox_{γF}(μ) = argmin over ν of F(ν) + W2²(μ, ν)/(2γ). `Q` is always the matrix of the metric (cost ⟨z, Q⁻¹z⟩); every
formula is printed for Q = I, to which the coordinates Q^−½x reduce the general case.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..functionals import Quadratic
from ..measures import Gaussian
from .bures import apply, from_flat, gaussian, identity, image, root, spectral, symmetric, to_flat


def prox_entropy(mu: Gaussian, gamma: float, Q: Tensor | None = None) -> Gaussian:
    """Prox of γ∫ρ log ρ: mean unchanged, Σ' = ½[Σ + 2γI + (Σ² + 4γΣ)^½] (Wibisono 2018, in the commuting form).

    It is the root of (I − γΣ'⁻¹)Σ'(I − γΣ'⁻¹) = Σ with Σ' > γI, and commutes with Σ. Σ may be singular.

    >>> mu = Gaussian(torch.zeros(1), 2 * torch.ones(1, 1))
    >>> prox_entropy(mu, 0.25).cov.item()  # (2 + ½ + √6)/2
    2.4747...
    """
    _check_positive("gamma", gamma)
    a = to_flat(mu, Q)
    return from_flat(gaussian(a, a.mean, spectral(a.cov, lambda s: grow(s.clamp_min(0), gamma))), Q)


def prox_potential(mu: Gaussian, V: Quadratic, gamma: float, Q: Tensor | None = None) -> Gaussian:
    """Prox of γ∫V dμ, V = ½⟨x − b, H(x − b)⟩: the image of μ under prox_{γV} = b + B(x − b), B = (I + γQH)⁻¹.

    H may be singular or indefinite; I + γQH must stay positive, else ValueError.
    """
    _check_positive("gamma", gamma)
    half = identity(mu) if Q is None else root(Q)
    flat = identity(mu) + gamma * symmetric(half @ V.precision @ half)
    if (smallest := torch.linalg.eigvalsh(flat).min().item()) <= 0:
        raise ValueError(f"gamma = {gamma} is too large: I + γQH has the eigenvalue {smallest:.3g}; take smaller steps")
    mobility = identity(mu) if Q is None else Q
    B = torch.linalg.inv(identity(mu) + gamma * mobility @ V.precision)
    return image(mu, B, V.mean + apply(B, mu.mean - V.mean))


def prox_kl(mu: Gaussian, target: Gaussian, gamma: float, Q: Tensor | None = None) -> Gaussian:
    """Prox of γKL(· | N(n, C)), the JKO step, for any Σ and C, commuting or not.

    With A = I + γC⁻¹ and M = A^−½ΣA^−½: Σ' = A^−½XA^−½, X = ½[M + 2γI + (M² + 4γM)^½], and m' = n + A⁻¹(m − n).
    It follows from TΣ'T = Σ with T = A − γΣ'⁻¹ (`backward_map`).
    """
    _check_positive("gamma", gamma)
    a, pi = to_flat(mu, Q), to_flat(target, Q)
    shrink = spectral(pi.cov, lambda c: torch.rsqrt(1 + gamma / c))  # A^−½
    X = spectral(symmetric(shrink @ a.cov @ shrink), lambda s: grow(s.clamp_min(0), gamma))
    mean = pi.mean + apply(shrink @ shrink, a.mean - pi.mean)
    return from_flat(gaussian(a, mean, shrink @ X @ shrink), Q)


def backward_map(new: Gaussian, target: Gaussian | None, gamma: float, Q: Tensor | None = None) -> Tensor:
    """T = I + γQ(C⁻¹ − Σ'⁻¹), which takes the result of a prox to where it came from: x_old = m + T(x_new − m').

    With `target` None it is the map of `prox_entropy`, I − γQΣ'⁻¹. Symmetric for Q = I. (*batch, d, d).
    """
    slope = -spectral(new.cov, torch.reciprocal)
    if target is not None:
        slope = slope + spectral(target.cov, torch.reciprocal)
    return identity(new) + gamma * (slope if Q is None else Q @ slope)


def forward_backward(mu: Gaussian, target: Gaussian, gamma: float, Q: Tensor | None = None) -> Gaussian:
    """One step of the Wasserstein proximal gradient algorithm (Salim, Korba, Luise 2020): prox_entropy ∘ (id − γ∇V)#.

    m' = n + B(m − n) and Σ' = prox of BΣB, B = I − γC⁻¹. Its stationary point is the target exactly, for γ < 1/L with
    L the largest eigenvalue of C⁻¹.
    """
    _check_positive("gamma", gamma)
    a, pi = to_flat(mu, Q), to_flat(target, Q)
    B = spectral(pi.cov, lambda c: 1 - gamma / c)
    return from_flat(prox_entropy(image(a, B, pi.mean + apply(B, a.mean - pi.mean)), gamma), Q)


def forward_backward_particles(
    x: Tensor, mu: Gaussian, target: Gaussian, gamma: float, Q: Tensor | None = None
) -> Tensor:
    """The same step as a map of points x (*batch, n, d) of μ (*batch).

    y = n + (I − γQC⁻¹)(x − n), then x' = m' + (I − γQΣ'⁻¹)⁻¹(y − m'), with m', Σ' from `forward_backward`.
    """
    new = forward_backward(mu, target, gamma, Q)
    mobility = identity(mu) if Q is None else Q
    B = identity(mu) - gamma * mobility @ spectral(target.cov, torch.reciprocal)
    y = target.mean[..., None, :] + (x - target.mean[..., None, :]) @ B.mT
    back = backward_map(new, None, gamma, Q)
    mean = new.mean[..., None, :]
    return mean + torch.linalg.solve(back, (y - mean).mT).mT


def ula(mu: Gaussian, target: Gaussian, gamma: float, Q: Tensor | None = None) -> Gaussian:
    """Law of X' = X − γC⁻¹(X − n) + (2γ)^½ ξ, unadjusted Langevin: covariance BΣB + 2γI, B = I − γC⁻¹."""
    _check_positive("gamma", gamma)
    a, pi = to_flat(mu, Q), to_flat(target, Q)
    B = spectral(pi.cov, lambda c: 1 - gamma / c)
    step = image(a, B, pi.mean + apply(B, a.mean - pi.mean))
    return from_flat(gaussian(a, step.mean, step.cov + 2 * gamma * identity(a)), Q)


def ula_stationary(target: Gaussian, gamma: float, Q: Tensor | None = None) -> Gaussian:
    """N(n, C(I − ½γC⁻¹)⁻¹), where unadjusted Langevin ends; it exists for γ < 2/L, else ValueError.

    >>> target = Gaussian(torch.zeros(1), torch.ones(1, 1))
    >>> ula_stationary(target, 0.5).cov.item()  # 4/3
    1.3333...
    """
    _check_positive("gamma", gamma)
    pi = to_flat(target, Q)
    smallest = torch.linalg.eigvalsh(pi.cov).min().item()
    if gamma >= 2 * smallest:
        raise ValueError(f"gamma = {gamma} is not below 2/L = {2 * smallest:.6g}: unadjusted Langevin diverges")
    return from_flat(gaussian(pi, pi.mean, spectral(pi.cov, lambda c: c / (1 - 0.5 * gamma / c))), Q)


def forward_kl(mu: Gaussian, target: Gaussian, gamma: float, Q: Tensor | None = None) -> Gaussian:
    """One explicit step for KL: the image of μ under x − γ∇log(μ/π)(x).

    m' = m − γC⁻¹(m − n), Σ' = TΣT with T = I − γ(C⁻¹ − Σ⁻¹). Unbiased; T must be positive definite for the map to be
    optimal, else ValueError.
    """
    _check_positive("gamma", gamma)
    a, pi = to_flat(mu, Q), to_flat(target, Q)
    precision = spectral(pi.cov, torch.reciprocal)
    T = identity(a) - gamma * (precision - spectral(a.cov, torch.reciprocal))
    if (smallest := torch.linalg.eigvalsh(T).min().item()) <= 0:
        raise ValueError(f"gamma = {gamma} is too large: I − γ∇²log(μ/π) has the eigenvalue {smallest:.3g}")
    return from_flat(image(a, T, a.mean - gamma * apply(precision, a.mean - pi.mean)), Q)


def prox_scalar(slope: Callable[[Tensor], Tensor], x: Tensor, gamma: float, *, curvature: float = 0.0) -> Tensor:
    """prox_{γV}(x) elementwise for V on the line with derivative (or subgradient) `slope` and V'' ≥ curvature = λ.

    The root of y + γV'(y) = x, by bisection between x ± |γV'(x)|/(1 + γλ). Single-valued only for γλ > −1, else
    ValueError: (x² − 1)² has λ = −4 and needs γ < 1/4.
    """
    _check_positive("gamma", gamma)
    rate = 1 + gamma * curvature
    if rate <= 0:
        raise ValueError(f"gamma = {gamma} is not below −1/λ = {-1 / curvature:.6g}: the prox is not single-valued")
    reach = (gamma * slope(x)).abs() / rate
    low, high = x - reach, x + reach
    for _ in range(128):
        middle = 0.5 * (low + high)
        above = middle + gamma * slope(middle) > x
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return 0.5 * (low + high)


def prox_double_well(x: Tensor, gamma: float) -> Tensor:
    """prox of γ(y² − 1)² at x: the real root of 4γy³ + (1 − 4γ)y = x, by Cardano; γ < 1/4, else ValueError.

    >>> prox_double_well(torch.tensor([0.5, 2.0], dtype=torch.float64), 0.05)
    tensor([0.5770, 1.5568], dtype=torch.float64)
    """
    _check_positive("gamma", gamma)
    if gamma >= 0.25:
        raise ValueError(f"gamma = {gamma} is not below 1/4: the prox of (x² − 1)² is not single-valued")
    p = (1 - 4 * gamma) / (4 * gamma)
    scale = (p / 3) ** 0.5
    return 2 * scale * torch.sinh(torch.asinh(x / (8 * gamma * scale**3)) / 3)


def soft_threshold(x: Tensor, gamma: float) -> Tensor:
    """prox of γ|y| at x: sign(x)·max(|x| − γ, 0)."""
    return x.sign() * (x.abs() - gamma).clamp_min(0)


def grow(s: Tensor, gamma: float) -> Tensor:
    """½[s + 2γ + (s² + 4γs)^½], the root r > γ of (r − γ)² = sr."""
    return 0.5 * (s + 2 * gamma + (s * (s + 4 * gamma)).sqrt())


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be positive, not {value}")
