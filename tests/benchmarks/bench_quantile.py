"""The prox on quantiles: seconds, iterations and peak memory at n = 10⁴, 10⁵, 10⁶.

python tests/benchmarks/bench_quantile.py [--sizes 10000 100000 1000000] [--repeat 3]
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Sequence
from multiprocessing import get_context

import torch
from torch import Tensor

import otprox as ox
from otprox.solvers import Quantile


def double_well(x: Tensor) -> Tensor:
    return (x.square() - 1).square().sum(-1)


def cases() -> dict[str, ox.Functional]:
    target = ox.Gaussian(torch.zeros(1, dtype=torch.float64), torch.eye(1, dtype=torch.float64))
    return {"KL to N(0, 1)": ox.KL(target), "double well": ox.KL(double_well)}


def peak_megabytes() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def measure(name: str, n: int, repeat: int) -> tuple[list[float], int, float, float]:
    """Seconds of each repetition, Newton iterations, residual, and peak memory above that of the start, in MB."""
    F, tau = cases()[name], 0.1
    start = ox.Gaussian(torch.tensor([10.0], dtype=torch.float64), torch.tensor([[100.0]], dtype=torch.float64))
    mu = ox.Quantiles.of(start, n)
    Quantile()(F, ox.Wasserstein(), ox.Quantiles.of(start, 100), tau)  # imports LAPACK
    before, seconds = peak_megabytes(), []
    for _ in range(repeat):
        clock = time.perf_counter()
        _, stats = Quantile()(F, ox.Wasserstein(), mu, tau)
        seconds.append(time.perf_counter() - clock)
    return seconds, int(stats.iterations), float(stats.residual), peak_megabytes() - before


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="One implicit step of tau = 0.1 from N(10, 100), on quantiles.")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**4, 10**5, 10**6])
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args(arguments)
    print(f"one implicit step, tau = 0.1, from N(10, 100); {torch.get_num_threads()} threads")
    print(f"{'energy':15}{'n':>9}{'first s':>9}{'best s':>9}{'iterations':>12}{'residual':>10}{'MB':>7}")
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:  # a fresh process each, for its own peak memory
        for name in cases():
            for n in options.sizes:
                seconds, iterations, residual, memory = pool.apply(measure, (name, n, options.repeat))
                row = f"{seconds[0]:9.3f}{min(seconds):9.3f}{iterations:12d}{residual:10.1e}{memory:7.0f}"
                print(f"{name:15}{n:9d}{row}", flush=True)


if __name__ == "__main__":
    main()
