"""
Geodesics between densities, and a mean-field game
==================================================

Benamou and Brenier (2000) wrote the Wasserstein distance as the least action of a moving density,

.. math::
    W_2^2(\\mu, \\nu) = \\min_{\\rho, m} \\int_0^1\\!\\!\\int \\frac{|m|^2}{\\rho}\\,\\mathrm dx\\,\\mathrm dt,
    \\qquad \\partial_t\\rho + \\operatorname{div} m = 0,\\quad \\rho_0=\\mu,\\ \\rho_1=\\nu.

Let the end go free and pay for where it is, pay on the way, or let the particles diffuse, and the same problem is an
implicit step of a gradient flow, or a mean-field game. ``solvers.benamou_brenier`` solves all of them on a grid;
``solvers.geodesic`` is the case above, and ``solvers.Dynamic`` the implicit step.
"""

# %%
# A geodesic
# ----------
#
# From one hill to two. Mass travels along straight lines, so it is never smeared where a mixture would fade in.

import matplotlib.pyplot as plt
import torch

import otprox as ox
from otprox import plot
from otprox.exact.games import LinearQuadraticGame
from otprox.solvers import Saturating, benamou_brenier, geodesic

torch.set_default_dtype(torch.float64)
square = ox.Grid((0, 0), (1, 1), (48, 48))
x = square.points(torch.zeros(()))


def hills(*centres, width=0.09):
    bumps = (torch.exp(-(x - torch.tensor(c)).square().sum(-1) / (2 * width**2)) for c in centres)
    values = sum(bumps).reshape(square.shape)
    return ox.Density(values / (values.sum() * square.volume), square)


mu, nu = hills((0.3, 0.5)), hills((0.75, 0.25), (0.7, 0.8))
curve = geodesic(mu, nu, inner_steps=8)
print(f"W2 = {curve.distance2.sqrt().item():.4f} after {curve.stats.iterations.item()} sweeps")
print("kinetic energy on each interval:", [round(e, 4) for e in curve.kinetic.tolist()])

fig, axes = plt.subplots(2, 5, figsize=(11, 4.8), layout="constrained", sharex=True, sharey=True)
for column, k in zip(axes.T, (0, 2, 4, 6, 8), strict=True):
    mixture = ox.Density((1 - k / 8) * mu.values + k / 8 * nu.values, square)
    plot.density(curve.at(k), column[0], vmin=0, cmap="magma")
    plot.density(mixture, column[1], vmin=0, cmap="magma")
    column[0].set_title(f"t = {k / 8:g}")
axes[0, 0].set_ylabel("geodesic")
axes[1, 0].set_ylabel("mixture")
fig.suptitle("A geodesic moves mass, a mixture fades it")

# %%
# The kinetic energy is the same on every interval, up to the error of the discretisation, as it must be for a geodesic;
# its mean is :math:`W_2^2`.
#
# A mobility
# ----------
#
# With :math:`|m|^2/(\rho(1-\rho/\rho_{\max}))` nothing can move into what is full (Dolbeault, Nazaret and Savaré
# 2009): the density stays below :math:`\rho_{\max}`. Any concave mobility will do; :math:`\rho^2`, say, is refused, for
# its action is not convex. On a line, where two hills become one:

line = ox.Grid(0.0, 1.0, 100)
y = line.points(torch.zeros(()))[:, 0]
wide = torch.exp(-((y - 0.25) ** 2) / 0.006) + torch.exp(-((y - 0.75) ** 2) / 0.006)
tall = torch.exp(-((y - 0.4) ** 2) / 0.012)
start, end = (ox.Density(v / (v.sum() * line.volume), line) for v in (wide, tall))
full = 1.05 * max(start.values.max().item(), end.values.max().item())
plain = geodesic(start, end, tol=1e-3)
crowded = geodesic(start, end, mobility=Saturating(full), tol=1e-3)

fig, axes = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained", sharey=True)
for ax, path, title in zip(axes, (plain, crowded), ("mobility ρ", "mobility ρ(1 − ρ/ρmax)"), strict=True):
    for k in (0, 4, 8, 12, 16):
        plot.density(path.at(k), ax, color=plt.cm.viridis(k / 18), label=f"t = {k / 16:g}")
    ax.axhline(full, color="0.6", ls=":")
    ax.set(title=f"{title}: distance {path.distance2.sqrt().item():.3f}", xlabel="$x$")
axes[0].set_ylabel("density")
axes[0].legend(fontsize=8)

# %%
# A game
# ------
#
# Each player of a large crowd moves by :math:`\mathrm dX=v\,\mathrm dt+\sqrt{2\nu}\,\mathrm dB`, pays
# :math:`\tfrac12|v|^2` for speed and :math:`\tfrac c2(X-\bar m_t)^2` for being away from the mean of all, and in the
# end :math:`\tfrac G2(X-x^*)^2` for missing a goal. Nobody can do better alone: that equilibrium is the least action
# with these costs, and with :math:`\partial_t\rho+\operatorname{div}m=\nu\Delta\rho`. With linear dynamics and
# quadratic costs, Riccati's equation gives it in closed form, a test of everything at once.

rules = LinearQuadraticGame(mean=1.0, variance=0.5, goal=-1.0, pull=2.0, horizon=1.0, cohesion=1.5, viscosity=0.2)
running = ox.Varying(lambda t: ox.Potential(lambda x: rules.cohesion / 2 * (x[..., 0] - rules.mean_at(t)) ** 2))
terminal = ox.Potential(lambda x: rules.pull / 2 * (x[..., 0] - rules.goal) ** 2)
crowd = ox.Gaussian([rules.mean], [[rules.variance]]).to_density(ox.Grid(-4.0, 5.0, 128))
game = benamou_brenier(crowd, terminal, inner_steps=32, running=running, viscosity=rules.viscosity, tol=1e-4)

fig, ax = plt.subplots(figsize=(7, 3.6), layout="constrained")
image = ax.imshow(game.values.T, origin="lower", extent=(0, 1, -4, 5), aspect="auto", cmap="magma")
times = torch.linspace(0, 1, 101)
centre = torch.tensor([rules.mean_at(t) for t in times.tolist()])
deviation = torch.tensor([rules.variance_at(t) for t in times.tolist()]).sqrt()
ax.plot(times, centre, "w", lw=1.5, label="mean, closed form")
for sign in (-1, 1):
    ax.plot(times, centre + sign * deviation, "w--", lw=1, label="± one deviation" if sign > 0 else None)
ax.set(xlabel="$t$", ylabel="$x$", ylim=(-3, 3.5), title="The crowd at equilibrium, and Riccati's mean and deviation")
ax.legend(fontsize=8, labelcolor="white", facecolor="0.25")
fig.colorbar(image, ax=ax, label="density")

print(f"{'t':>5} {'mean':>9} {'exact':>9} {'variance':>9} {'exact':>9}")
for k in (8, 16, 32):
    t, rho = k / 32, game.at(k)
    row = (rho.mean.item(), rules.mean_at(t), rho.cov.item(), rules.variance_at(t))
    print(f"{t:5.2f}", *(f"{value:9.4f}" for value in row))
print(f"cost of the game {game.stats.objective.item():.4f}, in closed form {rules.value:.4f}")

# %%
# Shy players
# -----------
#
# There is no closed form any more when players also avoid each other, here at a running cost :math:`0.05\,\rho^2`, and
# go round a pillar on their way to the lower right corner. Nothing changes in the code.

pillar = ox.Potential(lambda x: 40 * torch.exp(-((x - 0.5).square().sum(-1)) / (2 * 0.09**2)))
corner = ox.Potential(lambda x: 8 * (x - torch.tensor([0.85, 0.15])).square().sum(-1))
shy = benamou_brenier(
    hills((0.2, 0.8), width=0.07),
    corner,
    inner_steps=8,
    running=pillar + 0.05 * ox.PorousMedium(2.0),
    viscosity=0.002,
    tol=1e-3,
)

fig, axes = plt.subplots(1, 5, figsize=(11, 2.7), layout="constrained", sharey=True)
for ax, k in zip(axes, (0, 2, 4, 6, 8), strict=True):
    plot.density(shy.at(k), ax, vmin=0, cmap="magma")
    ax.add_patch(plt.Circle((0.5, 0.5), 0.18, fill=False, color="w", ls=":"))
    ax.set_title(f"t = {k / 8:g}")
fig.suptitle("Round a pillar, keeping distance")
print(f"converged: {bool(shy.stats.converged)}, after {shy.stats.iterations.item()} sweeps")
