"""
Wasserstein proximal gradient
=============================

Sampling from :math:`\\pi \\propto e^{-V}` is the minimisation of
:math:`\\mathrm{KL}(\\mu|\\pi) = \\int V\\,d\\mu + \\int \\log\\mu\\,d\\mu` over measures: a smooth term plus a
non-smooth one. In :math:`\\mathbb{R}^d` one would take a gradient step on the first and a proximal step on the second.
Salim, Korba and Luise (2020, *The Wasserstein proximal gradient algorithm*), after Wibisono (2018), do the same in
Wasserstein space:

.. math::
    \\nu_{n+1} = (\\mathrm{id} - \\tau\\nabla V)_\\#\\,\\mu_n, \\qquad
    \\mu_{n+1} = \\operatorname*{argmin}_\\mu \\int \\log\\mu\\,d\\mu + \\frac{1}{2\\tau} W_2^2(\\mu, \\nu_{n+1}).

This page composes the scheme, runs the experiment of the paper, and checks its numbers and its theorem.
"""

# %%
# A scheme is a chain of steps
# ----------------------------
#
# ``Forward`` is the gradient step, ``Backward`` the proximal one, and ``>>`` runs one after the other. Langevin differs
# in one word: it replaces the proximal step on the entropy by the exact heat flow.

import matplotlib.pyplot as plt
import torch

import otprox as ox
from otprox import exact, plot

torch.set_default_dtype(torch.float64)

target = ox.Gaussian([0.0], [[1.0]])
start = ox.Gaussian([10.0], [[100.0]])
V = ox.Quadratic.of(target)

fb = ox.Forward(ox.Potential(V)) >> ox.Backward(ox.Entropy())
jko = ox.Backward(ox.KL(target))
langevin = ox.Forward(ox.Potential(V)) >> ox.Heat()

# %%
# On Gaussians every step is a closed form, so what follows has no sampling error.
#
# Rates and bias
# --------------
#
# With :math:`V` :math:`\lambda`-convex and :math:`L`-smooth and :math:`\tau < 1/L`, the paper proves
# :math:`W_2^2(\mu_n, \pi) \le (1 - \tau\lambda)^n\, W_2^2(\mu_0, \pi)`. Here :math:`\lambda = L = 1`.

schemes = {"JKO": (jko, "C2"), "Langevin": (langevin, "C3"), "forward-backward": (fb, "C0")}
first = exact.gaussian.w2_squared(start, target).item()  # 181
fig, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained", sharey=True)
for ax, (tau, steps) in zip(axes, {0.1: 150, 0.5: 30}.items(), strict=True):
    for name, (scheme, color) in schemes.items():
        times = [k * tau for k in range(steps + 1)]
        run = ox.record(ox.flow(scheme, start, times), w2=ox.observe.w2(target))
        ax.semilogy(range(1, steps + 1), run.series["w2"] ** 2, color, label=name)
    n = torch.arange(steps + 1)
    ax.semilogy(n, first * (1 - tau) ** n, "k:", label=r"bound $(1-\tau\lambda)^n\,W_2^2(\mu_0,\pi)$")
    ax.set(xlabel="iteration", title=rf"$\tau = {tau}$", ylim=(1e-13, 1e3))
axes[0].set_ylabel(r"$W_2^2(\mu_n, \pi)$")
axes[0].legend(fontsize=8)
plt.show()

# %%
# Langevin stops at a distance from the target that depends on :math:`\tau`: its stationary variance is
# :math:`1/(1-\tau/2)`. The others go on. Near the target the mean of forward-backward contracts by :math:`1-\tau` a
# step and the distance of its variance from 1 by :math:`(1-\tau)/(1+\tau)`, so that :math:`W_2^2` contracts by
# :math:`(1-\tau)^2`, faster than the bound. The implicit step of JKO contracts less, by :math:`(1+\tau)^{-2}`.

for tau in (0.1, 0.5):
    times = [k * tau for k in range(41)]
    w2 = ox.record(ox.flow(fb, start, times), w2=ox.observe.w2(target)).series["w2"]
    print(f"tau = {tau}: last ratio of W2² {(w2[-1] / w2[-2]) ** 2:.6f}, (1 - tau)² = {(1 - tau) ** 2:.6f}")
    end = ox.record(ox.flow(langevin, start, [k * tau for k in range(400)])).final
    print(f"           Langevin's variance {end.cov.item():.9f}, closed form {1 / (1 - tau / 2):.9f}")

# %%
# The inequality behind the theorem
# ---------------------------------
#
# The rate follows from an evolution variational inequality, one step at a time:
#
# .. math:: W_2^2(\mu_{n+1},\pi) \le (1-\tau\lambda)\,W_2^2(\mu_n,\pi) - 2\tau\,(\mathrm{KL}(\mu_{n+1}|\pi) - 0).
#
# ``observe.forward_backward_gap`` measures its slack along a run. We take covariances that do not commute, so that
# nothing decouples into one-dimensional problems, and a step close to the largest that the theorem allows. The slack is
# positive down to where the distances themselves are rounding (``observe.rounding``).

S0 = torch.tensor([[2.0, 0.6, -0.3], [0.6, 1.0, 0.2], [-0.3, 0.2, 0.5]])
Q = torch.tensor([[1.0, -0.4, 0.1], [-0.4, 0.8, 0.3], [0.1, 0.3, 1.5]])
mu0, pi = ox.Gaussian([1.0, -2.0, 0.5], S0), ox.Gaussian([0.5, 0.25, -1.0], Q)
curvature = torch.linalg.eigvalsh(torch.linalg.inv(Q))
lam, tau = curvature[0].item(), 0.9 / curvature[-1].item()

step = ox.Forward(ox.Potential(ox.Quadratic.of(pi))) >> ox.Backward(ox.Entropy())
run = ox.record(
    ox.flow(step, mu0, [k * tau for k in range(61)]),
    slack=ox.observe.forward_backward_gap(ox.KL(pi), pi, convexity=lam),
    kl=ox.observe.kl(pi),
    rounding=ox.observe.rounding,
)
fig, ax = plt.subplots(figsize=(6, 3.4), layout="constrained")
n = torch.arange(1, 61)
ax.semilogy(n, run.series["slack"], label="slack of the inequality")
ax.semilogy(n, run.series["kl"], label=r"$\mathrm{KL}(\mu_n|\pi)$")
ax.semilogy(n, run.series["rounding"], "k:", label="what rounding allows")
ax.set(xlabel="iteration", title=rf"Non-commuting covariances, $\tau = 0.9/L = {tau:.3f}$")
ax.legend(fontsize=8)
plt.show()
print("holds at every step, up to rounding:", bool((run.series["slack"] > -run.series["rounding"]).all()))

# %%
# Particles
# ---------
#
# The paper runs particles through the affine map of the Gaussian step. ``GaussianMap`` does that: it fits a Gaussian,
# takes its proximal step, and moves every particle by the optimal map. It draws random numbers once, for the start;
# Langevin draws them at every step, and its tails stay too wide.

rng = torch.Generator().manual_seed(0)
cloud = ox.Particles(start.to_particles(10_000, rng).x)
particle_fb = ox.Forward(ox.Potential(V)) >> ox.Backward(ox.Entropy(), solver=ox.solvers.GaussianMap())
particle_langevin = ox.Forward(ox.Potential(V)) >> ox.Heat(generator=rng)

fig, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained", sharey=True)
for ax, n in zip(axes, (1, 4, 20), strict=True):
    times = [0.5 * k for k in range(n + 1)]
    law = ox.record(ox.flow(fb, start, times)).final
    reach = 4.5 * law.cov.sqrt().item()
    for name, scheme in {"Langevin": particle_langevin, "forward-backward": particle_fb}.items():
        final = ox.record(ox.flow(scheme, cloud, times)).final
        bins = torch.linspace(law.mean.item() - reach, law.mean.item() + reach, 41)
        ax.hist(final.x[:, 0], bins=bins, density=True, histtype="step", color=schemes[name][1], label=name)
    plot.density(law, ax, color="k", ls="--", lw=1, label="law of forward-backward")
    ax.set(xlabel="x", title=f"n = {n}", yscale="log", ylim=(3e-4, 1))
axes[0].set_ylabel("density")
axes[0].legend(fontsize=7, loc="upper left")
plt.show()

# %%
# When the potential is not quadratic
# -----------------------------------
#
# Nothing in the composition changes. On Gaussians, ``Forward`` becomes the Bures–Wasserstein gradient step, which needs
# :math:`\mathbb{E}\,\nabla V` and :math:`\mathbb{E}\,\nabla^2 V` under the current Gaussian, by Gauss–Hermite in low
# dimension. The scheme then finds the Gaussian nearest to :math:`e^{-V}` in KL, which is not :math:`e^{-V}` itself.
# Here :math:`V(x) = x^4/4 + x`, and at the optimum :math:`\mathbb{E}\,\nabla V = 0` and
# :math:`\mathbb{E}\,\nabla^2 V = \Sigma^{-1}`.

quartic = ox.Potential(lambda x: (x**4).sum(-1) / 4 + x.sum(-1))
scheme = ox.Forward(quartic) >> ox.Backward(ox.Entropy())
run = ox.record(
    ox.flow(scheme, ox.Gaussian([2.0], [[0.5]]), [0.05 * k for k in range(101)]),
    energy=ox.observe.energy(quartic + ox.Entropy()),
    mean=ox.observe.mean,
)
run.plot("energy", "mean")
plt.show()
m, s = run.final.mean.item(), run.final.cov.item()
print(f"E V' = m³ + 3mΣ + 1 = {m**3 + 3 * m * s + 1:.4f};  Σ·E V'' = 3Σ(m² + Σ) = {3 * s * (m * m + s):.4f}")
