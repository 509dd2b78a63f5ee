"""The field of collisions with its Jacobian, over all pairs in tiles: four weights a pair, sums as matrix products."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .collision_pairs import Pairs, trace
from .collision_tiles import invariants, joined, pairs, power
from .products import budget

WEIGHTS = 4  # a pair: P = |z|^{γ+2}, T = |z|^γ z·q, K = |z|^γ and R = γ|z|^{γ−2} z·q


def tiled_slopes(
    x: Tensor, u: Tensor, du: Tensor, y: Tensor, v: Tensor, w: Tensor, gamma: float
) -> tuple[Tensor, Tensor]:
    """(U, ∇U); shapes as in `collision_jacobian`. Each pair of tiles once where y is x and v is u."""
    same = x is y and u is v
    batch = torch.broadcast_shapes(*(t.shape[:-2] for t in (x, u, y, v)), w.shape[:-1], du.shape[:-3])
    points = joined(x, u, batch)
    sources = points if same else joined(y, v, batch)
    du = du.expand(*batch, *du.shape[-3:]).reshape(-1, *du.shape[-3:])
    w = w.expand(*batch, w.shape[-1]).reshape(-1, w.shape[-1], 1)
    step = max(1, pairs(x) // (2 * max(1, points.shape[-1] * sources.shape[-1])))
    U, J = torch.empty_like(du[..., 0]), torch.empty_like(du)
    for start in range(0, len(U), step):
        some = slice(start, start + step)
        U[some], J[some] = _Slopes.of(points[some], du[some], sources[some], w[some], gamma, same).total()
    return U.reshape(*batch, *U.shape[1:]), J.reshape(*batch, *J.shape[1:])


@dataclass(frozen=True, eq=False)
class _Slopes:
    """One sum, made ready: blocks of pairs are added up in `far`, those with close pairs term by term in `U` and `J`.

    Σ_j of each weight times w·[1, y, v, v⊗y, y⊗y] gives the sums of P q − T z, K q zᵀ, K zzᵀ and R zzᵀ.
    """

    points: Tensor  # (b, 2, d, m): x and u
    du: Tensor  # (b, m, d, d)
    sources: Tensor  # (b, 2, d, n): y and v
    centre: Tensor  # (b, 2, d, 1)
    w: Tensor  # (b, n, 1)
    gamma: float
    same: bool
    close: float  # the squared distance under which products may lose half of the digits, ε(R/|z|)² of them
    moments: Tensor  # (b, n, 1 + 2d + 2d²)
    far: Tensor  # (b, WEIGHTS, m, 1 + 2d + 2d²)
    U: Tensor  # (b, m, d)
    J: Tensor  # (b, m, d, d)
    buffer: Tensor

    @classmethod
    def of(cls, points: Tensor, du: Tensor, sources: Tensor, w: Tensor, gamma: float, same: bool) -> _Slopes:
        centre = sources.mean(-1, keepdim=True)
        y, v = (sources - centre).mT.unbind(1)
        close = y.square().sum(-1).amax().item() * torch.finfo(w.dtype).eps ** (0.5 if gamma < 0 else 1)
        outer = [(t[..., :, None] * y[..., None, :]).flatten(-2) for t in (v, y)]
        moments = w * torch.cat([torch.ones_like(w), y, v, *outer], -1)
        far = points.new_zeros(len(w), WEIGHTS, points.shape[-1], moments.shape[-1])
        buffer = points.new_empty((WEIGHTS + 2) * max(pairs(w) // 2, len(w)))
        U, J = torch.zeros_like(du[..., 0]), torch.zeros_like(du)
        return cls(points, du, sources, centre, w, gamma, same, close, moments, far, U, J, buffer)

    def total(self) -> tuple[Tensor, Tensor]:
        m, n = self.points.shape[-1], self.sources.shape[-1]
        most = len(self.buffer) // ((WEIGHTS + 2) * len(self.w))
        rows = min(m, max(1, math.isqrt(most) // 16 * 16)) if m * n > most else m
        columns = rows if self.same else max(1, most // max(1, rows))
        for i in range(0, m, rows):
            for j in range(i if self.same else 0, n, columns):
                self.add(slice(i, i + rows), slice(j, j + columns), mirrored=self.same and i != j)
        return self.gathered()

    def add(self, i: slice, j: slice, mirrored: bool) -> None:
        a, b = self.points[..., i, None], self.sources[..., None, j]
        size = len(a) * a.shape[-2] * b.shape[-1]
        shape = (len(a), -1, a.shape[-2], b.shape[-1])
        zq, weights = self.buffer[: 2 * size].view(shape), self.buffer[2 * size : (2 + WEIGHTS) * size].view(shape)
        s, t = weights[:, 0], weights[:, 1]
        invariants(a, b, zq, weights[:, :2])
        zero = s == 0
        if s.masked_fill_(zero, math.inf).amin() < self.close or (zero.any() and not self.same):
            self.add_near(i, j)
            if mirrored:
                self.add_near(j, i)
            return
        s.masked_fill_(zero, 1.0)
        K, R = weights[:, 2], weights[:, 3]
        power(s, self.gamma, out=K).masked_fill_(zero, 0.0)
        t.mul_(K)
        torch.div(t, s, out=R).mul_(self.gamma)
        s.mul_(K)
        self.far[:, :, i] += weights @ self.moments[:, None, j]
        if mirrored:
            self.far[:, :, j] += weights.mT @ self.moments[:, None, i]

    def add_near(self, i: slice, j: slice) -> None:
        """A block term by term, in parts of the size of the buffer."""
        (x, u), (y, v) = self.points.mT.unbind(1), self.sources.mT.unbind(1)
        rows = max(1, budget(x) // (len(x) * x.shape[-1] * max(1, y[:, j].shape[1])))
        for start in range(i.start, min(i.stop, x.shape[1]), rows):
            k = slice(start, min(start + rows, i.stop))
            some = Pairs(x[:, k], u[:, k], y[:, j], v[:, j], self.w[:, j], self.gamma)
            self.U[:, k] += some.velocity()
            self.J[:, k] += some.jacobian(self.du[:, k])

    def gathered(self) -> tuple[Tensor, Tensor]:
        d = self.du.shape[-1]
        x, u = (self.points - self.centre).mT.unbind(1)
        one, y, v, vy, yy = self.far.split([1, d, d, d * d, d * d], -1)
        (P, T, K, _), (_, Ty, Ky, _), (Pv, _, Kv, _) = one.unbind(1), y.unbind(1), v.unbind(1)
        U = self.U + u * P - Pv - x * T + Ty
        eye = torch.eye(d, dtype=x.dtype, device=x.device)
        qz = K[..., None] * _outer(u, x) - _outer(u, Ky) - _outer(Kv, x) + vy[:, 2].unflatten(-1, (d, d))
        K_zz, R_zz = (self._zz(one[:, k], y[:, k], yy[:, k], x) for k in (2, 3))
        A = P[..., None] * eye - K_zz
        return U, self.J + (self.gamma + 2) * qz - qz.mT - trace(qz) * eye - R_zz + A @ self.du

    @staticmethod
    def _zz(one: Tensor, y: Tensor, yy: Tensor, x: Tensor) -> Tensor:
        """Σ_j of a weight times zzᵀ."""
        return one[..., None] * _outer(x, x) - _outer(x, y) - _outer(y, x) + yy.unflatten(-1, 2 * [x.shape[-1]])


def _outer(a: Tensor, b: Tensor) -> Tensor:
    return a[..., :, None] * b[..., None, :]
