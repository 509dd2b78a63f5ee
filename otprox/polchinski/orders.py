"""Errors of renormalisation schemes against exact laws as functions of the step, for `verify`."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from ..exact import polchinski as exact
from ..flow import flow, record
from ..lattice import Lattice
from ..measures import Gaussian, Measure, Quantiles
from ..measures.spectral import Spectral
from ..steps import Step
from .covariances import HeatKernel, PauliVillars
from .models import FreeField, Phi4
from .potential import RenormalisedPotential
from .schemes import form_a, form_b
from .steps import Bridge

Scheme = Callable[[RenormalisedPotential], Step]
SCHEMES: dict[str, Scheme] = {
    "form A": lambda V: form_a(V.C),
    "form A, average rule": lambda V: form_a(V.C, rule="average"),
    "form B": form_b,
    "form B, average rule": lambda V: form_b(V, rule="average"),
}


def ring(
    scheme: Scheme, tau: float, horizon: float = 1.0, scales: type[HeatKernel | PauliVillars] = HeatKernel
) -> float:
    """A free field on three sites from ν₀ to the horizon: largest error of mean and covariance."""
    A = torch.tensor([[0.5, 0.2, 0.0], [0.2, 1.0, 0.0], [0.0, 0.0, 2.0]], dtype=torch.float64)
    b = torch.tensor([1.0, 0.0, -0.5], dtype=torch.float64)
    C = scales(4 * torch.eye(3, dtype=torch.float64) - 1)  # −Δ + 1 on the ring
    field = exact.FreeField(A, b)
    end = _run(scheme(RenormalisedPotential(FreeField(A, b), C)), field.law(C(0.0), C.limit), tau, horizon)
    want = field.law(C(horizon), C.remaining(horizon))
    return max((end.mean - want.mean).abs().max().item(), (end.cov - want.cov).abs().max().item())


def torus(scheme: Scheme, tau: float, horizon: float = 0.5) -> float:
    """A free field on 16 × 16 sites in Fourier modes: largest relative error of the variance of a mode."""
    lattice = Lattice((16, 16))
    symbol = lattice.laplacian(torch.zeros(256, dtype=torch.float64))
    A, M = torch.full_like(symbol, 0.5), Spectral(symbol + 1, lattice)
    C, field = HeatKernel(M), exact.FreeModes(A, torch.zeros_like(A))

    def variance(t: float) -> torch.Tensor:
        return field.law(C(t).values, C.remaining(t).values)[1]

    V = RenormalisedPotential(FreeField(Spectral(A, lattice)), C)
    end = _run(scheme(V), Gaussian(torch.zeros_like(A), Spectral(variance(0.0), lattice)), tau, horizon)
    assert isinstance(end, Gaussian) and isinstance(end.cov, Spectral)
    return (end.cov.values / variance(horizon) - 1).abs().max().item()


def one_site(scheme: Scheme, tau: float, n: int = 200) -> float:
    """φ⁴ on one site, V₀ = ¼φ⁴ − ½φ², from ν₀ to C = ½: error of E φ² by n and 2n quantiles, extrapolated in 1/n."""
    V, half = RenormalisedPotential(Phi4(1.0, -1.0), HeatKernel(torch.ones(1, 1, dtype=torch.float64))), math.log(2.0)
    few, many = (
        _run(scheme(V), phi4_quantiles(count), half / round(half / tau), half).expect(_square).item()
        for count in (n, 2 * n)
    )
    want = 0.5 + 0.25 * (exact.phi4_second_moment() - 1)  # D + D²(E₀φ² − 1) for C_∞ = 1
    return abs(2 * many - few - want)


def phi4_quantiles(n: int) -> Quantiles:
    """ν₀ ∝ e^{−φ⁴/4} at levels (i + ½)/n."""
    x = torch.linspace(-4, 4, 40001, dtype=torch.float64)
    cdf = torch.exp(-(x**4) / 4).cumsum(0)
    levels = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return Quantiles(x[torch.searchsorted(cdf / cdf[-1], levels)])


def _square(x: torch.Tensor) -> torch.Tensor:
    return x.square().sum(-1)


def bridge(scales: type[HeatKernel | PauliVillars], tau: float) -> float:
    """`Bridge` has no error in its step: as `ring`."""
    return ring(lambda V: Bridge(V.C), tau, scales=scales)


def _run(step: Step, mu: Measure, tau: float, horizon: float) -> Measure:
    n = round(horizon / tau)
    return record(flow(step, mu, [horizon * k / n for k in range(n + 1)])).final
