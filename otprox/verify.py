"""Run schemes over a ladder of step sizes (or resolutions) against closed forms: error, observed order, verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from . import chaos, exact, observe, schemes
from .adaptive import Richardson
from .flow import Tick, flow, record
from .functionals import KL, MMD, Congestion, Dirichlet, Entropy, Interaction, PorousMedium, Potential, Quadratic
from .kernels import RBF, Bilinear, Cosine, Energy, Riesz, Sobolev
from .measures import Density, Gaussian, Grid, Measure, Particles, Quantiles
from .measures.distance import w2_squared
from .metrics import Entropic, Stein, Wasserstein
from .multistep import BDF2
from .polchinski import HeatKernel, PauliVillars, orders
from .pseudospectral import PseudoSpectral
from .solvers import Convex, GaussianMap, benamou_brenier, geodesic
from .steps import Backward, Drift, Flow, Forward, Halves, Heat, Step, Strang


@dataclass(frozen=True)
class Case:
    """A claim about a scheme: its error falls at `order` along `ladder`, or is below `within` (order None)."""

    name: str
    reference: str
    ladder: Sequence[float]
    error: Callable[[float], float]
    order: float | None = None
    within: float | None = None
    slack: float = 0.2


@dataclass(frozen=True)
class Verdict:
    """What was measured for a case. `observed` is the order between the last two rungs."""

    name: str
    reference: str
    ladder: list[float]
    errors: list[float]
    expected: float | None
    observed: float | None
    passed: bool


def run(names: Sequence[str] = ()) -> Iterator[Verdict]:
    """Verdicts of the catalogue, in order; only the cases whose name contains one of `names`, when given."""
    for case in catalogue():
        if not names or any(name in case.name for name in names):
            yield judge(case)


def judge(case: Case) -> Verdict:
    """Measure one case."""
    errors = [case.error(rung) for rung in case.ladder]
    observed = observed_order(case.ladder, errors)
    if case.order is not None:
        passed = observed is not None and abs(observed - case.order) <= case.slack
    else:
        passed = case.within is not None and max(errors) <= case.within
    passed = passed and all(math.isfinite(e) for e in errors)
    return Verdict(case.name, case.reference, list(case.ladder), errors, case.order, observed, passed)


def observed_order(ladder: Sequence[float], errors: Sequence[float]) -> float | None:
    """log(e₁/e₂)/log(h₁/h₂) of the last two rungs; positive when the error falls as the rung falls (or as n grows)."""
    if len(ladder) < 2 or min(errors[-2:]) <= 0:
        return None
    return abs(math.log(errors[-2] / errors[-1]) / math.log(ladder[-2] / ladder[-1])) * math.copysign(
        1, errors[-2] - errors[-1]
    )


def as_json(verdicts: Sequence[Verdict]) -> list[dict[str, object]]:
    """Plain dictionaries, for machines."""
    return [asdict(v) for v in verdicts]


def catalogue() -> list[Case]:
    """Every case that is run."""
    return [
        *_splittings(),
        *_fixed_points(),
        *_one_step(),
        *_quantiles(),
        *_grids(),
        *_programs(),
        *_dynamic(),
        *_particles(),
        *_mean_field(),
        *_stein(),
        *_discrepancies(),
        *_renormalisation(),
    ]


# the data of the Gaussian cases: covariances that do not commute

_S0 = [[2.0, 0.6, -0.3], [0.6, 1.0, 0.2], [-0.3, 0.2, 0.5]]
_Q = [[1.0, -0.4, 0.1], [-0.4, 0.8, 0.3], [0.1, 0.3, 1.5]]


def _gaussians() -> tuple[Gaussian, Gaussian]:
    def tensor(rows: object) -> torch.Tensor:
        return torch.tensor(rows, dtype=torch.float64)

    return Gaussian(tensor([1.0, -2.0, 0.5]), tensor(_S0)), Gaussian(tensor([0.5, 0.25, -1.0]), tensor(_Q))


def _run(step: Step, mu: Measure, tau: float, horizon: float) -> Measure:
    n = round(horizon / tau)
    return record(flow(step, mu, [horizon * k / n for k in range(n + 1)])).final


def _to_ornstein_uhlenbeck(step: Callable[[Quadratic, Gaussian], Step]) -> Callable[[float], float]:
    """W2 at t = 1 between a scheme and the exact Ornstein–Uhlenbeck flow."""

    def error(tau: float) -> float:
        mu, target = _gaussians()
        end = _run(step(Quadratic.of(target), target), mu, tau, 1.0)
        return w2_squared(end, exact.gaussian.ornstein_uhlenbeck(mu, target, 1.0)).sqrt().item()

    return error


def _splittings() -> list[Case]:
    ladder = (0.1, 0.05, 0.025)
    first: dict[str, Callable[[Quadratic, Gaussian], Step]] = {
        "JKO": lambda V, pi: schemes.jko(pi),
        "forward-backward": lambda V, pi: schemes.proximal_gradient(V),
        "Langevin (forward, heat)": lambda V, pi: schemes.langevin(V),
        "heat, forward": lambda V, pi: Heat() >> Forward(Potential(V)),
        "forward KL": lambda V, pi: schemes.forward_kl(pi),
        "Strang(heat, forward)": lambda V, pi: Strang(Heat(), Forward(Potential(V))),
        "Strang(prox entropy, exact drift)": lambda V, pi: Strang(Backward(Entropy()), Flow(V)),
    }
    second: dict[str, Callable[[Quadratic, Gaussian], Step]] = {
        "Strang(heat, exact drift)": lambda V, pi: schemes.strang(V),
        "Strang(heat, midpoint drift)": lambda V, pi: Strang(Heat(), Drift(_drift(V), order=2)),
        "forward half, backward half": lambda V, pi: schemes.midpoint(KL(pi)),
        "backward half, forward half": lambda V, pi: Halves(Backward(KL(pi)), Forward(KL(pi))),
        "BDF2": lambda V, pi: BDF2(KL(pi)),
        "Richardson(JKO)": lambda V, pi: Richardson(schemes.jko(pi)),
    }
    reference = "exact Ornstein–Uhlenbeck flow at t = 1, W2"
    return [
        Case(f"order: {name}", reference, ladder, _to_ornstein_uhlenbeck(step), order)
        for order, family in ((1.0, first), (2.0, second))
        for name, step in family.items()
    ]


def _drift(V: Quadratic) -> Callable[[float, Measure, torch.Tensor], torch.Tensor]:
    return lambda t, mu, x: -(x - V.mean) @ V.precision


def _fixed_points() -> list[Case]:
    def stationary(
        step: Callable[[Quadratic, Gaussian], Step], law: Callable[[Gaussian, float], Gaussian]
    ) -> Callable[[float], float]:
        def error(tau: float) -> float:
            mu, target = _gaussians()
            end = _run(step(Quadratic.of(target), target), mu, tau, 500 * tau)
            assert isinstance(end, Gaussian)
            return (end.cov - law(target, tau).cov).abs().max().item()

        return error

    unbiased, lawful = "stationary covariance is the target's", "stationary covariance Q(I − τQ⁻¹/2)⁻¹"
    cases: dict[str, tuple[str, Callable[[float], float]]] = {
        "forward-backward": (unbiased, stationary(lambda V, pi: schemes.proximal_gradient(V), lambda pi, tau: pi)),
        "JKO": (unbiased, stationary(lambda V, pi: schemes.jko(pi), lambda pi, tau: pi)),
        "Langevin": (lawful, stationary(lambda V, pi: schemes.langevin(V), exact.gaussian.ula_stationary)),
    }
    return [
        Case(f"bias: {name}", reference, (0.3, 0.1), error, within=1e-10) for name, (reference, error) in cases.items()
    ]


def _one_step() -> list[Case]:
    def against(
        step: Callable[[Gaussian], Step], law: Callable[[Gaussian, Gaussian, float], Gaussian]
    ) -> Callable[[float], float]:
        def error(tau: float) -> float:
            mu, target = _gaussians()
            new, want = step(target)(mu, 0.0, tau).mu, law(mu, target, tau)
            return max((new.mean - want.mean).abs().max().item(), (new.cov - want.cov).abs().max().item())

        return error

    ladder = (1.0, 0.3, 0.1, 0.01)
    jko = Case(
        "one step: JKO, non-commuting covariances",
        "closed form",
        ladder,
        against(lambda pi: Backward(KL(pi)), exact.gaussian.prox_kl),
        within=1e-9,
    )
    entropic = [
        Case(
            f"one step: entropic JKO, {reference} reference",
            "closed form, reg = 0.1",
            ladder[:3],
            against(
                lambda pi, reference=reference: Backward(KL(pi), Entropic(0.1, reference)),  # type: ignore[misc]
                lambda mu, pi, tau, reference=reference: exact.gaussian.prox_kl_entropic(mu, pi, tau, 0.1, reference),  # type: ignore[misc]
            ),
            within=1e-8,
        )
        for reference in ("lebesgue", "product", "debiased")
    ]
    return [jko, *entropic]


def _quantiles() -> list[Case]:
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


def _grids() -> list[Case]:
    def heat(h: float) -> float:
        grid = Grid(-8.0, 8.0, round(16 / h))
        mu = Gaussian([0.3], [[0.5]])
        new = Heat()(mu.to_density(grid), 0.0, 0.4).mu.state()["values"]
        want = exact.gaussian.heat(mu, 0.4).to_density(grid)
        return (new - want.values).abs().sum().item() * grid.volume

    def entropic(tau: float) -> float:
        grid = Grid(-8.0, 8.0, 800)
        mu, target = Gaussian([1.0], [[1.7]]), Gaussian([0.0], [[0.6]])
        new = Backward(KL(target), Entropic(0.2))(mu.to_density(grid), 0.0, tau).mu
        want = exact.gaussian.prox_kl_entropic(mu, target, tau, 0.2, "lebesgue")
        return abs(new.cov.item() - want.cov.item())

    return [
        Case("grid: heat", "Gaussian convolution, L1", (0.2, 0.1, 0.05), heat, order=2.0),
        Case("grid: entropic JKO by scaling", "closed form, variance", (1.0, 0.3, 0.1), entropic, within=1e-3),
        Case("metric: JKO in Wasserstein(Q)", "change of variables", (0.3, 0.1), _in_metric, within=1e-9),
    ]


class _Distance:
    """V(x) = |x|, with its form in a convex program."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x.abs().sum(-1)

    def atom(self, x: Any) -> Any:
        import cvxpy as cp

        return cp.abs(x)


def _programs() -> list[Case]:
    def crowd(tau: float) -> float:
        start = torch.linspace(-2, 2, 201, dtype=torch.float64)  # of density ¼ · 200/201, gaps of 4/200
        step = Backward(Potential(_Distance()) + Congestion(1.0), solver=Convex(tol=1e-10))
        mu: Measure = Quantiles(start)
        for k in range(round(0.6 / tau)):
            mu = step(mu, k * tau, (k + 1) * tau).mu
        want = exact.diffusion.queue_flow(start, 0.6, density=200 / 201 / 4)
        return (mu.points[:, 0] - want).abs().max().item()

    def film(n: float) -> float:
        source, grid, tau = exact.diffusion.SmythHill(1), Grid(-5.0, 5.0, int(n)), 8.0
        start, end = source.radius(1.0), source.jko(source.radius(1.0), tau)
        values = source.density(grid.points(start.new_zeros(1)), start)
        new = Backward(Dirichlet(), solver=Convex())(Density(values / values.sum() / grid.volume, grid), 0.0, tau).mu
        want = source.density(new.points, end)
        return (new.state()["values"] - want).abs().sum().item() * grid.volume

    return [
        Case("convex: a crowd on the line", "its motion, at t = 0.6", (0.6, 0.3, 0.1), crowd, within=1e-6),
        Case("convex: Smyth–Hill to Smyth–Hill, L1", "closed form", (50, 100, 200), film, within=5e-3),
    ]


def _dynamic() -> list[Case]:
    def waves(n: int) -> list[Density]:
        grid = Grid(0.0, 1.0, n)
        x = grid.points(torch.zeros((), dtype=torch.float64))[:, 0]
        return [Density(1 + sign * 0.5 * torch.cos(math.pi * x), grid) for sign in (1, -1)]

    def distance(dt: float) -> float:
        found = geodesic(*waves(128), inner_steps=round(1 / dt), tol=1e-5).distance2
        return abs(found.item() / w2_squared(*waves(2000)).item() - 1)

    def cost(dt: float) -> float:
        game = exact.games.LinearQuadraticGame(mean=1.0, variance=0.5, goal=-1.0, pull=2.0, horizon=1.0, viscosity=0.2)
        crowd = Gaussian([game.mean], [[game.variance]]).to_density(Grid(-4.0, 5.0, 128))
        end = Potential(lambda x: game.pull / 2 * (x[..., 0] - game.goal) ** 2)
        curve = benamou_brenier(crowd, end, inner_steps=round(1 / dt), viscosity=game.viscosity, tol=1e-4)
        return abs(curve.stats.objective.item() / game.value - 1)

    return [
        Case("dynamic: W2² of smooth densities", "quantile functions", (1 / 2, 1 / 4, 1 / 8), distance, order=2.0),
        Case("dynamic: a mean-field game, its cost", "Riccati's equation", (1 / 16, 1 / 32), cost, within=3e-3),
    ]


def _particles() -> list[Case]:
    def double_well(tau: float) -> float:
        x = torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None]
        new = Backward(Potential(lambda y: (y.square() - 1).square().sum(-1)))(Particles(x), 0.0, tau).mu
        return (new.points - exact.gaussian.prox_double_well(x, tau)).abs().max().item()

    def forward_backward(tau: float) -> float:
        mu, target = _gaussians()
        cloud = mu.to_particles(200, torch.Generator().manual_seed(0))
        scheme = schemes.proximal_gradient(Quadratic.of(target), solver=GaussianMap())
        start = Gaussian.fit(cloud)
        new, want = _run(scheme, cloud, tau, 10 * tau), start
        for _ in range(10):
            want = exact.gaussian.forward_backward(want, target, tau)
        return max((new.mean - want.mean).abs().max().item(), (new.cov - want.cov).abs().max().item())

    return [
        Case(
            "particles: prox of a double well by descent", "pointwise prox", (0.2, 0.1, 0.05), double_well, within=1e-6
        ),
        Case("particles: forward-backward by Gaussian maps", "closed form", (0.3, 0.1), forward_backward, within=1e-9),
    ]


def _mean_field() -> list[Case]:
    model = exact.mckean_vlasov.LinearMeanField(0.5, 0.5)
    start = Gaussian(torch.tensor([1.0], dtype=torch.float64), torch.tensor([[0.6]], dtype=torch.float64))
    pull = Potential(lambda x: 0.25 * x.square().sum(-1)) - 0.25 * Interaction(Riesz(2))

    def linear(tau: float) -> float:
        mu = start.to_density(Grid(-8.0, 8.0, 48, periodic=True))
        end = _run(PseudoSpectral(pull + Entropy()), mu, tau, 0.8)
        return (end.state()["values"] - model.law(start, 0.8).to_density(end.grid).values).abs().max().item()  # type: ignore[attr-defined]

    def synchrony(K: float) -> float:
        grid = Grid(0.0, 2 * math.pi, 48, periodic=True)
        state = exact.kuramoto.Kuramoto(K).minimiser()
        mu = Density.from_log_prob(lambda x: torch.cos(x[..., 0]), grid, like=torch.ones((), dtype=torch.float64))
        step = PseudoSpectral(0.5 * Entropy() + K * Interaction(Cosine([-1.0])))
        end = _run(step, mu, 0.1, 24 / state.gap)
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


def _stein() -> list[Case]:
    def bilinear(start: Callable[[Gaussian], Measure]) -> Callable[[float], float]:
        def error(tau: float) -> float:
            law, target = _gaussians()
            mu = start(law)
            new = _run(schemes.svgd(target, Bilinear()), mu, tau, 1.0)
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


def _discrepancies() -> list[Case]:
    one = torch.ones((), dtype=torch.float64)
    normal, levels = Gaussian(0 * one[None], one[None, None]), (torch.arange(200, dtype=torch.float64) + 0.5) / 200

    def line(step: Callable[[MMD], Step]) -> Callable[[float], float]:
        def error(tau: float) -> float:
            end = _run(step(MMD(Energy(), normal)), Quantiles(0.01 * (levels - 0.5)), tau, 1.0)
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
        before, after = F(mu).item(), F(_run(PseudoSpectral(F), mu, tau, 1.0)).item()
        return abs(after / before / math.exp(-2) - 1)

    def gaussians(width: float) -> float:
        mu, target = _gaussians()
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


def _renormalisation() -> list[Case]:
    ring, forms = "exact law of the 3-ring at t = 1", orders.SCHEMES
    first = {
        **{f"free field, {name}": (ring, 0.05, partial(orders.ring, forms[name])) for name in forms},
        "16 × 16 sites, form A": ("exact law at t = ½", 0.02, partial(orders.torus, forms["form A"])),
        **{f"φ⁴ site, {X}": ("E φ² at C = ½", 0.2, partial(orders.one_site, forms[X])) for X in ("form A", "form B")},
    }
    return [
        *(
            Case(f"renormalisation: {name}", law, (tau, tau / 2, tau / 4), error, order=1.0)
            for name, (law, tau, error) in first.items()
        ),
        *(
            Case(f"renormalisation: Bridge, {C.__name__}", ring, (0.5, 0.1), partial(orders.bridge, C), within=1e-12)
            for C in (HeatKernel, PauliVillars)
        ),
    ]


def _in_metric(tau: float) -> float:
    mu, target = _gaussians()
    Q = torch.tensor(_S0, dtype=torch.float64)
    L = torch.linalg.cholesky(Q)
    new = Backward(KL(target), Wasserstein(Q))(mu, 0.0, tau).mu
    inverse = torch.linalg.inv(L)
    moved = [g.affine((inverse @ g.mean[:, None])[:, 0], inverse) for g in (mu, target)]
    want = exact.gaussian.prox_kl(moved[0], moved[1], tau)
    return (new.cov - L @ want.cov @ L.mT).abs().max().item()
