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
from otprox import exact, plot, solvers

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
print(solvers.explain(F, ox.Wasserstein(), mu0))
print()
print(solvers.explain(F, ox.Wasserstein(), mu0.to_particles(10, torch.Generator())))

# %%
# Five ways
# ---------
#
# 1. ``Bures``: the closed form on Gaussians.
# 2. ``Quantile``: Newton on 2,000 quantiles, the exact metric in one dimension.
# 3. ``Scaling``: entropic transport on a grid of 280 cells, in its three references.
# 4. ``Convex``: a convex program over 300 quantiles, by Clarabel.
# 5. ``Descent``: L-BFGS on 300 particles. Bare particles have no entropy, so it is taken at a width:
#    ``Blob(0.25)`` in place of ``Entropy()``.

quantiles = ox.Quantiles.of(mu0, 2000)
density = mu0.to_density(ox.Grid(-6.0, 8.0, 280))
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
# Where the errors come from
# --------------------------
#
# **Quantiles.** Newton and Clarabel solve the same problem, and find the same minimiser. Its inner quantiles are
# those of the exact step; what is missing is the tails. Equal weights at the levels :math:`(i+\tfrac12)/n` cut them, so
# that even the quantiles of the exact answer have too small a variance, by :math:`O(1/n)`.

for n in (2000, 300):
    ideal = ox.Quantiles.of(truth, n)
    step = ox.Backward(F)(ox.Quantiles.of(mu0, n), 0.0, tau).mu
    inner = (step.x - ideal.x)[n // 20 : -n // 20].abs().max().item()
    print(
        f"n = {n:4}: error {step.cov.item() - truth.cov.item():.1e}, of the exact quantiles "
        f"{ideal.cov.item() - truth.cov.item():.1e}; inner 90 % of the quantiles agree to {inner:.1e}"
    )
    if n == 300:
        gap = (step.x - results["Convex, 300 quantiles"].x).abs().max().item()
        print(f"Convex and Quantile, n = 300, differ by {gap:.0e}")

# %%
# **Scaling.** The Lebesgue reference of entropic transport widens the step, to first order in :math:`\varepsilon`; the
# product reference narrows it, by as much; the debiased divergence leaves an error of second order, and none at
# the fixed point. All three have closed forms. What remains is the grid: masses at the centres of cells of width
# :math:`h` start with a variance of :math:`h^2/12` too much, and a step from that variance ends where the solver does.

cells = ox.Gaussian(density.mean, density.cov)
print(f"variance of the start: + {density.cov.item() - mu0.cov.item():.2e}, h²/12 = {(14 / 280) ** 2 / 12:.2e}")
for reference in ("lebesgue", "product", "debiased"):
    way = results[f"Scaling, {reference}, reg 0.05"].cov.item()
    bias, half = (
        exact.gaussian.prox_kl_entropic(mu0, target, tau, reg, reference).cov.item() - truth.cov.item()
        for reg in (0.05, 0.025)
    )
    closed = exact.gaussian.prox_kl_entropic(cells, target, tau, 0.05, reference).cov.item()
    print(
        f"{reference:9}: closed form's error {bias:9.2e}, at half the reg {half:9.2e}; "
        f"on the grid's variance {closed:.6f}, by scaling {way:.6f}"
    )

# %%
# **Blob.** On a Gaussian of variance :math:`s`, the entropy seen at width :math:`w` pushes outwards with the force of
# the true one times :math:`s(s+2w^2)/(s+w^2)^2 < 1`: the blob makes the step narrower, slightly. Most of the error is
# again that of 300 equal weights, and goes away with more particles.

s, w2 = truth.cov.item(), 0.25**2
print(f"force at width 0.25: {s * (s + 2 * w2) / (s + w2) ** 2:.4f} of the true one")
for n in (150, 300, 600):
    out = ox.Backward(blob)(ox.Particles(ox.Quantiles.of(mu0, n).x), 0.0, tau)
    print(f"n = {n}: error {out.mu.cov.item() - truth.cov.item():.1e}")

# %%
# Densities
# ---------
#
# At this size no error can be seen on the density itself; on the right is the difference from the exact one.
# The entropic biases are of opposite sign, and the debiased step lies on zero.

fig, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
x = torch.linspace(-4, 5.5, 400)[:, None]
left.fill_between(x[:, 0], mu0.log_prob(x).exp(), color="0.9", label=r"$\mu_0$")
plot.density(results["Quantile, n = 2000"], left, cells=60, color="C0", lw=1, label="Quantile, n = 2000")
plot.density(results["Descent, 300 particles, blob"], left, cells=25, color="C1", lw=1, label="Descent, blob")
plot.density(truth, left, color="k", ls="--", lw=1, label="exact")
left.set(xlabel="x", ylabel="density", title=rf"One JKO step, $\tau = {tau}$", xlim=(-4, 5.5))
left.legend(fontsize=8, loc="upper left")
for k, reference in enumerate(("lebesgue", "product", "debiased")):
    d = results[f"Scaling, {reference}, reg 0.05"]
    right.plot(d.points, d.values - truth.to_density(d.grid).values, f"C{k + 2}", label=reference)
right.set(xlabel="x", ylabel="density, minus the exact one", title="Scaling, reg = 0.05", xlim=(-4, 5.5))
right.legend(fontsize=8)
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
