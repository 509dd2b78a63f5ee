"""Obstacles: bounds on the density that depend on the place."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..measures import Density, Measure
from .atom import Atom, NotConvex, nonnegative
from .base import scalar_potential
from .constraint import TOLERANCE, Constraint

Bound = float | Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False, kw_only=True)
class Obstacle(Constraint):
    """0 when lower(x) ≤ ρ(x) ≤ upper(x) at μ's nodes or cells, up to 1e-6 of the largest finite bound; else +∞.

    Each bound is a number, or a function of points (n, d) -> (n,). An upper bound of +inf does not bound: with 0 in
    some places and inf elsewhere it is a constraint on the support, such as the walls of a room.

    >>> from otprox import Grid
    >>> half = Obstacle(upper=lambda x: torch.where(x[..., 0] < 0.5, math.inf, 0.0))
    >>> half(Density(torch.tensor([2.0, 0.0]), Grid(0.0, 1.0, 2))).item()
    0.0
    """

    lower: Bound = 0.0
    upper: Bound = math.inf

    def bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """lower and upper at points (…, n, d), (…, n) each."""
        low, high = self._at("lower", x), self._at("upper", x)
        crossed = low > high
        if crossed.any():
            at = int((low - high).argmax())
            raise ValueError(
                f"Obstacle has lower > upper at {int(crossed.sum())} points; at {x.flatten(0, -2)[at].tolist()} they "
                f"are {low.flatten()[at]:.6g} and {high.flatten()[at]:.6g}"
            )
        return low, high

    def violation(self, mu: Measure) -> Tensor:
        """The largest excess at nodes or cells, over the largest finite bound or, on a grid, the mean density."""
        rho, (low, high) = mu.log_prob().exp(), self.bounds(mu.points)
        scale = torch.cat([bound[torch.isfinite(bound)] for bound in (low, high)]).amax()
        if isinstance(mu, Density):
            rho, scale = mu.values.flatten(-mu.dim), scale.clamp_min(1 / (mu.grid.n * mu.grid.volume))
        return torch.maximum(low - rho, rho - high).amax(-1) / scale.clamp_min(torch.finfo(rho.dtype).tiny)

    def impossible(self, mu: Measure) -> str | None:
        if not isinstance(mu, Density):
            return None
        low, high = (bound.sum().item() * mu.grid.volume for bound in self.bounds(mu.grid.points(mu.values)))
        if low > 1 + TOLERANCE:
            return f"the lower bound integrates to {low:.6g}, more than the mass 1"
        if high < 1 - TOLERANCE:
            return f"the upper bound integrates to {high:.6g}, less than the mass 1"
        return None

    def atom(self, mu: Measure, c: float) -> Atom:
        """ρ_i ≥ lower_i where that is positive, ρ_i ≤ upper_i where that is finite."""
        nonnegative(c, "Obstacle")
        if not isinstance(mu, Density):
            raise NotConvex(f"Obstacle has no convex form on {type(mu).__name__}: it needs a Density")
        low, high = self.bounds(mu.grid.points(mu.values))
        above, below = (low > 0).nonzero()[:, 0], torch.isfinite(high).nonzero()[:, 0]
        i, j = above.numpy(force=True), below.numpy(force=True)
        data = (low[above].expand(*mu.batch, -1), high[below].expand(*mu.batch, -1))
        key = (Obstacle, mu.grid, i.tobytes(), j.tobytes())
        return Atom(key, lambda rho, low, high: [rho[i] >= low, rho[j] <= high], data)

    def _at(self, name: str, x: Tensor) -> Tensor:
        bound = getattr(self, name)
        values = scalar_potential(bound, name)(x) if callable(bound) else x.new_full(x.shape[:-1], bound)
        if values.isnan().any() or (name == "lower" and (values == math.inf).any()):
            raise ValueError(f"Obstacle's {name} bound is NaN or infinite at some of the points")
        return values
