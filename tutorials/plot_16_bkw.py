r"""
BKW in two dimensions
=====================

The spatially homogeneous Landau equation, for collisions of charged particles with velocities :math:`v`, is the
gradient flow of the entropy in a metric of its own:

.. math:: \partial_t f = \operatorname{div}\int A(v-v_*)\,\bigl(f_*\nabla f - f\,\nabla f_*\bigr)\,\mathrm dv_*,
   \qquad A(z) = C\,|z|^{\gamma+2}\Bigl(I - \frac{zz^{\mathsf T}}{|z|^2}\Bigr).

For Maxwell molecules, :math:`\gamma = 0`, Bobylev and Krook and Wu found a solution in closed form. It makes every
number of a particle method checkable: the density, the entropy and its rate, the moments. Here they are checked.
"""

# %%
# Particles with an entropy
# -------------------------
#
# Particles have no entropy, but blobs around them do: with :math:`\varphi = N(0, \text{width}^2 I)`,
#
# .. math:: F(\mu) = \int (\varphi*\mu)\log(\varphi*\mu)\,\mathrm dv,
#
# which is `Blob(width, form="full")`. `Forward` on it in the metric `Landau(0, C)` is the deterministic particle method
# of Carrillo, Hu, Wang and Wu; `schemes.landau` is that composition. One particle goes to the centre of each of
# :math:`80^2` cells, weighed by :math:`f`, and blobs are a little narrower than the cells, as in the paper. The
# integral is a sum over one lattice for all particles, axis by axis, and collisions go through moments: no pair is ever
# formed.

import math
import time

import matplotlib.pyplot as plt
import torch

import otprox as ox
from otprox.exact.landau import BKW

torch.set_default_dtype(torch.float64)

bkw = BKW(d=2, strength=1 / 16)


def start(n):
    """n² particles, and the width of their blobs: width² = 0.64·h^1.98."""
    grid = ox.Grid((-4, -4), (4, 4), (n, n))
    return bkw.particles(grid, t=0.0), 0.8 * grid.spacing[0] ** 0.99


def blobs(mu, width, axes):
    """φ∗μ on a grid given by its axes."""
    return ox.pairwise.gaussian_spread(mu.x, mu.w, axes, width) / (2 * math.pi * width**2)


mu, width = start(80)
step = ox.schemes.landau(gamma=0.0, width=width, strength=1 / 16)
print(step.F, "in", step.metric)

clock = time.perf_counter()
states, tau = {0.0: mu}, 0.025
for t0, t1 in ((0.0, 1.0), (1.0, 5.0)):
    times = [t0 + tau * k for k in range(round((t1 - t0) / tau) + 1)]
    states[t1] = ox.record(ox.flow(step, states[t0], times), every=len(times)).final
print(f"200 steps of 6400 particles: {time.perf_counter() - clock:.1f} s")

# %%
# The solution starts with a hole in the middle, which collisions fill on the way to the Maxwellian. Left, the blobs
# along an axis; right, at the particles themselves, against :math:`|v|`, the relative error.

line = torch.linspace(-4, 4, 401)
axis = torch.stack([line, 0 * line], -1)
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
for k, (t, nu) in enumerate(states.items()):
    left.plot(line, bkw.density(axis, t), f"C{k}", lw=1.2, label=f"t = {t:g}")
    left.plot(line[::10], blobs(nu, width, [line[::10], line.new_zeros(1)]), f"C{k}o", ms=3.5)
    some = nu.x[(nu.x.norm(dim=-1) < 3.5).nonzero()[::7, 0]]
    log_f = ox.pairwise.log_gaussian_sum(some, nu.x, nu.w.log(), width) - math.log(2 * math.pi * width**2)
    right.plot(some.norm(dim=-1), log_f.exp() / bkw.density(some, t) - 1, f"C{k}.", ms=2, label=f"t = {t:g}")
left.set(xlabel="$v_1$", title="density along an axis: exact, and particles (dots)")
left.legend(fontsize=8)
right.axhline(0, color="0.6", lw=0.8)
right.set(xlabel="$|v|$", title="relative error of the density at particles", ylim=(-0.1, 0.3))
right.legend(fontsize=8, markerscale=4)
plt.show()

# %%
# What blobs can and cannot show
# ------------------------------
#
# At :math:`t = 0` the dots lie above the line at :math:`v = 0` before anything has moved: the particles stand for
# :math:`f * \varphi`, not for :math:`f`, and what spills over the rim fills the hole. This floor is that of
# the reconstruction, and should be stated beside every error. :math:`f * \varphi` has a closed form too (`width=`),
# which tells the two apart.


def off(found, exactly):
    return ((found.flatten() - exactly).norm() / exactly.norm()).item()


square = ox.Grid((-4, -4), (4, 4), (160, 160))
points, axes = square.points(line), square.centers(line)
print("relative L2 error   against f    against f*φ")
for t, nu in states.items():
    f = blobs(nu, width, axes)
    print(
        f"t = {t:3g}             {off(f, bkw.density(points, t)):.2e}    "
        f"{off(f, bkw.density(points, t, width=width)):.2e}"
    )

# %%
# The floor at :math:`t = 0` is larger than the error at :math:`t = 1`: the solution has become smoother. Against
# :math:`f * \varphi` the start is exact to 3e-6; what is lost on the way is the error of the flow, which feels the
# smoothed score :math:`\varphi * \nabla\log(\varphi * \mu)` in place of :math:`\nabla\log f`. Both are
# :math:`O(\text{width}^2)`, and of opposite sign.
#
# A term of known order can be extrapolated away, and functionals can be added: :math:`2 F_{\text{width}} -
# F_{\sqrt2\,\text{width}}` differs from the entropy by :math:`O(\text{width}^4)`. That is `schemes.landau(…, order=4)`,
# and its blobs are combined in the same way.

fig, ax = plt.subplots(figsize=(5.6, 4), layout="constrained")
counts = (20, 28, 40, 56, 80)
for order, color in ((2, "C0"), (4, "C1")):
    errors, floors = [], []
    for n in counts:
        nu, w = start(n)
        scheme = ox.schemes.landau(0.0, w, strength=1 / 16, order=order)
        end = ox.record(ox.flow(scheme, nu, [tau * k for k in range(41)]), every=40).final
        for cloud, t, found in ((nu, 0.0, floors), (end, 1.0, errors)):
            f = blobs(cloud, w, axes)
            f = f if order == 2 else 2 * f - blobs(cloud, math.sqrt(2) * w, axes)
            found.append(off(f, bkw.density(points, t)))
    ax.loglog(counts, errors, color + "o-", label=f"order={order}, t = 1")
    ax.loglog(counts, floors, color + ".:", lw=1, label=f"order={order}, floor at t = 0")
    rate = math.log(errors[2] / errors[4]) / math.log(counts[4] / counts[2])
    print(f"order={order}: from 40² to 80² particles {errors[2]:.2e} -> {errors[4]:.2e}, observed {rate:.2f}")
h = torch.tensor([24.0, 80.0])
ax.loglog(h, 0.1 * (h / 24) ** -2, "k--", lw=0.8, label="slopes 2 and 4")
ax.loglog(h, 0.02 * (h / 24) ** -4, "k--", lw=0.8)
ax.set(xlabel="particles an axis", title="relative L2 error against f")
ax.set_xticks(counts, [str(n) for n in counts])
ax.minorticks_off()
ax.legend(fontsize=8)
plt.show()

# %%
# Independent samples do worse: with as many particles and the same width, noise is what is seen at first, and the
# repulsion of blobs then removes much of it. Collisions do not forget the sampled moments.

fine = ox.Grid((-4, -4), (4, 4), (800, 800))
law = bkw.density(fine.points(line), 0.0).reshape(fine.shape)
law = ox.Density(law / (law.sum() * fine.volume), fine)
sampled = ox.Particles(law.to_particles(6400, torch.Generator().manual_seed(0)).x)
end = ox.record(ox.flow(step, sampled, [tau * k for k in range(41)]), every=40).final
print(
    f"6400 independent particles: {off(blobs(sampled, width, axes), bkw.density(points, 0.0)):.3f} at t = 0, "
    f"{off(blobs(end, width, axes), bkw.density(points, 1.0)):.3f} at t = 1"
)

# %%
# Entropy and its rate
# --------------------
#
# :math:`F` decreases at the rate :math:`\int\langle\nabla\varphi_F, K_\mu\nabla\varphi_F\rangle\,\mathrm d\mu` with
# :math:`\varphi_F = \delta F/\delta\mu`, which `observe.dissipation` gives. Against BKW's entropy the blobs are
# off by about :math:`\tfrac12\text{width}^2 I(f)`, :math:`I` the Fisher information, since they are
# smoother; against the entropy of :math:`f*\varphi` they are close, and the extrapolated functional sees that of
# :math:`f` itself. Without any blob in the reading: particles that start with a `log_density` carry it along, by
# the Jacobian of the velocity, and :math:`\sum w\log f` is the entropy (the crosses).

fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
times = [tau * k for k in range(81)]
t = torch.tensor(times[4::4])
exactly = torch.tensor([bkw.entropy(s) for s in t.tolist()])
smooth = torch.tensor([bkw.entropy(s, width=width) for s in t.tolist()])
left.plot(t, exactly, "k-", lw=1, label="f, exact")
left.plot(t, smooth, "k--", lw=1, label=r"f$*\varphi$, exact")
right.semilogy(t, [-bkw.entropy_rate(s) for s in t.tolist()], "k-", lw=1, label="f, exact")
for order, marker in ((2, "C0o"), (4, "C1s")):
    scheme = ox.schemes.landau(0.0, width, strength=1 / 16, order=order)
    looks = {"F": ox.observe.energy(scheme.F), "rate": ox.observe.dissipation(scheme.F, scheme.metric)}
    if order == 4:
        looks["carried"] = lambda tick: tick.after.expect(lambda v, nu=tick.after: nu.log_density)
    cloud = mu if order == 2 else ox.Particles(mu.x, mu.w, log_density=bkw.log_density(mu.x, 0.0))
    run = ox.record(ox.flow(scheme, cloud, times), every=4, **looks)
    left.plot(run.times, run.series["F"], marker, ms=3, label=f"particles, order={order}")
    right.semilogy(run.times, run.series["rate"], marker, ms=3, label=f"particles, order={order}")
    found = run.series["F"]
    print(
        f"order={order}: largest distance to the entropy of f {(found - exactly).abs().max():.1e}, "
        f"of f*φ {(found - smooth).abs().max():.1e}"
    )
left.plot(run.times, run.series["carried"], "C2+", ms=6, label="carried along particles")
print(f"carried along particles: {(run.series['carried'] - exactly).abs().max():.1e} off that of f")
left.set(xlabel="time", title=r"entropy $\int f\log f$")
left.legend(fontsize=8)
right.set(xlabel="time", title=r"its rate of decay $-dH/dt$")
right.legend(fontsize=8)
plt.show()

# %%
# What is conserved
# -----------------
#
# Collisions keep mass, momentum and energy. Here that does not depend on how good the score is: as :math:`A(z)z = 0`
# and :math:`A` is even, the velocities :math:`U` of particles have :math:`\sum w\,U = 0` and
# :math:`\sum w\,v\cdot U = 0` for every covector. A step of forward Euler then keeps momentum to rounding, and adds
# exactly :math:`\tfrac12\tau^2\sum w|U|^2` to the energy; `Midpoint(F, Landau(…))` adds nothing.


def energy(cloud):
    return cloud.expect(lambda v: v.square().sum(-1) / 2).item()


U = step.metric.descent(step.F, mu).field(mu.x)
new = step(mu, 0.0, tau).mu
print(
    f"one step: energy grows by {energy(new) - energy(mu):.6e}, tau²/2 Σw|U|² is "
    f"{tau**2 / 2 * (mu.w * U.square().sum(-1)).sum():.6e}"
)
print(
    f"over 5 units of time: momentum {states[5.0].mean.abs().max():.1e}, energy {energy(states[5.0]) - energy(mu):.1e}"
)
coarse, w = start(20)
implicit = ox.Midpoint(ox.Blob(w, form="full"), ox.Landau(0.0, 1 / 16))(coarse, 0.0, 0.1).mu
print(f"one midpoint step of 0.1 of 400 particles: energy {energy(implicit) - energy(coarse):.1e}")
