"""The catalogue: schemes of the literature, each a composition of steps with its reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from .adagrad import Adagrad
from .functionals import (
    KL,
    MMD,
    Blob,
    Congestion,
    Entropy,
    Functional,
    Interaction,
    Obstacle,
    PorousMedium,
    Potential,
    Quadratic,
    Varying,
)
from .functionals.obstacle import Bound
from .kernels import Cosine, Kernel
from .measures import Gaussian, Measure
from .measures.base import Field
from .metrics import Entropic, Landau, Metric, Stein, Wasserstein
from .noisy import NoisyForward
from .solvers import Solver
from .steps import Backward, Flow, Forward, Halves, Heat, Step, Strang

Target = Gaussian | Callable[[Tensor], Tensor]


def proximal_gradient(
    V: Callable[[Tensor], Tensor], metric: Metric | None = None, solver: Solver | None = None
) -> Step:
    """Wasserstein proximal gradient: forward on ∫V dμ, backward on the entropy; unbiased.

    Wibisono 2018, "Sampling as optimization in the space of measures"; Salim, Korba, Luise 2020, "The Wasserstein
    proximal gradient algorithm".
    """
    metric = metric or Wasserstein()
    return Forward(Potential(V), metric) >> Backward(Entropy(), metric, solver)


def langevin(
    V: Callable[[Tensor], Tensor], generator: torch.Generator | None = None, metric: Metric | None = None
) -> Step:
    """Unadjusted Langevin: forward on ∫V dμ, then the exact heat flow; stationary law biased by O(tau).

    Roberts, Tweedie 1996; as a forward-flow splitting, Wibisono 2018.
    """
    metric = metric or Wasserstein()
    return Forward(Potential(V), metric) >> Heat(metric=metric, generator=generator)


def jko(target: Target, metric: Metric | None = None, solver: Solver | None = None) -> Step:
    """Jordan–Kinderlehrer–Otto 1998, "The variational formulation of the Fokker–Planck equation"."""
    return Backward(KL(target), metric or Wasserstein(), solver)


def porous_medium(m: float, V: Field | None = None, solver: Solver | None = None) -> Step:
    """∂t ρ = Δρᵐ + div(ρ∇V) for m > 1, by JKO steps: supports are compact, and fronts move at finite speed.

    Otto 2001, "The geometry of dissipative evolution equations: the porous medium equation".
    `exact.diffusion.barenblatt` has steps in closed form, against which a tutorial judges the solvers.
    """
    if not m > 1:
        raise ValueError(f"the porous medium equation has m > 1, not {m}; fast_diffusion has m < 1, Entropy m = 1")
    return Backward(_with(V, PorousMedium(m)), solver=solver)


def fast_diffusion(m: float, V: Field | None = None, solver: Solver | None = None) -> Step:
    """∂t ρ = Δρᵐ + div(ρ∇V) for 0 < m < 1, by JKO steps: tails are powers of |x|, so grids must be wide.

    Otto 2001; Denzler, McCann 2005, "Fast diffusion to self-similarity". `exact.diffusion.FastDiffusion` has steps in
    closed form.
    """
    if not 0 < m < 1:
        raise ValueError(f"fast diffusion has an exponent m between 0 and 1, not {m}")
    return Backward(_with(V, PorousMedium(m)), solver=solver)


def aggregation_diffusion(
    W: Callable[..., Tensor], m: float = 1.0, V: Field | None = None, solver: Solver | None = None
) -> Step:
    """∂t ρ = Δρᵐ + div(ρ∇(V + W∗ρ)): forward on the attraction, backward on the rest.

    W is even, on displacements. The forward part bounds the step on a grid; `aggregation_diffusion_jko` has no such
    bound. Carrillo, Craig, Yao 2019, "Aggregation-diffusion equations: dynamics, asymptotics, and singular limits".
    """
    return Forward(Interaction(W)) >> Backward(_diffusion(m, V), solver=solver)


def aggregation_diffusion_jko(
    W: Callable[..., Tensor], m: float = 1.0, V: Field | None = None, solver: Solver | None = None
) -> Step:
    """∂t ρ = Δρᵐ + div(ρ∇(V + W∗ρ)): JKO steps of the whole energy, for densities and `Quantiles`.

    The energy falls and the mean is kept (where V = 0) at any step size. Blanchet, Calvez, Carrillo 2008, "Convergence
    of the mass-transport steepest descent scheme for the subcritical Patlak–Keller–Segel model".
    """
    return Backward(_diffusion(m, V) + Interaction(W), solver=solver)


def crowd(V: Field, bound: float = 1.0, noise: float = 0.0, solver: Solver | None = None) -> Step:
    """∂t ρ + div(ρu) = noise·Δρ, u the feasible velocity nearest to −∇V under ρ ≤ bound: crowds that want to go down V.

    Maury, Roudneff-Chupin, Santambrogio 2010, "A macroscopic crowd motion model of gradient flow type"; with noise,
    Mészáros, Santambrogio 2016, "Advection-diffusion equations with density constraints".
    """
    F = Potential(V) + Congestion(bound)
    return Backward(F + noise * Entropy() if noise else F, solver=solver)


def obstacle(V: Field, *, lower: Bound = 0.0, upper: Bound = math.inf, solver: Solver | None = None) -> Step:
    """The Fokker–Planck equation between obstacles, lower(x) ≤ ρ ≤ upper(x), by JKO steps of KL.

    Its steady state is exp(k − V) cut off at both. On a grid it is a convex program, whose steps must move mass by half
    a cell or more; Backward(KL(V) + Obstacle(…), Entropic(reg)) is the same with entropic transport, and faster.
    """
    return Backward(KL(V) + Obstacle(lower=lower, upper=upper), solver=solver)


def _diffusion(m: float, V: Field | None) -> Functional:
    return _with(V, Entropy() if m == 1 else PorousMedium(m))


def _with(V: Field | None, F: Functional) -> Functional:
    return F if V is None else Potential(V) + F


def entropic_jko(
    target: Target, reg: float, reference: Literal["lebesgue", "product", "debiased"] = "lebesgue"
) -> Step:
    """JKO with entropic transport: Peyré 2015, "Entropic approximation of Wasserstein gradient flows"."""
    return Backward(KL(target), Entropic(reg, reference))


def forward_kl(target: Target, metric: Metric | None = None) -> Step:
    """Wasserstein gradient descent on KL(·|target): explicit, unbiased, needs a measure with a score."""
    return Forward(KL(target), metric or Wasserstein())


def svgd(target: Target, kernel: Kernel, *, adagrad: bool = False) -> Step:
    """Stein variational gradient descent: forward on KL(·|target) in the Stein metric, with 1/N and without a score.

    With `adagrad`, the step sizes of practice. Liu, Wang 2016, "Stein variational gradient descent: a general purpose
    Bayesian inference algorithm".
    """
    return Adagrad(KL(target), Stein(kernel)) if adagrad else Forward(KL(target), Stein(kernel))


def annealed_svgd(
    V: Callable[[Tensor], Tensor], kernel: Kernel, strength: Callable[[float], float], *, adagrad: bool = False
) -> Step:
    """SVGD with the potential c(t)V, c = strength(t) rising to 1: repulsion spreads the particles over the modes first.

    D'Angelo, Fortuin 2021, "Annealed Stein variational gradient descent".
    """
    F = Varying(lambda t: strength(t) * Potential(V) + Entropy())
    return Adagrad(F, Stein(kernel)) if adagrad else Forward(F, Stein(kernel))


def mmd_flow(
    kernel: Kernel,
    target: Measure,
    noise: float | Callable[[float], float] = 0.0,
    generator: torch.Generator | None = None,
) -> Step:
    """Wasserstein gradient descent on ½MMD², with the noise injection β of particles where `noise` is given.

    Arbel, Korba, Salim, Gretton 2019, "Maximum mean discrepancy gradient flow".
    """
    F = MMD(kernel, target)
    if not callable(noise) and noise == 0:
        return Forward(F)
    if generator is None:
        raise ValueError("mmd_flow with noise needs an explicit generator=torch.Generator()")
    return NoisyForward(F, noise, generator=generator)


def mckean_vlasov(
    W: Callable[..., Tensor],
    V: Callable[[Tensor], Tensor] | None = None,
    noise: float = 1.0,
    generator: torch.Generator | None = None,
) -> Step:
    """Interacting diffusions dXᵢ = −∇V(Xᵢ)dt − (1/N)Σⱼ∇W(Xᵢ − Xⱼ)dt + (2·noise)^½dBᵢ by Euler–Maruyama.

    McKean 1966, "A class of Markov processes associated with nonlinear parabolic equations". Their limit on a periodic
    grid is `PseudoSpectral(noise * Entropy() + Potential(V) + Interaction(W))`.
    """
    F = Interaction(W) if V is None else Potential(V) + Interaction(W)
    return Forward(F) >> Heat(noise, generator=generator)


def landau(gamma: float, width: float, *, strength: float = 1.0, order: Literal[2, 4] = 2) -> Forward:
    """The Landau equation by particles, each a blob: Forward on ∫(φ∗μ) log(φ∗μ) in the metric of collisions.

    Keeps mass and momentum, and the energy but for tau²/2 Σw|v|² a step. The error in f is O(width²) where particles
    lie no more than about 1.2 widths apart. With order=4 the entropy is extrapolated, 2·Blob(width) − Blob(√2·width),
    whose error is O(width⁴) for twice the work; each Fourier mode k of a small perturbation of a uniform f then relaxes
    at 1 − (1 − e^{−width²k²})² times its rate, which is still positive. `exact.landau` has solutions in closed form.

    Carrillo, Hu, Wang, Wu 2020, "A particle method for the homogeneous Landau equation", which takes width² =
    0.64·h^1.98 for particles h apart.
    """
    if order not in (2, 4):
        raise ValueError(f"order is 2 or 4 in the width, not {order}")
    F: Functional = Blob(width, form="full")
    return Forward(F if order == 2 else 2 * F - Blob(math.sqrt(2) * width, form="full"), Landau(gamma, strength))


def kuramoto(K: float, coefficients: Sequence[float] = (1.0,), generator: torch.Generator | None = None) -> Step:
    """Rotators dθᵢ = (K/N)Σⱼ W'(θᵢ − θⱼ)dt + dBᵢ with W = Σ_k a_k cos kθ, on Particles on Torus(2π) in O(N).

    Kuramoto 1975; Daido 1996 for coefficients (1, m). `exact.kuramoto` has its stationary states.
    """
    return Forward(K * Interaction(Cosine([-a for a in coefficients]))) >> Heat(0.5, generator=generator)


def midpoint(F: Functional, metric: Metric | None = None) -> Step:
    """Forward over the first half of the step, backward over the second: second order, unbiased."""
    metric = metric or Wasserstein()
    return Halves(Forward(F, metric), Backward(F, metric))


def strang(V: Quadratic, generator: torch.Generator | None = None) -> Step:
    """Half a heat flow, the exact flow of a quadratic V, half a heat flow: second order (Strang 1968)."""
    return Strang(Heat(generator=generator), Flow(V))
