"""Stein variational gradient descent in closed form: the Bilinear and RBF kernels on Gaussians, equilibria of a few
particles, and the weighted kernel and local limits of `stein_local`.

With 1/N: ẋ_i = (1/N) Σ_j [−k(x_i, x_j)∇V(x_j) + ∇_y k(x_i, x_j)].
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..measures import Gaussian
from ..measures.base import check_alike
from .bures import apply, gaussian, identity, spectral, symmetric
from .stein_local import (
    Wave,
    local_rate,
    log_sobolev_constant,
    wave,
    weighted_dissipation,
    weighted_rate,
    weighted_spectrum,
)

__all__ = [
    "Wave",
    "bilinear_centred",
    "bilinear_dissipation",
    "bilinear_flow",
    "bilinear_moments",
    "bilinear_rates",
    "local_rate",
    "log_sobolev_constant",
    "rbf_dissipation",
    "rbf_equilibrium",
    "rbf_velocity",
    "wave",
    "weighted_dissipation",
    "weighted_rate",
    "weighted_spectrum",
]


def bilinear_moments(mu: Gaussian, target: Gaussian) -> tuple[Tensor, Tensor]:
    """(ṁ, Σ̇) for k = xᵀy + 1 and the target N(n, Q):

    ṁ = (I − Q⁻¹Σ)m − (1 + |m|²)Q⁻¹(m − n),  Σ̇ = BΣ + ΣBᵀ,  B = I − Q⁻¹(Σ + (m − n)mᵀ).

    Also for the empirical moments of any finite set of particles.
    """
    P, gap = spectral(target.cov, torch.reciprocal), mu.mean - target.mean
    B = identity(mu) - P @ (mu.cov + gap[..., :, None] * mu.mean[..., None, :])
    square = mu.mean.square().sum(-1, keepdim=True)
    mean = mu.mean - apply(P @ mu.cov, mu.mean) - (1 + square) * apply(P, gap)
    return mean, 2 * symmetric(B @ mu.cov)


def bilinear_flow(mu: Gaussian, target: Gaussian, t: float) -> Gaussian:
    """The Gaussian at time t of SVGD with k = xᵀy + 1: `bilinear_moments`, integrated to about 1e-12 (DOP853).

    It is integrated in float64 on the CPU, and has the dtype and device of mu, which the target must share.
    """
    from scipy.integrate import solve_ivp

    check_alike(target.mean, "the target", mu.anchor)
    d, batch = mu.dim, mu.batch
    target = gaussian(target, target.mean.double().cpu(), target.cov.double().cpu())

    def unpack(state: np.ndarray) -> Gaussian:
        y = torch.from_numpy(state).reshape(*batch, d + d * d)
        return gaussian(mu, y[..., :d], y[..., d:].reshape(*batch, d, d))

    def rate(_: float, state: np.ndarray) -> np.ndarray:
        mean, cov = bilinear_moments(unpack(state), target)
        return torch.cat([mean, cov.flatten(-2)], -1).flatten().numpy()

    start = torch.cat([mu.mean, mu.cov.flatten(-2)], -1).flatten().double().cpu().numpy()
    solution = solve_ivp(rate, (0.0, t), start, method="DOP853", rtol=1e-12, atol=1e-13)
    if not solution.success:
        raise RuntimeError(f"the moment equations could not be integrated to t = {t}: {solution.message}")
    end = unpack(np.ascontiguousarray(solution.y[:, -1]))
    return gaussian(mu, end.mean.to(mu.mean), end.cov.to(mu.mean))


def bilinear_centred(cov: Tensor, target_cov: Tensor, t: float) -> Tensor:
    """Σ(t) when both means are 0 and the covariances commute: Σ⁻¹ = Q⁻¹ + (Σ₀⁻¹ − Q⁻¹)e^{−2t}.

    >>> bilinear_centred(torch.tensor([[4.0]]), torch.tensor([[1.0]]), 1.0)  # 1/(1 − ¾e⁻²)
    tensor([[1.1130]])
    """
    gap = (cov @ target_cov - target_cov @ cov).abs().max().item()
    if gap > 1e-8 * cov.abs().max().item() * target_cov.abs().max().item():
        raise ValueError(f"the covariances must commute; |ΣQ − QΣ| is {gap:.3g}. Use bilinear_flow")
    P, P0 = (spectral(S, torch.reciprocal) for S in (target_cov, cov))
    return spectral(symmetric(P + (P0 - P) * math.exp(-2 * t)), torch.reciprocal)


def bilinear_rates(target: Gaussian) -> Tensor:
    """Rates at which Σ_ij relaxes near a centred target with variances q along its axes: q_i/q_j + q_j/q_i ≥ 2.

    (*batch, d, d).
    """
    q = torch.linalg.eigvalsh(target.cov)
    ratio = q[..., :, None] / q[..., None, :]
    return ratio + ratio.mT


def bilinear_dissipation(mu: Gaussian, target: Gaussian) -> Tensor:
    """D² = −dKL/dt for k = xᵀy + 1: |E u|² + ‖E u xᵀ‖², u = ∇log(μ/π); 1-D and centred, (1 − s/q)². (*batch,)"""
    P = spectral(target.cov, torch.reciprocal)
    shift = apply(P, mu.mean - target.mean)
    cross = shift[..., :, None] * mu.mean[..., None, :] + P @ mu.cov - identity(mu)
    return shift.square().sum(-1) + cross.square().sum((-2, -1))


def rbf_dissipation(mu: Gaussian, target: Gaussian, width: float) -> Tensor:
    """D² = −dKL/dt = KSD², for k = exp(−|x − y|²/2h²): det(I + 2Σ/h²)^−½ [|b|² + ½Tr AΣA − ¼Tr ACA], (*batch,).

    A = Q⁻¹ − Σ⁻¹, b = Q⁻¹(m − n), C = ((2Σ)⁻¹ + I/h²)⁻¹: X + Y and X − Y are independent for independent X, Y ~ μ.
    For Σ = s²I and the target N(0, I) it is (h²/(h² + 2s²))^{d/2}[d(1 − s²)²/(h² + 2s²) + |m|²].

    >>> one = torch.ones(1, 1, dtype=torch.float64)
    >>> round(rbf_dissipation(Gaussian(one[0], one), Gaussian(0 * one[0], one), 1.0).item(), 12)
    0.57735026919
    """
    P = spectral(target.cov, torch.reciprocal)
    A, b = P - spectral(mu.cov, torch.reciprocal), apply(P, mu.mean - target.mean)
    C = spectral(mu.cov, lambda s: 1 / (1 / (2 * s) + width**-2))
    scale = torch.linalg.det(identity(mu) + 2 * mu.cov / width**2) ** -0.5
    spread = 0.5 * ((A @ mu.cov) * A).sum((-2, -1)) - 0.25 * ((A @ C) * A).sum((-2, -1))
    return scale * (b.square().sum(-1) + spread)


def rbf_velocity(x: Tensor, mu: Gaussian, target: Gaussian, width: float) -> Tensor:
    """v(x) = −∫k(x, y)∇log(μ/π)(y) dμ(y) for k = exp(−|x − y|²/2h²), at points x (*batch, n, d).

    −det(I + Σ/h²)^−½ exp(−½⟨x − m, (Σ + h²I)⁻¹(x − m)⟩) [b + AΣ(Σ + h²I)⁻¹(x − m)], A and b as in `rbf_dissipation`.
    """
    P = spectral(target.cov, torch.reciprocal)
    A, b = P - spectral(mu.cov, torch.reciprocal), apply(P, mu.mean - target.mean)
    pull = spectral(mu.cov, lambda s: 1 / (s + width**2))
    z = x - mu.mean[..., None, :]
    bell = torch.exp(-0.5 * ((z @ pull) * z).sum(-1, keepdim=True))
    scale = torch.linalg.det(identity(mu) + mu.cov / width**2) ** -0.5
    return -scale[..., None, None] * bell * (b[..., None, :] + z @ (pull @ mu.cov @ A))


def rbf_equilibrium(n: int, width: float) -> Tensor:
    """Positions (n,), sorted, at which n particles rest under SVGD with k = exp(−(x − y)²/2h²) and the target N(0, 1).

    n = 2: x² = (h²/2)·log(1 + 2/h²), from −k(2x)(x + 2x/h²) + x = 0 up to sign. Otherwise Newton's method from the
    quantiles of N(0, 1), after a stretch of the flow; ValueError where that does not end in a stable equilibrium of
    distinct particles. They may coalesce: of four the inner two do at width 1, of five the inner three above 1.9.
    n is at most 8.

    >>> rbf_equilibrium(2, 1.0)
    tensor([-0.7412,  0.7412], dtype=torch.float64)
    """
    if not 1 <= n <= 8 or not width > 0:
        raise ValueError(f"rbf_equilibrium is for 1 to 8 particles and a width > 0, not {n} and {width}")
    if n == 2:
        x = math.sqrt(width**2 / 2 * math.log1p(2 / width**2))
        return torch.tensor([-x, x], dtype=torch.float64)
    return _rest(n, width)


def _rest(n: int, width: float) -> Tensor:
    from scipy.integrate import solve_ivp
    from scipy.optimize import root

    levels = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    start = torch.special.ndtri(levels).numpy()
    flowed = solve_ivp(lambda _, x: _velocity(x, width)[0], (0.0, 100.0 * n), start, method="LSODA", rtol=1e-9).y[:, -1]
    found = root(lambda x: _velocity(x, width), flowed, jac=True, tol=1e-14)
    slope = np.linalg.eigvals(_velocity(found.x, width)[1]).real.max()
    if np.abs(_velocity(found.x, width)[0]).max() > 1e-12 or slope > 0 or (np.diff(found.x) <= 0).any():
        raise ValueError(f"no stable equilibrium of {n} distinct particles found at width {width}: they may coalesce")
    return torch.from_numpy(np.ascontiguousarray(found.x))


def _velocity(x: np.ndarray, width: float) -> tuple[np.ndarray, np.ndarray]:
    """v_i = (1/n) Σ_j k_ij[−x_j + z_ij/h²], z_ij = x_i − x_j, and its Jacobian (n, n)."""
    z, h2 = x[:, None] - x, width**2
    k = np.exp(-(z**2) / (2 * h2)) / len(x)
    pull = -x + z / h2
    to_i, to_j = k * (1 / h2 - z / h2 * pull), k * (-1 - 1 / h2 + z / h2 * pull)
    return (k * pull).sum(1), to_j + np.diag(to_i.sum(1))
