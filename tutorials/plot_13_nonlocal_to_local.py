"""
From nonlocal to local
======================

Does Stein variational gradient descent converge exponentially? In the limit of infinitely many particles it solves

.. math::
    \\partial_t\\rho = \\operatorname{div}\\Bigl(\\rho\\,\\mathcal K\\bigl[\\rho\\nabla(\\log\\rho + V)\\bigr]\\Bigr),
    \\qquad \\mathcal K[u](x) = \\int K(x, y)\\,u(y)\\,dy.

For :math:`K(x,y) = k_\\ell(x-y)` with a profile that narrows to a point, this becomes a *local* equation,
:math:`\\partial_t\\rho = \\operatorname{div}(\\rho^2\\nabla(\\log\\rho + V))`, a gradient flow with the mobility
:math:`\\rho^2` in place of :math:`\\rho`. Where :math:`\\rho` is small nothing moves, and that is fatal to exponential
decay. The remedy is to weigh the kernel with the target,

.. math::
    K(x, y) = e^{V(x) - V_0(x)/2}\\,k_\\ell(x - y)\\,e^{V(y) - V_0(y)/2},
    \\qquad \\partial_t\\rho = \\operatorname{div}\\bigl(\\rho^2 e^{2V - V_0}\\,\\nabla(\\log\\rho + V)\\bigr)
    \\text{ in the limit.}

This page runs all four equations with the same composition, and measures their rates. Below :math:`V = V_0 = x^2/2`,
and :math:`Z = \\int e^{-V}dx = \\sqrt{2\\pi}`.
"""

# %%
# Four metrics
# ------------
#
# ``Stein`` with a plain or a ``Weighted`` kernel for the nonlocal equations, ``Mobility`` for the local ones.

import math

import matplotlib.pyplot as plt
import torch

import otprox as ox
from otprox import exact
from otprox.kernels import RBF, Laplace, Weighted

torch.set_default_dtype(torch.float64)

V = ox.Quadratic([0.0])
Z = math.sqrt(2 * math.pi)
target = ox.Gaussian([0.0], [[1.0]])
F = ox.KL(target)
weighted_local = ox.Mobility(lambda rho, x: rho**2 * torch.exp(V(x)))
plain_local = ox.Mobility(lambda rho, x: rho**2)


def perturbed(f, cells=80, reach=5.0):
    """The density of N(0, 1)·f(x), normalised, on a grid."""
    return ox.Density.from_log_prob(lambda x: f(x[..., 0]).log() - V(x), ox.Grid(-reach, reach, cells))


def run(metric, mu, until, growth=0.0):
    """Times and KL along explicit steps just below the stable one, at most 0.02 + growth·t; KL from its least value."""
    least = F(mu.with_state(values=torch.softmax(-V(mu.points), -1) / mu.grid.volume)).item()
    step, t, times, values = ox.Forward(F, metric), 0.0, [0.0], [F(mu).item() - least]
    while t < until:
        stable = 0.8 * mu.stable_step(metric.descent(F, mu)).item()
        tau = min(stable, 0.02 + growth * t, until - t + 1e-9)
        mu = step(mu, t, t + tau).mu
        t += tau
        times.append(t)
        values.append(F(mu).item() - least)
    return mu, torch.tensor(times), torch.tensor(values)


# %%
# With the weight, as the kernel narrows
# --------------------------------------
#
# The profile :math:`k_\ell = \frac{1}{2\ell}e^{-|x|/\ell}` has a spectrum in closed form: near equilibrium
# :math:`\rho/\rho_\infty - 1` decays in modes :math:`e^{-\mu_n t/Z}` with
# :math:`\mu_n - \alpha = (2n+1)\,\alpha\sqrt{1 - \mu_n\ell^2}`, where :math:`\alpha = \frac12`. As
# :math:`\ell \to 0` the lowest, :math:`\mu_0 = \alpha(2 - \alpha\ell^2)`, goes to that of the local equation,
# :math:`2\alpha`. KL decays twice as fast. (Between :math:`t = 5` and 8, where the rates are measured, some of the
# faster modes are still there.)

start = perturbed(lambda x: 1 + 0.5 * x.sin())
fig, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.8), layout="constrained")
local, times, kl = run(weighted_local, start, 8.0)
left.semilogy(times, kl, "k", label="local limit")
snapshots = {"local limit": run(weighted_local, start, 1.0)[0]}
for ell in (1.0, 0.5, 0.25):
    metric = ox.Stein(Weighted(V, V, 1 / (2 * ell) * Laplace(ell)))
    _, times, kl = run(metric, start, 8.0)
    left.semilogy(times, kl, label=rf"$\ell = {ell}$")
    snapshots[ell] = run(metric, start, 1.0)[0]
    late = times > 5
    rate = -((times - times[late].mean()) * kl.log())[late].sum() / ((times - times[late].mean()).square()[late].sum())
    print(f"ell = {ell}: late rate of KL {rate:.4f}, closed form 2μ₀/Z = {exact.svgd.weighted_rate(0.5, ell, Z):.4f}")
t = torch.linspace(0, 8, 50)
bound = exact.svgd.log_sobolev_constant(0.5, Z)
left.semilogy(t, F(start) * torch.exp(-bound * t), "k:", label=r"provable bound, $\lambda = 2\alpha/Z$")
left.set(xlabel="$t$", ylabel="KL", title="weighted kernel: exponential")
left.legend(fontsize=8)

x = start.points[:, 0]
gibbs = target.to_density(start.grid).values
right.plot(x, start.values / gibbs, color="0.6", label="$t = 0$")
for name, mu in snapshots.items():
    style = {"color": "k"} if name == "local limit" else {}
    right.plot(x, mu.values / gibbs, label=f"$t = 1$, {name if name == 'local limit' else f'ℓ = {name}'}", **style)
right.set(xlabel="$x$", ylabel=r"$\rho/\rho_\infty$", xlim=(-4, 4))
right.legend(fontsize=8)
plt.show()

# %%
# How fast is the limit reached? The difference to the local solution falls as the second moment of the profile,
# :math:`\ell^2`.

gaps = {}
for sigma in (0.8, 0.4, 0.2):
    k = 1 / (sigma * Z) * RBF(sigma)
    mu, _, _ = run(ox.Stein(Weighted(V, V, k)), start, 1.0)
    gaps[sigma] = ((mu.values - snapshots["local limit"].values).abs().sum() * mu.grid.volume).item()
for (a, ga), (b, gb) in zip(list(gaps.items()), list(gaps.items())[1:], strict=False):
    print(f"Gaussian profile, width {a} -> {b}: L1 distance {ga:.2e} -> {gb:.2e}, order {math.log2(ga / gb):.2f}")

# %%
# Without the weight
# ------------------
#
# The log-Sobolev ratio, dissipation over KL, is what an exponential rate needs to stay away from zero. For the weighted
# equation it does; for :math:`\partial_t\rho = \operatorname{div}(\rho^2\nabla(\log\rho + V))` it goes to zero, and KL
# decays like a power of :math:`t`: an initial perturbation that does not vanish in the tails, where :math:`\rho` is
# small, is there to stay. The same holds for the plain kernel of a positive width.

wavy = perturbed(lambda x: 1 + 0.5 * x.tanh(), cells=50)
_, plain_times, plain_kl = run(plain_local, wavy, 200.0, growth=0.05)
_, times, kl = run(weighted_local, wavy, 20.0)
_, svgd_times, svgd_kl = run(ox.Stein(RBF(0.5)), wavy, 200.0, growth=0.1)

fig, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.8), layout="constrained")
left.loglog(times, kl, "k", label="weighted, local")
left.loglog(plain_times, plain_kl, "C3", label="plain, local")
left.loglog(svgd_times, svgd_kl, "C0", label="plain, RBF of width 0.5")
t = torch.logspace(1, 2.3, 20)
left.loglog(t, 2 * plain_kl[-1] * (200 / t) ** 1.5, "k:", lw=1, label=r"$t^{-1.5}$")
left.set(xlabel="$t$", ylabel="KL", title="plain kernel: algebraic", xlim=(0.3, 220), ylim=(1e-6, 0.1))
left.legend(fontsize=8)
for series, style, label in (((times, kl), "k", "weighted, local"), ((plain_times, plain_kl), "C3", "plain, local")):
    rate = -series[1].log().diff() / series[0].diff()
    keep = (series[1][1:] > 1e-10) & (series[0].diff() > 1e-6)  # not the rest of a step, too short for a rate
    right.semilogx(series[0][1:][keep], rate[keep], style, label=label)
right.axhline(exact.svgd.local_rate(0.5, Z), color="k", ls="--", lw=0.8, label=r"$4\alpha/Z$")
right.axhline(bound, color="k", ls=":", lw=0.8, label=r"provable, $2\alpha/Z$")
right.set(xlabel="$t$", ylabel="rate of KL", xlim=(0.1, 220), ylim=(0, 1.3))
right.legend(fontsize=8)
plt.show()

# %%
# A wave
# ------
#
# In a linear potential, :math:`V = cx`, the plain local equation has fronts that travel without changing shape,
# :math:`\rho = \frac\sigma c\bigl(1 - e^{-c(x + \sigma t - x_0)}\bigr)_+`: like those of porous media they have an
# edge, ahead of which there is nothing. The finite volumes follow it, away from the wall on the right that the exact
# wave does not have.

wave = exact.svgd.wave(c=1.0, sigma=0.5, x0=1.0)
grid = ox.Grid(-1.0, 5.0, 150)
x = grid.points(torch.zeros(()))[:, 0]
mass = (wave.density(x, 0.0).sum() * grid.volume).item()  # of the window; with mass 1 it is slower by that factor
mu = ox.Density(wave.density(x, 0.0) / mass, grid)
tilt = ox.KL(lambda y: y.sum(-1))
step, t = ox.Forward(tilt, plain_local), 0.0

fig, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
for until, color in ((0.0, "C0"), (0.75, "C1"), (1.5, "C2")):
    while t < until * mass - 1e-12:
        tau = min(0.8 * mu.stable_step(plain_local.descent(tilt, mu)).item(), until * mass - t)
        mu = step(mu, t, t + tau).mu
        t += tau
    ax.plot(x, mass * mu.values, color, label=f"$t = {until}$")
    ax.plot(x, wave.density(x, until), "k:", lw=1)
ax.set(xlabel="$x$", ylabel=r"$\rho$", xlim=(-1, 4), ylim=(0, 0.7))
ax.legend(fontsize=8, title="dotted: exact")
plt.show()
