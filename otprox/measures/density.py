"""Densities on a Grid by their cell averages: conservative and positive under push, move and diffuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import pairwise
from .base import Field, Measure, StepTooLarge, Tangent, as_float, check_noise
from .fourier import convolve_cells
from .grid import Grid
from .heat import heat
from .particles import Particles
from .remap import interpolate, push, regrid
from .transport import axes, rates, update

TOLERANCE = 1e-5


@dataclass(frozen=True, eq=False)
class Density(Measure):
    """The density with averages `values` (*batch, *grid.shape) over the cells of a grid.

    Refused when negative, or when the integral Σ values·volume is off 1 by more than 1e-5; otherwise divided by it.
    Integrals are sums over cell centres, second order in the spacing. On a periodic axis, coordinates are those of the
    centres in [lower, upper).

    >>> grid = Grid(0, 1, 4)
    >>> Density(torch.tensor([0.0, 2.0, 2.0, 0.0]), grid).mean
    tensor([0.5000])
    """

    values: Tensor
    grid: Grid

    def __init__(self, values: Any, grid: Grid) -> None:
        if not isinstance(grid, Grid):
            raise TypeError(f"grid must be a Grid(lower, upper, shape), not a {type(grid).__name__}")
        values = as_float(values, "values")
        if values.shape[max(0, values.ndim - grid.dim) :] != grid.shape:
            raise ValueError(
                f"values have shape {tuple(values.shape)}; they must be (*batch, *shape) for the grid {grid.shape}"
            )
        if (values < 0).any():
            raise ValueError(f"values must be non-negative; the smallest is {values.min().item():.6g}")
        total = values.sum(tuple(range(-grid.dim, 0)), keepdim=True) * grid.volume
        worst = total.flatten()[(total - 1).abs().argmax()].item()
        if abs(worst - 1) > TOLERANCE:
            raise ValueError(f"values must integrate to 1 over the grid, not {worst:.8g}; divide by it")
        object.__setattr__(self, "values", values / total)
        object.__setattr__(self, "grid", grid)

    @classmethod
    def from_log_prob(cls, log_prob: Field, grid: Grid, like: Tensor | None = None) -> Density:
        """The density proportional to exp(log_prob) on the grid, with log_prob: (n, d) -> (*batch, n) unnormalised.

        Cell averages by three Gauss–Legendre nodes an axis. dtype and device are those of `like`.
        """
        like = torch.empty(()) if like is None else like
        nodes = grid.nodes(3, like)
        logs = torch.stack([log_prob(grid.points(like) + z) + math.log(w) for z, w in nodes])
        if not (logs < torch.inf).all():
            raise ValueError("log_prob is NaN or +infinity on the grid")
        values = torch.softmax(torch.logsumexp(logs, 0), -1) / grid.volume
        return cls(values.reshape(*values.shape[:-1], *grid.shape), grid)

    @classmethod
    def from_masses(cls, masses: Tensor, grid: Grid) -> Density:
        """From the masses of the cells (*batch, *shape), refused when they miss more than 1e-5 of the whole."""
        held = masses.sum(tuple(range(-grid.dim, 0))).min().item()
        if held < 1 - TOLERANCE:
            raise ValueError(f"the grid holds only {held:.8g} of the mass; widen it, at most {TOLERANCE:g} may be lost")
        return cls(masses / grid.volume, grid)

    @property
    def batch(self) -> torch.Size:
        return self.values.shape[: self.values.ndim - self.grid.dim]

    @property
    def dim(self) -> int:
        return self.grid.dim

    @property
    def anchor(self) -> Tensor:
        return self.values

    @property
    def points(self) -> Tensor:
        """Cell centres (*batch, n, d), row-major; a batch shares their memory."""
        return self._shared(self.grid.points(self.values))

    @property
    def masses(self) -> Tensor:
        """Mass of each cell, flat (*batch, n)."""
        return self.values.flatten(-self.dim) * self.grid.volume

    @property
    def weights(self) -> Tensor:
        return self.masses

    @property
    def mass(self) -> Tensor:
        return self.masses.sum(-1)

    @property
    def mean(self) -> Tensor:  # type: ignore[override]
        return self.masses @ self.grid.points(self.values)

    @property
    def cov(self) -> Tensor:  # type: ignore[override]
        centred = self.grid.points(self.values) - self.mean[..., None, :]
        return (self.masses[..., None] * centred).mT @ centred

    def with_log_prob(self, log_rho: Tensor) -> Density:
        """The density on the same grid proportional to exp(log_rho), (*batch, n) on the cells."""
        logs = log_rho - log_rho.amax(-1, keepdim=True)
        rho = logs.exp()
        total = rho.sum(-1, keepdim=True) * self.grid.volume
        if not torch.isfinite(total).all():
            raise FloatingPointError("a density came out NaN or infinite")
        return self._with(rho / total)

    def _shared(self, x: Tensor) -> Tensor:
        return x.expand(*self.batch, *x.shape)

    def _with(self, values: Tensor) -> Density:
        return self.with_state(values=values.reshape(*values.shape[: len(self.batch)], *self.grid.shape))

    def expect(self, f: Field) -> Tensor:
        values = f(self.points)
        if values.ndim <= len(self.batch) + 1:
            return (self.masses * values).sum(-1)
        return (self.masses[..., None, :] @ values)[..., 0, :]

    def expect_log(self, u: Field) -> Tensor:
        """∫ u(log ρ) ρ dx over the cells where ρ > 0."""
        m = self.masses
        log_rho = torch.where(m > 0, m, self.grid.volume).log() - math.log(self.grid.volume)
        return torch.where(m > 0, m * u(log_rho), 0).sum(-1)

    def log_prob(self, x: Tensor | None = None) -> Tensor:
        """log of the cell averages, flat; or interpolated multilinearly between centres at points x (*batch, m, d).

        Where the density vanishes it is the log of the smallest normal number, about −708 (float32: −87); beyond the
        walls of the grid it is −inf.
        """
        logs = self._log()
        if x is None:
            return logs.flatten(-self.dim)
        return torch.where(self.grid.inside(x), interpolate(logs, self.grid, x), -torch.inf)

    def _log(self) -> Tensor:
        return self.values.clamp_min(torch.finfo(self.values.dtype).tiny).log()

    def score(self, x: Tensor | None = None) -> Tensor:
        """Central differences of log ρ, second order also next to walls; interpolated multilinearly at points x."""
        logs = self._log()
        slopes = [axis.slope(logs) for axis in axes(self.grid)]
        if x is None:
            return torch.stack([slope.flatten(-self.dim) for slope in slopes], -1)
        return torch.stack([interpolate(slope, self.grid, x) for slope in slopes], -1)

    def push(self, T: Callable[[Tensor], Any]) -> Density:
        """T#μ, conservative and positive; log-determinants are not needed. What leaves through a wall stays next to it.

        A monotone T of the line carries the cells between their mapped edges, exactly but for a limited linear profile
        in each. Other maps carry points, 2^d or more of each cell: mean and covariance are exact for affine maps away
        from walls, and the density is accurate to about 1e-3 of itself at any resolution.
        """

        def image(x: Tensor) -> Tensor:
            y = T(x)
            y = y[0] if isinstance(y, tuple) else y
            if y.shape != x.shape:
                raise ValueError(f"the map sends points of shape {tuple(x.shape)} to shape {tuple(y.shape)}")
            if not torch.isfinite(y).all():
                raise ValueError("the map sends points of the grid to NaN or infinity")
            return y

        return self._with(push(self.values, self.grid, image))

    def move(self, tangent: Tangent, tau: float) -> Density:
        """One explicit step of second-order upwind finite volumes: conservative, and positive up to `stable_step`."""
        rate = rates(self.values, self.grid, tangent)
        stable = rate.stable_step(self.dim).min().item()
        if tau > stable:
            raise StepTooLarge(
                f"tau = {tau:.6g} is above the stable step {stable:.6g} of this explicit step on the grid. What would "
                "work: smaller steps (mu.stable_step(tangent) is the bound), Backward in place of Forward, or Heat for "
                "an Entropy in it"
            )
        return self._with(update(self.values, self.grid, rate.fluxes, tau))

    def stable_step(self, tangent: Tangent) -> Tensor:
        """The largest tau that `move` takes, (*batch,): 1 / max over cells of the larger of two rates,

        - Σ_a 2·max(v⁺ at the upper face, v⁻ at the lower)/h_a: no cell is emptied, where v is the face velocity;
        - Σ_a 2·D·Q_aa/h_a² with D = dφ/dlog ρ: the linearised diffusion does not grow (times 9/8 for d = 3 and Q that
          is not diagonal). Where ρ has kinks, D is what the scheme's own fluxes across the two faces amount to.

        Fluxes that are given add the fraction of each cell that they take out in unit time to the first.
        """
        return rates(self.values, self.grid, tangent).stable_step(self.dim)

    def diffuse(self, cov: Tensor, generator: torch.Generator | None = None) -> Density:
        """exp(½ cov:∇²_h), the exponential of the discrete Laplacian (reflecting at walls), for a diagonal cov."""
        check_noise(cov, self)
        variance = cov.diagonal(dim1=-2, dim2=-1)
        off = (cov - torch.diag_embed(variance)).abs().amax().item()
        if off > 1e-12 * variance.abs().amax().item():
            raise ValueError(
                f"on a grid noise must be independent along the axes; cov has off-diagonal entry {off:.6g}. What would "
                "work: coordinates rotated to its eigenvectors, Particles, or Backward(Entropy(), Wasserstein(Q))"
            )
        return self._with(heat(self.values, self.grid, variance.clamp_min(0)))

    def convolve(self, W: Field, x: Tensor | None = None) -> Tensor:
        """(W∗μ)(x) by sums over cells: by FFT at the cells themselves, over all pairs (or a kernel's own route) at x.

        Displacements along periodic axes are the shortest. A W that is infinite at 0 stands there for its average over
        a cell.
        """
        if x is None:
            return convolve_cells(W, self.values * self.grid.volume, self.grid)
        domain = self.grid.domain
        free = W if domain is not self.grid else _plain(W)
        return pairwise.convolve(free, x, self.points, self.masses, domain)

    def interact(self, W: Field) -> Tensor:
        return (self.masses * self.convolve(W)).sum(-1)

    def to_density(self, grid: Grid) -> Density:
        """The piecewise constant density averaged over the cells of another grid, which must hold its mass."""
        if grid.dim != self.dim:
            raise ValueError(f"the grids have {self.dim} and {grid.dim} axes")
        return Density.from_masses(regrid(self.values * self.grid.volume, self.grid, grid), grid)

    def to_particles(self, n: int, generator: torch.Generator) -> Particles:
        """n samples of the piecewise constant density, with their log-density: cells by weight, uniform inside."""
        like, total = self.values, self.masses.cumsum(-1)
        u = torch.rand(*self.batch, n, generator=generator, dtype=like.dtype, device=like.device)
        cell = torch.searchsorted(total, u * total[..., -1:], right=True).clamp_max(self.grid.n - 1)
        shift = torch.rand(*self.batch, n, self.dim, generator=generator, dtype=like.dtype, device=like.device) - 0.5
        x = self.grid.points(like)[cell] + shift * like.new_tensor(self.grid.spacing)
        return Particles(x, log_density=self.log_prob().gather(-1, cell), domain=self.grid.domain)


def _plain(W: Field) -> Field:
    """W without its fast route, which may not know the domain."""
    return pairwise.Slope(_plain(W.W)) if isinstance(W, pairwise.Slope) else lambda z: W(z)
