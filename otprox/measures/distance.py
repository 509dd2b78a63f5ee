"""Wasserstein distances between measures: closed forms for Gaussians, exact quantiles on the line, POT for points."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..domains import Domain, Torus
from .base import Measure, check_alike
from .covariance import dense
from .density import Density
from .gaussian import Gaussian
from .particles import Particles
from .quantile_function import QuantileFunction, circle_squared, line_squared, quantile_function
from .spd import bures2
from .spectral import Spectral

LIMIT = 5000  # points that POT's exact linear program is asked for


def w2_squared(mu: Measure, nu: Measure) -> Tensor:
    """W2²(μ, ν) with cost |x − y|² (no ½), (*batch,): exact, or TypeError.

    Two Gaussians: the Bures distance. In one dimension: through quantile functions, of atoms (Particles, Quantiles),
    of piecewise-constant densities and of Gaussians; on a circle, through the best rotation of their levels. Points in
    higher dimension: POT's `emd2`, for n ≤ 5000. On a Torus distances are those of the shortest displacements.
    """
    _check_pair(mu, nu)
    if isinstance(mu, Gaussian) and isinstance(nu, Gaussian):
        return gelbrich_squared(mu, nu)
    if mu.dim == 1 and _periods(mu)[0] < math.inf:
        return circle_squared(quantile_function(mu), quantile_function(nu), _periods(mu)[0])
    if mu.dim == 1:
        return _on_the_line(mu, nu)
    return _by_linear_program(mu, nu)


def gelbrich_squared(mu: Measure, nu: Measure) -> Tensor:
    """|m − m'|² + Bures²(Σ, Σ'): W2² of the Gaussians with the same moments, a lower bound of W2² (Gelbrich 1990)."""
    _check_pair(mu, nu)
    return (mu.mean - nu.mean).square().sum(-1) + _bures2(mu.cov, nu.cov)


def _bures2(A: Any, B: Any) -> Tensor:
    if isinstance(A, Spectral) and isinstance(B, Spectral):
        A._same(B)
        return (A.values.sqrt() - B.values.sqrt()).square().sum(-1)
    return bures2(dense(A), dense(B))


def _check_pair(mu: Measure, nu: Measure) -> None:
    if mu.dim != nu.dim:
        raise ValueError(f"the measures live in dimensions {mu.dim} and {nu.dim}")
    check_alike(nu.anchor, "the target", mu.anchor)
    a, b = _periods(mu), _periods(nu)
    if not all(p == q or math.isclose(p, q, rel_tol=1e-12) for p, q in zip(a, b, strict=True)):
        raise ValueError(f"the measures live on different spaces: of periods {a} and {b} (inf: a line)")


def _on_the_line(mu: Measure, nu: Measure) -> Tensor:
    if isinstance(mu, Gaussian):
        mu, nu = nu, mu
    a = quantile_function(mu)
    return _line_to_gaussian(a, nu) if isinstance(nu, Gaussian) else line_squared(a, quantile_function(nu))


def _periods(mu: Measure) -> tuple[float, ...]:
    """The period of each axis, infinite on a line."""
    if isinstance(mu, Density):
        return tuple(
            b - a if p else math.inf for a, b, p in zip(mu.grid.lower, mu.grid.upper, mu.grid.periodic, strict=True)
        )
    domain = getattr(mu, "domain", None)
    if not isinstance(domain, Torus):
        return (math.inf,) * mu.dim
    return domain.periods(mu.dim)


def _line_to_gaussian(a: QuantileFunction, nu: Gaussian) -> Tensor:
    """Σ over pieces of ∫ (α + βu − m − s Φ⁻¹(u))² du, with u = Φ(z): every term is elementary."""
    m, s = nu.mean[..., 0, None], nu.cov[..., 0, 0, None].sqrt()
    ends = a.ends
    u = torch.cat([torch.zeros_like(ends[..., :1]), ends], -1)
    width, rise = u.diff(dim=-1), a.right - a.left
    mid = (a.left + a.right) / 2 - m
    z = torch.special.ndtri(u)
    pdf = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
    first = -pdf.diff(dim=-1)  # ∫ Φ⁻¹
    zpdf = torch.where(z.isfinite(), z * pdf, 0.0)
    second = width - zpdf.diff(dim=-1)  # ∫ (Φ⁻¹)²
    cross = (-u * pdf + torch.special.ndtr(math.sqrt(2) * z) / (2 * math.sqrt(math.pi))).diff(dim=-1)  # ∫ u Φ⁻¹
    steep = torch.where(z.diff(dim=-1).isfinite(), width.square() / 12 * z.diff(dim=-1), 0.0)
    centred = cross - (u[..., 1:] + u[..., :-1]) / 2 * first
    centred = torch.where(width > 1e-8, centred, steep)  # β = h/width would amplify rounding
    sloped = torch.where(width > 1e-14, rise * centred / width.clamp_min(1e-14), 0.0)  # ∫ β(u − ū) Φ⁻¹, β = rise/width
    square = width * (mid.square() + rise.square() / 12)
    return (square - 2 * s * (mid * first + sloped) + s.square() * second).sum(-1).clamp_min(0)


def _by_linear_program(mu: Measure, nu: Measure) -> Tensor:
    for measure in (mu, nu):
        if not isinstance(measure, Particles) or measure.x.shape[-2] > LIMIT:
            size = f" with n = {measure.x.shape[-2]}" if isinstance(measure, Particles) else ""
            raise TypeError(
                f"W2 in dimension {mu.dim} is exact between two Gaussians, or two Particles with n ≤ {LIMIT}; got "
                f"{type(measure).__name__}{size}. observe.gelbrich(target) is a lower bound for any pair, and between "
                "densities on one grid observe.w2(target, within=0.02) computes it to that relative error"
            )
    assert isinstance(mu, Particles) and isinstance(nu, Particles)
    import ot

    batch = torch.broadcast_shapes(mu.batch, nu.batch)
    x, a, y, b = (_rows(t, batch, k) for m in (mu, nu) for t, k in ((m.x, 2), (m.w, 1)))
    costs = [
        ot.emd2(_array(p), _array(q), _cost(s, t, mu.domain), numItermax=10_000_000)
        for s, p, t, q in zip(x, a, y, b, strict=True)
    ]
    return mu.x.new_tensor(costs).reshape(batch)


def _rows(tensor: Tensor, batch: torch.Size, trailing: int) -> Tensor:
    """The batch flattened to one leading axis."""
    shape = tensor.shape[-trailing:]
    return tensor.detach().double().expand(*batch, *shape).reshape(-1, *shape)


def _array(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.cpu().numpy())


def _cost(x: Tensor, y: Tensor, domain: Domain) -> np.ndarray:
    if domain.straight:
        return _array(torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square())
    cost = x.new_zeros(len(x), len(y))
    for row, point in zip(cost.split(512), x.split(512), strict=True):
        row += domain.displacement(point[:, None], y).square().sum(-1)
    return _array(cost)
