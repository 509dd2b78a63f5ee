"""Splittings of the flow of KL(· | N(n, C)) as exact one-step maps of Gaussians, with their orders."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from ..functionals import Quadratic
from ..measures import Gaussian
from .bures import apply, heat, image, ornstein_uhlenbeck, spectral, to_flat
from .proximal import forward_kl, prox_entropy, prox_kl, prox_potential

Step = Callable[[Gaussian, Gaussian, float], Gaussian]  # (μ, target, τ) -> μ after τ


class Splitting(NamedTuple):
    """A named splitting, its order in τ against the Ornstein–Uhlenbeck flow, and its one-step map."""

    name: str
    order: int
    step: Step


def drift(order: int | None = None) -> Step:
    """The flow of −C⁻¹(x − n) over τ: Taylor polynomial of exp(−τC⁻¹) of degree `order`; None is exact.

    Every explicit Runge–Kutta method of `order` stages and that order (up to 4) gives this map, as the field is linear.
    """

    def factor(z: torch.Tensor) -> torch.Tensor:
        if order is None:
            return z.exp()
        total = torch.ones_like(z)
        for k in range(order, 0, -1):
            total = 1 + z / k * total
        return total

    def step(mu: Gaussian, target: Gaussian, tau: float) -> Gaussian:
        B = spectral(target.cov, lambda c: factor(-tau / c))
        return image(mu, B, target.mean + apply(B, mu.mean - target.mean))

    return step


def implicit_drift(mu: Gaussian, target: Gaussian, tau: float) -> Gaussian:
    """The prox of the potential, the implicit Euler step of the drift."""
    return prox_potential(mu, Quadratic(target.mean, precision=spectral(target.cov, torch.reciprocal)), tau)


def heat_step(mu: Gaussian, target: Gaussian, tau: float) -> Gaussian:
    """The exact flow of the entropy."""
    return heat(mu, tau)


def prox_entropy_step(mu: Gaussian, target: Gaussian, tau: float) -> Gaussian:
    """The implicit step of the entropy."""
    return prox_entropy(mu, tau)


def lie(first: Step, second: Step) -> Step:
    """`first`, then `second`, each over τ."""
    return lambda mu, target, tau: second(first(mu, target, tau), target, tau)


def strang(outer: Step, inner: Step) -> Step:
    """`outer` over τ/2, `inner` over τ, `outer` over τ/2."""
    return lambda mu, target, tau: outer(inner(outer(mu, target, tau / 2), target, tau), target, tau / 2)


def halves(first: Step, second: Step) -> Step:
    """`first` over τ/2, then `second` over τ/2: both act on the whole of KL."""
    return lambda mu, target, tau: second(first(mu, target, tau / 2), target, tau / 2)


SPLITTINGS: tuple[Splitting, ...] = (
    Splitting("Forward(V) then Heat (Langevin)", 1, lie(drift(1), heat_step)),
    Splitting("Heat then Forward(V)", 1, lie(heat_step, drift(1))),
    Splitting("Forward(V) then Backward(Entropy)", 1, lie(drift(1), prox_entropy_step)),
    Splitting("Backward(V) then Heat", 1, lie(implicit_drift, heat_step)),
    Splitting("exact drift then Heat", 1, lie(drift(), heat_step)),
    Splitting("exact drift then Backward(Entropy)", 1, lie(drift(), prox_entropy_step)),
    Splitting("Strang(Heat, Forward(V))", 1, strang(heat_step, drift(1))),
    Splitting("Strang(Forward(V), Heat)", 1, strang(drift(1), heat_step)),
    Splitting("Strang(exact drift, Backward(Entropy))", 1, strang(drift(), prox_entropy_step)),
    Splitting("Strang(Heat, exact drift)", 2, strang(heat_step, drift())),
    Splitting("Strang(exact drift, Heat)", 2, strang(drift(), heat_step)),
    Splitting("Strang(Heat, second-order drift)", 2, strang(heat_step, drift(2))),
    Splitting("Strang(second-order drift, Heat)", 2, strang(drift(2), heat_step)),
    Splitting("Forward(KL)", 1, forward_kl),
    Splitting("Backward(KL) (JKO)", 1, prox_kl),
    Splitting("Forward(KL) then Backward(KL), halves", 2, halves(forward_kl, prox_kl)),
    Splitting("Backward(KL) then Forward(KL), halves", 2, halves(prox_kl, forward_kl)),
)


def splitting_error(step: Step, mu: Gaussian, target: Gaussian, time: float, steps: int) -> torch.Tensor:
    """Largest error of mean and covariance against Ornstein–Uhlenbeck at `time`, in units of the target; (*batch,)."""
    tau, exact = time / steps, ornstein_uhlenbeck(mu, target, time)
    for _ in range(steps):
        mu = step(mu, target, tau)
    got, true = to_flat(mu, target.cov), to_flat(exact, target.cov)
    cov = (got.cov - true.cov).abs().amax((-2, -1))
    return torch.maximum((got.mean - true.mean).abs().amax(-1), cov)
