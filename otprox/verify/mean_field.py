"""Claims about interacting particles and their mean-field limit."""

from __future__ import annotations

import math

import torch

from .. import chaos, exact, observe
from ..flow import Tick
from ..functionals import Entropy, Interaction, Potential
from ..kernels import Cosine, Riesz
from ..measures import Density, Gaussian, Grid
from ..pseudospectral import PseudoSpectral
from .case import Case
from .scenes import march


def mean_field() -> list[Case]:
    model = exact.mckean_vlasov.LinearMeanField(0.5, 0.5)
    start = Gaussian(torch.tensor([1.0], dtype=torch.float64), torch.tensor([[0.6]], dtype=torch.float64))
    pull = Potential(lambda x: 0.25 * x.square().sum(-1)) - 0.25 * Interaction(Riesz(2))

    def linear(tau: float) -> float:
        mu = start.to_density(Grid(-8.0, 8.0, 48, periodic=True))
        end = march(PseudoSpectral(pull + Entropy()), mu, tau, 0.8)
        return (end.state()["values"] - model.law(start, 0.8).to_density(end.grid).values).abs().max().item()  # type: ignore[attr-defined]

    def synchrony(K: float) -> float:
        grid = Grid(0.0, 2 * math.pi, 48, periodic=True)
        state = exact.kuramoto.Kuramoto(K).minimiser()
        mu = Density.from_log_prob(lambda x: torch.cos(x[..., 0]), grid, like=torch.ones((), dtype=torch.float64))
        step = PseudoSpectral(0.5 * Entropy() + K * Interaction(Cosine([-1.0])))
        end = march(step, mu, 0.1, 24 / state.gap)
        return abs(observe.order()(Tick(0, 0.0, 1.0, end, end, None)).item() - state.r[0])

    def parted(n: float) -> float:
        ticks = [Tick(k, k / 20, (k + 1) / 20, model.law(start, k / 20), start, None) for k in range(20)]
        rng = torch.Generator().manual_seed(0)
        return chaos.synchronous(ticks, pull, 1.0, n=int(n), replicas=4000, generator=rng).mean[-1].item()

    law = "E|X − X̄|² of the linear model is C/n"
    return [
        Case("mean field: pseudo-spectral, linear model", "Gaussian law at t = 0.8", (0.1, 0.05), linear, order=4.0),
        Case("mean field: Kuramoto's order parameter", "r = I₁(2Kr)/I₀(2Kr)", (1.2, 1.5, 3.0), synchrony, within=1e-8),
        Case("mean field: propagation of chaos", law, (10, 40), parted, order=1.0, slack=0.1),
    ]
