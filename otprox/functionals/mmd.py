"""Maximum mean discrepancies between a measure and a target, ½‖μ − ν‖² in the norm of a kernel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .. import pairwise
from ..kernels import Bilinear, Kernel, Stationary
from ..measures import Density, Gaussian, Measure, Particles, Quantiles
from .base import Composite, Functional
from .embedding import Embedding, MixtureEmbedding, SmoothedEmbedding, SumEmbedding, domain_of
from .gaussian_smoothing import smooths
from .interaction import Interaction
from .line_embedding import AtomsOnLine, CellsOnLine, NormalOnLine, energy_factor
from .potential import Potential


@dataclass(frozen=True, eq=False)
class MMD(Composite):
    """½‖μ − ν‖²_k = ½∬ k d(μ − ν)d(μ − ν), as the interaction ½∬k dμdμ plus the potential ½∬k dνdν − ∫k(·, y)dν(y).

    Half of MMD². kernel: positive definite, or conditionally so (`Energy`, `Riesz(r)` with r ≤ 2, `Sliced`): then
    the value is ≥ 0, and 0 at μ = ν. target: `Particles` or `Quantiles` (samples), a `Density`, or a `Gaussian`. The
    cells of a Density count as atoms at their centres, but for `Energy` on the line: there it is constant on the cells,
    and F_ν linear. Expectations under Gaussians are exact for `RBF`, `Energy`, `Sliced`, `InverseMultiquadric`,
    `Riesz(2)`, the kernels of the torus and their sums; others need a target with its quadrature named. A kernel whose
    width is a rule takes it from the target, and `Sliced` draws its lines once.

    Between samples it is the V-statistic: pairs i = j count, so n particles drawn from ν itself have E MMD² of order
    1/n. They add k(0)/n, which moves nothing (0 for Energy and Riesz). In a dual Sobolev norm that is infinite unless
    2s > d; `kernels.Sobolev` truncates the modes, which makes it finite for every s (fewer than half of the cells of a
    grid, beyond which its modes are aliases of lower ones).

    On the line, k = −|x − y|, quantiles move by Ẋ = 2(F_μ − F_ν)(X), and `solvers.Cramer` has the exact implicit step.
    λ-convexity along geodesics is that of the bounds on ∇²k.

    >>> import torch
    >>> from otprox import Quantiles
    >>> from otprox.kernels import Energy
    >>> mu, nu = (Quantiles(torch.tensor([a, a + 1.0])) for a in (0.0, 2.0))
    >>> MMD(Energy(), nu)(mu).item(), MMD(Energy(), nu)(nu).item()  # ∫(F_μ − F_ν)² dx
    (1.5, 0.0)

    Arbel, Korba, Salim, Gretton, "Maximum mean discrepancy gradient flow" (2019); Székely, Rizzo, "Energy statistics"
    (2013).
    """

    kernel: Kernel
    target: Measure

    def __post_init__(self) -> None:
        if not isinstance(self.kernel, Kernel):
            swapped = "; it is MMD(kernel, target), in this order" if isinstance(self.kernel, Measure) else ""
            raise TypeError(f"MMD needs a kernel such as kernels.RBF(1.0), not a {type(self.kernel).__name__}{swapped}")
        if not isinstance(self.target, Particles | Quantiles | Density | Gaussian):
            raise TypeError(
                f"MMD needs a target measure, not a {type(self.target).__name__}. What would work: samples of it, "
                "Particles(x); a Gaussian; Density.from_log_prob(lambda x: −V(x), grid) for a callable V"
            )
        reason = self.kernel.indefinite(neutral=True)
        if reason is not None:
            raise ValueError(f"MMD needs a kernel that is positive definite, at least against charges of 0: {reason}")
        kernel = self.kernel.fit(self.target.points)
        object.__setattr__(self, "kernel", kernel)
        object.__setattr__(self, "_terms", ((1.0, _own(kernel)), (1.0, _pull(kernel, self.target))))

    @property
    def terms(self) -> tuple[tuple[float, Functional], ...]:
        terms: tuple[tuple[float, Functional], ...] = self._terms  # type: ignore[attr-defined]
        return terms


@dataclass(frozen=True, eq=False)
class KernelEnergy(Functional):
    """½∬ k(x, y) dμ(x) dμ(y) for a kernel that is no function of x − y, such as `Bilinear`; see `Interaction`.

    Sums over the nodes of μ, those of its quadrature for a Gaussian.
    """

    kernel: Kernel
    kl_smooth: ClassVar[bool] = True

    def __call__(self, mu: Measure) -> Tensor:
        return 0.5 * (mu.weights * self.first_variation(mu)).sum(-1)

    def first_variation(self, mu: Measure, x: Tensor | None = None) -> Tensor:
        y = mu.points
        return pairwise.kernel_sum(self.kernel, y if x is None else x, y, mu.weights, domain=domain_of(mu))

    def gradient(self, mu: Measure, x: Tensor | None = None) -> Tensor:
        y = mu.points
        return pairwise.gradient_sum(self.kernel, y if x is None else x, y, mu.weights, domain=domain_of(mu))

    def generators(self) -> tuple[torch.Generator, ...]:
        return self.kernel.generators()

    def diffusivity(self, mu: Measure) -> Tensor:
        return mu.anchor.new_zeros(())


def _own(kernel: Kernel) -> Functional:
    return Interaction(kernel) if isinstance(kernel, Stationary) else KernelEnergy(kernel)


def _pull(kernel: Kernel, target: Measure) -> Potential:
    """∇²V ≥ −max ∇²k."""
    largest = kernel.curvatures[1] if isinstance(kernel, Stationary) else math.inf
    return Potential(embed(kernel, target), curvature=None if largest == math.inf else -largest)


def embed(kernel: Kernel, target: Measure) -> Embedding:
    """The embedding of a target by the best route that there is."""
    closed = isinstance(kernel, Stationary) and smooths(kernel)
    line = target.dim == 1 and energy_factor(kernel) is not None and domain_of(target).straight
    if not isinstance(target, Gaussian):
        on_line = CellsOnLine if isinstance(target, Density) else AtomsOnLine
        leaf = on_line if line else MixtureEmbedding if closed else SumEmbedding
        return leaf(kernel, target)  # type: ignore[arg-type]
    if line:
        return NormalOnLine(kernel, target)
    if closed:
        return SmoothedEmbedding(kernel, target)  # type: ignore[arg-type]
    if target.quadrature is not None or isinstance(kernel, Bilinear):
        return SumEmbedding(kernel, target)
    raise TypeError(
        f"{kernel} has no closed form under a Gaussian target. What would work: samples, target.to_particles(n, rng), "
        "or a rule, Gaussian(mean, cov, quadrature=GaussHermite(32))"
    )
