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

fig, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained", sharey=True)
for ax, tau in zip(axes, (0.1, 0.5), strict=True):
    times = [k * tau for k in range(41)]
    for name, scheme in {"forward-backward": fb, "JKO": jko, "Langevin": langevin}.items():
        run = ox.record(ox.flow(scheme, start, times), w2=ox.observe.w2(target))
        ax.semilogy(run.series["w2"] ** 2, label=name)
    bound = 181 * (1 - tau) ** torch.arange(1, 41)
    ax.semilogy(bound, "k:", label=r"$(1-\tau\lambda)^n\,W_2^2(\mu_0,\pi)$")
    ax.set(xlabel="iteration", title=rf"$\tau = {tau}$", ylim=(1e-13, 1e3))
axes[0].set_ylabel(r"$W_2^2(\mu_n, \pi)$")
axes[0].legend(fontsize=8)
plt.show()

# %%
# Langevin stops at a distance from the target that depends on :math:`\tau`: its stationary variance is
# :math:`1/(1-\tau/2)`. The others go on. At the fixed point the mean of forward-backward contracts by
# :math:`1-\tau` a step and its variance by :math:`(1-\tau)/(1+\tau)`, so that :math:`W_2^2` contracts asymptotically by
# :math:`(1-\tau)^2`, better than the bound.

for tau in (0.1, 0.5):
    end = ox.record(ox.flow(langevin, start, [k * tau for k in range(400)])).final
    print(f"tau = {tau}: Langevin's variance {end.cov.item():.9f}, closed form {1 / (1 - tau / 2):.9f}")

# %%
# The inequality behind the theorem
# ---------------------------------
#
# The rate follows from an evolution variational inequality, one step at a time:
#
# .. math:: W_2^2(\mu_{n+1},\pi) \le (1-\tau\lambda)\,W_2^2(\mu_n,\pi) - 2\tau\,(\mathrm{KL}(\mu_{n+1}|\pi) - 0).
#
# ``observe.forward_backward_gap`` measures its slack along a run. We take covariances that do not commute, where no
# eigenvector is shared by anything, and the largest step the theorem allows.

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
ax.semilogy(run.series["slack"], label="slack of the inequality")
ax.semilogy(run.series["kl"], label=r"$\mathrm{KL}(\mu_n|\pi)$")
ax.semilogy(run.series["rounding"], "k:", label="what rounding allows")
ax.set(xlabel="iteration", title=rf"Non-commuting covariances, $\tau = 0.9/L = {tau:.3f}$")
ax.legend(fontsize=8)
plt.show()
print("smallest slack:", f"{run.series['slack'].min().item():.2e}")

# %%
# Particles
# ---------
#
# The paper runs particles through the affine map of the Gaussian step. ``GaussianMap`` does that: it fits a Gaussian,
# takes its proximal step, and moves every particle by the optimal map. Random numbers are drawn once, for the start.

rng = torch.Generator().manual_seed(0)
cloud = ox.Particles(start.to_particles(10_000, rng).x)
particle_fb = ox.Forward(ox.Potential(V)) >> ox.Backward(ox.Entropy(), solver=ox.solvers.GaussianMap())
particle_langevin = ox.Forward(ox.Potential(V)) >> ox.Heat(generator=rng)

fig, axes = plt.subplots(1, 3, figsize=(11, 3), layout="constrained", sharey=True)
x = torch.linspace(-40, 40, 400)
for ax, n in zip(axes, (1, 4, 20), strict=True):
    times = [0.5 * k for k in range(n + 1)]
    for name, scheme in {"forward-backward": particle_fb, "Langevin": particle_langevin}.items():
        final = ox.record(ox.flow(scheme, cloud, times)).final
        ax.hist(final.x[:, 0], bins=80, density=True, histtype="step", label=name)
    law = ox.record(ox.flow(fb, start, times)).final
    width = 4 * law.cov.sqrt().item()
    line = torch.linspace(law.mean.item() - width, law.mean.item() + width, 200)[:, None]
    ax.plot(line, law.log_prob(line).exp(), "k--", lw=1, label="law of forward-backward")
    ax.set(title=f"after {n} steps of 0.5", yscale="log", ylim=(1e-4, 1))
axes[0].legend(fontsize=7)
plt.show()

# %%
# When the potential is not quadratic
# -----------------------------------
#
# Nothing in the composition changes. On Gaussians, ``Forward`` becomes the Bures–Wasserstein gradient step, which needs
# :math:`\mathbb{E}\,\nabla V` and :math:`\mathbb{E}\,\nabla^2 V` under the current Gaussian, by Gauss–Hermite in low
# dimension. The scheme then finds the Gaussian nearest to :math:`e^{-V}` in KL.

quartic = ox.Potential(lambda x: (x**4).sum(-1) / 4 + x.sum(-1))
scheme = ox.Forward(quartic) >> ox.Backward(ox.Entropy())
run = ox.record(
    ox.flow(scheme, ox.Gaussian([2.0], [[0.5]]), [0.05 * k for k in range(101)]),
    energy=ox.observe.energy(quartic + ox.Entropy()),
    mean=ox.observe.mean,
)
run.plot("energy", "mean")
plt.show()
