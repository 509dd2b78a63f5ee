"""Interaction energies ½∬ W(x − y) dμ(x) dμ(y)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..kernels import Kernel, Stationary
from ..measures import Density, Gaussian, Grid, Measure, Quantiles
from ..measures.covariance import dense
from ..measures.fourier import cell_matrix
from ..pairwise import Slope
from .atom import Atom, NotConvex, curvature_root, scatter
from .base import Functional
from .gaussian_smoothing import smoothed_moments, smooths
from .potential import Quadratic

LARGEST = 1600  # cells up to which the matrix of an interaction is factored for convex programs


@dataclass(frozen=True, eq=False)
class Interaction(Functional):
    """½∬ W(x − y) dμ(x) dμ(y) for an even W, on displacements (…, d) -> (…).

    W is any callable, summed over all pairs, or a kernel of the difference such as `kernels.RBF`, or `kernels.Cosine`
    with its fast route. Pairs i = j count when W(0) is finite and are left out when it is infinite (−log|z|); ∇W(0) is
    0. `curvature` is a λ with ∇²W ≥ λI when it is known (kernels know their own).

    >>> from otprox import Particles
    >>> F = Interaction(lambda z: 0.5 * z.square().sum(-1))
    >>> F(Particles(torch.tensor([[-1.0], [1.0]]))).item()  # half the variance
    0.5
    """

    W: Callable[..., Tensor]
    curvature: float | None = field(default=None, kw_only=True)
    kl_smooth: ClassVar[bool] = True  # L = (max W − min W)/2, by Pinsker's inequality

    def __post_init__(self) -> None:
        if not callable(self.W):
            raise TypeError(f"Interaction needs a callable W on displacements, not a {type(self.W).__name__}")
        if isinstance(self.W, Kernel) and not isinstance(self.W, Stationary):
            raise TypeError(f"Interaction needs a kernel of x − y; {self.W} is not a function of the difference")

    def __call__(self, mu: Measure) -> Tensor:
        if isinstance(mu, Gaussian) and smooths(self.W):
            return 0.5 * self._gaussian(mu)[0]
        return 0.5 * mu.interact(self.W)

    def first_variation(self, mu: Measure, x: Tensor | None = None) -> Tensor:
        return mu.convolve(self.W, x)

    def gradient(self, mu: Measure, x: Tensor | None = None) -> Tensor:
        """(∇W ∗ μ)(x)."""
        return mu.convolve(Slope(self.W), x)

    def bures_gradient(self, mu: Gaussian) -> tuple[Tensor, Tensor]:
        """(0, E ∇²W(X − Y)), by Stein's lemma under X − Y ~ N(0, 2Σ)."""
        if smooths(self.W):
            return torch.zeros_like(mu.mean), self._gaussian(mu)[2]
        difference = mu.with_state(mean=torch.zeros_like(mu.mean), cov=2 * mu.cov)
        _, hessian = difference.nearest_affine(Slope(self.W))
        return torch.zeros_like(mu.mean), (hessian + hessian.mT) / 2

    def _gaussian(self, mu: Gaussian) -> tuple[Tensor, Tensor, Tensor]:
        """E W, E ∇W and E ∇²W of the difference, where they are known."""
        return smoothed_moments(self.W, torch.zeros_like(mu.mean), 2 * dense(mu.cov))  # type: ignore[arg-type]

    def generators(self) -> tuple[torch.Generator, ...]:
        return self.W.generators() if isinstance(self.W, Kernel) else ()

    def diffusivity(self, mu: Measure) -> Tensor:
        return mu.anchor.new_zeros(())

    def convexity(self, c: float = 1.0) -> float | None:
        """min(λ, 0) where c·∇²W ≥ λI: interactions do not see translations, so never more than 0 (McCann 1997)."""
        if isinstance(self.W, Stationary):
            smallest, largest = self.W.curvatures
        else:
            smallest, largest = -math.inf if self.curvature is None else self.curvature, math.inf
        bound = c * (smallest if c >= 0 else largest) if c else 0.0
        return None if bound == -math.inf else min(bound, 0.0)

    def atom(self, mu: Measure, c: float) -> Atom:
        """On a Density, ½c·Σ W(x_i − x_j)m_i m_j for a W whose matrix is semidefinite among changes that keep the mass.

        On Quantiles, c·(P/2n) Σ |x_i − mean|² for W a convex `Quadratic` of curvature P.
        """
        if isinstance(mu, Density):
            return self._on_cells(mu, c)
        if isinstance(mu, Quantiles) and isinstance(self.W, Quadratic):
            root = curvature_root(c * dense(self.W.precision) / (2 * mu.n), mu, "Interaction(Quadratic)")
            return Atom((Interaction, Quantiles), scatter, (root,))
        raise NotConvex(
            f"Interaction has no convex form on {type(mu).__name__}: it needs a Density, or Quantiles and W a "
            "Quadratic; in 1-D use Quantile"
        )

    def _on_cells(self, mu: Density, c: float) -> Atom:
        if mu.grid.n > LARGEST:
            raise NotConvex(f"Interaction on {mu.grid.n} cells needs a full matrix; at most {LARGEST} cells")
        sign, like = math.copysign(1.0, c), mu.values.new_zeros(())
        if not _is_semidefinite(self.W, mu.grid, like.dtype, like.device, sign):
            raise NotConvex(
                f"{sign:g}·Interaction is not convex in the density: among changes that keep the mass, its matrix is "
                "not positive semidefinite; use the metric Entropic(reg), or Quantiles in 1-D"
            )
        scale = abs(c) * mu.grid.volume**2

        def build(rho: Any, weight: Any) -> Any:
            import cvxpy as cp

            root, slope = _square(self.W, mu.grid, like.dtype, like.device, sign)
            return weight * (cp.sum_squares(root @ rho) / 2 + slope @ rho)

        return Atom((Interaction, self.W, mu.grid, c > 0), build, (scale,))


@lru_cache(maxsize=8)
def _is_semidefinite(
    W: Callable[..., Tensor], grid: Grid, dtype: torch.dtype, device: torch.device, sign: float
) -> bool:
    """Whether ±δᵀWδ ≥ 0 for all changes δ that keep the mass, up to 1e-9 of the largest, by Cholesky's test."""
    matrix, mean = _centred(W, grid, torch.zeros((), dtype=dtype, device=device), sign)
    rounding = 1e-14 * len(matrix) * mean.abs().max() + torch.finfo(dtype).tiny
    shift = 1e-9 * torch.linalg.matrix_norm(matrix, ord=math.inf) + rounding
    return bool(torch.linalg.cholesky_ex(matrix + shift * torch.eye(len(matrix)).to(matrix)).info == 0)


@lru_cache(maxsize=8)
def _square(
    W: Callable[..., Tensor], grid: Grid, dtype: torch.dtype, device: torch.device, sign: float
) -> tuple[Any, Any]:
    """A (r, n) and b (n,) with ½|Aρ|² + b·ρ = ½ρ·sWρ + const for densities of mass 1 on n cells, s = ±1.

    With the constants projected out, ρ = mean + δ: ½δ·sWδ + mean·(sW1)·δ, and A is the root of the projected matrix.
    """
    matrix, mean = _centred(W, grid, torch.zeros((), dtype=dtype, device=device), sign)
    values, vectors = torch.linalg.eigh(matrix)
    kept = values > 1e-12 * values.abs().max()
    root = (values[kept].sqrt() * vectors[:, kept]).mT
    return root.numpy(), ((mean - mean.mean()) / grid.volume).numpy()


def _centred(W: Callable[..., Tensor], grid: Grid, like: Tensor, sign: float) -> tuple[Tensor, Tensor]:
    """sW between the cells with the constants projected out on both sides, and its means (n,); float64 on the CPU."""
    matrix = sign * cell_matrix(W, grid, like).double().cpu()
    mean = matrix.mean(0)
    centred = matrix - mean - mean[:, None] + mean.mean()
    return (centred + centred.mT) / 2, mean
