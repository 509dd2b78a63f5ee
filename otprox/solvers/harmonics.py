"""The eigenfunctions of the discrete Laplacian on a grid: cosines between walls, cosines and sines on a circle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .staggered import StaggeredAxis

DENSE = 512  # cells along an axis up to which its transform is a product with a matrix; above, it goes through FFT


@dataclass(frozen=True, eq=False)
class AxisTransform:
    """The orthonormal transform along one axis, and the angle θ of each mode: −δ² has eigenvalue 2 − 2·cos θ."""

    line: StaggeredAxis
    angles: Tensor
    matrix: Tensor | None

    @classmethod
    def on(cls, line: StaggeredAxis, like: Tensor) -> AxisTransform:
        n, exact = line.n, like.new_zeros((), dtype=torch.float64)
        k = torch.arange(n, dtype=exact.dtype, device=exact.device)
        angles = math.pi * k / n
        if line.periodic:
            half = n // 2 + 1
            angles = torch.cat([2 * math.pi * k[:half] / n, 2 * math.pi * k[1 : n - half + 1] / n])
        matrix = None
        if n <= DENSE:
            identity = torch.eye(n, dtype=exact.dtype, device=exact.device)
            matrix = (_to_fourier if line.periodic else _to_cosines)(identity).to(like)  # rows: images of unit cells
        return cls(line, angles, matrix)

    def forward(self, cells: Tensor) -> Tensor:
        """Values on cells to amplitudes."""
        x = cells.movedim(self.line.dim, -1)
        if self.matrix is not None:
            return (x @ self.matrix).movedim(-1, self.line.dim)
        return (_to_fourier if self.line.periodic else _to_cosines)(x).movedim(-1, self.line.dim)

    def inverse(self, modes: Tensor) -> Tensor:
        """Amplitudes to values on cells."""
        x = modes.movedim(self.line.dim, -1)
        if self.matrix is not None:
            return (x @ self.matrix.mT).movedim(-1, self.line.dim)
        return (_from_fourier if self.line.periodic else _from_cosines)(x).movedim(-1, self.line.dim)


@dataclass(frozen=True, eq=False)
class Harmonics:
    """The transform along all axes, (*…, *shape) both ways."""

    axes: tuple[AxisTransform, ...]

    @classmethod
    def on(cls, lines: Sequence[StaggeredAxis], like: Tensor) -> Harmonics:
        return cls(tuple(AxisTransform.on(line, like) for line in lines))

    def forward(self, cells: Tensor) -> Tensor:
        for axis in self.axes:
            cells = axis.forward(cells)
        return cells

    def inverse(self, modes: Tensor) -> Tensor:
        for axis in self.axes:
            modes = axis.inverse(modes)
        return modes

    def laplacian(self, spacing: Sequence[float], like: Tensor) -> Tensor:
        """Eigenvalues of −Δ_h for given spacings, (*shape)."""
        return self._sum([4 * (a.angles / 2).sin() ** 2 / h**2 for a, h in zip(self.axes, spacing, strict=True)], like)

    def averaging(self, like: Tensor) -> Tensor:
        """Eigenvalues of Σ_a A_aᵀA_a, A_a the average of two neighbours along axis a, (*shape)."""
        return self._sum([(axis.angles / 2).cos() ** 2 for axis in self.axes], like)

    def _sum(self, values: Sequence[Tensor], like: Tensor) -> Tensor:
        dim = len(values)
        parts = [v.reshape(*(1,) * a, -1, *(1,) * (dim - a - 1)) for a, v in enumerate(values)]
        return sum(parts[1:], parts[0]).to(like)


def _to_cosines(x: Tensor) -> Tensor:
    """DCT-II over the last axis, orthonormal, by the FFT of the even extension."""
    n = x.shape[-1]
    spectrum = torch.fft.rfft(torch.cat([x, x.flip(-1)], -1))[..., :n] * _half_shift(n, x, -1)
    return spectrum.real * _cosine_scale(n, x) / 2


def _from_cosines(modes: Tensor) -> Tensor:
    """DCT-III, the inverse of the orthonormal DCT-II."""
    n = modes.shape[-1]
    spectrum = modes * 2 / _cosine_scale(n, modes) * _half_shift(n, modes, 1)
    return torch.fft.irfft(torch.nn.functional.pad(spectrum, (0, 1)), n=2 * n)[..., :n]


def _half_shift(n: int, like: Tensor, sign: int) -> Tensor:
    angle = math.pi * torch.arange(n, dtype=like.dtype, device=like.device) / (2 * n)
    return torch.polar(torch.ones_like(angle), sign * angle)


def _cosine_scale(n: int, like: Tensor) -> Tensor:
    scale = like.new_full((n,), (2 / n) ** 0.5)
    scale[0] = (1 / n) ** 0.5
    return scale


def _to_fourier(x: Tensor) -> Tensor:
    """Orthonormal real Fourier transform over the last axis: cosines k = 0, …, n/2, then sines k = 1, …."""
    n = x.shape[-1]
    spectrum = torch.fft.rfft(x, norm="ortho") * _pairs(n, x)
    return torch.cat([spectrum.real, spectrum.imag[..., 1 : n - n // 2]], -1)


def _from_fourier(modes: Tensor) -> Tensor:
    n = modes.shape[-1]
    half = n // 2 + 1
    real, imag = modes[..., :half], torch.zeros_like(modes[..., :half])
    imag[..., 1 : n - half + 1] = modes[..., half:]
    return torch.fft.irfft(torch.complex(real, imag) / _pairs(n, modes), n=n, norm="ortho")


def _pairs(n: int, like: Tensor) -> Tensor:
    """√2 where a frequency stands for itself and its conjugate."""
    scale = like.new_full((n // 2 + 1,), 2**0.5)
    scale[0] = 1.0
    if n % 2 == 0:
        scale[-1] = 1.0
    return scale
