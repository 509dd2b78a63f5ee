"""Implicit W2 steps of densities that interact: what the interaction costs beside the step without it.

python tests/benchmarks/bench_self_consistent.py [--sizes 64 128] [--device cuda]

In the plane, one step of size 0.1 from two bumps, for internal energies of three kinds beside a Morse-like attraction
and repulsion: seconds and inner iterations of the step, those of the internal energy alone (`Kantorovich`), and the
residual relative to the distance moved (asked for: 1e-4).
gaussian: error of the covariance of one step of Entropy + ∬|x − y|²/4 between Gaussians, by its closed form.
march: 10 steps of chemotaxis, χ = 6π, each from the field of the step before; error of the virial, E|x|² + ΣW2² =
E|x₀|² + (4 − χ/2π)t, relative. One thread.
"""

from __future__ import annotations

import argparse
import math
import time

import torch

import otprox as ox
from otprox.exact.aggregation import chemotaxis_growth
from otprox.exact.gaussian import prox_kl

ENERGIES = {
    "entropy": 0.2 * ox.Entropy(),
    "porous medium": 0.2 * ox.PorousMedium(2.0),
    "crowd": ox.Congestion(0.6),
}


def morse(z: torch.Tensor) -> torch.Tensor:
    s = z.square().sum(-1)
    return 2 * torch.exp(-4 * s) - 1.5 * torch.exp(-s / 2)


def log(z: torch.Tensor) -> torch.Tensor:
    return z.norm(dim=-1).log()


def bumps(x: torch.Tensor) -> torch.Tensor:
    return torch.logaddexp(-2 * (x - 0.6).square().sum(-1), -1.5 * (x + 0.8).square().sum(-1))


def box(reach: float, n: int) -> ox.Grid:
    return ox.Grid((-reach,) * 2, (reach,) * 2, (n, n))


def timed(step: ox.Backward, mu: ox.Density, tau: float, last=None):
    def wait() -> None:
        if mu.values.is_cuda:
            torch.cuda.synchronize()

    wait()
    start = time.perf_counter()
    out = step(mu, 0.0, tau, last)
    wait()
    return out, time.perf_counter() - start


def interactions(sizes: list[int], like: torch.Tensor) -> None:
    print(f"{'energy':15s} {'cells':>6s} {'seconds':>8s} {'iter':>5s} {'alone':>8s} {'iter':>5s} {'residual':>9s}")
    tau = 0.1
    for n in sizes:
        mu = ox.Density.from_log_prob(bumps, box(4.0, n), like)
        for name, R in ENERGIES.items():
            out, seconds = timed(ox.Backward(R + ox.Interaction(morse)), mu, tau)
            alone, before = timed(ox.Backward(R), mu, tau)
            relative = out.stats.residual / out.stats.distance2.sqrt()
            print(
                f"{name:15s} {n:5d}² {seconds:8.2f} {out.stats.iterations.item():5d} {before:8.2f} "
                f"{alone.stats.iterations.item():5d} {relative.item():9.1e}"
            )


def gaussian(sizes: list[int], like: torch.Tensor) -> None:
    print(f"\n{'gaussian':>8s} {'seconds':>8s} {'error':>9s} {'order':>6s}")
    mu0, last = ox.Gaussian(like.new_tensor([0.4, -0.2]), torch.diag(like.new_tensor([0.5, 0.8]))), None
    want = prox_kl(mu0, ox.Gaussian(mu0.mean, torch.eye(2).to(like)), 0.3)
    step = ox.Backward(ox.Entropy() + 0.5 * ox.Interaction(lambda z: z.square().sum(-1)))
    for n in sizes:
        out, seconds = timed(step, mu0.to_density(box(5.5, n)), 0.3)
        error = (out.mu.cov - want.cov).abs().max().item()
        order = "-" if last is None else f"{math.log(last[1] / error) / math.log(n / last[0]):.2f}"
        last = n, error
        print(f"{n:6d}² {seconds:8.2f} {error:9.1e} {order:>6s}")


def march(sizes: list[int], like: torch.Tensor) -> None:
    print(f"\n{'march':>8s} {'seconds':>8s} {'iterations':>30s} {'virial':>9s}")
    chi, tau, steps = 6 * math.pi, 0.02, 10
    step = ox.Backward(ox.Entropy() + chi / (2 * math.pi) * ox.Interaction(log))
    for n in sizes:
        start = mu = ox.Density.from_log_prob(bumps, box(6.0, n), like)
        stats, seconds, counts, moved = None, 0.0, [], 0.0
        for _ in range(steps):
            (mu, stats), more = timed(step, mu, tau, stats)
            seconds, moved = seconds + more, moved + stats.distance2.item()
            counts.append(stats.iterations.item())
        grown = ((mu.masses - start.masses) @ start.grid.points(like).square().sum(-1)).item()
        virial = (grown + moved) / (steps * tau * chemotaxis_growth(chi)) - 1
        print(f"{n:6d}² {seconds:8.2f} {' '.join(map(str, counts)):>30s} {virial:9.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    like = torch.zeros((), dtype=torch.float64, device=args.device)
    interactions(args.sizes, like)
    gaussian(args.sizes, like)
    march(args.sizes, like)


if __name__ == "__main__":
    main()
