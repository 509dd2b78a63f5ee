"""Claims about quantiles in one dimension."""

from __future__ import annotations

import torch

from .. import exact
from ..functionals import KL, Interaction, PorousMedium
from ..measures import Gaussian, Quantiles
from ..steps import Backward
from .case import Case


def quantiles() -> list[Case]:
    def variance(n: float) -> float:
        mu, target = Gaussian([1.0], [[4.0]]), Gaussian([0.0], [[1.0]])
        new = Backward(KL(target))(Quantiles.of(mu, int(n)), 0.0, 0.3).mu
        return abs(new.cov.item() - exact.gaussian.prox_kl(mu, target, 0.3).cov.item())

    def porous(n: float) -> float:
        levels = (torch.arange(int(n), dtype=torch.float64) + 0.5) / int(n)
        new = Backward(PorousMedium(2.0))(Quantiles(levels), 0.0, 0.1).mu
        want = exact.diffusion.jko_uniform_porous_medium(0.1)
        return abs(new.cov.item() - want.variance)

    def barenblatt(n: float) -> float:
        source = exact.diffusion.barenblatt(2.0, 1)
        radius = source.radius(1.0)
        levels = (torch.arange(int(n), dtype=torch.float64) + 0.5) / int(n)
        start = 2 * radius * torch.sin(torch.asin(2 * levels - 1) / 3)  # its quantiles, for m = 2
        new = Backward(PorousMedium(2.0))(Quantiles(start), 0.0, 0.1).mu
        return abs(new.cov.item() - source.second_moment(source.jko(radius, 0.1)).item())

    def attraction(tau: float) -> float:
        x = torch.linspace(-1, 2, 51, dtype=torch.float64)
        new = Backward(Interaction(lambda z: z.square().sum(-1) / 2))(Quantiles(x), 0.0, tau).mu
        return (new.points - exact.diffusion.attraction_jko(x[:, None], tau)).abs().max().item()

    return [
        Case(
            "quantiles: aggregation, W = |x|²/2", "X' = m + (X − m)/(1 + τ)", (1.0, 0.3, 0.1), attraction, within=1e-9
        ),
        Case("quantiles: KL prox of a Gaussian, variance", "closed form", (500, 1000, 2000), variance, order=1.0),
        Case("quantiles: porous-medium prox of U[0, 1], variance", "closed form", (500, 1000, 2000), porous, order=1.5),
        Case("quantiles: Barenblatt to Barenblatt, variance", "closed form", (500, 1000, 2000), barenblatt, order=1.5),
    ]
