"""Functionals F of a measure, their algebra, and their normal form as a sum of coefficients times atoms."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor

from ..measures import Field, Gaussian, Measure


class Functional(ABC):
    """F: P(R^d) → R. It sees a measure only through the Measure interface.

    Subclasses are final frozen dataclasses. Beyond the four methods below, a functional may offer what solvers ask for:

    ==================  =====================================================================  ==============
    capability          meaning                                                                asked for by
    ==================  =====================================================================  ==============
    `bures_gradient`    (E ∇φ, E ∇²φ) under a Gaussian, φ = δF/δμ; by quadrature unless given  Gaussian steps
    `local`             (φ, dφ/dlog ρ) where φ depends on x and ρ(x) only; `affine` when φ is  Scaling
                        affine in log ρ
    `kl_prox`           argmin_b s·F(b) + KL(b | a) on a Density; from `local` unless given    Scaling
    `atom`              c·F as an `Atom`, a convex expression in CVXPY, or NotConvex           Convex
    `convexity`         its λ: F is λ-convex along W2 geodesics; None when not known           step-size checks
    ==================  =====================================================================  ==============
    """

    @abstractmethod
    def __call__(self, mu: Measure) -> Tensor:
        """F(μ), (*batch,)."""

    @abstractmethod
    def first_variation(self, mu: Measure, x: Tensor | None = None) -> Tensor:
        """φ = δF/δμ at points x, or at μ's own nodes or cells, up to a constant."""

    @abstractmethod
    def gradient(self, mu: Measure, x: Tensor | None = None) -> Tensor:
        """∇φ at points x (*batch, n, d), or at μ's own nodes or cells."""

    def at(self, t: float) -> Functional:
        """F at time t: itself, unless Varying."""
        return self

    @property
    def terms(self) -> tuple[tuple[float, Functional], ...]:
        """The normal form ((coefficient, atom), …): sums flattened, KL as Potential + Entropy."""
        return ((1.0, self),)

    def convexity(self, c: float = 1.0) -> float | None:
        """λ such that c·F is λ-convex along W2 geodesics; None when not known."""
        return None

    def bures_gradient(self, mu: Gaussian) -> tuple[Tensor, Tensor]:
        """(E ∇φ, E ∇²φ) under μ: the Bures–Wasserstein gradient."""
        shift, jacobian = mu.nearest_affine(lambda x: self.gradient(mu, x))
        return shift, (jacobian + jacobian.mT) / 2

    def diffusivity(self, mu: Measure) -> Tensor:
        """dφ/dlog ρ on a Density's cells: the local diffusion coefficient of the flow; 0 for a potential."""
        raise TypeError(f"{self} is not local, so it gives no diffusivity")

    def __str__(self) -> str:
        return " + ".join(f"{'' if c == 1 else f'{c:g}·'}{type(f).__name__}" for c, f in self.terms)

    def kl_prox(self, mu: Measure, log_a: Tensor, s: float) -> Tensor:
        """log b of b = argmin s·F(b) + KL(b | a) on the cells of a Density; log densities, both (*batch, n).

        Only the grid of mu matters. Pointwise, and defined where every atom is `local`.
        """
        return LocalProx.of(self, mu, s)(log_a)

    def __add__(self, other: Functional) -> Functional:
        if not isinstance(other, Functional):
            return NotImplemented
        return Sum((*_addends(self), *_addends(other)))

    def __sub__(self, other: Functional) -> Functional:
        if not isinstance(other, Functional):
            return NotImplemented
        return self + (-1.0) * other

    def __neg__(self) -> Functional:
        return (-1.0) * self

    def __mul__(self, c: float) -> Functional:
        if isinstance(c, Functional) or not isinstance(c, int | float | Tensor):
            return NotImplemented
        return Scaled(float(c), self)

    __rmul__ = __mul__

    def __truediv__(self, c: float) -> Functional:
        return self * (1 / c)


class Composite(Functional):
    """A functional that is a linear combination of atoms; everything follows from `terms`."""

    def __call__(self, mu: Measure) -> Tensor:
        return reduce(add, (c * f(mu) for c, f in self.terms))

    def first_variation(self, mu: Measure, x: Tensor | None = None) -> Tensor:
        return reduce(add, (c * f.first_variation(mu, x) for c, f in self.terms))

    def gradient(self, mu: Measure, x: Tensor | None = None) -> Tensor:
        return reduce(add, (c * f.gradient(mu, x) for c, f in self.terms))

    def bures_gradient(self, mu: Gaussian) -> tuple[Tensor, Tensor]:
        parts = [(c, f.bures_gradient(mu)) for c, f in self.terms]
        return reduce(add, (c * b for c, (b, _) in parts)), reduce(add, (c * H for c, (_, H) in parts))

    def diffusivity(self, mu: Measure) -> Tensor:
        return reduce(add, (c * f.diffusivity(mu) for c, f in self.terms))

    def convexity(self, c: float = 1.0) -> float | None:
        parts = [f.convexity(c * ci) for ci, f in self.terms]
        return None if None in parts else sum(part for part in parts if part is not None)


@dataclass(frozen=True, eq=False)
class Sum(Composite):
    """F + G + …"""

    addends: tuple[Functional, ...]

    @property
    def terms(self) -> tuple[tuple[float, Functional], ...]:
        return tuple(term for f in self.addends for term in f.terms)

    def at(self, t: float) -> Functional:
        return Sum(tuple(f.at(t) for f in self.addends))


@dataclass(frozen=True, eq=False)
class Scaled(Composite):
    """c·F."""

    c: float
    f: Functional

    def __post_init__(self) -> None:
        if not torch.isfinite(torch.tensor(self.c)):
            raise ValueError(f"a functional is scaled by a finite number, not {self.c}")

    @property
    def terms(self) -> tuple[tuple[float, Functional], ...]:
        return tuple((self.c * c, f) for c, f in self.f.terms)

    def at(self, t: float) -> Functional:
        return Scaled(self.c, self.f.at(t))


@dataclass(frozen=True, eq=False)
class Varying(Functional):
    """t ↦ F_t. It has a value only at a time; steps ask for it with `at`.

    >>> from otprox import Potential, Varying
    >>> F = Varying(lambda t: Potential(lambda x: 0.5 * ((x - t) ** 2).sum(-1)))
    """

    f: Callable[[float], Functional]

    def at(self, t: float) -> Functional:
        functional = self.f(t)
        if not isinstance(functional, Functional):
            raise TypeError(f"Varying(f) needs f(t) to be a Functional; f({t}) is a {type(functional).__name__}")
        return functional.at(t)

    @property
    def terms(self) -> tuple[tuple[float, Functional], ...]:
        raise TypeError("a Varying functional has terms only at a time: use .at(t)")

    def __str__(self) -> str:
        return "Varying"

    def __call__(self, mu: Measure) -> Tensor:
        raise TypeError("a Varying functional has a value only at a time: use .at(t)")

    def first_variation(self, mu: Measure, x: Tensor | None = None) -> Tensor:
        raise TypeError("a Varying functional has a first variation only at a time: use .at(t)")

    def gradient(self, mu: Measure, x: Tensor | None = None) -> Tensor:
        raise TypeError("a Varying functional has a gradient only at a time: use .at(t)")


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
    def of(cls, F: Functional, mu: Measure, s: float) -> LocalProx:
        """Prepared for s·F on the cells of mu; TypeError when an atom is not local, ValueError when not convex."""
        reason = not_local(F)
        if reason is not None:
            raise TypeError(reason)
        points = mu.points
        zero = mu.anchor.new_zeros((*mu.batch, points.shape[-2]))
        slope, constant, powers = torch.ones_like(zero), zero, []
        for c, f in F.terms:
            if getattr(f, "affine", False):
                value, rate = f.local(zero, points)  # type: ignore[attr-defined]
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


def not_local(F: Functional) -> str | None:
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


def _addends(f: Functional) -> tuple[Functional, ...]:
    return f.addends if isinstance(f, Sum) else (f,)


def offers(f: Functional, capability: str) -> bool:
    """Whether an atom has an optional capability."""
    return callable(getattr(f, capability, None))


def differentiate(f: Field, x: Tensor, what: str) -> Tensor:
    """∇f at points x by automatic differentiation, (*batch, n, d); differentiable again when x requires grad."""
    with torch.enable_grad():
        y = x if x.requires_grad else x.detach().requires_grad_()
        values = f(y)
        if not values.requires_grad:
            raise TypeError(
                f"{what} is not differentiable by autograd: write it with torch operations, without .detach(), "
                ".item() or NumPy"
            )
        if not torch.isfinite(values).all():
            raise ValueError(f"{what} is non-finite (NaN or infinite) at {int((~torch.isfinite(values)).sum())} points")
        (g,) = torch.autograd.grad(values.sum(), y, create_graph=x.requires_grad)
    return g


def scalar_potential(V: Callable[[Tensor], Any], name: str) -> Field:
    """V with its output shape checked: (*batch, n, d) -> (*batch, n)."""

    def checked(x: Tensor) -> Tensor:
        values = V(x)
        if not isinstance(values, Tensor) or values.shape != x.shape[:-1]:
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"{name} must map points (*batch, n, d) to values (*batch, n): {tuple(x.shape)} gave {shape}; "
                "for a radial one, sum over the last axis: (x**2).sum(-1)"
            )
        return values

    return checked
