"""Collisions under a Gaussian, with an affine field of covectors: the mean velocity and the mean flow of covariance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SPACING = 0.25  # of log s: the trapezoidal error is e^{−π²/SPACING}
TAIL = 40.0  # the integrand is followed until it has fallen by e^{−TAIL}


def velocity_covariance(P: Tensor, H: Tensor, gamma: float) -> Tensor:
    """E[v(x − m)ᵀ], (*batch, d, d), for x in N(m, P) and v = K(Hx), K the Onsager operator of |z|^γ(|z|²I − zzᵀ).

    It is ½E[|z|^γ(|z|²Hz zᵀ − zᵀHz zzᵀ)] with z in N(0, 2P). For γ = 0 these are fourth moments. Otherwise, for γ < 2,

        |z|^γ = c^{γ/2} + 1/Γ(−γ/2) ∫ s^{−γ/2−1}(e^{−s|z|²} − e^{−cs}) ds,

    and with the weight e^{−s|z|²} they are those of the covariance (P⁻¹/2 + 2s)⁻¹: one integral, by the trapezoidal
    rule in log s, which converges exponentially. γ = −3 in d = 3 gives the rates of a bi-Maxwellian plasma.
    """
    S = 2 * P
    whole = _fourth(H, S, S)
    if gamma == 0:
        return whole / 2
    c = _trace(S) / S.shape[-1]
    values = torch.linalg.eigvalsh(S)
    x = _nodes(values / c[..., 0], gamma).reshape(-1, *[1] * S.ndim)
    s, decay = x.exp() / c, (-x.exp()).exp()
    part = torch.linalg.solve(torch.eye(S.shape[-1], dtype=S.dtype, device=S.device) + 2 * s * S, S)
    log_mass = -torch.log1p(2 * s[..., 0] * values).sum(-1)[..., None, None] / 2  # of E e^{−s|z|²}
    loss = -2 * s * S @ part  # part − S, which would cancel where s is small
    change = torch.expm1(log_mass) * _fourth(H, part, part) + _fourth(H, part, loss) + _fourth(H, loss, S)
    near, far = change - torch.expm1(-x.exp()) * whole, log_mass.exp() * _fourth(H, part, part) - decay * whole
    integral = SPACING * ((-gamma / 2 * x).exp() * torch.where(x < 0, near, far)).sum(0)
    return c ** (gamma / 2) * (whole + integral / math.gamma(-gamma / 2)) / 2


def _fourth(H: Tensor, S: Tensor, T: Tensor) -> Tensor:
    """The bilinear form that is E[|z|²Hz zᵀ − zᵀHz zzᵀ] for z in N(0, S) when T = S."""
    mean, along = _trace(S), _trace(H @ S)
    return H @ (mean * T + 2 * S @ T) - along * T - S @ (H + H.mT) @ T


def _trace(m: Tensor) -> Tensor:
    return m.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]


def _nodes(spread: Tensor, gamma: float) -> Tensor:
    """Values of log(c·s) between the tails s^{1−γ/2} at 0 and s^{−(γ+d+4)/2} at ∞, for the eigenvalues of S/c."""
    low = -TAIL / (1 - gamma / 2) - spread.max().log().item()
    high = 2 * TAIL / (gamma + spread.shape[-1] + 4) - spread.min().log().item()
    return torch.arange(low, high, SPACING, dtype=spread.dtype, device=spread.device)
