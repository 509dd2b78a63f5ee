"""Claims about particles, and about Stein variational gradient descent."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .. import exact, schemes
from ..functionals import KL, Potential, Quadratic
from ..kernels import RBF, Bilinear
from ..measures import Gaussian, Grid, Measure, Particles
from ..metrics import Stein
from ..solvers import GaussianMap
from ..steps import Backward
from .case import Case
from .scenes import march, two_gaussians


def particles() -> list[Case]:
    def double_well(tau: float) -> float:
        x = torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None]
        new = Backward(Potential(lambda y: (y.square() - 1).square().sum(-1)))(Particles(x), 0.0, tau).mu
        return (new.points - exact.gaussian.prox_double_well(x, tau)).abs().max().item()

    def forward_backward(tau: float) -> float:
        mu, target = two_gaussians()
        cloud = mu.to_particles(200, torch.Generator().manual_seed(0))
        scheme = schemes.proximal_gradient(Quadratic.of(target), solver=GaussianMap())
        start = Gaussian.fit(cloud)
        new, want = march(scheme, cloud, tau, 10 * tau), start
        for _ in range(10):
            want = exact.gaussian.forward_backward(want, target, tau)
        return max((new.mean - want.mean).abs().max().item(), (new.cov - want.cov).abs().max().item())

    return [
        Case(
            "particles: prox of a double well by descent", "pointwise prox", (0.2, 0.1, 0.05), double_well, within=1e-6
        ),
        Case("particles: forward-backward by Gaussian maps", "closed form", (0.3, 0.1), forward_backward, within=1e-9),
    ]


def stein() -> list[Case]:
    def bilinear(start: Callable[[Gaussian], Measure]) -> Callable[[float], float]:
        def error(tau: float) -> float:
            law, target = two_gaussians()
            mu = start(law)
            new = march(schemes.svgd(target, Bilinear()), mu, tau, 1.0)
            want = exact.svgd.bilinear_flow(Gaussian.fit(mu), target, 1.0)
            return (new.cov - want.cov).abs().max().item()

        return error

    def rest(width: float) -> float:
        x = exact.svgd.rbf_equilibrium(3, width)[:, None]
        step = schemes.svgd(Gaussian(x.new_zeros(1), x.new_ones(1, 1)), RBF(width))
        return (step(Particles(x), 0.0, 1.0).mu.points - x).abs().max().item()

    def discrepancy(n: float) -> float:
        one = torch.ones(1, 1, dtype=torch.float64)
        mu, target = Gaussian(one[0], 0.25 * one), Gaussian(0 * one[0], one)
        found = Stein(RBF(0.7)).dissipation(KL(target), mu.to_density(Grid(-8.0, 8.0, int(n))))
        return abs(found.item() - exact.svgd.rbf_dissipation(mu, target, 0.7).item())

    def clouds(mu: Gaussian) -> Measure:
        return mu.to_particles(6, torch.Generator().manual_seed(0))

    flow_name, ladder = "moment equations at t = 1, covariance", (0.02, 0.01, 0.005)
    return [
        Case("SVGD: Gaussian, bilinear kernel", flow_name, ladder, bilinear(lambda mu: mu), order=1.0),
        Case("SVGD: six particles, bilinear kernel", flow_name, ladder, bilinear(clouds), order=1.0),
        Case("SVGD: three particles at rest", "root of their equation", (0.7, 1.0, 1.5), rest, within=1e-10),
        Case("SVGD: dissipation on a grid", "closed form of the discrepancy", (100, 200, 400), discrepancy, order=2.0),
    ]
