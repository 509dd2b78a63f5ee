"""One JKO step from the uniform density on an interval: porous medium (m = 2) in closed form, entropy by quadrature.

With T the optimal map from the new density ρ back to the uniform one, T(x) = x + τ ∂x δF/δρ, so that T − lower is
(upper − lower) times the distribution function of ρ: both problems are an ordinary differential equation for ρ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


def jko_uniform_porous_medium(tau: float, lower: float = 0.0, upper: float = 1.0) -> UniformPorousMediumJKO:
    """The JKO step of size tau of ∫ρ² from U[lower, upper].

    >>> jko_uniform_porous_medium(0.01).variance
    0.09957389595...
    """
    return UniformPorousMediumJKO(tau, lower, upper)


def jko_uniform_entropy(tau: float, lower: float = 0.0, upper: float = 1.0) -> UniformEntropyJKO:
    """The JKO step of size tau of ∫ρ log ρ from U[lower, upper].

    >>> jko_uniform_entropy(0.1).variance
    0.23933028808...
    """
    return UniformEntropyJKO(tau, lower, upper)


@dataclass(frozen=True)
class UniformPorousMediumJKO:
    """argmin ∫ρ² + W2²(ρ, U[lower, upper])/(2τ), the porous medium energy with m = 2.

    For U[0, 1], s = (2τ)^½ and L − s·tanh(L/s) = ½: ρ(x) = 1 − cosh((x − ½)/s)/cosh(L/s) on |x − ½| < L, which solves
    ρ − (T' =) 1 − s²ρ'' = 0 with ρ(L) = 0 and T(L) = ½. Other intervals by scaling, τ → τ/(upper − lower)³.
    """

    tau: float
    lower: float = 0.0
    upper: float = 1.0

    def __post_init__(self) -> None:
        _check(self.tau, self.lower, self.upper)

    @property
    def length(self) -> float:
        """upper − lower."""
        return self.upper - self.lower

    @property
    def s(self) -> float:
        """(2τ/length³)^½, the width of the layers on the unit interval."""
        return math.sqrt(2 * self.tau / self.length**3)

    @cached_property
    def half_width(self) -> float:
        """Half the length of the support."""
        return self.length * self._L

    @cached_property
    def _L(self) -> float:
        from scipy.optimize import brentq

        s = self.s
        return brentq(lambda L: L - s * math.tanh(L / s) - 0.5, 0.5, 0.5 + s, xtol=1e-16, rtol=1e-15)

    def density(self, x: Tensor) -> Tensor:
        """ρ at x, any shape."""
        u = self._unit(x).abs().clamp_max(self._L)
        return (1 - _cosh_ratio(u / self.s, self._L / self.s)) / self.length

    def map(self, x: Tensor) -> Tensor:
        """T(x) = x + 2τρ'(x), from the new density back to the uniform one, on the support."""
        u = self._unit(x)
        a = u.abs().clamp_max(self._L) / self.s
        slope = torch.tanh(a) * _cosh_ratio(a, self._L / self.s)
        return x - self.length * self.s * u.sign() * slope

    def cdf(self, x: Tensor) -> Tensor:
        """Distribution function, (T(x) − lower)/length on the support."""
        inside = self._unit(x).clamp(-self._L, self._L)
        return (self.map(self.center + self.length * inside) - self.lower) / self.length

    def quantile(self, q: Tensor) -> Tensor:
        """The inverse of `cdf`, by bisection."""
        reach = torch.full_like(q, self.half_width)
        return bisect(self.cdf, q, self.center - reach, self.center + reach)

    @property
    def center(self) -> float:
        """The mean, which the step keeps."""
        return 0.5 * (self.lower + self.upper)

    @property
    def variance(self) -> float:
        """length²·(2L³/3 − 2(L²st − 2Ls² + 2s³t)), t = tanh(L/s)."""
        L, s, t = self._L, self.s, math.tanh(self._L / self.s)
        return self.length**2 * (2 * L**3 / 3 - 2 * (L * L * s * t - 2 * L * s * s + 2 * s**3 * t))

    @property
    def energy(self) -> float:
        """∫ρ² = (2L − 3st + L(1 − t²))/length."""
        L, s, t = self._L, self.s, math.tanh(self._L / self.s)
        return (2 * L - 3 * s * t + L * (1 - t * t)) / self.length

    @property
    def w2_squared(self) -> float:
        """length²·s²(st − L(1 − t²) − ⅔st³)."""
        L, s, t = self._L, self.s, math.tanh(self._L / self.s)
        return self.length**2 * s * s * (s * t - L * (1 - t * t) - 2 / 3 * s * t**3)

    def expect(self, f: Callable[[Tensor], Tensor], nodes: int = 200) -> Tensor:
        """∫ f dρ for f: (n, 1) -> (n,), by Gauss–Legendre over the support."""
        x, w = gauss_legendre(nodes)
        x = self.center + self.half_width * x
        return self.half_width * (w * self.density(x) * f(x[:, None])).sum()

    def _unit(self, x: Tensor) -> Tensor:
        return (x - self.center) / self.length


@dataclass(frozen=True)
class UniformEntropyJKO:
    """argmin ∫ρ log ρ + W2²(ρ, U[lower, upper])/(2τ).

    On U[0, 1] the density solves ρ = 1 + τ(log ρ)''. With z = log(ρ(½)/ρ), δ = 1 − ρ(½) and
    g(z) = z − 1 + e^−z + δ(1 − e^−z), a first integral gives |x − ½| = τ^½ ∫₀^z (2g)^−½, and δ is the only zero of
    τ^½∫₀^∞ ρ(½)e^−z(2g)^−½ dz = ½. The integrals use the variable log z, where the trapezoidal rule converges
    geometrically. Other intervals by scaling, τ → τ/(upper − lower)². τ ≥ 1e-6·length², else ValueError.
    """

    tau: float
    lower: float = 0.0
    upper: float = 1.0

    def __post_init__(self) -> None:
        _check(self.tau, self.lower, self.upper)
        if self._tau < 1e-6:
            raise ValueError(f"tau/length² = {self._tau:.3g} is below 1e-6: the layer underflows, the step is nothing")

    @property
    def length(self) -> float:
        """upper − lower."""
        return self.upper - self.lower

    @property
    def center(self) -> float:
        """The mean, which the step keeps."""
        return 0.5 * (self.lower + self.upper)

    @property
    def _tau(self) -> float:
        return self.tau / self.length**2

    @cached_property
    def _layer(self) -> _Layer:
        from scipy.optimize import brentq

        tau = self._tau
        return _Layer(brentq(lambda logit: _Layer(logit, tau).half_mass - 0.5, -600.0, 30.0, xtol=1e-13), tau)

    def density(self, x: Tensor) -> Tensor:
        """ρ at x, any shape."""
        z = self._layer.z_at_distance(((x - self.center) / self.length).abs())
        return self._layer.top * torch.exp(-z) / self.length

    def map(self, x: Tensor) -> Tensor:
        """T(x) = x + τ(log ρ)'(x), from the new density back to the uniform one."""
        u = (x - self.center) / self.length
        mass = self._layer.mass(self._layer.z_at_distance(u.abs()))
        return self.center + self.length * u.sign() * mass

    def cdf(self, x: Tensor) -> Tensor:
        """Distribution function, (T(x) − lower)/length."""
        return (self.map(x) - self.lower) / self.length

    def quantile(self, q: Tensor) -> Tensor:
        """The inverse of `cdf`, 0 < q < 1."""
        z = self._layer.z_at_mass((q - 0.5).abs())
        return self.center + self.length * (q - 0.5).sign() * self._layer.distance(z)

    @property
    def variance(self) -> float:
        """∫(x − center)²ρ."""
        return self.length**2 * self._layer.integrate(lambda z: self._layer.distance(z) ** 2)

    @property
    def energy(self) -> float:
        """∫ρ log ρ."""
        return math.log(self._layer.top / self.length) - self._layer.integrate(lambda z: z)

    @property
    def w2_squared(self) -> float:
        """τ²∫(∂x log ρ)²ρ = ∫ 2τ g(z) ρ."""
        return self.length**2 * self._layer.integrate(lambda z: 2 * self._tau * self._layer.g(z))

    def expect(self, f: Callable[[Tensor], Tensor]) -> Tensor:
        """∫ f dρ for f: (n, 1) -> (n,)."""
        z, w = self._layer.nodes
        u = self.length * self._layer.distance(z)[:, None]
        return (w * 0.5 * (f(self.center + u) + f(self.center - u))).sum()


@dataclass(frozen=True)
class _Layer:
    """The right half of the unit-interval solution in the variable z = log(ρ(½)/ρ) ≥ 0; logit = log(δ/ρ(½))."""

    logit: float
    tau: float

    @property
    def top(self) -> float:
        """ρ(½) = 1 − δ."""
        return 1 / (1 + math.exp(self.logit))

    @property
    def delta(self) -> float:
        """1 − ρ(½), without cancellation."""
        return 1 / (1 + math.exp(-self.logit))

    def g(self, z: Tensor) -> Tensor:
        """z − 1 + e^−z + δ(1 − e^−z)."""
        return z * self._ratio(z)

    def _ratio(self, z: Tensor) -> Tensor:
        """g(z)/z, without cancellation or underflow at small z."""
        series = z * (1 / 2 - z * (1 / 6 - z * (1 / 24 - z * (1 / 120 - z * (1 / 720 - z / 5040)))))
        fall = torch.where(z > 0, -torch.expm1(-z) / z, torch.ones_like(z))
        return torch.where(z < 1e-2, series, 1 - fall) + self.delta * fall

    @cached_property
    def nodes(self) -> tuple[Tensor, Tensor]:
        """z and the weights of both halves of ρ dx, by the trapezoidal rule in log z."""
        h = 0.2
        z = torch.exp(torch.arange(math.log(self.delta) - 78, math.log(60), h, dtype=torch.float64))
        return z, 2 * math.sqrt(self.tau) * self.top * h * torch.exp(-z) * (z / (2 * self._ratio(z))).sqrt()

    @property
    def half_mass(self) -> float:
        """∫ of ρ over the right half."""
        return 0.5 * self.nodes[1].sum().item()

    def integrate(self, f: Callable[[Tensor], Tensor]) -> float:
        """∫ f(z(x)) ρ dx over the line."""
        z, w = self.nodes
        return (w * f(z)).sum().item()

    def distance(self, z: Tensor) -> Tensor:
        """|x − ½| = τ^½∫₀^z (2g)^−½."""
        return self._from_zero(z, torch.ones_like)

    def mass(self, z: Tensor) -> Tensor:
        """∫ of ρ between the centre and z, τ^½∫₀^z ρ(½)e^−y (2g)^−½."""
        return self._from_zero(z, self._decay)

    def _decay(self, z: Tensor) -> Tensor:
        return self.top * torch.exp(-z)

    def _slope(self, y: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        """y d/dy of τ^½∫₀^y f (2g)^−½."""
        return f(y) * (self.tau * y / (2 * self._ratio(y))).sqrt()

    def _from_zero(self, z: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        """τ^½∫₀^z f (2g)^−½ by the trapezoidal rule in v, y = z/(1 + e^v), which decays at both ends."""
        h = 0.2
        v = torch.arange(-40.0, 90 + math.log(60 / self.delta), h, dtype=z.dtype)
        y = z[..., None] * torch.special.expit(-v)
        return h * (self._slope(y, f) * torch.special.expit(v)).sum(-1)

    def z_at_distance(self, u: Tensor) -> Tensor:
        """The z with distance(z) = u."""
        return self._invert(torch.ones_like, u)

    def z_at_mass(self, mass: Tensor) -> Tensor:
        """The z with mass(z) = `mass` < ½."""
        return self._invert(self._decay, mass)

    def _invert(self, f: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
        """The z with τ^½∫₀^z f (2g)^−½ = value, in log z: bisection, then Newton."""
        low = torch.full_like(value, math.log(self.delta) - 78)
        high = (4 * (value**2 / self.tau).clamp_min(60)).log()
        start = bisect(lambda y: self._from_zero(y.exp(), f), value, low, high, 14)
        y = start
        for _ in range(5):
            z = y.exp()
            y = (y + (value - self._from_zero(z, f)) / self._slope(z, f)).maximum(start - 1).minimum(start + 1)
        return torch.where(value > 0, y.exp(), torch.zeros_like(y))


def bisect(f: Callable[[Tensor], Tensor], value: Tensor, low: Tensor, high: Tensor, iterations: int = 64) -> Tensor:
    """The x in [low, high] with f(x) = value, f increasing, elementwise; by default to rounding."""
    for _ in range(iterations):
        middle = 0.5 * (low + high)
        below = f(middle) < value
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return 0.5 * (low + high)


def gauss_legendre(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [−1, 1], float64, from the eigenvalues of the Jacobi matrix (Golub, Welsch 1969)."""
    k = torch.arange(1, n, dtype=torch.float64)
    off = k / (4 * k * k - 1).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return nodes, 2 * vectors[0] ** 2


def _cosh_ratio(a: Tensor, b: float) -> Tensor:
    """cosh(a)/cosh(b) for 0 ≤ a ≤ b, without overflow."""
    return torch.exp(a - b) * (1 + torch.exp(-2 * a)) / (1 + math.exp(-2 * b))


def _check(tau: float, lower: float, upper: float) -> None:
    if not tau > 0:
        raise ValueError(f"tau must be positive, not {tau}")
    if not upper > lower:
        raise ValueError(f"upper must exceed lower, not [{lower}, {upper}]")
