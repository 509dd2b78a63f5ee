"""Claims about implicit steps of densities on grids, equation by equation."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .. import exact, schemes
from ..functionals import Congestion, Entropy, Functional, Interaction, PorousMedium
from ..measures import Density, Gaussian, Grid, Measure
from ..steps import Backward, Step
from .case import Case
from .scenes import march

LIKE = torch.zeros((), dtype=torch.float64)


def equations() -> list[Case]:
    return [*diffusions(), *identities(), *crowds(), *attraction(), *attraction_jko()]


def diffusions() -> list[Case]:
    porous = exact.diffusion.jko_uniform_porous_medium(0.1).variance
    heat = exact.diffusion.jko_uniform_entropy(0.1).variance
    within = {(2.0, 1): 5e-4, (3.0, 1): 3e-3, (2.0, 2): 1e-3, (3.0, 2): 2e-3}  # of fronts that end inside a cell
    return [
        *(
            Case(f"density: Barenblatt to Barenblatt, m = {m:g}, {d}-D, L1", "closed form", n, error, within=bound)
            for (m, d), bound in within.items()
            for n, error in [((64, 128, 256) if d == 1 else (48, 96), _barenblatt(m, d))]
        ),
        Case("density: fast diffusion, m = 4/5, L1", "closed form", (128, 256), _fast, within=1e-3),
        Case(
            "density: JKO of U[0, 1], entropy, variance",
            "quadrature",
            (60, 120, 240),
            _uniform(Entropy(), heat),
            order=2.0,
        ),
        Case(
            "density: JKO of U[0, 1], porous medium, variance",
            "closed form",
            (60, 120),
            _uniform(PorousMedium(2.0), porous),
            within=3e-4,
        ),
    ]


def _barenblatt(m: float, dim: int) -> Callable[[float], float]:
    source, tau = exact.diffusion.barenblatt(m, dim), 0.3
    start = source.radius(1.0)
    end = source.jko(start, tau)

    def error(n: float) -> float:
        grid = _box(1.5 * end.item(), dim, n)
        mu = _averages(lambda x: source.density(x, radius=start), grid)
        new = schemes.porous_medium(m)(mu, 0.0, tau).mu
        return _l1(new, _averages(lambda x: source.density(x, radius=end), grid))

    return error


def _fast(n: float) -> float:
    source, grid, tau = exact.diffusion.FastDiffusion(0.8, 1), Grid(-8.0, 8.0, int(n)), 0.1
    new = schemes.fast_diffusion(0.8)(_averages(lambda x: source.density(x, radius=1.0), grid), 0.0, tau).mu
    return _l1(new, _averages(lambda x: source.density(x, radius=source.jko(1.0, tau)), grid))


def _uniform(F: Functional, variance: float) -> Callable[[float], float]:
    def error(n: float) -> float:
        mu = _averages(lambda x: ((x > 0) & (x < 1)).all(-1).to(x), Grid(-2.5, 3.5, int(n)))
        return abs(Backward(F)(mu, 0.0, 0.1).mu.cov.item() - variance)

    return error


def identities() -> list[Case]:
    def virial(F: Functional, want: Callable[[Measure], float]) -> Callable[[float], float]:
        """∫⟨S(y) − y, S(y)⟩dμ, S from the old to the new density, relative to what it should be."""

        def error(n: float) -> float:
            mu = _averages(_two_bumps, _box(4.0, 2, n))
            new, stats = Backward(F)(mu, 0.0, 0.1)
            y, S = mu.points, stats.map(mu.points)
            return abs((mu.masses * ((S - y) * S).sum(-1)).sum().item() / want(new) - 1)

        return error

    def tiny(tau: float) -> float:
        """The variance that a step far below a cell adds, relative to the exact one."""
        source = exact.diffusion.barenblatt(2.0, 1)
        start = source.radius(1.0)
        mu = _averages(lambda x: source.density(x, radius=start), Grid(-3.2, 3.2, 64))
        grown = source.second_moment(source.jko(start, tau)) - source.second_moment(start)
        return abs((Backward(PorousMedium(2.0))(mu, 0.0, tau).mu.cov.item() - mu.cov.item()) / grown.item() - 1)

    porous, tau, dim = PorousMedium(2.0), 0.1, 2
    return [
        Case(
            "density: virial of the entropy, two bumps in 2-D",
            "E⟨x − T(x), x⟩ = τd",
            (24, 48, 96),
            virial(Entropy(), lambda new: tau * dim),
            order=2.0,
        ),
        Case(
            "density: virial of the porous medium, two bumps in 2-D",
            "E⟨x − T(x), x⟩ = τd(m − 1)F",
            (24, 48, 96),
            virial(porous, lambda new: tau * dim * porous(new).item()),
            order=2.0,
            slack=0.4,
        ),
        Case("density: steps far below a cell do not freeze", "closed form", (0.1, 1e-3, 1e-5), tiny, within=2e-3),
    ]


def crowds() -> list[Case]:
    def projection(tau: float) -> float:
        grid, crowd = Grid(-1.0, 1.0, 100), Congestion(1.0)
        new = Backward(crowd)(_averages(lambda x: 2 * _ball(x, 0.25), grid), 0.0, tau).mu
        return max(_l1(new, _averages(lambda x: _ball(x, 0.5), grid)), crowd(new).item(), abs(new.mass.item() - 1))

    def queue(n: float) -> float:
        grid, t = Grid(-2.5, 2.5, int(n)), 0.6  # a crowd of density ¼, whose block has the half-width t/3
        start = _averages(lambda x: _ball(x, 2.0) / 4, grid)
        want = _averages(lambda x: _ball(x, t / 3) + (_ball(x, 2 - t) - _ball(x, t / 3)) / 4, grid)
        return _l1(schemes.crowd(lambda x: x.abs().sum(-1))(start, 0.0, t).mu, want)

    def bounded(tau: float) -> float:
        step = schemes.obstacle(lambda x: x.square().sum(-1) / 2, lower=0.05, upper=0.3)
        grid = Grid(-3.0, 3.0, 40)
        flat = Density(LIKE.new_full(grid.shape, 1 / 6), grid)
        return _l1(step(flat, 0.0, tau).mu, _between(0.05, 0.3, grid))

    return [
        Case("density: a saturated block, projected, L1", "closed form", (10.0, 0.1, 1e-3), projection, within=1e-7),
        Case("density: a crowd walks to a queue, L1", "its motion, at t = 0.6", (50, 100, 200), queue, order=1.0),
        Case(
            "density: between obstacles, one long step, L1", "minimiser, at O(1/τ)", (1e2, 1e3, 1e4), bounded, order=1.0
        ),
    ]


def attraction() -> list[Case]:
    """W = |x|²/2, under which a density feels the potential |x − mean|²/2, by splitting."""

    def covariance(n: float) -> float:
        mu, step, tau = _oval(), schemes.aggregation_diffusion(_spring), 0.004
        want = exact.gaussian.forward_backward(mu, Gaussian(mu.mean, torch.eye(2).to(mu.mean)), tau)
        return (step(mu.to_density(_box(5.5, 2, n)), 0.0, tau).mu.cov - want.cov).abs().max().item()

    def rest(n: float) -> float:
        source = exact.diffusion.barenblatt(2.0, 2)
        mu = _averages(lambda x: source.density(x, radius=source.rest()), _box(1.6 * source.rest(), 2, n))
        step: Step = schemes.aggregation_diffusion(_spring, m=2.0)
        return _l1(march(step, mu, 0.01, 0.05), mu)

    return [
        Case(
            "density: aggregation and heat, covariance",
            "forward-backward, closed form",
            (24, 48, 96),
            covariance,
            order=2.0,
        ),
        Case("density: aggregation and porous medium at rest, L1", "Barenblatt's profile", (48, 96), rest, within=3e-3),
    ]


def attraction_jko() -> list[Case]:
    """The implicit step of entropy and interaction: closed form for W = |x|²/2, virials for a well and a logarithm."""

    def covariance(n: float) -> float:
        mu, tau = _oval(), 0.3
        want = exact.gaussian.prox_kl(mu, Gaussian(mu.mean, torch.eye(2).to(mu.mean)), tau)
        new = schemes.aggregation_diffusion_jko(_spring)(mu.to_density(_box(5.5, 2, n)), 0.0, tau).mu
        return (new.cov - want.cov).abs().max().item()

    def well(z: Tensor) -> Tensor:
        return -2 * torch.exp(-z.square().sum(-1))

    def pull(z: Tensor) -> Tensor:
        return 4 * z.square().sum(-1) * torch.exp(-z.square().sum(-1))  # ⟨z, ∇W(z)⟩

    def logarithm(z: Tensor) -> Tensor:
        return chi / (2 * math.pi) * z.norm(dim=-1).log()

    chi = 6 * math.pi
    in_well = _virial(well, lambda new: 4 - 2 * Interaction(pull)(new).item())
    chemotaxis = _virial(logarithm, lambda new: exact.aggregation.chemotaxis_growth(chi))
    name = "density: aggregation and heat by JKO"
    return [
        Case(f"{name}, covariance", "closed form", (24, 48, 96), covariance, order=2.0),
        Case(f"{name}, virial", "2d − ∬⟨z, ∇W⟩", (64, 128), in_well, order=2.0, slack=0.3),
        Case("density: chemotaxis by JKO, virial", "4 − χ/2π", (48, 96), chemotaxis, within=2e-2),
    ]


def _spring(z: Tensor) -> Tensor:
    return z.square().sum(-1) / 2


def _oval() -> Gaussian:
    return _gaussian([0.4, -0.2], [[0.5, 0.0], [0.0, 0.8]])


def _virial(W: Callable[[Tensor], Tensor], want: Callable[[Measure], float]) -> Callable[[float], float]:
    """(E|x|² − E|y|² + W2²)/τ of a step y → x on n² cells, less what it should be."""

    def error(n: float) -> float:
        mu, tau = _averages(_two_bumps, _box(4.0, 2, n)), 0.05
        new, stats = schemes.aggregation_diffusion_jko(W)(mu, 0.0, tau)
        grown = (new.weights - mu.weights) @ mu.grid.points(LIKE).square().sum(-1)
        return abs((grown + stats.distance2).item() / tau - want(new))

    return error


def _averages(density: Callable[[Tensor], Tensor], grid: Grid) -> Density:
    """Cell averages, by 8 Gauss–Legendre nodes an axis."""
    parts = (w * density(grid.points(LIKE) + z) for z, w in grid.nodes(8, LIKE))
    values = torch.stack(list(parts)).sum(0)
    return Density((values / (values.sum() * grid.volume)).reshape(grid.shape), grid)


def _between(lower: float, upper: float, grid: Grid) -> Density:
    """The minimiser of ∫ρ log ρ + ∫½|x|²ρ under lower ≤ ρ ≤ upper: exp(k − ½|x|²) cut off, k by bisection."""
    V = grid.points(LIKE).square().sum(-1) / 2
    low, high = LIKE - 50, LIKE + 50
    for _ in range(100):
        k = (low + high) / 2
        heavy = (k - V).exp().clamp(lower, upper).sum() * grid.volume > 1
        low, high = torch.where(heavy, low, k), torch.where(heavy, k, high)
    return Density((k - V).exp().clamp(lower, upper).reshape(grid.shape), grid)


def _two_bumps(x: Tensor) -> Tensor:
    stretched = (x - x.new_tensor([-1.0, -0.5])) * x.new_tensor([1.0, math.sqrt(3)])
    return torch.exp(-2 * (x - 0.8).square().sum(-1)) + 0.6 * torch.exp(-2 * stretched.square().sum(-1))


def _ball(x: Tensor, radius: float) -> Tensor:
    return (x.norm(dim=-1) < radius).to(x)


def _box(reach: float, dim: int, n: float) -> Grid:
    return Grid((-reach,) * dim, (reach,) * dim, (int(n),) * dim)


def _gaussian(mean: list[float], cov: list[list[float]]) -> Gaussian:
    return Gaussian(torch.tensor(mean, dtype=torch.float64), torch.tensor(cov, dtype=torch.float64))


def _l1(mu: Measure, other: Density) -> float:
    return (mu.state()["values"] - other.values).abs().sum().item() * other.grid.volume
