"""Radial kernels: each reduction as terms of one sum over pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import Radial, Riesz
from .engines import Choice
from .radial import radial_sum
from .sums import Sums
from .terms import Term


@dataclass(frozen=True, eq=False)
class RadialSums(Sums):
    """k = f(|x − y|²), by matrix products in tiles, or by KeOps."""

    k: Radial
    x: Tensor
    y: Tensor
    choice: Choice

    @property
    def how(self) -> str:
        return str(self.choice)

    def values(self, c: Tensor) -> Tensor:
        return self._sum(Term(0, c))

    def slopes(self, b: Tensor) -> Tensor:
        self._check_slope()
        return self._sum(Term(1, b=2 * b))

    def source_slopes(self, b: Tensor) -> Tensor:
        return self._sum(Term(1, b=-2 * b))

    def divergences(self, v: Tensor) -> Tensor:
        """2 Σ_j f'·(x_i − y_j)·v_j."""
        x, y = self._centred()
        side = torch.cat([x, torch.ones_like(x[..., :1])], -1)
        return self._sum(Term(1, torch.full_like(v[..., :1], 2.0), factors=((side, _joined(v, y)),)))

    def traces(self, b: Tensor) -> Tensor:
        """−Σ_j b_j (2d·f' + 4s·f'')."""
        if self.k.resolution == 0:
            raise ValueError(
                f"{self.k} has no second derivative at x = y, so tr ∇₁∇₂k is infinite there; a kernel that is smooth "
                "at 0 would work, such as RBF or InverseMultiquadric"
            )
        squares = _squares(*self._centred())
        return self._sum(Term(1, -2 * self.x.shape[-1] * b), Term(2, -4 * b, factors=(squares,)))

    def stein(self, c: Tensor, b: Tensor) -> Tensor:
        self._check_slope()
        return self._sum(Term(0, c), Term(1, b=-2 * b))

    def _check_slope(self) -> None:
        """Particles may not coincide where the force between them is infinite."""
        if not (isinstance(self.k, Riesz) and self.k.r < 1 and self.x is self.y):
            return
        for item in self.x.detach().reshape(-1, *self.x.shape[-2:]):
            if len(item.unique(dim=0)) < len(item):
                raise ValueError(
                    f"{self.k} has an infinite slope at x = y, and two particles are at the same place; an exponent "
                    "r ≥ 1 would work"
                )

    def _centred(self) -> tuple[Tensor, Tensor]:
        centre = self.y.detach().mean(-2, keepdim=True)
        return self.x - centre, self.y - centre

    def _sum(self, *terms: Term) -> Tensor:
        return radial_sum(self.k, self.x, self.y, terms, self.choice.engine)


def _joined(v: Tensor, y: Tensor) -> Tensor:
    """The v̂_j with (x_i − y_j)·v_j = [x_i, 1]·v̂_j."""
    return torch.cat([v, -(y * v).sum(-1, keepdim=True)], -1)


def _squares(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """|x_i − y_j|² = u_i·v_j."""
    xx, yy = (t.square().sum(-1, keepdim=True) for t in (x, y))
    return torch.cat([xx, torch.ones_like(xx), -2 * x], -1), torch.cat([torch.ones_like(yy), yy, y], -1)
