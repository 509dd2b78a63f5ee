r"""
JKO or score? Large steps in the strong-collision regime
========================================================

The Landau equation is the flow of the entropy :math:`H(f)=\int f\log f` in the metric of collisions. Particles that
follow it need either the score :math:`\nabla\log f`, for an explicit step,

.. math::
    \dot v = -\int A(v-v_*)\bigl(\nabla\log f(v)-\nabla\log f(v_*)\bigr)f_*\,\mathrm dv_*,

or a minimisation, for an implicit one (Carrillo, Delgadino, Desvillettes, Wu 2024; Huang, Wang 2024):

.. math::
    \min_u\ \frac12\int_0^1\!\!\iint |u-u_*|^2_A\,f f_*\,\mathrm dv\,\mathrm dv_*\,\mathrm ds + 2\Delta t\,H(f_1),
    \qquad \dot v=\int A(v-v_*)(u-u_*)f_*\,\mathrm dv_*.

Both carry the density along: it falls by the determinant of the map, so the entropy is known without kernels. What does
the implicit step cost, and what does it buy? Everything here is judged by solutions in closed form.
"""

import time
import warnings

import matplotlib.pyplot as plt
import torch

import otprox as ox
from otprox import scores
from otprox.exact import landau
from otprox.solvers import CollisionFlow, Cosines, Hermite

torch.set_default_dtype(torch.float64)
warnings.simplefilter("ignore")  # steps far too large for a scheme are taken on purpose, and say so


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


# %%
# One step
# --------
#
# A cloud with temperatures 1.6 and 0.4 along its axes, Maxwell molecules, and collisions so strong that the anisotropy
# decays like :math:`e^{-8t}`. Without a solver named, ``Backward`` takes :class:`otprox.solvers.CollisionFlow`. Its
# :math:`u` is the gradient of a combination of a few features: with one free :math:`u` a particle the carried density
# could be made anything, and the step would have no minimiser.
#
# The particles held out take no part in the fit, and the step is accepted only when it lowers the
# objective on them too.

collisions = ox.Landau(gamma=0, strength=1.0)
cloud = ox.Gaussian([0.0, 0.0], torch.diag(torch.tensor([1.6, 0.4]))).to_particles(1000, rng())
jko = ox.Backward(ox.Entropy(), collisions)
out = jko(cloud, 0.0, 0.25)
print(out.stats)
print(f"decrease on the particles held out   {out.stats.warm['held_out'].item():.4f}")
print(f"entropy  {cloud.entropy().item():.4f} -> {out.mu.entropy().item():.4f}")
print(f"energy   {cloud.cov.trace().item():.12f} -> {out.mu.cov.trace().item():.12f}")

# %%
# The size of the step
# --------------------
#
# For Maxwell molecules the covariance of any :math:`f` is known. The explicit step with the score of the Gaussian fit
# is as good as it gets for this cloud, yet it leaves the sphere of constant energy along a tangent: it gains
# :math:`\tfrac12\Delta t^2\sum w|\dot v|^2`, and from :math:`4dC\,\Delta t=2` on it blows up. The midpoint rule
# keeps the energy, and is the most accurate while :math:`4dC\,\Delta t<2`; with longer steps it does not reach the
# equilibrium that it should be close to. The JKO step is first order, exact in momentum and energy, and goes the nearer
# to equilibrium the longer the step.

explicit = ox.Forward(ox.Entropy(score=scores.GaussianFit()), collisions)
midpoint = ox.Midpoint(ox.Entropy(score=scores.GaussianFit()), collisions)
implicit = ox.Backward(ox.Entropy(), collisions, CollisionFlow(Hermite(2)))
finer = ox.Backward(ox.Entropy(), collisions, CollisionFlow(Hermite(2), inner_steps=3))


def path(step, mu, tau, end):
    """The measures after each step."""
    times = [tau * k for k in range(round(end / tau) + 1)]
    return [mu] + [tick.after for tick in ox.flow(step, mu, times)]


def covariance_error(step, tau):
    want = [landau.covariance(cloud.cov, tau * k, strength=1.0) for k in range(round(1 / tau) + 1)]
    return max((nu.cov - P).abs().max().item() for nu, P in zip(path(step, cloud, tau, 1.0), want, strict=True))


print("largest error of the covariance up to t = 1")
print(f"{'4dC·dt':>8} {'explicit':>10} {'midpoint':>10} {'JKO':>10} {'JKO, 3 inner':>13}")
for tau in (1.0, 0.5, 0.25, 0.125, 0.0625):
    errors = [covariance_error(step, tau) for step in (explicit, midpoint, implicit, finer)]
    print(f"{8 * tau:8.2f} {errors[0]:10.2g} {errors[1]:10.3f} {errors[2]:10.3f} {errors[3]:13.3f}")

# %%
# A density that is no Gaussian
# -----------------------------
#
# The solution of Bobylev, Krook and Wu has covariance :math:`I` throughout, so that a Gaussian fit sees nothing. Its
# particles here are the nodes of a grid, weighed by the density, without those far out whose weight is negligible: no
# map may fold at any of them. Against it: scores by a kernel density estimate and by
# a network, the midpoint rule, which conserves energy and is second order, and the JKO step over polynomials and over
# random cosines.

exact = landau.BKW(2, 1.0, K0=0.6)
line = torch.linspace(-4.4, 4.4, 37)
x = torch.cartesian_prod(line, line)
w = exact.density(x, 0.0)
x, w = x[w > 1e-5 * w.max()], w[w > 1e-5 * w.max()]
start = ox.Particles(x, w / w.sum(), log_density=w.log())

KDE = ox.Entropy(score=scores.KDE(0.32))
NETWORK = ox.Entropy(score=scores.Network(initial=lambda x: exact.score(x, 0.0), generator=rng()))
schemes = {
    "score: kernel estimate": ox.Forward(KDE, collisions),
    "score: network": ox.Forward(NETWORK, collisions),
    "score: kernels, midpoint": ox.Midpoint(KDE, collisions),
    "JKO: polynomials": ox.Backward(ox.Entropy(), collisions, CollisionFlow(Hermite(4))),
    "JKO: random cosines": ox.Backward(ox.Entropy(), collisions, CollisionFlow(Cosines(80, 0.6))),
}
colours = dict(zip(schemes, ("C0", "C2", "C4", "C1", "C3"), strict=True))
steps = (1.0, 0.5, 0.25, 0.125)
paths = {}
for name, step in schemes.items():
    for tau in steps:
        try:
            paths[name, tau] = path(step, start, tau, 1.0)
        except ox.measures.base.StepTooLarge as refusal:
            print(f"{name}, dt = {tau}: {str(refusal).split(':')[0]}")

fig, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for name in schemes:
    done = [tau for tau in steps if (name, tau) in paths]
    ends = [paths[name, tau][-1] for tau in done]
    style = {"color": colours[name], "ms": 5, "marker": "s" if "JKO" in name else "o"}
    axes[0].loglog(done, [abs(nu.entropy().item() - exact.entropy(1.0)) for nu in ends], label=name, **style)
    energy = [abs(nu.cov.trace().item() - start.cov.trace().item()) + 1e-16 for nu in ends]
    axes[1].loglog(done, energy, **style)
whole = exact.entropy(0.0) - exact.entropy(1.0)
axes[0].axhline(whole, color="grey", ls=":", lw=1)
axes[0].text(0.3, 1.15 * whole, "all that there is to lose", color="grey", fontsize=8)
axes[0].set(ylabel="error", title="entropy at t = 1")
axes[1].set(ylabel="change", title="energy up to t = 1")
for ax in axes:
    ax.set_xlabel(r"step $\Delta t$")
    ax.set_xticks(steps, [f"{tau:g}" for tau in steps])
    ax.minorticks_off()
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)

# %%
# Below a relaxation time the midpoint rule over kernels is the most accurate here: particles as regular as these are
# what kernels like best. With strong collisions it is the other way round. The explicit schemes gain energy and make
# errors larger than all that the entropy had to lose; the fixed-point iteration of the midpoint rule finds nothing at
# :math:`\Delta t=1/2` and does not converge at 1. The JKO step conserves energy at any size, and over random cosines
# is off by a thousandth in the entropy after one step of two relaxation times. What limits it is the space of
# features: polynomials of degree 4 cannot follow this density, however small the step. The network, trained for a
# fraction of a second a step on some 900 nodes, is far from what a longer training on more particles gives.
#
# Entropy decay rate, density at the particles, time of the score
# ---------------------------------------------------------------
#
# The rate is the entropy lost over a step divided by its length, here with :math:`\Delta t = 1/8`, beside that of the
# closed form. The density is the carried one, at the particles, at the end.

tau = 0.125
shown = [name for name in schemes if "midpoint" not in name]
fig, axes = plt.subplots(1, 3, figsize=(11, 3.7), layout="constrained")
times = torch.arange(8) * tau
rate = torch.tensor([(exact.entropy(t) - exact.entropy(t + tau)) / tau for t in times.tolist()])
axes[0].semilogy(times + tau / 2, rate, "k", lw=3, alpha=0.3, label="closed form")
for name in shown:
    H = torch.stack([nu.entropy() for nu in paths[name, tau]])
    loss = -H.diff() / tau
    axes[0].semilogy(times[loss > 0] + tau / 2, loss[loss > 0], "o-", ms=4, color=colours[name], label=name)
axes[0].set(xlabel="t", title="entropy decay rate, $\\Delta t$ = 1/8")
axes[0].legend(fontsize=7)
radius = torch.linspace(0, 3, 200)
at = torch.stack([radius, 0 * radius], -1)
axes[1].plot(radius, exact.density(at, 0.0), "k:", lw=1, label="closed form, t = 0")
axes[1].plot(radius, exact.density(at, 1.0), "k", lw=3, alpha=0.3, label="closed form, t = 1")
for name in shown:
    nu = paths[name, tau][-1]
    axes[1].scatter(nu.x.norm(dim=-1), nu.log_density.exp(), s=2, color=colours[name])
axes[1].set(xlim=(0, 3), ylim=(0, 0.2), xlabel="|v|", title="density at the particles, t = 1")
axes[1].legend(fontsize=7)


def seconds(f):
    begin = time.process_time()
    f()
    return time.process_time() - begin


def clocks(mu):
    """Seconds for the score at all particles, or for u."""
    yield "score: Gaussian fit", "C7", seconds(lambda: scores.GaussianFit().fit(mu)(mu.x))
    yield "score: kernels, all pairs", "C0", seconds(lambda: scores.KDE(0.3, grid=False).fit(mu)(mu.x))
    yield "score: kernels, on a grid", "C9", seconds(lambda: scores.KDE(0.3, grid=True).fit(mu)(mu.x))
    yield "score: network, first fit", "C2", seconds(lambda: scores.Network(generator=rng()).fit(mu)(mu.x))
    for name in ("JKO: polynomials", "JKO: random cosines"):
        yield name, colours[name], seconds(lambda: schemes[name](mu, 0.0, 0.05))  # noqa: B023


sizes = (500, 1000, 2000, 4000)
rows = zip(*(clocks(start.to_particles(n, rng())) for n in sizes), strict=True)
for row in rows:
    name, colour, _ = row[0]
    axes[2].loglog(sizes, [entry[2] for entry in row], "s-" if "JKO" in name else "o-", ms=4, color=colour, label=name)
axes[2].set_xticks(sizes, [str(n) for n in sizes])
axes[2].minorticks_off()
axes[2].set(xlabel="particles", ylabel="seconds, one core", title="time of the score, or of u")
axes[2].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))

# %%
# What to take
# ------------
#
# - Weak collisions, small steps: a score. The kernel estimate where particles fill space evenly, the Gaussian fit where
#   the density stays near a Gaussian, a network where neither does and there are particles and time to train it.
# - The same with a step of second order that conserves energy: :class:`otprox.Midpoint`, while its iteration converges.
# - Strong collisions, steps as long as a relaxation time or longer: the JKO step. Over random cosines it costs more
#   than ten evaluations of kernels on a grid; over polynomials a few. It keeps momentum and energy, and the
#   entropy of the particles does not rise.
# - For independent particles rather than nodes of a grid, what limits every method is their noise. There the particles
#   held out are what tells signal from noise, and a refused step, with its warning, is the honest answer.
