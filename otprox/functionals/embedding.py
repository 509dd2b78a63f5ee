"""The mean embedding of a measure in the space of a kernel, ∫k(·, y) dν(y), as a potential."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .. import pairwise
from ..domains import Domain, Euclidean
from ..kernels import Kernel, Stationary, Trigonometric
from ..measures import Density, Measure, Particles
from ..measures.base import check_alike
from ..measures.covariance import dense
from .base import differentiate
from .gaussian_smoothing import smoothed, smoothed_moments


@dataclass(frozen=True, eq=False)
class Embedding(ABC):
    """V(x) = ½∬ k dν dν − ∫ k(x, y) dν(y), so that ½‖μ − ν‖²_k = ½∬ k dμ dμ + ∫ V dμ.

    Called on points (*batch, n, d) it gives (*batch, n).
    """

    kernel: Kernel
    target: Any

    def __call__(self, x: Tensor) -> Tensor:
        self._check_points(x)
        return self.half_norm[..., None] - self.mean(x)

    @abstractmethod
    def mean(self, x: Tensor) -> Tensor:
        """∫ k(x, y) dν(y), (*batch, n)."""

    @abstractmethod
    def gradient(self, x: Tensor) -> Tensor:
        """∇V, (*batch, n, d)."""

    @cached_property
    @abstractmethod
    def half_norm(self) -> Tensor:
        """½∬ k dν dν, (*batch,)."""

    def check_domain(self, mu: Measure) -> None:
        """Refuse a measure on another domain; those of periodic kernels are compared with the kernel alone."""
        here, there = domain_of(self.target), domain_of(mu)
        periodic = isinstance(self.kernel, Trigonometric)
        if not (periodic or here == there or (here.straight and there.straight)):
            raise ValueError(
                f"MMD compares measures on one domain: the target lives on {here}, μ on {there}; give both the same, "
                "or take a kernel of that period such as kernels.Sobolev or kernels.PeriodicRBF"
            )

    def _on_own_cells(self, x: Tensor) -> bool:
        """Whether x are the cells of a target on a grid, and need no gradient."""
        if not isinstance(self.target, Density) or x.requires_grad:
            return False
        cells = self.target.grid.points(x)
        return x.shape[-2:] == cells.shape and bool((x == cells).all())

    def _check_points(self, x: Tensor) -> None:
        if x.shape[-1] != self.target.dim:
            raise ValueError(f"the target of MMD lives in dimension {self.target.dim}, μ in {x.shape[-1]}")
        check_alike(self.target.anchor, "the target of MMD", x)


@dataclass(frozen=True, eq=False)
class NodalEmbedding(Embedding):
    """Of particles, quantiles or the cells of a grid, each an atom: sums over pairs by the kernel's own route.

    Abstract but for its two leaves: `SumEmbedding`, and `MixtureEmbedding` where Gaussian expectations are known.
    """

    def mean(self, x: Tensor) -> Tensor:
        if self._by_fft(x):
            return self.target.convolve(self.kernel)
        return pairwise.kernel_sum(self.kernel, x, self.target.points, self.target.weights, domain=self.domain)

    def gradient(self, x: Tensor) -> Tensor:
        self._check_points(x)
        if self._by_fft(x):
            return -self.target.convolve(pairwise.Slope(self.kernel))  # type: ignore[arg-type]
        return -pairwise.gradient_sum(self.kernel, x, self.target.points, self.target.weights, domain=self.domain)

    @cached_property
    def domain(self) -> Domain:
        return domain_of(self.target)

    @cached_property
    def half_norm(self) -> Tensor:
        with torch.no_grad():
            return 0.5 * (self.target.weights * self.mean(self.target.points)).sum(-1)

    def _by_fft(self, x: Tensor) -> bool:
        """Kernels of the difference between the cells of one grid."""
        return isinstance(self.kernel, Stationary) and self._on_own_cells(x)


@dataclass(frozen=True, eq=False)
class SumEmbedding(NodalEmbedding):
    """In any kernel."""


@dataclass(frozen=True, eq=False)
class MixtureEmbedding(NodalEmbedding):
    """In a kernel of the difference whose mean under Gaussian noise is known."""

    kernel: Stationary

    def moments(self, mean: Tensor, cov: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """E V, E ∇V and E ∇²V under N(mean, cov)."""
        y, w = self.target.points, self.target.weights
        value, slope, hessian = smoothed_moments(self.kernel, mean, dense(cov), y, w)
        return self.half_norm - value, -slope, -hessian


@dataclass(frozen=True, eq=False)
class SmoothedEmbedding(Embedding):
    """Of N(m, Σ) in a kernel of the difference whose mean under Gaussian noise is known."""

    kernel: Stationary

    def mean(self, x: Tensor) -> Tensor:
        return smoothed(self.kernel, x - self.target.mean[..., None, :], dense(self.target.cov))

    def gradient(self, x: Tensor) -> Tensor:
        self._check_points(x)
        return differentiate(lambda y: -self.mean(y), x, "the embedding")

    @cached_property
    def half_norm(self) -> Tensor:
        with torch.no_grad():
            zero = torch.zeros_like(self.target.mean)[..., None, :]
            return 0.5 * smoothed(self.kernel, zero, 2 * dense(self.target.cov))[..., 0]

    def moments(self, mean: Tensor, cov: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """E V, E ∇V and E ∇²V under N(mean, cov): V smoothed once more."""
        both = dense(cov) + dense(self.target.cov)
        value, slope, hessian = smoothed_moments(self.kernel, mean - self.target.mean, both)
        return self.half_norm - value, -slope, -hessian


def domain_of(mu: Measure) -> Domain:
    """Where a measure lives: R^d unless it says otherwise."""
    if isinstance(mu, Particles):
        return mu.domain
    return mu.grid.domain if isinstance(mu, Density) else Euclidean()
