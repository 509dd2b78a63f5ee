"""The Stein metric, whose flow of the relative entropy is Stein variational gradient descent."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ..domains import Euclidean
from ..functionals import Functional
from ..kernels import Bilinear, Kernel
from ..measures import Density, Gaussian, Measure, Particles, Quantiles, Spectral, Velocity
from ..measures.faces import covectors, smooth_faces, smoothing_rate, work
from ..pairwise.routes import route
from ..pairwise.sums import Sums
from .base import Metric


@dataclass(frozen=True, eq=False)
class Stein(Metric):
    """K_μ u = ∫ k(·, y) u(y) dμ(y), so that ∂t μ = div(μ K_μ∇δF/δμ) (Liu 2017; Duncan, Nüsken, Szpruch 2023).

    On particles the entropy is integrated by parts, ∫k ∇log ρ dμ = −∫∇_y k dμ, and no score of μ is needed:
    `Forward(KL(V), Stein(k))` is SVGD, ẋ_i = Σ_j w_j [−k(x_i, x_j)∇V(x_j) + ∇_y k(x_i, x_j)] (Liu, Wang 2016).
    Gaussians are exact for the Bilinear kernel; with any other the field is not affine, and they need their quadrature
    named. A Density moves by the mean-field equation, with convolutions by FFT on the faces of its grid.

    `kernel` must be positive definite: Energy and Riesz, which are so only against charges of total 0, are refused.
    """

    kernel: Kernel

    def __post_init__(self) -> None:
        if not isinstance(self.kernel, Kernel):
            raise TypeError(f"Stein needs a kernel such as kernels.RBF(1.0), not a {type(self.kernel).__name__}")
        reason = self.kernel.indefinite()
        if reason is not None:
            raise ValueError(
                f"Stein needs a positive definite kernel, or F would not decrease, and {reason}. What would work: RBF, "
                "Laplace, InverseMultiquadric or Bilinear"
            )

    def onsager(self, mu: Measure, u: Tensor) -> Tensor:
        return self._sums(mu, mu.points).values(mu.weights[..., None] * u)

    def descent(self, F: Functional, mu: Measure) -> Velocity:
        if isinstance(mu, Gaussian) and self._affine:
            shift, slope = (self._affine * part for part in _moments(F, mu))
            at_mean = -shift - (slope @ mu.mean[..., None])[..., 0]
            return Velocity(field=lambda x: -shift[..., None, :] - x @ slope.mT, affine=lambda: (at_mean, -slope))
        source = cache(lambda: self._source(F, mu))

        def field(x: Tensor) -> Tensor:
            return -self._operator(mu, x, *source())

        if not isinstance(mu, Density):
            return Velocity(field)
        return Velocity(
            field, faces=lambda: self._on_faces(F, mu)[1], diffusivity=lambda: smoothing_rate(self.kernel, mu)
        )

    def generators(self) -> tuple[torch.Generator, ...]:
        return self.kernel.generators()

    def dissipation(self, F: Functional, mu: Measure) -> Tensor:
        """∬ ⟨∇φ(x), k(x, y)∇φ(y)⟩ dμ(x) dμ(y); for F = KL(·|π) the squared kernel Stein discrepancy.

        On particles it is integrated by parts twice, pairs i = j included: the V-statistic (Liu, Lee, Jordan 2016;
        Chwialkowski, Strathmann, Gretton 2016).
        """
        if isinstance(mu, Density):
            return -work(mu, *self._on_faces(F, mu))
        if isinstance(mu, Gaussian) and self._affine:
            shift, slope = _moments(F, mu)
            return self._affine * (shift.square().sum(-1) + slope.square().sum((-2, -1)))
        c, b = self._source(F, mu)
        sums = self._sums(mu, mu.points)
        if b is None:
            return (c * sums.values(c)).sum((-2, -1))
        return (c * sums.stein(c, 2 * b)).sum((-2, -1)) + (b * sums.traces(b)).sum((-2, -1))

    @property
    def _affine(self) -> float:
        """c where the kernel is c·Bilinear, which keeps Gaussians; 0 where it is another."""
        bilinear = all(isinstance(part, Bilinear) for _, part in self.kernel.terms)
        return sum(c for c, _ in self.kernel.terms) if bilinear else 0.0

    def _sums(self, mu: Measure, x: Tensor) -> Sums:
        nodal = isinstance(mu, Particles | Quantiles)
        kernel = self.kernel.fit(mu.points) if nodal else self.kernel  # a width by rule is one for particles
        domain = mu.domain if isinstance(mu, Particles) else Euclidean()
        return route(kernel, x, mu.points, domain, "auto")

    def _operator(self, mu: Measure, x: Tensor, c: Tensor, b: Tensor | None) -> Tensor:
        """Σ_j k(x, y_j)c_j + b_j∇_y k(x, y_j) over the nodes of μ."""
        return self._sums(mu, x).values(c) if b is None else self._sums(mu, x).stein(c, b)

    def _source(self, F: Functional, mu: Measure) -> tuple[Tensor, Tensor | None]:
        """c = w·∇φ at the nodes of μ, (*batch, n, d); without a score the weak form (c, b) = (w·s, −w·a)."""
        w = mu.weights[..., None]
        if isinstance(mu, Particles | Quantiles):
            _check_apart(mu)
            s, a = F.weak(mu)
            return w * _finite_score(s), -w * a[..., None]
        if isinstance(mu, Gaussian) and (mu.quadrature is None or isinstance(mu.cov, Spectral)):
            raise TypeError(
                f"Stein({self.kernel}) does not keep Gaussians: its field is not affine, and needs a rule. "
                "What would work: the Bilinear kernel, a dense Gaussian(mean, cov, quadrature=GaussHermite(32)), which "
                "takes the nearest affine field, or Particles"
            )
        return w * _finite_score(F.gradient(mu)), None

    def _on_faces(self, F: Functional, mu: Density) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """ρ∇φ and the velocity −K_μ∇φ on the faces normal to each axis."""
        J = covectors(mu, F.first_variation(mu))
        return J, tuple(-smooth_faces(self.kernel, mu.grid, part, axis) for axis, part in enumerate(J))


def _moments(F: Functional, mu: Gaussian) -> tuple[Tensor, Tensor]:
    """E ∇φ and E ∇φ yᵀ = E ∇φ mᵀ + E ∇²φ Σ under N(m, Σ), by Stein's lemma."""
    if isinstance(mu.cov, Spectral):
        raise TypeError("the Bilinear kernel does not keep translation invariance: use Gaussian(mean, cov.dense())")
    shift, hessian = F.bures_gradient(mu)
    return shift, shift[..., :, None] * mu.mean[..., None, :] + hessian @ mu.cov


def _check_apart(mu: Measure) -> None:
    """Refuse particles that are all at one place, from which a symmetric kernel never parts them."""
    x = mu.points
    if x.shape[-2] > 1 and (x == x[..., :1, :]).all(-1).all(-1).any():
        raise ValueError(
            f"all {x.shape[-2]} particles are at one place: their kernel has no gradient there, so they never part. "
            "Start from distinct points, such as Gaussian(mean, cov).to_particles(n, generator)"
        )


def _finite_score(u: Tensor) -> Tensor:
    if not torch.isfinite(u).all():
        bad = int((~torch.isfinite(u)).any(-1).sum())
        raise ValueError(
            f"∇δF/δμ is NaN or infinite at {bad} of {u.shape[:-1].numel()} nodes; one such score would spoil every "
            "particle through the kernel. Is V differentiable, and finite, where the particles are?"
        )
    return u
