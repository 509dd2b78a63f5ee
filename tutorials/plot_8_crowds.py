"""
Crowds: congestion as a constraint
==================================

People walk down the gradient of a potential, and cannot be closer than shoulder to shoulder: :math:`\\rho\\le1`. The
model of Maury, Roudneff-Chupin and Santambrogio (2010) is the gradient flow

.. math::
    \\partial_t\\rho=\\operatorname{div}\\bigl(\\rho\\,(\\nabla V+\\nabla p)\\bigr),\\qquad
    p\\ge0,\\quad p\\,(1-\\rho)=0,

of :math:`\\int V\\,\\mathrm d\\rho` plus a constraint, ``Potential(V) + Congestion()``. The pressure :math:`p` is its
multiplier: no explicit step can see it, and an implicit one finds it.
"""

# %%
# An exact crowd on the line
# --------------------------
#
# A crowd of density ¼ on [−2, 2] walks towards 0 at unit speed, :math:`V=|x|`. Those who arrive stand at density 1 on
# a growing block. Who started at :math:`x_0>0` is at :math:`\max(x_0-t,\,x_0/4)`: walking, or standing.
#
# An implicit step is a projection here, and reproduces this motion exactly, whatever its size. We take it on quantiles
# by a convex program; a potential that says its form in one, ``atom``, may have kinks.

import math
import warnings

import cvxpy as cp
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.animation import FuncAnimation

import otprox as ox
from otprox import solvers

torch.set_default_dtype(torch.float64)


class Towards:
    """V(x) = |x|."""

    def __call__(self, x):
        return x.abs().sum(-1)

    def atom(self, x):
        return cp.abs(x)


V = ox.Potential(Towards())
crowd = ox.Quantiles(-2 + 4 * (torch.arange(400) + 0.5) / 400)


def exact(t):
    return ox.exact.diffusion.queue_flow(crowd.x[:, 0], t, density=0.25)


step = ox.Backward(V + ox.Congestion(1.0), solver=solvers.Convex(tol=1e-10))
for tau in (0.75, 0.25, 0.05):
    run = ox.record(ox.flow(step, crowd, torch.arange(0, 0.75 + tau / 2, tau)))
    print(f"tau = {tau}: largest error of a position at t = 0.75 {(run.final.x[:, 0] - exact(0.75)).abs().max():.0e}")

# %%
# An explicit step declines, in words:

try:
    ox.Forward(V + ox.Congestion(1.0))(crowd, 0.0, 0.1)
except TypeError as error:
    print(error)

# %%
# Soft crowds
# -----------
#
# ``PorousMedium(m)`` with a large exponent makes crowding dear instead of impossible, and tends to the constraint as
# :math:`m\to\infty`. At :math:`t=0.75`:

fig, ax = plt.subplots(figsize=(7.5, 3.6), layout="constrained")
times = torch.arange(0, 0.8, 0.05)
for m, colour in ((3, "C2"), (9, "C1"), (33, "C3")):
    soft = ox.record(ox.flow(ox.Backward(V + ox.PorousMedium(m)), crowd, times)).final
    x, density = soft.x[:, 0], 1 / (400 * soft.x[:, 0].diff())
    ax.plot((x[1:] + x[:-1]) / 2, density, colour, lw=1, label=f"PorousMedium({m}), peak {density.max():.2f}")
x = exact(0.75)
ax.fill_between((x[1:] + x[:-1]) / 2, 1 / (400 * x.diff()), color="0.9", label="exact crowd")
x = run.final.x[:, 0]
ax.plot((x[1:] + x[:-1]) / 2, 1 / (400 * x.diff()), "k--", lw=1, label="Congestion(1)")
ax.set(xlabel="x", ylabel="density", title="Walking towards 0, t = 0.75")
ax.legend(fontsize=8)
plt.show()

# %%
# A room with a column
# --------------------
#
# The crowd starts on the left of a room of 3 × 2 and wants to reach a stage at the middle of the right wall. A column
# stands in its way: an ``Obstacle`` bounds the density by 0 there and by 1 elsewhere. :math:`V` is the length of the
# shortest way to the stage round the column, by Dijkstra's algorithm on the cells with 16 neighbours each.

grid = ox.Grid((0.0, 0.0), (3.0, 2.0), (72, 48))
places = grid.points(torch.zeros(1))
inside = (places - torch.tensor([2.1, 1.0])).norm(dim=-1) < 0.35


def shortest_way(grid, blocked, goal):
    """Lengths (n,) of the shortest ways between cells that are not blocked, to the nearest of the goals."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import dijkstra

    index, free, h = np.arange(grid.n).reshape(grid.shape), ~blocked.numpy(), grid.spacing
    ways = []
    for a, b in ((1, 0), (0, 1), (1, 1), (1, -1), (2, 1), (2, -1), (1, 2), (1, -2)):
        here = index[: grid.shape[0] - a, max(0, -b) : grid.shape[1] - max(0, b)].ravel()
        there = index[a:, max(0, b) : grid.shape[1] - max(0, -b)].ravel()
        open_way = free[here] & free[there]
        ways.append(np.stack([here, there, np.full(len(here), math.hypot(a * h[0], b * h[1]))])[:, open_way])
    here, there, length = np.concatenate(ways, 1)
    graph = coo_array((length, (here.astype(int), there.astype(int))), shape=(grid.n, grid.n)).tocsr()
    return torch.from_numpy(dijkstra(graph, directed=False, indices=goal).min(0))


stage = ((places[:, 0] > 2.95) & ((places[:, 1] - 1).abs() < 0.12)).nonzero()[:, 0].numpy()
length = shortest_way(grid, inside, stage)
length = torch.where(torch.isfinite(length), length, length[torch.isfinite(length)].max())  # in the column, any number

way = ox.Potential(lambda x: length[grid.cells(x)])
room = ox.Obstacle(upper=lambda x: torch.where(inside[grid.cells(x)], 0.0, 1.0))

start = ((places[:, 0] - 0.6).abs() < 0.45) & ((places[:, 1] - 1).abs() < 0.7)
people = ox.Density((start / (start.sum() * grid.volume)).reshape(grid.shape), grid)

# %%
# On a grid of this size entropic transport is quick: with ``Entropic(reg)`` the default solver is ``Scaling``, whose
# prox of a bound is a cut. It adds a little diffusion, as if :math:`\int\rho\log\rho` were in the energy with the
# weight reg/4τ = 0.01.

tau, reg = 0.1, 4e-3
walk = ox.Backward(way + room, ox.Entropic(reg))
walked = ox.record(
    ox.flow(walk, people, tau * torch.arange(51)),
    density=lambda tick: tick.after.values,
    length=ox.observe.energy(way),
    peak=lambda tick: tick.after.values.amax(),
)
frames = torch.cat([people.values[None], walked.series["density"]])
print(f"greatest density in 50 steps: {walked.series['peak'].max():.9f}")

fig, axes = plt.subplots(1, 4, figsize=(12, 2.5), layout="constrained", sharey=True)
picture = {"extent": (0, 3, 0, 2), "origin": "lower", "vmin": 0, "vmax": 1, "cmap": "magma_r"}
ring = {"fill": True, "facecolor": "0.75", "edgecolor": "0.3"}
for ax, k in zip(axes, (0, 10, 20, 50), strict=True):
    image = ax.imshow(frames[k].T, **picture)
    ax.add_patch(plt.Circle((2.1, 1.0), 0.35, **ring))
    ax.plot([3, 3], [0.88, 1.12], "C0", lw=5)
    ax.set_title(f"t = {k * tau:.0f}")
fig.colorbar(image, ax=axes, label="density", shrink=0.9)
plt.show()

# %%
# The same, moving:

fig, ax = plt.subplots(figsize=(5.4, 3.6), layout="constrained")
image = ax.imshow(frames[0].T, **picture)
ax.add_patch(plt.Circle((2.1, 1.0), 0.35, **ring))
ax.plot([3, 3], [0.88, 1.12], "C0", lw=5)
title = ax.set_title("t = 0.0")


def draw(k):
    image.set_data(frames[k].T)
    title.set_text(f"t = {k * tau:.1f}")
    return image, title


animation = FuncAnimation(fig, draw, frames=range(0, 51, 2), interval=120)

# %%
# Where they end
# --------------
#
# The constraint makes the last state a matter of arithmetic: the crowd fills the places nearest to the stage, one
# person each, until it is used up. The mean way that is left tends to that of this filling.

cells, order = int(round(1 / grid.volume)), length[~inside].sort().values
filling = order[:cells].mean()
fig, ax = plt.subplots(figsize=(7.5, 3), layout="constrained")
ax.plot(walked.times, walked.series["length"], label="mean way to the stage")
ax.axhline(filling, color="k", ls="--", lw=1, label=f"best filling, {filling:.3f}")
ax.set(xlabel="t", ylabel="length")
ax.legend()
plt.show()
print(f"at t = 5: {walked.series['length'][-1]:.4f}, best {filling:.4f}")

# %%
# Without blur, and certified
# ---------------------------
#
# On half as many cells along each axis, ``Convex`` takes the step in :math:`W_2` itself. It searches transport plans on
# a few pairs of cells, and a dual potential certifies that none of the other pairs could lower the objective by more
# than the residual says. Entropic steps of smaller and smaller reg approach it.

coarse = ox.Grid(grid.lower, grid.upper, (36, 24))
mu = people.to_density(coarse)
sharp = ox.Backward(way + room, solver=solvers.Convex())(mu, 0.0, 0.2)
pairs = sharp.stats.plan.values().numel()
print(f"Convex: {pairs} of {coarse.n**2} pairs, residual {sharp.stats.residual:.0e}, mean way {way(sharp.mu):.5f}")
for reg in (3e-2, 1e-2, 3e-3):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        blurred = ox.Backward(way + room, ox.Entropic(reg))(mu, 0.0, 0.2)
    gap = (blurred.mu.values - sharp.mu.values).abs().sum() * coarse.volume
    print(f"Scaling, reg = {reg}: mean way {way(blurred.mu):.5f}, L1 distance to Convex {gap:.3f}")

# %%
# What cannot be is an error that says why:

try:
    ox.Backward(way + ox.Congestion(0.15), solver=solvers.Convex())(mu, 0.0, 0.2)
except ValueError as error:
    print(error)
