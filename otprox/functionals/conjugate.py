"""The conjugate of local convex energies, cell by cell: what dual solvers ask of a functional."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor

from ..measures import Measure

LARGEST = 300.0  # of |log ρ|: densities beyond e^±300 are taken as infinite or zero


@dataclass(frozen=True, eq=False)
class Conjugate:
    """U* of the density U(ρ) + Vρ of a local convex F at the cells of a measure: ρ = (U*)'(p) solves U'(ρ) = p.

    `potential` is V on the cells, (*batch, n); `energies` are the internal energies (c, f) with U = Σ c ρ u_f(log ρ) up
    to ρ = `ceiling`, which no price exceeds. One of them is inverted by its own `conjugate`, a sum by Newton's method
    for log ρ with a bracket as safeguard. Prices p have the shape of the potential.
    """

    potential: Tensor
    energies: tuple[tuple[float, Any], ...]
    ceiling: float = math.inf

    @classmethod
    def of(cls, F: Any, mu: Measure) -> Conjugate:
        """Prepared for F on the cells of mu; TypeError when an atom of F has no conjugate."""
        reason = no_conjugate(F)
        if reason is not None:
            raise TypeError(reason)
        points = mu.points
        potential, energies, ceiling = mu.anchor.new_zeros((*mu.batch, points.shape[-2])), [], math.inf
        for c, f in F.terms:
            if hasattr(f, "per_mass"):
                energies.append((c, f))
            elif hasattr(f, "bound"):
                ceiling = min(ceiling, f.bound)
            else:
                potential = potential + c * f.value(points)
        if not torch.isfinite(potential).all():
            bad = int((~torch.isfinite(potential)).sum())
            raise ValueError(f"the potential of {F} is not finite on {bad} cells of the grid; a prox needs finite ones")
        return cls(potential, tuple(energies), ceiling)

    def price(self, log_rho: Tensor) -> tuple[Tensor, Tensor]:
        """U'(ρ) and its derivative in log ρ."""
        parts = [(c, f.per_mass(log_rho)) for c, f in self.energies]
        price = reduce(add, (c * (u + du) for c, (u, du, _) in parts))
        return price, reduce(add, (c * (du + ddu) for c, (_, du, ddu) in parts))

    @property
    def vacuum(self) -> bool:
        """Whether U'(0) is finite, so that prices below it mean no mass at all."""
        low = self.potential.new_tensor([-2e5, -1e5])
        return bool(self.price(low)[0].diff() == 0)

    def density(self, p: Tensor) -> Tensor:
        """(U*)'(p): the density of price p; 0 at or below U'(0), infinite above U'(∞)."""
        if len(self.energies) == 1:
            ((c, f),) = self.energies
            return f.conjugate(p / c).exp().clamp_max(self.ceiling)
        return self.log_density(p).exp().clamp_max(self.ceiling)

    def energy(self, rho: Tensor) -> Tensor:
        """U(ρ), 0 at 0."""
        log_rho = torch.where(rho > 0, rho, 1).log()
        per_mass = reduce(add, (c * f.per_mass(log_rho)[0] for c, f in self.energies))
        return torch.where(rho > 0, rho * per_mass, 0)

    def softness(self, rho: Tensor) -> Tensor:
        """(U*)''(p) = 1/U''(ρ) at p = U'(ρ); 0 where ρ is."""
        slope = self.price(torch.where(rho > 0, rho, 1).log())[1]
        return torch.where((rho > 0) & (rho < self.ceiling), rho / slope, 0)

    def chord(self, p: Tensor, rho: Tensor, nu: Tensor) -> Tensor:
        """The slope of (U*)' from p, where it is ρ, to the price of ν; 0 where both are 0."""
        near = ((rho - nu).abs() <= 1e-3 * nu) & (rho < self.ceiling)
        there = self.price(torch.where(nu > 0, nu, 1).log())[0]
        chord = (rho - nu) / torch.where(near | (p == there), 1, p - there)
        return torch.where(near, self.softness(nu), chord.clamp_min(0))

    def log_density(self, p: Tensor) -> Tensor:
        """log ρ with U'(ρ) = p by safeguarded Newton; −∞ or ∞ beyond the range of U'."""
        low, high = torch.full_like(p, -LARGEST), torch.full_like(p, LARGEST)
        below, above = p <= self.price(low)[0], p >= self.price(high)[0]
        y = torch.zeros_like(p)
        eps = torch.finfo(p.dtype).eps
        for _ in range(100):
            value, slope = self.price(y)
            low, high = torch.where(value <= p, y, low), torch.where(value >= p, y, high)
            ahead = y + (p - value) / slope
            ahead = torch.where((ahead > low) & (ahead < high), ahead, (low + high) / 2)
            if bool(((ahead - y).abs() <= 8 * eps * (1 + y.abs())).all()):
                break
            y = ahead
        return torch.where(below, -torch.inf, torch.where(above, torch.inf, y))


def no_conjugate(F: Any) -> str | None:
    """None when F is a non-negative combination of energies with a conjugate, plus potentials; else why not."""
    known = ("per_mass", "bound", "value")
    missing = sorted({type(f).__name__ for _, f in F.terms if not any(hasattr(f, name) for name in known)})
    if missing:
        return (
            f"{' and '.join(missing)} has no conjugate (it is not a convex function of ρ(x) at each point); split it "
            "off as Forward(…) >> Backward(the rest)"
        )
    energies = [(c, f) for c, f in F.terms if hasattr(f, "per_mass")]
    if not energies and not any(hasattr(f, "bound") for _, f in F.terms):
        return "F has no internal energy, so the new density is not determined cell by cell"
    negative = [type(f).__name__ for c, f in energies if not c > 0]
    return (
        f"{negative[0]} has the coefficient {min(c for c, _ in energies):g}, not a positive one" if negative else None
    )
