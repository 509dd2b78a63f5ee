"""Flows of interaction energies E = ½∬W(x − y), exact for particles as for their limit.

W is |x|²/2 (attraction), |x| (newtonian), |x|²/2 − |x| (spread) and −log|x| (log gas, with V = x²/2). In one dimension
particles are quantiles: sorted, n of equal weight, at the levels (i + ½)/n.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def attraction_flow(x: Tensor, t: float, w: Tensor | None = None) -> Tensor:
    """W = |x|²/2 in R^d: X(t) = m + (X(0) − m)e^{−t}, m the mean; x (*batch, n, d), weights w (*batch, n)."""
    m = _mean(x, w)
    return m + (x - m) * math.exp(-t)


def attraction_jko(x: Tensor, tau: float, w: Tensor | None = None) -> Tensor:
    """A JKO step of the same: m + (X − m)/(1 + τ)."""
    m = _mean(x, w)
    return m + (x - m) / (1 + tau)


def levels(n: int, like: Tensor | None = None) -> Tensor:
    """(i + ½)/n, i = 0 … n − 1."""
    kind = {"dtype": torch.float64} if like is None else {"dtype": like.dtype, "device": like.device}
    return (torch.arange(n, **kind) + 0.5) / n


def newtonian_flow(x: Tensor, t: float) -> Tensor:
    """W = |x| on the line: the projection of X_q(0) − t(2q − 1) on increasing functions; x (*batch, n) sorted.

    Free motion with velocity −(2q − 1) = −(1/n)Σⱼ sign(xᵢ − xⱼ), particles sticking when they meet (Natile, Savaré
    2009). As E = ∫(2q − 1)X_q dq is linear on sorted X, this is also the exact JKO step of size t. A uniform density of
    length ℓ falls onto a point at t = ℓ/2.

    >>> newtonian_flow(torch.tensor([0.0, 1.0]), 0.5), newtonian_flow(torch.tensor([0.0, 1.0]), 2.0)
    (tensor([0.2500, 0.7500]), tensor([0.5000, 0.5000]))
    """
    _check_sorted(x)
    free = x - t * (2 * levels(x.shape[-1], x) - 1)
    flat = free.reshape(-1, x.shape[-1])
    return torch.stack([_isotonic(row) for row in flat]).reshape(x.shape)


def spread_flow(x: Tensor, t: float) -> Tensor:
    """W = |x|²/2 − |x| on the line: X_q(t) = m + (2q − 1) + (X_q(0) − m − (2q − 1))e^{−t}; x (*batch, n) sorted."""
    _check_sorted(x)
    rest = spread_steady(x)
    return rest + (x - rest) * math.exp(-t)


def spread_jko(x: Tensor, tau: float) -> Tensor:
    """A JKO step of the same: m + (X_q − m + τ(2q − 1))/(1 + τ)."""
    _check_sorted(x)
    rest = spread_steady(x)
    return rest + (x - rest) / (1 + tau)


def spread_steady(x: Tensor) -> Tensor:
    """Where `spread_flow` ends: m + (2q − 1), the uniform density on [m − 1, m + 1]."""
    return x.mean(-1, keepdim=True) + 2 * levels(x.shape[-1], x) - 1


def spread_steady_energy(n: int | None = None) -> float:
    """½∬W of the steady state: −1/6, and −(1 − 1/n²)/6 for n particles."""
    return -1 / 6 if n is None else -(1 - 1 / n**2) / 6


def log_gas_radius(t: float | Tensor, radius: float | Tensor) -> Tensor:
    """V = x²/2, W = −log|x|: a semicircle law stays one, R² = 2 + (R₀² − 2)e^{−2t} (Rogers, Shi 1993).

    Its second moment is R²/4.
    """
    t, radius = torch.as_tensor(t, dtype=torch.float64), torch.as_tensor(radius, dtype=torch.float64)
    return (2 + (radius**2 - 2) * torch.exp(-2 * t)).sqrt()


def log_gas_jko(radius: float | Tensor, tau: float) -> Tensor:
    """The radius after a JKO step, which dilates a semicircle law: (1 + τ)R'² − RR' − 2τ = 0.

    From the minimum of R'²/8 − ½log R' + (R' − R)²/(8τ); exact since ∂W∗ρ = −2x/R² is linear on the support.
    """
    radius = torch.as_tensor(radius, dtype=torch.float64)
    return (radius + (radius**2 + 8 * tau * (1 + tau)).sqrt()) / (2 * (1 + tau))


def semicircle_density(x: Tensor, radius: float | Tensor) -> Tensor:
    """(2/πR²)(R² − x²)₊^½ at x, any shape."""
    radius = torch.as_tensor(radius, dtype=x.dtype)
    return 2 / (math.pi * radius**2) * (radius**2 - x * x).clamp_min(0).sqrt()


def log_gas_equilibrium(n: int) -> Tensor:
    """Where n particles ẋᵢ = −xᵢ + (1/n)Σ_{j≠i} 1/(xᵢ − xⱼ) rest: the zeros of Hₙ over n^½ (Stieltjes).

    The zeros of the Hermite polynomial are the eigenvalues of its Jacobi matrix, off-diagonal (k/2)^½; (n,), sorted.
    """
    off = (torch.arange(1, n, dtype=torch.float64) / 2).sqrt()
    return torch.linalg.eigvalsh(torch.diag(off, 1) + torch.diag(off, -1)) / math.sqrt(n)


def log_gas_second_moment(t: float, start: float | Tensor, n: int) -> Tensor:
    """y = (1/n)Σxᵢ², which obeys y' = −2y + (n − 1)/n for every n."""
    rest = (n - 1) / (2 * n)
    return rest + (torch.as_tensor(start, dtype=torch.float64) - rest) * math.exp(-2 * t)


def chemotaxis_growth(chi: float) -> float:
    """Beside Entropy, W = χ log|z|/2π in the plane: d/dt E|x|² = 4 − χ/2π, for every density of mass 1.

    It spreads below χ = 8π, and cannot exist for ever above (Blanchet, Dolbeault, Perthame 2006, for the model of
    Keller and Segel). A JKO step y → x obeys E|x|² − E|y|² + W2² = τ(4 − χ/2π), since E⟨x − y, x⟩ = −τ E⟨∇δF/δμ, x⟩.
    """
    return 4 - chi / (2 * math.pi)


def _mean(x: Tensor, w: Tensor | None) -> Tensor:
    return x.mean(-2, keepdim=True) if w is None else (w[..., None] * x).sum(-2, keepdim=True)


def _check_sorted(x: Tensor) -> None:
    if (gap := x.diff(dim=-1)).numel() and gap.min() < 0:
        raise ValueError(f"x must be sorted along its last axis; the smallest gap is {gap.min().item():.3g}")


def _isotonic(row: Tensor) -> Tensor:
    """The nearest increasing sequence, by pooling adjacent violators."""
    sums: list[float] = []
    counts: list[int] = []
    for value in row.tolist():
        sums.append(value)
        counts.append(1)
        while len(sums) > 1 and sums[-2] / counts[-2] >= sums[-1] / counts[-1]:
            last, count = sums.pop(), counts.pop()
            sums[-1] += last
            counts[-1] += count
    means = [s / c for s, c in zip(sums, counts, strict=True)]
    return torch.repeat_interleave(row.new_tensor(means), torch.tensor(counts, device=row.device))
