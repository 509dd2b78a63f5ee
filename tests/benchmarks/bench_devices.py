"""The same calls on the CPU and on a CUDA device: seconds of each, and the ratio.

python -m tests.benchmarks.bench_devices [--dtype float64] [names …]

Wall time, the least of three after one warm-up, with the device synchronised. Without a CUDA device only the column of
the CPU is filled. `logsum keops` needs pykeops and is beside `logsum` because both compute the same sum.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor

import otprox as ox
from otprox.kernels import RBF, Cosine, Energy
from otprox.pairwise import log_gaussian_sum, stein_sum

Job = Callable[[], object]
Build = Callable[[torch.Tensor], Job]  # a scalar says dtype and device


def points(n: int, d: int, like: Tensor) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0)).to(like)


def cloud(n: int, d: int, like: Tensor) -> ox.Particles:
    return ox.Particles(points(n, d, like))


def bumps(n: int, dim: int, like: Tensor) -> ox.Density:
    grid = ox.Grid((0.0,) * dim, (1.0,) * dim, (n,) * dim)
    x = grid.points(like)
    rho = (-((x - 0.35) ** 2).sum(-1) / 0.02).exp() + 0.5 * (-((x - 0.65) ** 2).sum(-1) / 0.01).exp()
    rho = rho.reshape(grid.shape)
    return ox.Density(rho / (rho.sum() * grid.volume), grid)


def potential(x: Tensor) -> Tensor:
    return 50 * ((x - 0.6) ** 2).sum(-1)


def discrepancy(like: Tensor) -> Job:
    mu = cloud(1_000_000, 1, like)
    target = ox.Gaussian(torch.zeros(1).to(like), torch.eye(1).to(like))
    scheme = ox.Forward(ox.MMD(Energy(), target))
    return lambda: scheme(mu, 0.0, 0.01)


def step(make: Callable[[], ox.Step], start: Callable[[Tensor], ox.Measure], tau: float) -> Build:
    def build(like: Tensor) -> Job:
        mu, scheme = start(like), make()
        return lambda: scheme(mu, 0.0, tau)

    return build


def log_sums(engine: str, n: int = 20_000) -> Build:
    def build(like: Tensor) -> Job:
        x, log_w = points(n, 3, like), torch.full((n,), -math.log(n)).to(like)
        return lambda: log_gaussian_sum(x, x, log_w, 0.5, engine=engine)

    return build


def svgd(like: Tensor, n: int = 20_000) -> Job:
    x = points(n, 2, like)
    return lambda: stein_sum(RBF(1.0), x, -x)


def onsager(gamma: float, n: int) -> Build:
    def build(like: Tensor) -> Job:
        mu = cloud(n, 3, like)
        return lambda: ox.Landau(gamma).onsager(mu, mu.x**2)

    return build


def rotators(like: Tensor) -> ox.Particles:
    return ox.Particles(points(1_000_000, 1, like), domain=ox.Torus(2 * math.pi))


def gaussian(like: Tensor, d: int = 1000) -> ox.Gaussian:
    A = points(d, d, like)
    return ox.Gaussian(A[0], A @ A.mT / d + torch.eye(d).to(like))


BUILDS: dict[str, Build] = {
    "all-pairs log-sum-exp, n = 2·10⁴, d = 3": log_sums("tiled"),
    "the same by KeOps": log_sums("keops"),
    "SVGD velocity, n = 2·10⁴, d = 2": svgd,
    "Landau, Maxwell, n = 10⁶, d = 3": onsager(0.0, 1_000_000),
    "Landau, Coulomb, n = 10⁴, d = 3": onsager(-3.0, 10_000),
    "Kuramoto Forward, n = 10⁶": step(lambda: ox.Forward(ox.Interaction(Cosine([-1.0]))), rotators, 0.01),
    "MMD Forward, energy distance, n = 10⁶, 1-D": discrepancy,
    "Bures JKO of Entropy, d = 1000": step(lambda: ox.Backward(ox.Entropy()), gaussian, 0.1),
    "Quantile JKO, n = 10⁶": step(
        lambda: ox.Backward(ox.KL(lambda x: ((x**2 - 1) ** 2).sum(-1) / 4)),
        lambda at: ox.Quantiles(points(1_000_000, 1, at)[:, 0].sort().values),
        0.1,
    ),
    "Scaling, KL, 256²": step(
        lambda: ox.Backward(ox.KL(potential), ox.Entropic(2e-3)), lambda at: bumps(256, 2, at), 0.05
    ),
    "Scaling, KL, 1024²": step(
        lambda: ox.Backward(ox.KL(potential), ox.Entropic(2e-3)), lambda at: bumps(1024, 2, at), 0.05
    ),
    "Kantorovich, m = 2, 128²": step(lambda: ox.Backward(ox.PorousMedium(2.0)), lambda at: bumps(128, 2, at), 0.001),
    "Kantorovich, KL, 256²": step(lambda: ox.Backward(ox.KL(potential)), lambda at: bumps(256, 2, at), 0.001),
    "Dynamic, m = 2, 64²": step(
        lambda: ox.Backward(ox.PorousMedium(2.0), solver=ox.solvers.Dynamic()), lambda at: bumps(64, 2, at), 0.001
    ),
    "Heat, 1024²": step(ox.Heat, lambda at: bumps(1024, 2, at), 0.001),
}


def seconds(build: Build, like: Tensor, repeat: int = 3) -> float:
    job, best = build(like), math.inf
    for k in range(repeat + 1):
        clock = time.perf_counter()
        job()
        if like.is_cuda:
            torch.cuda.synchronize()
        if k:  # the first compiles and warms
            best = min(best, time.perf_counter() - clock)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description="The same calls on the CPU and on a CUDA device.")
    parser.add_argument("names", nargs="*", help="parts of the names of rows; all when none")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float64")
    options = parser.parse_args()
    here = torch.ones((), dtype=getattr(torch, options.dtype))
    cuda = torch.cuda.is_available()
    print(f"{options.dtype}; {torch.get_num_threads()} threads; {torch.cuda.get_device_name() if cuda else 'no CUDA'}")
    for name, build in BUILDS.items():
        if options.names and not any(part in name for part in options.names):
            continue
        if "KeOps" in name and find_spec("pykeops") is None:
            print(f"  {name:<46} not installed")
            continue
        slow = seconds(build, here)
        fast = f"{(t := seconds(build, here.cuda())):9.4f} {slow / t:7.1f}×" if cuda else "        -"
        print(f"  {name:<46} {slow:9.4f} {fast}", flush=True)


if __name__ == "__main__":
    main()
