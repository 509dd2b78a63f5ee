"""The Stein metric, whose flow of the relative entropy is Stein variational gradient descent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ..domains import Domain
from ..functionals import Functional
from ..kernels import Bilinear, Energy, Kernel, Laplace, Riesz, Stationary
from ..measures import Density, Gaussian, Measure, Particles, Quantiles, Spectral, Velocity
from ..measures.faces import covectors, smooth_faces, smoothing_rate, work
from ..pairwise import Slope, convolve
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
            raise TypeError(f"Stein needs a kernel such as kernels.RBF(1.0), not {self.kernel!r}")
        if isinstance(self.kernel, Energy | Riesz):
            raise ValueError(
                f"Stein needs a positive definite kernel, and {self.kernel} is not: F would not decrease. What would "
                "work: RBF, Laplace, InverseMultiquadric or Bilinear"
            )

    def onsager(self, mu: Measure, u: Tensor) -> Tensor:
        return self._operator(mu, mu.points, u, None)

    def descent(self, F: Functional, mu: Measure) -> Velocity:
        if isinstance(mu, Gaussian) and isinstance(self.kernel, Bilinear):
            shift, slope = _moments(F, mu)
            at_mean = -shift - (slope @ mu.mean[..., None])[..., 0]
            return Velocity(field=lambda x: -shift[..., None, :] - x @ slope.mT, affine=lambda: (at_mean, -slope))
        source = cache(lambda: self._source(F, mu))
        field = lambda x: -self._operator(mu, x, *source())  # noqa: E731
        if isinstance(mu, Density):
            faces, rate = lambda: self._on_faces(F, mu)[1], lambda: smoothing_rate(self.kernel, mu)  # noqa: E731
            return Velocity(field, faces=faces, diffusivity=rate)
        return Velocity(field)

    def dissipation(self, F: Functional, mu: Measure) -> Tensor:
        """∬ ⟨∇φ(x), k(x, y)∇φ(y)⟩ dμ(x) dμ(y); for F = KL(·|π) the squared kernel Stein discrepancy.

        On particles it is integrated by parts twice, pairs i = j included: the V-statistic (Liu, Lee, Jordan 2016;
        Chwialkowski, Strathmann, Gretton 2016).
        """
        if isinstance(mu, Density):
            return -work(mu, *self._on_faces(F, mu))
        if isinstance(mu, Gaussian) and isinstance(self.kernel, Bilinear):
            shift, slope = _moments(F, mu)
            return shift.square().sum(-1) + slope.square().sum((-2, -1))
        u, a = self._source(F, mu)
        rate = (u * self._operator(mu, mu.points, u, a)).sum(-1)
        if a is not None:
            self._check_twice_differentiable()
            rate = rate - a * _divergence(lambda x: self._operator(mu, x, u, a), mu.points)
        return (mu.weights * rate).sum(-1)

    def _operator(self, mu: Measure, x: Tensor, u: Tensor, a: Tensor | None) -> Tensor:
        """∫ k(x, y)u(y) − a(y)∇_y k(x, y) dμ(y) at points x."""
        w = mu.weights
        domain = mu.domain if isinstance(mu, Particles) else None
        return _smooth(self.kernel, x, mu.points, w[..., None] * u, None if a is None else -w * a, domain)

    def _source(self, F: Functional, mu: Measure) -> tuple[Tensor, Tensor | None]:
        """∇φ at the nodes of μ, in the weak form (u, a) where μ has no score."""
        if isinstance(mu, Particles | Quantiles):
            _check_apart(mu)
            u, a = F.weak(mu)
            return _finite_score(u), a
        if isinstance(mu, Gaussian) and (mu.quadrature is None or isinstance(mu.cov, Spectral)):
            raise TypeError(
                f"Stein({self.kernel}) does not keep Gaussians: its field is not affine, and needs a rule. "
                "What would work: the Bilinear kernel, a dense Gaussian(mean, cov, quadrature=GaussHermite(32)), which "
                "takes the nearest affine field, or Particles"
            )
        return _finite_score(F.gradient(mu)), None

    def _on_faces(self, F: Functional, mu: Density) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """ρ∇φ and the velocity −K_μ∇φ on the faces normal to each axis."""
        J = covectors(mu, F.first_variation(mu))
        return J, tuple(-smooth_faces(self.kernel, mu.grid, part, axis) for axis, part in enumerate(J))

    def _check_twice_differentiable(self) -> None:
        if isinstance(self.kernel, Laplace):
            raise ValueError(
                f"on particles the Stein discrepancy needs ∇_x·∇_y k at x = y, which {self.kernel} does not have. What "
                "would work: RBF or InverseMultiquadric, or a Density, where the score is known"
            )


def _moments(F: Functional, mu: Gaussian) -> tuple[Tensor, Tensor]:
    """E ∇φ and E ∇φ yᵀ = E ∇φ mᵀ + E ∇²φ Σ under N(m, Σ), by Stein's lemma."""
    if isinstance(mu.cov, Spectral):
        raise TypeError("the Bilinear kernel does not keep translation invariance: use Gaussian(mean, cov.dense())")
    shift, hessian = F.bures_gradient(mu)
    return shift, shift[..., :, None] * mu.mean[..., None, :] + hessian @ mu.cov


def _smooth(kernel: Kernel, x: Tensor, y: Tensor, u: Tensor, a: Tensor | None, domain: Domain | None) -> Tensor:
    """Σ_j k(x_i, y_j)u_j + a_j∇_y k(x_i, y_j)."""
    if isinstance(kernel, Bilinear):
        found = x @ (y.mT @ u) + u.sum(-2, keepdim=True)
        return found if a is None else found + x * a.sum(-1)[..., None, None]
    assert isinstance(kernel, Stationary)
    found = convolve(kernel, x[..., None, :, :], y[..., None, :, :], u.mT, domain).mT
    return found if a is None else found - convolve(Slope(kernel), x, y, a, domain)


def _divergence(v: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """div v at points, by d backward passes."""
    with torch.enable_grad():
        y = x.detach().requires_grad_()
        out = v(y)
        parts = [
            torch.autograd.grad(out[..., i].sum(), y, retain_graph=i + 1 < x.shape[-1])[0][..., i]
            for i in range(x.shape[-1])
        ]
    return torch.stack(parts).sum(0)


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
