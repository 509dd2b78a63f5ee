"""Infinitely wide ReLU networks on a sphere: their kernel, its spectrum, and one neuron in Wasserstein–Fisher–Rao."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def relu_kernel(rho: Tensor, d: int) -> Tensor:
    """E_x (z·x)₊(z'·x)₊ over uniform x on the sphere S^d, z·z' = ρ: [√(1 − ρ²) + ρ(π − arccos ρ)]/(2π(d + 1))."""
    rho = rho.clamp(-1, 1)
    return ((1 - rho.square()).sqrt() + rho * (math.pi - torch.arccos(rho))) / (2 * math.pi * (d + 1))


def relu_singular_value(k: int, d: int) -> float:
    """σ_k, the multiplier of (z·x)₊ on spherical harmonics of degree k; the kernel's eigenvalues are σ_k².

    σ_0 = Γ((d+1)/2)/(2√π·Γ(d/2+1)), σ_1 = 1/(2(d+1)), and for even k ≥ 2
    σ_k = (−1)^{k/2−1}·Γ((d+1)/2)/(4π)·Γ((k−1)/2)/Γ((k+d)/2+1). Odd k ≥ 3 have σ_k = 0: without bias, a network does
    not see them.
    """
    if k == 0:
        return math.gamma((d + 1) / 2) / (2 * math.sqrt(math.pi) * math.gamma(d / 2 + 1))
    if k == 1:
        return 1 / (2 * (d + 1))
    if k % 2:
        return 0.0
    ratio = math.exp(math.lgamma((k - 1) / 2) - math.lgamma((k + d) / 2 + 1))
    return (-1) ** (k // 2 - 1) * math.gamma((d + 1) / 2) / (4 * math.pi) * ratio


def wfr_neuron(a: float, theta: float, t: float) -> tuple[float, float, float]:
    """Mass, angle and energy F = ½‖aδ_θ − δ_0‖²_k at time t, for the ReLU kernel on the circle:

    ∂t μ = div(μ∇φ) − 4μφ gives ȧ = −4a(a·k(0) − k(θ)), θ̇ = −(π − θ)sin θ/(4π), k = (sin θ + (π − θ)cos θ)/(4π).

    It is the gradient flow of one neuron w = √a(cos θ, sin θ) in the Euclidean metric (Chizat, Bach 2018).
    """
    from scipy.integrate import solve_ivp

    def k(angle: float) -> float:
        return (math.sin(angle) + (math.pi - angle) * math.cos(angle)) / (4 * math.pi)

    def velocity(_: float, y: np.ndarray) -> list[float]:
        mass, angle = y
        return [-4 * mass * (mass * k(0) - k(angle)), -(math.pi - angle) * math.sin(angle) / (4 * math.pi)]

    mass, angle = solve_ivp(velocity, (0.0, t), [a, theta], method="DOP853", rtol=1e-12, atol=1e-14).y[:, -1]
    energy = 0.5 * (mass**2 * k(0) - 2 * mass * k(angle) + k(0))
    return float(mass), float(angle), float(energy)
