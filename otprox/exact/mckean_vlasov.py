"""The linear McKean–Vlasov equation: its Gaussian law, and the distance of its N particles from independent copies."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..measures import Gaussian


@dataclass(frozen=True)
class LinearMeanField:
    """dX = −a·X dt − b(X − EX)dt + (2·noise)^½dB in R^d, the flow of noise·Entropy + ½a∫|x|²dμ + ½b·½∬|x − y|²dμdμ.

    Its N particles have X̄ = ΣXⱼ/N in place of EX. a ≥ 0 confines and a + b > 0; all in float64.

    >>> model = LinearMeanField(1.0, 2.0)
    >>> round(10 * model.chaos(10, 1.0, variance=0.5), 12), round(10 * model.chaos(10), 12)
    (0.266078817078, 0.333333333333)
    """

    a: float
    b: float
    noise: float = 1.0

    def __post_init__(self) -> None:
        if not (self.a >= 0 and self.a + self.b > 0 and self.noise > 0) or not math.isfinite(self.a + self.b):
            raise ValueError(
                f"LinearMeanField needs a ≥ 0, a + b > 0 and noise > 0, not a = {self.a}, b = {self.b}, "
                f"noise = {self.noise}"
            )

    def law(self, start: Gaussian, t: float) -> Gaussian:
        """N(m₀e^{−at}, S₀e^{−2ct} + (noise/c)(1 − e^{−2ct})I) with c = a + b, from N(m₀, S₀)."""
        c = self.a + self.b
        rest = -math.expm1(-2 * c * t) * self.noise / c * start.identity()
        return start.with_state(mean=start.mean * math.exp(-self.a * t), cov=start.cov * math.exp(-2 * c * t) + rest)

    def stationary(self, dim: int = 1) -> Gaussian:
        """N(0, noise/(a + b)·I); ValueError for a = 0, where the mean stays where it is."""
        if self.a == 0:
            raise ValueError("a = 0 keeps the mean of the start: there is no single stationary law; use law(start, t)")
        eye = torch.eye(dim, dtype=torch.float64)
        return Gaussian(torch.zeros(dim, dtype=torch.float64), self.noise / (self.a + self.b) * eye)

    def chaos(self, n: int, t: float = math.inf, *, variance: float = 0.0, dim: int = 1) -> float:
        """E|Xᵢ − X̄ᵢ|² at time t, of a particle and the independent copy with its start and its noise: 1/n exactly.

        `variance` is that of each coordinate at t = 0. The difference D is the same for all i, D' = −(a + b)D + b·e
        with e = ΣXⱼ/n − EX an Ornstein–Uhlenbeck process, so three moments solve a linear equation. At t = ∞ they give
        noise·b²/(n·a(a + b)(2a + b)).
        """
        a, b, c = self.a, self.b, self.a + self.b
        if t == math.inf:
            return dim * self.noise * b * b / (n * a * c * (a + c)) if a else math.inf
        rates = [[-2 * a, 0, 0, 2 * self.noise], [b, -a - c, 0, 0], [0, 2 * b, -2 * c, 0], [0, 0, 0, 0]]
        flow = torch.linalg.matrix_exp(t * torch.tensor(rates, dtype=torch.float64))
        start = torch.tensor([variance, 0, 0, 1], dtype=torch.float64)  # of e², eD, D², and 1, times n
        return dim * (flow @ start)[2].item() / n
