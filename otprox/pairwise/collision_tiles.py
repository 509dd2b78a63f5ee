"""Collisions over all pairs in tiles of the size of a cache: differences axis by axis, sums as matrix products."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .collision_pairs import at_one_place
from .products import budget

SHARE = 7  # tensors of pairs that fit in the budget of a tile: four are in use, and the cache holds other things


def tiled_collisions(x: Tensor, u: Tensor, y: Tensor, v: Tensor, w: Tensor, gamma: float) -> Tensor:
    """Σ_j w_j A(x_i − y_j)(u_i − v_j); shapes as in `collide`. Each pair of tiles once where y is x and v is u."""
    same = x is y and u is v
    batch = torch.broadcast_shapes(*(t.shape[:-2] for t in (x, u, y, v)), w.shape[:-1])
    points = joined(x, u, batch)
    sources = points if same else joined(y, v, batch)
    w = w.expand(*batch, w.shape[-1]).reshape(-1, w.shape[-1], 1)
    out = torch.empty_like(points[:, 0].mT, memory_format=torch.contiguous_format)
    step = max(1, pairs(x) // max(1, points.shape[-1] * sources.shape[-1]))
    for start in range(0, len(out), step):
        some = slice(start, start + step)
        out[some] = _Tiles.of(points[some], sources[some], w[some], gamma, same).total()
    return out.reshape(*batch, *out.shape[-2:])


def pairs(x: Tensor) -> int:
    """Pairs in a tile: as many for each thread as its cache holds."""
    return budget(x) // SHARE * (torch.get_num_threads() if x.device.type == "cpu" else 1)


def joined(x: Tensor, u: Tensor, batch: torch.Size) -> Tensor:
    """x and u, (b, 2, d, n), with the batch flat."""
    both = torch.stack([t.expand(*batch, *t.shape[-2:]).mT for t in (x, u)], -3)
    return both.reshape(-1, *both.shape[-3:])


@dataclass(frozen=True, eq=False)
class _Tiles:
    """One sum, made ready: blocks of pairs are added up in `far` and `near`.

    A pair contributes w_j(P q − T z), P = |z|^{γ+2} and T = |z|^γ z·q. The sums of P against [w, w v] and of T against
    [w, w y] are matrix products, in which close pairs would cancel where γ < −1: a block that has some forms P q − T z.
    Differences are those of the points as given; the products take them about the mean of the sources.
    """

    points: Tensor  # (b, 2, d, m): x and u
    sources: Tensor  # (b, 2, d, n): y and v
    centre: Tensor  # (b, 2, d, 1)
    w: Tensor  # (b, n, 1)
    gamma: float
    same: bool
    radius: float  # largest |y − centre|²
    moments: Tensor  # (b, 2, n, 1 + d): [w, w v] and [w, w y]
    far: Tensor  # (b, 2, m, 1 + d)
    near: Tensor  # (b, m, d)
    buffer: Tensor  # (4·pairs,)

    @classmethod
    def of(cls, points: Tensor, sources: Tensor, w: Tensor, gamma: float, same: bool) -> _Tiles:
        centre = sources.mean(-1, keepdim=True)
        centred = sources - centre
        radius = centred[:, 0].square().sum(-2).amax().item()
        both = w[:, None].expand(-1, 2, -1, -1)
        moments = torch.cat([both, both * centred.flip(1).mT], -1)
        b, _, d, m = points.shape
        far, near = points.new_zeros(b, 2, m, 1 + d), points.new_zeros(b, m, d)
        buffer = points.new_empty(4 * max(pairs(w), b))
        return cls(points, sources, centre, w, gamma, same, radius, moments, far, near, buffer)

    def total(self) -> Tensor:
        m, n, most = self.points.shape[-1], self.sources.shape[-1], len(self.buffer) // (4 * len(self.w))
        rows = min(m, max(1, math.isqrt(most) // 16 * 16)) if m * n > most else m
        columns = rows if self.same else max(1, most // max(1, rows))
        for i in range(0, m, rows):
            for j in range(i if self.same else 0, n, columns):
                self.add(slice(i, i + rows), slice(j, j + columns), mirrored=self.same and i != j)
        (P, T), (x, u) = self.far.unbind(1), (self.points - self.centre).mT.unbind(1)
        return self.near + u * P[..., :1] - P[..., 1:] - x * T[..., :1] + T[..., 1:]

    def add(self, i: slice, j: slice, mirrored: bool) -> None:
        """Add what the sources j do to the points i, and, mirrored, what the points do to the sources."""
        a, b = self.points[..., i, None], self.sources[..., None, j]
        shape = (2, len(a), 2, a.shape[-2], b.shape[-1])
        zq, PT = self.buffer[: math.prod(shape)].view(shape)
        invariants(a, b, zq, PT)
        s = PT[:, 0]
        least, zero = s.amin().item(), None
        if least == 0:
            zero = self.checked(s == 0, a, b)
            least = s.masked_fill_(zero, self.radius or 1.0).amin().item()
        PT.mul_(power(s, self.gamma, out=zq[:, 0])[:, None])
        if zero is not None:
            PT[:, 0].masked_fill_(zero, 0.0)
        if least < self.radius * close(self.gamma, self.w.dtype):
            self.add_near(PT, zq, i, j, mirrored)
        else:
            self.add_far(PT, i, j, mirrored)

    def checked(self, zero: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """The pairs at one place, refused where A is infinite unless they have one covector."""
        if self.gamma < -2 and not self.same and (zero & (a[:, 1] != b[:, 1]).any(1)).any():
            raise ValueError(at_one_place(self.gamma))
        return zero

    def add_far(self, PT: Tensor, i: slice, j: slice, mirrored: bool) -> None:
        weights, far, moments = (t.flatten(0, 1) for t in (PT, self.far, self.moments))
        far[:, i].baddbmm_(weights, moments[:, j])
        if mirrored:
            far[:, j].baddbmm_(weights.mT, moments[:, i])

    def add_near(self, PT: Tensor, zq: Tensor, i: slice, j: slice, mirrored: bool) -> None:
        (P, T), (z, q) = PT.unbind(1), zq.unbind(1)
        for axis in range(self.near.shape[-1]):
            torch.sub(self.points[:, :, axis, i, None], self.sources[:, :, axis, None, j], out=zq)
            force = q.mul_(P).addcmul_(z, T, value=-1)
            self.near[:, i, axis : axis + 1] += force @ self.w[:, j]
            if mirrored:
                self.near[:, j, axis : axis + 1] -= force.mT @ self.w[:, i]


def invariants(a: Tensor, b: Tensor, zq: Tensor, st: Tensor) -> None:
    """|z|² and z·q, by differences, for a (b, 2, d, m, 1) and b (b, 2, d, 1, n)."""
    z = zq[:, :1]
    for axis, (p, q) in enumerate(zip(a.unbind(2), b.unbind(2), strict=True)):
        torch.sub(p, q, out=zq)
        if axis:
            st.addcmul_(z, zq)
        else:
            torch.mul(z, zq, out=st)


def close(gamma: float, dtype: torch.dtype) -> float:
    """|z|²/R² under which products may lose half of the digits of a pair, which is ε(R/|z|)^{−γ−1} of it."""
    return torch.finfo(dtype).eps ** (1 / max(2.0, -gamma - 1)) if gamma < -1 else 0.0


def power(s: Tensor, gamma: float, out: Tensor) -> Tensor:
    """s^{γ/2}, by a square root for Coulomb."""
    return torch.rsqrt(s, out=out).pow_(3) if gamma == -3 else torch.pow(s, gamma / 2, out=out)
