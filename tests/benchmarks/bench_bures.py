"""Seconds and peak memory of Gaussian steps at d = 1000, beside one eigendecomposition in the same run.

Run `python -m tests.benchmarks.bench_bures [d]`.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from otprox import KL, Entropic, Entropy, Gaussian, Potential, Quadratic, Wasserstein
from otprox.measures import bures2
from otprox.solvers import Bures

REPEATS = 5


def main(d: int = 1000) -> None:
    """Print a table: what, seconds (median of five), and how many eigendecompositions that is."""
    with torch.no_grad():
        unit = seconds(lambda: torch.linalg.eigh(covariance(d, 0)))
        print(f"d = {d}, float64, {torch.get_num_threads()} threads")
        for name, call in cases(d).items():
            t = seconds(call)
            print(f"  {name:<44} {t:8.3f} s  {t / unit:6.2f} eigh   peak {peak():7.0f} MB")


def cases(d: int) -> dict[str, Callable[[], object]]:
    """What is timed: a forward-backward iteration first, then single steps and a distance."""
    A, B = covariance(d, 0), covariance(d, 1)
    mu, target = Gaussian(torch.ones(d, dtype=A.dtype), A), Gaussian(torch.zeros(d, dtype=A.dtype), B)
    V, prox, w2 = Potential(Quadratic.of(target)), Bures(), Wasserstein()
    tau = 0.9 / V.V.curvatures[1]  # below 1/L

    def forward_backward() -> object:
        return prox(Entropy(), w2, mu.move(w2.descent(V, mu), tau), tau)

    return {
        "eigh alone": lambda: torch.linalg.eigh(A),
        "one matrix product": lambda: A @ B,
        "forward-backward iteration": forward_backward,
        "Backward(KL), Wasserstein()": lambda: prox(KL(target), w2, mu, tau),
        "Backward(KL), Wasserstein(Q)": lambda: prox(KL(target), Wasserstein(B), mu, tau),
        "Backward(KL), Entropic, lebesgue": lambda: prox(KL(target), Entropic(0.01), mu, tau),
        "Backward(KL), Entropic, debiased": lambda: prox(KL(target), Entropic(0.01, "debiased"), mu, tau),
        "bures2": lambda: bures2(A, B),
    }


def covariance(d: int, seed: int) -> Tensor:
    """A dense random covariance with condition number about 50."""
    x = torch.randn(d, 2 * d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x @ x.mT / (2 * d)


def seconds(call: Callable[[], object]) -> float:
    """Median seconds of a call, after one that is not counted."""
    call()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return sorted(times)[REPEATS // 2]


def peak() -> float:
    """Largest resident memory of the process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
