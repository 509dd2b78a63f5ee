"""
The double well
===============

A particle cloud released on the barrier of :math:`V(x) = (x^2-1)^2` falls into two wells and, more slowly, finds its
balance between them. The law follows the Fokker–Planck equation
:math:`\\partial_t\\rho = \\Delta\\rho + \\nabla\\cdot(\\rho\\nabla V)`, the Wasserstein gradient flow of
:math:`\\mathrm{KL}(\\cdot|e^{-V})`. Here it is followed by Langevin particles, by JKO steps on quantiles and by
entropic JKO steps on a grid, and compared with exact numbers.
"""

# %%
# Three schemes, one line each
# ----------------------------
#
# The start is a narrow Gaussian on top of the barrier, an unstable equilibrium of :math:`V`.

import matplotlib.pyplot as plt
import torch

import otprox as ox
from otprox import exact

torch.set_default_dtype(torch.float64)


def V(x):
    return (x.square() - 1).square().sum(-1)


start = ox.Gaussian([0.0], [[0.05**2]])
rng = torch.Generator().manual_seed(0)
grid = ox.Grid(-2.5, 2.5, 400)

langevin = ox.Forward(ox.Potential(V)) >> ox.Heat(generator=rng)
jko = ox.Backward(ox.KL(V))
entropic = ox.Backward(ox.KL(V), ox.Entropic(5e-3, "debiased"))

# %%
# Watching it fall
# ----------------
#
# The usual step of 0.005 for Langevin; ten times that for the implicit schemes, which do not need small steps for
# stability. The potential is :math:`\lambda`-convex with :math:`\lambda = -4`, so that a JKO step is a convex problem
# along geodesics for :math:`\tau < 1/4`; larger steps are refused.

density = ox.record(ox.flow(entropic, start.to_density(grid), [0.05 * k for k in range(11)])).final
moments = {
    "second": lambda tick: tick.after.expect(lambda x: x[..., 0] ** 2),
    "barrier": lambda tick: tick.after.expect(lambda x: (x[..., 0].abs() < 0.5).to(x.dtype)),
    "energy": ox.observe.energy(ox.KL(V)),
}
particles = ox.Particles(start.to_particles(20_000, rng).x)
few = {name: moments[name] for name in ("second", "barrier")}
runs = {
    "Langevin, 20,000 particles": ox.record(ox.flow(langevin, particles, [0.005 * k for k in range(1601)]), 10, **few),
    "JKO, 1,000 quantiles": ox.record(
        ox.flow(jko, ox.Quantiles.of(start, 1000), [0.05 * k for k in range(161)]), **moments
    ),
    "entropic JKO, 400 cells": ox.record(
        ox.flow(entropic, start.to_density(grid), [0.05 * k for k in range(161)]), **moments
    ),
}

try:
    jko(ox.Quantiles.of(start, 100), 0.0, 0.3)
except ValueError as error:
    print("tau = 0.3 is refused:", error)

# %%
# The exact values come from quadrature of :math:`e^{-V}`.

well = exact.diffusion.double_well()
fig, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
for name, run in runs.items():
    axes[0].plot(run.times, run.series["second"], label=name)
    axes[1].plot(run.times, run.series["barrier"], label=name)
axes[0].axhline(well.x2, color="k", ls=":", label="exact, stationary")
axes[1].axhline(well.barrier, color="k", ls=":")
axes[0].set(xlabel="time", title=r"$\mathbb{E}\,x^2$")
axes[1].set(xlabel="time", title=r"$P(|x| < 1/2)$")
axes[0].legend(fontsize=8)
plt.show()

# %%
# Densities on the way
# --------------------

fig, axes = plt.subplots(1, 4, figsize=(13, 3), layout="constrained", sharey=True)
x = torch.linspace(-2.2, 2.2, 300)[:, None]
stationary = torch.exp(-V(x)) / well.Z
for ax, steps in zip(axes, (2, 10, 30, 160), strict=True):
    times = [0.05 * k for k in range(steps + 1)]
    cloud = ox.record(ox.flow(langevin, particles, [0.005 * k for k in range(10 * steps + 1)])).final
    ax.hist(cloud.x[:, 0], bins=80, density=True, color="0.85", label="Langevin")
    d = ox.record(ox.flow(entropic, start.to_density(grid), times)).final
    ax.plot(d.points, d.values, "C2", label="entropic JKO")
    q = ox.record(ox.flow(jko, ox.Quantiles.of(start, 1000), times)).final.to_density(ox.Grid(-2.5, 2.5, 70))
    ax.plot(q.points, q.values, "C1", drawstyle="steps-mid", lw=1, label="JKO, quantiles")
    ax.plot(x, stationary, "k:", label="stationary")
    ax.set(xlabel="x", title=f"t = {times[-1]:g}")
axes[0].legend(fontsize=7)
plt.show()

# %%
# The free energy falls
# ---------------------
#
# Every JKO step lowers :math:`\mathrm{KL}(\mu|e^{-V})` (shown above its last value). Late in the run the decay is
# exponential: twice the spectral gap of the even part of the generator, as the start is symmetric.

fig, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
for name in ("JKO, 1,000 quantiles", "entropic JKO, 400 cells"):
    run = runs[name]
    floor = run.series["energy"][-1]
    ax.semilogy(run.times[:-1], run.series["energy"][:-1] - floor, label=name)
t = torch.linspace(0.2, 2.0, 50)
gap = well.spectrum(3)[2].item()
ax.semilogy(t, 0.6 * torch.exp(-2 * gap * t), "k:", label=rf"slope $-2\lambda_2 = -{2 * gap:.2f}$")
ax.set(xlabel="time", ylabel="free energy above its last value", ylim=(1e-9, 5))
ax.legend(fontsize=8)
plt.show()
