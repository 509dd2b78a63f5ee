"""Schemes of the Polchinski flow as compositions: its two variational forms, forward-backward and forward-heat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from ..functionals import KL, Entropy, Potential, Quadratic, Varying
from ..measures import Gaussian
from ..measures.covariance import inverse, tensor_of
from ..metrics import Entropic, Metric, Moving
from ..solvers import Solver
from ..steps import Backward, Forward, Heat, Step
from .covariances import Covariances
from .modes import Matrix, Modes
from .potential import RenormalisedPotential
from .routes import ClosedForm

Rule = Literal["end", "average"]
Reference = Literal["lebesgue", "product", "debiased"]


def reference_a(C: Covariances) -> Callable[[float], Gaussian]:
    """t ↦ π_t = N(0, D_t/2), D_t = C_∞ − C_t, the reference of form A for any V₀."""

    def pi(t: float) -> Gaussian:
        D = _remaining(C, t)
        return Gaussian(_origin(D), D / 2)

    return pi


def reference_b(V: RenormalisedPotential) -> Callable[[float], Any]:
    """t ↦ π̃_t ∝ g_{D_t}^{3/2}e^{−V_t/2}, the reference of form B, as a target of `KL`.

    A Gaussian for a free field, of precision (3D⁻¹ + A_t)/2 and mean precision⁻¹b_t/2; else the callable
    φ ↦ ¾⟨φ, D⁻¹φ⟩ + ½V_t(φ), −log π̃_t up to a constant.
    """

    def pi(t: float) -> Any:
        precision, at = inverse(_remaining(V.C, t)), V.at(t)
        if isinstance(at.method, ClosedForm):
            free = at.method.renormalise(V.V0, at.C)
            cov = inverse((3 * precision + free.A) / 2)
            return Gaussian(free.b @ cov / 2, cov)

        def minus_log(phi: Tensor) -> Tensor:
            return 0.75 * (phi * (phi @ precision)).sum(-1) + 0.5 * at(phi)

        return minus_log

    return pi


def form_a(
    C: Covariances,
    *,
    rule: Rule = "end",
    reg: float | None = None,
    reference: Reference = "lebesgue",
    solver: Solver | None = None,
) -> Step:
    """JKO of ½KL(· | N(0, D_t/2)) in the metric Ċ: a linear equation, V₀ enters through the first measure only.

    `reg` relaxes the transport (Entropic, with its `reference`), for a Density: "debiased" leaves the order of the
    scheme, the others widen or narrow by reg·Ċ/2 a step. On a few sites take `principal` coordinates.

    ν_t solves ∂tν = div(νĊ∇δF_t/δν), F_t this
    functional (after Cotler, Rezchikov 2023, "Renormalization group flow as optimal transport"; scales and convention
    of Bauerschmidt, Bodineau, Dagallier 2024).
    """
    pi = reference_a(C)
    return Backward(Varying(lambda t: 0.5 * KL(pi(t))), _metric(C, rule, reg, reference), solver)


def form_b(
    V: RenormalisedPotential,
    *,
    rule: Rule = "end",
    reg: float | None = None,
    reference: Reference = "lebesgue",
    solver: Solver | None = None,
) -> Step:
    """JKO of KL(· | π̃_t), π̃_t ∝ g_{D_t}^{3/2}e^{−V_t/2}, in the metric Ċ: another equation, with ν_t as a solution."""
    pi = reference_b(V)
    return Backward(Varying(lambda t: KL(pi(t))), _metric(V.C, rule, reg, reference), solver)


def forward_backward(C: Covariances, *, rule: Rule = "average", solver: Solver | None = None) -> Step:
    """Form A split: forward on ½∫⟨φ, D_t⁻¹φ⟩dν, backward on half the entropy; first order.

    With rule="average" means are exact: the forward step is φ ↦ D_{t1}D_{t0}⁻¹φ.
    """
    metric = Moving(C, rule=rule)
    return Forward(confinement(C), metric) >> Backward(0.5 * Entropy(), metric, solver)


def forward_heat(C: Covariances, generator: torch.Generator | None = None, *, rule: Rule = "average") -> Step:
    """Form A split, for particles: forward on ½∫⟨φ, D_t⁻¹φ⟩dν, then noise of covariance C_t − C_s.

    First order in law, with exact means for rule="average". `Bridge` is exact in law.
    """
    return Forward(confinement(C), Moving(C, rule=rule)) >> Heat(0.5, Moving(C), generator)


def confinement(C: Covariances) -> Varying:
    """t ↦ ½∫⟨φ, D_t⁻¹φ⟩dν, whose forward step is the drift −ĊD⁻¹φ."""

    def energy(t: float) -> Potential:
        precision = inverse(_remaining(C, t))
        return Potential(Quadratic(_origin(precision), precision=precision))

    return Varying(energy)


def _metric(C: Covariances, rule: Rule, reg: float | None, reference: Reference) -> Metric:
    moving = Moving(C, rule=rule)
    return moving if reg is None else Entropic(reg, reference, moving)


def _remaining(C: Covariances, t: float) -> Matrix:
    """D_t, refused where it is singular to rounding, or its inverse would overflow: there ν_t is δ₀."""
    D = Modes.of(C.remaining(t))
    numbers = torch.finfo(D.values.dtype)
    return D.positive(f"D = C_∞ − C_t at t = {t:g}", 8 * numbers.tiny / numbers.eps).matrix


def _origin(matrix: Matrix) -> Tensor:
    return tensor_of(matrix).new_zeros(matrix.shape[-1])
