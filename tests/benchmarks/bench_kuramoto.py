"""Kuramoto–Daido: a step of n particles, a step of the mean-field equation, points of the phase diagram a second.

python tests/benchmarks/bench_kuramoto.py [--sizes 10000 100000 1000000] [--repeat 9]
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

import otprox as ox
from otprox.exact.kuramoto import Kuramoto

PERIOD = 2 * math.pi
K, M = 1.5, 0.5  # coupling and second harmonic


def seconds(call: Callable[[], object], repeat: int) -> tuple[float, float]:
    """Best wall time and best processor time of a call, after one that is not counted."""
    call()
    wall, processor = [], []
    for _ in range(repeat):
        start = time.perf_counter(), time.process_time()
        call()
        wall.append(time.perf_counter() - start[0])
        processor.append(time.process_time() - start[1])
    return min(wall), min(processor)


def numpy_step(x: np.ndarray, tau: float, rng: np.random.Generator) -> np.ndarray:
    """The same Euler–Maruyama step as one would write it in NumPy, in O(n) too."""
    drift = np.zeros_like(x)
    for k, a in ((1, 1.0), (2, M)):
        z = np.exp(1j * k * x).mean()
        drift -= K * a * k * np.abs(z) * np.sin(k * x - np.angle(z))
    return np.mod(x + tau * drift + math.sqrt(tau) * rng.standard_normal(len(x)), PERIOD)


def pair(z: Tensor) -> Tensor:
    """The same interaction as a plain callable, which goes over all pairs."""
    return -torch.cos(z[..., 0]) - M * torch.cos(2 * z[..., 0])


def particles(sizes: Sequence[int], repeat: int) -> None:
    print(f"one step of n particles, K = {K}, m = {M}: milliseconds, wall (processor)")
    print(f"{'n':>9}{'float64':>18}{'float32':>18}{'NumPy, O(n)':>18}{'all pairs':>14}")
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    step = ox.schemes.kuramoto(K, (1.0, M), generator=generator)
    for n in sizes:
        row = [f"{n:9d}"]
        for dtype in (torch.float64, torch.float32):
            x = PERIOD * torch.rand(n, 1, generator=generator, dtype=dtype)
            mu = ox.Particles(x, domain=ox.Torus(PERIOD))
            row.append(shown(seconds(partial(step, mu, 0.0, 0.01), repeat)))
        y = x[:, 0].double().numpy()
        row.append(shown(seconds(partial(numpy_step, y, 0.01, rng), repeat)))
        slow = ox.Forward(K * ox.Interaction(pair)) >> ox.Heat(0.5, generator=generator)
        dense = f"{1e3 * seconds(partial(slow, mu, 0.0, 0.01), 1)[0]:14.0f}" if n <= 10_000 else f"{'–':>14}"
        print("".join([*row, dense]), flush=True)


def shown(pair: tuple[float, float]) -> str:
    return f"{f'{1e3 * pair[0]:.2f} ({1e3 * pair[1]:.2f})':>18}"


def equation(repeat: int) -> None:
    print("\none step of PseudoSpectral: milliseconds, wall (processor)")
    for shape in ((32,), (256,), (4096,), (64, 64), (256, 256)):
        d = len(shape)
        grid = ox.Grid(0.0, (PERIOD,) * d if d > 1 else PERIOD, shape, periodic=True)
        theta = grid.points(torch.ones((), dtype=torch.float64))
        values = (1 + 0.5 * torch.cos(theta).mean(-1)).reshape(shape) / PERIOD**d
        W = ox.Interaction(lambda z: -torch.cos(z).sum(-1))
        step, mu = ox.PseudoSpectral(0.5 * ox.Entropy() + K * W), ox.Density(values, grid)
        print(f"{' × '.join(map(str, shape)):>12}{shown(seconds(partial(step, mu, 0.0, 1e-3), repeat))}")


def accuracy() -> None:
    """r(10) from (1 + 0.1 cos θ)/2π at K = 3/2, m = 0, against SciPy's integrators on the same 16 Fourier modes."""
    from scipy.integrate import solve_ivp

    print("\nthe order parameter at t = 10, 16 modes: error and milliseconds")
    grid = ox.Grid(0.0, PERIOD, 32, periodic=True)
    theta, h = grid.points(torch.ones((), dtype=torch.float64))[:, 0], grid.spacing[0]
    mu = ox.Density((1 + 0.1 * torch.cos(theta) * math.sin(h / 2) / (h / 2)) / PERIOD, grid)
    step = ox.PseudoSpectral(0.5 * ox.Entropy() + 1.5 * ox.Interaction(ox.kernels.Cosine([-1.0])))
    want = 0.471326640039
    for tau in (0.2, 0.1, 0.05, 0.025):
        start, n = time.perf_counter(), round(10 / tau)
        path = ox.flow(step, mu, [tau * k for k in range(n + 1)])
        r = ox.record(path, every=n, r=ox.observe.order()).series["r"][-1].item()
        print(f"{f'PseudoSpectral, tau = {tau:g}':>28}{abs(r - want):11.1e}{1e3 * (time.perf_counter() - start):9.1f}")
    k = np.arange(1, 17)

    def rate(_: float, c: np.ndarray) -> np.ndarray:
        """c_k = ∫cos kθ dq: c_k' = −k²c_k/2 + ¾k c_1(c_{k−1} − c_{k+1})."""
        around = np.concatenate([[1.0], c, [0.0]])
        return -(k**2) / 2 * c + 0.75 * k * c[0] * (around[:-2] - around[2:])

    first = np.where(k == 1, 0.05, 0.0)
    for method in ("RK45", "LSODA", "BDF"):
        for tolerance in (1e-6, 1e-9):
            start = time.perf_counter()
            r = solve_ivp(rate, (0, 10), first, method, rtol=tolerance, atol=tolerance * 1e-2).y[0, -1]
            name = f"SciPy {method}, rtol {tolerance:g}"
            print(f"{name:>28}{abs(r - want):11.1e}{1e3 * (time.perf_counter() - start):9.1f}")


def point(m: float, K: float) -> float:
    return Kuramoto(K, (1.0, m)).minimiser().r[0]


def phase_diagram() -> None:
    print("\nminimisers of the free energy over a grid of (m, K): points a second")
    axes = {"m": torch.linspace(0, 2, 25), "K": torch.linspace(0.5, 1.5, 24)}
    for workers in (1, 2):
        ox.sweep(point, {"m": [0.1], "K": [0.2, 0.3, 0.4]}, workers=workers)  # starts the processes
        start = time.perf_counter()
        table = ox.sweep(point, axes, workers=workers)
        print(f"{f'workers = {workers}':>28}{table.done.sum().item() / (time.perf_counter() - start):9.0f}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**4, 10**5, 10**6])
    parser.add_argument("--repeat", type=int, default=9)
    options = parser.parse_args(arguments)
    print(f"{torch.get_num_threads()} threads")
    particles(options.sizes, options.repeat)
    equation(options.repeat)
    accuracy()
    phase_diagram()


if __name__ == "__main__":
    main()
