"""
One JKO step, five ways
=======================

One Jordan–Kinderlehrer–Otto step for the Fokker–Planck equation,

.. math::
    \\mu_1 = \\operatorname*{argmin}_\\nu\\ \\mathrm{KL}(\\nu|\\pi) + \\frac{1}{2\\tau} W_2^2(\\nu, \\mu_0),

computed by five solvers in four representations of :math:`\\mu_0`, and compared with the closed form.
"""

# %%
# The problem
# -----------
#
# From :math:`N(1, 1.7)` towards :math:`\pi = N(0, 0.6)` with :math:`\tau = 0.3`. For Gaussians the step is known
# exactly, also when covariances do not commute.

import time

import matplotlib.pyplot as plt
import torch

import otprox as ox
from otprox import exact, solvers

torch.set_default_dtype(torch.float64)

tau, mu0, target = 0.3, ox.Gaussian([1.0], [[1.7]]), ox.Gaussian([0.0], [[0.6]])
truth = exact.gaussian.prox_kl(mu0, target, tau)
print(f"exact: mean {truth.mean.item():.6f}, variance {truth.cov.item():.6f}")

# %%
# Which solver would be used?
# ---------------------------
#
# ``Backward`` asks ``choose``, which takes the first solver that supports the triple of functional, metric and measure.
# ``explain`` says why.

F = ox.KL(target)
grid = ox.Grid(-5.0, 6.0, 220)
print(solvers.explain(F, ox.Wasserstein(), mu0))
print()
print(solvers.explain(F, ox.Wasserstein(), mu0.to_particles(10, torch.Generator())))

# %%
# Five ways
# ---------
#
# 1. ``Bures``: the closed form on Gaussians.
# 2. ``Quantile``: Newton on 2,000 quantiles, the exact metric in one dimension.
# 3. ``Scaling``: entropic transport on a grid of 220 cells, in its three references.
# 4. ``Convex``: a convex program over the quantiles, by Clarabel.
# 5. ``Descent``: L-BFGS on 300 particles. Bare particles have no entropy, so it sees it at a width:
#    ``Blob(0.25)`` in place of ``Entropy()``.

quantiles = ox.Quantiles.of(mu0, 2000)
density = mu0.to_density(grid)
few = ox.Quantiles.of(mu0, 300)
cloud = ox.Particles(few.x)
blob = ox.Potential(ox.Quadratic.of(target)) + ox.Blob(0.25)

ways = {
    "Bures": (ox.Backward(F), mu0),
    "Quantile, n = 2000": (ox.Backward(F), quantiles),
    "Scaling, lebesgue, reg 0.05": (ox.Backward(F, ox.Entropic(0.05)), density),
    "Scaling, product, reg 0.05": (ox.Backward(F, ox.Entropic(0.05, "product")), density),
    "Scaling, debiased, reg 0.05": (ox.Backward(F, ox.Entropic(0.05, "debiased")), density),
    "Convex, 300 quantiles": (ox.Backward(F, solver=solvers.Convex()), few),
    "Descent, 300 particles, blob": (ox.Backward(blob), cloud),
}

results = {}
print(f"{'way':30} {'mean':>10} {'variance':>10} {'error':>9} {'iterations':>10} {'ms':>7}")
for name, (step, mu) in ways.items():
    begin = time.perf_counter()
    out = step(mu, 0.0, tau)
    elapsed = 1e3 * (time.perf_counter() - begin)
    results[name] = out.mu
    variance = out.mu.cov.item()
    print(
        f"{name:30} {out.mu.mean.item():10.6f} {variance:10.6f} {variance - truth.cov.item():9.1e} "
        f"{out.stats.iterations.item():10d} {elapsed:7.1f}"
    )

# %%
# Each error has its own cause. Quantiles leave out half a gap at either end, an :math:`O(1/n)` of the variance. The
# Lebesgue reference of entropic transport widens the step by about :math:`\varepsilon/2` times a factor, the product
# reference narrows it, and the debiased divergence has no bias at the fixed point (but some along the way). The blob
# adds its own width to the particles. All but the last are predicted by closed forms:

for reference in ("lebesgue", "product", "debiased"):
    entropic = exact.gaussian.prox_kl_entropic(mu0, target, tau, 0.05, reference)
    print(f"{reference:9}: closed form {entropic.cov.item():.6f}")

# %%
# Densities
# ---------

fig, ax = plt.subplots(figsize=(8, 4), layout="constrained")
x = torch.linspace(-4, 5, 400)[:, None]
ax.fill_between(x[:, 0], mu0.log_prob(x).exp(), color="0.9", label=r"$\mu_0$")
ax.plot(x, truth.log_prob(x).exp(), "k--", label="exact")
coarse = ox.Grid(-4.0, 5.0, 60)
for name in ("Quantile, n = 2000", "Convex, 300 quantiles", "Descent, 300 particles, blob"):
    d = results[name].to_density(coarse)
    ax.plot(d.points, d.values, drawstyle="steps-mid", lw=1, label=name)
for reference in ("lebesgue", "product", "debiased"):
    d = results[f"Scaling, {reference}, reg 0.05"]
    ax.plot(d.points, d.values, lw=1, label=f"Scaling, {reference}")
ax.set(xlabel="x", title=rf"One JKO step, $\tau = {tau}$")
ax.legend(fontsize=7)
plt.show()

# %%
# The energy inequality
# ---------------------
#
# A minimiser does at least as well as staying put: :math:`F(\mu_1) + W_2^2(\mu_1,\mu_0)/2\tau \le F(\mu_0)`. For
# several step sizes, the slack by the closed form and by quantiles:

for step_size in (0.03, 0.3, 3.0):
    for mu in (mu0, quantiles):
        out = ox.Backward(F)(mu, 0.0, step_size)
        slack = F(mu) - out.stats.objective
        print(f"tau = {step_size}: {type(mu).__name__:9} slack {slack.item():.6f}")
