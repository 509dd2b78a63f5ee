"""The Landau equation ∂t f = div ∫ A(v − v*)(f*∇f − f∇*f*) dv*, A(z) = C|z|^{γ+2}(I − ẑẑᵀ), in closed form.

Maxwell molecules are γ = 0, Coulomb is γ = −3 in d = 3; C is `strength`. Entropies are H = ∫ f log f.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..measures import Grid, Particles


@dataclass(frozen=True)
class BKW:
    """The solution of Bobylev and of Krook and Wu for Maxwell molecules, of mass 1, mean 0 and covariance I.

    f = (2πK)^{−d/2} e^{−|v|²/2K} [1 − d(1 − K)/(2K) + (1 − K)|v|²/(2K²)],  K(t) = 1 − (1 − K₀)e^{−2(d−1)Ct},

    non-negative while K ≥ d/(d + 2), the default of K₀. Times before that are refused: with d = 3, C = 1/24 and K₀ = 0,
    those before 6 log(5/2). Velocities v are (…, d), times are numbers (Krook, Wu 1977; Carrillo, Hu, Wang, Wu 2020).

    With `width`, f is f∗N(0, width²·I), which blobs of particles of the law stand for: a law of the same form, of the
    Gaussian's temperature S = K + width² in place of K and the bracket 1 − d(1 − K)/(2S) + (1 − K)|v|²/(2S²).

    >>> round(BKW(2, 1 / 16).entropy(0.0), 9)
    -2.721945551
    """

    d: int = 2
    strength: float = 1 / 16
    K0: float | None = None

    def __post_init__(self) -> None:
        _check(self.d, self.strength)
        if self.K0 is not None and not self.K0 <= 1:
            raise ValueError(f"K0 must be at most 1, where f is the Maxwellian; got {self.K0}")

    def K(self, t: float) -> float:
        """The temperature of the Gaussian factor, in [d/(d + 2), 1]."""
        least = self.d / (self.d + 2)
        start = least if self.K0 is None else self.K0
        K = 1 - (1 - start) * math.exp(-2 * (self.d - 1) * self.strength * t)
        if not K >= least - 1e-12:
            raise ValueError(f"at t = {t}, K = {K:.6g} is under d/(d + 2) = {least:.6g} and f would be negative")
        return max(K, least)

    def log_density(self, v: Tensor, t: float, *, width: float = 0.0) -> Tensor:
        """log f(v), (…); −∞ where f vanishes, at v = 0 if K = d/(d + 2)."""
        S, a, q = self._form(t, width)
        s = self._square(v) / (2 * S)
        return (a + q * s).log() - s - self.d / 2 * math.log(2 * math.pi * S)

    def density(self, v: Tensor, t: float, *, width: float = 0.0) -> Tensor:
        """f(v), (…)."""
        return self.log_density(v, t, width=width).exp()

    def score(self, v: Tensor, t: float, *, width: float = 0.0) -> Tensor:
        """∇ log f(v), (…, d); infinite where f vanishes."""
        S, a, q = self._form(t, width)
        slope = (q / (a + q * self._square(v) / (2 * S)) - 1) / S
        return slope[..., None] * v

    def particles(self, grid: Grid, t: float, *, like: Tensor | None = None) -> Particles:
        """One particle at the centre of every cell of the grid, weighed by f there; a tail beyond the grid is left out.

        In the dtype and on the device of `like`.

        >>> BKW().particles(Grid((-4, -4), (4, 4), (80, 80)), t=0.0).x.shape
        torch.Size([6400, 2])
        """
        v = grid.points(torch.empty(0) if like is None else like)
        return Particles(v, torch.softmax(self.log_density(v, t), -1))

    def velocity(self, v: Tensor, t: float) -> Tensor:
        """U with ∂t f + div(fU) = 0, (…, d): −∫A(v − v*)(∇log f − ∇log f*) f* dv* = −(d − 1)C(v + ∇log f(v))."""
        return -(self.d - 1) * self.strength * (v + self.score(v, t))

    def moment(self, m: int, t: float, *, width: float = 0.0) -> float:
        """E|v|^{2m} = (2K)^m (d/2)(d/2 + 1)⋯(d/2 + m − 1) (1 + m(1 − K)/K)."""
        S, _, q = self._form(t, width)
        rising = math.prod(self.d / 2 + i for i in range(m))
        return (2 * S) ** m * rising * (1 + m * q)

    def entropy(self, t: float, *, width: float = 0.0) -> float:
        """H = −d/2 log(2πK) − E|v|²/2K + E log(bracket), the last by quadrature in |v|²/2K."""
        S, a, q = self._form(t, width)
        s, w = self._quadrature
        bracket = a + q * s
        expected = float((w * bracket * bracket.log()).sum())
        return expected - self.moment(1, t, width=width) / (2 * S) - self.d / 2 * math.log(2 * math.pi * S)

    def fisher(self, t: float, *, width: float = 0.0) -> float:
        """I = ∫|∇f|²/f, which is −2 times the derivative of the entropy in width²."""
        S, a, q = self._form(t, width)
        s, w = self._quadrature
        bracket = a + q * s
        return float((w * s * (bracket - q) ** 2 / bracket).sum()) * 2 / S

    def entropy_rate(self, t: float) -> float:
        """dH/dt = −(d − 1)C(I − d)."""
        return radial_entropy_rate(self.fisher(t), self.d, strength=self.strength)

    def _square(self, v: Tensor) -> Tensor:
        if v.shape[-1] != self.d:
            raise ValueError(f"v must be (…, {self.d}); got {tuple(v.shape)}")
        return v.square().sum(-1)

    def _form(self, t: float, width: float = 0.0) -> tuple[float, float, float]:
        """(S, a, q): f is N(0, S·I) times the bracket a + q|v|²/2S."""
        S = self.K(t) + width**2
        q = (1 - self.K(t)) / S
        return S, max(1 - self.d * q / 2, 0.0), q

    @cached_property
    def _quadrature(self) -> tuple[Tensor, Tensor]:
        """Nodes s and weights of s^{d/2−1}e^{−s}/Γ(d/2), s = exp(x − e^{−x}): good for log s at 0."""
        x = torch.linspace(-4.5, 5.0, 1901, dtype=torch.float64)
        log_s = x - torch.exp(-x)
        s = log_s.exp()
        w = torch.exp(self.d / 2 * log_s - s - math.lgamma(self.d / 2)) * (1 + torch.exp(-x))
        return s, w * (x[1] - x[0])


def covariance(P: Tensor, t: float, *, strength: float = 1.0, mass: float = 1.0) -> Tensor:
    """Maxwell molecules, any f: dP/dt = 4Cρ(tr P I − dP), so P(t) = T I + (P − T I)e^{−4dCρt} with T = tr P/d.

    P (*batch, d, d) is the covariance at time 0, ρ the mass.

    >>> covariance(torch.diag(torch.tensor([2.4, 0.3, 0.3])), 1.0, strength=1 / 24)[0, 0]
    tensor(1.8491)
    """
    d = P.shape[-1]
    _check(d, strength)
    if P.ndim < 2 or P.shape[-2] != d:
        raise ValueError(f"P must be (*batch, d, d); got {tuple(P.shape)}")
    rest = torch.eye(d, dtype=P.dtype, device=P.device) * (P.diagonal(dim1=-2, dim2=-1).sum(-1) / d)[..., None, None]
    return rest + (P - rest) * math.exp(-4 * d * strength * mass * t)


def radial_law(t: float, d: int, *, strength: float = 1.0) -> tuple[float, float]:
    """(e^{−at}, √(1 − e^{−2at})) with a = (d − 1)C: radial f of covariance I and Maxwell molecules.

    The equation is then that of Ornstein and Uhlenbeck, v(t) = e^{−at}v(0) + √(1 − e^{−2at}) Z in law, Z normal.
    """
    _check(d, strength)
    decay = math.exp(-(d - 1) * strength * t)
    return decay, math.sqrt(-math.expm1(-2 * (d - 1) * strength * t))


def radial_fourth_moment(m4: float, t: float, d: int, *, strength: float = 1.0) -> float:
    """E|v|⁴ of the same from its value at time 0: to d(d + 2) at the rate 4(d − 1)C."""
    decay, _ = radial_law(t, d, strength=strength)
    return d * (d + 2) + (m4 - d * (d + 2)) * decay**4


def radial_entropy_rate(fisher: float, d: int, *, strength: float = 1.0) -> float:
    """dH/dt = −(d − 1)C(I − d) of the same, I its Fisher information."""
    _check(d, strength)
    return -(d - 1) * strength * (fisher - d)


def coulomb_rates(parallel: float, perpendicular: float, *, strength: float = 1.0) -> tuple[float, float]:
    """(dP∥/dt, dP⊥/dt) of a bi-Maxwellian of mass 1 under Coulomb collisions, γ = −3 in d = 3, at that instant.

    dP∥/dt = 2ν(P⊥ − P∥), dP⊥/dt = −ν(P⊥ − P∥), with A = P⊥/P∥ − 1 and
    ν = C π^{−1/2} P∥^{−3/2} A^{−2} [−3 + (A + 3) arctan(√A)/√A], artanh(√−A)/√−A if A < 0 (NRL Plasma Formulary).
    """
    _check(3, strength)
    if not (0 < parallel < math.inf and 0 < perpendicular < math.inf):
        raise ValueError(f"temperatures must be positive and finite; got {parallel} and {perpendicular}")
    nu = strength / math.sqrt(math.pi) * parallel**-1.5 * _anisotropy(perpendicular / parallel - 1)
    gap = perpendicular - parallel
    return 2 * nu * gap, -nu * gap


def _anisotropy(A: float) -> float:
    """A^{−2}[−3 + (A + 3)arctan(√A)/√A], by its series near 0, where the formula cancels."""
    if abs(A) < 0.1:
        return sum((-A) ** k * (4 * k + 4) / ((2 * k + 5) * (2 * k + 3)) for k in range(20))
    root = math.sqrt(abs(A))
    ratio = (math.atan(root) if A > 0 else math.atanh(root)) / root
    return (-3 + (A + 3) * ratio) / A**2


def _check(d: int, strength: float) -> None:
    if d < 2:
        raise ValueError(f"Landau collisions need d ≥ 2: on the line A = 0; got d = {d}")
    if not 0 < strength < math.inf:
        raise ValueError(f"strength must be positive and finite; got {strength}")
