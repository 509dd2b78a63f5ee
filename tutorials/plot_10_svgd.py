"""
Stein variational gradient descent on Gaussian, mixture and banana
==================================================================

Take the gradient flow of :math:`\\mathrm{KL}(\\mu|\\pi)`, :math:`\\pi \\propto e^{-V}`, but let every particle feel the
force at all others through a kernel :math:`k`:

.. math::
    \\partial_t\\mu =
    \\operatorname{div}\\Bigl(\\mu \\int k(\\cdot, y)\\,\\nabla\\log\\frac{\\mu}{\\pi}(y)\\,d\\mu(y)\\Bigr).

The smoothing allows an integration by parts, after which the unknown score :math:`\\nabla\\log\\mu` is gone:

.. math::
    \\dot x_i = \\frac1N \\sum_{j=1}^N \\bigl[-k(x_i, x_j)\\,\\nabla V(x_j) + \\nabla_y k(x_i, x_j)\\bigr].

This is Stein variational gradient descent (Liu and Wang, 2016): deterministic, needing no more than :math:`\\nabla V`.
In otprox it is a metric, ``Stein(k)``, and everything else stays as it was.
"""

# %%
# Three pictures
# --------------
#
# A correlated Gaussian, a mixture of three, and a banana, each from the same 150 particles. ``Adagrad`` is ``Forward``
# with the step sizes of practice: each coordinate moves by about :math:`\tau` a step, whatever the scale of :math:`V`;
# here :math:`\tau` shrinks towards the end. Grey lines are the paths of every tenth particle.

import math

import matplotlib.pyplot as plt
import torch

import otprox as ox
from otprox import exact, plot
from otprox.kernels import RBF, Bilinear

torch.set_default_dtype(torch.float64)


def mixture(x):
    centres = x.new_tensor([[-2.0, 0.0], [1.0, 1.8], [1.0, -1.8]])
    squares = (x[..., None, :] - centres).square().sum(-1)
    return -torch.logsumexp(-squares / (2 * 0.4**2), -1)


def banana(x):
    return x[..., 0] ** 2 / 4 + 2 * (x[..., 1] - x[..., 0] ** 2 / 3 + 1) ** 2


targets = {
    "Gaussian": ox.Quadratic([0.5, 0.0], cov=[[1.5, -0.9], [-0.9, 1.0]]),
    "mixture": mixture,
    "banana": banana,
}
rng = torch.Generator().manual_seed(0)
start = ox.Particles(0.5 * torch.randn(150, 2, generator=rng))
sizes = 0.05 / (1 + (torch.arange(300) / 100) ** 2)
times = [0.0, *sizes.cumsum(0).tolist()]

fig, axes = plt.subplots(1, 3, figsize=(11, 3.8), layout="constrained", sharey=True)
grid = ox.Grid((-4.0, -3.5), (4.0, 3.5), (160, 140))
discrepancies = {}
for ax, (name, V) in zip(axes, targets.items(), strict=True):
    step = ox.Adagrad(ox.KL(V), ox.Stein(RBF(0.5)))
    path = ox.flow(step, start, times)
    run = ox.record(path, every=10, ksd=ox.observe.ksd(V, RBF(1.0)), x=lambda tick: tick.after.x)
    plot.density(ox.Density.from_log_prob(lambda x, V=V: -V(x), grid), ax, cmap="Blues")
    trace = torch.cat([start.x[None], run.series["x"]])[:, ::10]
    ax.plot(*trace.permute(2, 0, 1).numpy(), color="0.5", lw=0.6)
    ax.scatter(*run.final.x.T.numpy(), s=7, color="C3", zorder=3)
    ax.set(title=name, xlabel="$x_1$")
    discrepancies[name] = run.series["ksd"]
axes[0].set_ylabel("$x_2$")
plt.show()

# %%
# How good are they? The squared length of the velocity, in the metric's own norm, is the *kernel Stein discrepancy*,
#
# .. math:: D^2(\mu|\pi) = \iint \Bigl\langle\nabla\log\frac\mu\pi(x),\,k(x,y)\,\nabla\log\frac\mu\pi(y)\Bigr\rangle
#           d\mu(x)\,d\mu(y) = -\frac{d}{dt}\mathrm{KL}(\mu_t|\pi),
#
# computable without the normalisation of :math:`\pi`. 150 independent samples have one of order :math:`150^{-1/2}`;
# particles that know of each other do better. It sees the shape of the modes rather than their weights: more of the
# mixture's particles are in the mode on the left than the third that belongs there.

exact_samples = ox.Gaussian([0.5, 0.0], [[1.5, -0.9], [-0.9, 1.0]]).to_particles(150, rng)
noise = ox.observe.ksd(targets["Gaussian"], RBF(1.0))(ox.Tick(0, 0.0, 1.0, exact_samples, exact_samples, None))
fig, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
for name, values in discrepancies.items():
    ax.semilogy(range(10, 301, 10), values, label=name)
ax.axhline(noise.item(), color="k", ls=":", label="150 independent samples of the Gaussian")
ax.set(xlabel="step", ylabel="kernel Stein discrepancy")
ax.legend(fontsize=8)
plt.show()

# %%
# The mean-field limit
# --------------------
#
# As :math:`N \to \infty` the particles follow the equation at the top of this page. The same composition runs it on a
# grid: the measure is a ``Density``, and the convolutions are done by FFT. No sampling is left, so that the identity
# :math:`\frac{d}{dt}\mathrm{KL} = -D^2` can be seen to hold.

V = targets["mixture"]
kernel = RBF(0.5)
svgd = ox.Forward(ox.KL(V), ox.Stein(kernel))
law = ox.Gaussian([0.0, 0.0], 0.25 * torch.eye(2))
grid = ox.Grid((-4.0, -3.5), (3.5, 3.5), (60, 56))
target = ox.Density.from_log_prob(lambda x: -V(x), grid)
infimum = ox.KL(V)(target)
clock = [0.01 * k for k in range(401)]
path = ox.flow(svgd, law.to_density(grid), clock)
run = ox.record(path, every=10, kl=ox.observe.energy(ox.KL(V)), rate=ox.observe.dissipation(ox.KL(V), ox.Stein(kernel)))
kl = run.series["kl"] - infimum
cloud = ox.record(ox.flow(svgd, ox.Particles(law.to_particles(400, rng).x), clock), every=400).final

fig, (left, middle, right) = plt.subplots(1, 3, figsize=(11.5, 3.6), layout="constrained")
for ax, mu, title in ((left, run.final, "density at $t = 4$, 400 particles"), (middle, target, "target")):
    plot.density(mu, ax, cmap="Blues", interpolation="bilinear")
    ax.set(title=title, xlim=(-3.5, 3), ylim=(-3.2, 3.2))
left.scatter(*cloud.x.T.numpy(), s=4, color="C3")
slope = -(kl[2:] - kl[:-2]) / 0.2
right.semilogy(run.times, kl, label="KL")
right.semilogy(run.times, run.series["rate"], label="$D^2$")
right.semilogy(run.times[1:-1], slope, "k:", label="$-d$KL$/dt$ by differences")
right.set(xlabel="$t$", ylim=(1e-2, None))
right.legend(fontsize=8)
plt.show()
gap = (slope / run.series["rate"][1:-1] - 1).abs()
print(f"largest relative gap between D² and −dKL/dt: {gap.max():.3f}")

# %%
# Exact for finitely many particles
# ---------------------------------
#
# With :math:`k(x, y) = x^\top y + 1` and a Gaussian target, mean and covariance of *any* finite set of particles obey a
# closed system of equations, the same as those of a Gaussian. Six particles:

pi = ox.Gaussian([0.5, 0.25], [[1.0, -0.4], [-0.4, 0.8]])
stein = ox.Stein(Bilinear())
six = ox.Particles(torch.randn(6, 2, generator=rng))
rk4 = ox.Drift(lambda t, mu, x: stein.descent(ox.KL(pi), mu).field(x), order=4)
end = ox.record(ox.flow(rk4, six, [k / 100 for k in range(101)])).final
law = exact.svgd.bilinear_flow(ox.Gaussian.fit(six), pi, 1.0)
print(
    f"|mean − exact| = {(end.mean - law.mean).abs().max():.1e}, |cov − exact| = {(end.cov - law.cov).abs().max():.1e}"
)

# %%
# Where do particles rest?
# ------------------------
#
# With a radial kernel the answer depends on its width :math:`h`. For two particles and the target :math:`N(0, 1)`,
# :math:`x^2 = \frac{h^2}{2}\log(1 + 2/h^2)`. As :math:`h \to 0` each particle goes its own way to the mode, at speed
# :math:`1/N`; as :math:`h` grows, moments of low degree are all that is matched. (Of five particles the inner three
# coalesce above :math:`h = 1.9`.) In many dimensions a number of particles that is not larger by far understates the
# variance, here with the width that the median rule tends to.

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.5), layout="constrained")
widths = torch.logspace(-1, 1, 60)
pair = [exact.svgd.rbf_equilibrium(2, h).square().mean() for h in widths.tolist()]
left.semilogx(widths, pair, label="2 particles")
for n, h_max in ((3, 10.0), (5, 1.8)):
    several = [h for h in widths[::3].tolist() if 0.3 < h < h_max]
    at_rest = [exact.svgd.rbf_equilibrium(n, h).square().mean() for h in several]
    left.semilogx(several, at_rest, "o-", ms=3, label=f"{n} particles")
left.axhline(1, color="k", lw=0.8, ls=":")
left.set(xlabel="width $h$", ylabel="variance at rest", title="target N(0, 1)")
left.legend(fontsize=8)

dims = (1, 2, 4, 8, 16)
for n, color in ((20, "C3"), (100, "C4")):
    variances = []
    for d in dims:
        standard = ox.Gaussian(torch.zeros(d), torch.eye(d))
        step = ox.Adagrad(ox.KL(standard), ox.Stein(RBF(math.sqrt(d / math.log(n)))), decay=1.0)
        cloud = ox.Particles(standard.to_particles(n, rng).x)
        final = ox.record(ox.flow(step, cloud, [0.3 * k for k in range(201)]), every=200).final
        variances.append(final.cov.diagonal().mean())
    right.semilogx(dims, variances, "o-", color=color, ms=4, base=2, label=f"{n} particles")
right.axhline(1, color="k", lw=0.8, ls=":")
right.set(xlabel="dimension $d$", ylabel="mean variance at rest", ylim=(0, 1.1))
right.set(title="target N(0, I), $h^2 = d/\\log n$", xticks=dims, xticklabels=dims)
right.legend(fontsize=8)
plt.show()
