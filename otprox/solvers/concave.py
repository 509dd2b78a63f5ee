"""Concave mobilities m(ρ) of dynamic transport, and the prox of their kinetic energy |w|²/(2·m(ρ))."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SETTLED = 3  # Newton steps a sweep for the cubic of the linear mobility, which starts from the root of the sweep before
ROUNDS = 100


class ConcaveMobility(ABC):
    """m(ρ) ≥ 0, concave on [0, upper]: the transport distance of Dolbeault, Nazaret and Savaré (2009),

        d²(μ, ν) = min ∫₀¹∫ |w|²/m(ρ) dx dt    with    ∂t ρ + div w = 0.

    Its gradient flows are ∂t ρ = div(m(ρ) ∇δF/δρ). For m that is not concave, such as ρ² or ρ³, the action is not
    convex and there is no such distance; their equations have explicit steps, but no implicit ones of this kind.
    """

    upper: float

    @abstractmethod
    def __call__(self, rho: Tensor) -> Tensor:
        """m(ρ)."""

    @abstractmethod
    def prox(self, density: Tensor, flux: Tensor, weights: tuple[Tensor, Tensor], near: Tensor) -> tuple[Tensor, ...]:
        """argmin over (ρ, w) of w²/(2·m(ρ)) + ½·weights[0]·(ρ − density)² + ½·weights[1]·(w − flux)²; `near` is ρ's."""


@dataclass(frozen=True)
class Linear(ConcaveMobility):
    """m(ρ) = ρ: the Wasserstein distance (Benamou and Brenier 2000)."""

    upper: float = math.inf

    def __call__(self, rho: Tensor) -> Tensor:
        return rho

    def prox(self, density: Tensor, flux: Tensor, weights: tuple[Tensor, Tensor], near: Tensor) -> tuple[Tensor, ...]:
        """w = flux·(y − 1)/y with y = 1 + weights[1]·ρ, the positive root of (y − b)·y² = c.

        Newton's method from the right of b: after at most one step it stays on the right of the root.
        """
        stiff, k = weights
        b, c = 1 + k * density, k**3 / (2 * stiff) * flux.square()
        least = b.clamp_min(1)
        y = torch.maximum(1 + k * near, least)
        for _ in range(SETTLED):
            y = y - ((y - b) * y - c / y) / (3 * y - 2 * b)
            y = torch.maximum(y, least)
        return (y - 1) / k, flux * (1 - 1 / y)


@dataclass(frozen=True)
class Saturating(ConcaveMobility):
    """m(ρ) = ρ·(1 − ρ/upper): nothing moves into what is full (volume filling; the exclusion process)."""

    upper: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.upper < math.inf:
            raise ValueError(f"Saturating needs a positive, finite upper density, not {self.upper}")

    def __call__(self, rho: Tensor) -> Tensor:
        return rho * (1 - rho / self.upper)

    def prox(self, density: Tensor, flux: Tensor, weights: tuple[Tensor, Tensor], near: Tensor) -> tuple[Tensor, ...]:
        def derivatives(rho: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return self(rho), 1 - 2 * rho / self.upper, torch.full_like(rho, -2 / self.upper)

        return concave_prox(derivatives, self.upper, density, flux, weights, near)


@dataclass(frozen=True)
class Concave(ConcaveMobility):
    """m given as a function of the density, elementwise, in torch; concave on [0, upper] (checked on a sample of it).

    >>> from otprox.solvers import Concave
    >>> Concave(lambda rho: rho**2)
    Traceback (most recent call last):
    ...
    ValueError: the mobility is not concave near ρ = ...: |w|²/m(ρ) is then not jointly convex, ...
    """

    m: Callable[[Tensor], Tensor]
    upper: float = math.inf

    def __post_init__(self) -> None:
        if not self.upper > 0:
            raise ValueError(f"a mobility needs an upper density above 0, not {self.upper}")
        rho = _sample(self.upper)
        values = self(rho)
        if values.shape != rho.shape or not bool(torch.isfinite(values).all()) or bool((values < 0).any()):
            raise ValueError("a mobility maps densities, elementwise, to finite values ≥ 0 on [0, upper]")
        slopes = values.diff() / rho.diff()
        rises = slopes.diff() > 1e-9 * slopes.abs().max()
        if bool(rises.any()):
            where = rho[1:-1][rises][0].item()
            raise ValueError(
                f"the mobility is not concave near ρ = {where:.3g}: |w|²/m(ρ) is then not jointly convex, and there is "
                "no transport distance with it (Dolbeault, Nazaret and Savaré 2009 need concave m). What would work: "
                "explicit steps of the equation, or a concave m"
            )

    def __call__(self, rho: Tensor) -> Tensor:
        return self.m(rho)

    def prox(self, density: Tensor, flux: Tensor, weights: tuple[Tensor, Tensor], near: Tensor) -> tuple[Tensor, ...]:
        return concave_prox(self._derivatives, self.upper, density, flux, weights, near)

    def _derivatives(self, rho: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            x = rho.detach().requires_grad_()
            m = self.m(x)
            (slope,) = torch.autograd.grad(m.sum(), x, create_graph=True)
            curvature = torch.autograd.grad(slope.sum(), x)[0] if slope.requires_grad else torch.zeros_like(x)
        return m.detach(), slope.detach(), curvature


def _sample(upper: float) -> Tensor:
    if upper < math.inf:
        return torch.linspace(0, upper, 402, dtype=torch.float64)[1:-1]
    return torch.logspace(-4, 4, 400, dtype=torch.float64)


def concave_prox(
    derivatives: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]],
    upper: float,
    density: Tensor,
    flux: Tensor,
    weights: tuple[Tensor, Tensor],
    near: Tensor,
) -> tuple[Tensor, Tensor]:
    """`ConcaveMobility.prox` from (m, m′, m″): with w = flux·km/(1 + km) put in, k = weights[1], it is convex in ρ.

    Its derivative weights[0]·(ρ − density) − ½·(k·flux/(1 + km))²·m′ increases; Newton's method between brackets.
    """
    stiff, k = weights
    eps = torch.finfo(density.dtype).eps

    def equation(rho: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        m, slope, curvature = derivatives(rho)
        pull = 0.5 * (k * flux / (1 + k * m)).square()
        return m, stiff * (rho - density) - pull * slope, stiff + pull * (2 * k * slope**2 / (1 + k * m) - curvature)

    low, high = torch.full_like(density, eps**2), torch.full_like(density, upper)
    empty = equation(low)[1] >= 0
    full = equation(high)[1] <= 0 if upper < math.inf else torch.zeros_like(empty)
    rho = torch.where(empty, low, torch.where(full, high, torch.maximum(near, density).clamp(1e-6, upper)))
    for _ in range(ROUNDS):
        m, value, rate = equation(rho)
        low, high = torch.where(value <= 0, rho, low), torch.where(value >= 0, rho, high)
        ahead, middle = rho - value / rate, torch.where(high.isinf(), 2 * rho, (low + high) / 2)
        ahead = torch.where((ahead >= low) & (ahead <= high), ahead, middle)
        settled = empty | full | ((ahead - rho).abs() <= 8 * eps * rho)
        rho = torch.where(empty | full, rho, ahead)
        if bool(settled.all()):
            break
    return rho, flux * (k * m / (1 + k * m))
