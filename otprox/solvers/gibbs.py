"""The Gibbs kernel exp(−cost/reg) between two supports: the primitive through which scaling sees a representation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..pairwise import Engine, log_gaussian_sum


class Gibbs(Protocol):
    """K(x, y) = exp(−cost(x, y)/reg) against the base measures m of two supports, on logarithms (*batch, n)."""

    @property
    def volumes(self) -> tuple[Tensor | float, Tensor | float]:
        """m of the first and of the second support, (*batch, n), or one number for all points."""
        ...

    def apply(self, f: Tensor) -> Tensor:
        """log ∫ K(x, y) exp(f(y)) dm(y) at the points x of the first support."""
        ...

    def adjoint(self, f: Tensor) -> Tensor:
        """log ∫ K(x, y) exp(f(x)) dm(x) at the points y of the second support."""
        ...


@dataclass(frozen=True, eq=False)
class CloudKernel:
    """exp(−|x − y|²/reg) between points x (*batch, n, d) and y (*batch, m, d), memory linear in n + m.

    `volumes` are the base measures of the points: cell volumes (*batch, n), or 1 to count them.
    """

    x: Tensor
    y: Tensor
    reg: float
    volumes: tuple[Tensor | float, Tensor | float] = (1.0, 1.0)
    engine: Engine = "auto"

    def apply(self, f: Tensor) -> Tensor:
        return self._sum(self.x, self.y, against(f, self.volumes[1]))

    def adjoint(self, f: Tensor) -> Tensor:
        return self._sum(self.y, self.x, against(f, self.volumes[0]))

    def _sum(self, x: Tensor, y: Tensor, f: Tensor) -> Tensor:
        return log_gaussian_sum(x, y, f, (self.reg / 2) ** 0.5, engine=self.engine)


def against(f: Tensor, volume: Tensor | float) -> Tensor:
    """The logarithm of eᶠ·m."""
    return f + volume.log() if isinstance(volume, Tensor) else f
