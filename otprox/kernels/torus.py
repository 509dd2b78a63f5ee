"""Kernels on a torus, by their Fourier modes: sums cost O((m + n)·modes)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product

from torch import Tensor

from ..domains import Domain
from .base import Stationary, positive


class Trigonometric(Stationary):
    """Σ_l c_l cos(κ_l·(x − y)), a finite sum over wave vectors."""

    period: float

    @abstractmethod
    def waves(self, dim: int) -> tuple[list[list[float]], list[float]]:
        """Wave vectors κ_l, one of each pair ±κ, and their coefficients c_l, on a torus of `dim` axes."""

    def series(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """κ (M, d) and c (M,) for points (…, d), in their dtype."""
        waves, coefficients = self.waves(like.shape[-1])
        return like.new_tensor(waves), like.new_tensor(coefficients)

    def profile(self, z: Tensor) -> Tensor:
        waves, coefficients = self.series(z)
        return (z @ waves.mT).cos() @ coefficients

    def check_domain(self, domain: Domain) -> None:
        lengths = _axes(getattr(domain, "period", ()))
        closed = getattr(domain, "periodic", (True,) * len(lengths))
        for length in (p for p, periodic in zip(lengths, closed, strict=True) if periodic):
            turns = length / self.period
            if round(turns) < 1 or abs(turns - round(turns)) > 1e-6:
                raise ValueError(
                    f"{type(self).__name__} has period {self.period:.6g}, and the domain {length:.6g}, which is no "
                    "multiple of it: take a Torus of that period, or a Grid of that length with periodic=True"
                )

    @property
    def curvatures(self) -> tuple[float, float]:
        """On a circle."""
        waves, coefficients = self.waves(1)
        bound = sum(k * k * abs(c) for (k,), c in zip(waves, coefficients, strict=True))
        return -bound, bound


@dataclass(frozen=True)
class Cosine(Trigonometric):
    """Σ_k c_k cos(k(x − y)), k = 1, 2, …, on a circle of length 2π; points are angles (*batch, n, 1).

    >>> import math, torch
    >>> Cosine([-1.0])(torch.tensor([[0.0], [math.pi]]))
    tensor([-1.,  1.])
    """

    coefficients: tuple[float, ...]
    period: float = field(default=2 * math.pi, init=False, repr=False)

    def __init__(self, coefficients: Sequence[float]) -> None:
        if not isinstance(coefficients, Iterable) or isinstance(coefficients, str):
            raise TypeError(f"Cosine needs a sequence of coefficients (c_1, c_2, …), not {coefficients!r}")
        values = tuple(float(c) for c in coefficients)
        if not values or not all(math.isfinite(c) for c in values):
            raise ValueError(f"Cosine needs finite coefficients (c_1, c_2, …), at least one; got {coefficients!r}")
        object.__setattr__(self, "coefficients", values)
        object.__setattr__(self, "period", 2 * math.pi)

    def waves(self, dim: int) -> tuple[list[list[float]], list[float]]:
        if dim != 1:
            raise ValueError(f"Cosine lives on a circle: points are (*batch, n, 1), not (*batch, n, {dim})")
        return [[float(k)] for k in range(1, len(self.coefficients) + 1)], list(self.coefficients)

    def indefinite(self, neutral: bool = False) -> str | None:
        return f"{self} has a negative coefficient" if min(self.coefficients) < 0 else None


@dataclass(frozen=True)
class Sobolev(Trigonometric):
    """Σ_{0 < |k|_∞ ≤ modes} |κ|^(−2s)·e^{iκ·(x − y)}, κ = 2πk/period: the dual H^(−s) norm on a torus, truncated.

    ½∬ k dμdμ = ½ Σ |κ|^(−2s)|c_k|² with c_k = ∫ e^{−iκ·x} dμ. Truncation gives particles a finite energy for every s,
    and pairs i = j count; without it the energy of particles is finite only for 2s > d. Modes beyond the last are
    not seen: structure finer than period/(2·modes) stays. There are (2·modes + 1)^d/2 of them.
    """

    s: float
    period: float = 2 * math.pi
    modes: int = 32

    def __post_init__(self) -> None:
        positive(self.s, "Sobolev needs an order s > 0")
        positive(self.period, "Sobolev needs a period > 0")
        if self.modes < 1:
            raise ValueError(f"Sobolev needs at least one mode, not {self.modes}")

    def waves(self, dim: int) -> tuple[list[list[float]], list[float]]:
        unit = 2 * math.pi / self.period
        waves = [[unit * k for k in wave] for wave in half_lattice(self.modes, dim)]
        return waves, [2 * sum(k * k for k in wave) ** -self.s for wave in waves]

    def error(self, dim: int = 1) -> float:
        """A bound on the sum of the modes left out, hence on |k − k_∞|; infinite for 2s ≤ d.

        Shells |k|_∞ = r hold at most 2d(2r + 1)^(d−1) modes, of |κ| ≥ 2πr/period.
        """
        if 2 * self.s <= dim:
            return math.inf
        shell = 2 * dim * 3 ** (dim - 1) * (2 * math.pi / self.period) ** (-2 * self.s)  # (2r + 1) ≤ 3r
        return shell * self.modes ** (dim - 2 * self.s) / (2 * self.s - dim)


@dataclass(frozen=True)
class PeriodicRBF(Trigonometric):
    """Σ_m exp(−|x − y + m·period|²/(2·width²)), the RBF kernel summed over its images, through its Fourier modes.

    With c_k = (2π)^{d/2}(width/period)^d·exp(−½·width²|κ|²). All modes |k|_∞ ≤ `modes` are kept; unless given, so many
    that those left out are below 1e-14 of the largest. `error` bounds what truncation costs.
    """

    width: float
    period: float = 2 * math.pi
    modes: int | None = None

    def __post_init__(self) -> None:
        positive(self.width, "PeriodicRBF needs a width > 0")
        positive(self.period, "PeriodicRBF needs a period > 0")
        if self.modes is None:
            last = math.sqrt(2 * math.log(1e14)) * self.period / (2 * math.pi * self.width)
            object.__setattr__(self, "modes", math.ceil(last))
        elif self.modes < 1:
            raise ValueError(f"PeriodicRBF needs at least one mode, not {self.modes}")

    def waves(self, dim: int) -> tuple[list[list[float]], list[float]]:
        assert self.modes is not None
        unit = 2 * math.pi / self.period
        waves = [[0.0] * dim] + [[unit * k for k in wave] for wave in half_lattice(self.modes, dim)]
        scale = (math.sqrt(2 * math.pi) * self.width / self.period) ** dim
        decay = [math.exp(-0.5 * self.width**2 * sum(k * k for k in wave)) for wave in waves]
        return waves, [scale * decay[0]] + [2 * scale * value for value in decay[1:]]

    def error(self, dim: int = 1) -> float:
        """The sum of the modes left out, which is the largest |k − k_∞|: at x = y, since all are positive.

        A sum over |k|_∞ ≤ modes is the power of that on one axis.
        """
        assert self.modes is not None
        scale = math.sqrt(2 * math.pi) * self.width / self.period
        rate = 0.5 * (2 * math.pi * self.width / self.period) ** 2
        kept = scale * (1 + 2 * sum(math.exp(-rate * k * k) for k in range(1, self.modes + 1)))
        more = range(self.modes + 1, self.modes + 2 + math.ceil(math.sqrt(750 / rate)))
        tail = 2 * scale * sum(math.exp(-rate * k * k) for k in more)
        return sum(math.comb(dim, a) * tail**a * kept ** (dim - a) for a in range(1, dim + 1))


def half_lattice(modes: int, dim: int) -> list[tuple[int, ...]]:
    """One of each pair ±k of the integer vectors with 0 < |k|_∞ ≤ modes: those whose first entry ≠ 0 is positive."""
    zero = (0,) * dim
    return [k for k in product(range(-modes, modes + 1), repeat=dim) if k > zero]


def _axes(period: float | tuple[float, ...]) -> tuple[float, ...]:
    return tuple(period) if isinstance(period, tuple | list) else (period,)
