"""Kernels smoothed by Gaussian noise, E k(z + Z) with Z ~ N(0, C), in closed form or by a one-dimensional integral."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from ..kernels import (
    RBF,
    Energy,
    InverseMultiquadric,
    RadialCombination,
    Riesz,
    Sliced,
    Stationary,
    StationaryCombination,
    Trigonometric,
)
from ..kernels.sliced import mean_width

NODES = 48  # of the integrals over the widths of Gaussians that make Energy and InverseMultiquadric


def smoothed(k: Stationary, z: Tensor, cov: Tensor) -> Tensor:
    """E k(z + Z), Z ~ N(0, cov), for z (*batch, n, d) and cov (*batch, d, d): (*batch, n). Differentiable in z.

    RBF, Riesz(2), trigonometric kernels, and Energy on the line and through lines, are closed forms. Energy in d > 1 is
    a mixture of Gaussians, |z| = π^(−½) ∫ (1 − e^{−|z|²/τ²}) dτ, and so is InverseMultiquadric: one integral for each
    point, to about 1e-12.
    """
    if isinstance(k, StationaryCombination | RadialCombination):
        return torch.stack([c * smoothed(part, z, cov) for c, part in k.terms]).sum(0)
    if isinstance(k, Trigonometric):
        waves, c = k.series(z)
        decay = torch.exp(-0.5 * ((waves @ cov) * waves).sum(-1))
        return torch.einsum("...nm,...m->...n", (z @ waves.mT).cos(), c * decay)
    if isinstance(k, Sliced):
        lines = k.drawn(z)
        spread = ((lines @ cov) * lines).sum(-1).sqrt()
        return -mean_width(z.shape[-1]) * _folded(z @ lines.mT, spread[..., None, :]).mean(-1)
    if isinstance(k, Energy) and z.shape[-1] == 1:
        return -_folded(z[..., 0], cov[..., 0].sqrt())
    for family, form in _FORMS.items():
        if isinstance(k, family):
            return form(k, z, cov)
    raise TypeError(f"{k} smoothed by a Gaussian has no closed form")


def smoothed_moments(
    k: Stationary, m: Tensor, cov: Tensor, y: Tensor | None = None, w: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """E V, E ∇V and E ∇²V under N(m, cov) for V = Σ_j w_j k(· − y_j): (*batch,), (*batch, d) and (*batch, d, d).

    m is (*batch, d), y (*batch, n, d), w (*batch, n); V is k itself unless they are given.
    """
    if y is None or w is None:
        y, w = torch.zeros_like(m)[..., None, :], m.new_ones(1)

    def value(at: Tensor) -> Tensor:
        return (smoothed(k, at[..., None, :] - y, cov) * w).sum(-1)

    def slope(at: Tensor) -> Tensor:
        return torch.func.grad(lambda z: value(z).sum())(at)

    def row(axis: int) -> Tensor:
        return torch.func.grad(lambda z: slope(z)[..., axis].sum())(m)

    return value(m), slope(m), torch.stack([row(axis) for axis in range(m.shape[-1])], -2)


def smooths(k: object) -> bool:
    """Whether `smoothed` takes the kernel."""
    if isinstance(k, StationaryCombination | RadialCombination):
        return all(smooths(part) for _, part in k.terms)
    if isinstance(k, Riesz):
        return k.r == 2
    return isinstance(k, RBF | Energy | InverseMultiquadric | Trigonometric | Sliced)


def _folded(m: Tensor, s: Tensor) -> Tensor:
    """E |N(m, s²)|."""
    r = m / s
    return m * torch.erf(r / math.sqrt(2)) + s * math.sqrt(2 / math.pi) * torch.exp(-0.5 * r * r)


def _rbf(k: RBF, z: Tensor, cov: Tensor) -> Tensor:
    eye = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
    L = torch.linalg.cholesky(eye + cov / k.h**2)
    scaled = torch.linalg.solve_triangular(L, z.mT / k.h, upper=False)
    log_det = L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return torch.exp(-0.5 * scaled.square().sum(-2) - log_det[..., None])


def _square(k: Riesz, z: Tensor, cov: Tensor) -> Tensor:
    return -z.square().sum(-1) - cov.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None]


def _energy(k: Energy, z: Tensor, cov: Tensor) -> Tensor:
    """τ = R·(1 + u)/(1 − u), with R the size of z + Z."""
    u, w = _legendre(z.dtype, z.device)
    size = (z.detach().square().sum(-1) + cov.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None]).sqrt()
    total = torch.zeros_like(size)
    log_mean = _log_means(z, cov)
    for ui, wi in zip(u.tolist(), w.tolist(), strict=True):
        total = total - 2 * wi / (1 - ui) ** 2 * torch.expm1(log_mean((size * (1 + ui) / (1 - ui)).square()))
    return -size * total / math.sqrt(math.pi)


def _multiquadric(k: InverseMultiquadric, z: Tensor, cov: Tensor) -> Tensor:
    """(1 + |z|²/h²)^(−½) = 2π^(−½) ∫ e^{−u²} e^{−u²|z|²/h²} du, over [0, 7]."""
    nodes, w = _legendre(z.dtype, z.device)
    log_mean = _log_means(z, cov)
    total = torch.zeros_like(z[..., 0])
    for node, wi in zip(nodes.tolist(), w.tolist(), strict=True):
        u = 3.5 * (1 + node)
        total = total + 3.5 * wi * math.exp(-u * u) * log_mean(total.new_full((), (k.h / u) ** 2)).exp()
    return 2 / math.sqrt(math.pi) * total


_FORMS: dict[type, Callable[..., Tensor]] = {
    RBF: _rbf,
    Riesz: _square,
    Energy: _energy,
    InverseMultiquadric: _multiquadric,
}


def _log_means(z: Tensor, cov: Tensor) -> Callable[[Tensor], Tensor]:
    """s ↦ log E exp(−|z + Z|²/s) = −Σ_i ½log(1 + 2λ_i/s) + z_i²/(s + 2λ_i), in the axes of the covariance."""
    values, axes = torch.linalg.eigh(cov.detach())
    squares, twice = (z @ axes).square(), 2 * values.clamp_min(0)[..., None, :]

    def mean(s: Tensor) -> Tensor:
        s = s[..., None]
        return -(squares / (s + twice) + 0.5 * torch.log1p(twice / s)).sum(-1)

    return mean


@lru_cache(maxsize=8)
def _legendre(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    return torch.tensor(nodes, dtype=dtype, device=device), torch.tensor(weights, dtype=dtype, device=device)
