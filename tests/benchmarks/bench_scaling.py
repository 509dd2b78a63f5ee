"""One entropic proximal step on the unit square: otprox beside the same loop with plain kernels, and with OTT-JAX's.

python tests/benchmarks/bench_scaling.py [--sizes 256] [--reg 2e-3] [--tau 0.01 0.05] [--tol 1e-6] [--repeat 3]

No public library has this step, so the others run the textbook loop (Peyré 2015) in float64 on their own kernel
products: "plain" multiplies by one small matrix an axis in NumPy, as ot.bregman.convolutional_barycenter2d does; "OTT"
calls ott.geometry.grid.Grid.apply_kernel inside one compiled loop, compilation not counted. All stop at the same L1
error of the first marginal; otprox reports an upper bound of it. The last column is the L1 distance to a run of otprox
with tol = 1e-10. OTT is left out when it is not installed (pip install ott-jax).
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
import torch

import otprox as ox
from otprox.solvers import Scaling


class Case(NamedTuple):
    """KL(ν | e^−V) with V = 50·|x − 0.6|², or 0.1·∫ρ², from two bumps."""

    energy: str
    n: int
    reg: float
    tau: float
    tol: float


class Row(NamedTuple):
    seconds: float
    iterations: int
    error: float
    megabytes: float
    distance: float


def potential(x):
    return 50 * ((x - 0.6) ** 2).sum(-1)


def start(n: int) -> ox.Density:
    def log_prob(x: torch.Tensor) -> torch.Tensor:
        left = -((x - x.new_tensor([0.3, 0.35])) ** 2).sum(-1) / 0.02
        right = -((x - x.new_tensor([0.7, 0.6])) ** 2).sum(-1) / 0.01
        return torch.logaddexp(left, right + np.log(0.5))

    like = torch.zeros(1, dtype=torch.float64)
    return ox.Density.from_log_prob(log_prob, ox.Grid((0, 0), (1, 1), (n, n)), like)


def energy(case: Case) -> ox.Functional:
    return ox.KL(potential) if case.energy == "KL" else 0.1 * ox.PorousMedium(2.0)


def run_otprox(case: Case) -> Callable[[], tuple[np.ndarray, int, float]]:
    mu, F, metric, solver = start(case.n), energy(case), ox.Entropic(case.reg), Scaling(tol=case.tol)

    def run() -> tuple[np.ndarray, int, float]:
        nu, stats = solver(F, metric, mu, case.tau)
        return nu.values.numpy(), int(stats.iterations), float(stats.residual)

    return run


def run_plain(case: Case) -> Callable[[], tuple[np.ndarray, int, float]]:
    from scipy.special import lambertw

    mu, s, n = start(case.n), 2 * case.tau / case.reg, case.n
    density, V = mu.values.numpy(), potential(mu.points).reshape(n, n).numpy()
    line = (np.arange(n) + 0.5) / n
    K = np.exp(-((line[:, None] - line) ** 2) / case.reg) / n

    def prox(a: np.ndarray) -> np.ndarray:
        if case.energy == "KL":
            return np.exp((np.log(a) - s * (V + 1)) / (1 + s))
        return lambertw(0.2 * s * a).real / (0.2 * s)

    @np.errstate(all="ignore")  # at small reg plain kernels overflow: the table then says nan
    def run() -> tuple[np.ndarray, int, float]:
        v = np.ones_like(density)
        u = density / (K @ v @ K)
        for _k in range(1, 5001):
            a = K @ u @ K
            b = prox(a)
            kv = K @ (b / a) @ K
            error = np.abs(u * kv - density).mean()
            if not error > case.tol:
                break
            u = density / kv
        return b, _k, float(error)

    return run


def run_ott(case: Case) -> Callable[[], tuple[np.ndarray, int, float]]:
    import jax
    import jax.numpy as jnp
    from ott.geometry import grid

    jax.config.update("jax_enable_x64", True)
    mu, s, n = start(case.n), 2 * case.tau / case.reg, case.n
    density, V = jnp.asarray(mu.values.flatten().numpy()), jnp.asarray(potential(mu.points).numpy())
    line = (jnp.arange(n) + 0.5) / n
    geometry = grid.Grid(x=[line, line], epsilon=case.reg)

    def kernel(v):
        return geometry.apply_kernel(v, eps=case.reg) / n**2

    def prox(a):
        if case.energy == "KL":
            return jnp.exp((jnp.log(a) - s * (V + 1)) / (1 + s))
        z = jnp.log(0.2 * s * a)
        t = jnp.where(z > 1, jnp.log(jnp.maximum(z, 1.0)), z - jnp.exp(jnp.minimum(z, 0.0)) / 2)
        for _ in range(5):  # w + log w = z in t = log w, by Newton
            t = t - (jnp.exp(t) + t - z) / (jnp.exp(t) + 1)
        return jnp.exp(t) / (0.2 * s)

    def body(state):
        u, _, _, k = state
        a = kernel(u)
        b = prox(a)
        kv = kernel(b / a)
        return density / kv, b, jnp.abs(u * kv - density).mean(), k + 1

    @jax.jit
    def solve():
        u = density / kernel(jnp.ones_like(density))
        going = lambda state: (state[2] > case.tol) & (state[3] < 5000)  # noqa: E731
        return jax.lax.while_loop(going, body, (u, u, jnp.array(jnp.inf), 0))

    def run() -> tuple[np.ndarray, int, float]:
        _, b, error, k = solve()
        return np.asarray(b).reshape(n, n), int(k), float(error)

    return run


RUNS = {"otprox": run_otprox, "plain NumPy": run_plain, "OTT-JAX kernel": run_ott}


def peak_megabytes() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def measure(name: str, case: Case, repeat: int) -> Row:
    """Best of `repeat` after one run that compiles and warms up; memory above that of the loaded libraries."""
    RUNS[name](case._replace(n=8, tol=1e-2))()
    before, run = peak_megabytes(), RUNS[name](case)
    values, iterations, error = run()
    memory, seconds = peak_megabytes() - before, []
    for _ in range(repeat):
        clock = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - clock)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exact = run_otprox(case._replace(tol=1e-10))()[0]
    return Row(min(seconds), iterations, error, memory, float(np.abs(values - exact).mean()))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="One entropic proximal step on the unit square, float64.")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256])
    parser.add_argument("--reg", type=float, nargs="+", default=[2e-3])
    parser.add_argument("--tau", type=float, nargs="+", default=[0.01, 0.05])
    parser.add_argument("--tol", type=float, default=1e-6)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args(arguments)
    names = [name for name in RUNS if name != "OTT-JAX kernel" or find_spec("ott")]
    print(f"one step in Entropic(reg), float64, tol {options.tol:g}; {torch.get_num_threads()} threads")
    print(
        f"{'energy':8}{'n':>5}{'reg':>8}{'tau':>6}  {'':16}{'s':>8}{'iterations':>12}{'error':>10}{'MB':>7}{'L1':>10}"
    )
    cases = [
        Case(kind, n, reg, tau, options.tol)
        for n in options.sizes
        for reg in options.reg
        for kind in ("KL", "m = 2")
        for tau in options.tau
    ]
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:  # a fresh process each, for its own peak memory
        for case in cases:
            for name in names:
                row = pool.apply(measure, (name, case, options.repeat))
                head = f"{case.energy:8}{case.n:5}{case.reg:8.0e}{case.tau:6.2f}  {name:16}"
                print(
                    f"{head}{row.seconds:8.3f}{row.iterations:12}{row.error:10.1e}{row.megabytes:7.0f}{row.distance:10.1e}"
                )


if __name__ == "__main__":
    main()
