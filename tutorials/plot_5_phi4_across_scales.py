"""
φ⁴ across scales
================

The :math:`\\varphi^4` theory on a two-dimensional lattice has the action

.. math::
    S(\\varphi) = \\sum_x \\tfrac12 |\\nabla\\varphi|_x^2 + \\tfrac12 r\\,\\varphi_x^2 + \\tfrac14 g\\,\\varphi_x^4 .

For :math:`g = 1` it orders when :math:`r` falls below about −1.27 (Loinaz and Willey 1998): fields then take one of two
signs almost everywhere. This page looks at such fields scale by scale, downwards by the exact transitions of the
renormalised measure and upwards by the stochastic equation that makes a field from nothing, and compares the result
with a long Hamiltonian Monte Carlo run.
"""

# %%
# The theory, and fields of it
# ----------------------------
#
# The flow wants a Gaussian part, :math:`C_\infty^{-1} = -\Delta + 1`, and gives the rest of the mass term to
# :math:`V_0`, in which :math:`\mu = r - 1` may be negative. ``LongRun`` samples :math:`\nu_0`.

import math

import matplotlib.pyplot as plt
import torch

import otprox as ox
from otprox import polchinski
from otprox.polchinski import refinement, studies

torch.set_default_dtype(torch.float64)

lattice = ox.Lattice((32, 32))
like = torch.zeros(lattice.sites)
M = ox.Spectral(lattice.laplacian(like) + 1, lattice)
C = polchinski.HeatKernel(M)
kinetic = M + ox.Spectral(torch.full_like(like, -0.5), lattice)


def long_run(r, **sizes):
    """A Hamiltonian run of ν₀; its momenta turn all modes at about one speed."""
    return polchinski.LongRun(polchinski.Phi4(1.0, r - 1), M, kinetic, **sizes)


def show(ax, field, title, reach):
    ax.imshow(field.reshape(lattice.shape), cmap="RdBu_r", vmin=-reach, vmax=reach)
    ax.set(title=title, xticks=[], yticks=[])


masses = [-0.6, -1.25, -1.5]
rng = torch.Generator().manual_seed(3)
clouds = [long_run(r, chains=8, samples=40, burn=150).draw(rng, every=4) for r in masses]

# %%
# Downwards
# ---------
#
# ``Bridge`` carries a field from scale to scale, whatever the interaction. In units of the standard deviation that the
# Gaussian part has left, :math:`\sqrt{(D_t)_{xx}}`, the short wavelengths go and order stays.

scales = [0.0, 0.2, 1.0, 3.0]
fig, axes = plt.subplots(3, 4, figsize=(8.6, 6.8), layout="constrained")
for row, r, cloud in zip(axes, masses, clouds, strict=True):
    path = ox.flow(polchinski.Bridge(C, rng), ox.Particles(cloud.x[:1]), scales)
    for ax, t, mu in zip(row, scales, [path.mu, *(tick.after for tick in path)], strict=True):
        unit = C.remaining(t).diagonal()[0].sqrt()
        show(ax, mu.x[0] / unit, f"$t = {t:g}$", 3)
    row[0].set_ylabel(f"$r = {r}$")
plt.show()

# %%
# Upwards
# -------
#
# Backwards in scale a field grows from :math:`\varphi = 0`, by
# :math:`d\varphi = -\dot C_t\nabla V_t\,dt + \dot C_t^{1/2}dB`. ``Ascent`` does that in minus the scale.
# :math:`\nabla V_t(\varphi) = \mathbb{E}\,\nabla V_0(\varphi + \zeta)` is sampled at every step, by chains that resume
# where they stood. ``even`` lets them change sign as a whole, without which no chain would cross from one well to the
# other.

theory = studies.LatticePhi4(lattice, mass2=-1.5)
method = polchinski.Fluctuations(rng, chains=8, samples=8, burn=24, leaps=4, even=True)
ascent = polchinski.Ascent(polchinski.RenormalisedPotential(theory.V0, C, method), rng)
path = ox.flow(ascent, ox.Particles(torch.zeros(2, lattice.sites)), theory.times(40))
ticks = [(abs(tick.t1), tick.after.x) for tick in path]

fig, axes = plt.subplots(2, 5, figsize=(10.4, 4.6), layout="constrained")
for column, wanted in zip(axes.T, (4.0, 2.0, 1.0, 0.25, 0.0), strict=True):
    t, x = min(ticks, key=lambda pair: abs(pair[0] - wanted))
    unit = C.remaining(t).diagonal()[0].sqrt()
    for ax, field in zip(column, x, strict=True):
        show(ax, field / unit, f"$t = {t:.2g}$", 3)
fig.suptitle("Two fields of $r = -1.5$ from nothing", fontsize=10)
plt.show()

# %%
# Is it the same law?
# -------------------
#
# ``Study`` compares averages over fields made so with those of a long run. Here on :math:`8^2` sites and with few
# fields. The same on :math:`16^2` is ``tests/benchmarks/bench_polchinski_phi4.py``. A pull is a difference in units of
# both standard errors.

for r in (-0.9, -1.6):
    study = studies.Study(studies.LatticePhi4(ox.Lattice((8, 8)), r), particles=64, steps=30, samples=2, long=200)
    print(f"r = {r}\n{study.run(seed=0)}\n")

# %%
# Downwards by a JKO
# ------------------
#
# :math:`\nu_t` is a gradient flow too, of :math:`\frac12\mathrm{KL}(\cdot\,|\,N(0, D_t/2))` in the metric
# :math:`\dot C_t`. Its implicit steps need maps with a known Jacobian, as free particles would each stretch on their
# own. ``BlockSpins`` composes maps of Fourier modes, of single sites and of blocks of sites. ``ParticleJKO`` starts
# from fields of :math:`\nu_0`, extrapolates over two step sizes, and compares with the exact law at
# :math:`t = \frac12`. Maps of modes alone, which are linear, have the second moments right and the fourth too small: on
# :math:`16^2` and with more fields, as in the benchmark, by ten standard errors.

from otprox.solvers import BlockSpins

theory = studies.LatticePhi4(small := ox.Lattice((8, 8)), -0.9)
for name, sizes in (("modes, sites and blocks", None), ("modes alone", ())):
    study = studies.ParticleJKO(theory, BlockSpins(small, sizes), steps=3, chains=64, each=2, long=100)
    print(f"{name}\n{study.run(seed=0)}\n")

# %%
# Observables on both sides
# -------------------------
#
# The two-point function decays to nothing in one phase and to :math:`m^2` in the other. The constraint effective
# potential :math:`U(m)`, minus the logarithm of the density of the magnetisation per site, turns from one well into
# two. Error bars are by the jackknife over chains.

symbol = small.laplacian(torch.zeros(64))
levels = torch.linspace(-1.5, 1.5, 31)
fig, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
for r, cloud in zip(masses, clouds, strict=True):
    both = ox.Particles(torch.cat([cloud.x, -cloud.x]))  # the theory is even
    G = polchinski.TwoPoint(lattice)(both)
    distance, mean = polchinski.radial(G, lattice)
    axes[0].plot(distance, mean, ".-", ms=3, lw=0.8, label=f"r = {r}")
    run = polchinski.LongRun(
        polchinski.Phi4(1.0, r - 1), ox.Spectral(symbol + 1, small), ox.Spectral(symbol + 0.5, small), samples=400
    )
    sampled = run.draw(rng)
    U = polchinski.EffectivePotential(small, levels).estimate(
        ox.Particles(torch.stack([sampled.x, -sampled.x], 1).flatten(0, 1)), blocks=16
    )
    known = U.error < 0.05
    axes[1].errorbar(levels[known], U.value[known], U.error[known], fmt=".-", ms=4, lw=0.8, label=f"r = {r}")
axes[0].set(xlabel="distance", ylabel=r"$G$", title=r"two-point function, $32^2$")
axes[1].set(xlabel="m", title=r"effective potential $U(m)$, $8^2$", ylim=(-0.015, 0.13))
for ax in axes:
    ax.legend(fontsize=8)
plt.show()

# %%
# The mass must be renormalised
# -----------------------------
#
# On a torus of fixed length with fixed couplings, finer lattices do not converge: :math:`\mathbb{E}\,\varphi^2` grows
# as :math:`\log(1/a)/2\pi` with the spacing :math:`a`, which adds :math:`3g\,\mathbb{E}\,\varphi^2` to the mass squared
# and makes the susceptibility fall. With the counterterm :math:`-3gG(0)` in :math:`\mu`, that is with
# :math:`\frac14 g{:}\varphi^4{:}`, both :math:`\mathbb{E}\,{:}\varphi^2{:} = \mathbb{E}\,\varphi^2 - G(0)` and the
# susceptibility stay.

fig, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
counts = (4, 8, 16)
for wick, name in ((False, "bare"), (True, "with counterterm")):
    rows = refinement.phi4_spacings(counts, rng, wick=wick, samples=250)
    for ax, key in zip(axes, ("square", "susceptibility"), strict=True):
        seen = [getattr(row, key) for row in rows]
        shift = [row.free if wick and key == "square" else 0.0 for row in rows]
        values = [e.value.item() - s for e, s in zip(seen, shift, strict=True)]
        ax.errorbar([row.spacing for row in rows], values, [e.error.item() for e in seen], fmt="o-", ms=4, label=name)
grid = torch.tensor([row.spacing for row in rows])
axes[0].plot(grid, 0.215 - grid.log() / (2 * math.pi), "k:", label=r"$\log(1/a)/2\pi$ + constant")
axes[0].set(title=r"$\mathbb{E}\,\varphi^2$, and $\mathbb{E}\,{:}\varphi^2{:}$ with counterterm")
axes[1].set(title="susceptibility")
for ax in axes:
    ax.set(xlabel="spacing a", xscale="log")
    ax.set_xticks(grid, [f"{a:g}" for a in grid.tolist()])
    ax.minorticks_off()
    ax.legend(fontsize=8)
plt.show()
