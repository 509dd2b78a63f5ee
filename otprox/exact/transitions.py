"""Where the Kuramoto–Daido model changes phase: K_c, its jump, hysteresis, branches, m_*, the end of nematic order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from .rotators import SAME, Kuramoto, State


@dataclass(frozen=True)
class Transition:
    """Where a state stops minimising the free energy: at K, with the moments r of the state that takes over.

    For the uniform state (`transition`), `threshold` = 1/max a_k is where it loses stability.
    """

    K: float
    r: tuple[float, ...]
    threshold: float

    @property
    def continuous(self) -> bool:
        """Whether the new state grows out of the old one, where that loses stability."""
        return self.K == self.threshold


def transition(coefficients: Sequence[float]) -> Transition:
    """The transition of W = Σa_k cos kθ; for Daido's model coefficients = (1, m).

    K_c = inf over x ≠ 0 of Φ(x) = Σa_k x_k²/log (1/2π)∫exp(2Σa_k x_k cos kθ)dθ for a_k ≥ 0, since G_K(x/K) < 0 where
    K > Φ(x); the limit at 0 is K_#. Negative a_k only raise G, so K_c = K_# with them too where the transition
    without them is continuous (for m < 0, Vukadinovic 2023); ValueError where it is not.

    >>> jump = transition((1.0, 1.0))
    >>> round(jump.K, 10), jump.continuous, round(jump.r[0], 6)
    (0.8782118441, False, 0.580062)
    >>> transition((1.0, 0.25)).continuous
    True
    """
    model = Kuramoto(1.0, coefficients)
    if model.threshold == math.inf:
        raise ValueError(
            f"no coefficient is positive in {tuple(coefficients)}: the uniform state minimises for every K"
        )
    attractive = Kuramoto(1.0, [max(a, 0.0) * model.threshold for a in model.coefficients])  # the largest is 1
    lowest, r = min(_wells(attractive), key=lambda well: well[0], default=(math.inf, ()))
    jumps = lowest < 1 - 1e-14
    if jumps and min(model.coefficients) < 0:
        raise ValueError(
            f"without its negative coefficients {model.coefficients} changes phase by a jump: K_c with them is not "
            "covered; compare the energies of Kuramoto(K, coefficients).stationary()"
        )
    if not jumps:
        return Transition(model.threshold, (0.0,) * len(model.coefficients), model.threshold)
    return Transition(lowest * model.threshold, r, model.threshold)


@cache
def triple_point() -> Transition:
    """Where the uniform, the nematic (r_1 = 0) and the ordered state of (1, m) coexist: m_* = 1/K there, in (1, 2).

    For m < m_* the uniform state gives way to the ordered one by a jump, for m > m_* to the nematic one, continuously.

    >>> 1 / triple_point().K
    1.26729250425795...
    """
    from scipy.optimize import brentq

    m = brentq(lambda m: m * _ordered(m)[0] - 1, 1.2, 1.3, xtol=1e-15, rtol=1e-15)
    K, r = _ordered(m)
    return Transition(K, r, 1 / m)


def second_transition(m: float) -> Transition:
    """Where, for m > m_*, the nematic state (r_1 = 0) of (1, m) gives way to an ordered one, at K above K_c = 1/m.

    `threshold` is where the nematic state loses stability: K(1 + r_2) = 1, r_2 the order parameter of Kuramoto's model
    at Km. When the transition is continuous it is there, and r is that of the nematic state.

    >>> at = second_transition(1.5)
    >>> at.continuous, round(at.K, 6), round(at.threshold, 6)
    (False, 0.720517, 0.722732)
    """
    from scipy.optimize import brentq

    if not m > 1 / triple_point().K:
        raise ValueError(
            f"for m = {m} the uniform state orders at once: m_* = {1 / triple_point().K:.6f} is the least m"
        )
    threshold = brentq(lambda K: K * (1 + _nematic(K, m)) - 1, 1 / m, 1.0, xtol=1e-15)
    if _excess(threshold, m) >= 0:
        return Transition(threshold, (0.0, _nematic(threshold, m)), threshold)
    K = brentq(_excess, 1 / m, threshold, args=(m,), xtol=1e-15)
    K = K if _excess(K, m) < 1 else math.nextafter(K, 1)
    state = min(_ordered_states(K, m), key=lambda state: state.energy)
    return Transition(K, state.r, threshold)


def hysteresis(coefficients: Sequence[float]) -> tuple[float, float]:
    """The range of K in which the uniform state and the one that it jumps to are both stable: from the fold of the
    latter's branch to K_#. Empty (twice K_#) for a continuous transition.

    >>> [round(K, 8) for K in hysteresis((1.0, 1.0))]
    [0.86423011, 1.0]
    """
    at = transition(coefficients)
    if at.continuous:
        return at.threshold, at.threshold
    state, step = State(Kuramoto(at.K, coefficients), at.r), 0.05 * max(at.r)
    curve = branch(state, (0.25 * at.K, at.threshold), forward=False, step=step)
    lowest = int(curve[:, 0].argmin())
    return _fold(coefficients, curve[lowest], 1.5 * step), at.threshold


def branch(state: State, K: tuple[float, float], *, forward: bool = True, step: float = 0.02) -> Tensor:
    """The curve of stationary states through `state`, followed by arclength in (K, r) through folds: rows (K, r_1, …).

    It starts with K increasing, or decreasing when `forward` is False, and ends where K leaves its range, where the
    state becomes uniform or takes a symmetry (r_1 = 0 where it was not), or after 2000 steps.
    """
    coefficients = state.model.coefficients
    y = torch.tensor([state.model.K, *state.r], dtype=torch.float64)
    tangent = _tangent(coefficients, y, torch.eye(len(y), dtype=torch.float64)[0] * (1 if forward else -1))
    rows, first = [y], next((k for k, r in enumerate(state.r, 1) if abs(r) > SAME), 0)
    for _ in range(2000):
        new = _corrected(coefficients, y, tangent, step)
        if not K[0] <= new[0] <= K[1] or (first and new[first] * y[first] <= 0):
            break
        tangent = _tangent(coefficients, new, tangent)
        y = new
        rows.append(y)
    return torch.stack(rows)


def _nematic(K: float, m: float) -> float:
    """r_2 of the nematic state."""
    return Kuramoto(K * m).minimiser().r[0]


def _ordered_states(K: float, m: float) -> list[State]:
    return [state for state in Kuramoto(K, (1.0, m)).stationary() if state.symmetry == 1]


def _excess(K: float, m: float) -> float:
    """The least energy of an ordered state over that of the nematic one; 1 where there is none."""
    return min((state.energy - Kuramoto(K * m).minimiser().energy for state in _ordered_states(K, m)), default=1.0)


def _wells(model: Kuramoto) -> list[tuple[float, tuple[float, ...]]]:
    """Stationary points of Φ with their values, as (K, r): there x = Φ(x)·moments, and r = x/Φ(x)."""
    x = model._starts()
    x = torch.cat([x, _dinkelbach(model, x, 40)])
    for _ in range(60):
        K = _quotient(model, x)[:, None]
        mean, cov = model.response(x)
        jacobian = torch.eye(len(model.a), dtype=torch.float64) - 2 * K[..., None] * cov * model.a
        step = torch.linalg.solve_ex(jacobian, (x - K * mean)[..., None]).result[..., 0].nan_to_num(0.1, 0.1, -0.1)
        size = step.norm(dim=-1, keepdim=True)
        x = (x - step * (0.3 / size).clamp_max(1)).clamp(-2, 2)
    good = (size[:, 0] < 1e-9) & (x.norm(dim=-1) > 1e-4)
    K = _quotient(model, x[good])
    return [(k.item(), tuple((row / k).abs().tolist())) for k, row in zip(K, x[good], strict=True)]


def _quotient(model: Kuramoto, x: Tensor) -> Tensor:
    """Φ(x)."""
    return (model.a * x * x).sum(-1) / model.log_partition(x)


def _dinkelbach(model: Kuramoto, x: Tensor, iterations: int) -> Tensor:
    """x ← Φ(x)·moments(x), which never raises Φ: its denominator is convex, and the tangent there is a minorant."""
    for _ in range(iterations):
        x = _quotient(model, x)[:, None] * model.moments(x)
    return x


def _ordered(m: float) -> tuple[float, tuple[float, ...]]:
    """The lowest value of Φ with r_1 > 0 and r_2 > 0 for (1, m), where it is a local minimum too."""
    wells = [well for well in _wells(Kuramoto(1.0, (1.0, m))) if min(well[1]) > 1e-3]
    return min(wells, key=lambda well: well[0])


def _residual(coefficients: Sequence[float], y: Tensor) -> tuple[Tensor, Tensor]:
    """r − moments(r) at y = (K, r), (p,), and its derivative, (p, p + 1)."""
    model = Kuramoto(y[0].item(), coefficients)
    r = y[1:]
    mean, cov = model.response(r)
    by_r = torch.eye(len(r), dtype=torch.float64) - 2 * model.K * cov * model.a
    by_K = -2 * cov @ (model.a * r)
    return r - mean, torch.cat([by_K[:, None], by_r], 1)


def _tangent(coefficients: Sequence[float], y: Tensor, along: Tensor) -> Tensor:
    """The unit tangent of the curve at y, on the side of `along`."""
    _, derivative = _residual(coefficients, y)
    tangent: Tensor = torch.linalg.svd(derivative).Vh[-1]
    return tangent * torch.sign(tangent @ along)


def _corrected(coefficients: Sequence[float], y: Tensor, tangent: Tensor, step: float) -> Tensor:
    """The point of the curve a `step` along its tangent from y, by Newton's method across the tangent."""
    new = y + step * tangent
    for _ in range(8):
        residual, derivative = _residual(coefficients, new)
        rows = torch.cat([derivative, tangent[None]])
        change = torch.linalg.solve(rows, torch.cat([residual, (tangent @ (new - y) - step)[None]]))
        new = new - change
        if change.norm() < 1e-14:
            break
    return new


def _fold(coefficients: Sequence[float], near: Tensor, reach: float) -> float:
    """K where the curve turns back, within an arclength `reach` of a point of it."""
    from scipy.optimize import brentq

    tangent = _tangent(coefficients, near, torch.eye(len(near), dtype=torch.float64)[1])

    def turning(s: float) -> float:
        return _tangent(coefficients, _corrected(coefficients, near, tangent, s), tangent)[0].item()

    s = brentq(turning, -reach, reach, xtol=1e-12)
    return _corrected(coefficients, near, tangent, s)[0].item()
