"""Metrics whose mobility is a function of the density: ∂t ρ = div(m(ρ, x)∇δF/δρ)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..functionals import Functional
from ..measures import Density, Measure, Velocity
from ..measures.faces import covectors, on_faces, work
from .base import Metric


@dataclass(frozen=True, eq=False)
class Mobility(Metric):
    """∂t ρ = div(m(ρ, x)∇δF/δμ), for m: densities (*batch, n) and points (*batch, n, d) -> (*batch, n), m ≥ 0.

    Wasserstein is m = ρ. With m = ρ²e^{2V−V₀} and F = KL(V) it is the local limit of SVGD with the weighted kernel,
    with m = ρ² that of the plain one. For measures with a density: on a Density by finite volumes, conservative and
    non-negative, on a Gaussian by the nearest affine field.

    Where m is concave in ρ there is a transport distance behind it (Dolbeault, Nazaret, Savaré 2009); for others, such
    as ρ², the flow is well posed but no distance is, so there is no Backward step.

    >>> import otprox as ox
    >>> mu = ox.Gaussian([0.0], [[1.0]]).to_density(ox.Grid(-6.0, 6.0, 60))
    >>> porous = ox.Forward(ox.Entropy(), Mobility(lambda rho, x: rho**2))  # ∂t ρ = div(ρ∇ρ)
    >>> round(porous(mu, 0.0, 0.01).mu.cov.item(), 3)
    1.006
    """

    m: Callable[[Tensor, Tensor], Tensor]

    def __post_init__(self) -> None:
        if not callable(self.m):
            raise TypeError(f"Mobility needs a function m(rho, x), not a {type(self.m).__name__}")

    def onsager(self, mu: Measure, u: Tensor) -> Tensor:
        """(m/ρ)u at μ's own points."""
        return self._speed(mu)[..., None] * u

    def descent(self, F: Functional, mu: Measure) -> Velocity:
        def field(x: Tensor) -> Tensor:
            return -self._speed(mu, x)[..., None] * F.gradient(mu, x)

        if not isinstance(mu, Density):
            return Velocity(field)
        return Velocity(
            field,
            faces=lambda: self._faces(F, mu),
            diffusivity=lambda: self._speed(mu) * F.diffusivity(mu).abs(),
        )

    def dissipation(self, F: Functional, mu: Measure) -> Tensor:
        """∫ m|∇φ|² dx."""
        if isinstance(mu, Density):
            return -work(mu, covectors(mu, F.first_variation(mu)), self._faces(F, mu))
        return mu.expect(lambda x: self._speed(mu, x) * F.gradient(mu, x).square().sum(-1))

    def _faces(self, F: Functional, mu: Density) -> tuple[Tensor, ...]:
        """−L(m/ρ)·Δφ/h with L the logarithmic mean, so that (m/ρ)∇log(m/ρ) is a plain difference also at kinks."""
        speed = self._speed(mu).reshape(mu.values.shape)
        return tuple(-v for v in on_faces(mu.grid, speed, F.first_variation(mu)))

    def _speed(self, mu: Measure, x: Tensor | None = None) -> Tensor:
        """m/ρ at points, or at μ's own."""
        rho = mu.log_prob(x).exp()
        m = self.m(rho, mu.points if x is None else x)
        if not isinstance(m, Tensor) or m.shape != rho.shape:
            shape = tuple(m.shape) if isinstance(m, Tensor) else type(m).__name__
            raise ValueError(f"m(rho, x) must have the shape {tuple(rho.shape)} of rho, not {shape}")
        if not (m >= 0).all() or not torch.isfinite(m).all():
            raise ValueError(f"a mobility must be non-negative and finite; the smallest value is {m.min().item():.6g}")
        return m / rho
