"""The prox of local functionals in KL, cell by cell: what entropic scaling asks of a functional."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor

from ..measures import Measure

CELLS = 2**13  # cells that `LocalProx` takes at a time, so that its temporaries stay in cache


@dataclass(frozen=True, eq=False)
class LocalProx:
    """log a ↦ log b with log b + s·Σ c φ(log b, x) = log a at every cell: the prox of s·F in KL, prepared for many a.

    What is affine in log b (potentials, entropies) is summed once: `slope`·log b + `constant`. The rest is met in value
    and slope by a power of b, whose equation the Wright function solves (Corless and Jeffrey 2002): affine terms and a
    single power law take one step, sums of power laws a few, with a bracket as safeguard.
    """

    slope: Tensor
    constant: Tensor
    powers: tuple[tuple[float, Any], ...]
    points: Tensor
    name: str

    @classmethod
    def of(cls, F: Any, mu: Measure, s: float) -> LocalProx:
        """Prepared for s·F on the cells of mu; TypeError when an atom is not local, ValueError when not convex."""
        reason = not_local(F)
        if reason is not None:
            raise TypeError(reason)
        points = mu.points
        zero = mu.anchor.new_zeros((*mu.batch, points.shape[-2]))
        slope, constant, powers = torch.ones_like(zero), zero, []
        for c, f in F.terms:
            if getattr(f, "affine", False):
                value, rate = f.local(zero, points)
                slope, constant = slope + s * c * rate, constant + s * c * value
            else:
                powers.append((s * c, f))
        name = " + ".join(f"{c:g}·{type(f).__name__}" for c, f in F.terms)
        if not torch.isfinite(constant).all():
            bad = int((~torch.isfinite(constant)).sum())
            raise ValueError(f"{name} is not finite on {bad} cells of the grid; a prox needs finite potentials")
        if not (slope > 0).all():
            raise ValueError(
                f"s·F + KL is not convex for F = {name} and s = {s:.6g}: take a smaller tau or a larger reg"
            )
        return cls(slope, constant, tuple(powers), points, name)

    def __call__(self, log_a: Tensor, near: Tensor | None = None) -> Tensor:
        """log b; `near` is a guess of it. Without one the search starts from b = 1, where every power is in range."""
        target = log_a - self.constant
        if not self.powers:
            return target / self.slope
        near = torch.zeros_like(target) if near is None else near
        parts = (t.split(CELLS, dim) for t, dim in ((near, -1), (target, -1), (self.slope, -1), (self.points, -2)))
        return torch.cat([self._solve(*part) for part in zip(*parts, strict=True)], -1)

    def _solve(self, y: Tensor, target: Tensor, slope: Tensor, points: Tensor) -> Tensor:
        """slope·y + N(y) = target, from y."""
        eps = torch.finfo(target.dtype).eps
        low, high = torch.full_like(y, -torch.inf), torch.full_like(y, torch.inf)
        for _ in range(60):
            value, rate = self._nonlinear(y, points)
            gap = target - slope * y
            step, quadratic = _power_step(slope, gap, value, rate)
            if quadratic.all():
                return y + step
            low, high = torch.where(value < gap, y, low), torch.where(value > gap, y, high)
            rounding = 16 * eps * (1 + y.abs() + (gap.abs() + value.abs()) / (slope + rate))
            settled, ahead = quadratic | (step.abs() <= rounding), y + step
            if settled.all():
                return ahead
            kept = settled | ((ahead > low) & (ahead < high))
            y = ahead if bool(kept.all()) else torch.where(kept, ahead, _between(low, high))
        raise ValueError(f"the KL prox of {self.name} found no root: s·F + KL must be convex in the density")

    def _nonlinear(self, y: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        parts = [(c, f.local(y, points)) for c, f in self.powers]
        return reduce(add, (c * v for c, (v, _) in parts)), reduce(add, (c * r for c, (_, r) in parts))


def not_local(F: Any) -> str | None:
    """None when every atom of F has the capability `local`, else which do not."""
    missing = sorted({type(f).__name__ for _, f in F.terms if not offers(f, "local")})
    return f"{' and '.join(missing)} has no KL prox (not a function of x and ρ(x) alone)" if missing else None


def _power_step(slope: Tensor, gap: Tensor, value: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """δ with slope·δ + value·exp(kδ) = gap, k = rate/value, and whether it is so small that its error is rounding.

    It is Newton's step where there is no such power, and where it is small: there Newton's step loses fewer digits.
    """
    total, k = slope + rate, rate / value
    newton = (gap - value) / total
    size = newton.abs() * (1 + k.abs())
    small = (size <= torch.finfo(gap.dtype).eps ** 0.5) & (total > 0)
    far = (size > 1e-3) & (rate > 0)
    if not bool(far.any()):
        return newton, small
    far = far & torch.isfinite(k)
    k = torch.where(far, k, 1.0)
    w = wright_omega((torch.where(far, rate, slope) / slope).log() + k * gap / slope)
    return torch.where(far, gap / slope - w / k, newton), small


def _between(low: Tensor, high: Tensor) -> Tensor:
    """The middle of a bracket; a step away from its only end while the other is not known."""
    low = torch.where(torch.isinf(low), high - 2 - 2 * high.abs(), low)
    return (low + torch.where(torch.isinf(high), low + 2 + 2 * low.abs(), high)) / 2


def wright_omega(z: Tensor) -> Tensor:
    """w > 0 with w + log w = z (Corless and Jeffrey 2002): Halley's iteration for t = log w, and one step on w."""
    z = z.clamp_min(math.log(torch.finfo(z.dtype).tiny))
    t = torch.where(z < 1, z - z.clamp_max(1).exp() / (1 + z.clamp_max(1).exp()), z.clamp_min(1).log())
    for _ in range(3):
        w = t.exp()
        newton = (w + t - z) / (1 + w)
        t = t - newton / (1 - newton * w / (2 + 2 * w))
    w = t.exp()
    return w * (1 + (z - t - w) / (1 + w))


def offers(f: Any, capability: str) -> bool:
    """Whether an atom has an optional capability."""
    return callable(getattr(f, capability, None))
