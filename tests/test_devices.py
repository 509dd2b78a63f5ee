"""Steps of every kind on a CUDA device, against the same steps on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import otprox as ox
from otprox import Backward, Density, Entropic, Forward, Gaussian, Grid, Particles, Quantiles, solvers
from otprox.measures import Measure
from otprox.steps import Step

Make = Callable[[torch.device], tuple[Step, Measure]]

LINE, SQUARE, CUBE = Grid(-6.0, 6.0, 64), Grid((-4, -4), (4, 4), (24, 20)), Grid((-4,) * 3, (4,) * 3, (12,) * 3)
RING = Grid(0.0, 6.0, 32, periodic=True)


def moved(mu: Measure, device: torch.device) -> Measure:
    return mu.with_state(**{name: value.to(device) for name, value in mu.state().items()})


def well(x: Tensor) -> Tensor:
    return (x.square() - 1).square().sum(-1) / 4


def cloud(n: int = 60, d: int = 2, density: bool = False) -> Particles:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=g)
    w = 0.5 + torch.rand(n, generator=g)
    log_density = Gaussian(torch.zeros(d), torch.eye(d)).log_prob(x) if density else None
    return Particles(x, w / w.sum(), log_density=log_density)


def bell(grid: Grid) -> Density:
    return Gaussian(torch.full((grid.dim,), 0.3), 0.3 * torch.eye(grid.dim)).to_density(grid)


def wave() -> Density:
    x = RING.points(torch.zeros(()))[:, 0]
    return Density((1 + 0.5 * torch.sin(torch.pi * x / 3)) / 6, RING)


def line() -> Quantiles:
    return Quantiles.of(Gaussian([1.0], [[0.5]]), 200)


def normal(d: int, device: torch.device, variance: float = 1.0) -> Gaussian:
    return Gaussian(torch.zeros(d, device=device), variance * torch.eye(d, device=device))


def case(step: Step | Callable[[torch.device], Step], mu: Callable[[], Measure]) -> Make:
    def make(device: torch.device) -> tuple[Step, Measure]:
        return step if isinstance(step, Step) else step(device), moved(mu(), device)

    return make


def free_field(device: torch.device) -> tuple[Step, Measure]:
    lattice = ox.Lattice((8, 8))
    C = ox.polchinski.HeatKernel(ox.Spectral(lattice.symbol(1.0, torch.zeros((), device=device)), lattice))
    return ox.polchinski.form_a(C), Gaussian(torch.ones(64, device=device), C.limit)


KL_WELL = ox.KL(well)
CASES: dict[str, Make] = {
    "adagrad": case(ox.Adagrad(KL_WELL, ox.Stein(ox.kernels.RBF(1.0))), cloud),
    "adaptive": case(ox.Adaptive(Backward(KL_WELL), tol=1e-2), line),
    "bdf2": case(ox.BDF2(KL_WELL), line),
    "blob": case(Forward(ox.Blob(0.5)), cloud),
    "blob full": case(Forward(ox.Blob(0.5, form="full")), cloud),
    "bures": case(lambda at: Backward(ox.KL(normal(3, at))), lambda: Gaussian(torch.ones(3), 2 * torch.eye(3))),
    "bures entropic": case(
        lambda at: Backward(ox.KL(normal(3, at)), Entropic(0.1, "debiased")),
        lambda: Gaussian(torch.ones(3), 2 * torch.eye(3)),
    ),
    "convex": case(lambda at: Backward(ox.KL(ox.Quadratic(torch.zeros(1, device=at))), solver=solvers.Convex()), line),
    "cramer": case(lambda at: Backward(ox.MMD(ox.kernels.Energy(), normal(1, at))), line),
    "descent": case(Backward(ox.Potential(well) + ox.Blob(0.6)), cloud),
    "dirichlet": case(Backward(ox.Dirichlet(), solver=solvers.Dynamic(tol=1e-5)), lambda: bell(Grid(-3.0, 4.0, 24))),
    "drift": case(ox.Drift(lambda t, mu, x: -x, order=4), cloud),
    "dynamic": case(Backward(ox.PorousMedium(2.0), solver=solvers.Dynamic(tol=1e-5)), lambda: bell(SQUARE)),
    "features": case(Backward(KL_WELL, solver=solvers.Features()), lambda: cloud(400, density=True)),
    "flow": case(lambda at: ox.Flow(ox.Quadratic(torch.zeros(2, device=at))), cloud),
    "free support": case(
        Backward(ox.Potential(well), Entropic(0.5, "debiased"), solvers.FreeSupport(tol=1e-6, inner=1e-9)), cloud
    ),
    "heat": case(ox.Heat(), lambda: bell(SQUARE)),
    "interaction on a grid": case(Forward(ox.Interaction(ox.kernels.RBF(1.0))), lambda: bell(SQUARE)),
    "kantorovich 1-D": case(Backward(KL_WELL), lambda: bell(LINE)),
    "kantorovich 2-D": case(Backward(ox.PorousMedium(2.0) + ox.Potential(well)), lambda: bell(SQUARE)),
    "kantorovich 3-D": case(Backward(ox.Entropy()), lambda: bell(CUBE)),
    "kuramoto": case(
        Forward(1.5 * ox.Interaction(ox.kernels.Cosine([-1.0, -0.3]))),
        lambda: Particles(cloud(d=1).x, domain=ox.Torus(2 * torch.pi)),
    ),
    "landau coulomb": case(Forward(ox.Blob(0.5), ox.Landau(-3.0)), lambda: cloud(d=3)),
    "landau maxwell": case(Forward(ox.Blob(0.5), ox.Landau(0.0)), cloud),
    "mmd energy": case(lambda at: Forward(ox.MMD(ox.kernels.Energy(), normal(2, at))), cloud),
    "mmd particles": case(lambda at: Forward(ox.MMD(ox.kernels.RBF(1.0), moved(cloud(40), at))), cloud),
    "minibatch": case(
        lambda at: Forward(
            ox.Minibatch(
                lambda x, index: x.square().sum(-1) * len(index),
                rows=4,
                size=2,
                generator=torch.Generator().manual_seed(0),
            )
        ),
        cloud,
    ),
    "mobility": case(Forward(ox.Entropy(), ox.Mobility(lambda rho, x: rho * (1 - rho))), lambda: bell(SQUARE)),
    "moving": case(
        lambda at: Backward(ox.KL(normal(2, at)), ox.Moving(lambda t: (1 + t) * torch.eye(2, device=at))),
        lambda: Gaussian(torch.ones(2), torch.eye(2)),
    ),
    "polchinski": free_field,
    "pseudospectral": case(ox.PseudoSpectral(ox.Entropy() + ox.Interaction(lambda z: -torch.cos(z).sum(-1))), wave),
    "quantile": case(Backward(KL_WELL), line),
    "richardson": case(ox.Richardson(Backward(KL_WELL)), line),
    "scaling": case(Backward(KL_WELL, Entropic(0.05)), lambda: bell(SQUARE)),
    "scaling interaction": case(
        Backward(ox.Entropy() + ox.Interaction(lambda z: z.square().sum(-1)), Entropic(0.1)), lambda: bell(SQUARE)
    ),
    "scaling porous": case(Backward(ox.PorousMedium(2.0), Entropic(0.05, "debiased")), lambda: bell(LINE)),
    "svgd": case(Forward(KL_WELL, ox.Stein(ox.kernels.InverseMultiquadric(1.0))), cloud),
}


TAUS = {"free support": 0.5}  # where the others take a first step of 0.003
TOLERANCES = {"free support": 1e-4}  # of positions, where the others agree to 1e-7


def after(name: str, device: str) -> dict[str, Tensor]:
    step, mu = CASES[name](torch.device(device))
    tau = TAUS.get(name, 0.003)
    for t0, t1 in ((0.0, tau), (tau, 2.5 * tau)):
        out = step(mu, t0, t1)
        mu = out.mu
    return {name: value if isinstance(value, Tensor) else value.values for name, value in mu.state().items()}


@pytest.mark.parametrize("name", CASES)
def test_every_case_runs_on_the_cpu(name: str):
    for value in after(name, "cpu").values():
        assert torch.isfinite(value).all()


@pytest.mark.needs_cuda
@pytest.mark.parametrize("name", CASES)
def test_cuda_agrees_with_the_cpu(name: str):
    here, there = after(name, "cpu"), after(name, "cuda")
    assert here.keys() == there.keys()
    for key, value in there.items():
        assert value.is_cuda
        torch.testing.assert_close(value.cpu(), here[key], rtol=1e-6, atol=TOLERANCES.get(name, 1e-7))
