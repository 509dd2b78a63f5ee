"""The Dirichlet energy of a density, whose flow is the thin-film equation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from ..measures import Density, Gaussian, Grid, Measure
from ..measures.covariance import dense, inverse, logdet
from ..measures.remap import interpolate
from ..measures.transport import Axis, axes
from .atom import Atom, NotConvex, nonnegative
from .base import Functional, differentiate


@dataclass(frozen=True)
class Dirichlet(Functional):
    """½∫|∇ρ|² dx. Its flow is the thin-film equation ∂t ρ = −div(ρ∇Δρ) (Otto 1998), δF/δρ = −Δρ.

    On a Density, ½ Σ over faces of volume·(jump of ρ/h)², whose exact first variation is −Δ_h ρ, the second difference
    that reflects at walls. On a Gaussian, closed forms. Not λ-convex along geodesics for any λ.

    >>> from otprox import Gaussian
    >>> round(Dirichlet()(Gaussian([0.0], [[1.0]])).item(), 6)  # 1/(8√π)
    0.070524
    """

    def __call__(self, mu: Measure) -> Tensor:
        if isinstance(mu, Gaussian):
            return _scale(mu) * _trace(inverse(dense(mu.cov)))
        mu = _density(mu)
        over = tuple(range(-mu.dim, 0))
        squares = [(axis.jump(mu.values) / axis.h).square().sum(over) for axis in axes(mu.grid)]
        return 0.5 * mu.grid.volume * torch.stack(squares).sum(0)

    def first_variation(self, mu: Measure, x: Tensor | None = None) -> Tensor:
        """−Δρ, interpolated multilinearly between the centres of cells at points x."""
        if isinstance(mu, Gaussian):
            return _of_gaussian(mu, mu.points if x is None else x)
        mu = _density(mu)
        phi = -_laplacian(mu.values, mu.grid)
        return phi.flatten(-mu.dim) if x is None else interpolate(phi, mu.grid, x)

    def gradient(self, mu: Measure, x: Tensor | None = None) -> Tensor:
        if isinstance(mu, Gaussian):
            return differentiate(partial(_of_gaussian, mu), mu.points if x is None else x, "Dirichlet")
        mu = _density(mu)
        phi = -_laplacian(mu.values, mu.grid)
        slopes = [axis.slope(phi) for axis in axes(mu.grid)]
        if x is None:
            return torch.stack([slope.flatten(-mu.dim) for slope in slopes], -1)
        return torch.stack([interpolate(slope, mu.grid, x) for slope in slopes], -1)

    def diffusivity(self, mu: Measure) -> Tensor:
        """ρ·Σ_a 4/h_a²: dφ/dlog ρ of the shortest wave on the grid, which limits an explicit step to O(h⁴/ρ)."""
        mu = _density(mu)
        return mu.values.flatten(-mu.dim) * sum(4 / h**2 for h in mu.grid.spacing)

    def bures_gradient(self, mu: Gaussian) -> tuple[Tensor, Tensor]:
        """(0, −2F·(½P + P²/tr P)) with P = Σ⁻¹, from F = (4π)^(−d/2)·|P|^½·tr P/4."""
        P = inverse(dense(mu.cov))
        hessian = -2 * _scale(mu)[..., None, None] * (_trace(P)[..., None, None] * P / 2 + P @ P)
        return torch.zeros_like(mu.mean), hessian

    def atom(self, mu: Measure, c: float) -> Atom:
        """½c·volume·|∇_h ρ|² over the faces of a Density."""
        weight = nonnegative(c, "Dirichlet") / 2
        if not isinstance(mu, Density):
            raise NotConvex(f"Dirichlet has no convex form on {type(mu).__name__}: it needs a Density")
        return Atom((Dirichlet, mu.grid), lambda rho, c: c * _squares(rho, mu.grid), (weight * mu.grid.volume,))


def _density(mu: Measure) -> Density:
    if not isinstance(mu, Density):
        raise TypeError(
            f"Dirichlet needs the derivatives of a density, which {type(mu).__name__} does not give. What would work: "
            "a Density on a Grid, mu.to_density(grid), or a Gaussian"
        )
    return mu


def _laplacian(values: Tensor, grid: Grid) -> Tensor:
    return torch.stack([axis.second_difference(values) / axis.h**2 for axis in axes(grid)]).sum(0)


def _squares(rho: Any, grid: Grid) -> Any:
    """Σ over faces (jump/h)² of CVXPY densities (n,)."""
    import cvxpy as cp
    from scipy.sparse import vstack

    return cp.sum_squares(vstack([_jumps(axis, grid) for axis in axes(grid)]) @ rho)


def _jumps(axis: Axis, grid: Grid) -> Any:
    """The sparse matrix of ∂ρ across the faces of an axis, (faces, n)."""
    from scipy.sparse import csr_array

    cells = torch.arange(grid.n).reshape(grid.shape)
    below, above = axis.below(cells).flatten(), axis.above(cells).flatten()
    face = torch.arange(len(below))
    slope = torch.full((len(below),), 1 / axis.h, dtype=torch.float64)
    rows, columns = torch.cat([face, face]).numpy(), torch.cat([above, below]).numpy()
    return csr_array((torch.cat([slope, -slope]).numpy(), (rows, columns)), shape=(len(below), grid.n))


def _scale(mu: Gaussian) -> Tensor:
    """(4π)^(−d/2)·|Σ|^(−½)/4, a quarter of ∫ρ²: under ρ²/∫ρ² = N(m, Σ/2), E|Σ⁻¹(x − m)|² = ½ tr Σ⁻¹."""
    return torch.exp(-0.5 * logdet(mu.factor) - mu.dim / 2 * math.log(4 * math.pi)) / 4


def _of_gaussian(mu: Gaussian, x: Tensor) -> Tensor:
    """−Δρ = ρ·(tr Σ⁻¹ − |Σ⁻¹(x − m)|²)."""
    P = cast(Tensor, inverse(dense(mu.cov)))
    score = (x - mu.mean[..., None, :]) @ P
    return mu.log_prob(x).exp() * (_trace(P)[..., None] - score.square().sum(-1))


def _trace(P: Tensor) -> Tensor:
    return P.diagonal(dim1=-2, dim2=-1).sum(-1)
