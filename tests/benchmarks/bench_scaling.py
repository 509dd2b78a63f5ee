"""Entropic proximal steps: otprox beside the same loop with plain kernels, OTT-JAX's kernels, and GeomLoss on points.

python tests/benchmarks/bench_scaling.py [--parts grid log large points] [--sizes 256] [--reg 2e-3] [--tau 0.01 0.05]

grid, on the unit square in float64: no public library has this step, so the others run the textbook loop (Peyré 2015)
on their own kernel products. "plain" multiplies by one small matrix an axis in NumPy, as
ot.bregman.convolutional_barycenter2d does; "OTT" calls ott.geometry.grid.Grid.apply_kernel inside one compiled loop,
compilation not counted. All stop at the same L1 error of the first marginal; otprox reports an upper bound of it. The
last column is the L1 distance to a run of otprox with tol = 1e-10.
log: the same at 128², reg 1e-3, beside OTT's log mode, apply_lse_kernel, which is timed over 10 passes of the same loop
and multiplied by the passes that its kernel mode needs. large: memory at 1024².
points: seconds for one pass of Sinkhorn's iteration between two clouds in d = 3, beside GeomLoss with KeOps on the CPU
(the whole of a SamplesLoss over its number of passes).
OTT and GeomLoss are left out when not installed (pip install ott-jax geomloss pykeops).
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


def ott_log_pass(case: Case) -> float:
    """Seconds of one pass of the same loop in OTT's log mode, averaged over ten, compilation not counted."""
    import jax
    import jax.numpy as jnp
    from ott.geometry import grid

    jax.config.update("jax_enable_x64", True)
    mu, s, n = start(case.n), 2 * case.tau / case.reg, case.n
    log_mu, V = jnp.asarray(mu.log_prob().numpy()), jnp.asarray(potential(mu.points).numpy())
    line = (jnp.arange(n) + 0.5) / n
    geometry, zero = grid.Grid(x=[line, line], epsilon=case.reg), jnp.zeros(n * n)

    def log_kernel(f):
        return geometry.apply_lse_kernel(zero, case.reg * f, eps=case.reg)[0] / case.reg - 2 * jnp.log(n)

    @jax.jit
    def ten():
        def body(_, log_v):
            log_a = log_kernel(log_mu - log_kernel(log_v))
            return (log_a - s * (V + 1)) / (1 + s) - log_a

        return jax.lax.fori_loop(0, 10, body, zero)

    ten().block_until_ready()
    clock = time.perf_counter()
    ten().block_until_ready()
    return (time.perf_counter() - clock) / 10


def otprox_pass(n: int, dtype: torch.dtype, reg: float) -> float:
    from otprox.pairwise import log_gaussian_sum
    from otprox.solvers.gibbs import CloudKernel
    from otprox.solvers.sinkhorn import Marginal, Problem

    x, y = clouds(n, dtype)
    log_w = torch.full((n,), -np.log(n), dtype=dtype)
    problem = Problem(CloudKernel(x, y, reg), log_w, Marginal(log_w))
    log_gaussian_sum(x[:100], y[:100], log_w[:100], 1.0)
    plan, clock = problem.plan(problem.start(None)), time.perf_counter()
    for _ in range(3):
        plan = problem.plan(plan.image)
    return (time.perf_counter() - clock) / 3


def geomloss_pass(n: int, dtype: torch.dtype, reg: float) -> float:
    from geomloss import SamplesLoss

    x, y = clouds(n, dtype)
    blur, scaling = (reg / 2) ** 0.5, 0.5
    loss = SamplesLoss("sinkhorn", p=2, blur=blur, scaling=scaling, diameter=2.0, debias=False, backend="online")
    loss(x[:100], y[:100])  # compiles
    passes = 4 + int(np.ceil(np.log(2.0 / blur) / np.log(1 / scaling)))  # its schedule, first and last values included
    clock = time.perf_counter()
    loss(x, y)
    return (time.perf_counter() - clock) / passes


def clouds(n: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.rand(n, 3, generator=generator, dtype=dtype) for _ in range(2))


RUNS = {"otprox": run_otprox, "plain NumPy": run_plain, "OTT-JAX kernel": run_ott}


def peak_megabytes() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def measure(name: str, case: Case, repeat: int) -> Row:
    """Best of `repeat` after one run that compiles and warms up; memory above that of the loaded libraries."""
    RUNS[name](case._replace(n=32, tol=1e-2))()
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


def grid_part(pool, options: argparse.Namespace, cases: Sequence[Case]) -> list[Row]:
    names = [name for name in RUNS if name != "OTT-JAX kernel" or find_spec("ott")]
    print(
        f"{'energy':8}{'n':>5}{'reg':>8}{'tau':>6}  {'':16}{'s':>8}{'iterations':>12}{'error':>10}{'MB':>7}{'L1':>10}"
    )
    rows = []
    for case in cases:
        for name in names:
            row = pool.apply(measure, (name, case, options.repeat))
            head = f"{case.energy:8}{case.n:5}{case.reg:8.0e}{case.tau:6.2f}  {name:16}"
            print(
                f"{head}{row.seconds:8.3f}{row.iterations:12}{row.error:10.1e}{row.megabytes:7.0f}{row.distance:10.1e}"
            )
            rows.append(row)
    return rows


def log_part(pool, options: argparse.Namespace) -> None:
    case = Case("KL", 128, 1e-3, 0.01, options.tol)
    rows = grid_part(pool, options, [case])
    if not find_spec("ott"):
        print("OTT-JAX log mode: not installed")
        return
    one = pool.apply(ott_log_pass, (case,))
    total = one * rows[-1].iterations
    print(f"OTT-JAX log mode: {one:.3f} s a pass, {total:.1f} s for {rows[-1].iterations} passes; ", end="")
    print(f"{total / rows[0].seconds:.0f} times otprox")


def large_part(pool, options: argparse.Namespace) -> None:
    for kind in ("KL", "m = 2"):
        row = pool.apply(large, (Case(kind, 1024, 2e-3, 0.01, options.tol),))
        print(
            f"{kind:8} 1024   {row[0]:8.2f} s{row[1]:5} iterations, error {row[2]:.1e}, {row[3]:.0f} MB above imports"
        )


def large(case: Case) -> tuple[float, int, float, float]:
    before, run, clock = peak_megabytes(), run_otprox(case), time.perf_counter()
    _, iterations, error = run()
    return time.perf_counter() - clock, iterations, error, peak_megabytes() - before


def with_memory(function, n: int, dtype: torch.dtype, reg: float) -> tuple[float, float]:
    before = peak_megabytes()
    return function(n, dtype, reg), peak_megabytes() - before


def points_part(pool) -> None:
    peers = [("otprox", otprox_pass)]
    if find_spec("geomloss") and find_spec("pykeops"):
        peers.append(("GeomLoss online", geomloss_pass))
    else:
        print("GeomLoss online: not installed")
    for dtype in (torch.float32, torch.float64):
        for n in (10_000, 20_000):
            for name, function in peers:
                seconds, megabytes = pool.apply(with_memory, (function, n, dtype, 0.05))
                print(f"points d = 3 {str(dtype)[6:]:8}{n:7}  {name:16}{seconds:8.2f} s a pass{megabytes:7.0f} MB")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Entropic proximal steps.")
    parser.add_argument("--parts", nargs="+", default=["grid", "log", "large", "points"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[256])
    parser.add_argument("--reg", type=float, nargs="+", default=[2e-3])
    parser.add_argument("--tau", type=float, nargs="+", default=[0.01, 0.05])
    parser.add_argument("--tol", type=float, default=1e-6)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args(arguments)
    print(f"one step in Entropic(reg), float64, tol {options.tol:g}; {torch.get_num_threads()} threads")
    cases = [
        Case(kind, n, reg, tau, options.tol)
        for n in options.sizes
        for reg in options.reg
        for kind in ("KL", "m = 2")
        for tau in options.tau
    ]
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:  # a fresh process each, for its own peak memory
        if "grid" in options.parts:
            grid_part(pool, options, cases)
        if "log" in options.parts:
            log_part(pool, options)
        if "large" in options.parts:
            large_part(pool, options)
        if "points" in options.parts:
            points_part(pool)


if __name__ == "__main__":
    main()
