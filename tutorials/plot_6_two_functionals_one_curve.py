"""
Two functionals, one curve
==========================

The renormalised measure :math:`\\nu_t \\propto g_{D_t} e^{-V_t}` of a field theory solves

.. math::
    \\partial_t \\nu = \\operatorname{div}\\big(\\nu\\,\\dot C_t \\nabla \\tfrac{\\delta F_t}{\\delta\\nu}\\big)

for two functionals that have little in common:

.. math::
    \\text{(A)}\\quad F_t = \\tfrac12 \\mathrm{KL}(\\cdot\\,|\\,\\pi_t),\\ \\pi_t = N(0, D_t/2), \\qquad
    \\text{(B)}\\quad F_t = \\mathrm{KL}(\\cdot\\,|\\,\\tilde\\pi_t),\\ \\tilde\\pi_t \\propto g_{D_t}^{3/2} e^{-V_t/2}.

(A) does not know the interaction: it is a linear equation, and the theory enters through :math:`\\nu_0` alone. (B) has
:math:`V_t` in it and twice the diffusion. From :math:`\\nu_0` they run along one curve. From anywhere else they part.
"""

# %%
# Why
# ---
#
# The first variations, up to constants, are
#
# .. math:: \text{(A)}\ \tfrac12 \log\nu + \tfrac12\varphi^T D_t^{-1}\varphi, \qquad
#           \text{(B)}\ \log\nu + \tfrac34\varphi^T D_t^{-1}\varphi + \tfrac12 V_t .
#
# Put :math:`\log\nu_t = -\frac12\varphi^T D_t^{-1}\varphi - V_t` into both: each gives
# :math:`\frac14\varphi^T D_t^{-1}\varphi - \frac12 V_t`. One velocity field on the curve, two equations around it.
#
# One site, where everything can be drawn
# ---------------------------------------
#
# :math:`V_0 = \frac14\varphi^4 - \frac12\varphi^2` with :math:`C_\infty = 1`, so that
# :math:`\nu_0 \propto e^{-\varphi^4/4}`. In one dimension a measure is its quantiles and the JKO step is exact in them.

import math

import matplotlib.pyplot as plt
import torch

import otprox as ox
from otprox import polchinski
from otprox.exact.polchinski import FewSites, phi4, phi4_second_moment

torch.set_default_dtype(torch.float64)

C = polchinski.HeatKernel(torch.ones(1, 1))
V = polchinski.RenormalisedPotential(polchinski.Phi4(1.0, -1.0), C)
forms = {"form A": polchinski.form_a(C), "form B": polchinski.form_b(V)}

half = math.log(2)  # the scale at which C_t = ½
times = [half * k / 16 for k in range(17)]


def quantiles(density, n=200):
    """Quantiles of a density on (−4, 4)."""
    x = torch.linspace(-4, 4, 20001)
    cdf = density(x).cumsum(0)
    return ox.Quantiles(x[torch.searchsorted(cdf / cdf[-1], (torch.arange(n) + 0.5) / n)])


def square(tick):
    return tick.after.expect(lambda x: x[..., 0] ** 2)


starts = {
    r"from $\nu_0$": quantiles(lambda x: torch.exp(-(x**4) / 4)),
    "from another measure": quantiles(lambda x: torch.exp(-8 * (x - 1.4) ** 2) + 0.4 * torch.exp(-8 * (x + 0.6) ** 2)),
}
runs = {
    (start, form): ox.record(ox.flow(step, mu, times), square=square)
    for start, mu in starts.items()
    for form, step in forms.items()
}

# %%
# From :math:`\nu_0` the two agree with each other and with the exact law, for which ``exact`` has quadrature. From
# another measure they part.

site = FewSites(phi4())
x = torch.linspace(-2.2, 2.2, 300)
nu = torch.exp(-(x**2) - site.potential(torch.tensor([[0.5]]), x[:, None]))  # g_D e^{−V_t} at C_t = D_t = ½

fig, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained", sharey=True)
for ax, start in zip(axes, starts, strict=True):
    for form in forms:
        q = runs[start, form].final.x[:, 0]
        ax.plot((q[1:] + q[:-1]) / 2, 1 / (len(q) * q.diff()), label=form)
    ax.set(xlabel=r"$\varphi$", title=start + r", at $t = \log 2$", xlim=(-2.2, 2.2))
axes[0].plot(x, nu / torch.trapezoid(nu, x), "k--", lw=1, label=r"exact $\nu_t$")
axes[0].set_ylabel("density")
axes[0].legend(fontsize=8)
plt.show()

# %%
# The second moment along the way. On the curve it is :math:`D_t + D_t^2(\mathbb{E}_{\nu_0}\varphi^2 - 1)`, here with
# :math:`\mathbb{E}_{\nu_0}\varphi^2 = 2\Gamma(\frac34)/\Gamma(\frac14)`. (A) keeps that formula from any start, as its
# equation is linear with a linear drift. (B) does not.

D = torch.exp(-torch.tensor(times[1:]))
curve = D + D**2 * (phi4_second_moment() - 1)
fig, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained", sharey=True)
for ax, (start, mu) in zip(axes, starts.items(), strict=True):
    for form in forms:
        ax.plot(times[1:], runs[start, form].series["square"], "o-", ms=3, label=form)
    second = mu.expect(lambda x: x[..., 0] ** 2)
    label = r"exact $\nu_t$" if mu is starts[r"from $\nu_0$"] else "exact, form A"
    ax.plot(times[1:], D + D**2 * (second - 1), "k--", lw=1, label=label)
    ax.set(xlabel="scale t", title=start)
    ax.legend(fontsize=8)
axes[0].set_ylabel(r"$\mathbb{E}\,\varphi^2$")
plt.show()
worst = {form: (runs[r"from $\nu_0$", form].series["square"] - curve).abs().max().item() for form in forms}
print("largest error of E φ² from ν₀:", {form: f"{error:.1e}" for form, error in worst.items()})

# %%
# Two schemes of first order
# --------------------------
#
# As schemes they differ too. On a free field with three sites, whose matrices :math:`M` and :math:`A` do not commute,
# all is closed form, and both converge at first order to the exact law, with either rule for the metric over a step.

from otprox.polchinski import orders

taus = [0.1, 0.05, 0.025, 0.0125]
fig, ax = plt.subplots(figsize=(5.6, 3.6), layout="constrained")
for name, scheme in orders.SCHEMES.items():
    ax.loglog(taus, [orders.ring(scheme, tau) for tau in taus], "o-", ms=4, label=name)
ax.loglog(taus, [0.02 * tau for tau in taus], "k:", label="slope 1")
ax.set(xlabel=r"step $\tau$", ylabel="error of mean and covariance at t = 1")
ax.set_xticks(taus, [str(tau) for tau in taus])
ax.minorticks_off()
ax.legend(fontsize=8)
plt.show()

# %%
# There is no equilibrium
# -----------------------
#
# Along an ordinary gradient flow F decreases. Here it moves, and :math:`\nu_t` is never its minimiser: it runs after a
# target that shrinks to :math:`\delta_0`. On the ring, the value of each functional along the exact curve:

ring = polchinski.HeatKernel(4 * torch.eye(3) - 1)
theory = polchinski.FreeField(torch.diag(torch.tensor([0.5, 1.0, 2.0])), torch.tensor([1.0, 0.0, -0.5]))
W = polchinski.RenormalisedPotential(theory, ring)
pi_a, pi_b = polchinski.reference_a(ring), polchinski.reference_b(W)


def law(t):
    """ν_t of the free field."""
    at = theory.renormalise(ring(t))
    cov = torch.linalg.inv(torch.linalg.inv(ring.remaining(t)) + at.A)
    return ox.Gaussian(cov @ at.b, cov)


scales = torch.linspace(0.0, 3.0, 61).tolist()
fig, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
axes[0].plot(scales, [0.5 * ox.KL(pi_a(t))(law(t)) for t in scales], label=r"(A) $\frac{1}{2}$KL$(\nu_t|\pi_t)$")
axes[0].plot(scales, [ox.KL(pi_b(t))(law(t)) for t in scales], label=r"(B) KL$(\nu_t|\tilde\pi_t)$")
axes[0].set(xlabel="scale t", title="the functional along the curve")
axes[1].semilogy(scales, [law(t).cov.trace() for t in scales], label=r"trace of cov $\nu_t$")
axes[1].semilogy(scales, [pi_a(t).cov.trace() for t in scales], label=r"of $\pi_t$")
axes[1].semilogy(scales, [pi_b(t).cov.trace() for t in scales], label=r"of $\tilde\pi_t$")
axes[1].set(xlabel="scale t", title="the measure and its targets")
for ax in axes:
    ax.legend(fontsize=8)
plt.show()
