"""Curves of measures in the metric of collisions, in a few explicit pieces that keep momentum, energy and density."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..functionals import Functional
from ..functionals.constraint import constraint_in
from ..measures import Measure, Particles
from ..metrics import Landau, Metric
from .fitting import carries_entropy

Covector = Callable[[Tensor], tuple[Tensor, Tensor]]  # points (*batch, n, d) -> u, and its Jacobian (*batch, n, d, d)
Drive = Callable[[Particles], tuple[Tensor, Tensor, Tensor]]  # μ -> K_μu (*batch, n, d), its Jacobian, ⟨u, K_μu⟩_μ


@dataclass(frozen=True, eq=False)
class Collided:
    """Where a curve ends, its action tau·∫⟨u, K_μu⟩dt, log det ∇T at the particles but for dilations, and whether
    det ∇T > 0 at all of them on the way."""

    end: Particles
    distance2: Tensor
    log_det: Tensor
    inside: Tensor


def collide(mu: Particles, tau: float, drives: Sequence[Drive]) -> Collided:
    """One piece a drive, each x ↦ x + δ·K_μu, δ = tau/pieces, then the dilation about the mean back to the energy."""
    delta, distance2, total = tau / len(drives), mu.w.new_zeros(mu.batch), torch.zeros_like(mu.w)
    inside = torch.ones_like(mu.w[..., 0]) > 0
    centre, energy = mu.mean[..., None, :], _energy(mu, mu.x)
    eye = torch.eye(mu.dim, dtype=mu.x.dtype, device=mu.x.device)
    for drive in drives:
        V, DV, power = drive(mu)
        sign, log_det = torch.linalg.slogdet(eye + delta * DV)
        x = mu.x + delta * V
        log_scale = 0.5 * (energy / _energy(mu, x)).log()[..., None]
        x = centre + log_scale[..., None].exp() * (x - centre)
        log_density = None if mu.log_density is None else mu.log_density - log_det - mu.dim * log_scale
        mu = mu.with_state(x=x, log_density=log_density)
        distance2, total, inside = distance2 + tau * delta * power, total + log_det, inside & (sign > 0).all(-1)
    return Collided(mu, distance2, total, inside)


def driven(metric: Landau, covector: Covector) -> Drive:
    """The drive of a covector field."""

    def drive(mu: Particles) -> tuple[Tensor, Tensor, Tensor]:
        u, du = covector(mu.x)
        V, DV = metric.onsager_jacobian(mu, u[..., None, :], du[..., None, :, :])
        return V[..., 0, :], DV[..., 0, :, :], (mu.w * (u * V[..., 0, :]).sum(-1)).sum(-1)

    return drive


def supports(F: Functional, metric: Metric, mu: Measure) -> str | None:
    """None, or why there is no such curve."""
    if not isinstance(metric, Landau):
        return f"its curves are those of collisions, in the metric Landau(gamma), not {type(metric).__name__}"
    if not isinstance(mu, Particles):
        return f"it moves Particles with a log_density, not a {type(mu).__name__}; see to_particles"
    if reason := metric.declines(mu):
        return reason
    constraint = constraint_in(F)
    if constraint is not None:
        return f"{type(constraint).__name__} is a constraint, which a descent does not see"
    return carries_entropy(F, mu)


def _energy(mu: Particles, x: Tensor) -> Tensor:
    """Σ w|x − m|², m the mean of μ."""
    return (mu.w * (x - mu.mean[..., None, :]).square().sum(-1)).sum(-1)
