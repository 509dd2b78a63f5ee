"""One SVGD step beside dense Gram matrices in NumPy and blackjax's jitted svgd, and the peak memory of a large one.

python tests/benchmarks/bench_svgd.py [--n 2000] [--large 20000] [--repeat 7] [--blackjax PYTHON]

One core for each of the three, unless OMP_NUM_THREADS says otherwise. blackjax is looked for in this environment, or
in the one whose interpreter `--blackjax` names.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor

import otprox as ox

WIDTH = 0.5


def banana(x: Tensor) -> Tensor:
    return x[..., 0].square() / 4 + 2 * (x[..., 1] - x[..., 0].square() / 3 + 1).square()


def banana_slope(x: np.ndarray) -> np.ndarray:
    gap = x[:, 1] - x[:, 0] ** 2 / 3 + 1
    return np.stack([x[:, 0] / 2 - 8 / 3 * gap * x[:, 0], 4 * gap], 1)


def dense_numpy(x: np.ndarray, tau: float = 1e-3) -> np.ndarray:
    """The same step with one n × n Gram matrix: x + (tau/n)(KG + (x·ΣK − Kx)/h²), as in the code of the paper."""
    squares = (x**2).sum(1)
    k = np.exp(-(squares[:, None] + squares - 2 * x @ x.T) / (2 * WIDTH**2))
    drift = -k @ banana_slope(x)
    repulsion = (x * k.sum(1, keepdims=True) - k @ x) / WIDTH**2
    return x + tau / len(x) * (drift + repulsion)


BLACKJAX = f"""
import time, statistics, sys
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_enable_x64", True)
import blackjax, optax
def logdensity(x):
    return -(x[0] ** 2 / 4 + 2 * (x[1] - x[0] ** 2 / 3 + 1) ** 2)
n, repeat = int(sys.argv[1]), int(sys.argv[2])
x = jnp.asarray(np.random.default_rng(0).normal(size=(n, 2)))
kernel = lambda a, b, length_scale=1.0: jnp.exp(-jnp.sum((a - b) ** 2) / (2 * {WIDTH}**2))
slope, rate = jax.grad(logdensity), optax.sgd(1e-3)
for svgd in (blackjax.svgd(slope, rate, kernel, lambda state: state), blackjax.svgd(slope, rate)):
    state, step, out = svgd.init(x), jax.jit(svgd.step), []
    for _ in range(repeat + 1):
        clock = time.perf_counter()
        state = step(state)
        jax.block_until_ready(state)
        out.append(time.perf_counter() - clock)
    print(statistics.median(out[1:]), min(out[1:]))
"""


def timed(jobs: dict[str, Callable[[], object]], repeat: int) -> dict[str, list[float]]:
    """Seconds of each repetition, the jobs in turn so that noise falls on all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for job in jobs.values():
        job()
    for _ in range(repeat):
        for name, job in jobs.items():
            clock = time.perf_counter()
            job()
            seconds[name].append(time.perf_counter() - clock)
    return seconds


def peak_megabytes() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def large(n: int) -> tuple[float, float]:
    """Seconds of one step with n particles, and the peak memory of a process that takes it, all included."""
    step = ox.Forward(ox.KL(banana), ox.Stein(ox.kernels.RBF(WIDTH)))
    mu = ox.Particles(torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    clock = time.perf_counter()
    step(mu, 0.0, 1e-3)
    return time.perf_counter() - clock, peak_megabytes()


def peer(python: str, n: int, repeat: int) -> str:
    try:
        run = subprocess.run([python, "-c", BLACKJAX, str(n), str(repeat)], capture_output=True, text=True, check=True)
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        reason = getattr(error, "stderr", "") or str(error)
        return "not installed" if "No module named" in reason else f"failed: {reason.strip().splitlines()[-1]}"
    return run.stdout.strip()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="One step of SVGD on a banana, d = 2, float64.")
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--large", type=int, default=20_000)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--blackjax", default=sys.executable, metavar="PYTHON")
    options = parser.parse_args(arguments)
    x = torch.randn(options.n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mu, array = ox.Particles(x), x.numpy()
    step = ox.Forward(ox.KL(banana), ox.Stein(ox.kernels.RBF(WIDTH)))
    gap = np.abs(step(mu, 0.0, 1e-3).mu.x.numpy() - dense_numpy(array)).max()
    threads = torch.get_num_threads()
    print(f"one SVGD step, n = {options.n}, d = 2, float64, {threads} threads; results differ by {gap:.1e}")
    median_step = ox.Forward(ox.KL(banana), ox.Stein(ox.kernels.RBF(ox.kernels.Median())))
    jobs: dict[str, Callable[[], object]] = {
        "otprox, fixed": lambda: step(mu, 0.0, 1e-3),
        "otprox, median": lambda: median_step(ox.Particles(x.clone()), 0.0, 1e-3),  # clone: no median is remembered
        "NumPy, fixed": lambda: dense_numpy(array),
    }
    seconds = timed(jobs, options.repeat)
    print(f"{'width':18}{'median ms':>11}{'best ms':>10}{'over otprox':>13}")
    ours = {name: statistics.median(seconds[f"otprox, {name}"]) for name in ("fixed", "median")}
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"{name:18}{1e3 * median:11.1f}{1e3 * min(values):10.1f}{median / ours[name.split(', ')[1]]:13.1f}")
    found = peer(options.blackjax, options.n, 3)
    for name, line in zip(("blackjax, fixed", "blackjax, median"), found.splitlines(), strict=False):
        if not line[0].isdigit():
            print(f"{'blackjax':18} {line}")
            break
        median, best = map(float, line.split())
        print(f"{name:18}{1e3 * median:11.1f}{1e3 * best:10.1f}{median / ours[name.split(', ')[1]]:13.1f}")
    with get_context("spawn").Pool(1) as pool:  # a fresh process, for its own peak memory
        duration, memory = pool.apply(large, (options.large,))
    print(f"n = {options.large}: {duration:.2f} s a step, peak memory of the whole process {memory:.0f} MB")


if __name__ == "__main__":
    main()
