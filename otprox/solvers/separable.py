"""The Gibbs kernel exp(−cost/reg) on a grid, applied axis by axis in the log domain by small matrix products."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..measures import Grid

TINY = 650.0  # what is e^−650 of the largest is left out of plain products, which are trusted where nothing is so small

FFT = 400  # cells, summed over the axes, from which FFT is faster than matrix products
MANY, SMALL = 4, 1 << 21  # more blocks than that are slower than log-sum-exp over the pairs, where these are few


@dataclass(frozen=True, eq=False)
class Block:
    """Some outputs i of a 1-D kernel: K_ij = exp(source_j)·matrix_ji·exp(target_i), with matrix in [e^−reach, e^reach].

    `source` is log K_cj for the central output c of the block, so that a line f + source, scaled to maximum 1, holds
    what matters to every output of the block: no sum of the matrix product can underflow.
    """

    source: Tensor
    matrix: Tensor
    target: Tensor


@dataclass(frozen=True, eq=False)
class SeparableKernel:
    """K_ij = Π_a exp(−(x_i − x_j)_a²/(mobility_a·reg))·h_a on the cells of a grid, f ↦ log(K eᶠ) on flat (*batch, n).

    h_a, the width of a cell, makes K integrate; distances are those of the circle on periodic axes. Nothing of size
    (number of cells)² is formed. Where the result stays within the range of floating numbers, which is checked, it
    costs one exponential and one logarithm a cell, and one n_a × n_a product a line, or FFT on large periodic grids.

    Elsewhere absorbing potentials into the kernel (Schmitzer 2019) would destroy its product form. Offsets for each
    line and block of outputs keep it, with full relative accuracy in every output for any reg: blocks are wide for a
    large reg (one an axis), and end as single cells, which is log-sum-exp, when reg is below the square of a cell.
    """

    grid: Grid
    logs: tuple[Tensor, ...]
    like: Tensor

    @property
    def volumes(self) -> tuple[float, float]:
        return self.grid.volume, self.grid.volume

    @property
    def shape(self) -> tuple[int, ...]:
        return self.grid.shape

    @cached_property
    def plain(self) -> tuple[Tensor, ...]:
        tiny = _tiny(self.like.dtype)
        return tuple(torch.where(log > -tiny, log.exp(), 0.0).to(self.like) for log in self.logs)

    @cached_property
    def spectrum(self) -> Tensor | None:
        """Fourier transform of K, for grids periodic along every axis and so long that FFT is faster than matrices."""
        if not all(self.grid.periodic) or sum(self.grid.shape) < FFT:
            return None
        lines = [torch.fft.fft(log[0].exp()).real for log in self.logs]
        lines[-1] = lines[-1][: self.shape[-1] // 2 + 1]
        product = lines[0]
        for line in lines[1:]:
            product = product[..., None] * line
        return product.to(self.like)

    @cached_property
    def axes(self) -> tuple[tuple[Block, ...], ...]:
        return tuple(tuple(_blocks(log, self.like)) for log in self.logs)

    @classmethod
    def on(cls, grid: Grid, mobility: Sequence[float], reg: float, like: Tensor) -> SeparableKernel:
        """The kernel on the cells of a grid, in the dtype and device of `like`."""
        lines = zip(grid.shape, grid.period, grid.periodic, mobility, strict=True)
        logs = [log_gibbs(n, length, wraps, q * reg) for n, length, wraps, q in lines]
        return cls(grid, tuple(logs), like)

    def apply(self, f: Tensor) -> Tensor:
        """log(K eᶠ); f = −inf is allowed where some f is finite."""
        top = f.amax(-1, keepdim=True)
        tiny = _tiny(f.dtype)
        z = f - top
        z = torch.where(z > -tiny, z, -torch.inf).exp_()
        z = self._sums(z.unflatten(-1, self.shape)).flatten(-self.grid.dim)
        least = math.exp(-tiny) * z.shape[-1] / torch.finfo(f.dtype).eps
        if bool((z > least).all()):
            return z.log_().add_(top)
        return self.log_apply(f)

    adjoint = apply

    def _sums(self, z: Tensor) -> Tensor:
        """K z for z ≥ 0, by FFT where that is faster and the smallest sum stands well above its rounding."""
        if self.spectrum is not None:
            axes = tuple(range(-self.grid.dim, 0))
            sums = torch.fft.irfftn(torch.fft.rfftn(z, dim=axes) * self.spectrum, s=self.shape, dim=axes)
            if bool((sums.amin(axes) > torch.finfo(z.dtype).eps ** 0.25 * sums.amax(axes)).all()):
                return sums
        for matrix, axis in zip(self.plain, range(-self.grid.dim, 0), strict=True):
            z = _product(z, matrix, axis)
        return z

    def log_apply(self, f: Tensor) -> Tensor:
        """log(K eᶠ) with an offset for each line and block."""
        f = f.unflatten(-1, self.shape)
        for axis, (log, blocks) in enumerate(zip(self.logs, self.axes, strict=True), start=-self.grid.dim):
            lines = f.movedim(axis, -1)
            if len(blocks) > MANY and lines.numel() * len(log) <= SMALL:
                f = torch.logsumexp(lines[..., None, :] + log.to(lines), -1).movedim(-1, axis)
                continue
            parts = [_log_product(lines, block) for block in blocks]
            f = (parts[0] if len(parts) == 1 else torch.cat(parts, -1)).movedim(-1, axis)
        return f.flatten(-self.grid.dim)


def log_gibbs(n: int, length: float, periodic: bool, scale: float) -> Tensor:
    """log of exp(−(x_i − x_j)²/scale)·h on n cells of width h = length/n, (n, n)."""
    h = length / n
    cell = torch.arange(n, dtype=torch.float64)
    distance = (cell[:, None] - cell).abs()
    if periodic:
        distance = torch.minimum(distance, n - distance)
    return math.log(h) - (h * distance) ** 2 / scale


def _product(z: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """The symmetric matrix times z along an axis."""
    if axis == -1:
        return z @ matrix
    if axis == -2:
        return matrix @ z
    return (matrix @ z.flatten(axis + 1)).unflatten(-1, z.shape[axis + 1 :])


def _tiny(dtype: torch.dtype) -> float:
    """The logarithm below which plain products leave out what they sum: 650 in float64, 80 in float32."""
    return TINY if dtype == torch.float64 else -math.log(torch.finfo(dtype).tiny) - 7


def _blocks(log_kernel: Tensor, like: Tensor) -> Iterator[Block]:
    """The fewest equal blocks whose matrices stay within e^±reach."""
    n, reach = len(log_kernel), _reach(like.dtype)
    count = 1
    while True:
        width = math.ceil(n / count)
        parts = [_block(log_kernel, start, min(start + width, n)) for start in range(0, n, width)]
        if width == 1 or all(part.matrix.abs().max() <= reach for part in parts):
            break
        count *= 2
    for part in parts:
        yield Block(part.source.to(like), part.matrix.exp().to(like), part.target.to(like))


def _block(log_kernel: Tensor, start: int, stop: int) -> Block:
    """The block of outputs start, …, stop − 1, its matrix still as logarithm."""
    source = log_kernel[(start + stop) // 2]
    rest = log_kernel[start:stop] - source
    target = (rest.amax(1) + rest.amin(1)) / 2
    return Block(source, (rest - target[:, None]).T.contiguous(), target)


def _reach(dtype: torch.dtype) -> float:
    """The r for which what underflows is below rounding: 3r = log(eps/tiny), less a margin."""
    info = torch.finfo(dtype)
    return (math.log(info.eps) - math.log(info.tiny)) / 3 - 2


def _log_product(lines: Tensor, block: Block) -> Tensor:
    """log Σ_j K_ij exp(f_j) for the outputs i of a block, over the last axis."""
    f = lines + block.source
    top = f.amax(-1, keepdim=True)
    top = torch.where(top == -torch.inf, 0.0, top)
    info = torch.finfo(f.dtype)
    floor = math.log(info.tiny) + _reach(f.dtype)  # below it, exactly 0: products with subnormal numbers are slow
    z = torch.where(f - top > floor, f - top, -torch.inf).exp_() @ block.matrix
    return z.log_().add_(top).add_(block.target)
