"""The linear-quadratic mean-field game on the line, whose equilibrium Riccati's equation gives in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LinearQuadraticGame:
    """dX = v dt + √(2·viscosity) dB over [0, horizon] from N(mean, variance), at the least

        E ∫₀ᵀ ( ½v² + (cohesion/2)(X − m_t)² ) dt + (pull/2)·E(X_T − goal)²,

    where m_t is the mean of all players. At equilibrium v = −P(t)(x − m_t) + m′, P′ = P² − cohesion, P(T) = pull
    (Bensoussan, Sung, Yam and Yung 2016). With S(s) = sinh(s√c)/√c, C(s) = cosh(s√c) and D = C + pull·S at s = T − t,

        P = (pull·C + c·S)/D,    var = (D/D₀)²·variance + 2·viscosity·D²·(S₀/D₀ − S/D).

    `cohesion` = c and `viscosity` may be 0; then it is the implicit step of size T of (pull/2)(x − goal)².

    >>> game = LinearQuadraticGame(mean=1.0, variance=0.5, goal=-1.0, pull=2.0, horizon=1.0, cohesion=1.5)
    >>> round(game.value, 6), round(game.variance_at(1.0), 6)
    (1.6525, 0.025975)
    """

    mean: float
    variance: float
    goal: float
    pull: float
    horizon: float
    cohesion: float = 0.0
    viscosity: float = 0.0

    def __post_init__(self) -> None:
        if not (self.variance >= 0 and self.horizon > 0 and min(self.pull, self.cohesion, self.viscosity) >= 0):
            raise ValueError(
                f"a game needs variance, pull, cohesion and viscosity ≥ 0 and a positive horizon, not {self}"
            )

    def mean_at(self, t: float) -> float:
        """m_t, a straight line: no one pays for moving along with all others but by speed."""
        return self.mean - t * self.pull * (self.mean - self.goal) / (1 + self.pull * self.horizon)

    def gain(self, t: float) -> float:
        """P(t): the value function is u = (P/2)(x − m_t)² − m′·(x − m_t) + a number."""
        cosine, sine = self._hyperbolic(t)
        return (self.pull * cosine + self.cohesion * sine) / self._denominator(t)

    def variance_at(self, t: float) -> float:
        """The variance of the players at time t."""
        now, first = self._denominator(t), self._denominator(0.0)
        spread = self._hyperbolic(0.0)[1] / first - self._hyperbolic(t)[1] / now
        return (now / first) ** 2 * self.variance + 2 * self.viscosity * now**2 * spread

    @property
    def value(self) -> float:
        """What a player pays: pull·(mean − goal)²/(2(1 + pull·T)) + ½P(0)·variance + viscosity·log D₀."""
        travel = self.pull * (self.mean - self.goal) ** 2 / (2 * (1 + self.pull * self.horizon))
        return travel + self.gain(0.0) * self.variance / 2 + self.viscosity * math.log(self._denominator(0.0))

    def _denominator(self, t: float) -> float:
        cosine, sine = self._hyperbolic(t)
        return cosine + self.pull * sine

    def _hyperbolic(self, t: float) -> tuple[float, float]:
        """C and S at T − t."""
        root, s = math.sqrt(self.cohesion), self.horizon - t
        return math.cosh(root * s), math.sinh(root * s) / root if root * s > 1e-8 else s
