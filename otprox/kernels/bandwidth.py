"""Rules for the width of a kernel, as values: fixed, or by the median distance of the particles."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .base import positive


class Bandwidth(ABC):
    """A rule for a width: `RBF(Median())` has none until it is fitted to particles, by `k.fit(x)` or by each sum.

    Sums over pairs fit such a kernel to their sources each time; `k.fit(x)` keeps the width of x for good. A width is a
    constant: nothing is differentiated through it.
    """

    @abstractmethod
    def width(self, x: Tensor) -> Tensor:
        """The widths for particles x (*batch, n, d): (*batch,), positive."""

    @abstractmethod
    def explain(self, x: Tensor) -> str:
        """The width for x (n, d), and why."""


@dataclass(frozen=True)
class Fixed(Bandwidth):
    """The same width h for all particles."""

    h: float

    def __post_init__(self) -> None:
        positive(self.h, "Fixed needs a width > 0")

    def width(self, x: Tensor) -> Tensor:
        return x.new_full(x.shape[:-2], self.h)

    def explain(self, x: Tensor) -> str:
        return f"width {self.h:.4g}, as given"


@dataclass(frozen=True)
class Median(Bandwidth):
    """`factor` times the median distance of two particles; the factor is 1/√(2·log(n + 1)) unless given.

    That factor is the balance of Stein variational gradient descent: n particles at the median distance weigh
    n·exp(−med²/2h²) ≈ 1 together, as much as a particle on itself. With more than `subsample` particles the median is
    over every k-th, with k = ⌈n/subsample⌉. It is found once for each tensor x. Particles that are all equal, or half
    of whose distances are 0, are an error.

    Liu and Wang, "Stein variational gradient descent" (2016), section 5 (there exp(−r²/h) and h = med²/log n).

    >>> from otprox.kernels import RBF
    >>> x = torch.tensor([[0.0], [1.0], [3.0]])
    >>> RBF(Median(factor=0.5)).fit(x)
    RBF(width=1.0)
    >>> print(Median().explain(x))
    width 1.201: median distance 2 of 3 pairs, over √(2·log 4)
    """

    subsample: int = field(default=500, kw_only=True)
    factor: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.subsample < 2:
            raise ValueError(f"Median needs a subsample of at least 2 particles, not {self.subsample}")
        if self.factor is not None:
            positive(self.factor, "Median needs a factor > 0")

    def width(self, x: Tensor) -> Tensor:
        known = _MEDIANS.setdefault(x, {})
        key = (self.subsample, x._version)
        if key not in known:
            known.clear()
            known[key] = self._median(x)
        return known[key] * self._factor(x.shape[-2])

    def explain(self, x: Tensor) -> str:
        n, width = x.shape[-2], self.width(x)
        step = self._step(n)
        kept = len(range(0, n, step))
        pairs = kept * (kept - 1) // 2
        source = f" among every {step}th of {n} particles" if step > 1 else ""
        factor = f", over √(2·log {n + 1})" if self.factor is None else f", times {self.factor:.4g}"
        median = width.item() / self._factor(n)
        return f"width {width.item():.4g}: median distance {median:.4g} of {pairs} pairs{source}{factor}"

    def _factor(self, n: int) -> float:
        return (2 * math.log(n + 1)) ** -0.5 if self.factor is None else self.factor

    def _step(self, n: int) -> int:
        return -(-n // self.subsample)

    def _median(self, x: Tensor) -> Tensor:
        n = x.shape[-2]
        if n < 2:
            raise ValueError("a median distance needs at least 2 particles; give the kernel a number as its width")
        some = x.detach()[..., :: self._step(n), :]
        i, j = torch.triu_indices(some.shape[-2], some.shape[-2], 1, device=x.device)
        distances = torch.cdist(some, some, compute_mode="donot_use_mm_for_euclid_dist")[..., i, j]
        median = distances.median(-1).values
        if not (median > 0).all():
            _refuse(median, distances)
        return median


_MEDIANS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # x -> {(subsample, version of x): median}


def _refuse(median: Tensor, distances: Tensor) -> None:
    if distances.isnan().any():
        raise ValueError("the median distance is NaN: a particle is not finite")
    equal = (distances == 0).all(-1).any()
    what = "all particles are equal" if equal else "more than half of the pairs of particles coincide"
    raise ValueError(f"the median distance is 0, since {what}; give the kernel a number > 0 as its width")
