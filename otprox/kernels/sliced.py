"""The energy kernel through random lines."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .base import Kernel, Stationary


@dataclass(frozen=True, eq=False)
class Sliced(Stationary):
    """−|x − y| as a mean over random lines, −c_d·mean_l |θ_l·(x − y)| with c_d = √π·Γ((d + 1)/2)/Γ(d/2): unbiased.

    Sums cost a sort a line, O(directions·n log n). Each sum draws lines of its own; `k.fit(x)` draws them once and
    keeps them, so that a flow descends one energy. `pairwise.sliced_sum` gives the standard error over the lines.

    Bonneel et al., "Sliced and Radon Wasserstein barycenters" (2015); Hertrich et al., "Generative sliced MMD flows
    with Riesz kernels" (2024), theorem 1.
    """

    directions: int = 64
    generator: torch.Generator | None = field(default=None, kw_only=True)
    lines: Tensor | None = field(default=None, kw_only=True)  # (L, d) unit vectors, drawn by `fit`

    def __post_init__(self) -> None:
        if self.directions < 1:
            raise ValueError(f"Sliced needs at least one direction, not {self.directions}")
        if self.lines is None and self.generator is None:
            raise ValueError("Sliced draws random lines: it needs an explicit generator=torch.Generator()")

    def fit(self, x: Tensor) -> Kernel:
        """With lines drawn for the dimension of x, if it has none yet."""
        if self.lines is not None:
            return self
        shape = (self.directions, x.shape[-1])
        g = torch.randn(shape, generator=self.generator, dtype=x.dtype, device=x.device)
        return Sliced(self.directions, lines=g / g.norm(dim=-1, keepdim=True))

    def profile(self, z: Tensor) -> Tensor:
        lines = self.drawn(z)
        return -mean_width(z.shape[-1]) * (z @ lines.mT).abs().mean(-1)

    def indefinite(self, neutral: bool = False) -> str | None:
        return None if neutral else "Sliced is so only against charges of total 0"

    def drawn(self, x: Tensor) -> Tensor:
        """The lines, checked against points (…, d)."""
        if self.lines is None:
            raise TypeError("Sliced has no lines until it is fitted: k.fit(x) for particles x")
        if self.lines.shape[-1] != x.shape[-1]:
            raise ValueError(f"the lines live in dimension {self.lines.shape[-1]}, the points in {x.shape[-1]}")
        return self.lines.to(x)

    @property
    def curvatures(self) -> tuple[float, float]:
        return -math.inf, 0.0


def mean_width(d: int) -> float:
    """The c_d with |z| = c_d·E|θ·z| for θ uniform on the sphere: √π·Γ((d + 1)/2)/Γ(d/2)."""
    return math.sqrt(math.pi) * math.exp(math.lgamma((d + 1) / 2) - math.lgamma(d / 2))
