"""Collisions over all pairs in tiles of the size of a cache: differences axis by axis, sums as matrix products."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .products import budget

BUFFERS = 4  # tensors of pairs that live at once


def tiled_collisions(x: Tensor, u: Tensor, y: Tensor, v: Tensor, w: Tensor, gamma: float) -> Tensor:
    """Σ_j w_j A(x_i − y_j)(u_i − v_j); shapes as in `collide`. Each pair of tiles once where y is x and v is u."""
    same = x is y and u is v
    batch = torch.broadcast_shapes(*(t.shape[:-2] for t in (x, u, y, v)), w.shape[:-1])
    points = _joined(x, u, batch)
    sources = points if same else _joined(y, v, batch)
    w = w.expand(*batch, w.shape[-1]).reshape(-1, w.shape[-1], 1)
    out = torch.empty_like(points[..., : x.shape[-1]])
    step = max(1, budget(x) // (BUFFERS * max(1, points.shape[-2] * sources.shape[-2])))
    for start in range(0, len(out), step):
        some = slice(start, start + step)
        out[some] = _Tiles.of(points[some], sources[some], w[some], gamma, same).total()
    return out.reshape(*batch, *out.shape[-2:])


def _joined(x: Tensor, u: Tensor, batch: torch.Size) -> Tensor:
    """[x, u], (b, n, 2d), with the batch flat."""
    return torch.cat([t.expand(*batch, *t.shape[-2:]) for t in (x, u)], -1).reshape(-1, x.shape[-2], 2 * x.shape[-1])


@dataclass(frozen=True, eq=False)
class _Tiles:
    """One sum, made ready: blocks of pairs are added up in `far` and `near`.

    A pair contributes w_j(P q − T z), P = |z|^{γ+2} and T = |z|^γ z·q. The sums of P against [w, w v] and of T against
    [w, w y] are matrix products, in which close pairs would cancel where γ < −1: a block that has some forms P q − T z.
    Differences are those of the points as given; the products take them about the mean of the sources.
    """

    points: Tensor  # (b, 2d, m): x above u
    sources: Tensor  # (b, 2d, n): y above v
    centre: Tensor  # (b, 2d, 1)
    w: Tensor  # (b, n, 1)
    gamma: float
    same: bool
    radius: float  # largest |y − centre|²
    moments: Tensor  # (2, b, n, 1 + d): [w, w v] and [w, w y]
    far: Tensor  # (2, b, m, 1 + d)
    near: Tensor  # (b, m, d)
    buffer: Tensor  # (BUFFERS·pairs,)

    @classmethod
    def of(cls, points: Tensor, sources: Tensor, w: Tensor, gamma: float, same: bool) -> _Tiles:
        d = points.shape[-1] // 2
        centre = sources.mean(-2, keepdim=True)
        centred = sources - centre
        radius = centred[..., :d].square().sum(-1).amax().item()
        moments = torch.stack([torch.cat([w, w * t], -1) for t in (centred[..., d:], centred[..., :d])])
        far = points.new_zeros(2, *points.shape[:-1], 1 + d)
        buffer = points.new_empty(max(budget(w), BUFFERS * len(w)))
        a, b = (t.mT.contiguous() for t in (points, sources))
        return cls(a, b, centre.mT, w, gamma, same, radius, moments, far, torch.zeros_like(points[..., :d]), buffer)

    def total(self) -> Tensor:
        m, n, most = self.points.shape[-1], self.sources.shape[-1], len(self.buffer) // (BUFFERS * len(self.w))
        rows = min(m, math.isqrt(most)) if m * n > most else m
        columns = rows if self.same else max(1, most // max(1, rows))
        for i in range(0, m, rows):
            for j in range(i if self.same else 0, n, columns):
                self.add(slice(i, i + rows), slice(j, j + columns), mirrored=self.same and i != j)
        (P, T), (x, u) = self.far, (self.points - self.centre).mT.chunk(2, -1)
        return self.near + u * P[..., :1] - P[..., 1:] - x * T[..., :1] + T[..., 1:]

    def add(self, i: slice, j: slice, mirrored: bool) -> None:
        """Add what the sources j do to the points i, and, mirrored, what the points do to the sources."""
        a, b = self.points[..., i, None], self.sources[..., None, j]
        shape = (BUFFERS, len(a), a.shape[-2], b.shape[-1])
        z, q, s, t = self.buffer[: math.prod(shape)].view(shape)
        self.invariants(a, b, z, q, s, t)
        least = s.amin().item()
        zero = None
        if least == 0:
            zero = self.checked(s == 0, a, b)
            least = s.masked_fill_(zero, self.radius or 1.0).amin().item()
        P, T = self.powers(s, t, z)
        if zero is not None:
            P.masked_fill_(zero, 0.0)
        if least < self.close:
            self.add_near(P, T, a, b, z, q, i, j, mirrored)
        else:
            self.add_far(P, T, i, j, mirrored)

    @property
    def close(self) -> float:
        """The squared distance under which products may lose half of the digits of a pair, ε(R/|z|)^{−γ−1} of them."""
        eps = torch.finfo(self.w.dtype).eps
        return self.radius * eps ** (1 / max(2.0, -self.gamma - 1)) if self.gamma < -1 else 0.0

    @staticmethod
    def invariants(a: Tensor, b: Tensor, z: Tensor, q: Tensor, s: Tensor, t: Tensor) -> None:
        """s = |z|² and t = z·q, by differences."""
        d = a.shape[1] // 2
        for axis in range(d):
            torch.sub(a[:, axis], b[:, axis], out=z)
            torch.sub(a[:, d + axis], b[:, d + axis], out=q)
            if axis:
                s.addcmul_(z, z)
                t.addcmul_(z, q)
            else:
                torch.mul(z, z, out=s)
                torch.mul(z, q, out=t)

    def checked(self, zero: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """The pairs at one place, refused where A is infinite unless they have one covector."""
        d = a.shape[1] // 2
        if self.gamma < -2 and any((zero & (a[:, k] != b[:, k])).any() for k in range(d, 2 * d)):
            raise ValueError(at_one_place(self.gamma))
        return zero

    def powers(self, s: Tensor, t: Tensor, spare: Tensor) -> tuple[Tensor, Tensor]:
        """P = |z|^{γ+2} and T = |z|^γ z·q, in place."""
        if self.gamma == -3:  # a square root in place of a power
            P = s.rsqrt_()
            return P, t.mul_(torch.mul(P, P, out=spare).mul_(P))
        K = torch.pow(s, self.gamma / 2, out=spare)
        return s.mul_(K), t.mul_(K)

    def add_far(self, P: Tensor, T: Tensor, i: slice, j: slice, mirrored: bool) -> None:
        for far, weights, moments in zip(self.far, (P, T), self.moments, strict=True):
            far[:, i].baddbmm_(weights, moments[:, j])
            if mirrored:
                far[:, j].baddbmm_(weights.mT, moments[:, i])

    def add_near(
        self, P: Tensor, T: Tensor, a: Tensor, b: Tensor, z: Tensor, q: Tensor, i: slice, j: slice, mirrored: bool
    ) -> None:
        d = self.near.shape[-1]
        for axis in range(d):
            torch.sub(a[:, d + axis], b[:, d + axis], out=q).mul_(P)
            force = q.addcmul_(torch.sub(a[:, axis], b[:, axis], out=z), T, value=-1)
            self.near[:, i, axis : axis + 1] += force @ self.w[:, j]
            if mirrored:
                self.near[:, j, axis : axis + 1] -= force.mT @ self.w[:, i]


def at_one_place(gamma: float) -> str:
    return f"particles at one place: A is infinite there for gamma = {gamma:g} < −2. Move them apart"
