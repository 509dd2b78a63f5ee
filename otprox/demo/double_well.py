"""A multimodal target in one dimension, V = (x² − 1)²: JKO by quantiles and by scaling, beside Langevin."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import exact, observe, plot, schemes
from ..flow import Observer, Tick, Trajectory, flow, record
from ..measures import Gaussian, Grid, Measure, Particles, Quantiles
from ..steps import Step
from .report import heading, save, say, table

HORIZON, TAU = 8.0, 0.05


def V(x: Tensor) -> Tensor:
    """(x² − 1)²."""
    return (x.square() - 1).square().sum(-1)


def run(folder: Path, progress: bool = True) -> None:
    """Print moments beside the exact ones, and draw the densities."""
    heading("3. A double well: V = (x² − 1)², started from N(0, 0.05²) on the barrier")
    runs = {name: (*_timed(step, mu, tau, progress), tau) for name, (step, mu, tau) in _methods().items()}
    truth = exact.diffusion.double_well()
    rows = [
        [name, tau, *(f"{trajectory.series[key][-1].item():.5f}" for key in _OBSERVERS), f"{seconds:.1f}"]
        for name, (trajectory, seconds, tau) in runs.items()
    ]
    rows.append(["exact", "–", *(f"{value:.5f}" for value in (truth.x2, truth.x4, truth.barrier)), "–"])
    table(f"moments at t = {HORIZON:g}", ["method", "tau", "E x²", "E x⁴", "P(|x| < ½)", "seconds"], rows)
    say(
        "10⁴ particles have a standard error of 0.006 on E x² and 0.004 on P(|x| < ½), beside Langevin's bias, of "
        "order tau; entropic JKO has a bias of order reg/tau, unless debiased"
    )
    save(_figure({name: trajectory for name, (trajectory, _, _) in runs.items()}), folder, "double_well.png")


def _methods() -> dict[str, tuple[Step, Measure, float]]:
    start = Gaussian(torch.zeros(1, dtype=torch.float64), torch.full((1, 1), 0.05**2, dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    cloud = Particles(start.to_particles(10_000, generator).x)
    return {
        "JKO by quantiles, n = 2000": (schemes.jko(V), Quantiles.of(start, 2000), TAU),
        "entropic JKO by scaling, 500 cells": (
            schemes.entropic_jko(V, 0.005),
            start.to_density(Grid(-2.5, 2.5, 500)),
            TAU,
        ),
        "debiased entropic JKO": (
            schemes.entropic_jko(V, 0.005, "debiased"),
            start.to_density(Grid(-2.5, 2.5, 500)),
            TAU,
        ),
        "Langevin, 10⁴ particles": (schemes.langevin(V, generator), cloud, TAU),
    }


def _moment(f: Callable[[Tensor], Tensor]) -> Callable[[Tick], Tensor]:
    return lambda tick: tick.after.expect(lambda x: f(x[..., 0]))


_OBSERVERS: dict[str, Observer] = {
    "x2": _moment(torch.square),
    "x4": _moment(lambda x: x**4),
    "barrier": _moment(lambda x: (x.abs() < 0.5).to(x.dtype)),
}


def _timed(step: Step, mu: Measure, tau: float, progress: bool) -> tuple[Trajectory, float]:
    begin = time.perf_counter()
    times = torch.linspace(0, HORIZON, round(HORIZON / tau) + 1, dtype=torch.float64)
    path = flow(step, mu, times.tolist(), progress)
    return record(path, 1, None, **_OBSERVERS, converged=observe.converged), time.perf_counter() - begin


def _figure(runs: dict[str, Trajectory]) -> Any:
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 3.8), layout="constrained")
    truth = exact.diffusion.double_well()
    x = torch.linspace(-2.3, 2.3, 400, dtype=torch.float64)
    left.plot(x, truth.density(x), "0.8", lw=5, label="exact")  # broad and pale, for most methods lie on it
    for k, (name, trajectory) in reversed(list(enumerate(runs.items()))):
        final, style = trajectory.final, {"color": f"C{k}", "lw": 1, "label": name}
        plot.density(final, left, cells=40 if isinstance(final, Particles) else 80, **style)
        right.plot(trajectory.times, trajectory.series["x2"], **style)
        if not isinstance(final, Particles):
            middle.plot(*_error(final, truth), **style)
    right.axhline(truth.x2, color="k", ls=":", label="exact, stationary")
    left.set(xlabel="x", title=f"Density at t = {HORIZON:g}", xlim=(-2.3, 2.3), ylim=(0, None))
    middle.set(xlabel="x", title="Computed less exact, without particles", xlim=(-2.3, 2.3))
    right.set(xlabel="time", title="E x²", ylim=(0, 0.9))
    right.legend(fontsize=8, loc="lower right")
    return figure


def _error(mu: Any, truth: Any) -> tuple[Tensor, Tensor]:
    """Cell centres, and the density on 100 cells less the average of the exact one over each."""
    grid = Grid(-2.5, 2.5, 100)
    x = grid.points(torch.zeros((), dtype=torch.float64))[:, 0]
    parts = (w * truth.density(x + z[0]) for z, w in grid.nodes(4, x))
    return x, mu.to_density(grid).values - torch.stack(list(parts)).sum(0)
