"""Moments that are held fixed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..measures import Density, Measure, Quantiles
from ..measures.base import as_float
from .atom import Atom, NotConvex, nonnegative
from .constraint import TOLERANCE, Constraint


@dataclass(frozen=True, eq=False)
class Moments(Constraint):
    """0 where ∫ f dμ = values, up to 1e-6 of ∫|f| dμ + |values|; +∞ elsewhere.

    f maps points (*batch, n, d) to (*batch, n), with one number in `values`, or to (*batch, n, k), with k numbers.

    >>> from otprox import Particles
    >>> centred = Moments(lambda x: x, [0.0])
    >>> centred(Particles(torch.tensor([[-1.0], [1.0]]))).item(), centred(Particles(torch.tensor([[2.0]]))).item()
    (0.0, inf)
    """

    f: Callable[[Tensor], Tensor]
    values: Tensor

    def __init__(self, f: Callable[[Tensor], Tensor], values: Any) -> None:
        if not callable(f):
            raise TypeError(f"Moments needs a callable f on points, not a {type(f).__name__}")
        object.__setattr__(self, "f", f)
        object.__setattr__(self, "values", torch.atleast_1d(as_float(values, "values")))

    def features(self, x: Tensor) -> Tensor:
        """f at points, as (*batch, n, k)."""
        found = self.f(x)
        found = found[..., None] if found.shape == x.shape[:-1] else found
        if found.shape[:-1] != x.shape[:-1] or found.shape[-1] != self.values.shape[-1]:
            raise ValueError(
                f"Moments' f must map points {tuple(x.shape)} to {(*x.shape[:-1], self.values.shape[-1])} for its "
                f"{self.values.shape[-1]} values; it gave {tuple(found.shape)}"
            )
        return found

    def violation(self, mu: Measure) -> Tensor:
        values = self.values.to(mu.anchor)
        gap = (mu.expect(self.features) - values).abs()
        scale = mu.expect(lambda x: self.features(x).abs()) + values.abs()
        return (gap / scale.clamp_min(torch.finfo(scale.dtype).tiny)).amax(-1)

    def impossible(self, mu: Measure) -> str | None:
        if not isinstance(mu, Density):
            return None
        f, values = self.features(mu.grid.points(mu.values)), self.values.to(mu.anchor)
        low, high = f.amin(0), f.amax(0)
        outside = (values < low - TOLERANCE * low.abs()) | (values > high + TOLERANCE * high.abs())
        if not outside.any():
            return None
        k = int(outside.nonzero()[0, -1])
        wanted = values[outside][0].item()
        return f"the value {wanted:.6g} is outside the range [{low[k]:.6g}, {high[k]:.6g}] of f on the grid"

    def atom(self, mu: Measure, c: float) -> Atom:
        """volume·Σ f_i ρ_i = values over cells; over quantiles, for an f with a method atom(x), affine in CVXPY."""
        nonnegative(c, "Moments")
        values = self.values.to(mu.anchor).expand(*mu.batch, -1)
        if isinstance(mu, Density):
            weights = (mu.grid.volume * self.features(mu.grid.points(mu.values))).double().numpy(force=True).T
            return Atom((Moments, self.f, mu.grid), lambda rho, v: [weights @ rho == v], (values,))
        build = getattr(self.f, "atom", None)
        if isinstance(mu, Quantiles) and build is not None:
            return Atom((Moments, self.f), lambda x, v: [build(x).sum() / x.size == v[0]], (values,))
        raise NotConvex(
            f"Moments has no convex form on {type(mu).__name__}: it needs a Density, or Quantiles with f affine and "
            "with a method atom(x), its values as a CVXPY expression of the positions"
        )
