"""Scores of BKW in the plane: seconds and error of every estimator, at one time and along the score-based flow.

python tests/benchmarks/bench_scores.py [--side 80] [--steps 20] [--repeat 3] [--device cpu]

The error is √(E|s − ∇log f|²/E|∇log f|²) against the exact score. "grid": side² particles at the centres of cells,
weighed by f; "samples": as many independent ones. The flow runs from t = 0 to 1 with Maxwell molecules; its seconds
are those of a step, split into the score and the collisions with the divergence, and "entropy" is the largest error of
the carried Σ w log f. Seconds are of the processor on the CPU, one core unless OMP_NUM_THREADS says otherwise.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor

import otprox as ox
from otprox import scores
from otprox.exact.landau import BKW

EXACT = BKW()


def on_a_grid(side: int, t: float, device: str) -> ox.Particles:
    x = EXACT.particles(ox.Grid((-4, -4), (4, 4), (side, side)), t, like=torch.empty(0, dtype=torch.float64)).x
    log_f = EXACT.log_density(x, t)
    return ox.Particles(x.to(device), torch.softmax(log_f, -1).to(device), log_f.to(device))


def samples(n: int, t: float, device: str) -> ox.Particles:
    """Independent: by rejection from N(0, 2I), under which f is at most five times the density for all t."""
    generator = torch.Generator().manual_seed(0)
    z = math.sqrt(2) * torch.randn(12 * n, 2, generator=generator, dtype=torch.float64)
    bound = 5 * torch.exp(-z.square().sum(-1) / 4) / (4 * math.pi)
    f = EXACT.density(z, t)
    assert (f <= bound).all()
    x = z[torch.rand(len(z), generator=generator, dtype=torch.float64) * bound < f][:n]
    assert len(x) == n
    return ox.Particles(x.to(device), log_density=EXACT.log_density(x, t).to(device))


def estimators(mu: ox.Particles, grid: bool) -> dict[str, scores.Estimator]:
    spacing = 8 / math.sqrt(len(mu.x))
    training = scores.Training(held_out=0.0) if grid else scores.Training()
    known = lambda v: EXACT.score(v, 0.0)  # noqa: E731
    seeded = lambda: torch.Generator().manual_seed(0)  # noqa: E731
    width = 1.5 * spacing if grid else None
    name = f"width {width:.2f}" if width else "rule"
    return {
        "GaussianFit()": scores.GaussianFit(),
        f"KDE, {name}, all pairs": scores.KDE(width, grid=False),
        f"KDE, {name}, nodes": scores.KDE(width, grid=True),
        "RandomFeatures()": scores.RandomFeatures(),
        "RandomFeatures(256)": scores.RandomFeatures(256),
        "Network" + ("(held_out=0)" if grid else "()"): scores.Network(
            initial=known, training=training, generator=seeded()
        ),
    }


def error(mu: ox.Particles, s: Tensor, t: float) -> float:
    exact = EXACT.score(mu.x, t)
    return math.sqrt(float(mu.w @ (s - exact).square().sum(-1) / (mu.w @ exact.square().sum(-1))))


def clocked(f: Callable[[], Any], device: str) -> tuple[float, Any]:
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    out = f()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - start, out


def at_one_time(make: Callable[[float], ox.Particles], grid: bool, repeat: int, device: str) -> None:
    t = 1.0
    mu = make(t)
    print(f"{'':32}{'seconds':>10}{'error':>10}   at t = {t:g}")
    for name, estimator in estimators(mu, grid).items():
        if isinstance(estimator, scores.Network):
            continue
        runs = [clocked(lambda e=estimator: e.fit(mu)(mu.x), device) for _ in range(repeat + 1)][1:]
        print(f"{name:32}{statistics.median(s for s, _ in runs):10.4f}{error(mu, runs[0][1], t):10.4f}", flush=True)


def along(mu: ox.Particles, estimator: scores.Estimator, steps: int, device: str) -> None:
    """Forward(Entropy(score=…), Landau(0)), written out so that the score and the collisions are timed apart."""
    metric, F, tau = ox.Landau(0.0, EXACT.strength), ox.Entropy(score=estimator), 1 / steps
    first, fitting, colliding, gaps, entropies, last = 0.0, [], [], [], [], None
    for k in range(steps):
        seconds, (seen, last) = clocked(lambda mu=mu, last=last: F.fitted(mu, last), device)
        more, s = clocked(lambda mu=mu, seen=seen: seen.gradient(mu), device)
        gaps.append(error(mu, s, k * tau))
        if k:
            fitting.append(seconds + more)
        else:
            first = seconds + more
        seconds, mu = clocked(lambda mu=mu, seen=seen: mu.move(metric.descent(seen, mu), tau), device)
        colliding.append(seconds)
        entropies.append(abs(float(mu.entropy()) - EXACT.entropy((k + 1) * tau)))
    size = f"{gaps[0]:9.3f}{gaps[steps // 2]:9.3f}{gaps[-1]:9.3f}{max(entropies):10.4f}"
    print(f"{first:8.2f}{statistics.median(fitting):9.3f}{statistics.median(colliding):9.3f}{size}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=80)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    makers: dict[str, Callable[[float], ox.Particles]] = {
        "grid": lambda t: on_a_grid(options.side, t, options.device),
        "samples": lambda t: samples(options.side**2, t, options.device),
    }
    for kind, make in makers.items():
        print(f"\n{options.side**2} particles, {kind}, {options.device}")
        at_one_time(make, kind == "grid", options.repeat, options.device)
        print(f"\n{'':32}{'first':>8}{'score':>9}{'collide':>9}{'t=0':>9}{'1/2':>9}{'1':>9}{'entropy':>10}")
        mu = make(0.0)
        for name, estimator in estimators(mu, kind == "grid").items():
            print(f"{name:32}", end="", flush=True)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                along(mu, estimator, options.steps, options.device)
            for message in {str(w.message) for w in caught}:
                print(f"    {message}")


if __name__ == "__main__":
    main()
