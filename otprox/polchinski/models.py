"""Field theories by their interaction V₀: free, φ⁴, sine-Gordon. Any callable (*batch, n, N) -> (*batch, n) will do."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..functionals import Quadratic
from ..functionals.base import differentiate, scalar_potential
from ..lattice import Lattice
from ..measures.base import as_float
from ..measures.covariance import dense
from ..measures.spectral import Spectral
from .modes import Matrix, Modes, as_matrix, check_same, damp, resolve, root, sandwich

Interaction = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class FreeField:
    """V₀(φ) = ½φᵀAφ − bᵀφ + constant.

    A: (N, N) symmetric, or a Spectral; it may be singular or indefinite as long as A + C⁻¹ ≻ 0. b: (N,), 0 if not
    given.
    """

    A: Matrix
    b: Tensor
    constant: Tensor | float

    def __init__(self, A: Any, b: Any = None, constant: Tensor | float = 0.0) -> None:
        object.__setattr__(self, "A", as_matrix(A, "A"))
        like = Modes.of(self.A).values
        b = torch.zeros_like(like) if b is None else as_float(b, "b", like=like)
        if b.shape != like.shape:
            raise ValueError(f"b must have shape {tuple(like.shape)}, like the fields of A, not {tuple(b.shape)}")
        object.__setattr__(self, "b", b)
        object.__setattr__(self, "constant", constant)

    @classmethod
    def of(cls, V: Quadratic) -> FreeField:
        """½⟨φ − m, P(φ − m)⟩ + constant, multiplied out."""
        slope = V.mean @ V.precision
        return cls(V.precision, slope, V.constant + 0.5 * (slope * V.mean).sum(-1))

    def __call__(self, phi: Tensor) -> Tensor:
        check_sites(phi, self.b.shape[-1], self)
        return (phi * (0.5 * (phi @ self.A) - self.b)).sum(-1) + self.constant

    def gradient(self, phi: Tensor) -> Tensor:
        """Aφ − b."""
        check_sites(phi, self.b.shape[-1], self)
        return phi @ self.A - self.b

    def moments(self, mean: Tensor, cov: Matrix) -> tuple[Tensor, Tensor, Matrix]:
        """E V₀, E ∇V₀, E ∇²V₀ under N(mean, cov), for Gaussian steps."""
        A = self.A if isinstance(cov, Spectral) else dense(self.A)
        check_same(A, cov)
        fast, batch = isinstance(A, Spectral), mean.shape[:-1]
        trace = (A @ cov).trace() if fast else (A * cov).sum((-2, -1))
        hessian = A.expand(*batch) if fast else A.expand(*batch, -1, -1)
        return self(mean[..., None, :])[..., 0] + 0.5 * trace, self.gradient(mean), hessian

    def renormalise(self, C: Matrix) -> FreeField:
        """V_t of the same form: A_t = A(I + CA)⁻¹, b_t = (I + AC)⁻¹b, c_t = c + ½ log det(I + CA) − ½bᵀ(C⁻¹ + A)⁻¹b.

        ValueError naming the mode unless I + C^½AC^½ ≻ 0, without which E e^{−V₀} is infinite.
        """
        half = root(C)
        whole = Modes.of(sandwich(half, self.A)).shifted(1.0).positive("I + C^½AC^½ (A + C⁻¹ in other units)")
        b = damp(self.A, C, self.b)
        constant = self.constant + 0.5 * whole.values.log().sum(-1) - 0.5 * (self.b * (b @ C)).sum(-1)
        return FreeField(resolve(self.A, C), b, constant)

    def check_limit(self, limit: Matrix) -> FreeField:
        """Itself; ValueError naming the mode unless ν₀ ∝ e^{−V₀}g_{C_∞} is a probability, A + C_∞⁻¹ ≻ 0."""
        self.renormalise(limit)
        return self


@dataclass(frozen=True)
class Phi4:
    """V₀(φ) = Σ over sites of (g/4)φ⁴ + (μ/2)φ².

    With a `lattice` each site weighs spacing^d, the Riemann sum of an integral; the covariance that matches is
    (spacing^d(−Δ + mass²))⁻¹. ValueError when V₀ is unbounded below: g < 0, or g = 0 with μ < 0.

    >>> Phi4(1.0, -1.0)(torch.tensor([[2.0, 0.0]])).tolist()
    [2.0]
    """

    g: float
    mu: float
    lattice: Lattice | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.g) and math.isfinite(self.mu)):
            raise ValueError(f"g and mu must be finite, not {self.g} and {self.mu}")
        if self.g < 0 or (self.g == 0 and self.mu < 0):
            raise ValueError(
                f"V₀ is unbounded below for g = {self.g:g}, mu = {self.mu:g}; take g > 0 (a Gaussian theory that C_∞ "
                "stabilises is FreeField(A))"
            )

    def __call__(self, phi: Tensor) -> Tensor:
        square = phi.square()
        return site_weight(self.lattice, phi, self) * (square * (0.25 * self.g * square + 0.5 * self.mu)).sum(-1)

    def gradient(self, phi: Tensor) -> Tensor:
        """gφ³ + μφ."""
        return site_weight(self.lattice, phi, self) * phi * (self.g * phi.square() + self.mu)


@dataclass(frozen=True)
class SineGordon:
    """V₀(φ) = z Σ over sites of cos βφ; with a `lattice` each site weighs spacing^d.

    >>> SineGordon(0.5, 2.0)(torch.zeros(1, 3)).tolist()
    [1.5]
    """

    z: float
    beta: float
    lattice: Lattice | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.z) and math.isfinite(self.beta)):
            raise ValueError(f"z and beta must be finite, not {self.z} and {self.beta}")

    def __call__(self, phi: Tensor) -> Tensor:
        return self.z * site_weight(self.lattice, phi, self) * torch.cos(self.beta * phi).sum(-1)

    def gradient(self, phi: Tensor) -> Tensor:
        """−zβ sin βφ."""
        return -self.z * self.beta * site_weight(self.lattice, phi, self) * torch.sin(self.beta * phi)


def gradient_of(V0: Interaction, phi: Tensor) -> Tensor:
    """∇V₀ at fields (*batch, n, N): its own `gradient`, else by automatic differentiation."""
    own = getattr(V0, "gradient", None)
    return own(phi) if own is not None else differentiate(scalar_potential(V0, "V0"), phi, "V0")


def site_weight(lattice: Lattice | None, phi: Tensor, model: object) -> float:
    """spacing^d, or 1 without a lattice; the number of sites of φ checked."""
    if lattice is None:
        return 1.0
    check_sites(phi, lattice.sites, model)
    return lattice.spacing**lattice.dim


def check_sites(phi: Tensor, sites: int, model: object) -> None:
    """Refuse fields on another number of sites."""
    if phi.shape[-1] != sites:
        raise ValueError(f"this {type(model).__name__} lives on {sites} sites, the fields on {phi.shape[-1]}")
