"""Gaussian sums between particles and all nodes of a tensor-product grid: products of one matrix an axis."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .tiles import TILE

Axes = Sequence[Tensor]  # the nodes along each axis, increasing: (s_1,), …, (s_d,)
Orders = tuple[tuple[int, ...], ...]  # derivatives of the Gaussian along each axis, one tuple a column

BLOCK = {"cpu": 512, "cuda": 8192}  # particles in a block: fewer cost more in calls than they save in nodes


def gaussian_spread(x: Tensor, w: Tensor, axes: Axes, width: float) -> Tensor:
    """f(g) = Σ_j w_j exp(−|g − x_j|²/(2·width²)) at all nodes g of a grid, (*batch, s_1, …, s_d).

    x (*batch, n, d), w (*batch, n); `axes` are d tensors, the nodes along each axis, shared by the batch. In the plane
    f = (w∘E₁)ᵀE₂ with the matrices E_a = exp(−(x_a − g_a)²/(2·width²)), n × s_a, and no n × s_1 × s_2 array is made.
    Particles go in blocks of neighbours, each of which sees only the nodes within its reach, where the Gaussian is not
    0 to rounding; memory is linear in n. Differentiable to any order in x and w, since derivatives of these sums are
    sums of the same kind.

    >>> axis = torch.tensor([0.0, 1.0])
    >>> gaussian_spread(torch.zeros(1, 2), torch.ones(1), [axis, axis], width=1.0)
    tensor([[1.0000, 0.6065],
            [0.6065, 0.3679]])
    """
    sums = _sums(x, axes, width)
    if w.shape[-1:] != x.shape[-2:-1]:
        raise ValueError(f"w needs one entry a particle: {x.shape[-2]} of them, not {tuple(w.shape)}")
    batch = torch.broadcast_shapes(x.shape[:-2], w.shape[:-1])
    x, w = x.expand(*batch, *x.shape[-2:]), w.expand(*batch, w.shape[-1])
    f: Tensor = _Spread.apply(sums, (sums.value,), x, w[..., None])
    return f


def gaussian_gather(x: Tensor, c: Tensor, axes: Axes, width: float) -> Tensor:
    """Σ_g c_g exp(−|x_i − g|²/(2·width²)) at particles, (*batch, n), for c (*batch, s_1, …, s_d).

    The adjoint of `gaussian_spread`, at its cost.
    """
    sums = _sums(x, axes, width)
    return _gather(sums, (sums.value,), x, c)[..., 0]


def gaussian_gather_slopes(x: Tensor, c: Tensor, axes: Axes, width: float) -> Tensor:
    """The gradient of `gaussian_gather` in x, (*batch, n, d)."""
    sums = _sums(x, axes, width)
    return _gather(sums, _raised((sums.value,)), x, c)


def gaussian_gather_curvatures(x: Tensor, c: Tensor, axes: Axes, width: float) -> Tensor:
    """The second derivatives of `gaussian_gather` in x, (*batch, n, d, d)."""
    sums = _sums(x, axes, width)
    return _gather(sums, _raised(_raised((sums.value,))), x, c).unflatten(-1, (x.shape[-1],) * 2)


def reach(x: Tensor, width: float) -> float:
    """Where exp(−|z|²/(2·width²)) is the rounding of 1: at 8.5 widths in double precision, 5.6 in single."""
    return width * math.sqrt(-2 * math.log(torch.finfo(x.dtype).eps))


@dataclass(frozen=True, eq=False)
class _Sums:
    """Sums of ∂^k φ, for several k at once; none of this is recorded by autograd. x and the rest have one batch."""

    axes: tuple[Tensor, ...]
    width: float

    @property
    def value(self) -> tuple[int, ...]:
        """The k of no derivative."""
        return (0,) * len(self.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(axis) for axis in self.axes)

    def spread(self, orders: Orders, x: Tensor, w: Tensor) -> Tensor:
        """Σ_j Σ_q w_jq ∂^{k_q}φ(x_j − g), (*batch, s_1, …, s_d), for w (*batch, n, q)."""
        f = x.new_zeros(*x.shape[:-2], *self.shape)
        for block in self._blocks(x, orders):
            weights, near = block.pick(w), f[block.nodes]
            for column, k in enumerate(orders):
                left = weights[..., column, None] * block.bells[0][k[0]]
                near += (left.mT @ block.outer(k)).reshape(near.shape)
        return f

    def gather(self, orders: Orders, x: Tensor, c: Tensor) -> Tensor:
        """Σ_g c_g ∂^{k_q}φ(x_i − g), (*batch, n, q)."""
        out = x.new_empty(*x.shape[:-1], len(orders))
        for block in self._blocks(x, orders):
            near = c[block.nodes]
            near = near.reshape(*near.shape[: x.ndim - 1], -1)
            inner = {k: bell @ near for k, bell in block.bells[0].items()}
            columns = {k: block.contract(inner[k[0]], k) for k in dict.fromkeys(orders)}
            block.put(out, torch.stack([columns[k] for k in orders], -1))
        return out

    def _blocks(self, x: Tensor, orders: Orders) -> Iterator[_Block]:
        """The particles in blocks of neighbours, none larger than a tile, with the nodes in their reach."""
        order, rows = self._neighbours(x)
        x = x.take_along_dim(order[..., None], -2)
        for start, nodes in zip(range(0, x.shape[-2], rows), self._within(x, rows), strict=True):
            counts = [s.stop - s.start for s in nodes]
            entries = x[..., 0, 0].numel() * max(math.prod(counts[1:]), *counts)
            size = max(1, TILE.get(x.device.type, TILE["cpu"]) // entries)
            parts = (t.narrow(t.ndim - 2, start, min(rows, t.shape[-2] - start)) for t in (x, order[..., None]))
            for some, index in zip(*(part.split(size, -2) for part in parts), strict=True):
                yield _Block(index, (..., *nodes), self._bells(some, nodes, orders))

    def _bells(self, x: Tensor, nodes: tuple[slice, ...], orders: Orders) -> list[dict[int, Tensor]]:
        bells, least = [], math.log(torch.finfo(x.dtype).tiny) / len(nodes)
        for a, (axis, near) in enumerate(zip(self.axes, nodes, strict=True)):
            z = x[..., a, None] / self.width - axis[near] / self.width
            bells.append(_bells(z, sorted({k[a] for k in orders}), self.width, least))
        return bells

    def _neighbours(self, x: Tensor) -> tuple[Tensor, int]:
        """An order of the particles, (*batch, n), and how many rows of it make a block of neighbours.

        Along each axis in turn groups of equal size are sorted and cut, into pieces not much thinner than the reach.
        """
        n, d = x.shape[-2:]
        cuts, left = [], n / BLOCK.get(x.device.type, BLOCK["cpu"])
        for a, axis in enumerate(self.axes):
            most = float(axis[-1] - axis[0]) / reach(x, self.width)
            cuts.append(max(1, round(min(left ** (1 / (d - a)), most))))
            left /= cuts[-1]
        rows = -(-n // math.prod(cuts))
        group = rows * math.prod(cuts)
        x = torch.nn.functional.pad(x.detach(), (0, 0, 0, group - n), value=torch.inf)
        order = torch.arange(group, device=x.device).expand(x.shape[:-1])
        for a, cut in enumerate(cuts):
            if cut > 1:
                along = x[..., a].gather(-1, order).unflatten(-1, (-1, group)).argsort(-1)
                order = order.unflatten(-1, (-1, group)).gather(-1, along).flatten(-2)
            group //= cut
        return order[..., :n], rows

    def _within(self, x: Tensor, rows: int) -> list[tuple[slice, ...]]:
        """For each block, the nodes along each axis that any of its particles reaches, over the whole batch."""
        x = x.detach().reshape(-1, *x.shape[-2:])
        blocks = [x[:, start : start + rows] for start in range(0, x.shape[-2], rows)]
        low = torch.stack([block.amin((0, 1)) for block in blocks], -1) - reach(x, self.width)
        high = torch.stack([block.amax((0, 1)) for block in blocks], -1) + reach(x, self.width)
        ends = [
            torch.searchsorted(axis, t)
            for axis, t in zip(self.axes, torch.stack([low, high], 1).contiguous(), strict=True)
        ]
        return [
            tuple(slice(min(a, s - 1), max(b, a + 1)) for (a, b), s in zip(block, self.shape, strict=True))
            for block in torch.stack(ends).movedim(-1, 0).tolist()
        ]


@dataclass(frozen=True, eq=False)
class _Block:
    """Some particles, and ∂^k φ of each at the nodes near them along each axis: bells[a][k] is (*batch, r, s_a)."""

    index: Tensor  # which particles, (*batch, r, 1)
    nodes: tuple[Any, ...]  # an ellipsis for the batch, and a slice of each axis
    bells: list[dict[int, Tensor]]

    def pick(self, t: Tensor) -> Tensor:
        """Rows of t (*batch, n, q)."""
        return t.take_along_dim(self.index, -2)

    def put(self, out: Tensor, rows: Tensor) -> None:
        out.scatter_(-2, self.index.expand(rows.shape), rows)

    def outer(self, k: tuple[int, ...]) -> Tensor:
        """The product over all axes but the first, (*batch, r, s_2⋯s_d)."""
        bells = [bell[order] for bell, order in zip(self.bells[1:], k[1:], strict=True)]
        if not bells:
            return torch.ones_like(self.bells[0][k[0]][..., :1])
        product = bells[0]
        for bell in bells[1:]:
            product = (product[..., :, None] * bell[..., None, :]).flatten(-2)
        return product

    def contract(self, t: Tensor, k: tuple[int, ...]) -> Tensor:
        """(*batch, r) from t (*batch, r, s_2⋯s_d), axis by axis."""
        for bell, order in zip(self.bells[1:], k[1:], strict=True):
            b = bell[order]
            t = (b[..., None, :] @ t.unflatten(-1, (b.shape[-1], -1)))[..., 0, :]
        return t[..., 0]


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sums: _Sums, orders: Orders, x: Tensor, w: Tensor) -> Tensor:
        ctx.sums, ctx.orders = sums, orders
        ctx.save_for_backward(x, w)
        return sums.spread(orders, x, w)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        x, w = ctx.saved_tensors
        grad_x = _slopes(ctx, x, g, w) if ctx.needs_input_grad[2] else None
        grad_w = _Gather.apply(ctx.sums, ctx.orders, x, g) if ctx.needs_input_grad[3] else None
        return None, None, grad_x, grad_w


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sums: _Sums, orders: Orders, x: Tensor, c: Tensor) -> Tensor:
        ctx.sums, ctx.orders = sums, orders
        ctx.save_for_backward(x, c)
        return sums.gather(orders, x, c)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        x, c = ctx.saved_tensors
        grad_x = _slopes(ctx, x, c, g) if ctx.needs_input_grad[2] else None
        grad_c = _Spread.apply(ctx.sums, ctx.orders, x, g) if ctx.needs_input_grad[3] else None
        return None, None, grad_x, grad_c


def _slopes(ctx: Any, x: Tensor, c: Tensor, w: Tensor) -> Tensor:
    """The gradient of Σ_j Σ_q w_jq Σ_g c_g ∂^{k_q}φ(x_j − g) in x."""
    columns = _Gather.apply(ctx.sums, _raised(ctx.orders), x, c)
    return (columns.unflatten(-1, (len(ctx.orders), -1)) * w[..., None]).sum(-2)


def _raised(orders: Orders) -> Orders:
    """Each k with one more derivative along each axis: d times as many columns."""
    return tuple((*k[:a], k[a] + 1, *k[a + 1 :]) for k in orders for a in range(len(k)))


def _gather(sums: _Sums, orders: Orders, x: Tensor, c: Tensor) -> Tensor:
    d = len(sums.axes)
    if c.shape[-d:] != sums.shape:
        raise ValueError(f"c needs one entry a node, (*batch, {', '.join(map(str, sums.shape))}), not {tuple(c.shape)}")
    batch = torch.broadcast_shapes(x.shape[:-2], c.shape[:-d])
    found: Tensor = _Gather.apply(sums, orders, x.expand(*batch, *x.shape[-2:]), c.expand(*batch, *sums.shape))
    return found


def _sums(x: Tensor, axes: Axes, width: float) -> _Sums:
    if x.shape[-1] != len(axes):
        raise ValueError(f"axes hold the nodes along each axis: {x.shape[-1]} of them for x, not {len(axes)}")
    if not width > 0:
        raise ValueError(f"width must be > 0, not {width}")
    return _Sums(tuple(axis.to(x).contiguous() for axis in axes), float(width))


def _bells(z: Tensor, orders: list[int], width: float, least: float) -> dict[int, Tensor]:
    """d^k/dx^k exp(−z²/2) = (−1/width)^k He_k(z) exp(−z²/2) at z = (x − g)/width, for each k asked for.

    Exponents under `least` are raised to it: what underflows takes fifty times as long.
    """
    bell = z.square().mul_(-0.5).clamp_min_(least).exp_()
    found = {0: bell}
    z = z.mul_(-1 / width)
    for k in range(max(orders)):
        found[k + 1] = z * found[k]
        if k:
            found[k + 1].sub_(found[k - 1], alpha=k / width**2)
    return {k: found[k] for k in orders}
