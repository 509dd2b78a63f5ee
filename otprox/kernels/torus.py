"""Kernels on a torus, by their Fourier modes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..domains import Domain, Torus
from .base import Stationary


@dataclass(frozen=True)
class Cosine(Stationary):
    """Σ_k c_k cos(k(x − y)), k = 1, 2, …, on a circle of length 2π; points are angles (*batch, n, 1).

    Sums go through the Fourier modes of the sources: O(n·modes) in place of all pairs.

    >>> Cosine([-1.0])(torch.tensor([[0.0], [math.pi]]))
    tensor([-1.,  1.])
    """

    coefficients: tuple[float, ...]

    def __init__(self, coefficients: Sequence[float]) -> None:
        values = tuple(float(c) for c in coefficients)
        if not values or not all(math.isfinite(c) for c in values):
            raise ValueError(f"Cosine needs finite coefficients (c_1, c_2, …), at least one; got {coefficients!r}")
        object.__setattr__(self, "coefficients", values)

    def profile(self, z: Tensor) -> Tensor:
        return self._angles(z).cos() @ z.new_tensor(self.coefficients)

    @property
    def curvatures(self) -> tuple[float, float]:
        bound = sum(k * k * abs(c) for k, c in enumerate(self.coefficients, 1))
        return -bound, bound

    def convolve(self, x: Tensor, y: Tensor, w: Tensor, domain: Domain | None = None) -> Tensor | None:
        if isinstance(domain, Torus) and not _divides(domain, 2 * math.pi):
            return None
        source, target = self._angles(y), self._angles(x)
        c = x.new_tensor(self.coefficients)
        even = c * (w[..., None, :] @ source.cos())[..., 0, :]
        odd = c * (w[..., None, :] @ source.sin())[..., 0, :]
        return (target.cos() @ even[..., None] + target.sin() @ odd[..., None])[..., 0]

    def _angles(self, x: Tensor) -> Tensor:
        if x.shape[-1] != 1:
            raise ValueError(f"Cosine lives on a circle: points are (*batch, n, 1), not {tuple(x.shape)}")
        return x * torch.arange(1, len(self.coefficients) + 1, dtype=x.dtype, device=x.device)


def _divides(domain: Torus, length: float) -> bool:
    """Whether a function with period `length` is one on the torus."""
    period = domain.period if isinstance(domain.period, tuple | list) else (domain.period,)
    return all(abs(p / length - round(p / length)) < 1e-6 and p > length / 2 for p in period)
