"""Sums over pairs: SVGD, log-sums and routes faster than all pairs, beside NumPy, KeOps and blackjax where installed.

Run `python -m tests.benchmarks.bench_pairwise [svgd logsum step memory routes] [--figure FILE]`; the figure shows the
cost of each route against the number of particles. Codes that are compared alternate in one run. A time is the least of
the repetitions, in CPU seconds of the process: wall time depends on the machine's other work. Set OMP_NUM_THREADS=1 to
compare one core with one core.
"""

from __future__ import annotations

import argparse
import math
import resource
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from multiprocessing import get_context

import numpy as np
import torch
from torch import Tensor

from otprox.kernels import RBF, Cosine, Energy, Laplace, Median, PeriodicRBF, RandomBatch, Riesz, Sliced
from otprox.pairwise import gradient_sum, log_gaussian_sum, stein_sum

Job = Callable[[], object]


def main() -> None:
    torch.set_default_dtype(torch.float64)
    parts = {"svgd": svgd, "logsum": logsum, "step": steps, "memory": memory, "routes": routes}
    parser = argparse.ArgumentParser(description="Sums over pairs, beside other codes and against the number of them.")
    parser.add_argument("names", nargs="*", choices=[*parts, []], default=list(parts))
    parser.add_argument("--figure", help="file of the figure of the costs of the routes")
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, float64 unless it says so; CPU seconds")
    for name in options.names:
        routes(options.figure) if name == "routes" else parts[name]()


def table(title: str, jobs: dict[str, Job | None], repeat: int) -> None:
    """The least CPU seconds of each job, the jobs in turn, and what they are in units of the first."""
    print(f"\n{title}")
    found: dict[str, list[float]] = {name: [] for name in jobs}
    for job in jobs.values():
        if job:
            job()  # compiles, warms
    for _ in range(repeat):
        for name, job in jobs.items():
            if job:
                clock = time.process_time()
                job()
                found[name].append(time.process_time() - clock)
    unit = min(next(iter(found.values())))
    for name, seconds in found.items():
        print(f"  {name:<46} " + (f"{min(seconds):9.4f}  {min(seconds) / unit:6.2f}" if seconds else "not installed"))


def svgd(n: int = 2000) -> None:
    x, h = points(n, 2), 1.0

    def numpy_gram() -> np.ndarray:
        a, s = x.numpy(), -x.numpy()
        square = (a * a).sum(1)
        K = np.exp(-(square[:, None] + square[None] - 2 * a @ a.T) / (2 * h * h))
        return (K @ s + (a * K.sum(1)[:, None] - K @ a) / h**2) / n

    peer = find_spec("blackjax") is not None
    jobs: dict[str, Job | None] = {
        "NumPy, dense Gram products": numpy_gram,
        "otprox": lambda: stein_sum(RBF(h), x, -x),
        "otprox, engine='dense'": lambda: stein_sum(RBF(h), x, -x, engine="dense"),
        "otprox, median of every 4th particle": lambda: own_median(x.clone()),
        "otprox, median of all particles": lambda: own_median(x.clone(), n),
        "blackjax, jitted svgd": blackjax_step(x.numpy(), median=False) if peer else None,
        "blackjax, jitted svgd with its median rule": blackjax_step(x.numpy(), median=True) if peer else None,
    }
    gap = np.abs(numpy_gram() - stein_sum(RBF(h), x, -x).numpy()).max()
    table(f"SVGD velocity, d = 2, n = {n}, target N(0, I) (otprox − NumPy: {gap:.0e})", jobs, 7)


def own_median(x: Tensor, subsample: int = 500) -> Tensor:
    return stein_sum(RBF(Median(subsample=subsample)), x, -x)


def blackjax_step(x: np.ndarray, median: bool) -> Job:
    """One step of blackjax's svgd with its own kernel, with its median rule (of all particles) or without."""
    import blackjax
    import jax
    import optax

    jax.config.update("jax_enable_x64", True)
    rule = blackjax.vi.svgd.update_median_heuristic if median else lambda state: state
    algorithm = blackjax.svgd(lambda z: -z, optax.sgd(1e-3), blackjax.vi.svgd.rbf_kernel, rule)
    state, step = algorithm.init(jax.numpy.asarray(x), {"length_scale": 2.0}), jax.jit(algorithm.step)
    return lambda: jax.block_until_ready(step(state))


def logsum(n: int = 20_000) -> None:
    for dtype in (torch.float64, torch.float32):
        x, y = points(n, 3).to(dtype), points(n, 3, 1).to(dtype)
        log_w = torch.full((n,), -math.log(n), dtype=dtype)
        keops = find_spec("pykeops") is not None
        jobs: dict[str, Job | None] = {
            "KeOps": (lambda x=x, y=y, w=log_w: log_gaussian_sum(x, y, w, 0.5, engine="keops")) if keops else None,
            "otprox, tiles": lambda x=x, y=y, w=log_w: log_gaussian_sum(x, y, w, 0.5, engine="tiled"),
        }
        table(f"log-sum-exp, d = 3, n = {n}, {dtype}", jobs if keops else dict(reversed(jobs.items())), 2)


def steps() -> None:
    n = 1_000_000
    x, y, w = points(n, 1), points(n, 1, 1), torch.full((n,), 1 / n)
    table(
        f"one step by sorting, d = 1, n = {n}: a sort of the particles and one of the target",
        {"energy distance": lambda: gradient_sum(Energy(), x, x, w) - gradient_sum(Energy(), x, y, w)},
        3,
    )
    table(
        f"one step of Kuramoto, n = {n}",
        {"cos θ": lambda: gradient_sum(Cosine([-1.0]), x, x, w)},
        3,
    )
    n, d = 100_000, 10
    x, w, g = points(n, d), torch.full((n,), 1 / n), torch.Generator().manual_seed(0)
    lines = Sliced(64, generator=g).fit(x)
    table(f"one step by slicing, d = {d}, n = {n}, 64 lines", {"sliced": lambda: gradient_sum(lines, x, x, w)}, 2)


def memory() -> None:
    """Peak memory of a fresh process above that of its start, with 20,000 particles."""
    print("\nSVGD velocity, d = 2, n = 20000")
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        seconds, megabytes, total = pool.apply(peak)
    print(f"  {seconds:.2f} CPU seconds, {megabytes:.0f} MB above the start, {total:.0f} MB with Python and torch")


def peak() -> tuple[float, float, float]:
    torch.set_default_dtype(torch.float64)
    x = points(20_000, 2)
    stein_sum(RBF(1.0), x[:100].clone(), -x[:100])
    before, clock = resident(), time.process_time()
    stein_sum(RBF(1.0), x, -x)
    return time.process_time() - clock, resident() - before, resident()


def resident() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def routes(figure: str | None = None) -> None:
    """CPU seconds of Σ_j w_j ∇k(x_i − x_j) against n, tab-separated for a plot, and its growth over the last 10×."""
    g = torch.Generator().manual_seed(0)
    kernels = {
        "all pairs (RBF, d = 2)": (RBF(1.0), 2, 4),
        "sorting (Energy, d = 1)": (Energy(), 1, 6),
        "sorting (Laplace, d = 1)": (Laplace(1.0), 1, 6),
        "slicing (16 lines, d = 2)": (Sliced(16, generator=g), 2, 5),
        "Fourier (Cosine, 2 modes)": (Cosine([-1.0, -0.5]), 1, 6),
        "Fourier (PeriodicRBF(0.5))": (PeriodicRBF(0.5), 1, 6),
        "moments (Riesz(2), d = 2)": (Riesz(2), 2, 6),
        "random batches of 64 (d = 2)": (RandomBatch(RBF(1.0), 64, generator=g), 2, 5),
    }
    print("\nCPU seconds of the velocity of n particles, by route\nroute\t" + "\t".join(f"1e{k}" for k in (3, 4, 5, 6)))
    curves = {}
    for name, (k, d, last) in kernels.items():
        row = [cost(lambda k=k, d=d, n=10**e: velocity(k, points(n, d))) for e in range(3, last + 1)]
        curves[name] = row
        order = math.log10(row[-1] / row[-2])
        cells = [f"{seconds:.4f}" for seconds in row] + [""] * (4 - len(row))
        print("\t".join([name, *cells, f"n^{order:.2f}"]), flush=True)
    if figure:
        draw(curves, figure)


def draw(curves: dict[str, list[float]], figure: str) -> None:
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, row in curves.items():
        style = {"color": "black", "linewidth": 2} if name.startswith("all pairs") else {}
        axes.loglog([10 ** (3 + i) for i in range(len(row))], row, "o-", label=name, **style)
    axes.set(xlabel="particles", ylabel="CPU seconds of a velocity")
    axes.legend(frameon=False, fontsize="small")
    fig.savefig(figure, dpi=120)


def velocity(k: object, x: Tensor) -> Tensor:
    return gradient_sum(k, x, x, torch.full((len(x),), 1 / len(x)))  # type: ignore[arg-type]


def cost(job: Job) -> float:
    job()
    found = []
    for _ in range(2):
        clock = time.process_time()
        job()
        found.append(time.process_time() - clock)
    return min(found)


def points(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


if __name__ == "__main__":
    main()
