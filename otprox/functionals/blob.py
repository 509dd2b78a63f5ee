"""The entropy seen at a width: internal energies of particles through a Gaussian blob around each."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..domains import Torus
from ..measures import Field, GaussHermite, Gaussian, Measure, Quadrature, Samples
from ..measures.quadrature import log_normaliser
from ..pairwise import log_gaussian_sum
from .base import Functional, differentiate


@dataclass(frozen=True)
class Blob(Functional):
    """∫ log(φ∗μ) dμ (form="outer") or ∫ (φ∗μ) log(φ∗μ) dx (form="full"), with φ = N(0, width²·I).

    Both tend to the entropy ∫ μ log μ as width → 0, and both have a value on particles, where the entropy has none;
    take the width a little above the distance of neighbours. In closed form on a Gaussian. On particles and quantiles

        F = ∫ log(φ∗μ) dμ_q,    δF/δμ = q ∗ log(φ∗μ) + φ ∗ (μ_q/(φ∗μ)),    μ_q = q∗μ,

    where q is a Dirac for "outer" and for "full" a `quadrature` of φ (Gauss–Hermite for d ≤ 3 unless given: 16, 16² or
    8³ nodes a particle); the first variation is exact for the F that the quadrature defines.

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
        return (w * self._smeared(y, lambda x: self._log(x, y, w.log()))).sum(-1)

    def first_variation(self, mu: Measure, x: Tensor | None = None) -> Tensor:
        if isinstance(mu, Gaussian):
            return self._gaussian_variation(mu, mu.points if x is None else x)
        y, w = _nodes(mu)
        return self._variation(y, w, y if x is None else x)

    def gradient(self, mu: Measure, x: Tensor | None = None) -> Tensor:
        at = _apart(mu.points if x is None else x, mu)
        return differentiate(lambda y: self.first_variation(mu, y), at, "Blob")

    def bures_gradient(self, mu: Gaussian) -> tuple[Tensor, Tensor]:
        """(0, −S⁻¹) for "full" and (0, −S⁻¹ − width²·S⁻²) for "outer", S = Σ + width²·I."""
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(self._blurred(mu).cov))
        outer = self.width**2 * inverse @ inverse if self.form == "outer" else 0.0
        return torch.zeros_like(mu.mean), -(inverse + outer)

    def _log(self, x: Tensor, y: Tensor, log_w: Tensor) -> Tensor:
        """log Σ_j w_j φ(x_i − y_j)."""
        norm = 0.5 * x.shape[-1] * math.log(2 * math.pi * self.width**2)
        return log_gaussian_sum(x, y, log_w, self.width) - norm

    def _variation(self, y: Tensor, w: Tensor, x: Tensor) -> Tensor:
        log_w = w.log()
        offsets, weights = self._rule(y)
        sources = _spread(y, offsets)
        log_mass = _outer(log_w, weights.log()) - self._log(sources, y, log_w)
        return self._smeared(x, lambda at: self._log(at, y, log_w)) + self._log(x, sources, log_mass).exp()

    def _smeared(self, x: Tensor, f: Field) -> Tensor:
        """(q∗f)(x)."""
        offsets, weights = self._rule(x)
        return f(_spread(x, offsets)).unflatten(-1, (-1, len(weights))) @ weights

    def _rule(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Offsets (k, d) and weights (k,) of q."""
        dim = x.shape[-1]
        if self.form == "outer":
            return x.new_zeros(1, dim), x.new_ones(1)
        rule = self.quadrature or (GaussHermite(16 if dim < 3 else 8) if dim <= 3 else Samples(64))
        z, weights = rule.nodes(dim, x.dtype, x.device)
        return self.width * z, weights

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


def _apart(x: Tensor, mu: Measure) -> Tensor:
    """x as a tensor of its own, so that differentiating in it leaves the nodes of μ where they are."""
    if x.requires_grad:
        return x.view_as(x)
    return x.detach().requires_grad_() if any(t.requires_grad for t in mu.state().values()) else x


def _spread(x: Tensor, offsets: Tensor) -> Tensor:
    """x_i + o_k, (*batch, n·k, d)."""
    return (x[..., :, None, :] + offsets).flatten(-3, -2)


def _outer(a: Tensor, b: Tensor) -> Tensor:
    """a_i + b_k, (*batch, n·k)."""
    return (a[..., :, None] + b).flatten(-2)
