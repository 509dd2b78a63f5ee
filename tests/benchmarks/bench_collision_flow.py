"""The JKO step in the metric of collisions: large steps beside explicit and midpoint schemes, and seconds a step.

python tests/benchmarks/bench_collision_flow.py [--device cpu] [--particles 1000 4000]

One core unless OMP_NUM_THREADS says otherwise. The first table is a cloud of temperatures 1.6 and 0.4 under Maxwell
molecules up to t = 1, with 4dC = 8: the largest error of the covariance on the path, and the change of the energy. The
second is one step: seconds of CPU (of the wall on a GPU), and how often one Onsager apply of a single field that is.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor

import otprox as ox
from otprox.exact import landau
from otprox.solvers import CollisionFlow, Cosines, Hermite


def cloud(n: int, variances: tuple[float, ...], device: str) -> ox.Particles:
    P = torch.diag(torch.tensor(variances, dtype=torch.float64))
    mu = ox.Gaussian(P.new_zeros(len(P)), P).to_particles(n, torch.Generator().manual_seed(0))
    return mu.with_state(**{name: t.to(device) for name, t in mu.state().items()})


def large_steps(device: str) -> None:
    mu, metric = cloud(1000, (1.6, 0.4), device), ox.Landau(0.0)
    score = ox.Entropy(score=ox.scores.GaussianFit())
    schemes: dict[str, ox.Step] = {"explicit, Gaussian fit": ox.Forward(score, metric)}
    schemes["midpoint, Gaussian fit"] = ox.Midpoint(score, metric)
    for pieces in (1, 2, 4):
        solver = CollisionFlow(Hermite(2), inner_steps=pieces, held_out=0.0)
        schemes[f"JKO, {pieces} inner steps"] = ox.Backward(ox.Entropy(), metric, solver)
    print(f"{'scheme':24} {'4dC·dt':>7} {'covariance':>11} {'energy':>9} {'seconds':>8}")
    for name, step in schemes.items():
        for tau in (1.0, 0.5, 0.25, 0.125, 0.0625):
            row(name, step, mu, tau)


def row(name: str, step: ox.Step, mu: ox.Particles, tau: float) -> None:
    clock, worst, nu, last = time.process_time(), 0.0, mu, None
    try:
        for k in range(round(1 / tau)):
            nu, last = step(nu, k * tau, (k + 1) * tau, last)
            want = landau.covariance(mu.cov, (k + 1) * tau)
            worst = max(worst, (nu.cov - want).abs().max().item())
    except ValueError as refusal:
        print(f"{name:24} {8 * tau:7.2f} refused: {str(refusal)[:60]}…")
        return
    drift = abs(trace(nu.cov) / trace(mu.cov) - 1)
    print(f"{name:24} {8 * tau:7.2f} {worst:11.3g} {drift:9.1e} {time.process_time() - clock:8.2f}")


def trace(P: Tensor) -> float:
    return P.diagonal().sum().item()


def one_step(sizes: list[int], device: str) -> None:
    head = f"{'collisions':13} {'basis':16} {'features':>8} {'particles':>10} {'seconds':>8} {'applies':>8}"
    print(f"{head} {'iterations':>10}")
    for gamma, variances in ((0.0, (1.6, 0.4)), (0.0, (2.0, 0.5, 0.5)), (-3.0, (2.0, 0.5, 0.5))):
        for basis in (Hermite(2), Hermite(4), Cosines(40)):
            for n in sizes:
                mu, metric = cloud(n, variances, device), ox.Landau(gamma)
                solver = CollisionFlow(basis)
                out = solver(ox.Entropy(), metric, mu, 0.05)
                taken = seconds(lambda: solver(ox.Entropy(), metric, mu, 0.05), mu)  # noqa: B023
                apply = seconds(lambda: metric.onsager(mu, mu.x.sin()), mu)  # noqa: B023
                count = out.stats.warm["coefficients"].shape[-1]
                print(
                    f"γ = {gamma:g}, d = {mu.dim:<2} {type(basis).__name__:16} {count:8} {n:10} {taken:8.3f} "
                    f"{taken / apply:8.1f} {out.stats.iterations.item():10}"
                )


def seconds(f: Callable[[], object], mu: ox.Particles) -> float:
    """The least of three runs."""
    clock = time.perf_counter if mu.x.is_cuda else time.process_time
    found = []
    for _ in range(3):
        begin = clock()
        f()
        if mu.x.is_cuda:
            torch.cuda.synchronize()
        found.append(clock() - begin)
    return min(found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--particles", type=int, nargs="+", default=[1000, 4000])
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    large_steps(args.device)
    one_step(args.particles, args.device)
