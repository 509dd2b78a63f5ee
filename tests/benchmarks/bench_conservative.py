"""Steps of the Landau equation: velocities and seconds, error in the positions, and drift of the energy.

    python tests/benchmarks/bench_conservative.py [--device cuda] [--n 1000]

Coulomb collisions of a bi-Maxwellian in 3-D up to t = 2, the score by a Gaussian fit, in float64. The error is the root
mean square distance to classical Runge–Kutta steps of 1/40. `Forward` is the cost of one velocity a step.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from importlib.util import find_spec

import torch

import otprox as ox
from otprox.steps import Step

HORIZON = 2.0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--n", type=int, default=1000)
    options = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    F, metric = ox.Entropy(score=ox.scores.GaussianFit()), ox.Landau(-3.0)
    v = torch.randn(options.n, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([2.0, 0.5, 0.5]).sqrt()
    mu = ox.Particles(v.to(options.device))
    reference = runge_kutta(lambda nu: metric.descent(F, nu).field(nu.points), mu, 80)

    steps: list[tuple[str, Step, int]] = [
        ("Forward, tau = 1/2", ox.Forward(F, metric), 4),
        ("Forward, tau = 1/8", ox.Forward(F, metric), 16),
        ("Forward, tau = 1/32", ox.Forward(F, metric), 64),
        ("Midpoint, tau = 1/2", ox.Midpoint(F, metric), 4),
        ("Midpoint, tau = 1/8", ox.Midpoint(F, metric), 16),
        ("Midpoint, tau = 1/8, tol = 1e-4", ox.Midpoint(F, metric, tol=1e-4), 16),
        ("Adaptive Midpoint, tol = 1e-4", ox.Adaptive(ox.Midpoint(F, metric), 1e-4, order=2, first=0.1), 1),
    ]
    if find_spec("torchdiffeq"):
        steps += [(f"Integrate, rtol = {r:g}", ox.Integrate(F, metric, rtol=r, atol=r), 1) for r in (1e-3, 1e-6)]
    print(f"{options.n} particles on {options.device}")
    print(f"{'step':34} {'velocities':>10} {'seconds':>9} {'a velocity':>11} {'error':>9} {'energy drift':>13}")
    for name, step, n in steps:
        row(name, step, mu, n, reference)
    if not find_spec("torchdiffeq"):
        print("Integrate: torchdiffeq is not installed")


def row(name: str, step: Step, mu: ox.Particles, n: int, reference: torch.Tensor) -> None:
    counted, seconds, final = [0], float("inf"), mu
    for _ in range(2):
        counted[0] = 0
        begin = time.perf_counter()
        with counting(counted):
            final = ox.record(ox.flow(step, mu, [HORIZON * k / n for k in range(n + 1)])).final
        if mu.x.is_cuda:
            torch.cuda.synchronize()
        seconds = min(seconds, time.perf_counter() - begin)
    error = (final.x - reference).square().sum(-1).mean().sqrt().item()
    drift = abs(final.x.square().sum().item() / mu.x.square().sum().item() - 1)
    each = seconds / counted[0]
    print(f"{name:34} {counted[0]:10} {seconds:9.3f} {each:11.4f} {error:9.1e} {drift:13.1e}")


class counting:
    """Counts the velocities that are evaluated, by way of Landau.onsager."""

    def __init__(self, count: list[int]) -> None:
        self.count, self.original = count, ox.Landau.onsager

    def __enter__(self) -> None:
        def onsager(metric: ox.Landau, mu: ox.Measure, u: torch.Tensor) -> torch.Tensor:
            self.count[0] += 1
            return self.original(metric, mu, u)

        ox.Landau.onsager = onsager  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        ox.Landau.onsager = self.original  # type: ignore[method-assign]


def runge_kutta(slope: Callable[[ox.Particles], torch.Tensor], mu: ox.Particles, n: int) -> torch.Tensor:
    x, h = mu.x, HORIZON / n
    for _ in range(n):
        a = slope(mu.with_state(x=x))
        b = slope(mu.with_state(x=x + h / 2 * a))
        c = slope(mu.with_state(x=x + h / 2 * b))
        x = x + h / 6 * (a + 2 * b + 2 * c + slope(mu.with_state(x=x + h * c)))
    return x


if __name__ == "__main__":
    main()
