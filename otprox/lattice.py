"""The periodic lattice, its Laplacian, and the real Fourier basis that diagonalises translation-invariant matrices."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Lattice:
    """The lattice (spacing·Z)^d modulo its shape, d = 1, 2 or 3. Fields on it are flat, (*batch, N), row-major.

    Modes are those of the Hartley basis cas(2π⟨k, x⟩) = cos + sin, real and orthonormal: a translation-invariant
    symmetric matrix is diagonal in it, with eigenvalue k the Fourier transform of its first row at k.
    """

    shape: tuple[int, ...]
    spacing: float = 1.0

    def __init__(self, shape: int | tuple[int, ...], spacing: float = 1.0) -> None:
        sizes = (shape,) if isinstance(shape, int) else tuple(int(n) for n in shape)
        if not 1 <= len(sizes) <= 3 or min(sizes) < 1:
            raise ValueError(f"shape must hold one to three positive sizes, not {shape}")
        if not 0 < spacing < math.inf:
            raise ValueError(f"spacing must be positive, not {spacing}")
        object.__setattr__(self, "shape", sizes)
        object.__setattr__(self, "spacing", float(spacing))

    @property
    def dim(self) -> int:
        """Number of axes d."""
        return len(self.shape)

    @property
    def sites(self) -> int:
        """Number of sites N."""
        return math.prod(self.shape)

    def wave_numbers(self, like: Tensor) -> Tensor:
        """Angular wave numbers 2πk/(n·spacing) in [−π/spacing, π/spacing), (N, d), in the order of the modes."""
        axes = [
            2 * math.pi / self.spacing * torch.fft.fftfreq(n, dtype=like.dtype, device=like.device) for n in self.shape
        ]
        return torch.cartesian_prod(*axes).reshape(-1, self.dim)

    def laplacian(self, like: Tensor) -> Tensor:
        """Eigenvalues of −Δ, Σ_a (2 − 2cos(spacing·p_a))/spacing², (N,), in the order of the modes."""
        p = self.wave_numbers(like)
        return (4 / self.spacing**2 * torch.sin(p * self.spacing / 2).square()).sum(-1)

    def symbol(self, mass2: float | Tensor, like: Tensor) -> Tensor:
        """Eigenvalues of −Δ + mass2, (N,), in the order of the modes."""
        return self.laplacian(like) + mass2

    def mode_name(self, k: int) -> str:
        """Which mode k is, for messages."""
        indices = torch.unravel_index(torch.tensor(k), self.shape)
        signed = [int(i) - n * (2 * int(i) > n) for i, n in zip(indices, self.shape, strict=True)]
        return f"mode {k} of {self.sites} (wave vector {tuple(signed)})"

    def to_modes(self, x: Tensor) -> Tensor:
        """Coefficients (*batch, N) of fields (*batch, N) in the Hartley basis; its own inverse, O(N log N)."""
        if x.shape[-1] != self.sites:
            raise ValueError(f"a field on {self} has {self.sites} sites, not {x.shape[-1]}")
        axes = tuple(range(-self.dim, 0))
        transform = torch.fft.fftn(x.reshape(*x.shape[:-1], *self.shape), dim=axes, norm="ortho")
        return (transform.real - transform.imag).reshape(x.shape)

    def from_modes(self, c: Tensor) -> Tensor:
        """Fields (*batch, N) from their coefficients: the same transform."""
        return self.to_modes(c)

    def reflect(self, values: Tensor) -> Tensor:
        """values at −k in place of k, (*batch, N)."""
        axes = tuple(range(-self.dim, 0))
        grid = values.reshape(*values.shape[:-1], *self.shape)
        return torch.roll(grid.flip(axes), (1,) * self.dim, axes).reshape(values.shape)
