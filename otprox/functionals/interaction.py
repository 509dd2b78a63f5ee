"""Interaction energies ½∬ W(x − y) dμ(x) dμ(y)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..kernels import Kernel, Stationary
from ..measures import Gaussian, Measure, Quantiles
from ..measures.covariance import dense
from ..pairwise import Slope
from .atom import Atom, NotConvex, curvature_root, scatter
from .base import Functional
from .potential import Quadratic


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

    def __post_init__(self) -> None:
        if not callable(self.W):
            raise TypeError(f"Interaction needs a callable W on displacements, not a {type(self.W).__name__}")
        if isinstance(self.W, Kernel) and not isinstance(self.W, Stationary):
            raise TypeError(f"Interaction needs a kernel of x − y; {self.W} is not a function of the difference")

    def __call__(self, mu: Measure) -> Tensor:
        return 0.5 * mu.interact(self.W)

    def first_variation(self, mu: Measure, x: Tensor | None = None) -> Tensor:
        return mu.convolve(self.W, x)

    def gradient(self, mu: Measure, x: Tensor | None = None) -> Tensor:
        """(∇W ∗ μ)(x)."""
        return mu.convolve(Slope(self.W), x)

    def bures_gradient(self, mu: Gaussian) -> tuple[Tensor, Tensor]:
        """(0, E ∇²W(X − Y)), by Stein's lemma under X − Y ~ N(0, 2Σ)."""
        difference = mu.with_state(mean=torch.zeros_like(mu.mean), cov=2 * mu.cov)
        _, hessian = difference.nearest_affine(Slope(self.W))
        return torch.zeros_like(mu.mean), (hessian + hessian.mT) / 2

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
        """c·(P/2n) Σ |x_i − mean|² over quantiles, for W a convex `Quadratic` of curvature P."""
        if isinstance(mu, Quantiles) and isinstance(self.W, Quadratic):
            root = curvature_root(c * dense(self.W.precision) / (2 * mu.n), mu, "Interaction(Quadratic)")
            return Atom((Interaction, Quantiles), scatter, (root,))
        raise NotConvex(
            f"Interaction has no convex form on {type(mu).__name__}: it needs Quantiles and W a Quadratic; "
            "in 1-D use Quantile"
        )
