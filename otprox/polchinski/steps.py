"""Exact transitions of the renormalised measures, and the way back from δ₀ to ν₀ by a stochastic equation in scale."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from ..measures import Gaussian, Measure, Particles, Spectral
from ..measures.base import check_alike
from ..measures.covariance import tensor_of
from ..solvers import Out
from ..steps import Step, finite, step_size
from .covariances import Covariances
from .fluctuations import WATCHED, Chains, Fluctuations
from .modes import Matrix, Modes, check_same, root
from .potential import AtScale, RenormalisedPotential
from .routes import ClosedForm


@dataclass(frozen=True, eq=False)
class Bridge(Step):
    """ν_s ↦ ν_t for s < t, exact for any V₀: φ_t = Kφ_s + N(0, R), K = D_tD_s⁻¹ and R = K(C_t − C_s), D = C_∞ − C.

    R = D_t − D_tD_s⁻¹D_t without its cancellation. In closed form on Gaussians, by noise from `generator` on Particles
    (with fast transforms for Spectral families), by push and heat flow elsewhere. It is the flow of
    ∂tν = ½Tr(Ċ∇²ν) + div(νĊD⁻¹φ), which does not know V₀ (Bauerschmidt, Bodineau, Dagallier 2024).

    Raises ValueError for times outside the family, and where D_s is singular, naming the mode.
    """

    C: Covariances
    generator: torch.Generator | None = None

    def __call__(self, mu: Measure, t0: float, t1: float, last: Any = None) -> Out:
        step_size(t0, t1)
        K, R = transition(self.C, t0, t1)
        check_alike(tensor_of(R), "the covariance of Bridge", mu.anchor)
        if isinstance(mu, Gaussian):
            moved: Measure = mu.affine((K @ mu.mean[..., None])[..., 0], K)
        else:
            moved = mu.push(lambda x: x @ K.mT)
        return Out(finite(moved.diffuse(R, self.generator), f"Bridge at t = {t0:g}"))

    def generators(self) -> tuple[torch.Generator, ...]:
        return () if self.generator is None else (self.generator,)


def transition(C: Covariances, s: float, t: float) -> tuple[Matrix, Matrix]:
    """(K, R) with φ_t = Kφ_s + N(0, R) for s < t: K = D_tD_s⁻¹, R = K(C_t − C_s)."""
    before = Modes.of(C.remaining(s)).positive(f"D = C_∞ − C_t at t = {s:g}").matrix
    after, increment = C.remaining(t), C.increment(s, t)
    if isinstance(before, Spectral):
        K = before.with_values(after.values / before.values)
        return K, K @ increment
    K = torch.linalg.solve(before, after, left=False)
    R = K @ increment
    return K, (R + R.mT) / 2


class Slopes(Protocol):
    """What the ascent asks: a covariance family, and (t, φ) ↦ ∇V_t(φ) at fields (*batch, n, N)."""

    @property
    def C(self) -> Covariances: ...

    def gradient(self, t: float, phi: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Learned:
    """∇V_t given by any callable (t, φ) ↦ (*batch, n, N), such as a trained network. t may be infinite, where φ = 0."""

    C: Covariances
    slope: Callable[[float, Tensor], Tensor]

    def gradient(self, t: float, phi: Tensor) -> Tensor:
        """∇V_t at fields."""
        values = self.slope(t, phi)
        if values.shape != phi.shape:
            raise ValueError(f"slope must map fields {tuple(phi.shape)} to that shape, not {tuple(values.shape)}")
        return values


@dataclass(frozen=True, eq=False)
class Ascended:
    """What a step of `Ascent` leaves: its local error, halvings of its interval, and where sampling chains stand."""

    converged: Tensor
    iterations: Tensor
    error: Tensor
    chains: Chains | None = None


@dataclass(frozen=True, eq=False)
class Ascent(Step):
    """ν_t ↦ ν_s for s < t, up to ν₀: dφ = −Ċ∇V dr + Ċ^½dB with the scale r going down, from δ₀ at r = ∞.

    It runs in minus the scale, from −∞ to 0 (`ascending` makes such times). Its law at r is ν_r: the time reversal of
    `Bridge`, as the score is ∇log ν_r = −D_r⁻¹φ − ∇V_r (Anderson 1982; Bauerschmidt, Bodineau, Dagallier 2024). A step
    is Euler's (order=1), φ − (C_t − C_s)∇V_t(φ) + ξ with ξ ~ N(0, C_t − C_s), or Heun's (order=2), with the mean of
    ∇V_t(φ) and of ∇V_s at Euler's point: of that weak order, as the noise is additive.

    V: a `RenormalisedPotential` or `Learned`. ∇V_t sampled by `Fluctuations` resumes its chains from step to step; the
    error of the estimate adds noise of second order in the step. The chains are judged, by R̂ and acceptance, over
    windows of at least 32 samples, which may span steps (at scale 0 of 8). Works on Particles; on Gaussians, dense or
    Spectral, for a free field; with order=1 on every measure that can be pushed. With `tol`, on Particles, an interval
    whose Euler and Heun ends differ by more (root mean square over particles and sites) is halved, with a Brownian
    bridge between, at most `halvings` times.
    """

    V: Slopes
    generator: torch.Generator | None = None
    order: Literal[1, 2] = field(default=2, kw_only=True)
    tol: float | None = field(default=None, kw_only=True)
    halvings: int = field(default=8, kw_only=True)

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise ValueError(f"Ascent has orders 1 (Euler) and 2 (Heun), not {self.order}")
        if self.tol is not None and not self.tol > 0:
            raise ValueError(f"tol must be positive, not {self.tol}")

    def __call__(self, mu: Measure, t0: float, t1: float, last: Any = None) -> Out:
        t, s = _scales(t0, t1)
        if isinstance(mu, Gaussian):
            return Out(finite(self._gaussian(mu, t, s), f"Ascent from scale {t:g}"))
        if not isinstance(mu, Particles):
            return Out(finite(self._pushed(mu, t, s), f"Ascent from scale {t:g}"))
        if self.generator is None:
            raise ValueError("noise on Particles needs an explicit generator: Ascent(V, torch.Generator())")
        walk = _Walk(self, last.chains if isinstance(last, Ascended) else None)
        end = walk.down(mu.x, t, s, _noise(between(self.V.C, s, t), mu.x, self.generator), self.halvings)
        flags = mu.x.new_ones(mu.batch, dtype=torch.bool) & (walk.forced == 0)
        chains = None if walk.chains is None else walk.chains.judged(WATCHED // 4 if s == 0 else WATCHED)
        stats = Ascended(flags, torch.full_like(flags, walk.halved, dtype=torch.int64), walk.error, chains)
        return Out(finite(mu.with_state(x=end, log_density=None), f"Ascent from scale {t:g}"), stats)

    def generators(self) -> tuple[torch.Generator, ...]:
        own = () if self.generator is None else (self.generator,)
        sampled = getattr(getattr(self.V, "method", None), "generator", None)
        return own if sampled is None or sampled is self.generator else (*own, sampled)

    def _pushed(self, mu: Measure, t: float, s: float) -> Measure:
        """Euler's step of a law: its image under the drift, then the heat flow."""
        if self.order != 1 or self.tol is not None:
            raise TypeError(f"Heun's step and tol need Particles; on {type(mu).__name__} use Ascent(V, order=1)")
        walk, rise = _Walk(self, None), between(self.V.C, s, t)
        return mu.push(lambda phi: phi - walk.slope(t, phi) @ rise).diffuse(rise, self.generator)

    def _gaussian(self, mu: Gaussian, t: float, s: float) -> Gaussian:
        """The same step in closed form: ∇V_t(φ) = Aφ − b, so φ' = Gφ + Nξ + a shift."""
        V, rise = self.V, between(self.V.C, s, t)
        if not isinstance(V, RenormalisedPotential) or not isinstance(potential(V, t).method, ClosedForm):
            raise TypeError("Ascent on a Gaussian needs a free field, V = RenormalisedPotential(FreeField(A, b), C)")
        first = ClosedForm().renormalise(V.V0, potential(V, t).C)
        check_same(rise, mu.cov)
        one = mu.identity()
        euler, push = one - rise @ first.A, first.b @ rise
        if self.order == 1:
            return mu.affine(apply_left(euler, mu.mean) + push, euler).diffuse(rise)
        second = ClosedForm().renormalise(V.V0, potential(V, s).C)
        back = 0.5 * (rise @ second.A)
        whole, noise = one - 0.5 * (rise @ first.A) - back @ euler, one - back
        shift = 0.5 * push - apply_left(back, push) + 0.5 * (second.b @ rise)
        moved = mu.affine(apply_left(whole, mu.mean) + shift, whole)
        spread = noise @ rise @ noise.mT
        return moved.diffuse((spread + spread.mT) / 2)


class _Walk:
    """One step of `Ascent` on fields, with what it learns on the way."""

    def __init__(self, step: Ascent, chains: Chains | None) -> None:
        self.step, self.chains = step, chains
        self.halved, self.forced, self.error = 0, 0, torch.zeros(())

    def down(self, phi: Tensor, t: float, s: float, xi: Tensor, left: int) -> Tensor:
        """Fields at scale s from fields at t, with ξ ~ N(0, C_t − C_s) given."""
        rise, tol = between(self.step.V.C, s, t), self.step.tol
        slope = self.slope(t, phi)
        euler = phi - slope @ rise + xi
        if self.step.order == 1 and tol is None:
            return euler
        gap = 0.5 * ((slope - self.slope(s, euler)) @ rise)
        error = gap.square().mean().sqrt()
        if tol is None or error <= tol or left == 0:
            self.forced += int(tol is not None and bool(error > tol))
            self.error = torch.maximum(self.error.to(error), error)
            return euler if self.step.order == 1 else euler + gap
        self.halved += 1
        mid = halfway(self.step.V.C, s, t)
        first = self._bridge(xi, between(self.step.V.C, mid, t), between(self.step.V.C, s, mid), rise)
        return self.down(self.down(phi, t, mid, first, left - 1), mid, s, xi - first, left - 1)

    def slope(self, t: float, phi: Tensor) -> Tensor:
        """∇V_t, by chains that go on where they stood when it is sampled."""
        V = self.step.V
        if not isinstance(V, RenormalisedPotential):
            return V.gradient(t, phi)
        at = potential(V, t)
        if not isinstance(at.method, Fluctuations) or not Modes.of(at.C).values.any():
            return at.gradient(phi)
        estimate, self.chains = at.method.resume(V.V0, at.C, phi, self.chains)
        return estimate.value

    def _bridge(self, xi: Tensor, part: Matrix, rest: Matrix, whole: Matrix) -> Tensor:
        """The part of ξ up to the middle, N(part·whole⁻¹ξ, part·whole⁻¹·rest)."""
        assert self.step.generator is not None
        inverse = Modes.of(whole).inverse
        spread = part @ inverse @ rest
        spread = spread if isinstance(spread, Spectral) else (spread + spread.mT) / 2
        return xi @ inverse @ part + _noise(spread, xi, self.step.generator)


def potential(V: RenormalisedPotential, t: float) -> AtScale:
    """V_t, also at t = ∞."""
    return AtScale(V.V0, V.C.limit, V.method) if math.isinf(t) else V.at(t)


def between(C: Covariances, s: float, t: float) -> Matrix:
    """C_t − C_s, t = ∞ allowed."""
    return C.remaining(s) if math.isinf(t) else C.increment(s, t)


def halfway(C: Covariances, s: float, t: float) -> float:
    """The scale between s and t at which the largest eigenvalue of C is in the middle of its values there."""
    top = _size(C.limit) if math.isinf(t) else _size(C(t))
    return _scale_of(C, 0.5 * (_size(C(s)) + top), s, t)


def ascending(C: Covariances, steps: int) -> list[float]:
    """Times −∞ = −t_0 < … < −t_steps = 0 for `Ascent`, between which the largest eigenvalue of C changes equally."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    top = _size(C.limit)
    inner = [-_scale_of(C, top * k / steps, 0.0, math.inf) for k in range(steps - 1, 0, -1)]
    return [-math.inf, *inner, 0.0]


def _scale_of(C: Covariances, size: float, s: float, t: float) -> float:
    """The scale in (s, t) at which the largest eigenvalue of C is `size`, by bisection in r/(1 + r)."""
    low, high = s / (1 + s), 1.0 if math.isinf(t) else t / (1 + t)
    for _ in range(60):
        middle = 0.5 * (low + high)
        if _size(C(middle / (1 - middle))) < size:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high) / (1 - 0.5 * (low + high))


def _size(matrix: Matrix) -> float:
    return Modes.of(matrix).values.abs().max().item()


def _scales(t0: float, t1: float) -> tuple[float, float]:
    """The scales t > s ≥ 0 of times −t < −s ≤ 0."""
    if not t0 < t1 <= 0:
        raise ValueError(f"Ascent runs in minus the scale, over times t0 < t1 ≤ 0; got [{t0}, {t1}]")
    return -t0, -t1


def _noise(cov: Matrix, like: Tensor, generator: torch.Generator) -> Tensor:
    z = torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)
    return z @ root(cov)


def apply_left(matrix: Matrix, x: Tensor) -> Tensor:
    """Matrix, not necessarily symmetric, times vectors (*batch, N)."""
    return (matrix @ x[..., None])[..., 0]
