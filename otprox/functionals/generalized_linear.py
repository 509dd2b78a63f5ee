"""Potentials of generalised linear models, with exact expectations under Gaussians."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..measures import GaussHermite
from ..measures.base import as_float
from .potential import Quadratic


@dataclass(frozen=True, eq=False)
class GeneralizedLinear:
    """The callable V(θ) = Σ_i ℓ_i(x_iᵀθ) + prior(θ): −log posterior of a generalised linear model.

    features: (rows, d), the x_i. loss: η (…, rows) -> (…, rows) elementwise, for logistic regression with labels
    y = ±1: `lambda eta: softplus(-y * eta)`. prior: a Quadratic, N(0, I) unless given.

    Under θ ~ N(m, S) every η_i is N(x_iᵀm, x_iᵀS x_i), so E V, E ∇V and E ∇²V need only one-dimensional Gauss–Hermite
    sums, one a row, with `order` nodes.
    """

    features: Float[Tensor, "rows d"]
    loss: Callable[[Tensor], Tensor]
    prior: Quadratic
    order: int

    def __init__(
        self, features: Any, loss: Callable[[Tensor], Tensor], prior: Quadratic | None = None, *, order: int = 32
    ) -> None:
        features = as_float(features, "features")
        if features.ndim != 2:
            raise ValueError(f"features must have shape (rows, d), not {tuple(features.shape)}")
        prior = Quadratic(features.new_zeros(features.shape[-1])) if prior is None else prior
        if prior.mean.shape[-1] != features.shape[-1]:
            raise ValueError(
                f"prior lives in dimension {prior.mean.shape[-1]} but features has {features.shape[-1]} columns"
            )
        for name, value in (("features", features), ("loss", loss), ("prior", prior), ("order", order)):
            object.__setattr__(self, name, value)

    def __call__(self, theta: Tensor) -> Tensor:
        return self.loss(theta @ self.features.mT).sum(-1) + self.prior(theta)

    def moments(self, mean: Tensor, cov: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """E V (*batch,), E ∇V (*batch, d), E ∇²V (*batch, d, d) under N(mean, cov)."""
        X = self.features
        z, w = GaussHermite(self.order).nodes(1, mean.dtype, mean.device)
        spread = ((X @ cov) * X).sum(-1).clamp_min(0).sqrt()
        eta = (mean @ X.mT)[..., None, :] + z * spread[..., None, :]  # (*batch, order, rows)
        value, slope, curvature = (torch.einsum("q,...qr->...r", w, part) for part in self._derivatives(eta))
        prior_value, prior_slope, prior_curvature = self.prior.moments(mean, cov)
        return (
            value.sum(-1) + prior_value,
            slope @ X + prior_slope,
            (X.mT * curvature[..., None, :]) @ X + prior_curvature,
        )

    def _derivatives(self, eta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """ℓ, ℓ', ℓ'' by automatic differentiation, elementwise."""
        keep = eta.requires_grad
        with torch.enable_grad():
            eta = eta if keep else eta.detach().requires_grad_()
            value = self.loss(eta)
            (slope,) = torch.autograd.grad(value.sum(), eta, create_graph=True)
            (curvature,) = torch.autograd.grad(slope.sum(), eta, create_graph=keep)
        return (value, slope, curvature) if keep else (value.detach(), slope.detach(), curvature)

    def mode(self, *, tol: float = 1e-10, max_iter: int = 100) -> Tensor:
        """argmin V by Newton's method with halving, for convex losses; (d,)."""
        theta = self.prior.mean
        for _ in range(max_iter):
            _, slope, hessian = self.moments(theta, torch.zeros_like(self.prior.precision))
            step = torch.linalg.solve(hessian, slope)
            if (slope * step).sum() < tol**2:
                return theta
            size = 1.0
            while self(theta[None] - size * step) > self(theta[None]) and size > 1e-10:
                size /= 2
            theta = theta - size * step
        raise RuntimeError(f"no mode after {max_iter} Newton steps; is every loss convex?")

    def hessian(self, theta: Tensor) -> Tensor:
        """∇²V at one point, (d, d)."""
        return self.moments(theta, torch.zeros_like(self.prior.precision))[2]
