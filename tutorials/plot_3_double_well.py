"""
The double well
===============

A particle cloud released near the barrier of :math:`V(x) = (x^2-1)^2` falls into two wells and, more slowly, finds its
balance between them. The law follows the Fokker–Planck equation
:math:`\\partial_t\\rho = \\Delta\\rho + \\nabla\\cdot(\\rho\\nabla V)`, the Wasserstein gradient flow of
:math:`\\mathrm{KL}(\\cdot|e^{-V})`. Here it is followed by Langevin particles, by JKO steps on quantiles and by
entropic JKO steps on a grid, and compared with exact numbers.
"""

# %%
# Three schemes, one line each
# ----------------------------
#
# The start is a narrow Gaussian a little to the right of the barrier.

import math

import matplotlib.pyplot as plt
import torch

import otprox as ox
from otprox import exact, plot

torch.set_default_dtype(torch.float64)


def V(x):
    return (x.square() - 1).square().sum(-1)


start = ox.Gaussian([0.25], [[0.05**2]])
rng = torch.Generator().manual_seed(0)
grid = ox.Grid(-2.5, 2.5, 400)

langevin = ox.Forward(ox.Potential(V)) >> ox.Heat(generator=rng)
jko = ox.Backward(ox.KL(V))
entropic = ox.Backward(ox.KL(V), ox.Entropic(5e-3, "debiased"))

# %%
# Watching it fall
# ----------------
#
# The step of Langevin is 0.005, that of the implicit schemes ten times as long: they do not need small steps for
# stability. But :math:`V` is :math:`\lambda`-convex with :math:`\lambda = -4` only, and a JKO step is a convex problem
# along geodesics for :math:`\tau < 1/4`. A longer one is refused; the limit in the message is a little above that, as
# the solver looks at :math:`V''` only where this measure can be:

try:
    jko(ox.Quantiles.of(start, 100), 0.0, 0.3)
except ValueError as error:
    print("tau = 0.3:", error)

# %%
# An observer is a function of a tick; besides moments these keep the state itself.

moments = {
    "mean": ox.observe.mean,
    "second": lambda tick: tick.after.expect(lambda x: x[..., 0] ** 2),
}
energy = {"energy": ox.observe.energy(ox.KL(V))}
short, long = [0.005 * k for k in range(801)], [0.05 * k for k in range(81)]
particles = ox.Particles(start.to_particles(20_000, rng).x)
runs = {
    "Langevin, 20,000 particles": ox.record(
        ox.flow(langevin, particles, short), every=10, **moments, state=lambda tick: tick.after.x
    ),
    "JKO, 1,000 quantiles": ox.record(
        ox.flow(jko, ox.Quantiles.of(start, 1000), long), **moments, **energy, state=lambda tick: tick.after.x[:, 0]
    ),
    "entropic JKO, 400 cells": ox.record(
        ox.flow(entropic, start.to_density(grid), long), **moments, **energy, state=lambda tick: tick.after.values
    ),
}

# %%
# Two time scales are seen. The even part of the law, here :math:`\mathbb{E}\,x^2`, settles at the third eigenvalue
# :math:`\lambda_2` of :math:`-L = -\partial_{xx} + V'\partial_x`. The odd part, here the mean, waits for particles that
# cross the barrier, and decays at the second, :math:`\lambda_1`. The exact numbers come from quadrature of
# :math:`e^{-V}` and from the spectrum of the generator.

well = exact.diffusion.double_well()
slow, fast = well.spectrum(3)[1:].tolist()
print(f"eigenvalues: {slow:.4f} (odd), {fast:.4f} (even)")
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
for k, (name, run) in enumerate(runs.items()):
    style = {"color": f"C{k}", "ls": ("-", "-", "--")[k], "label": name}
    left.plot(run.times, run.series["second"], **style)
    right.semilogy(run.times, run.series["mean"][:, 0].abs(), **style)
left.axhline(well.x2, color="k", ls=":", label="exact, stationary")
t = torch.linspace(1.0, 4.0, 50)
right.semilogy(t, 0.8 * torch.exp(-slow * t), "k:", label=rf"slope $-\lambda_1 = -{slow:.3f}$")
left.set(xlabel="time", title="second moment", ylim=(0, 0.9))
right.set(xlabel="time", title="mean", ylim=(1e-2, 1))
left.legend(fontsize=8, loc="lower right")
right.legend(fontsize=8, loc="lower left")
plt.show()

print(f"second moment, averaged over 2 ≤ t ≤ 4; exact, stationary: {well.x2:.4f}")
for name, run in runs.items():
    print(f"{name:27}: {run.series['second'][run.times >= 2].mean().item():.4f}")
print(f"standard error of one time of the particles: {math.sqrt((well.x4 - well.x2**2) / 20_000):.4f}")

# %%
# The two implicit schemes agree with each other, and lag a little behind: a JKO step is an implicit Euler step, and
# :math:`\tau\lambda_2` is not small, so that the fast mode decays by :math:`(1+\tau\lambda_2)^{-1}` a step where the
# flow has :math:`e^{-\tau\lambda_2}`. Langevin scatters, by a standard error that shows late in the mean, and its
# explicit step leaves a bias of order :math:`\tau`; the stationary law of a JKO step has none.
#
# Densities on the way
# --------------------

fig, axes = plt.subplots(1, 4, figsize=(13, 3.2), layout="constrained", sharey=True)
x = torch.linspace(-2.2, 2.2, 300)
for ax, k in zip(axes, (1, 5, 15, 79), strict=True):
    cloud, quantiles, cells = (run.series["state"][k] for run in runs.values())
    ax.hist(cloud[:, 0], bins=44, range=(-2.2, 2.2), density=True, color="0.85", label="Langevin")
    plot.density(ox.Quantiles(quantiles), ax, cells=50, color="C1", lw=1, label="JKO, quantiles")
    plot.density(ox.Density(cells, grid), ax, color="C2", ls="--", label="entropic JKO")
    ax.plot(x, well.density(x), "k:", label="stationary")
    ax.set(xlabel="x", title=f"t = {long[k + 1]:g}", xlim=(-2.2, 2.2))
axes[0].set_ylabel("density")
axes[0].legend(fontsize=7)
plt.show()

# %%
# The free energy falls
# ---------------------
#
# Every JKO step lowers :math:`\mathrm{KL}(\mu|e^{-V}) = \mathrm{KL}(\mu|\pi) - \log Z`. Late in the run
# :math:`\mathrm{KL}(\mu|\pi)` decays by :math:`(1+\tau\lambda_1)^{-2}` a step, close to the
# :math:`e^{-2\lambda_1\tau}` of the flow. On quantiles it levels off at the error of their entropy, a sum over
# :math:`n-1` gaps that is :math:`O(1/n)` up to a logarithm; the quantiles themselves are more accurate than that.

fig, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
for k, name in enumerate(("JKO, 1,000 quantiles", "entropic JKO, 400 cells")):
    run = runs[name]
    kl = run.series["energy"] + math.log(well.Z)
    ax.semilogy(run.times, kl, color=f"C{k + 1}", ls=("-", "--")[k], label=name)
    print(f"{name}: falls at every step: {bool((run.series['energy'].diff() < 0).all())}; last KL {kl[-1].item():.1e}")
ax.semilogy(t, 0.3 * torch.exp(-2 * slow * t), "k:", label=rf"slope $-2\lambda_1 = -{2 * slow:.3f}$")
ax.set(xlabel="time", ylabel=r"$\mathrm{KL}(\mu|\pi)$")
ax.legend(fontsize=8)
plt.show()
