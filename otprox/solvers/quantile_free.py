"""Prox of quantiles without an internal energy: quantile by quantile, or on the cone of sorted quantiles with atoms."""

from __future__ import annotations

import torch
from torch import Tensor

from .quantile_energy import Local, Pairs, QuantileEnergy
from .quantile_newton import Solution, conjugate, not_finite


def separable(energy: QuantileEnergy, tol: float, max_iter: int) -> Solution:
    """Each quantile its own prox, the root of κ(x − y) + V'(x): Newton with bisection, which also finds kinks of V."""
    x, lower, upper = energy.y, torch.full_like(energy.y, -torch.inf), torch.full_like(energy.y, torch.inf)
    s, last = energy.at(x), torch.full_like(x, torch.inf)
    iterations = torch.zeros_like(s.value, dtype=torch.int64)
    for _ in range(max_iter + 60):
        if not torch.isfinite(s.value).all():
            raise ValueError(not_finite(energy))
        g = s.gradient
        lower, upper = torch.where(g <= 0, x, lower), torch.where(g >= 0, x, upper)
        step = -g / torch.maximum(s.diagonal, 0.01 * energy.kappa)
        error = torch.minimum(step.abs(), upper - lower)
        residual = energy.relative(energy.n * energy.kappa[..., 0] * error.square().amax(-1), x)
        moving = residual > tol
        if not moving.any():
            x = torch.where(step.abs() <= error, x + step, x)
            break
        slow = ((x + step <= lower) | (x + step >= upper) | (g.abs() > 0.5 * last)) & torch.isfinite(upper - lower)
        trial = torch.where(slow & (error > 0), (lower + upper) / 2, x + step)
        last, x = g.abs(), torch.where(moving[..., None], trial, x)
        iterations = iterations + moving.long()
        s = energy.at(x)
    return Solution(_uncrossed(energy, x), s.value, residual, iterations, ~moving)


def _uncrossed(energy: QuantileEnergy, x: Tensor) -> Tensor:
    """x in order: crossings within the tolerance, as on a kink, are closed; a real one is an error."""
    crossing = -x.diff(dim=-1).amin(-1)
    if (crossing > 1e-5 * (x.amax(-1) - x.amin(-1) + (x - energy.y).abs().amax(-1))).any():
        raise ValueError(
            f"the quantiles cross by {crossing.max().item():.3g}: V is too concave for a unique implicit step "
            "(tau must be below 1/λ for V'' ≥ −λ); take smaller steps"
        )
    return x.cummax(-1).values


def on_cone(energy: QuantileEnergy, tol: float, max_iter: int) -> Solution:
    """Interactions, with potentials: Newton on the face of the cone x_0 ≤ x_1 ≤ … that a projected gradient finds.

    Quantiles that meet stay one atom while the right derivative W'(0+) of a kink, as of |z|, holds them together.
    """
    x = energy.y
    s = _sided(energy, x)
    done = torch.zeros_like(s.value, dtype=torch.bool)
    iterations, residual = torch.zeros_like(done, dtype=torch.int64), torch.full_like(s.value, torch.inf)
    for _ in range(max_iter):
        if not torch.isfinite(s.value).all():
            raise ValueError(not_finite(energy))
        h = torch.maximum(s.diagonal, 0.01 * energy.kappa)
        near = isotonic(x - s.gradient / h, h)
        residual = torch.where(done, residual, energy.relative((h * (near - x).square()).sum(-1), x))
        done = done | (residual <= tol)
        if done.all():
            break
        iterations = iterations + (~done).long()
        x, s, stuck = _step(energy, x, s._replace(diagonal=h), near, done)
        done = done | stuck
    return Solution(x, s.value, residual, iterations, residual <= tol)


def isotonic(x: Tensor, weight: Tensor) -> Tensor:
    """The non-decreasing z nearest to x in Σ weight_i (z_i − x_i)², (*batch, n): pool adjacent violators, all at once.

    Any run of decreasing block means ends in one block, so every sweep pools all such runs (Barlow et al. 1972).
    """
    if not (x.diff(dim=-1) < 0).any():
        return x
    label = torch.arange(x.numel(), device=x.device).reshape(x.shape)
    value = x
    while True:
        rise = torch.ones_like(x, dtype=torch.bool)  # an item starts a block
        rise[..., 1:] = (value.diff(dim=-1) >= 0) & (label.diff(dim=-1) > 0)
        merged = rise.reshape(-1).cumsum(0).reshape(x.shape) - 1
        if (merged == label).all():
            return value
        label, value = merged, pooled(x * weight, merged) / pooled(weight, merged)


def pooled(x: Tensor, label: Tensor) -> Tensor:
    """At each entry, the sum of x over its block."""
    blocks = x.new_zeros(int(label.max()) + 1).index_add_(0, label.reshape(-1), x.reshape(-1))
    return blocks[label]


def _sided(energy: QuantileEnergy, x: Tensor) -> Local:
    """E with the gradient of the cone: of a pair at one place, W'(0+) pulls the upper one and −W'(0+) the lower."""
    s = energy.at(x)
    tied = x.diff(dim=-1) == 0
    if not tied.any():
        return s
    tiny = (1e-9 * (x.amax(-1) - x.amin(-1)).clamp_min(1e-9)).to(energy.dtype)[..., None]
    kink = sum((c * Pairs(f.W).at(tiny)[1].to(x) for c, f in energy.interactions), torch.zeros_like(x[..., :1]))
    ones, label = torch.ones_like(x), _blocks(x)
    rank = ones.reshape(-1).cumsum(0).reshape(x.shape)
    middle = pooled(rank, label) / pooled(ones, label)
    return s._replace(gradient=s.gradient + kink * 2 * (rank - middle) / energy.n)


def _step(energy: QuantileEnergy, x: Tensor, s: Local, near: Tensor, done: Tensor) -> tuple[Tensor, Local, Tensor]:
    """Line search towards the projected Newton point of the face of `near`, or towards `near` if that is no descent."""
    face = isotonic(near + _face_newton(energy, x, s, near), s.diagonal)
    uphill = (s.gradient * (face - x)).sum(-1) > 0.1 * (s.gradient * (near - x)).sum(-1)
    goal = torch.where(done[..., None], x, torch.where(uphill[..., None], near, face))
    slope = (s.gradient * (goal - x)).sum(-1)
    alpha = torch.ones_like(slope)
    slack = 16 * torch.finfo(energy.dtype).eps * s.magnitude
    for _ in range(40):
        trial = torch.lerp(x, goal, alpha[..., None]).cummax(-1).values  # exact at alpha = 1; sorted despite rounding
        new = _sided(energy, trial)
        ok = done | (new.value <= s.value + 1e-4 * alpha * slope + slack)
        if ok.all():
            break
        alpha = torch.where(ok, alpha, alpha / 2)
    return trial, new, ~ok


def _face_newton(energy: QuantileEnergy, x: Tensor, s: Local, near: Tensor) -> Tensor:
    """The minimiser, relative to `near`, of the quadratic model of E at x over quantiles tied as in `near`."""
    label = _blocks(near)
    size = pooled(torch.ones_like(x), label)
    weight = pooled(s.diagonal, label)

    def project(v: Tensor) -> Tensor:
        return pooled(v, label) / size

    residual = project(s.gradient + energy.hessian(x, s, near - x))
    forcing = torch.full_like(s.value, 1e-3)
    return -conjugate(lambda p: project(energy.hessian(x, s, p)), lambda r: r * size / weight, residual, forcing)


def _blocks(x: Tensor) -> Tensor:
    """A label an entry, equal where entries are tied; items of a batch share none."""
    apart = torch.nn.functional.pad(x.diff(dim=-1) > 0, (1, 0), value=True)
    return apart.reshape(-1).cumsum(0).reshape(x.shape) - 1
