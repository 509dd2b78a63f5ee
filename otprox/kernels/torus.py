"""Kernels on a torus, by their Fourier modes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..domains import Domain
from .base import Stationary

BLOCK = {"cpu": 1 << 15}  # points at a time, so that what lies between stays in the cache


@dataclass(frozen=True)
class Cosine(Stationary):
    """Σ_k c_k cos(k(x − y)), k = 1, 2, …, on a circle of length 2π; points are angles (*batch, n, 1).

    Sums go through the Fourier modes of the sources: O(n·modes) in place of all pairs. A domain whose period is no
    multiple of 2π is refused.

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

    def check_domain(self, domain: Domain) -> None:
        lengths = getattr(domain, "period", ())
        lengths = lengths if isinstance(lengths, tuple) else (lengths,)
        closed = getattr(domain, "periodic", (True,) * len(lengths))
        for length in (p for p, periodic in zip(lengths, closed, strict=True) if periodic):
            turns = length / (2 * math.pi)
            if round(turns) < 1 or abs(turns - round(turns)) > 1e-6:
                raise ValueError(
                    f"Cosine has period 2π = {2 * math.pi:.6g}, and the domain {length:.6g}, which is no multiple of "
                    "it: take Torus(2 * math.pi), or Grid(0, 2 * math.pi, n, periodic=True), and angles for points"
                )

    def convolve(self, x: Tensor, y: Tensor, w: Tensor, domain: Domain | None = None) -> Tensor | None:
        return self._sums(x, y, w, domain, lambda k, even, odd, cos, sin: even * cos + odd * sin)

    def convolve_slope(self, x: Tensor, y: Tensor, w: Tensor, domain: Domain | None = None) -> Tensor | None:
        return self._sums(x, y, w, domain, lambda k, even, odd, cos, sin: (k * odd) * cos - (k * even) * sin)[..., None]

    def _sums(self, x: Tensor, y: Tensor, w: Tensor, domain: Domain | None, term: Callable[..., Tensor]) -> Tensor:
        """Σ_k term(k, c_k Σ_j w_j cos ky_j, c_k Σ_j w_j sin ky_j, cos kx, sin kx), (*batch, m)."""
        if domain is not None:
            self.check_domain(domain)
        size = BLOCK.get(x.device.type, x.shape[-2] + y.shape[-2])
        parts = [self._modes(*block) for block in zip(y.split(size, -2), w.split(size, -1), strict=True)]
        modes = [
            (c * part[0], c * part[1]) for c, part in zip(self.coefficients, torch.stack(parts).sum(0), strict=True)
        ]
        return torch.cat([_series(modes, block, term) for block in x.split(size, -2)], -1)

    def _modes(self, y: Tensor, w: Tensor) -> Tensor:
        """Σ_j w_j cos ky_j and Σ_j w_j sin ky_j, (p, 2, *batch, 1)."""
        pairs = zip(self.coefficients, _harmonics(y), strict=False)
        return torch.stack([torch.stack([(w * part).sum(-1, keepdim=True) for part in pair]) for _, pair in pairs])

    def _angles(self, x: Tensor) -> Tensor:
        return _on_circle(x) * torch.arange(1, len(self.coefficients) + 1, dtype=x.dtype, device=x.device)


def _on_circle(x: Tensor) -> Tensor:
    if x.shape[-1] != 1:
        raise ValueError(f"Cosine lives on a circle: points are (*batch, n, 1), not {tuple(x.shape)}")
    return x


def _series(modes: list[tuple[Tensor, Tensor]], x: Tensor, term: Callable[..., Tensor]) -> Tensor:
    total: Tensor | None = None
    for (k, (even, odd)), (cos, sin) in zip(enumerate(modes, 1), _harmonics(x), strict=False):
        new = term(k, even, odd, cos, sin)
        total = new if total is None else total + new
    assert total is not None
    return total


def _harmonics(x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """cos kx and sin kx of points (*batch, n, 1), k = 1, 2, …, each (*batch, n), by the sums of angles."""
    angle = _on_circle(x)[..., 0]
    c, s = cos, sin = angle.cos(), angle.sin()
    while True:
        yield c, s
        c, s = c * cos - s * sin, s * cos + c * sin
