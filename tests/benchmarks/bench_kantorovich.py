"""Exact W2 steps on grids: the porous medium equation against its exact JKO steps, and the error at every step size.

python tests/benchmarks/bench_kantorovich.py [--parts barenblatt targets uniform congestion robust] [--sizes 64 128 256]

barenblatt: on the unit square, 4 steps of size 0.1 of 0.005·∫ρ² from Barenblatt's density at t = 0.1, mass 1 (which is
0.01·∫ρ² at mass ½). The error is the L1 distance of cell averages to the exact JKO step, which is Barenblatt's density
again, at the last step and the largest of the four; "order" is between sizes. The back-and-forth method of Jacobs, Lee
and Léger (2021), by its authors' C++ code on two cores: 15.7 s and 1.09e-3 at 128², 32 s and 9.3e-4 at 256² (numbers
recorded elsewhere, not run here). In one and three dimensions the same.
targets: seconds for the four steps on the coarsest of a ladder of grids with the last error below 1e-2, 1e-3 and 4e-4.
uniform: one KL step between Gaussians in the plane, the error of the change of covariance relative to that change, for
τ from 1e-5 (far below a thousandth of a cell) to 1.
congestion: one step of a crowd into its bound at size², iterations and seconds.
robust: sharp edges and huge steps: iterations, the L1 distance of push-forward and density, the gap and CPU seconds.
One thread; peak memory is of a fresh process for each row.
"""

from __future__ import annotations

import argparse
import math
import resource
import time
from multiprocessing import get_context

import torch

import otprox as ox
from otprox.exact.diffusion import Barenblatt, barenblatt
from otprox.exact.gaussian import prox_kl
from otprox.functionals import Congestion
from otprox.solvers import Kantorovich

TAU, STEPS, COEFFICIENT = 0.1, 4, 0.005


def averages(f, grid: ox.Grid, order: int) -> torch.Tensor:
    like = torch.zeros((), dtype=torch.float64)
    points = grid.points(like)
    return sum(w * f(points + z) for z, w in grid.nodes(order, like)).reshape(grid.shape)


def barenblatt_averages(B: Barenblatt, radius, grid: ox.Grid) -> torch.Tensor:
    values = averages(lambda x: B.density(x - 0.5, radius=radius), grid, {1: 16, 2: 8, 3: 4}[grid.dim])
    return values / (values.sum() * grid.volume)


def porous_medium(n: int, dim: int) -> tuple[float, float, float, int, bool, float]:
    """Seconds, error of the last step, largest error, iterations, convergence, megabytes."""
    torch.set_num_threads(1)
    grid, B = ox.Grid((0.0,) * dim, (1.0,) * dim, (n,) * dim), barenblatt(2.0, dim, coefficient=COEFFICIENT)
    R = B.radius(0.1)
    mu, step = ox.Density(barenblatt_averages(B, R, grid), grid), ox.Backward(COEFFICIENT * ox.PorousMedium(2.0))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, errors, iterations, converged = 0.0, [], 0, True
    for k in range(STEPS):
        start = time.perf_counter()
        mu, stats = step(mu, k * TAU, (k + 1) * TAU)
        seconds += time.perf_counter() - start
        exact = barenblatt_averages(B, B.jko(R, TAU, k + 1), grid)
        errors.append(((mu.values - exact).abs().sum() * grid.volume).item())
        iterations, converged = iterations + stats.iterations.item(), converged and bool(stats.converged)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return seconds, errors[-1], max(errors), iterations, converged, peak


def fresh(function, *args):
    """The result in a process of its own."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def barenblatt_part(sizes: list[int]) -> None:
    print(f"{'cells':>8} {'seconds':>8} {'L1, last':>9} {'L1, most':>9} {'order':>6} {'iter.':>6} {'MB':>6}  converged")
    for dim, ladder in ((1, [128, 512]), (2, sizes), (3, [32, 64])):
        last = None
        for n in ladder:
            seconds, error, most, iterations, converged, peak = fresh(porous_medium, n, dim)
            order = "" if last is None else f"{math.log(last[1] / error) / math.log(n / last[0]):.2f}"
            name = f"{n}^{dim}"
            print(
                f"{name:>8} {seconds:8.2f} {error:9.2e} {most:9.2e} {order:>6} {iterations:6d} {peak:6.0f}  {converged}"
            )
            last = n, error


def targets_part() -> None:
    ladder = [(n, *fresh(porous_medium, n, 2)[:2]) for n in (16, 24, 32, 48, 64, 96, 128)]
    for target in (1e-2, 1e-3, 4e-4):
        found = next(((n, s, e) for n, s, e in ladder if e <= target), None)
        reached = "not reached up to 128²" if found is None else f"{found[1]:.2f} s at {found[0]}² ({found[2]:.1e})"
        print(f"L1 ≤ {target:.0e}: {reached}")


def uniform_part() -> None:
    target, mu0 = (
        ox.Gaussian([0.3, -0.2], [[1.0, -0.4], [-0.4, 0.8]]),
        ox.Gaussian([0.5, 0.2], [[0.6, 0.2], [0.2, 0.9]]),
    )
    target, mu0 = (ox.Gaussian(g.mean.double(), g.cov.double()) for g in (target, mu0))
    sizes = (32, 64, 128)
    print(f"{'tau':>8}" + "".join(f" {f'{n}^2':>9}" for n in sizes) + f" {'order':>6}")
    for tau in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0):
        exact, errors = prox_kl(mu0, target, tau), []
        for n in sizes:
            grid = ox.Grid((-6.0, -6.0), (6.0, 6.0), (n, n))
            mu = mu0.to_density(grid)
            out = Kantorovich()(ox.KL(target), ox.Wasserstein(), mu, tau)
            moved = exact.cov - mu0.cov
            errors.append(((out.mu.cov - mu.cov - moved).abs().max() / moved.abs().max()).item())
        order = math.log2(errors[-2] / errors[-1])
        print(f"{tau:8.0e}" + "".join(f" {e:9.2e}" for e in errors) + f" {order:6.2f}")


def congestion_part(sizes: list[int]) -> None:
    F = ox.Potential(lambda x: 0.5 * x.square().sum(-1)) + Congestion(1.0)
    for n in sizes:
        grid = ox.Grid((-2.0, -2.0), (2.0, 2.0), (n, n))
        shape = averages(lambda x: torch.exp(-4 * (x - x.new_tensor([1.0, 0.0])).square().sum(-1)), grid, 4)
        mu, start = ox.Density(shape / (shape.sum() * grid.volume), grid), time.perf_counter()
        out = Kantorovich()(F, ox.Wasserstein(), mu, 0.5)
        seconds = time.perf_counter() - start
        saturated = (out.mu.values > 0.999).double().mean().item()
        stats, peak = out.stats, out.mu.values.max().item()
        print(
            f"{n}^2: {seconds:.2f} s, {stats.iterations.item()} iterations, gap {stats.residual.item():.1e}, largest "
            f"density {peak:.9f}, saturated on {saturated:.1%} of the cells, converged {bool(stats.converged)}"
        )


def square(x: torch.Tensor) -> torch.Tensor:
    return ((x - 0.5).abs().amax(-1) < 0.25).to(x)


def disc(x: torch.Tensor) -> torch.Tensor:
    return ((x - 0.5).norm(dim=-1) < 0.25).to(x)


def bump(x: torch.Tensor) -> torch.Tensor:
    return torch.exp(-4 * (x - x.new_tensor([1.0, 0.0])).square().sum(-1))


def robust_part(sizes: list[int]) -> None:
    V, unit, plane = ox.Potential(lambda x: 0.5 * x.square().sum(-1)), (0.0, 1.0), (-2.0, 2.0)
    well = ox.Potential(lambda x: (x[..., 0].square() - 1).square() + x[..., 1].square())
    cases = [
        *((f"heat of a square, τ = {tau:g}", ox.Entropy(), square, unit, tau) for tau in (1e-3, 1e-2, 1e-1)),
        *((f"heat of a disc, τ = {tau:g}", ox.Entropy(), disc, unit, tau) for tau in (1e-3, 1e-2, 1e-1)),
        ("m = 0.7, disc, τ = 0.01", ox.PorousMedium(0.7), disc, unit, 1e-2),
        ("m = 2, disc, τ = 0.1", ox.PorousMedium(2.0), disc, unit, 0.1),
        *((f"crowd, τ = {tau:g}", V + Congestion(1.0), bump, plane, tau) for tau in (0.5, 10.0, 1e3)),
        ("m = 2 with V, τ = 1e4", V + ox.PorousMedium(2.0), bump, plane, 1e4),
        ("double well, τ = 0.1", ox.Entropy() + well, lambda x: torch.exp(-x.square().sum(-1) / 4), (-3.0, 3.0), 0.1),
    ]
    print(f"{'case':>28} {'cells':>6} {'iter.':>6} {'gap':>9} {'seconds':>8}  converged")
    for n in sizes:
        for name, F, shape, (low, high), tau in cases:
            grid = ox.Grid((low, low), (high, high), (n, n))
            values, start = averages(shape, grid, 2), time.process_time()
            mu = ox.Density(values / (values.sum() * grid.volume), grid)
            stats = Kantorovich()(F, ox.Wasserstein(), mu, tau).stats
            seconds, gap = time.process_time() - start, stats.residual.item()
            count, converged = stats.iterations.item(), bool(stats.converged)
            print(f"{name:>28} {f'{n}^2':>6} {count:6d} {gap:9.1e} {seconds:8.2f}  {converged}; {stats.message}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ["barenblatt", "targets", "uniform", "congestion", "robust"]
    parser.add_argument("--parts", nargs="+", default=parts, choices=parts)
    parser.add_argument("--sizes", nargs="+", type=int, default=[64, 128, 256])
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    for part in args.parts:
        print(f"\n{part}")
        if part == "barenblatt":
            barenblatt_part(args.sizes)
        elif part == "targets":
            targets_part()
        elif part == "uniform":
            uniform_part()
        elif part == "congestion":
            congestion_part([n for n in args.sizes if n <= 128])
        else:
            robust_part([n // 2 for n in args.sizes if n <= 128])


if __name__ == "__main__":
    main()
