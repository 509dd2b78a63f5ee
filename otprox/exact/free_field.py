"""The Polchinski flow of a free field in closed form: potential, law and JKO steps, as matrices and mode by mode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from ..measures import Gaussian
from .bures import apply, gaussian, symmetric
from .proximal import grow, prox_kl

Rule = Literal["end", "average"]


class Scales(Protocol):
    """A decomposition C_t of a covariance, 0 = C_0 ≤ C_t ≤ C_∞, by matrices (N, N)."""

    @property
    def rate(self) -> Callable[[float], Any]:
        """Ċ_t."""

    def __call__(self, t: float) -> Any:
        """C_t."""

    def remaining(self, t: float) -> Any:
        """D_t = C_∞ − C_t."""


@dataclass(frozen=True, eq=False)
class FreeField:
    """V₀(φ) = ½φᵀAφ − bᵀφ, whose renormalised potential is V_t(φ) = −log E e^{−V₀(φ+ζ)} = ½φᵀA_tφ − b_tᵀφ + c_t.

    ζ ~ N(0, C_t). A: (N, N) symmetric, b: (N,). The methods take C = C_t and D = D_t = C_∞ − C_t as matrices; C may be
    singular.
    Source: Bauerschmidt, Bodineau, Dagallier, "Stochastic dynamics and the Polchinski equation" (2024), whose
    convention (½Δ in Polchinski's equation) is used throughout.

    >>> field = FreeField(torch.tensor([[2.0]]), torch.tensor([1.0]))
    >>> field.precision(torch.tensor([[0.5]])).item()
    1.0
    """

    A: Tensor
    b: Tensor

    def precision(self, C: Tensor) -> Tensor:
        """A_t = A(I + C_tA)⁻¹, the root of Ȧ_t = −A_tĊ_tA_t."""
        return symmetric(torch.linalg.solve(_eye(C) + C @ self.A, self.A, left=False))

    def slope(self, C: Tensor) -> Tensor:
        """b_t = (I + AC_t)⁻¹b, the root of ḃ_t = −A_tĊ_tb_t."""
        return torch.linalg.solve(_eye(C) + self.A @ C, self.b)

    def constant(self, C: Tensor) -> Tensor:
        """c_t = ½ log det(I + C_tA) − ½bᵀ(C_t⁻¹ + A)⁻¹b."""
        return 0.5 * torch.linalg.slogdet(_eye(C) + C @ self.A)[1] - 0.5 * self.b @ C @ self.slope(C)

    def potential(self, C: Tensor, phi: Tensor) -> Tensor:
        """V_t at fields φ (…, N)."""
        return 0.5 * (phi * (phi @ self.precision(C))).sum(-1) - phi @ self.slope(C) + self.constant(C)

    def law(self, C: Tensor, D: Tensor) -> Gaussian:
        """ν_t ∝ g_{D_t}e^{−V_t}: covariance (D_t⁻¹ + A_t)⁻¹ = D_t(I + A_tD_t)⁻¹, mean covariance·b_t."""
        cov = symmetric(torch.linalg.solve(_eye(D) + self.precision(C) @ D, D, left=False))
        return Gaussian(apply(cov, self.slope(C)), cov)

    def reference(self, C: Tensor, D: Tensor) -> Gaussian:
        """π̃_t ∝ g_{D_t}^{3/2}e^{−V_t/2}, the reference of form B: precision (3D_t⁻¹ + A_t)/2, mean precision⁻¹b_t/2."""
        cov = symmetric(torch.linalg.solve(3 * _eye(D) + self.precision(C) @ D, 2 * D, left=False))
        return Gaussian(apply(cov, self.slope(C)) / 2, cov)


def free_reference(D: Tensor) -> Gaussian:
    """π_t = N(0, D_t/2), the reference of form A, for any V₀."""
    return Gaussian(D.new_zeros(D.shape[-1]), D / 2)


def transition(D_s: Tensor, D_t: Tensor) -> tuple[Tensor, Tensor]:
    """(K, R) with φ_t = Kφ_s + N(0, R) for s < t, whatever V₀: K = D_tD_s⁻¹ and R = D_t − D_tD_s⁻¹D_t; both (N, N)."""
    K = torch.linalg.solve(D_s, D_t, left=False)
    return K, symmetric(D_t - K @ D_t)


def transported(mu: Gaussian, D_s: Tensor, D_t: Tensor) -> Gaussian:
    """ν_t from ν_s = μ by the exact transition."""
    K, R = transition(D_s, D_t)
    return gaussian(mu, apply(K, mu.mean), K @ mu.cov @ K.mT + R)


def form_a(mu: Gaussian, C: Scales, t0: float, t1: float, rule: Rule = "end") -> Gaussian:
    """JKO step of form A: argmin over ν of ½KL(ν | N(0, D_{t1}/2)) + W²(μ, ν)/(2τ), τ = t1 − t0, cost ⟨z, Q⁻¹z⟩.

    Q = Ċ_{t1} (rule "end") or (C_{t1} − C_{t0})/τ ("average"). Its limit solves ∂tν = div(νĊ∇δF_t/δν) for any V₀.
    """
    return prox_kl(mu, free_reference(C.remaining(t1)), (t1 - t0) / 2, mobility(C, t0, t1, rule))


def form_b(mu: Gaussian, field: FreeField, C: Scales, t0: float, t1: float, rule: Rule = "end") -> Gaussian:
    """JKO step of form B: argmin over ν of KL(ν | π̃_{t1}) + W²(μ, ν)/(2τ) in the metric of `form_a`.

    Another equation than form A's, with ν_t as a common solution.
    """
    return prox_kl(mu, field.reference(C(t1), C.remaining(t1)), t1 - t0, mobility(C, t0, t1, rule))


def mobility(C: Scales, t0: float, t1: float, rule: Rule = "end") -> Tensor:
    """The matrix of the metric of a step over [t0, t1]."""
    if rule not in ("end", "average"):
        raise ValueError(f"rule must be 'end' or 'average', not {rule!r}")
    return C.rate(t1) if rule == "end" else (C(t1) - C(t0)) / (t1 - t0)


@dataclass(frozen=True, eq=False)
class FreeModes:
    """The same field where A and every C_t are diagonal in one orthonormal basis: everything entry by entry.

    a: (…, N) eigenvalues of A, b: (…, N) coefficients of b. The methods take the eigenvalues c of C_t and r of D_t.
    """

    a: Tensor
    b: Tensor

    def precision(self, c: Tensor) -> Tensor:
        """a/(1 + ca)."""
        return self.a / (1 + c * self.a)

    def slope(self, c: Tensor) -> Tensor:
        """b/(1 + ca)."""
        return self.b / (1 + c * self.a)

    def constant(self, c: Tensor) -> Tensor:
        """½ Σ [log(1 + ca) − cb²/(1 + ca)]."""
        return 0.5 * (torch.log1p(c * self.a) - c * self.b * self.slope(c)).sum(-1)

    def potential(self, c: Tensor, phi: Tensor) -> Tensor:
        """V_t at the coefficients φ (…, N) of a field."""
        return (phi * (0.5 * self.precision(c) * phi - self.slope(c))).sum(-1) + self.constant(c)

    def law(self, c: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, variance) of ν_t."""
        variance = r / (1 + self.precision(c) * r)
        return variance * self.slope(c), variance

    def reference(self, c: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, variance) of π̃_t, the reference of form B."""
        variance = 2 * r / (3 + self.precision(c) * r)
        return variance * self.slope(c) / 2, variance


def form_a_modes(mean: Tensor, variance: Tensor, r: Tensor, q: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """`form_a` entry by entry: r are the eigenvalues of D_{t1}, q those of the metric's matrix."""
    return prox_kl_modes(mean, variance, torch.zeros_like(r), r / 2, q, tau / 2)


def form_b_modes(
    mean: Tensor, variance: Tensor, field: FreeModes, c: Tensor, r: Tensor, q: Tensor, tau: float
) -> tuple[Tensor, Tensor]:
    """`form_b` entry by entry: c, r are the eigenvalues of C_{t1}, D_{t1}, q those of the metric's matrix."""
    return prox_kl_modes(mean, variance, *field.reference(c, r), q, tau)


def prox_kl_modes(
    mean: Tensor, variance: Tensor, centre: Tensor, target: Tensor, q: Tensor, gamma: float
) -> tuple[Tensor, Tensor]:
    """Prox of γKL(· | N(centre, target)) on the line with cost z²/q, entry by entry; returns (mean, variance).

    With A = 1 + γq/target and M = variance/(qA): mean' = centre + (mean − centre)/A and variance' = qX/A,
    X = ½[M + 2γ + (M² + 4γM)^½].
    """
    A = 1 + gamma * q / target
    return centre + (mean - centre) / A, q / A * grow(variance / (q * A), gamma)


def _eye(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)
