"""Functionals F of a measure, their algebra, and their normal form as a sum of coefficients times atoms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor

from ..measures import Field, Gaussian, Measure
from ..measures.base import jacobian
from .local_prox import LocalProx


class Functional(ABC):
    """F: P(R^d) → R. It sees a measure only through the Measure interface.

    Subclasses are final frozen dataclasses. Beyond `__call__`, `first_variation` and `gradient`, a functional may offer
    what solvers ask for:

    ==================  =====================================================================  ==============
    capability          meaning                                                                asked for by
    ==================  =====================================================================  ==============
    `bures_gradient`    (E ∇φ, E ∇²φ) under a Gaussian, φ = δF/δμ; by quadrature unless given  Gaussian steps
    `local`             (φ, dφ/dlog ρ) where φ depends on x and ρ(x) only; `affine` when φ is  Scaling
                        affine in log ρ, `power_law` when it is A·ρᵏ
    `bounds`            the least and largest density at points, where F is a constraint only  Scaling
    `kl_smooth`         true when F(ν) ≤ F(η) + ⟨δF/δη, ν − η⟩ + L·KL(ν | η) for some L        Scaling
    `kl_prox`           argmin_b s·F(b) + KL(b | a) on a support; from these unless given      Scaling
    `conjugate`         log ρ with U'(ρ) = p, for F = ∫U(ρ), the gradient of U*; by            Kantorovich
                        `per_mass` unless given
    `atom`              c·F as an `Atom`, a convex expression in CVXPY, or NotConvex           Convex
    `convexity`         its λ: F is λ-convex along W2 geodesics; None when not known           step-size checks
    `weak`              ∇φ integrated by parts, so that no score of μ is needed                Stein on particles
    `drawn`             F as one explicit step sees it: with its random batch drawn            Forward
    `fitted`            F as one explicit step from μ sees it: with its score estimated        Forward
    `generators`        the generators that these two draw from                                checkpoints
    `hessian`           ∇²φ at points; by automatic differentiation unless given               carried densities
    ==================  =====================================================================  ==============
    """

    @abstractmethod
    def __call__(self, mu: Measure) -> Tensor:
        """F(μ), (*batch,)."""

    @abstractmethod
    def first_variation(self, mu: Measure, x: Tensor | None = None) -> Tensor:
        """φ = δF/δμ at points x, or at μ's own nodes or cells, up to a constant."""

    @abstractmethod
    def gradient(self, mu: Measure, x: Tensor | None = None) -> Tensor:
        """∇φ at points x (*batch, n, d), or at μ's own nodes or cells."""

    def hessian(self, mu: Measure, x: Tensor | None = None) -> Tensor:
        """∇²φ at points x, or at μ's own nodes, (*batch, n, d, d): row i is the gradient of ∂φ/∂x_i, d backward passes.

        Of an estimated score it is the Jacobian, which need not be symmetric.
        """
        return jacobian(lambda y: self.gradient(mu, y), mu.points if x is None else x)

    def at(self, t: float) -> Functional:
        """F at time t: itself, unless Varying."""
        return self

    @property
    def terms(self) -> tuple[tuple[float, Functional], ...]:
        """The normal form ((coefficient, atom), …): sums flattened, KL as Potential + Entropy."""
        return ((1.0, self),)

    def convexity(self, c: float = 1.0) -> float | None:
        """λ such that c·F is λ-convex along W2 geodesics; None when not known."""
        return None

    def bures_gradient(self, mu: Gaussian) -> tuple[Tensor, Tensor]:
        """(E ∇φ, E ∇²φ) under μ: the Bures–Wasserstein gradient."""
        shift, jacobian = mu.nearest_affine(lambda x: self.gradient(mu, x))
        return shift, (jacobian + jacobian.mT) / 2

    def weak(self, mu: Measure) -> tuple[Tensor, Tensor]:
        """(s, a) at μ's nodes, (*batch, n, d) and (*batch, n), with ∫⟨∇φ, ψ⟩ dμ = ∫ ⟨s, ψ⟩ − a·div ψ dμ.

        For every smooth ψ that vanishes far away: (∇φ, 0), or (0, 1) for the entropy, which needs no density.
        """
        s = self.gradient(mu)
        return s, torch.zeros_like(s[..., 0])

    def drawn(self) -> Functional:
        """F as one explicit step sees it: itself, unless it is estimated from random batches."""
        return self

    def fitted(self, mu: Measure, last: Any = None) -> tuple[Functional, Any]:
        """F as one explicit step from μ sees it, and the stats of what was estimated for that: itself and None.

        `last` is the stats of the step before, a warm start.
        """
        return self, None

    def generators(self) -> tuple[torch.Generator, ...]:
        """The random generators that `drawn` and `fitted` draw from."""
        return ()

    def diffusivity(self, mu: Measure) -> Tensor:
        """dφ/dlog ρ on a Density's cells: the local diffusion coefficient of the flow; 0 for a potential."""
        raise TypeError(
            f"{self} gives no diffusivity, which an explicit step on a Density needs for its stable step: define "
            "diffusivity(mu), mu.anchor.new_zeros(()) when δF/δμ does not depend on ρ(x)"
        )

    def __str__(self) -> str:
        return " + ".join(f"{'' if c == 1 else f'{c:g}·'}{type(f).__name__}" for c, f in self.terms)

    def kl_prox(self, mu: Measure, log_a: Tensor, s: float) -> Tensor:
        """log b of b = argmin s·F(b) + KL(b | a) on the cells or points of mu; log densities, both (*batch, n).

        Only the support of mu matters. Pointwise, and defined where every atom has `local` or `bounds`.
        """
        return LocalProx.of(self, mu, s)(log_a)

    def __add__(self, other: Functional) -> Functional:
        if not isinstance(other, Functional):
            return NotImplemented
        return Sum((*_addends(self), *_addends(other)))

    def __sub__(self, other: Functional) -> Functional:
        if not isinstance(other, Functional):
            return NotImplemented
        return self + (-1.0) * other

    def __neg__(self) -> Functional:
        return (-1.0) * self

    def __mul__(self, c: float) -> Functional:
        if isinstance(c, Functional) or not isinstance(c, int | float | Tensor):
            return NotImplemented
        return Scaled(float(c), self)

    __rmul__ = __mul__

    def __truediv__(self, c: float) -> Functional:
        return self * (1 / c)


class Composite(Functional):
    """A functional that is a linear combination of atoms; everything follows from `terms`."""

    def __call__(self, mu: Measure) -> Tensor:
        return reduce(add, (c * f(mu) for c, f in self.terms))

    def first_variation(self, mu: Measure, x: Tensor | None = None) -> Tensor:
        return reduce(add, (c * f.first_variation(mu, x) for c, f in self.terms))

    def gradient(self, mu: Measure, x: Tensor | None = None) -> Tensor:
        return reduce(add, (c * f.gradient(mu, x) for c, f in self.terms))

    def hessian(self, mu: Measure, x: Tensor | None = None) -> Tensor:
        return reduce(add, (c * f.hessian(mu, x) for c, f in self.terms))

    def bures_gradient(self, mu: Gaussian) -> tuple[Tensor, Tensor]:
        parts = [(c, f.bures_gradient(mu)) for c, f in self.terms]
        return reduce(add, (c * b for c, (b, _) in parts)), reduce(add, (c * H for c, (_, H) in parts))

    def weak(self, mu: Measure) -> tuple[Tensor, Tensor]:
        parts = [(c, f.weak(mu)) for c, f in self.terms]
        return reduce(add, (c * s for c, (s, _) in parts)), reduce(add, (c * a for c, (_, a) in parts))

    def drawn(self) -> Functional:
        return Sum(tuple(c * f.drawn() for c, f in self.terms)) if self.generators() else self

    def fitted(self, mu: Measure, last: Any = None) -> tuple[Functional, Any]:
        """The stats are a tuple, one entry a term, unless no term has any."""
        warm = last if isinstance(last, tuple) and len(last) == len(self.terms) else (None,) * len(self.terms)
        parts = [(c, f, *f.fitted(mu, before)) for (c, f), before in zip(self.terms, warm, strict=True)]
        if all(new is f for _, f, new, _ in parts):
            return self, None
        stats = tuple(stats for *_, stats in parts)
        return Sum(tuple(c * new for c, _, new, _ in parts)), stats if any(s is not None for s in stats) else None

    def generators(self) -> tuple[torch.Generator, ...]:
        return tuple({id(g): g for _, f in self.terms for g in f.generators()}.values())

    def diffusivity(self, mu: Measure) -> Tensor:
        return reduce(add, (c * f.diffusivity(mu) for c, f in self.terms))

    def convexity(self, c: float = 1.0) -> float | None:
        parts = [f.convexity(c * ci) for ci, f in self.terms]
        return None if None in parts else sum(part for part in parts if part is not None)


@dataclass(frozen=True, eq=False)
class Sum(Composite):
    """F + G + …"""

    addends: tuple[Functional, ...]

    @property
    def terms(self) -> tuple[tuple[float, Functional], ...]:
        return tuple(term for f in self.addends for term in f.terms)

    def at(self, t: float) -> Functional:
        return Sum(tuple(f.at(t) for f in self.addends))


@dataclass(frozen=True, eq=False)
class Scaled(Composite):
    """c·F."""

    c: float
    f: Functional

    def __post_init__(self) -> None:
        if not torch.isfinite(torch.tensor(self.c)):
            raise ValueError(f"a functional is scaled by a finite number, not {self.c}")

    @property
    def terms(self) -> tuple[tuple[float, Functional], ...]:
        return tuple((self.c * c, f) for c, f in self.f.terms)

    def at(self, t: float) -> Functional:
        return Scaled(self.c, self.f.at(t))


@dataclass(frozen=True, eq=False)
class Varying(Functional):
    """t ↦ F_t. It has a value only at a time; steps ask for it with `at`. `generator` is the one that F_t draws from,
    if any, so that a checkpoint holds its state.

    >>> from otprox import Potential, Varying
    >>> F = Varying(lambda t: Potential(lambda x: 0.5 * ((x - t) ** 2).sum(-1)))
    """

    f: Callable[[float], Functional]
    generator: torch.Generator | None = field(default=None, kw_only=True)

    def generators(self) -> tuple[torch.Generator, ...]:
        return () if self.generator is None else (self.generator,)

    def at(self, t: float) -> Functional:
        functional = self.f(t)
        if not isinstance(functional, Functional):
            raise TypeError(f"Varying(f) needs f(t) to be a Functional; f({t}) is a {type(functional).__name__}")
        return functional.at(t)

    @property
    def terms(self) -> tuple[tuple[float, Functional], ...]:
        raise TypeError("a Varying functional has terms only at a time: use .at(t)")

    def __str__(self) -> str:
        return "Varying"

    def __call__(self, mu: Measure) -> Tensor:
        raise TypeError("a Varying functional has a value only at a time: use .at(t)")

    def first_variation(self, mu: Measure, x: Tensor | None = None) -> Tensor:
        raise TypeError("a Varying functional has a first variation only at a time: use .at(t)")

    def gradient(self, mu: Measure, x: Tensor | None = None) -> Tensor:
        raise TypeError("a Varying functional has a gradient only at a time: use .at(t)")


def _addends(f: Functional) -> tuple[Functional, ...]:
    return f.addends if isinstance(f, Sum) else (f,)


def differentiate(f: Field, x: Tensor, what: str) -> Tensor:
    """∇f at points x by automatic differentiation, (*batch, n, d); differentiable again when x requires grad."""
    with torch.enable_grad():
        y = x if x.requires_grad else x.detach().requires_grad_()
        try:
            values = f(y)
        except RuntimeError as error:
            if "numpy" not in str(error):
                raise
            raise TypeError(f"{what} uses NumPy; write it with torch operations") from error
        if not values.requires_grad:
            raise TypeError(
                f"{what} is not differentiable by autograd, or does not depend on x: write it with torch operations, "
                "without .detach(), .item() or NumPy"
            )
        if not torch.isfinite(values).all():
            raise ValueError(f"{what} is non-finite (NaN or infinite) at {int((~torch.isfinite(values)).sum())} points")
        (g,) = torch.autograd.grad(values.sum(), y, create_graph=x.requires_grad)
    return g


def scalar_potential(V: Callable[[Tensor], Any], name: str) -> Field:
    """V with its output shape checked: (*batch, n, d) -> (*batch, n)."""

    def checked(x: Tensor) -> Tensor:
        values = V(x)
        if not isinstance(values, Tensor) or values.shape != x.shape[:-1]:
            shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"{name} must map points (*batch, n, d) to values (*batch, n): {tuple(x.shape)} gave {shape}; "
                "for a radial one, sum over the last axis: (x**2).sum(-1)"
            )
        return values

    return checked
