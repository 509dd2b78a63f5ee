"""Limited-memory BFGS on a batch of independent problems, each with its own curvature pairs and line search."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Objective = Callable[[Tensor], tuple[Tensor, Tensor]]  # points (items, k) -> values (items,), gradients (items, k)

ARMIJO = 1e-4  # sufficient decrease, Nocedal & Wright 2006, eq. (3.4)
TRIALS = 40  # step lengths tried along one direction


@dataclass(frozen=True, eq=False)
class Minimum:
    """Where the items stopped; `residual` is the norm of the gradient, without what pushes against a bound."""

    x: Float[Tensor, "items k"]
    value: Float[Tensor, " items"]
    residual: Float[Tensor, " items"]
    iterations: Int[Tensor, " items"]
    converged: Bool[Tensor, " items"]


@dataclass(frozen=True, eq=False)
class _Point:
    x: Tensor
    value: Tensor
    gradient: Tensor


@dataclass(frozen=True, eq=False)
class Bounds:
    """low ≤ x ≤ high, entry by entry, (items, k)."""

    low: Tensor
    high: Tensor

    def clamp(self, x: Tensor) -> Tensor:
        return torch.maximum(self.low, torch.minimum(self.high, x))

    def blocked(self, x: Tensor, gradient: Tensor) -> Tensor:
        """Where x is on a bound and descent would leave through it."""
        return ((x <= self.low) & (gradient > 0)) | ((x >= self.high) & (gradient < 0))


def minimise(
    f: Objective,
    x: Tensor,
    *,
    tol: Tensor,
    scale: float,
    noise: Tensor,
    memory: int = 10,
    max_iter: int = 500,
    bounds: Bounds | None = None,
) -> Minimum:
    """Minimise f from x (items, k) until the norm of the gradient is at most tol (items,).

    `scale` is the first guess of the inverse Hessian, a multiple of the identity. `noise` (items,) is the rounding
    error of f: a smaller increase is accepted when the slope has shrunk (the approximate Wolfe conditions of Hager &
    Zhang 2005). f may be infinite or NaN outside its domain: the search steps back. An item whose search fails with no
    curvature pair left stops there, as it does at convergence; the others go on. Within `bounds`, steps are projected
    and the entries that push against a bound are left out of them (Bertsekas 1982).
    """
    here = _Point(x, *f(x))
    pairs = _Pairs.empty(here.value, scale, memory)
    iterations = torch.zeros_like(here.value, dtype=torch.int64)
    hopeless = torch.zeros_like(here.value, dtype=torch.bool)
    for k in range(max_iter + 1):
        free = torch.ones_like(x, dtype=torch.bool) if bounds is None else ~bounds.blocked(here.x, here.gradient)
        gradient = here.gradient * free
        residual = gradient.norm(dim=-1)
        active = ~hopeless & (residual > tol)
        if k == max_iter or not active.any():
            break
        there, found = _search(f, here, -pairs.apply(gradient) * free, active, noise, bounds)
        hopeless = hopeless | (active & ~found & pairs.fresh)
        change = (there.gradient - here.gradient) * free
        pairs = pairs.updated(there.x - here.x, change, found, reset=active & ~found)
        here, iterations = there, iterations + active
    return Minimum(here.x, here.value, residual, iterations, residual <= tol)


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Curvature pairs (s, y, 1/⟨s, y⟩) of each item; 1/⟨s, y⟩ = 0 where an item has none."""

    pairs: deque[tuple[Tensor, Tensor, Tensor]]
    gamma: Tensor  # (items,), scale of the initial inverse Hessian
    fresh: Tensor  # (items,), no pair yet
    scale: float

    @classmethod
    def empty(cls, like: Tensor, scale: float, memory: int) -> _Pairs:
        gamma = torch.full_like(like, scale)
        return cls(deque(maxlen=memory), gamma, torch.ones_like(like, dtype=torch.bool), scale)

    def apply(self, g: Tensor) -> Tensor:
        """The two-loop recursion, Nocedal & Wright 2006, algorithm 7.4."""
        alphas = []
        for s, y, rho in reversed(self.pairs):
            alpha = rho * (s * g).sum(-1)
            g = g - alpha[:, None] * y
            alphas.append(alpha)
        r = self.gamma[:, None] * g
        for (s, y, rho), alpha in zip(self.pairs, reversed(alphas), strict=True):
            r = r + (alpha - rho * (y * r).sum(-1))[:, None] * s
        return r

    def updated(self, s: Tensor, y: Tensor, found: Tensor, reset: Tensor) -> _Pairs:
        """With the newest pair where the curvature ⟨s, y⟩ is positive; without any in the items to reset."""
        curvature, yy = (s * y).sum(-1), (y * y).sum(-1)
        useful = found & (curvature > torch.finfo(s.dtype).eps * s.norm(dim=-1) * yy.sqrt())
        rho = torch.where(useful, 1 / curvature, 0)
        gamma = torch.where(useful, curvature / yy, self.gamma)
        pairs = deque(((a, b, r.masked_fill(reset, 0)) for a, b, r in self.pairs), self.pairs.maxlen)
        pairs.append((s, y, rho))
        return replace(
            self, pairs=pairs, gamma=gamma.masked_fill(reset, self.scale), fresh=(self.fresh & ~useful) | reset
        )


def _search(
    f: Objective, here: _Point, direction: Tensor, active: Tensor, noise: Tensor, bounds: Bounds | None
) -> tuple[_Point, Tensor]:
    """Backtrack along each active item's direction; returns the points, and where a step was found."""
    slope = (direction * here.gradient).sum(-1)
    pending = active & (slope < 0)
    found = torch.zeros_like(active)
    there, t = here, torch.ones_like(slope)
    for _ in range(TRIALS):
        if not pending.any():
            break
        x = here.x + t[:, None] * direction
        x = torch.where(pending[:, None], x if bounds is None else bounds.clamp(x), there.x)
        trial = _Point(x, *f(x))
        accepted = pending & _acceptable(here, trial, noise)
        there = _select(accepted, trial, there)
        found, pending = found | accepted, pending & ~accepted
        t = torch.where(pending, _shorter(here.value, trial.value, slope, t), t)
    return there, found


def _acceptable(here: _Point, trial: _Point, noise: Tensor) -> Tensor:
    """Sufficient decrease along the step, or a slope that has shrunk while the value rose by less than its noise."""
    step = trial.x - here.x
    before, after = (step * here.gradient).sum(-1), (step * trial.gradient).sum(-1)
    decrease = trial.value <= here.value + ARMIJO * before
    flat = (trial.value <= here.value + noise) & (0.9 * before <= after) & (after <= -0.8 * before)
    return trial.value.isfinite() & trial.gradient.isfinite().all(-1) & (before < 0) & (decrease | flat)


def _shorter(value: Tensor, trial: Tensor, slope: Tensor, t: Tensor) -> Tensor:
    """The minimiser of the parabola through the two values and the slope, in [t/10, t/2]; t/4 after an infinity."""
    parabola = -slope * t * t / (2 * (trial - value - slope * t))
    return torch.where(trial.isfinite(), parabola.clamp(0.1 * t, 0.5 * t), 0.25 * t)


def _select(chosen: Tensor, a: _Point, b: _Point) -> _Point:
    return _Point(
        torch.where(chosen[:, None], a.x, b.x),
        torch.where(chosen, a.value, b.value),
        torch.where(chosen[:, None], a.gradient, b.gradient),
    )
