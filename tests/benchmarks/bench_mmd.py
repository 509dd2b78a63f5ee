"""Steps of energy-distance flows: on the line by sorting, forward and backward, and in ten dimensions by slicing.

python tests/benchmarks/bench_mmd.py [--n 1000000] [--sliced 100000] [--repeat 5]

One core unless OMP_NUM_THREADS says otherwise. Times are the least of `repeat` calls after a first one, which sorts the
target: on the wall, and of the process. Beside them two sorts of n numbers by NumPy; and, for few enough points, the
gradient of geomloss's energy distance over all pairs, when it is installed.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

import otprox as ox
from otprox import pairwise
from otprox.kernels import Energy, Sliced


def least(f: Callable[[], object], repeat: int) -> tuple[float, float]:
    """Seconds on the wall and of the process, each the least, after one call that is not counted."""
    f()
    walls, cores = [], []
    for _ in range(repeat):
        wall, core = time.perf_counter(), time.process_time()
        f()
        walls.append(time.perf_counter() - wall)
        cores.append(time.process_time() - core)
    return min(walls), min(cores)


def row(name: str, times: tuple[float, float], note: str = "") -> None:
    print(f"{name:<58}{times[0]:>9.3f}{times[1]:>11.3f}   {note}", flush=True)


def line(n: int, repeat: int, rng: torch.Generator) -> None:
    x, y = (torch.randn(n, 1, generator=rng, dtype=torch.float64) for _ in range(2))
    a, b = x[:, 0].numpy(), y[:, 0].numpy()
    row(f"NumPy: two argsorts, n = {n}", least(lambda: (np.argsort(a), np.argsort(b)), repeat))
    normal = ox.Gaussian(torch.zeros(1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
    measures = {"particles": ox.Particles(2 * x + 1), "quantiles": ox.Quantiles((2 * x[:, 0] + 1).sort().values)}
    for target_name, target in ((f"{n} samples", ox.Particles(y)), ("Gaussian", normal)):
        F = ox.MMD(Energy(), target)
        for name, mu in measures.items():
            for step in (ox.Forward(F), ox.Backward(F)):
                label = f"{type(step).__name__}, {name}, n = {n}, target: {target_name}"
                row(label, least(lambda step=step, mu=mu: step(mu, 0.0, 0.1), repeat))


def sliced(n: int, d: int, rng: torch.Generator) -> None:
    x, y = (torch.randn(n, d, generator=rng, dtype=torch.float64) for _ in range(2))
    y = y + 0.5
    F = ox.MMD(Sliced(64, generator=rng), ox.Particles(y))
    mu = ox.Particles(x)
    few = slice(0, 2000)
    w = torch.full((n,), 1 / n, dtype=torch.float64)
    want = pairwise.gradient_sum(Energy(), x[few], x, w) - pairwise.gradient_sum(Energy(), x[few], y, w)
    error = ((F.gradient(mu)[few] - want).square().mean() / want.square().mean()).sqrt().item()
    label = f"Forward, Sliced(64), d = {d}, n = {n}"
    row(label, least(lambda: ox.Forward(F)(mu, 0.0, 1.0), 2), f"relative error of the velocity {error:.3f}")


def all_pairs(n: int, d: int, repeat: int, rng: torch.Generator) -> None:
    x, y = (torch.randn(n, d, generator=rng, dtype=torch.float64) for _ in range(2))
    F, mu = ox.MMD(Energy(), ox.Particles(y)), ox.Particles(x)
    row(f"Forward, Energy, all pairs, d = {d}, n = {n}", least(lambda: ox.Forward(F)(mu, 0.0, 1.0), repeat))
    try:
        from geomloss import SamplesLoss
    except ImportError:
        print("geomloss: not installed")
        return
    loss = SamplesLoss("energy", backend="tensorized")

    def gradient() -> torch.Tensor:
        z = x.clone().requires_grad_()
        return torch.autograd.grad(loss(z, y), z)[0]

    row(f"geomloss: the gradient, tensorized, d = {d}, n = {n}", least(gradient, repeat))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=10**6)
    parser.add_argument("--sliced", type=int, default=10**5)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    rng = torch.Generator().manual_seed(0)
    print(f"{'':<58}{'wall, s':>9}{'process, s':>11}")
    line(options.n, options.repeat, rng)
    sliced(options.sliced, 10, rng)
    all_pairs(3000, 10, options.repeat, rng)


if __name__ == "__main__":
    main()
