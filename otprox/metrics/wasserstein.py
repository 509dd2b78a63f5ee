"""Transport metrics whose mobility does not depend on μ: Wasserstein, its entropic relaxation, and moving ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..functionals import Functional
from ..measures import Gaussian, Measure, Particles, Spectral, Velocity
from ..measures.base import as_float, check_alike, common_batch
from ..measures.covariance import Matrix, alike, as_matrix, cholesky, dense, tensor_of
from .base import Metric


@dataclass(frozen=True, eq=False)
class Wasserstein(Metric):
    """W2 with ground cost ⟨x − y, Q⁻¹(x − y)⟩ (no ½): the flow is ∂t μ = div(μ Q ∇δF/δμ).

    Q: (d, d) or (*batch, d, d), symmetric positive definite, or Spectral on a lattice; None is the identity.
    """

    Q: Matrix | None = None

    def __post_init__(self) -> None:
        if self.Q is not None:
            object.__setattr__(self, "Q", as_matrix(self.Q, "Q"))

    def mobility(self, mu: Measure) -> Tensor:
        """Q as a matrix in μ's dtype and device: Spectral if it is and μ keeps it so, dense otherwise."""
        if self.Q is None:
            return mu.identity()
        if self.Q.shape[-1] != mu.dim:
            raise ValueError(f"Q has shape {tuple(self.Q.shape)} but the measure lives in dimension {mu.dim}")
        check_alike(tensor_of(self.Q), "Q", mu.anchor)
        batch = common_batch("Q", self.Q.shape[:-2], "the measure", mu.batch)
        if batch != mu.batch and not isinstance(mu, Gaussian):
            raise ValueError(
                f"Q has batch shape {tuple(batch)}, the measure {tuple(mu.batch)}; expand the measure to it"
            )
        if isinstance(mu, Gaussian):
            return alike(self.Q, mu.cov)
        return self.Q if isinstance(mu, Particles) else dense(self.Q)

    def factor(self, mu: Measure) -> Tensor | None:
        """L with LLᵀ = Q, so that the cost is |L⁻¹(x − y)|²; None for the identity."""
        return None if self.Q is None else cholesky(self.mobility(mu))

    def onsager(self, mu: Measure, u: Tensor) -> Tensor:
        return u if self.Q is None else u @ self.mobility(mu)

    def descent(self, F: Functional, mu: Measure) -> Velocity:
        def affine() -> tuple[Tensor, Tensor]:
            shift, hessian = F.bures_gradient(mu)  # type: ignore[arg-type]  # asked for by Gaussians only
            if self.Q is None:
                return -shift, -hessian
            Q = self.mobility(mu)
            return -(Q @ shift[..., None])[..., 0], -Q @ hessian

        return Velocity(
            field=lambda x: -self.onsager(mu, F.gradient(mu, x)),
            potential=lambda: F.first_variation(mu),
            diffusivity=lambda: F.diffusivity(mu),
            affine=affine,
            mobility=None if self.Q is None else self.mobility(mu),
        )

    def diffusion(self, mu: Measure, t0: float, t1: float) -> Tensor:
        return (t1 - t0) * self.mobility(mu)


@runtime_checkable
class Scales(Protocol):
    """A family t ↦ C_t that knows its rate Ċ_t, and its increments C_t − C_s without cancellation."""

    @property
    def rate(self) -> Callable[[float], Any]: ...

    def increment(self, s: float, t: float) -> Any: ...


@dataclass(frozen=True, eq=False)
class Moving(Metric):
    """W2 in a metric that moves: cost ⟨x − y, Ċ⁻¹(x − y)⟩ with C: t ↦ C_t increasing.

    rule="end" takes Ċ at the end of the step, rule="average" takes (C(t1) − C(t0))/tau; both are first order. `rate` is
    Ċ; when not given it is that of C if C has one (`Scales`), else by automatic differentiation. C(t) is (d, d), or
    Spectral on a lattice, or a number in one dimension.
    """

    C: Callable[[Any], Any]
    rate: Callable[[float], Any] | None = None
    rule: Literal["end", "average"] = "end"

    def __post_init__(self) -> None:
        if self.rule not in ("end", "average"):
            raise ValueError(f"rule must be 'end' or 'average', not {self.rule!r}")

    def over(self, t0: float, t1: float) -> Wasserstein:
        if isinstance(self.C, Scales):
            self.C(t0)  # a family refuses times outside its own, and rule="end" asks for nothing else at t0
        name = f"Ċ at t = {t1}" if self.rule == "end" else f"(C({t1}) − C({t0}))/tau"
        Q = self._rate(t0, t1) if self.rule == "end" else self._increment(t0, t1) / (t1 - t0)
        return Wasserstein(as_matrix(Q, name))

    def diffusion(self, mu: Measure, t0: float, t1: float) -> Tensor:
        """C(t1) − C(t0)."""
        return as_matrix(self._increment(t0, t1), f"C({t1}) − C({t0})")

    def descent(self, F: Functional, mu: Measure) -> Velocity:
        raise TypeError("a Moving metric acts over an interval: use .over(t0, t1)")

    def onsager(self, mu: Measure, u: Tensor) -> Tensor:
        raise TypeError("a Moving metric acts over an interval: use .over(t0, t1)")

    def _increment(self, t0: float, t1: float) -> Tensor:
        if isinstance(self.C, Scales):
            return _matrix(self.C.increment(t0, t1))
        return _matrix(self.C(t1)) - _matrix(self.C(t0))

    def _rate(self, t0: float, t1: float) -> Tensor:
        rate = self.rate or (self.C.rate if isinstance(self.C, Scales) else None)
        if rate is not None:
            return _matrix(rate(t1))
        derivative = _matrix(time_derivative(self.C, t1))
        if not tensor_of(derivative).any() and tensor_of(self._increment(t0, t1)).any():
            raise TypeError("C(t) changes but its automatic derivative is 0: write it in torch, or pass rate=")
        return derivative


@dataclass(frozen=True, eq=False)
class Entropic(Metric):
    """Entropy-regularised transport, for Backward.

    OT(ν, μ) = min over plans of ⟨cost, π⟩ + reg·∫π log π (reference="lebesgue", Peyré 2015), or + reg·KL(π | ν⊗μ)
    ("product"), or the Sinkhorn divergence OT(ν, μ) − ½OT(ν, ν) − ½OT(μ, μ) ("debiased", without bias at the fixed
    point). `base` gives the cost, and may be Moving.
    """

    reg: float
    reference: Literal["lebesgue", "product", "debiased"] = "lebesgue"
    base: Metric = field(default_factory=Wasserstein)

    def __post_init__(self) -> None:
        if not 0 < self.reg < math.inf:
            raise ValueError(
                f"reg must be positive and finite, not {self.reg}; without regularisation use Wasserstein()"
            )
        if self.reference not in ("lebesgue", "product", "debiased"):
            raise ValueError(f"reference must be 'lebesgue', 'product' or 'debiased', not {self.reference!r}")
        if not isinstance(self.base, Wasserstein | Moving):
            raise TypeError(f"base must be Wasserstein or Moving, not {type(self.base).__name__}")

    def over(self, t0: float, t1: float) -> Entropic:
        return Entropic(self.reg, self.reference, self.base.over(t0, t1))

    def descent(self, F: Functional, mu: Measure) -> Velocity:
        raise TypeError("Entropic is a relaxed distance for Backward; a Forward step uses its base metric")

    def onsager(self, mu: Measure, u: Tensor) -> Tensor:
        raise TypeError("Entropic is a relaxed distance for Backward; its base metric has the Onsager operator")


def time_derivative(C: Callable[[Any], Any], t: float | Tensor) -> Any:
    """Ċ at t by automatic differentiation."""
    try:
        now = C(t)
        rate = torch.func.jvp(lambda s: torch.as_tensor(tensor_of(C(s))), *_unit_time(t))[1]
    except TypeError as error:
        raise TypeError("C(t) must accept a tensor t to be differentiated: write it in torch, or pass rate=") from error
    if isinstance(now, Spectral):
        return now.with_values(rate.to(now.dtype))
    return rate.to(_matrix(now).dtype)


def _matrix(value: Any) -> Any:
    if isinstance(value, Spectral):
        return value
    tensor = as_float(value, "C(t)")
    return tensor * torch.eye(1, dtype=tensor.dtype, device=tensor.device) if tensor.ndim == 0 else tensor


def _unit_time(t: float | Tensor) -> tuple[tuple[Tensor], tuple[Tensor]]:
    time = torch.as_tensor(t, dtype=torch.float64)
    return (time,), (torch.ones_like(time),)
