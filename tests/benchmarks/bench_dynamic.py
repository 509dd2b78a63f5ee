"""Seconds, iterations, error and peak memory of dynamic transport, beside the Kantorovich dual in the same run.

Run `python -m tests.benchmarks.bench_dynamic`. The step is that of ∫ρ² from Barenblatt's profile, whose exact result is
known, on [−3, 3]²; the geodesic is between two Gaussians that do not commute. Each row runs in a process of its own.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
import warnings

import torch

from otprox import Density, Gaussian, Grid, PorousMedium, Wasserstein
from otprox.exact import gaussian
from otprox.exact.barenblatt import Barenblatt, barenblatt
from otprox.solvers import Dynamic, Kantorovich, Solver, geodesic

W2, TAU = Wasserstein(), 0.1
ROWS = [
    *[("step", "Dynamic", n, K) for n, K in ((64, 1), (64, 4), (64, 16), (128, 1), (128, 4), (128, 16))],
    *[("step", "Kantorovich", n, 0) for n in (64, 128)],
    *[("geodesic", "Dynamic", n, 16) for n in (32, 64)],
    *[("order", "Dynamic", 64, K) for K in (2, 4, 8)],
]


def main() -> None:
    """Print a line a row."""
    print(f"float64, {torch.get_num_threads()} threads")
    heads = f"{'inner steps':>11}{'seconds':>9}{'sweeps':>8}{'error':>11}{'peak MB':>9}"
    print(f"{'what':<10}{'solver':<13}{'grid':<10}{heads}")
    for row in ROWS:
        command = [sys.executable, "-m", "tests.benchmarks.bench_dynamic", *map(str, row)]
        print(subprocess.run(command, check=True, capture_output=True, text=True).stdout, end="", flush=True)


def measure(what: str, solver: str, n: int, K: int) -> None:
    """One row: the second of two runs is timed."""
    run = {"step": step, "geodesic": plane, "order": line}[what]
    warnings.simplefilter("ignore")
    for _ in range(2):
        start = time.perf_counter()
        sweeps, error = run(solver, n, K)
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    grid = f"{n}" if what == "order" else f"{n}²"
    print(f"{what:<10}{solver:<13}{grid:<10}{K or '-':>11}{seconds:9.3f}{sweeps:8d}{error:11.2e}{peak:9.0f}")


def step(name: str, n: int, K: int) -> tuple[int, float]:
    """The L1 distance to the exact step."""
    grid, family = Grid((-3.0, -3.0), (3.0, 3.0), (n, n)), barenblatt(2.0, 2)
    old = family.radius(1.0)
    mu, exact = (profile(grid, family, r) for r in (old, family.jko(old, TAU)))
    solver: Solver = Dynamic(inner_steps=K) if name == "Dynamic" else Kantorovich()
    out = solver(PorousMedium(2.0), W2, mu, TAU)
    return int(out.stats.iterations), (out.mu.values - exact.values).abs().sum().item() * grid.volume  # type: ignore[attr-defined]


def profile(grid: Grid, family: Barenblatt, radius: torch.Tensor) -> Density:
    points = grid.points(radius)
    values = sum(w * family.density(points + z, radius=radius) for z, w in grid.nodes(4, points)).reshape(grid.shape)
    return Density(values / (values.sum() * grid.volume), grid)


def plane(_: str, n: int, K: int) -> tuple[int, float]:
    """The relative error of W2²."""
    grid = Grid((-5.0, -5.0), (5.0, 5.0), (n, n))
    a = Gaussian([-0.5, 0.2], [[0.5, 0.2], [0.2, 0.4]])
    b = Gaussian([0.6, -0.3], [[0.3, -0.1], [-0.1, 0.8]])
    curve = geodesic(a.to_density(grid), b.to_density(grid), inner_steps=K)
    return int(curve.stats.iterations), abs(curve.distance2.item() / gaussian.w2_squared(a, b).item() - 1)


def line(_: str, n: int, K: int) -> tuple[int, float]:
    """The relative error of W2² between 1 + ½cos(πx) and 1 − ½cos(πx), quantile by quantile exact on a fine grid."""
    from otprox.measures.distance import w2_squared

    def waves(n: int) -> tuple[Density, Density]:
        grid = Grid(0.0, 1.0, n)
        x = grid.points(torch.zeros((), dtype=torch.float64))[:, 0]
        bump = 0.5 * torch.cos(torch.pi * x)
        return Density(1 + bump, grid), Density(1 - bump, grid)

    curve = geodesic(*waves(n), inner_steps=K, tol=1e-5)
    return int(curve.stats.iterations), abs(curve.distance2.item() / w2_squared(*waves(4000)).item() - 1)


if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    if len(sys.argv) > 1:
        measure(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
