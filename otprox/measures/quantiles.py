"""Measures on the line by their quantiles, where W2 is flat and internal energies are finite."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from .. import pairwise
from ..domains import Torus
from .base import Field, Measure, StepTooLarge, Tangent, Velocity, as_float, check_noise
from .gaussian import Gaussian
from .particles import Particles

if TYPE_CHECKING:
    from .density import Density, Grid

CELLS = 1 << 21  # most cells of the grid on which `diffuse` convolves, unless there are more quantiles


@dataclass(frozen=True, eq=False)
class Quantiles(Measure):
    """The measure on R whose quantile at level (i + ½)/n is x_i, i = 0 … n − 1.

    x: (*batch, n), non-decreasing along the last axis, n ≥ 2; kept as (*batch, n, 1). Sums run over the n quantiles
    with weights 1/n. Between x_i and x_{i+1} the density is 1/(n·(x_{i+1} − x_i)), and the first and last half
    weights lie within half a gap outside: the CDF is continuous and piecewise linear. Equal quantiles are an atom:
    legal, but without a density.

    W2² between two such measures with equal n is (1/n) Σ |x_i − y_i|².

    >>> mu = Quantiles.of(Gaussian([0.0], [[1.0]]), 1000)
    >>> round(mu.cov.item(), 2)
    1.0
    """

    x: Float[Tensor, "*batch n 1"]

    def __init__(self, x: Any) -> None:
        x = as_float(x, "x")
        if x.ndim < 1 or x.shape[-1] < 2:
            raise ValueError(
                f"x must have shape (*batch, n) with n ≥ 2 quantiles along the last axis, not {tuple(x.shape)}; "
                "points (n, 1) are Quantiles(points[..., 0])"
            )
        _check_sorted(x)
        object.__setattr__(self, "x", x[..., None])

    @classmethod
    def of(cls, source: Measure | Callable[[Tensor], Tensor], n: int) -> Quantiles:
        """The n quantiles of a 1-D Gaussian, Density, Quantiles or Particles, or of an inverse CDF.

        An inverse CDF maps levels (n,) in (0, 1) to values (*batch, n). Weighted particles are sorted and their
        quantiles interpolated between the middles of their weights: n uniform particles give back their own positions.
        """
        if n < 2:
            raise ValueError(f"n must be at least 2, not {n}")
        if isinstance(source, Measure):
            if source.dim != 1:
                raise ValueError(f"Quantiles live on the line; the measure has dimension {source.dim}")
            return cls(_quantiles_of(source, n))
        return cls(source(_levels(n, torch.empty(0))))

    @property
    def batch(self) -> torch.Size:
        return self.x.shape[:-2]

    @property
    def dim(self) -> int:
        return 1

    @property
    def anchor(self) -> Tensor:
        return self.x

    @property
    def points(self) -> Tensor:
        return self.x

    @property
    def weights(self) -> Tensor:
        return self.w

    @property
    def w(self) -> Float[Tensor, "*batch n"]:
        """Uniform weights 1/n."""
        return self.x.new_full((), 1 / self.n).expand(self.x.shape[:-1])

    @property
    def n(self) -> int:
        return self.x.shape[-2]

    @property
    def gaps(self) -> Float[Tensor, "*batch gaps"]:
        """x_{i+1} − x_i ≥ 0."""
        return self.x[..., 0].diff(dim=-1)

    @property
    def mean(self) -> Tensor:  # type: ignore[override]
        return self.x.mean(-2)

    @property
    def cov(self) -> Tensor:  # type: ignore[override]
        return (self.x - self.mean[..., None, :]).square().mean(-2)[..., None]

    def expect(self, f: Field) -> Tensor:
        values = f(self.x)
        return values.mean(-1) if values.ndim == self.x.ndim - 1 else values.mean(-2)

    def push(self, T: Callable[[Tensor], Any]) -> Quantiles:
        """T#μ, sorted again when T is not monotone. A log-determinant is not needed: the gaps carry the density."""
        y = T(self.x)
        y = y[0] if isinstance(y, tuple) else y
        if y.shape != self.x.shape:
            raise ValueError(f"the map sends points of shape {tuple(self.x.shape)} to shape {tuple(y.shape)}")
        return self.with_state(x=_sorted(y))

    def move(self, tangent: Tangent, tau: float) -> Quantiles:
        if not isinstance(tangent, Velocity):
            raise TypeError(f"Quantiles move along a Velocity, not a {type(tangent).__name__}; use a Density on a Grid")
        x = self.x + tau * tangent.field(self.x)
        if (x.diff(dim=-2) < 0).any() and _diffuses(tangent):
            raise StepTooLarge(
                f"tau = {tau:.6g} is above the stable step of an explicit step on {self.n} quantiles: neighbours "
                "cross. What would work: Backward in place of Forward, Heat for an Entropy, "
                "or steps of the order of the smallest gap squared"
            )
        return self.push(lambda _: x)

    def diffuse(self, cov: Tensor, generator: torch.Generator | None = None) -> Quantiles:
        """Convolution with N(0, cov), cov of shape (1, 1) or (*batch, 1, 1).

        With a generator, noise is added to every quantile and the result sorted (Monte Carlo error n^-½). Without one
        it is deterministic: the piecewise-linear CDF is convolved on a fine uniform grid by FFT, and inverted at the
        levels. With a grid step h ≤ span/16384 the error is O(h²), and h/2 for an atom, less than that of n levels.
        """
        check_noise(cov, self)
        if generator is not None:
            z = torch.randn(self.x.shape, generator=generator, dtype=self.x.dtype, device=self.x.device)
            return self.with_state(x=_sorted(self.x + z * cov.clamp_min(0).sqrt()))
        variance = cov[..., 0].to(self.x).expand(*self.batch, 1)
        if not (variance > 0).any():
            return self
        noise = torch.where(variance > 0, variance, variance.amax()).double().sqrt()
        values = _diffused(self.x[..., 0].double(), noise, _levels(self.n, self.x).double())
        return self.with_state(x=torch.where(variance > 0, values.to(self.x), self.x[..., 0])[..., None])

    def convolve(self, W: Field, x: Tensor | None = None) -> Tensor:
        return pairwise.convolve(W, self.x if x is None else x, self.x, self.w)

    def log_prob(self, x: Tensor | None = None) -> Tensor:
        """−log(n·gap) of the gap around each point, −∞ outside the support; at the quantiles, of the mean of two gaps.

        x: (*batch, m, 1) -> (*batch, m).
        """
        gaps = self._positive_gaps()
        if x is None:
            return -torch.log(self.n * (_beside(gaps, 0) + _beside(gaps, 1)) / 2)
        own, points = self.x[..., 0].contiguous(), x[..., 0].expand(*self.batch, -1).contiguous()
        gap = gaps.gather(-1, (torch.searchsorted(own, points, right=True) - 1).clamp(0, self.n - 2))
        inside = (points >= own[..., :1] - gaps[..., :1] / 2) & (points <= own[..., -1:] + gaps[..., -1:] / 2)
        return torch.where(inside, -torch.log(self.n * gap), -math.inf)

    def score(self, x: Tensor | None = None) -> Tensor:
        """1/(x_{i+1} − x_i) − 1/(x_i − x_{i−1}) at the quantiles, the exact gradient of the entropy.

        Interpolated between quantiles. The density beyond the first and the last counts as 0.
        """
        density = 1 / self._positive_gaps()
        zero = torch.zeros_like(density[..., :1])
        score = torch.cat([density, zero], -1) - torch.cat([zero, density], -1)
        if x is None:
            return score[..., None]
        return _interpolate(x[..., 0].expand(*self.batch, -1), self.x[..., 0], score, hold=True)[..., None]

    def expect_log(self, u: Field) -> Tensor:
        """(1/n) Σ u(−log(n·gap)) over the n − 1 gaps."""
        return u(-torch.log(self.n * self._positive_gaps())).sum(-1) / self.n

    def quantile(self, p: Tensor) -> Tensor:
        """The inverse of the piecewise-linear CDF at levels p (*batch, m) or (m,)."""
        levels = _levels(self.n, self.x).expand(self.x.shape[:-1])
        ends = p.new_tensor([0.5 / self.n, 1 - 0.5 / self.n])
        half = self.x.new_tensor([-1.0, 1.0]) * self.gaps[..., [0, -1]] / 2
        values, nodes = _with_ends(self.x[..., 0], half), _with_ends(levels, p.new_tensor([-1.0, 1.0]) * ends[0])
        return _interpolate(p.expand(*self.batch, p.shape[-1]), nodes, values, hold=True)

    def cdf(self, x: Tensor) -> Tensor:
        """The piecewise-linear CDF at x (*batch, m); right-continuous at atoms."""
        return _cdf(self.x[..., 0], x, _levels(self.n, self.x))

    def to_particles(self, n: int, generator: torch.Generator) -> Particles:
        """n independent samples of the piecewise-constant density."""
        u = torch.rand(*self.batch, n, generator=generator, dtype=self.x.dtype, device=self.x.device)
        return Particles(self.quantile(u)[..., None])

    def to_density(self, grid: Grid) -> Density:
        """Cell averages on a 1-D grid: exact differences of the piecewise-linear CDF at the faces."""
        from .density import Density

        if len(grid.shape) != 1:
            raise ValueError(f"Quantiles go to a grid of dimension 1, not {len(grid.shape)}")
        cells = grid.shape[0]
        (lower,), (upper,) = grid.lower, grid.upper
        faces = torch.linspace(lower, upper, cells + 1, dtype=self.x.dtype, device=self.x.device)
        mass = self.cdf(faces.expand(*self.batch, -1)).diff(dim=-1)
        return Density(mass * (cells / (upper - lower)), grid)

    def _positive_gaps(self) -> Tensor:
        gaps = self.gaps
        if not (gaps > 0).all():
            atom = self.x[..., :-1, 0][gaps <= 0][0].item()
            raise ValueError(
                f"these Quantiles have no density: {int((gaps <= 0).sum())} of their gaps are zero, an atom at "
                f"{atom:.6g}. Spread it first, by .diffuse(cov) or Heat(), or use energies without a density"
            )
        return gaps


def _check_sorted(x: Tensor) -> None:
    down = x.diff(dim=-1) < 0
    if down.any():
        *item, i = down.nonzero()[0].tolist()
        where = f" in batch item {tuple(item)}" if item else ""
        a, b = x[(*item, i)].item(), x[(*item, i + 1)].item()
        raise ValueError(f"x must not decrease: x[{i}] = {a:.6g} > x[{i + 1}] = {b:.6g}{where}; pass x.sort(-1).values")


def _diffuses(tangent: Velocity) -> bool:
    """Whether the velocity comes from an energy that spreads mass, so that crossing means an unstable step."""
    if tangent.diffusivity is None:
        return False
    try:
        return bool((tangent.diffusivity() > 0).any())
    except TypeError:  # an energy that does not say
        return False


def _sorted(y: Tensor) -> Tensor:
    return y.sort(-2).values if (y.diff(dim=-2) < 0).any() else y


def _levels(n: int, like: Tensor) -> Tensor:
    """(i + ½)/n."""
    return (torch.arange(n, dtype=like.dtype, device=like.device) + 0.5) / n


def _beside(gaps: Tensor, side: int) -> Tensor:
    """The gap left (0) or right (1) of each quantile; the only one at the ends."""
    return torch.cat([gaps[..., :1], gaps] if side == 0 else [gaps, gaps[..., -1:]], -1)


def _with_ends(x: Tensor, half: Tensor) -> Tensor:
    """x with two more entries, x_0 + half[0] and x_{n−1} + half[1]."""
    return torch.cat([x[..., :1] + half[..., :1], x, x[..., -1:] + half[..., 1:]], -1)


def _interpolate(at: Tensor, nodes: Tensor, values: Tensor, hold: bool = False) -> Tensor:
    """Piecewise linear interpolation along the last axis; extrapolated, or held constant, outside."""
    nodes, at = nodes.contiguous(), at.contiguous()
    right = torch.searchsorted(nodes, at, right=True).clamp(1, nodes.shape[-1] - 1)
    x0, x1 = nodes.gather(-1, right - 1), nodes.gather(-1, right)
    theta = torch.where(x1 > x0, (at - x0) / torch.where(x1 > x0, x1 - x0, 1), 1.0)
    if hold:
        theta = theta.clamp(0, 1)
    return torch.lerp(values.gather(-1, right - 1), values.gather(-1, right), theta)


def _cdf(x: Tensor, at: Tensor, levels: Tensor) -> Tensor:
    half = x.new_tensor([-1.0, 1.0]) * x.diff(dim=-1)[..., [0, -1]] / 2
    nodes = _with_ends(x, half)
    p = _with_ends(levels, levels.new_tensor([-1.0, 1.0]) * levels[0]).expand_as(nodes)
    inside = _interpolate(at, nodes, p, hold=True)
    return torch.where(at < nodes[..., :1], 0.0, torch.where(at >= nodes[..., -1:], 1.0, inside))


def _diffused(x: Tensor, sigma: Tensor, levels: Tensor) -> Tensor:
    """Quantiles of the law of x plus N(0, sigma²): masses of cells, convolved by FFT, summed and inverted."""
    gaps = x.diff(dim=-1)
    lower = x[..., :1] - gaps[..., :1] / 2 - 9 * sigma
    span = x[..., -1:] + gaps[..., -1:] / 2 + 9 * sigma - lower
    wanted = max(1 << 14, 2 * x.shape[-1], min(CELLS, math.ceil((16 * span / sigma).max().item())))
    cells = 1 << (wanted - 1).bit_length()
    h = span / cells
    steps = torch.arange(cells + 1, dtype=x.dtype, device=x.device)
    mass = _cdf(x, lower + h * steps, levels).diff(dim=-1)
    kernel = _cell_kernel(torch.arange(-cells, cells, dtype=x.dtype, device=x.device), h / sigma)
    spectrum = torch.fft.rfft(mass, 3 * cells) * torch.fft.rfft(kernel, 3 * cells)
    spread = torch.fft.irfft(spectrum, 3 * cells)[..., cells : 2 * cells].clamp_min(0)
    total = torch.cat([torch.zeros_like(lower), spread.cumsum(-1)], -1)
    position = _interpolate(levels.expand_as(x), total / total[..., -1:], steps.expand_as(total))
    return lower + h * position


def _cell_kernel(k: Tensor, r: Tensor) -> Tensor:
    """P(U' + Z/r lies k cells away from its own), U' uniform in a cell, r = h/sigma: second differences of ∫Φ."""

    a = k.abs() * r
    fine = r * torch.exp(-0.5 * a * a) / math.sqrt(2 * math.pi) * (1 + r * r * (a * a - 1) / 12)
    exact = (_excess(a + r) - 2 * _excess(a) + _excess((a - r).abs()) + (r - a).clamp_min(0)) / r
    return torch.where(r < 0.01, fine, exact)  # the differences cancel when r is small, and the series is exact to r⁴


def _excess(z: Tensor) -> Tensor:
    """E (Z − z)₊."""
    return torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi) - z * torch.special.ndtr(-z)


def _quantiles_of(source: Measure, n: int) -> Tensor:
    levels = _levels(n, source.anchor).expand(*source.batch, n)
    if isinstance(source, Gaussian):
        return source.mean + source.cov[..., 0].sqrt() * torch.special.ndtri(levels)
    if isinstance(source, Quantiles):
        return source.quantile(levels)
    if isinstance(source, Particles):
        return _of_particles(source, levels)
    from .density import Density

    if isinstance(source, Density):
        return _of_density(source, levels)
    raise TypeError(f"no quantiles of a {type(source).__name__}; give its inverse CDF, Quantiles.of(icdf, n)")


def _of_particles(source: Particles, levels: Tensor) -> Tensor:
    if isinstance(source.domain, Torus):
        raise TypeError("particles on a Torus have no quantiles: the circle has no order; use Euclidean() or Box")
    x, order = source.x[..., 0].sort(-1)
    if x.shape[-1] == 1:
        return x.expand_as(levels)
    w = source.w.gather(-1, order)
    middle = w.cumsum(-1) - w / 2
    half = x.new_tensor([-1.0, 1.0]) * x.diff(dim=-1)[..., [0, -1]] / 2
    nodes = torch.cat([torch.zeros_like(w[..., :1]), middle, torch.ones_like(w[..., :1])], -1)
    return _interpolate(levels, nodes, _with_ends(x, half), hold=True)


def _of_density(source: Density, levels: Tensor) -> Tensor:
    mass = source.values / source.values.sum(-1, keepdim=True)
    total = torch.cat([torch.zeros_like(mass[..., :1]), mass.cumsum(-1)], -1)
    (lower,), (upper,) = source.grid.lower, source.grid.upper
    faces = torch.linspace(lower, upper, total.shape[-1], dtype=total.dtype, device=total.device).expand_as(total)
    return _interpolate(levels, total, faces, hold=True)
