"""Internal energies ∫ U(ρ) dx: entropy and porous medium."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..measures import Density, Gaussian, Measure, Particles, Quantiles
from ..measures.base import jacobian
from ..measures.covariance import inverse
from ..scores import Estimator, Known, as_estimator
from .atom import Atom, NotConvex, nonnegative
from .base import Functional
from .conjugate import Conjugate


class Internal(Functional):
    """∫ U(ρ) dx, given through the energy per unit mass u(ℓ) = U(ρ)/ρ as a function of ℓ = log ρ.

    Everything follows from u and two derivatives: F = ∫ u dμ, δF/δμ = u + u', diffusivity dφ/dℓ = u' + u'',
    pressure ρu'; per specific volume s = 1/ρ, ψ(s) = u(−log s), ψ' = −u'/s, ψ'' = (u' + u'')/s².
    """

    @abstractmethod
    def per_mass(self, log_rho: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """u, u', u'' at ℓ = log ρ."""

    def __call__(self, mu: Measure) -> Tensor:
        return mu.expect_log(lambda log_rho: self.per_mass(log_rho)[0])

    def first_variation(self, mu: Measure, x: Tensor | None = None) -> Tensor:
        u, du, _ = self.per_mass(mu.log_prob(x))
        return u + du

    def gradient(self, mu: Measure, x: Tensor | None = None) -> Tensor:
        if x is None and isinstance(mu, Quantiles):
            return self._pressure_jumps(mu)
        return self._slope(mu.log_prob(x))[..., None] * mu.score(x)

    def _pressure_jumps(self, mu: Quantiles) -> Tensor:
        """n·∂F/∂x_i: n times the jump of the pressure ρu' from the gap below a quantile to that above, 0 outside."""
        mu.log_prob()  # refuses atoms
        log_rho = -torch.log(mu.n * mu.gaps)
        pressure = log_rho.exp() * self.per_mass(log_rho)[1]
        return mu.n * torch.nn.functional.pad(pressure, (1, 1)).diff(dim=-1)[..., None]

    def weak(self, mu: Measure) -> tuple[Tensor, Tensor]:
        """(0, u'): ρ∇φ is the gradient of the pressure ρu'."""
        return torch.zeros_like(mu.points), self.per_mass(mu.log_prob())[1]

    def local(self, log_rho: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        u, du, ddu = self.per_mass(log_rho)
        return u + du, du + ddu

    def conjugate(self, p: Tensor) -> Tensor:
        """log ρ with U'(ρ) = p: −∞ at or below U'(0), ∞ at or above U'(∞). By Newton's method unless given."""
        return Conjugate(torch.zeros_like(p), ((1.0, self),)).log_density(p)

    def diffusivity(self, mu: Measure) -> Tensor:
        return self._slope(mu.log_prob())

    def _slope(self, log_rho: Tensor) -> Tensor:
        _, du, ddu = self.per_mass(log_rho)
        return du + ddu

    def convexity(self, c: float = 1.0) -> float | None:
        return 0.0 if c >= 0 else None

    def atom(self, mu: Measure, c: float) -> Atom:
        """c·vol·Σ U(ρ_i) over cells, from `convex_density`; (c/n) Σ ψ(n·gap) over quantiles, from `convex_gap`.

        Gaps enter relative to those of μ, so that cones see numbers near 1; any others give the same up to a constant.
        """
        density, gap = getattr(self, "convex_density", None), getattr(self, "convex_gap", None)
        if isinstance(mu, Density) and density is not None:
            data = (nonnegative(c, str(self)) * mu.grid.volume,)
            return Atom((self, Density), lambda rho, c: c * density(rho), data)
        if isinstance(mu, Quantiles) and gap is not None:
            data = (nonnegative(c, str(self)) / mu.n,)
            usual = _usual_volumes(mu)
            return Atom((self, Quantiles), lambda x, c: c * gap(_relative_gaps(x, usual), usual), data, ordered=True)
        raise NotConvex(f"{self} has no convex form on {type(mu).__name__}")


def _fit_aside(estimator: Estimator, mu: Measure) -> Known:
    """A fit outside of a step, after which the generators are as before."""
    states = [(g, g.get_state()) for g in estimator.generators()]
    known = estimator.fit(mu)
    for generator, state in states:
        generator.set_state(state)
    return known


def _usual_volumes(mu: Quantiles) -> Any:
    """n·gaps of μ (n − 1,), averaged over a batch, and none much smaller than their mean."""
    volumes = (mu.n * mu.gaps).double().reshape(-1, mu.n - 1).mean(0)
    return volumes.clamp_min(1e-3 * volumes.mean().item() or 1.0).numpy(force=True)


def _relative_gaps(x: Any, usual: Any) -> Any:
    """n·gaps/usual of CVXPY positions x (n,)."""
    import cvxpy as cp

    return cp.multiply(x.size / usual, cp.diff(x))


@dataclass(frozen=True)
class Entropy(Internal):
    """∫ ρ log ρ. Its flow is the heat equation ∂t ρ = Δρ (Jordan, Kinderlehrer, Otto 1998).

    Particles have no density of their own. With `score`, explicit steps see it on Particles through an estimate of
    ∇log ρ: an estimator of `otprox.scores`, such as `scores.Network`, or a function of points where the score is known
    (of time too: `Varying(lambda t: Entropy(score=…))`). A step fits the estimator once; observers fit it anew each
    time. The value needs a `log_density`, which such steps carry along. Implicit steps use the value, and so the
    log-density and not `score`; measures with a density ignore it.

    >>> import torch, otprox as ox
    >>> heat = ox.Forward(ox.Entropy(score=ox.scores.GaussianFit()))
    >>> heat(ox.Particles(torch.tensor([[-2.0], [2.0]])), 0.0, 1.0).mu.x  # x − tau·s, s = −x/4
    tensor([[-2.5000],
            [ 2.5000]])
    """

    score: Any = field(default=None, kw_only=True)

    affine: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.score is not None:
            as_estimator(self.score)

    def per_mass(self, log_rho: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return log_rho, torch.ones_like(log_rho), torch.zeros_like(log_rho)

    def __call__(self, mu: Measure) -> Tensor:
        if self.score is not None and isinstance(mu, Particles) and mu.log_density is None:
            raise TypeError(
                "a score gives the slope of the entropy, not its value. What would work for a value: "
                "Particles(x, log_density=...), whose density explicit steps carry along, or Blob(width)"
            )
        return mu.entropy()

    def gradient(self, mu: Measure, x: Tensor | None = None) -> Tensor:
        if self.score is None or not isinstance(mu, Particles):
            return super().gradient(mu, x)
        return _fit_aside(as_estimator(self.score), mu)(mu.points if x is None else x)

    def hessian(self, mu: Measure, x: Tensor | None = None) -> Tensor:
        if self.score is None or not isinstance(mu, Particles):
            return super().hessian(mu, x)
        known, x = _fit_aside(as_estimator(self.score), mu), mu.points if x is None else x
        return jacobian(known, x) if known.jacobian is None else known.jacobian(x)

    def fitted(self, mu: Measure, last: Any = None) -> tuple[Entropy, Any]:
        if self.score is None or not isinstance(mu, Particles):
            return self, None
        known = as_estimator(self.score).fit(mu, last)
        return Entropy(score=known), known.stats

    def generators(self) -> tuple[torch.Generator, ...]:
        return () if self.score is None else as_estimator(self.score).generators()

    def conjugate(self, p: Tensor) -> Tensor:
        return p - 1

    def convex_density(self, rho: Any) -> Any:
        """Σ ρ log ρ in CVXPY."""
        import cvxpy as cp

        return -cp.sum(cp.entr(rho))

    def convex_gap(self, r: Any, usual: Any) -> Any:
        """Σ ψ(usual·r) = −Σ log r in CVXPY, up to a constant."""
        import cvxpy as cp

        return -cp.sum(cp.log(r))

    def weak(self, mu: Measure) -> tuple[Tensor, Tensor]:
        zero = torch.zeros_like(mu.points)
        return zero, torch.ones_like(zero[..., 0])

    def bures_gradient(self, mu: Gaussian) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(mu.mean), -inverse(mu.cov)


@dataclass(frozen=True)
class PorousMedium(Internal):
    """∫ ρᵐ/(m − 1), for every m > 0 but 1. Its flow is ∂t ρ = Δρᵐ (Otto 2001); fast diffusion for m < 1.

    Where ρ = 0 the energy is 0 for every m. For m < 1, δF/δρ = −(m/(1 − m))·ρ^(m − 1) falls to −∞ there: implicit steps
    fill empty cells, and explicit ones, whose stable step vanishes, are refused. See `displacement_convex`.
    """

    m: float

    def __post_init__(self) -> None:
        if not self.m > 0 or self.m == 1:
            raise ValueError(f"PorousMedium needs an exponent m > 0 other than 1, not {self.m}; m = 1 is Entropy()")

    def per_mass(self, log_rho: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        k = self.m - 1
        power = torch.exp(k * log_rho)
        return power / k, power, k * power

    def power_law(self) -> tuple[float, float]:
        """(A, k) with δF/δμ = A·ρᵏ."""
        return self.m / (self.m - 1), self.m - 1

    def displacement_convex(self, dim: int) -> bool:
        """Whether F is convex along W2 geodesics in R^dim: m ≥ 1 − 1/dim (McCann 1997)."""
        return (1 - self.m) * dim <= 1 + 1e-12

    def conjugate(self, p: Tensor) -> Tensor:
        k = self.m - 1
        power = k * p / self.m  # ρ^k, where positive
        log_rho = torch.where(power > 0, power, 1).log() / k
        return torch.where(power > 0, log_rho, -torch.inf if k > 0 else torch.inf)

    def convexity(self, c: float = 1.0) -> float | None:
        return 0.0 if c >= 0 and self.m >= 1 else None  # in every dimension

    def convex_density(self, rho: Any) -> Any:
        """Σ ρᵐ/(m − 1) in CVXPY."""
        return _power_sum(rho, self.m) / (self.m - 1)

    def convex_gap(self, r: Any, usual: Any) -> Any:
        """Σ ψ(usual·r) = Σ usual^(1 − m) r^(1 − m)/(m − 1) in CVXPY."""
        return _power_sum(r, 1 - self.m, usual ** (1 - self.m)) / (self.m - 1)


def _power_sum(x: Any, p: float, weights: Any = 1.0) -> Any:
    """Σ weights·xᵖ in CVXPY: simple fractions by second-order cones, exactly and faster than by power cones."""
    import cvxpy as cp

    if p == 2 and isinstance(weights, float):
        return cp.sum_squares(x)
    simple = abs(p) <= 4 and abs(p - float(Fraction(p).limit_denominator(8))) < 1e-12
    return cp.sum(cp.multiply(weights, cp.power(x, p, approx=simple)))
