"""The entropy seen at a width: internal energies of particles through a Gaussian blob around each."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..domains import Torus
from ..measures import GaussHermite, Gaussian, Measure, Quadrature, Samples, Trapezoidal
from ..measures.quadrature import log_normaliser
from .base import Functional, differentiate
from .blob_integrals import MANY, MOST, AroundEach, AtParticles, BlobIntegral, OnGrid, apart, same


@dataclass(frozen=True)
class Blob(Functional):
    """∫ log(φ∗μ) dμ (form="outer") or ∫ (φ∗μ) log(φ∗μ) dx (form="full"), with φ = N(0, width²·I).

    Both tend to the entropy ∫ μ log μ as width → 0, and both have a value on particles, where the entropy has none;
    take the width a little above the distance of neighbours. In closed form on a Gaussian. On particles and quantiles

        F = ∫ log(φ∗μ) dμ_q,    δF/δμ = q ∗ log(φ∗μ) + φ ∗ (μ_q/(φ∗μ)),    μ_q = q∗μ,

    where q is a Dirac for "outer" and for "full" a `quadrature` of φ; the first variation is exact for the F that the
    quadrature defines. With `Trapezoidal(spacing)` the nodes are those of one grid for all particles, multiples of
    spacing·width, and the sums go axis by axis, O(n) in place of O(n²). It is the default for d ≤ 3 where that grid has
    no more nodes than Gauss–Hermite around each particle (16, 16² or 8³), which is the default elsewhere; the two
    agree to 1e-4 or better. "outer" is summed over pairs, or, at many particles themselves, through such a lattice.

    Carrillo, Craig, Patacchini, "A blob method for diffusion" (2019): "outer" is their regularised energy for m = 1.
    """

    width: float
    form: Literal["outer", "full"] = "outer"
    quadrature: Quadrature | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not (self.width > 0 and math.isfinite(self.width)):
            raise ValueError(f"Blob needs a width > 0, not {self.width}")
        if self.form not in ("outer", "full"):
            raise ValueError(f"form must be 'outer' or 'full', not {self.form!r}")

    def __call__(self, mu: Measure) -> Tensor:
        if isinstance(mu, Gaussian):
            return self._gaussian_value(mu)
        y, w = _nodes(mu)
        return self._integral(y).value(y, w)

    def first_variation(self, mu: Measure, x: Tensor | None = None) -> Tensor:
        if isinstance(mu, Gaussian):
            return self._gaussian_variation(mu, mu.points if x is None else x)
        y, w = _nodes(mu)
        x = y if x is None else x
        return self._integral(y, x).variation(y, w, x)

    def gradient(self, mu: Measure, x: Tensor | None = None) -> Tensor:
        if isinstance(mu, Gaussian):
            at = apart(mu.points if x is None else x, *mu.state().values())
            return differentiate(lambda y: self.first_variation(mu, y), at, "Blob")
        y, w = _nodes(mu)
        x = y if x is None else x
        return self._integral(y, x).slopes(y, w, x)

    def hessian(self, mu: Measure, x: Tensor | None = None) -> Tensor:
        if isinstance(mu, Gaussian):
            return super().hessian(mu, x)
        y, w = _nodes(mu)
        x = y if x is None else x
        return self._integral(y, x).curvatures(y, w, x)

    def bures_gradient(self, mu: Gaussian) -> tuple[Tensor, Tensor]:
        """(0, −S⁻¹) for "full" and (0, −S⁻¹ − width²·S⁻²) for "outer", S = Σ + width²·I."""
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(self._blurred(mu).cov))
        outer = self.width**2 * inverse @ inverse if self.form == "outer" else 0.0
        return torch.zeros_like(mu.mean), -(inverse + outer)

    def _integral(self, *points: Tensor) -> BlobIntegral:
        like, dim = points[0], points[0].shape[-1]
        if self.form == "outer":
            if self._many_together(*points):
                return AtParticles(self.width)
            return AroundEach(self.width, like.new_zeros(1, dim), like.new_ones(1))
        rule = self.quadrature or self._cheaper(*points)
        if isinstance(rule, Trapezoidal):
            return OnGrid(self.width, rule.spacing)
        z, weights = rule.nodes(dim, like.dtype, like.device)
        return AroundEach(self.width, self.width * z, weights)

    def _many_together(self, *points: Tensor) -> bool:
        """Whether the points are all the particles, so many and so near that a lattice is cheaper than pairs."""
        (n, dim), lattice = points[0].shape[-2:], AtParticles(self.width).lattice
        if dim > 3 or n < MANY or not all(same(x, points[0]) for x in points):
            return False
        return lattice.nodes(points[0]) <= min(MOST, MANY * n)

    def _cheaper(self, *points: Tensor) -> Quadrature:
        """The grid, unless particles are so few or far apart that nodes around each are fewer."""
        (n, dim), grid = points[0].shape[-2:], Trapezoidal()
        if dim > 3:
            return Samples(64)
        each = GaussHermite(16 if dim < 3 else 8)
        nodes = OnGrid(self.width, grid.spacing).nodes(*points)
        return grid if nodes <= min(MOST, n * each.order**dim) else each

    def _blurred(self, mu: Gaussian) -> Gaussian:
        eye = torch.eye(mu.dim, dtype=mu.cov.dtype, device=mu.cov.device)
        return mu.with_state(cov=mu.cov + self.width**2 * eye)

    def _gaussian_value(self, mu: Gaussian) -> Tensor:
        blurred = self._blurred(mu)
        if self.form == "full":
            return blurred.entropy()
        trace = torch.cholesky_solve(mu.cov, blurred.factor).diagonal(dim1=-2, dim2=-1).sum(-1)
        return blurred.entropy() + 0.5 * (mu.dim - trace)

    def _gaussian_variation(self, mu: Gaussian, x: Tensor) -> Tensor:
        blurred = self._blurred(mu)
        if self.form == "full":
            trace = torch.cholesky_inverse(blurred.factor).diagonal(dim1=-2, dim2=-1).sum(-1)
            return blurred.log_prob(x) - 0.5 * self.width**2 * trace[..., None] + 1
        return blurred.log_prob(x) + self._gaussian_ratio(mu, blurred, x)

    def _gaussian_ratio(self, mu: Gaussian, blurred: Gaussian, x: Tensor) -> Tensor:
        """(φ ∗ (μ/(φ∗μ)))(x) = |S|/√|M|·exp(−½·width²·|x − m|²_{M⁻¹}), with M = ΣS + width⁴·I."""
        eye = torch.eye(mu.dim, dtype=mu.cov.dtype, device=mu.cov.device)
        M = mu.cov @ blurred.cov + self.width**4 * eye
        bump = mu.with_state(cov=(M + M.mT) / (2 * self.width**2))
        log_scale = 2 * blurred.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) - 0.5 * torch.logdet(M)
        return (bump.log_prob(x) + (log_scale + log_normaliser(torch.logdet(bump.cov), mu.dim))[..., None]).exp()


def _nodes(mu: Measure) -> tuple[Tensor, Tensor]:
    """Nodes and weights of a nodal measure on R^d."""
    x, w = getattr(mu, "x", None), getattr(mu, "w", None)
    if x is None or w is None:
        raise TypeError(
            f"Blob is for particles, quantiles and Gaussians; a {type(mu).__name__} has a density: use Entropy()"
        )
    if isinstance(getattr(mu, "domain", None), Torus):
        raise TypeError("Blob lives on R^d, not on a Torus: use a Density on a periodic Grid with Entropy()")
    return x, w
