"""Flows of discrepancies on the line, quantile by quantile: Ẋ_q = c·(q − F_ν(X_q)), and their exact prox.

c = 1 for ½∫(F_μ − F_ν)², c = 2 for ½MMD² with k = −|x − y|, c = 4 for MMD², the energy distance.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Cdf = Callable[[Tensor], Tensor]


def cramer_flow(x: Tensor, q: Tensor, cdf: Cdf, t: float, c: float = 2.0) -> Tensor:
    """X_q(t) from x at levels q, for a continuous F_ν: each quantile follows its own scalar equation (to 1e-11)."""
    from scipy.integrate import solve_ivp

    def velocity(_: float, y: np.ndarray) -> np.ndarray:
        return (c * (q - cdf(x.new_tensor(y)))).numpy()

    start = x.expand_as(q).numpy()
    done = solve_ivp(velocity, (0.0, t), start, method="DOP853", rtol=1e-11, atol=1e-13)
    return x.new_tensor(done.y[:, -1])


def cramer_flow_to_uniform(x: Tensor, q: Tensor, t: float, c: float = 2.0) -> Tensor:
    """ν = U[0, 1], x in [0, 1]: X_q = q + (x − q)e^{−ct}; from a Dirac mass at 0, W2 = e^{−ct}/√3."""
    return q + (x - q) * math.exp(-c * t)


def cramer_flow_to_dirac(x: Tensor, q: Tensor, t: float, c: float = 2.0) -> Tensor:
    """ν = δ_0: x < 0 moves at speed cq, x > 0 at −c(1 − q), until they reach 0. From δ_(−1), 1 − 1/(ct) has arrived."""
    return torch.where(x < 0, (x + c * q * t).clamp_max(0), (x - c * (1 - q) * t).clamp_min(0))


def cramer_flow_to_pair(q: Tensor, t: float, c: float = 2.0) -> Tensor:
    """ν = ½(δ_{−1} + δ_1) from δ_0: X_q = clip(c(q − ½)t, ±1); ∫(F − F_ν)² = 2/(3c²t²) once ct > 2."""
    return (c * (q - 0.5) * t).clamp(-1, 1)


def energy_prox(x: Tensor, q: Tensor, cdf: Cdf, tau: float) -> Tensor:
    """The prox of ½MMD² with k = −|x − y|: X' + 2·tau·(F_ν(X') − q) = X, by bisection; F_ν may jump."""
    low, high = x - 2 * tau * (1 - q) - 1e-12, x + 2 * tau * q + 1e-12
    for _ in range(120):
        middle = (low + high) / 2
        below = middle + 2 * tau * (cdf(middle) - q) < x
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def gaussian_mmd2(m: Tensor, S: Tensor, n: Tensor, T: Tensor, width: float) -> Tensor:
    """MMD² of N(m, S) and N(n, T) for k = exp(−|x − y|²/(2h²)), in any dimension:

    E k(X, Y) = det(I + C/h²)^(−½)·exp(−½δᵀ(h²I + C)⁻¹δ), C the sum of the covariances and δ the difference of means.
    """
    zero = torch.zeros_like(m)

    def kernel(delta: Tensor, C: Tensor) -> Tensor:
        A = torch.eye(C.shape[-1], dtype=C.dtype, device=C.device) * width**2 + C
        quadratic = (delta * torch.linalg.solve(A, delta)).sum(-1)
        return torch.exp(-0.5 * quadratic) / torch.linalg.det(A / width**2).sqrt()

    return kernel(zero, 2 * S) + kernel(zero, 2 * T) - 2 * kernel(m - n, S + T)


def dirac_to_dirac(z: float, t: float, width: float) -> float:
    """Distance at time t of a Dirac mass to δ_0 under ½MMD², Gaussian kernel of width h, from distance z at time 0:

    Ei(z²/2h²) − Ei(z_t²/2h²) = 2t/h².
    """
    from scipy.optimize import brentq
    from scipy.special import expi

    start, s = expi(z**2 / (2 * width**2)) - 2 * t / width**2, 2 * width**2
    low = math.exp(min(0.0, start) - 2.0) / 2  # Ei(u) ≤ γ + log u + u e^u / …: below the root
    return math.sqrt(s * brentq(lambda u: expi(u) - start, low, z**2 / s, xtol=1e-15, rtol=1e-14))
