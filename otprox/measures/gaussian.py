"""Gaussian measures: everything exact for affine maps and quadratic functions, the rest by a chosen quadrature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .. import pairwise
from . import covariance
from .base import Field, Measure, Tangent, Velocity, as_float, check_noise, common_batch
from .cells import gaussian_masses
from .covariance import Matrix, alike, as_matrix
from .density import Density
from .grid import Grid
from .particles import Particles
from .quadrature import Antithetic, Quadrature, default_quadrature, log_normaliser
from .spectral import Spectral


@dataclass(frozen=True, eq=False)
class Gaussian(Measure):
    """N(mean, cov).

    mean: (*batch, d); cov: (*batch, d, d), symmetric positive definite, or a `Spectral` matrix on a lattice, which
    stays in its modes. A number or a vector cov is not a covariance and is refused. `quadrature` is the rule for
    expectations of functions that are not quadratic: Gauss–Hermite for d ≤ 3 and seeded samples beyond, unless given;
    `Antithetic` samples for a Spectral cov, where whitened ones would need 2d nodes.

    >>> mu = Gaussian([10.0], [[100.0]])
    >>> round(mu.expect(lambda x: x[..., 0] ** 2).item(), 3)
    200.0
    """

    mean: Float[Tensor, "*batch d"]
    cov: Matrix
    quadrature: Quadrature | None = field(default=None, kw_only=True)

    def __init__(self, mean: Any, cov: Any, *, quadrature: Quadrature | None = None) -> None:
        mean = as_float(mean, "mean")
        cov = as_matrix(cov, "cov", like=mean)
        if mean.ndim < 1 or cov.shape[-1] != mean.shape[-1]:
            raise ValueError(
                f"mean has shape {tuple(mean.shape)} and cov {tuple(cov.shape)}; "
                "they must be (*batch, d) and (*batch, d, d) with the same d"
            )
        batch = common_batch("mean", mean.shape[:-1], "cov", cov.shape[:-2])
        object.__setattr__(self, "mean", mean.expand(*batch, -1))
        object.__setattr__(self, "cov", covariance.expand(cov, batch))
        object.__setattr__(self, "quadrature", quadrature)

    @classmethod
    def fit(cls, measure: Measure, *, quadrature: Quadrature | None = None) -> Gaussian:
        """The Gaussian with the mean and covariance of `measure`, the nearest in KL(measure | ·)."""
        return cls(measure.mean, measure.cov, quadrature=quadrature)

    @property
    def batch(self) -> torch.Size:
        return self.mean.shape[:-1]

    @property
    def dim(self) -> int:
        return self.mean.shape[-1]

    @property
    def anchor(self) -> Tensor:
        return self.mean

    @property
    def points(self) -> Tensor:
        return self._nodes()[0]

    @property
    def weights(self) -> Tensor:
        return self._nodes()[2]

    def _nodes(self) -> tuple[Tensor, Tensor, Tensor]:
        default = Antithetic() if isinstance(self.cov, Spectral) else default_quadrature(self.dim)
        rule = self.quadrature or default
        z, w = rule.nodes(self.dim, self.mean.dtype, self.mean.device)
        return self.mean[..., None, :] + z @ self.factor.mT, z, w

    @property
    def factor(self) -> Any:
        """L with LLᵀ = cov: the lower Cholesky factor, or the symmetric root of a Spectral cov."""
        return covariance.cholesky(self.cov)

    def identity(self) -> Any:
        return covariance.identity(self.cov)

    def expect(self, f: Field) -> Tensor:
        x, _, w = self._nodes()
        values = f(x)
        return values @ w if values.ndim == x.ndim - 1 else torch.einsum("...nk,n->...k", values, w)

    def nearest_affine(self, v: Field) -> tuple[Tensor, Tensor]:
        """(b, J) with b + J(x − m) nearest to the field v in L²(μ): b = E v and J = E ∇v, by Stein's lemma.

        With a Spectral covariance J is Spectral too: the nearest translation-invariant one.
        """
        x, z, w = self._nodes()
        values = v(x)
        return torch.einsum("...nk,n->...k", values, w), covariance.slope(self.factor, z, w, values)

    def push(self, T: Callable[[Tensor], Any]) -> Gaussian:
        """Image under the affine map nearest to T in L²(μ): exact for affine T only, by quadrature otherwise."""

        def points(x: Tensor) -> Tensor:
            y = T(x)
            return y[0] if isinstance(y, tuple) else y

        return self.affine(*self.nearest_affine(points))

    def affine(self, mean: Tensor, A: Matrix) -> Gaussian:
        """Image under x ↦ mean + A(x − m)."""
        cov = A @ self.cov @ A.mT
        return self.with_matrix(mean, (cov + cov.mT) / 2)

    def move(self, tangent: Tangent, tau: float) -> Gaussian:
        """Image under the affine map nearest to id + tau·v (the Bures–Wasserstein exponential when v is a gradient)."""
        if not isinstance(tangent, Velocity):
            raise TypeError(f"Gaussian moves along a Velocity, not a {type(tangent).__name__}; use a Density on a Grid")
        shift, jacobian = tangent.affine() if tangent.affine else self.nearest_affine(tangent.field)
        return self.affine(self.mean + tau * shift, self.identity() + tau * jacobian)

    def with_matrix(self, mean: Tensor, cov: Matrix) -> Gaussian:
        """The Gaussian with another mean and covariance; not validated again."""
        return self.with_state(mean=mean, cov=cov)

    def diffuse(self, cov: Matrix, generator: torch.Generator | None = None) -> Gaussian:
        cov = alike(cov, self.cov)
        if isinstance(cov, Tensor):
            check_noise(cov, self)
        return self.with_matrix(self.mean, self.cov + cov)

    def state(self) -> dict[str, Tensor]:
        name = "spectrum" if isinstance(self.cov, Spectral) else "cov"
        return {"mean": self.mean, name: covariance.tensor_of(self.cov)}

    def to_particles(self, n: int, generator: torch.Generator) -> Particles:
        """n independent samples with their log-density."""
        z = torch.randn(*self.batch, n, self.dim, generator=generator, dtype=self.mean.dtype, device=self.mean.device)
        x = self.mean[..., None, :] + z @ self.factor.mT
        return Particles(x, log_density=self.log_prob(x))

    def to_density(self, grid: Grid) -> Density:
        """Averages over the cells of a grid; refused when the grid holds less than 1 − 1e-5 of the mass."""
        if isinstance(self.cov, Spectral):
            return Gaussian(self.mean, self.cov.dense()).to_density(grid)
        return Density.from_masses(gaussian_masses(self.mean, self.cov, grid), grid)

    def convolve(self, W: Field, x: Tensor | None = None) -> Tensor:
        y, _, w = self._nodes()
        return pairwise.convolve(W, y if x is None else x, y, w)

    def interact(self, W: Field) -> Tensor:
        difference = self.with_matrix(torch.zeros_like(self.mean), 2 * self.cov)  # X − Y ~ N(0, 2Σ)
        return difference.expect(lambda z: pairwise.evaluate(W, z))

    def log_prob(self, x: Tensor | None = None) -> Tensor:
        z = self._whiten(self.points if x is None else x)
        return -0.5 * z.square().sum(-1) - log_normaliser(self._logdet(), self.dim)[..., None]

    def score(self, x: Tensor | None = None) -> Tensor:
        """−Σ⁻¹(x − m)."""
        z = self._whiten(self.points if x is None else x)
        return -covariance.solve_rows_transposed(self.factor, z)

    def expect_log(self, u: Field) -> Tensor:
        return self.expect(lambda x: u(self.log_prob(x)))

    def entropy(self) -> Tensor:
        """−½ log det(2πe Σ)."""
        return -log_normaliser(self._logdet(), self.dim) - 0.5 * self.dim

    def _whiten(self, x: Tensor) -> Tensor:
        return covariance.solve_rows(self.factor, x - self.mean[..., None, :])

    def _logdet(self) -> Tensor:
        return covariance.logdet(self.factor)
