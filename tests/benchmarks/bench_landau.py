"""The Landau equation by particles against the solutions of Bobylev, Krook and Wu (BKW): errors, conservation, seconds.

python tests/benchmarks/bench_landau.py [--device cpu] [--cells 40 80 120] [--space 24]

One core unless OMP_NUM_THREADS says otherwise. Errors are relative, in L2 over 160 × 160 points of [-4, 4]², against f
and against f∗φ, since blobs stand for the latter; the floor is what blobs of the exact start are off f. Velocities are
also timed beside the formula written out in torch over all pairs of a particle and a node of the same grid.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor

import otprox as ox
from otprox.exact.landau import BKW
from otprox.flow import Tick

PLANE, SPACE = BKW(2, 1 / 16), BKW(3, 1 / 24, K0=0.0)
HALF = 4.0  # particles start in [-HALF, HALF]^d


def cells(d: int, n: int) -> ox.Grid:
    return ox.Grid((-HALF,) * d, (HALF,) * d, (n,) * d)


def start(solution: BKW, n: int, t: float, device: str) -> ox.Particles:
    return solution.particles(cells(solution.d, n), t, like=torch.zeros((), dtype=torch.float64, device=device))


def width_for(n: int) -> float:
    """width² = 0.64·h^1.98 for cells h wide, of Carrillo, Hu, Wang and Wu."""
    return 0.8 * (2 * HALF / n) ** 0.99


def blobs(mu: ox.Particles, width: float, n: int, order: int) -> Tensor:
    """φ∗μ at the centres of n cells an axis; extrapolated to width 0 for order 4."""
    if order == 4:
        return 2 * blobs(mu, width, n, 2) - blobs(mu, math.sqrt(2) * width, n, 2)
    axes = cells(mu.dim, n).centers(mu.x)
    return ox.pairwise.gaussian_spread(mu.x, mu.w, axes, width) / (2 * math.pi * width**2) ** (mu.dim / 2)


def off(found: Tensor, exactly: Tensor) -> float:
    return ((found.flatten() - exactly).norm() / exactly.norm()).item()


def marched(step: ox.Forward, mu: ox.Particles, tau: float, steps: int) -> tuple[ox.Particles, float, float]:
    synchronise(mu)
    clock, cpu = time.perf_counter(), time.process_time()
    for k in range(steps):
        mu = step(mu, k * tau, (k + 1) * tau).mu
    synchronise(mu)
    return mu, time.perf_counter() - clock, time.process_time() - cpu


def synchronise(mu: ox.Particles) -> None:
    if mu.x.is_cuda:
        torch.cuda.synchronize()


HEADER = (
    f"{'particles':>18} {'order':>5} {'tau':>6} {'floor':>9} {'vs f':>9} {'vs f∗φ':>9} {'H err':>9} {'momentum':>9} "
    f"{'energy':>9} {'seconds':>8} {'of CPU':>7}"
)


def row(
    solution: BKW, name: str, mu: ox.Particles, width: float, order: int, tau: float, t0: float, nodes: int
) -> float:
    """One run over a unit of time; H is that of the functional against BKW's, momentum and energy their changes."""
    step = ox.schemes.landau(0.0, width, strength=solution.strength, order=4 if order == 4 else 2)
    new, seconds, cpu = marched(step, mu, tau, round(1 / tau))
    points, t1 = cells(solution.d, nodes).points(mu.x), t0 + 1.0
    floor = off(blobs(mu, width, nodes, order), solution.density(points, t0))
    found = blobs(new, width, nodes, order)
    against_f = off(found, solution.density(points, t1))
    smoothed = off(blobs(new, width, nodes, 2), solution.density(points, t1, width=width))
    H = step.F(new).item() - solution.entropy(t1)
    momentum = (new.mean - mu.mean).abs().max().item()
    energy = (new.expect(square) - mu.expect(square)).item() / 2
    print(
        f"{name:>18} {order:5d} {tau:6.3f} {floor:9.2e} {against_f:9.2e} {smoothed:9.2e} {H:9.1e} {momentum:9.1e} "
        f"{energy:9.1e} {seconds:8.2f} {cpu:7.2f}",
        flush=True,
    )
    return against_f


def square(v: Tensor) -> Tensor:
    return v.square().sum(-1)


def sampled(n: int, device: str) -> ox.Particles:
    """n independent particles of the start."""
    grid = cells(2, 800)
    values = PLANE.density(grid.points(torch.empty(0, dtype=torch.float64)), 0.0).reshape(grid.shape)
    law = ox.Density(values / (values.sum() * grid.volume), grid)
    return ox.Particles(law.to_particles(n, torch.Generator().manual_seed(0)).x.to(device))


def plane(counts: list[int], device: str) -> None:
    print("\nBKW in two dimensions, C = 1/16, t from 0 to 1, forward Euler\n" + HEADER)
    errors = [
        row(PLANE, f"{n}² on a grid", start(PLANE, n, 0.0, device), width_for(n), 2, 0.01, 0.0, 160) for n in counts
    ]
    row(PLANE, "80² on a grid", start(PLANE, 80, 0.0, device), width_for(80), 2, 0.025, 0.0, 160)
    for n in (40, 80):
        row(PLANE, f"{n}² on a grid", start(PLANE, n, 0.0, device), width_for(n), 4, 0.01, 0.0, 160)
    for width in (width_for(80), 0.25):
        row(PLANE, f"6400 iid, w = {width:.2f}", sampled(6400, device), width, 2, 0.01, 0.0, 160)
    for (a, e), (b, f) in zip(
        zip(counts, errors, strict=True), list(zip(counts, errors, strict=True))[1:], strict=False
    ):
        print(f"order of the error against f from {a}² to {b}²: {math.log(e / f) / math.log(b / a):.2f}")


def space(n: int, device: str) -> None:
    print("\nBKW in three dimensions, C = 1/24, t from 5.5 to 6.5, forward Euler\n" + HEADER)
    for m, order in ((n // 2, 2), (n, 2), (n, 4)):
        row(SPACE, f"{m}³ on a grid", start(SPACE, m, 5.5, device), width_for(m), order, 0.05, 5.5, 40)


def path(device: str) -> None:
    """Entropy along the path, of 80² particles: of the functional, and of the density that particles carry."""
    print("\nentropy along the path, 80² particles, less that of BKW, and of BKW smoothed at the width")
    width, tau = width_for(80), 0.02
    start_at = start(PLANE, 80, 0.0, device)
    mu = ox.Particles(start_at.x, start_at.w, log_density=PLANE.log_density(start_at.x, 0.0))
    print(f"{'order':>5} {'t':>5} {'F − H(f)':>10} {'F − H(f∗φ)':>11} {'carried − H(f)':>15}")
    for order in (2, 4):
        step = ox.schemes.landau(0.0, width, strength=PLANE.strength, order=4 if order == 4 else 2)
        ticks = ox.flow(step, mu, [tau * k for k in range(151)])
        looks = {"F": ox.observe.energy(step.F), "carried": carried}
        run = ox.record(ticks, every=30, **looks)
        for t, F, H in zip(run.times.tolist(), run.series["F"].tolist(), run.series["carried"].tolist(), strict=True):
            exactly, smooth = PLANE.entropy(t), PLANE.entropy(t, width=width)
            print(f"{order:5d} {t:5.2f} {F - exactly:10.1e} {F - smooth:11.1e} {H - exactly:15.1e}", flush=True)


def carried(tick: Tick) -> Tensor:
    return (tick.after.w * tick.after.log_density).sum(-1)


def velocities(device: str) -> None:
    print("\nseconds a gradient of Blob(width, form='full') in the plane")
    for n in (40, 80, 400):
        mu, width = start(PLANE, n, 0.0, device), width_for(n)
        full, outer = ox.Blob(width, form="full"), ox.Blob(width)
        ours = fastest(lambda mu=mu, F=full: F.gradient(mu), mu, 3)
        also = fastest(lambda mu=mu, F=outer: F.gradient(mu), mu, 3)
        theirs = fastest(lambda mu=mu, w=width: all_pairs(mu, w), mu, 1) if n < 100 else math.nan
        print(
            f"{n}²: sums along each axis {ours:.4f}, over all pairs of particle and node {theirs:.3f}; "
            f"form='outer' {also:.4f}",
            flush=True,
        )


def fastest(f: Callable[[], object], mu: ox.Particles, repeat: int) -> float:
    seconds = []
    for _ in range(repeat):
        clock = time.perf_counter()
        f()
        synchronise(mu)
        seconds.append(time.perf_counter() - clock)
    return min(seconds)


def all_pairs(mu: ox.Particles, width: float) -> Tensor:
    """∇φ∗log(φ∗μ) with nodes at 0.75 widths, in blocks of particles so that memory is bounded."""
    h, norm = 0.75 * width, 2 * math.pi * width**2
    axis = torch.arange(-HALF - 8.5 * width, HALF + 8.5 * width, h, dtype=mu.x.dtype, device=mu.x.device)
    nodes = torch.cartesian_prod(axis, axis)
    f = torch.zeros_like(nodes[:, 0])
    parts = list(zip(mu.x.split(100), mu.w.split(100), strict=True))
    for x, w in parts:
        f += w @ torch.exp(-torch.cdist(x, nodes).square() / (2 * width**2)) / norm
    log, out = f.clamp_min(1e-300).log(), []
    for x, _ in parts:
        c = torch.exp(-torch.cdist(x, nodes).square() / (2 * width**2)) * (log * h**2 / norm)
        out.append((c @ nodes - c.sum(-1, keepdim=True) * x) / width**2)
    return torch.cat(out)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cells", type=int, nargs="+", default=[40, 80, 120])
    parser.add_argument("--space", type=int, default=24)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} threads")
    plane(options.cells, options.device)
    path(options.device)
    space(options.space, options.device)
    velocities(options.device)


if __name__ == "__main__":
    main()
