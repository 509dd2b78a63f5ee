"""The renormalised potential V_t of a field theory, its gradient, its semigroup and its equation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..functionals.base import differentiate, scalar_potential
from ..measures import Field
from ..measures.covariance import dense, inner, tensor_of
from .covariances import Covariances, check_order
from .estimates import Estimate, Fields, Method
from .fluctuations import Fluctuations, Importance
from .modes import Matrix, Modes, root
from .routes import BesselSeries, ClosedForm, HermiteSites

EXACT: tuple[Method, ...] = (ClosedForm(), BesselSeries(), HermiteSites())


@dataclass(frozen=True, eq=False)
class AtScale:
    """V_C(φ) = −log E e^{−V₀(φ+ζ)}, ζ ~ N(0, C), as a callable (*batch, n, N) -> (*batch, n).

    C = 0 gives V₀. `method` is the first that supports V₀ of closed form, series and quadrature unless given; larger
    lattices need method=Fluctuations(generator). Differentiable by autograd: once where it is sampled, by its estimated
    gradient.

    >>> from otprox.polchinski import Phi4
    >>> V = AtScale(Phi4(1.0, -1.0), torch.tensor([[0.25]], dtype=torch.float64))
    >>> round(V(torch.zeros(1, 1, dtype=torch.float64)).item(), 10)
    -0.0817693694
    """

    V0: Any
    C: Matrix
    method: Method | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "method", choose(self.V0, self.C.shape[-1], self.method))
        if not isinstance(self.method, ClosedForm):
            _check_integrable(self.V0, self.C)

    def __call__(self, phi: Tensor) -> Tensor:
        if phi.requires_grad and isinstance(self.method, Fluctuations | Importance):
            return _Sampled.apply(phi, self)
        return self.estimate(phi).value

    def gradient(self, phi: Tensor) -> Tensor:
        """∇V_C at fields, (*batch, n, N)."""
        return self.estimate_gradient(phi).value

    def estimate(self, phi: Tensor) -> Estimate:
        """V_C with its error bar."""
        return self.method.value(self.V0, self.C, phi)  # type: ignore[union-attr]

    def estimate_gradient(self, phi: Tensor) -> Estimate:
        """∇V_C with its error bar."""
        return self.method.gradient(self.V0, self.C, phi)  # type: ignore[union-attr]


class _Sampled(torch.autograd.Function):
    """A sampled V_C whose derivative is the sampled gradient, not that of the samples."""

    @staticmethod
    def forward(ctx: Any, phi: Tensor, V: AtScale) -> Tensor:
        ctx.V = V
        ctx.save_for_backward(phi)
        return V.estimate(phi.detach()).value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (phi,) = ctx.saved_tensors
        return grad[..., None] * ctx.V.estimate_gradient(phi.detach()).value, None


@dataclass(frozen=True, eq=False)
class RenormalisedPotential:
    """t ↦ V_t(φ) = −log E e^{−V₀(φ+ζ)}, ζ ~ N(0, C_t), the solution of ∂tV = ½Tr(Ċ∇²V) − ½⟨∇V, Ċ∇V⟩ from V₀.

    V0: a model or any callable; C: a covariance family; method: as in `AtScale`. Source: Bauerschmidt, Bodineau,
    Dagallier, "Stochastic dynamics and the Polchinski equation" (2024).
    """

    V0: Any
    C: Covariances
    method: Method | None = None

    def at(self, t: float) -> AtScale:
        """V_t as a callable with a gradient."""
        return AtScale(self.V0, self.C(t), self.method)

    def __call__(self, t: float, phi: Tensor) -> Tensor:
        return self.at(t)(phi)

    def gradient(self, t: float, phi: Tensor) -> Tensor:
        """∇V_t(φ), (*batch, n, N)."""
        return self.at(t).gradient(phi)

    def semigroup(self, s: float, t: float, f: Fields, phi: Tensor) -> Estimate:
        """P_{s,t}f(φ) = e^{V_t(φ)} E e^{−V_s(φ+ζ)}f(φ+ζ), ζ ~ N(0, C_t − C_s), for s < t.

        On N ≤ 3 sites by quadrature of V_s. By sampling, the fluctuation ζ of C_t is drawn with weight e^{−V₀(φ+ζ)},
        and its part up to C_t − C_s given ζ is Gaussian: no V_s is needed.
        """
        check_order(s, t)
        method, whole, part = self.at(t).method, self.C(t), self.C.increment(s, t)
        if isinstance(method, Fluctuations | Importance):
            return method.expect(self.V0, whole, phi, self._conditioned(f, phi, whole, part, method.generator))
        sites = method if isinstance(method, HermiteSites) else HermiteSites()
        choose(self.V0, phi.shape[-1], sites)
        return sites.expect(self.at(s), part, phi, f)

    def residual(self, t: float, phi: Tensor) -> Tensor:
        """∂tV − ½Tr(Ċ∇²V) + ½⟨∇V, Ċ∇V⟩ at t > 0, (*batch, n): 0 but for rounding and the five-point ∂t.

        For methods without sampling.
        """
        V = self.at(t)
        if isinstance(V.method, Fluctuations | Importance):
            raise TypeError("the residual needs second derivatives of V_t, which sampling does not give")
        h = min(2e-4, t / 4)
        slope = 8 * (self(t + h, phi) - self(t - h, phi)) - (self(t + 2 * h, phi) - self(t - 2 * h, phi))
        rate, gradient = self.C.rate(t), V.gradient(phi)
        return slope / (12 * h) - 0.5 * _laplacian(V, rate, phi) + 0.5 * (gradient * (gradient @ rate)).sum(-1)

    @staticmethod
    def _conditioned(f: Fields, phi: Tensor, whole: Matrix, part: Matrix, generator: torch.Generator) -> Fields:
        """ψ = φ + ζ ↦ f(φ + ζ'), ζ' drawn from its law given ζ: mean Kζ, covariance (I − K)part, K = part·whole⁻¹."""
        inverse = Modes.of(whole).positive("C_t").inverse
        noise = root(part - part @ inverse @ part)

        def drawn(psi: Tensor) -> Tensor:
            xi = torch.randn(psi.shape, generator=generator, dtype=psi.dtype, device=psi.device)
            return f(phi + (psi - phi) @ inverse @ part + xi @ noise)

        return drawn


def choose(V0: Any, sites: int, method: Method | None) -> Method:
    """The method itself, or the first exact one that supports V₀ on so many sites; TypeError with every reason."""
    reasons = []
    for candidate in EXACT if method is None else (method,):
        reason = candidate.supports(V0, sites)
        if reason is None:
            return candidate
        reasons.append(f"{type(candidate).__name__}: {reason}")
    advice = "" if method is not None else "; give method=Fluctuations(generator)"
    raise TypeError("no way to the renormalised potential: " + "; ".join(reasons) + advice)


FAR = 1e4  # standard deviations of the fluctuations at which e^{−V₀} must have lost against them


def _check_integrable(V0: Any, C: Matrix) -> None:
    """Refuse a V₀ that falls faster than the Gaussian weight rises, along ± constant fields and single sites."""
    n, like = C.shape[-1], tensor_of(C)
    z = torch.eye(min(n, 8), n, dtype=like.dtype, device=like.device)
    z = FAR * torch.cat([z, z.new_full((1, n), n**-0.5)])
    phi = torch.cat([z, -z]) @ root(C)
    V = scalar_potential(V0, "V0")
    near = V(phi / FAR)
    if near.isnan().any():
        bad = phi[near.isnan()][0] / FAR
        raise ValueError(
            f"V0 is NaN at a field of size {bad.abs().max().item():.3g}; it must be a number at every field"
        )
    values = V(phi)
    lost = values < -0.5 * FAR**2
    if lost.any():
        i = int(lost.nonzero()[0])
        raise ValueError(
            f"V0 is unbounded below: it is {values[i].item():.3g} at a field of size {phi[i].abs().max().item():.3g}, "
            "so that E e^{−V0} over the fluctuations is infinite; a stable theory grows, as φ⁴ with a positive coupling"
        )


def _laplacian(V: AtScale, rate: Matrix, phi: Tensor) -> Tensor:
    """Tr(Ċ∇²V), column by column of Ċ unless V is quadratic."""
    if isinstance(V.method, ClosedForm):
        return inner(rate, V.method.renormalise(V.V0, V.C).A).expand(phi.shape[:-1])

    def slope_along(c: Tensor) -> Field:
        return lambda x: differentiate(V, x, "V") @ c

    parts = [differentiate(slope_along(c), phi.detach(), "V")[..., i] for i, c in enumerate(dense(rate))]
    return torch.stack(parts).sum(0)
