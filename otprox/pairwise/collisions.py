"""Sums of collisions over pairs, Σ_j w_j A(z)(u_i − v_j) with A(z) = |z|^γ(|z|²I − zzᵀ), and the slope of the sum."""

from __future__ import annotations

import torch
from torch import Tensor

from .collision_pairs import Pairs, at_one_place, trace
from .collision_slopes import tiled_slopes
from .collision_tiles import tiled_collisions
from .engines import Engine, choose
from .keops import keops_collisions
from .tiles import by_rows, rows_of


def collide(x: Tensor, u: Tensor, y: Tensor, v: Tensor, w: Tensor, gamma: float, *, engine: Engine = "auto") -> Tensor:
    """Σ_j w_j A(x_i − y_j)(u_i − v_j), A(z) = |z|^γ(|z|²I − zzᵀ), (*batch, m, d).

    Points x with covectors u, (*batch, m, d), sources y with covectors v, (*batch, n, d), and weights w (*batch, n).
    γ = 0 takes O(m + n) by moments. Otherwise all pairs go in tiles of the size of a cache, by differences, each pair
    once where y is x and v is u; so Σ w_i U_i and Σ w_i x_i·U_i are then 0 to rounding. Derivatives are those of
    autograd, in tiles that are computed again in the backward pass.

    A particle does not act on itself. Others at its place are an error for γ < −2, where A is infinite; of a point
    that is not among the sources, one at the place of a source counts 0 where u_i = v_j.
    """
    if gamma == 0 and engine == "auto":
        return _Moments(x, u, y, v, w).velocity()
    if x is y:
        check_apart(x, gamma)
    picked = choose(x, y, engine, formula=engine == "keops" or x.ndim == y.ndim == u.ndim == 2).engine
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, u, y, v, w)):
        return _differentiable(x, u, y, v, w, gamma, dense=engine == "dense")
    sums = keops_collisions if picked == "keops" else tiled_collisions
    return sums(x, u, y, v, w, gamma)


def collision_jacobian(
    x: Tensor, u: Tensor, du: Tensor, y: Tensor, v: Tensor, w: Tensor, gamma: float
) -> tuple[Tensor, Tensor]:
    """(U, ∇U), (*batch, m, d) and (*batch, m, d, d), of the field U = Σ_j w_j A(x − y_j)(u(x) − v_j) at x = x_i.

    `du` (*batch, m, d, d) is ∇u, with ∂_b u_a in row a. With z = x − y_j and q = u − v_j,

        ∇U = Σ_j w_j |z|^γ[(γ + 2)q zᵀ − z qᵀ − (z·q)I − γ(z·q) zzᵀ/|z|²] + (Σ_j w_j A(z))∇u,

    of trace div U = −(d − 1)Σ_j w_j |z|^γ z·q + (Σ_j w_j A(z)):∇u. Pairs at one place count 0.
    """
    if gamma == 0:
        moments = _Moments(x, u, y, v, w)
        return moments.velocity(), moments.jacobian(du)
    if x is y:
        check_apart(x, gamma)
    if not (torch.is_grad_enabled() and any(t.requires_grad for t in (x, u, du, y, v, w))):
        return tiled_slopes(x, u, du, y, v, w, gamma)
    d = x.shape[-1]

    def tile(part: Tensor, y: Tensor, v: Tensor, w: Tensor) -> Tensor:
        return _with_jacobian(part[..., :d], part[..., d : 2 * d], part[..., 2 * d :], y, v, w, gamma)

    rows = max(1, rows_of(x, y, 3 * d))
    found = by_rows(tile, rows, -2, torch.cat([x, u, du.flatten(-2)], -1), y, v, w[..., None])
    return found[..., :d], found[..., d:].unflatten(-1, (d, d))


class _Moments:
    """Maxwell molecules, by the moments of the sources about their means."""

    def __init__(self, x: Tensor, u: Tensor, y: Tensor, v: Tensor, w: Tensor) -> None:
        total = w[..., None, :]
        self.mass = total.sum(-1, keepdim=True)
        x0, u0 = total @ y / self.mass, total @ v / self.mass
        self.x, self.u = x - x0, u - u0
        y, v = (self.x if x is y else y - x0), (self.u if u is v else v - u0)
        weighed = (w[..., None] * y).mT
        self.P, self.M = weighed @ y, weighed @ v  # Σ w yyᵀ and Σ w yvᵀ; the first moments are 0
        square, along = _dot(y, y), _dot(y, v)
        self.third = (total * square.mT) @ v - (total * along.mT) @ y

    def velocity(self) -> Tensor:
        """Σ_j w_j (|z|²I − zzᵀ)(u_i − v_j)."""
        x, u, P, M = self.x, self.u, self.P, self.M
        out = x @ (2 * M - M.mT) - u @ P - self.third
        return out + u * (self.mass * _dot(x, x) + trace(P)) - x * (self.mass * _dot(x, u) + trace(M))

    def jacobian(self, du: Tensor) -> Tensor:
        """Σ_j w_j [2q zᵀ − z qᵀ − (z·q)I] + (Σ_j w_j (|z|²I − zzᵀ))∇u."""
        x, eye = self.x, torch.eye(self.x.shape[-1], dtype=self.x.dtype, device=self.x.device)
        mass, P, M = (t[..., None, :, :] for t in (self.mass, self.P, self.M))
        qz = mass * self.u[..., :, None] * x[..., None, :] + M.mT
        A = (mass[..., 0] * x.square().sum(-1, keepdim=True) + trace(P)[..., 0])[..., None] * eye
        A = A - mass * x[..., :, None] * x[..., None, :] - P
        return 2 * qz - qz.mT - trace(qz) * eye + A @ du


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """a·b, (…, 1); einsum makes no tensor of the products."""
    return torch.einsum("...a,...a->...", a, b)[..., None]


def _differentiable(x: Tensor, u: Tensor, y: Tensor, v: Tensor, w: Tensor, gamma: float, *, dense: bool) -> Tensor:
    d = x.shape[-1]

    def tile(part: Tensor, y: Tensor, v: Tensor, w: Tensor) -> Tensor:
        return Pairs(part[..., :d], part[..., d:], y, v, w, gamma).velocity()

    rows = x.shape[-2] if dense else rows_of(x, y, d)
    return by_rows(tile, rows, -2, torch.cat([x, u], -1), y, v, w[..., None])


def _with_jacobian(x: Tensor, u: Tensor, du: Tensor, y: Tensor, v: Tensor, w: Tensor, gamma: float) -> Tensor:
    pairs = Pairs(x, u, y, v, w, gamma)
    return torch.cat([pairs.velocity(), pairs.jacobian(du.unflatten(-1, 2 * [x.shape[-1]])).flatten(-2)], -1)


def check_apart(x: Tensor, gamma: float) -> None:
    """Refuse two of the points x (*batch, n, d) at one place where A is infinite."""
    if gamma >= -2:
        return
    first = x.detach()[..., 0].sort(-1).values
    suspect = (first[..., 1:] == first[..., :-1]).any(-1)
    for item in x.detach()[suspect]:
        if len(item.unique(dim=0)) < len(item):
            raise ValueError(at_one_place(gamma))
