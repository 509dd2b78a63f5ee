"""Velocities of collisions and their Jacobians for many covector fields at once: the pairs are gone through once."""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations_with_replacement

import torch
from torch import Tensor

from .collisions import check_apart
from .tiles import rows_of


@torch.no_grad()
def collisions_of_fields(x: Tensor, u: Tensor, du: Tensor, w: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """(V, ∇V) of V_k = Σ_j w_j A(x − x_j)(u_k(x) − u_k(x_j)), A(z) = |z|^γ(|z|²I − zzᵀ), at the particles.

    x (*batch, n, d), w (*batch, n); K fields u (*batch, n, K, d), du (*batch, n, K, d, d) with ∂_m u_a in du[…, a, m].
    In a tile of pairs the products of the entries of z that make A and ∇A are matrices, which act on all fields by one
    product: for one field `collision_jacobian` is faster. Results are constants to autograd.
    """
    check_apart(x, gamma)
    fields = torch.cat([(w[..., None, None] * u).flatten(-2), w[..., None]], -1)
    V, DV = torch.empty_like(u), torch.empty_like(du)
    rows = rows_of(x, x, _count(x.shape[-1]))
    for start in range(0, x.shape[-2], rows):
        block = slice(start, start + rows)
        sums = _products(x[..., block, :], x, gamma) @ fields[..., None, :, :]  # (*batch, products, rows, K·d + 1)
        here, slope = u[..., block, :, :], du[..., block, :, :, :]
        far, mean = sums[..., :-1].unflatten(-1, u.shape[-2:]), sums[..., -1, None, None]
        V[..., block, :, :], DV[..., block, :, :, :] = _assembled(far, mean, here, slope, gamma)
    return V, DV


def _products(x: Tensor, y: Tensor, gamma: float) -> Tensor:
    """P = |z|^{γ+2}; |z|^γ z_a, |z|^γ z_a z_b and γ|z|^{γ−2} z_a z_b z_c once each: (*batch, products, rows, n)."""
    d = x.shape[-1]
    z = [x[..., :, None, a] - y[..., None, :, a] for a in range(d)]
    square = torch.stack([each.square() for each in z]).sum(0)
    same = square == 0
    square.masked_fill_(same, 1.0)
    power = (square.rsqrt() / square if gamma == -3 else square ** (gamma / 2)).masked_fill_(same, 0.0)
    found = power.new_empty(*power.shape[:-2], _count(d), *power.shape[-2:])
    torch.mul(power, square, out=found[..., 0, :, :])
    once, twice, thrice = _indices(d)
    bent = power / square * gamma
    for a in range(d):
        torch.mul(power, z[a], out=found[..., once[a], :, :])
        ratio = bent * z[a]
        for b in range(a, d):
            torch.mul(found[..., once[a], :, :], z[b], out=found[..., twice[a][b], :, :])
            both = ratio * z[b]
            for c in range(b, d):
                torch.mul(both, z[c], out=found[..., thrice[a][b][c], :, :])
    return found


def _assembled(far: Tensor, mean: Tensor, u: Tensor, du: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """V and ∇V of a block from the sums of products against w·u, `far` (*batch, products, rows, K, d), and w, `mean`.

    ∂_m A_ab = |z|^γ[(γ + 2)z_m δ_ab − δ_am z_b − δ_bm z_a] − γ|z|^{γ−2} z_a z_b z_m, times u(x) − u(x_j).
    """
    d = u.shape[-1]
    once, twice, thrice = (torch.tensor(index, device=u.device) for index in _indices(d))
    jump = mean * u[..., None, :, :, :] - far  # products times u(x) − u(x_j), summed
    q, p, t = (jump[..., index.flatten(), :, :, :].unflatten(-4, index.shape) for index in (once, twice, thrice))
    V = jump[..., 0, :, :, :] - torch.einsum("...abnkb->...nka", p)
    DV = (gamma + 2) * torch.einsum("...mnka->...nkam", q) - torch.einsum("...abmnkb->...nkam", t)
    eye = torch.eye(d, dtype=u.dtype, device=u.device)
    DV = DV - torch.einsum("...bnkb->...nk", q)[..., None, None] * eye - torch.einsum("...ankm->...nkam", q)
    A = mean[..., 0, :, 0, 0, None, None] * eye - mean[..., twice.flatten(), :, 0, 0].unflatten(-2, (d, d)).movedim(
        -1, -3
    )
    return V, DV + A[..., None, :, :] @ du


def _count(d: int) -> int:
    """1 + d + d(d + 1)/2 + d(d + 1)(d + 2)/6 products."""
    return 1 + d + d * (d + 1) // 2 + d * (d + 1) * (d + 2) // 6


@lru_cache
def _indices(d: int) -> tuple[list[int], list[list[int]], list[list[list[int]]]]:
    """Where the products of one, two and three entries of z are, for all index tuples."""
    names = [c for order in (1, 2, 3) for c in combinations_with_replacement(range(d), order)]
    place = {name: 1 + k for k, name in enumerate(names)}
    at = lambda *axes: place[tuple(sorted(axes))]  # noqa: E731
    axes = range(d)
    return (
        [at(a) for a in axes],
        [[at(a, b) for b in axes] for a in axes],
        [[[at(a, b, c) for c in axes] for b in axes] for a in axes],
    )
