"""
Kuramoto–Daido: a phase diagram in a minute
===========================================

Rotators on a circle, each pulled by all others and kicked by noise,

.. math:: \\mathrm d\\theta_i = \\frac KN\\sum_{j=1}^N W'(\\theta_i-\\theta_j)\\,\\mathrm dt + \\mathrm dB_i, \\qquad
   W(\\theta) = \\cos\\theta + m\\cos 2\\theta,

order when the coupling :math:`K` is strong enough. For :math:`m = 0` this is Kuramoto's model; the second harmonic is
Daido's. As :math:`N\\to\\infty` the law follows :math:`\\partial_t q = \\tfrac12 q'' - K(q\\,(W*q)')'`, the
Wasserstein gradient flow of the free energy :math:`\\mathcal F(q) = \\tfrac12\\int q\\log q - \\tfrac K2\\iint
W(\\theta-\\varphi)\\,q(\\theta)q(\\varphi)`. Here its phase diagram is computed, and then watched:
on a grid, and with particles.
"""

# %%
# One number decides
# ------------------
#
# Stationary states of Kuramoto's model are :math:`q\propto e^{2Kr\cos\theta}` with :math:`r = \int\cos\theta\,\mathrm
# dq`. They are the critical points of a function of one variable, :math:`F_K(r) = Kr^2 - \log\tfrac1{2\pi}\int
# e^{2Kr\cos\theta}\mathrm d\theta`, whose value there is :math:`2(\mathcal F(q) - \mathcal F(1/2\pi))`.

import math

import matplotlib.pyplot as plt
import torch

import otprox as ox
from otprox.exact.kuramoto import Kuramoto, State, branch, hysteresis, second_transition, transition, triple_point

torch.set_default_dtype(torch.float64)

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
r = torch.linspace(0, 1, 200)
for k, K in enumerate((0.8, 1.0, 1.2, 1.5)):
    left.plot(r, Kuramoto(K).free_energy(r[:, None]), f"C{k}", label=f"K = {K:g}")
    state = Kuramoto(K).minimiser()
    left.plot(state.r[0], state.energy, f"C{k}o", ms=5)
left.set(xlabel="r", title=r"$F_K(r)$", ylim=(-0.2, 0.4))
left.legend(fontsize=8)
couplings = torch.linspace(0.5, 3.0, 126).tolist()
right.plot(couplings, [Kuramoto(K).minimiser().r[0] for K in couplings], "k")
right.plot(couplings, [math.sqrt(max(0, 2 * (K - 1))) for K in couplings], "C1:", label=r"$\sqrt{2(K-1)}$")
right.set(xlabel="K", title="r of the minimiser", ylim=(-0.03, 1))
right.legend(fontsize=8, loc="lower right")
plt.show()
print(f"K = 1.5: r = {state.r[0]:.12f}, 2(F - F_unif) = {state.energy:.12f}, spectral gap {state.gap:.10f}")

# %%
# Three ways to order
# -------------------
#
# With the second harmonic a state has two moments, :math:`r_1` and :math:`r_2`, and the transition may be a jump.
# Branches of stationary states are followed by arclength through their folds; a state is stable when the linearised
# operator, discretised by Fourier modes, has no positive eigenvalue.

fig, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained", sharey=True)


def draw(ax, curve, m, column, color, label):
    """A branch: solid where stable, dashed where not."""
    rows = curve.tolist()
    stable = torch.tensor([State(Kuramoto(K, (1.0, m)), tuple(moments)).stable for K, *moments in rows])
    for flag, style in ((True, "-"), (False, "--")):
        shown = torch.where(stable == flag, curve[:, column], math.nan)
        ax.plot(curve[:, 0], shown, color + style, lw=1.8, label=label if flag else None)


for ax, m in zip(axes, (0.25, 1.0, 1.5), strict=True):
    at, window = transition((1.0, m)), hysteresis((1.0, m))
    ordered = branch(Kuramoto(1.3, (1.0, m)).minimiser(), (0.4, 1.3), forward=False)
    draw(ax, ordered, m, 1, "C0", "$r_1$")
    draw(ax, ordered, m, 2, "C1", "$r_2$")
    if m > 1:
        nematic = State(Kuramoto(1.3, (1.0, m)), (0.0, Kuramoto(1.3 * m).minimiser().r[0]))
        draw(ax, branch(nematic, (0.4, 1.3), forward=False), m, 2, "C2", "$r_2$, nematic: $r_1 = 0$")
    ax.axvline(at.K, color="0.5", lw=0.8, ls=":")
    ax.plot([0.4, at.threshold], [0, 0], "k-", [at.threshold, 1.3], [0, 0], "k--", lw=1.8)
    if not at.continuous:
        ax.axvspan(*window, color="0.92")
    kind = "continuous" if at.continuous else "a jump"
    ax.set(xlabel="K", title=f"m = {m:g}: {kind} at $K_c$ = {at.K:.4f}", xlim=(0.4, 1.3), ylim=(-0.05, 1))

# %%
# In the grey window of the second panel both the uniform and an ordered state are stable. Raise :math:`K` slowly and
# the law stays uniform past :math:`K_c`, up to :math:`K_\# = 1`; lower it and the law stays ordered down to the fold.
# The triangles are the mean-field equation itself, solved on 32 cells while :math:`K` goes up and down, with 50 units
# of time at each value; a field of :math:`10^{-4}\cos\theta` stands for what fluctuations would do. Near the ends of
# the window everything is slow, and the triangles are late.

grid = ox.Grid(0.0, 2 * math.pi, 32, periodic=True)
uniform = ox.Density(torch.full((32,), 1 / (2 * math.pi)), grid)
nudge = ox.Potential(lambda x: -1e-4 * torch.cos(x[..., 0]))


def energy(K, m):
    return 0.5 * ox.Entropy() + K * ox.Interaction(ox.kernels.Cosine([-1.0, -m]))


mu, ramp = uniform, [0.8 + 0.02 * k for k in range(15)]
for K, marker in [(K, "^") for K in ramp] + [(K, "v") for K in ramp[::-1]]:
    run = ox.record(
        ox.flow(ox.PseudoSpectral(energy(K, 1.0) + nudge), mu, [0.5 * k for k in range(101)]),
        every=100,
        r1=ox.observe.order(),
    )
    mu = run.final
    axes[1].plot(K, run.series["r1"][-1], f"k{marker}", ms=4)
axes[0].legend(fontsize=8)
axes[1].plot([], [], "k^", ms=4, label="K raised")
axes[1].plot([], [], "kv", ms=4, label="K lowered")
axes[1].legend(fontsize=8, loc="upper left")
axes[2].legend(fontsize=8, loc="lower right")
plt.show()

# %%
# The phase diagram
# -----------------
#
# `sweep` computes the minimiser of the free energy at every point of a grid of parameters: over processes with
# `workers=`, and with `path=` it goes on where it was stopped. :math:`K_c(m)` itself is an infimum,
#
# .. math:: K_c = \inf_{x\ne0} \frac{x_1^2 + m x_2^2}{\log\frac1{2\pi}\int e^{2(x_1\cos\theta + m x_2\cos2\theta)}
#    \mathrm d\theta},
#
# which decides at once between a jump (attained) and a continuous transition (the limit at 0,
# :math:`K_\# = \min(1, 1/m)`).


def phase(m, K):
    state = Kuramoto(K, (1.0, m)).minimiser()
    return {"r1": state.r[0], "r2": state.r[1]}


table = ox.sweep(phase, {"m": torch.linspace(0, 2, 41), "K": torch.linspace(0.45, 1.25, 33)})
curve = torch.linspace(0, 2, 61)
transitions = [transition((1.0, m)) for m in curve.tolist()]
jumps = torch.tensor([not at.continuous for at in transitions])
K_c = torch.tensor([at.K for at in transitions])
windows = [
    hysteresis((1.0, m)) if jump else (math.nan, math.nan) for m, jump in zip(curve.tolist(), jumps, strict=True)
]
star = triple_point()
beyond = [1 / star.K + 0.001 + (2 - 1 / star.K) * k / 10 for k in range(11)]
second = [second_transition(m).K for m in beyond]
print(f"m_* = {1 / star.K:.14f}, where K = {star.K:.12f} and the ordered state has r1 = {star.r[0]:.10f}")

fig, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained", sharey=True)
for ax, name in zip(axes, ("r1", "r2"), strict=True):
    image = ax.pcolormesh(table["m"], table["K"], table[name], vmin=0, vmax=1, cmap="viridis", shading="nearest")
    ax.plot(curve, torch.where(jumps, math.nan, K_c), "w-", lw=1.5, label="$K_c$, continuous")
    ax.plot(curve, torch.where(jumps, K_c, math.nan), "r-", lw=1.5, label="$K_c$, a jump")
    ax.plot(curve, windows, "r:", lw=1.2, label=["ends of hysteresis", None])
    ax.plot(beyond, second, "C1-", lw=1.2, label="end of nematic order")
    ax.plot(1 / star.K, star.K, "wo", ms=6, mec="k", label=f"$m_* = {1 / star.K:.5f}$")
    ax.set(xlabel="m", title=f"${name[0]}_{name[1]}$ of the minimiser", xlim=(0, 2), ylim=(0.45, 1.25))
axes[0].set_ylabel("K")
axes[0].legend(fontsize=8, loc="lower left", facecolor="0.75")
fig.colorbar(image, ax=axes, shrink=0.9)
plt.show()

# %%
# Left of the red line order grows from nothing. Along it the uniform state jumps to one with both moments. At
# :math:`m_*` the line meets :math:`K = 1/m`: beyond, the uniform state first turns nematic, with two opposite clusters
# and :math:`r_1 = 0`, and a second transition to :math:`r_1 > 0` follows at a larger coupling, a jump at first and
# continuous for larger :math:`m`.
#
# Particles against the equation
# ------------------------------
#
# The same functional moves particles on `Torus(2π)`, through the Fourier modes of :math:`W` in :math:`O(N)`. Steps of
# `schemes.kuramoto`, drift and then noise, are first order in :math:`\tau`; half the noise, a midpoint drift, and half
# the noise are second order. From a weak wave at :math:`K = 3/2`, :math:`m = 0`:

F = energy(1.5, 0.0)
theta, h = grid.points(torch.ones(()))[:, 0], grid.spacing[0]
wave = ox.Density((1 + 0.1 * torch.cos(theta) * math.sin(h / 2) / (h / 2)) / (2 * math.pi), grid)
times = [0.1 * k for k in range(201)]
limit = ox.record(ox.flow(ox.PseudoSpectral(F), wave, times), r=ox.observe.order())
print("r(t) at t = 1, 2, 5, 10, 20:", *[f"{limit.series['r'][10 * t - 1].item():.8f}" for t in (1, 2, 5, 10, 20)])

rng = torch.Generator().manual_seed(0)
pull = 1.5 * ox.Interaction(ox.kernels.Cosine([-1.0]))
scheme = ox.Strang(ox.Heat(0.5, generator=rng), ox.Drift(lambda t, mu, x: -pull.gradient(mu, x), order=2))
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
for k, n in enumerate((100, 1_000, 100_000)):
    start = ox.Particles(wave.to_particles(n, rng).x, domain=ox.Torus(2 * math.pi))
    run = ox.record(ox.flow(scheme, start, times), r=ox.observe.order())
    left.plot(run.times, run.series["r"], f"C{k}", lw=1, label=f"{n:,} particles")
left.plot(limit.times, limit.series["r"], "k--", label="equation")
left.set(xlabel="time", title="order parameter", ylim=(0, 1))
left.legend(fontsize=8)
state = Kuramoto(1.5).minimiser()
right.semilogy(limit.times, (limit.series["r"] - state.r[0]).abs(), "k--", label="equation")
late = limit.times[120:]
slope = (limit.series["r"][-1] - state.r[0]).abs() * torch.exp(state.gap * (late[-1] - late))
right.semilogy(late, 2 * slope, "C3:", label=rf"slope $-{state.gap:.4f}$, the gap")
right.set(xlabel="time", title=r"$|r(t) - r(K)|$")
right.legend(fontsize=8)
plt.show()

# %%
# How far is a particle from the limit? Give each of :math:`N` particles a copy that starts at the same place, feels the
# same noise, and is driven by the law of the equation in place of the other particles: the mean square distance falls
# like :math:`1/N` (propagation of chaos).

pull = 0.8 * ox.Interaction(ox.kernels.Cosine([-1.0]))
law = ox.flow(ox.PseudoSpectral(pull + 0.5 * ox.Entropy()), wave, [0.05 * k for k in range(21)])
print(ox.chaos.rates(law, pull, 0.5, (20, 80, 320), replicas=1000))
