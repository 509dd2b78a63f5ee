"""Exact diffusions, porous media, thin films, aggregation, crowds and the double well, and the virial identities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from .aggregation import (
    attraction_flow,
    attraction_jko,
    levels,
    log_gas_equilibrium,
    log_gas_jko,
    log_gas_radius,
    log_gas_second_moment,
    newtonian_flow,
    semicircle_density,
    spread_flow,
    spread_jko,
    spread_steady,
    spread_steady_energy,
)
from .barenblatt import Barenblatt, barenblatt
from .bures import heat, ornstein_uhlenbeck
from .crowd import queue_flow
from .double_well import DoubleWell, double_well
from .fast_diffusion import FastDiffusion
from .jko_uniform import (
    UniformEntropyJKO,
    UniformPorousMediumJKO,
    jko_uniform_entropy,
    jko_uniform_porous_medium,
)
from .self_similar import SelfSimilar
from .thin_film import SmythHill

__all__ = [
    "Barenblatt",
    "DoubleWell",
    "FastDiffusion",
    "SelfSimilar",
    "SmythHill",
    "UniformEntropyJKO",
    "UniformPorousMediumJKO",
    "attraction_flow",
    "attraction_jko",
    "barenblatt",
    "double_well",
    "heat",
    "jko_uniform_entropy",
    "jko_uniform_porous_medium",
    "levels",
    "log_gas_equilibrium",
    "log_gas_jko",
    "log_gas_radius",
    "log_gas_second_moment",
    "newtonian_flow",
    "ornstein_uhlenbeck",
    "queue_flow",
    "semicircle_density",
    "spread_flow",
    "spread_jko",
    "spread_steady",
    "spread_steady_energy",
    "virial_entropy",
    "virial_porous_medium",
]


class _Expects(Protocol):
    def expect(self, f: Callable[[Tensor], Tensor]) -> Tensor: ...


def virial_entropy(new: _Expects, backward: Callable[[Tensor], Tensor], tau: float, dim: int) -> tuple[Tensor, float]:
    """Both sides of ∫⟨x − T(x), x⟩ dν = τd for ν = prox of τ∫ρ log ρ at any μ, T = `backward` optimal from ν to μ.

    First-order optimality along dilations of ν. `new` is anything with expect(f), f: (*batch, n, d) -> (*batch, n).
    """
    return _virial(new, backward), tau * dim


def virial_porous_medium(
    new: _Expects, backward: Callable[[Tensor], Tensor], tau: float, dim: int, m: float, energy: Tensor | float
) -> tuple[Tensor, Tensor | float]:
    """Both sides of ∫⟨x − T(x), x⟩ dν = τd(m − 1)F(ν), with F(ν) = ∫ρ^m/(m − 1) = `energy`."""
    return _virial(new, backward), tau * dim * (m - 1) * energy


def _virial(new: _Expects, backward: Callable[[Tensor], Tensor]) -> Tensor:
    return new.expect(lambda x: ((x - backward(x)) * x).sum(-1))
