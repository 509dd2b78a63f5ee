"""Prox steps of translation-invariant Gaussian fields, mode by mode: O(N log N) for N sites."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..functionals import Functional
from ..measures import Gaussian, Measure, Spectral
from ..measures.covariance import tensor_of
from ..metrics import Entropic, Metric, Wasserstein
from .base import Out, exact, require
from .quadratic_form import QuadraticForm, read
from .sinkhorn_gaussian import coupling_gain


@dataclass(frozen=True)
class Modes:
    """argmin_ν F(ν) + d²(μ, ν)/(2·tau) for a Gaussian μ with Spectral covariance, F = c·Entropy + ∫V dν, c ≥ 0, V a
    Quadratic with Spectral precision, in Wasserstein(Q) or Entropic(base=Wasserstein(Q)) with Q Spectral or None.

    All matrices share their eigenvectors, so every mode is a step in one dimension: with a = 1 + tau·qp, λ = s/(qa)
    and γ = tau·c, the new variance is q·f(λ)/a with the f of `Bures` (Wibisono 2018; Janati, Muzellec, Peyré and
    Cuturi 2020). The "debiased" reference is declined: make the covariance dense.
    """

    def supports(self, F: Functional, metric: Metric, mu: Measure) -> str | None:
        if not isinstance(mu, Gaussian) or not isinstance(mu.cov, Spectral):
            return "it works on a Gaussian with a Spectral covariance"
        base = metric.base if isinstance(metric, Entropic) else metric
        if not isinstance(base, Wasserstein):
            return f"it knows Wasserstein and Entropic over an interval, not {type(base).__name__}"
        if isinstance(metric, Entropic) and metric.reference == "debiased":
            return "the debiased step has no closed form; use a dense covariance, mu.cov.dense()"
        if base.Q is not None and not isinstance(base.Q, Spectral):
            return "Q is dense and the covariance Spectral; give Q as Spectral(values, lattice)"
        form = read(F, mu)
        if isinstance(form, str):
            return form
        if form.hessian is not None and not isinstance(form.hessian, Spectral):
            return "V is not a Quadratic with Spectral precision"
        return None

    def __call__(self, F: Functional, metric: Metric, mu: Measure, tau: float, last: Any = None) -> Out:
        require(self, F, metric, mu)
        form = read(F, mu)  # type: ignore[arg-type]  # supports has checked
        base = metric.base if isinstance(metric, Entropic) else metric
        assert isinstance(mu, Gaussian) and isinstance(form, QuadraticForm) and isinstance(base, Wasserstein)
        cov: Any = mu.cov
        s, q = tensor_of(cov), tensor_of(base.mobility(mu))
        p = torch.zeros_like(q) if form.hessian is None else tensor_of(form.hessian)
        a = _stiffness(q * p, tau)
        gamma, h = tau * form.entropy, _widening(metric)
        new = q * _prox(s / (q * a), gamma, h) / a
        if not (new > 0).all():
            raise ValueError(
                f"reference='product' leaves a mode with variance {new.min().item():.3g}; take a smaller reg"
            )
        shift = mu.mean.new_zeros(mu.mean.shape)
        if form.gradient is not None:
            scale = cov.with_values(tau * q / a)
            shift = -(scale @ form.gradient[..., None])[..., 0]
        nu = mu.with_matrix(mu.mean + shift, cov.with_values(new.expand(*mu.batch, -1)))
        distance2 = _moved(shift, mu, q) + _spread2(s / q, new / q, metric)
        if isinstance(metric, Entropic) and metric.reference == "lebesgue":
            distance2 = distance2 + metric.reg * (mu.entropy() + nu.entropy())
        distance2 = distance2.expand(mu.batch)
        return Out(nu, exact(nu, F(nu) + distance2 / (2 * tau), distance2))


def _stiffness(qp: Tensor, tau: float) -> Tensor:
    a = 1 + tau * qp
    if not (a > 0).all():
        smallest = qp.min().item()
        raise ValueError(
            f"tau = {tau:.6g} is not below the convexity limit {-1 / smallest:.6g}: a mode has curvature "
            f"{smallest:.6g} in this metric; take smaller steps"
        )
    return a


def _widening(metric: Metric) -> float:
    if not isinstance(metric, Entropic):
        return 0.0
    return metric.reg / 2 if metric.reference == "lebesgue" else -metric.reg / 2


def _prox(x: Tensor, gamma: float, h: float) -> Tensor:
    u, root = x + 2 * gamma + h, ((x + h).square() + 4 * gamma * x).sqrt()
    return torch.where(
        u < 0, -2 * gamma * (gamma + h) / (root - u).clamp_min(torch.finfo(x.dtype).tiny), (u + root) / 2
    )


def _moved(shift: Tensor, mu: Gaussian, q: Tensor) -> Tensor:
    """|shift|² in the cost ⟨z, Q⁻¹z⟩."""
    assert isinstance(mu.cov, Spectral)
    return (mu.cov.lattice.to_modes(shift).square() / q).sum(-1)


def _spread2(s: Tensor, new: Tensor, metric: Metric) -> Tensor:
    """Σ over modes of the cost between variances s and new, without the entropies of the "lebesgue" reference."""
    if not isinstance(metric, Entropic):
        return (s.sqrt() - new.sqrt()).square().sum(-1)
    return (s + new).sum(-1) + coupling_gain(s * new, metric.reg)
