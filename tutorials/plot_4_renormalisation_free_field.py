"""
Renormalisation as transport: the free field
============================================

A field theory on a lattice is a measure :math:`\\nu_0 \\propto e^{-V_0}\\,g_{C_\\infty}` on fields
:math:`\\varphi`: a Gaussian density :math:`g_{C_\\infty}` and an interaction. Renormalisation integrates the
fluctuations out, the shortest wavelengths first. Write :math:`C_\\infty = C_t + D_t` with :math:`C_t` growing from 0.
What is left at scale :math:`t` is the renormalised potential and measure

.. math::
    V_t(\\varphi) = -\\log \\mathbb{E}_{\\zeta \\sim N(0, C_t)}\\, e^{-V_0(\\varphi + \\zeta)}, \\qquad
    \\nu_t \\propto g_{D_t}\\, e^{-V_t}.

The path :math:`\\nu_t` is a gradient flow, as Cotler and Rezchikov (2023) found: of a functional
:math:`F_t` in a metric :math:`\\dot C_t`, which both move with the scale. So it is a scheme like any other here,
``Backward(Varying(F), Moving(C))``. Scales and the factors ½ are those of Bauerschmidt, Bodineau and Dagallier (2024).
"""

# %%
# A lattice, and matrices by their eigenvalues
# --------------------------------------------
#
# On a periodic lattice everything that does not single out a site is diagonal in Fourier modes. ``Spectral`` keeps the
# eigenvalues only, so that the covariance of a field on :math:`64 \times 64` sites takes 4096 numbers, not
# :math:`4096^2`.

import time

import matplotlib.pyplot as plt
import torch

import otprox as ox
from otprox import polchinski

torch.set_default_dtype(torch.float64)

lattice = ox.Lattice((64, 64))
M = ox.Spectral(lattice.laplacian(torch.zeros(lattice.sites)) + 0.01, lattice)  # −Δ + mass², mass = 0.1
C = polchinski.HeatKernel(M)  # C_t = ∫₀ᵗ e^{−sM} ds, and C_∞ = M⁻¹

# %%
# A free field has a quadratic interaction, here :math:`V_0 = \frac12 \cdot 0.03\,|\varphi|^2`: the mass of
# :math:`\nu_0` is :math:`\sqrt{0.01 + 0.03} = 0.2` and its correlation length 5 sites.

V0 = polchinski.FreeField(ox.Spectral(torch.full_like(M.values, 0.03), lattice))
V = polchinski.RenormalisedPotential(V0, C)


def law(t):
    """ν_t in closed form: precision D_t⁻¹ + A_t."""
    A_t = V0.renormalise(C(t)).A
    return ox.Gaussian(torch.zeros(lattice.sites), (C.remaining(t).inverse() + A_t).inverse())


nu0 = law(0.0)
xi = polchinski.CorrelationLength(lattice)
print(f"correlation length of ν₀: {xi(nu0).item():.6f}")

# %%
# What it looks like
# ------------------
#
# One field of :math:`\nu_0` carried through the scales by ``Bridge``, the exact transition of :math:`\nu`: a linear map
# and noise, :math:`\varphi_t = D_t D_s^{-1}\varphi_s + N(0,\, D_t - D_t D_s^{-1} D_t)`. It holds for any :math:`V_0`.
# The short wavelengths go, and the field that is left is smooth over a length :math:`\sqrt t` and small.

rng = torch.Generator().manual_seed(1)
scales = [0.0, 0.5, 4.0, 32.0, 128.0]
path = ox.flow(polchinski.Bridge(C, rng), ox.Particles(nu0.to_particles(1, rng).x), scales)
fields = [path.mu, *(tick.after for tick in path)]

fig, axes = plt.subplots(1, 5, figsize=(11, 2.9), layout="constrained")
for ax, t, mu in zip(axes, scales, fields, strict=True):
    image = mu.x.reshape(lattice.shape)
    reach = image.abs().max().item()
    ax.imshow(image, cmap="RdBu_r", vmin=-reach, vmax=reach)
    ax.set(title=f"$t = {t:g}$", xlabel=f"±{reach:.2g}", xticks=[], yticks=[])
fig.suptitle("One field at five scales (colours over the range below each)", fontsize=10)
plt.show()

# %%
# The flow as a JKO scheme
# ------------------------
#
# ``form_a`` is ``Backward(Varying(lambda t: 0.5 * KL(pi(t))), Moving(C))`` with :math:`\pi_t = N(0, D_t/2)`. A step in
# the metric :math:`\dot C` is a closed form mode by mode, on 4096 sites as on three.

step = polchinski.form_a(C)
step(nu0, 0.0, 0.1)
begin = time.perf_counter()
step(nu0, 0.0, 0.1)
print(f"a step on 4096 sites: {1000 * (time.perf_counter() - begin):.1f} ms")

# %%
# It converges to the exact law at first order, with the metric taken at the end of each step or averaged over it.


def worst(mu, t):
    """The largest relative error of the variance of a mode."""
    return (mu.cov.values / law(t).cov.values - 1).abs().max().item()


taus = [0.08, 0.04, 0.02, 0.01]
fig, ax = plt.subplots(figsize=(5.4, 3.6), layout="constrained")
for rule in ("end", "average"):
    errors = []
    for tau in taus:
        times = [tau * k for k in range(round(0.64 / tau) + 1)]
        errors.append(worst(ox.record(ox.flow(polchinski.form_a(C, rule=rule), nu0, times)).final, 0.64))
    ax.loglog(taus, errors, "o-", label=rf"$\dot C$: {rule}")
ax.loglog(taus, [2 * tau for tau in taus], "k:", label=r"slope 1")
ax.set(xlabel=r"step $\tau$", ylabel="largest relative error of a mode", title=r"$t = 0.64$, $64 \times 64$ sites")
ax.set_xticks(taus, [str(tau) for tau in taus])
ax.minorticks_off()
ax.legend(fontsize=8)
plt.show()

# %%
# Observables along the flow
# --------------------------
#
# They are values that take a measure or a ``Tick``, so ``record`` keeps them. To go far in scale we take another
# family, Pauli–Villars, whose :math:`D_t` decays as a power of :math:`t`, and steps that grow with :math:`t`.

far = polchinski.PauliVillars(M)
times = [0.0] + torch.logspace(-3, 4, 200).tolist()
run = ox.record(
    ox.flow(polchinski.form_a(far), nu0, times),
    square=lambda tick: polchinski.TwoPoint(lattice)(tick)[..., 0],
    chi=polchinski.Susceptibility(lattice),
    xi=xi,
)


def far_law(t):
    A_t = V0.renormalise(far(t)).A
    return ox.Gaussian(torch.zeros(lattice.sites), (far.remaining(t).inverse() + A_t).inverse())


exact = [far_law(t) for t in run.times]
fig, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
axes[0].loglog(run.times, run.series["square"], label="JKO, form A")
axes[0].loglog(run.times, [mu.cov.values.mean() for mu in exact], "k--", lw=1, label="exact")
axes[1].semilogx(run.times, run.series["chi"])
axes[1].semilogx(run.times, [mu.cov.values[0] for mu in exact], "k--", lw=1)
axes[2].semilogx(run.times, run.series["xi"])
axes[2].semilogx(run.times, [xi(mu) for mu in exact], "k--", lw=1)
for ax, name in zip(
    axes, (r"$\mathbb{E}\,\varphi_x^2$", r"susceptibility $\chi$", r"correlation length $\xi$"), strict=True
):
    ax.set(xlabel="scale t", title=name)
axes[0].legend(fontsize=8)
plt.show()

# %%
# There is no equilibrium: :math:`\nu_t` ends at :math:`\delta_0`, where every variance is zero. The susceptibility
# rises before it falls, as the interaction :math:`A_t` weakens sooner than :math:`D_t`, and the correlation length in
# units of the lattice grows: the longest wavelengths die last.

# %%
# To the continuum
# ----------------
#
# At a fixed distance the two-point function of the lattice converges to that of the continuum, here on a torus of
# length 4 with mass 1, at second order in the spacing; a finite torus costs an error :math:`e^{-\theta L}`.

from otprox.polchinski import refinement

fig, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for dim, counts in ((1, (8, 16, 32, 64)), (2, (16, 32, 64, 128)), (3, (8, 16, 32, 64))):
    fine = refinement.spacings(counts, dim)
    axes[0].loglog(fine.rungs, fine.errors, "o-", label=f"d = {dim}, order {fine.orders[-1]:.2f}")
    large = refinement.sizes((16, 20, 24, 28, 32, 36, 40), dim)
    axes[1].semilogy(large.rungs, large.errors, "o-", label=f"d = {dim}, rate {large.rates[-1]:.2f}")
axes[0].set(xlabel="spacing", ylabel="error of G(1)", title="spacing to zero")
axes[1].set(xlabel="length L", ylabel="error of G(½)", title="size to infinity")
axes[0].set_xticks([1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2], ["1/32", "1/16", "1/8", "1/4", "1/2"])
axes[0].minorticks_off()
for ax in axes:
    ax.legend(fontsize=8)
plt.show()
