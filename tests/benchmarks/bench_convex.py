"""Convex programs: few certified pairs of cells beside the full plan, 10⁴ quantiles, interactions by FFT beside sums.

    python tests/benchmarks/bench_convex.py

The full plan is the same program over all pairs, `Convex(max_full=…)`: what a user of CVXPY would write. Times are wall
clock, in seconds; "first" includes compiling, and not the import of CVXPY.
"""

from __future__ import annotations

import statistics
import time
import warnings

import cvxpy
import torch

import otprox as ox
from otprox.solvers import Convex, Quantile

torch.set_default_dtype(torch.float64)
W2 = ox.Wasserstein()


def timed(f):
    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = f()
    return result, time.perf_counter() - begin


def cells(name, F, mu, tau):
    """One step on 400 cells over few pairs and over all 160,000."""
    few, short = timed(lambda: Convex()(F, W2, mu, tau))
    full, long = timed(lambda: Convex(max_full=mu.grid.n**2)(F, W2, mu, tau))
    a, b = few.stats, full.stats
    print(
        f"{name:22} {short:7.2f} {long:7.2f} {long / short:6.0f}x {(a.objective - b.objective).item():10.1e} "
        f"{(a.distance2 / b.distance2 - 1).abs().item():10.1e} {a.residual.item():9.1e} {a.plan.values().numel():7d}  "
        f"{a.message} / {b.message}"
    )


def grids():
    print("One step on 400 cells: few pairs, all pairs, and what differs")
    print(
        f"{'':22} {'few, s':>7} {'all, s':>7} {'ratio':>7} {'objective':>10} {'W2² (rel.)':>10} {'residual':>9} "
        f"{'pairs':>7}  status"
    )
    line = ox.Gaussian([1.0], [[1.7]]).to_density(ox.Grid(-6.0, 8.0, 400))
    cells("KL, 400", ox.KL(ox.Gaussian([0.0], [[0.6]])), line, 0.3)
    plane = ox.Gaussian([1.0, 0.0], [[1.7, 0.3], [0.3, 1.0]]).to_density(ox.Grid((-6.0, -6.0), (8.0, 7.0), (20, 20)))
    crowd = 10 * ox.Potential(ox.Quadratic([0.0, 0.0])) + ox.Congestion(0.3)
    cells("crowd, 20 × 20", crowd, plane, 0.3)
    for n in (40, 64):
        grid = ox.Grid((-6.0, -6.0), (8.0, 7.0), (n, n))
        mu = ox.Gaussian([1.0, 0.0], [[1.7, 0.3], [0.3, 1.0]]).to_density(grid)
        out, took = timed(lambda mu=mu: Convex()(crowd, W2, mu, 0.3))
        name, stats = f"crowd, {n} × {n}", out.stats
        print(f"{name:22} {took:7.2f} {'':37} {stats.residual.item():9.1e} {'':7}  {stats.message}")


def quantiles(n=10_000):
    print(f"\n{n} quantiles: the first step compiles, two more follow; distance (r.m.s.) of the first to Quantile's")
    print(f"{'':22} {'first':>7} {'second':>7} {'third':>7} {'distance':>9}  status")
    near, far = ox.Gaussian([1.0], [[1.7]]), ox.Gaussian([10.0], [[100.0]])
    for name, F, law, tau in (
        ("KL, from N(10, 100)", ox.KL(ox.Gaussian([0.0], [[1.0]])), far, 0.5),
        ("KL, tau = 0.01", ox.KL(ox.Gaussian([0.0], [[0.6]])), near, 0.01),
        ("porous medium, m = 2", ox.PorousMedium(2.0), near, 0.1),
        ("fast diffusion, m = ½", ox.PorousMedium(0.5), near, 0.1),
    ):
        mu, solver, times, status = ox.Quantiles.of(law, n), Convex(), [], []
        reference = Quantile()(F, W2, mu, tau).mu
        for k in range(3):
            out, took = timed(lambda mu=mu, solver=solver, F=F, tau=tau: solver(F, W2, mu, tau))
            if k == 0:
                distance = (out.mu.x - reference.x).square().mean().sqrt().item()
            mu = out.mu
            times.append(took)
            status.append(out.stats.message)
        print(f"{name:22} {times[0]:7.2f} {times[1]:7.2f} {times[2]:7.2f} {distance:9.1e}  {', '.join(status)}")


def interactions():
    print("\n−log|z| on a grid in the plane with walls: (W∗μ) by FFT, and by sums over all pairs (median of 3)")
    print(f"{'cells':>12} {'FFT, ms':>9} {'sums, ms':>9} {'ratio':>7} {'difference':>11}")

    def W(z):
        return -0.5 * z.square().sum(-1).log()

    for n in (32, 64, 128, 512):
        grid = ox.Grid((-1.0, -1.0), (1.0, 1.0), (n, n))
        mu = ox.Gaussian([0.1, 0.0], 0.04 * torch.eye(2)).to_density(grid)
        found, fast = zip(*(timed(lambda mu=mu: mu.convolve(W)) for _ in range(3)), strict=True)
        if n > 64:
            print(f"{f'{n}²':>12} {1e3 * statistics.median(fast):9.2f}")
            continue
        x, own = mu.points, grid.nodes(8, mu.values)
        at_zero = sum(W(z) * w for z, w in own)

        def pairs(x=x, mu=mu, at_zero=at_zero):
            rows = []
            for y in x.split(256):
                value = W(y[:, None] - x[None])
                rows.append(torch.where(torch.isinf(value), at_zero, value) @ mu.masses)
            return torch.cat(rows)

        sums, slow = zip(*(timed(pairs) for _ in range(3)), strict=True)
        gap = (found[0] - sums[0]).abs().max().item()
        a, b = (1e3 * statistics.median(t) for t in (fast, slow))
        print(f"{f'{n}²':>12} {a:9.2f} {b:9.1f} {b / a:6.0f}x {gap:11.1e}")


if __name__ == "__main__":
    print(f"CVXPY {cvxpy.__version__}, {torch.get_num_threads()} threads\n")
    grids()
    quantiles()
    interactions()
