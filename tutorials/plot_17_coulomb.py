r"""
Coulomb collisions in 3-D: two temperatures relax
=================================================

A plasma whose particles are hotter along the magnetic field than across it becomes isotropic by collisions. The
velocities follow the Landau equation,

.. math::
    \partial_t f = \nabla\cdot\int A(v - v_*)\,\bigl(f_*\nabla f - f\,\nabla_* f_*\bigr)\,dv_*,
    \qquad A(z) = \frac{1}{|z|}\Bigl(I - \frac{z z^\top}{|z|^2}\Bigr),

the flow of :math:`H = \int f\log f` in the metric of collisions. On particles it reads
:math:`\dot v_i = -\sum_j w_j A(v_i - v_j)(s_i - s_j)`: all that it asks for is the score :math:`s = \nabla\log f`.
Momentum and energy are conserved whatever the score. That is good, and it is also a warning: conservation
does not say that the score is right.
"""

# %%
# The first instant
# -----------------
#
# For a bi-Maxwellian, a Gaussian with temperatures :math:`T_\parallel` and :math:`T_\perp`, the score is linear and the
# rates are known in closed form (NRL Plasma Formulary), :math:`\dot T_\parallel = 2\nu\,(T_\perp - T_\parallel)`. Here
# they are from :math:`n` independent particles and a ``GaussianFit``: the dots are single draws, the bars two standard
# errors of their mean.

from dataclasses import dataclass

import matplotlib.pyplot as plt
import torch

import otprox as ox
from otprox import exact, scores

torch.set_default_dtype(torch.float64)
gaussian_fit = ox.Entropy(score=scores.GaussianFit())


def draw(n, parallel, perpendicular, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=generator) * torch.tensor([parallel, perpendicular, perpendicular]).sqrt()


def rate(v):
    """dT∥/dt of particles."""
    mu = ox.Particles(v)
    velocity = ox.Landau(-3.0).descent(gaussian_fit, mu).field(mu.points)
    return 2 * mu.w @ ((v - mu.mean)[:, 0] * velocity[:, 0])


fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.4), layout="constrained")
for ax, T in zip(axes, ((0.5, 1.25), (2.0, 0.5)), strict=True):
    closed, _ = exact.landau.coulomb_rates(*T)
    for n, seeds in ((1000, 12), (3000, 6), (10000, 3)):
        rates = torch.stack([rate(draw(n, *T, seed)) for seed in range(seeds)])
        error = rates.std() / seeds**0.5
        ax.semilogx([n] * seeds, rates, "C0.", alpha=0.4)
        ax.errorbar([n * 1.12], [rates.mean()], 2 * error, fmt="C0o", capsize=4)
        print(f"T∥ = {T[0]:g}, T⊥ = {T[1]:g}, n = {n:5}: {rates.mean():.4f} ± {error:.4f}, exactly {closed:.4f}")
    ax.axhline(closed, color="k", lw=1, label="closed form")
    ax.set(xlabel="particles", title=rf"$T_\parallel = {T[0]:g},\ T_\perp = {T[1]:g}$", xticks=[1000, 3000, 10000])
    ax.set_xticklabels(["1000", "3000", "10000"])
    ax.minorticks_off()
axes[0].set_ylabel(r"$dT_\parallel/dt$")
axes[0].legend()
plt.show()

# %%
# A step that keeps the energy
# ----------------------------
#
# The velocity conserves the energy, an explicit step does not: it adds :math:`\tfrac12\tau^2\sum w|\dot v|^2` each
# time. ``Midpoint`` solves :math:`v' = v + \tau\,U\bigl(\tfrac12(v + v')\bigr)`, with all particles half way. Since
# :math:`\sum w\,\bar v\cdot U(\bar v) = 0` there, the energy is kept, up to ``tol`` of what the explicit step would
# add. It takes some evaluations of the velocity a step, and it is of second order.
#
# With a functional that has a value on particles there is a second law too. ``DiscreteGradient`` takes
# :math:`v' = v - \tau K\,\overline\nabla F(v, v')` with a mean gradient for which
# :math:`F(v') - F(v) = -\tau\langle\overline\nabla F, K\overline\nabla F\rangle` exactly (Gonzalez 1996; Hirvijoki
# 2021): the entropy of blobs decreases at every step size. Explicit steps take it below the equilibrium, since
# they add energy: hotter particles have less :math:`\int f\log f`.

start = ox.Particles(draw(400, 2.0, 0.5))
blobs = ox.Blob(0.6, form="full")
kinetic = ox.Potential(lambda v: v.square().sum(-1) / 2)

fig, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.8), layout="constrained")
for kind, F, tau, style in (
    (ox.Forward, gaussian_fit, 0.4, "C3-"),
    (ox.Forward, gaussian_fit, 0.1, "C1-"),
    (ox.Midpoint, gaussian_fit, 0.4, "C0.-"),
    (ox.Forward, blobs, 2.0, "C3.-"),
    (ox.DiscreteGradient, blobs, 2.0, "C0.-"),
    (ox.DiscreteGradient, blobs, 0.25, "0.6"),
):
    law = F is blobs
    times = [tau * k for k in range(round((12 if law else 4) / tau) + 1)]
    run = ox.record(
        ox.flow(kind(F, ox.Landau(-3.0)), start, times),
        energy=ox.observe.energy(kinetic),
        F=ox.observe.energy(blobs if law else kinetic),
        velocities=lambda tick: 1 if tick.stats is None else tick.stats.iterations,
    )
    drift = (run.series["energy"] / kinetic(start) - 1).abs()
    work, label = int(run.series["velocities"].sum()), f"{kind.__name__}, $\\tau = {tau:g}$"
    if law:
        right.plot(times, [blobs(start), *run.series["F"]], style, label=label)
    else:
        left.semilogy(run.times, drift, style, label=f"{label}: {work} velocities")
    print(f"{kind.__name__:16} tau = {tau:4g}: relative energy drift {drift[-1]:.1e} after {work} velocities")
left.set(xlabel="$t$", title="relative drift of the energy", ylim=(1e-15, 1))
right.set(xlabel="$t$", title="entropy of blobs")
for ax in (left, right):
    ax.legend(fontsize=9)
plt.show()

# %%
# Is the distribution still Gaussian?
# -----------------------------------
#
# The closed rates can be integrated as an equation for :math:`(T_\parallel, T_\perp)`. But a bi-Maxwellian does not
# stay one: slow particles collide often and fast ones hardly, and the rates hold at the first instant only. Particles
# with a Gaussian fit of the score cannot see that. What can is a score that is free to bend. Minimising
# :math:`E|s|^2 + 2E\,\nabla\cdot s` over a span of fields :math:`s = \sum_k c_k\nabla h_k` is a linear system. Take
# :math:`h = h(r)` with :math:`h'(r) = (1 + r)^p`, where :math:`r` is the sum of :math:`v_i^2/T_i` over the parallel,
# the perpendicular, or all axes: :math:`p = 0` are Gaussians, :math:`p = -\tfrac12` and :math:`-1` have longer tails.
# Any class with a ``fit`` is an estimator. (``scores.Network`` trains a neural network for the same objective.)


@dataclass(frozen=True)
class Bent(scores.Estimator):
    """Score matching in the span of eight fields."""

    def fit(self, mu, last=None):
        T = mu.cov.diagonal()
        along, across, all_ = [1.0, 0, 0], [0, 1.0, 1.0], [1.0, 1.0, 1.0]
        axes = torch.tensor([along, across, along, across, all_, along, across, all_]).T
        p = torch.tensor([0, 0, -0.5, -0.5, -0.5, -1, -1, -1])

        def fields(v):
            """The ∇h_k (n, 3, 8), and the Δh_k (n, 8)."""
            q = v**2 / T
            r = 1 + q @ axes
            laplacian = 2 * r**p * (axes.T @ (1 / T)) + 4 * p * r ** (p - 1) * (q / T @ axes)
            return 2 * (v / T)[..., None] * axes * r[:, None] ** p, laplacian

        f, laplacian = fields(mu.points)
        gram = (f.mT * mu.w[:, None, None]) @ f
        c = -torch.linalg.solve(gram.sum(0), mu.w @ laplacian)
        return scores.Known(lambda v: fields(v)[0] @ c)


# %%
# Who is right? Monte Carlo needs no score at all: particles meet in random pairs, and each relative velocity
# :math:`z` turns by an angle :math:`\theta` with :math:`\tan^2(\theta/2)` of mean :math:`4\tau/|z|^3` (Takizuka, Abe
# 1977). It keeps momentum and energy pair by pair, costs :math:`O(n)` a step, and wants many particles and short steps.
# Here they are 1/80; with four times shorter ones :math:`T_\parallel` is lower by 0.01. All draws get exactly the
# temperatures 2 and ½, by a linear map.


def collide(v, tau, generator):
    a, b = v[torch.randperm(len(v), generator=generator)].chunk(2)
    z = a - b
    length = z.norm(dim=-1, keepdim=True)
    delta = (4 * tau / length**3).sqrt() * torch.randn(len(z), 1, generator=generator)
    normal = torch.linalg.cross(z, torch.randn(z.shape, generator=generator))
    normal = normal * length / normal.norm(dim=-1, keepdim=True)
    turn = (normal - delta * z) * 2 * delta / (1 + delta**2)  # z cos θ + normal sin θ − z, with tan(θ/2) = delta
    return torch.cat([a + turn / 2, b - turn / 2])


def kurtosis(v):
    v = v[:, 0] - v[:, 0].mean()
    return v.pow(4).mean() / v.var() ** 2


def exactly(n, parallel, perpendicular, seed):
    """A draw with mean 0 and these temperatures exactly, by a linear map."""
    v = draw(n, 1.0, 1.0, seed)
    v = v - v.mean(0)
    v = torch.linalg.solve_triangular(torch.linalg.cholesky(v.T @ v / n), v.T, upper=False).T
    return v * torch.tensor([parallel, perpendicular, perpendicular]).sqrt()


horizon, tau, n = 4.0, 0.25, 8000
times = [tau * k for k in range(round(horizon / tau) + 1)]

generator, v, parts = torch.Generator().manual_seed(1), exactly(60000, 2.0, 0.5, seed=3), 20
monte_carlo = [v]
for _ in times[1:]:
    for _ in range(parts):
        v = collide(v, tau / parts, generator)
    monte_carlo.append(v)

# %%
# The particles of otprox take 8000 velocities and random batches of 40: pairs act in one batch or not at all, so
# the conservation laws hold exactly, and ``Midpoint`` sees the same batches all through a step. The Gaussian closure is
# the same flow on a measure of another kind, ``Gaussian``.

runs = {}
for name, F in (("Gaussian fit", gaussian_fit), ("bent score", ox.Entropy(score=Bent()))):
    metric = ox.Landau(-3.0, batch=40, generator=torch.Generator().manual_seed(2))
    step = ox.Midpoint(F, metric, tol=1e-6)
    start = ox.Particles(exactly(n, 2.0, 0.5, seed=0))
    runs[name] = [start.x, *(tick.after.x for tick in ox.flow(step, start, times))]

closure = [ox.Gaussian(torch.zeros(3), torch.diag(torch.tensor([2.0, 0.5, 0.5])))]
for tick in ox.flow(ox.Richardson(ox.Forward(ox.Entropy(), ox.Landau(-3.0))), closure[0], times):
    closure.append(tick.after)

fig, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4), layout="constrained")
left.plot(times, [mu.cov[0, 0] for mu in closure], "k--", label="closure by Gaussians")
left.plot(times, [mu.cov[1, 1] for mu in closure], "k--")
right.axhline(3, color="k", ls="--")
for name, color, path in (
    ("binary collisions", "0.6", monte_carlo),
    *zip(runs, ("C1", "C0"), runs.values(), strict=True),
):
    style = {
        "color": color,
        "lw": 4 if path is monte_carlo else 0,
        "marker": "" if path is monte_carlo else "o",
        "ms": 4,
    }
    left.plot(times, [v[:, 0].var() for v in path], label=name, **style)
    left.plot(times, [v[:, 1:].var(0).mean() for v in path], **style)
    right.plot(times, [kurtosis(v) for v in path], label=name, **style)
    print(f"{name:18} T∥ at t = 1, 2, 4: " + ", ".join(f"{path[k][:, 0].var():.3f}" for k in (4, 8, 16)))
print("closure            T∥ at t = 1, 2, 4: " + ", ".join(f"{closure[k].cov[0, 0]:.3f}" for k in (4, 8, 16)))
left.set(xlabel="$t$", ylabel=r"$T_\parallel$ and $T_\perp$")
right.set(xlabel="$t$", ylabel=r"kurtosis of $v_\parallel$")
left.legend()
plt.show()

# %%
# The closure is right at first and some 4 % too low at the end. So is the Gaussian fit: its particles grow tails that
# their score does not know of. A score that can bend follows Monte Carlo, with a seventh of the particles and
# steps twenty times as long. All of these runs conserve momentum and energy: only the score tells them apart.
#
# In velocity space, with the Gaussian of the same temperatures as lines (0.5, 1, 2 and 3 standard deviations): the core
# becomes round first.

fig, axes = plt.subplots(1, 3, figsize=(10.5, 3.6), sharex=True, sharey=True, layout="constrained")
angle = torch.linspace(0, 2 * torch.pi, 200)
edges = torch.linspace(-4, 4, 61)
for ax, k in zip(axes, (0, 4, 16), strict=True):
    v = runs["bent score"][k]
    both = torch.cat([v[:, :2], v[:, ::2]])  # the two perpendicular axes
    points = torch.cat([both * torch.tensor(signs) for signs in ((1, 1), (1, -1), (-1, 1), (-1, -1))])
    counts, _ = torch.histogramdd(points, [edges, edges], density=True)
    ax.pcolormesh(edges, edges, counts.sqrt().T, cmap="Blues", vmax=0.4)
    for size in (0.5, 1, 2, 3):
        along, across = (size * v[:, i].std() for i in (0, 1))
        ax.plot(along * angle.cos(), across * angle.sin(), "C1", lw=0.8)
    ax.set(xlabel=r"$v_\parallel$", title=f"$t = {times[k]:g}$", xlim=(-4, 4), ylim=(-4, 4), aspect="equal")
axes[0].set_ylabel(r"$v_\perp$")
plt.show()

# %%
# Which step?
# -----------
#
# ``Forward`` is enough where :math:`\tfrac12\tau^2\sum w|\dot v|^2` more energy a step does no harm. ``Midpoint`` is
# for long runs and large steps, at five to ten velocities each. ``DiscreteGradient`` also keeps the second law, for an
# entropy with a value on particles. ``Integrate`` (by torchdiffeq) and ``Adaptive(Midpoint(...), tol, order=2)`` choose
# their steps by an error estimate; the latter keeps the energy too.
