"""Claims about flows of maximum mean discrepancies."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from .. import exact
from ..functionals import MMD
from ..kernels import RBF, Energy, Sobolev
from ..measures import Density, Gaussian, Grid, Quantiles
from ..pseudospectral import PseudoSpectral
from ..steps import Backward, Forward, Step
from .case import Case
from .scenes import march, two_gaussians


def discrepancies() -> list[Case]:
    one = torch.ones((), dtype=torch.float64)
    normal, levels = Gaussian(0 * one[None], one[None, None]), (torch.arange(200, dtype=torch.float64) + 0.5) / 200

    def line(step: Callable[[MMD], Step]) -> Callable[[float], float]:
        def error(tau: float) -> float:
            end = march(step(MMD(Energy(), normal)), Quantiles(0.01 * (levels - 0.5)), tau, 1.0)
            want = exact.mmd.cramer_flow(0.01 * (levels - 0.5), levels, torch.special.ndtr, 1.0)
            return (end.points[..., 0] - want).abs().max().item()

        return error

    def prox(tau: float) -> float:
        x = torch.linspace(-2, 3, 200, dtype=torch.float64)
        new = Backward(MMD(Energy(), normal))(Quantiles(x), 0.0, tau).mu
        return (new.points[..., 0] - exact.mmd.energy_prox(x, levels, torch.special.ndtr, tau)).abs().max().item()

    def circle(tau: float) -> float:
        grid = Grid(0.0, 2 * math.pi, 64, periodic=True)
        mu = Density.from_log_prob(lambda x: 0.5 * torch.cos(x[..., 0]), grid, like=one)
        F = MMD(Sobolev(1.0, modes=31), mu.with_state(values=torch.full_like(mu.values, 0.5 / math.pi)))
        before, after = F(mu).item(), F(march(PseudoSpectral(F), mu, tau, 1.0)).item()
        return abs(after / before / math.exp(-2) - 1)

    def gaussians(width: float) -> float:
        mu, target = two_gaussians()
        want = exact.mmd.gaussian_mmd2(mu.mean, mu.state()["cov"], target.mean, target.state()["cov"], width)
        return abs(2 * MMD(RBF(width), target)(mu).item() - want.item())

    equation, law = "Ẋ = 2(q − F_ν(X)) at t = 1", "E(t) = e^{−2t}E(0) at t = 1"
    return [
        Case("MMD: energy distance on the line, forward", equation, (0.1, 0.05, 0.025), line(Forward), order=1.0),
        Case("MMD: energy distance on the line, backward", equation, (0.1, 0.05, 0.025), line(Backward), order=1.0),
        Case("MMD: prox of the energy distance", "bisection", (10.0, 1.0, 0.1), prox, within=1e-10),
        Case("MMD: dual Sobolev norm s = 1 on the circle", law, (0.1, 0.05), circle, within=1e-4),
        Case("MMD: two Gaussians, RBF", "closed form", (0.5, 1.0, 2.0), gaussians, within=1e-12),
    ]
