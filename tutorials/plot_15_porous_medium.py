"""
The porous medium equation: four solvers, one exact JKO
=======================================================

Gas in a porous rock spreads by

.. math::
    \\partial_t\\rho = \\Delta\\rho^m = \\operatorname{div}\\Bigl(\\rho\\,\\nabla\\,\\tfrac{m}{m-1}\\rho^{m-1}\\Bigr),
    \\qquad m>1,

the :math:`W_2` gradient flow of :math:`F(\\rho)=\\frac1{m-1}\\int\\rho^m`. Where there is no gas nothing moves, so the
gas keeps a front. Barenblatt's solution, from a point, is a dilating bump,

.. math::
    \\rho_R(x) = \\frac{1}{Z R^d}\\Bigl(1-\\frac{|x|^2}{R^2}\\Bigr)_+^{1/(m-1)},\\qquad
    \\dot R = \\frac{G}{R^{d(m-1)+1}} .

An implicit step keeps this family too, and exactly: from :math:`\\rho_R` it goes to :math:`\\rho_{R'}` with

.. math::
    R' = R + \\tau\\,\\frac{G}{R'^{\\,d(m-1)+1}},

the implicit Euler step of one equation for one number (Otto 2001). That is rare. The error of a computed step has two
parts, one of the step as such and one of its computation, and here each can be seen without the other.
"""

# %%
# One step, known exactly
# -----------------------
#
# ``exact.diffusion.barenblatt`` has both: the solution at a time and the step.

import math
import time
import warnings

import matplotlib.pyplot as plt
import torch
from matplotlib.animation import FuncAnimation
from matplotlib.colors import LogNorm, PowerNorm

import otprox as ox
from otprox import plot, solvers
from otprox.exact.diffusion import barenblatt

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
F, tau = ox.PorousMedium(2.0), 0.5

for dim in (1, 2):
    gas = barenblatt(2.0, dim)
    R = gas.radius(1.0)
    print(f"{dim}-D: R(1) = {R:.6f}, a step of {tau} to {gas.jko(R, tau):.6f}, the flow to {gas.radius(1.5):.6f}")

# %%
# Solvers of four kinds compute that step:
#
# - ``Kantorovich`` climbs the dual, whose potentials move mass by less than a cell as well as by many. It is the
#   default on a grid;
# - ``Dynamic`` finds the path of least action from the old density to the new (Benamou and Brenier 2000);
# - ``Scaling`` does not take the :math:`W_2` step but the entropic one, whose kernel is cheap; with the reference
#   ``"debiased"`` it takes away most of the blur that this adds;
# - ``Quantile`` moves quantiles on the line by Newton's method, and ``Convex`` plans between cells by a convex
#   program: the simple ones, of small problems.
#
# Densities on a grid are averages over its cells. Errors are those of the averages, in :math:`L^1`: which part of the
# gas is in a wrong place, twice.


def averages(gas, radius, grid):
    """Barenblatt's density of a radius on the cells of a grid."""
    points = grid.points(radius)
    parts = (w * gas.density(points + z, radius=radius) for z, w in grid.nodes(8, points))
    values = sum(parts).reshape(grid.shape)
    return ox.Density(values / (values.sum() * grid.volume), grid)


def misplaced(mu, nu):
    """The L1 distance of two densities on a grid."""
    return ((mu.values - nu.values).abs().sum() * nu.grid.volume).item()


# %%
# A front on the line
# -------------------
#
# Fifty cells, or fifty quantiles: a cell is 0.13 wide, and the front goes on by two cells.

line = barenblatt(2.0, 1)
old = line.radius(1.0)
new = line.jko(old, tau)
reg = 0.02
ways = {  # name: metric, solver, colour, marker
    "Kantorovich": (ox.Wasserstein(), solvers.Kantorovich(), "C0", "o"),
    "Dynamic": (ox.Wasserstein(), solvers.Dynamic(), "C1", "s"),
    "Scaling, lebesgue": (ox.Entropic(reg), solvers.Scaling(), "C3", "^"),
    "Scaling, debiased": (ox.Entropic(reg, "debiased"), solvers.Scaling(), "C2", "v"),
    "Convex": (ox.Wasserstein(), solvers.Convex(), "C5", "D"),
}


def quantiles(radius, n):
    """The quantiles of Barenblatt's density of m = 2 on the line: the roots of s(3 − s²)/4 = u − ½."""
    u = (torch.arange(n) + 0.5) / n
    return ox.Quantiles(radius * 2 * torch.sin(torch.asin(2 * u - 1) / 3))


def one_step(name, mu):
    metric, solver, *_ = ways[name]
    return ox.Backward(F, metric, solver)(mu, 0.0, tau)


cells = ox.Grid(-3.3, 3.3, 50)
mu = averages(line, old, cells)
on_cells = {name: one_step(name, mu).mu for name in ways}
on_quantiles = ox.Backward(F)(quantiles(old, 50), 0.0, tau).mu

exactly = averages(line, new, cells)
centres = cells.points(torch.zeros(()))[:, 0]
fig, (whole, off) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", width_ratios=(1, 1.25))
x = torch.linspace(-3.3, 3.3, 2001)
whole.plot(x, line.density(x[:, None], radius=old), "k:", lw=1, label="before")
whole.plot(x, line.density(x[:, None], radius=new), "k", lw=1, label="after, exact")
whole.fill_between(x, line.density(x[:, None], radius=new), color="0.93")
plot.density(on_cells["Kantorovich"], whole, color="C0", ls="", marker="o", ms=3.5, label="Kantorovich")
whole.set(xlabel="$x$", ylabel="density", title="One step of size ½")
whole.legend(loc="lower center", fontsize=8)

for name, (_, _, colour, marker) in ways.items():
    wrong = (on_cells[name].values - exactly.values).abs()
    off.semilogy(centres, wrong, color=colour, marker=marker, ms=4, lw=0.8, label=name)
q, ends = on_quantiles.x[:, 0], line.density(on_quantiles.x, radius=new)
off.semilogy((q[1:] + q[:-1]) / 2, (1 / (50 * q.diff()) - (ends[1:] + ends[:-1]) / 2).abs(), "C4--", label="Quantile")
off.axvspan(-new.item(), new.item(), color="0.95")
off.set(xlim=(0, 3.3), ylim=(1e-8, 0.1), xlabel="$x$", title="|computed − exact|")
off.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.02, 1.0))

# %%
# ``Kantorovich`` and debiased ``Scaling`` sit on the exact averages, the other entropic step leaks through the front
# by √reg = 0.14, and ``Convex`` makes stairs: mass between centres of cells moves by whole cells.
#
# Errors and orders
# -----------------
#
# How an error depends on the place of the front within a cell is luck, so each is a mean over four shifts of the grid
# by parts of a cell. Quantiles have no cells; all solvers can be compared in the variance.

counts, shifts = (25, 50, 100, 200), 4


def errors(name, n):
    """L1 distance and error of the variance, means over shifts of the grid."""
    found = []
    for k in range(shifts):
        shift = 6.6 / n * k / shifts
        grid = ox.Grid(-3.3 + shift, 3.3 + shift, n)
        want, got = averages(line, new, grid), one_step(name, averages(line, old, grid)).mu
        found.append([misplaced(got, want), (got.cov - want.cov).abs().item()])
    return torch.tensor(found).mean(0)


def order(values):
    """Between the last two sizes."""
    return math.log2(values[-2] / values[-1])


with warnings.catch_warnings():
    warnings.simplefilter("ignore", solvers.FrozenWarning)
    ladder = {name: torch.stack([errors(name, n) for n in counts]) for name in ways}
variance = line.second_moment(new)
by_quantiles = torch.stack(
    [(ox.Backward(F)(quantiles(old, n), 0.0, tau).mu.cov - variance).abs().squeeze() for n in counts]
)

print(f"{'':18} {'L1':^36}   {'order':>5}    {'variance at n = 200':>19}  {'order':>5}")
print(f"{'n':18} " + " ".join(f"{n:8d}" for n in counts))
for name, found in ladder.items():
    row = " ".join(f"{e:8.1e}" for e in found[:, 0].tolist())
    print(f"{name:18} {row}   {order(found[:, 0]):z5.1f}    {found[-1, 1]:19.1e}  {order(found[:, 1]):z5.1f}")
print(f"{'Quantile':18} {'':36}{'':5} {by_quantiles[-1]:22.1e}  {order(by_quantiles):5.1f}")

tick = time.process_time()
ox.Backward(F)(quantiles(old, counts[-1]), 0.0, tau)
print(f"{counts[-1]} quantiles: a step in {1e3 * (time.process_time() - tick):.0f} ms")

fig, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for name, (_, _, colour, marker) in ways.items():
    for ax, column in zip(axes, ladder[name].T, strict=True):
        ax.loglog(counts, column, color=colour, marker=marker, ms=5, label=name)
axes[1].loglog(counts, by_quantiles, "C4*--", ms=8, label="Quantile")
for ax, top in zip(axes, (0.1, 0.02), strict=True):
    for p, style in ((1, ":"), (2, "-.")):
        ax.loglog(counts, [top * (counts[0] / n) ** p for n in counts], "0.6", ls=style, lw=1, label=f"order {p}")
    ax.set_xticks(counts, [str(n) for n in counts])
    ax.minorticks_off()
    ax.set_xlabel("cells, or quantiles")
axes[0].set(title="$L^1$ distance to the exact step")
axes[1].set(title="error of the variance")
axes[1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.02, 1.0))

# %%
# The entropic step converges too, but to an entropic step: its error stays where the blur puts it, and only a smaller
# reg helps. The debiased one has no such floor in sight, once the cells resolve √reg. ``Quantile`` is first to be
# done, in a few milliseconds, with its order 3/2 for compact supports; what it lacks is a second dimension.
#
# In the plane
# ------------
#
# All of them, on square grids, after a first run that is not timed. The residual is each solver's own word on how far
# it is from the solution of *its* discrete problem: a duality gap, a distance between two paths, a marginal error,
# Clarabel's gap. None of these knows of the error of the discretisation, and the last column does.

disc = barenblatt(2.0, 2)
old = disc.radius(1.0)
new = disc.jko(old, tau)


def square(n):
    return ox.Grid((-2.6, -2.6), (2.6, 2.6), (n, n))


def timed(name, mu):
    """The second of two runs, and its CPU time."""
    one_step(name, mu)
    start = time.process_time()
    out = one_step(name, mu)
    return out, time.process_time() - start


print(f"{'solver':18} {'cells':>6} {'seconds':>8} {'iterations':>11} {'residual':>9} {'L1 error':>9}")
for n, names in ((24, ways), (64, list(ways)[:-1]), (128, list(ways)[:-1])):
    mu, exactly, found = averages(disc, old, square(n)), averages(disc, new, square(n)), {}
    for name in names:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", solvers.FrozenWarning)
            (found[name], stats), seconds = timed(name, mu)
        row = f"{stats.iterations.item():11d} {stats.residual.item():9.0e} {misplaced(found[name], exactly):9.1e}"
        print(f"{name:18} {f'{n}²':>6} {seconds:8.2f} {row}")
    if n == 64:
        shown, exact64 = found, exactly

fig, axes = plt.subplots(1, 4, figsize=(12, 3.6), layout="constrained", sharex=True, sharey=True)
angle, span = torch.linspace(0, math.pi / 2, 100), (0, 2.6, 0, 2.6)
for ax, name in zip(axes, shown, strict=True):
    wrong = (shown[name].values - exact64.values)[32:, 32:].abs()
    image = ax.imshow(wrong.T.clamp_min(1e-12), extent=span, origin="lower", cmap="magma", norm=LogNorm(1e-6, 2e-2))
    ax.plot(new * angle.cos(), new * angle.sin(), "w:", lw=0.8)
    ax.set(title=f"{name}\n$L^1$ error {misplaced(shown[name], exact64):.1e}", xlabel="$x_1$")
axes[0].set_ylabel("$x_2$")
fig.colorbar(image, ax=axes, label="|computed − exact|", shrink=0.9)
fig.suptitle("A quarter of the disc on 64² cells, and its exact front (dotted)")

# %%
# ``Kantorovich`` and the debiased step err by the same little, in the cells that the front cuts; ``Dynamic`` has an
# error in a wider ring there, and a smaller tol does not change that. Plain ``Scaling`` is the fastest by far, and
# the least exact of those that do not freeze. Between the first two the clock does not decide at these sizes: one
# iteration of the debiased step is cheap, but it takes more of them the more cells √reg covers, while those of
# ``Kantorovich`` hardly grow in number. What decides is that ``Kantorovich`` has no reg to be chosen: on the coarsest
# grid, where √reg is below a cell, the debiased step is hardly better than the plain one.
#
# The error of the step itself
# ----------------------------
#
# What the solvers approximate is not the flow. The exact steps are first order in :math:`\tau`, by the equation for
# :math:`R` alone, and computed ones follow it until the error of the grid shows. Shrinking the step further must not
# make that error grow; for plans between centres of cells it does, since mass that ought to move by less than half a
# cell stays where it is (there is a warning when that is so, muted here). ``Richardson`` takes each step whole and in
# halves and extrapolates: second order, for three times the work.

grid, until = ox.Grid(-3.3, 3.3, 80), 0.5
start, flow = line.radius(1.0), line.radius(1.0 + until)
mu = averages(line, start, grid)
blur = averages(line, flow, grid).cov.item() - line.second_moment(flow).item()  # h²/12, what averaging adds


def radius(mu):
    """Of the Barenblatt density on the line that has this variance."""
    return (5 * (mu.cov.item() - blur)) ** 0.5


steps = (1, 2, 4, 8, 16)
truth = {n: line.jko(start, until / n, n).item() for n in steps}
runs = {
    "Kantorovich": (ox.Backward(F), steps),
    "Richardson": (ox.Richardson(ox.Backward(F)), steps[:-1]),
    "Convex": (ox.Backward(F, solver=solvers.Convex()), steps),
}
radii = {name: {} for name in runs}
with warnings.catch_warnings():
    warnings.simplefilter("ignore", solvers.FrozenWarning)
    for name, (step, numbers) in runs.items():
        for n in numbers:
            times = [until * k / n for k in range(n + 1)]
            radii[name][n] = radius(ox.record(ox.flow(step, mu, times)).final)

print(f"errors of R({1 + until})\n{'steps':>5} {'exact steps':>12} " + " ".join(f"{name:>12}" for name in runs))
for n in steps:
    row = [truth[n], *(found.get(n, math.nan) for found in radii.values())]
    print(f"{n:5d} " + " ".join(f"{r - flow.item():12.1e}" for r in row))

fig, ax = plt.subplots(figsize=(8, 4), layout="constrained")
for label, found, style in (
    ("exact implicit steps", truth, {"color": "0.75", "lw": 5}),
    ("Kantorovich", radii["Kantorovich"], {"color": "C0", "marker": "o"}),
    ("Richardson, of those", radii["Richardson"], {"color": "C2", "marker": "v"}),
    ("Convex", radii["Convex"], {"color": "C5", "marker": "D"}),
):
    ax.loglog([until / n for n in found], [abs(r - flow.item()) for r in found.values()], label=label, **style)
ax.set_xticks([until / n for n in steps], [f"1/{2 * n}" for n in steps])
ax.minorticks_off()
ax.set(xlabel="step size $\\tau$", ylabel=f"error of $R({1 + until})$", title="Errors against the flow")
ax.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0))

# %%
# Every gas ends as Barenblatt's
# ------------------------------
#
# Three bubbles in the plane, of mass ½, 3/10 and 1/5, spread, touch and become one. Their shape is forgotten at a
# known rate (Carrillo and Toscani 2000), and what remains is Barenblatt's disc about the centre of mass, which does
# not move. The spreading slows down, so the steps grow with time.

room = ox.Grid((-2.0, -2.0), (2.0, 2.0), (64, 64))
places = room.points(torch.zeros(()))
values = torch.zeros(room.n)
for share, centre, size in ((0.5, (-0.5, -0.45), 0.42), (0.3, (0.7, -0.1), 0.3), (0.2, (-0.1, 0.75), 0.25)):
    values += share * disc.density(places - torch.tensor(centre), radius=size)
gas = ox.Density((values / (values.sum() * room.volume)).reshape(room.shape), room)


def from_disc(mu):
    """The L1 distance to Barenblatt's density with the mean and the second moment of mu."""
    radius = (mu.cov.trace() / disc.second_moment(1.0)).sqrt()
    values = disc.density(mu.points - mu.mean, radius=radius).reshape(mu.grid.shape)
    return ((mu.values - values).abs().sum() * mu.grid.volume).item(), radius.item()


count = 28
times = [0.5 * (k / count) ** 3 for k in range(count + 1)]
run = ox.record(
    ox.flow(ox.Backward(F), gas, times),
    density=lambda tick: tick.after.values,
    distance=lambda tick: torch.tensor(from_disc(tick.after)),
    mass=ox.observe.mass,
    mean=ox.observe.mean,
)
frames = torch.cat([gas.values[None], run.series["density"]])
drift = (run.series["mean"] - gas.mean).abs().max()
print(f"after {count} steps the mass is off by {(run.series['mass'] - 1).abs().max():.0e}, its centre by {drift:.0e}")

look = {"origin": "lower", "extent": (-2, 2, -2, 2), "cmap": "magma", "norm": PowerNorm(0.4, 0, frames.max())}
circle = torch.linspace(0, 2 * math.pi, 200)
fronts = [from_disc(gas)[1], *run.series["distance"][:, 1].tolist()]


def ring(k):
    """The front of the disc that would have the moments of frame k."""
    return gas.mean[0] + fronts[k] * circle.cos(), gas.mean[1] + fronts[k] * circle.sin()


fig = plt.figure(figsize=(12, 3), layout="constrained")
axes = fig.subplots(1, 5, width_ratios=(1, 1, 1, 1, 1.4))
for ax, k in zip(axes, (0, 9, 16, 28), strict=False):
    image = ax.imshow(frames[k].T, **look)
    ax.plot(*ring(k), "w:", lw=0.8)
    ax.set(title=f"t = {times[k]:.3f}", xticks=(), yticks=())
fig.colorbar(image, ax=axes[3], label="density", shrink=0.7)
axes[-1].loglog(run.times, run.series["distance"][:, 0])
axes[-1].set_yticks([0.2, 0.5, 1.0], ["0.2", "0.5", "1"])
axes[-1].minorticks_off()
axes[-1].set(xlabel="$t$", ylim=(0.15, 2), title="$L^1$ distance to the disc")

# %%
# The same, moving. The dotted disc is Barenblatt's with the same centre and second moment.

fig, ax = plt.subplots(figsize=(4.8, 4.6), layout="constrained")
image = ax.imshow(frames[0].T, **look)
(dots,) = ax.plot(*ring(0), "w:", lw=1)
title = ax.set_title("t = 0.000")


def draw(k):
    image.set_data(frames[k].T)
    dots.set_data(*ring(k))
    title.set_text(f"t = {times[k]:.3f}")
    return image, dots, title


animation = FuncAnimation(fig, draw, frames=count + 1, interval=120)

# %%
# What to take
# ------------
#
# - On the line, ``Quantiles``: the step is solved to rounding in a few milliseconds.
# - On a grid, nothing: the default is ``Kantorovich``, the most exact and with nothing to be chosen.
# - ``Entropic(reg)`` where speed matters and √reg is small against all that is of interest; ``Entropic(reg,
#   "debiased")`` where it is not, and √reg is a cell or more.
# - ``Dynamic`` where the path matters: geodesics, games, mobilities that saturate.
# - ``Convex`` for energies and constraints that nothing else takes, with steps of more than a cell.
plt.show()
