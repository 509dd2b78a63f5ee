"""Milliseconds and peak memory of steps of the Polchinski flow on lattices, mode by mode.

Run `python -m tests.benchmarks.bench_polchinski`.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable

import torch

from otprox import Gaussian, Particles
from otprox.lattice import Lattice
from otprox.measures import Spectral
from otprox.polchinski import (
    Bridge,
    FreeField,
    HeatKernel,
    RenormalisedPotential,
    form_a,
    form_b,
    forward_backward,
    forward_heat,
)

REPEATS = 9


def main() -> None:
    """Print a table: lattice, step, milliseconds (median of nine)."""
    print(f"float64, {torch.get_num_threads()} threads")
    for shape in ((64, 64), (16, 16, 16), (256, 256)):
        for name, call in cases(shape).items():
            print(
                f"  {'×'.join(map(str, shape)):<10} {name:<32} {1000 * seconds(call):8.2f} ms   peak {peak():6.0f} MB"
            )


def cases(shape: tuple[int, ...]) -> dict[str, Callable[[], object]]:
    """One step over [0.2, 0.3] from a free field, and noise on 100 particles."""
    lattice = Lattice(shape)
    M = Spectral(lattice.laplacian(torch.zeros((), dtype=torch.float64)) + 1, lattice)
    C = HeatKernel(M)
    V = RenormalisedPotential(FreeField(0.3 * M, torch.ones_like(M.values)), C)
    mu = Gaussian(torch.ones_like(M.values), M.inverse())
    g = torch.Generator().manual_seed(0)
    cloud = Particles(torch.randn(100, lattice.sites, generator=g, dtype=torch.float64))
    steps = {
        "form A": form_a(C),
        "form A, average": form_a(C, rule="average"),
        "form B": form_b(V),
        "forward-backward": forward_backward(C),
        "bridge": Bridge(C),
    }
    timed: dict[str, Callable[[], object]] = {name: lambda s=step: s(mu, 0.2, 0.3) for name, step in steps.items()}
    timed["bridge, 100 particles"] = lambda: Bridge(C, g)(cloud, 0.2, 0.3)
    timed["forward-heat, 100 particles"] = lambda: forward_heat(C, g)(cloud, 0.2, 0.3)
    return timed


def seconds(call: Callable[[], object]) -> float:
    call()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
