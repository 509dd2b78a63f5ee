"""The Hopf–Lax transform between cells of a Grid, axis by axis, and the push-forward that is its exact gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..measures.grid import Grid
from ..measures.transport import Axis, axes
from .elliptic import spring


@dataclass(frozen=True, eq=False)
class Lines:
    """The transform along the last axis: prices φ at the n cells x_j of each line, seen from the cells around y_b.

    (Hφ)_b = ∫_b min_j [φ_j + |x_j − y|²/(2τ)] w_b(y) dy, less its value at φ = 0, with the mass of cell b spread as
    w_b = (1 + s_b t)/h, t = (y − y_b)/h. In units of h, cell j is best between the breaks S_{j−½} and S_{j+½}, where
    S_{j+½} = j + 1 + (τ/h²)(φ_{j+1} − φ_j) once φ is replaced by its envelope (`isotonic`). Breaks and cell walls cut
    the line into pieces; each belongs to one `source` b and one `target` j and carries the fraction `share` of b to j.
    """

    breaks: Tensor
    raw: Tensor  # S_{j+½} before the envelope
    source: Tensor
    target: Tensor
    share: Tensor
    value: Tensor
    cost: Tensor  # what moving the mass of each cell costs, per unit mass
    tilt: Tensor
    speed: Tensor
    periodic: bool

    @classmethod
    def of(cls, phi: Tensor, tilt: Tensor, speed: Tensor, periodic: bool) -> Lines:
        """From φ and s (*lines, n); `speed` is τ/h², broadcast to the lines."""
        n, speed = phi.shape[-1], speed.expand(*phi.shape[:-1], 1)
        breaks, raw = _breaks(phi, speed, periodic)
        source, target, jump, low, high = _pieces(breaks, n, periodic)
        s, width = tilt.gather(-1, source), high - low
        share = width * (1 + s * (low + high) / 2)
        moment = width * ((low + high) / 2 + s * (low * low + low * high + high * high) / 3)
        cost = (jump * jump * share - 2 * jump * moment) / (2 * speed)
        value, paid = torch.zeros_like(phi), torch.zeros_like(phi).scatter_add(-1, source, cost)
        value = value.scatter_add(-1, source, share * phi.gather(-1, target)) + paid
        return cls(breaks, raw, source, target, share, value, paid, tilt, speed, periodic)

    def pull(self, f: Tensor) -> Tensor:
        """(Kf)_b = Σ_j share(b → j) f_j."""
        return torch.zeros_like(f).scatter_add(-1, self.source, self.share * f.gather(-1, self.target))

    def push(self, masses: Tensor) -> Tensor:
        """(Kᵀm)_j = Σ_b share(b → j) m_b, which is the gradient of Σ_b m_b (Hφ)_b in φ."""
        return torch.zeros_like(masses).scatter_add(-1, self.target, self.share * masses.gather(-1, self.source))

    def response(self, masses: Tensor, thin: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """How the mass below each break follows φ: its rate (τ/h²)·(density at the break), and what it lacks.

        −∂²/∂φ² of Σ m Hφ is Dᵀ(rate)D, D the differences across the faces above cells. Both are those of breaks without
        the envelope, in a density that goes on from the nearest cell with more than `thin` mass where there is less, or
        a wall; `lack` is how much more mass that is below the break. Newton's method then brings stray breaks back in
        one step; with the density at the break alone it would take ever more, as for the root of N ↦ log N.
        """
        n, free = masses.shape[-1], torch.where(wanted, self.raw, self.breaks[..., 1:])
        heavy, index = masses > thin, torch.arange(n, device=masses.device).expand_as(masses)
        cell = self._cell(free)
        left = torch.where(heavy, index, -1).cummax(-1).values.gather(-1, cell)
        right = torch.where(heavy, index, n).flip(-1).cummin(-1).values.flip(-1).gather(-1, cell)
        below, above = free - (left + 1), right - free
        below = torch.where((left >= 0) & (below > 0), below, torch.inf)
        above = torch.where((right < n) & (above > 0), above, torch.inf)
        light = wanted & torch.isfinite(torch.minimum(below, above))
        nearest = torch.where(below <= above, left, right).clamp(0, n - 1)
        gap = torch.where(light, torch.where(below <= above, below, -above), 0)
        edge = masses.gather(-1, nearest)
        below_break, rate = self._integral(masses, torch.where(light, free - gap, free))
        rate, extended = torch.where(light, edge, rate), below_break + torch.where(light, edge * gap, 0)
        lack = extended - self._integral(masses, self.breaks[..., 1:])[0]
        if not self.periodic:
            rate, lack = (torch.cat([f[..., :-1], torch.zeros_like(f[..., :1])], -1) for f in (rate, lack))
        return self.speed * rate, lack

    def _cell(self, s: Tensor) -> Tensor:
        n = self.tilt.shape[-1]
        return s.floor().long() % n if self.periodic else s.floor().long().clamp(0, n - 1)

    def _integral(self, masses: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Mass below the points s and density there, on a periodic axis with all periods counted."""
        cell = self._cell(s)
        start = cell if not self.periodic else s.floor()
        t, m, tilt = s - start - 0.5, masses.gather(-1, cell), self.tilt.gather(-1, cell)
        before = (masses.cumsum(-1) - masses).gather(-1, cell)
        if self.periodic:
            before = before + masses.sum(-1, keepdim=True) * torch.div(start - cell, self.tilt.shape[-1])
        else:
            t = t.clamp(-0.5, 0.5)
        return before + m * (t + 0.5 + tilt * (t * t - 0.25) / 2), m * (1 + tilt * t)


def _breaks(phi: Tensor, speed: Tensor, periodic: bool) -> tuple[Tensor, Tensor]:
    """S_{−½}, …, S_{n−½} in units of cells, non-decreasing and between walls, (*lines, n + 1); and S_{½}, … without.

    With walls, the last of these means nothing.
    """
    n = phi.shape[-1]
    free = torch.arange(1, n + 1, dtype=phi.dtype, device=phi.device) + speed * (phi.roll(-1, -1) - phi)
    if not periodic:
        inner = isotonic(free[..., :-1]).clamp(0, n)
        return torch.nn.functional.pad(torch.nn.functional.pad(inner, (1, 0)), (0, 1), value=float(n)), free
    upper = free
    if bool((free.diff(dim=-1) < 0).any()) or bool((free[..., :1] < free[..., -1:] - n).any()):
        upper = isotonic(torch.cat([free - n, free, free + n], -1))[..., n : 2 * n]
    return torch.cat([upper[..., -1:] - n, upper], -1), free


def envelope(phi: Tensor, speeds: Sequence[Tensor], grid: Grid) -> Tensor:
    """φ with every cell that no y prefers along its own lines lowered to the first value at which one would.

    That is the convex envelope of |x|²/2 + τφ along each axis with walls. The transform of φ sees no difference.
    """
    for axis, speed in reversed(list(zip(axes(grid), speeds, strict=True))):
        if axis.periodic or axis.n < 3:
            continue
        along, rate = phi.movedim(axis.dim, -1), speed.reshape(-1, *(1,) * (phi.ndim - 1))
        faces = torch.arange(1, axis.n, dtype=phi.dtype, device=phi.device)
        free = faces + rate * along.diff(dim=-1)
        lowered = ((isotonic(free) - free) / rate).cumsum(-1).clamp_max(0)
        phi = torch.cat([along[..., :1], along[..., 1:] + lowered], -1).movedim(-1, axis.dim)
    return phi


def isotonic(v: Tensor) -> Tensor:
    """The non-decreasing sequence nearest to v along the last axis, by pooling adjacent violators.

    Applied to the slopes of a function it gives the slopes of its convex envelope (Barlow et al. 1972).
    """
    pooled, start = v, None
    while bool((pooled.diff(dim=-1) < 0).any()):
        kept = pooled.diff(dim=-1) >= 0 if start is None else (pooled.diff(dim=-1) >= 0) & start
        start = kept
        block = torch.nn.functional.pad(kept.long().cumsum(-1), (1, 0))
        total = torch.zeros_like(v).scatter_add(-1, block, v)
        size = torch.zeros_like(v).scatter_add(-1, block, torch.ones_like(v))
        pooled = (total / size.clamp_min(1)).gather(-1, block)
    return pooled


def _pieces(breaks: Tensor, n: int, periodic: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Source, target and target − source (unwrapped) of each piece, and its ends from the centre of its cell."""
    walls = torch.arange(n + 1, dtype=breaks.dtype, device=breaks.device).expand(*breaks.shape[:-1], -1)
    if periodic:
        inner, walls = breaks, walls[..., 1:] + breaks[..., :1].floor()
    else:
        inner = breaks[..., 1:-1]
    cuts, order = torch.cat([walls, inner], -1).sort(dim=-1, stable=True)
    target = (order[..., :-1] >= walls.shape[-1]).long().cumsum(-1) - int(periodic)
    left, right = cuts[..., :-1], cuts[..., 1:]
    cell = ((left + right) / 2).floor()
    cell = cell if periodic else cell.clamp_max(n - 1)  # what lies between breaks at the upper wall is empty
    jump, centre = target - cell, cell + 0.5
    source = cell.long() % n if periodic else cell.long()
    return source, target, jump, left - centre, right - centre


@dataclass(frozen=True, eq=False)
class HopfLax:
    """φ ↦ φᶜ = H_0 H_1 … φ on a Grid, the axes one after another, and the transport μ ↦ ν that is its gradient.

    φᶜ is close to min_x φ(x) + |x − y|²/(2τ) averaged over cells: as that minimum, it is taken one axis after another.
    Σ μ φᶜ is concave in φ, and ν = ∂(Σ μ φᶜ)/∂φ is non-negative and has the mass of μ. Masses are profiles inside
    cells, linear with the slopes `tilts`, so both are second order in the spacing for any τ, also where τ|∇φ| is far
    below a cell: ν is then μ less the divergence of second-order upwind fluxes. Arrays are (batch, *shape).
    """

    lines: tuple[Lines, ...]
    masses: tuple[Tensor, ...]  # before the push along each axis
    value: Tensor
    image: Tensor
    axes: tuple[Axis, ...]

    @classmethod
    def of(cls, phi: Tensor, masses: Tensor, grid: Grid, speeds: Sequence[Tensor], tilts: Sequence[Tensor]) -> HopfLax:
        """`speeds` are τQ_aa/h_a² by axis, (batch, 1); `tilts` the relative slopes along each axis."""
        lines: list[Lines] = []
        for axis, speed, tilt in reversed(list(zip(axes(grid), speeds, tilts, strict=True))):
            along = phi.movedim(axis.dim, -1)
            speed = speed.reshape(-1, *(1,) * (phi.ndim - 1))
            lines.insert(0, Lines.of(along, tilt.movedim(axis.dim, -1), speed, axis.periodic))
            phi = lines[0].value.movedim(-1, axis.dim)
        stages = [masses]
        for axis, line in zip(axes(grid), lines, strict=True):
            stages.append(_along(line.push, stages[-1], axis))
        return cls(tuple(lines), tuple(stages[:-1]), phi, stages[-1], axes(grid))

    @property
    def steps(self) -> tuple[tuple[Axis, Lines, Tensor], ...]:
        return tuple(zip(self.axes, self.lines, self.masses, strict=True))

    def kinetic(self) -> Tensor:
        """Σ μ φᶜ − Σ ν φ, which is W2²(μ, ν)/(2τ), summed over what each axis moves: (batch,)."""
        total = torch.zeros_like(self.value.flatten(1)[:, 0])
        for axis, line, masses in self.steps:
            total = total + (line.cost * masses.movedim(axis.dim, -1)).flatten(1).sum(-1)
        return total

    def respond(self, thin: Tensor, wanted: Tensor) -> Response:
        """The linear response of ν to φ; cells with less than `thin` of the mass, (batch, 1, …), count as empty.

        `wanted` is 1 on cells that ought to have mass and 0 on others: breaks between such cells cannot stay in the
        empty, where others may.
        """
        found: list[tuple[Tensor, Tensor]] = []
        for axis, line, masses in reversed(self.steps):
            along = wanted.movedim(axis.dim, -1)
            rate, lack = line.response(
                masses.movedim(axis.dim, -1), thin, torch.minimum(along, along.roll(-1, -1)) > 0.999
            )
            found.insert(0, (rate.movedim(-1, axis.dim), lack.movedim(-1, axis.dim)))
            wanted = _along(line.pull, wanted, axis)
        return Response(self, tuple(rate for rate, _ in found), tuple(lack for _, lack in found))

    def carried(self, tilts: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Slopes of μ inside cells at each stage of the transport, carried with the mass."""
        found, slopes = [], [tilt * self.masses[0] for tilt in tilts]
        for a, (axis, line, masses) in enumerate(self.steps):
            found.append(torch.where(masses > 0, slopes[a] / masses, 0).nan_to_num(0).clamp(-2, 2))
            slopes = [_along(line.push, slope, axis) for slope in slopes]
        return tuple(found)

    def measured(self) -> tuple[Tensor, ...]:
        """Slopes inside cells from the masses at each stage."""
        return tuple(tilt(masses, axis) for axis, _, masses in self.steps)


@dataclass(frozen=True, eq=False)
class Response:
    """The linear response of ν to φ: −∇²(Σ μ φᶜ) = Σ_a K_dᵀ…K_{a+1}ᵀ D_aᵀ rate_a D_a K_{a+1}…K_d."""

    transport: HopfLax
    rates: tuple[Tensor, ...]  # of the faces above cells along each axis, on the cells that its stage sees
    lacks: tuple[Tensor, ...]

    def __call__(self, f: Tensor) -> Tensor:
        pulled = [f]
        for axis, line, _ in reversed(self.transport.steps[1:]):
            pulled.insert(0, _along(line.pull, pulled[0], axis))
        total = torch.zeros_like(f)
        for (axis, line, _), k, g in zip(self.transport.steps, self.rates, pulled, strict=True):
            total = _along(line.push, total, axis) + spring(g, k, axis)
        return total

    def lack(self) -> Tensor:
        """What ν lacks where breaks stand in empty cells (`Lines.response`)."""
        total = torch.zeros_like(self.lacks[0])
        for (axis, line, _), lack in zip(self.transport.steps, self.lacks, strict=True):
            total = _along(line.push, total, axis) + lack - lack.roll(1, axis.dim)
        return total

    def local(self) -> tuple[Tensor, ...]:
        """The rates carried to the cells of φ, so that the response is about Σ_a D_aᵀ k_a D_a."""
        found, steps = [], self.transport.steps
        for a, k in enumerate(self.rates):
            dim, below = steps[a][0].dim, k
            above = k.roll(1, dim)
            for axis, line, _ in steps[a + 1 :]:  # by the lines of the cells below the faces, and above
                below, above = _along(line.push, below, axis), _along(line.push, above, axis)
            found.append((below + above.roll(-1, dim)) / 2)
        return tuple(found)


def tilt(masses: Tensor, axis: Axis) -> Tensor:
    """Limited increment of the density over each cell, relative to its mean: at most 2 in size, 0 in empty cells.

    In the plane and in space 0 next to them too: there the edge of the support cuts cells aslant, so that what a cell
    holds says where the edge is and not how the density falls; ν would respond to φ by a square root.
    """
    slopes = torch.where(masses > 0, axis.limited(masses) / masses, 0).nan_to_num(0).clamp(-2, 2)
    on_a_line = masses.dim() == 2  # items and one axis
    return slopes if on_a_line else torch.where(_inside(masses > 0, axis), slopes, 0)


def _inside(full: Tensor, axis: Axis) -> Tensor:
    """Cells whose neighbours along the axis are full."""
    along = full.movedim(axis.dim, -1)
    below, above = along.roll(1, -1), along.roll(-1, -1)
    if not axis.periodic:
        below[..., 0], above[..., -1] = True, True
    return (below & above).movedim(-1, axis.dim)


def _along(operation: Callable[[Tensor], Tensor], f: Tensor, axis: Axis) -> Tensor:
    return operation(f.movedim(axis.dim, -1)).movedim(-1, axis.dim)
