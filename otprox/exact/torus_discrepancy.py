"""Flows of ½‖μ − ν‖² in the dual Sobolev norms H^(−s) of a torus: decay of modes, s = 1 along characteristics, rates.

Densities are relative to the uniform probability, c_k their Fourier coefficients, E_s = ½Σ_{k≠0}|κ|^(−2s)|c_k|² with
κ = 2πk/period; the flow is ∂t μ = div(μ∇φ), φ = Σ|κ|^(−2s)(c_k(μ) − c_k(ν))e^{iκx}.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sobolev_energy(values: Tensor, s: float, period: float = 2 * math.pi, target: Tensor | None = None) -> Tensor:
    """E_s of densities at equidistant points of a circle, (*batch, n) -> (*batch,); ν is uniform unless given."""
    n = values.shape[-1]
    c = torch.fft.rfft(values - (1.0 if target is None else target))[..., 1:] / n
    k = 2 * math.pi / period * torch.arange(1, c.shape[-1] + 1, dtype=values.dtype, device=values.device)
    pairs = torch.full_like(k, 2.0)
    if n % 2 == 0:
        pairs[-1] = 1.0  # the last mode is its own mirror image
    return 0.5 * (pairs * k ** (-2 * s) * c.abs().square()).sum(-1)


def mode_rate(k: float, s: float, period: float = 2 * math.pi) -> float:
    """|κ|^(2 − 2s): the rate at which mode k decays about the uniform measure. At s = 1 all modes decay at rate 1."""
    return abs(2 * math.pi * k / period) ** (2 - 2 * s)


def negative_sobolev_maximum(maximum: float, t: float) -> float:
    """s = 1, ν uniform: max μ_t = 1/(1 − (1 − 1/max μ_0)e^{−t}), from D_t μ = −μ(μ − 1) on characteristics."""
    return 1 / (1 - (1 - 1 / maximum) * math.exp(-t))


def negative_sobolev_map(x: Tensor, velocity: Tensor, t: float) -> Tensor:
    """s = 1, d = 1, ν uniform: X = x + (1 − e^{−t})u_0(x), with u_0' = μ_0 − 1 of mean 0; then E(t) = e^{−2t}E(0)."""
    return x + (1 - math.exp(-t)) * velocity


def sobolev_exponent(s: float, r: float) -> float:
    """(s + r)/(s − 1): ‖μ_0 − 1‖_{H^r} < ∞ gives the linearised energy t^(−exponent), s > 1; sharp."""
    _smooth(s)
    return (s + r) / (s - 1)


def sobolev_bound(t: float, s: float, r: float, norm: float) -> float:
    """½[(s + r)/(2e(s − 1)t)]^{(s + r)/(s − 1)}·‖u_0‖²_{H^r}, which bounds the linearised E_s at time t, period 2π."""
    a = sobolev_exponent(s, r)
    return 0.5 * (a / (2 * math.e * t)) ** a * norm**2


def power_tail(t: float, s: float, p: float) -> float:
    """Leading order of Σ_{k≥1} k^(−2s−2p)·e^{−2k^(2−2s)t} as t → ∞: Γ(a)·2^{−a}/(2s − 2)·t^{−a}.

    The exponent is a = (2s + 2p − 1)/(2s − 2). It is the linearised energy from c_k = k^{−p}, both signs of k counted.
    """
    _smooth(s)
    a = (2 * s + 2 * p - 1) / (2 * s - 2)
    return math.gamma(a) * 2**-a / (2 * s - 2) * t**-a


def _smooth(s: float) -> None:
    if not s > 1:
        raise ValueError(f"decay is polynomial for s > 1; s = {s} (at s = 1 the energy decays like e^(−2t))")
