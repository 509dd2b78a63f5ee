"""Entropy-regularised transport between Gaussians, and the prox of θ·Entropy + quadratic potential in it.

OT = min over plans of E|x − y|² + reg·∫π log π ("lebesgue"), or + reg·KL(π | μ⊗ν) ("product"), or the Sinkhorn
divergence OT(ν, μ) − ½OT(ν, ν) − ½OT(μ, μ) ("debiased"). `Q` is the matrix of the metric, cost ⟨z, Q⁻¹z⟩.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from ..measures import Gaussian
from .bures import apply, entropy, from_flat, gaussian, identity, kl, root, spectral, symmetric, to_flat

Reference = Literal["lebesgue", "product", "debiased"]


def entropic_cost(
    mu: Gaussian, nu: Gaussian, reg: float, reference: Reference = "lebesgue", Q: Tensor | None = None
) -> Tensor:
    """OT(μ, ν) for each reference; (*batch,).

    With the product reference, s = reg/2 and D = (4A^½BA^½ + s²I)^½ (Janati, Muzellec, Peyré, Cuturi 2020):
    |m − n|² + Tr A + Tr B − Tr D + ds(1 − log 2s) + s·log det(D + sI). Lebesgue adds reg·(Ent μ + Ent ν).
    """
    _check(reg, reference)
    a, b = to_flat(mu, Q), to_flat(nu, Q)
    if reference == "debiased":
        return _product_cost(a, b, reg) - 0.5 * (_product_cost(a, a, reg) + _product_cost(b, b, reg))
    cost = _product_cost(a, b, reg)
    return cost + reg * (entropy(mu) + entropy(nu)) if reference == "lebesgue" else cost


def prox_kl_entropic(
    mu: Gaussian,
    target: Gaussian | None,
    tau: float,
    reg: float,
    reference: Reference = "lebesgue",
    theta: float = 1.0,
    Q: Tensor | None = None,
) -> Gaussian:
    """argmin over ν of θ∫ρ log ρ + ∫V dν + OT(μ, ν)/(2τ), V = ½⟨x − n, C⁻¹(x − n)⟩ of the target N(n, C) (None: V = 0).

    A = I + τC⁻¹, M = A^−½ΣA^−½, m' = n + A⁻¹(m − n), Σ' = A^−½XA^−½, X² − (M + (2t + ε/2)I)X + t(t + ε/2)I = 0 with its
    larger root; ε = reg, t = τθ for the Lebesgue reference and t = τθ − ε/2 for the product. Debiased: `_debiased`.
    From the stationarity conditions of `entropic_cost`, non-commuting Σ and C allowed.

    >>> one = torch.ones(1, 1, dtype=torch.float64)
    >>> prox_kl_entropic(Gaussian(0 * one[0], one), None, 0.1, 0.05).cov.item()
    1.214709473522...
    """
    _check(reg, reference)
    a = to_flat(mu, Q)
    inverse = torch.zeros_like(identity(a)) if target is None else spectral(to_flat(target, Q).cov, torch.reciprocal)
    center = a.mean if target is None else to_flat(target, Q).mean
    if reference == "debiased":
        cov = _debiased(a.cov, inverse, tau, reg, theta)
    else:
        cov = _biased(a.cov, inverse, tau, reg, tau * theta - (0.5 * reg if reference == "product" else 0.0))
    shrink = torch.linalg.inv(identity(a) + tau * inverse)
    return from_flat(gaussian(a, center + apply(shrink, a.mean - center), cov), Q)


def entropic_fixed_point(
    target: Gaussian, tau: float, reg: float, reference: Reference = "lebesgue", theta: float = 1.0
) -> Gaussian:
    """The Gaussian that `prox_kl_entropic` leaves in place (Q = I).

    It commutes with C; an eigenvalue q of C becomes the larger root a of (aA − t)(aA − t − ε/2) = a², A = 1 + τ/q,
    which for θ = 1 is a(T² − 1) = εT/2, T = A − t/a. Debiased: θC, no bias.
    """
    _check(reg, reference)
    if reference == "debiased":
        return gaussian(target, target.mean, theta * target.cov)
    t = tau * theta - (0.5 * reg if reference == "product" else 0.0)

    def fixed(q: Tensor) -> Tensor:
        A = 1 + tau / q
        b, c = A * (2 * t + 0.5 * reg), (A * A - 1) * (t * (t + 0.5 * reg))
        return (b + (b * b - 4 * c).sqrt()) / (2 * (A * A - 1))

    return gaussian(target, target.mean, spectral(target.cov, fixed))


def entropic_bias(target: Gaussian, tau: float, reg: float, reference: Reference = "lebesgue") -> Tensor:
    """The fixed point's covariance minus C to first order in reg: ±(reg/4τ)C, + Lebesgue, − product; 0 debiased."""
    _check(reg, reference)
    sign = {"lebesgue": 1.0, "product": -1.0, "debiased": 0.0}[reference]
    return sign * reg / (4 * tau) * target.cov


def debiased_speed(variance: Tensor | float, reg: float) -> Any:
    """√(1 + (reg/4a)²): by this factor the debiased steps of a Gaussian of variance a on the line outrun the flow.

    As tau → 0 at fixed reg, `prox_kl_entropic` with "debiased" solves da/dt = 2(θ − a/q)·√(1 + (reg/4a)²): near b = a,
    √(4a² + s²) − √(4ab + s²) = 2a(a − b)/√(4a² + s²), with s = reg/2. An error of reg², and none at the fixed point.
    """
    return (1 + (reg / (4 * variance)) ** 2) ** 0.5


def entropic_energy_gap(
    before: Gaussian, after: Gaussian, target: Gaussian, tau: float, reg: float, reference: Reference = "lebesgue"
) -> Tensor:
    """F(μ) + OT(μ, μ)/2τ − F(μ₊) − OT(μ, μ₊)/2τ ≥ 0 for F = KL(· | target) and a step μ → μ₊ of θ = 1; (*batch,)."""
    start = kl(before, target) + entropic_cost(before, before, reg, reference) / (2 * tau)
    return start - kl(after, target) - entropic_cost(before, after, reg, reference) / (2 * tau)


def _product_cost(mu: Gaussian, nu: Gaussian, reg: float) -> Tensor:
    s = reg / 2
    half = root(mu.cov)
    n = torch.linalg.eigvalsh(symmetric(half @ nu.cov @ half)).clamp_min(0)
    traces = (mu.cov + nu.cov).diagonal(dim1=-2, dim2=-1).sum(-1)
    D = (4 * n + s * s).sqrt()
    plan = -D + s + s * ((D + s) / (2 * s)).log()
    return (mu.mean - nu.mean).square().sum(-1) + traces + plan.sum(-1)


def _biased(cov: Tensor, precision: Tensor, tau: float, reg: float, t: float) -> Tensor:
    """Σ' for the Lebesgue and product references; the discriminant (M + 2t + ε/2)² − 4t(t + ε/2) is expanded."""
    shrink = spectral(precision, lambda p: torch.rsqrt(1 + tau * p))
    M = symmetric(shrink @ cov @ shrink)

    def larger_root(m: Tensor) -> Tensor:
        return 0.5 * (m + 2 * t + 0.5 * reg + ((m + 4 * t + reg) * m + 0.25 * reg * reg).sqrt())

    X = spectral(M, larger_root)
    values = torch.linalg.eigvalsh(X)
    if (values[..., 0] <= 4 * torch.finfo(X.dtype).eps * values[..., -1]).any():
        raise ValueError(f"no Gaussian minimises: without entropy the covariance is singular at reg = {reg}")
    return shrink @ X @ shrink


def _debiased(cov: Tensor, precision: Tensor, tau: float, reg: float, theta: float) -> Tensor:
    """Σ' for the Sinkhorn divergence: (4Σ'² + s²)^½ − (4Σ'^½ΣΣ'^½ + s²)^½ = 2τ(θI − Σ'^½PΣ'^½), s = reg/2.

    Batch items one by one, each by Newton's method in d² unknowns: for d up to about 30.
    """
    shape = torch.broadcast_shapes(cov.shape, precision.shape)
    flat = (-1, *shape[-2:])
    items = zip(cov.expand(shape).reshape(flat), precision.expand(shape).reshape(flat), strict=True)
    return torch.stack([_newton(A, P, tau, reg / 2, theta) for A, P in items]).reshape(shape)


def _newton(A: Tensor, P: Tensor, tau: float, s: float, theta: float) -> Tensor:
    """The zero B of τ(P − θB⁻¹) + 2k(B) − 2A^½h(A^½BA^½)A^½, the gradient of a strictly convex function of B.

    k(b) = b/((4b² + s²)^½ + s) and h(n) = 1/((4n + s²)^½ + s). Newton, its step halved while B is not positive or the
    slope along it has turned by more than it was.
    """
    half, tiny = root(A), 1e-9 if A.dtype == torch.float64 else 1e-4
    wide = torch.kron(half, half)

    def gradient(B: Tensor) -> tuple[Tensor, Tensor]:
        inverse = torch.linalg.inv(B)
        own, own_slope = _frechet(B, lambda b: b / ((4 * b * b + s * s).sqrt() + s))
        cross, cross_slope = _frechet(symmetric(half @ B @ half), lambda n: 1 / ((4 * n + s * s).sqrt() + s))
        hessian = tau * theta * torch.kron(inverse, inverse) + 2 * own_slope - 2 * wide @ cross_slope @ wide
        return symmetric(tau * (P - theta * inverse) + 2 * own - 2 * half @ cross @ half), hessian

    B = A
    for _ in range(200):
        g, hessian = gradient(B)
        step = symmetric(torch.linalg.solve(hessian, -g.flatten()).reshape(B.shape))
        if step.abs().max() <= tiny * B.abs().max():
            return B + step
        before = (g * step).sum().abs()
        while torch.linalg.eigvalsh(B + step)[0] <= 0 or (gradient(B + step)[0] * step).sum() > before:
            step, before = step / 2, before / 2
        B = B + step
    raise RuntimeError(f"the debiased step did not converge: the last change is {step.abs().max().item():.3g}")


def _frechet(matrix: Tensor, f: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """f of a symmetric matrix (d, d), and its derivative as a (d², d²) matrix, by divided differences."""
    values, vectors = torch.linalg.eigh(matrix)
    rows, columns = values[:, None], values[None, :]
    gap = (1e-4 * (rows + columns)).maximum((rows - columns).abs()) / 2  # symmetric difference where values meet
    middle = (rows + columns) / 2
    slopes = (f(middle + gap) - f(middle - gap)) / (2 * gap)
    both = torch.kron(vectors, vectors)
    return (vectors * f(values)) @ vectors.T, (both * slopes.flatten()) @ both.T


def _check(reg: float, reference: str) -> None:
    if not reg > 0:
        raise ValueError(f"reg must be positive, not {reg}")
    if reference not in ("lebesgue", "product", "debiased"):
        raise ValueError(f"reference must be 'lebesgue', 'product' or 'debiased', not {reference!r}")
