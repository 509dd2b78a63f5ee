"""Potential energies ∫ V dμ, and the potentials that know their moments under a Gaussian."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ..measures import Density, Gaussian, Measure, Quantiles
from ..measures.base import as_float, check_alike
from ..measures.covariance import Matrices, alike, as_matrix, dense, eigenvalues, expand, inner, inverse, logdet
from .atom import Atom, NotConvex, curvature_root, nonnegative, squared_distance
from .base import Functional, differentiate, scalar_potential


@runtime_checkable
class GaussianMoments(Protocol):
    """A potential V whose expectations under N(mean, cov) are known without quadrature over R^d."""

    def moments(self, mean: Tensor, cov: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """E V (*batch,), E ∇V (*batch, d), E ∇²V (*batch, d, d)."""
        ...


@runtime_checkable
class KnownField(Protocol):
    """A potential V that gives its own gradient, and knows the measures that it acts on."""

    def gradient(self, x: Tensor) -> Tensor:
        """∇V at points x, (*batch, n, d)."""
        ...

    def check_domain(self, mu: Measure) -> None:
        """ValueError where μ lives on another domain."""
        ...


@dataclass(frozen=True, eq=False)
class Potential(Functional):
    """∫ V dμ, with V: (*batch, n, d) -> (*batch, n), differentiable by autograd unless it is a `KnownField`.

    `curvature` is a λ with ∇²V ≥ λI when it is known (a `Quadratic` knows its own); implicit steps need tau < −1/λ for
    λ < 0. A V with a method `moments(mean, cov)` is integrated exactly on Gaussians.
    """

    V: Callable[[Tensor], Tensor]
    curvature: float | None = field(default=None, kw_only=True)
    affine: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not callable(self.V):
            raise TypeError(f"Potential needs a callable V, not a {type(self.V).__name__}")

    def __call__(self, mu: Measure) -> Tensor:
        if isinstance(mu, Gaussian) and isinstance(self.V, GaussianMoments):
            return self.V.moments(mu.mean, mu.cov)[0]
        return mu.expect(self._on(mu))

    def _on(self, mu: Measure) -> Callable[[Tensor], Tensor]:
        if isinstance(self.V, KnownField):
            self.V.check_domain(mu)
        return self.value

    def value(self, x: Tensor) -> Tensor:
        """V at points, its shape checked."""
        return scalar_potential(self.V, "V")(x)

    def first_variation(self, mu: Measure, x: Tensor | None = None) -> Tensor:
        return self._on(mu)(mu.points if x is None else x)

    def gradient(self, mu: Measure, x: Tensor | None = None) -> Tensor:
        x, value = mu.points if x is None else x, self._on(mu)
        return self.V.gradient(x) if isinstance(self.V, KnownField) else differentiate(value, x, "Potential's V")

    def bures_gradient(self, mu: Gaussian) -> tuple[Tensor, Tensor]:
        if isinstance(self.V, GaussianMoments):
            return self.V.moments(mu.mean, mu.cov)[1:]
        return super().bures_gradient(mu)

    def local(self, log_rho: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.value(x).expand_as(log_rho), torch.zeros_like(log_rho)

    def diffusivity(self, mu: Measure) -> Tensor:
        return mu.anchor.new_zeros(())

    def convexity(self, c: float = 1.0) -> float | None:
        if isinstance(self.V, Quadratic):
            smallest, largest = self.V.curvatures
            return c * (smallest if c >= 0 else largest)
        return None if c < 0 or self.curvature is None else c * self.curvature

    def atom(self, mu: Measure, c: float) -> Atom:
        """c·vol·Σ V_i ρ_i over cells; (c/n) Σ V(x_i) over quantiles for a convex `Quadratic`, or a V with `V.atom(x)`.

        `V.atom` maps the CVXPY positions (n,) to their values (n,), convex.
        """
        if isinstance(mu, Density):
            values = c * mu.grid.volume * self.value(mu.points)
            return Atom((Potential, Density), lambda rho, v: v @ rho, (values.expand(*mu.batch, -1),))
        if isinstance(mu, Quantiles) and isinstance(self.V, Quadratic):
            root = curvature_root(c * dense(self.V.precision) / (2 * mu.n), mu, "Quadratic")
            return Atom((Quadratic, Quantiles), squared_distance, (root, root * self.V.mean))
        build = getattr(self.V, "atom", None)
        if isinstance(mu, Quantiles) and build is not None:
            return Atom((Potential, self.V), lambda x, c: c * build(x).sum(), (nonnegative(c, "V") / mu.n,))
        raise NotConvex(
            f"Potential has no convex form on {type(mu).__name__}: it needs a Density, or Quantiles with V a Quadratic "
            "or with a method atom(x), the values as a CVXPY expression of the positions"
        )


@dataclass(frozen=True, eq=False)
class Quadratic:
    """The callable V(x) = ½⟨x − mean, P(x − mean)⟩ + constant.

    mean: (*batch, d). Give `cov` (P = cov⁻¹, symmetric positive definite) or `precision` (P itself, symmetric, may be
    singular or indefinite); neither means P = I.

    >>> V = Quadratic([0.0], precision=[[2.0]])
    >>> V(torch.tensor([[3.0]])).item()
    9.0
    """

    mean: Float[Tensor, "*batch d"]
    precision: Matrices
    constant: Tensor | float

    def __init__(self, mean: Any, cov: Any = None, precision: Any = None, *, constant: Tensor | float = 0.0) -> None:
        mean = as_float(mean, "mean")
        if cov is not None and precision is not None:
            raise ValueError("Quadratic takes cov or precision, not both")
        if cov is not None:
            precision = inverse(as_matrix(cov, "cov", mean))
        elif precision is None:
            precision = torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)
        precision = as_matrix(precision, "precision", mean, definite=False)
        if precision.shape[-2:] != (mean.shape[-1],) * 2:
            raise ValueError(f"mean has shape {tuple(mean.shape)} but the matrix has {tuple(precision.shape)}")
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "precision", precision)
        object.__setattr__(self, "constant", constant)

    @classmethod
    def of(cls, target: Gaussian) -> Quadratic:
        """−log density of a Gaussian, normalised."""
        constant = 0.5 * (logdet(target.factor) + target.dim * math.log(2 * math.pi))
        return cls(target.mean, precision=inverse(target.cov), constant=constant)

    def __call__(self, x: Tensor) -> Tensor:
        self.check_fits(x.shape[-1], x)
        z = x - self.mean[..., None, :]
        constant = self.constant[..., None] if isinstance(self.constant, Tensor) else self.constant
        return 0.5 * (z * (z @ self.precision)).sum(-1) + constant

    def moments(self, mean: Tensor, cov: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.check_fits(mean.shape[-1], mean)
        shift = (self.precision @ (mean - self.mean)[..., None])[..., 0]
        value = 0.5 * ((mean - self.mean) * shift).sum(-1) + 0.5 * inner(self.precision, cov) + self.constant
        return value, shift, expand(alike(self.precision, cov), mean.shape[:-1])

    def check_fits(self, dim: int, like: Tensor) -> None:
        """Refuse a measure of another dimension, dtype or device."""
        if dim != self.mean.shape[-1]:
            raise ValueError(f"this Quadratic lives in dimension {self.mean.shape[-1]}, the measure in {dim}")
        check_alike(self.mean, "this Quadratic", like)

    @property
    def curvatures(self) -> tuple[float, float]:
        """Smallest and largest eigenvalue of the precision."""
        values = eigenvalues(self.precision).detach()
        return values.min().item(), values.max().item()
