"""The integral ∫ (q∗μ) log(φ∗μ) over the blobs of particles: at nodes around each of them, or on one grid for all."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..measures import Field
from ..measures.base import jacobian
from ..pairwise import (
    gaussian_gather,
    gaussian_gather_curvatures,
    gaussian_gather_slopes,
    gaussian_spread,
    log_gaussian_sum,
)
from ..pairwise.tensor_grid import reach
from .base import differentiate

MOST = 1e8  # nodes of a grid
MANY = 500  # particles from which on their blobs go through a lattice, of at most so many nodes a particle


class BlobIntegral(ABC):
    """F of particles y (*batch, n, d) of weights w (*batch, n), with φ = N(0, width²·I), and its derivatives at x."""

    @abstractmethod
    def value(self, y: Tensor, w: Tensor) -> Tensor:
        """F, (*batch,)."""

    @abstractmethod
    def variation(self, y: Tensor, w: Tensor, x: Tensor) -> Tensor:
        """δF/δμ at x, (*batch, m), exact for F as it is computed."""

    @abstractmethod
    def slopes(self, y: Tensor, w: Tensor, x: Tensor) -> Tensor:
        """∇δF/δμ at x, (*batch, m, d)."""

    @abstractmethod
    def curvatures(self, y: Tensor, w: Tensor, x: Tensor) -> Tensor:
        """∇²δF/δμ at x, (*batch, m, d, d)."""


@dataclass(frozen=True, eq=False)
class AroundEach(BlobIntegral):
    """q = Σ_k p_k δ(o_k): offsets (k, d) and weights (k,) around each particle, over all pairs. A Dirac is one of them.

    δF/δμ = q ∗ log(φ∗μ) + φ ∗ (μ_q/(φ∗μ)) with μ_q = q∗μ.
    """

    width: float
    offsets: Tensor
    weights: Tensor

    def value(self, y: Tensor, w: Tensor) -> Tensor:
        return (w * self._smeared(y, lambda x: self._log(x, y, w.log()))).sum(-1)

    def variation(self, y: Tensor, w: Tensor, x: Tensor) -> Tensor:
        log_w, sources = w.log(), _spread(y, self.offsets)
        log_mass = _outer(log_w, self.weights.log()) - self._log(sources, y, log_w)
        return self._smeared(x, lambda at: self._log(at, y, log_w)) + self._log(x, sources, log_mass).exp()

    def slopes(self, y: Tensor, w: Tensor, x: Tensor) -> Tensor:
        return differentiate(lambda at: self.variation(y, w, at), apart(x, y, w), "Blob")

    def curvatures(self, y: Tensor, w: Tensor, x: Tensor) -> Tensor:
        return jacobian(lambda at: self.slopes(y, w, at), x)

    def _log(self, x: Tensor, y: Tensor, log_w: Tensor) -> Tensor:
        """log Σ_j w_j φ(x_i − y_j)."""
        return log_gaussian_sum(x, y, log_w, self.width) - _log_norm(x, self.width)

    def _smeared(self, x: Tensor, f: Field) -> Tensor:
        """(q∗f)(x)."""
        return f(_spread(x, self.offsets)).unflatten(-1, (-1, len(self.weights))) @ self.weights


@dataclass(frozen=True, eq=False)
class OnGrid(BlobIntegral):
    """Σ_g f log f·hᵈ with f = φ∗μ, over the lattice of multiples of h = spacing·width: the trapezoidal rule.

    Sums go axis by axis (`pairwise.gaussian_spread`). δF/δμ = hᵈ Σ_g φ(x − g)(1 + log f(g)).
    """

    width: float
    spacing: float

    def value(self, y: Tensor, w: Tensor) -> Tensor:
        f = self._density(y, w, self.axes(y))
        return self._cell(y) * (f * _log(f)).flatten(-y.shape[-1]).sum(-1)

    def variation(self, y: Tensor, w: Tensor, x: Tensor) -> Tensor:
        axes = self.axes(y, x)
        return gaussian_gather(x, self._coefficients(y, w, x, axes), axes, self.width)

    def slopes(self, y: Tensor, w: Tensor, x: Tensor) -> Tensor:
        axes = self.axes(y, x)
        return gaussian_gather_slopes(x, self._coefficients(y, w, x, axes), axes, self.width)

    def curvatures(self, y: Tensor, w: Tensor, x: Tensor) -> Tensor:
        axes = self.axes(y, x)
        return gaussian_gather_curvatures(x, self._coefficients(y, w, x, axes), axes, self.width)

    def axes(self, *points: Tensor) -> list[Tensor]:
        """Multiples of h along each axis, as far as the blobs of the points reach."""
        if not self.nodes(*points) <= MOST:
            raise ValueError(
                f"particles spread over a grid of {self.nodes(*points):.1e} nodes at {self.spacing:g} widths: take a "
                "larger width, or quadrature=GaussHermite(16), whose nodes are around each particle"
            )
        h, ends = self.spacing * self.width, zip(*self._range(*points), strict=True)
        return [(h * torch.arange(a, b + 1, dtype=torch.float64)).to(points[0]) for a, b in ends]

    def nodes(self, *points: Tensor) -> float:
        """How many nodes the grid of these points has."""
        first, last = self._range(*points)
        return math.prod(b - a + 1 for a, b in zip(first, last, strict=True))

    def _range(self, *points: Tensor) -> list[list[float]]:
        """The first and the last multiple of h along each axis."""
        flat = [x.detach().flatten(0, -2) for x in points]
        low = torch.stack([x.amin(0) for x in flat]).amin(0) - reach(flat[0], self.width)
        high = torch.stack([x.amax(0) for x in flat]).amax(0) + reach(flat[0], self.width)
        h = self.spacing * self.width
        ends: list[list[float]] = torch.stack([(low.double() / h).floor(), (high.double() / h).ceil()]).tolist()
        return ends

    def _density(self, y: Tensor, w: Tensor, axes: list[Tensor]) -> Tensor:
        return gaussian_spread(y, w, axes, self.width) * math.exp(-_log_norm(y, self.width))

    def _coefficients(self, y: Tensor, w: Tensor, x: Tensor, axes: list[Tensor]) -> Tensor:
        """hᵈ(1 + log f) over (2π·width²)^{d/2}."""
        f = self._density(y, w, axes)
        log = _log(f) if same(x, y) else self._log_far(f, y, w, x, axes)
        return (1 + log) * (self._cell(y) * math.exp(-_log_norm(y, self.width)))

    def _log_far(self, f: Tensor, y: Tensor, w: Tensor, x: Tensor, axes: list[Tensor]) -> Tensor:
        """log f, from sums over pairs at nodes that x reaches and no particle does: f is 0 there to rounding."""
        dim, eps = y.shape[-1], torch.finfo(f.dtype).eps
        reached = gaussian_spread(x.detach(), torch.ones_like(x[..., 0]), axes, self.width) > eps
        empty = f.detach() < 1e3 * eps * math.exp(-_log_norm(y, self.width))
        far = (reached & empty).reshape(-1, f.shape[-dim:].numel()).any(0).nonzero()[:, 0]
        if not len(far):
            return _log(f)
        nodes = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)[far]
        exact = log_gaussian_sum(nodes.expand(*y.shape[:-2], *nodes.shape), y, w.log(), self.width)
        log = _log(f).flatten(-dim).index_copy(-1, far, exact - _log_norm(y, self.width))
        return log.reshape(f.shape)

    def _cell(self, y: Tensor) -> float:
        return float((self.spacing * self.width) ** y.shape[-1])


@dataclass(frozen=True, eq=False)
class AtParticles(BlobIntegral):
    """Σ_i w_i log(φ∗μ)(x_i), with x the particles themselves: what `AroundEach` is for a Dirac, in O(n).

    φ∗ν is a spread of ν to a lattice and a gather from it, both by Gaussians of half the variance, since φ is the
    convolution of two such; at a spacing of 0.53 of their widths the trapezoidal rule is exact to rounding.
    """

    width: float

    def value(self, y: Tensor, w: Tensor) -> Tensor:
        return (w * self._density(y, w, y).log()).sum(-1)

    def variation(self, y: Tensor, w: Tensor, x: Tensor) -> Tensor:
        return self._density(y, w, x).log() + self._smooth(gaussian_gather, y, self._ratio(y, w), x)

    def slopes(self, y: Tensor, w: Tensor, x: Tensor) -> Tensor:
        score = self._smooth(gaussian_gather_slopes, y, w, x) / self._density(y, w, x)[..., None]
        return score + self._smooth(gaussian_gather_slopes, y, self._ratio(y, w), x)

    def curvatures(self, y: Tensor, w: Tensor, x: Tensor) -> Tensor:
        f = self._density(y, w, x)[..., None]
        score = self._smooth(gaussian_gather_slopes, y, w, x) / f
        bend = self._smooth(gaussian_gather_curvatures, y, w, x) / f[..., None]
        rest = self._smooth(gaussian_gather_curvatures, y, self._ratio(y, w), x)
        return bend - score[..., :, None] * score[..., None, :] + rest

    @property
    def lattice(self) -> OnGrid:
        return OnGrid(self.width / math.sqrt(2), 0.53)

    def _density(self, y: Tensor, w: Tensor, x: Tensor) -> Tensor:
        f = self._smooth(gaussian_gather, y, w, x)
        return f.clamp_min(torch.finfo(f.dtype).tiny)

    def _ratio(self, y: Tensor, w: Tensor) -> Tensor:
        return w / self._density(y, w, y)

    def _smooth(self, gather: Callable[..., Tensor], y: Tensor, c: Tensor, x: Tensor) -> Tensor:
        """φ∗Σ_j c_j δ(y_j) at x, or derivatives of it."""
        grid = self.lattice
        axes = grid.axes(y, x)
        scale = (grid.spacing * grid.width) ** y.shape[-1] * math.exp(-2 * _log_norm(y, grid.width))
        return gather(x, gaussian_spread(y, c, axes, grid.width), axes, grid.width) * scale


def apart(x: Tensor, *state: Tensor) -> Tensor:
    """x as a tensor of its own, so that differentiating in it leaves a measure of that state where it is."""
    if x.requires_grad:
        return x.view_as(x)
    return x.detach().requires_grad_() if any(t.requires_grad for t in state) else x


def _log(f: Tensor) -> Tensor:
    """log f, with a finite value and derivative where f = 0."""
    return f.clamp_min(torch.finfo(f.dtype).tiny).log()


def _log_norm(x: Tensor, width: float) -> float:
    """log ∫ exp(−|z|²/(2·width²)) dz."""
    return 0.5 * x.shape[-1] * math.log(2 * math.pi * width**2)


def same(x: Tensor, y: Tensor) -> bool:
    return x is y or (x.shape == y.shape and torch.equal(x, y))


def _spread(x: Tensor, offsets: Tensor) -> Tensor:
    """x_i + o_k, (*batch, n·k, d)."""
    return (x[..., :, None, :] + offsets).flatten(-3, -2)


def _outer(a: Tensor, b: Tensor) -> Tensor:
    """a_i + b_k, (*batch, n·k)."""
    return (a[..., :, None] + b).flatten(-2)
