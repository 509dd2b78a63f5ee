"""Relative entropy KL(μ | π)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..measures import Gaussian
from .base import Composite, Functional
from .internal import Entropy
from .potential import Potential, Quadratic


@dataclass(frozen=True, eq=False)
class KL(Composite):
    """KL(μ | π) = ∫ log(dμ/dπ) dμ, as Potential(V) + Entropy() with V = −log π.

    target: a Gaussian (the value is then absolute), or a callable V = −log density up to a constant (then F is KL up
    to that constant).

    >>> round(KL(Gaussian([0.0], [[1.0]]))(Gaussian([10.0], [[100.0]])).item(), 3)
    97.197
    """

    target: Gaussian | Callable[[Tensor], Tensor]

    def __post_init__(self) -> None:
        if not isinstance(self.target, Gaussian) and not callable(self.target):
            raise TypeError(
                f"KL needs a Gaussian or a callable V = −log density, not a {type(self.target).__name__}. "
                "What would work for samples: MMD(kernel, Particles(x)); for a distribution p of torch: "
                "KL(lambda x: -p.log_prob(x))"
            )
        object.__setattr__(self, "_terms", ((1.0, Potential(_potential(self.target))), (1.0, Entropy())))

    @property
    def terms(self) -> tuple[tuple[float, Functional], ...]:
        terms: tuple[tuple[float, Functional], ...] = self._terms  # type: ignore[attr-defined]
        return terms


def _potential(target: Any) -> Callable[[Tensor], Tensor]:
    return Quadratic.of(target) if isinstance(target, Gaussian) else target
