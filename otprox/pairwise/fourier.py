"""Trigonometric kernels, by the Fourier modes of the sources: O((m + n)·modes) in place of all pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..kernels.torus import Trigonometric
from .products import budget
from .sums import Sums
from .tiles import by_rows

Modes = tuple[Tensor, Tensor]  # Σ_j c_j cos(κ·y_j) and Σ_j c_j sin(κ·y_j), each (*batch, M, p)


@dataclass(frozen=True, eq=False)
class FourierSums(Sums):
    """Σ_l c_l cos(κ_l·(x − y))."""

    k: Trigonometric
    x: Tensor
    y: Tensor

    @property
    def how(self) -> str:
        return f"Fourier: {len(self.series[1])} modes, O((m + n)·modes)"

    def values(self, c: Tensor) -> Tensor:
        return self._back(self._modes(c), lambda a, b: (a, b))

    def slopes(self, b: Tensor) -> Tensor:
        waves = self.series[0]
        return self._back(self._modes(b), lambda a, b: (b * waves, -a * waves))

    def source_slopes(self, b: Tensor) -> Tensor:
        return -self.slopes(b)

    def divergences(self, v: Tensor) -> Tensor:
        a, b = ((t * self.series[0]).sum(-1, keepdim=True) for t in self._modes(v))
        return self._back((a, b), lambda a, b: (b, -a))

    def traces(self, b: Tensor) -> Tensor:
        squares = self.series[0].square().sum(-1, keepdim=True)
        return self._back(self._modes(b), lambda a, b: (squares * a, squares * b))

    @cached_property
    def series(self) -> tuple[Tensor, Tensor]:
        return self.k.series(self.x)

    @cached_property
    def block(self) -> int:
        """Points at a time, so that what lies between stays in a cache."""
        return max(1, budget(self.x) // (4 * len(self.series[1])))

    def _modes(self, c: Tensor) -> Modes:
        waves, y = self.series[0], self.y
        if torch.is_grad_enabled() and (y.requires_grad or c.requires_grad) and y.shape[-2] > self.block:
            rows = max(1, budget(y) // y[..., 0].numel())
            return by_rows(_analysis, rows, -2, waves, y, c).tensor_split(2, -1)  # type: ignore[return-value]
        blocks = zip(y.split(self.block, -2), c.split(self.block, -2), strict=True)
        total = sum((_features(some, waves) @ weights for some, weights in blocks), y.new_zeros(()))
        return total.tensor_split(2, -2)  # type: ignore[return-value]

    def _back(self, modes: Modes, f: Callable[[Tensor, Tensor], Modes]) -> Tensor:
        """Σ_l c_l·(cos(κ_l·x) a_l + sin(κ_l·x) b_l) with (a, b) = f(modes)."""
        waves, c = self.series
        both = torch.cat([c[:, None] * t for t in f(*modes)], -2)
        return by_rows(_synthesis, self.block, -2, self.x, waves, both)


def _analysis(waves: Tensor, y: Tensor, c: Tensor) -> Tensor:
    phase = waves @ y.mT
    return torch.cat([phase.cos() @ c, phase.sin() @ c], -1)


def _synthesis(x: Tensor, waves: Tensor, modes: Tensor) -> Tensor:
    return _features(x, waves).mT @ modes


def _features(x: Tensor, waves: Tensor) -> Tensor:
    """cos κ·x, below it sin κ·x, (*batch, 2M, m); on a circle, where the κ are consecutive, by the sums of angles."""
    if waves.shape[-1] > 1 or len(waves) == 1:
        phase = waves @ x.mT
        return torch.cat([phase.cos(), phase.sin()], -2)
    first, step = (x * waves[0])[..., 0], (x * (waves[1] - waves[0]))[..., 0]
    c, s, cos, sin = first.cos(), first.sin(), step.cos(), step.sin()
    rows = [(c, s)]
    for _ in waves[1:]:
        c, s = c * cos - s * sin, s * cos + c * sin
        rows.append((c, s))
    return torch.stack([c for c, _ in rows] + [s for _, s in rows], -2)
