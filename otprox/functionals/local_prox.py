"""The prox of local functionals in KL, cell by cell: what entropic scaling asks of a functional."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..measures import Measure

CELLS = 2**13  # cells that `LocalProx` takes at a time, so that its temporaries stay in cache


@dataclass(frozen=True, eq=False)
class LocalProx:
    """log a ↦ log b with log b + s·Σ c φ(log b, x) = log a at every cell: the prox of s·F in KL, prepared for many a.

    What is affine in log b (potentials, entropies) is summed once: `slope`·log b + `constant`. One power law A·bᵏ more
    is solved in closed form by the Wright function (Corless and Jeffrey 2002). What else there is, is met in value and
    slope by a power of b, whose equation the same function solves: sums of power laws take a few steps, with a bracket
    as safeguard. Bounds on b cut it off there: the objective is convex at each cell.
    """

    slope: Tensor
    constant: Tensor
    power: tuple[float, float] | None
    others: tuple[tuple[float, Any], ...]
    points: Tensor
    name: str
    s: float
    bounds: tuple[Tensor, Tensor] | None = None
    cellwise: ClassVar[bool] = True

    @classmethod
    def of(cls, F: Any, mu: Measure, s: float) -> LocalProx:
        """Prepared for s·F on the cells of mu; TypeError when an atom is not local, ValueError when not convex."""
        reason = not_local(F)
        if reason is not None:
            raise TypeError(reason)
        points = mu.points
        zero = mu.anchor.new_zeros((*mu.batch, points.shape[-2]))
        slope, constant, others, bounds = torch.ones_like(zero), zero, [], []
        for c, f in F.terms:
            if offers(f, "bounds"):
                bounds += _bounds(c, f, points)
            elif getattr(f, "affine", False):
                value, rate = f.local(zero, points)
                slope, constant = slope + s * c * rate, constant + s * c * value
            else:
                others.append((s * c, f))
        name = " + ".join(f"{c:g}·{type(f).__name__}" for c, f in F.terms)
        if not torch.isfinite(constant).all():
            bad = int((~torch.isfinite(constant)).sum())
            raise ValueError(f"{name} is not finite on {bad} cells of the grid; a prox needs finite potentials")
        if not (slope > 0).all():
            raise ValueError(
                f"s·F + KL is not convex for F = {name} and s = {s:.6g}: take a smaller tau or a larger reg"
            )
        power = _power_law(others)
        left = () if power is not None else tuple(others)
        return cls(slope, constant, power, left, points, name, s, _intersection(bounds, zero))

    def __call__(self, log_a: Tensor, near: Tensor | None = None) -> Tensor:
        """log b; `near` is a guess of it. Without one the search starts from b = 1, where every power is in range."""
        target = log_a - self.constant
        if self.power is None and not self.others:
            log_b = target.div_(self.slope)
        else:
            near = torch.zeros_like(target) if near is None else near
            parts = (t.split(CELLS, dim) for t, dim in ((near, -1), (target, -1), (self.slope, -1), (self.points, -2)))
            solve = self._search if self.power is None else self._closed_form
            log_b = torch.cat([solve(*part) for part in zip(*parts, strict=True)], -1)
        return log_b if self.bounds is None else log_b.clamp_(*self.bounds)

    def slope_at(self, log_b: Tensor) -> Tensor:
        """dlog a/dlog b = 1 + s·dφ/dlog b at b, infinite where b is at a bound."""
        rate = self.slope
        if self.power is not None:
            c, k = self.power
            rate = rate + c * k * (k * log_b).exp()
        if self.others:
            rate = rate + self._nonlinear(log_b, self.points)[1]
        return rate if self.bounds is None else torch.where(_inside(log_b, self.bounds), rate, torch.inf)

    def restricted(self, average: Callable[[Tensor], Tensor], s: float) -> LocalProx:
        """The same for `s` times as strong an F on coarser cells, onto which `average` takes the values (*batch, n)."""
        bounds = self.bounds
        if bounds is not None:
            bounds = average(bounds[0].exp()).log(), average(bounds[1].exp()).log()
        slope, constant = 1 + s * (average(self.slope) - 1), s * average(self.constant)
        points = average(self.points.mT).mT
        power = None if self.power is None else (s * self.power[0], self.power[1])
        others = tuple((s * c, f) for c, f in self.others)
        return LocalProx(slope, constant, power, others, points, self.name, s * self.s, bounds)

    def tilted(self, phi: Tensor, weight: Tensor, log_nu: Tensor) -> LocalProx:
        """The same for F + ⟨phi, b⟩ + weight·KL(b | ν), with phi and log ν (*batch, n), weight (*batch,)."""
        slope = self.slope + self.s * weight[..., None]
        return replace(self, slope=slope, constant=self.constant + self.s * (phi - weight[..., None] * log_nu))

    def _closed_form(self, near: Tensor, target: Tensor, slope: Tensor, _: Tensor) -> Tensor:
        """slope·y + c·eᵏʸ = target: with t = ky + log(ck/slope), eᵗ + t = k·target/slope + log(ck/slope)."""
        assert self.power is not None
        c, k = self.power
        shift = (c * k / slope).log_()
        return log_wright_omega((target * k).div_(slope).add_(shift), k * near + shift).sub_(shift).div_(k)

    def _search(self, y: Tensor, target: Tensor, slope: Tensor, points: Tensor) -> Tensor:
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
        parts = [(c, f.local(y, points)) for c, f in self.others]
        return reduce(add, (c * v for c, (v, _) in parts)), reduce(add, (c * r for c, (_, r) in parts))


def not_local(F: Any) -> str | None:
    """None when every atom of F has the capability `local` or `bounds`, else which do not."""
    missing = sorted({type(f).__name__ for _, f in F.terms if not (offers(f, "local") or offers(f, "bounds"))})
    return f"{' and '.join(missing)} has no KL prox (not a function of x and ρ(x) alone)" if missing else None


def _bounds(c: float, f: Any, points: Tensor) -> list[tuple[Tensor, Tensor]]:
    if c < 0:
        raise ValueError(f"{type(f).__name__} is a constraint, so its coefficient must not be negative: {c:g}")
    return [f.bounds(points)] if c > 0 else []


def _intersection(bounds: list[tuple[Tensor, Tensor]], like: Tensor) -> tuple[Tensor, Tensor] | None:
    """Logarithms of the largest lower and the least upper bound, on densities no smaller than floating numbers."""
    if not bounds:
        return None
    tiny = torch.finfo(like.dtype).tiny
    low = reduce(torch.maximum, (low for low, _ in bounds)).to(like).clamp_min(tiny)
    high = reduce(torch.minimum, (high for _, high in bounds)).to(like).clamp_min(tiny)
    return low.log().expand_as(like), high.log().expand_as(like)


def _inside(log_b: Tensor, bounds: tuple[Tensor, Tensor]) -> Tensor:
    return (log_b > bounds[0]) & (log_b < bounds[1])


def _power_law(terms: list[tuple[float, Any]]) -> tuple[float, float] | None:
    """(c, k) when the terms are one convex power law c·ρᵏ."""
    if len(terms) != 1 or not offers(terms[0][1], "power_law"):
        return None
    factor, k = terms[0][1].power_law()
    c = terms[0][0] * factor
    return (c, k) if c * k > 0 else None


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
    """w > 0 with w + log w = z (Corless and Jeffrey 2002): `log_wright_omega`, and one Newton step on w."""
    z = z.clamp_min(math.log(torch.finfo(z.dtype).tiny))
    t = log_wright_omega(z)
    w = t.exp()
    return w * (1 + (z - t - w) / (1 + w))


def log_wright_omega(z: Tensor, near: Tensor | None = None) -> Tensor:
    """t with eᵗ + t = z, by Halley's iteration, from a guess with a Newton step below 0.3, or from within 0.5 of it."""
    t, enough = _log_omega(z) if near is None else near, torch.finfo(z.dtype).eps ** 0.3
    for _ in range(5):
        w = t.exp()
        slope = 1 + w
        newton = (w + t).sub_(z).div_(slope)
        size = newton.abs().amax().item() if newton.numel() else 0.0
        if not size <= 0.3 and near is not None:
            t, near = _log_omega(z), None
            continue
        t = t.sub(newton / (1 - (newton * w).div_(slope).mul_(0.5)))
        if size <= enough:  # the error left is of third order
            break
    return t


def _log_omega(z: Tensor) -> Tensor:
    w = z.clamp_max(1).exp_()
    return torch.where(z < 1, z - w / (1 + w), z.clamp_min(1).log_())


def offers(f: Any, capability: str) -> bool:
    """Whether an atom has an optional capability."""
    return callable(getattr(f, capability, None))
