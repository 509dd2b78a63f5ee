"""Collisions, one apply of the Onsager operator of `Landau`: by moments, over all pairs, in random batches, and KeOps.

Run `python -m tests.benchmarks.bench_collisions [maxwell coulomb batches memory] [--device cuda]`. Codes compared
alternate in one run; a time is the least of the repetitions, in CPU seconds of the process on a CPU (wall time depends
on the machine's other work) and in wall seconds on a GPU. The KeOps formula is written by hand for γ = −3 in d = 3, and
takes every pair twice. Set OMP_NUM_THREADS=1 to compare one core with one core.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from multiprocessing import get_context

import torch
from torch import Tensor

from otprox import Landau, Particles
from otprox.pairwise import collision_jacobian

Job = Callable[[], object]
DTYPES = (torch.float64, torch.float32)


def main() -> None:
    parts = {"maxwell": maxwell, "coulomb": coulomb, "batches": batches, "memory": memory}
    parser = argparse.ArgumentParser(description="Applies of the Landau metric's Onsager operator.")
    parser.add_argument("names", nargs="*", choices=[*parts, []], default=[])
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    clock = "wall seconds" if options.device == "cuda" else f"CPU seconds, {torch.get_num_threads()} threads"
    print(f"on {options.device}, {clock}")
    for name in options.names or parts:
        parts[name](options.device)


def maxwell(device: str) -> None:
    for d in (2, 3):
        for dtype in DTYPES:
            mu, u = cloud(10**6, d, dtype, device)
            metric = Landau(0.0)
            job = lambda mu=mu, u=u, metric=metric: metric.onsager(mu, u)  # noqa: E731
            table(f"Maxwell molecules, d = {d}, N = 10⁶, {dtype}", {"otprox, by moments": job}, 5, device)


def coulomb(device: str, n: int = 10_000) -> None:
    for dtype in DTYPES:
        mu, u = cloud(n, 3, dtype, device)
        double, v = Particles(mu.x.double(), mu.w.double()), u.double()
        exact = Landau(-3.0).onsager(double, v)
        jobs: dict[str, Job | None] = {
            "KeOps, formula by hand": None,
            "otprox": lambda mu=mu, u=u: Landau(-3.0).onsager(mu, u),
        }
        if find_spec("pykeops"):
            jobs["KeOps, formula by hand"] = keops_by_hand(mu, u)
        for name, job in jobs.items():
            if job:
                print(f"  relative error of {name}: {((job() - exact).norm() / exact.norm()).item():.1e}")  # type: ignore
        du = torch.zeros(*u.shape, 3, dtype=dtype, device=device)
        jobs["otprox, velocity and Jacobian"] = lambda mu=mu, u=u, du=du: collision_jacobian(
            mu.x, u, du, mu.x, u, mu.w, -3.0
        )
        table(f"Coulomb, d = 3, N = {n}, {dtype}", jobs, 4, device)


def keops_by_hand(mu: Particles, u: Tensor) -> Job:
    from pykeops.torch import Genred

    formula = "w*Rsqrt(SqDist(x,y))*((u-v) - (((x-y)|(u-v))*Square(Rsqrt(SqDist(x,y))))*(x-y))"
    sums = Genred(formula, ["x=Vi(3)", "u=Vi(3)", "y=Vj(3)", "v=Vj(3)", "w=Vj(1)"], reduction_op="Sum", axis=1)
    x, w = mu.x.contiguous(), mu.w[:, None].contiguous()
    return lambda: sums(x, u, x, u, w)


def batches(device: str) -> None:
    for n, size in ((10_000, 64), (100_000, 64), (1_000_000, 16)):
        mu, u = cloud(n, 3, torch.float64, device)
        metric = Landau(-3.0, batch=size, generator=torch.Generator().manual_seed(0))
        job = lambda mu=mu, u=u, metric=metric: metric.onsager(mu, u)  # noqa: E731
        v = job()
        lost = ((mu.w[:, None] * v).sum(0).norm() / (mu.w[:, None] * v).norm(dim=-1).sum()).item()
        table(f"Coulomb in batches of {size}, d = 3, N = {n} (momentum: {lost:.0e})", {"otprox": job}, 3, device)


def memory(device: str) -> None:
    """Peak memory above that before, and in all: of a fresh process on a CPU with torch, of torch on a GPU."""
    print("\nCoulomb, d = 3, float64: memory of one apply")
    for n in (10_000, 40_000):
        with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            megabytes, total, seconds = pool.apply(peak, (n, device))
        print(f"  N = {n:<8} {megabytes:8.1f} MB of {total:.0f} MB  {seconds:8.2f} s")


def peak(n: int, device: str) -> tuple[float, float, float]:
    small, mu = cloud(300, 3, torch.float64, device), cloud(n, 3, torch.float64, device)
    Landau(-3.0).onsager(*small)
    before, clock = used(device), seconds_of(device)
    Landau(-3.0).onsager(*mu)
    return used(device) - before, used(device), seconds_of(device) - clock


def used(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def cloud(n: int, d: int, dtype: torch.dtype, device: str) -> tuple[Particles, Tensor]:
    x, u = torch.randn(2, n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Particles(x.to(device, dtype)), u.to(device, dtype)


def table(title: str, jobs: dict[str, Job | None], repeat: int, device: str) -> None:
    """The least seconds of each job, the jobs in turn, and what they are in units of the first."""
    print(f"\n{title}")
    found: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(repeat + 1):  # the first compiles and warms
        for name, job in jobs.items():
            if job:
                clock = seconds_of(device)
                job()
                found[name].append(seconds_of(device) - clock)
    best = {name: min(seconds[1:]) if seconds else None for name, seconds in found.items()}
    unit = next(iter(best.values()))
    for name, seconds in best.items():
        times = f"{seconds:9.4f}" + (f"  {seconds / unit:6.2f}" if unit else "") if seconds else "not installed"
        print(f"  {name:<46} {times}")


def seconds_of(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


if __name__ == "__main__":
    main()
