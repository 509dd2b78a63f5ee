"""The prox of local convex functionals in L2, cell by cell: what dynamic transport asks of a functional."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor

from ..measures import Density
from .congestion import Congestion
from .local_prox import offers

ROUNDS = 100  # Newton steps for a root that a few find


@dataclass(frozen=True, eq=False)
class EuclideanProx:
    """a ↦ argmin_{ρ ≥ 0} s·F(ρ) + (w/2)∫(ρ − a)², on the cells of a grid, for F = Σ c·∫ local terms.

    Potentials are a shift of a, and Congestion a ceiling. With them alone the minimiser is the positive part;
    otherwise y = log ρ solves w·e^y + s·Σ c φ(y) = w·a, increasing in y, by Newton's method between brackets. Where φ
    is bounded below the minimiser may be 0.
    """

    slope: float
    constant: Tensor
    powers: tuple[tuple[float, Any], ...]
    ceiling: float
    points: Tensor
    name: str

    @classmethod
    def of(cls, F: Any, mu: Density, s: float) -> EuclideanProx:
        """Prepared for s·F on the cells of mu; TypeError when an atom is not local, ValueError when not convex."""
        reason = not_convex_local(F, mu)
        if reason is not None:
            raise TypeError(reason)
        points = mu.grid.points(mu.anchor)
        zero = mu.anchor.new_zeros((*mu.batch, points.shape[-2]))
        slope, constant, powers, ceiling = 0.0, zero, [], math.inf
        for c, f in F.terms:
            if isinstance(f, Congestion):
                ceiling = min(ceiling, f.bound)
            elif getattr(f, "affine", False):
                value, rate = f.local(zero, mu.points)
                slope, constant = slope + s * c * float(rate.flatten()[0]), constant + s * c * value
            else:
                powers.append((s * c, f))
        if ceiling * mu.grid.n * mu.grid.volume < 1:
            room = ceiling * mu.grid.n * mu.grid.volume
            raise ValueError(
                f"{F} leaves room for only {room:.6g} of the mass on this grid; widen it, or raise the bound"
            )
        if not torch.isfinite(constant).all():
            bad = int((~torch.isfinite(constant)).sum())
            raise ValueError(f"{F} is not finite on {bad} cells of the grid; a prox needs finite potentials")
        return cls(slope, constant, tuple(powers), ceiling, points, str(F))

    def __call__(self, a: Tensor, w: Tensor, near: Tensor) -> Tensor:
        """The minimiser from a and a guess `near`, both (*batch, k, n), with weights w that broadcast to them."""
        target = a - self.constant[..., None, :] / w
        if self.slope == 0 and not self.powers:
            return target.clamp(0, self.ceiling)
        return self._solve(target, w, near).clamp_max(self.ceiling)

    def curvature(self, rho: Tensor) -> Tensor:
        """s·d²F/dρ² where the density is rho, (*batch, n)."""
        slopes = [c * f.local(rho.log(), self.points[:1])[1] for c, f in self.powers]
        return reduce(add, slopes, torch.full_like(rho, self.slope)) / rho

    def _solve(self, target: Tensor, w: Tensor, near: Tensor) -> Tensor:
        info = torch.finfo(target.dtype)
        floor = torch.full_like(target, info.tiny).log()
        empty = self._equation(floor, w)[0] >= target
        low, high = floor, torch.full_like(target, torch.inf)
        y = torch.maximum(near, target / 2).clamp_min(info.eps**2).log()
        for _ in range(ROUNDS):
            value, rate = self._equation(y, w)
            low, high = torch.where(value <= target, y, low), torch.where(value >= target, y, high)
            ahead = y + ((target - value) / rate).clamp(-20, 2)  # beyond, e^y is far from its tangent
            settled = empty | ((ahead - y).abs() <= 8 * info.eps * (1 + y.abs()))
            if bool(settled.all()):
                return torch.where(empty, 0.0, ahead.exp())
            middle = torch.where(high.isinf(), y + 2, (low + high) / 2)
            y = torch.where(settled | ((ahead > low) & (ahead < high)), ahead, middle)
        raise ValueError(f"the prox of {self.name} found no root in {int((~settled).sum())} cells: is it convex in ρ?")

    def _equation(self, y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        """ρ + (s/w)·φ at y = log ρ without its constant, and the derivative in y."""
        rho, parts = y.exp(), [(c / w, f.local(y, self.points)) for c, f in self.powers]
        value = reduce(add, (c * v for c, (v, _) in parts), rho + self.slope / w * y)
        return value, reduce(add, (c * r for c, (_, r) in parts), rho + self.slope / w)


def not_convex_local(F: Any, mu: Density) -> str | None:
    """None when F is a sum of local terms that are convex in the density, else which are not."""
    terms = [(c, f) for c, f in F.terms if not isinstance(f, Congestion)]
    missing = sorted({type(f).__name__ for _, f in terms if not offers(f, "local")})
    if missing:
        return f"{' and '.join(missing)} is not a function of x and ρ(x) alone, cell by cell"
    log_rho = torch.linspace(-10, 10, 21, dtype=mu.anchor.dtype, device=mu.anchor.device)
    stiffness = reduce(add, (c * _stiffness(f, mu, log_rho) for c, f in terms), torch.zeros_like(log_rho))
    if bool((stiffness < 0).any()) or any(c < 0 for c, f in F.terms if isinstance(f, Congestion)):
        return f"{F} is not convex in the density"
    return None


def _stiffness(f: Any, mu: Density, log_rho: Tensor) -> Tensor:
    """dφ/dlog ρ in the first cell over a range of densities; one number where φ is affine in log ρ."""
    point = mu.points[..., :1, :]
    if getattr(f, "affine", False):
        return f.local(torch.zeros_like(point[..., 0]), point)[1].flatten()[0]
    return f.local(log_rho, point.reshape(-1, mu.dim)[:1].expand(len(log_rho), -1))[1]
