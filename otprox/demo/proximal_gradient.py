"""The experiment of "Wasserstein proximal gradient": N(10, 100) → N(0, 1) in d = 1 and d = 1000."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import exact, observe, schemes
from ..flow import Tick, Trajectory, flow, record
from ..functionals import KL, Entropy, Potential, Quadratic
from ..measures import Gaussian, Measure, Particles
from ..measures.distance import gelbrich_squared, w2_squared
from ..solvers import GaussianMap
from ..steps import Backward, Forward, Step
from .report import heading, save, say, table

STEPS = {1: 20, 1000: 10}
SHOWN = (1, 2, 5, 10, 20)
PARTICLES = 10_000


def run(folder: Path, progress: bool = True) -> None:
    """Print W2² per iteration beside the closed form and the bound, and draw it."""
    heading("1. Wasserstein proximal gradient: N(10, 100) → N(0, 1)")
    runs = {}
    for dim in STEPS:
        mu, target = product(10.0, 100.0, dim), product(0.0, 1.0, dim)
        floor = _sampling_floor(target)
        for tau in (0.1, 0.5):
            runs[dim, tau] = _compare(mu, target, tau, floor, progress)
    _other_schemes()
    save(_figure(runs), folder, "proximal_gradient.png")


def product(mean: float, variance: float, dim: int) -> Gaussian:
    """N(mean, variance) to the power dim."""
    ones = torch.ones(dim, dtype=torch.float64)
    return Gaussian(mean * ones, torch.diag(variance * ones))


def _compare(mu: Gaussian, target: Gaussian, tau: float, floor: float, progress: bool) -> dict[str, Tensor]:
    dim, V = mu.dim, Quadratic.of(target)
    times = [k * tau for k in range(STEPS[dim] + 1)]
    fb, jko, langevin = schemes.proximal_gradient(V), schemes.jko(target), schemes.langevin(V)
    series = {name: _w2(step, mu, target, times) for name, step in (("FB", fb), ("JKO", jko), ("Langevin", langevin))}
    cloud = Particles(mu.to_particles(PARTICLES, torch.Generator().manual_seed(0)).x)
    generator = torch.Generator().manual_seed(1)
    particle_fb = Forward(Potential(_half_square)) >> Backward(Entropy(), solver=GaussianMap())
    particle_langevin = schemes.langevin(_half_square, generator)
    for name, step in (("FB, particles", particle_fb), ("Langevin, particles", particle_langevin)):
        series[name] = _w2(step, cloud, target, times, progress and dim > 1)
    closed = _closed_form(tau, STEPS[dim]) * dim
    table(
        f"d = {dim}, tau = {tau}: W2² to the target (10⁴ exact samples of the target: {floor:.3g})",
        ["n", "bound", "FB closed form", "FB", "JKO", "Langevin", "FB, particles", "Langevin, particles"],
        [
            [n, 181.0 * dim * (1 - tau) ** n, closed[n - 1].item(), *(series[name][n - 1].item() for name in series)]
            for n in SHOWN
            if n <= STEPS[dim]
        ],
    )
    gap = ((series["FB"] - closed).abs() / closed).nan_to_num(0).max().item()
    stationary = gelbrich_squared(exact.gaussian.ula_stationary(target, tau), target).item()
    say(
        f"FB against its closed form: largest relative gap {gap:.1e}; Langevin's stationary bias, W2²: {stationary:.6g}"
        + ("" if dim == 1 else "; of particles, W2² here is its lower bound by mean and covariance")
    )
    return {**series, "bound": torch.tensor([181.0 * dim * (1 - tau) ** (n + 1) for n in range(STEPS[dim])])}


def _w2(step: Step, mu: Measure, target: Gaussian, times: list[float], progress: bool = False) -> Tensor:
    """W2² to the target after every step: exact, but for particles in d > 1 (the Gelbrich lower bound)."""
    distance = w2_squared if isinstance(mu, Gaussian) or mu.dim == 1 else gelbrich_squared
    return _sparse(flow(step, mu, times, progress), lambda tick: distance(tick.after, target))


def _sparse(path: Any, look: Callable[[Tick], Tensor]) -> Tensor:
    """`look` at the iterations that are shown or drawn, NaN elsewhere (distances in d = 1000 cost more than steps)."""
    nothing = torch.tensor(float("nan"), dtype=torch.float64)
    run = record(path, w2=lambda tick: look(tick) if path.mu.dim == 1 or tick.k + 1 in SHOWN else nothing)
    return run.series["w2"]


def _half_square(x: Tensor) -> Tensor:
    """½|x|², without the matrix of a Quadratic."""
    return 0.5 * x.square().sum(-1)


def _closed_form(tau: float, steps: int) -> Tensor:
    """W2² of forward-backward in one dimension, from the recursion of means and variances."""
    mu, target = product(10.0, 100.0, 1), product(0.0, 1.0, 1)
    values = []
    for _ in range(steps):
        mu = exact.gaussian.forward_backward(mu, target, tau)
        values.append(exact.gaussian.w2_squared(mu, target))
    return torch.stack(values)


def _sampling_floor(target: Gaussian) -> float:
    """W2² (d = 1) or its Gelbrich bound of exact samples of the target to the target."""
    sample = Particles(target.to_particles(PARTICLES, torch.Generator().manual_seed(2)).x)
    return (w2_squared if target.dim == 1 else gelbrich_squared)(sample, target).item()


def _other_schemes() -> None:
    """Forward on KL, unbiased too; and the descent lemma of forward-backward."""
    mu, target = product(10.0, 100.0, 1), product(0.0, 1.0, 1)
    rows = []
    for tau in (0.1, 0.5):
        times = [k * tau for k in range(101)]
        explicit = record(flow(schemes.forward_kl(target), mu, times), kl=observe.kl(target))
        fb = schemes.proximal_gradient(Quadratic.of(target))
        lemma = record(flow(fb, mu, times), slack=lambda tick: _descent_slack(tick, target), kl=observe.kl(target))
        rows.append([tau, *_ends(explicit), *_ends(lemma), lemma.series["slack"].min().item()])
    table(
        "KL after 1, 20 and 100 steps of the other unbiased scheme, and the descent lemma along forward-backward",
        ["tau", "forward KL: 1", "20", "100", "FB: 1", "20", "100", "least slack of the lemma"],
        rows,
    )


def _ends(run: Trajectory) -> list[float]:
    return [run.series["kl"][n - 1].item() for n in (1, 20, 100)]


def _descent_slack(tick: Tick, target: Gaussian) -> Tensor:
    """G(μ_n) − G(μ_{n+1}) − τ(1 − Lτ/2)·‖∇V + ∇H(μ_{n+1})∘X‖² ≥ 0 (Salim, Korba, Luise 2020), G = KL and L = 1.

    X = T∘(id − τ∇V) takes μ_n to μ_{n+1}, and ∇V + ∇H∘X = (id − X)/τ, where X is linear with slope √(σ'²/σ²) in 1-D.
    """
    tau, (before, after) = tick.t1 - tick.t0, (tick.before, tick.after)
    spread = (before.cov.sqrt() - after.cov.sqrt()).square()[..., 0, 0]
    moved = (before.mean - after.mean).square().sum(-1) + spread
    F = KL(target)
    return F(before) - F(after) - (1 - tau / 2) / tau * moved


def _figure(runs: dict[tuple[int, float], dict[str, Tensor]]) -> Any:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(runs), figsize=(4 * len(runs), 3.6), layout="constrained")
    styles = {
        "bound": "k:",
        "JKO": "C2.-",
        "Langevin": "C3.-",
        "Langevin, particles": "C3x",
        "FB": "C0.-",
        "FB, particles": "C0o",
    }
    for ax, ((dim, tau), series) in zip(axes, runs.items(), strict=True):
        for name, style in styles.items():
            n = torch.arange(1, len(series[name]) + 1)
            shown = series[name].isfinite()
            ax.semilogy(n[shown], series[name][shown] / dim, style, ms=5, mfc="none", label=name)
        lowest = min(values[values > 0].min().item() for values in series.values()) / dim
        ax.set(xlabel="iteration", title=f"d = {dim}, τ = {tau}", ylim=(10 ** math.floor(math.log10(lowest)), 300))
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.yaxis.set_minor_formatter("")
    axes[0].set_ylabel("W2² to the target, over d")
    axes[0].legend(fontsize=7)
    return figure
