"""Newton's method for quantiles that a barrier keeps apart: coarse start, tridiagonal solves, conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from . import tridiagonal
from .quantile_energy import Local, Pairs, QuantileEnergy

Linear = Callable[[Tensor], Tensor]


class Solution(NamedTuple):
    """A minimiser of a QuantileEnergy; all but x are (*batch,)."""

    x: Tensor
    value: Tensor
    residual: Tensor
    iterations: Tensor
    converged: Tensor


def minimise(energy: QuantileEnergy, tol: float, max_iter: int) -> Solution:
    """Newton from the solution on few nodes, where far starts cost little: 2 or 3 iterations remain at full size."""
    n = energy.y.shape[-1]
    index = torch.tensor(_nodes(n, 256 if energy.interactions else 2048), device=energy.y.device)
    if 4 * len(index) > n:
        return newton(energy, start(energy), tol, max_iter)
    coarse = energy.coarsened(index)
    x = _refined(newton(coarse, start(coarse), max(tol, 1e-6), max_iter).x, index)
    return newton(energy, x if torch.isfinite(energy.at(x).value).all() else start(energy), tol, max_iter)


def newton(energy: QuantileEnergy, x: Tensor, tol: float, max_iter: int) -> Solution:
    """Damped Newton. An item ends with a last full step once its decrement √(gᵀH⁻¹g), relative, is below tol.

    Rounding of the gaps puts a floor under the decrement; there the tolerance is that floor.
    """
    s = energy.at(x)
    if not torch.isfinite(s.value).all():
        raise ValueError(not_finite(energy))
    done = torch.zeros_like(s.value, dtype=torch.bool)
    converged, residual, value = done.clone(), torch.full_like(s.value, torch.inf), s.value
    iterations = torch.zeros_like(done, dtype=torch.int64)
    for _ in range(max_iter):
        d = direction(energy, x, s, residual.clamp(1e-12, 0.1))
        decrement = -(s.gradient * d).sum(-1)
        residual = torch.where(done, residual, energy.relative(decrement, x))
        arrived = ~done & (residual <= torch.maximum(_floor(energy, x, s), residual.new_tensor(tol)))
        reach = _reach(x, d)
        iterations, converged = iterations + (~done).long(), converged | arrived
        value = torch.where(done, value, torch.where(arrived, s.value - decrement / 2, s.value))
        if (done | arrived).all():
            return Solution(
                torch.where(done[..., None], x, x + reach[..., None] * d), value, residual, iterations, converged
            )
        x = torch.where(arrived[..., None], x + reach[..., None] * d, x)
        done = done | arrived
        x, s, stuck = _search(energy, x, s, torch.where(done[..., None], 0.0, d), decrement, reach, done)
        done = done | stuck
    return Solution(x, torch.where(done, value, s.value), residual, iterations, converged)


def direction(energy: QuantileEnergy, x: Tensor, s: Local, forcing: Tensor | None = None) -> Tensor:
    """−H⁻¹∇E, by one tridiagonal solve, or by conjugate gradients to the relative accuracy `forcing` (*batch,)."""
    return -inverse(energy, x, s, forcing)(s.gradient)


def inverse(energy: QuantileEnergy, x: Tensor, s: Local, forcing: Tensor | None = None) -> Linear:
    """H⁻¹ at x as a linear map. Directions of negative curvature of V count as stiff as 1 % of the cost."""
    floor = energy.kappa * (0.01 if energy.omega is None else 0.01 * energy.omega)
    s = s._replace(diagonal=torch.maximum(s.diagonal, floor.expand_as(s.diagonal)))
    main = s.main
    if not energy.interactions:
        if s.coupling is None:
            return lambda v: v / main
        off = -s.coupling
        return lambda v: tridiagonal.solve(main, off, v)
    near = _neighbours(energy, x) if s.coupling is None else s.coupling + _neighbours(energy, x)
    sides = torch.nn.functional.pad(near, (1, 0)) + torch.nn.functional.pad(near, (0, 1))
    banded = torch.maximum(main, sides + floor)
    forcing = torch.full_like(s.value, 1e-10) if forcing is None else forcing
    return lambda v: conjugate(
        lambda p: energy.hessian(x, s, p), lambda r: tridiagonal.solve(banded, -near, r), v, forcing
    )


def _neighbours(energy: QuantileEnergy, x: Tensor) -> Tensor:
    """The couplings of adjacent quantiles through W, where they attract the Hessian: ω_i ω_{i+1} W''(g)₊/n."""
    gaps = x.diff(dim=-1).to(energy.dtype)
    total = sum((c * Pairs(f.W).at(gaps)[2].to(x) for c, f in energy.interactions), torch.zeros_like(x[..., 1:]))
    weight = 1.0 if energy.omega is None else energy.omega[1:] * energy.omega[:-1]
    return (total * weight / energy.n).clamp_min(0)


def conjugate(matrix: Linear, precondition: Linear, rhs: Tensor, forcing: Tensor, limit: int = 200) -> Tensor:
    """Preconditioned conjugate gradients, item by item; an item that meets negative curvature keeps what it has."""
    x, r = torch.zeros_like(rhs), rhs
    z = p = precondition(r)
    rz = (r * z).sum(-1)
    goal = forcing.square() * rz
    active = rz > goal
    for step in range(limit):
        if not active.any():
            break
        q = matrix(p)
        bend = (p * q).sum(-1)
        if step == 0:
            x = torch.where((active & (bend <= 0))[..., None], p, x)
        active = active & (bend > 0)
        a = torch.where(active, rz / torch.where(bend > 0, bend, 1.0), 0.0)[..., None]
        x, r = x + a * p, r - a * q
        z = precondition(r)
        new = (r * z).sum(-1)
        p = z + torch.where(active, new / torch.where(rz > 0, rz, 1.0), 0.0)[..., None] * p
        rz = torch.where(active, new, rz)
        active = active & (rz > goal)
    return x


def _search(
    energy: QuantileEnergy, x: Tensor, s: Local, d: Tensor, decrement: Tensor, alpha: Tensor, done: Tensor
) -> tuple[Tensor, Local, Tensor]:
    """Backtracking to sufficient decrease, up to rounding; items that find none stay where they are, stuck."""
    slack = 16 * torch.finfo(energy.dtype).eps * s.magnitude
    for _ in range(50):
        trial = x + alpha[..., None] * d
        new = energy.at(trial)
        ok = done | (new.value <= s.value - 1e-4 * alpha * decrement + slack)
        if ok.all():
            return trial, new, ~ok
        alpha = torch.where(ok, alpha, alpha / 2)
    if not torch.isfinite(new.value[~ok]).all():
        raise ValueError(not_finite(energy))
    trial = x + torch.where(ok, alpha, 0.0)[..., None] * d
    return trial, energy.at(trial), ~ok


def _reach(x: Tensor, d: Tensor) -> Tensor:
    """The largest step up to 1 that leaves every gap at least a twentieth of itself."""
    shrink = -(d.diff(dim=-1) / x.diff(dim=-1)).amin(-1)
    return torch.where(shrink > 0.95, 0.95 / shrink.clamp_min(0.95), 1.0)


def _floor(energy: QuantileEnergy, x: Tensor, s: Local) -> Tensor:
    """The relative decrement that rounding of x and V' alone makes: √Σ (spring·eps·|x|)²/spring, and eps·|V'|."""
    eps = torch.finfo(x.dtype).eps * x.abs().amax(-1)
    springs = s.diagonal.sum(-1) if s.coupling is None else s.coupling.sum(-1)
    rough = torch.finfo(energy.dtype).eps * energy.kappa[..., 0].sqrt() * x.abs().amax(-1)
    return 4 * energy.relative(eps.square() * springs + energy.n * rough.square(), x)


def start(energy: QuantileEnergy) -> Tensor:
    """y pulled apart by about √(tau·Q), as wide as diffusion makes an atom: strictly increasing whatever y is.

    Less when E is not finite there, as beyond a wall of V.
    """
    x = energy.y + _spread(energy)
    for _ in range(4):
        outside = ~torch.isfinite(energy.at(x).value)
        if not outside.any():
            break
        x = torch.where(outside[..., None], energy.y + 0.05 * (x - energy.y), x)
    return x


def _spread(energy: QuantileEnergy) -> Tensor:
    k = torch.ones_like(energy.y[..., 1:]) if energy.k is None else energy.k
    level = torch.nn.functional.pad(k.expand_as(energy.y[..., 1:]).cumsum(-1), (1, 0)) / energy.n
    return (level - 0.5) / energy.kappa.sqrt()


@lru_cache(maxsize=8)
def _nodes(n: int, resolution: int) -> tuple[int, ...]:
    """Indices from 0 to n − 1, every one near both ends, then at distances that grow to n/resolution."""
    half, position = [0], 0
    while position < n // 2:
        position += min(max(1, position // 16), max(1, n // resolution))
        half.append(position)
    left = [i for i in half if i < (n - 1) / 2]
    return (*left, *(n - 1 - i for i in reversed(left)))


def _refined(x: Tensor, index: Tensor) -> Tensor:
    """From nodes to all quantiles: gaps linear in the index within each block, which keeps the sum of every block."""
    k = index.diff()
    mean = x.diff(dim=-1) / k
    centre = (index[1:] + index[:-1]).to(x) / 2
    slope = torch.zeros_like(mean)
    slope[..., 1:-1] = (mean[..., 2:] - mean[..., :-2]) / (centre[2:] - centre[:-2])
    slope = torch.minimum(torch.maximum(slope * k, -mean), mean) / k
    block = torch.repeat_interleave(torch.arange(len(k), device=x.device), k)
    offset = torch.arange(len(block), device=x.device) + 0.5 - centre[block]
    gaps = torch.addcmul(mean[..., block], slope[..., block], offset)
    return torch.cat([x[..., :1], x[..., :1] + gaps.cumsum(-1)], -1)


def not_finite(energy: QuantileEnergy) -> str:
    names = [name for name, used in (("V", energy.potentials), ("W", energy.interactions)) if used] or ["the energy"]
    return (
        f"{' or '.join(names)}, or its gradient, is NaN or infinite at a quantile between {energy.y.min().item():.6g} "
        f"and {energy.y.max().item():.6g}, or on the way to the minimiser; it must be finite, as must {names[0]}''"
    )
