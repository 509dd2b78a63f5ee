"""The exact W2 prox on a Grid by its Kantorovich dual: no blur, and no freezing below a cell."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..functionals import Functional, PorousMedium
from ..functionals.conjugate import LARGEST, Conjugate, no_conjugate
from ..functionals.constraint import constraint_in
from ..measures import Density, Grid, Measure
from ..measures.covariance import dense
from ..measures.remap import interpolate, regrid
from ..measures.transport import axes
from ..metrics import Metric, Wasserstein
from .base import OnFailure, Out, Stats, check_tau, report, require, slowest, warm_start
from .elliptic import Elliptic, Multigrid, solve
from .hopf_lax import HopfLax, envelope, tilt

COARSEST = 16  # cells along an axis at which a cold start begins
ROUGH = 1e-2  # the L1 residual to which the coarser grids are solved
NEAR = 0.1  # the L1 residual from which the previous step is a better start than they are
PAST = 1.5  # the L1 distance, at most 2, from which a density and a push-forward count as apart
PATIENCE = 8  # steps after which breaks are called back from empty cells in any case
SOLVE = 150  # iterations of each elliptic equation at most
GIVE = 0.01  # cells by which the softness of a ceiling may misplace mass
REACH, SLOWEST = 7.0, 1e-3  # the most by which the price of an empty cell may fall in one step; the least such bound
OFF = 0.5  # of the larger of ν and ρ: a greater difference is balanced cell by cell
ASTRAY = 2e-4  # the L1 residual from which cells are balanced so
TRIALS, NUDGE = 10, 0.01  # of such a balance, and the part of a cell by which its first trial moves a break
SETTLED = 1e-3  # the L1 residual at which the profiles inside cells are fixed
LATEST = 12  # the step after which they are fixed in any case: on sharp edges, carrying them may never settle
FRONT, DAMPING = 0.3, 100.0  # the part of their stiffness that neighbours lend, less from the residual 1/DAMPING on
LEAST, MOST = 1e-3, 20.0  # of that part


@dataclass(frozen=True, kw_only=True)
class Kantorovich:
    """argmin_ν F(ν) + W2²(μ, ν)/(2·tau) on a Density, for internal energies with a conjugate plus potentials.

    Newton's method for the concave dual

        max_φ ∫φᶜ dμ − F*(φ),    φᶜ(y) = min_x φ(x) + ⟨x − y, Q⁻¹(x − y)⟩/(2·tau),

    where F* is the conjugate over probability densities; its gradient is the density ρ with φ = U'(ρ) + V + const.
    φᶜ is taken axis by axis against a continuous μ (`HopfLax`), so it has the kinetic energy of steps far below a cell,
    and the gradient of ∫φᶜ dμ is a push-forward that keeps mass and sign. Each Newton step is one elliptic equation,
    −tau·div(ρ∇δ) + (U*)''δ = residual, by conjugate gradients with a multigrid cycle, with a line search on the dual.
    Without a previous step it starts on coarser grids. Where a step is cut because mass must enter empty cells, those
    cells find their prices one by one before the next.

    The result is ρ, positive wherever U'(0) = −∞, of mass 1 up to rounding. It has converged when ρ and the
    push-forward ν of μ agree in L1 to `tol` of what the step moves. Stats: `residual` is the duality gap, the primal
    value of ν less the dual value of φ, so that ν is optimal up to it; `distance2` is W2²(μ, ν); `objective` is
    F(ρ) + W2²(μ, ν)/(2·tau); `map` sends μ to ν; `potentials` (f, g) on the cells are those of the transport,
    f ⊕ g ≤ ⟨x − y, Q⁻¹(x − y)⟩ up to a part of h².

    Second order in the spacing for smooth densities, uniformly in tau; at a moving front, as of a porous medium, the
    order is lower and irregular. Q must be diagonal. It runs under no_grad: results are constants to autograd.
    """

    tol: float = 1e-5
    max_iter: int = 100
    on_failure: OnFailure = "warn"

    def __post_init__(self) -> None:
        if not self.tol > 0 or self.max_iter < 1:
            raise ValueError(f"Kantorovich needs tol > 0 and max_iter ≥ 1, not {self.tol} and {self.max_iter}")

    def supports(self, F: Functional, metric: Metric, mu: Measure) -> str | None:
        if not isinstance(metric, Wasserstein):
            return f"it computes steps in the metric Wasserstein, not {type(metric).__name__}"
        if not isinstance(mu, Density):
            return f"it works on a Density on a Grid, not on {type(mu).__name__}"
        Q = None if metric.Q is None else dense(metric.Q)
        if Q is not None and bool((Q - torch.diag_embed(Q.diagonal(dim1=-2, dim2=-1))).any()):
            return "it transports one axis after another, so Q must be diagonal; Convex takes any Q, on few cells"
        return no_conjugate(F)

    @torch.no_grad()
    def __call__(self, F: Functional, metric: Metric, mu: Measure, tau: float, last: Any = None) -> Out:
        require(self, F, metric, mu)
        check_tau(tau, F, slowest(metric))
        assert isinstance(mu, Density) and isinstance(metric, Wasserstein)
        constraint = constraint_in(F)
        impossible = None if constraint is None else constraint.impossible(mu)
        if impossible is not None:
            raise ValueError(f"{constraint}: {impossible}")
        dual = Dual.of(F, mu, tau, metric.mobility(mu).diagonal(dim1=-2, dim2=-1))
        phi, coarse = self._start(dual, F, last)
        found = self._ascend(dual, phi, self.tol, self.max_iter)
        new, point = dual.measure(mu, found.point), found.point
        F_new = F(new)
        distance2 = 2 * tau * point.transport.kinetic().reshape(mu.batch)
        stats = Stats(
            converged=found.converged.reshape(mu.batch),
            iterations=(found.iterations + coarse).reshape(mu.batch),
            residual=point.gap.reshape(mu.batch),
            objective=F_new + distance2 / (2 * tau),
            distance2=distance2,
            message=f"duality gap; the push-forward is within {point.mismatch.max().item():.2g} in L1",
            warm={"price": (point.phi - dual.potential).reshape(mu.values.shape)},
            potentials=dual.potentials(point, mu, tau),
            map=dual.map(point, mu),
        )
        advice = "raise max_iter or tol, take a smaller tau, or compare with Dynamic()"
        return Out(new, report(stats, self, advice, self.on_failure))

    def _start(self, dual: Dual, F: Functional, last: Any) -> tuple[Tensor, Tensor | int]:
        """Prices to start from, and the iterations they took.

        U'(ρ) of the previous step, or of μ itself, if they are near; else the prices of this step on a coarser grid.
        """
        warm = warm_start(last, "price", dual.mu.values)
        if warm is not None:
            phi = dual.potential + warm.reshape(dual.masses.shape)
            if bool((dual.at(phi, dual.tilts).mismatch <= NEAR).all()):
                return phi, 0
        if bool((dual.at(dual.still(), dual.tilts).mismatch <= ROUGH).all()):
            return dual.still(), 0
        grid = dual.grid
        shape = tuple(max((n + 1) // 2, min(n, COARSEST)) for n in grid.shape)
        if shape == grid.shape:
            return dual.better(dual.guess(), torch.zeros_like(dual.masses)), 0
        rough = dual.on(Grid(grid.lower, grid.upper, shape, grid.periodic), F)
        phi, before = self._start(rough, F, None)
        found = self._ascend(rough, phi, max(self.tol, ROUGH), min(self.max_iter, 20))
        return refine(found.point.phi, rough.grid, grid), before + found.iterations

    def _ascend(self, dual: Dual, phi: Tensor, tol: float, max_iter: int) -> Found:
        """Newton's method from prices φ; finished items stay where they are."""
        point = dual.at(phi, dual.tilts)
        iterations = torch.zeros_like(point.gap, dtype=torch.int64)
        settled = torch.zeros_like(point.gap, dtype=torch.bool)
        front, reach = torch.full_like(point.gap, FRONT), torch.full_like(point.gap, REACH)
        empty = (dual.masses == 0).flatten(1).any(-1)
        for k in range(max_iter):
            done = settled & dual.agrees(point, tol)
            if not bool(settled.all()):
                now = (point.mismatch <= SETTLED) | dual.agrees(point, tol) | (k >= LATEST)
                point, settled = dual.reprofiled(point, settled, now), settled | now
                done = settled & dual.agrees(point, tol)
            if bool(done.all()):
                break
            iterations += ~done
            bold = (empty | (k > PATIENCE)) & (dual.grid.dim == 1)
            step = dual.newton(point, front, reach, bold)
            point, length, gain = dual.search(point, torch.where(_wide(done, step), 0, step))
            point, cut = dual.lowered(point), length < 0.5
            lost = cut & (point.mismatch > ASTRAY)
            if bool(lost.any()):
                point = dual.balanced(point, lost)
            front = _eased(front, length, gain)
            reach = torch.where(cut, reach / 4, 2 * reach).clamp(SLOWEST, REACH)
        return Found(point, settled & dual.agrees(point, tol), iterations)


@dataclass(frozen=True, eq=False)
class Found:
    """The last point of an ascent."""

    point: Point
    converged: Tensor
    iterations: Tensor


@dataclass(frozen=True, eq=False)
class Point:
    """The dual at prices φ: its value, the density ρ of these prices and the transport of μ that they make."""

    phi: Tensor
    level: Tensor  # the constant with mass 1
    tilts: tuple[Tensor, ...]
    transport: HopfLax
    rho: Tensor
    value: Tensor
    gap: Tensor
    rest: Tensor  # ν − ρ, masses: the gradient of the dual

    @property
    def mismatch(self) -> Tensor:
        """‖ν − ρ‖₁."""
        return self.rest.abs().flatten(1).sum(-1)


@dataclass(frozen=True, eq=False)
class Dual:
    """The dual of one step on cells (batch, *shape)."""

    mu: Density
    masses: Tensor
    energy: Conjugate
    potential: Tensor
    speeds: tuple[Tensor, ...]
    tilts: tuple[Tensor, ...]
    stretch: Tensor  # τQ_aa, (batch or 1, d)

    @classmethod
    def of(cls, F: Functional, mu: Density, tau: float, mobility: Tensor) -> Dual:
        return cls.build(F, mu, tau * mobility.reshape(-1, mu.dim))

    @classmethod
    def build(cls, F: Functional, mu: Density, stretch: Tensor) -> Dual:
        masses = mu.masses.reshape(-1, *mu.grid.shape)
        energy = Conjugate.of(F, mu)
        if not energy.energies:  # a ceiling alone: prices rise from 0 to GIVE·h²/τ as it is reached
            rise = GIVE * min(h**2 / s for a, h in enumerate(mu.grid.spacing) for s in stretch[:, a].tolist())
            energy = replace(energy, energies=((rise / (2 * energy.ceiling), PorousMedium(2.0)),))
        speeds = tuple(stretch[:, a] / h**2 for a, h in enumerate(mu.grid.spacing))
        tilts = tuple(tilt(masses, axis) for axis in axes(mu.grid))
        return cls(mu, masses, energy, energy.potential.reshape(masses.shape), speeds, tilts, stretch)

    def on(self, grid: Grid, F: Functional) -> Dual:
        """The same step on another grid over the same box."""
        masses = regrid(self.masses, self.grid, grid).reshape(*self.mu.batch, *grid.shape)
        return Dual.build(F, Density(masses / grid.volume, grid), self.stretch)

    @property
    def grid(self) -> Grid:
        return self.mu.grid

    @property
    def volume(self) -> float:
        return self.grid.volume

    def guess(self) -> Tensor:
        """V plus the price of the uniform density where μ is below it, of μ elsewhere."""
        return self._price(1 / (self.grid.n * self.volume))

    def better(self, phi: Tensor, other: Tensor) -> Tensor:
        """φ, or the other prices where φ sends μ past its density and the dual is larger there."""
        mine, its = (self.at(prices, self.tilts) for prices in (phi, other))
        past = (mine.mismatch > PAST) & (its.value > mine.value)
        return torch.where(_wide(past, phi), other, phi)

    def still(self) -> Tensor:
        """The prices of μ."""
        return self._price(math.exp(-LARGEST))

    def _price(self, floor: float) -> Tensor:
        rho = (self.masses / self.volume).clamp_min(max(floor, torch.finfo(self.masses.dtype).tiny))
        return self.potential + self.energy.price(rho.log())[0]

    def at(self, phi: Tensor, tilts: tuple[Tensor, ...], level: Tensor | None = None) -> Point:
        transport = HopfLax.of(phi, self.masses, self.grid, self.speeds, tilts)
        price = phi - self.potential
        level = self.level(price, level)
        p = price - _wide(level, price)
        rho = self.energy.density(p)
        rho = rho / _wide(self.total(rho), rho)
        nu = transport.image / self.volume
        conjugate = p * rho - self.energy.energy(rho)
        value = (self.masses * transport.value).flatten(1).sum(-1) - level - self.total(conjugate)
        gap = self.total(self.energy.energy(nu) + conjugate - p * nu)
        return Point(phi, level, tilts, transport, rho, value, gap, transport.image - rho * self.volume)

    def level(self, price: Tensor, near: Tensor | None) -> Tensor:
        """k with ∫(U*)'(price − k) = 1, by Newton's method for the logarithm of the mass, with a bracket."""
        uniform = price.new_tensor(1 / (self.grid.n * self.volume)).log()
        at_uniform = self.energy.price(uniform)[0]
        low, high = price.flatten(1).amin(-1) - at_uniform, price.flatten(1).amax(-1) - at_uniform
        k = high if near is None else torch.minimum(torch.maximum(near, low), high)
        eps = torch.finfo(price.dtype).eps
        for _ in range(200):
            rho = self.energy.density(price - _wide(k, price))
            mass = self.total(rho)
            low, high = torch.where(mass >= 1, k, low), torch.where(mass <= 1, k, high)
            slope = self.total(self.energy.softness(rho))
            ahead = k + mass.log() * mass / slope
            ahead = torch.where((ahead >= low) & (ahead <= high), ahead, (low + high) / 2)
            if bool((((mass - 1).abs() <= 4 * eps) | ((ahead - k).abs() <= 2 * eps * k.abs())).all()):
                break
            k = ahead
        return k

    def agrees(self, point: Point, tol: float) -> Tensor:
        """Whether ν and ρ differ by less than `tol` of what the step moves, or √eps for rounding, in L1."""
        moved = (point.transport.image - self.masses).abs().flatten(1).sum(-1)
        return point.mismatch <= (tol * moved).clamp_min(torch.finfo(moved.dtype).eps ** 0.5)

    def total(self, f: Tensor) -> Tensor:
        return f.flatten(1).sum(-1) * self.volume

    def reprofiled(self, point: Point, settled: Tensor, now: Tensor) -> Point:
        """The profiles inside cells as the transport carries them; measured once more where the point settles."""
        carried, measured = point.transport.carried(self.tilts), point.transport.measured()
        tilts = []
        for old, moved, fixed in zip(point.tilts, carried, measured, strict=True):
            tilts.append(torch.where(_wide(settled, old), old, torch.where(_wide(now, old), fixed, moved)))
        return self.at(point.phi, tuple(tilts), point.level)

    def newton(self, point: Point, front: Tensor, reach: Tensor, bold: Tensor) -> Tensor:
        """The Newton step: (−∇²)⁻¹ of the gradient, to a part of it.

        Cells that the transport cannot see (empty, at a front) borrow stiffness from their neighbours.
        """
        rho = point.rho
        p = point.phi - self.potential - _wide(point.level, rho)
        nu = torch.maximum(point.transport.image / self.volume, _wide((-reach).exp(), rho) * rho)
        softness = torch.maximum(self.energy.chord(p, rho, nu) * self.volume, -point.rest / _wide(reach, rho))
        softness = softness + 1e-12 * softness.flatten(1).amax(-1).reshape(-1, *(1,) * self.grid.dim)
        thin = 0.1 * _wide(point.mismatch, rho) * self.masses.flatten(1).amax(-1).reshape(-1, *(1,) * self.grid.dim)
        wanted = (rho > 0) | (not self.energy.vacuum)
        response = point.transport.respond(thin, (wanted & _wide(bold, rho)).to(rho))
        near = response.local()
        share = (DAMPING * point.mismatch).clamp_max(1.0) * front
        lent = tuple(self._lent(k, axis, share) for k, axis in zip(near, axes(self.grid), strict=True))
        approximate = Elliptic(softness, tuple(k + e for k, e in zip(near, lent, strict=True)), axes(self.grid))
        rest = Elliptic(softness, lent, axes(self.grid))
        inverse = Multigrid.of(approximate)

        def operator(f: Tensor) -> Tensor:
            return response(f) + rest(f)

        step = solve(operator, inverse, point.rest + response.lack(), 1e-2, SOLVE)
        uphill = (step * point.rest).flatten(1).sum(-1) > 0
        if bool(uphill.all()):
            return step
        return torch.where(_wide(uphill, step), step, solve(operator, inverse, point.rest, 1e-2, SOLVE))

    def _lent(self, k: Tensor, axis: Any, share: Tensor) -> Tensor:
        around = k
        for other in axes(self.grid):
            around = torch.maximum(around, torch.maximum(around.roll(1, other.dim), around.roll(-1, other.dim)))
        largest = 1e-8 * k.flatten(1).amax(-1)
        lent = torch.maximum(_wide(share, k) * around - k, _wide(largest, k))
        if not axis.periodic:
            lent = lent.clone()
            lent.narrow(axis.dim, axis.n - 1, 1).zero_()
        return lent

    def search(self, point: Point, step: Tensor) -> tuple[Point, Tensor, Tensor]:
        """The first point along the step, halved until the dual grows by a part of what its slope promises.

        With it the length of the step and the growth by that of the slope: ½ for the Newton step of a quadratic.
        """
        slope = (point.rest * step).flatten(1).sum(-1)
        rounding = 16 * torch.finfo(slope.dtype).eps * (1 + point.value.abs())
        length = torch.ones_like(slope)
        for _ in range(10):
            ahead = self.at(point.phi + _wide(length, step) * step, point.tilts, point.level)
            enough = ahead.value >= point.value + 1e-4 * length * slope - rounding
            if bool(enough.all()):
                break
            length = torch.where(enough, length, length / 2)
        return ahead, length, (ahead.value - point.value) / slope.clamp_min(torch.finfo(slope.dtype).tiny)

    def lowered(self, point: Point) -> Point:
        """The point with its prices replaced by their envelope, where the dual does not fall by it."""
        phi = envelope(point.phi, self.speeds, self.grid)
        if bool((phi == point.phi).all()):
            return point
        ahead = self.at(phi, point.tilts, point.level)
        better = _wide(ahead.value >= point.value, phi)
        if bool(better.all()):
            return ahead
        return self.at(torch.where(better, phi, point.phi), point.tilts, point.level)

    def balanced(self, point: Point, items: Tensor) -> Point:
        """The point after the cells with ν ≪ ρ or ρ ≪ ν have found their own prices, the others fixed.

        No linear model finds those: at the edge of the support of μ the response of ν to a price jumps from nothing.
        Of the cells, every other one along each axis moves at the same time.
        """
        parts = 2**self.grid.dim
        for part in range(parts):
            nu, rho = point.transport.image, point.rho * self.volume
            off = (point.rest.abs() > OFF * torch.maximum(nu, rho)) & _wide(items, nu) & self._every_other(part)
            off = off & (point.rest.abs() > 0.01 * _wide(point.mismatch, nu) / self.grid.n)
            if bool(off.any()):
                point = self._towards(point, self._balance(point, off))
        return point

    def _every_other(self, part: int) -> Tensor:
        """Cells with the parities that are the binary digits of `part`."""
        chosen = torch.ones(self.grid.shape, dtype=torch.bool, device=self.masses.device)
        for axis in axes(self.grid):
            chosen.movedim(axis.dim, -1)[..., 1 - (part & 1) :: 2] = False
            part >>= 1
        return chosen

    def _balance(self, point: Point, off: Tensor) -> Tensor:
        """Prices with ν = ρ in the cells `off` one by one: a bracket by growing steps, then false position in turn
        with bisection."""
        phi, rest, zero = point.phi, point.rest, torch.zeros_like(point.phi)
        low, high, over, under = zero - torch.inf, zero + torch.inf, zero, zero
        jump = zero + NUDGE / _wide(torch.stack([speed.flatten() for speed in self.speeds]).amax(0), zero)
        for k in range(TRIALS):
            cheap = rest > 0
            low, over = torch.where(cheap, phi, low), torch.where(cheap, rest, over)
            high, under = torch.where(cheap, high, phi), torch.where(cheap, under, rest)
            between = 0.5 if k % 2 else (over / (over - under)).clamp(0.02, 0.98)
            inside = torch.isfinite(high - low)
            ahead = torch.where(inside, low + (high - low) * between, torch.where(cheap, phi + jump, phi - jump))
            phi, jump = torch.where(off, ahead, point.phi), 4 * jump
            rest = self.at(phi, point.tilts, point.level).rest
        return phi

    def _towards(self, point: Point, phi: Tensor) -> Point:
        """A point towards φ where the dual is no smaller: all the way, or a part of it."""
        share = torch.ones_like(point.value)
        for _ in range(4):
            ahead = self.at(point.phi + _wide(share, phi) * (phi - point.phi), point.tilts, point.level)
            better = ahead.value >= point.value
            if bool(better.all()):
                return ahead
            share = torch.where(better, share, share / 3)
        return self.at(torch.where(_wide(better, phi), ahead.phi, point.phi), point.tilts, point.level)

    def measure(self, mu: Density, point: Point) -> Density:
        return mu.with_state(values=point.rho.reshape(mu.values.shape))

    def potentials(self, point: Point, mu: Density, tau: float) -> tuple[Tensor, Tensor]:
        f, g = 2 * tau * point.transport.value, -2 * tau * point.phi
        return f.reshape(*mu.batch, -1), g.reshape(*mu.batch, -1)

    def map(self, point: Point, mu: Density) -> Callable[[Tensor], Tensor]:
        """y ↦ y − τQ∇φᶜ(y), by central differences, multilinear between centres."""
        slopes = [axis.slope(point.transport.value).reshape(mu.values.shape) for axis in axes(self.grid)]

        def T(y: Tensor) -> Tensor:
            gradient = torch.stack([interpolate(slope, self.grid, y) for slope in slopes], -1)
            stretch = self.stretch.reshape(*(self.mu.batch if self.stretch.shape[0] > 1 else ()), 1, self.grid.dim)
            return self.grid.wrap(y - stretch * gradient)

        return T


def refine(cells: Tensor, coarse: Grid, fine: Grid) -> Tensor:
    """Linear interpolation of cells (batch, *shape) from one grid to another over the same box, continued at walls."""
    for a, axis in enumerate(axes(coarse)):
        n, m = coarse.shape[a], fine.shape[a]
        u = (torch.arange(m, dtype=cells.dtype, device=cells.device) + 0.5) * n / m - 0.5
        low = u.floor() if axis.periodic else u.floor().clamp(0, max(n - 2, 0))
        line, r, i = cells.movedim(axis.dim, -1), u - low, low.long()
        above = (i + 1) % n if axis.periodic else (i + 1).clamp_max(n - 1)
        cells = ((1 - r) * line[..., i % n] + r * line[..., above]).movedim(-1, axis.dim)
    return cells


def _eased(damping: Tensor, length: Tensor, gain: Tensor) -> Tensor:
    """More damping after a step that was cut; less, the further the dual grew beyond its model."""
    eased = torch.where(gain > 0.8, damping / 4, torch.where(gain > 0.6, damping / 2, damping))
    return torch.where(length < 0.5, 4 * damping, eased).clamp(LEAST, MOST)


def _wide(items: Tensor, like: Tensor) -> Tensor:
    """Numbers by item as a tensor that broadcasts over cells."""
    return items.reshape(-1, *(1,) * (like.ndim - 1))
