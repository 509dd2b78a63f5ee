"""Seconds and peak memory of steps of translation-invariant Gaussian fields, by default on 64 × 64 sites.

Run `python -m tests.benchmarks.bench_spectral [sites a side]`.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable

import torch

from otprox import (
    KL,
    Backward,
    Entropic,
    Entropy,
    Forward,
    Gaussian,
    Heat,
    Lattice,
    Moving,
    Potential,
    Quadratic,
    Spectral,
    Wasserstein,
)
from otprox.steps import Step

REPEATS = 9


def main(side: int = 64) -> None:
    """Print a table: what, milliseconds (median of nine), and the memory that the process reached."""
    lattice, before = Lattice((side, side)), peak()
    size = lattice.sites**2 * 8 / 2**20
    print(
        f"{lattice.sites} sites, float64, {torch.get_num_threads()} threads; one dense matrix would take {size:.0f} MB"
    )
    with torch.no_grad():
        for name, call in cases(lattice).items():
            print(f"  {name:<44} {1e3 * seconds(call):8.2f} ms   peak {peak() - before:+7.0f} MB")


def cases(lattice: Lattice) -> dict[str, Callable[[], object]]:
    """What is timed: single steps from white noise towards a free field, and what is not affine."""
    like = torch.zeros((), dtype=torch.float64)
    M = lattice.symbol(0.5, like)
    target = Gaussian(torch.zeros_like(M), Spectral(1 / M, lattice))
    mu = Gaussian(torch.ones_like(M), Spectral(torch.full_like(M, 2.0), lattice))
    moving = Moving(lambda t: Spectral((1 - torch.exp(-t * M)) / M, lattice))
    V = Potential(Quadratic.of(target))

    def step(a: Step) -> Callable[[], object]:
        return lambda: a(mu, 0.1, 0.2)

    return {
        "Backward(KL)": step(Backward(KL(target))),
        "Backward(KL), Wasserstein(Q)": step(Backward(KL(target), Wasserstein(target.cov))),
        "Backward(KL), Moving(C)": step(Backward(0.5 * KL(target), moving)),
        "Backward(KL), Entropic, lebesgue": step(Backward(KL(target), Entropic(0.1))),
        "Backward(KL), Entropic, debiased": step(Backward(KL(target), Entropic(0.1, "debiased"))),
        "Forward(V) >> Backward(Entropy)": step(Forward(V) >> Backward(Entropy())),
        "Heat, Moving(C)": step(Heat(metric=moving)),
        "Forward of a quartic potential, sampled": step(Forward(Potential(lambda x: (x**4).sum(-1)))),
        "100 samples": lambda: mu.to_particles(100, torch.Generator().manual_seed(0)),
    }


def seconds(call: Callable[[], object]) -> float:
    """Median time of a call, after one that is not counted."""
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[REPEATS // 2]


def peak() -> float:
    """Largest memory of the process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
