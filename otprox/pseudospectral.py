"""Gradient flows on a periodic grid by Fourier collocation: spectral in space, fourth order in time."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .functionals import Entropy, Functional, Interaction, Potential
from .functionals.embedding import NodalEmbedding
from .measures import Density, Grid, Measure
from .measures.fourier import transfer
from .measures.trigonometric import at_centres, cell_averages, wave_numbers
from .pairwise import Slope
from .solvers import ConvergenceWarning, Out, Stats
from .steps import Step, step_size

NEGATIVE = 1e-6  # the most mass below 0 that is cut
RESOLVED = 1e-3  # the largest of the highest quarter of modes, over the mean, where the grid resolves a density


@dataclass(frozen=True, eq=False)
class PseudoSpectral(Step):
    """One step of ∂t ρ = div(ρ∇δF/δρ) for F = c·Entropy + terms whose first variation does not see ρ(x) alone.

    These are `Potential`, `Interaction`, and what else has diffusivity 0: the mean-field (McKean–Vlasov) equation of
    any confinement and interaction. On a Density whose grid is periodic along every axis. Products are taken at cell
    centres and derivatives by FFT, so for smooth data the error falls faster than any power of the spacing; cell
    averages go in and come out, exactly. In time, the diffusion is exact and the drift is taken by the exponential
    Runge–Kutta method of order 4 (Cox, Matthews 2002, "ETDRK4"; Kassam, Trefethen 2005); a `Varying` F keeps the order.

    Mass is kept to rounding. Nothing keeps ρ positive but resolution: what falls below 0 is cut, with ValueError when
    its mass is above 1e-6. The step's stats have as `residual` the largest of that mass and of the highest quarter of
    modes, which shows the error in space; where these are above 1e-3 of the mean it warns. tau is bounded by the drift,
    to about h/max|v|, and not by the diffusion.

    >>> import torch, otprox as ox
    >>> grid = ox.Grid(0.0, 2 * torch.pi, 32, periodic=True)
    >>> mu = ox.Density((1 + 0.1 * grid.points(torch.ones(()))[:, 0].cos()) / (2 * torch.pi), grid)
    >>> F = 0.5 * ox.Entropy() + 1.5 * ox.Interaction(ox.kernels.Cosine([-1.0]))
    >>> run = ox.record(ox.flow(PseudoSpectral(F), mu, [0.1 * k for k in range(51)]), r=ox.observe.order())
    >>> round(run.series["r"][-1].item(), 2)
    0.17
    """

    F: Functional

    def __post_init__(self) -> None:
        if not isinstance(self.F, Functional):
            raise TypeError(f"PseudoSpectral needs a Functional such as Entropy() + Interaction(W), not {self.F!r}")

    def __call__(self, mu: Measure, t0: float, t1: float, last: Any = None) -> Out:
        grid, tau = _periodic_grid(mu), step_size(t0, t1)
        assert isinstance(mu, Density)
        parts = _at_times(self.F, mu, t0, (t0 + t1) / 2, t1)
        v = torch.fft.rfftn(at_centres(mu.values, grid), dim=_axes(grid))
        weights = _weights(grid, parts[0].diffusion, tau, mu.values.dtype, mu.values.device)
        return _finished(_etdrk4(v, parts, weights), mu, t0)


@dataclass(frozen=True, eq=False)
class _Parts:
    """F at one time: `diffusion`·Entropy, and modes of ρ ↦ modes of div(ρ∇φ) with ∇φ = slope + ∇W∗ρ + others'."""

    mu: Density
    diffusion: float
    slope: Tensor  # of the potentials, (*batch, d, *shape)
    symbol: Tensor  # of the interactions, (d, *modes)
    others: tuple[tuple[float, Functional], ...]

    @classmethod
    def of(cls, terms: tuple[tuple[float, Functional], ...], mu: Density) -> _Parts:
        diffusion = sum(c for c, f in terms if isinstance(f, Entropy))
        if diffusion < 0:
            raise ValueError(f"the coefficient of Entropy must be ≥ 0, not {diffusion:g}: the equation is ill-posed")
        zero = mu.values.new_zeros((1,) * (mu.dim + 1))
        slope = sum((c * _by_axis(_slope(f, mu), mu) for c, f in terms if isinstance(f, Potential)), zero)
        kernels = [(c * mu.grid.volume, f.W) for c, f in terms if isinstance(f, Interaction)]
        modes = sum((c * transfer(Slope(W), mu.grid, mu.values) for c, W in kernels), zero)
        others = tuple((c, f) for c, f in terms if not isinstance(f, Entropy | Potential | Interaction))
        for _, f in others:
            _check_smooth(f, mu)
        return cls(mu, diffusion, slope, modes, others)

    def __call__(self, modes: Tensor) -> Tensor:
        grid, axes = self.mu.grid, _axes(self.mu.grid)
        rho = torch.fft.irfftn(modes, s=grid.shape, dim=axes)
        vector = modes.unsqueeze(-grid.dim - 1)
        slope = self.slope + torch.fft.irfftn(self.symbol * vector, s=grid.shape, dim=axes)
        nu = self.mu.with_state(values=rho)  # values at centres: its sums over cells are the trapezoidal rule
        slope = sum((c * _by_axis(f.gradient(nu), nu) for c, f in self.others), slope)
        flux = torch.fft.rfftn(rho.unsqueeze(-grid.dim - 1) * slope, dim=axes)
        return (_derivative(grid, rho.dtype, rho.device) * flux).sum(-grid.dim - 1)


def _slope(f: Potential, mu: Density) -> Tensor:
    """∇V at the cells; the target of an MMD, a Density on the same grid, is resolved as μ is, by values at centres."""
    V = f.V
    if isinstance(V, NodalEmbedding) and isinstance(V.target, Density) and V.target.grid == mu.grid:
        V = replace(V, target=V.target.with_state(values=at_centres(V.target.values, mu.grid)))
        return V.gradient(mu.points)
    return f.gradient(mu)


def _at_times(F: Functional, mu: Density, *times: float) -> list[_Parts]:
    """F at these times, taken apart once when it does not vary."""
    parts: list[_Parts] = []
    terms: tuple[tuple[float, Functional], ...] = ()
    for t in times:
        before, terms = terms, F.at(t).terms
        parts.append(parts[-1] if parts and before == terms else _Parts.of(terms, mu))
    if len({part.diffusion for part in parts}) > 1:
        raise ValueError("the coefficient of Entropy must not vary in time in PseudoSpectral")
    return parts


def _check_smooth(f: Functional, mu: Density) -> None:
    if f.diffusivity(mu).any():
        raise TypeError(
            f"PseudoSpectral takes Entropy, Potential, Interaction and what else has no diffusivity, not {f}. What "
            "would work: Forward or Backward on the Density"
        )


def _by_axis(field: Tensor, mu: Density) -> Tensor:
    """(…, n, d) -> (…, d, *shape)."""
    return field.mT.reshape(*field.shape[:-2], mu.dim, *mu.grid.shape)


class _Propagators(NamedTuple):
    """e^z, e^{z/2} and the weights of ETDRK4, for z = −diffusion·|k|²·tau on every mode."""

    whole: Tensor
    half: Tensor
    half_step: Tensor
    first: Tensor
    middle: Tensor
    end: Tensor


@lru_cache(maxsize=8)
def _weights(grid: Grid, diffusion: float, tau: float, dtype: torch.dtype, device: torch.device) -> _Propagators:
    squares = [k**2 for k in wave_numbers(grid, torch.empty((), dtype=torch.float64))]
    z = -diffusion * tau * torch.stack(torch.broadcast_tensors(*squares)).sum(0)
    p1, p2, p3 = _phi(z)
    weights = (p1 - 3 * p2 + 4 * p3, 2 * p2 - 4 * p3, 4 * p3 - p2)
    made = (z.exp(), (z / 2).exp(), tau / 2 * _phi(z / 2)[0], *(tau * w for w in weights))
    return _Propagators(*(part.to(dtype=dtype, device=device) for part in made))


def _phi(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """φ₁ = (e^z − 1)/z, φ₂ = (φ₁ − 1)/z, φ₃ = (φ₂ − ½)/z for z ≤ 0, by their series where those would cancel."""
    safe = torch.where(z > -2, -2.0, z)
    p1 = torch.expm1(safe) / safe
    p2 = (p1 - 1) / safe
    p3 = (p2 - 0.5) / safe
    near, t = z.clamp_min(-2), torch.zeros_like(z)
    for k in range(24, -1, -1):  # φ₃ = Σ z^k/(k + 3)!
        t = 1 + t * near / (k + 4)
    s3 = t / 6
    s2 = 0.5 + near * s3
    s1 = 1 + near * s2
    return torch.where(z > -2, s1, p1), torch.where(z > -2, s2, p2), torch.where(z > -2, s3, p3)


def _etdrk4(v: Tensor, drifts: list[_Parts], p: _Propagators) -> Tensor:
    """Cox and Matthews 2002, equations (26)–(29); the drifts are those of the start, the middle and the end."""
    start, middle, end = drifts
    n0 = start(v)
    a = p.half * v + p.half_step * n0
    na = middle(a)
    b = p.half * v + p.half_step * na
    nb = middle(b)
    c = p.half * a + p.half_step * (2 * nb - n0)
    return p.whole * v + p.first * n0 + p.middle * (na + nb) + p.end * end(c)


@lru_cache(maxsize=8)
def _derivative(grid: Grid, dtype: torch.dtype, device: torch.device) -> Tensor:
    """ik along each axis, (d, *modes): 0 at the highest of an even number of modes, whose sine is not resolved."""
    lines = wave_numbers(grid, torch.empty((), dtype=dtype, device=device))
    odd = [torch.where(k.abs() * h > 3.1415, 0, k) for k, h in zip(lines, grid.spacing, strict=True)]
    return torch.stack(torch.broadcast_tensors(*odd)) * 1j


def _axes(grid: Grid) -> tuple[int, ...]:
    return tuple(range(-grid.dim, 0))


def _periodic_grid(mu: Measure) -> Grid:
    if not isinstance(mu, Density):
        raise TypeError(f"PseudoSpectral runs on a Density on a periodic Grid, not on {type(mu).__name__}")
    if not all(mu.grid.periodic):
        walls = [a for a, periodic in enumerate(mu.grid.periodic) if not periodic]
        raise ValueError(f"PseudoSpectral needs a grid that is periodic along every axis; axes {walls} have walls")
    return mu.grid


@lru_cache(maxsize=8)
def _highest(grid: Grid, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Which modes are in the highest quarter along some axis, (*modes)."""
    lines = wave_numbers(grid, torch.empty((), dtype=dtype, device=device))
    high = [k.abs() * h > 0.745 * torch.pi for k, h in zip(lines, grid.spacing, strict=True)]
    return torch.stack(torch.broadcast_tensors(*high)).any(0)


def _finished(modes: Tensor, mu: Density, t: float) -> Out:
    """The Density with these modes: what is negative cut and the mass restored, ValueError beyond `NEGATIVE`."""
    grid, over = mu.grid, _axes(mu.grid)
    values = cell_averages(torch.fft.irfftn(modes, s=grid.shape, dim=over), grid)
    if not values.isfinite().all():
        raise ValueError(f"PseudoSpectral at t = {t:g} gave values that are not finite: take smaller steps")
    kept = values.clamp_min(0)
    cut = (kept - values).sum(over) * grid.volume
    if cut.max() > NEGATIVE:
        raise ValueError(
            f"PseudoSpectral at t = {t:g} gave a density with the mass {-cut.max().item():.3g} below 0: the grid does "
            "not resolve it, or the step size is too large. Use more cells or smaller steps; Forward keeps signs"
        )
    kept = kept * (values.sum(over, keepdim=True) / kept.sum(over, keepdim=True))
    high = torch.where(_highest(grid, values.dtype, values.device), modes.abs(), 0).amax(over) / values.sum(over)
    return Out(mu.with_state(values=kept), _stats(high, cut))


def _stats(high: Tensor, cut: Tensor) -> Stats:
    """Stats that do not count as converged, with a warning, where the highest modes are above `RESOLVED`."""
    unknown, one = torch.full_like(cut, torch.nan), torch.ones_like(cut, dtype=torch.int64)
    stats = Stats(high <= RESOLVED, one, torch.maximum(high, cut), unknown, unknown)
    if not stats.converged.all():
        warnings.warn(
            f"PseudoSpectral: the grid does not resolve the density, its highest modes are {high.max().item():.0e} of "
            "the mean; use more cells",
            ConvergenceWarning,
            stacklevel=4,
        )
    return stats
